# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The WAL archive of one cluster in a directory: what comes in is verified, stored for good, and never replaced.

archive.json                 whose it is
wal/00000002.history         histories of timelines
wal/00000001/0000000A/NAME   segments, .partial and .backup files by timeline and log id; NAME.zst is compressed
conflicts/NAME.HASH          what was refused, since other content has its name
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Optional

from . import store
from .shell import HotspareError
from .store import OS, Conflict, Layer, Stored
from .wal import HistoryEntry, parse_history, segment_size_ok
from .wal_file import BadWal, Check, WalFacts, kind
from .zstd import Decompressor, compressed, decompressed

SUFFIXES = {"none": "", "zstd": ".zst"}
COMPRESSED_KINDS = ("segment", "partial")  # what is worth it
FILE_MODE = 0o640


@dataclass(frozen=True)
class Identity:
    """Whose WAL an archive holds; segments of another size are another cluster's, or from before pg_resetwal."""

    system_identifier: int
    segment_size: int


@dataclass(frozen=True)
class Entry:
    """A file of the archive; `stored_bytes` as it lies there, `mtime` (seconds since 1970) when it came."""

    name: str
    kind: str
    stored_bytes: int
    mtime: float


class Archive:
    """The archive in `directory`, which exists; `compression` (none, zstd) is for what put() stores."""

    def __init__(self, directory: str, *, compression: str = "none", layer: Layer = OS) -> None:
        if compression not in SUFFIXES:
            raise HotspareError(f"the compression {compression!r} is none of {', '.join(SUFFIXES)}")
        self.directory = os.path.normpath(directory)
        self.compression = compression
        self._layer = layer
        self._seen = False  # that it is somebody's
        self._swept = False

    # --- whose it is -------------------------------------------------------------------------------------------------

    def identity(self) -> Optional[Identity]:
        """None while nothing was ever archived here; HotspareError when that is not known, or not so any more."""
        path = self._path("archive.json")
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            identity = Identity(int(found["system_identifier"]), int(found["segment_size"]))
        except FileNotFoundError as error:
            self._look_at(self.directory)
            if self._seen:
                raise HotspareError(f"{path} is gone: see whether the file system of the archive is mounted") from error
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise HotspareError(f"{path} does not say whose archive this is ({error}): see who wrote it") from error
        self._seen = True
        return identity

    def establish(self, system_identifier: int, segment_size: int) -> Identity:
        """Make it the archive of this cluster, once and for all; BadWal when it is another's. HotspareError."""
        wanted = Identity(system_identifier, segment_size)
        if not segment_size_ok(segment_size):
            raise BadWal(f"{segment_size} bytes is not a segment size of PostgreSQL: see who says so", code="size")
        found = self.identity() or self._write_identity(wanted)
        if found != wanted:
            other = f"system identifier {found.system_identifier} and segments of {found.segment_size} bytes"
            raise BadWal(
                f"{self.directory} is the archive of a cluster with {other}, not of {system_identifier} with "
                f"{segment_size}: give each cluster its own, also one that initdb or pg_upgrade made anew",
                code="system" if found.system_identifier != system_identifier else "size",
            )
        if not self._swept:
            store.sweep(self.directory, self._layer)
            self._swept = True
        return found

    def _write_identity(self, identity: Identity) -> Identity:
        with store.receive(self.directory, "archive.json", mode=FILE_MODE, layer=self._layer) as incoming:
            incoming.write(json.dumps(asdict(identity)).encode() + b"\n")
            with contextlib.suppress(Conflict):  # another was quicker
                incoming.commit()
        return self.identity() or identity

    # --- in ----------------------------------------------------------------------------------------------------------

    def receive(self, name: str, *, encoding: str = "none", system_identifier: int, segment_size: int) -> Receiving:
        """Begin to store a file, whose bytes come as `encoding` says and are stored so; BadWal, HotspareError."""
        if encoding not in SUFFIXES:
            raise HotspareError(f"the encoding {encoding!r} is none of {', '.join(SUFFIXES)}")
        return Receiving(self, name, encoding, self.establish(system_identifier, segment_size))

    def put(self, name: str, path: str) -> Stored:
        """Store a file of this host; its cluster has to be established. BadWal, Conflict, Full, HotspareError."""
        identity = self.identity()
        if identity is None:
            raise HotspareError(f"{self.directory} is nobody's archive yet: establish whose it is first")
        encoding = self.compression if kind(name) in COMPRESSED_KINDS else "none"
        with self.receive(name, encoding=encoding, **asdict(identity)) as incoming:
            with contextlib.closing(encoded(source(path), encoding)) as chunks:
                for chunk in chunks:
                    incoming.write(chunk)
            return incoming.commit()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else adds a name meanwhile: NAME and NAME.zst must not both come to be. HotspareError."""
        path = self._path(".lock")
        with store.explained("lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # --- what is there -----------------------------------------------------------------------------------------------

    def has(self, name: str) -> Optional[Entry]:
        """None when it is not there; HotspareError when that is not known."""
        path = self.find(name)
        return self._entry(name, path) if path else None

    def find(self, name: str) -> Optional[str]:
        """Where a file lies; None when it is not there, HotspareError when that is not known."""
        path = self._find(name)
        if path is None:
            self.identity()  # an archive that is not mounted is not an empty one
            path = self._find(name)  # that it is now is not to say that it was then
        return path

    def read(self, name: str) -> Iterator[bytes]:
        """The content of a file, decompressed; HotspareError."""
        path = self.find(name)
        if path is None:
            raise HotspareError(f"{name} is not in the archive {self.directory}", name=name)
        return content(path)

    def digest(self, name: str) -> tuple[str, int]:
        """SHA-256 and size of a file's content, read anew; HotspareError."""
        found, size = hashlib.sha256(), 0
        for chunk in self.read(name):
            found.update(chunk)
            size += len(chunk)
        return found.hexdigest(), size

    def inventory(self) -> list[Entry]:
        """All files of the archive by name; HotspareError when not all can be seen."""
        found: dict[str, Entry] = {}
        top = self._path("wal")
        if not self._look_at(top, missing_ok=True):
            self.identity()  # as in find()
            return []
        for directory, _directories, names in os.walk(top, onerror=_raise_unreadable):
            for stored in sorted(names, reverse=True):  # NAME wins over NAME.zst, as in find()
                name = stored[: -len(".zst")] if stored.endswith(".zst") else stored
                if kind(name) and os.path.join(directory, name) == self._path(self.place(name)):
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        found[name] = self._entry(name, os.path.join(directory, stored))
        return [found[name] for name in sorted(found)]

    def ancestors(self, name: str) -> Optional[list[HistoryEntry]]:
        """Of the timeline of a segment, where its .history is here (PostgreSQL archives that first); else None."""
        path = self._find(f"{name[:8]}.history") if kind(name) in COMPRESSED_KINDS else None
        if path is None:
            return None
        try:
            return parse_history(b"".join(content(path)).decode(errors="replace"))
        except ValueError as error:
            raise HotspareError(f"{path} is damaged, {error}: compare it with that of the server") from error

    def free_bytes(self) -> int:
        """What this account may still store; HotspareError."""
        try:
            status = os.statvfs(self.directory)
        except OSError as error:
            raise _unreadable(self.directory, error) from error
        return status.f_bavail * status.f_frsize

    def conflicts(self) -> list[dict[str, Any]]:
        """What was refused and kept: entries with their `path`, the oldest first; HotspareError."""
        top = self._path("conflicts")
        if not self._look_at(top, missing_ok=True):
            self.identity()  # as in find()
            return []
        found = []
        try:
            for kept in sorted(os.listdir(top)):
                path = os.path.join(top, kept)
                name = kept.rpartition(".")[0].removesuffix(".zst")
                if kind(name):
                    found.append({**asdict(self._entry(name, path)), "path": path})
        except OSError as error:
            raise _unreadable(top, error) from error
        return sorted(found, key=lambda entry: float(entry["mtime"]))

    # --- out ---------------------------------------------------------------------------------------------------------

    def remove(self, names: Iterable[str]) -> list[str]:
        """Remove these files in this order; the names of those that were there. HotspareError."""
        wanted = {}
        for name in names:
            for suffix in SUFFIXES.values():
                wanted[self._path(self.place(name) + suffix)] = name
        with self.alone():
            gone = store.remove(self.directory, [os.path.relpath(path, self.directory) for path in wanted], self._layer)
        return list(dict.fromkeys(wanted[path] for path in gone))

    # --- within ------------------------------------------------------------------------------------------------------

    @staticmethod
    def place(name: str) -> str:
        """Where a file lies in the archive, without the suffix of its encoding; BadWal for a name that is none."""
        found = kind(name)
        if found is None:
            raise BadWal(f"{name!r} is not the name of a WAL file: give what PostgreSQL names %f", code="name")
        return f"wal/{name}" if found == "history" else f"wal/{name[:8]}/{name[8:16]}/{name}"

    def _find(self, name: str) -> Optional[str]:
        paths = (self._path(self.place(name) + suffix) for suffix in SUFFIXES.values())
        return next((path for path in paths if self._look_at(path, missing_ok=True)), None)

    def _path(self, relative: str) -> str:
        return os.path.join(self.directory, relative)

    def _entry(self, name: str, path: str) -> Entry:
        found = kind(name)
        if found is None:
            raise AssertionError(name)
        status = os.stat(path, follow_symlinks=False)
        return Entry(name, found, status.st_size, status.st_mtime)

    @staticmethod
    def _look_at(path: str, *, missing_ok: bool = False) -> bool:
        try:
            os.stat(path, follow_symlinks=False)
        except FileNotFoundError as error:
            if not missing_ok:
                raise _unreadable(path, error) from error
            return False
        except OSError as error:
            raise _unreadable(path, error) from error
        return True


