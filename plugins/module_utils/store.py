# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are there for good: stored whole and durably or not at all, and never overwritten.

A file is written beside its place under a temporary name, hashed on the way and made durable, then linked to its name:
link() fails where rename() would replace. Who is told that a file is stored finds it there after a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Optional, Union

from .shell import HotspareError

INCOMING = ".incoming-"  # what names of temporary files begin with
BLOCK = 1 << 20
QUIET_SECONDS = 1.0  # many ticks of the clock from which files get their times
AnyPath = Union[str, bytes]
State = tuple[int, int, int]  # of a directory: device, inode, ctime (ns)


class Full(HotspareError):
    """No room (or no quota) left; nothing of the file is left behind."""


class Conflict(HotspareError):
    """The name is taken by other content. Facts: path, first_difference (byte), evidence (where ours lies), sha256 (of
    ours), existing_sha256."""


@dataclass(frozen=True)
class Stored:
    """A file that is durable; `new` is False when it was there already, with the same content."""

    path: str
    size: int
    sha256: str
    new: bool


class Layer:
    """The system calls that change what is on disk, so that a test can fail one, or end the world between two."""

    def __init__(self) -> None:
        self.durable: dict[str, State] = {}  # directories whose names are so, while the one above is in this state

    def create(self, path: str, mode: int) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)

    def write(self, descriptor: int, data: Any) -> int:
        return os.write(descriptor, data)

    def chmod(self, descriptor: int, mode: int) -> None:
        os.fchmod(descriptor, mode)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)


OS = Layer()


def receive(
    root: AnyPath,
    relative_path: AnyPath,
    *,
    mode: int = 0o640,
    evidence: Optional[AnyPath] = None,
    digest: Optional[Callable[[], str]] = None,
    layer: Layer = OS,
) -> Incoming:
    """Begin to store a file below `root`, which exists; directories between are made.

    evidence: where below `root` content goes that is not what is there under this name already (default: the same path
    below conflicts/); the begin of its hash is appended, so that what is sent again is not kept again.
    digest: what tells the SHA-256 of all that was written, if somebody computes that anyway. HotspareError; Full.
    """
    kept = evidence if evidence is not None else os.path.join("conflicts", os.fsdecode(relative_path))
    return Incoming(_normal(root), _below(root, relative_path), _below(root, kept), mode, digest, layer)


class Incoming:
    """A file that is being received; as a context manager it is given up unless it was committed."""

    def __init__(
        self, root: str, path: str, evidence: str, mode: int, digest: Optional[Callable[[], str]], layer: Layer
    ) -> None:
        self.path = path
        self.size = 0
        self.temporary = ""
        self._root = root
        self._evidence = evidence
        self._mode = mode
        self._layer = layer
        self._hash = hashlib.sha256()
        self._digest = digest
        self._descriptor: Optional[int] = None
        self._synced = False
        with self._giving_up():
            make_directories(root, os.path.dirname(path), mode, layer)
            self._descriptor = self._create()
            layer.chmod(self._descriptor, mode)  # whatever the umask is

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.abort()

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest() if self._digest else self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """The next bytes; Full or HotspareError, and then it is given up."""
        with self._giving_up():
            view = memoryview(chunk)
            while view:
                view = view[self._layer.write(self._open, view) :]
        if self._digest is None:
            self._hash.update(chunk)
        self.size += len(chunk)

    def sync(self) -> None:
        """Make what was written durable, under its temporary name; the slow part of commit()."""
        if not self._synced:
            with self._giving_up():
                self._layer.sync(self._open)
            self._synced = True

    def commit(self, sha256: Optional[str] = None) -> Stored:
        """Make the file durable under its name; HotspareError when it is not what `sha256` says; Conflict; Full."""
        if sha256 not in (None, self.sha256):
            self.abort()
            raise HotspareError(
                f"{self.path} did not arrive as it was sent: its SHA-256 is {self.sha256}, not {sha256}; send it again"
            )
        self.sync()
        with self._giving_up():
            if self._linked(self.path):
                self._end()
                sync_directory(os.path.dirname(self.path), self._layer)
                return Stored(self.path, self.size, self.sha256, True)
            difference = first_difference(chunks(self.path), chunks(self.temporary))
            if difference is None:
                confirm(self.path, self._layer)
                self._end()
                return Stored(self.path, self.size, self.sha256, False)
            existing = hashlib.sha256()
            for chunk in chunks(self.path):
                existing.update(chunk)
        ours = self.keep()
        raise Conflict(
            f"{self.path} is there already and differs from byte {difference} on; it was left alone, and what came now "
            f"lies in {ours}: compare them, and see who else writes there",
            path=self.path,
            first_difference=difference,
            evidence=ours,
            existing_sha256=existing.hexdigest(),
            sha256=self.sha256,
        )

    def keep(self) -> str:
        """Keep it as evidence instead of committing it; where."""
        self.sync()
        with self._giving_up():
            path = f"{self._evidence}.{self.sha256[:16]}"
            make_directories(self._root, os.path.dirname(path), self._mode, self._layer)
            self._linked(path)
            self._end()
            sync_directory(os.path.dirname(path), self._layer)
        return path

    def abort(self) -> None:
        """Give it up, and leave nothing behind; nothing to do when it was committed."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # what cannot be removed now is swept later
                self._end()

    @property
    def _open(self) -> int:
        if self._descriptor is None:
            raise HotspareError(f"{self.path} was given up or committed before: send it again")
        return self._descriptor

    def _create(self) -> int:
        while True:
            self.temporary = os.path.join(os.path.dirname(self.path), INCOMING + secrets.token_hex(8))
            descriptor = self._layer.create(self.temporary, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # as long as we live, no sweep takes it away
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # one did, before it was locked

    def _linked(self, path: str) -> bool:
        try:
            self._layer.link(self.temporary, path)
        except FileExistsError:
            return False
        return True

    def _end(self) -> None:
        descriptor, self._descriptor = self._open, None
        try:
            self._layer.unlink(self.temporary)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            with explained("store", self.path):
                yield
        except HotspareError:
            self.abort()
            raise


def make_directories(root: str, path: str, mode: int, layer: Layer = OS) -> None:
    """Directories from below `root` down to `path`, for files of `mode`, each one's name durable; OSError.

    Also of those that were there: another process may have made one a moment ago. What is known of one holds until a
    name comes or goes beside it. Its inode would not tell: ext4 gives the next directory the number of the last one.
    """
    if path == root:
        return
    parent = os.path.dirname(path)
    make_directories(root, parent, mode, layer)
    if layer.durable.get(path) == _state(parent):
        return
    with contextlib.suppress(FileExistsError):
        layer.mkdir(path, mode | (mode & 0o444) >> 2)  # who may read files may enter
    if os.path.islink(path) or not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, "it is a symbolic link, or no directory", path)
    seen = _state(parent)
    sync_directory(parent, layer)
    if datetime.now().timestamp() - seen[2] / 1e9 > QUIET_SECONDS:
        layer.durable[path] = seen


def _state(directory: str) -> State:
    """The same as before only if no name in it came or went since, but for one within a tick of the clock."""
    status = os.stat(directory)
    return status.st_dev, status.st_ino, status.st_ctime_ns


def confirm(path: str, layer: Layer = OS) -> None:
    """Make a file that is there durable, whoever wrote it; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        layer.sync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(os.path.dirname(path), layer)


