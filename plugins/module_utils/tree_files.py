# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A document tree on this host: walked and read, made the original or a read-only copy, and what is known of it.

All is done as the tree's account; documents that belong to another one are told, not touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import date, datetime
from typing import Optional

from .document_tree import (
    LONGEST,
    RESERVED,
    Entry,
    Header,
    day_of,
    escaped,
    header,
    line,
    link_stays,
    parse_header,
    parse_line,
    parse_manifest,
    settled,
    unescaped,
)
from .shell import HotspareError, remove_durably, run, write_durably
from .store import chunks, make_directories, sync_directory
from .wire import Unreachable

SETTLE_SECONDS = 5  # a document that nobody touched for so long may be finished
EMPTY_SECONDS = 3600  # an empty one: some make the name first, and write later
BATCH = 5000  # files whose modes are written down at once
WRITE = 0o222
SUFFIX = ".manifest"
UNREADABLE = "may not be read by the tree's account"
STAGING, EVIDENCE, MARKS = b".hotspare-incoming", b".hotspare-conflicts", b".hotspare-tree"
LOST = b"lost+found"  # what mke2fs makes at the top of a file system, and only root may read
REPLACED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # gone, or something else by now

Refuse = Callable[[bytes, str], None]


class Unfinished(HotspareError):
    """A document that is still being written."""


class Busy(HotspareError):
    """Another process works on the tree."""


class Damaged(HotspareError):
    """A file of ours is not as it was written."""


# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------


def place(root: bytes, path: bytes) -> bytes:
    """Where a document lies; the empty path is the tree's top, also if that is a link to where it is mounted."""
    return os.path.join(root, path)


def walk(
    root: bytes,
    folder: bytes = b"",
    *,
    leave: Collection[bytes] = (),
    folders: bool = False,
    refuse: Refuse = lambda path, reason: None,
) -> Iterator[Entry]:
    """Documents and links below a folder in the order of `sort_key`, unread; with `folders` these too, each first.

    Folders in `leave` are left out, and so is what is ours. `refuse` is told of what is no document. What goes away
    meanwhile is not there. HotspareError when the disk fails.
    """
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            status = os.lstat(place(root, path))
            if stat.S_ISDIR(status.st_mode):
                names = sorted(os.listdir(place(root, path)), reverse=True)
                below = (os.path.join(path, name) for name in names)
                waiting += [name for name in below if name not in leave and _is_theirs(name, refuse)]
                if folders:
                    yield Entry(path, 0, status.st_mtime_ns, status.st_mode)
            elif stat.S_ISREG(status.st_mode):
                yield Entry(path, status.st_size, status.st_mtime_ns, status.st_mode)
            elif stat.S_ISLNK(status.st_mode):
                target = os.readlink(place(root, path))
                if link_stays(path, target):
                    sha256 = hashlib.sha256(target).hexdigest()
                    yield Entry(path, len(target), status.st_mtime_ns, status.st_mode, sha256)
                else:
                    refuse(path, f"leads out of the tree, to {escaped(target)}")
            else:
                refuse(path, "is a device, a socket or a pipe")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            if path != LOST:
                refuse(path, UNREADABLE)
        except OSError as error:
            raise broken(root, path, error) from error


def _is_theirs(path: bytes, refuse: Refuse) -> bool:
    if path.startswith(RESERVED):
        if path not in (STAGING, EVIDENCE, MARKS):
            refuse(path, f"begins with {RESERVED.decode()}, as only what is ours may")
        return False
    if len(path) > LONGEST:
        refuse(path, f"has a path of more than {LONGEST} bytes")
        return False
    return True


