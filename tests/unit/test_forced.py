# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A forced failover: whom it fences, whose word it wants, who takes over, and what it says is lost."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import forced
from ansible_collections.hotspare.postgresql.plugins.module_utils.cutover import failover_plan
from ansible_collections.hotspare.postgresql.plugins.module_utils.records import member_states, timeline
from ansible_collections.hotspare.postgresql.plugins.module_utils.topology import topology
from ansible_collections.hotspare.postgresql.tests.unit.nodes import (
    HERE,
    MEMBERS,
    OTHER_SYSTEM,
    SYSTEM,
    UNREACHABLE,
    answers,
    node,
    peer,
    peers_but,
    primary,
    row,
    standby,
    stopped,
)
from ansible_collections.hotspare.postgresql.tests.unit.test_topology import clusters
from hypothesis import given
from hypothesis import strategies as st

SURVIVOR = standby("db2", streams=False, peers=peers_but("db2", db1="silent"))
FROZEN = node("db1", "unknown", reason="it runs and did not answer within 5 s: frozen?")
CRASHED = stopped("db1", "in production", at=HERE + 4096)


def plan(*states: dict[str, Any], target: str | None = None, **more: Any) -> Any:
    others = {n: more.pop(n) for n in list(more) if n in MEMBERS}
    asked = answers(*states, **others)
    return failover_plan(topology(asked), target, "forced", {n: MEMBERS[n] for n in asked}, **more)


def failing(decided: Any) -> set[str]:
    return {c["name"] for c in decided["checks"] if c["hard"] and c["ok"] is not True}


def warnings(decided: Any) -> set[str]:
    return {c["name"] for c in decided["checks"] if not c["hard"] and c["ok"] is not True}


def detail(decided: Any, name: str) -> str:
    return str(next(c["detail"] for c in decided["checks"] if c["name"] == name))


# -- fencing ----------------------------------------------------------------------------------------------------------


def test_one_that_cannot_be_reached_is_named_or_fenced_by_a_command() -> None:
    decided = plan(SURVIVOR, db1=UNREACHABLE, target="db2")
    assert failing(decided) == {"fenced_db1"}, "naming the target says nothing about the old primary"
    assert (decided["needs_confirm"], decided["stonith"], decided["fence"]) == (["db1"], ["db1"], [])
    decided = plan(SURVIVOR, db1=UNREACHABLE, confirm_unfenced="db1")
    assert (decided["ok"], decided["stonith"], decided["needs_confirm"]) == (True, [], [])
    decided = plan(SURVIVOR, db1=UNREACHABLE, has_fence_command=True)
    assert decided["ok"], decided["reason"]
    assert (decided["stonith"], decided["needs_confirm"]) == (["db1"], [])
    assert "fence command" in detail(decided, "fenced_db1")


def test_one_that_can_be_reached_is_fenced_without_a_word() -> None:
    decided = plan(SURVIVOR, FROZEN)
    assert decided["ok"], decided["reason"]
    assert (decided["fence"], decided["stonith"], decided["old_primary"]) == (["db1"], [], "db1")
    assert "is fenced before anything is promoted" in detail(decided, "fenced_db1")
    assert plan(SURVIVOR, db1={"failed": True, "msg": "no python"})["fence"] == ["db1"]
    # The operator's word spares the fence, when that itself hangs.
    assert plan(SURVIVOR, FROZEN, confirm_unfenced="db1")["fence"] == []


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        UNREACHABLE,
        {"skipped": True},
        {"failed": True, "unreachable": True, "msg": "it did not answer within 20 s"},
    ],
)
def test_one_that_says_nothing_counts_as_out_of_reach(answer: Any) -> None:
    decided = plan(SURVIVOR, db1=answer)
    assert (decided["ok"], decided["needs_confirm"]) == (False, ["db1"])


