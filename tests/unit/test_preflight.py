# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is looked at before a planned cutover, and which of it the operator may waive.

The faults of the list F1-F37 (research, 3.1) that are found by looking, each with the check that finds it, are the
table FAULTS. The others happen during a cutover or a rebuild and have their cases in the integration tests and in
Molecule.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import preflight
from ansible_collections.hotspare.postgresql.plugins.module_utils.cutover import failover_plan
from ansible_collections.hotspare.postgresql.plugins.module_utils.topology import topology
from ansible_collections.hotspare.postgresql.tests.unit.nodes import (
    HERE,
    MEMBERS,
    OTHER_SYSTEM,
    answers,
    control,
    peer,
    peers_but,
    primary,
    row,
    settings,
    slot,
    standby,
)
from hypothesis import given
from hypothesis import strategies as st

GB = 1 << 30


def plan(*states: dict[str, Any], **more: Any) -> Any:
    asked = answers(*states)
    return failover_plan(topology(asked), more.pop("target", "db2"), "planned", {n: MEMBERS[n] for n in asked}, **more)


def failing(decided: Any) -> set[str]:
    return {c["name"] for c in decided["checks"] if c["hard"] and c["ok"] is not True}


def warnings(decided: Any) -> set[str]:
    return {c["name"] for c in decided["checks"] if not c["hard"] and c["ok"] is not True}


def source(**facts: Any) -> dict[str, Any]:
    return primary("db1", "db2", **facts)


def replay(**facts: Any) -> dict[str, Any]:
    return {"state": "x", "paused": False, "min_apply_delay_ms": 0, **facts}


SOURCE, STANDBY = source(), standby("db2")
UNREADY = slot("x", type="logical", failover=True)

# fault: (the primary, the standby, check that refuses, whether it may be waived)
FAULTS = {
    "F8 replay paused": (SOURCE, standby(replay=replay(paused=True)), "replay_not_paused", False),
    "F9 apply delay": (SOURCE, standby(replay=replay(min_apply_delay_ms=1)), "no_apply_delay", False),
    "F10 a gigabyte behind": (source(replication=[row("db2", GB)]), STANDBY, "lag", True),
    "F15 failover slot not ready": (source(slots=[UNREADY]), STANDBY, "failover_slots", False),
    "F16 pg_hba of the way back": (source(peers=peers_but("db1", db2="auth")), STANDBY, "way_back_db1", True),
    "F16 no network back": (source(peers=peers_but("db1", db2="silent")), STANDBY, "way_back_db1", True),
    "F17 GUC lower on the new standby": (
        source(settings=settings(max_connections="99")),
        STANDBY,
        "parameters_of_db1",
        True,
    ),
    "F18 no free slot": (SOURCE, standby(settings=settings(max_replication_slots="0")), "replication_slots", True),
    "F18 no free walsender": (SOURCE, standby(settings=settings(max_wal_senders="0")), "wal_senders", True),
    "F19 waits for one that is gone": (
        SOURCE,
        standby(settings=settings(synchronous_standby_names="FIRST 1 (db9)")),
        "synchronous",
        True,
    ),
    "F30 an address that leads to itself": (
        source(peers=[peer("db2", "primary")]),
        STANDBY,
        "way_back_db1",
        True,
    ),
    "F30 an address that leads to another cluster": (
        source(peers=[peer("db2", system_identifier=OTHER_SYSTEM)]),
        STANDBY,
        "way_back_db1",
        True,
    ),
    "F31 the disk of WAL is full": (source(wal_free_bytes=48 << 20), STANDBY, "free_space_db1", True),
    "auto.conf of root": (SOURCE, standby(auto_conf_owner="root"), "auto_conf_owner_db2", True),
    "stays on its timeline": (
        source(settings=settings(recovery_target_timeline="current")),
        STANDBY,
        "latest_timeline_db1",
        True,
    ),
    "subscribers would wait for ever": (
        SOURCE,
        standby(settings=settings(synchronized_standby_slots="hotspare_db1, hotspare_gone")),
        "synchronized_slots",
        True,
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_found_before_anything_is_touched(fault: str) -> None:
    first, second, name, waivable = FAULTS[fault]
    decided = plan(first, second)
    assert failing(decided) == {name}, decided["reason"]
    found = next(c for c in decided["checks"] if c["name"] == name)
    assert found["detail"].rstrip(".") in decided["reason"]
    assert found["allow"] is waivable
    allowed = plan(first, second, allow=[name])
    assert allowed["ok"] is waivable
    if waivable:
        assert next(c for c in allowed["checks"] if c["name"] == name)["detail"].endswith("(allowed)")
    else:
        assert f"{name} cannot be allowed" in allowed["reason"]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (source(peers=None), STANDBY, "way_back_db1"),
        (source(peers=[]), STANDBY, "way_back_db1"),
        (source(peers=[peer("db2", "unknown")]), STANDBY, "way_back_db1"),
        (source(peers=[peer("db2", system_identifier=None)]), STANDBY, "way_back_db1"),
        (SOURCE, standby(wal_free_bytes=None), "free_space_db2"),
        (SOURCE, standby(auto_conf_owner=None), "auto_conf_owner_db2"),
        (source(data_owner=None), STANDBY, "auto_conf_owner_db1"),
        (source(settings=settings(recovery_target_timeline=None)), STANDBY, "latest_timeline_db1"),
        (SOURCE, standby(armed={"state": "unknown"}, slots=None), "replication_slots"),
    ],
)
def test_what_is_not_known_refuses(first: dict[str, Any], second: dict[str, Any], name: str) -> None:
    decided = plan(first, second)
    assert failing(decided) == {name}
    assert next(c for c in decided["checks"] if c["name"] == name)["ok"] is None


