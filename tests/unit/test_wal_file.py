# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is WAL, and what only has its name."""

from __future__ import annotations

import hashlib
import struct

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import wal
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import HistoryEntry
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import CODES, MAGICS, BadWal, Check, kind
from ansible_collections.hotspare.postgresql.tests.unit.wal_pages import (
    BACKUP,
    BACKUP_NAME,
    HISTORY,
    MAGIC,
    NAME,
    PAGE,
    SYSTEM,
    segment,
)
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = wal.MIB
SIZES = [MIB << power for power in range(11)]


def checked(name: str, content: bytes, *, step: int = MIB, **expected):
    check = Check(name, **expected)
    for start in range(0, len(content), step):
        check.feed(content[start : start + step])
    return check.finish()


def refused(name: str, content: bytes, **expected) -> tuple[str, str]:
    """Code and sentence; the same however it is cut in pieces."""
    found = set()
    for step in (MIB, 5000, 64 * 1024 + 8):
        with pytest.raises(BadWal) as error:
            checked(name, content, step=step, **expected)
        found.add((error.value.code, error.value.message))
    assert len(found) == 1, found
    code, message = found.pop()
    assert code in CODES and name in message
    return code, message


def patched(content: bytes, offset: int, data: bytes) -> bytes:
    return content[:offset] + data + content[offset + len(data) :]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000000010000000000000003", "segment"),
        ("000000010000000000000003.partial", "partial"),
        ("00000002.history", "history"),
        ("000000010000000000000003.00000028.backup", "backup"),
        ("00000001000000000000000a", None),
        ("00000001000000000000003", None),
        ("000000010000000000000003.zst", None),
        ("000000010000000000000003\n", None),
        ("000000010000000000000003.backup", None),
        ("../00000002.history", None),
        ("archive_status", None),
        ("000000000000000000000003", None),
        ("00000000.history", None),
        ("", None),
    ],
)
def test_kinds(name, expected):
    assert kind(name) == expected


@given(st.text(alphabet="0123456789ABCDEFx.", max_size=45))
def test_a_name_without_a_kind_is_refused(name):
    if kind(name) is None:
        with pytest.raises(BadWal, match="is not the name of a WAL file"):
            Check(name)
    else:
        assert Check(name).kind == kind(name)


class TestSegment:
    def test_what_it_holds(self):
        content = segment(timelines=[1, 1])
        facts = checked(NAME, content, system_identifier=SYSTEM, segment_size=MIB)
        assert (facts.name, facts.kind, facts.size) == (NAME, "segment", MIB)
        assert facts.sha256 == hashlib.sha256(content).hexdigest()
        assert (facts.system_identifier, facts.segment_size, facts.page_size) == (SYSTEM, MIB, PAGE)
        assert (facts.magic, facts.timelines) == (MAGIC, (1,))

    @pytest.mark.parametrize("magic", MAGICS)
    def test_every_version(self, magic):
        assert checked(NAME, segment(magic=magic)).magic == magic

    @settings(deadline=None)
    @given(st.sampled_from(SIZES[:5]), st.integers(1, wal.TIMELINE_END - 1), st.integers(0, 1 << 40), st.data())
    def test_every_size_and_position(self, size, timeline, number, data):
        name = wal.segment_name(timeline, number * size % wal.LSN_END, size)
        step = data.draw(st.integers(1000, 3 * MIB))
        assert checked(name, segment(name, size=size, used=3), step=step, segment_size=size).timelines == (timeline,)

    def test_a_byte_at_a_time(self):
        content = segment()
        check = Check(NAME)
        for byte in content[: 3 * PAGE]:
            check.feed(bytes([byte]))
        check.feed(content[3 * PAGE :])
        assert check.finish().sha256 == hashlib.sha256(content).hexdigest()

    @pytest.mark.parametrize("used", [1, 2, 127, 128])
    def test_zeros_after_a_switch(self, used):
        assert checked(NAME, segment(used=used)).size == MIB

    def test_the_first_of_a_timeline_begins_with_a_copy(self):
        name = "00000005" + NAME[8:]
        assert checked(name, segment(name, timelines=[1, 3, 3])).timelines == (1, 3, 5)

    @pytest.mark.parametrize(("switch", "copied"), [(3 * PAGE + 60, 4), (3 * PAGE, 3), (60, 1), (0, 0), (MIB - 8, 128)])
    def test_by_its_history(self, switch, copied):
        """The page with the switch is a copy, too, but for one that begins there."""
        name = "00000002" + NAME[8:]
        history = [HistoryEntry(1, 3 * MIB + switch, "")]
        assert set(checked(name, segment(name, timelines=[1] * copied), history=history).timelines) <= {1, 2}
        # It was given up before it went beyond the copy: none of its pages has its own timeline.
        if copied:
            given_up = segment(name, timelines=[1] * copied, used=copied)
            assert checked(name, given_up, history=history).timelines == (1,)
            assert checked(name, given_up).timelines == (1,)
        later = "000000020000000000000004"
        assert checked(later, segment(later), history=history).timelines == (2,)

    def test_by_a_history_whose_switch_points_fall(self):
        name = "00000003" + NAME[8:]
        history = [HistoryEntry(1, 9 * MIB, ""), HistoryEntry(2, 3 * MIB + 2 * PAGE, "")]
        assert checked(name, segment(name, timelines=[1, 1]), history=history).timelines == (1, 3)
        assert refused(name, segment(name, timelines=[2, 2]), history=history)[0] == "timeline"

    def test_pages_of_another_size(self):
        content = bytearray(segment(used=2))
        content[36:40] = struct.pack("=I", 2 * PAGE)
        content[2 * PAGE : 2 * PAGE + 16] = struct.pack("=HHIQ", MAGIC, 1, 1, 3 * MIB + 2 * PAGE)
        assert checked(NAME, bytes(content)).page_size == 2 * PAGE