def test_a_crashed_primary_gets_its_signal() -> None:
    """The next boot must not make it a primary: that is all that a fence of a stopped server does."""
    assert plan(SURVIVOR, CRASHED)["fence"] == ["db1"]
    assert plan(SURVIVOR, {**CRASHED, "standby_signal": None})["fence"] == ["db1"]
    assert plan(SURVIVOR, {**CRASHED, "standby_signal": True})["fence"] == []


def test_nothing_is_fenced_by_a_plan_that_refuses() -> None:
    assert plan(SURVIVOR, FROZEN, target="db9")["fence"] == []
    paused = standby("db2", streams=False, replay={"paused": True, "min_apply_delay_ms": 0})
    assert plan(paused, FROZEN)["fence"] == []


def test_a_run_that_died_after_the_fence_goes_on() -> None:
    fenced = stopped("db1", "in production", at=HERE + 4096, signal=True)
    decided = plan(SURVIVOR, fenced)
    assert (decided["ok"], decided["target"], decided["old_primary"]) == (True, "db2", "db1")
    assert "stopped_nodes" not in failing(decided)


ARMED = {"state": "armed", "alive": True, "expires_in": 30.0, "reason": None}


def test_another_one_that_is_armed_is_disarmed_before_a_fence_stops_the_primary() -> None:
    other = standby("db3", streams=False, peers=peers_but("db3", db1="silent"), armed=ARMED)
    decided = plan(FROZEN, SURVIVOR, other, target="db2")
    assert (decided["ok"], decided["disarm"], decided["fence"]) == (True, ["db3"], ["db1"])
    assert plan(FROZEN, SURVIVOR, other, target="db3")["disarm"] == []
    unread = {**other, "armed": {**ARMED, "state": "unknown"}}
    assert failing(plan(FROZEN, SURVIVOR, unread, target="db2")) == {"armed_elsewhere"}


# -- a primary that lives ---------------------------------------------------------------------------------------------


def test_one_that_answers_a_standby_as_a_primary_is_alive_whatever_the_operator_says() -> None:
    sees_it = standby("db2", streams=False)
    decided = plan(sees_it, db1=UNREACHABLE, confirm_unfenced="db1")
    assert failing(decided) == {"unseen_by_peers"}
    assert "db2 reaches db1, which answers as a primary" in decided["reason"]
    assert not plan(sees_it, db1=UNREACHABLE, confirm_unfenced="db1", allow="unseen_by_peers")["ok"]
    assert plan(sees_it, db1=UNREACHABLE, has_fence_command=True)["ok"], "it is fenced, then it does not answer"
    assert plan(sees_it, FROZEN)["ok"]


def test_any_standby_that_sees_it_counts() -> None:
    blind, sees_it = SURVIVOR, standby("db3", streams=False, at=HERE - 8)
    decided = plan(blind, sees_it, db1=UNREACHABLE, confirm_unfenced="db1")
    assert "db3 reaches db1" in decided["reason"]


def test_another_cluster_at_that_address_is_not_it() -> None:
    peers = [peer("db1", "primary", system_identifier=OTHER_SYSTEM)]
    assert plan(standby("db2", streams=False, peers=peers), db1=UNREACHABLE, confirm_unfenced="db1")["ok"]


def test_without_peers_it_is_said_that_nobody_was_asked() -> None:
    decided = plan(standby("db2", streams=False, peers=None), db1=UNREACHABLE, confirm_unfenced="db1")
    assert (decided["ok"], "unseen_by_peers" in warnings(decided)) == (True, True)


def test_one_that_was_just_heard_and_is_fenced_needs_no_patience() -> None:
    hears = standby("db2")
    assert plan(hears, FROZEN)["ok"]
    assert plan(hears, db1=UNREACHABLE, has_fence_command=True)["ok"]
    assert failing(plan(hears, db1=UNREACHABLE, confirm_unfenced="db1")) == {"unseen_by_peers", "sender_silent"}


# -- who takes over ---------------------------------------------------------------------------------------------------


