# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that a rebuild works with: the node's lock, names beside the data directory, and what makes it a standby.

Names beside the data directory X, so that a run that dies anywhere is continued by the next one and no half-made
directory is ever called X:
  X.seeding                a base backup under way; X.seeding.json says whose it is and whether it is complete
  X.rewinding              X while pg_rewind works on it. With a file hotspare-untouched in it pg_rewind has not begun,
                           and it is X still; without, what an interrupted run leaves of it is not usable
  X.before-<UTC time>      what was X before, kept
  X.diverged-<UTC time>    WAL that the primary does not have, and what it says, kept
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import stat
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any, Optional

from .conninfo import Upstream, without_settings
from .lock import working
from .rebuild import Source
from .rebuild_look import UNTOUCHED, Job
from .server import Instance, has_signal, process_id, processes, set_standby_signal, write_upstream
from .shell import HotspareError, remove_durably, run, write_durably
from .zfs_layout import EMPTIED, REMOVED

POLL_SECONDS = 0.05
RECOVERY_TARGETS = tuple(
    f"recovery_target{name}" for name in ("", "_action", "_inclusive", "_lsn", "_name", "_time", "_timeline", "_xid")
)
KEPT = re.compile(r"\.(before|diverged)-\d{8}T\d{6}Z")


def only_one(job: Job, check_mode: bool = False) -> contextlib.AbstractContextManager[None]:
    """Hold the node. The task of a run that died is waited for, as long as for a standby that starts, so that the run
    can be made again at once; then, and in check mode, HotspareError says who has it and since when."""
    return working(job.real, job.instance.name, "pg_rebuild", job.timeout, check_mode=check_mode)


def utc() -> str:
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def kept(real: str) -> list[str]:
    """What earlier rebuilds kept beside the data directory `real`, oldest first."""
    parent, name = os.path.split(real)
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    return sorted(os.path.join(parent, n) for n in names if n.startswith(name) and KEPT.fullmatch(n[len(name) :]))


def aside(job: Job, what: str = "before") -> str:
    """A name beside the data directory that is free."""
    while True:
        name = f"{job.real}.{what}-{utc()}"
        if not os.path.lexists(name):
            return name
        time.sleep(POLL_SECONDS)  # two in one second: the next one


def rename(old: str, new: str) -> None:
    """Durably; an empty directory called `new` is replaced, anything else never."""
    try:
        os.rename(old, new)
        sync(os.path.dirname(new))
    except OSError as error:
        raise HotspareError(
            f"cannot rename {old} to {new}: {error.strerror}; see who may write there, and run again"
        ) from error


def remove_tree(path: str) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise HotspareError(
            f"cannot remove {path}: {error.strerror} ({error.filename}); see who may write there"
        ) from error


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parent(job: Job, path: str) -> None:
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        make_parent(job, parent)
        make_directory(job, parent, 0o755)  # as Debian has them


def make_directory(job: Job, path: str, mode: int = 0o700) -> None:
    """For the server's account."""
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, mode)
        if os.geteuid() == 0:
            shutil.chown(path, job.instance.account, group(job.instance.account))
    except OSError as error:
        raise HotspareError(f"cannot make the directory {path}: {error.strerror}; see who may write there") from error


def group(account: str) -> int:
    return pwd.getpwnam(account).pw_gid


def copy_file(job: Job, old: str, new: str) -> None:
    try:
        shutil.copyfile(old, new)
        if os.geteuid() == 0:
            shutil.chown(new, job.instance.account, group(job.instance.account))
        os.chmod(new, 0o600)
        sync(new)
    except OSError as error:
        raise HotspareError(
            f"cannot copy {old} to {new}: {error.strerror}; nothing else was done, run this again"
        ) from error


