# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_sync as Ansible runs it: real servers, an archive host behind ssh, and a directory such as a mounted NAS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_report import archive_table
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import as_account

from .archives import ArchiveHost, Archives
from .conftest import ACCOUNT, Lab, Node, Pair, eventually, execute
from .test_tree_sync import Side

MODULE = "archive_sync"
PLACES = ("store", "nas")


class Site:
    """A pair that archives nothing by itself, and two destinations; both nodes have a CONFIG."""

    def __init__(self, lab: Lab, archives: Archives) -> None:
        self.archives = archives
        self.pair = Pair(lab.node("db-one"), lab.node("db-two"))
        for node in (self.pair.primary, self.pair.standby):
            conf = Path(node.instance.config_file or "").parent / "conf.d" / "50-archive.conf"
            execute("tee", str(conf), stdin="archive_mode = on\narchive_command = 'false'\nwal_keep_size = 256MB\n")
        self.pair.primary.start()
        lab.follow(self.pair.primary, self.pair.standby)
        self.store: ArchiveHost = archives.host("store", keep={"segments": 2})
        self.nas = archives.make_directory("archive-nas")

    def config(self, node: Node, **changes: Any) -> dict[str, Any]:
        """The module's options on a node."""
        others = [other for other in (self.pair.primary, self.pair.standby) if other is not node]
        path = self.archives.config(
            node.instance.name,
            node.instance,
            peers=[{"name": other.instance.name, **other.address} for other in others],
            destinations=[self.store.place, {"name": "nas", "directory": str(self.nas)}],
            **changes,
        )
        return {"config_file": str(path)}

    def held(self) -> dict[str, list[str]]:
        """What really lies at the destinations."""
        found = {}
        for name, directory in zip(PLACES, (self.store.directory, self.nas)):
            with as_account(ACCOUNT):
                found[name] = [entry.name for entry in Archive(str(directory)).inventory()]
        return found

    def remove(self, place: str, name: str) -> None:
        with as_account(ACCOUNT):
            assert Archive(str(self.store.directory if place == "store" else self.nas)).remove([name]) == [name]


@pytest.fixture
def site(lab: Lab, archives: Archives) -> Site:
    return Site(lab, archives)


