# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipper, its client and the program as PostgreSQL meets them: real servers and WAL, archive hosts behind ssh."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_client
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_client import ABORT

from .archives import PYTHON, ArchiveHost, Archives, Share, setting
from .conftest import ACCOUNT, Node, eventually, execute

MEMORY_KIB = 60 * 1024
# What pgarch.c writes when archive_command ended it.
ARCHIVER_DIED = re.compile(r"archiver process .* exited|archive command (was terminated|failed with exit code 12[678])")


class Station:
    """A node with its CONFIG, its shipper, and a server that is configured for both."""

    def __init__(self, archives: Archives, node: Node, hosts: list[ArchiveHost | Share], **changes: Any) -> None:
        self.node = node
        destinations = [host.place for host in hosts]
        self.path = archives.config(node.instance.name, node.instance, destinations=destinations, **changes)
        self.config = json.loads(self.path.read_text(encoding="utf-8"))
        self.client = archives.directory / "archive_client.py"
        shutil.copy(archive_client.__file__, self.client)
        self.socket = f"{self.config['run']}/socket"
        self.own = Archive(self.config["directory"])
        self.shipper: subprocess.Popen[bytes] | None = None
        self.log = archives.directory / f"shipper-{node.instance.name}.log"
        text = (
            f"archive_mode = on\n"
            f"archive_command = '{self.command('archive')}'\n"
            f"restore_command = '{self.command('restore')}'\n"
        )
        execute("tee", str(Path(node.instance.config_file or "").parent / "conf.d" / "50-archive.conf"), stdin=text)

    def command(self, name: str) -> str:
        return setting(f"{name}_command", f"{PYTHON} -I -S {self.client}", f"{self.socket} {self.path}")

    def start(self) -> None:
        """Run the shipper; returns when it is asked."""
        with self.log.open("ab") as log:
            argv = [PYTHON, "-I", self.config["program"], "archive-ship", str(self.path)]
            self.shipper = subprocess.Popen(argv, user=ACCOUNT, group=ACCOUNT, cwd="/", stdout=log, stderr=log)
        eventually(lambda: self.status().get("pid") == self.shipper.pid)

    def kill(self) -> None:
        if self.shipper is not None:
            self.shipper.kill()
            self.shipper.wait(30)
            self.shipper = None

    def status(self) -> dict[str, Any]:
        path = Path(self.config["run"], "status.json")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def place(self, name: str) -> dict[str, Any]:
        """What the shipper says of a destination."""
        return next(record for record in self.status()["destinations"] if record["name"] == name)

    def call(self, command: str, *arguments: str) -> tuple[int, str]:
        """By hand what the server runs; `arguments` as they come there."""
        words = {"archive": "%p %f", "restore": "%f %p"}[command]
        done = subprocess.run(
            ["/bin/sh", "-c", self.command(command).replace(words, " ".join(arguments))],
            user=ACCOUNT, group=ACCOUNT, cwd=self.node.data, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    def segments(self, count: int = 1) -> list[str]:
        """Make so many segments, with a row in each; their names."""
        each = "SELECT pg_walfile_name(pg_current_wal_insert_lsn()); INSERT INTO ledger (note) VALUES ('x');"
        return self.node.sql(f"{each} SELECT pg_switch_wal();" * count).splitlines()[::2]

    def waiting(self) -> set[str]:
        return {path.stem for path in (self.node.data / "pg_wal" / "archive_status").glob("*.ready")}

    def archived(self) -> str:
        """What the server says was archived last."""
        return self.node.sql("SELECT last_archived_wal FROM pg_stat_archiver")

    def failed(self) -> int:
        """How often archive_command failed."""
        return int(self.node.sql("SELECT failed_count FROM pg_stat_archiver"))

    def memory(self) -> int:
        """What the shipper had resident at most (KiB)."""
        assert self.shipper is not None
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.shipper.pid}/status").read_text(encoding="utf-8"))
        assert peak
        return int(peak[1])

    def archiver(self) -> str:
        """Its process: a new one after each time that archive_command ended it."""
        return self.node.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'")


