# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The desired state of one node's replication: one plan (pure) for check and real mode, and what carries it out."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .conninfo import Upstream, upstream_from_params
from .peers import Peer
from .replication import read_state
from .server import (
    Instance,
    assert_upstream,
    connect,
    reload,
    set_standby_signal,
    upstream_differs,
    write_upstream,
)
from .shell import HotspareError
from .stale_slots import blocking_slots, drop_slots
from .wal import parse_lsn

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class WaitFor:
    """What is to become true: positions as text, `lag_bytes` the most that is allowed."""

    streaming: bool = False
    streaming_to: Sequence[str] = ()
    replayed_lsn: str | None = None
    lag_bytes: int | None = None
    received_timeline: int | None = None

    @property
    def of_standby(self) -> bool:
        """Whether something is asked that only a standby can have."""
        return self.streaming or self.received_timeline is not None


@dataclass(frozen=True)
class Desired:
    """None (or the default) = leave it as it is."""

    role: str | None = None
    upstream: Upstream | None = None
    slots: Sequence[str] | None = None
    wait_for: WaitFor | None = None


def desired_from_params(params: Mapping[str, Any]) -> Desired:
    """From the options of the module pg_replication_state; HotspareError for what cannot be meant."""
    upstream, wait_for = params["upstream"], params["wait_for"]
    if upstream is not None:
        upstream = upstream_from_params(upstream)
    if wait_for is not None:
        wait_for = WaitFor(**wait_for)
        try:
            parse_lsn(wait_for.replayed_lsn or "0/0")
        except ValueError as error:
            raise HotspareError(f"wait_for.replayed_lsn: {error}") from error
    return Desired(params["role"], upstream, params["slots"], wait_for)


@dataclass(frozen=True)
class Plan:
    """What will be done, or why nothing may be: with a refusal nothing is touched at all."""

    refusals: list[str]
    write_upstream: bool = False
    write_signal: bool = False
    create: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)  # before creating: a lost slot is dropped and created again
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return self.write_upstream or self.write_signal or bool(self.create or self.drop)


def plan(state: Mapping[str, Any], desired: Desired, *, prefix: str, files_differ: bool) -> Plan:
    """Compare a node's record with what is desired (pure). `files_differ`: our file has not got this upstream."""
    if desired.role is not None and state["role"] != desired.role:
        why = f": {state['reason']}" if state["reason"] else ""
        return Plan([f"it is {_called(state['role'])}, not {_called(desired.role)}{why}"])
    refusals: list[str] = []
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    write = signal = False
    if desired.upstream is not None:
        refusals.extend(_upstream_refusals(state))
        wanted = {"conninfo": desired.upstream.conninfo(), "slot": desired.upstream.slot}
        found = {name: (state["upstream"] or {}).get(name) for name in wanted}
        write = files_differ or found != wanted
        signal = state["role"] == "stopped" and not state["standby_signal"]
        before.update(upstream={**found, "in_our_file": not files_differ}, standby_signal=state["standby_signal"])
        after.update(upstream={**wanted, "in_our_file": True}, standby_signal=signal or state["standby_signal"])
    create: list[str] = []
    drop: list[str] = []
    if desired.slots is not None:
        create, drop, refused = plan_slots(state["slots"], desired.slots, prefix)
        refusals.extend(refused)
        ours = [slot["name"] for slot in state["slots"] or () if slot["ours"]]
        before["slots"] = sorted(ours)
        after["slots"] = sorted(set(ours) - set(drop) | set(create))
    if desired.wait_for is not None:
        refusals.extend(_wait_refusals(state, desired.wait_for))
    return Plan(refusals, write, signal, create, drop, before, after)


def _called(role: str) -> str:
    return {"primary": "a primary", "standby": "a standby"}.get(role, role)


def _upstream_refusals(state: Mapping[str, Any]) -> list[str]:
    if state["role"] == "primary":
        return ["it is a running primary, which follows nobody: stop it first if it is to become a standby"]
    if state["role"] in ("standby", "stopped"):
        return []
    why = f": {state['reason']}" if state["reason"] else ""
    return [f"it is {state['role']} and cannot be given an upstream{why}"]


def _wait_refusals(state: Mapping[str, Any], wait_for: WaitFor) -> list[str]:
    if state["role"] in ("stopped", "absent"):
        return [f"it is {state['role']}, there is nothing to wait for: start it first"]
    if state["role"] == "primary" and wait_for.of_standby:
        return ["it is a primary and receives no stream: a primary can wait for streaming_to"]
    return []


