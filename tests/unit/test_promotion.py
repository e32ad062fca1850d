# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_promote: which checks pass, without a server."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg2
import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import promotion
from ansible_collections.hotspare.postgresql.plugins.module_utils.promotion import (
    OldPrimarySeen,
    PromotionPending,
    PromotionRefused,
    Wanted,
    checks,
    look_at_primary,
    primary_conninfo,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import ConnectFailed, Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import parse_lsn
from hypothesis import given
from hypothesis import strategies as st

SILENT = OldPrimarySeen("silent", "db-one:5432", "does not answer (refused)")
WANTED = Wanted(require_lsn=parse_lsn("0/3000028"), require_timeline=1, require_system_identifier="7")


def standby(**changes: Any) -> dict[str, Any]:
    """A standby that may be promoted, with changes ("replay.state" reaches inside)."""
    state: dict[str, Any] = {
        "name": "db-two",
        "role": "standby",
        "reason": None,
        "standby_signal": True,
        "recovery_signal": False,
        "system_identifier": "7",
        "timeline": 1,
        "lsn": {"held": "0/30000A0", "replay": "0/30000A0"},
        "replay": {"state": "not paused", "paused": False, "min_apply_delay_ms": 0},
        "upstream": None,
    }
    for path, value in changes.items():
        inside = state
        *parents, last = path.split("__")
        for parent in parents:
            inside = inside[parent]
        inside[last] = value
    return state


def failed(state: dict[str, Any], wanted: Wanted = WANTED, seen: OldPrimarySeen = SILENT) -> list[str]:
    return [check["name"] for check in checks(state, wanted, seen) if not check["ok"]]


def test_all_checks_are_made_and_pass():
    made = checks(standby(), WANTED, SILENT)
    assert [check["name"] for check in made] == [
        "standby",
        "system_identifier",
        "timeline",
        "replay",
        "apply_delay",
        "position",
        "old_primary",
    ]
    assert all(check["ok"] for check in made)
    assert all(set(check) == {"name", "ok", "detail"} and check["detail"] for check in made)
    json.dumps(made)


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        ({"role": "stopped"}, "standby", "start it as a standby first"),
        ({"role": "absent"}, "standby", "holds no server"),
        ({"role": "unknown", "reason": "it does not let us in"}, "standby", "it does not let us in"),
        ({"standby_signal": False, "recovery_signal": True}, "standby", "follows no primary"),
        ({"system_identifier": "8"}, "system_identifier", "7 is required"),
        ({"system_identifier": None}, "system_identifier", "unknown"),
        ({"timeline": 2}, "timeline", "1 is required"),
        ({"timeline": None}, "timeline", "unknown"),
        ({"replay__state": "paused", "replay__paused": True}, "replay", "pg_wal_replay_resume"),
        ({"replay__state": "pause requested"}, "replay", "pg_wal_replay_resume"),
        ({"replay__state": None, "replay__paused": None}, "replay", "not known"),
        ({"replay__min_apply_delay_ms": 60000}, "apply_delay", "60000 ms"),
        ({"replay__min_apply_delay_ms": None}, "apply_delay", "not known"),
        # The record starts at require_lsn: who stands there has not got it.
        ({"lsn__held": "0/3000028", "lsn__replay": "0/3000028"}, "position", "past 0/3000028"),
        ({"lsn__replay": "0/3000028"}, "position", "replayed 0/3000028"),
        ({"lsn__held": "0/2000000", "lsn__replay": "0/2000000"}, "position", "holds 0/2000000"),
        ({"lsn__held": None}, "position", "unknown position"),
        ({"lsn__replay": None}, "position", "unknown position"),
    ],
)
def test_each_check_refuses_alone(changes, name, says):
    refusing = [check for check in checks(standby(**changes), WANTED, SILENT) if not check["ok"]]
    assert [check["name"] for check in refusing] == [name]
    assert says in refusing[0]["detail"]
    # What is known is never waived.
    assert failed(standby(**changes), Wanted(**{**WANTED.__dict__, "force": True})) == [name]


def test_a_server_that_is_no_standby_gets_no_other_check():
    assert [check["name"] for check in checks(standby(role="stopped", lsn=None, replay=None), WANTED, SILENT)] == [
        "standby"
    ]


def test_without_a_position_it_must_be_forced():
    assert failed(standby(), Wanted()) == ["position"]
    assert failed(standby(), Wanted(force=True)) == []


@pytest.mark.parametrize(
    ("answer", "plain", "forced"),
    [
        ("primary", ["old_primary"], ["old_primary"]),
        ("unknown", ["old_primary"], []),
        ("stopping", [], []),
        ("standby", [], []),
        ("silent", [], []),
    ],
)
def test_the_old_primary(answer, plain, forced):
    seen = OldPrimarySeen(answer, "db-one:5432", "answers")
    assert failed(standby(), WANTED, seen) == plain
    assert failed(standby(), Wanted(force=True), seen) == forced


