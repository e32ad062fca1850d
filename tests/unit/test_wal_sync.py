# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shipped, compared and removed, with archives in directories and a pg_wal without a server."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_link, wal_holders, wal_sync
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive, Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import (
    ArchiveConfig,
    parse_archive_config,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import Digest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_retention import Need
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Conflict, Full
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, HistoryEntry, segment_name
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_holders import Server
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable

from .wal_pages import BACKUP, BACKUP_NAME, SYSTEM, segment

IDENTITY = Identity(SYSTEM, MIB)
BACKUP_OF_1MB = "000000010000000000000020.00000028.backup"
SWITCH = 5 * MIB + 4096
HISTORY = f"1\t0/{SWITCH:X}\tno recovery target specified\n".encode()


def name(number: int, timeline: int = 1) -> str:
    return segment_name(timeline, number * MIB, MIB)


def content(file: str) -> bytes:
    if file.endswith(".history"):
        return HISTORY
    if file.endswith(".backup"):
        return BACKUP.replace(BACKUP_NAME[:24], BACKUP_OF_1MB[:24]).encode()
    # The first segment of a timeline begins with a copy of its ancestor's.
    return segment(file[:24], timelines=[1] if file == name(SWITCH // MIB, 2) else None)


class Lab:
    """A node "here" on timeline 2, with its pg_wal, and destinations "one" and "two"."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.wal = directory / "data" / "pg_wal"
        (self.wal / "archive_status").mkdir(parents=True)
        self.archives = {which: self._archive(which) for which in ("one", "two", "here")}
        self.server: Server | None = Server("primary", 2, (HistoryEntry(1, SWITCH, ""),), 8 * MIB + 100, IDENTITY)
        self.needs = [Need("server", "here", 3 * MIB + 5, "it would start again there")]
        for library in (wal_holders, wal_sync):
            monkeypatch.setattr(library, "read_server", lambda node: self.server)
        monkeypatch.setattr(archive_link, "identity_of", lambda config: IDENTITY)
        real = wal_sync.needs
        monkeypatch.setattr(
            wal_sync, "needs", lambda of, *args, **more: self.needs if of.keep else real(of, *args, **more)
        )

    def _archive(self, which: str) -> Archive:
        (self.directory / which).mkdir()
        archive = Archive(str(self.directory / which))
        archive.establish(SYSTEM, MIB)
        return archive

    def config(self, **changes: Any) -> ArchiveConfig:
        node = {
            "name": "here",
            "data_directory": str(self.directory / "data"),
            "bin_directory": "/nowhere",
            "account": pwd.getpwuid(os.geteuid()).pw_name,
        }
        return parse_archive_config(
            {
                "name": "here",
                "cluster": "main",
                "node": node,
                "peers": [],
                "directory": str(self.directory / "here"),
                "compression": "none",
                "require": "one",
                "program": "/nowhere/hotspare.pyz",
                "run": str(self.directory),
                "spool": str(self.directory),
                "fetch_ahead": 16,
                "destinations": [{"name": which, "directory": str(self.directory / which)} for which in ("one", "two")],
                "keep": {},
                "trees": [],
                **changes,
            }
        )

    def fill(self, which: str, *files: str, **contents: bytes) -> None:
        for file in files:
            path = self.directory / file
            path.write_bytes(contents.get("content", content(file)))
            self.archives[which].put(file, str(path))
            path.unlink()

    def write(self, *files: str) -> None:
        for file in files:
            (self.wal / file).write_bytes(content(file))

    def held(self, which: str) -> list[str]:
        return [entry.name for entry in self.archives[which].inventory()]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def record(result: dict[str, Any], which: str) -> dict[str, Any]:
    return next(found for found in result["destinations"] if found["name"] == which)


# --- decisions


def test_histories_go_first_and_then_lower_timelines() -> None:
    names = [name(4, 2), name(9), "00000002.history", BACKUP_NAME, f"{name(5)}.partial"]
    assert wal_sync.shipping_order(names) == [
        "00000002.history",
        BACKUP_NAME,
        f"{name(5)}.partial",
        name(9),
        name(4, 2),
    ]


def test_what_would_be_removed_again_is_not_shipped() -> None:
    held = [[name(1), name(2), name(2, 2), BACKUP_NAME, "00000002.history"], [name(3)]]
    assert wal_sync.wanted(held, None, name(3)[8:]) == ["00000002.history", name(3)]
    assert len(wal_sync.wanted(held, None)) == 6


def test_the_odd_one_is_told_where_there_is_a_majority() -> None:
    a, b, unread = Digest("a", 1), Digest("b", 1), Digest(None, None, "it cannot be read")
    assert wal_sync.odd({"x": {"f": a}, "y": {"f": a}, "z": {"f": b}}) == {"x": [], "y": [], "z": ["f"]}
    assert wal_sync.odd({"x": {"f": a}, "y": {"f": b}}) == {"x": ["f"], "y": ["f"]}
    assert wal_sync.odd({"x": {"f": a}, "y": {}, "z": {"f": unread}}) == {"x": [], "y": [], "z": []}
    assert wal_sync.odd({"x": {"f": unread}}) == {"x": []}


# --- ship


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_hole_of_a_failover_is_filled_from_everywhere(lab: Lab, compression: str) -> None:
    config = lab.config(compression=compression)
    # The old primary archived 2 at "one" and 3 at "two"; 4 is in our pg_wal only, 8 is being written.
    lab.write(
        "00000002.history", name(4), name(5), f"{name(5)}.partial", name(5, 2), name(6, 2), name(7, 2), name(8, 2)
    )
    lab.fill("one", name(2))
    lab.fill("two", name(3))
    lab.fill("here", name(1))
    all_of_it = sorted(
        ["00000002.history", f"{name(5)}.partial", *map(name, (1, 2, 3, 4)), *(name(n, 2) for n in (5, 6, 7))]
    )

    planned = wal_sync.sync(config, check_mode=True)
    assert planned["changed"] and lab.held("one") == [name(2)]
    done = wal_sync.sync(config)
    assert done["problems"] == [] and done["changed"]
    assert lab.held("one") == lab.held("two") == all_of_it
    assert lab.held("here") == [name(1)], "nothing is shipped to our own archive"

    for result in (planned, done):
        one = record(result, "one")
        assert one["names"][0] == "00000002.history"
        assert (one["files"], one["error"], one["conflicts"]) == (8, None, [])
        assert one["bytes"] == 7 * MIB + len(HISTORY)
        assert one["sources"] == {"pg_wal of here": 6, "here": 1, "two": 1}
    assert wal_sync.sync(config)["changed"] is False


def test_only_the_destinations_that_were_named(lab: Lab) -> None:
    lab.write(name(4))
    assert [found["name"] for found in wal_sync.sync(lab.config(), destinations=["two"])["destinations"]] == ["two"]
    assert (lab.held("one"), lab.held("two")) == ([], [name(4)])
    with pytest.raises(HotspareError, match="here ships nothing to 'three': its archives are one, two, here"):
        wal_sync.sync(lab.config(), destinations=["three"])


def test_what_the_old_primary_wrote_after_the_switch_is_reported_only(lab: Lab) -> None:
    lab.fill("one", name(4), name(5), name(6), name(5, 2), name(1, 3))
    result = wal_sync.sync(lab.config())
    assert lab.held("two") == [name(4), name(5, 2)]
    assert result["strays"] == [name(5), name(6), name(1, 3)]
    assert result["problems"] == []


@pytest.mark.parametrize("role", ["standby", "stopped", "unknown"])
def test_of_an_old_primary_that_did_not_follow_nothing_is_taken(lab: Lab, role: str) -> None:
    lab.server = Server(role, 1, (), 8 * MIB + 100, IDENTITY)
    lab.write(name(4), name(5), name(6))
    lab.fill("one", name(3), "00000002.history")
    result = wal_sync.sync(lab.config())
    assert (lab.held("two"), result["strays"]) == ([name(3)], ["00000002.history"])
    (warning,) = result["warnings"]
    assert warning.startswith(
        "nothing was taken from pg_wal of here: it is on timeline 1 and 00000002.history is archived"
    )

    lab.server = replace(lab.server, role="primary")
    assert wal_sync.sync(lab.config())["warnings"] == []
    assert lab.held("two") == [name(3), name(4), name(5), name(6)]


def test_one_that_is_away_keeps_nothing_from_the_others(lab: Lab) -> None:
    lab.write(name(3), name(4))
    os.rename(lab.directory / "one", lab.directory / "unmounted")
    for check in (True, False):
        result = wal_sync.sync(lab.config(), check_mode=check)
        assert len(result["problems"]) == 1 and "one is not there" in result["problems"][0]
        assert (record(result, "one")["files"], record(result, "two")["files"]) == (0, 2)
    assert lab.held("two") == [name(3), name(4)]
    os.rename(lab.directory / "unmounted", lab.directory / "one")
    assert wal_sync.sync(lab.config())["problems"] == []
    assert lab.held("one") == [name(3), name(4)]


@pytest.mark.parametrize(
    ("error", "told"),
    [(Full("no room there"), 1), (Unreachable("one has gone"), 1), (Conflict("one has another"), 2)],
)
def test_trouble_at_one_keeps_nothing_from_the_others(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: HotspareError, told: int
) -> None:
    lab.write(name(3), name(4))
    put = archive_link.LocalDestination.put

    def fails(self: Any, file: str, path: str) -> Any:
        if self.name == "one":
            raise error
        return put(self, file, path)

    monkeypatch.setattr(archive_link.LocalDestination, "put", fails)
    result = wal_sync.sync(lab.config())
    assert len(result["problems"]) == told and error.message in result["problems"][0]
    assert (record(result, "one")["files"], lab.held("two")) == (0, [name(3), name(4)])


@pytest.mark.parametrize("number", [4, 5, 6])
def test_a_segment_of_the_old_timeline_that_was_renamed_to_ours_goes_nowhere(lab: Lab, number: int) -> None:
    """As an archive may hold it that somebody has mended by hand."""
    lab.fill("one", name(number, 2), content=segment(name(number)))
    lab.fill("here", name(3))
    result = wal_sync.sync(lab.config())
    assert lab.held("two") == [name(3)]
    (problem,) = result["problems"]
    assert problem.startswith(f"one: {name(number, 2)} ") and "timeline" in problem
    # Where somebody has the right one, that is shipped.
    if number > 4:
        lab.write(name(number, 2))
        assert wal_sync.sync(lab.config())["problems"] == []
        assert lab.archives["two"].digest(name(number, 2))[0] != lab.archives["one"].digest(name(number, 2))[0]


def test_a_bad_file_is_taken_from_another_who_has_it_whole(lab: Lab) -> None:
    (lab.wal / name(3)).write_bytes(segment(name(3))[:-100])
    lab.fill("one", name(3))
    result = wal_sync.sync(lab.config())
    assert lab.held("two") == [name(3)]
    assert record(result, "two")["sources"] == {"one": 1}
    assert len(result["problems"]) == 1 and f"pg_wal of here: {name(3)} is cut off" in result["problems"][0]


def test_two_histories_of_one_timeline_are_told(lab: Lab) -> None:
    lab.fill("one", "00000002.history")
    lab.fill("two", "00000002.history", content=HISTORY.replace(b"no recovery", b"some recovery"))
    (problem,) = wal_sync.sync(lab.config())["problems"]
    assert problem.startswith(
        "00000002.history is not the same in one and two: two servers were promoted to timeline 2"
    )


def test_the_archive_of_another_cluster_is_left_alone(lab: Lab) -> None:
    lab.write(name(4))
    (lab.directory / "one" / "archive.json").write_text('{"system_identifier": 1, "segment_size": 1048576}')
    result = wal_sync.sync(lab.config())
    assert "is the archive of another cluster" in record(result, "one")["error"]
    assert (lab.held("one"), lab.held("two")) == ([], [name(4)])


def test_an_archive_host_without_a_server_brings_its_destinations_together(lab: Lab) -> None:
    lab.fill("one", name(3))
    lab.fill("here", name(4))
    result = wal_sync.sync(lab.config(node=None))
    assert (lab.held("one"), lab.held("two"), result["strays"]) == ([name(3), name(4)], [name(3), name(4)], [])


# --- verify


def test_verified(lab: Lab) -> None:
    lab.write(name(4))
    for which in ("one", "two"):
        lab.fill(which, name(3), name(4))
    lab.fill("one", name(2))
    result = wal_sync.verify(lab.config(), destinations=["one"])
    assert (result["changed"], result["problems"]) == (False, [])
    (one,) = result["destinations"]
    assert (one["files"], one["bytes"], one["alone"], one["newest"]) == (3, 3 * MIB, 1, name(4))

    (lab.directory / "one" / lab.archives["one"].place(name(4))).write_bytes(segment(name(4), fill=b"y"))
    one = record(wal_sync.verify(lab.config()), "one")
    assert (one["missing"], one["different"], one["damaged"]) == ([], [name(4)], [])
    two = record(wal_sync.verify(lab.config()), "two")
    assert (two["missing"], two["different"]) == ([name(2)], [])
    assert len(wal_sync.verify(lab.config())["problems"]) == 2

    lab.write(name(7, 2))
    assert len(wal_sync.verify(lab.config())["problems"]) == 2, "a moment later it will be there"
    os.utime(lab.wal / name(7, 2), (0, 0))
    assert record(wal_sync.verify(lab.config()), "one")["missing"] == [name(7, 2)]


# --- prune


def test_pruned_everywhere_and_not_shipped_again(lab: Lab) -> None:
    config = lab.config(keep={"days": 1})
    lab.write(name(2), name(3))  # wal_keep_size
    for which in ("one", "two", "here"):
        lab.fill(which, name(1), name(2), name(3))
    planned = wal_sync.prune(config, check_mode=True)
    assert (planned["changed"], lab.held("one")) == (True, [name(1), name(2), name(3)])
    done = wal_sync.prune(config)
    for result in (planned, done):
        assert [record(result, which)["names"] for which in ("one", "two", "here")] == [[name(1), name(2)]] * 3
        assert result["cut"]["deciding"]["of"] == "here"
    assert [lab.held(which) for which in ("one", "two", "here")] == [[name(3)]] * 3
    assert wal_sync.prune(config)["changed"] is False
    assert wal_sync.sync(config)["changed"] is False


@pytest.mark.parametrize("trouble", ["standby", "destination", "backup"])
def test_nothing_is_removed_when_somebody_does_not_say(lab: Lab, trouble: str) -> None:
    lab.fill("one", name(1), name(2))
    if trouble == "standby":
        lab.needs.append(Need("server", "db3", None, "it does not answer"))
    elif trouble == "destination":
        os.rename(lab.directory / "two", lab.directory / "unmounted")
    else:
        lab.fill("one", BACKUP_OF_1MB, content=content(BACKUP_OF_1MB).replace(b"LABEL", b"LABLE"))
    result = wal_sync.prune(lab.config(keep={"days": 1}))
    assert (result["changed"], result["cut"]["ok"], lab.held("one")[:2]) == (False, False, [name(1), name(2)])
    assert any(problem.startswith("nothing is removed") for problem in result["problems"])


def test_without_a_word_of_what_to_keep_all_is_kept(lab: Lab) -> None:
    lab.fill("one", name(1), name(2))
    result = wal_sync.prune(lab.config())
    assert (result["changed"], result["problems"]) == (False, [])


def test_a_backup_of_a_branch_that_was_left_is_not_one_to_keep(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    usable = f"{name(3)}.00000028.backup"
    lab.fill("one", BACKUP_OF_1MB)  # of timeline 1, beyond the switch
    text = content(BACKUP_OF_1MB).decode().replace("0/20000", "0/3000").replace(BACKUP_OF_1MB[:24], name(3))
    lab.fill("one", usable, content=text.encode())
    counted: list[Any] = []
    monkeypatch.setattr(wal_sync, "needs", lambda of, entries, backups, *rest, **more: counted.extend(backups) or [])
    wal_sync.prune(lab.config(keep={"backups": 1}), check_mode=True)
    assert [backup.start_name for backup in counted] == [name(3)]


# --- check, tick


def test_checked(lab: Lab) -> None:
    lab.write("00000002.history", name(4), name(5, 2), name(6, 2), name(7, 2))
    (lab.wal / "archive_status" / f"{name(7, 2)}.ready").touch()
    lab.fill("one", name(2), name(5, 2), "00000002.history")
    found = wal_sync.check(lab.config(keep={"days": 1}))
    archive = found["archive"]
    assert (archive["name"], archive["timeline"], archive["position"]) == ("here", 2, "0/800064")
    one, two, own = archive["places"]
    assert (one["name"], one["own"], one["files"], own["own"], own["gaps"]) == ("one", False, 3, True, None)
    states = [(stretch["first"], stretch["state"]) for stretch in one["gaps"]["stretches"]]
    assert states[:5] == [
        (name(2), "found"),
        (name(3), "lost"),
        (name(4), "recoverable"),
        (name(5, 2), "found"),
        (name(6, 2), "recoverable"),
    ]
    assert one["gaps"]["ok"] is False and one["waiting_seconds"] is not None
    assert (one["cut"]["remove"], one["cut_bytes"]) == ([name(2)], MIB)
    assert two["files"] == 0 and lab.held("two") == []
    assert found["changed"] is False


def test_the_timer_works_on_the_primary_alone(lab: Lab) -> None:
    lab.write(name(2), name(4))
    lab.fill("one", name(1))
    assert lab.server
    primary, lab.server = lab.server, replace(lab.server, role="standby")
    assert wal_sync.tick(lab.config(keep={"days": 1})) == []
    assert lab.held("two") == []
    lab.server = replace(lab.server, role="unknown", reason="it is starting")
    with pytest.raises(HotspareError, match="nobody knows whether here is the primary: it is starting"):
        wal_sync.tick(lab.config())
    lab.server = primary
    synced, pruned = wal_sync.tick(lab.config(keep={"days": 1}))
    assert (record(pruned, "one")["names"], record(synced, "two")["names"]) == ([name(1)], [name(4)])
    assert lab.held("one") == lab.held("two") == [name(4)]
