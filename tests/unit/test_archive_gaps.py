# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an archive lacks, and where it is."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_gaps import (
    FOUND,
    LOST,
    PENDING,
    RECOVERABLE,
    UNKNOWN,
    GapReport,
    gaps,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, format_lsn, segment_name
from hypothesis import given
from hypothesis import strategies as st

SIZE = 16 * MIB
SIZES = [MIB << shift for shift in range(11)]


def name(number: int, timeline: int = 1, size: int = SIZE) -> str:
    return segment_name(timeline, number * size, size)


def names(numbers: Any, timeline: int = 1) -> list[str]:
    return [name(number, timeline) for number in numbers]


def history(*switches: tuple[int, int]) -> str:
    return "".join(f"{timeline}\t{format_lsn(lsn)}\tno recovery target specified\n\n" for timeline, lsn in switches)


def look(held: list[str], timeline: int = 1, at: Optional[int] = 0, **others: Any) -> GapReport:
    """The report with the primary in the middle of segment `at`."""
    position = None if at is None else at * SIZE + 100
    return gaps(held, others.pop("histories", {}), segment_size=SIZE, timeline=timeline, position=position, **others)


def rows(report: GapReport) -> list[tuple[str, str, int, str]]:
    return [(s.first, s.last, s.count, s.state) for s in report.stretches]


def test_nothing_is_missing() -> None:
    report = look(names(range(3, 9)), at=9)
    assert rows(report) == [(name(3), name(8), 6, FOUND)]
    assert (report.ok, report.complete_from, report.behind, report.sentences) == (True, name(3), 0, [])
    assert report.current == name(9)


def test_a_hole_is_told_by_where_the_segments_are() -> None:
    report = look(names([1, 2, 7]), at=9, ready=names([8]), elsewhere=names([4, 5, 8]))
    assert rows(report) == [
        (name(1), name(2), 2, FOUND),
        (name(3), name(3), 1, LOST),
        (name(4), name(5), 2, RECOVERABLE),
        (name(6), name(6), 1, LOST),
        (name(7), name(7), 1, FOUND),
        (name(8), name(8), 1, PENDING),
    ]
    assert (report.ok, report.complete_from, report.behind) == (False, name(7), 3)
    assert report.sentences == [
        f"{name(3)} is lost, nobody has it: recovery ends there, take a new base backup",
        f"{name(6)} is lost, nobody has it: recovery ends there, take a new base backup",
        f"{name(4)} to {name(5)} (2 segments) are missing, another place has them: archive_sync ships them",
        f"{name(8)} is still to come",
    ]


def test_nothing_is_called_lost_while_somebody_does_not_answer() -> None:
    report = look(names([1, 3]), 2, at=4, elsewhere=names([2]), silent=["db2", "nas"])
    assert report.histories == {"00000002.history": UNKNOWN}
    report = look(names([1, 3]), at=4, silent=["db2", "nas"])
    assert [stretch.state for stretch in report.stretches] == [FOUND, UNKNOWN, FOUND]
    assert (report.ok, report.complete_from) == (False, name(3))
    assert report.sentences == [
        f"{name(2)} is missing, and nobody who could be asked has it: ask db2 and nas again",
    ]


def test_what_waits_is_no_gap_and_what_is_lost_at_the_end_leaves_nothing_to_recover_from() -> None:
    waiting = look(names([1, 2]), at=5, ready=names([3, 4]))
    assert (waiting.ok, waiting.complete_from, waiting.behind) == (True, name(1), 2)
    lost = look(names([1, 2]), at=5, ready=names([4]))
    assert (lost.ok, lost.complete_from, lost.behind) == (False, None, 1)


def test_one_that_waits_while_a_later_one_is_there_breaks_the_row() -> None:
    report = look(names([1, 3]), at=4, ready=names([2]))
    assert (report.ok, report.complete_from) == (True, name(3))


def test_the_archive_may_know_more_than_the_position_that_was_asked_for_before() -> None:
    report = look(names([1, 2, 3, 5]), at=3, elsewhere=names([4, 6]))
    assert rows(report) == [
        (name(1), name(3), 3, FOUND),
        (name(4), name(4), 1, PENDING),
        (name(5), name(5), 1, FOUND),
    ]


def test_without_a_position_nothing_is_called_whole() -> None:
    report = look(names([1, 2]), at=None)
    assert (report.ok, report.behind, report.current, report.complete_from) == (None, None, None, name(1))
    assert "cannot be told" in report.sentences[0]
    assert look(names([1, 3]), at=None).ok is False
    assert look(names([1]), at=None, elsewhere=names([2])).ok is False
    assert rows(look([], at=None)) == []


