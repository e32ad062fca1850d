# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees of documents: which day a folder is, what is finished, what a copy lacks, and manifests of closed days. Pure.

A document is written once: its identity is path, size and SHA-256, and its time of change (in nanoseconds) only a hint.
Paths are bytes relative to the tree, since names need not be UTF-8; wherever they are text they are `escaped`.
Listings are streams in the order of `sort_key`, so that a tree of any size is compared in little memory.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import NamedTuple, Optional

from .shell import HotspareError

RESERVED = b".hotspare-"  # what a name at the top of a tree begins with that is ours: no document
LONGEST = 3072  # bytes of a path; a kernel takes 4095, with the tree's own and that of the staging directory
TITLE = "hotspare manifest 1"
_ODD = re.compile(r"[^\x20-\x5b\x5d-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")  # the same for every version of Unicode
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_HEADER = re.compile(rf"{TITLE}\npartition (.+)\nfiles ([0-9]+)\nbytes ([0-9]+)\nsha256 ([0-9a-f]{{64}})\n\n")
_LINE = re.compile(r"([0-9a-f]{64}|-) ([0-9]+) (-?[0-9]+) ([0-7]{5,6}) (.+)")


class Entry(NamedTuple):
    """A document, or a symbolic link that stays inside the tree: its size is that of its target's name.

    mtime in nanoseconds; mode as stat has it, with the type; sha256 is "" where nothing was read.
    """

    path: bytes
    size: int
    mtime: int
    mode: int
    sha256: str = ""

    def same_look(self, other: Entry) -> bool:
        """Whether it need not be read to be taken for the same."""
        return (self.size, self.mtime, stat.S_IFMT(self.mode)) == (other.size, other.mtime, stat.S_IFMT(other.mode))

    def same_content(self, other: Entry) -> bool:
        """Both were read."""
        ours, theirs = ((entry.size, stat.S_IFMT(entry.mode), entry.sha256) for entry in (self, other))
        return ours == theirs and self.sha256 != ""


def escaped(path: bytes) -> str:
    """A path as text on one line; `unescaped` makes it what it was."""
    text = path.decode("utf-8", "surrogateescape")
    return _ODD.sub(lambda odd: "".join(f"\\x{byte:02x}" for byte in odd[0].encode("utf-8", "surrogateescape")), text)


def unescaped(text: str) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text.encode())


def require_inside(path: bytes) -> bytes:
    """A path that another machine names: HotspareError unless it is a document's place in a tree."""
    parts = path.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts) or b"\0" in path or path.startswith(RESERVED):
        raise HotspareError(f"{escaped(path)!r} is not a path of a document: it leaves the tree, or the name is ours")
    return path


def link_stays(path: bytes, target: bytes) -> bool:
    """Whether a symbolic link at `path` leads to a place inside the tree, on any machine.

    Up it may only go first: `..` after a name that is a link itself could lead anywhere.
    """
    parts = target.split(b"/")
    names = [part for part in parts if part not in (b"", b".")]
    up = next((index for index, name in enumerate(names) if name != b".."), len(names))
    return bool(target) and parts[0] != b"" and up <= path.count(b"/") and b".." not in names[up:]


def settled(changed: Iterable[int], now: float, seconds: float) -> bool:
    """Whether a file whose content and name last changed at these times (ns) can be finished by its age.

    One from the future tells nothing, since a clock was wrong: it has to prove itself by other means.
    """
    return all(abs(now - time / 1e9) >= seconds for time in changed)


# ---------------------------------------------------------------------------------------------------------------------
# Days
# ---------------------------------------------------------------------------------------------------------------------


def require_pattern(pattern: str) -> None:
    """ValueError unless a day's folder, inside the tree, tells the day and nothing but the day; "": it has no days."""
    time = datetime(2026, 11, 30, 13, 14, 15, 16)
    folder = time.strftime(pattern)
    if pattern and (day_of(folder, pattern) != time.date() or {"", ".", ".."} & set(folder.split("/"))):
        raise ValueError(
            f"the partition {pattern!r} does not name one folder for each day: take one like %Y/%m/%d, or none"
        )


def day_of(folder: str, pattern: str) -> Optional[date]:
    """The day whose folder that is; None for any other, also if it only looks like one (2026/1/5)."""
    try:
        day = datetime.strptime(folder, pattern).date()
    except ValueError:
        return None
    return day if day.strftime(pattern) == folder else None


def first_open(now: float, grace: float) -> date:
    """The first day into whose folder documents may still come: it goes on for `grace` s after its midnight."""
    return datetime.fromtimestamp(now - grace).date()


