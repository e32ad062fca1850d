# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""shipper.py: when a file counts as archived, what a lane ships next, and what it says of itself."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_link, shipper
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive, Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_fetch import following
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import LocalDestination
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.shipper import (
    File,
    Shipper,
    order,
    ship_alone,
    verdict,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Conflict, Full
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import BadWal
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Refused, Unreachable, exit_code
from hypothesis import given
from hypothesis import strategies as st

from .destinations import config
from .wal_pages import HISTORY, SYSTEM, segment

NAMES = following("000000010000000000000001", MIB, 1)  # 16 of 1 MB each
SECONDS = 30
OUTCOMES = st.sampled_from([True, False, Conflict("differs"), Full("no room"), Unreachable("gone"), HotspareError("?")])


# --- decisions -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(["one", "all"]), st.lists(OUTCOMES, min_size=1, max_size=5))
def test_archived_means_durable_where_it_is_required(require, outcomes):
    found = verdict(require, outcomes)
    enough = all if require == "all" else any
    assert (found is True) == enough(outcome is True for outcome in outcomes)
    # It is an error as soon as it cannot come to be any more.
    hopeless = not enough(outcome is True or outcome is False for outcome in outcomes)
    assert isinstance(found, HotspareError) == hopeless
    if hopeless:
        assert 1 <= exit_code(found) <= 125


def test_without_a_destination_nothing_is_archived():
    assert isinstance(verdict("all", []), HotspareError)
    assert isinstance(verdict("one", []), HotspareError)


def test_files_go_as_the_archiver_takes_them():
    names = ["000000020000000000000004", "00000003.history", "000000010000000000000009", "00000002.history"]
    files = sorted((File(name, f"pg_wal/{name}", (0, 0, 0, 0), 0.0) for name in names), key=order)
    assert [file.name for file in files] == [names[3], names[1], names[2], names[0]]


# --- lanes -----------------------------------------------------------------------------------------------------------


class Site:
    """A data directory and destinations a and b, which fail as the test says."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.status = self.data / "pg_wal" / "archive_status"
        self.status.mkdir(parents=True)
        for name in ("a", "b"):
            (directory / name).mkdir()
            Archive(str(directory / name)).establish(SYSTEM, MIB)
        self.config = config(
            node=asdict(Instance("db1", str(self.data), "/usr/bin")),
            directory=str(directory / "own"),
            destinations=[{"name": name, "directory": str(directory / name)} for name in ("a", "b")],
            **changes,
        )
        self.fails: dict[str, HotspareError] = {}
        self.gates: dict[str, threading.Event] = {}  # files that are on their way until then
        self.alone = False  # there is but one connection to each
        self.puts: Counter[tuple[str, str]] = Counter()
        self.connects: Counter[str] = Counter()
        self.ended = False
        self.shipper = Shipper(self.config, self.connect)
        self.lanes = {lane.name: lane for lane in self.shipper._lanes}

    def connect(self, place, found) -> Destination:
        self.connects[place.name] += 1
        self.fail(place.name, Unreachable)
        if self.alone and self.connects[place.name] > 1:
            raise Unreachable("one connection is enough")
        destination = Destination(place, found, self)
        destination.hello()
        return destination

    def fail(self, name: str, *kinds: type[HotspareError]) -> None:
        error = self.fails.get(name)
        if isinstance(error, kinds):
            raise error

    def start(self) -> None:
        for lane in self.lanes.values():
            for work in (lane.work, lane.help):
                threading.Thread(target=work, daemon=True).start()

    def ready(self, name: str, content: bytes | None = None) -> None:
        (self.data / "pg_wal" / name).write_bytes(segment(name) if content is None else content)
        (self.status / f"{name}.ready").touch()

    def done(self, name: str) -> None:
        (self.status / f"{name}.ready").rename(self.status / f"{name}.done")

    def ask(self, name: str, **more: Any) -> None:
        self.shipper.archive(name, str(self.data / "pg_wal" / name), **more)

    def look(self) -> None:
        with self.shipper._changed:
            self.shipper._look()

    def held(self, name: str) -> list[str]:
        return [entry.name for entry in Archive(str(self.directory / name)).inventory()]

    def said(self, name: str) -> dict[str, Any]:
        with self.shipper._changed:
            return next(record for record in self.shipper._status()["destinations"] if record["name"] == name)


@pytest.fixture(autouse=True)
def whose(monkeypatch):
    """There is no pg_controldata to ask."""
    monkeypatch.setattr(archive_link, "identity_of", lambda found: Identity(SYSTEM, MIB))


class Destination(LocalDestination):
    def __init__(self, place, found, site: Site) -> None:
        super().__init__(place, found)
        self.site = site

    def hello(self, **more):
        if self.site.ended:
            threading.Event().wait()  # as good as ended
        self.site.fail(self.name, Unreachable)
        return super().hello(**more)

    def put(self, name, path):
        self.site.puts[self.name, name] += 1
        self.site.fail(self.name, HotspareError)
        if name in self.site.gates:
            assert self.site.gates[name].wait(SECONDS)
        return super().put(name, path)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """site(...) -> a Site whose lanes work."""
    monkeypatch.setattr(shipper, "LOOK_SECONDS", 0.05)
    made = []

    def start(**changes: Any) -> Site:
        made.append(Site(tmp_path, **changes))
        made[0].start()
        return made[0]

    yield start
    for one in made:
        one.ended = True
        one.fails.clear()


def eventually(look) -> None:
    deadline = time.monotonic() + SECONDS
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("require", ["one", "all"])
def test_it_is_ahead_of_the_archiver_and_ships_each_file_once(site, require):
    there = site(require=require)
    names = ["00000002.history", *NAMES[:5]]
    for name in names:
        there.ready(name, HISTORY[: HISTORY.index("\n") + 1].encode() if "." in name else None)
    there.ask(names[0])
    for place in ("a", "b"):
        eventually(lambda place=place: there.held(place) == sorted(names))
    for name in names:
        there.ask(name)
        there.done(name)
    there.look()
    # With `one`, the other place has it, and says so, a moment later.
    at_rest = [names[-1], 0, 0, None]
    keys = ("last", "waiting", "waiting_bytes", "oldest_waiting_seconds")
    eventually(lambda: [there.said("b")[key] for key in keys] == at_rest)
    assert set(there.puts.values()) == {1}
    assert set(there.connects.values()) <= {1, 2}  # one helped
    eventually(lambda: there.said("a")["state"] == "connected")


@pytest.mark.parametrize("alone", [False, True])
def test_while_one_file_is_on_its_way_a_second_connection_brings_the_others(site, alone):
    there = site(require="all")
    there.alone = alone
    gate = there.gates[NAMES[0]] = threading.Event()
    eventually(lambda: there.said("a")["state"] == there.said("b")["state"] == "connected")
    for name in NAMES[:8]:
        there.ready(name)
    there.look()
    if alone:
        eventually(lambda: there.connects == {"a": 2, "b": 2})  # it was tried
        assert there.held("a") == []
    else:
        eventually(lambda: there.held("a") == there.held("b") == NAMES[1:8])
        assert there.said("a")["last"] == NAMES[7], "what came last, whichever was on its way for longest"
        assert there.connects == {"a": 2, "b": 2}
    assert there.said("a")["state"] == "connected"
    assert there.said("a")["waiting"] == (8 if alone else 1)
    gate.set()
    for name in NAMES[:8]:
        there.ask(name)
        there.done(name)
    assert there.held("a") == there.held("b") == NAMES[:8]
    assert set(there.puts.values()) == {1}
    assert there.said("a")["last"] == NAMES[7]


SECOND = [f"00000002{name[8:]}" for name in NAMES]  # the same segments of timeline 2


def switch(segment_number: int) -> bytes:
    """The history of timeline 2, which left timeline 1 in this segment."""
    return f"1\t0/{segment_number:X}81000\tno recovery target specified\n".encode()


def put(there: Site, name: str, content: bytes, *places: str) -> None:
    """Into the archives, as another node does."""
    (there.directory / "theirs").write_bytes(content)
    for place in places:
        Archive(str(there.directory / place)).put(name, str(there.directory / "theirs"))


def test_the_files_of_a_timeline_wait_for_its_history(site):
    """Which says what of them may be: segments of timeline 1 that got a name of timeline 2 are refused by it."""
    there = site(require="all")
    gate = there.gates["00000002.history"] = threading.Event()
    eventually(lambda: there.said("a")["state"] == there.said("b")["state"] == "connected")
    there.ready("00000002.history", switch(5))
    for name in SECOND[:4]:
        there.ready(name, segment(name, timelines=[1] * 128))
    there.ready(NAMES[0])
    there.look()
    eventually(lambda: there.held("a") == there.held("b") == [NAMES[0]])
    assert {name for _place, name in there.puts} == {"00000002.history", NAMES[0]}
    gate.set()
    for name in SECOND[:4]:
        with pytest.raises(BadWal):
            there.ask(name)
    assert there.held("a") == there.held("b") == [NAMES[0], "00000002.history"]


@pytest.mark.parametrize("require", ["one", "all"])
def test_nothing_of_a_timeline_is_shipped_where_that_is_another_ones(site, require):
    there = site(require=require)
    put(there, "00000002.history", switch(2), "a", "b")
    there.ready("00000002.history", switch(3))
    for name in SECOND[4:8]:
        there.ready(name)
    there.ready(NAMES[0])
    with pytest.raises(Conflict):
        there.ask("00000002.history")
    with pytest.raises(Conflict):  # and who asks is told why
        there.ask(SECOND[4])
    there.ask(NAMES[0])
    eventually(lambda: there.held("a") == there.held("b") == [NAMES[0], "00000002.history"])
    put(there, SECOND[4], segment(SECOND[4], fill=b"B"), "a", "b")


def test_a_second_connection_that_hangs_holds_up_nobody(site, monkeypatch):
    monkeypatch.setattr(shipper, "PATIENCE_SECONDS", 0.1)
    there = site(require="all")
    eventually(lambda: there.said("a")["state"] == there.said("b")["state"] == "connected")
    hangs = threading.Event()
    first = {lane._line._destination for lane in there.lanes.values()}
    put_through = Destination.put

    def put_or_hang(self, name, path):
        if self not in first:
            hangs.wait(SECONDS)
            raise Unreachable("it was silent")
        time.sleep(0.05)
        return put_through(self, name, path)

    monkeypatch.setattr(Destination, "put", put_or_hang)
    for name in NAMES[:8]:
        there.ready(name)
    there.look()
    eventually(lambda: all(lane._second for lane in there.lanes.values()))
    for name in NAMES[:8]:
        there.ask(name)
    assert all(lane._second for lane in there.lanes.values()), "it hangs still"
    hangs.set()
    eventually(lambda: not any(lane._second for lane in there.lanes.values()))
    assert there.held("a") == there.held("b") == NAMES[:8]
    assert there.said("a")["last"] == NAMES[7]


def test_a_file_that_is_refused_does_not_end_the_help(site):
    there = site(require="all")
    put(there, NAMES[0], segment(NAMES[0], fill=b"y"), "a", "b")
    there.ready(NAMES[0])
    there.look()
    eventually(lambda: there.said("a")["state"] == there.said("b")["state"] == "conflict")
    gate = there.gates[NAMES[1]] = threading.Event()
    for name in NAMES[1:8]:
        there.ready(name)
    there.look()
    eventually(lambda: there.held("a") == there.held("b") == [NAMES[0], *NAMES[2:8]])
    gate.set()


def test_the_second_connection_ends_when_nobody_needs_it(site):
    there = site(require="all")
    gate = there.gates[NAMES[0]] = threading.Event()
    for name in NAMES[:8]:
        there.ready(name)
    there.look()
    eventually(lambda: there.held("a") == there.held("b") == NAMES[1:8])
    gate.set()
    for name in NAMES[:8]:
        there.done(name)

    def ended() -> bool:
        there.look()  # whatever else happens meanwhile
        return not any(lane._helping.connected for lane in there.lanes.values())

    eventually(ended)


def test_what_failed_keeps_nothing_of_the_file(site):
    there = site(require="all")
    there.ready(NAMES[0], segment(NAMES[0])[:-8192] + b"\1" * 8192)
    there.look()
    eventually(lambda: all(lane._failed for lane in there.lanes.values()))
    for lane in there.lanes.values():
        error: BaseException | None = lane._failed[NAMES[0]].error
        while error is not None:
            assert error.__traceback__ is None
            error = error.__cause__ or error.__context__


def test_one_is_enough_and_the_other_gets_it_as_long_as_it_is_there(site):
    there = site(require="one")
    there.fails["b"] = Unreachable("the network is gone")
    for name in NAMES[:3]:
        there.ready(name)
        there.ask(name)
        there.done(name)
    assert there.held("a") == NAMES[:3]
    eventually(lambda: (there.said("b")["state"], there.said("b")["behind"]) == ("unreachable", 3))
    (there.data / "pg_wal" / NAMES[0]).unlink()
    (there.data / "pg_wal" / NAMES[1]).rename(there.data / "pg_wal" / NAMES[9])  # new WAL will be written to it
    there.look()
    assert (there.said("b")["behind"], there.said("b")["left"]) == (1, 2)
    del there.fails["b"]
    eventually(lambda: there.held("b") == [NAMES[2]])
    eventually(lambda: (there.said("b")["state"], there.said("b")["behind"]) == ("connected", 0))


def test_all_have_to_have_it(site):
    there = site(require="all")
    there.fails["b"] = Refused("who are you?")
    there.ready(NAMES[0])
    with pytest.raises(Refused, match="who are you"):
        there.ask(NAMES[0])
    eventually(lambda: (there.said("b")["state"], there.said("b")["error"]) == ("refused", "who are you?"))
    assert (there.said("b")["waiting"], there.said("b")["waiting_bytes"]) == (1, MIB)
    eventually(lambda: there.held("a") == [NAMES[0]])
    there.fails.clear()
    eventually(lambda: there.said("b")["state"] == "connected")
    there.ask(NAMES[0])
    assert there.held("b") == [NAMES[0]]


def test_what_is_refused_is_told_and_holds_up_nothing(site):
    there = site(require="all")
    (there.directory / "file").write_bytes(segment(NAMES[1], fill=b"y"))
    Archive(str(there.directory / "b")).put(NAMES[1], str(there.directory / "file"))
    empty = "00000002.history"
    for name in NAMES[:3]:
        there.ready(name)
    there.ready(empty, b"")
    there.look()
    eventually(lambda: there.held("b") == NAMES[:3] and there.held("a") == NAMES[:3])
    eventually(lambda: (there.said("b")["state"], there.said("a")["state"]) == ("conflict", "refused"))
    there.ask(NAMES[0])
    there.ask(NAMES[2])
    for _ in range(2):  # it is tried anew each time
        puts = there.puts["b", NAMES[1]]
        with pytest.raises(Conflict):
            there.ask(NAMES[1])
        assert there.puts["b", NAMES[1]] == puts + 1
        with pytest.raises(BadWal):
            there.ask(empty)
    assert there.held("a") == NAMES[:3]
    next((there.directory / "b").rglob(NAMES[1])).unlink()
    there.ask(NAMES[1])
    (there.status / f"{empty}.ready").unlink()
    there.look()
    eventually(lambda: (there.said("b")["state"], there.said("a")["state"]) == ("connected", "connected"))


def test_an_empty_backup_is_told_and_holds_up_nothing(site, capsys):
    """A crash or a copy left it. Nothing needs it, but the archiver would ask for it for ever."""
    there = site(require="all")
    empty = f"{NAMES[1]}.00000028.backup"
    for name in NAMES[:2]:
        there.ready(name)
    there.ready(empty, b"")
    there.look()
    eventually(lambda: there.held("a") == there.held("b") == NAMES[:2])
    there.ask(empty)
    ship_alone(there.config, str(there.data / "pg_wal" / empty), empty, there.connect)
    assert capsys.readouterr().err.count(f"{empty} is empty") == 2
    there.done(empty)
    there.look()
    assert there.shipper._status()["empty"] == [empty]
    assert ("a", empty) not in there.puts
    eventually(lambda: [there.said(place)["state"] for place in "ab"] == ["connected"] * 2)
    # PostgreSQL removes it after another backup.
    (there.data / "pg_wal" / empty).unlink()
    there.look()
    assert there.shipper._status()["empty"] == []


def test_a_full_destination_is_filled_when_there_is_room(site):
    there = site(require="all")
    there.fails["a"] = Full("no room")
    for name in NAMES[:3]:
        there.ready(name)
    for _ in range(2):
        with pytest.raises(Full):
            there.ask(NAMES[0])
    assert there.said("a")["state"] == "full"
    assert there.said("a")["waiting"] == 3
    eventually(lambda: there.held("b") == NAMES[:3])
    assert there.held("a") == []
    there.fails.clear()
    eventually(lambda: there.look() or there.held("a") == NAMES[:3])
    there.ask(NAMES[0])
    assert there.said("a")["state"] == "connected"


def test_another_file_of_that_name_is_not_taken_for_it(site):
    there = site(require="all")
    there.ready(NAMES[0])
    there.ask(NAMES[0])
    there.ready(NAMES[0], segment(NAMES[0], fill=b"y"))
    with pytest.raises(Conflict):
        there.ask(NAMES[0])


def test_who_asked_is_gone(site, monkeypatch):
    monkeypatch.setattr(shipper, "BEAT_SECONDS", 0.01)
    there = site(require="all")
    there.ready(NAMES[0])
    release = threading.Event()
    monkeypatch.setattr(Destination, "put", lambda *args: release.wait(SECONDS))
    with pytest.raises(HotspareError, match="has ended"):
        there.ask(NAMES[0], wanted=lambda: False)
    release.set()
    assert there.shipper._requests == []


def test_a_file_that_is_not_there(site):
    there = site()
    with pytest.raises(HotspareError, match="cannot read"):
        there.ask(NAMES[0])


def test_whatever_fails_what_was_acknowledged_is_there(site):
    """Destinations that fail at random, and an archiver that asks until it is told that it is archived."""
    chance = random.Random(4)
    there = site(require="all")
    errors = [None, Unreachable("gone"), Full("no room"), HotspareError("?"), None]
    for name in NAMES:
        there.ready(name)
    for name in NAMES:
        for attempt in range(1000):
            for place in ("a", "b"):
                error = chance.choice(errors) if attempt < 5 else None
                there.fails.pop(place, None)
                if error is not None:
                    there.fails[place] = error
            try:
                there.ask(name)
            except HotspareError:
                time.sleep(0.01)
                continue
            assert name in there.held("a")
            assert name in there.held("b")
            there.done(name)
            break
        else:
            pytest.fail(f"{name} was never archived")


# --- without the shipper ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("require", "fails", "held"),
    [("one", [], "a"), ("one", ["a"], "b"), ("all", [], "ab"), ("one", ["a", "b"], None), ("all", ["b"], None)],
)
def test_alone(tmp_path, require, fails, held):
    there = Site(tmp_path, require=require)
    there.ready(NAMES[0])
    there.fails = {name: Unreachable("gone") for name in fails}
    path = str(there.data / "pg_wal" / NAMES[0])
    if held is None:
        with pytest.raises(Unreachable):
            ship_alone(there.config, path, NAMES[0], there.connect)
    else:
        ship_alone(there.config, path, NAMES[0], there.connect)
        assert [name for name in ("a", "b") if there.held(name)] == list(held)


# --- whose WAL it is -------------------------------------------------------------------------------------------------


def test_a_copy_of_the_server_archives_nothing(site, tmp_path):
    """A restore drill beside the server: the same configuration, the same system identifier, another directory."""
    there = site(require="all")
    there.ready("00000002.history", b"1\t0/3000060\tno recovery target specified\n")
    copy = tmp_path / "copy"
    shutil.copytree(there.data / "pg_wal", copy / "pg_wal")
    for directory in (copy, tmp_path / "nowhere"):
        with pytest.raises(BadWal, match=f"the WAL of {directory} is not archived.* set archive_mode=off") as told:
            there.shipper._archive(lambda: True, str(directory), "pg_wal/00000002.history", "00000002.history")
        assert exit_code(told.value) == 11
    assert there.puts == {}
    (tmp_path / "link").symlink_to(there.data)
    there.shipper._archive(lambda: True, str(tmp_path / "link"), "pg_wal/00000002.history", "00000002.history")
    assert there.held("a") == ["00000002.history"]


# --- the process -----------------------------------------------------------------------------------------------------


def test_an_error_that_nobody_expected_ends_the_process():
    code = (
        f"import sys, threading; sys.path[:0] = {sys.path!r}\n"
        f"from {shipper.__name__} import _end\n"
        "threading.excepthook = _end\n"
        "threading.Thread(target=lambda: 1 / 0).start()\n"
        "threading.Event().wait(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_systemd_is_told(tmp_path, monkeypatch):
    shipper.notify("READY=1")  # nobody wants to know
    with shipper.socket.socket(shipper.socket.AF_UNIX, shipper.socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        shipper.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_the_socket_is_for_this_account_alone(tmp_path):
    path = str(tmp_path / "socket")
    for _ in range(2):  # also when one that was killed left it
        with shipper.listen(path):
            assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(HotspareError, match="nowhere"):
        shipper.listen("/nowhere/socket")


# --- an archive that is not mounted ----------------------------------------------------------------------------------


def move(source: Path, target: Path) -> None:
    """All that is in a directory; the identity last, as nothing counts without it."""
    for path in sorted(source.iterdir(), reverse=True):
        path.rename(target / path.name)


def test_what_is_not_mounted_is_no_new_archive(site):
    there = site(require="all")
    there.ready(NAMES[0])
    there.ask(NAMES[0])
    (there.directory / "away").mkdir()
    move(there.directory / "a", there.directory / "away")
    there.ready(NAMES[1])
    with pytest.raises(Unreachable, match="a of a was an archive and is none now: mount its file system"):
        there.ask(NAMES[1])
    with pytest.raises(Unreachable, match="was an archive and is none now"):
        ship_alone(there.config, str(there.data / "pg_wal" / NAMES[1]), NAMES[1])
    eventually(lambda: there.said("a")["state"] == "unreachable")
    assert list((there.directory / "a").iterdir()) == []
    move(there.directory / "away", there.directory / "a")
    eventually(lambda: there.said("a")["state"] == "connected")
    there.ask(NAMES[1])
    assert there.held("a") == NAMES[:2]


def test_a_standby_notes_what_it_sees(site):
    there = site()
    eventually(lambda: sorted(path.name for path in there.data.glob("*.json")) == [
        f"hotspare-archive-{name}.seen.json" for name in "ab"
    ])  # fmt: skip


def test_its_own_archive_is_founded_once_it_has_data(site):
    there = site()
    own = there.directory / "own"
    threading.Thread(target=there.shipper._found_own, daemon=True).start()
    own.mkdir()
    there.look()
    assert list(own.iterdir()) == []
    (there.data / "global").mkdir()
    (there.data / "global/pg_control").write_bytes(struct.pack("=Q", SYSTEM))
    eventually(lambda: Archive(str(own)).identity() == Identity(SYSTEM, MIB))
    eventually((there.data / "hotspare-archive-db1.seen.json").exists)