def test_an_empty_archive_lacks_what_others_have() -> None:
    assert rows(look([], at=4)) == []
    assert look([], at=4).complete_from is None
    report = look([], at=4, elsewhere=names([2]), ready=names([3]))
    assert rows(report) == [(name(2), name(2), 1, RECOVERABLE), (name(3), name(3), 1, PENDING)]


TWO = {2: history((1, 5 * SIZE + 96))}


def test_the_segment_of_the_switch_comes_from_the_new_timeline() -> None:
    held = [*names(range(2, 5)), "00000002.history", *names([5, 6], 2)]
    report = look(held, 2, at=7, histories=TWO)
    assert rows(report) == [(name(2), name(4), 3, FOUND), (name(5, 2), name(6, 2), 2, FOUND)]
    assert (report.ok, report.histories) == (True, {"00000002.history": FOUND})


def test_a_switch_at_the_very_end_of_a_segment() -> None:
    held = [*names(range(2, 5)), "00000002.history", *names([5], 2)]
    assert look(held, 2, at=6, histories={2: history((1, 5 * SIZE))}).ok is True


def test_the_hole_after_a_failover() -> None:
    held = [name(2), name(5) + ".partial", "00000002.history", name(5, 2)]
    report = look(held, 2, at=6, histories=TWO, elsewhere=names([3, 4, 5]))
    assert rows(report)[1] == (name(3), name(4), 2, RECOVERABLE)
    assert report.complete_from == name(5, 2)


def test_what_the_old_primary_wrote_after_the_switch_is_not_used() -> None:
    held = [*names(range(2, 8)), "00000002.history", *names([5, 6], 2), name(4, 3), name(2) + ".00000028.backup"]
    report = look(held, 2, at=7, histories=TWO)
    assert report.unused == [name(5), name(6), name(7), name(4, 3)]
    assert report.ok is True


@pytest.mark.parametrize(
    "held, others, state",
    [
        (["00000002.history"], {}, FOUND),
        ([], {"ready": ["00000002.history"]}, PENDING),
        ([], {"elsewhere": ["00000002.history"]}, RECOVERABLE),
        ([], {}, RECOVERABLE),
    ],
)
def test_a_history_that_the_chain_needs(held: list[str], others: dict[str, Any], state: str) -> None:
    report = look([*held, name(4), name(5, 2)], 2, at=6, histories=TWO, **others)
    assert report.histories == {"00000002.history": state}
    assert report.ok is (state in (FOUND, PENDING))
    assert report.complete_from == (name(4) if state == FOUND else name(5, 2)), "without it nobody gets to timeline 2"


def test_without_its_history_the_ancestors_of_a_timeline_are_not_known() -> None:
    report = look([name(4), name(5, 2)], 2, at=6)
    assert report.histories == {"00000002.history": LOST}
    assert (rows(report), report.unused) == ([(name(5, 2), name(5, 2), 1, FOUND)], [name(4)])
    assert "00000002.history is lost" in report.sentences[0]


def test_histories_of_other_timelines() -> None:
    three = {3: history((1, 5 * SIZE + 96))}
    held = [*names([3, 4]), name(5, 3), "00000002.history", "00000003.history", "00000005.history"]
    report = look(held, 3, at=6, histories={**three, 2: history((1, 9 * SIZE))})
    assert (report.orphans, report.future, report.ok) == (["00000002.history"], ["00000005.history"], False)
    assert report.sentences[0].startswith("00000005.history is there and the primary is on timeline 3")


def test_histories_that_contradict_each_other_or_cannot_be_read() -> None:
    held = [name(5), name(6, 2), name(7, 3), "00000002.history", "00000003.history"]
    own = history((1, 6 * SIZE), (2, 7 * SIZE))
    assert look(held, 3, at=8, histories={2: history((1, 6 * SIZE)), 3: own}).ok is True
    report = look(held, 3, at=8, histories={2: history((1, 6 * SIZE + 8)), 3: own})
    assert report.ok is False
    assert "00000002.history contradicts 00000003.history" in report.sentences[0]
    report = look(held, 3, at=8, histories={3: "nonsense"})
    assert "00000003.history cannot be read" in report.sentences[0]


def test_segments_of_another_size_are_a_fault() -> None:
    report = look([name(1), "000000010000000000000100"], at=2)
    assert report.ok is False
    assert report.sentences == ["'000000010000000000000100' is not the name of a WAL segment of 16 MB"]


