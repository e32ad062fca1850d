# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems that should be mounted and are not: what is missing then lies in them, and a copy belongs nowhere else.

Known of are those of /etc/fstab, fstab(5), and the datasets of imported ZFS pools, zfsprops(7).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from typing import Optional

from .shell import PATH, HotspareError, run
from .zfs import ASIDE

FSTAB, MOUNTINFO, POOLS = "/etc/fstab", "/proc/self/mountinfo", "/etc/zfs/zpool.cache"
ZFS_SECONDS = 20.0
ZFS_LIST = ("zfs", "list", "-Hp", "-t", "filesystem", "-o", "name,mountpoint,canmount")


def expect_mounted(path: str) -> None:
    """HotspareError when something that is not mounted belongs at a path, or at a directory above it."""
    mounted = mount_points(_text(MOUNTINFO))
    for what, table, how in (
        ("the file system {} of /etc/fstab", fstab(_text(FSTAB)), "mount {where}"),
        ("the ZFS dataset {}", _datasets(), "zfs mount {name}"),
    ):
        found = missing(os.path.realpath(path), table, mounted)
        if found is not None:
            name, where = found
            raise HotspareError(
                f"{path} holds no data, but {what.format(name)} belongs to {where} and is not mounted: "
                f"{how.format(name=name, where=where)}, then look again"
            )


def missing(path: str, table: Mapping[str, str], mounted: Collection[str]) -> Optional[tuple[str, str]]:
    """Which of a table of file systems, {where: name}, is not mounted at a path or above it: (name, where). (Pure.)

    Below the innermost one that is mounted, another may be missing; what is above does not matter.
    """
    for where in _ancestors(path):
        if where in mounted:
            return None
        if where in table:
            return table[where], where
    return None


def _ancestors(path: str) -> Iterable[str]:
    """A path and those above it, the innermost first. (Pure.)"""
    while True:
        yield path
        if path == "/":
            return
        path = os.path.dirname(path)


def mount_points(mountinfo: str) -> set[str]:
    """Where something is mounted, proc_pid_mountinfo(5). (Pure.)"""
    return {_unescaped(line.split(" ")[4]) for line in mountinfo.splitlines()}


def fstab(text: str) -> dict[str, str]:
    """{where: what} of fstab(5). (Pure.)"""
    lines = (line.split() for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {
        os.path.normpath(_unescaped(words[1])): _unescaped(words[0])
        for words in lines
        if len(words) > 2 and words[1].startswith("/")
    }


def zfs_table(listed: str) -> dict[str, str]:
    """{where: dataset} of what ZFS_LIST prints, less those that are nowhere, only hand a mountpoint down, or were
    renamed out of the way. (Pure.)"""
    rows = (line.split("\t") for line in listed.splitlines())
    return {
        where: name
        for name, where, canmount in rows
        if where.startswith("/") and canmount != "off" and not ASIDE.search(name)
    }


def _datasets() -> dict[str, str]:
    """Of all imported pools; nothing on a host without ZFS. HotspareError when ZFS does not answer."""
    if shutil.which(ZFS_LIST[0], path=PATH) is None:
        return {}
    done = run(ZFS_LIST, timeout=ZFS_SECONDS, check=False)
    if done.rc == 0:
        return zfs_table(done.stdout)
    if os.path.exists(POOLS):
        said = (done.stderr.strip() or f"exit code {done.rc}").splitlines()[0]
        raise HotspareError(f"this host has ZFS pools and zfs list fails ({said}): import them, zpool import -a")
    return {}


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise HotspareError(f"cannot read {path}: {error.strerror}; run this as root") from error
