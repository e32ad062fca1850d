# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the primary may change: planned, forced, and continued after a run that died."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.cutover import MAX_LAG_BYTES, failover_plan
from ansible_collections.hotspare.postgresql.plugins.module_utils.topology import topology
from ansible_collections.hotspare.postgresql.tests.unit.nodes import (
    HERE,
    MEMBERS,
    OTHER_SYSTEM,
    SYSTEM,
    UNREACHABLE,
    absent,
    answers,
    control,
    peers_but,
    primary,
    row,
    settings,
    slot,
    standby,
    stopped,
)
from ansible_collections.hotspare.postgresql.tests.unit.test_topology import clusters
from hypothesis import given
from hypothesis import strategies as st


def plan(*states: dict[str, Any], target: str | None = None, mode: str = "planned", **more: Any) -> Any:
    others = {n: more.pop(n) for n in list(more) if n in MEMBERS}
    asked = answers(*states, **others)
    return failover_plan(topology(asked), target, mode, {n: MEMBERS[n] for n in asked}, **more)


def forced(*states: dict[str, Any], **more: Any) -> Any:
    return plan(*states, mode="forced", **more)


def failing(decided: Any) -> set[str]:
    return {c["name"] for c in decided["checks"] if c["hard"] and c["ok"] is not True}


def warnings(decided: Any) -> set[str]:
    return {c["name"] for c in decided["checks"] if not c["hard"] and c["ok"] is not True}


# -- planned ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "", "db2"])
def test_a_healthy_pair_changes_over(target: str | None) -> None:
    decided = plan(primary("db1", "db2"), standby("db2"), target=target)
    assert decided["ok"], decided["reason"]
    assert (decided["target"], decided["old_primary"], decided["followers"]) == ("db2", "db1", [])
    assert (decided["resume"], decided["system_identifier"]) == (None, SYSTEM)
    assert warnings(decided) == set()


def test_three_nodes_need_a_target_and_the_third_follows() -> None:
    three = [primary("db1", "db2", "db3"), standby("db2"), standby("db3")]
    assert "one of db2 and db3" in plan(*three)["reason"]
    decided = plan(*three, target="db3")
    assert (decided["ok"], decided["target"], decided["followers"]) == (True, "db3", ["db2"])


SOURCE = primary("db1", "db2")
ARCHIVING = {"mode": "on", "command_set": True, "ready": 0, "last_failed_time": None, "last_archived_time": None}