def test_a_report_is_plain() -> None:
    shown = look(names([1]), at=2).as_dict()
    assert shown["stretches"] == [{"timeline": 1, "first": name(1), "last": name(1), "count": 1, "state": FOUND}]
    assert (shown["ok"], shown["behind"], shown["complete_from"], shown["sentences"]) == (True, 0, name(1), [])


def test_a_hole_of_any_size_takes_no_time() -> None:
    far = (1 << 62) // SIZE
    report = look(names([1, far]), at=far + 1)
    assert report.stretches[1].count == far - 2


# --- against a model that goes from segment to segment ---------------------------------------------------------------


@st.composite
def archives(draw: st.DrawFn) -> dict[str, Any]:
    """A chain of timelines, whose switch points may fall, and where each of its segments is."""
    size = draw(st.sampled_from(SIZES))
    newest = draw(st.integers(1, 9))
    ancestors = draw(st.sets(st.integers(1, newest - 1), min_size=1, max_size=3)) if newest > 1 else set()
    switches = st.tuples(st.integers(1, 12), st.sampled_from([0, 1, size // 2, size - 1]))
    entries = [
        (timeline, number * size + offset) for timeline in sorted(ancestors) for number, offset in [draw(switches)]
    ]
    some = st.sets(st.tuples(st.integers(1, 10), st.integers(0, 16)), max_size=60)
    return {
        "size": size,
        "timeline": newest,
        "entries": entries,
        "followed": draw(st.booleans()),  # whether the archive has the history of the timeline
        "current": draw(st.integers(1, 14)),
        "held": draw(some),
        "ready": draw(some),
        "elsewhere": draw(some),
    }


def owner(case: dict[str, Any], number: int) -> int:
    """The timeline from which recovery reads a segment: the newest one that does not begin after it."""
    timelines = [timeline for timeline, _ in case["entries"]] + [case["timeline"]]
    begins = [0] + [lsn // case["size"] for _, lsn in case["entries"]]
    return next(timeline for timeline, begin in reversed(list(zip(timelines, begins))) if number >= begin)


@given(archives())
def test_the_report_says_of_each_segment_what_a_walk_would_say(case: dict[str, Any]) -> None:
    def spelt(kind: str) -> list[str]:
        return [name(number, timeline, case["size"]) for timeline, number in case[kind]]

    report = gaps(
        [*spelt("held"), *([f"{case['timeline']:08X}.history"] if case["followed"] else [])],
        {case["timeline"]: history(*case["entries"])} if case["entries"] else {},
        segment_size=case["size"],
        timeline=case["timeline"],
        position=case["current"] * case["size"] + 1,
        ready=spelt("ready"),
        elsewhere=spelt("elsewhere"),
    )
    chain = {number: (owner(case, number), number) for number in range(20)}
    found = [number for number in chain if chain[number] in case["held"]]
    known = [number for number in chain if chain[number] in case["ready"] | case["elsewhere"]]
    begin = min(found or [*known, case["current"]])
    end = max([case["current"], *(number + 1 for number in found)])
    expected = {}
    for number in range(begin, end):
        segment = chain[number]
        expected[name(number, segment[0], case["size"])] = (
            FOUND
            if segment in case["held"]
            else PENDING
            if segment in case["ready"] or number >= case["current"]
            else RECOVERABLE
            if segment in case["elsewhere"]
            else LOST
        )
    told = {}
    for stretch in report.stretches:
        first = int(stretch.first[8:16], 16) * ((1 << 32) // case["size"]) + int(stretch.first[16:], 16)
        for number in range(first, first + stretch.count):
            told[name(number, stretch.timeline, case["size"])] = stretch.state
        assert stretch.last in told
    assert told == expected
    assert list(told) == list(expected), "in the order of recovery"
    for before, after in zip(report.stretches, report.stretches[1:]):
        assert (before.timeline, before.state) != (after.timeline, after.state)

    # From complete_from on all is found, up to those that are still to come at the end.
    states = list(expected.values())
    while states and states[-1] == PENDING:
        states.pop()
    kept = 0
    reached = [case["followed"] or chain[number][0] == case["timeline"] for number in range(begin, end)][: len(states)]
    while kept < len(states) and states[-1 - kept] == FOUND and reached[-1 - kept]:
        kept += 1
    assert report.complete_from == (list(expected)[len(states) - kept] if kept else None)
