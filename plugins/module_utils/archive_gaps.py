# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which segments an archive lacks on the way to a timeline, and where each of them still is. Pure.

Recovery takes each segment from one timeline: the one with the switch point from the new timeline, those before it from
the old one (PostgreSQL's XLogFileReadAnyTLI). So what a chain of timelines takes is a row of numbers without a break.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Optional

from .wal import HistoryEntry, parse_history, parse_segment_name, segment_name
from .wal_file import kind

FOUND = "found"  # the archive has it
PENDING = "pending"  # it comes by itself: marked to be archived, or still being written
RECOVERABLE = "recoverable"  # another place has it
LOST = "lost"  # nobody has it
UNKNOWN = "unknown"  # nobody who could be asked has it
END = 1 << 64  # beyond all segments


@dataclass(frozen=True)
class Span:
    """What a chain takes from one timeline: segment numbers from `begin` up to, not including, `end`."""

    timeline: int
    begin: int
    end: int


@dataclass(frozen=True)
class Stretch:
    """Segments of one timeline in a row which are all found, pending, recoverable, lost or unknown."""

    timeline: int
    first: str
    last: str
    count: int
    state: str


@dataclass(frozen=True)
class GapReport:
    """What an archive has and lacks of the chain of one timeline.

    current: the segment that is being written, None = not known. stretches: all segments from the oldest that the
    archive has up to now, in the order of recovery. histories: the .history files that the chain needs, and the state
    of each. orphans, future: those that it does not need, of older timelines and of newer ones. unused: segments that
    it does not take, such as those that an old primary wrote after the switch. faults: what contradicts itself. silent:
    places that could not be asked.
    """

    timeline: int
    current: Optional[str]
    stretches: list[Stretch]
    histories: dict[str, str]
    orphans: list[str]
    future: list[str]
    unused: list[str]
    faults: list[str]
    silent: list[str]

    @property
    def ok(self) -> Optional[bool]:
        """None: there is no gap that is known, but nobody knows how far the primary is."""
        states = [*(stretch.state for stretch in self.stretches), *self.histories.values()]
        if self.future or self.faults or not {FOUND, PENDING}.issuperset(states):
            return False
        return None if self.current is None else True

    @property
    def complete_from(self) -> Optional[str]:
        """The oldest segment from which the archive has all up to now, but for those pending at the end."""
        oldest = None
        followed = self.histories.get(_history_name(self.timeline), FOUND) == FOUND  # or nobody gets to the timeline
        for stretch in reversed(self.stretches):
            if stretch.timeline != self.timeline and not followed:
                break
            if stretch.state == FOUND:
                oldest = stretch.first
            elif stretch.state != PENDING or oldest is not None:
                break
        return oldest

    @property
    def behind(self) -> Optional[int]:
        """How many segments are still to come; those that are lost never will."""
        if self.current is None:
            return None
        return sum(stretch.count for stretch in self.stretches if stretch.state in (PENDING, RECOVERABLE))

    @property
    def sentences(self) -> list[str]:
        """What somebody should know, the worst first."""
        lines = [*self.faults]
        lines += [
            f"{name} is there and the primary is on timeline {self.timeline}: a server that recovers would leave the "
            "primary's timeline for it; find out who wrote it before you recover from this archive"
            for name in self.future
        ]
        lines += [self._said(name, 1, state) for name, state in self.histories.items() if state != FOUND]
        lines += [
            self._said(s.first if s.count == 1 else f"{s.first} to {s.last} ({s.count} segments)", s.count, s.state)
            for state in (LOST, UNKNOWN, RECOVERABLE, PENDING)
            for s in self.stretches
            if s.state == state
        ]
        if self.current is None:
            lines.append("nobody knows how far the primary is, so what is missing at the end cannot be told")
        lines += [f"{name} belongs to no ancestor of timeline {self.timeline}" for name in self.orphans]
        return lines

    def _said(self, what: str, count: int, state: str) -> str:
        are, them = ("is", "it") if count == 1 else ("are", "them")
        words = {
            LOST: f"lost, nobody has {them}: recovery ends there, take a new base backup",
            UNKNOWN: f"missing, and nobody who could be asked has {them}: ask {' and '.join(self.silent)} again",
            RECOVERABLE: f"missing, another place has {them}: archive_sync ships {them}",
            PENDING: "still to come",
        }
        return f"{what} {are} {words[state]}"

    def as_dict(self) -> dict[str, Any]:
        derived = ("ok", "complete_from", "behind", "sentences")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def gaps(
    held: Iterable[str],
    histories: Mapping[int, str],
    *,
    segment_size: int,
    timeline: int,
    position: Optional[int],
    ready: Iterable[str] = (),
    elsewhere: Iterable[str] = (),
    silent: Iterable[str] = (),
) -> GapReport:
    """Compare what an archive has (`held`: the names of its files) with what recovery on `timeline` takes.

    `histories`: texts of .history files, wherever they were read. `position`: the byte up to which the primary has
    flushed its WAL, None = not known. `ready`: what it has marked .ready. `elsewhere`: complete segments and histories
    in the pg_wal of any node and in other archives; `silent`: those that did not answer. Asked for in this order
    (position, ready, elsewhere, held), what is archived meanwhile is never missing. Before the oldest segment that the
    archive has nothing is missing.
    """
    archived, unasked = set(held), list(silent)
    missing = UNKNOWN if unasked else LOST
    faults: list[str] = []
    where = ((elsewhere, RECOVERABLE), (ready, PENDING), (archived, FOUND))
    states = {name: state for names, state in where for name in names}  # the last one counts
    parsed = _parsed(histories, timeline, faults)
    ancestors = parsed.get(timeline, [])
    spans = chain(timeline, ancestors, segment_size)
    taken: dict[int, str] = {}
    unused = []
    for name in sorted(name for name in states if kind(name) == "segment"):
        try:
            segment = parse_segment_name(name, segment_size)
        except ValueError as error:
            faults.append(str(error))
            continue
        if any(span.timeline == segment.timeline and span.begin <= segment.number < span.end for span in spans):
            taken[segment.number] = states[name]
        elif states[name] == FOUND:
            unused.append(name)
    current = None if position is None else position // segment_size
    needed = {_history_name(n): n for n in [*(entry.timeline for entry in ancestors), timeline] if n > 1}
    others = sorted(name for name in archived - needed.keys() if kind(name) == "history")
    return GapReport(
        timeline=timeline,
        current=None if position is None else segment_name(timeline, position, segment_size),
        stretches=list(_stretches(taken, spans, current, missing, segment_size)),
        histories={
            name: states.get(name, RECOVERABLE if number in histories else missing) for name, number in needed.items()
        },
        orphans=[name for name in others if name < _history_name(timeline)],
        future=[name for name in others if name > _history_name(timeline)],
        unused=unused,
        faults=faults,
        silent=unasked,
    )


def chain(timeline: int, history: Sequence[HistoryEntry], segment_size: int) -> list[Span]:
    """Which segments recovery on `timeline`, which has this history, takes from each timeline, in its order."""
    spans, begin = [], 0
    for index, entry in enumerate(history):
        # Switch points may fall, see wal.fork_point.
        end = min(later.switch_lsn for later in history[index:]) // segment_size
        spans.append(Span(entry.timeline, begin, end))
        begin = end
    return [*spans, Span(timeline, begin, END)]


def _history_name(timeline: int) -> str:
    return f"{timeline:08X}.history"


def _parsed(histories: Mapping[int, str], timeline: int, faults: list[str]) -> dict[int, list[HistoryEntry]]:
    """The histories of `timeline` and its ancestors; those that cannot be, or be together, go to `faults`."""
    found: dict[int, list[HistoryEntry]] = {}
    for number in sorted(histories, reverse=True):
        own = found.get(timeline, [])
        if number != timeline and number not in {entry.timeline for entry in own}:
            continue
        try:
            found[number] = parse_history(histories[number])
        except ValueError as error:
            faults.append(f"{_history_name(number)} cannot be read: {error}")
            continue
        if number != timeline and found[number] != [entry for entry in own if entry.timeline < number]:
            faults.append(
                f"{_history_name(number)} contradicts {_history_name(timeline)}: two servers were promoted to timeline "
                f"{number}, find out which of them wrote what is here"
            )
    return found


def _stretches(
    taken: Mapping[int, str], spans: Sequence[Span], current: Optional[int], missing: str, segment_size: int
) -> Iterator[Stretch]:
    """All numbers from the oldest that is found up to now, in rows of one timeline and one state."""
    archived = [number for number in taken if taken[number] == FOUND]
    now = max(taken, default=-1) + 1 if current is None else current
    begin, end = min(archived or [*taken, now]), max([now, *(number + 1 for number in archived)])

    def at(number: int) -> tuple[int, str]:
        (timeline,) = (span.timeline for span in spans if span.begin <= number < span.end)
        state = taken.get(number, missing)
        return timeline, PENDING if number >= now and state != FOUND else state

    edges = {begin, now, *(span.begin for span in spans), *taken, *(number + 1 for number in taken)}
    groups = groupby(sorted(edge for edge in edges if begin <= edge < end), at)
    rows = [(min(row), *key) for key, row in groups]
    for (first, timeline, state), after in zip(rows, [*(row[0] for row in rows[1:]), end]):
        names = [segment_name(timeline, number * segment_size, segment_size) for number in (first, after - 1)]
        yield Stretch(timeline, names[0], names[1], after - first, state)
