# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an armed process decides, without a server: what is a proof, and what one look means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.arming import (
    GAP_SECONDS,
    STALL_SECONDS,
    Seen,
    Session,
    armed_checks,
    begin,
    gap_seconds,
    record_end,
    refutation,
    step,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.promotion import OldPrimarySeen, Wanted
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import parse_lsn
from hypothesis import given
from hypothesis import strategies as st

from .test_promotion import standby

BLOCK, SEGMENT = 8192, 16 << 20
SESSION = Session(receiver=42, timeline=1, position=parse_lsn("0/3000028"), expires=100.0)

# As pg_waldump of 13, 15, 17 and 18 prints them.
ROW = (
    "rmgr: Transaction len (rec/tot):     34/    34, tx:        736, lsn: 0/03000028, prev 0/03000000, desc: COMMIT"
    " 2026-11-20 14:00:00.000000 UTC"
)
SHUTDOWN = (
    "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000050, prev 0/03000028, desc:"
    " CHECKPOINT_SHUTDOWN redo 0/3000050; tli 1; prev tli 1; fpw true; xid 0:737; oid 24576; multi 1; shutdown"
)
END = parse_lsn("0/3000050") + 120


def reason(printed: str, session: Session = SESSION, end: int = END) -> Optional[str]:
    return refutation(printed, session, end, BLOCK, SEGMENT)[0]


def test_the_proof():
    assert refutation(f"{ROW}\n{SHUTDOWN}\n", SESSION, END, BLOCK, SEGMENT) == (None, SHUTDOWN)


@pytest.mark.parametrize(
    ("printed", "changes", "says"),
    [
        ("", {}, "nothing was read before 0/30000C8"),
        ("pg_waldump: error: nonsense", {}, "nothing was read"),
        (ROW, {}, "the last record is Transaction COMMIT at 0/03000028"),
        (f"{SHUTDOWN}\n{ROW}", {}, "the last record is Transaction COMMIT"),
        (SHUTDOWN.replace("_SHUTDOWN", "_ONLINE"), {}, "the last record is XLOG CHECKPOINT_ONLINE"),
        (SHUTDOWN.replace("XLOG ", "Heap "), {}, "Heap CHECKPOINT_SHUTDOWN"),
        (SHUTDOWN.replace("redo 0/3000050", "redo 0/3000028"), {}, "of another kind"),
        (SHUTDOWN.replace("; tli 1;", "; tli 2;"), {}, "of another kind"),
        (SHUTDOWN.replace("redo 0/3000050; tli 1;", ""), {}, "of another kind"),
        (SHUTDOWN, {"position": parse_lsn("0/3000058")}, "older than the arming"),
        (SHUTDOWN, {"end": END + 8}, "after it there is WAL up to 0/30000D0"),
        (SHUTDOWN, {"end": END - 8}, "after it there is WAL up to"),
    ],
)
def test_all_else_is_none(printed, changes, says):
    end = changes.pop("end", END)
    said = reason(printed, replace(SESSION, **changes), end)
    assert said is not None
    assert "the stream ended without the shutdown record" in said
    assert says in said


@pytest.mark.parametrize(
    ("start", "length", "end"),
    [
        (0x3000028, 114, 0x30000A0),
        (0x3000028, 34, 0x3000050),
        # Its last byte is the page's last: it ends where the next page begins, before that one's header.
        (0x3001FC8, 56, 0x3002000),
        (0x3001FC8, 50, 0x3002000),
        (0x3001FC8, 58, 0x3002020),
        (0x3FFFFC8, 58, 0x4000030),
        (0x3001FF8, 8 + 2 * (BLOCK - 24) + 8, 0x3006020),
    ],
)
def test_where_a_record_ends(start, length, end):
    assert record_end(start, length, BLOCK, SEGMENT) == end


@given(st.integers(0, 1 << 40), st.integers(24, 1 << 20))
def test_a_record_ends_after_its_bytes_and_its_pages_headers(start, length):
    start *= 8
    end = record_end(start, length, BLOCK, SEGMENT)
    headers = end - start - (length + 7) // 8 * 8
    pages = (end - 1) // BLOCK - start // BLOCK
    files = (end - 1) // SEGMENT - start // SEGMENT
    assert headers == 24 * (pages - files) + 40 * files


