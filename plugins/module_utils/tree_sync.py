# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees go to their destinations: what is finished and not there is shipped, closed days are sealed, what
differs is told. Nothing is overwritten, and a deletion does not travel.

A result is a record of the tree: `problems` (sentences; empty = what was asked for is so), `destinations`, a record
for each. Of names the first ones are listed, `counts` has all. Paths are text as document_tree.escaped() has it.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shlex
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Optional

from .archive_config import ArchiveConfig, Tree, TreePlace
from .archive_link import SshDestination, ssh_command
from .document_tree import (
    Entry,
    day_of,
    due,
    escaped,
    first_open,
    joined,
    line,
    look,
    missing_days,
    require_pattern,
    unescaped,
)
from .server import in_recovery
from .shell import HotspareError, become, run
from .store import Full, chunks
from .tree_files import (
    Busy,
    Home,
    Spool,
    Unfinished,
    broken,
    content,
    days,
    is_copy,
    is_empty,
    make_copy,
    make_original,
    place,
    read,
    walk,
)
from .tree_server import EVIDENCE
from .wire import Unreachable, failed, failure

BATCH_FILES = 5000
BATCH_BYTES = 512 << 20
NAMES = 1000  # listed of each kind
SAID = 3  # of them in a sentence
WAIT_SECONDS = 300  # for another run on the same tree
WORK_SECONDS = 86400.0  # the other end may read that long; ssh notices when it is dead
TICK_SECONDS = 240  # a run of the timer begins no further closed day after that
TICKS = 288  # in a day, about: in so many runs of the timer every sealed day is looked at
RSYNC = (0, 23, 24)  # all, or less some files that could not be read or are gone: what arrived tells


# ---------------------------------------------------------------------------------------------------------------------
# What the module and the timer ask for
# ---------------------------------------------------------------------------------------------------------------------