def source(**facts: Any) -> dict[str, Any]:
    return primary("db1", "db2", **facts)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (primary("db1"), standby("db2"), "streaming"),
        (source(replication=[row("db2", state="catchup")]), standby("db2"), "streaming"),
        (SOURCE, standby("db2", recovery="archive"), "streaming"),
        (SOURCE, standby("db2", recovery=None), "streaming"),
        (source(replication=[row("db2", None)]), standby("db2"), "lag"),
        (source(replication=[row("db2", MAX_LAG_BYTES + 1)]), standby("db2"), "lag"),
        (source(timeline=2), standby("db2"), "timeline"),
        (SOURCE, standby("db2", timeline=None, control=None), "timeline"),
        (SOURCE, standby("db2", hot_standby=None), "hot_standby"),
        (SOURCE, standby("db2", replay={"paused": True, "min_apply_delay_ms": 0}), "replay_not_paused"),
        (SOURCE, standby("db2", replay={"paused": None, "min_apply_delay_ms": 0}), "replay_not_paused"),
        (SOURCE, standby("db2", replay={"paused": False, "min_apply_delay_ms": 5}), "no_apply_delay"),
        (SOURCE, standby("db2", replay=None), "no_apply_delay"),
        (SOURCE, standby("db2", settings=settings(max_connections="200")), "parameters_of_db1"),
        (SOURCE, standby("db2", settings=settings(max_wal_senders=None)), "parameters_of_db1"),
        (source(pending_restart=["max_connections"]), standby("db2"), "parameters_of_db1"),
        (source(settings=settings(wal_level="logical")), standby("db2"), "wal_level"),
        (SOURCE, standby("db2", settings=settings(wal_level="minimal")), "wal_level"),
        (SOURCE, standby("db2", settings=settings(max_wal_senders="0")), "wal_senders"),
        (SOURCE, standby("db2", settings=settings(max_replication_slots="0")), "replication_slots"),
        (SOURCE, standby("db2", settings=None), "replication_slots"),
        (SOURCE, standby("db2", settings=settings(synchronous_standby_names="db9")), "synchronous"),
        (SOURCE, standby("db2", settings=settings(synchronous_standby_names="FIRST 2 (db1, x)")), "synchronous"),
        (SOURCE, standby("db2", settings=settings(synchronous_standby_names=None)), "synchronous"),
        (source(archiver=ARCHIVING), standby("db2"), "archiving"),
        (source(archiver=ARCHIVING), standby("db2", archiver=None), "archiving"),
        (source(archiver=None), standby("db2"), "archive_backlog"),
        (source(archiver={**ARCHIVING, "ready": 129}), standby("db2", archiver=ARCHIVING), "archive_backlog"),
        (source(running_backups=[{"seconds_left": 60.0}]), standby("db2"), "no_backup_on_db1"),
        (SOURCE, standby("db2", running_backups=None), "no_backup_on_db2"),
        (source(slots=[slot("x", type="logical", failover=True)]), standby("db2"), "failover_slots"),
        (source(slots=None), standby("db2"), "failover_slots"),
        (source(settings=settings(hot_standby="off")), standby("db2"), "hot_standby_back"),
    ],
)
def test_what_refuses_a_planned_cutover(first: dict[str, Any], second: dict[str, Any], name: str) -> None:
    decided = plan(first, second)
    assert not decided["ok"]
    assert name in failing(decided)
    assert next(c["detail"] for c in decided["checks"] if c["name"] == name).rstrip(".") in decided["reason"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    paused = standby("db2", replay={"paused": True, "min_apply_delay_ms": 7}, settings=settings(wal_level="minimal"))
    assert failing(plan(SOURCE, paused)) == {"replay_not_paused", "no_apply_delay", "wal_level"}


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (source(prepared_transactions=1), standby("db2"), "prepared_transactions"),
        (source(oldest_transaction_seconds=301.0), standby("db2"), "long_transaction"),
        (source(oldest_transaction_seconds=None), standby("db2"), "long_transaction"),
        (source(slots=[slot("x", type="logical", failover=False)]), standby("db2"), "logical_slots"),
        (SOURCE, standby("db2", pending_restart=["shared_buffers"]), "pending_restart_db2"),
        (SOURCE, standby("db2", settings=settings(idle_replication_slot_timeout="60")), "idle_slots"),
        (source(settings=settings(wal_sender_timeout="0")), standby("db2"), "wal_sender_timeout"),
        (source(control=control("in production", data_checksums=0)), standby("db2"), "rewindable"),
        (
            source(archiver={**ARCHIVING, "last_failed_time": "2026-01-02"}),
            standby("db2", archiver=ARCHIVING),
            "archiver",
        ),
    ],
)
def test_what_only_warns(first: dict[str, Any], second: dict[str, Any], name: str) -> None:
    decided = plan(first, second)
    assert decided["ok"], decided["reason"]
    assert warnings(decided) == {name}


def test_bounds_are_allowed_themselves() -> None:
    full = source(replication=[row("db2", MAX_LAG_BYTES)], archiver={**ARCHIVING, "ready": 128})
    assert plan(full, standby("db2", archiver=ARCHIVING))["ok"]
    exact = standby("db2", settings=settings(max_wal_senders="10", max_replication_slots="1"))
    assert plan(SOURCE, exact)["ok"]


def test_a_ready_failover_slot_and_a_returning_synchronous_standby_are_fine() -> None:
    logical = slot("x", type="logical", failover=True)
    ready = slot("x", type="logical", synced=True, temporary=False, invalidation_reason=None)
    assert plan(source(slots=[logical]), standby("db2", slots=[ready]))["ok"]
    assert not plan(source(slots=[logical]), standby("db2", slots=[{**ready, "temporary": True}]))["ok"]
    for names in ("db1", "*", 'ANY 1 ("db1", db2)'):
        assert plan(SOURCE, standby("db2", settings=settings(synchronous_standby_names=names)))["ok"], names


