# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is what, what site.yml may do, whom one may rebuild, which parameters are safe."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.records import (
    CONTRADICTIONS,
    can_follow,
    describe,
    duration,
    end_of_wal_before,
    lsn,
    size,
    slot_name,
    state_of,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.topology import (
    rebuild_plan,
    safe_parameters,
    site_plan,
    topology,
)
from ansible_collections.hotspare.postgresql.tests.unit.nodes import (
    HERE,
    OTHER_SYSTEM,
    SYSTEM,
    UNREACHABLE,
    absent,
    answers,
    control,
    primary,
    settings,
    standby,
    stopped,
)
from hypothesis import given
from hypothesis import strategies as st

PAIR = answers(primary("db1", "db2"), standby("db2"))
FRESH = control("shut down", 0x14E0DD8, next_xid="0:731")


def codes(seen: Any) -> set[str]:
    return {p["code"] for p in seen["problems"]}


def plan(*states: dict[str, Any], bootstrap: str | None = "db1", version: int | None = None, **others: Any) -> Any:
    given_answers = answers(*states, **others)
    return site_plan(topology(given_answers, version), bootstrap, sorted(given_answers))


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer"),
        ({}, "no answer"),
        ("undefined", "no answer"),
        (UNREACHABLE, "No route to host"),
        ({"failed": True, "msg": "MODULE FAILURE\nSee stdout"}, "MODULE FAILURE See stdout"),
        ({"failed": True}, "no message"),
        ({"skipped": True}, "not asked"),
        ({"changed": False}, "holds no state"),
        ({"node": {"role": "leader"}}, "own role"),
        ({"node": {"role": "unknown", "reason": "it hangs"}}, "it hangs"),
        ({"node": {"role": "absent"}}, "it says absent, but"),
        ({"node": {"role": "absent", "data": "cluster"}}, "it says absent, but"),
        ({"node": {"role": "stopped", "data": None}}, "it says stopped, but"),
        ({"node": {"role": "absent", "data": "foreign", "data_directory": "/srv"}}, "/srv holds something"),
        ({"node": {"role": "primary", "data": "cluster"}}, "not that it has left recovery"),
        ({"node": {"role": "primary", "in_recovery": True}}, "not that it has left recovery"),
        ({"node": {"role": "standby", "in_recovery": False}}, "not in recovery"),
    ],
)
def test_an_answer_that_says_nothing_is_unknown_and_says_why(answer: object, reason: str) -> None:
    state = state_of("db1", answer)
    assert state["role"] == "unknown"
    assert reason in str(state["reason"])
    seen = topology({"db1": answer})
    assert not seen["safe"]
    assert seen["unknown"] == ["db1"]
    assert seen["absent"] == []


def test_a_failure_keeps_the_facts_but_not_the_role() -> None:
    state = state_of("db1", {"failed": True, "msg": "timeout", "node": primary()})
    assert (state["role"], state["system_identifier"]) == ("unknown", SYSTEM)


def test_a_record_itself_is_an_answer_too() -> None:
    assert topology({"db1": primary()})["primary"] == "db1"


def test_a_member_without_an_answer_is_unknown() -> None:
    seen = topology(PAIR, members=["db1", "db2", "db3"])
    assert (seen["verdict"], seen["unknown"]) == ("unknown", ["db3"])
    assert not site_plan(topology(PAIR), "db1", ["db1", "db2", "db3"])["ok"]


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_healthy_pair() -> None:
    seen = topology(PAIR, 17)
    assert (seen["verdict"], seen["safe"], seen["primary"]) == ("healthy", True, "db1")
    assert (seen["standbys"], seen["system_identifier"], seen["timeline"]) == (["db2"], SYSTEM, 1)
    assert seen["problems"] == []
    json.dumps(seen)


def test_a_primary_that_its_next_start_makes_a_standby_is_no_whole_cluster() -> None:
    seen = topology(answers(primary("db1", "db2", standby_signal=True), standby("db2")))
    assert (seen["verdict"], seen["safe"]) == ("degraded", True)


def test_a_cutover_that_stopped_the_primary_is_to_be_ended() -> None:
    seen = topology(answers(stopped("db1", signal=True), standby("db2", streams=False)))
    reason = site_plan(seen, None, ["db1", "db2"])["reason"]
    assert "run failover.yml to end the cutover that stopped db1" in reason
    assert reason.endswith("failover.yml -e target=db2")