def missing_days(days: Iterable[date], today: date, skip: Sequence[int]) -> list[date]:
    """Days without documents between the first that has some and `today`, but for the weekdays in `skip`."""
    held = set(days)
    first = min(held, default=today)
    span = (first + timedelta(days=number) for number in range((today - first).days))
    return [day for day in span if day not in held and day.weekday() not in skip]


def due(
    days: Mapping[str, date],
    looked: Mapping[str, float],
    lacking: Collection[str],
    first_open: date,
    turn: Optional[int],
) -> list[str]:
    """Which days to work on, in this order: open ones, closed ones that are not sealed, sealed ones; newest first.

    looked: when each sealed day was last looked at; those that a destination is `lacking` are, and of the others the
    `turn` (None = all) that nobody looked at for longest.
    """
    newest = sorted(days, key=lambda folder: days[folder], reverse=True)
    sealed = {folder for folder in days if folder in looked and days[folder] < first_open}
    resting = sorted(sealed - set(lacking), key=lambda folder: looked[folder])
    chosen = sealed - set(resting[turn:] if turn is not None else ())
    return [folder for folder in newest if folder not in sealed] + [folder for folder in newest if folder in chosen]


# ---------------------------------------------------------------------------------------------------------------------
# Listings and manifests
# ---------------------------------------------------------------------------------------------------------------------


def sort_key(path: bytes) -> list[bytes]:
    """The order in which a tree is walked: a folder's content stands where the folder does."""
    return path.split(b"/")


def joined(*listings: Iterable[Entry]) -> Iterator[tuple[Optional[Entry], ...]]:
    """For each path what each of these sorted listings has under it, None where it has nothing."""
    streams = [iter(listing) for listing in listings]
    heads = [next(stream, None) for stream in streams]
    while any(head is not None for head in heads):
        first = min((head.path for head in heads if head is not None), key=sort_key)
        row = tuple(head if head is not None and head.path == first else None for head in heads)
        yield row
        heads = [head if entry is None else next(stream, None) for head, entry, stream in zip(heads, row, streams)]


def line(entry: Entry) -> str:
    """An entry as a listing and a manifest have it: SHA-256 (or -), size, mtime, mode, path."""
    return f"{entry.sha256 or '-'} {entry.size} {entry.mtime} {entry.mode:o} {escaped(entry.path)}\n"


def parse_line(text: str) -> Entry:
    """ValueError when it is none."""
    match = _LINE.fullmatch(text.rstrip("\n"))
    if match is None:
        raise ValueError(f"{text!r} is not a line of a listing")
    sha256 = "" if match[1] == "-" else match[1]
    return Entry(require_inside(unescaped(match[5])), int(match[2]), int(match[3]), int(match[4], 8), sha256)


def look(entries: Iterable[Entry]) -> str:
    """A digest of a listing: two that are equal need not be compared any further."""
    found = hashlib.sha256()
    for entry in entries:
        found.update(b"%d %d %o %s\0" % (entry.size, entry.mtime, stat.S_IFMT(entry.mode), entry.path))
    return found.hexdigest()


@dataclass(frozen=True)
class Header:
    """What a manifest says of a closed day: how many documents, their bytes, the SHA-256 of the lines that follow."""

    partition: str
    files: int
    bytes: int
    sha256: str

    def __str__(self) -> str:
        """As it stands above the lines."""
        values = (f"{name} {getattr(self, name)}\n" for name in ("partition", "files", "bytes", "sha256"))
        return f"{TITLE}\n{''.join(values)}\n"


def header(partition: str, entries: Iterable[Entry]) -> Header:
    """Of a manifest with these entries."""
    files, size, body = 0, 0, hashlib.sha256()
    for entry in entries:
        files, size = files + 1, size + entry.size
        body.update(line(entry).encode())
    return Header(partition, files, size, body.hexdigest())


def parse_header(lines: Iterator[str]) -> Header:
    """Takes the head off the lines of a manifest; ValueError when they do not begin with one."""
    head = "".join(next(lines, "") for _line in range(6))
    match = _HEADER.fullmatch(head)
    if match is None:
        raise ValueError("it does not begin as a manifest does")
    return Header(match[1], int(match[2]), int(match[3]), match[4])


def parse_manifest(lines: Iterator[str]) -> Iterator[Entry]:
    """The entries of a manifest; ValueError, at the end at the latest, unless it is whole and as it was written."""
    head = parse_header(lines)

    files, size, body = 0, 0, hashlib.sha256()
    for text in lines:
        body.update(text.encode())
        try:
            entry = parse_line(text)
        except HotspareError as error:
            raise ValueError(error.message) from error
        files, size = files + 1, size + entry.size
        yield entry
    if (files, size, body.hexdigest()) != (head.files, head.bytes, head.sha256):
        raise ValueError(f"its lines are not the {head.files} that it was sealed with")
