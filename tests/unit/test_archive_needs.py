# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who needs WAL of an archive."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Entry
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import Keep
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_gaps import gaps
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_needs import (
    DAY,
    Backup,
    answered,
    kept,
    oldest_restorable,
    parse_backup,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_retention import Need, cut
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, format_lsn, segment_name

SIZE = 16 * MIB
NOW = 1_000 * DAY

TEXT = """\
START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
STOP WAL LOCATION: 0/3000130 (file 000000010000000000000003)
CHECKPOINT LOCATION: 0/2000080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-21 12:35:01 UTC
LABEL: nightly: a "full" one
START TIMELINE: 1
STOP TIME: 2026-11-21 12:35:03 UTC
STOP TIMELINE: 1
"""


def backup(number: int, timeline: int = 1) -> Backup:
    lsn = number * SIZE + 40
    return Backup(lsn, segment_name(timeline, lsn, SIZE), lsn + SIZE, timeline, f"day {number}", f"b{number}")


def segment(number: int, age: float) -> Entry:
    return Entry(segment_name(1, number * SIZE, SIZE), "segment", SIZE, NOW - age * DAY)


def note(of: Backup, age: float) -> Entry:
    return Entry(of.file_name(SIZE), "backup", 400, NOW - age * DAY)


# One segment each day, and a base backup on every third.
BACKUPS = [backup(number) for number in (1, 4, 7, 10)]
ENTRIES = [
    *(segment(number, 12 - number) for number in range(1, 13)),
    *(note(b, 12 - n) for b, n in zip(BACKUPS, (1, 4, 7, 10))),
]


def least(keep: Keep, **others: Any) -> Optional[str]:
    """From where on the operator keeps."""
    given: dict[str, Any] = {"entries": ENTRIES, "backups": BACKUPS, "now": NOW, **others}
    found = kept(keep, given["entries"], given["backups"], given["now"], SIZE)
    lsns = [need.lsn for need in found]
    assert lsns
    return None if None in lsns else format_lsn(min(lsn for lsn in lsns if lsn is not None))


def test_a_backup_file_is_read() -> None:
    found = parse_backup(TEXT)
    assert found == Backup(
        start_lsn=0x2000028,
        start_name="000000010000000000000002",
        stop_lsn=0x3000130,
        timeline=1,
        started="2026-11-21 12:35:01 UTC",
        label='nightly: a "full" one',
    )
    assert found.file_name(SIZE) == "000000010000000000000002.00000028.backup"


@pytest.mark.parametrize("text", ["", TEXT.replace("STOP WAL", "Stop"), TEXT.replace("0/2000028", "here")])
def test_what_is_no_backup_file_is_refused(text: str) -> None:
    with pytest.raises(HotspareError, match="no line for the"):
        parse_backup(text)


def test_the_newest_backups_are_kept() -> None:
    assert least(Keep(backups=1)) == "0/A000028"
    assert least(Keep(backups=3)) == "0/4000028"
    assert least(Keep(backups=9)) == "0/1000028"


def test_backups_that_the_archive_knows_nothing_of_are_no_reason_to_remove() -> None:
    assert least(Keep(backups=1), backups=[]) is None


def test_a_window_begins_with_the_backup_from_which_its_first_moment_is_reached() -> None:
    assert least(Keep(days=4.5)) == "0/7000028"
    assert least(Keep(days=5.5)) == "0/4000028"
    assert least(Keep(days=30)) == "0/1000000"


def test_a_window_that_reaches_further_back_than_the_known_backups_keeps_all() -> None:
    assert least(Keep(days=3), backups=[backup(10)]) == "0/1000000"
    # A backup that came after its time, as in an archive that was filled again, is not taken for an old one.
    old = [e if e.kind == "segment" else Entry(e.name, e.kind, e.stored_bytes, NOW) for e in ENTRIES]
    assert least(Keep(days=3), entries=old) == "0/1000000"


@pytest.mark.parametrize("keep", [Keep(days=14), Keep(segments=5), Keep(backups=1), Keep(days=14, segments=5)])
def test_nothing_is_removed_while_no_base_backup_is_known(keep: Keep) -> None:
    """As where they are taken from a standby, which leaves no .backup file."""
    segments = [segment(number, 40 - number) for number in range(1, 41)]
    everybody = Need("server", "db1", 39 * SIZE, "its last checkpoint begins there")
    asked = [everybody, *kept(keep, segments, [], NOW, SIZE)]
    found = cut([entry.name for entry in segments], asked, segment_size=SIZE, minimum_segments=keep.segments or 0)
    assert (found.ok, found.remove) == (False, [])
    assert "has the .backup file of no base backup; take one from the primary with pg_basebackup" in found.reason


def test_without_anything_to_remove_nobody_is_troubled_for_a_backup() -> None:
    segments = [segment(number, 12 - number) for number in range(1, 13)]
    assert [need.lsn for need in kept(Keep(days=14), segments, [], NOW, SIZE)] == [SIZE]
    assert kept(Keep(segments=12), segments, [], NOW, SIZE) == []


def test_the_newest_segments_reach_back_to_a_base_backup() -> None:
    assert least(Keep(segments=1)) == "0/A000028"
    assert least(Keep(segments=1), backups=BACKUPS[:2]) == "0/4000028"


def test_a_clock_that_leaps_ahead_does_not_age_an_archive() -> None:
    assert least(Keep(days=3), now=NOW + 400 * DAY) == least(Keep(days=3))
    assert least(Keep(days=3), now=NOW - 2 * DAY) == "0/7000000", "and one that was put back keeps more"


def test_a_window_of_an_empty_archive() -> None:
    assert kept(Keep(days=3), [], [], NOW, SIZE) == []


ANSWER = {
    "system_identifier": "77",
    "redo": "0/5000028",
    "slots": None,
    "backups": 0,
    "exclusive": False,
    "sessions": None,
    "hidden": 0,
}


def test_a_server_needs_its_last_checkpoint_and_what_its_slots_keep() -> None:
    slots = {"hotspare_db3": "0/3000000", "hotspare_db2": "0/4000000"}
    found = answered("db1", {**ANSWER, "slots": slots}, 77)
    assert [(need.kind, need.of, need.lsn) for need in found] == [
        ("server", "db1", 0x5000028),
        ("slot", "slot hotspare_db2 of db1", 0x4000000),
        ("slot", "slot hotspare_db3 of db1", 0x3000000),
    ]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"backups": 1}, "pg_basebackup or the like"),
        ({"exclusive": True}, "an exclusive backup, see backup_label"),
        ({"sessions": ["psql, process 47", "process 48"]}, "(psql, process 47, process 48); wait for its end"),
        ({"hidden": 2}, "2 of its sessions do not show what they do; run site.yml"),
    ],
)
def test_a_running_base_backup_began_nobody_knows_where(said: dict[str, Any], words: str) -> None:
    found = answered("db1", {**ANSWER, **said}, 77)
    assert [(need.kind, need.lsn) for need in found] == [("server", 0x5000028), ("running_backup", None)]
    assert words in found[1].detail


def test_a_server_of_another_cluster_says_nothing_about_this_one() -> None:
    (need,) = answered("db1", ANSWER, 78)
    assert (need.kind, need.lsn) == ("server", None)
    assert "another cluster, 77" in need.detail


def test_the_oldest_backup_from_which_now_is_reached() -> None:
    def found(held: list[int], *others: Backup) -> Optional[Backup]:
        names = [segment_name(1, number * SIZE, SIZE) for number in held]
        report = gaps(names, {}, segment_size=SIZE, timeline=1, position=13 * SIZE + 1)
        return oldest_restorable(report, [*reversed(BACKUPS), *others], SIZE)

    assert found([*range(1, 13)]) == BACKUPS[0]
    assert found([1, *range(3, 13)]) == BACKUPS[1]
    assert found([1, *range(3, 13)], backup(3, timeline=2)) == BACKUPS[1], "one of another timeline leads elsewhere"
    assert found([1, 11, 12]) is None
    assert found([1, 2]) is None