@pytest.mark.parametrize(
    ("states", "target", "words"),
    [
        ([primary("db1"), absent("db2")], "db2", "target db2 is absent"),
        ([primary("db1"), absent("db2")], None, "no other node"),
        ([primary("db1"), stopped("db2", "shut down in recovery", signal=True)], None, "target db2 is stopped"),
        ([SOURCE, standby("db2")], "db9", "db9 is not a member"),
        ([primary("db1"), primary("db2")], "db2", "db1 and db2 all run as primary"),
        ([SOURCE, standby("db2", system_identifier=OTHER_SYSTEM)], "db2", "different system identifiers"),
        ([SOURCE, standby("db2", system_identifier=None)], "db2", "system identifier of db2 could not be read"),
        ([absent("db1"), absent("db2")], None, "site.yml first"),
        ([absent("db1"), standby("db2", streams=False)], None, "mode=forced"),
        ([stopped("db1", "in production"), standby("db2", streams=False)], None, "mode=forced"),
    ],
)
def test_situations_that_refuse(states: list[dict[str, Any]], target: str | None, words: str) -> None:
    decided = plan(*states, target=target)
    assert not decided["ok"]
    assert words in decided["reason"]
    assert len(decided["report"]) == len(states)


def test_a_planned_cutover_needs_every_node() -> None:
    decided = plan(SOURCE, standby("db2"), target="db2", db3=UNREACHABLE)
    assert not decided["ok"]
    assert (decided["unreachable"], "No route to host" in decided["reason"]) == (["db3"], True)


def test_modes() -> None:
    assert "planned or forced" in plan(SOURCE, standby("db2"), mode="now")["reason"]


# -- continued --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [True, False])
@pytest.mark.parametrize("target", ["db2", None])
def test_a_cutover_that_died_after_the_stop_goes_on_to_promote(target: str | None, signal: bool) -> None:
    ahead = standby("db2", at=HERE + 120, streams=False)
    decided = plan(stopped("db1", signal=signal), ahead, target=target)
    assert decided["ok"], decided["reason"]
    assert (decided["resume"], decided["target"], decided["old_primary"]) == ("promote", "db2", "db1")
    assert (decided["require_lsn"], decided["require_timeline"]) == (f"0/{HERE:X}", 1)


@pytest.mark.parametrize("at", [HERE - 64, HERE])
def test_without_the_shutdown_record_it_does_not_go_on(at: int) -> None:
    decided = plan(stopped("db1"), standby("db2", at=at, streams=False))
    assert failing(decided) == {"shutdown_checkpoint"}
    assert decided["resume"] is None
    assert "start PostgreSQL on db1 again" in decided["reason"]
    assert "remove standby.signal" in plan(stopped("db1", signal=True), standby("db2", at=at))["reason"]


def test_a_position_that_is_not_known_does_not_go_on() -> None:
    assert failing(plan(stopped("db1"), standby("db2", lsn=None))) == {"shutdown_checkpoint"}
    assert "timeline" in failing(plan(stopped("db1", timeline=2), standby("db2", at=HERE + 120)))


def test_the_stopped_primary_itself_as_target() -> None:
    decided = plan(stopped("db1"), standby("db2", at=HERE + 120), target="db1")
    assert "start PostgreSQL there" in decided["reason"]


def test_two_that_stopped_as_primaries() -> None:
    assert not plan(stopped("db1"), stopped("db3"), standby("db2", at=HERE + 120), target="db2")["ok"]


@pytest.mark.parametrize("target", ["db2", None])
def test_a_cutover_that_died_after_the_promotion_is_finished(target: str | None) -> None:
    decided = plan(stopped("db1", signal=True), primary("db2", at=HERE + 500, timeline=2), target=target)
    assert decided["ok"], decided["reason"]
    assert (decided["resume"], decided["old_primary"], decided["nothing_to_do"]) == ("finish", "db1", False)