def sized(**changes: tuple[str, str]) -> dict[str, Any]:
    return {**settings(), **{name: {"value": value, "unit": unit} for name, (value, unit) in changes.items()}}


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (source(settings=sized(max_wal_size=("1024", "MB")), wal_free_bytes=GB), STANDBY, "room_for_wal_db1"),
        (
            SOURCE,
            standby(settings=sized(max_wal_size=("1024", "MB"), max_slot_wal_keep_size=("64", "MB"))),
            "slot_wal_keep",
        ),
        (SOURCE, standby(settings=settings(default_transaction_read_only="on")), "read_only_default"),
        (source(settings=settings(wal_sender_timeout="120000")), STANDBY, "wal_sender_timeout"),
        (SOURCE, standby(settings=settings(restore_command="(set)")), "restore_command"),
    ],
)
def test_what_only_warns(first: dict[str, Any], second: dict[str, Any], name: str) -> None:
    decided = plan(first, second)
    assert decided["ok"], decided["reason"]
    assert warnings(decided) == {name}
    assert f"{name} cannot be allowed: it only warns" in plan(first, second, allow=name)["reason"]


def test_failover_slots_have_to_come_back() -> None:
    ready = slot("x", type="logical", synced=True, temporary=False, invalidation_reason=None)
    decided = plan(source(slots=[UNREADY]), standby(slots=[ready]))
    assert (decided["ok"], warnings(decided)) == (True, {"slot_sync_back"})
    synced = source(slots=[UNREADY], settings=settings(sync_replication_slots="on"))
    assert warnings(plan(synced, standby(slots=[ready]))) == set()


def test_settings_without_a_bound_and_slots_that_will_be_there_are_fine() -> None:
    fine = sized(max_wal_size=("1024", "MB"), max_slot_wal_keep_size=("-1", "MB"))
    fine.update(settings(synchronized_standby_slots="hotspare_db1"))
    decided = plan(source(settings=fine), standby(settings=fine))
    assert (decided["ok"], warnings(decided)) == (True, set())


def test_each_standby_must_reach_the_target() -> None:
    three = [primary("db1", "db2", "db3"), STANDBY, standby("db3", peers=peers_but("db3", db2="refused"))]
    assert failing(plan(*three)) == {"way_back_db3"}
    assert plan(*three, allow="way_back")["ok"], "by its code for all nodes"
    assert not plan(*three, allow="way_back_db1")["ok"], "by its name for one"
    assert plan(*three, target="db3")["ok"], "nobody asks db3 to reach db2"


def test_cascading_is_refused_in_words() -> None:
    middle = standby("db2", replication=[row("db3")], slots=[slot("db3")])
    decided = plan(primary("db1", "db2"), middle, standby("db3", "db2"))
    assert "db3 streams from db2, a standby: cascading is not supported" in decided["reason"]
    assert "cascading" in failing(plan(primary("db1", "db2"), middle, standby("db3", "db2"), target="db3"))


# -- allow ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "words"),
    [
        ("lgs", "there is no such check"),
        ("streaming", "streaming cannot be allowed: without it data could be lost"),
        (["lag", "timeline"], "timeline cannot be allowed"),
        ("way_back_db9", "allow names way_back_db9, and there is no such check"),
    ],
)
def test_what_cannot_be_allowed_refuses_even_where_all_is_well(allow: Any, words: str) -> None:
    decided = plan(SOURCE, STANDBY, allow=allow)
    assert not decided["ok"]
    assert words in decided["reason"]


@pytest.mark.parametrize("allow", ["lag,archiving", ["lag", "archiving"], "[lag, archiving]", '["lag","archiving"]'])
def test_allow_is_a_list_or_a_text(allow: Any) -> None:
    late = source(
        replication=[row("db2", GB)],
        archiver={"mode": "on", "command_set": True, "ready": 0, "last_failed_time": None},
    )
    assert failing(plan(late, STANDBY)) == {"lag", "archiving"}
    assert plan(late, STANDBY, allow=allow)["ok"]
    assert plan(SOURCE, STANDBY, allow=allow)["ok"], "what is allowed need not be wrong"


