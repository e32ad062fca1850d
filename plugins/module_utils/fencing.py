# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fence one server: it takes no writes any more, whatever state it is in, and that was looked at, not hoped for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

from .server import (
    PROGRAM_SECONDS,
    Instance,
    data_directory_kind,
    has_signal,
    process_id,
    processes,
    summary,
    unit_state,
)
from .shell import HotspareError, run, write_durably
from .stopping import Child, children, send, tell_systemd

FAST_SECONDS = 2  # clients are gone in a tenth of it, the rest is for the checkpoint
IMMEDIATE_SECONDS = 1
POLL_SECONDS = 0.02


def fence(instance: Instance, *, timeout: float = 60, check_mode: bool = False) -> dict[str, Any]:
    """Mark it as a standby, end every process of it by ever harder means, and verify; what pg_server returns.

    Killing the postmaster alone is no fence: its backends go on committing for seconds. HotspareError with `fence`
    when it cannot be verified, or cannot be marked. `timeout`: seconds for what is left after the gentle means.
    """
    began = time.monotonic()
    kind = _kind(instance)
    marked = kind in ("absent", "empty", "foreign") or has_signal(instance, "standby.signal")
    unit, left = unit_state(instance), children(instance, None)
    steps: list[dict[str, Any]] = []
    trouble = "" if marked else "standby.signal is missing"
    changed = bool(trouble or unit is not None or left)
    if changed and not check_mode:
        if trouble:
            with _step(steps, "mark") as step:
                trouble = _mark(instance)
                step["detail"] = trouble or "standby.signal was written: no start makes it a primary"
        _end(instance, left, steps)
        with _step(steps, "kill") as step:
            step["detail"] = _kill(instance, time.monotonic() + timeout)
    with _step(steps, "verify") as step:
        verified, step["detail"] = _verify(instance)
    facts = {"fence": {"verified": verified and not trouble, "steps": steps}, "node": _node(instance, kind)}
    if not verified and not check_mode:
        raise HotspareError(
            f"{instance} is not fenced: {steps[-1]['detail']}; fence its machine (power it off), and promote nobody "
            "before that is done",
            **facts,
        )
    if trouble and not check_mode:
        raise HotspareError(
            f"{instance} takes no writes now, but its next start would make it a primary: {trouble}", **facts
        )
    return {"changed": changed, **facts, "shutdown": None, "seconds": round(time.monotonic() - began, 3)}


def _kind(instance: Instance) -> str:
    try:
        return data_directory_kind(instance)
    except HotspareError:  # a disk that fails is no reason to leave its processes alone
        return "unknown"


def _node(instance: Instance, kind: str) -> dict[str, Any]:
    if kind == "cluster":
        with contextlib.suppress(HotspareError):  # that the rest cannot be read does not undo the fence
            return {**summary(instance), "accepting": None}
    running = bool(processes(instance))
    return {"name": instance.name, "data_directory": instance.data_directory, "running": running}


def _mark(instance: Instance) -> str:
    """Write standby.signal; why it could not be, or nothing."""
    try:
        write_durably(instance.path("standby.signal"), "", account=instance.account)
    except HotspareError as error:
        return error.message
    return ""


def _end(instance: Instance, left: list[Child], steps: list[dict[str, Any]]) -> None:
    """By PostgreSQL's own means, as far as they can work: frozen processes hear nothing."""
    for mode, number, seconds in (
        ("fast", signal.SIGINT, FAST_SECONDS),
        ("immediate", signal.SIGQUIT, IMMEDIATE_SECONDS),
    ):
        postmaster = _postmaster(instance)
        if postmaster is None or any(child.frozen for child in left):
            return
        with _step(steps, mode) as step:
            send(instance, postmaster, number)
            deadline = time.monotonic() + seconds
            while processes(instance) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            left = children(instance, None)
            step["detail"] = f"process {postmaster} was told to end, {len(left)} processes are left"


def _postmaster(instance: Instance) -> int | None:
    try:
        return process_id(instance)
    except HotspareError:  # a damaged postmaster.pid: its processes are found without it
        return None


def _kill(instance: Instance, deadline: float) -> str:
    """SIGKILL to all that is left, until nothing is left and systemd has given up too; what was done."""
    killed = set(processes(instance))
    unit = unit_state(instance)
    if unit is not None and instance.service is not None:
        tell_systemd(instance)
        # The whole control group: also the program that systemd runs for a stop, which waits for the server. It has
        # none when it ended by itself just now.
        run(["systemctl", "kill", "--signal=KILL", instance.service], timeout=PROGRAM_SECONDS, check=False)
    while time.monotonic() < deadline:
        left = processes(instance)
        if not left and unit_state(instance) is None:
            break
        for pid in left:  # in the order of their age: a postmaster would replace those that were killed before it
            send(instance, pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(POLL_SECONDS)
    return f"{len(killed)} processes were killed" if killed else "nothing was left to kill"


def _verify(instance: Instance) -> tuple[bool, str]:
    left = processes(instance)
    if left:
        return False, f"its processes {left} are still there"
    unit = unit_state(instance)
    if unit is not None:
        return False, f"systemd says that {instance.service} is {unit}"
    path = os.path.join(instance.socket_directory, f".s.PGSQL.{instance.port}")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True, "it has no process, and connections are refused"
        except OSError as error:
            return False, f"whether somebody listens at {path} cannot be told: {error.strerror}"
    return False, f"it has no process, but somebody listens at {path}: mend `port` or `socket_directory`"


@contextlib.contextmanager
def _step(steps: list[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    began = time.monotonic()
    step: dict[str, Any] = {"name": name, "seconds": 0.0, "detail": ""}
    steps.append(step)
    try:
        yield step
    finally:
        step["seconds"] = round(time.monotonic() - began, 3)