class Receiving:
    """A file on its way into an archive; as a context manager it is given up unless it was committed."""

    def __init__(self, archive: Archive, name: str, encoding: str, identity: Identity) -> None:
        self.check = Check(name, **asdict(identity), history=archive.ancestors(name))
        self._archive = archive
        self._encoding = encoding
        suffix = SUFFIXES[encoding]
        self._incoming = store.receive(
            archive.directory,
            archive.place(name) + suffix,
            mode=FILE_MODE,
            evidence=f"conflicts/{name}{suffix}",
            digest=self.check.sha256,
            layer=archive._layer,
        )
        try:
            self._filter = Decompressor() if encoding == "zstd" else None
        except HotspareError:
            self._incoming.abort()
            raise

    def __enter__(self) -> Receiving:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.abort()

    def write(self, chunk: bytes) -> None:
        """The next bytes, as they were sent; BadWal at the first defect, Full, HotspareError."""
        for part in self._filter.feed(chunk) if self._filter else (chunk,):
            self.check.feed(part)
        self._incoming.write(chunk)

    def commit(self, sha256: Optional[str] = None) -> Stored:
        """Verify the whole and make it durable; `sha256` and the size returned are those of the content.

        BadWal; Conflict when other content has the name; Full; HotspareError.
        """
        if self._filter:
            for part in self._filter.finish():
                self.check.feed(part)
            self._filter.close()
        facts = self.check.finish()
        if sha256 not in (None, facts.sha256):
            raise HotspareError(
                f"{facts.name} did not arrive as it was sent, its SHA-256 is {facts.sha256} and not {sha256}: "
                "send it again"
            )
        self._incoming.sync()
        with self._archive.alone():
            path = self._archive.find(facts.name)
            if path is None:
                return Stored(self._incoming.commit().path, facts.size, facts.sha256, True)
        difference = store.first_difference(content(path), self._content())
        if difference is not None:
            raise self._conflict(path, difference, facts)
        with store.explained("make durable", path):
            store.confirm(path, self._archive._layer)
        self.abort()
        return Stored(path, facts.size, facts.sha256, False)

    def abort(self) -> None:
        """Give it up, and leave nothing behind; nothing to do when it was committed."""
        if self._filter:
            self._filter.close()
        self._incoming.abort()

    def _conflict(self, path: str, difference: int, ours: WalFacts) -> Conflict:
        existing, check = None, Check(ours.name)
        try:
            existing, _size = self._archive.digest(ours.name)
            for chunk in content(path):
                check.feed(chunk)
            there = shown(check.finish(), content(path), difference)
        except HotspareError as error:
            there = f"damaged, since {error.message}"
        here = shown(ours, self._content(), difference)
        page = f" (page {difference // ours.page_size})" if ours.page_size else ""
        evidence = self._incoming.keep()
        return Conflict(
            f"{ours.name} is in the archive already and differs from byte {difference}{page} on: there {there}; here "
            f"{here}; it was left alone, and what came now lies in {evidence}: find out which server wrote which",
            path=path,
            first_difference=difference,
            evidence=evidence,
            existing_sha256=existing,
            sha256=ours.sha256,
        )

    def _content(self) -> Iterator[bytes]:
        return decoded(store.chunks(self._incoming.temporary), self._encoding)


