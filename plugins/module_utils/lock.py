# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One operation on a cluster at a time: a lock file on each node that says who works on it, for what, and until when.

A lock lasts beyond the module that takes it, so it is a file and not a flock; a flock guards the look and the write.
It goes with a reboot. It is never broken because it is old: a run whose control node was cut off may still be at work,
so only the run that holds it, one that the control node knows to follow a dead one, or the operator by name takes it.

A run that dies may leave a task at work on a node. For that there is a second lock, a flock, which ends with the task:
`working`.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import multiprocessing
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, Optional

from .shell import HotspareError, remove_durably, write_durably

LOCK_DIRECTORY = "/run/lock"
MUTEX_SECONDS = 10  # others hold it for a millisecond
POLL_SECONDS = 0.01
WAIT_SECONDS = 0.1
WORK_SECONDS = 0.02
MAX_BYTES = 65536  # a lock has some hundred
HISTORY = re.compile(r"[0-9A-F]{8}\.history")


class AtWork(HotspareError):
    """Another process works on the node."""


# ---------------------------------------------------------------------------------------------------------------------
# Decided (pure)
# ---------------------------------------------------------------------------------------------------------------------


def obstacle(
    found: Mapping[str, Any], where: str, token: str, take_over: str, dead: Iterable[str] = ()
) -> Optional[str]:
    """Why the lock `found` (a record of read_lock) cannot be taken by the run `token`; None when it can.

    `dead`: tokens of runs whose process the control node knows to be gone. `take_over`: the owner whose lock the
    operator gives up.
    """
    if found["token"] == token or found["alive"] is False or found["token"] in set(dead):
        return None
    control = found["control"]
    held = f"{where} is locked by {found['owner']} since {found['since']} for {found['purpose']}"
    if found["alive"]:
        return f"{held}: process {control['pid']} on {control['host']} is at work; wait for it, or end it"
    if take_over and take_over == found["owner"]:
        return None
    left = found["expires_in"]
    until = f"it expires in {left:.0f} s" if left > 0 else f"it expired {-left:.0f} s ago"
    see = f"see whether process {control['pid']} on {control['host']} still runs"
    wrong = f" (take_over names {take_over}, who does not hold it)" if take_over else ""
    return f"{held}, {until}: {see}; if it does not, add -e take_over={found['owner']}{wrong}"


def taken_from(found: Mapping[str, Any], token: str, dead: Iterable[str] = ()) -> Optional[str]:
    """What to tell of another run's lock that may be taken; None when it is the run's own."""
    if found["token"] == token:
        return None
    gone = found["alive"] is False or found["token"] in set(dead)
    said = "was left behind by a run that is dead" if gone else "was given up by the operator"
    return f"the lock of {found['owner']} since {found['since']} for {found['purpose']} {said}"


# ---------------------------------------------------------------------------------------------------------------------
# Who runs (on the control node)
# ---------------------------------------------------------------------------------------------------------------------