def test_an_old_primary_that_is_stopping_is_fine_only_with_its_last_record():
    seen = OldPrimarySeen("stopping", "db-one:5432", "is shutting down")
    assert failed(standby(), WANTED, seen) == []
    assert failed(standby(), Wanted(), seen) == ["position", "old_primary"]


LSNS = st.integers(0, 2**64 - 1)


@given(held=st.none() | LSNS, replayed=st.none() | LSNS, required=LSNS, force=st.booleans())
def test_position_is_strict_whatever_is_forced(held, replayed, required, force):
    def text(lsn):
        return None if lsn is None else f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"

    state = standby(lsn__held=text(held), lsn__replay=text(replayed))
    proved = held is not None and replayed is not None and min(held, replayed) > required
    assert ("position" not in failed(state, Wanted(require_lsn=required, force=force))) == proved


@given(
    paused=st.sampled_from([None, True, False]),
    replay=st.sampled_from([None, "not paused", "pause requested", "paused"]),
    delay=st.sampled_from([None, 0, 1, 1000]),
    answer=st.sampled_from(["primary", "standby", "silent", "unknown"]),
)
def test_nothing_unknown_promotes_unless_forced(paused, replay, delay, answer):
    state = standby(replay={"state": replay, "paused": paused, "min_apply_delay_ms": delay})
    fine = (replay, paused, delay) == ("not paused", False, 0) and answer in ("standby", "silent")
    assert (failed(state, WANTED, OldPrimarySeen(answer, "x", "y")) == []) == fine


# What the old primary answers ----------------------------------------------------------------------------------------


class Walsender:
    """A connection to a walsender that answers from a table."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.closed = answers, False
        self.server_version = 140000 if "SHOW in_hot_standby" in answers else 130000

    def cursor(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def execute(self, command):
        answer = self.answers[command]
        self.row = answer if isinstance(answer, tuple) else (answer,)

    def fetchone(self):
        return self.row

    def close(self):
        self.closed = True


CONNINFO = {"host": "db-one", "port": 5433, "user": "replicator", "passfile": "/x"}


def look(monkeypatch, outcome, system_identifier="7"):
    def connect_conninfo(conninfo, *, account, replication, timeout):
        assert (conninfo, account, replication, timeout) == (CONNINFO, "postgres", True, 5)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(promotion, "connect_conninfo", connect_conninfo)
    return look_at_primary(CONNINFO, account="postgres", system_identifier=system_identifier)


@pytest.mark.parametrize(
    ("read_only", "default", "identifier", "answer"),
    [
        ("off", "off", "7", "primary"),
        ("on", "off", "7", "standby"),
        # A primary whose default is read-only looks like this as well; it must not pass for a standby.
        ("on", "on", "7", "primary"),
        ("on", "off", "8", "unknown"),
    ],
)
def test_the_role_over_the_replication_protocol(monkeypatch, read_only, default, identifier, answer):
    connection = Walsender(
        {
            "IDENTIFY_SYSTEM": (identifier, 1, "0/3000060", None),
            "SHOW transaction_read_only": read_only,
            "SHOW default_transaction_read_only": default,
        }
    )
    seen = look(monkeypatch, connection)
    assert (seen.answer, seen.where) == (answer, "db-one:5433")
    assert seen.position == (parse_lsn("0/3000060") if read_only == "off" else None)
    assert connection.closed


@pytest.mark.parametrize(("recovers", "answer"), [("on", "standby"), ("off", "primary")])
@pytest.mark.parametrize("default", ["on", "off"])
def test_newer_versions_say_it_whatever_their_default(monkeypatch, recovers, default, answer):
    table = {
        "IDENTIFY_SYSTEM": ("7", 1, "0/3000060", None),
        "SHOW transaction_read_only": "on",
        "SHOW default_transaction_read_only": default,
        "SHOW in_hot_standby": recovers,
    }
    seen = look(monkeypatch, Walsender(table))
    assert seen.answer == answer
    assert seen.position == (parse_lsn("0/3000060") if answer == "primary" else None)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("refused", "silent"),
        ("timeout", "silent"),
        ("starting", "unknown"),
        ("shutting_down", "stopping"),
        ("auth", "unknown"),
        ("other", "unknown"),
    ],
)
def test_no_connection_to_the_old_primary(monkeypatch, kind, answer):
    assert look(monkeypatch, ConnectFailed("no", kind=kind)).answer == answer


@pytest.mark.parametrize("reason", ["No route to host", 'could not translate host name "db-one" to address'])
def test_an_unreachable_old_primary_does_not_answer(monkeypatch, reason):
    assert look(monkeypatch, ConnectFailed(f"cannot connect: {reason}", kind="other")).answer == "silent"


def test_no_address_is_unknown():
    assert look_at_primary({}, account="postgres", system_identifier="7").answer == "unknown"


def test_what_is_given_completes_the_upstream():
    state = standby(
        upstream={
            "conninfo": "host=db-one port=5433 user=replicator passfile=/x sslmode=require application_name=db-two"
        }
    )
    assert primary_conninfo(state, None) == {**CONNINFO, "port": "5433", "sslmode": "require"}
    assert primary_conninfo(state, {"host": "10.0.0.9", "port": None})["host"] == "10.0.0.9"
    assert primary_conninfo(state, {"host": "10.0.0.9", "port": None})["port"] == "5433"
    assert primary_conninfo(standby(), {"host": "a", "port": None}) == {"host": "a"}


# Waiting -------------------------------------------------------------------------------------------------------------

INSTANCE = Instance(name="db-two", data_directory="/nowhere", bin_directory="/nowhere")


class Clock:
    """Stands for the module `time`: only who sleeps makes time pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_it_waits_for_the_position_and_looks_again(monkeypatch):
    states = [standby(lsn__replay="0/3000000")] * 3 + [standby()]
    looks = []
    monkeypatch.setattr(promotion, "read_state", lambda instance: states.pop(0))
    monkeypatch.setattr(promotion, "look_at_primary", lambda *a, **k: looks.append(1) or SILENT)
    result = promotion.promote(INSTANCE, WANTED, timeout=10, check_mode=True)
    assert result["changed"] is True
    assert states == []
    assert len(looks) == 2


