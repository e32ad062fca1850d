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
    peer,
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
        (
            [primary("db1"), absent("db2")],
            "db2",
            "target db2 is absent, only a running standby can become primary: site",
        ),
        ([primary("db1"), absent("db2")], None, "no other node"),
        (
            [primary("db1"), stopped("db2", "shut down in recovery", signal=True)],
            None,
            "-e node=db2 -e confirm=db2 first",
        ),
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


# What a run that was killed leaves behind, step by step: the primary is prepared (standby.signal, upstream), the
# target armed, the primary stopped, the target promoted by its own process, the old primary started again.
ARMED = {"state": "armed", "alive": True, "expires_in": 30.0, "reason": None}
TO_DB2 = standby("db1", "db2")["upstream"]
PREPARED = {"standby_signal": True, "upstream": TO_DB2}
DOWN = stopped("db1", signal=True, upstream=TO_DB2)
CAUGHT_UP = standby("db2", streams=False, at=HERE + 120)


def armed(state: str, **facts: Any) -> dict[str, Any]:
    return {"armed": {**ARMED, "state": state}, **facts}


@pytest.mark.parametrize(
    ("states", "resume", "old"),
    [
        ([SOURCE, standby("db2")], None, "db1"),
        ([source(**PREPARED), standby("db2")], None, "db1"),
        ([source(**PREPARED), standby("db2", **armed("armed"))], None, "db1"),
        ([source(**PREPARED), standby("db2", **armed("refused"))], None, "db1"),
        ([source(**PREPARED), standby("db2", **armed("expired"))], None, "db1"),
        ([source(**PREPARED), standby("db2", **armed("dead"))], None, "db1"),
        ([DOWN, {**CAUGHT_UP, **armed("armed")}], "promote", "db1"),
        ([DOWN, {**CAUGHT_UP, **armed("promoting")}], "promote", "db1"),
        ([DOWN, {**CAUGHT_UP, **armed("refused")}], "promote", "db1"),
        ([DOWN, CAUGHT_UP], "promote", "db1"),
        ([DOWN, primary("db2", at=HERE + 500, timeline=2, **armed("promoted"))], "finish", "db1"),
        ([standby("db1", "db2", streams=False), primary("db2", timeline=2, **armed("promoted"))], "finish", None),
        ([standby("db1", "db2", timeline=2), primary("db2", "db1", timeline=2)], "finish", None),
    ],
)
def test_a_run_that_died_behind_any_step_is_continued_by_the_same_command(
    states: list[dict[str, Any]], resume: str | None, old: str | None
) -> None:
    decided = plan(*states, target="db2")
    assert decided["ok"], decided["reason"]
    assert (decided["resume"], decided["target"], decided["old_primary"]) == (resume, "db2", old)
    assert decided["disarm"] == [], "the target is the one that is armed"


def test_without_a_target_a_cutover_is_finished_before_it_is_turned_round() -> None:
    promoted = armed("promoted", timeline=2)
    decided = plan(standby("db1", "db2", streams=False), primary("db2", **promoted))
    assert (decided["ok"], decided["resume"], decided["target"]) == (True, "finish", "db2")
    peers = {"peers": [peer("db1", "standby"), peer("db2", "primary")]}
    decided = plan(standby("db1", "db2", timeline=2, **peers), primary("db2", "db1", **promoted, **peers))
    assert (decided["ok"], decided["resume"], decided["target"]) == (True, None, "db1")


@pytest.mark.parametrize("mode", ["planned", "forced"])
@pytest.mark.parametrize("target", ["db2", None])
def test_what_comes_after_a_promotion_that_no_run_has_seen_is_left(mode: str, target: str | None) -> None:
    unseen, seen = (armed("promoted", timeline=2, at=HERE + 500) for _ in "12")
    unseen["armed"] = {**unseen["armed"], "collected": False}
    seen["armed"] = {**seen["armed"], "collected": True}
    decided = plan(DOWN, primary("db2", **unseen), target=target, mode=mode)
    assert (decided["ok"], decided["resume"], decided["collect"], decided["mode"]) == (True, "finish", True, "planned")
    assert decided["require_lsn"] == DOWN["control"]["checkpoint_lsn"]
    assert plan(DOWN, primary("db2", **seen), target=target)["collect"] is False
    # The old primary streams already: the hooks, and the others, still have not heard of it.
    decided = plan(standby("db1", "db2", timeline=2), primary("db2", "db1", **unseen), target=target, mode=mode)
    assert (decided["resume"], decided["collect"], decided["nothing_to_do"]) == ("finish", True, False)
    assert decided["require_lsn"] is None


