# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each destination comes to hold all WAL that anybody has, and is rid of what nobody needs.

The shipper takes what PostgreSQL hands over. What it never hands over (the hole after a failover), what a destination
missed while it was away, whether all of it is right, and what may go, is looked after here: by a timer on the primary,
and by the module archive_sync on any node. No file is ever overwritten, so two of these may run at once.

A result has `problems` (sentences; empty = what was asked for is so) and `destinations`, a record for each archive.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any, Optional

from .archive import COMPRESSED_KINDS, Entry, source
from .archive_config import ArchiveConfig
from .archive_gaps import gaps
from .archive_link import Digest
from .archive_needs import Backup, needs, oldest_restorable, parse_backup
from .archive_retention import NUMBERED, Cut, cut
from .records import listed
from .server import read_text
from .shell import HotspareError
from .store import Conflict, Full
from .wal import format_lsn
from .wal_file import BadWal, Check, kind
from .wal_holders import Archived, Holder, Look, Server, look, read_server, stray
from .wire import Unreachable

ON_ITS_WAY_SECONDS = 60  # a segment that was finished so lately is not missing yet

# ---------------------------------------------------------------------------------------------------------------------
# Decisions
# ---------------------------------------------------------------------------------------------------------------------


def shipping_order(names: Iterable[str]) -> list[str]:
    """As the archiver has it: histories first, so that nobody follows a timeline without one, then by name. (Pure.)"""
    return sorted(names, key=lambda name: (kind(name) != "history", name))


def wanted(held: Iterable[Collection[str]], server: Optional[Server], before: Optional[str] = None) -> list[str]:
    """What every destination has to hold, of all that anybody `held`, in the order to ship it. (Pure.)

    Not what goes nowhere, nor what retention would remove again: all `before` these digits of log and segment.
    """
    known = {name for names in held for name in names}
    return shipping_order(
        name
        for name in known
        if not (server and stray(name, server)) and not (before and kind(name) in NUMBERED and name[8:24] < before)
    )


def odd(digests: Mapping[str, Mapping[str, Digest]]) -> dict[str, list[str]]:
    """By holder, the files that are not what most holders have under that name. (Pure.)

    Where no content has more holders than every other, nobody knows which one is right: it is none.
    """
    found: dict[str, list[str]] = {holder: [] for holder in digests}
    for name in sorted({name for files in digests.values() for name in files}):
        contents = {holder: files[name].sha256 for holder, files in digests.items() if name in files}
        contents = {holder: sha256 for holder, sha256 in contents.items() if sha256 is not None}
        ranks = Counter(contents.values()).most_common(2)
        tied = len(ranks) == 2 and ranks[0][1] == ranks[1][1]
        for holder, sha256 in contents.items():
            if tied or sha256 != ranks[0][0]:
                found[holder].append(name)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What the module and the timer ask for
# ---------------------------------------------------------------------------------------------------------------------


def sync(
    config: ArchiveConfig, *, destinations: Optional[Sequence[str]] = None, check_mode: bool = False
) -> dict[str, Any]:
    """Ship to the destinations (names; default all) what they lack of all that can be had. HotspareError."""
    with look(config, destinations) as seen:
        return _ship(seen, _next_cut(seen), check_mode)