def test_it_waits_no_longer_than_half_of_the_timeout(monkeypatch):
    monkeypatch.setattr(promotion, "read_state", lambda instance: standby(lsn__replay="0/3000000"))
    monkeypatch.setattr(promotion, "look_at_primary", lambda *a, **k: SILENT)
    clock = Clock()
    monkeypatch.setattr(promotion, "time", clock)
    with pytest.raises(PromotionRefused, match="past 0/3000028") as caught:
        promotion.promote(INSTANCE, WANTED, timeout=60)
    assert 25 < clock.now < 35
    assert caught.value.facts["changed"] is False
    assert caught.value.facts["node"]["name"] == "db-two"


def test_it_does_not_wait_when_something_else_refuses(monkeypatch):
    states = [standby(lsn__replay="0/3000000", replay__paused=True)]
    monkeypatch.setattr(promotion, "read_state", lambda instance: states.pop(0))
    monkeypatch.setattr(promotion, "look_at_primary", lambda *a, **k: SILENT)
    with pytest.raises(PromotionRefused, match="nothing was changed"):
        promotion.promote(INSTANCE, WANTED, timeout=60)


def test_a_stopped_server_is_refused_without_a_look(monkeypatch):
    monkeypatch.setattr(promotion, "read_state", lambda instance: standby(role="stopped", lsn=None, replay=None))
    with pytest.raises(PromotionRefused, match="start it as a standby first"):
        promotion.promote(INSTANCE, WANTED)


# Asking --------------------------------------------------------------------------------------------------------------


class Sleeper(Walsender):
    """A standby whose startup process leaves recovery at its third SIGHUP only."""

    def __init__(self, waits_for: str, clock: Clock) -> None:
        super().__init__({})
        self.waits_for = waits_for
        self.clock = clock
        self.asked: list[tuple[str, float]] = []

    def execute(self, command):
        self.asked.append((command, self.clock.monotonic()))
        self.answers = {
            "SELECT pg_promote(false)": True,
            promotion.RECOVERING: self.recovering(),
            "SELECT pg_catalog.pg_reload_conf()": True,
        }
        super().execute(command)

    def recovering(self):
        return self.reloads() < 3, self.waits_for

    def reloads(self):
        return sum("pg_reload_conf" in command for command, _ in self.asked)


@pytest.mark.parametrize(("waits_for", "every"), [(promotion.SLEEPS, 0), ("AnotherName", promotion.KICK_EVERY)])
def test_a_sleeping_startup_process_is_woken_again_and_again(monkeypatch, waits_for, every):
    clock = Clock()
    server = Sleeper(waits_for, clock)
    monkeypatch.setattr(promotion, "time", clock)
    monkeypatch.setattr(promotion, "connect", lambda instance: server)
    promotion._ask_and_wait(INSTANCE, 5.0, 5, {})
    assert server.asked[0][0] == "SELECT pg_promote(false)"
    kicks = [at for command, at in server.asked if "pg_reload_conf" in command]
    assert len(kicks) == 3
    for before, kick in zip([0.0, *kicks], kicks if every else kicks[1:]):
        assert every <= kick - before <= every + 2 * promotion.POLL
    assert server.closed


def test_a_lost_connection_leaves_the_request_in_force(monkeypatch):
    class Gone(Walsender):
        def execute(self, command):
            raise psycopg2.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(promotion, "connect", lambda instance: Gone({}))
    with pytest.raises(PromotionPending, match="do not start the old primary") as caught:
        promotion._ask_and_wait(INSTANCE, time.monotonic() + 5, 5, {"changed": True})
    assert caught.value.facts == {"changed": True, "pending": True}