@pytest.fixture
def station(archives, lab):
    """station([hosts], ...) -> a Station whose server and shipper run."""
    made: list[Station] = []

    def start(
        hosts: list[ArchiveHost | Share], *, runs: bool = True, segment_size: int | None = None, **changes: Any
    ) -> Station:
        node = lab.node(f"db-{len(made) + 1}")
        if segment_size is not None:
            node.program("pg_resetwal", "--wal-segsize", str(segment_size), "-D", str(node.data))
            conf = Path(node.instance.config_file or "").parent / "conf.d" / "40-size.conf"
            execute("tee", str(conf), stdin=f"min_wal_size = {2 * segment_size}MB\n")
        found = Station(archives, node, hosts, **changes)
        made.append(found)
        if runs:
            found.node.start()
            found.start()
        return found

    yield start
    for one in made:
        one.kill()
        said = one.log.read_text(encoding="utf-8") if one.log.exists() else ""
        print(said, one.node.log, sep="\n----\n")
        assert "Traceback" not in said + one.node.log
        assert not ARCHIVER_DIED.search(one.node.log)


@pytest.fixture
def small(archives):
    """A directory with room for two segments."""
    path = archives.make_directory("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=0755", "tmpfs", path], check=True)
    shutil.chown(path, ACCOUNT, ACCOUNT)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def nas(archives):
    """A share that is mounted."""
    made = Share(archives, "nas")
    made.mount()
    yield made
    if made.mounted:
        made.unmount()


def held(host: ArchiveHost | Share) -> set[str]:
    return {entry.name for entry in Archive(str(host.directory)).inventory()}


def receiving(host: ArchiveHost) -> bool:
    """Whether a file is on its way, or what is left of one."""
    return bool(list(host.directory.rglob(".incoming-*")))


def has(host: ArchiveHost | Share, names: Iterable[str]) -> Callable[[], bool]:
    return lambda: held(host) >= set(names)


def copy_for(station, place: ArchiveHost | Share, signal: str):
    """A base backup that was not started yet, and takes its WAL from that place; signal: recovery or standby."""
    copy = station([place], runs=False)
    execute("touch", str(copy.node.data / f"{signal}.signal"))
    return copy


def standby_of(station, place: ArchiveHost | Share, notes: int):
    """One that has replayed so many."""
    standby = copy_for(station, place, "standby")
    standby.start()
    standby.node.start()
    eventually(lambda: len(standby.node.notes()) == notes)
    return standby


def test_wal_goes_where_it_shall(archives, station):
    hosts = [archives.host("one"), archives.host("two")]
    db = station(hosts, require="all")
    names = db.segments(5)
    eventually(lambda: not db.waiting())
    for host in hosts:
        assert held(host) >= set(names)
    assert db.archived() == names[-1]
    eventually(lambda: db.status()["acknowledged"] == names[-1])
    for name in ("one", "two"):
        found = db.place(name)
        assert [found[key] for key in ("state", "error", "last", "waiting", "behind")] == [
            "connected", None, names[-1], 0, 0,
        ]  # fmt: skip
    assert len(hosts[0].programs()) in (1, 2)  # one lasting connection, and one that helped
    assert db.memory() <= MEMORY_KIB


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_large_segments(archives, station, compression):
    """Of 64 MB each: none is ever whole in the shipper's memory."""
    host, size = archives.host("far"), 64
    db = station([host], require="all", segment_size=size, compression=compression)
    assert db.node.sql("SHOW wal_segment_size") == f"{size}MB"
    names = db.segments(3)
    eventually(lambda: not db.waiting())
    archive = Archive(str(host.directory))
    for name in names:
        assert archive.digest(name)[1] == size << 20
    assert db.memory() <= MEMORY_KIB
    brought = db.node.data / "pg_wal" / "RECOVERYXLOG"
    for name in names:
        eventually(lambda name=name: db.call("restore", name, "pg_wal/RECOVERYXLOG") == (0, ""))
        assert brought.read_bytes() == (db.node.data / "pg_wal" / name).read_bytes()
    assert db.memory() <= MEMORY_KIB