def test_a_running_primary_is_not_rebuilt_and_it_is_said_what_was_meant() -> None:
    reason = rebuild_plan(topology(PAIR), "db1", "db1")["reason"]
    assert "name the node that is to become a standby of it, or, to change roles, run failover.yml" in reason


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (absent("db2"), "absent"),
        (stopped("db2", "shut down in recovery", signal=True), "stopped"),
        (standby("db2", streams=False), "not_streaming"),
        (standby("db2", recovery=None, wal_receiver=None), "not_streaming"),
        (standby("db2", streams=False, at=HERE + 1), "ahead"),
    ],
)
def test_degraded(second: dict[str, Any], code: str) -> None:
    seen = topology(answers(primary("db1"), second))
    assert (seen["verdict"], seen["safe"], seen["primary"]) == ("degraded", True, "db1")
    assert code in codes(seen)


def test_a_standby_that_streams_from_a_stranger_is_degraded() -> None:
    assert "sender_unknown" in codes(topology(answers(primary("db1"), standby("db2"))))


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([primary("db1"), primary("db2")], "two_primaries"),
        ([primary("db1"), standby("db2", system_identifier=OTHER_SYSTEM)], "system_identifier"),
        ([primary("db1"), stopped("db2", system_identifier=OTHER_SYSTEM)], "system_identifier"),
        ([primary("db1"), absent("db2", "foreign")], "foreign_data"),
        ([primary("db1", "db2"), standby("db2", major_version=16)], "major_version"),
        ([primary("db1"), stopped("db2", timeline=2)], "timeline_ahead"),
        ([primary("db1"), standby("db2", streams=False, timeline=2)], "timeline_ahead"),
        ([primary("db1"), standby("db2", standby_signal=False, recovery_signal=True)], "point_in_time_recovery"),
        ([absent("db1", machine_id="x"), absent("db2", machine_id="x")], "same_server"),
        ([primary("db-1"), absent("db_1")], "slot_collision"),
    ],
)
def test_contradictions_stop_everything(states: list[dict[str, Any]], code: str) -> None:
    seen = topology(answers(*states))
    assert (seen["verdict"], seen["safe"]) == ("contradictory", False)
    assert code in codes(seen) & CONTRADICTIONS
    decided = plan(*states)
    assert not decided["ok"]
    assert len(decided["report"]) == len(states), "every node is reported"


def test_another_version_than_the_inventory_wants_stops_everything() -> None:
    seen = topology(PAIR, "16")
    assert (seen["verdict"], codes(seen)) == ("contradictory", {"major_version"})


def test_clones_that_run_apart_and_two_nodes_on_one_host_are_two() -> None:
    shared = {"machine_id": "x"}
    ours = answers(primary("db1", "db2", **shared), standby("db2", **shared, data_directory="/srv/b"))
    assert topology(ours)["verdict"] == "healthy"
    clones = answers(absent("db1", **shared, boot_id="1"), absent("db2", **shared, boot_id="2"))
    assert topology(clones)["verdict"] == "empty"


def test_a_node_whose_identity_cannot_be_read_is_no_proof() -> None:
    for states in (
        [primary("db1"), stopped("db2", system_identifier=None, control=None)],
        [primary("db1", "db2", timeline=None, control=None), standby("db2")],
        [primary("db1", "db2", major_version=None), standby("db2")],
    ):
        seen = topology(answers(*states))
        assert (seen["verdict"], seen["safe"]) == ("unknown", False)
        assert "could not be read" in plan(*states)["reason"]


def test_problems_of_nodes_are_carried_on_the_worst_first() -> None:
    ours = {"code": "pending_restart", "severity": "warning", "detail": "x"}
    bad = {"code": "slot_lost", "severity": "error", "detail": "y"}
    seen = topology(answers(primary("db1", "db2", problems=[ours, bad]), standby("db2")))
    assert [(p["node"], p["code"]) for p in seen["problems"]] == [("db1", "slot_lost"), ("db1", "pending_restart")]
    assert seen["verdict"] == "degraded"


# -- site.yml ---------------------------------------------------------------------------------------------------------