def read(root: bytes, entry: Entry) -> Entry:
    """The document as it is now, with its SHA-256. Unfinished; OSError."""
    if stat.S_ISLNK(entry.mode):
        return entry
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # it may have become a pipe
    with open(os.open(place(root, entry.path), flags), "rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        changed = before.st_mtime_ns, before.st_ctime_ns
        young = not settled(changed, datetime.now().timestamp(), SETTLE_SECONDS if before.st_size else EMPTY_SECONDS)
        if young or not stat.S_ISREG(before.st_mode) or is_written(file.fileno()):
            raise Unfinished(f"{escaped(entry.path)} is still being written")
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
        after = os.fstat(file.fileno())
    if any(getattr(before, key) != getattr(after, key) for key in ("st_size", "st_mtime_ns", "st_ctime_ns")):
        raise Unfinished(f"{escaped(entry.path)} changed while it was read")
    return Entry(entry.path, after.st_size, after.st_mtime_ns, after.st_mode, found.hexdigest())


def is_written(descriptor: int) -> bool:
    """Whether somebody has the file open for writing: then the kernel gives no lease to read it (fcntl(2)).

    Where it gives none for other reasons (a foreign owner, a network file system), the file's age has to do. Who asks
    ignores SIGIO, which comes when a writer opens it just now.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def content(path: bytes) -> Optional[str]:
    """SHA-256 of what is there, a file or the target of a link; None when it is neither. OSError."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return hashlib.sha256(os.readlink(path)).hexdigest()
    if not stat.S_ISREG(mode):
        return None
    found = hashlib.sha256()
    for block in chunks(path):
        found.update(block)
    return found.hexdigest()


def days(root: bytes, pattern: str) -> dict[bytes, date]:
    """The folders of days that are there; a link to one is none. HotspareError."""
    level = [b""]
    for _level in range(pattern.count("/") + 1 if pattern else 0):
        level = [os.path.join(path, name) for path in level for name in _folders(root, path)]
    found = ((folder, day_of(escaped(folder), pattern)) for folder in level if pattern)
    return {folder: day for folder, day in found if day is not None}


def is_empty(root: bytes, folder: bytes) -> bool:
    """One that cannot be looked at is not known to be."""
    try:
        with os.scandir(place(root, folder)) as entries:
            return next(entries, None) is None
    except OSError as error:
        return error.errno in REPLACED


class Spool:
    """Entries put aside on disk, to be gone through again and again."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        for entry in entries:
            self.add(line(entry).encode())

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, lines: bytes) -> None:
        """More of them, or a part of one."""
        self._file.write(lines)

    def lines(self) -> Iterator[str]:
        self._file.seek(0)
        return (text.decode() for text in self._file)

    def __iter__(self) -> Iterator[Entry]:
        return map(parse_line, self.lines())


def make_durable(root: bytes) -> None:
    """All that was written on the tree's file system: one call for many files. HotspareError."""
    run(["sync", "-f", os.fsdecode(root)], timeout=None)


def broken(root: bytes, path: bytes, error: OSError) -> HotspareError:
    return HotspareError(
        f"cannot read {escaped(place(root, path))}: {error.strerror}; see its disk and who may read it"
    )


def _folders(root: bytes, path: bytes) -> Iterator[bytes]:
    """Of one that may not be read a walk tells."""
    try:
        with os.scandir(place(root, path)) as entries:
            yield from (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        if error.errno not in (*REPLACED, errno.EACCES):
            raise broken(root, path, error) from error


# ---------------------------------------------------------------------------------------------------------------------
# What is known of a tree
# ---------------------------------------------------------------------------------------------------------------------


class Home:
    """A directory of the tree's account, see ArchiveConfig.homes.

    PARTITION.manifest: what a closed day held
    original: this tree was written to, here
    modes: this is a read-only copy; the modes that its files have on the original, when they are other ones
    complete: for each source when it last shipped all it had
    marked: at the top of the tree is .hotspare-tree/TREE; where it is not, the file system is not mounted
    With `original` and `modes` it was the original, and may have documents that nobody else has.
    """

    def __init__(self, directory: str, tree: str) -> None:
        self.tree = tree
        self.path = os.path.join(directory, "trees", tree)
        self.modes = os.path.join(self.path, "modes")
        self.original = os.path.join(self.path, "original")
        self.marked = os.path.join(self.path, "marked")

    def require(self, root: bytes) -> None:
        """Unreachable unless the tree is there; an empty directory in its place is not it."""
        where = os.fsdecode(root)
        if not os.path.isdir(root):
            raise Unreachable(f"{where} of the tree {self.tree} is not there: mount it, or run site.yml")
        top = os.path.join(where, os.fsdecode(MARKS))
        marks = os.listdir(top) if os.path.isdir(top) else []
        if self.tree in marks:
            return
        if marks:
            raise Unreachable(
                f"{where} holds the tree {', '.join(marks)}, not {self.tree}: mount it in its own place, or, if it has "
                f"this name now, remove {top}"
            )
        if os.path.exists(self.marked):
            raise Unreachable(
                f"{where} has no {MARKS.decode()}, which the tree {self.tree} has there: mount it, or, if it begins "
                f"anew on another disk, remove {self.marked}"
            )

    def mark(self, root: bytes) -> None:
        """From now on an empty directory is not taken for the tree. HotspareError."""
        if os.path.exists(self.marked):
            return
        top = os.path.join(os.fsdecode(root), os.fsdecode(MARKS))
        try:
            os.makedirs(os.path.join(top, self.tree), exist_ok=True)
            for path in (top, os.path.dirname(top)):
                sync_directory(path)
        except OSError as error:
            raise HotspareError(
                f"cannot make {top}: {error.strerror}; give its folder to the tree's account"
            ) from error
        write_durably(self.marked, "", mode=0o640)

    def is_original(self) -> bool:
        return os.path.exists(self.original) and not os.path.exists(self.modes)

    def owes(self) -> bool:
        """Whether there may be documents that were written here and went nowhere."""
        return os.path.exists(self.original) and os.path.exists(self.modes)

    def ships(self) -> bool:
        """Whether others lack what is here; a copy has nothing that its original has not, or had."""
        return self.owes() or not os.path.exists(self.modes)

    def paid(self) -> None:
        """They went."""
        remove_durably(self.original)

    def complete(self) -> dict[str, str]:
        """For each source the time of its last run, local time there, that left nothing behind."""
        path = os.path.join(self.path, "complete")
        try:
            with _reading(path), open(path, encoding="utf-8") as file:
                return dict(json.load(file))
        except FileNotFoundError:
            return {}

    def note_complete(self, source: str, when: str) -> None:
        """HotspareError."""
        found = json.dumps({**self.complete(), source: when})
        write_durably(os.path.join(self.path, "complete"), found, mode=0o640)

    @contextlib.contextmanager
    def lock(self, name: str, wait: float) -> Iterator[None]:
        """One at a time; Busy after `wait` seconds. Makes the directory, in one of ours; HotspareError."""
        path = os.path.join(self.path, f"{name}.lock")
        try:
            os.makedirs(self.path, mode=0o750, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise HotspareError(f"cannot open {path}: {error.strerror}; run site.yml, which makes its place") from error
        deadline = time.monotonic() + wait
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() >= deadline:
                    raise Busy(f"another run works on this tree ({path} is locked): wait for it, and run this again")
                time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)

    # --- manifests ---------------------------------------------------------------------------------------------------

    def manifest(self, partition: str) -> str:
        """The path of one."""
        return os.path.join(self.path, partition + SUFFIX)

    def manifests(self, damaged: Callable[[str], object]) -> dict[str, Header]:
        """What the closed days held, in short; `damaged` is told of those that are. HotspareError."""
        found = (
            os.path.relpath(os.path.join(folder, name), self.path)[: -len(SUFFIX)]
            for folder, _folders, names in os.walk(self.path)
            for name in names
            if name.endswith(SUFFIX)
        )
        heads = {}
        for partition in found:
            try:
                heads[partition] = self.header(partition)
            except Damaged as error:
                damaged(error.message)
        return {partition: head for partition, head in heads.items() if head is not None}

    def header(self, partition: str) -> Optional[Header]:
        """What a closed day held, in short; None when it is not sealed. Damaged; HotspareError."""
        path = self.manifest(partition)
        with _reading(path), contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", newline="\n") as file:
            return parse_header(file)
        return None

    def sealed(self, partition: str) -> Iterator[Entry]:
        """What a closed day held, if it is sealed; Damaged, at the end at the latest; HotspareError."""
        path = self.manifest(partition)
        with _reading(path), contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", newline="\n") as file:
            yield from parse_manifest(file)

    def seal(self, partition: str, entries: Iterable[Entry]) -> None:
        """Write the manifest of entries, which are gone through twice, whole and durably.

        One that was there is replaced: see that this one says no less.
        """
        path = self.manifest(partition)
        temporary = os.path.join(self.path, "incoming-manifest")  # one at a time writes, and a crash leaves one only
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(str(header(partition, entries)))
                file.writelines(map(line, entries))
                file.flush()
                os.fsync(file.fileno())
            make_directories(self.path, os.path.dirname(path), 0o640)
            os.rename(temporary, path)
            sync_directory(os.path.dirname(path))
        except OSError as error:
            raise HotspareError(f"cannot write {path}: {error.strerror}; see that there is room") from error

    # --- the original, or a copy -------------------------------------------------------------------------------------

    def note_modes(self, modes: Iterable[tuple[int, bytes]]) -> None:
        """Write down what modes files have on the original, before they lose them here. OSError."""
        with open(self.modes, "a", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{stat.S_IMODE(mode):o} {escaped(path)}\n" for mode, path in modes)
            file.flush()
            os.fsync(file.fileno())

    def noted_modes(self) -> Iterator[tuple[int, bytes]]:
        """A last line that a crash cut off is nobody's: its file kept its mode."""
        with open(self.modes, encoding="utf-8", newline="\n") as file:
            for text in file:
                mode, _space, path = text.partition(" ")
                if path.endswith("\n"):
                    yield int(mode, 8), unescaped(path[:-1])


def make_copy(root: bytes, home: Home, refuse: Refuse) -> int:
    """Take the write bits from all files and folders, top last; how many had some. An interrupted run is continued."""
    home.note_modes([])
    changed = 0
    batch: list[Entry] = []
    for entry in walk(root, folders=True, refuse=refuse):
        if entry.mode & WRITE and not stat.S_ISLNK(entry.mode) and entry.path:
            batch.append(entry)
        if len(batch) == BATCH:
            changed += _take_write_bits(root, home, batch, refuse)
            batch = []
    with _reading(os.fsdecode(root)):
        batch += [Entry(b"", 0, 0, mode) for mode in [os.stat(root).st_mode] if mode & WRITE]
    return changed + _take_write_bits(root, home, batch, refuse)


def make_original(root: bytes, home: Home, refuse: Refuse) -> int:
    """Give all files and folders the modes they have on the original; how many were changed."""
    write_durably(home.original, "", mode=0o640)
    changed = 0
    if os.path.exists(home.modes):
        for mode, path in home.noted_modes():
            changed += _set_mode(root, path, mode, refuse)
        remove_durably(home.modes)
    with _reading(os.fsdecode(root)):
        lost = not os.stat(root).st_mode & stat.S_IWUSR  # what was written down, as on a machine made anew
    for folder in walk(root, folders=True, refuse=refuse) if lost else ():
        if stat.S_ISDIR(folder.mode):
            changed += _set_mode(root, folder.path, folder.mode | stat.S_IWUSR, refuse)
    return changed


def is_copy(root: bytes, home: Home) -> bool:
    """Whether it was made one, as far as a glance tells."""
    with _reading(os.fsdecode(root)):
        return os.path.exists(home.modes) and not os.stat(root).st_mode & WRITE


def _take_write_bits(root: bytes, home: Home, entries: list[Entry], refuse: Refuse) -> int:
    with _reading(home.modes):
        home.note_modes((entry.mode, entry.path) for entry in entries)
    return sum(_set_mode(root, entry.path, entry.mode & ~WRITE, refuse) for entry in entries)


def _set_mode(root: bytes, path: bytes, mode: int, refuse: Refuse) -> bool:
    try:
        os.chmod(place(root, path), stat.S_IMODE(mode))
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        refuse(path, f"keeps its mode: {error.strerror}")
        return False


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise HotspareError(f"cannot read or write {path}: {error.strerror}; see who may, and its disk") from error
    except ValueError as error:
        raise Damaged(
            f"{path} is not as it was written ({error}): move it away, and the next run makes it from the documents"
        ) from error