def source(path: str) -> Generator[bytes, None, None]:
    """A file's content in blocks; BadWal when it changes meanwhile, or is no regular file. HotspareError."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise BadWal(f"{path} is not a regular file: it is not archived", code="name")
            while block := file.read(store.BLOCK):
                yield block
            after = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BadWal(f"{path} changed while it was read: it is archived once nobody writes to it", code="changed")


def content(path: str) -> Iterator[bytes]:
    """What a file of the archive holds, decompressed; HotspareError."""
    try:
        yield from decoded(store.chunks(path), "zstd" if path.endswith(".zst") else "none")
    except OSError as error:
        raise _unreadable(path, error) from error
    except HotspareError as error:
        raise HotspareError(f"cannot read {path}: {error.message}") from error


def decoded(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Bytes as they were before they were encoded; HotspareError."""
    return decompressed(chunks) if encoding == "zstd" else chunks


def encoded(chunks: Generator[bytes, None, None], encoding: str) -> Generator[bytes, None, None]:
    """Bytes as they are stored in this encoding; HotspareError."""
    return compressed(chunks) if encoding == "zstd" else chunks


def shown(facts: WalFacts, chunks: Iterable[bytes], difference: int) -> str:
    """What may tell a file from another one of its name, which differs from this byte on."""
    if facts.timelines:
        return f"timeline {', '.join(map(str, facts.timelines))} of system {facts.system_identifier}"
    text = b"".join(chunks)
    line = text[text.rfind(b"\n", 0, difference) + 1 :].partition(b"\n")[0]
    return repr(line.decode(errors="replace"))


def _unreadable(path: str, error: OSError) -> HotspareError:
    return HotspareError(f"cannot read {path}: {error.strerror}; see that it is mounted, and whose it is")


def _raise_unreadable(error: OSError) -> None:
    raise _unreadable(str(error.filename), error) from error