def plan_slots(
    slots: Sequence[Mapping[str, Any]] | None, wanted: Sequence[str], prefix: str
) -> tuple[list[str], list[str], list[str]]:
    """Which slots to create and which to drop so that exactly `wanted` of ours exist, and why not (pure).

    Slots whose name lacks the prefix, and logical ones, are never touched. One in use is never dropped. One that has
    lost its WAL, or never kept any, is dropped and created again, since it protects nothing.
    """
    if slots is None:
        return [], [], ["its slots are not known, since no running server answers"]
    create: list[str] = []
    drop: list[str] = []
    refusals: list[str] = []
    found = {slot["name"]: slot for slot in slots}
    for name in wanted:
        slot = found.get(name)
        if not name.startswith(prefix):
            refusals.append(f"slot {name} does not begin with {prefix}, so it is not one of ours")
        elif not re.fullmatch(r"[a-z0-9_]{1,63}", name):
            refusals.append(f"slot {name} is no valid name: 1 to 63 lower case letters, digits and underscores")
        elif slot is None:
            create.append(name)
        elif not slot["ours"]:
            refusals.append(f"slot {name} is there and is a {slot['type']} one, which is not ours: choose another name")
        elif not slot["active"] and (slot["wal_status"] == "lost" or slot["restart_lsn"] is None):
            drop.append(name)
            create.append(name)
    for name, slot in found.items():
        if not slot["ours"] or name in wanted:
            continue
        if slot["active"]:
            refusals.append(f"slot {name} is used by process {slot['active_pid']}: stop what uses it, or keep the slot")
        else:
            drop.append(name)
    return list(dict.fromkeys(create)), drop, refusals


def ensure(
    instance: Instance,
    desired: Desired,
    *,
    timeout: float = 60,
    check_mode: bool = False,
    peers: Sequence[Peer] | None = None,
) -> dict[str, Any]:
    """Bring one node to the desired state; returns what the module pg_replication_state does.

    `timeout` (s) bounds each wait. `peers` are asked what they are, once. Check mode makes the same plan and does not
    wait. HotspareError carries `node`.
    """
    state = read_state(instance, peers=peers)
    answers = state.get("peers")
    upstream = desired.upstream
    files_differ = upstream is not None and state["data"] == "cluster" and upstream_differs(instance, upstream)
    todo = plan(state, desired, prefix=instance.slot_prefix, files_differ=files_differ)
    if todo.refusals:
        raise HotspareError(f"nothing was changed on {instance}: {'; '.join(todo.refusals)}", node=state)
    blocking: list[dict[str, str | None]] = []
    if desired.slots is not None and upstream is not None and state["role"] == "standby":
        # Of its time as the primary: slot sync goes over none of the same name.
        blocking = blocking_slots(state["slots"], upstream, instance.account)
    if not check_mode and (todo.changed or blocking):
        try:
            if upstream is not None and (todo.write_upstream or todo.write_signal):
                _write_upstream(instance, upstream, running=state["role"] == "standby", timeout=timeout)
            if todo.create or todo.drop:
                change_slots(instance, todo.create, todo.drop)
            drop_slots(instance, blocking)
        except HotspareError as error:
            error.facts.setdefault("node", read_state(instance))
            raise
        state = read_state(instance)
    if desired.wait_for is not None and not check_mode:
        state = wait_until(instance, desired.wait_for, upstream=upstream, timeout=timeout, state=state)
    state["peers"] = answers
    result = {
        "changed": todo.changed or bool(blocking),
        "node": state,
        "diff": {"before": todo.before, "after": todo.after},
    }
    if desired.wait_for is not None:
        result["unmet"] = unmet(state, desired.wait_for, upstream)
    return result


def _write_upstream(instance: Instance, upstream: Upstream, *, running: bool, timeout: float) -> None:
    write_upstream(instance, upstream)
    if not running:
        set_standby_signal(instance, True)
        assert_upstream(instance, upstream)
        return
    # primary_conninfo needs no restart (13+): the receiver ends by itself and connects to the new upstream.
    reload(instance)
    wanted = (upstream.conninfo(), upstream.slot)
    deadline = time.monotonic() + timeout
    while True:
        state = read_state(instance)
        found = state["upstream"] or {}
        if (found.get("conninfo"), found.get("slot")) == wanted:
            return
        if time.monotonic() > deadline:
            source = ((state["settings"] or {}).get("primary_conninfo") or {}).get("sourcefile") or "nowhere"
            raise HotspareError(
                f"{instance} has not taken its upstream within {timeout:g} s after {instance.upstream_file} was "
                f"written and the server reloaded: its primary_conninfo comes from {source}, see `problems`",
                node=state,
            )
        time.sleep(POLL_SECONDS)