def test_all_standbys_are_asked() -> None:
    less, more = standby("db2", streams=False), standby("db3", streams=False, at=HERE + 1)
    assert plan(CRASHED, less, more)["target"] == "db3"
    assert failing(plan(CRASHED, less, more, target="db2")) == {"most_wal"}
    assert not plan(CRASHED, less, more, target="db2", allow="most_wal")["ok"]
    unseen = plan(CRASHED, less, db3=UNREACHABLE)
    assert "fenced_db3" in failing(unseen), "an unseen standby may hold more, or be a primary"


def test_a_cascade_only_warns() -> None:
    middle = standby("db2", streams=False, replication=[row("db3")])
    decided = plan(CRASHED, middle, standby("db3", "db2"), target="db2")
    assert (decided["ok"], "cascading" in warnings(decided)) == (True, True)


# -- what is lost -----------------------------------------------------------------------------------------------------


def waits(names: str | None, **others: Any) -> Any:
    return plan({**CRASHED, "synchronous_standby_names": names}, *others.pop("states", [SURVIVOR]), **others)


@pytest.mark.parametrize("names", ["db2", "FIRST 1 (db2)", 'ANY 1 ("db2")', "1 (DB2)", "FIRST 2 (db2, db3)"])
def test_nothing_that_was_acknowledged_is_lost_where_it_waited_for_the_candidate(names: str) -> None:
    decided = waits(names)
    assert (decided["ok"], decided["loss"]["synchronous"]) == (True, True)
    assert "none lost, synchronous" in decided["reason"]
    assert "loss" not in warnings(decided)


@pytest.mark.parametrize("names", ["db3", "FIRST 1 (db2, db3)", "ANY 1 (db2, db3)", "*", "ANY 2 (db2, db3, db4)"])
def test_it_may_have_waited_for_another_one(names: str) -> None:
    decided = waits(names)
    assert decided["loss"]["synchronous"] is None
    assert (decided["loss"]["at_least"], decided["loss"]["bytes"]) == (4096, None)
    assert "loss" in warnings(decided)


def test_it_waited_for_either_and_both_were_asked() -> None:
    third = standby("db3", streams=False, at=HERE + 64)
    decided = waits("FIRST 1 (db2, db3)", states=[SURVIVOR, third])
    assert (decided["target"], decided["loss"]["synchronous"]) == ("db3", True)


@pytest.mark.parametrize(("names", "word"), [("", False), (None, None)])
def test_it_waited_for_nobody_or_that_is_not_known(names: str | None, word: bool | None) -> None:
    decided = waits(names)
    assert decided["loss"]["synchronous"] is word
    assert "at least 4.0 kB" in decided["loss"]["detail"]


def test_of_a_primary_that_cannot_be_seen_nothing_is_known() -> None:
    loss = plan(SURVIVOR, db1=UNREACHABLE, confirm_unfenced="db1")["loss"]
    assert loss == {**loss, "bytes": None, "at_least": None, "synchronous": None}
    assert "unknown" in loss["detail"]


def test_a_fence_that_stopped_it_cleanly_makes_force_needless() -> None:
    """The forced run that died after such a fence: now there is proof, so nothing is lost."""
    clean = stopped("db1", signal=True)
    decided = plan(clean, standby("db2", streams=False, at=HERE + 120))
    assert (decided["ok"], decided["mode"], decided["resume"]) == (True, "planned", "promote")
    assert (decided["require_lsn"], decided["loss"]) == (f"0/{HERE:X}", None)
    # Beside a node that cannot be seen it stays forced, since a planned one needs an answer from every node.
    ahead = standby("db2", streams=False, at=HERE + 120, peers=peers_but("db2", db1="refused", db3="silent"))
    assert failing(plan(clean, ahead, db3=UNREACHABLE)) == {"fenced_db3"}
    decided = plan(clean, ahead, db3=UNREACHABLE, confirm_unfenced="db3")
    assert (decided["ok"], decided["mode"], decided["loss"]["bytes"]) == (True, "forced", 0)
    assert "none lost: db2 holds the shutdown checkpoint of db1" in decided["reason"]


# -- back to the one that was the primary last ------------------------------------------------------------------------

