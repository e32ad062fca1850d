# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Positions in the write-ahead log, names of its files, histories of its timelines. Pure.

An LSN is an int here, a byte position in the WAL of a cluster (PostgreSQL manual, "WAL Internals"). What cannot be
read raises ValueError: a guessed position is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1024 * 1024
LSN_END = 1 << 64
TIMELINE_END = 1 << 32

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SEGMENT_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")  # upper case only, as the archiver has it
_HISTORY_LINE = re.compile(r"\s*([0-9]+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)(?:\s+(.*))?")


@dataclass(frozen=True)
class Segment:
    """One WAL file; `number` counts segments from the start of the WAL, `start_lsn` is its first byte."""

    timeline: int
    number: int
    start_lsn: int


@dataclass(frozen=True)
class HistoryEntry:
    """An ancestor: WAL of `timeline` counts up to, not including, `switch_lsn`."""

    timeline: int
    switch_lsn: int
    reason: str


def parse_lsn(text: str) -> int:
    """'0/3000060' as a byte position; also with leading zeros, as PostgreSQL 19 prints it. ValueError otherwise."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an LSN like 0/3000060")
    return int(match[1], 16) << 32 | int(match[2], 16)


def format_lsn(lsn: int) -> str:
    """A byte position as PostgreSQL 13 to 18 print it: '0/3000060'."""
    if not 0 <= lsn < LSN_END:
        raise ValueError(f"{lsn} is not an LSN: it has 64 bits")
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def segment_size_ok(size: int) -> bool:
    """Whether PostgreSQL can have WAL segments of `size` bytes: a power of two from 1 MB to 1 GB."""
    return MIB <= size <= 1024 * MIB and size & (size - 1) == 0


def segment_name(timeline: int, lsn: int, size: int) -> str:
    """Name of the WAL file of `size` bytes that holds the byte at `lsn`.

    At a boundary that is the file that begins there; pg_walfile_name() of PostgreSQL 15 and older names the one
    before. The end of a record belongs to the file of `lsn - 1`.
    """
    per_id = _segments_per_id(size)
    if not 0 < timeline < TIMELINE_END:
        raise ValueError(f"{timeline} is not a timeline")
    if not 0 <= lsn < LSN_END:
        raise ValueError(f"{lsn} is not an LSN: it has 64 bits")
    high, low = divmod(lsn // size, per_id)
    return f"{timeline:08X}{high:08X}{low:08X}"


def parse_segment_name(name: str, size: int) -> Segment:
    """The segment a WAL file's name stands for, in a cluster whose segments have `size` bytes; else ValueError.

    Names of other files there (.partial, .history, .backup) are not segments.
    """
    per_id = _segments_per_id(size)
    match = _SEGMENT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a WAL segment")
    timeline, high, low = (int(digits, 16) for digits in match.groups())
    if timeline == 0 or low >= per_id:
        raise ValueError(f"{name!r} is not the name of a WAL segment of {size // MIB} MB")
    number = high * per_id + low
    return Segment(timeline, number, number * size)


def parse_history(text: str) -> list[HistoryEntry]:
    """The ancestors in a timeline's .history file (or of TIMELINE_HISTORY), oldest first.

    The rules are those of PostgreSQL's readTimeLineHistory(), but a file without any entry is refused: timeline 1 has
    no file, every other has an ancestor, so an empty file is a damaged one.
    """
    entries: list[HistoryEntry] = []
    for line in text.split("\n"):  # and not at what else Unicode has: a restore point may have it in its name
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _HISTORY_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{line!r} is not a line of a timeline history")
        timeline = int(match[1])
        if not (entries[-1].timeline if entries else 0) < timeline < TIMELINE_END:
            raise ValueError(f"{line!r} in a timeline history does not name a later timeline than the line before")
        entries.append(HistoryEntry(timeline, parse_lsn(match[2]), (match[3] or "").strip()))
    if not entries:
        raise ValueError("the timeline history names no ancestor")
    return entries


def fork_point(history: list[HistoryEntry], timeline: int) -> int | None:
    """The LSN at which the timeline of this history left `timeline`; None when `timeline` is no ancestor of it.

    WAL of `timeline` from there on is not shared. Recovery to a point before an earlier switch writes a history whose
    switch points fall; what is shared then ends at the lowest of those that follow.
    """
    if not any(entry.timeline == timeline for entry in history):
        return None
    return min(entry.switch_lsn for entry in history if entry.timeline >= timeline)


def timeline_at(history: Sequence[HistoryEntry], timeline: int, lsn: int) -> int:
    """Which timeline wrote the byte at `lsn` of the WAL of `timeline`, which has this history."""
    for index, entry in enumerate(history):
        if lsn < min(later.switch_lsn for later in history[index:]):
            return entry.timeline
    return timeline


def _segments_per_id(size: int) -> int:
    if not segment_size_ok(size):
        raise ValueError(f"{size} bytes is not a WAL segment size: it is a power of two from 1 MB to 1 GB")
    return (1 << 32) // size