def this_run(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Who works here, as the module cluster_lock wants it; the same for every task of the run.

    owner, token, control (host, pid, started, boot_id, namespace); from `seen`, what topology() returned: nodes, those
    that have a lock to take, and dead, the tokens of locks whose run this machine knows to be gone. Asked by a worker
    that the run forked, it is the run.
    """
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None and parent.pid is not None else os.getpid()
    host = socket.gethostname()
    control = {"host": host, "pid": pid, "started": _started(pid), **_machine()}
    return {
        "owner": f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{host}",
        "token": hashlib.sha256(json.dumps(control, sort_keys=True).encode()).hexdigest()[:16],
        "control": control,
        "nodes": sorted(name for name, state in seen["nodes"].items() if state.get("reachable") is not False),
        "dead": sorted({lock["token"] for lock in _locks(seen) if alive(lock["control"]) is False}),
    }


def _locks(seen: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [state["lock"] for state in seen["nodes"].values() if state.get("lock")]


def alive(control: Mapping[str, Any]) -> Optional[bool]:
    """Whether a run's process still runs; None unless this is the machine, since its boot, that it ran on."""
    if any(control.get(key) != value or value is None for key, value in _machine().items()):
        return None
    return control["started"] is not None and _started(control["pid"]) == control["started"]


def _machine() -> dict[str, Optional[str]]:
    """What tells this machine, since its boot, from all others; containers share a boot, but no process numbers."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return {"boot_id": file.read().strip(), "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:  # a control node that is not Linux
        return {"boot_id": None, "namespace": None}


def _started(pid: int) -> Optional[int]:
    """When a process began (ticks since the boot), since numbers are used again; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


# ---------------------------------------------------------------------------------------------------------------------
# The file (on the node)
# ---------------------------------------------------------------------------------------------------------------------


def read_lock(directory: str) -> Optional[dict[str, Any]]:
    """The lock of the node whose data directory this is, or None.

    owner, purpose, since (UTC), token, control, expires_in (s, negative when it is over), alive (None = not known from
    here), path. HotspareError when it is not known whether there is one.
    """
    path = _path(directory, "operation.json")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
            stored = json.loads(file.read(MAX_BYTES))
        control = stored["control"]
        until = stored["expires"] if stored["boot_id"] == _machine()["boot_id"] else _clock()
        return {
            **{key: str(stored[key]) for key in ("owner", "purpose", "since", "token")},
            "control": {key: control[key] for key in ("host", "pid", "started", "boot_id", "namespace")},
            "expires_in": round(until - _clock(), 1),
            "alive": alive(control),
            "path": path,
        }
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HotspareError(f"cannot read the lock {path}: {error.strerror}; run this as root") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HotspareError(
            f"the lock {path} is not one of ours ({type(error).__name__}): see who wrote it, and remove it", lock=path
        ) from error


def hold(
    directory: str,
    where: str,
    run: Mapping[str, Any],
    *,
    purpose: str,
    seconds: float,
    take_over: str = "",
    dead: Iterable[str] = (),
    wait: float = 0,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Take the lock of a node (`where`: its name) for the run (owner, token, control), for `seconds`.

    Returns changed, lock, and took_over (a sentence, or None). HotspareError says who has it, with the lock as a fact,
    when it was not given back within `wait` seconds. In check mode it is only looked at. Held by the same run it stays
    as it is.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            return _take(directory, where, run, purpose, seconds, take_over, dead, check_mode)
        except HotspareError as error:
            if "lock" not in error.facts or time.monotonic() >= deadline:
                raise
        time.sleep(WAIT_SECONDS)


def _take(
    directory: str,
    where: str,
    run: Mapping[str, Any],
    purpose: str,
    seconds: float,
    take_over: str,
    dead: Iterable[str],
    check_mode: bool,
) -> dict[str, Any]:
    with _looking(directory, check_mode):
        found = read_lock(directory)
        reason = obstacle(found, where, run["token"], take_over, dead) if found else None
        if found and reason:
            raise HotspareError(f"{reason}. Nothing was changed on {where}.", lock=found)
        told = taken_from(found, run["token"], dead) if found else None
        if found and told is None:
            return {"changed": False, "lock": found, "took_over": None}
        if not check_mode:
            stored = {
                "owner": run["owner"],
                "purpose": purpose,
                "since": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
                "token": run["token"],
                "control": dict(run["control"]),
                "expires": _clock() + seconds,
                "boot_id": _machine()["boot_id"],
            }
            write_durably(_path(directory, "operation.json"), json.dumps(stored) + "\n", mode=0o644)
            found = read_lock(directory)
        return {"changed": True, "lock": found, "took_over": told}


def release(directory: str, token: str, *, check_mode: bool = False) -> dict[str, Any]:
    """Give the lock back if the run `token` holds it; another run's is left alone. Returns changed and lock."""
    with _looking(directory, check_mode):
        found = read_lock(directory)
        ours = found is not None and found["token"] == token
        if ours and not check_mode:
            remove_durably(_path(directory, "operation.json"))
            found = None
        return {"changed": ours, "lock": found, "took_over": None}


def _path(directory: str, kind: str) -> str:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:16]
    return f"{LOCK_DIRECTORY}/hotspare-{digest}.{kind}"


def _clock() -> float:
    """Seconds since the boot, those in which the machine slept included; no clock that is set changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def _looking(directory: str, check_mode: bool) -> Iterator[None]:
    """Nobody else looks at the lock and writes it meanwhile; in check mode there is nothing to keep others from."""
    if check_mode:
        yield
        return
    path = _path(directory, "operation.lock")
    descriptor = _opened(path)
    try:
        deadline = time.monotonic() + MUTEX_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HotspareError(f"{path} is held for {MUTEX_SECONDS} s: see what holds it (fuser)") from None
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _opened(path: str) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        # O_CREAT only if it is missing: with it, Linux does not open another account's file in such a directory.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        return os.open(path, flags | os.O_CREAT, 0o600)
    except OSError as error:
        raise HotspareError(f"cannot take the lock {path}: {error.strerror}; run this as root") from error


# ---------------------------------------------------------------------------------------------------------------------
# One task at a time (on the node)
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def working(directory: str, where: str, what: str, timeout: float, *, check_mode: bool = False) -> Iterator[None]:
    """Nobody else changes the server of this data directory meanwhile, not even a task whose run is dead.

    `where`: the node's name. `what` is done, for whoever wants to work meanwhile. AtWork when another one does for
    longer than `timeout` seconds; in check mode that is only looked at. Not to be taken twice by one process.
    """
    path = _path(directory, "lock")
    if check_mode and not os.path.lexists(path):  # nobody ever worked here
        yield
        return
    descriptor = _opened(path)
    try:
        _wait_for(descriptor, path, directory, where, 0 if check_mode else timeout)
        if check_mode:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        else:
            since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} ({what}) since {since}\n".encode(), 0)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing it is not enough while a process that was forked has it open
        os.close(descriptor)


def _wait_for(descriptor: int, path: str, directory: str, where: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    waited, token = False, None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not waited:
                waited, token = True, _token(directory)
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "somebody"
                raise AtWork(
                    f"{where} is worked on by {holder}, perhaps the task of a run that died: wait until that process "
                    f"has ended, or end it on {where}, then run this again. Nothing was changed by this task.",
                    lock=path,
                ) from None
        time.sleep(WORK_SECONDS)
    # Who waits may be such a task as well.
    if waited and token != _token(directory):
        raise AtWork(
            f"another run took over the cluster while this task waited on {where}, so nothing was changed by it: see "
            "what that run came to",
            lock=path,
        )


def _token(directory: str) -> Optional[str]:
    found = read_lock(directory)
    return str(found["token"]) if found else None


# ---------------------------------------------------------------------------------------------------------------------
# What was seen is still so (on the node)
# ---------------------------------------------------------------------------------------------------------------------


def fingerprint(directory: str, armed: Optional[Mapping[str, Any]]) -> str:
    """What a plan depends on, as a short text to compare: it changes with every start, stop and change of role.

    From files alone, since it is looked at again by each task that locks a node. `armed`: as read_armed tells it.
    """
    signals = [name for name in ("standby.signal", "recovery.signal") if os.path.lexists(f"{directory}/{name}")]
    histories = sorted(name for name in _names(f"{directory}/pg_wal") if HISTORY.fullmatch(name))
    return ", ".join(
        (
            "data" if os.path.lexists(f"{directory}/PG_VERSION") else "no data",
            f"server {_postmaster(directory)}",
            " ".join(signals) or "no signal",
            histories[-1] if histories else "no history",
            str(armed["state"]) if armed else "not armed",
        )
    )


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _postmaster(directory: str) -> str:
    """Process number and start time out of postmaster.pid, which outlives a crash; who starts again replaces it.

    One that says "stopping" in line 8 (PostgreSQL's pidfile.h) will end and not come back: it is none.
    """
    try:
        with open(f"{directory}/postmaster.pid", encoding="ascii", errors="replace") as file:
            lines = file.read(MAX_BYTES).splitlines()
    except FileNotFoundError:
        return "none"
    except OSError as error:
        return f"unknown ({error.strerror})"
    if len(lines) > 7 and lines[7].strip() == "stopping":
        return "none"
    return " ".join(lines[index].strip() for index in (0, 2) if index < len(lines))


def require_unchanged(where: str, expected: Optional[str], now: str) -> None:
    """HotspareError when the node is not any more what it was when it was looked at; None was never known."""
    if expected is not None and expected != now:
        raise HotspareError(
            f"{where} changed since this run looked at it: run it again (it was: {expected}; it is: {now}). "
            f"Nothing was changed on {where}."
        )
