# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What archive_check.yml prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_gaps import gaps
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_needs import Backup
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_report import archive_table
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_retention import Need, cut
from ansible_collections.hotspare.postgresql.plugins.module_utils.status import WIDTH
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, segment_name

SIZE = 16 * MIB
BACKUP = Backup(3 * SIZE + 40, segment_name(1, 3 * SIZE, SIZE), 4 * SIZE, 1, "2026-11-21 12:35:01 UTC", "nightly")


def names(*numbers: int) -> list[str]:
    return [segment_name(1, number * SIZE, SIZE) for number in numbers]


def place(name: str, held: list[str], **changes: Any) -> dict[str, Any]:
    needs = [Need("server", "db2", 3 * SIZE + 40, "its last checkpoint begins there")]
    return {
        "name": name,
        "own": False,
        "error": None,
        "gaps": gaps(held, {}, segment_size=SIZE, timeline=1, position=9 * SIZE + 96).as_dict(),
        "waiting_seconds": 0.0,
        "backup": asdict(BACKUP),
        "files": len(held),
        "bytes": len(held) * SIZE,
        "free_bytes": 80 << 30,
        "cut": cut(held, needs, segment_size=SIZE).as_dict(),
        "cut_bytes": 2 * SIZE,
        "conflicts": [],
        **changes,
    }


def silent(name: str) -> dict[str, Any]:
    return {**dict.fromkeys(place(name, [])), "name": name, "own": False, "error": f"{name} does not answer"}


def table(*places: dict[str, Any], **changes: Any) -> list[str]:
    record = {"name": "db1", "cluster": "main", "timeline": 1, "position": "0/9000060", "places": list(places)}
    lines = archive_table({"archive": {**record, **changes}})
    assert all(len(line) <= WIDTH for line in lines)
    return lines


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_an_archive_without_a_gap() -> None:
    lines = table(place("nas", names(*range(1, 9))))
    assert lines[0] == "main: WAL of db1, timeline 1, at 0/9000060"
    row = ["nas", "ok", names(1)[0], "0, 0.0 s", "8", "128.0 MB", "80.0 GB", "2 files, 32.0 MB"]
    assert cells(lines[3]) == row
    assert lines[5:] == [
        "  nas: the oldest base backup that leads up to now is 'nightly' of 2026-11-21 12:35:01 UTC",
        "  next cut: db2 needs WAL from 0/3000028 on: its last checkpoint begins there",
    ]


def test_gaps_conflicts_and_what_keeps_all_are_said() -> None:
    conflict = {"name": names(5)[0], "path": "/archive/conflicts/x"}
    kept = cut(names(1), [Need("keep", "the operator", None, "archive_keep is not set")], segment_size=SIZE).as_dict()
    lines = table(place("nas", names(1, 2, 8), backup=None, cut=kept, conflicts=[conflict], waiting_seconds=75))
    assert cells(lines[3])[1:4] == ["GAPS", names(8)[0], "0, 1 min 15 s"]
    assert cells(lines[3])[-1] == "nothing"
    text = "\n".join(lines)
    assert f"nas: {names(3)[0]} to {names(7)[0]} (5 segments) are lost" in text
    assert "nas: no base backup is known" in text
    said = "next cut: nothing is removed, nobody knows from where on the operator needs WAL: archive_keep is not set"
    assert said in text
    assert f"nas: CONFLICT: other content came for {names(5)[0]} and was kept as /archive/conflicts/x" in text


def test_many_gaps_are_not_all_told() -> None:
    held = names(*range(1, 60, 2))
    holes = gaps(held, {}, segment_size=SIZE, timeline=1, position=60 * SIZE).as_dict()
    lines = table(place("nas", held, gaps=holes))
    text = " ".join(line.strip() for line in lines)
    assert "nas: 19 more such gaps" in text