def test_a_prepared_primary_is_told() -> None:
    decided = plan(source(**PREPARED), standby("db2"))
    assert any("was prepared to become a standby by a run that did not end" in line for line in decided["report"])


@pytest.mark.parametrize("kind", ["in production", "shutting down"])
def test_a_stop_that_did_not_end_well_makes_it_the_primary_again(kind: str) -> None:
    """The stop was escalated, or the machine crashed meanwhile: there is no shutdown record, and nothing is lost."""
    down = stopped("db1", kind, signal=True, upstream=TO_DB2)
    decided = plan(down, standby("db2", streams=False, **armed("armed")), target="db2")
    assert decided["ok"], decided["reason"]
    assert (decided["resume"], decided["target"], decided["old_primary"]) == ("back", "db1", "db1")
    assert decided["disarm"] == ["db2"]
    assert "did not stop cleanly in a cutover that did not end" in decided["reason"]


def test_a_standby_that_lacks_the_shutdown_record_makes_it_the_primary_again() -> None:
    decided = plan(DOWN, standby("db2", at=HERE, streams=False), target="db2")
    assert (decided["ok"], decided["resume"], decided["target"]) == (True, "back", "db1")
    assert "nothing is lost" in decided["reason"]


def test_nobody_comes_back_who_was_overtaken_or_never_was_the_primary() -> None:
    newer = standby("db3", streams=False, timeline=2)
    assert not plan(stopped("db1", "in production", signal=True, upstream=TO_DB2), standby("db2"), newer)["ok"]
    unknown = standby("db2", timeline=None, control=None, streams=False)
    assert not plan(stopped("db1", "in production", signal=True, upstream=TO_DB2), unknown)["ok"]
    # A crashed standby, and one that was fenced: they follow nobody, or were no primary.
    crashed = stopped("db1", "in archive recovery", signal=True, upstream=TO_DB2)
    assert plan(crashed, standby("db2", streams=False))["resume"] is None
    assert not plan(stopped("db1", "in production", signal=True), standby("db2", streams=False))["ok"]


@pytest.mark.parametrize("state", [source(**PREPARED), DOWN])
def test_a_cutover_that_is_not_wanted_any_more_is_undone(state: dict[str, Any]) -> None:
    decided = plan(state, standby("db2", **armed("armed")), target="db1")
    assert decided["ok"], decided["reason"]
    assert (decided["resume"], decided["target"], decided["disarm"]) == ("back", "db1", ["db2"])
    assert decided["nothing_to_do"] is False


def test_a_running_primary_is_left_what_it_is_though_the_others_are_gone() -> None:
    alone = source(**PREPARED, replication=[])
    decided = plan(alone, target="db1", db2=UNREACHABLE)
    assert (decided["ok"], decided["resume"], decided["target"]) == (True, "back", "db1"), decided["reason"]
    assert "run failover.yml -e target=db1" in plan(alone, target="db2", db2=UNREACHABLE)["reason"]
    assert "run failover.yml -e target=db1" in plan(alone, db2=UNREACHABLE)["reason"]
    # One that streams may be armed, and would promote itself when the primary is restarted.
    decided = plan(source(**PREPARED), target="db1", db2=UNREACHABLE)
    assert failing(decided) == {"armed_elsewhere"}
    assert failing(plan(source(**PREPARED, replication=None), target="db1", db2=UNREACHABLE)) == {"armed_elsewhere"}
    assert failing(forced(source(**PREPARED), target="db1", db2=UNREACHABLE)) == {"armed_elsewhere"}
    decided = forced(source(**PREPARED), target="db1", db2=UNREACHABLE, confirm_unfenced="db2")
    assert (decided["ok"], decided["resume"]) == (True, "back")


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([SOURCE], ""),
        ([DOWN], "-e mode=forced -e target=db1 -e confirm_unfenced=db3"),
        ([stopped("db1")], "-e mode=forced -e target=db1 -e confirm_unfenced=db3"),
        ([DOWN, CAUGHT_UP], "if the primary is dead, run failover.yml -e mode=forced"),
        ([CAUGHT_UP], "if the primary is dead, run failover.yml -e mode=forced"),
    ],
)
def test_where_a_node_is_gone_it_is_said_what_to_type(states: list[dict[str, Any]], words: str) -> None:
    reason = plan(*states, db3=UNREACHABLE)["reason"]
    assert reason.endswith(words or "needs an answer from every node")


