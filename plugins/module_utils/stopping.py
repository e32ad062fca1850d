# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop one server so that its clients wait as short as can be, and tell what it left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .server import (
    CLEAN_STATES,
    PROGRAM_SECONDS,
    Instance,
    is_stopping,
    process_id,
    processes,
    read_control,
    refuses,
    summary,
    unit_state,
    unreadable,
)
from .shell import HotspareError, as_account, run

POLL_SECONDS = 0.01
SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}  # PostgreSQL manual, 18.5 Shutting Down the Server
# A server that stops ends these last, when no client is left: it waits for a standby then, or for its disk.
LAST_TO_GO = re.compile(r"(?:^|: )(?:walsender|checkpointer|archiver|logger|stats collector|io worker)(?: |$)")
SEGMENT_READY = re.compile(r"([0-9A-F]{24})\.ready")


def stop(
    instance: Instance, mode: str = "fast", timeout: float = 60, immediate_after: float | None = None
) -> dict[str, Any]:
    """Stop the server; `mode` is fast or immediate (= a crash). Fine when it does not run.

    Returns `clean`, `seconds`, `requested_at` and `ended_at` (epoch seconds), `escalated`, `control` (ControlData) and
    `process_id`. Does not wait for the process to end, which an archiver may delay for long: the server has stopped
    once pg_control says so and connections are refused. `clean` says that pg_control ended in "shut down" or "shut
    down in recovery", not that a standby has everything. A fast stop that a frozen process holds for `immediate_after`
    seconds becomes an immediate one. HotspareError after `timeout` seconds.
    """
    unit = unit_state(instance)
    postmaster = process_id(instance)
    requested_at, began = time.clock_gettime(time.CLOCK_REALTIME), time.monotonic()
    if postmaster is not None:
        # Straight to the postmaster: what systemd runs for a stop costs the clients a third of a second.
        send(instance, postmaster, SIGNALS[mode])
    if unit not in (None, "activating"):
        tell_systemd(instance)
    content, control, escalated, patience = b"", None, False, immediate_after or 0
    while True:
        pid = process_id(instance)
        if pid is None and unit == "activating":
            # Not before: systemd ends a unit that is still activating by SIGTERM to every process of it, and the
            # walsenders would go without having sent the last record.
            tell_systemd(instance)
            unit = None
        latest = _pg_control(instance)  # after the process was looked for: without one this is final
        if control is None or latest != content:
            content, control = latest, read_control(instance)
        clean = control.state in CLEAN_STATES
        seconds = time.monotonic() - began
        # A unit that systemd is about to start again, after a crash, has to be given up by systemd too.
        gone = pid is None and (postmaster is not None or unit_state(instance) is None) and not processes(instance)
        if gone or (clean and is_stopping(instance) and refuses(instance)):
            ended_at = requested_at + seconds
            if clean:  # then it was the last that it wrote
                ended_at = min(ended_at, max(requested_at, os.stat(instance.path("global", "pg_control")).st_mtime))
            return {
                "clean": clean,
                "seconds": round(ended_at - requested_at, 3),
                "requested_at": round(requested_at, 3),
                "ended_at": round(ended_at, 3),
                "escalated": escalated,
                "control": control,
                "process_id": pid,
            }
        if seconds > timeout:
            raise HotspareError(
                f"PostgreSQL of {instance} did not stop within {timeout:g} seconds: process {pid} is there and "
                f"pg_control says '{control.state}'; see its log for what holds it (a busy archiver, a frozen "
                "standby), then run this again",
                node=summary(instance),
            )
        if immediate_after is not None and not (escalated or clean) and pid is not None and seconds > patience:
            holding = children(instance, pid)
            if waits_for_standbys(holding):
                patience = seconds + immediate_after  # once they are given up, the server has its own work to do
            else:
                escalated = True
                send(instance, pid, SIGNALS["immediate"])
                for child in holding:
                    if child.frozen:  # PostgreSQL would wait five more seconds before it does the same
                        send(instance, child.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def tell_systemd(instance: Instance) -> None:
    """Have systemd stop the unit too, or it might start the server again; not waited for."""
    if instance.service is not None:
        run(["systemctl", "stop", "--no-block", instance.service], timeout=PROGRAM_SECONDS)


def send(instance: Instance, pid: int, number: signal.Signals) -> None:
    """Send a signal to a process of the server, as its account; one that has ended meanwhile is fine."""
    with as_account(instance.account), contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass(frozen=True)
class Child:
    """A server process: what it shows in ps, and the state that the kernel says (T: stopped by a signal)."""

    pid: int
    title: str
    state: str

    @property
    def frozen(self) -> bool:
        return self.state in ("T", "t")


def children(instance: Instance, postmaster: int | None) -> list[Child]:
    """The processes of the server without its postmaster."""
    found = []
    for pid in processes(instance):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                state = file.read().rpartition(") ")[2][:1]
            if pid != postmaster:
                found.append(Child(pid, title, state))
    return found


def waits_for_standbys(found: Sequence[Child]) -> bool:
    """Whether a server that stops waits for standbys only (pure): wal_sender_timeout bounds that, and the stop stays
    a clean one. A process that the kernel has stopped never ends by itself."""
    return (
        any(re.search(r"(?:^|: )walsender ", child.title) for child in found)
        and all(LAST_TO_GO.search(child.title) for child in found)
        and not any(child.frozen for child in found)
    )


def not_archived(instance: Instance) -> list[str]:
    """The WAL segments that wait for the archiver (their `.ready` is there), oldest first."""
    try:
        names = os.listdir(instance.path("pg_wal", "archive_status"))
    except OSError as error:
        raise unreadable(instance.path("pg_wal", "archive_status"), error) from error
    return sorted(match.group(1) for match in map(SEGMENT_READY.fullmatch, names) if match)


def _pg_control(instance: Instance) -> bytes:
    """The file as it is: to see that it changed costs nothing, to run pg_controldata each time would."""
    path = instance.path("global", "pg_control")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from error
