# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One plan for check mode and real mode: what it changes, what it refuses, and what is waited for."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import desired
from ansible_collections.hotspare.postgresql.plugins.module_utils.conninfo import Upstream
from ansible_collections.hotspare.postgresql.plugins.module_utils.desired import (
    Desired,
    Plan,
    WaitFor,
    desired_from_params,
    ensure,
    plan,
    plan_slots,
    unmet,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import (
    Instance,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from hypothesis import given
from hypothesis import strategies as st

UPSTREAM = Upstream("a", user="u", application_name="b", slot="hotspare_b")


def slot(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "physical",
        "active": False,
        "active_pid": None,
        "restart_lsn": "0/1",
        "wal_status": "reserved",
        "ours": name.startswith("hotspare_"),
        **changes,
    }


def standby(**changes: Any) -> dict[str, Any]:
    return {
        "role": "standby",
        "reason": None,
        "data": "cluster",
        "upstream": {"conninfo": UPSTREAM.conninfo(), "slot": UPSTREAM.slot},
        "standby_signal": True,
        "slots": [],
        "recovery": "streaming",
        "replication": [],
        "lsn": {"replay": "0/5"},
        "lag": {"bytes": 1, "replay_bytes": 2},
        "wal_receiver": {
            "status": "streaming",
            "sender_host": "a",
            "sender_port": 5432,
            "slot_name": "hotspare_b",
            "application_name": "b",
            "received_tli": 2,
        },
        **changes,
    }


def planned(state: dict[str, Any], wanted: Desired, files_differ: bool = False) -> Plan:
    return plan(state, wanted, prefix="hotspare_", files_differ=files_differ)


# --- role and upstream


def test_nothing_desired_changes_nothing():
    found = planned(standby(), Desired())
    assert not found.changed and not found.refusals and found.before == found.after == {}


@pytest.mark.parametrize("role", ["primary", "stopped", "absent", "unknown"])
def test_another_role_is_refused_before_anything_else(role: str):
    found = planned(standby(role=role, reason="why"), Desired(role="standby", upstream=UPSTREAM, slots=["x"]), True)
    assert len(found.refusals) == 1 and "why" in found.refusals[0] and not found.changed


def test_an_upstream_that_is_in_force():
    found = planned(standby(), Desired(upstream=UPSTREAM))
    assert not found.changed and found.before == found.after


@pytest.mark.parametrize(
    ("changes", "files_differ"),
    [
        ({}, True),
        ({"upstream": None}, False),
        ({"upstream": {"conninfo": "host=z", "slot": "hotspare_b"}}, False),
        ({"upstream": {"conninfo": UPSTREAM.conninfo(), "slot": None}}, False),
    ],
)
def test_an_upstream_that_is_not(changes: dict[str, Any], files_differ: bool):
    found = planned(standby(**changes), Desired(upstream=UPSTREAM), files_differ)
    assert found.write_upstream and not found.write_signal and found.before != found.after


def test_a_stopped_server_gets_the_signal_with_its_upstream():
    found = planned(standby(role="stopped", standby_signal=False), Desired(upstream=UPSTREAM))
    assert found.write_signal and not found.write_upstream and found.changed
    assert (found.before["standby_signal"], found.after["standby_signal"]) == (False, True)
    assert not planned(standby(role="stopped"), Desired(upstream=UPSTREAM)).changed


@pytest.mark.parametrize("role", ["primary", "absent", "unknown"])
def test_who_cannot_be_given_an_upstream(role: str):
    assert planned(standby(role=role), Desired(upstream=UPSTREAM), True).refusals


# --- slots


def test_slots():
    there = [slot("hotspare_keep"), slot("hotspare_old"), slot("other"), slot("hotspare_lost", wal_status="lost")]
    there += [slot("hotspare_empty", restart_lsn=None), slot("hotspare_logical", type="logical", ours=False)]
    wanted = ["hotspare_keep", "hotspare_new", "hotspare_lost", "hotspare_empty"]
    create, drop, refused = plan_slots(there, wanted, "hotspare_")
    assert create == ["hotspare_new", "hotspare_lost", "hotspare_empty"]
    assert drop == ["hotspare_lost", "hotspare_empty", "hotspare_old"]
    assert refused == []


@pytest.mark.parametrize(
    ("there", "wanted", "message"),
    [
        (None, [], "not known"),
        ([], ["other"], "does not begin"),
        ([], ["hotspare_A"], "no valid name"),
        ([], ["hotspare_" + "x" * 55], "no valid name"),
        ([slot("hotspare_b", type="logical", ours=False)], ["hotspare_b"], "logical"),
        ([slot("hotspare_b", active=True, active_pid=9)], [], "process 9"),
    ],
)
def test_slots_that_are_refused(there, wanted: list[str], message: str):
    create, drop, refused = plan_slots(there, wanted, "hotspare_")
    assert len(refused) == 1 and message in refused[0] and not create and not drop


NAMES = st.sampled_from(["hotspare_a", "hotspare_b", "hotspare_c", "other", "hotspare_-"])
SLOTS = st.builds(
    slot,
    NAMES,
    active=st.booleans(),
    wal_status=st.sampled_from(["reserved", "lost", None]),
    restart_lsn=st.sampled_from(["0/1", None]),
    type=st.sampled_from(["physical", "logical"]),
).map(lambda entry: {**entry, "ours": entry["ours"] and entry["type"] == "physical"})


@given(st.lists(SLOTS, unique_by=lambda entry: entry["name"]), st.lists(NAMES))
def test_no_plan_drops_a_slot_that_is_in_use_or_not_ours(there, wanted):
    create, drop, _refused = plan_slots(there, wanted, "hotspare_")
    by_name = {entry["name"]: entry for entry in there}
    assert all(by_name[name]["ours"] and not by_name[name]["active"] for name in drop)
    assert all(name.startswith("hotspare_") and (name not in by_name or name in drop) for name in create)
    assert len(set(create)) == len(create)


# --- waiting


def test_all_holds():
    wait = WaitFor(streaming=True, replayed_lsn="0/5", lag_bytes=3, received_timeline=2)
    assert unmet(standby(), wait, UPSTREAM) == []


@pytest.mark.parametrize(
    ("wait", "changes"),
    [
        (WaitFor(streaming=True), {"recovery": "archive"}),
        (WaitFor(streaming=True), {"recovery": None, "wal_receiver": None}),
        (WaitFor(replayed_lsn="0/6"), {}),
        (WaitFor(replayed_lsn="0/0"), {"lsn": {"replay": None}}),
        (WaitFor(lag_bytes=2), {}),
        (WaitFor(lag_bytes=99), {"lag": {"bytes": None, "replay_bytes": 0}}),
        (WaitFor(lag_bytes=99), {"lag": {"bytes": 0, "replay_bytes": None}}),
        (WaitFor(received_timeline=3), {}),
        (WaitFor(received_timeline=2), {"wal_receiver": None}),
        (WaitFor(streaming_to=["c"]), {}),
        (WaitFor(streaming_to=["c"]), {"replication": None}),
        (WaitFor(streaming_to=["c"]), {"replication": [{"application_name": "c", "state": "catchup"}]}),
    ],
)
def test_what_does_not_hold_or_is_not_known(wait: WaitFor, changes: dict[str, Any]):
    assert len(unmet(standby(**changes), wait)) == 1


@pytest.mark.parametrize(
    "changes", [{"sender_host": "z"}, {"sender_port": 1}, {"slot_name": None}, {"application_name": None}]
)
def test_an_old_stream_does_not_count(changes: dict[str, Any]):
    state = standby(wal_receiver={**standby()["wal_receiver"], **changes})
    assert unmet(state, WaitFor(streaming=True)) == []
    assert len(unmet(state, WaitFor(streaming=True), UPSTREAM)) == 1


def test_a_primary_tells_of_its_standbys():
    row = {"application_name": "c", "state": "streaming", "replay_lsn": "0/5", "lag_bytes": {"replay": 7}}
    state = standby(role="primary", replication=[row], lsn={"replay": None}, lag={"bytes": None, "replay_bytes": None})
    assert unmet(state, WaitFor(streaming_to=["c"], replayed_lsn="0/5", lag_bytes=7)) == []
    assert len(unmet(state, WaitFor(streaming_to=["c"], replayed_lsn="0/6", lag_bytes=6))) == 2
    row["lag_bytes"]["replay"] = None
    assert len(unmet(state, WaitFor(streaming_to=["c"], lag_bytes=7))) == 1


@pytest.mark.parametrize(
    ("role", "wait", "refused"),
    [
        ("stopped", WaitFor(streaming=True), True),
        ("absent", WaitFor(), True),
        ("primary", WaitFor(streaming=True), True),
        ("primary", WaitFor(received_timeline=1), True),
        ("primary", WaitFor(streaming_to=["c"]), False),
        ("unknown", WaitFor(streaming=True), False),  # it may be starting
    ],
)
def test_waiting_for_what_cannot_come_is_refused(role: str, wait: WaitFor, refused: bool):
    assert bool(planned(standby(role=role), Desired(wait_for=wait)).refusals) is refused


# --- options, and doing it


def params(**changes: Any) -> dict[str, Any]:
    return {"role": None, "upstream": None, "slots": None, "wait_for": None, **changes}


def test_options():
    upstream = {"host": "a", "port": 1, "slot": "s", "parameters": {"sslmode": "require", "keepalives": 1}}
    found = desired_from_params(params(upstream=upstream))
    assert found.upstream == Upstream("a", 1, slot="s", extra={"sslmode": "require", "keepalives": "1"})
    assert desired_from_params(params()) == Desired()
    for name in ("password", "host"):
        with pytest.raises(HotspareError, match=name):
            desired_from_params(params(upstream={**upstream, "parameters": {name: "x"}}))
    with pytest.raises(HotspareError, match="replayed_lsn"):
        desired_from_params(params(wait_for={"replayed_lsn": "x"}))


@pytest.fixture
def node(monkeypatch):
    """A node whose effects are only noted."""
    done: list[str] = []
    monkeypatch.setattr(desired, "read_state", lambda instance, peers=None: standby())
    monkeypatch.setattr(desired, "upstream_differs", lambda *args: True)
    for name in ("_write_upstream", "change_slots"):
        monkeypatch.setattr(desired, name, lambda *args, name=name, **kwargs: done.append(name))
    return Instance("b", "/pg", "/bin"), done


def test_check_mode_decides_alike_and_does_nothing(node):
    instance, done = node
    wanted = Desired(upstream=UPSTREAM, slots=["hotspare_x"], wait_for=WaitFor(lag_bytes=0))
    checked = ensure(instance, wanted, check_mode=True)
    assert checked["changed"] and done == [] and len(checked["unmet"]) == 1
    real = ensure(instance, Desired(upstream=UPSTREAM, slots=["hotspare_x"]))
    assert real["changed"] and real["diff"] == checked["diff"] and done == ["_write_upstream", "change_slots"]


def test_one_refusal_stops_all(node):
    instance, done = node
    with pytest.raises(HotspareError, match="nothing was changed") as caught:
        ensure(instance, Desired(upstream=UPSTREAM, slots=["x"]))
    assert done == [] and caught.value.facts["node"]["role"] == "standby"


def test_a_wait_is_bounded_and_carries_the_last_state(node):
    instance, _done = node
    with pytest.raises(HotspareError, match="within 0 s") as caught:
        ensure(instance, Desired(wait_for=WaitFor(lag_bytes=0)), timeout=0)
    assert caught.value.facts["node"]["lag"]["bytes"] == 1
    assert caught.value.facts["unmet"] == ["it is 3 bytes behind, at most 0 are allowed"]


def test_a_failure_carries_the_state(node, monkeypatch):
    instance, _done = node

    def fail(*args):
        raise HotspareError("cannot create slot hotspare_x")

    monkeypatch.setattr(desired, "change_slots", fail)
    with pytest.raises(HotspareError, match="hotspare_x") as caught:
        ensure(instance, Desired(slots=["hotspare_x"]))
    assert caught.value.facts["node"]["role"] == "standby"