def read_own(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def configure(instance: Instance, upstream: Upstream) -> bool:
    # The signal first: whatever is started from here on is no primary.
    signal = set_standby_signal(instance, True)
    remove_durably(instance.path(UNTOUCHED))
    recovery = remove_durably(instance.path("recovery.signal"))
    targets = _remove_targets(instance)
    return write_upstream(instance, upstream) or signal or recovery or targets


def has_targets(instance: Instance) -> bool:
    """Whether postgresql.auto.conf has a recovery target, as a restore long ago leaves it.

    A primary does not look at it. As a standby the node would stop there, or even promote itself.
    """
    text = read_own(instance.path("postgresql.auto.conf")) or ""
    return without_settings(text, RECOVERY_TARGETS) != text


def _remove_targets(instance: Instance) -> bool:
    if not has_targets(instance):
        return False
    path = instance.path("postgresql.auto.conf")
    return write_durably(path, without_settings(read_own(path) or "", RECOVERY_TARGETS), account=instance.account)


def configure_staged(job: Job, directory: str) -> None:
    """The same, and the same assertion, on a directory that is to get the data directory's name."""
    staged = job.at(directory)
    configure(staged, job.upstream)
    wanted = {"primary_conninfo": job.upstream.conninfo(), "primary_slot_name": job.upstream.slot or ""}
    # The configuration names the final directory, whose postgresql.auto.conf would be read instead of this one's.
    options = ["-D", directory, "-c", f"config_file={staged.configuration}", "-c", f"data_directory={directory}"]
    for name, value in wanted.items():
        found = run([staged.program("postgres"), *options, "-C", name], account=staged.account).stdout.rstrip("\n")
        if found != value:
            raise HotspareError(
                f"{name} of {directory} would be {found!r} instead of {value!r}: see that {staged.configuration} says "
                f"include_dir 'conf.d' and that nothing after {staged.upstream_file} sets it again"
            )
    if not has_signal(staged, "standby.signal"):
        raise HotspareError(f"standby.signal is missing in {directory}: it was not put in place")


def new_note(job: Job, source: Source, **more: Any) -> dict[str, Any]:
    """For X.seeding.json: what a later run must know of this one."""
    return {
        "name": job.instance.name,
        "primary": source.where,
        "system_identifier": source.system_identifier,
        "slot": job.upstream.slot,
        "started_at": utc(),
        "complete": False,
        **more,
    }


def write_note(job: Job, note: dict[str, Any]) -> None:
    write_durably(job.marker, json.dumps(note, indent=1) + "\n", mode=0o644)


def wait_until_gone(job: Job) -> None:
    """HotspareError unless no process works in the data directory any more: only then may it be renamed."""
    deadline = time.monotonic() + job.timeout
    while True:
        left = processes(job.instance) if os.path.isdir(job.real) else []
        if not left and process_id(job.instance) is None:
            return
        if time.monotonic() > deadline:
            raise HotspareError(
                f"PostgreSQL of {job.instance} is stopping, but its processes {left} did not end within {job.timeout:g}"
                " seconds: see its log for what they wait for (often archive_command), and run this again"
            )
        time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------------------------------------------------------------
# A data directory that was copied with a snapshot
# ---------------------------------------------------------------------------------------------------------------------


def own(account: str, directory: str, roots: Iterable[str]) -> None:
    """The server's account may have another number on another host. The data directory comes last: until then a run
    that died is known by its owner."""
    ours, theirs = pwd.getpwnam(account), os.lstat(directory).st_uid
    if theirs == ours.pw_uid:
        return
    for root in roots:
        for folder, folders, files in os.walk(root, topdown=False):
            for path in (*(os.path.join(folder, name) for name in (*folders, *files)), folder):
                if path != directory and os.lstat(path).st_uid == theirs:
                    os.lchown(path, ours.pw_uid, ours.pw_gid)
    os.lchown(directory, ours.pw_uid, ours.pw_gid)


def tidy(directory: str, *more: str) -> None:
    """Without what is of the other server's processes, and without `more` files. Where a link leads nothing is touched:
    what was copied is another host's word."""
    try:
        for name in EMPTIED:
            _empty(os.path.join(directory, name), os.stat(directory))
        for name in (*REMOVED, *more):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
    except OSError as error:
        raise HotspareError(f"cannot remove {error.filename}: {error.strerror}; run this again") from error


def _empty(path: str, like: os.stat_result) -> None:
    """A directory with nothing in it, of the owner of the one that it is in; it may have been a link, or missing."""
    if os.path.islink(path):
        os.unlink(path)
    if not os.path.lexists(path):
        os.mkdir(path, 0o700)
        os.chown(path, like.st_uid, like.st_gid)
        os.chmod(path, stat.S_IMODE(like.st_mode))
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
