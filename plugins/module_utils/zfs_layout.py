# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the datasets of a server are mounted, where those of a copy are while it is made ready, and what is noted of a
snapshot of a running server. Pure; the acts are in rebuild_zfs.py.

Manual: "Making a Base Backup Using the Low Level API" (25.3.4), "Making a Base Backup", which files a copy leaves out.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Optional

from .wal import parse_lsn
from .zfs import Login, View
from .zfs_refusals import Refusal

STAGED = ".staged"  # never what a base backup is made in

# What the server makes anew, and what is of the server that was copied (PostgreSQL's basebackup.c has the same lists).
# Slots of the primary would keep WAL on the standby for ever.
EMPTIED = "pg_dynshmem pg_notify pg_replslot pg_serial pg_snapshots pg_stat_tmp pg_subtrans".split()
REMOVED = (
    "postmaster.pid postmaster.opts postgresql.auto.conf.tmp current_logfiles.tmp current_logfiles backup_label "
    "backup_label.old tablespace_map tablespace_map.old backup_manifest recovery.signal standby.signal"
).split()


@dataclass(frozen=True)
class Zfs:
    """Where the server's datasets are on this node and on the primary, and how that one is reached."""

    dataset: str
    source_dataset: str
    login: Login
    prefix: str
    status_file: Optional[str] = None
    source_wal: Optional[str] = None  # where the primary's WAL lies; None: not known

    def others(self, tablespaces: Iterable[str]) -> list[str]:
        """What belongs to the primary besides its data directory."""
        return [*tablespaces, *([self.source_wal] if self.source_wal else [])]


def prefix_of(name: str) -> str:
    """Each destination of a source has its own."""
    return "hotspare-" + re.sub(r"[^A-Za-z0-9_.-]", "_", name)


@dataclass(frozen=True)
class Layout:
    """`paths`: where each dataset is mounted, by its name below the outermost one."""

    paths: Mapping[str, str]

    def root(self, path: str) -> Optional[str]:
        """The outermost mount point that a path is in; None: it is in none."""
        return next((one for one in sorted(self.paths.values(), key=len) if is_in(path, one)), None)

    def staged(self, path: str) -> str:
        """The same path in a copy that is not ready."""
        root = self.root(path)
        if root is None:
            raise Refusal(f"{path} is not in what is copied ({', '.join(sorted(self.paths.values()))})")
        return f"{root}{STAGED}{path[len(root) :]}"

    @property
    def roots(self) -> list[str]:
        return sorted({root for root in map(self.root, self.paths.values()) if root})

    @property
    def ordered(self) -> list[tuple[str, str]]:
        """Outer ones first, as they have to be mounted."""
        return sorted(self.paths.items(), key=lambda item: item[1].count("/"))


def is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def read_layout(source: View, data_directory: str, others: Iterable[str] = ()) -> Layout:
    """Of the primary, whose data directory and tablespaces (`others`) have the paths of the node's. Refusal."""
    mounted = {below: one for below, one in source.datasets.items() if one.mounted}
    legacy = [source.called(below) for below, one in mounted.items() if not one.mountpoint.startswith("/")]
    if legacy:
        raise Refusal(f"{legacy[0]} is mounted by /etc/fstab (legacy), and nothing says where: give it a mountpoint")
    layout = Layout({below: one.mountpoint for below, one in mounted.items()})
    for path in (data_directory, *others):
        root = layout.root(path)
        if root is None:
            raise Refusal(
                f"{path} is not in {source.called()} or below it, so it would be missing in a snapshot of that: "
                "move it there, or name the dataset that holds all of the server"
            )
        if root == "/":
            raise Refusal(f"{source.called()} holds the root of that host: give the server a dataset of its own")
    return layout


@dataclass(frozen=True)
class Label:
    """What pg_backup_stop said of a snapshot, and whose it is. LSNs as text."""

    system_identifier: str
    timeline: int
    slot: str
    start_lsn: str
    stop_lsn: str
    label: str
    spaces: str  # tablespace_map; empty: there are no tablespaces

    def written(self) -> str:
        """As the value of a user property, which takes no line breaks; zfsprops(7) allows 8192 bytes."""
        return base64.b64encode(zlib.compress(json.dumps(asdict(self)).encode())).decode()

    def usable(self, system_identifier: Optional[str], timeline: Optional[int], slot: str, kept: Optional[str]) -> bool:
        """Whether the primary is still what it was, and its slot still keeps all WAL (from `kept` on) that it needs."""
        same = (self.system_identifier, self.timeline, self.slot) == (system_identifier, timeline, slot)
        return same and kept is not None and parse_lsn(kept) <= parse_lsn(self.start_lsn)


def read_label(text: str) -> Optional[Label]:
    """None for what is not one of ours."""
    try:
        return Label(**json.loads(zlib.decompress(base64.b64decode(text, validate=True))))
    except (ValueError, TypeError, zlib.error):
        return None


def start_lsn(label: str) -> str:
    """The first line of a backup label: START WAL LOCATION: 0/2000028 (file 000000010000000000000002)."""
    words = label.partition("\n")[0].split()
    if words[:3] != ["START", "WAL", "LOCATION:"] or len(words) < 4:
        raise Refusal(f"the server's backup label begins with {label[:80]!r}, which is none: see its version")
    return words[3]