PREPARED = stopped("db1", signal=True, upstream=standby("db1", "db2")["upstream"])


@pytest.mark.parametrize("down", [PREPARED, stopped("db1"), stopped("db1", signal=True)])
def test_the_standby_died_in_the_cutover_and_the_old_primary_is_the_primary_again(down: dict[str, Any]) -> None:
    decided = plan(down, db2=UNREACHABLE, target="db1", confirm_unfenced="db2")
    assert decided["ok"], decided["reason"]
    assert (decided["resume"], decided["target"], decided["old_primary"]) == ("back", "db1", "db1")
    assert (decided["mode"], decided["fence"], decided["stonith"], decided["followers"]) == ("forced", [], [], [])
    assert decided["needs_rebuild"] == ["db2"]
    assert (decided["loss"]["bytes"], "loss" in warnings(decided)) == (None, True)
    assert "nothing is lost unless db2 was promoted meanwhile" in decided["reason"]


def test_without_a_target_it_is_said_who_could_be_the_primary_again() -> None:
    decided = plan(PREPARED, db2=UNREACHABLE, confirm_unfenced="db2")
    assert not decided["ok"]
    assert "db1 stopped cleanly, to make it the primary again add -e target=db1" in decided["reason"]


def test_standbys_that_answer_were_not_promoted_and_follow_again() -> None:
    decided = plan(PREPARED, standby("db2", streams=False, armed=ARMED), target="db1")
    assert (decided["ok"], decided["resume"], decided["disarm"]) == (True, "back", ["db2"])
    assert (decided["followers"], decided["loss"]["bytes"], warnings(decided)) == (["db2"], 0, set())
    assert decided["reason"].endswith("nothing is lost")
    third = standby("db3", streams=False, at=HERE + 120)
    decided = plan(PREPARED, third, target="db1", db2=UNREACHABLE, confirm_unfenced="db2")
    assert (decided["ok"], decided["followers"]) == (True, ["db3"])


def test_a_stopped_one_that_would_start_as_a_primary_gets_its_signal() -> None:
    older = stopped("db1", timeline=2), stopped("db3", timeline=1)
    decided = plan(*older, target="db1", db2=UNREACHABLE, confirm_unfenced="db2")
    assert (decided["ok"], decided["fence"], decided["needs_rebuild"]) == (True, ["db3"], ["db3", "db2"])


@pytest.mark.parametrize(
    ("states", "name"),
    [
        ([PREPARED, standby("db2", streams=False, timeline=2)], "timeline"),
        ([PREPARED, standby("db2", streams=False, timeline=None, control=None)], "timeline"),
        ([PREPARED, stopped("db2", "shut down in recovery", timeline=2, signal=True)], "timeline"),
        ([PREPARED, stopped("db2", "in production", timeline=2)], "timeline"),
        ([{**PREPARED, "superseded": {"primary": "db2", "timeline": 2, "system_identifier": SYSTEM}}], "timeline"),
        ([PREPARED, node("db2", "unknown", timeline=2)], "timeline"),
        ([PREPARED, stopped("db2")], "most_wal"),
        ([PREPARED, stopped("db2", "in production")], "most_wal"),
        ([PREPARED, standby("db2", streams=False, at=HERE + 8193)], "most_wal"),
        ([PREPARED, stopped("db2", "shut down in recovery", at=HERE + 8193, signal=True)], "most_wal"),
        ([{**PREPARED, "peers": peers_but("db1", db2="primary")}], "unseen_by_peers"),
        ([PREPARED, standby("db3", streams=False, peers=peers_but("db3", db2="primary"))], "unseen_by_peers"),
        ([PREPARED, standby("db3", "db2", peers=None)], "sender_silent_db3"),
    ],
)
def test_nobody_is_the_primary_again_beside_or_behind_another_one(states: list[dict[str, Any]], name: str) -> None:
    asked = {s["name"] for s in states}
    others = {} if "db2" in asked else {"db2": UNREACHABLE}
    decided = plan(*states, target="db1", confirm_unfenced="db2", **others)
    assert failing(decided) == {name}
    assert decided["resume"] is None
    assert not plan(*states, target="db1", confirm_unfenced="db2", allow=name.split("_db")[0], **others)["ok"]