def test_a_healthy_pair_needs_nothing() -> None:
    decided = plan(primary("db1", "db2"), standby("db2"), bootstrap="db2")
    assert decided["ok"]
    assert (decided["primary"], decided["bootstrap"], decided["seed"], decided["start"]) == ("db1", False, [], [])
    assert decided["start_primary"] is False
    assert decided["configure"] == ["db1", "db2"]


def test_bootstrap_only_when_nobody_holds_data() -> None:
    decided = plan(absent("db1"), absent("db2", "empty"), bootstrap="db2")
    assert (decided["ok"], decided["bootstrap"], decided["primary"], decided["seed"]) == (True, True, "db2", ["db1"])


@pytest.mark.parametrize("wanted", [None, "", "db9"])
def test_bootstrap_needs_a_member(wanted: str | None) -> None:
    decided = plan(absent("db1"), absent("db2"), bootstrap=wanted)
    assert not decided["ok"]
    assert "bootstrap_primary" in decided["reason"]


def test_no_bootstrap_beside_an_unknown_node() -> None:
    decided = plan(absent("db1"), db2=UNREACHABLE)
    assert not decided["ok"]
    assert "db2 is unknown" in decided["reason"]
    assert "No route to host" in decided["reason"]


def test_no_bootstrap_beside_the_remains_of_a_cluster() -> None:
    remains = {"seeding": "/var/lib/postgresql/17/main.seeding", "rewinding": None}
    decided = plan(absent("db1"), absent("db2", rebuild=remains))
    assert not decided["ok"]
    assert "db2" in decided["reason"]


def test_no_members() -> None:
    assert not site_plan(topology({}), "db1", [])["ok"]


def test_missing_nodes_are_seeded_again_after_an_interrupted_seed() -> None:
    remains = {"seeding": "/var/lib/postgresql/17/main.seeding", "rewinding": None}
    decided = plan(primary("db1"), absent("db2", rebuild=remains), absent("db3", "empty"))
    assert (decided["ok"], decided["seed"]) == (True, ["db2", "db3"])


def test_a_stopped_standby_of_this_history_is_started() -> None:
    decided = plan(primary("db1"), stopped("db2", "shut down in recovery", signal=True))
    assert (decided["ok"], decided["start"]) == (True, ["db2"])


def test_a_copy_that_was_never_started_is_started() -> None:
    decided = plan(primary("db1"), stopped("db2", "in production", signal=True, backup_label=True))
    assert (decided["ok"], decided["start"]) == (True, ["db2"])


@pytest.mark.parametrize(
    "second",
    [
        stopped("db2"),
        stopped("db2", "in production"),
        stopped("db2", signal=None),
        stopped("db2", "in production", signal=True),
        stopped("db2", "shut down in recovery", at=HERE + 1, signal=True),
        stopped("db2", "shut down", at=HERE, signal=True),
    ],
)
def test_a_stopped_node_that_may_not_follow_is_not_started(second: dict[str, Any]) -> None:
    decided = plan(primary("db1"), second)
    assert not decided["ok"]
    assert decided["start"] == decided["seed"] == decided["configure"] == []
    assert "db2" in decided["reason"]


def test_a_former_primary_is_for_rebuild_standby() -> None:
    decided = plan(primary("db1", timeline=2), stopped("db2"))
    assert "rebuild_standby.yml -e node=db2 -e confirm=db2" in decided["reason"]


@pytest.mark.parametrize(("fork", "ok"), [(HERE + 120, True), (HERE, False), (HERE - 1, False)])
def test_a_demoted_primary_follows_when_its_last_record_is_shared(fork: int, ok: bool) -> None:
    history = [{"timeline": 1, "switch_lsn": f"0/{fork:X}"}]
    decided = plan(primary("db1", timeline=2, at=HERE + 999, history=history), stopped("db2", signal=True))
    assert decided["ok"] is ok
    assert plan(primary("db1", timeline=2, at=HERE + 999), stopped("db2", signal=True))["ok"] is False