def test_one_of_two_is_enough_and_the_other_gets_it_later(archives, station):
    near, far = archives.host("near"), archives.host("far")
    far.stop()
    db = station([near, far])
    names = db.segments(2)
    eventually(lambda: not db.waiting())
    assert held(near) >= set(names)
    eventually(lambda: (db.place("far")["state"], db.place("far")["behind"]) == ("unreachable", 2))
    far.start()
    eventually(has(far, names))
    eventually(lambda: (db.place("far")["state"], db.place("far")["behind"]) == ("connected", 0))


def test_a_shipper_that_is_killed_in_the_middle(archives, station):
    """And killed again and again: the archiver hardly notices, and nothing is lost."""
    store = archives.host("store")
    db = station([store])
    archiver = db.archiver()
    names = []
    for _ in range(2):
        names += db.segments(2)
        eventually(lambda: receiving(store) or not db.waiting())
        db.kill()
        names += db.segments(1)
        eventually(lambda: not db.waiting())  # without it
        db.start()
    eventually(lambda: not db.waiting())
    assert held(store) >= set(names)
    assert db.archiver() == archiver
    assert "without it, slowly" in db.node.log
    eventually(lambda: not receiving(store))


def test_a_destination_that_dies(archives, station):
    store = archives.host("store")
    db = station([store])
    archiver = db.archiver()
    names = db.segments(1)
    eventually(lambda: not db.waiting())  # it is there a moment before it is known
    store.stop()
    names += db.segments(3)
    eventually(lambda: db.place("store")["state"] == "unreachable" and db.place("store")["waiting"] == 3)
    assert db.call("archive", f"pg_wal/{names[-1]}", names[-1])[0] == 12
    store.start()
    eventually(has(store, names))  # by itself, before the archiver asks again
    names += db.segments(1)  # which wakes it
    eventually(lambda: not db.waiting())
    assert db.archiver() == archiver


def test_a_destination_that_is_full(archives, station, small):
    store = archives.host("store", directory=small)
    db = station([store])
    names = db.segments(4)
    eventually(lambda: db.place("store")["state"] == "full")
    assert db.waiting()
    assert "no room" in db.place("store")["error"]
    assert db.call("archive", f"pg_wal/{names[-1]}", names[-1])[0] == 13
    subprocess.run(["mount", "-o", "remount,size=400m", small], check=True)
    eventually(has(store, names))
    eventually(lambda: db.place("store")["state"] == "connected")
    assert not list(small.rglob(".incoming-*"))


def test_what_is_refused_does_not_hold_up_the_rest(archives, station):
    store = archives.host("store")
    db = station([store])
    names = db.segments(1)
    eventually(lambda: not db.waiting())
    store.stop()
    names += db.segments(3)
    there = put_other(store, db, names[1])
    store.start()
    eventually(has(store, names))
    eventually(lambda: db.place("store")["state"] == "conflict" and db.place("store")["waiting"] == 1)
    code, said = db.call("archive", f"pg_wal/{names[1]}", names[1])
    assert code == 10
    assert names[1] in said
    assert "differs from byte 100" in said
    assert there.read_bytes() != (db.node.data / "pg_wal" / names[1]).read_bytes()
    # Somebody found out which is the right one.
    there.unlink()
    assert db.call("archive", f"pg_wal/{names[1]}", names[1]) == (0, "")
    db.segments(1)
    eventually(lambda: db.place("store")["state"] == "connected" and not db.waiting())


