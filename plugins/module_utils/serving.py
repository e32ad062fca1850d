# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pg_server does: bring one server to a state, in the role that is meant."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .asked import note_asked
from .conninfo import Upstream, upstream_from_params
from .demotion import give_up, prepare
from .fencing import fence
from .lock import AtWork, working
from .server import (
    CLEAN_STATES,
    POLL_SECONDS,
    Instance,
    await_connections,
    checkpoint_primary,
    data_directory_kind,
    effective_setting,
    has_signal,
    in_recovery,
    is_stopping,
    process_id,
    processes,
    read_control,
    reload,
    require_configuration,
    set_standby_signal,
    start,
    summary,
    unit_state,
)
from .shell import HotspareError
from .stopping import not_archived, stop

PRIMARY_STATES = ("shut down", "shutting down", "in production", "in crash recovery")
SHORT_CHECKPOINT = 0.2  # seconds; a stop makes one more, and the clients wait for it


def role_refusal(
    role: str | None,
    *,
    standby_signal: bool,
    recovery_signal: bool,
    backup_label: bool,
    has_upstream: bool,
    control_state: str,
) -> str | None:
    """Why a stopped server must not be started as `role` (primary, standby, None = a standby if it is one), or None.

    A node started as a primary beside another one writes the same timeline, with the same WAL file names: the worst
    that can happen to a cluster. So a primary is started only if it was one last, and a standby only as a standby.
    """
    if recovery_signal and not standby_signal:
        return (
            "recovery.signal is there, so it would recover to some point and become a primary of its own: finish or "
            "remove that recovery by hand"
        )
    if role == "standby" and not standby_signal:
        return "it has no standby.signal and would be a primary: give it its `upstream` (pg_replication_state) first"
    if role == "standby" and not has_upstream:
        return "it has no primary_conninfo and would follow nobody: give it its `upstream` (pg_replication_state) first"
    if role == "standby" or (role is None and standby_signal):
        return None
    if role is None:
        return "it would be a primary: say `role: primary` if no other node is"
    if backup_label:
        return (
            "backup_label shows a copy made by a base backup, which is a second primary when started as one: make it a "
            "standby (pg_rebuild), or remove backup_label if this is the primary itself and crashed during a backup"
        )
    # A primary that was prepared for a cutover has standby.signal too: what it last was pg_control says.
    if control_state not in PRIMARY_STATES:
        return f"pg_control says '{control_state}': it last was a standby, and only pg_promote makes a primary of one"
    return None


@dataclass(frozen=True)
class Wanted:
    """What pg_server is asked for: its options of the same names. Times in seconds."""

    state: str
    role: str | None = None
    upstream: Upstream | None = None
    mode: str = "fast"
    immediate_after: int | None = None
    checkpoint: bool = False
    timeout: float = 60


def wanted_from_params(params: Mapping[str, Any]) -> Wanted:
    """From the options of the module pg_server; HotspareError for what cannot be meant."""
    values = {field.name: params[field.name] for field in fields(Wanted)}
    if values["upstream"] is not None:
        values["upstream"] = upstream_from_params(values["upstream"])
        if values["state"] not in ("running", "stopped") or values["role"] == "standby":
            raise HotspareError(
                "`upstream` prepares a primary and goes with `state: running` or `state: stopped`: a standby is given "
                "its upstream by pg_replication_state"
            )
    return Wanted(**values)


def bring_to(instance: Instance, wanted: Wanted, *, check_mode: bool = False) -> dict[str, Any]:
    """Make the server as wanted, or refuse and change nothing; what pg_server returns.

    One at a time, so that what is decided on is still so when it is done; whoever else works on the server is waited
    for, for at most `timeout`. In check mode everything is checked and nothing done. HotspareError.
    """
    if wanted.state == "fenced":
        return _fence(instance, wanted, check_mode)
    with _working(instance, wanted, wanted.timeout, check_mode):
        return _bring_to(instance, wanted, check_mode)


def _working(
    instance: Instance, wanted: Wanted, timeout: float, check_mode: bool
) -> contextlib.AbstractContextManager[None]:
    what = f"pg_server state={wanted.state}"
    return working(instance.data_directory, instance.name, what, timeout, check_mode=check_mode)


def _fence(instance: Instance, wanted: Wanted, check_mode: bool) -> dict[str, Any]:
    """A fence waits for nobody. But it holds only once whoever works there has ended, who may start the server."""

    def act() -> dict[str, Any]:
        return fence(instance, timeout=wanted.timeout, check_mode=check_mode)

    if check_mode:
        return act()
    with contextlib.suppress(AtWork), _working(instance, wanted, 0, check_mode):
        return act()
    first = act()
    with _working(instance, wanted, wanted.timeout, check_mode):
        then = act()
    steps = first["fence"]["steps"] + then["fence"]["steps"]
    return {
        **then,
        "changed": first["changed"] or then["changed"],
        "fence": {**then["fence"], "steps": steps},
        "seconds": round(first["seconds"] + then["seconds"], 3),
    }