def test_a_running_standby_that_left_the_history() -> None:
    history = [{"timeline": 1, "switch_lsn": f"0/{HERE:X}"}]
    left = standby("db2", streams=False, at=HERE + 8)
    decided = plan(primary("db1", timeline=2, at=HERE + 999, history=history), left)
    assert not decided["ok"]
    assert "rebuild_standby.yml" in decided["reason"]
    assert plan(primary("db1", timeline=2, at=HERE + 999, history=history), standby("db2", streams=False))["ok"]
    assert not plan(primary("db1"), standby("db2", streams=False, at=HERE + 8))["ok"]


@pytest.mark.parametrize(
    ("states", "hint"),
    [
        ([stopped("db1"), standby("db2", streams=False)], "failover.yml -e target=db2"),
        ([stopped("db1", "in production"), standby("db2", streams=False)], "-e target=db2 -e mode=forced"),
        ([stopped("db1"), stopped("db2", signal=True)], "start PostgreSQL on the node that was primary last (db1)"),
        ([absent("db1"), standby("db2", streams=False)], "make db2 the primary"),
        ([stopped("db1", "shut down in recovery", signal=True), absent("db2")], "start PostgreSQL on the nodes"),
        ([stopped("db1"), absent("db2")], "start PostgreSQL on the node"),
    ],
)
def test_data_and_no_primary(states: list[dict[str, Any]], hint: str) -> None:
    assert topology(answers(*states))["verdict"] == "no_primary"
    decided = plan(*states)
    assert not decided["ok"]
    assert hint in decided["reason"]
    assert len(decided["report"]) == len(states)


def test_a_first_run_that_died_after_initdb_goes_on() -> None:
    decided = plan(stopped("db1", control=FRESH), absent("db2"))
    assert (decided["ok"], decided["start_primary"], decided["bootstrap"]) == (True, True, False)
    assert (decided["primary"], decided["seed"]) == ("db1", ["db2"])


@pytest.mark.parametrize(
    "changes",
    [
        {"control": {**FRESH, "next_xid": "0:5000"}},
        {"control": {**FRESH, "next_xid": "1:731"}, "timeline": 2},
        {"control": {**FRESH, "checkpoint_lsn": "0/9000028"}},
        {"control": {**FRESH, "state": "in production"}},
        {"control": {**FRESH, "next_xid": None}},
        {"control": FRESH, "standby_signal": True},
        {"control": FRESH, "standby_signal": None},
    ],
)
def test_a_cluster_that_was_used_is_not_started_as_primary_on_a_guess(changes: dict[str, Any]) -> None:
    assert not plan(stopped("db1", **changes), absent("db2"))["ok"]


def test_a_fresh_cluster_is_not_started_beside_the_remains_of_another() -> None:
    assert not plan(stopped("db1", control=FRESH), absent("db2", rebuild={"seeding": "/x"}))["ok"]


# -- rebuild_standby.yml ----------------------------------------------------------------------------------------------


def rebuild(*states: dict[str, Any], node: str = "db2", confirm: str | None = None, **others: Any) -> Any:
    return rebuild_plan(topology(answers(*states, **others)), node, node if confirm is None else confirm)


def failing(decided: Any) -> set[str]:
    return {c["name"] for c in decided["checks"] if c["hard"] and c["ok"] is not True}


@pytest.mark.parametrize(
    "second",
    [
        stopped("db2"),
        stopped("db2", "in production"),
        standby("db2", streams=False),
        standby("db2"),
        absent("db2"),
    ],
)
def test_what_may_be_rebuilt(second: dict[str, Any]) -> None:
    decided = rebuild(primary("db1"), second)
    assert (decided["ok"], decided["primary"], decided["system_identifier"]) == (True, "db1", SYSTEM)


def test_a_node_promoted_after_the_primary_is_given_up_only_by_name() -> None:
    seen = topology(answers(primary("db1"), stopped("db2", "in production", timeline=2)))
    for give_up in (None, "", "db1"):
        decided = rebuild_plan(seen, "db2", "db2", give_up)
        assert failing(decided) == {"not_newer"}
        assert "probably the one to keep" in decided["reason"]
    assert rebuild_plan(seen, "db2", "db2", "db2")["ok"]
    assert failing(rebuild(primary("db1"), stopped("db2", timeline=None))) == {"not_newer"}


