# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of all the files that somebody has is WAL of our history, and whole."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, HistoryEntry, segment_name
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_holders import Server, complete, stray
from hypothesis import given
from hypothesis import strategies as st

from .wal_pages import SYSTEM

SIZE = 16 * MIB


def name(number: int, timeline: int = 1) -> str:
    return segment_name(timeline, number * SIZE, SIZE)


def server(timeline: int = 1, *switches: tuple[int, int], at: int = 10 * SIZE + 100) -> Server:
    """`switches`: timelines that were left, and the LSN at which."""
    history = tuple(HistoryEntry(left, lsn, "") for left, lsn in switches)
    return Server("primary", timeline, history, at, Identity(SYSTEM, SIZE))


# Timeline 1 was left in the middle of segment 5, and exactly between 8 and 9 timeline 2.
THIRD = server(3, (1, 5 * SIZE + 100), (2, 9 * SIZE))


def test_the_histories_of_the_timelines_that_ours_went_through() -> None:
    first, second = THIRD.history
    assert (THIRD.ancestors(3), THIRD.ancestors(2), THIRD.ancestors(1)) == ((first, second), (first,), ())
    assert THIRD.ancestors(4) is None
    assert server(3, (1, 5 * SIZE)).ancestors(2) is None


def test_what_is_still_written_to_is_not_whole() -> None:
    names = [name(number) for number in (9, 10, 11)]
    assert complete(names, server(), 10 * SIZE - 1) == []
    assert complete(names, server(), 10 * SIZE) == [name(9)]
    assert complete(names, server(), 11 * SIZE + 5) == [name(9), name(10)]


def test_recycled_and_foreign_files_are_not_wal_of_ours() -> None:
    names = [
        name(4),
        name(5),  # streamed by a standby up to the switch, and marked .done
        name(5, 2),
        name(4, 2),
        name(8, 2),
        name(9, 2),
        name(9, 3),
        name(20, 3),  # recycled, for later
        name(3, 7),
        "0000000100000000000001FF",  # of 8 MB segments
    ]
    assert complete(names, THIRD, 10 * SIZE) == [name(4), name(5, 2), name(8, 2), name(9, 3)]


def test_what_is_no_segment_is_whole_once_it_is_there() -> None:
    names = ["00000002.history", f"{name(5)}.partial", f"{name(3)}.00000028.backup"]
    assert complete([*names, "archive_status", "xlogtemp.4711", f"{name(3)}.gz"], THIRD, 0) == sorted(names)


@pytest.mark.parametrize(
    ("name", "is_stray"),
    [
        (name(4), False),
        (name(5), True),
        (f"{name(5)}.partial", False),
        (f"{name(6)}.partial", True),
        (f"{name(5)}.00000028.backup", False),
        (f"{name(7)}.00000028.backup", True),
        (name(8, 2), False),
        (name(9, 2), True),
        (name(900, 3), False),
        (name(1, 4), True),
        ("00000002.history", False),
        ("00000003.history", False),
        ("00000004.history", True),
        ("0000000100000000000001FF", True),
    ],
)
def test_what_an_ancestor_wrote_after_the_switch_goes_nowhere(name: str, is_stray: bool) -> None:
    assert stray(name, THIRD) is is_stray


def test_a_timeline_that_is_no_ancestor_is_left_to_its_archives() -> None:
    assert not stray(name(77, 2), server(3, (1, 5 * SIZE)))


@given(st.integers(0, 30), st.integers(1, 3), st.integers(0, 30 * SIZE))
def test_nothing_whole_is_stray(number: int, timeline: int, position: int) -> None:
    assert not any(stray(found, THIRD) for found in complete([name(number, timeline)], THIRD, position))