@pytest.mark.parametrize("with_shipper", [False, True])
def test_an_empty_backup_does_not_stop_the_archiver(archives, station, with_shipper):
    """As the copy of a running server may have it; PostgreSQL would ask for it for ever."""
    store = archives.host("store")
    db = station([store])
    if not with_shipper:
        db.kill()
    name = db.segments(1)[0]
    empty = f"{name}.00000028.backup"
    for path in (f"pg_wal/{empty}", f"pg_wal/archive_status/{empty}.ready"):
        execute("touch", str(db.node.data / path))
    names = [name, *db.segments(2)]
    eventually(lambda: not db.waiting())
    assert held(store) >= set(names)
    assert empty not in held(store)
    assert (db.node.data / "pg_wal" / "archive_status" / f"{empty}.done").exists()
    if with_shipper:
        eventually(lambda: db.status()["empty"] == [empty])


def put_other(host: ArchiveHost, db: Station, name: str) -> Path:
    """Let the archive have other content under this name; where it lies."""
    content = bytearray((db.node.data / "pg_wal" / name).read_bytes())
    content[100] ^= 1  # within the first record
    scratch = host.home / "scratch"
    scratch.write_bytes(content)
    stored = Path(Archive(str(host.directory)).put(name, str(scratch)).path)
    for path in (host.directory, *host.directory.rglob("*")):
        shutil.chown(path, ACCOUNT, ACCOUNT)
    return stored


def test_a_standby_from_the_archive_alone(archives, station):
    store = archives.host("store")
    db = station([store])
    db.segments(6)
    eventually(lambda: not db.waiting())
    standby = standby_of(station, store, 6)
    # Nothing of this makes a standby end: no shipper, no archive, no way to it.
    standby.kill()
    db.segments(1)
    eventually(lambda: len(standby.node.notes()) == 7)
    store.stop()
    standby.start()
    name = db.segments(1)[0]
    assert standby.call("restore", name, "pg_wal/RECOVERYXLOG")[0] == 12
    store.start()
    eventually(lambda: len(standby.node.notes()) == 8)
    assert standby.call("restore", "00000002.history", "pg_wal/RECOVERYHISTORY") == (1, "")
    assert standby.node.running


@pytest.mark.parametrize("with_shipper", [True, False])
def test_a_dead_archive_holds_up_no_promotion(archives, station, with_shipper):
    """The old primary may be one of the destinations."""
    store = archives.host("store")
    db = station([store])
    names = db.segments(2)
    eventually(has(store, names))
    db.node.stop()
    standby = standby_of(station, store, 2)
    if with_shipper:
        store.freeze()
    else:
        standby.kill()
        store.stop()
    standby.node.program("pg_ctl", "promote", "-w", "-D", str(standby.node.data))
    assert standby.node.sql("SELECT pg_is_in_recovery()") == "f"
    if with_shipper:
        store.thaw()
    else:
        store.start()
        standby.start()
    eventually(has(store, ["00000002.history"]))


def test_a_recovery_goes_on_with_all_of_the_archive_or_not_at_all(archives, station):
    store = archives.host("store")
    db = station([store])
    db.segments(3)
    eventually(lambda: not db.waiting())
    db.node.stop()
    recovery = copy_for(station, store, "recovery")
    store.stop()
    for with_shipper in (False, True):
        if with_shipper:
            recovery.start()
        assert recovery.call("restore", "000000010000000000000001", "pg_wal/RECOVERYXLOG")[0] == ABORT
        with pytest.raises(AssertionError):
            recovery.node.start()
    assert (recovery.node.data / "recovery.signal").exists()
    store.start()
    eventually(lambda: recovery.place("store")["state"] == "connected")
    recovery.node.start()
    eventually(lambda: recovery.node.sql("SELECT pg_is_in_recovery()") == "f")
    assert len(recovery.node.notes()) == 3
    # It has a timeline of its own, and archives that.
    names = recovery.segments(1)
    eventually(has(store, ["00000002.history", *names]))