def _bring_to(instance: Instance, wanted: Wanted, check_mode: bool) -> dict[str, Any]:
    began = time.monotonic()
    state = wanted.state
    kind = data_directory_kind(instance)
    if kind != "cluster":
        if state == "reloaded":  # a node to be, whose configuration was written before its data
            node = {"name": instance.name, "data_directory": instance.data_directory, "running": False}
            return {"changed": False, "node": node, "shutdown": None, "seconds": 0.0}
        raise HotspareError(
            f"{instance} holds no PostgreSQL cluster but is {kind}: mend `data_directory`, or seed it with pg_rebuild"
        )
    pid = process_id(instance)
    # One that has shut down and only waits for its archiver is stopped, for `stop` as for us.
    running = pid is not None and not (is_stopping(instance) and read_control(instance).state in CLEAN_STATES)
    if state == "reloaded":
        if running and not check_mode:
            reload(instance)
        node = summary(instance)
        return {"changed": running, "node": node, "shutdown": None, "seconds": round(time.monotonic() - began, 3)}
    if state == "running" and not running:
        raise HotspareError(f"PostgreSQL of {instance} does not run: start it with `state: started`")
    if pid is None:
        orphans = processes(instance)
        if orphans:
            raise HotspareError(
                f"the postmaster of {instance} is gone but its processes {orphans} are there and may still commit: "
                "end them with `state: fenced`, then run this again"
            )
    starts = state == "restarted" or (state == "started" and not running)
    stops = running and state in ("stopped", "restarted")
    if state == "stopped" and pid is None and unit_state(instance) == "activating":
        stops = True  # crashed, and systemd is about to start it again
    if starts:
        require_configuration(instance)
        _require_start_role(instance, wanted.role, wanted.mode if running else None)
    elif running and wanted.upstream is not None:
        _require_running_role(instance, "primary")
    elif running and wanted.role is not None and state != "stopped":
        _require_running_role(instance, wanted.role)

    marked = _mark(instance, wanted, running and not stops and not starts, check_mode)
    shutdown, accepting = None, None
    checkpoints: list[float] = []
    if running and wanted.checkpoint and not check_mode:
        checkpoints = checkpoint_primary(instance, wanted.timeout, SHORT_CHECKPOINT if stops else None)
    if stops and not check_mode:
        stopped = stop(instance, wanted.mode, wanted.timeout, wanted.immediate_after)
        shutdown = _shutdown(instance, {**stopped, "checkpoints": checkpoints})
    elif state == "stopped" and not stops:
        shutdown = _shutdown(instance, {})
    if starts and not check_mode:
        _take_role(instance, wanted.role, time.monotonic() + wanted.timeout)
        accepting = start(instance, wanted.timeout)["accepting"]
    elif state == "started" and not check_mode:
        # Only waited for: if somebody stops it just now, a start would be one whose role nobody looked at.
        accepting = await_connections(instance, time.monotonic(), wanted.timeout)["accepting"]
    return {
        "changed": starts or stops or marked,
        "node": {**summary(instance), "accepting": accepting},
        "shutdown": shutdown,
        "seconds": round(time.monotonic() - began, 3),
    }


def _mark(instance: Instance, wanted: Wanted, stays: bool, check_mode: bool) -> bool:
    """Prepare a primary to be a standby from its next start on, or undo that on one that `stays`; True if changed."""
    if wanted.upstream is not None:
        return prepare(instance, wanted.upstream, check_mode=check_mode)
    if not (stays and wanted.role == "primary" and has_signal(instance, "standby.signal")):
        return False
    if not check_mode:
        give_up(instance)
    return True


def _shutdown(instance: Instance, stopped: Mapping[str, Any]) -> dict[str, Any]:
    control = stopped.get("control") or read_control(instance)
    known = control.to_dict()
    return {
        "clean": control.state in CLEAN_STATES,
        **{name: known[name] for name in ("state", "checkpoint_lsn", "timeline")},
        "seconds": stopped.get("seconds", 0.0),
        "requested_at": stopped.get("requested_at"),
        "ended_at": stopped.get("ended_at"),
        "escalated": stopped.get("escalated", False),
        "checkpoints": stopped.get("checkpoints", []),
        "not_archived": not_archived(instance),
    }


def _require_running_role(instance: Instance, role: str) -> None:
    actual = "standby" if in_recovery(instance) else "primary"
    if actual != role:
        raise HotspareError(f"PostgreSQL of {instance} runs as a {actual}, not as a {role}: ask who is primary first")


def _require_start_role(instance: Instance, role: str | None, stop_mode: str | None) -> None:
    """Refuse a start (after a stop in `stop_mode`, when it runs) that would bring up the wrong role."""
    if stop_mode is None:
        state = read_control(instance).state
    else:
        actual = "standby" if in_recovery(instance) else "primary"
        coming = "standby" if has_signal(instance, "standby.signal") else "primary"
        if role is None and coming != actual:
            raise HotspareError(
                f"PostgreSQL of {instance} runs as a {actual} and would come up as a {coming}: say which `role` is "
                "meant"
            )
        role = role or actual
        after_fast = {"primary": "shut down", "standby": "shut down in recovery"}
        after_immediate = {"primary": "in production", "standby": "in archive recovery"}
        state = (after_immediate if stop_mode == "immediate" else after_fast)[actual]
    refusal = role_refusal(
        role,
        standby_signal=has_signal(instance, "standby.signal"),
        recovery_signal=has_signal(instance, "recovery.signal"),
        backup_label=has_signal(instance, "backup_label"),
        has_upstream=role != "standby" or effective_setting(instance, "primary_conninfo") != "",
        control_state=state,
    )
    if refusal:
        raise HotspareError(f"PostgreSQL of {instance} was not started: {refusal}")


def _take_role(instance: Instance, role: str | None, deadline: float) -> None:
    """Right before a start: once more on the real state, then make the signal file fit."""
    if role == "primary" and has_signal(instance, "standby.signal"):
        while process_id(instance) is not None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        _require_start_role(instance, role, None)
        set_standby_signal(instance, False)
    if role == "primary":
        note_asked(instance.data_directory)