def fill(node: Node, segments: int) -> list[str]:
    """Write so many segments with a row each; their names."""
    made = []
    for _ in range(segments):
        node.write()
        made.append(node.sql("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        node.sql("SELECT pg_switch_wal()")
    return made


def timer(site: Site, node: Node) -> None:
    argv = [sys.executable, "-I", str(site.archives.program), "archive-sync", site.config(node)["config_file"]]
    subprocess.run(argv, check=True, cwd="/", timeout=60)


def record(result: dict[str, Any], place: str) -> dict[str, Any]:
    return next(found for found in result["destinations"] if found["name"] == place)


def gaps(result: dict[str, Any], place: str) -> dict[str, Any]:
    return next(found for found in result["archive"]["places"] if found["name"] == place)["gaps"]


def test_the_hole_that_a_dead_primary_leaves_is_filled(site: Site, four_steps, run_module) -> None:
    one, two = site.pair.primary, site.pair.standby
    archived = fill(one, 2)
    run_module(MODULE, site.config(one))
    before = site.held()
    assert before == {place: [*before["nas"]] for place in PLACES} and set(archived) <= set(before["nas"])

    hole = fill(one, 4)
    one.write("the last one")
    eventually(site.pair.in_step)
    switch = one.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
    one.crash()
    two.sql("SELECT pg_promote()")
    two.sql("CHECKPOINT")
    status = two.data / "pg_wal" / "archive_status"
    assert all((status / f"{name}.done").exists() for name in hole), "nobody will ever archive them"
    # What the new primary has recycled, another standby had archived.
    with as_account(ACCOUNT):
        nas = Archive(str(site.nas))
        nas.put(hole[0], str(two.data / "pg_wal" / hole[0]))
    (two.data / "pg_wal" / hole[0]).unlink()
    (after,) = fill(two, 1)

    options = site.config(two)
    shown = run_module(MODULE, {**options, "state": "checked"})
    assert [gaps(shown, place)["ok"] for place in PLACES] == [False, False]
    assert [s["state"] for s in gaps(shown, "store")["stretches"]][:2] == ["found", "recoverable"]

    results = four_steps(MODULE, options, site.held)
    new = {"00000002.history", f"{switch}.partial", after}
    expected = sorted({*before["nas"], *hole, *new})
    assert site.held() == dict.fromkeys(PLACES, expected)
    for result in results[:2]:
        assert record(result, "store")["files"] == len(hole) + len(new)
        assert record(result, "store")["sources"] == {"pg_wal of db-two": len(hole) + len(new) - 1, "nas": 1}
        assert record(result, "nas")["files"] == len(hole) + len(new) - 1
        shipped = next(diff for diff in result["diff"] if diff["after_header"] == "store")
        assert shipped["after"].splitlines()[0] == "00000002.history" and shipped["before"] == ""
    assert record(results[1], "store")["bytes"] > 16 << 20 and record(results[1], "store")["rate"] > 0

    shown = run_module(MODULE, {**options, "state": "checked"})
    assert [gaps(shown, place)["ok"] for place in PLACES] == [True, True], shown
    assert [place["own"] for place in shown["archive"]["places"]] == [False, False, True]
    assert [row.split()[:2] for row in archive_table(shown)[3:6]] == [
        ["store", "ok"],
        ["nas", "ok"],
        ["db-two", "(own)"],
    ]
    assert run_module(MODULE, {**options, "state": "verified"})["problems"] == []

    # The timer does the same, and nothing on a standby or where nothing runs.
    (later,) = fill(two, 1)
    for node, shipped in ((one, False), (two, True)):
        timer(site, node)
        assert (later in site.held()["store"]) is shipped


def test_a_destination_that_was_away_gets_all_from_another(site: Site, four_steps, run_module) -> None:
    one = site.pair.primary
    site.store.stop()
    made = fill(one, 3)
    eventually(site.pair.in_step)
    options = site.config(one)
    for check in (True, False):
        told = run_module(MODULE, options, check=check)
        assert told["failed"] and told["msg"].startswith("store (postgres@127.0.0.1")
        assert record(told, "store")["files"] == 0 and record(told, "nas")["files"] >= 3
    assert set(made) <= set(site.held()["nas"]) and site.held()["store"] == []

    site.store.start()
    (one.data / "pg_wal" / made[0]).unlink()
    # This one nobody has any more but a standby, in its pg_wal.
    (one.data / "pg_wal" / made[1]).unlink()
    site.remove("nas", made[1])
    results = four_steps(MODULE, options, site.held)
    assert site.held()["store"] == site.held()["nas"] and set(made) <= set(site.held()["store"])
    sources = record(results[1], "store")["sources"]
    assert (sources["nas"], sources["pg_wal of db-two"]) == (1, 1)
    assert record(results[1], "nas")["sources"] == {"pg_wal of db-two": 1}
    site.remove("store", made[0])
    assert run_module(MODULE, {**options, "destinations": ["nas"]})["changed"] is False
    assert run_module(MODULE, {**options, "destinations": ["tape"]})["msg"].startswith("db-one ships nothing to 'tape'")


def test_verified_reads_again_what_is_there(site: Site, run_module) -> None:
    options = {**site.config(site.pair.primary), "state": "verified"}
    made = fill(site.pair.primary, 2)
    run_module(MODULE, {**options, "state": "present"})
    well = run_module(MODULE, options)
    assert (well["changed"], well["problems"]) == (False, [])
    assert [record(well, place)["newest"] for place in PLACES] == [made[-1]] * 2
    assert record(well, "store")["files"] == len(site.held()["store"])

    path = site.store.directory / Archive.place(made[0])
    content = bytearray(path.read_bytes())
    content[9000] ^= 1
    path.write_bytes(content)
    site.remove("nas", made[1])
    os.utime(site.pair.primary.data / "pg_wal" / made[1], (0, 0))  # it was finished long ago
    before = site.held()
    told = run_module(MODULE, options)
    assert told["failed"] and len(told["problems"]) == 2
    assert (record(told, "store")["different"], record(told, "nas")["missing"]) == ([made[0]], [made[1]])
    assert f"{made[0]} in store is not what the others have" in " ".join(told["problems"])
    assert site.held() == before


def base_backup(node: Node, major: int) -> str:
    """The segment with which it begins, which has no other WAL."""
    begin, end = ("pg_backup_start('b', true)", "pg_backup_stop(false)")
    if major < 15:
        begin, end = ("pg_start_backup('b', true, false)", "pg_stop_backup(false, false)")
    return node.sql(f"SELECT pg_walfile_name({begin}); SELECT count(*) FROM (SELECT {end}) x").split()[0]


def test_pruned_is_only_what_nobody_needs(site: Site, four_steps, run_module, major: int) -> None:
    one, two = site.pair.primary, site.pair.standby
    options = site.config(one, keep={"segments": 2})
    made = [*fill(one, 3), base_backup(one, major), *fill(one, 1)]
    run_module(MODULE, options)
    pruning = {**options, "state": "pruned"}
    # The standby has made no restart point since: it would begin again before all of this.
    kept = run_module(MODULE, pruning)
    assert (kept["changed"], kept["cut"]["deciding"]["of"]) == (False, "db-two")

    one.sql("CHECKPOINT")
    eventually(site.pair.in_step)
    two.sql("CHECKPOINT")
    two.stop()
    before = site.held()
    for check in (True, False):
        told = run_module(MODULE, pruning, check=check)
        assert told["failed"] and told["msg"].startswith("nothing is removed, nobody knows from where on db-two")
    assert site.held() == before

    two.start()
    eventually(site.pair.streams)
    results = four_steps(MODULE, pruning, site.held)
    # A base backup, and what recovery takes from it on.
    kept = [name for name in before["store"] if name[:24] in made[-2:]]
    assert len(kept) == 3 and site.held() == dict.fromkeys(PLACES, kept)
    assert results[0]["cut"]["remove"] == sorted(results[0]["cut"]["remove"])
    removed = {diff["after_header"]: diff["before"].splitlines() for diff in results[1]["diff"]}
    assert removed == {place: [name for name in before[place] if name not in kept] for place in PLACES}
    assert run_module(MODULE, options)["changed"] is False, "pg_wal has them yet, and they stay away"


def test_documents(archives: Archives, four_steps, run_module) -> None:
    db1, db2 = Side(archives, "db1"), Side(archives, "db2")
    db1.ships_to(db2)
    db2.ships_to(db1)
    db1.writable(True)
    db2.writable(False)
    db1.write("invoice.pdf", "one")
    db1.write("letter.pdf", "two!")
    options = {"config_file": str(archives.directory / "db1.json"), "kind": "tree"}
    # Nobody knows of a young file whether it is finished.
    eventually(lambda: run_module(MODULE, options, check=True)["trees"][0]["destinations"][0]["files"] == 2)
    results = four_steps(MODULE, options, db2.documents)
    assert db2.documents() == db1.documents()
    for result in results[:2]:
        (record,) = result["trees"][0]["destinations"]
        assert (record["name"], record["files"], record["bytes"]) == ("db2", 2, 7)
        assert result["diff"][0]["after"].splitlines() == ["invoice.pdf", "letter.pdf"]

    for state in ("checked", "verified"):
        told = run_module(MODULE, {**options, "state": state, "trees": ["scans"]})
        place = next(found for found in told["trees"][0]["destinations"] if found["name"] == "db2")
        assert (told["changed"], place["present"], place["missing"], place["different"]) == (False, 2, 0, 0)
        assert archive_table(told)[1].split()[:5] == ["scans", "db2", "2", "0", "0"]
    assert "no tree 'letters'" in run_module(MODULE, {**options, "trees": ["letters"]})["msg"]
    assert run_module(MODULE, {**options, "state": "pruned"})["msg"].startswith("documents are never removed")
