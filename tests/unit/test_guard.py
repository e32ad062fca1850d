# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""guard.py: who may start, from all that others may answer; the note; and never beside a successor (property)."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import guard
from ansible_collections.hotspare.postgresql.plugins.module_utils.guard import Own, decide, holds
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from hypothesis import given
from hypothesis import strategies as st

OURS, THEIRS = "7312345678901234567", "7399999999999999999"
OWN = Own("db1", OURS, 3, follows=False)


def answer(kind: str, timeline: int | None = None, *, name: str = "db2", system: str = OURS) -> dict[str, Any]:
    """A record as peers.ask() gives it."""
    spoke = timeline is not None
    return {
        "name": name,
        "host": "192.0.2.2",
        "port": 5432,
        "answer": kind,
        "detail": f"it is {kind}",
        "system_identifier": system if spoke else None,
        "timeline": timeline,
        "seconds": 0.1,
    }


def note(timeline: int, system: str = OURS) -> dict[str, Any]:
    return {"primary": "db2", "timeline": timeline, "system_identifier": system}


def decided(*answers: dict[str, Any], own: Own = OWN, known: dict[str, Any] | None = None, **more: Any):
    return decide(own, answers, known, **{"elapsed": 0.0, "wait": 10.0, "policy": "start", "asked": False, **more})


@pytest.mark.parametrize(
    ("answers", "act"),
    [
        ([], "start"),
        ([answer("standby", 3)], "start"),
        ([answer("standby", 2)], "start"),
        ([answer("primary", 2)], "start"),  # an old primary that came back: it is the one that must go
        ([answer("primary", 3)], "refuse"),  # two primaries on one timeline
        ([answer("primary", 4)], "refuse"),
        ([answer("standby", 4)], "refuse"),  # it follows a primary that we cannot see
        ([answer("refused")], "wait"),
        ([answer("silent")], "wait"),
        ([answer("auth")], "wait"),
        ([answer("unknown")], "wait"),  # such as a server that is starting up
        ([answer("primary", 9, system=THEIRS)], "wait"),
        ([answer("standby", 3), answer("silent", name="db3")], "wait"),
        ([answer("silent"), answer("primary", 4, name="db3")], "refuse"),
        ([answer("standby", 4), answer("primary", 4, name="db3")], "refuse"),
    ],
)
def test_at_first(answers, act):
    found = decided(*answers)
    assert found.act == act
    assert (found.note is not None) == (act == "refuse")


@pytest.mark.parametrize("kind", ["refused", "silent", "auth", "unknown"])
@pytest.mark.parametrize(
    ("policy", "asked", "act"), [("start", False, "start"), ("refuse", False, "refuse"), ("refuse", True, "start")]
)
def test_when_the_time_is_up(kind, policy, asked, act):
    assert decided(answer(kind), elapsed=10.0, policy=policy, asked=asked).act == act


def test_a_playbook_that_asked_everybody_just_now_need_not_wait():
    assert decided(answer("refused"), asked=True).act == "start"
    assert decided(answer("primary", 4), asked=True).act == "refuse"
    assert decided(answer("refused"), asked=True, known=note(4)).act == "wait"


def test_with_standby_signal_it_starts_whatever_the_others_are():
    own = Own("db1", OURS, 3, follows=True)
    found = decided(answer("primary", 4), own=own, known=note(4), policy="refuse")
    assert (found.act, found.note) == ("start", note(4))


@pytest.mark.parametrize("timeline", [3, 4])
def test_what_was_seen_is_remembered_when_nobody_answers(timeline):
    for policy in guard.POLICIES:
        for asked in (False, True):
            waiting = decided(answer("silent"), known=note(timeline), policy=policy, asked=asked)
            assert (waiting.act, waiting.note) == ("wait", note(timeline))
            refused = decided(answer("silent"), known=note(timeline), policy=policy, asked=asked, elapsed=10.0)
            assert (refused.act, refused.note) == ("refuse", note(timeline))
            assert "db2" in refused.reason
            assert "-e node=db1 -e confirm=db1" in refused.reason
    assert decided(known=note(timeline), elapsed=10.0).act == "refuse"


@pytest.mark.parametrize("known", [note(2), note(4, THEIRS)])
def test_a_note_that_is_out_of_date_does_not_count(known):
    found = decided(answer("silent"), known=known, elapsed=10.0)
    assert (found.act, found.note) == ("start", None)


def test_what_all_others_say_now_is_newer_than_the_note():
    found = decided(answer("standby", 3), known=note(4))
    assert (found.act, found.note) == ("start", None)
    assert decided(answer("standby", 3), answer("silent", name="db3"), known=note(4), elapsed=10.0).act == "refuse"