def remove(root: AnyPath, paths: Iterable[AnyPath], layer: Layer = OS) -> list[str]:
    """Remove these files below `root` in this order, durably; those that were there. HotspareError.

    A directory is made durable before the next is begun, so that what an interrupted run leaves has no hole in it.
    """
    removed: list[str] = []
    directory = None
    for path in (_below(root, path) for path in paths):
        with explained("remove", path):
            if directory not in (None, os.path.dirname(path)):
                sync_directory(str(directory), layer)
            with contextlib.suppress(FileNotFoundError):
                layer.unlink(path)
                removed.append(path)
                directory = os.path.dirname(path)
    if directory is not None:
        with explained("remove files in", directory):
            sync_directory(directory, layer)
    return removed


def sweep(root: AnyPath, layer: Layer = OS) -> list[str]:
    """Remove the temporary files below `root` whose writer is dead, as far as that can be done; their paths."""
    removed = []
    for directory, _directories, names in os.walk(os.fsdecode(root)):
        for path in (os.path.join(directory, name) for name in names if name.startswith(INCOMING)):
            with contextlib.suppress(OSError):  # in use, or gone, or another account's: it is only in nobody's way
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    layer.unlink(path)
                    removed.append(path)
                finally:
                    os.close(descriptor)
    return removed


def sync_directory(path: str, layer: Layer = OS) -> None:
    """Make the names in a directory durable; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        layer.sync(descriptor)
    finally:
        os.close(descriptor)


def chunks(path: AnyPath) -> Iterator[bytes]:
    """A file's content in blocks; OSError, also when it is a symbolic link."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            yield block


def first_difference(one: Iterable[bytes], other: Iterable[bytes]) -> Optional[int]:
    """The first byte in which two contents differ, in pieces of any size; the end of the shorter one counts. None when
    they are the same. (Pure.)"""
    left, right = iter(one), iter(other)
    position, first, second = 0, b"", b""
    while True:
        first = first or next(left, b"")
        second = second or next(right, b"")
        common = min(len(first), len(second))
        if first[:common] != second[:common]:
            return position + next(index for index in range(common) if first[index] != second[index])
        if common == 0:
            return None if first == second else position
        position, first, second = position + common, first[common:], second[common:]


def _normal(root: AnyPath) -> str:
    return os.path.normpath(os.fsdecode(root))


def _below(root: AnyPath, relative_path: AnyPath) -> str:
    """Bytes that are no UTF-8 stay what they are, as file names have them."""
    relative = os.fsdecode(relative_path)
    parts = relative.split("/")
    if "\0" in relative or any(part in ("", ".", "..") or part.startswith(INCOMING) for part in parts):
        raise HotspareError(f"{relative!r} is not a path below {_normal(root)}: give a relative one without '..'")
    return os.path.join(_normal(root), relative)


@contextlib.contextmanager
def explained(act: str, path: str) -> Iterator[None]:
    """An OSError within becomes Full or HotspareError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Full(
                f"no room for {path} ({error.strerror}): make some; nothing is removed for it, and it is sent again"
            ) from error
        where = error.filename if isinstance(error.filename, str) else path
        raise HotspareError(
            f"cannot {act} {path}: {where}: {error.strerror}; see that the directory is there, that this account may "
            "write to it, and that its file system has hard links"
        ) from error