def test_one_that_is_still_armed_beside_a_new_primary_is_disarmed() -> None:
    decided = plan(primary("db2", "db3", timeline=2), standby("db3", "db2", timeline=2, **armed("armed")), target="db2")
    assert (decided["resume"], decided["disarm"], decided["nothing_to_do"]) == ("finish", ["db3"], False)


def both(reach: int = HERE, other: int = HERE, **facts: Any) -> list[dict[str, Any]]:
    """A prepared primary that was restarted in the middle: both are standbys, each told to follow the other."""
    at = {"flush": None, "held": f"0/{other:X}", "receive": f"0/{other:X}"}
    mine = {"flush": None, "held": f"0/{reach:X}", "receive": f"0/{reach:X}"}
    old = standby("db1", "db2", streams=False, lsn=at)
    return [{**old, **facts}, standby("db2", streams=False, lsn=mine)]


def test_a_prepared_primary_that_was_restarted() -> None:
    decided = plan(*both(), target="db2")
    assert decided["ok"], decided["reason"]
    assert (decided["resume"], decided["target"], decided["old_primary"]) == ("promote", "db2", None)
    assert (decided["followers"], decided["require_lsn"]) == (["db1"], f"0/{HERE - 1:X}")
    decided = plan(*both(other=HERE + 8), target="db2")
    assert failing(decided) == {"most_wal"}
    assert "-e target=db1" in decided["reason"]
    for target in ("db1", None):
        decided = plan(*both(other=HERE + 8), target=target)
        assert (decided["ok"], decided["target"], decided["followers"]) == (True, "db1", ["db2"])
    assert not plan(*both(lsn={"held": f"0/{HERE:X}", "receive": None}), target="db2")["ok"], "it still replays"
    assert not plan(*both(timeline=2), target="db2")["ok"]


def test_standbys_of_one_that_is_not_there_are_not_promoted_without_force() -> None:
    pair = [standby("db2", streams=False), standby("db3", streams=False)]
    assert "mode=forced" in plan(*pair, absent("db1"), target="db2")["reason"]
    assert not plan(*both(), stopped("db3", "in production"), target="db2")["ok"]
    assert not plan(*both(), target="db2", db3=UNREACHABLE)["ok"]


def test_a_forced_run_that_died_after_the_promotion_is_finished_without_naming_anybody() -> None:
    decided = forced(stopped("db1", "shut down", signal=True), primary("db2", timeline=2))
    assert (decided["ok"], decided["resume"], decided["old_primary"]) == (True, "finish", "db1")


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
        ([stopped("db1", "in production"), SURVIVOR], "db1", "start PostgreSQL on db1 first"),
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
    assert set(seen["unknown"]) <= confirmed
    if decided["resume"] == "back":
        assert (mode, seen["primaries"]) == ("forced", [])
        assert seen["nodes"][str(decided["target"])]["control"]["state"] == "shut down"  # type: ignore[index]
        return
    assert decided["target"] in seen["standbys"]
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