def sync(
    config: ArchiveConfig,
    tree: Tree,
    *,
    destinations: Optional[Sequence[str]] = None,
    writable: Optional[bool] = None,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Ship what the destinations (names; default all) lack. HotspareError; what is wrong at one is in `problems`.

    `writable` makes it the original or a copy before that, see set_writable(). As root, or as the tree's account. With
    `check_mode` it tells what it would do.
    """
    return _as_account(tree, partial(_switch_and_sync, config, tree, destinations, writable, check_mode))


def verify(config: ArchiveConfig, tree: Tree, *, destinations: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """Read the copies again and compare them with what is here, and what is here with its manifests. HotspareError."""
    return _as_account(tree, partial(_compare, config, tree, destinations, True))


def check(config: ArchiveConfig, tree: Tree, *, destinations: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """The same at a glance: what has the size and the time of the original is taken for it. HotspareError."""
    return _as_account(tree, partial(_compare, config, tree, destinations, False))


def set_writable(config: ArchiveConfig, tree: Tree, wanted: bool, *, check_mode: bool = False) -> dict[str, Any]:
    """Make the tree here the original, as on a primary, or a read-only copy, as on a standby. HotspareError.

    What was written here and nowhere else goes to the others with the next sync() or tick().
    """
    return _as_account(tree, partial(_set_writable, config, tree, wanted, check_mode))


def tick(config: ArchiveConfig) -> list[dict[str, Any]]:
    """What the timer does with each tree; the results. HotspareError when it is not known whether this is a primary.

    A primary ships. On a standby the tree becomes a copy; one that was the original ships what only it may have.
    """
    if config.node is None or not config.trees:
        return []
    writable = not in_recovery(config.node)
    results = []
    for tree in config.trees:
        try:
            results.append(_as_account(tree, partial(_switch_and_sync, config, tree, None, writable, timer=True)))
        except Busy:
            continue  # another run does it
        except HotspareError as error:
            results.append({**_record(tree), "problems": [error.message], "error": error.message})
    return results


def _switch_and_sync(
    config: ArchiveConfig,
    tree: Tree,
    names: Optional[Sequence[str]],
    writable: Optional[bool],
    check_mode: bool = False,
    timer: bool = False,
) -> dict[str, Any]:
    """A copy ships nothing, or what was deleted on the original would come back; but what it owes, it does."""
    switched = _record(tree) if writable is None else _set_writable(config, tree, writable, check_mode)
    if not (writable or Home(config.directory, tree.name).ships()):
        return switched
    result = _sync(config, tree, names, check_mode, timer)
    problems = [*switched["problems"], *result["problems"]]
    return {**result, "changed": switched["changed"] or result["changed"], "problems": problems}


# ---------------------------------------------------------------------------------------------------------------------
# As the tree's account
# ---------------------------------------------------------------------------------------------------------------------


def _as_account(tree: Tree, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns or raises in a process that is the tree's account's: what it runs and reads, that may."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(tree.account, work, sending))
    process.start()
    sending.close()
    try:
        answer: dict[str, Any] = receiving.recv()
    except EOFError:
        answer = failure(HotspareError(f"the work on the tree {tree.name} was ended: run it again"))
    finally:
        receiving.close()
        process.join()
    if answer["ok"]:
        return dict(answer["result"])
    raise Busy(answer["message"]) if answer.get("busy") else failed(answer)


def _answer(account: str, work: Callable[[], dict[str, Any]], sending: Connection) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # see tree_files.is_written
    try:
        become(account)
        sending.send({"ok": True, "result": work()})
    except HotspareError as error:
        sending.send({**failure(error), "busy": isinstance(error, Busy)})


def _set_writable(config: ArchiveConfig, tree: Tree, wanted: bool, check_mode: bool) -> dict[str, Any]:
    root, home = os.fsencode(tree.path), _home(config, tree)
    refused = Told()
    changed = not (home.is_original() if wanted else is_copy(root, home))
    if changed and not check_mode:
        with home.lock("accept", WAIT_SECONDS):
            files = (make_original if wanted else make_copy)(root, home, refused.path)
    else:
        files = 0
    kind = "writable" if wanted else "a read-only copy"
    problems = [f"the tree {tree.name} is not all {kind}: {refused}; give it to {tree.account}"] if refused else []
    return {**_record(tree), "changed": changed, "files": files, "refused": list(refused), "problems": problems}


def _home(config: ArchiveConfig, tree: Tree) -> Home:
    """HotspareError unless the tree and the place of what is known of it are there."""
    home = Home(config.directory, tree.name)
    require_pattern(tree.partition)
    for path in (tree.path, home.path):
        if not os.path.isdir(path):
            raise HotspareError(
                f"{path} of the tree {tree.name} is not there for {tree.account}: mount it, or run site.yml"
            )
    return home


def _record(tree: Tree) -> dict[str, Any]:
    """What every result has."""
    lists: dict[str, Any] = {
        key: [] for key in ("missing_days", "skipped_open_files", "refused", "conflicts", "sealed")
    }
    said: dict[str, Any] = {"error": None, "problems": [], "destinations": [], "counts": {}}
    return {"name": tree.name, "path": tree.path, "changed": False, **lists, **said}


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


# ---------------------------------------------------------------------------------------------------------------------
# The source
# ---------------------------------------------------------------------------------------------------------------------


class Source:
    """The tree here, in one run."""

    def __init__(self, config: ArchiveConfig, tree: Tree, check_mode: bool) -> None:
        self.config, self.tree, self.check_mode = config, tree, check_mode
        self.root, self.home = os.fsencode(tree.path), _home(config, tree)
        self.began = datetime.now()
        self.days = {escaped(folder): day for folder, day in days(self.root, tree.partition).items()}
        self.first_open = first_open(self.began.timestamp(), tree.grace)
        self.open, self.refused, self.conflicts = Told(), Told(), Told()
        self.sealed: list[str] = []

    def is_closed(self, partition: str) -> bool:
        return partition != "" and self.days[partition] < self.first_open

    def listing(self, partition: str) -> Iterator[Entry]:
        """What is in a day's folder; "" is all that is in none."""
        leave = set(map(unescaped, self.days)) if not partition else ()
        return walk(self.root, unescaped(partition), leave=leave, refuse=self.refused.path)

    def read(self, entry: Entry, sealed: Optional[Entry]) -> Optional[Entry]:
        """With its SHA-256; None, and told, when it is not finished, cannot be read, or changed after it was sealed."""
        if sealed is not None and entry.same_look(sealed):
            return entry._replace(sha256=sealed.sha256)
        try:
            found = read(self.root, entry)
        except FileNotFoundError:
            return None
        except Unfinished:
            self.open.add(escaped(entry.path))
            return None
        except PermissionError:
            self.refused.path(entry.path, "may not be read by the tree's account")
            return None
        except OSError as error:
            raise broken(self.root, entry.path, error) from error
        if sealed is not None and not found.same_content(sealed):
            self.conflicts.path(
                entry.path, "changed after its day was sealed: it is not shipped, the copies keep theirs"
            )
            return None
        return found

    def seal(self, partition: str) -> None:
        """Write the manifest of a closed day once all in it is finished; what came late is added, and told."""
        path = self.home.manifest(partition)
        known = os.path.exists(path)
        late, waiting = False, False
        with Spool() as entries:
            for ours, before in joined(self.listing(partition), self.home.sealed(partition)):
                entry = before
                if ours is not None and not (before and ours.same_look(before)):
                    found = self.read(ours, before)
                    if before is None:
                        entry = found
                        waiting = waiting or found is None
                        late = late or found is not None
                        if known and found is not None:
                            self.conflicts.path(ours.path, "came after its day was sealed: it is shipped and added")
                if entry is not None:
                    entries.add(line(entry).encode())
            if waiting or (known and not late):
                if known and not self.check_mode:
                    os.utime(path)  # when it was last looked at
                return
            self.sealed.append(partition)
            if not self.check_mode:
                self.home.seal(partition, entries)

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

    def order(self, targets: Sequence[Target], timer: bool) -> list[str]:
        """The days to work on; the timer looks at some of those that are sealed everywhere."""
        sealed = {name: head.sha256 for name, head in self.home.manifests().items() if name in self.days}
        looked = {name: os.stat(self.home.manifest(name)).st_mtime for name in sealed}
        lacking = [
            name
            for name in sealed
            if any(target.manifests.get(name) != sealed[name] for target in targets if target.works)
        ]
        return due(self.days, looked, lacking, self.first_open, len(sealed) // TICKS + 1 if timer else None)

    def missing_days(self) -> list[str]:
        """Folders of days that should hold documents, and do not."""
        held = {day for folder, day in self.days.items() if not is_empty(self.root, unescaped(folder))}
        for partition, head in self.home.manifests().items():
            day = day_of(partition, self.tree.partition)
            held |= {day} if day is not None and head.files else set()
        missing = missing_days(held, self.first_open, self.tree.skip) if self.tree.partition else []
        return [day.strftime(self.tree.partition) for day in missing]

    def record(self, targets: Sequence[Target]) -> dict[str, Any]:
        """The result of a run."""
        lists = {"skipped_open_files": self.open, "refused": self.refused, "conflicts": self.conflicts}
        changed = bool(self.sealed) or any(target.files or target.sealed for target in targets)
        return {
            **_record(self.tree),
            "changed": changed,
            **{key: list(told) for key, told in lists.items()},
            "counts": {key: len(told) for key, told in lists.items()},
            "sealed": self.sealed,
            "missing_days": self.missing_days(),
            "problems": [
                *(f"{target.place.name}: {target.error}" for target in targets if target.error),
                *(f"{target.place.name}: {target.conflicts}" for target in targets if target.conflicts),
                *(str(told) for told in (self.conflicts, self.refused) if told),
            ],
            "destinations": [target.record() for target in targets],
        }


# ---------------------------------------------------------------------------------------------------------------------
# A destination
# ---------------------------------------------------------------------------------------------------------------------


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

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Errors of this destination are kept, and its time is taken."""
        began = time.monotonic()
        try:
            yield
        except HotspareError as error:
            self.error = error.message
            self.close()
        finally:
            self.seconds += time.monotonic() - began

    @property
    def works(self) -> bool:
        return self.error is None

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def connect(self) -> None:
        """Also learns which days are sealed there."""
        self._link = SshDestination(self.place, self.source.config)
        rows = b"".join(self._stream("manifests")).decode().split("\n")
        self.manifests = {name: sha256 for sha256, _, name in (row.partition(" ") for row in rows if row)}

    def fill(self, partition: str) -> bool:
        """Ship what of a day's folder is not there; whether all of it is there then."""
        source = self.source
        if self._call("look", partition=partition)["look"] == look(source.listing(partition)):
            return True
        with self.listing(partition) as theirs:
            rows = joined(source.listing(partition), theirs, source.home.sealed(partition))
            lacking = ((ours, sealed) for ours, there, sealed in rows if ours and not (there and ours.same_look(there)))
            whole = True
            for batch in batches(lacking):
                whole &= self._ship([source.read(ours, sealed) for ours, sealed in batch])
            return whole

    def hand_over(self, partition: str) -> None:
        """Have a day sealed there as it is here."""
        if not self.source.check_mode:
            reply = self._call("seal", partition=partition, upload=chunks(self.source.home.manifest(partition)))
            if not reply["sealed"]:
                self.conflicts.add(f"{partition} cannot be sealed there: {', '.join(reply['names'][:SAID])}")
                return
        self.sealed.append(partition)

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

    def states(self, entries: Sequence[Entry], adjust: bool) -> list[str]:
        """What each is there: missing, same, different, or kept."""
        return list(self._call("compare", entries=[line(entry) for entry in entries], adjust=adjust)["states"])

    def _ship(self, found: Sequence[Optional[Entry]]) -> bool:
        """Whether these are all there then."""
        entries = [entry for entry in found if entry is not None]
        states = dict(zip(entries, self.states(entries, adjust=not self.source.check_mode) if entries else []))
        wanted = [entry for entry, state in states.items() if state in ("missing", "different")]
        if self.source.check_mode:
            outcomes = ["new" if states[entry] == "missing" else "different" for entry in wanted]
        else:
            outcomes = self._take(wanted) if wanted else []
        states.update(zip(wanted, outcomes))
        for entry, outcome in zip(wanted, outcomes):
            if outcome == "changed":
                self.source.open.add(escaped(entry.path))
            elif outcome in ("new", "different"):
                self.files += 1
                self.bytes += entry.size
                self.names.add(escaped(entry.path))
        for entry, state in states.items():
            if state in ("different", "kept"):
                kept = f"{os.fsdecode(EVIDENCE)} as {entry.sha256}"
                self.conflicts.path(entry.path, f"is another one there: both stay, and this one lies there in {kept}")
        return len(entries) == len(found) and set(states.values()) <= {"same", "new"}

    def _take(self, entries: Sequence[Entry]) -> list[str]:
        """Have these stored there; for each what happened."""
        source = self.source
        self._rsync([entry for entry in entries if stat.S_ISREG(entry.mode)])
        modes = source.modes(entries)
        links = [entry.path for entry in entries if stat.S_ISLNK(entry.mode)]
        reply = self._call(
            "accept",
            source=source.config.name,
            entries=[line(entry._replace(mode=modes[entry.path])) for entry in entries],
            folders={escaped(path): stat.S_IMODE(mode) for path, mode in modes.items() if stat.S_ISDIR(mode)},
            targets={escaped(path): escaped(os.readlink(place(source.root, path))) for path in links},
        )
        return list(reply["outcomes"])

    def _rsync(self, entries: Sequence[Entry]) -> None:
        """Bring these to the staging directory there. Unreachable; Full; what did not arrive is found out there."""
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        with tempfile.NamedTemporaryFile() as names:
            names.write(
                b"\0".join(b"./" + entry.path for entry in entries)
            )  # rsync takes a name that begins with # for a comment
            names.flush()
            done = run(
                [
                    *("rsync", "--times", "--omit-dir-times", "--perms", "--chmod=D700,F600", "--partial", "--from0"),
                    *(
                        f"--files-from={names.name}",
                        "-e",
                        shlex.join(ssh_command(self.place)),
                        f"{self.source.tree.path}/",
                    ),
                    f"{host}:{self.source.tree.name}/{self.source.config.name}",
                ],
                timeout=None,
                check=False,
            )
        if done.rc not in RSYNC:
            free, size = int(self._call("room")["free_bytes"]), sum(entry.size for entry in entries)
            if free < size:
                raise Full(
                    f"there is no room for {size} bytes of documents, {free} are free: make some; they come again"
                )
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise Unreachable(f"rsync to {self.place} failed with exit code {done.rc}: {said[0]}; see its log there")

    def _call(self, op: str, **arguments: Any) -> dict[str, Any]:
        assert self._link is not None
        return self._link.call(f"tree_{op}", wait=WORK_SECONDS, tree=self.source.tree.name, **arguments)

    def _stream(self, op: str, **arguments: Any) -> Iterator[bytes]:
        assert self._link is not None
        return self._link.stream(f"tree_{op}", wait=WORK_SECONDS, tree=self.source.tree.name, **arguments)

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


def batches(rows: Iterable[tuple[Entry, Optional[Entry]]]) -> Iterator[list[tuple[Entry, Optional[Entry]]]]:
    """Of so many files, and so many bytes, that a run which dies has not much to do again."""
    batch: list[tuple[Entry, Optional[Entry]]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row[0].size
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def _sync(
    config: ArchiveConfig, tree: Tree, names: Optional[Sequence[str]], check_mode: bool, timer: bool
) -> dict[str, Any]:
    source = Source(config, tree, check_mode)
    owes = source.home.owes()
    locked = source.home.lock("ship", 0 if timer else WAIT_SECONDS)
    until = time.monotonic() + (TICK_SECONDS if timer else math.inf)
    with contextlib.nullcontext() if check_mode else locked, _targets(source, names) as targets:
        left = ["", *source.order(targets, timer and not owes)]
        while left and not (source.is_closed(left[0]) and time.monotonic() > until):
            partition = left.pop(0)
            closed = source.is_closed(partition) and not owes  # only the original seals
            if closed:
                source.seal(partition)
            manifest = source.home.header(partition) if closed else None
            for target in (target for target in targets if target.works):
                with target.working():
                    there = target.fill(partition)
                    known = manifest is not None and target.manifests.get(partition) == manifest.sha256
                    if there and not known and (manifest is not None or partition in source.sealed):
                        target.hand_over(partition)
        complete = not (left or source.open or source.conflicts)
        for target in (target for target in targets if target.works and not check_mode):
            with target.working():
                target.finish(complete)
        if owes and names is None and not (left or source.open or check_mode) and all(t.works for t in targets):
            source.home.paid()
    return source.record(targets)


@contextlib.contextmanager
def _targets(source: Source, names: Optional[Sequence[str]]) -> Iterator[list[Target]]:
    """The destinations of these names, default all, as far as they can be reached. HotspareError for a wrong name."""
    places = source.tree.destinations
    if unknown := set(names or ()) - {place.name for place in places}:
        raise HotspareError(f"the tree {source.tree.name} goes not to {', '.join(sorted(unknown))}: see archive_trees")
    targets = [Target(source, place) for place in places if names is None or place.name in names]
    with contextlib.ExitStack() as closing:
        for target in targets:
            closing.callback(target.close)
            with target.working():
                target.connect()
        yield targets


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons
# ---------------------------------------------------------------------------------------------------------------------


class Count:
    """What a place holds of the tree: counts, the first names of what is wrong, the newest document."""

    def __init__(self) -> None:
        self.present = self.extra = self.bytes = 0
        self.missing, self.different = Told(), Told()
        self.newest: Optional[Entry] = None

    def see(self, entry: Entry) -> None:
        if self.newest is None or entry.mtime > self.newest.mtime:
            self.newest = entry

    def state(self, entry: Entry, state: str) -> None:
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
            "extra": self.extra,
            "bytes": self.bytes,
            "newest": newest,
            "names": {"missing": list(self.missing), "different": list(self.different)},
        }
        seen = known if error is None else dict.fromkeys(known)
        return {"name": name, "own": own, "error": error, "seconds": round(seconds, 3), **seen}


def _compare(config: ArchiveConfig, tree: Tree, names: Optional[Sequence[str]], deep: bool) -> dict[str, Any]:
    source = Source(config, tree, True)
    partitions = sorted({"", *source.days, *source.home.manifests()})
    with _targets(source, names) as targets:
        counts = [Count() for _ in targets]
        for partition in partitions:
            for target, count in zip(targets, counts):
                if target.works:
                    with target.working():
                        _compare_there(source, target, partition, count, deep)
        began = time.monotonic()
        own = Count()
        for partition in partitions:
            _compare_here(source, partition, own, deep)
        here = own.record(config.name, True, None, time.monotonic() - began)
        records = [
            count.record(target.place.name, False, target.error, target.seconds)
            for target, count in zip(targets, counts)
        ]
    result = source.record([])
    said = [
        f"{place['name']}: {place[what]} documents are {what}, such as {place['names'][what][0]}"
        for place in [*records, here]
        for what in ("missing", "different")
        if place[what]
    ]
    errors = [f"{place['name']}: {place['error']}" for place in records if place["error"]]
    complete = source.home.complete()
    return {
        **result,
        "destinations": [*records, here],
        "problems": [*errors, *said, *result["problems"]],
        "complete": complete,
    }


def _compare_there(source: Source, target: Target, partition: str, count: Count, deep: bool) -> None:
    """A day's folder there with what it was sealed as, or else with what is here."""

    def doubtful() -> Iterator[tuple[Entry, Optional[Entry]]]:
        for ours, sealed, there in joined(source.listing(partition), source.home.sealed(partition), theirs):
            entry = sealed or ours
            if there is not None:
                count.see(there)
            if entry is None:
                count.extra += 1
            elif there is None:
                count.state(entry, "missing")
            elif not deep and entry.same_look(there):
                count.state(entry, "same")
            else:
                yield entry, sealed

    with target.listing(partition) as theirs:
        for batch in batches(doubtful()):
            read = [sealed or source.read(entry, None) for entry, sealed in batch]
            entries = [entry for entry in read if entry is not None]
            for entry, state in zip(entries, target.states(entries, adjust=False) if entries else []):
                count.state(entry, state)


def _compare_here(source: Source, partition: str, count: Count, deep: bool) -> None:
    """A day's folder here with what it was sealed as."""
    for ours, sealed in joined(source.listing(partition), source.home.sealed(partition)):
        if ours is not None:
            count.see(ours)
        if ours is None:
            assert sealed is not None
            count.state(sealed, "missing")
        elif sealed is None:
            count.state(ours, "same")
        elif ours.same_look(sealed) and not deep:
            count.state(sealed, "same")
        else:
            try:
                same = content(place(source.root, ours.path)) == sealed.sha256
            except OSError as error:
                raise broken(source.root, ours.path, error) from error
            count.state(sealed, "same" if same else "different")