def test_the_refusal_names_the_primary_and_the_command():
    found = decided(answer("primary", 4), answer("standby", 4, name="db3"))
    assert found.note == note(4)
    for part in ("db2 at 192.0.2.2 port 5432", "as a primary", "timeline 4", "db1 was the primary on timeline 3"):
        assert part in found.reason
    assert "ansible-playbook hotspare.postgresql.rebuild_standby -e node=db1 -e confirm=db1" in found.reason
    follower = decided(answer("silent"), answer("standby", 4, name="db3"))
    assert follower.note == {**note(4), "primary": "the primary of db3"}


def test_the_policy_refuses_with_a_way_out():
    found = decided(answer("silent"), elapsed=10.0, policy="refuse")
    assert "node_guard_policy" in found.reason
    assert found.note is None


KINDS = ("primary", "standby", "refused", "silent", "auth", "unknown")
answers_of_all = st.lists(
    st.builds(
        lambda kind, timeline, system, number: answer(
            kind, timeline if kind in ("primary", "standby") else None, name=f"db{number}", system=system
        ),
        st.sampled_from(KINDS),
        st.integers(1, 5),
        st.sampled_from([OURS, OURS, OURS, THEIRS]),
        st.integers(2, 9),
    ),
    max_size=4,
)
notes = st.none() | st.builds(note, st.integers(1, 5), st.sampled_from([OURS, THEIRS]))
circumstances = st.fixed_dictionaries(
    {
        "elapsed": st.floats(0, 20),
        "wait": st.just(10.0),
        "policy": st.sampled_from(guard.POLICIES),
        "asked": st.booleans(),
    }
)


@given(answers_of_all, notes, st.integers(1, 5), circumstances)
def test_it_never_starts_beside_a_successor(answers, known, timeline, how):
    own = Own("db1", OURS, timeline, follows=False)
    found = decide(own, answers, known, **how)
    successors = [
        a for a in answers if a["answer"] == "primary" and a["system_identifier"] == OURS and a["timeline"] >= timeline
    ]
    if successors:
        assert found.act == "refuse"
        assert found.note is not None
        assert holds(found.note, OURS, timeline)
    definite = answers and all(a["system_identifier"] == OURS for a in answers)
    if known is not None and holds(known, OURS, timeline) and not definite:
        assert found.act != "start"
    # What was decided is still so at the next boot, with nobody to ask.
    if found.note is not None and holds(found.note, OURS, timeline):
        again = decide(own, [answer("silent")], found.note, elapsed=20, wait=10, policy="start", asked=True)
        assert again.act == "refuse"
    assert found.act in ("start", "refuse", "wait")
    assert found.act != "wait" or how["elapsed"] < how["wait"]


@given(st.integers(1, 5), st.data())
def test_it_never_keeps_a_healthy_primary_down(timeline, data):
    """All others are its standbys, or down or booting; what it remembers is of before its own promotion."""
    behind = st.builds(answer, st.just("standby"), st.integers(1, timeline))
    away = st.builds(answer, st.sampled_from(["refused", "silent", "auth", "unknown"]))
    answers = data.draw(st.lists(behind | away, max_size=4))
    known = data.draw(st.none() | st.builds(note, st.integers(0, timeline - 1)))
    own = Own("db1", OURS, timeline, follows=False)
    found = decide(own, answers, known, elapsed=10, wait=10, policy="start", asked=False)
    assert (found.act, found.note) == ("start", None)
    if all(a["answer"] == "standby" for a in answers):
        assert decide(own, answers, known, elapsed=0, wait=10, policy="refuse", asked=False).act == "start"


@given(answers_of_all, notes, circumstances)
def test_it_never_keeps_a_standby_down(answers, known, how):
    assert decide(Own("db1", OURS, 3, follows=True), answers, known, **how).act == "start"


# --- the note --------------------------------------------------------------------------------------------------------


@pytest.fixture
def instance(tmp_path):
    import getpass

    (tmp_path / "data").mkdir()
    config = str(tmp_path / "postgresql.conf")
    return Instance("db1", str(tmp_path / "data"), "/nowhere", config_file=config, account=getpass.getuser())


def test_the_note_is_kept_and_removed(instance):
    assert guard.read_note(instance) is None
    assert guard.keep_note(instance, note(4)) is True
    assert guard.keep_note(instance, note(4)) is False
    assert guard.read_note(instance) == note(4)
    assert guard.keep_note(instance, None) is True
    assert guard.keep_note(instance, None) is False
    assert guard.read_note(instance) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"primary": "a", "timeline": "x", "system_identifier": "1"}'])
def test_a_note_that_is_not_ours_is_not_taken_for_none(instance, text):
    with open(guard.note_path(instance), "w", encoding="utf-8") as file:
        file.write(text)
    with pytest.raises(HotspareError, match="not one of ours"):
        guard.read_note(instance)