@pytest.mark.parametrize(
    ("states", "name"),
    [
        ([primary("db1"), primary("db2")], "not_primary"),
        ([standby("db1", streams=False), primary("db2")], "not_primary"),
        ([stopped("db1"), stopped("db2")], "one_primary"),
        ([primary("db1"), primary("db3"), stopped("db2")], "one_primary"),
        ([primary("db1"), stopped("db2", system_identifier=OTHER_SYSTEM)], "system_identifier"),
        ([primary("db1"), stopped("db2", system_identifier=None)], "system_identifier"),
        ([primary("db1"), stopped("db2", major_version=16)], "major_version"),
        ([primary("db1"), standby("db2", clients=1)], "no_clients"),
        ([primary("db1"), standby("db2", clients=None)], "no_clients"),
        ([primary("db1"), standby("db2", replication=[{"application_name": "db3"}])], "no_readers"),
        ([primary("db1"), standby("db2", replication=None)], "no_readers"),
        ([primary("db1"), stopped("db2", machine_id="machine-of-db1")], "another_server"),
        ([primary("db1"), stopped("db2", machine_id=None)], "another_server"),
        ([primary("db1"), absent("db2", "foreign")], "node_known"),
        ([primary("db1"), stopped("db2"), absent("db3", "foreign")], "others_agree"),
        ([primary("db1"), stopped("db2"), stopped("db3", timeline=2)], "others_agree"),
    ],
)
def test_what_may_not_be_rebuilt(states: list[dict[str, Any]], name: str) -> None:
    decided = rebuild(*states)
    assert (decided["ok"], decided["primary"]) == (False, None)
    assert name in failing(decided)


def test_who_reads_from_a_node_that_streams_already_does_not_hinder_a_run_that_is_made_again() -> None:
    decided = rebuild(primary("db1", "db2"), standby("db2", clients=1))
    assert decided["ok"], decided["reason"]
    assert [c["ok"] for c in decided["checks"] if c["name"] in ("no_clients", "needed")] == [False, False]


def test_an_unknown_node_is_not_rebuilt_and_another_unknown_one_only_warns() -> None:
    assert failing(rebuild(primary("db1"), db2=UNREACHABLE)) >= {"node_known"}
    decided = rebuild(primary("db1"), stopped("db2"), db3=UNREACHABLE)
    assert decided["ok"]
    assert [c["ok"] for c in decided["checks"] if c["name"] == "others_known"] == [None]


@pytest.mark.parametrize("confirm", ["", "db1", "DB2", "yes"])
def test_the_name_must_be_confirmed(confirm: str) -> None:
    assert failing(rebuild(primary("db1"), stopped("db2"), confirm=confirm)) == {"confirmed"}


@pytest.mark.parametrize("name", ["", "db9"])
def test_a_rebuild_needs_a_member(name: str) -> None:
    decided = rebuild(primary("db1"), stopped("db2"), node=name, confirm=name)
    assert not decided["ok"]
    assert "db1 and db2" in decided["reason"]


def test_two_nodes_may_share_a_host() -> None:
    assert rebuild(primary("db1"), stopped("db2", machine_id="machine-of-db1", data_directory="/srv/b"))["ok"]


# -- parameters -------------------------------------------------------------------------------------------------------


def wanted(value: int, first: str, second: str | None, node: str) -> Any:
    two = standby("db2", settings=settings(max_connections=second))
    seen = topology(answers(primary("db1", "db2", settings=settings(max_connections=first)), two))
    return safe_parameters({"max_connections": value, "work_mem": "4MB"}, seen, node)


@pytest.mark.parametrize(
    ("value", "first", "second", "node", "kept"),
    [
        (200, "100", "100", "db2", 200),  # raising: the standby first
        (200, "100", "100", "db1", 100),
        (200, "100", "150", "db1", 150),
        (200, "100", "200", "db1", 200),
        (50, "100", "100", "db1", 50),  # lowering: the primary first
        (50, "100", "100", "db2", 100),
        (50, "50", "100", "db2", 100),  # pg_control still has 100 in the WAL replayed so far
        (100, "100", "100", "db1", 100),
        (200, "150", "100", "db1", 150),  # never below what it runs with for a standby's sake
        (200, "100", None, "db1", 100),
    ],
)
def test_safe_order(value: int, first: str, second: str | None, node: str, kept: int) -> None:
    result = wanted(value, first, second, node)
    assert result["node_values"] == {"max_connections": kept}
    assert list(result["held_back"]) == ([] if kept == value else ["max_connections"])
    for held in result["held_back"].values():
        assert held["reason"]
        assert held["wanted"] == value