def test_a_target_that_is_primary_with_all_attached_has_nothing_to_do() -> None:
    decided = plan(primary("db2", "db1"), standby("db1", "db2"), target="db2")
    assert (decided["ok"], decided["resume"], decided["nothing_to_do"]) == (True, "finish", True)
    decided = plan(primary("db2"), standby("db1", "db2", streams=False), target="db2")
    assert (decided["ok"], decided["followers"], decided["nothing_to_do"]) == (True, ["db1"], False)


def test_a_crashed_former_primary_is_for_rebuild_standby() -> None:
    decided = plan(primary("db2", timeline=2), stopped("db1", "in production"), target="db2")
    assert (decided["ok"], decided["old_primary"], decided["needs_rebuild"]) == (True, None, ["db1"])
    assert any("rebuild_standby.yml -e node=db1" in line for line in decided["report"])


def test_a_demoted_node_that_was_stopped_again_returns() -> None:
    demoted = stopped("db1", "shut down in recovery", at=HERE - 8, signal=True)
    assert plan(primary("db2"), demoted, target="db2")["old_primary"] == "db1"


# -- forced -----------------------------------------------------------------------------------------------------------

SURVIVOR = standby("db2", streams=False, peers=peers_but("db2", db1="silent"))


def test_forced_needs_the_word_of_the_operator() -> None:
    decided = forced(SURVIVOR, db1=UNREACHABLE)
    assert failing(decided) == {"fenced_db1"}
    assert "confirm_unfenced=db1" in decided["reason"]
    for word in ("db1", ["db1"], " db1 ,"):
        decided = forced(SURVIVOR, db1=UNREACHABLE, confirm_unfenced=word)
        assert decided["ok"], decided["reason"]
    assert (decided["target"], decided["old_primary"], decided["unreachable"]) == ("db2", "db1", ["db1"])
    assert decided["loss"]["bytes"] is None
    assert "unknown" in decided["reason"]


@pytest.mark.parametrize("word", ["", "db2", "yes", "true", "DB1"])
def test_another_word_does_not_help(word: str) -> None:
    assert not forced(SURVIVOR, db1=UNREACHABLE, confirm_unfenced=word)["ok"]


def test_every_node_that_cannot_be_seen_must_be_named() -> None:
    seen = {"db1": UNREACHABLE, "db3": UNREACHABLE}
    assert failing(forced(SURVIVOR, **seen, confirm_unfenced="db1")) == {"fenced_db3"}
    decided = forced(SURVIVOR, **seen, confirm_unfenced="db1,db3")
    assert (decided["ok"], decided["old_primary"]) == (True, "db1")


def test_a_crashed_primary_that_answers_as_stopped_needs_no_word_and_the_least_loss_is_told() -> None:
    decided = forced(stopped("db1", "in production", at=HERE + 4096), SURVIVOR)
    assert decided["ok"], decided["reason"]
    assert (decided["loss"]["bytes"], decided["loss"]["at_least"]) == (None, 4096)
    assert "at least 4.0 kB" in decided["reason"]
    assert decided["needs_rebuild"] == ["db1"]
    assert next(c for c in decided["checks"] if c["name"] == "loss")["ok"] is None
    behind = forced(stopped("db1", "in production", at=HERE - 4096), SURVIVOR)
    assert (behind["loss"]["at_least"], "how much is lost is unknown" in behind["reason"]) == (0, True)


def test_a_living_primary_is_not_forced_away() -> None:
    decided = forced(SOURCE, standby("db2"))
    assert not decided["ok"]
    assert "mode=planned" in decided["reason"]
    assert not forced(SOURCE, standby("db2"), confirm_unfenced="db1")["ok"]


def test_a_clean_primary_needs_no_force() -> None:
    decided = forced(stopped("db1"), standby("db2", streams=False, at=HERE + 120))
    assert decided["ok"], decided["reason"]
    assert (decided["mode"], decided["resume"], decided["require_lsn"]) == ("planned", "promote", f"0/{HERE:X}")
    decided = forced(stopped("db1"), SURVIVOR)
    assert "nothing is lost" in decided["reason"]
    decided = forced(stopped("db1", at=HERE + 512), SURVIVOR, confirm_unfenced="db1")
    assert (decided["ok"], decided["loss"]["bytes"]) == (True, 512)