# One look ------------------------------------------------------------------------------------------------------------


def seen(at: float = 1.0, **changes: Any) -> Seen:
    there = {"receiver": 42, "status": "streaming", "timeline": 1}
    return Seen(
        **{"asked": at, "answered": at, "in_recovery": True, "received": 50, "replayed": 50, **there, **changes}
    )


GONE: dict[str, Any] = {"receiver": None, "status": None, "timeline": None}
START = begin(seen())


@pytest.mark.parametrize(
    ("looks", "what", "says"),
    [
        ([seen(1.005)], "wait", None),
        ([seen(1.005, received=60)], "wait", None),
        ([seen(1.005, **GONE)], "prove", None),
        ([seen(1.005, status="waiting")], "prove", None),
        ([seen(1.005, received=60, **GONE)], "wait", None),
        ([seen(1.005, received=60, **GONE), seen(1.01, received=60, replayed=60, **GONE)], "prove", None),
        # What the receiver says it has may fall behind what was replayed.
        ([seen(1.005, received=None, **GONE)], "prove", None),
        ([seen(99.0), seen(99.1)], "wait", None),
        ([seen(1.1, in_recovery=False)], "refused", "somebody else made it the primary"),
        ([seen(1.1, replayed=None, **GONE)], "refused", "does not say what it replayed"),
        ([seen(1.1, timeline=2)], "refused", "timeline 2"),
        ([seen(1.1, receiver=43)], "refused", "a new one began"),
        ([seen(1.1, **GONE), seen(1.2, receiver=43)], "refused", "a new one began"),
        ([seen(1.1, status="waiting"), seen(1.2)], "refused", "a new one began"),
        ([seen(1.1 + GAP_SECONDS, **GONE)], "refused", "nobody looked for 0.6 s"),
        ([seen(1.1, received=60, **GONE), seen(2.0, **GONE)], "refused", "nobody looked for 0.9 s"),
        ([seen(100.1)], "expired", "its time is over"),
        ([seen(99.9), seen(100.1, **GONE)], "expired", "its time is over"),
    ],
)
def test_what_looks_mean(looks, what, says):
    watch = START
    for one in looks:
        watch, verdict = step(SESSION, watch, one)
    assert verdict.what == what
    assert verdict.reason is None if says is None else says in verdict.reason


def test_a_look_that_took_long_counts_from_when_it_was_asked_to_when_it_was_answered():
    late = replace(seen(1.2, **GONE), answered=1.1 + GAP_SECONDS)
    assert step(SESSION, START, late)[1].what == "refused"
    # And sleeping while the stream goes on is no harm: it is the same one.
    watch, verdict = step(SESSION, START, seen(50.0))
    assert verdict.what == "wait"
    assert step(SESSION, watch, seen(50.1, **GONE))[1].what == "prove"


def test_a_replay_that_stands_still_is_given_up_and_one_that_moves_is_not():
    watch, at, replayed = START, 1.0, 50
    while at < 1 + 3 * STALL_SECONDS:
        at, replayed = at + 0.1, replayed + 1
        watch, verdict = step(SESSION, watch, seen(at, received=5000, replayed=replayed, **GONE))
        assert verdict.what == "wait"
    for _ in range(int(STALL_SECONDS / 0.1) + 2):
        at += 0.1
        watch, verdict = step(SESSION, watch, seen(at, received=5000, replayed=replayed, **GONE))
    assert verdict.what == "refused"
    assert "replay stands still at 0/" in (verdict.reason or "")


def test_reading_begins_at_the_end_of_an_earlier_record():
    watch = START
    for at, replayed in ((1.1, 50), (1.2, 60), (1.3, 60), (1.4, 80), (1.5, 80)):
        watch, _ = step(SESSION, watch, seen(at, received=90, replayed=replayed))
    assert (watch.before, watch.replayed) == (60, 80)


