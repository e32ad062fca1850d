# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an armed standby says of itself: a file that its process and those who collect or disarm it change in turn.

Three files under /run/lock, gone after a reboot like the process itself: `.armed.json` is the state, `.armed.lock` is
held by the process all its life, so that a dead one is told from a live one, and whoever changes the state holds
`.armed.mutex` meanwhile. So of a disarm and a promotion that come together one finds that it is too late.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .shell import HotspareError

LOCK_DIRECTORY = "/run/lock"
LOCK_SECONDS = 10  # others hold the mutex for milliseconds
POLL_SECONDS = 0.002
MAX_BYTES = 65536  # a state has some thousand
FIELDS = "state reason since expires pid receiver position phases proof at collected".split()

# From which state one may come to which. `armed` alone can be left by two sides, the process and `disarmed`.
MOVES = {
    "armed": {"promoting", "disarmed", "expired", "refused"},
    "promoting": {"promoted"},
    "promoted": {"promoted"},  # it is collected
}


@dataclass(frozen=True)
class Paths:
    """The files of one node."""

    state: str
    alive: str
    mutex: str


def paths(directory: str) -> Paths:
    """Where the files of the node with this data directory are; the same name as its other locks."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:16]
    stem = f"{LOCK_DIRECTORY}/hotspare-{digest}.armed"
    return Paths(f"{stem}.json", f"{stem}.lock", f"{stem}.mutex")


def boot_clock() -> float:
    """Seconds since the boot, those in which the machine slept included; no clock that is set changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_armed(directory: str) -> Optional[dict[str, Any]]:
    """What the armed process of this data directory says, or None when none was ever started since the boot.

    state (armed, promoting, promoted, disarmed, expired, refused; `dead` when it is armed and its process is gone),
    alive, reason, since (UTC), expires_in (s, negative when it is over), pid, position (LSN at arming), phases (s),
    proof, at (epoch seconds), collected (a run has seen the promotion). HotspareError when it is not known.
    """
    where = paths(directory)
    alive = is_alive(where)  # before the state: a process that ended in between has written its last word
    stored = load(where)
    return None if stored is None else shown(stored, alive=alive, now=boot_clock())


def load(where: Paths) -> Optional[dict[str, Any]]:
    """The state as it is stored, None when there is none. HotspareError."""
    try:
        with open(os.open(where.state, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
            owner = os.fstat(file.fileno()).st_uid
            if owner not in (0, os.geteuid()):  # anybody may write into this directory
                raise ValueError(f"it belongs to account number {owner}")
            stored = json.loads(file.read(MAX_BYTES))
        if missing := [name for name in FIELDS if name not in stored]:
            raise ValueError(f"no {missing[0]}")
        return dict(stored)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HotspareError(f"cannot read {where.state}: {error.strerror}; run this as root") from error
    except (ValueError, TypeError) as error:
        raise HotspareError(f"{where.state} is not one of ours ({error}): see who wrote it, and remove it") from error


def shown(stored: Mapping[str, Any], *, alive: bool, now: float) -> dict[str, Any]:
    """The state as it is told (pure); `now` by boot_clock()."""
    state, reason = str(stored["state"]), stored["reason"]
    if state == "armed" and not alive:
        state, reason = "dead", f"its process {stored['pid']} is gone and will not promote"
    return {
        "state": state,
        "alive": alive,
        "reason": reason,
        "since": str(stored["since"]),
        "expires_in": round(stored["expires"] - now, 1),
        **{name: stored[name] for name in ("pid", "position", "phases", "proof", "at", "collected")},
    }


def is_alive(where: Paths) -> bool:
    """Whether a process holds the lock that an armed one holds all its life."""
    try:
        descriptor = os.open(where.alive, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HotspareError(f"cannot look at {where.alive}: {error.strerror}; run this as root") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def move(directory: str, to: str, **changes: Any) -> bool:
    """Change the state, with `changes` to its other fields, if it may go there from what it is; else False.

    On disk when this returns, so nobody who is asked later can believe the former state.
    """
    where = paths(directory)
    with locked(where.mutex):
        stored = load(where)
        if stored is None or to not in MOVES.get(stored["state"], ()):
            return False
        write(where, {**stored, **changes, "state": to})
        return True


def forget(directory: str) -> None:
    """Remove the state of a process that is gone, when it says nothing about the node any more."""
    where = paths(directory)
    with locked(where.mutex), contextlib.suppress(FileNotFoundError):
        os.unlink(where.state)


def write(where: Paths, stored: Mapping[str, Any]) -> None:
    """Replace the state, all or nothing. The caller holds the mutex."""
    # Not write_durably(): it follows a link, and this directory is open to everybody.
    temporary = f"{where.state}.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write(json.dumps(stored) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, where.state)
    except OSError as error:
        raise HotspareError(f"cannot write {where.state}: {error.strerror}; run this as root") from error


@contextlib.contextmanager
def locked(path: str, seconds: float = LOCK_SECONDS) -> Iterator[int]:
    """Hold the flock of a file of ours; HotspareError when another one does for longer than `seconds`."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        # O_CREAT only if it is missing: with it, Linux does not open another account's file in such a directory.
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = os.open(path, flags | os.O_CREAT, 0o600)
    except OSError as error:
        raise HotspareError(f"cannot take {path}: {error.strerror}; run this as root") from error
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HotspareError(f"{path} is held for {seconds:g} s: see what holds it (fuser)") from None
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)
