# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may leave an archive: never anything that somebody needs."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_retention import Need, cut
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, segment_name
from hypothesis import given
from hypothesis import strategies as st

SIZE = 16 * MIB
SIZES = [MIB << shift for shift in range(11)]


def name(number: int, timeline: int = 1, size: int = SIZE) -> str:
    return segment_name(timeline, number * size, size)


def server(number: int, of: str = "db2") -> Need:
    return Need("server", of, number * SIZE + 40, "it would start again from there")


def test_what_is_older_than_all_needs_goes_in_ascending_order() -> None:
    names = [name(5), name(4, 2), name(3), name(4), name(3) + ".partial", name(3) + ".00000028.backup"]
    found = cut([*names, "00000002.history", "archive.json"], [server(7), server(5, "db3")], segment_size=SIZE)
    assert found.remove == [name(3), name(3) + ".00000028.backup", name(3) + ".partial", name(4), name(4, 2)]
    assert (found.ok, found.before, found.deciding) == (True, "0000000000000005", server(5, "db3"))
    assert found.reason == "db3 needs WAL from 0/5000028 on: it would start again from there"
    assert found.as_dict()["deciding"]["lsn"] == "0/5000028"


def test_one_who_does_not_say_keeps_everything() -> None:
    silent = Need("server", "db3", None, "it does not answer")
    found = cut([name(1)], [server(5), silent], segment_size=SIZE)
    assert (found.ok, found.remove, found.before, found.deciding) == (False, [], None, silent)
    assert found.reason == "nothing is removed, nobody knows from where on db3 needs WAL: it does not answer"
    assert found.as_dict()["deciding"]["lsn"] is None


def test_without_a_need_nothing_goes() -> None:
    found = cut([name(1)], [], segment_size=SIZE, minimum_segments=1)
    assert (found.ok, found.remove, found.as_dict()["deciding"]) == (False, [], None)


def test_a_name_that_does_not_fit_the_segment_size_keeps_everything() -> None:
    found = cut([name(1), "000000010000000000000100"], [server(5)], segment_size=SIZE)
    assert (found.ok, found.remove) == (False, [])
    assert "000000010000000000000100" in found.reason


@pytest.mark.parametrize("minimum, left", [(0, 1), (1, 1), (3, 3), (6, 6), (9, 6)])
def test_a_least_number_of_segments_stays_whatever_timeline_they_have(minimum: int, left: int) -> None:
    names = [*(name(number) for number in range(1, 7)), name(6, 2), name(6) + ".partial", name(6) + ".00000028.backup"]
    found = cut(names, [server(6)], segment_size=SIZE, minimum_segments=minimum)
    assert found.ok
    assert len({kept[8:24] for kept in names if kept not in found.remove}) == left
    assert found.deciding is not None
    assert found.deciding.kind == ("minimum" if minimum else "server")


def test_an_empty_archive_has_nothing_to_lose() -> None:
    assert cut([], [server(5)], segment_size=SIZE, minimum_segments=4).remove == []


# --- against a model that asks for each file whether anybody needs it ------------------------------------------------


@st.composite
def archives(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.sampled_from(SIZES))
    numbers = st.integers(0, 40) | st.integers((1 << 32) // size - 3, (1 << 32) // size + 3)
    files = st.builds(
        lambda number, timeline, suffix: name(number, timeline, size) + suffix,
        numbers,
        st.integers(1, 4),
        st.sampled_from(["", "", "", ".partial", ".00000028.backup"]),
    )
    positions = st.builds(lambda number, offset: number * size + offset, numbers, st.sampled_from([0, 1, 40, size - 1]))
    others = st.sets(st.sampled_from(["00000002.history", "00000003.history", "archive.json", ".incoming-x"]))
    return {
        "size": size,
        "names": draw(st.sets(files, max_size=60)) | draw(others),
        "needs": draw(st.lists(st.one_of(positions, positions, positions, st.none()), max_size=6)),
        "minimum": draw(st.integers(0, 8)),
    }


@given(archives())
def test_no_file_goes_that_anybody_needs(case: dict[str, Any]) -> None:
    size = case["size"]
    needs = [Need("server", f"db{index}", lsn, "") for index, lsn in enumerate(case["needs"])]
    found = cut(case["names"], needs, segment_size=size, minimum_segments=case["minimum"])

    def last_byte(file: str) -> int:
        return (int(file[8:16], 16) * ((1 << 32) // size) + int(file[16:24], 16) + 1) * size - 1

    numbered = [file for file in case["names"] if file[:1] == "0" and not file.endswith(".history")]
    segments = sorted({last_byte(file) for file in numbered if not file.endswith(".backup")})
    newest = segments[-case["minimum"] :] if case["minimum"] else []
    if None in case["needs"] or not case["needs"]:
        assert (found.ok, found.remove) == (False, [])
        return
    assert found.ok
    wanted = set()
    for file in numbered:
        below = all(last_byte(file) < lsn for lsn in case["needs"])
        if below and not (newest and last_byte(file) >= newest[0]):
            wanted.add(file)
    assert set(found.remove) == wanted
    positions = [last_byte(file) for file in found.remove]
    assert positions == sorted(positions), "an interrupted run must not leave a gap"
    assert len(positions) == len(set(found.remove))