def test_codes_are_of_one_kind() -> None:
    kinds = [preflight.WAIVABLE, preflight.UNWAIVABLE, preflight.WARNINGS]
    assert len(preflight.CODES) == sum(map(len, kinds))
    assert preflight.code_of("way_back_db1", ["db1"]) == "way_back"
    assert preflight.code_of("way_back_db1", ["db2"]) is None
    assert preflight.code_of("pending_restart_of", ["of"]) == "pending_restart"


HOLES = (
    "lsn replay replication slots settings archiver recovery hot_standby running_backups control peers armed lock"
    " wal_free_bytes auto_conf_owner data_owner timeline pending_restart prepared_transactions upstream wal_receiver"
).split()
NAMES = st.sampled_from([*sorted(preflight.WAIVABLE), "way_back_db1", "parameters_of_db1", "free_space_db2"])


@given(st.sampled_from(["db1", "db2"]), st.sets(st.sampled_from(HOLES), min_size=1), st.sets(NAMES))
def test_unknown_never_allows(node: str, holes: set[str], allow: set[str]) -> None:
    """Whatever is not known: each hard check is ok by proof, or because it may be waived and was named."""
    pair = {"db1": source(), "db2": standby("db2")}
    for hole in holes:
        pair[node][hole] = None
    decided = plan(*pair.values(), allow=sorted(allow))
    for one in decided["checks"]:
        code = preflight.code_of(one["name"], MEMBERS)
        assert code in preflight.CODES, one["name"]
        assert one["allow"] is (code in preflight.WAIVABLE and one["hard"])
        if one["detail"].endswith("(allowed)"):
            assert one["allow"]
            assert allow & {code, one["name"]}
    assert decided["ok"] is not bool(failing(decided))
    strict = plan(*pair.values())
    assert {c["name"] for c in strict["checks"]} == {c["name"] for c in decided["checks"]}
    waived = failing(strict) - failing(decided)
    assert all(preflight.code_of(name, MEMBERS) in preflight.WAIVABLE for name in waived)


# -- nobody else is at work -------------------------------------------------------------------------------------------

ARMED = {"state": "armed", "alive": True, "expires_in": 42.0, "reason": None}


def a_lock(**changes: Any) -> dict[str, Any]:
    run = {"host": "bastion", "pid": 7, "started": 1, "boot_id": "b", "namespace": "n"}
    known = {"owner": "alice@bastion", "purpose": "failover to db2", "since": "10:00 UTC", "token": "hers"}
    return {**known, "control": run, "expires_in": 60.0, "alive": None, "path": "/x", **changes}


def test_f14_the_second_operator_is_told_who_works_and_since_when() -> None:
    pair = [source(lock=a_lock()), STANDBY]
    decided = plan(*pair, run={"token": "mine", "dead": []})
    assert failing(decided) == {"lock"}
    assert "db1 is locked by alice@bastion since 10:00 UTC for failover to db2" in decided["reason"]
    assert "-e take_over=alice@bastion" in decided["reason"]
    assert not plan(*pair)["ok"], "one who says not who he is has no lock"
    assert not plan(*pair, take_over="bob@bastion")["ok"]
    assert not plan(*pair, allow="lock")["ok"]
    assert plan(*pair, take_over="alice@bastion")["ok"]
    assert plan(*pair, run={"token": "hers", "dead": []})["ok"]
    decided = plan(*pair, run={"token": "mine", "dead": ["hers"]})
    assert decided["ok"]
    assert "left behind by a run that is dead" in decided["checks"][0]["detail"]


def test_a_lock_of_a_run_that_lives_is_not_taken_over_even_by_name() -> None:
    assert not plan(source(lock=a_lock(alive=True)), STANDBY, take_over="alice@bastion")["ok"]
    assert plan(source(lock=a_lock(alive=False)), STANDBY)["ok"]


def test_a_lock_that_cannot_be_read_refuses() -> None:
    decided = plan(SOURCE, standby(lock=a_lock(token=None, reason="cannot read /x")), take_over="alice@bastion")
    assert failing(decided) == {"lock"}
    assert "db2: cannot read /x" in decided["reason"]


@pytest.mark.parametrize("state", ["armed", "promoting", "unknown"])
def test_another_armed_standby_refuses(state: str) -> None:
    three = [primary("db1", "db2", "db3"), STANDBY, standby("db3", armed={**ARMED, "state": state})]
    decided = plan(*three)
    assert failing(decided) == {"armed_elsewhere"}
    assert "-e target=db3" in decided["reason"]
    assert plan(*three, target="db3")["ok"], "the armed one itself goes on"


@pytest.mark.parametrize("state", ["promoted", "disarmed", "expired", "refused", "dead"])
def test_one_that_was_armed_is_no_matter(state: str) -> None:
    assert plan(primary("db1", "db2", "db3"), STANDBY, standby("db3", armed={**ARMED, "state": state}))["ok"]


def test_rewindable_is_told_from_pg_control() -> None:
    bare = source(control=control("in production", HERE, data_checksums=0))
    assert warnings(plan(bare, STANDBY)) == {"rewindable"}
