# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LSNs, segment names over all segment sizes, timeline histories."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import wal
from hypothesis import given
from hypothesis import strategies as st

MB = 1 << 20
SIZES = [MB << power for power in range(11)]  # 1 MB to 1 GB
HIGHEST_LOW_PART = dict(zip(SIZES, (0xFFF, 0x7FF, 0x3FF, 0x1FF, 0xFF, 0x7F, 0x3F, 0x1F, 0xF, 7, 3)))

lsns = st.integers(0, wal.LSN_END - 1)
timelines = st.integers(1, wal.TIMELINE_END - 1)
sizes = st.sampled_from(SIZES)


class TestLsn:
    @pytest.mark.parametrize(
        ("text", "lsn"),
        [
            ("0/0", 0),
            ("0/3000060", 0x3000060),
            ("1/0", 1 << 32),
            ("0/FFFFFFFF", (1 << 32) - 1),
            ("FFFFFFFF/FFFFFFFF", (1 << 64) - 1),
            ("16/B374D848", 0x16B374D848),
        ],
    )
    def test_known(self, text, lsn):
        assert wal.parse_lsn(text) == lsn
        assert wal.format_lsn(lsn) == text

    @pytest.mark.parametrize(("text", "lsn"), [("0/03000060", 0x3000060), ("a/f", 0xA0000000F)])
    def test_other_spellings(self, text, lsn):
        assert wal.parse_lsn(text) == lsn

    @given(lsns)
    def test_round_trip(self, lsn):
        assert wal.parse_lsn(wal.format_lsn(lsn)) == lsn

    @given(lsns, lsns)
    def test_order_is_that_of_the_numbers_not_of_the_text(self, one, other):
        assert (one < other) == (wal.parse_lsn(wal.format_lsn(one)) < wal.parse_lsn(wal.format_lsn(other)))

    @pytest.mark.parametrize(
        "text",
        ["", "0", "/", "0/", "/0", "0/0/0", "0x1/0", "-1/0", "0/-1", "g/0", " 0/0", "0/0 ", "0/0\n", "100000000/0",
         "0/100000000", "0/1_0", "\u0661/0"],
    )  # fmt: skip
    def test_not_an_lsn(self, text):
        with pytest.raises(ValueError, match="is not an LSN"):
            wal.parse_lsn(text)

    @given(st.text())
    def test_any_text_is_an_lsn_or_a_value_error(self, text):
        try:
            lsn = wal.parse_lsn(text)
        except ValueError:
            return
        assert 0 <= lsn < wal.LSN_END

    @pytest.mark.parametrize("lsn", [-1, wal.LSN_END])
    def test_not_64_bits(self, lsn):
        with pytest.raises(ValueError, match="64 bits"):
            wal.format_lsn(lsn)