def verify(config: ArchiveConfig, *, destinations: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """Read every file of the destinations again and compare it with what others have of that name. HotspareError."""
    with look(config, destinations) as seen:
        return _compare(seen, _next_cut(seen))


def prune(
    config: ArchiveConfig, *, destinations: Optional[Sequence[str]] = None, check_mode: bool = False
) -> dict[str, Any]:
    """Remove what nobody needs, once everybody has said what that is. HotspareError."""
    with look(config, destinations) as seen:
        return _prune(seen, _next_cut(seen), check_mode)


def check(config: ArchiveConfig, *, destinations: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """Beside `problems`, the record `archive` of which archive_report tells. HotspareError."""
    with look(config, destinations) as seen:
        return _report(seen, _next_cut(seen))


def tick(config: ArchiveConfig) -> list[dict[str, Any]]:
    """What the timer does, on the primary alone: ship, prune where that is wanted; the results. HotspareError."""
    server = read_server(config.node) if config.node else None
    if server is not None and server.role == "unknown":
        raise HotspareError(f"nobody knows whether {config.name} is the primary: {server.reason}")
    if server is None or server.role != "primary":
        return []
    with look(config, server=server) as seen:
        found = _next_cut(seen)
        # In this order: what retention is refused somewhere keeps no WAL from there.
        return [_ship(seen, found, False), *([_prune(seen, found, False)] if config.keep else [])]


# ---------------------------------------------------------------------------------------------------------------------
# Ship
# ---------------------------------------------------------------------------------------------------------------------


class _Work:
    """What is done with one archive, and the record of it."""

    def __init__(self, archive: Archived, names: Iterable[str] = ()) -> None:
        self.archive = archive
        self.lacks = set(names)
        self.names: list[str] = []
        self.bytes = 0
        self.seconds = 0.0
        self.sources: Counter[str] = Counter()
        self.conflicts: list[str] = []

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Its time counts, and an error is the archive's: there is nothing more to do with it."""
        began = time.monotonic()
        try:
            yield
        except BadWal:
            raise  # the file's
        except HotspareError as error:
            self.archive.error = error.message
        finally:
            self.seconds += time.monotonic() - began

    def did(self, name: str, size: int) -> None:
        self.names.append(name)
        self.bytes += size

    def take(self, name: str, path: str, origin: Holder) -> None:
        """Ship one file; BadWal."""
        with self.going_on():
            try:
                # The shipper may have been quicker.
                if name not in self.archive.link.has([name]):
                    stored = self.archive.link.put(name, path)
                    if stored.new:
                        self.did(name, stored.size)
                        self.sources[origin.name] += 1
            except Conflict as error:
                self.conflicts.append(error.message)

    def record(self, **more: Any) -> dict[str, Any]:
        return {
            "name": self.archive.name,
            "error": self.archive.error,
            "files": len(self.names),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "rate": round(self.bytes / self.seconds) if self.bytes and self.seconds else None,
            **more,
        }


def _ship(seen: Look, found: Cut, check_mode: bool) -> dict[str, Any]:
    names = wanted([holder.held for holder in seen.holders], seen.server, found.before)
    targets = [archive for archive in seen.chosen if not archive.own]
    works = [_Work(archive, (name for name in names if name not in archive.held)) for archive in targets]
    problems = _split(seen)
    for name in names:
        lacking = [work for work in works if name in work.lacks and not work.archive.error]
        if lacking and check_mode:
            origin = next(holder for holder in seen.holders if name in holder.held)
            for work in lacking:
                work.did(name, _size(seen, name, origin))
                work.sources[origin.name] += 1
        elif lacking:
            try:
                problems += _carry(seen, name, lacking)
            except Full as error:  # not there, but here, where files pass through
                problems.append(error.message)
                break
    return _result(
        seen,
        [work.record(sources=dict(work.sources), conflicts=work.conflicts, names=work.names) for work in works],
        [*problems, *(conflict for work in works for conflict in work.conflicts)],
        strays=sorted({n for archive in seen.archives for n in archive.held if seen.server and stray(n, seen.server)}),
    )


def _carry(seen: Look, name: str, works: Sequence[_Work]) -> list[str]:
    """Bring a file from the first who has it whole to those who lack it; what is wrong with the others' (sentences)."""
    left = list(works)
    damaged: list[str] = []
    failed: list[str] = []
    for origin in (holder for holder in seen.holders if name in holder.held and not holder.error):
        try:
            with origin.file(name) as path:
                _require_ours(seen, name, path)
                while left:
                    left[0].take(name, path, origin)
                    left.pop(0)
            return damaged
        except Full:
            raise
        except Unreachable as error:
            origin.error = error.message
        except BadWal as error:
            damaged.append(f"{origin.name}: {error.message}")
        except HotspareError as error:
            failed.append(f"{name} could not be taken from {origin.name}: {error.message}")
    return damaged + failed


def _require_ours(seen: Look, name: str, path: str) -> None:
    """BadWal when its pages are not of the timelines that our history has there; all else is looked at by who ships."""
    history = seen.server.ancestors(int(name[:8], 16)) if seen.server and kind(name) in COMPRESSED_KINDS else None
    if history:
        check = Check(name, **asdict(seen.identity), history=history)
        for block in source(path):
            check.feed(block)
        check.finish()


def _size(seen: Look, name: str, origin: Holder) -> int:
    return seen.identity.segment_size if kind(name) in COMPRESSED_KINDS else origin.held[name]


def _split(seen: Look) -> list[str]:
    """Histories of one name and different content; they are few and short, so they are read each time."""
    digests, _problems = _read_again(
        seen, {n for archive in seen.archives for n in archive.held if kind(n) == "history"}
    )
    names = sorted({name for files in odd(digests).values() for name in files})
    return [
        f"{name} is not the same in {listed(who for who in digests if name in digests[who])}: two servers were "
        f"promoted to timeline {int(name[:8], 16)}, find out which of them wrote what"
        for name in names
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Verify
# ---------------------------------------------------------------------------------------------------------------------


def _read_again(seen: Look, names: Collection[str]) -> tuple[dict[str, dict[str, Digest]], list[_Work]]:
    """What all archives and our own pg_wal have under these names, by holder; with what that took."""
    works = [_Work(archive) for archive in seen.archives]
    digests = {}
    for work in works:
        if not work.archive.error:
            with work.going_on():
                digests[work.archive.name] = work.archive.digest(sorted(set(names) & work.archive.held.keys()))
    if seen.own_wal is not None:
        digests[seen.own_wal.name] = seen.own_wal.digest(sorted(set(names) & seen.own_wal.held.keys()))
    return digests, works


def _compare(seen: Look, found: Cut) -> dict[str, Any]:
    digests, works = _read_again(seen, {name for archive in seen.chosen for name in archive.held})
    different = odd(digests)
    should = set(wanted([holder.held for holder in seen.holders], seen.server, found.before))
    written = seen.own_wal.written if seen.own_wal else {}
    young = [name for name in written if _now() - written[name] < ON_ITS_WAY_SECONDS]
    readers = Counter(name for files in digests.values() for name in files)
    records, problems = [], []
    for work in (work for work in works if work.archive in seen.chosen):
        archive = work.archive
        files = digests.get(archive.name, {})
        for name, digest in files.items():
            if digest.size is not None:
                work.did(name, digest.size)
        record = work.record(
            # Nobody ships to our own store from here.
            missing=[] if archive.own or archive.error else sorted(should.difference(archive.held, young)),
            different=different.get(archive.name, []),
            damaged=[f"{name}: {digest.error}" for name, digest in files.items() if digest.error],
            alone=sum(readers[name] == 1 for name in files),
            newest=max((name for name in archive.held if kind(name) == "segment"), default=None),
        )
        records.append(record)
        problems += (
            [f"{archive.name} lacks {_some(record['missing'])}: archive_sync ships it"] if record["missing"] else []
        )
        problems += [f"{name} in {archive.name} is not what the others have" for name in record["different"]]
        problems += [f"{line}, in {archive.name}" for line in record["damaged"]]
    return {**_result(seen, records, problems), "changed": False}


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} to {names[-1]}"


# ---------------------------------------------------------------------------------------------------------------------
# Prune
# ---------------------------------------------------------------------------------------------------------------------


def _next_cut(seen: Look) -> Cut:
    """One for all archives, so that what one is rid of is not shipped to it again from another."""
    keep = seen.config.keep
    entries: dict[str, Entry] = {}
    for entry in (entry for archive in seen.archives for entry in archive.entries.values()):
        known = entries.get(entry.name)
        entries[entry.name] = entry if known is None or known.mtime < entry.mtime else known
    least = 0
    try:
        if keep:
            least = keep.segments or 0
            for archive in seen.archives:
                if archive.error:
                    raise HotspareError(f"{archive.name} does not say which backups it has: {archive.error}")
        backups = _backups(seen) if keep else {}
        # One that began on a branch which was left leads nowhere.
        backups = {name: one for name, one in backups.items() if not (seen.server and stray(name, seen.server))}
        asked = needs(seen.config, entries.values(), backups.values(), _now(), identity=seen.identity)
    except HotspareError as error:
        return Cut(ok=False, before=None, remove=[], deciding=None, reason=f"nothing is removed, {error.message}")
    return cut(entries, asked, segment_size=seen.identity.segment_size, minimum_segments=least)


def _backups(seen: Look) -> dict[str, Backup]:
    """The base backups of which the archives know, by the names of their files; HotspareError if one cannot be read."""
    found = {}
    for archive in (archive for archive in seen.archives if not archive.error):
        for name in archive.held:
            if kind(name) == "backup" and name not in found:
                found[name] = parse_backup(archive.read(name))
    return found


def _prune(seen: Look, found: Cut, check_mode: bool) -> dict[str, Any]:
    works = [_Work(archive) for archive in seen.chosen]
    for work in works:
        archive = work.archive
        gone = [name for name in found.remove if name in archive.held]
        if gone and not check_mode:
            names, gone = gone, []
            with work.going_on():
                gone = archive.link.remove(names)
        for name in gone:
            work.did(name, archive.held.pop(name))
    refused = [found.reason] if seen.config.keep and not found.ok else []
    return _result(seen, [work.record(names=work.names) for work in works], refused, cut=found.as_dict())


# ---------------------------------------------------------------------------------------------------------------------
# Check
# ---------------------------------------------------------------------------------------------------------------------


def _report(seen: Look, found: Cut) -> dict[str, Any]:
    server, problems = seen.server, _split(seen)
    histories: dict[int, str] = {}
    backups: dict[str, Backup] = {}
    try:
        histories, backups = _histories(seen), _backups(seen)
    except HotspareError as error:
        problems.append(error.message)
    newest = max((int(name[:8], 16) for archive in seen.archives for name in archive.held), default=1)
    timeline = server.timeline if server else newest
    archive = {
        "name": seen.config.name,
        "cluster": seen.config.cluster,
        "timeline": timeline,
        "position": format_lsn(server.position) if server else None,
        "places": [_place(seen, archive, timeline, histories, backups, found) for archive in seen.chosen],
    }
    return {**_result(seen, [], problems), "archive": archive}


def _place(
    seen: Look,
    archive: Archived,
    timeline: int,
    histories: Mapping[int, str],
    backups: Mapping[str, Backup],
    found: Cut,
) -> dict[str, Any]:
    unknown = dict.fromkeys(("gaps", "waiting_seconds", "backup", "files", "bytes", "free_bytes", "cut", "cut_bytes"))
    record = {"name": archive.name, "own": archive.own, "error": archive.error, **unknown, "conflicts": None}
    work = _Work(archive)
    if not archive.error:
        with work.going_on():
            record["conflicts"] = archive.link.conflicts()
    if archive.error:
        return {**record, "error": archive.error}
    removable = [name for name in found.remove if name in archive.held]
    record.update(
        files=len(archive.held),
        bytes=sum(archive.held.values()),
        free_bytes=archive.free_bytes,
        cut=replace(found, remove=removable).as_dict(),
        cut_bytes=sum(archive.held[name] for name in removable) if found.ok else None,
    )
    if archive.own:
        return record  # nothing is shipped to it from here
    others = [holder for holder in seen.holders if holder is not archive]
    report = gaps(
        archive.held,
        histories,
        segment_size=seen.identity.segment_size,
        timeline=timeline,
        position=seen.server.position if seen.server else None,
        ready=seen.ready,
        elsewhere={name for holder in others for name in holder.held},
        silent=[holder.name for holder in others if holder.error],
    )
    there = [backup for name, backup in backups.items() if name in archive.held]
    oldest = oldest_restorable(report, there, seen.identity.segment_size)
    record.update(
        gaps=report.as_dict(), waiting_seconds=_waiting(seen, archive, found), backup=asdict(oldest) if oldest else None
    )
    return record


def _waiting(seen: Look, archive: Archived, found: Cut) -> Optional[float]:
    """For how long the oldest file here that is not there has been complete (s); None where there is no WAL here."""
    if seen.own_wal is None or seen.own_wal.error:
        return None
    written = seen.own_wal.written
    lacking = [name for name in wanted([written], seen.server, found.before) if name not in archive.held]
    return max((round(_now() - written[name], 1) for name in lacking), default=0.0)


def _histories(seen: Look) -> dict[int, str]:
    """The texts of all histories, by timeline; those of our own server count first. HotspareError."""
    found: dict[int, str] = {}
    for holder in (holder for holder in seen.holders if not holder.error):
        for name in holder.held:
            if kind(name) == "history" and int(name[:8], 16) not in found:
                with holder.file(name) as path:
                    found[int(name[:8], 16)] = read_text(path) or ""
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def _result(seen: Look, records: list[dict[str, Any]], problems: list[str], **more: Any) -> dict[str, Any]:
    """The problems of those that were asked about come first; who only could have helped is a warning."""
    unasked = [e if e.startswith(a.name) else f"{a.name}: {e}" for a in seen.chosen if (e := a.error)]
    others = [h for h in seen.holders if h.error and h not in seen.chosen]
    return {
        "changed": any(record["files"] for record in records),
        "destinations": records,
        "problems": unasked + problems,
        "warnings": [f"nothing was taken from {holder.name}: {holder.error}" for holder in others],
        **more,
    }


def _now() -> float:
    return datetime.now(timezone.utc).timestamp()