def test_what_is_not_known_is_unknown_and_never_zero() -> None:
    lines = table(silent("nas"), timeline=None, position=None)
    assert lines[0] == "main: WAL of db1, timeline unknown, at an unknown position"
    assert cells(lines[3]) == ["nas", *["unknown"] * 7]
    assert len(lines) == 4, "why is among the problems"
    unsure = gaps(names(1, 2), {}, segment_size=SIZE, timeline=1, position=None).as_dict()
    blank = dict.fromkeys(("waiting_seconds", "files", "bytes", "free_bytes", "cut", "cut_bytes", "conflicts"))
    lines = table(place("nas", [], **blank, gaps=unsure))
    assert cells(lines[3]) == ["nas", "unknown", names(1)[0], "unknown, unknown", *["unknown"] * 4]


def test_the_store_of_the_node_itself_has_no_gaps_to_tell() -> None:
    lines = table(place("db1", names(1), own=True, gaps=None, backup=None, waiting_seconds=None))
    assert cells(lines[3])[:5] == ["db1 (own)", "-", "-", "-", "1"]
    assert not [line for line in lines if "base backup" in line]


TREE = {"name": "scans", "path": "/srv/scans", "error": None, "missing_days": []}
COPY = {"name": "db2", "own": False, "error": None, "present": 1204, "missing": 0, "different": 1, "newest": "a.pdf"}


def test_trees() -> None:
    gone = {**dict.fromkeys(COPY), "name": "nas", "own": False, "error": "it does not answer"}
    own = {**COPY, "name": "db1", "own": True, "present": 0, "different": 0, "newest": None}
    days = [f"2026/10/{day:02}" for day in range(1, 13)]
    lines = archive_table({"trees": [{**TREE, "missing_days": days, "destinations": [COPY, gone, own]}]})
    assert lines[0].split() == ["TREE", "PLACE", "PRESENT", "MISSING", "DIFFERENT", "NEWEST"]
    assert [cells(line) for line in lines[1:4]] == [
        ["scans", "db2", "1204", "0", "1", "a.pdf"],
        ["scans", "nas", *["unknown"] * 4],
        ["scans", "db1 (own)", "0", "0", "0", "none"],
    ]
    text = " ".join(line.strip() for line in lines[5:])
    assert text.startswith("scans: no documents of 2026/10/01, 2026/10/02,")
    assert text.endswith("2026/10/10 and 2 more days")


def test_after_a_cutover_it_is_told_up_to_when_the_documents_of_the_old_primary_came() -> None:
    came = {"db1": "2026-11-20 12:00:00", "db3": "2026-10-01 07:00:00"}
    found = {"trees": [{**TREE, "destinations": [COPY], "complete": came}], "problems": ["more"]}
    told = [
        "",
        "  scans: all that db1 had at 2026-11-20 12:00:00 is here",
        "  scans: all that db3 had at 2026-10-01 07:00:00 is here",
    ]
    plain = archive_table(found)
    assert archive_table({**found, "after_cutover": True}) == [*plain[:2], *told, *plain[2:]]
    assert archive_table({"trees": [{**TREE, "destinations": [COPY]}], "after_cutover": True}) == plain[:2]


def test_problems_come_last_and_not_without_end() -> None:
    wal = {"name": "db1", "cluster": "main", "timeline": 1, "position": "0/9000060", "places": [silent("nas")]}
    problems = ["nas: it does not answer", *(f"scans: {number}" for number in range(20))]
    trees = [{**TREE, "destinations": [COPY]}]
    lines = archive_table({"archive": wal, "trees": trees, "problems": problems})
    parts = "\n".join(lines).split("\n\n")
    assert [part.split()[0] for part in parts] == ["main:", "PLACE", "TREE", "problems:"]
    assert lines[-12:-9] == ["problems:", "  nas: it does not answer", "  scans: 0"]
    assert lines[-1] == "  11 more problems"


def test_nothing_to_say() -> None:
    assert archive_table({"changed": False, "trees": [], "problems": []}) == []