def test_a_primary_that_the_standby_still_hears_is_alive() -> None:
    dead = {"db1": UNREACHABLE, "confirm_unfenced": "db1"}
    assert failing(forced(standby("db2", peers=None), **dead)) == {"sender_silent"}
    assert failing(forced(standby("db2"), **dead)) == {"sender_silent", "unseen_by_peers"}
    receiver = standby("db2")["wal_receiver"]
    silent = standby("db2", wal_receiver={**receiver, "silent_seconds": 9.0}, peers=None)
    assert forced(silent, **dead)["ok"]
    unknown = standby("db2", wal_receiver={**receiver, "silent_seconds": None}, peers=None)
    assert not forced(unknown, **dead)["ok"]
    for answer in ("silent", "refused"):
        assert forced(standby("db2", peers=peers_but("db2", db1=answer)), **dead)["ok"], answer
    for answer in ("unknown", "auth", "primary"):
        assert not forced(standby("db2", peers=peers_but("db2", db1=answer)), **dead)["ok"], answer
    cascade = standby("db3", "db2")
    assert "sender_silent" not in failing(
        forced(SURVIVOR, cascade, target="db3", db1=UNREACHABLE, confirm_unfenced="db1")
    )


def test_the_standby_that_holds_most_takes_over() -> None:
    more, less = standby("db3", streams=False, at=HERE + 64), standby("db2", streams=False)
    crashed = stopped("db1", "in production")
    assert forced(crashed, less, more)["target"] == "db3"
    decided = forced(crashed, less, more, target="db2")
    assert failing(decided) == {"most_wal"}
    assert "-e target=db3" in decided["reason"]
    newer = standby("db2", streams=False, timeline=2)
    assert forced(crashed, newer, more)["target"] == "db2"
    assert forced(crashed, less, standby("db3", streams=False))["target"] == "db2", "equal ones: by name"


@pytest.mark.parametrize("hole", [{"lsn": None}, {"timeline": None, "control": None}])
@pytest.mark.parametrize("target", [None, "db2"])
def test_a_standby_of_which_it_is_not_known_what_it_holds_refuses(target: str | None, hole: dict[str, Any]) -> None:
    third = standby("db3", streams=False, **hole)
    decided = forced(stopped("db1", "in production"), SURVIVOR, third, target=target)
    assert failing(decided) >= {"most_wal"}


def test_a_stopped_standby_that_holds_more() -> None:
    crashed, third = stopped("db1", "in production"), stopped("db3", "shut down in recovery", at=HERE + 1, signal=True)
    assert failing(forced(crashed, SURVIVOR, third)) == {"stopped_nodes"}
    assert forced(crashed, SURVIVOR, third, confirm_unfenced="db3")["ok"]
    third = stopped("db3", "shut down in recovery", signal=True)
    decided = forced(crashed, SURVIVOR, third)
    assert decided["ok"]
    assert "stopped_nodes" in warnings(decided)


def test_a_crashed_node_of_a_newer_timeline_is_not_passed_over() -> None:
    assert failing(forced(stopped("db1", "in production", timeline=2), SURVIVOR)) == {"stopped_nodes"}


@pytest.mark.parametrize(
    ("states", "target", "words"),
    [
        ([stopped("db1", "in production"), absent("db2")], None, "nothing to fail over to"),
        ([stopped("db1", "in production"), absent("db2")], "db2", "target db2 is absent"),
        ([stopped("db1", "in production"), SURVIVOR], "db1", "target db1 is stopped"),
        ([stopped("db1", "in production"), SURVIVOR], "db9", "not a member"),
        ([stopped("db1", system_identifier=OTHER_SYSTEM), SURVIVOR], "db2", "different system identifiers"),
    ],
)
def test_forced_situations_that_refuse(states: list[dict[str, Any]], target: str | None, words: str) -> None:
    decided = forced(*states, target=target)
    assert not decided["ok"]
    assert words in decided["reason"]


