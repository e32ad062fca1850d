# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The document tree of who ships: what is in it, what of it is finished, and what its closed days held."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Optional

from .archive_config import ArchiveConfig, Tree
from .document_tree import (
    Entry,
    day_of,
    due,
    escaped,
    first_open,
    joined,
    line,
    missing_days,
    unescaped,
)
from .tree_files import (
    REPLACED,
    UNREADABLE,
    Damaged,
    Home,
    Spool,
    Unfinished,
    broken,
    days,
    is_empty,
    place,
    read,
    walk,
)

NAMES = 1000  # listed of each kind
SAID = 3  # of them in a sentence


class Told:
    """What is told by name: each once, the first ones by name, all counted."""

    def __init__(self) -> None:
        self.count = 0
        self._first: dict[str, None] = {}

    def add(self, text: str) -> None:
        if text not in self._first:
            self.count += 1
            if len(self._first) < NAMES:
                self._first[text] = None

    def path(self, path: bytes, reason: str) -> None:
        self.add(f"{escaped(path)} {reason}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        first = ", ".join(list(self._first)[:SAID])
        return first if self.count <= SAID else f"{first} and {self.count - SAID} more"


def home_of(config: ArchiveConfig, tree: Tree) -> Home:
    """Unreachable unless the tree is there; HotspareError."""
    home = Home(config.homes, tree.name)
    home.require(os.fsencode(tree.path))
    return home


def blank(tree: Tree) -> dict[str, Any]:
    """What every result has."""
    lists: dict[str, Any] = {
        key: [] for key in ("missing_days", "skipped_open_files", "refused", "conflicts", "sealed")
    }
    said: dict[str, Any] = {"error": None, "problems": [], "destinations": [], "counts": {}}
    return {"name": tree.name, "path": tree.path, "changed": False, **lists, **said}


class Source:
    """The tree here, in one run; `whole` as long as it could all be read."""

    def __init__(self, config: ArchiveConfig, tree: Tree, check_mode: bool) -> None:
        self.config, self.tree, self.check_mode = config, tree, check_mode
        self.root, self.home = os.fsencode(tree.path), home_of(config, tree)
        self.began = datetime.now()
        self.days = {escaped(folder): day for folder, day in days(self.root, tree.partition).items()}
        self.first_open = first_open(self.began.timestamp(), tree.grace)
        self.open, self.refused, self.conflicts, self.damaged = Told(), Told(), Told(), Told()
        self.whole = True
        self.manifests = self.home.manifests(self.damaged.add)
        self.sealed: list[str] = []

    def is_closed(self, partition: str) -> bool:
        return partition != "" and self.days[partition] < self.first_open

    def listing(self, partition: str) -> Iterator[Entry]:
        """What is in a day's folder; "" is all that is in none."""
        leave = set(map(unescaped, self.days)) if not partition else ()
        return walk(self.root, unescaped(partition), leave=leave, refuse=self._refuse)

    def is_damaged(self, partition: str) -> bool:
        """Whether the manifest of a day is, and told; then nothing is done with that day."""
        try:
            for _entry in self.home.sealed(partition):
                pass
        except Damaged as error:
            self.damaged.add(error.message)
            self.whole = False
            return True
        return False

    def read(self, entry: Entry, sealed: Optional[Entry]) -> Optional[Entry]:
        """With its SHA-256; None, and told, when it is not finished, cannot be read, or changed after it was sealed."""
        if sealed is not None and entry.same_look(sealed):
            return entry._replace(sha256=sealed.sha256)
        try:
            found = read(self.root, entry)
        except Unfinished:
            self.unfinished(entry)
            return None
        except PermissionError:
            self._refuse(entry.path, UNREADABLE)
            return None
        except OSError as error:
            if error.errno not in REPLACED:
                raise broken(self.root, entry.path, error) from error
            self.whole = False  # it may be elsewhere in the tree
            return None
        if sealed is not None and not found.same_content(sealed):
            self.conflicts.path(
                entry.path, "changed after its day was sealed: it is not shipped, the copies keep theirs"
            )
            return None
        return found

    def unfinished(self, entry: Entry) -> None:
        """It was not what it was read as, when it went, or is written still."""
        self.open.add(escaped(entry.path))
        self.whole = False

    def changed(self, entry: Entry) -> None:
        """What arrived is not what was announced: it was written to, or it is not what it was when it was sealed."""
        try:
            found = read(self.root, entry)
        except (OSError, Unfinished):
            found = entry
        if found.same_look(entry) and found.sha256 != entry.sha256:
            self.conflicts.path(
                entry.path,
                "has the size and the time of what was sealed, and other content: see its disk, and the copies",
            )
        else:
            self.unfinished(entry)

    def _refuse(self, path: bytes, reason: str) -> None:
        self.refused.path(path, reason)
        self.whole = self.whole and reason != UNREADABLE

    def seal(self, partition: str) -> None:
        """Write the manifest of a closed day once all in it is finished; what came late is added, and told."""
        path = self.home.manifest(partition)
        known = os.path.exists(path)
        added = waiting = 0
        with Spool() as entries:
            for ours, before in joined(self.listing(partition), self.home.sealed(partition)):
                found = self.read(ours, before) if ours is not None else None
                entry = before or found  # what it held it held, whatever became of it
                if entry is None:
                    waiting += 1
                    continue
                entries.add(line(entry).encode())
                if before is None:
                    added += 1
                    if known:
                        self.conflicts.path(entry.path, "came after its day was sealed: it is shipped, and sealed too")
            if waiting == 0 and (added or not known):
                self.sealed.append(partition)
                if not self.check_mode:
                    self.home.require(self.root)  # what was unmounted just now is no empty day
                    self.home.seal(partition, entries)
            elif known and not self.check_mode:
                os.utime(path)  # when it was last looked at

    def modes(self, entries: Sequence[Entry]) -> dict[bytes, int]:
        """Of these and the folders they are in, as they are on the original: here it may have become a copy."""
        modes = {entry.path: entry.mode for entry in entries}
        for entry in entries:
            folder = os.path.dirname(entry.path)
            while folder and folder not in modes:
                with contextlib.suppress(FileNotFoundError):
                    modes[folder] = os.lstat(place(self.root, folder)).st_mode
                folder = os.path.dirname(folder)
        if os.path.exists(self.home.modes):
            for mode, path in self.home.noted_modes():
                if path in modes:
                    modes[path] = stat.S_IFMT(modes[path]) | mode
        return modes

    def order(self, there: Sequence[Mapping[str, str]], turn: Optional[int]) -> list[str]:
        """The days to work on, as due() has them; `there`: for each destination the SHA-256 of its manifests."""
        sealed = {name: head.sha256 for name, head in self.manifests.items() if name in self.days}
        looked = {name: os.stat(self.home.manifest(name)).st_mtime for name in sealed}
        lacking = [name for name in sealed if any(held.get(name) != sealed[name] for held in there)]
        return due(self.days, looked, lacking, self.first_open, turn)

    def targets(self, entries: Sequence[Entry]) -> dict[bytes, bytes]:
        """Where links among these lead; not of one that has gone."""
        found = {}
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISLNK(entry.mode):
                    found[entry.path] = os.readlink(place(self.root, entry.path))
        return found

    def missing_days(self) -> list[str]:
        """Folders of days that should hold documents, and do not."""
        held = {day for folder, day in self.days.items() if not is_empty(self.root, unescaped(folder))}
        for partition, head in self.manifests.items():
            day = day_of(partition, self.tree.partition)
            held |= {day} if day is not None and head.files else set()
        missing = missing_days(held, self.first_open, self.tree.skip) if self.tree.partition else []
        return [day.strftime(self.tree.partition) for day in missing]

    def record(self) -> dict[str, Any]:
        """What is to be told of it."""
        lists = {"skipped_open_files": self.open, "refused": self.refused, "conflicts": self.conflicts}
        return {
            **blank(self.tree),
            **{key: list(told) for key, told in lists.items()},
            "counts": {key: len(told) for key, told in lists.items()},
            "sealed": self.sealed,
            "missing_days": self.missing_days(),
            "problems": [str(told) for told in (self.damaged, self.conflicts, self.refused) if told],
        }
