# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A document tree and its copies, compared: what is present, missing, different, and which document is the newest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Optional

from .archive_config import ArchiveConfig, Tree
from .document_tree import Entry, escaped, joined
from .tree_files import broken, content, place
from .tree_source import Source, Told
from .tree_target import Target, batches, connected


class Count:
    """What a place holds of the tree.

    What is not there is missing, or else waiting: a glance finds what no run has shipped yet.
    """

    def __init__(self) -> None:
        self.present = self.waiting = self.extra = self.bytes = 0
        self.missing, self.different = Told(), Told()
        self.newest: Optional[Entry] = None

    def see(self, entry: Optional[Entry]) -> None:
        if entry is not None and (self.newest is None or entry.mtime > self.newest.mtime):
            self.newest = entry

    def add(self, entry: Entry, state: str) -> None:
        """`state` as a destination tells it."""
        if state == "same":
            self.present += 1
            self.bytes += entry.size
        else:
            (self.missing if state == "missing" else self.different).add(escaped(entry.path))

    def record(self, name: str, own: bool, error: Optional[str], seconds: float) -> dict[str, Any]:
        """Of a place that could not be looked at to the end nothing is known."""
        newest = None
        if self.newest is not None:
            when = datetime.fromtimestamp(self.newest.mtime / 1e9).isoformat(sep=" ", timespec="seconds")
            newest = f"{escaped(self.newest.path)} of {when}"
        known = {
            "present": self.present,
            "missing": len(self.missing),
            "different": len(self.different),
            "waiting": self.waiting,
            "extra": self.extra,
            "bytes": self.bytes,
            "newest": newest,
            "names": {"missing": list(self.missing), "different": list(self.different)},
        }
        seen = known if error is None else dict.fromkeys(known)
        return {"name": name, "own": own, "error": error, "seconds": round(seconds, 3), **seen}


def compare(config: ArchiveConfig, tree: Tree, names: Optional[Sequence[str]], deep: bool) -> dict[str, Any]:
    """The destinations with the tree here, and that with its manifests; `deep`: all copies are read. HotspareError."""
    source = Source(config, tree, True)
    partitions = [name for name in sorted({"", *source.days, *source.manifests}) if not source.is_damaged(name)]
    here, began = Count(), time.monotonic()
    for partition in partitions:
        _look_here(source, partition, here, deep)
    own = here.record(config.name, True, None, time.monotonic() - began)
    records = []
    with connected(source, names) as targets:
        for target in targets:
            there = Count()
            for partition in partitions:
                target.attempt(_look_there, source, target, partition, there, deep)
            records.append(there.record(target.place.name, False, target.error, target.seconds))
    problems = [f"{record['name']}: {record['error']}" for record in records if record["error"]]
    for record in [*records, own]:
        for wrong in ("missing", "different"):
            if record[wrong]:
                first = record["names"][wrong][0]
                problems.append(f"{record['name']}: documents are {wrong}, {record[wrong]} of them, such as {first}")
    found = source.record()
    return {
        **found,
        "problems": problems + found["problems"],
        "destinations": [*records, own],
        "complete": source.home.complete(),
    }


def _look_there(source: Source, target: Target, partition: str, count: Count, deep: bool) -> None:
    """A day's folder there with what it was sealed as, or else with what is here."""

    def doubtful() -> Iterator[tuple[Entry, Optional[Entry]]]:
        for ours, sealed, there in joined(source.listing(partition), source.home.sealed(partition), theirs):
            count.see(there)
            entry = sealed or ours
            if entry is None:
                count.extra += 1
            elif there is None and sealed is None and not deep:
                count.waiting += 1
            elif there is None:
                count.add(entry, "missing")
            elif not deep and entry.same_look(there):
                count.add(entry, "same")
            else:
                yield entry, sealed

    with target.listing(partition) as theirs:
        for batch in batches(doubtful()):
            found = [sealed or source.read(entry, None) for entry, sealed in batch]
            entries = [entry for entry in found if entry is not None]
            for entry, state in zip(entries, target.states(entries)):
                count.add(entry, state)


def _look_here(source: Source, partition: str, count: Count, deep: bool) -> None:
    """A day's folder here with what it was sealed as; what was not sealed is what it is."""
    for ours, sealed in joined(source.listing(partition), source.home.sealed(partition)):
        count.see(ours)
        if ours is None and sealed is not None:
            count.add(sealed, "missing")
        elif ours is not None:
            same = sealed is None or (ours.same_look(sealed) and not deep) or _content(source, ours) == sealed.sha256
            count.add(sealed or ours, "same" if same else "different")


def _content(source: Source, entry: Entry) -> Optional[str]:
    try:
        return content(place(source.root, entry.path))
    except OSError as error:
        raise broken(source.root, entry.path, error) from error