class TestRefused:
    def test_empty(self):
        for name in (NAME, NAME + ".partial", "00000002.history", BACKUP_NAME):
            with pytest.raises(BadWal, match=f"{name} is empty") as error:
                checked(name, b"")
            assert error.value.code == "empty"

    @pytest.mark.parametrize("suffix", ["", ".partial"])
    @pytest.mark.parametrize("size", [1, 39, 40, PAGE, MIB // 2, MIB - 1])
    def test_cut_off(self, suffix, size):
        code, message = refused(NAME + suffix, segment()[:size])
        assert code == "size" and f"is cut off: it has {size}" in message

    @pytest.mark.parametrize("suffix", ["", ".partial"])
    def test_too_long(self, suffix):
        code, message = refused(NAME + suffix, segment() + b"\0")
        assert code == "size" and f"longer than the {MIB} bytes" in message

    @pytest.mark.parametrize("content", [bytes(MIB), b"SQLite format 3\0" * 65536])
    def test_no_wal(self, content):
        code, message = refused(NAME, content)
        assert code == "magic" and "no WAL of PostgreSQL 13 to 18" in message

    @pytest.mark.parametrize(("page", "flags"), [(0, 0), (0, 0x12), (1, 2), (1, 0x8000), (127, 0x10)])
    def test_flags(self, page, flags):
        code, message = refused(NAME, patched(segment(), page * PAGE + 2, struct.pack("=H", flags)))
        assert code == "flags" and f"flags 0x{flags:04X}" in message and "page" in message

    def test_another_cluster(self):
        code, message = refused(NAME, segment(system=4711), system_identifier=SYSTEM)
        assert code == "system" and "4711" in message and str(SYSTEM) in message

    def test_segments_of_another_size(self):
        code, message = refused(NAME, segment(), segment_size=16 * MIB)
        assert code == "size" and f"segments of {MIB} bytes, not {16 * MIB}" in message

    @pytest.mark.parametrize("size", [0, MIB + 1, 3 * MIB, 2048 * MIB])
    def test_no_size_at_all(self, size):
        code, message = refused(NAME, patched(segment(), 32, struct.pack("=I", size)))
        assert code == "size" and "no segment size" in message

    @pytest.mark.parametrize("size", [0, 512, 3 * PAGE, 131072])
    def test_no_page_size(self, size):
        code, message = refused(NAME, patched(segment(), 36, struct.pack("=I", size)))
        assert code == "size" and f"pages have {size} bytes" in message

    @pytest.mark.parametrize("suffix", ["", ".partial"])
    def test_another_name(self, suffix):
        code, message = refused("000000010000000000000004" + suffix, segment(NAME))
        assert code == "address" and "begins with 0/300000, which belongs into 000000010000000000000003" in message

    def test_a_name_that_no_segment_of_this_size_has(self):
        name = "000000010000000000001000"
        code, message = refused(name, segment())
        assert code == "name" and "no segment of 1 MB" in message

    def test_a_later_timeline_than_its_name(self):
        code, message = refused(NAME, segment(timelines=[1, 2]))
        assert code == "timeline" and "timeline 2 in page 1 (byte 8192)" in message
        assert refused(NAME, segment("00000003" + NAME[8:]))[0] == "timeline"

    def test_a_segment_of_an_ancestor_renamed_to_a_later_timeline(self):
        """Its address is right, and the first segment of a timeline has such pages as well."""
        history = [HistoryEntry(1, 5 * MIB + 3 * PAGE + 60, "")]
        name = "00000002" + NAME[8:]
        assert checked(name, segment(NAME)).timelines == (1,), "without the history nobody can tell"
        code, message = refused(name, segment(NAME), history=history)
        assert code == "timeline" and f"lies before the switch to its timeline, so it belongs into {NAME}" in message
        for old, words in (
            # The one with the switch, which the old primary wrote to its end.
            ("000000010000000000000005", "has timeline 1 in page 4 (byte 32768), which by its history is of 2"),
            ("000000010000000000000006", "has timeline 1 in page 0 (byte 0), which by its history is of 2"),
        ):
            code, message = refused("00000002" + old[8:], segment(old), history=history)
            assert code == "timeline" and words in message
        new = "000000020000000000000005"
        code, message = refused(new, segment(new, timelines=[1, 1]), history=history)
        assert code == "timeline" and "timeline 2 in page 2 (byte 16384), which by its history is of 1" in message

    def test_a_partial_renamed_to_a_later_timeline(self):
        name, history = "00000002" + NAME[8:] + ".partial", [HistoryEntry(1, 2 * MIB, "")]
        assert checked(name, segment("00000002" + NAME[8:]), history=history).kind == "partial"
        assert refused(name, segment(NAME), history=history)[0] == "timeline"

    def test_a_timeline_that_goes_back(self):
        name = "00000003" + NAME[8:]
        code, message = refused(name, segment(name, timelines=[1, 3, 2]))
        assert code == "timeline" and "timeline 2 in page 2 (byte 16384) after 3" in message

    @pytest.mark.parametrize("offset", [0, 1, 8, 15])
    def test_a_flipped_bit_in_a_header(self, offset):
        content = segment()
        where = 100 * PAGE + offset
        code, message = refused(NAME, patched(content, where, bytes([content[where] ^ 4])))
        assert code == "page" and f"page 100 (byte {100 * PAGE})" in message

    def test_the_end_is_from_before_it_was_recycled(self):
        old = segment("000000010000000000000001")
        code, message = refused(NAME, segment()[: 50 * PAGE] + old[50 * PAGE :])
        assert code == "page" and "page 50" in message and "0/164000" in message

    def test_another_version_within(self):
        assert refused(NAME, segment()[:PAGE] + segment(magic=0xD106)[PAGE:])[0] == "page"

    @pytest.mark.parametrize(("first", "pages"), [(1, 1), (60, 4), (126, 1)])
    def test_a_hole(self, first, pages):
        code, message = refused(NAME, patched(segment(), first * PAGE, bytes(pages * PAGE)))
        assert code == "hole"
        assert f"page {first} (byte {first * PAGE}) is empty, page {first + pages} (byte" in message

    @settings(deadline=None)
    @given(st.integers(0, MIB - 2 * PAGE - 1), st.integers(1, 255))
    def test_nothing_follows_the_end(self, offset, value):
        content = patched(segment(used=2), 2 * PAGE + offset, bytes([value]))
        with pytest.raises(BadWal) as error:
            checked(NAME, content)
        assert error.value.code == ("page" if offset < PAGE else "hole")

    @given(st.binary(max_size=3 * PAGE), st.booleans())
    def test_anything_is_refused_by_a_sentence(self, content, with_magic):
        if with_magic:
            content = struct.pack("=HH", MAGIC, 2) + content
        with pytest.raises(BadWal):
            checked(NAME, content)


class TestPartial:
    """What follows the end of WAL is what the file held before it was recycled."""

    def test_an_old_tail(self):
        content = segment()[: 3 * PAGE] + segment("000000010000000000000001")[3 * PAGE :]
        facts = checked(NAME + ".partial", content, system_identifier=SYSTEM)
        assert facts.kind == "partial" and facts.timelines == (1,)

    def test_another_cluster(self):
        assert refused(NAME + ".partial", segment(system=4711), system_identifier=SYSTEM)[0] == "system"


class TestHistory:
    def test_what_it_holds(self):
        facts = checked("00000003.history", HISTORY.encode(), system_identifier=SYSTEM, segment_size=MIB)
        assert (facts.kind, facts.size, facts.timelines, facts.system_identifier) == (
            "history",
            len(HISTORY),
            (),
            None,
        )

    def test_reasons_in_any_encoding(self):
        assert checked("00000002.history", b"1\t0/3000060\tbefore M\xfcller\n").size == 26

    @pytest.mark.parametrize("size", range(1, len(HISTORY)))
    def test_cut_off(self, size):
        if HISTORY[:size].endswith("\n"):
            assert checked("00000003.history", HISTORY[:size].encode())  # as the history of its ancestor is
            return
        assert refused("00000003.history", HISTORY[:size].encode())[0] == "parse"

    @pytest.mark.parametrize(
        "text", ["\n", "# nothing\n", "no history\n", "2\t0/1\tx\n1\t0/2\ty\n", "1\t0/3\tx\n\0\0\n"]
    )
    def test_no_history(self, text):
        code, message = refused("00000003.history", text.encode())
        assert code == "parse" and "is no timeline history" in message

    def test_the_first_timeline_has_none(self):
        assert refused("00000001.history", HISTORY.encode())[0] == "name"

    def test_of_another_timeline(self):
        code, message = refused("00000002.history", HISTORY.encode())
        assert code == "timeline" and "timeline 2 as its ancestor" in message

    def test_endless(self):
        check = Check("00000002.history")
        with pytest.raises(BadWal, match="more than 1048576 bytes"):
            for _ in range(1000):
                check.feed(b"# " * 5000)


class TestBackup:
    @pytest.mark.parametrize("size", [None, 16 * MIB])
    def test_what_it_holds(self, size):
        assert checked(BACKUP_NAME, BACKUP.encode(), segment_size=size).kind == "backup"

    @pytest.mark.parametrize("start", ["000000010000000000000003.00000028", "000000010000000000000002.00000060"])
    def test_of_another_backup(self, start):
        code, message = refused(f"{start}.backup", BACKUP.encode(), segment_size=16 * MIB)
        assert code == "address" and "begins at 0/2000028 in 000000010000000000000002" in message

    def test_of_another_backup_when_the_size_of_segments_is_not_known(self):
        assert refused("000000010000000000000003.00000028.backup", BACKUP.encode())[0] == "address"

    def test_of_a_cluster_with_other_segments(self):
        assert refused(BACKUP_NAME, BACKUP.encode(), segment_size=64 * MIB)[0] == "address"

    @pytest.mark.parametrize("text", ["x", "x\n", BACKUP[:60], BACKUP[:-1], BACKUP.replace("STOP WAL", "END")])
    def test_cut_off(self, text):
        assert refused(BACKUP_NAME, text.encode())[0] == "parse"


def test_a_check_survives_a_journey():
    """The wire takes message and facts, and makes the same error of them."""
    with pytest.raises(BadWal) as error:
        checked(NAME, b"")
    again = BadWal(error.value.message, **error.value.facts)
    assert (again.code, again.message, again.facts) == (error.value.code, error.value.message, error.value.facts)