@pytest.mark.parametrize("silent", [UNREACHABLE, {"failed": True, "msg": "no python"}, None, {}])
@pytest.mark.parametrize("has_command", [True, False])
def test_the_word_of_the_operator_is_wanted_for_each_that_may_have_been_promoted(
    silent: Any, has_command: bool
) -> None:
    """A fence would end the writes of a new primary; what it has committed would be lost without a word."""
    decided = plan(PREPARED, db2=silent, target="db1", has_fence_command=has_command)
    assert (failing(decided), decided["needs_confirm"]) == ({"fenced_db2"}, ["db2"])
    assert "confirm_unfenced=db2" in decided["reason"]
    decided = plan(PREPARED, db2=silent, db3=silent, target="db1", confirm_unfenced="db3")
    assert (failing(decided), decided["resume"]) == ({"fenced_db2"}, None)


def test_it_is_not_made_the_primary_beside_one_that_runs() -> None:
    other = primary("db2", timeline=2)
    decided = plan(PREPARED, other, target="db1", confirm_unfenced="db2")
    assert "db2 answers as primary" in decided["reason"]
    assert plan(PREPARED, other)["resume"] == "finish"


# -- no combination whatever ------------------------------------------------------------------------------------------

ANSWERS = st.sampled_from(["primary", "standby", "refused", "silent", "auth", "unknown"])


@given(clusters, st.dictionaries(st.sampled_from(sorted(MEMBERS)), ANSWERS), st.booleans(), st.data())
def test_nothing_is_promoted_beside_a_node_that_may_be_a_primary(
    asked: dict[str, Any], said: dict[str, str], has_command: bool, data: st.DataObject
) -> None:
    """Every node that is unknown is fenced, cut off by the command, or named; and no primary answers anybody."""
    for answer in asked.values():
        if answer and isinstance(answer.get("node"), dict):
            answer["node"]["peers"] = [peer(n, a, system_identifier=SYSTEM) for n, a in sorted(said.items())]
    confirmed = data.draw(st.sets(st.sampled_from(sorted(asked))))
    seen = topology(asked)
    decided = failover_plan(
        seen,
        data.draw(st.sampled_from([None, *sorted(asked)])),
        "forced",
        {n: MEMBERS[n] for n in asked},
        sorted(confirmed),
        has_fence_command=has_command,
    )
    if not decided["ok"] or decided["resume"] == "finish":
        assert decided["fence"] == [] or decided["ok"]
        return
    nodes = member_states(seen, asked)
    if decided["resume"] == "back":
        chosen = decided["target"]
        assert nodes[chosen]["control"]["state"] == "shut down"
        assert set(seen["unknown"]) <= confirmed
        assert not seen["primaries"]
        assert not [n for n in seen["unknown"] if said.get(n) == "primary"], "it was asked itself, and saw one"
        assert all((timeline(nodes[n]) or 0) <= timeline(nodes[chosen]) for n in nodes)
        return
    assert not seen["primaries"]
    handled = {*confirmed, *decided["fence"], *decided["stonith"]}
    assert set(seen["unknown"]) <= handled
    assert not set(decided["needs_confirm"])
    for name in seen["unknown"]:
        if name in decided["fence"]:
            assert nodes[name]["reachable"]
        elif name in decided["stonith"]:
            assert has_command
        else:
            assert name in confirmed
            assert not (said.get(name) == "primary" and any(nodes[s].get("peers") for s in seen["standbys"]))
    assert decided["target"] in seen["standbys"]


def test_who_waited_for_whom_is_counted() -> None:
    nodes = member_states(topology(answers({**CRASHED, "synchronous_standby_names": "ANY 0 (db2)"}, SURVIVOR)), [])
    assert forced.waited_for(nodes, ["db2"], "db1") is False