def test_parameters_without_anything_known_are_left_alone() -> None:
    seen = topology({"db1": UNREACHABLE, "db2": UNREACHABLE})
    result = safe_parameters({"max_connections": 200}, seen, "db1")
    assert result["node_values"] == {}
    assert result["held_back"]["max_connections"]["kept"] is None


def test_parameters_of_a_new_cluster_are_as_wanted() -> None:
    empty = topology(answers(absent("db1"), absent("db2")))
    assert safe_parameters({"max_connections": 20}, empty, "db1", "db1")["node_values"] == {"max_connections": 20}
    fresh = topology(answers(stopped("db1", control=FRESH), absent("db2")))
    assert safe_parameters({"max_connections": 20}, fresh, "db1", "db1")["node_values"] == {"max_connections": 20}
    assert safe_parameters({"max_connections": 200}, fresh, "db1", "db1")["node_values"] == {"max_connections": 200}


def test_a_node_to_seed_gets_at_least_what_the_primary_has() -> None:
    seen = topology(answers(primary("db1", settings=settings(max_connections="300")), absent("db2")))
    assert safe_parameters({"max_connections": 20}, seen, "db2")["node_values"] == {"max_connections": 300}
    assert safe_parameters({"max_connections": 400}, seen, "db1")["node_values"] == {"max_connections": 400}


# -- small things -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "slot"),
    [("db2", "hotspare_db2"), ("DB-2.example.org", "hotspare_db_2_example_org"), ("dbä", "hotspare_db_")],
)
def test_slot_names(node: str, slot: str) -> None:
    assert slot_name("hotspare_", node) == slot


@given(st.text(max_size=100))
def test_slot_names_are_always_valid(node: str) -> None:
    name = slot_name("hotspare_", node)
    assert 0 < len(name.encode()) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")


@given(st.integers(0, 2**62))
def test_sizes_are_never_zero_by_rounding(count: int) -> None:
    assert (size(count) == "0 B") == (count == 0)


def test_words() -> None:
    assert [size(None), size(1536), size(5 << 40)] == ["unknown", "1.5 kB", "5.0 TB"]
    assert [duration(v) for v in (None, 0.0, 61, 7260)] == ["unknown", "0.0 s", "1 min 1 s", "2 h 1 min"]
    assert [lsn(v) for v in (None, "", "nonsense", 7, "0/10")] == [None, None, None, None, 16]
    assert "unknown: unreachable: Failed to connect" in describe(state_of("db1", UNREACHABLE))
    assert "no standby.signal" in describe(state_of("db1", stopped("db1")))


def test_the_end_of_wal_is_strict_after_a_clean_stop_of_a_primary() -> None:
    clean = state_of("db1", stopped("db1"))
    assert [end_of_wal_before(clean, limit) for limit in (HERE - 1, HERE, HERE + 1)] == [False, False, True]
    recovered = state_of("db1", stopped("db1", "shut down in recovery", signal=True))
    assert [end_of_wal_before(recovered, limit) for limit in (HERE - 1, HERE)] == [False, True]
    assert end_of_wal_before(state_of("db1", stopped("db1", "in production")), HERE + 999) is None
    assert can_follow(clean, state_of("db2", primary("db2", lsn=None))) is None


# -- no combination whatever ------------------------------------------------------------------------------------------