def change_slots(instance: Instance, create: Sequence[str], drop: Sequence[str]) -> None:
    """Drop, then create physical slots that keep WAL from now on, before anybody has used them. HotspareError."""
    import psycopg2

    doing = "connect"
    try:
        with contextlib.closing(connect(instance)) as connection, connection.cursor() as cursor:
            for name in drop:
                doing = f"drop slot {name}"
                cursor.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (name,))
            for name in create:
                doing = f"create slot {name}"
                cursor.execute("SELECT pg_catalog.pg_create_physical_replication_slot(%s, true)", (name,))
    except psycopg2.Error as error:
        raise HotspareError(f"cannot {doing} on {instance}: {' '.join(str(error).split())}") from error


def wait_until(
    instance: Instance,
    wait_for: WaitFor,
    *,
    upstream: Upstream | None = None,
    timeout: float = 60,
    state: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Read the node until all of `wait_for` holds; its record, or after `timeout` s a HotspareError that carries it.

    `upstream`: streaming counts only from there, since after a change the old stream goes on for a moment.
    """
    began = time.monotonic()
    state = state or read_state(instance)
    while True:
        left = unmet(state, wait_for, upstream)
        if not left:
            return state
        if time.monotonic() - began > timeout:
            raise HotspareError(
                f"{instance} did not get there within {timeout:g} s: {'; '.join(left)}; see `node` for its last state",
                node=state,
                unmet=left,
            )
        time.sleep(POLL_SECONDS)
        state = read_state(instance)


def unmet(state: Mapping[str, Any], wait_for: WaitFor, upstream: Upstream | None = None) -> list[str]:
    """What of `wait_for` does not hold yet, one sentence each (pure). What is not known does not hold."""
    left = []
    senders = {row["application_name"]: row for row in state["replication"] or () if row["state"] == "streaming"}
    if wait_for.streaming:
        left.extend(_not_streaming(state, upstream))
    for name in wait_for.streaming_to:
        if name not in senders:
            left.append(f"it does not stream to {name}")
    if wait_for.received_timeline is not None:
        received = (state["wal_receiver"] or {}).get("received_tli")
        if received != wait_for.received_timeline:
            left.append(f"it receives timeline {_shown(received)}, not {wait_for.received_timeline}")
    # A standby tells its own position. A primary tells those of the standbys it was asked about.
    places = [("it", state["lsn"]["replay"], _own_lag(state))]
    if wait_for.streaming_to:
        rows = [(name, senders.get(name)) for name in wait_for.streaming_to]
        places = [(n, row["replay_lsn"], row["lag_bytes"]["replay"]) if row else (n, None, None) for n, row in rows]
    for who, replayed, lag in places:
        wanted = wait_for.replayed_lsn
        if wanted is not None and (replayed is None or parse_lsn(replayed) < parse_lsn(wanted)):
            left.append(f"{who} has replayed up to {_shown(replayed)}, not yet {wanted}")
        if wait_for.lag_bytes is not None and (lag is None or lag > wait_for.lag_bytes):
            left.append(f"{who} is {_shown(lag)} bytes behind, at most {wait_for.lag_bytes} are allowed")
    return left


def _own_lag(state: Mapping[str, Any]) -> int | None:
    """From what the primary last told to what is replayed here."""
    parts = (state["lag"]["bytes"], state["lag"]["replay_bytes"])
    return None if None in parts else sum(parts)


def _not_streaming(state: Mapping[str, Any], upstream: Upstream | None) -> list[str]:
    receiver = state["wal_receiver"]
    if state["recovery"] != "streaming" or receiver is None:
        return [f"it does not stream ({state['role']}, WAL receiver {receiver['status'] if receiver else 'absent'})"]
    if upstream is None:
        return []
    found = (receiver["sender_host"], receiver["sender_port"], receiver["slot_name"])
    wanted = (upstream.host, upstream.port, upstream.slot)
    names = (receiver["application_name"], upstream.application_name)
    if found != wanted or (names[1] is not None and names[0] != names[1]):
        return [f"it streams from {found[0]}:{found[1]} by slot {found[2]} as {names[0]}, not as its upstream says"]
    return []


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)
