# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's copy in a backup pool: what is noted of each snapshot there, so that it can be restored from that alone.

The note is a user property of the outermost dataset's snapshot, zfsprops(7).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Optional

from .shell import HotspareError
from .zfs import HARMLESS, Dataset, Side, Snapshot, View, failed, look, parse_get

# Of backups. A colon is in no prefix of a rebuild (zfs_layout.prefix_of), so that neither is ever taken for the other.
PREFIX = "hotspare:backup"
NOTE = "hotspare:restore"
TEXTS = "node role system_identifier account bin_directory data_directory libraries lsn".split()
PROPERTIES = {"canmount": "noauto", "mountpoint": "none", "readonly": "on", **HARMLESS}  # looked at in a clone only


@dataclass(frozen=True)
class Note:
    """Whose snapshot it is and what it takes to start a server on it.

    paths: where each dataset that was mounted was, by its name below the outermost one. `taken` in seconds since 1970.
    """

    node: str
    role: str
    system_identifier: str
    version: int
    account: str
    bin_directory: str
    data_directory: str
    paths: Mapping[str, str]
    libraries: str  # shared_preload_libraries
    lsn: str
    taken: float

    def written(self) -> str:
        """As the value of a user property, which takes no line breaks; zfsprops(7) allows 8192 bytes."""
        return base64.b64encode(json.dumps(asdict(self)).encode()).decode()


def read_note(text: str) -> Optional[Note]:
    """None for what is not one of ours: whoever may write to the copy can have put anything there, and root mounts and
    starts what it says."""
    try:
        note = Note(**json.loads(base64.b64decode(text, validate=True)))
    except (ValueError, TypeError, RecursionError):
        return None
    return note if _is_sound(note) else None


def _is_sound(note: Note) -> bool:
    """Whether each field is of its type, and each path leads down only. (Pure.)"""
    texts = [getattr(note, name) for name in TEXTS]
    return (
        all(isinstance(one, str) and "\0" not in one for one in texts)
        and isinstance(note.version, int)
        and isinstance(note.taken, (int, float))
        and not isinstance(note.version, bool)  # which is an int, too
        and not isinstance(note.taken, bool)
        and 0 <= note.taken < 1 << 40  # NaN is not
        and isinstance(note.paths, dict)
        and all(_is_below(name) and _is_path(path) for name, path in note.paths.items())
        and _is_path(note.data_directory)
    )


def _is_below(name: str) -> bool:
    return name == "" or (name.startswith("/") and ".." not in name.split("/"))


def _is_path(path: object) -> bool:
    """Absolute, in normal form, and not the root. normpath() leaves two slashes at the beginning as they are."""
    return (
        isinstance(path, str)
        and not set(path) & {"\n", "\0"}
        and re.match("/[^/]", path) is not None
        and os.path.normpath(path) == path
    )


@dataclass(frozen=True)
class Copy:
    """A snapshot of a copy that is whole: each of `below` has it."""

    dataset: str
    name: str
    note: Note
    below: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dataset}@{self.name}"


def newest(side: Side, dataset: str) -> Optional[Copy]:
    """The newest snapshot that can be restored, None where there is none. HotspareError when that cannot be told."""
    return choose(look(side, dataset, recursive=True), _notes(side, dataset))


def _notes(side: Side, dataset: str) -> dict[str, Note]:
    """By the name of the snapshot; of a copy that is not there, none."""
    columns = "name,property,value,source"
    words = ("zfs", "get", "-Hp", "-o", columns, "-d", "1", "-t", "snapshot,bookmark", NOTE, dataset)
    done = side.run(*words, check=False)
    if done.rc != 0 and "does not exist" not in done.stderr:
        raise failed(side.where, words, done.stderr)
    found = parse_get(done.stdout) if done.rc == 0 else {}
    notes = {name.partition("@")[2]: read_note(of[NOTE][0]) for name, of in found.items() if of[NOTE][1] == "local"}
    return {name: note for name, note in notes.items() if note}


def without_note(side: Side, dataset: str) -> tuple[View, list[Snapshot]]:
    """The copy, and the snapshots of ours there that nothing is noted of yet, the oldest first. HotspareError."""
    view, notes = look(side, dataset, recursive=True), _notes(side, dataset)
    top = view.datasets.get("")
    return view, [one for one in (top.snapshots if top else ()) if one.made == PREFIX and one.name not in notes]


def choose(view: View, notes: Mapping[str, Note]) -> Optional[Copy]:
    """The newest one with a note, that all datasets with a part of the server have of one moment. (Pure.)"""
    top = view.datasets.get("")
    for one in reversed(top.snapshots if top else ()):
        note = notes.get(one.name)
        if note is None or one.made != PREFIX:
            continue
        members = {below: found for below, of in view.datasets.items() if (found := _part(of, one.name, one.moment))}
        if set(note.paths) <= set(members):
            return Copy(view.top, one.name, note, tuple(sorted(members)))
    return None


def _part(dataset: Dataset, name: str, moment: str) -> bool:
    found = dataset.named(name)
    return found is not None and found.moment == moment


@contextlib.contextmanager
def alone(path: str, what: str) -> Iterator[None]:
    """One process at a time; it ends with the process. HotspareError while another one is at work."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HotspareError(f"cannot open {path}: {error.strerror}; run this as root") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "another process"
            raise HotspareError(f"{what} is under way already, by {who}: wait until that has ended") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
