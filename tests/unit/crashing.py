# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that forgets: what may be left of a directory when the power fails between two system calls.

POSIX promises nothing but this: what a file held at its last fsync, and the names that a directory had at its last
fsync. Of all that came later, each name by itself may be there or not, and a file may hold anything.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Layer

GARBAGE = b"\0garbage\0"
World = dict[str, bytes]  # content by path; directories have a slash at their end


class Crash(BaseException):
    """The process is gone; no handler of it runs to an end."""


class Disk:
    """What is durable of the real directory `root`; every process that writes there has a Process of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[int, dict[str, int]] = {}  # of a directory by inode: the inodes of its durable names
        self.contents: dict[int, bytes] = {}  # of a file by inode
        self._held: list[int] = []  # descriptors: no inode number is used twice
        self.sync(str(root))

    def hold(self, path: str) -> None:
        self._held.append(os.open(path, os.O_RDONLY))

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def sync(self, path: str) -> None:
        if os.path.isdir(path):
            self.names[os.stat(path).st_ino] = _names(path)
        else:
            self.contents[os.stat(path).st_ino] = Path(path).read_bytes()

    def worlds(self) -> Iterator[World]:
        """All that the next start may find."""
        yield from self._worlds(str(self.root), os.stat(self.root).st_ino, "")

    def _worlds(self, path: str, inode: int, prefix: str) -> Iterator[World]:
        durable, now = self.names.get(inode, {}), _names(path)
        choices = []
        for name in sorted({*durable, *now}):
            found = {durable.get(name), now.get(name)}
            choices.append([choice for inode in found for choice in self._choices(path, prefix, name, inode)])
        for combination in itertools.product(*choices):
            world: World = {}
            for part in combination:
                world.update(part)
            yield world

    def _choices(self, path: str, prefix: str, name: str, inode: int | None) -> Iterator[World]:
        if inode is None:
            yield {}
            return
        here = os.path.join(path, name)
        if os.path.isdir(here):
            for world in self._worlds(here, inode, f"{prefix}{name}/"):
                yield {f"{prefix}{name}/": b"", **world}
        elif inode in self.contents:
            yield {prefix + name: self.contents[inode]}
        else:
            yield from ({prefix + name: content} for content in (b"", GARBAGE))


class Process(Layer):
    """The system calls of one process: before number `limit` it dies, or that call fails with `failure`."""

    def __init__(self, disk: Disk, limit: int | None = None, failure: int | None = None, *, written: int = 3) -> None:
        super().__init__()
        self.calls = 0
        self._written = written
        self._disk = disk
        self._limit = limit
        self._failure = failure

    def _called(self) -> None:
        if self._limit is not None and self.calls >= self._limit and self._failure is None:
            raise Crash
        self.calls += 1
        if self._failure is not None and self.calls - 1 == self._limit:
            raise OSError(self._failure, os.strerror(self._failure))

    def create(self, path, mode):
        self._called()
        descriptor = super().create(path, mode)
        self._disk.hold(path)
        return descriptor

    def write(self, descriptor, data):
        self._called()
        return super().write(descriptor, data[: self._written])  # a write may be short

    def chmod(self, descriptor, mode):
        self._called()
        super().chmod(descriptor, mode)

    def sync(self, descriptor):
        self._called()
        self._disk.sync(os.readlink(f"/proc/self/fd/{descriptor}"))

    def link(self, source, target):
        self._called()
        super().link(source, target)

    def unlink(self, path):
        self._called()
        super().unlink(path)

    def mkdir(self, path, mode):
        self._called()
        super().mkdir(path, mode)
        self._disk.hold(path)


def rebuild(world: World, root: Path) -> None:
    """Make a directory what is left of another one."""
    root.mkdir()
    for path, content in sorted(world.items()):
        if path.endswith("/"):
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def _names(path: str) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(path)}