def test_a_recovery_does_not_open_at_a_hole(archives, station):
    store = archives.host("store")
    db = station([store])
    names = db.segments(4)
    eventually(lambda: not db.waiting())
    db.node.stop()
    recovery = copy_for(station, store, "recovery")
    there = next(store.directory.rglob(names[1]))
    away = there.rename(store.home / "away")
    said = f"no archive has {names[1]}, but {names[2]} of the same timeline is there"
    for with_shipper in (False, True):
        if with_shipper:
            recovery.start()
        told = recovery.node.log.count(said) if with_shipper else 0
        with contextlib.suppress(AssertionError):  # it may have been asked before it came to the hole
            recovery.node.start()
        eventually(lambda: not recovery.node.running)
        assert (recovery.node.data / "recovery.signal").exists()
        assert recovery.node.log.count(said) > told
    away.rename(there)
    recovery.node.start()
    eventually(lambda: recovery.node.sql("SELECT pg_is_in_recovery()") == "f")
    assert len(recovery.node.notes()) == 4


# --- an archive that is not mounted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [False, True], ids=["a share", "of an archive host"])
def test_an_archive_that_is_not_mounted_takes_nothing(archives, station, nas, far):
    """As after a restart without it, where the mount point is an empty directory of the right account."""
    place = archives.host("store", directory=nas.directory) if far else nas
    db = station([place])
    name = place.place["name"]
    names = db.segments(2)
    eventually(lambda: not db.waiting())
    db.kill()
    nas.unmount()
    for with_shipper in (False, True):
        if with_shipper:
            db.start()
        failed = db.failed()
        names += db.segments(1)
        eventually(lambda failed=failed: db.failed() > failed)
        code, said = db.call("archive", f"pg_wal/{names[-1]}", names[-1])
        assert code == 12
        assert f"{nas.directory} of {name} was an archive and is none now: mount its file system" in said
    assert names[-1] in db.waiting()
    assert nas.hidden() == []
    assert db.place(name)["state"] == "unreachable"
    nas.mount()
    eventually(has(place, names))  # by itself
    db.segments(1)  # which wakes the archiver
    eventually(lambda: not db.waiting())


def test_who_is_promoted_knows_the_archive_as_well(station, nas):
    """A standby ships nothing, but it looks."""
    db = station([nas])
    names = db.segments(2)
    eventually(has(nas, names))
    db.node.stop()
    standby = standby_of(station, nas, 2)
    seen = Path(standby.node.instance.config_file).with_name("hotspare-archive-nas.seen.json")
    eventually(seen.exists)
    nas.unmount()
    standby.node.program("pg_ctl", "promote", "-w", "-D", str(standby.node.data))
    eventually(lambda: standby.failed() > 0)
    assert nas.hidden() == []
    nas.mount()
    eventually(has(nas, ["00000002.history"]))


def test_what_was_emptied_on_purpose_is_founded_again(station, nas):
    db = station([nas])
    db.segments(1)
    eventually(lambda: not db.waiting())
    nas.unmount()
    names = db.segments(1)
    eventually(lambda: "remove" in (db.place("nas")["error"] or ""))
    note = re.search(r"remove (\S+) on db-1", db.place("nas")["error"])
    assert note
    Path(note[1]).unlink()
    eventually(has(nas, names))


def test_a_recovery_does_not_open_where_the_archive_is_not_mounted(station, nas):
    """Nor where the client of restore_command, or its Python, is missing: that must not be the end of the archive."""
    db = station([nas])
    db.segments(3)
    eventually(lambda: not db.waiting())
    db.node.stop()
    recovery = copy_for(station, nas, "recovery")

    def refuses() -> None:
        with pytest.raises(AssertionError):
            recovery.node.start()
        assert (recovery.node.data / "recovery.signal").exists()

    nas.unmount()
    refuses()
    recovery.start()
    refuses()
    assert "nas has no archive: mount its file system" in recovery.node.log
    nas.mount()
    away = recovery.client.rename(recovery.client.with_suffix(".away"))
    refuses()
    recovery.client.write_text("half a cl", encoding="utf-8")
    refuses()
    away.rename(recovery.client)
    recovery.node.start()
    eventually(lambda: recovery.node.sql("SELECT pg_is_in_recovery()") == "f")
    assert len(recovery.node.notes()) == 3