def leftover(name: str, other: str) -> Any:
    """What a node can look like when runs have died: a primary or standby, prepared, armed, stopped, crashed."""
    reach = st.sampled_from([HERE - 64, HERE, HERE + 120])
    process = st.sampled_from([None, *({**ARMED, "state": s} for s in ("armed", "promoting", "promoted", "refused"))])
    upstream = st.sampled_from([standby(name, n)["upstream"] for n in ("db1", "db2", "db3") if n != name] + [None])
    older_or_newer = st.sampled_from([1, 1, 1, 2])
    running = st.builds(
        lambda at, armed, up, tli: standby(
            name,
            other,
            at,
            False,
            armed=armed,
            upstream=up,
            timeline=tli,
            lsn={"held": f"0/{at:X}", "receive": f"0/{at:X}", "flush": None},
        ),
        reach,
        process,
        upstream,
        older_or_newer,
    )
    down = st.builds(
        lambda kind, at, up, signal, tli: stopped(name, kind, at, tli, signal, upstream=up),
        st.sampled_from(["shut down", "in production", "shutting down", "shut down in recovery"]),
        reach,
        upstream,
        st.booleans(),
        older_or_newer,
    )
    leads = st.builds(
        lambda at, signal, tli: primary(name, other, at=at, standby_signal=signal, timeline=tli),
        reach,
        st.booleans(),
        older_or_newer,
    )
    return st.one_of(running, down, leads)


@given(
    st.tuples(leftover("db1", "db2"), leftover("db2", "db1"), st.one_of(st.none(), leftover("db3", "db1"))),
    TARGETS,
    MODES,
)
def test_whatever_runs_left_behind_makes_no_second_primary_and_loses_nothing(
    left: tuple[Any, ...], target: str | None, mode: str
) -> None:
    states = [s for s in left if s]
    decided = plan(*states, target=target, mode=mode)
    nodes = {s["name"]: s for s in states}
    if not decided["ok"]:
        return
    resume, chosen = decided["resume"], decided["target"]
    primaries = [n for n, s in nodes.items() if s["role"] == "primary"]
    assert len(primaries) < 2
    armed_now = {n for n, s in nodes.items() if (s.get("armed") or {}).get("state") in ("armed", "promoting")}
    assert armed_now - {chosen} <= set(decided["disarm"]), "nobody promotes himself behind our back"
    if resume == "finish":
        assert primaries == [chosen]
        assert not nodes[chosen]["standby_signal"]
    elif resume == "back":
        assert primaries in ([], [chosen])
        if not primaries:
            assert nodes[chosen]["control"]["state"] in ("shut down", "shutting down", "in production")
            assert all(s["timeline"] <= nodes[chosen]["timeline"] for s in states)
    elif resume == "promote":
        assert not primaries
        assert nodes[chosen]["role"] == "standby"
        required = int(decided["require_lsn"].split("/")[1], 16)
        assert int(nodes[chosen]["lsn"]["held"].split("/")[1], 16) > required
        for name in decided["followers"] if decided["old_primary"] is None else []:
            assert int(nodes[name]["lsn"]["held"].split("/")[1], 16) <= required + 1
    else:
        assert (primaries == [decided["old_primary"]]) is (mode == "planned")


NAMED = st.sets(st.sampled_from(["db1", "db2", "db3"]))


@given(
    st.tuples(leftover("db1", "db2"), leftover("db2", "db1"), st.one_of(st.none(), leftover("db3", "db1"))),
    NAMED,
    NAMED,
    TARGETS,
    MODES,
)
def test_nothing_becomes_a_primary_beside_one_that_cannot_be_seen_and_may_be_one(
    left: tuple[Any, ...], hidden: set[str], named: set[str], target: str | None, mode: str
) -> None:
    states = {s["name"]: s for s in left if s}
    gone, word = hidden & set(states), sorted(named & set(states))
    seen = [s for n, s in states.items() if n not in gone]
    for state in seen:
        state["peers"] = None
    decided = plan(*seen, target=target, mode=mode, confirm_unfenced=word, **dict.fromkeys(gone, UNREACHABLE))
    if not decided["ok"] or decided["resume"] == "finish":
        return
    chosen = states[decided["target"]]
    if chosen["role"] == "primary":
        readers = {r["application_name"] for r in chosen["replication"]}
        assert not (gone - set(word)) & readers, "it may be armed: the preparation is what keeps it the only primary"
        return
    assert gone <= set(word)
    assert not [s for s in seen if s["role"] == "primary" and s["name"] != decided["old_primary"]]
    if decided["resume"] == "back" and gone:
        assert chosen["control"]["state"] == "shut down"
        assert all(s["timeline"] <= chosen["timeline"] for s in seen)