class TestSegments:
    @given(st.integers(-1, 1 << 33))
    def test_sizes_that_postgresql_knows(self, size):
        assert wal.segment_size_ok(size) == (size in SIZES)

    def test_all_sizes_are_ok_and_their_neighbours_are_not(self):
        for size in SIZES:
            assert wal.segment_size_ok(size)
            assert not wal.segment_size_ok(size - 1)
            assert not wal.segment_size_ok(size + 1)
        assert not wal.segment_size_ok(MB >> 1)
        assert not wal.segment_size_ok(SIZES[-1] << 1)

    @pytest.mark.parametrize(
        ("timeline", "lsn", "size", "name"),
        [
            (1, 0x1000000, 16 * MB, "000000010000000000000001"),
            (1, 0x1FFFFFF, 16 * MB, "000000010000000000000001"),
            (1, 0x2000000, 16 * MB, "000000010000000000000002"),
            (2, 0xFFFFFFFF, 16 * MB, "0000000200000000000000FF"),
            (2, 0x100000000, 16 * MB, "000000020000000100000000"),
            (0xA, 0x16B374D848, 16 * MB, "0000000A00000016000000B3"),
            (1, 0xFFFFFFFF, 1024 * MB, "000000010000000000000003"),
            (1, 0xFFFFFFFF, 1 * MB, "000000010000000000000FFF"),
            (0xFFFFFFFF, wal.LSN_END - 1, 64 * MB, "FFFFFFFFFFFFFFFF0000003F"),
        ],
    )
    def test_known(self, timeline, lsn, size, name):
        assert wal.segment_name(timeline, lsn, size) == name
        segment = wal.parse_segment_name(name, size)
        assert segment == wal.Segment(timeline, lsn // size, lsn - lsn % size)

    @given(timelines, lsns, sizes)
    def test_round_trip(self, timeline, lsn, size):
        segment = wal.parse_segment_name(wal.segment_name(timeline, lsn, size), size)
        assert segment.timeline == timeline
        assert segment.start_lsn <= lsn < segment.start_lsn + size
        assert segment.start_lsn == segment.number * size
        assert wal.segment_name(timeline, segment.start_lsn, size) == wal.segment_name(timeline, lsn, size)

    @given(timelines, st.integers(0, wal.LSN_END - 1 - SIZES[-1]), sizes)
    def test_names_of_one_timeline_sort_as_their_numbers(self, timeline, lsn, size):
        name, following = wal.segment_name(timeline, lsn, size), wal.segment_name(timeline, lsn + size, size)
        assert name < following
        assert wal.parse_segment_name(following, size).number == wal.parse_segment_name(name, size).number + 1

    @pytest.mark.parametrize("size", SIZES)
    def test_the_last_part_of_a_name_counts_no_further_than_4_gb(self, size):
        highest = HIGHEST_LOW_PART[size]
        last = f"{1:08X}{0:08X}{highest:08X}"
        assert wal.segment_name(1, (1 << 32) - 1, size) == last
        assert wal.parse_segment_name(last, size).start_lsn == (1 << 32) - size
        with pytest.raises(ValueError, match=f"not the name of a WAL segment of {size // MB} MB"):
            wal.parse_segment_name(f"{1:08X}{0:08X}{highest + 1:08X}", size)

    @pytest.mark.parametrize(
        "name",
        ["", "00000001000000000000000", "0000000100000000000000011", "00000001000000000000000g",
         "00000001000000000000000a", "000000010000000000000001.partial", "00000002.history",
         "000000010000000000000001.00000028.backup", "000000000000000000000001", " 00000001000000000000001",
         "000000010000000000000001\n"],
    )  # fmt: skip
    def test_not_a_segment(self, name):
        with pytest.raises(ValueError, match="is not the name of a WAL segment"):
            wal.parse_segment_name(name, 16 * MB)

    @pytest.mark.parametrize("size", [0, -1, 3 * MB, MB // 2, 2048 * MB])
    def test_no_arithmetic_with_an_impossible_size(self, size):
        with pytest.raises(ValueError, match="is not a WAL segment size"):
            wal.segment_name(1, 0, size)
        with pytest.raises(ValueError, match="is not a WAL segment size"):
            wal.parse_segment_name("000000010000000000000001", size)

    @pytest.mark.parametrize(("timeline", "lsn"), [(0, 0), (-1, 0), (1 << 32, 0), (1, -1), (1, wal.LSN_END)])
    def test_out_of_range(self, timeline, lsn):
        with pytest.raises(ValueError, match="is not a"):
            wal.segment_name(timeline, lsn, 16 * MB)


@st.composite
def histories(draw):
    chain = sorted(draw(st.sets(st.integers(1, 1000), min_size=1, max_size=8)))
    points = sorted(draw(st.lists(lsns, min_size=len(chain), max_size=len(chain))))
    reasons = st.text(st.characters(whitelist_categories=["L", "N", "P"]), max_size=20)
    return [wal.HistoryEntry(timeline, lsn, draw(reasons)) for timeline, lsn in zip(chain, points)]


class TestHistory:
    def test_a_real_one(self):
        # pg_wal/00000003.history of PostgreSQL 15
        text = "1\t0/3027BA0\tno recovery target specified\n\n2\t0/5000148\tbefore 2026-11-20 10:45:07.1+00\n"
        assert wal.parse_history(text) == [
            wal.HistoryEntry(1, 0x3027BA0, "no recovery target specified"),
            wal.HistoryEntry(2, 0x5000148, "before 2026-11-20 10:45:07.1+00"),
        ]

    def test_comments_blanks_and_no_reason(self):
        assert wal.parse_history("# a comment\n\n  # another\n   \n 1  0/A0\n") == [wal.HistoryEntry(1, 0xA0, "")]

    def test_a_restore_point_may_have_in_its_name_what_others_end_lines_with(self):
        text = '1\t0/A0\tat restore point "before\u2028release"\n2\t0/B0\tx\u0085y\x0bz\n'
        assert [entry.timeline for entry in wal.parse_history(text)] == [1, 2]

    @given(histories())
    def test_round_trip(self, history):
        text = "".join(f"{e.timeline}\t{wal.format_lsn(e.switch_lsn)}\t{e.reason}\n" for e in history)
        assert wal.parse_history(text) == history

    @pytest.mark.parametrize(
        "text",
        ["1\n", "one\t0/1\tx\n", "1\t0-1\tx\n", "1\t0/100000000\tx\n", "-1\t0/1\tx\n", "1\t0/1\tx\n2\n",
         "1\t0/1\tx\n2\t0/", "\x00" * 40],
    )  # fmt: skip
    def test_damaged(self, text):
        with pytest.raises(ValueError, match="timeline history|is not an LSN"):
            wal.parse_history(text)

    @pytest.mark.parametrize("numbers", [(0,), (1, 1), (2, 1), (1, 3, 2), (1 << 32,)])
    def test_timelines_must_rise(self, numbers):
        with pytest.raises(ValueError, match="does not name a later timeline"):
            wal.parse_history("".join(f"{number}\t0/1\tx\n" for number in numbers))

    @pytest.mark.parametrize("text", ["", "\n", "# only a comment\n"])
    def test_empty_is_damaged(self, text):
        with pytest.raises(ValueError, match="names no ancestor"):
            wal.parse_history(text)


class TestForkPoint:
    HISTORY = (wal.HistoryEntry(1, 100, ""), wal.HistoryEntry(2, 200, ""), wal.HistoryEntry(5, 500, ""))

    @pytest.mark.parametrize(("timeline", "lsn"), [(1, 100), (2, 200), (5, 500), (3, None), (4, None), (6, None)])
    def test_known(self, timeline, lsn):
        assert wal.fork_point(list(self.HISTORY), timeline) == lsn

    def test_recovery_to_before_an_earlier_switch(self):
        # timeline 3 was made by recovery along 2 that stopped before 2 had left 1
        history = wal.parse_history("1\t0/500\tx\n2\t0/400\tx\n")
        assert wal.fork_point(history, 1) == wal.fork_point(history, 2) == 0x400

    @pytest.mark.parametrize(("lsn", "timeline"), [(0, 1), (99, 1), (100, 2), (199, 2), (200, 5), (499, 5), (500, 7)])
    def test_which_timeline_wrote_a_byte(self, lsn, timeline):
        assert wal.timeline_at(self.HISTORY, 7, lsn) == timeline
        assert wal.timeline_at([], 1, lsn) == 1

    def test_which_timeline_wrote_a_byte_when_switch_points_fall(self):
        history = wal.parse_history("1\t0/500\tx\n2\t0/400\tx\n")
        assert [wal.timeline_at(history, 3, lsn) for lsn in (0x3FF, 0x400, 0x500)] == [1, 3, 3]

    def test_timeline_1_has_no_ancestor(self):
        assert wal.fork_point([], 1) is None

    @given(histories(), st.integers(1, 1001))
    def test_only_ancestors_have_one(self, history, timeline):
        assert wal.fork_point(history, timeline) == {e.timeline: e.switch_lsn for e in history}.get(timeline)