@given(st.data())
def test_nothing_but_the_end_of_the_one_stream_is_proved(data):
    values = {
        "receiver": data.draw(st.sampled_from([None, 42, 43])),
        "status": data.draw(st.sampled_from([None, "streaming", "waiting", "restarting", "stopping"])),
        "timeline": data.draw(st.sampled_from([None, 1, 2])),
        "received": data.draw(st.sampled_from([None, 40, 50, 60])),
        "replayed": data.draw(st.sampled_from([None, 50, 60])),
        "in_recovery": data.draw(st.booleans()),
    }
    at = data.draw(st.sampled_from([1.0, 1.2, 3.0, 101.0]))
    verdict = step(SESSION, START, seen(at, **values))[1]
    if verdict.what == "prove":
        assert values["receiver"] in (None, 42)
        assert values["receiver"] is None or values["status"] != "streaming"
        assert values["in_recovery"]
        assert values["replayed"] >= (values["received"] or 0)
        assert at == 1.0 or at == 1.2


# May it be armed -----------------------------------------------------------------------------------------------------

PRIMARY = OldPrimarySeen("primary", "db-one:5432", "still answers as a primary", parse_lsn("0/30000A0"))
RECEIVER = {
    "pid": 42,
    "status": "streaming",
    "received_tli": 1,
    "sender_host": "db-one",
    "sender_port": 5432,
    "silent_seconds": 0.1,
}


def streaming(**changes: Any) -> dict[str, Any]:
    found = standby(**changes)
    found.setdefault("wal_receiver", RECEIVER)
    found["settings"] = {"wal_receiver_timeout": {"value": "60000"}}
    found["upstream"] = {"host": "db-one", "port": 5432}
    return found


def test_a_streaming_standby_of_a_running_primary_may_be_armed():
    found = armed_checks(streaming(), Wanted(require_timeline=1), PRIMARY)
    assert [check["name"] for check in found] == ["standby", "timeline", "replay", "apply_delay", "stream", "primary"]
    assert all(check["ok"] for check in found)


@pytest.mark.parametrize(
    ("state", "answer", "name", "says"),
    [
        (streaming(role="primary"), PRIMARY, "standby", "it is primary"),
        (streaming(replay__state="paused", replay__paused=True), PRIMARY, "replay", "pg_wal_replay_resume"),
        (streaming(wal_receiver=None), PRIMARY, "stream", "does not stream"),
        (streaming(wal_receiver={**RECEIVER, "status": "waiting"}), PRIMARY, "stream", "does not stream"),
        (streaming(wal_receiver={**RECEIVER, "silent_seconds": 40}), PRIMARY, "stream", "said nothing for 40 s"),
        (streaming(wal_receiver={**RECEIVER, "sender_host": "db-six"}), PRIMARY, "stream", "not what it is set to"),
        (streaming(wal_receiver={**RECEIVER, "received_tli": 2}), PRIMARY, "stream", "not what it is set to"),
        (streaming(), replace(PRIMARY, answer="standby"), "primary", "only a standby of a running primary"),
        (streaming(), replace(PRIMARY, answer="silent"), "primary", "only a standby of a running primary"),
        # It may be a standby whose default is read-only.
        (streaming(), replace(PRIMARY, position=None), "primary", "or as a standby that is read-only"),
    ],
)
def test_each_check_refuses_to_arm(state, answer, name, says):
    refusing = [check for check in armed_checks(state, Wanted(), answer) if not check["ok"]]
    assert [check["name"] for check in refusing] == [name]
    assert says in refusing[0]["detail"]


@pytest.mark.parametrize(("retry", "gap"), [(5.0, GAP_SECONDS), (0.4, 0.36), (0.001, 0.0009)])
def test_nobody_looks_away_for_as_long_as_another_stream_takes_to_begin(retry, gap):
    assert gap_seconds(retry) == pytest.approx(gap)
    session = replace(SESSION, gap=gap_seconds(retry))
    for late, reason in ((0.9 * gap, None), (1.1 * gap, "nobody looked")):
        verdict = step(session, begin(seen(1.0)), seen(1.0 + late, **GONE))[1]
        assert (reason or "") in (verdict.reason or "")
        assert (verdict.what == "refused") is (reason is not None)