def a_state(name: str) -> st.SearchStrategy[Any]:
    """Any answer of a node, whole or with holes."""
    systems = st.sampled_from([SYSTEM, SYSTEM, SYSTEM, OTHER_SYSTEM, None])
    at = st.sampled_from([HERE - 64, HERE, HERE + 64])
    tli = st.sampled_from([1, 1, 2, None])
    running = st.one_of(
        st.builds(lambda a, t, s: primary(name, at=a, timeline=t, system_identifier=s), at, tli, systems),
        st.builds(
            lambda a, t, s, streams, o: standby(name, o, a, streams, timeline=t, system_identifier=s),
            at,
            tli,
            systems,
            st.booleans(),
            st.sampled_from(["db1", "db2"]),
        ),
    )
    kinds = st.sampled_from(["shut down", "shut down in recovery", "in archive recovery", "in production"])
    down = st.builds(
        lambda k, a, t, g, s: stopped(name, k, a, t or 1, g, system_identifier=s),
        kinds,
        at,
        tli,
        st.sampled_from([True, False, None]),
        systems,
    )
    nothing = st.sampled_from([absent(name), absent(name, "empty"), absent(name, "foreign")])
    record = st.one_of(running, running, down, nothing).map(lambda s: {"changed": False, "node": s})
    silence = st.sampled_from([UNREACHABLE, {"failed": True, "msg": "x"}, {}, None])
    return st.one_of(record, record, record, silence)


clusters = st.integers(1, 4).flatmap(
    lambda count: st.fixed_dictionaries({f"db{i}": a_state(f"db{i}") for i in range(1, count + 1)})
)


@given(clusters)
def test_no_combination_with_an_unknown_node_is_safe(given_answers: dict[str, Any]) -> None:
    seen = topology(given_answers)
    silent = [n for n, a in given_answers.items() if not a or "node" not in a]
    assert set(silent) <= set(seen["unknown"])
    assert not set(silent) & {*seen["absent"], *seen["standbys"], *seen["stopped"], *seen["primaries"]}
    if seen["unknown"]:
        assert not seen["safe"]
        assert not site_plan(seen, "db1", sorted(given_answers))["ok"]
    if len(seen["primaries"]) > 1:
        assert (seen["primary"], seen["verdict"]) == (None, "contradictory")
    if seen["safe"]:
        assert seen["primary"] or set(seen["absent"]) == set(given_answers)


@given(clusters)
def test_what_site_may_do(given_answers: dict[str, Any]) -> None:
    seen = topology(given_answers)
    decided = site_plan(seen, "db1", sorted(given_answers))
    assert decided["reason"]
    if not decided["ok"]:
        assert not (decided["seed"] or decided["start"] or decided["configure"] or decided["bootstrap"])
        return
    assert seen["verdict"] in ("healthy", "degraded", "empty")
    assert decided["bootstrap"] is (set(seen["absent"]) == set(given_answers))
    assert decided["primary"] not in decided["seed"] + decided["start"]
    assert set(decided["seed"]) <= set(seen["absent"])
    assert set(decided["start"]) <= set(seen["stopped"])
    if not decided["bootstrap"]:
        assert decided["primary"] == seen["primary"]


@given(clusters, st.sampled_from(["db1", "db2", "db3"]))
def test_a_live_primary_or_an_unknown_node_is_never_rebuilt(given_answers: dict[str, Any], node: str) -> None:
    seen = topology(given_answers)
    decided = rebuild_plan(seen, node, node)
    if decided["ok"]:
        assert node not in seen["primaries"] + seen["unknown"]
        assert seen["primaries"] == [decided["primary"]]
        assert seen["nodes"][node].get("system_identifier") in (None, decided["system_identifier"])
    assert not rebuild_plan(seen, node, f"{node} ")["ok"]


@given(clusters, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(given_answers: dict[str, Any], random: Any) -> None:
    names = list(given_answers)
    random.shuffle(names)
    shuffled = {n: given_answers[n] for n in names}
    before = copy.deepcopy(given_answers)
    assert topology(shuffled) == topology(given_answers)
    assert site_plan(topology(shuffled), "db1", names) == site_plan(topology(given_answers), "db1", sorted(names))
    assert given_answers == before, "answers are not changed"


@given(clusters, st.integers(1, 500), st.sampled_from(["db1", "db2"]))
def test_no_standby_ever_gets_less_than_its_primary(given_answers: dict[str, Any], value: int, node: str) -> None:
    seen = topology(given_answers)
    if node not in seen["nodes"]:
        return
    kept = safe_parameters({"max_connections": value}, seen, node)["node_values"].get("max_connections")
    if seen["primary"] and node != seen["primary"]:
        assert kept is not None
        assert kept >= 100
    elif seen["primary"]:
        assert kept is not None
        others = set(seen["stopped"] + seen["unknown"] + seen["standbys"])
        assert kept <= max(value if not others else 100, min(value, 100))