def test_a_confirmation_of_a_stranger_is_a_typing_mistake() -> None:
    decided = forced(SURVIVOR, db1=UNREACHABLE, confirm_unfenced="db1,bd1")
    assert "bd1" in decided["reason"]


def test_a_forced_failover_that_was_done_has_nothing_to_do() -> None:
    decided = forced(primary("db2", timeline=2), target="db2", db1=UNREACHABLE)
    assert (decided["ok"], decided["resume"], decided["nothing_to_do"]) == (True, "finish", True)


def test_forced_warns_where_planned_refuses() -> None:
    poor = standby("db2", streams=False, settings=settings(max_wal_senders="0", synchronous_standby_names="db1"))
    decided = forced(stopped("db1", "in production"), poor)
    assert decided["ok"]
    assert warnings(decided) >= {"wal_senders", "synchronous", "loss"}
    paused = standby("db2", streams=False, replay={"paused": True, "min_apply_delay_ms": 0})
    assert failing(forced(stopped("db1", "in production"), paused)) == {"replay_not_paused"}


# -- no combination whatever ------------------------------------------------------------------------------------------

TARGETS = st.sampled_from([None, "db1", "db2", "db3"])
MODES = st.sampled_from(["planned", "forced"])
WORDS = st.sampled_from([None, "db1", "db2", "db1,db2"])


@given(clusters, TARGETS, MODES, WORDS)
def test_no_combination_promotes_beside_a_primary_or_without_proof(
    asked: dict[str, Any], target: str | None, mode: str, word: str | None
) -> None:
    seen = topology(asked)
    decided = failover_plan(seen, target, mode, MEMBERS if len(asked) == 4 else {n: MEMBERS[n] for n in asked}, word)
    assert decided["reason"]
    assert decided["ok"] is not bool(failing(decided))
    if not decided["ok"]:
        assert decided["resume"] is None
        return
    confirmed = set((word or "").split(","))
    assert decided["target"] in asked
    assert len(seen["primaries"]) < 2
    assert seen["verdict"] != "contradictory"
    if mode == "planned":
        assert not seen["unknown"]
    if decided["resume"] == "finish":
        assert seen["primary"] == decided["target"]
        return
    assert decided["target"] in seen["standbys"]
    assert set(seen["unknown"]) <= confirmed
    if mode == "forced":
        assert not seen["primaries"]
    elif decided["resume"] == "promote":
        assert not seen["primaries"]
        assert decided["old_primary"] in seen["stopped"]
        assert seen["nodes"][str(decided["old_primary"])]["control"]["state"] == "shut down"  # type: ignore[index]
    else:
        assert seen["primaries"] == [decided["old_primary"]]


@given(clusters, TARGETS, MODES, WORDS, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(
    asked: dict[str, Any], target: str | None, mode: str, word: str | None, random: Any
) -> None:
    names = list(asked)
    random.shuffle(names)
    shuffled = {n: asked[n] for n in names}
    members = {n: MEMBERS[n] for n in names}
    ordered = {n: MEMBERS[n] for n in sorted(names)}
    assert failover_plan(topology(shuffled), target, mode, members, word) == failover_plan(
        topology(asked), target, mode, ordered, word
    )


HOLES = ("lsn", "replay", "replication", "slots", "settings", "archiver", "recovery", "hot_standby", "running_backups")


@given(st.sampled_from(["db1", "db2"]), st.sets(st.sampled_from([*HOLES, "system_identifier", "major_version"])))
def test_a_hole_where_it_matters_refuses(node: str, holes: set[str]) -> None:
    """Every fact that a planned cutover rests on, taken away from one node, takes the cutover away."""
    pair = {"db1": source(archiver=ARCHIVING), "db2": standby("db2", archiver=ARCHIVING)}
    harmless = {"db1": {"lsn", "replay", "recovery", "hot_standby"}, "db2": {"lsn"}}[node]
    for hole in holes:
        pair[node][hole] = None
    assert plan(*pair.values())["ok"] is not bool(holes - harmless)
