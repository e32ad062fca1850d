# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A destination of documents, seen from who ships: what is told over one lasting ssh, and an rsync for each batch."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Optional

from .archive_config import TreePlace
from .archive_link import SshDestination, ssh_command
from .document_tree import Entry, escaped, joined, line, look
from .shell import HotspareError, run
from .store import Full, chunks
from .tree_files import EVIDENCE, Spool
from .tree_source import SAID, Source, Told
from .wire import Unreachable

BATCH_FILES = 5000
BATCH_BYTES = 512 << 20
BATCH_NAMES = 1 << 20  # bytes of paths: what is said of them has to fit into a message
WORK_SECONDS = 86400.0  # the other end may read that long; ssh notices when it is dead
RSYNC = (0, 23, 24)  # all, or less some files that could not be read or are gone: what arrived tells


class Target:
    """A destination, in one run; with its first error it is left alone."""

    def __init__(self, source: Source, place: TreePlace) -> None:
        self.source, self.place = source, place
        self.error: Optional[str] = None
        self.files = self.bytes = 0
        self.seconds = 0.0
        self.names, self.conflicts = Told(), Told()
        self.sealed: list[str] = []
        self.manifests: dict[str, str] = {}
        self._link: Optional[SshDestination] = None

    @property
    def works(self) -> bool:
        return self.error is None

    def attempt(self, work: Callable[..., object], *arguments: object) -> None:
        """Do it, unless there was an error here before; an error of it is this destination's. The time is taken."""
        if not self.works:
            return
        began = time.monotonic()
        try:
            work(*arguments)
        except HotspareError as error:
            self.error = error.message
            self.close()
        finally:
            self.seconds += time.monotonic() - began

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def connect(self) -> None:
        """Also learns which days are sealed there."""
        self._link = SshDestination(self.place, self.source.config)
        rows = b"".join(self._stream("manifests")).decode().split("\n")
        self.manifests = {name: sha256 for sha256, _space, name in (row.partition(" ") for row in rows if row)}

    def bring(self, partition: str, closed: bool) -> None:
        """Ship what of a day's folder is not there, and have it sealed there as it is here."""
        if not self._fill(partition) or not closed:
            return
        head = self.source.home.header(partition)
        if partition in self.source.sealed or (head is not None and self.manifests.get(partition) != head.sha256):
            self._seal(partition)

    def finish(self, complete: bool) -> None:
        """Leave nothing behind there; `complete`: all that was here is there."""
        when = self.source.began.isoformat(sep=" ", timespec="seconds") if complete else None
        self._call("finish", source=self.source.config.name, complete=when)

    def listing(self, partition: str) -> Spool:
        """What it holds of a day's folder."""
        found = Spool()
        for chunk in self._stream("list", partition=partition):
            found.add(chunk)
        return found

    def states(self, entries: Sequence[Entry], *, adjust: bool = False) -> list[str]:
        """What each is there: missing, same, different, or kept; `adjust`: the same has its time from here then."""
        if not entries:
            return []
        return list(self._call("compare", entries=[line(entry) for entry in entries], adjust=adjust)["states"])

    def problems(self) -> list[str]:
        """Sentences."""
        return [f"{self.place.name}: {said}" for said in (self.error, self.conflicts) if said]

    def record(self) -> dict[str, Any]:
        return {
            "name": self.place.name,
            "error": self.error,
            "files": self.files,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "rate": round(self.bytes / self.seconds) if self.bytes and self.seconds else None,
            "names": list(self.names),
            "conflicts": list(self.conflicts),
            "sealed": self.sealed,
        }

    # --- a day's folder ----------------------------------------------------------------------------------------------

    def _fill(self, partition: str) -> bool:
        """Whether all of it is there then."""
        source = self.source
        if self._call("look", partition=partition)["look"] == look(source.listing(partition)):
            return True
        whole = True
        with self.listing(partition) as theirs:
            rows = joined(source.listing(partition), theirs, source.home.sealed(partition))
            lacking = ((ours, sealed) for ours, there, sealed in rows if ours and not (there and ours.same_look(there)))
            for batch in batches(lacking):
                found = [source.read(ours, sealed) for ours, sealed in batch]
                whole &= self._ship([entry for entry in found if entry is not None]) and None not in found
        return whole

    def _ship(self, entries: Sequence[Entry]) -> bool:
        """Whether all of these are there then."""
        states = dict(zip(entries, self.states(entries, adjust=not self.source.check_mode)))
        wanted = {entry: state for entry, state in states.items() if state in ("missing", "different")}
        if self.source.check_mode:
            states.update((entry, "new") for entry, state in wanted.items() if state == "missing")
        else:
            states.update(zip(wanted, self._take(list(wanted))))
        for entry in wanted:
            if states[entry] in ("new", "different"):
                self.files += 1
                self.bytes += entry.size
                self.names.add(escaped(entry.path))
        for entry, state in states.items():
            if state == "changed":
                self.source.changed(entry)
            elif state in ("different", "kept"):
                where = f"{os.fsdecode(EVIDENCE)} as {entry.sha256}"
                self.conflicts.path(entry.path, f"is another one there: both stay, and this one lies there in {where}")
        return set(states.values()) <= {"same", "new"}

    def _take(self, entries: Sequence[Entry]) -> list[str]:
        """Have these stored there; for each what happened."""
        if not entries:
            return []
        source = self.source
        targets = source.targets(entries)
        if files := [entry for entry in entries if stat.S_ISREG(entry.mode)]:
            self._rsync(files)
        modes = source.modes(entries)
        reply = self._call(
            "accept",
            source=source.config.name,
            entries=[line(entry._replace(mode=modes[entry.path])) for entry in entries],
            folders={escaped(path): stat.S_IMODE(mode) for path, mode in modes.items() if stat.S_ISDIR(mode)},
            targets={escaped(path): escaped(target) for path, target in targets.items()},
        )
        return list(reply["outcomes"])

    def _rsync(self, entries: Sequence[Entry]) -> None:
        """Bring these to the staging directory there. Unreachable; Full; what did not arrive is found out there."""
        tree = self.source.tree
        size = sum(entry.size for entry in entries)
        if not self._has_room(size):
            self._clean()  # what a run that broke has left there half
            if not self._has_room(size):
                raise Full(f"there is no room for {size} bytes of documents: make some")
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        with tempfile.NamedTemporaryFile() as names:
            # A name that begins with # would be a comment.
            names.write(b"\0".join(b"./" + entry.path for entry in entries))
            names.flush()
            options = ["--times", "--omit-dir-times", "--perms", "--chmod=D700,F600", "--partial", "--from0"]
            way = ["-e", shlex.join(ssh_command(self.place)), f"--files-from={names.name}"]
            places = [f"{tree.path}/", f"{host}:{tree.name}/{self.source.config.name}"]
            done = run(["rsync", *options, *way, *places], timeout=None, check=False)
        if done.rc in RSYNC:
            return
        if any(os.strerror(code) in done.stderr for code in (errno.ENOSPC, errno.EDQUOT)):
            self._clean()
            raise Full(f"there is no room any more for {size} bytes of documents: make some")
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise Unreachable(f"rsync to {self.place} failed with exit code {done.rc}: {said[0]}; see its log there")

    def _has_room(self, size: int) -> bool:
        return int(self._call("room")["free_bytes"]) >= size

    def _clean(self) -> None:
        self._call("finish", source=self.source.config.name, complete=None)

    def _seal(self, partition: str) -> None:
        if not self.source.check_mode:
            manifest = chunks(self.source.home.manifest(partition))
            reply = self._call("seal", partition=partition, upload=manifest)
            if not reply["sealed"]:
                self.conflicts.add(f"{partition} cannot be sealed there: {', '.join(reply['names'][:SAID])}")
                return
        self.sealed.append(partition)

    def _call(self, op: str, **arguments: Any) -> dict[str, Any]:
        if self._link is None:
            raise AssertionError("it was begun")
        return self._link.call(f"tree_{op}", wait=WORK_SECONDS, tree=self.source.tree.name, **arguments)

    def _stream(self, op: str, **arguments: Any) -> Iterator[bytes]:
        if self._link is None:
            raise AssertionError("it was begun")
        return self._link.stream(f"tree_{op}", wait=WORK_SECONDS, tree=self.source.tree.name, **arguments)


@contextlib.contextmanager
def connected(source: Source, names: Optional[Sequence[str]]) -> Iterator[list[Target]]:
    """The destinations of these names, default all, as far as they can be reached. HotspareError for a wrong name."""
    places = source.tree.destinations
    if unknown := set(names or ()) - {place.name for place in places}:
        raise HotspareError(f"the tree {source.tree.name} goes not to {', '.join(sorted(unknown))}: see archive_trees")
    targets = [Target(source, place) for place in places if names is None or place.name in names]
    with contextlib.ExitStack() as closing:
        for target in targets:
            closing.callback(target.close)
            target.attempt(target.connect)
        yield targets


def batches(rows: Iterable[tuple[Entry, Optional[Entry]]]) -> Iterator[list[tuple[Entry, Optional[Entry]]]]:
    """Of so many files, and so many bytes, that a run which dies has not much to do again."""
    batch: list[tuple[Entry, Optional[Entry]]] = []
    size = names = 0
    for row in rows:
        batch.append(row)
        size += row[0].size
        names += len(row[0].path)
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES or names >= BATCH_NAMES:
            yield batch
            batch, size, names = [], 0, 0
    if batch:
        yield batch
