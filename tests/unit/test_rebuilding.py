# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_rebuild: what it finds on disk and how it names, locks and renames; servers are in the integration tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import (
    lock,
    rebuild_files,
    rebuild_look,
    rebuild_rewind,
    rebuilding,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.conninfo import Upstream
from ansible_collections.hotspare.postgresql.plugins.module_utils.rebuild import Source, Wish
from ansible_collections.hotspare.postgresql.plugins.module_utils.rebuild_look import Job
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import (
    Instance,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import Completed, HotspareError

MIB = 1024 * 1024
SOURCE = Source("db1:5432", system_identifier="7", timeline=2, oldest_wal=16 * MIB)
NOTE = {"complete": True, "system_identifier": "7", "timeline": 2, "slot": "hotspare_db2", "end_lsn": "0/1000000"}


@pytest.fixture
def job(tmp_path, monkeypatch):
    locks = tmp_path / "locks"
    locks.mkdir()
    monkeypatch.setattr(lock, "LOCK_DIRECTORY", str(locks))
    (tmp_path / "data").mkdir()
    instance = Instance("db2", str(tmp_path / "data"), "/nowhere/bin", account=Path("/proc/self").owner())
    return Job(instance, Upstream("db1", slot="hotspare_db2"), Wish("hotspare_db2"))


# --- one at a time ---------------------------------------------------------------------------------------------------

HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, b"process 17 since 20260101T000000Z")
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_names_its_holder(job):
    job = replace(job, timeout=0.1)
    with rebuild_files.only_one(job):
        (path,) = Path(lock.LOCK_DIRECTORY).iterdir()
        assert path.read_text().startswith(f"process {os.getpid()} (pg_rebuild) since 2")
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        for check_mode in (True, False):
            with (
                pytest.raises(HotspareError, match="is worked on by process 17 since 20260101T000000Z"),
                rebuild_files.only_one(job, check_mode),
            ):
                pass
        holder.stdin.close()
    with rebuild_files.only_one(job):  # a lock dies with its holder
        pass


def test_check_mode_makes_no_lock(job):
    with rebuild_files.only_one(job, check_mode=True):
        assert os.listdir(lock.LOCK_DIRECTORY) == []


def test_lock_that_cannot_be_made(job, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_DIRECTORY", "/nowhere")
    with pytest.raises(HotspareError, match="cannot take the lock /nowhere/"), rebuild_files.only_one(job):
        pass


# --- names -----------------------------------------------------------------------------------------------------------


def test_kept_are_only_names_of_our_making(job):
    parent = Path(job.real).parent
    ours = ["data.before-20260101T000000Z", "data.diverged-20260101T000001Z"]
    others = ["data.before-x", "data.before-20260101T000000Z.tar", "data2.before-20260101T000000Z", "data.seeding"]
    for name in ours + others:
        (parent / name).mkdir()
    assert rebuild_files.kept(job.real) == [str(parent / name) for name in ours]
    assert rebuild_files.kept("/nowhere/data") == []


def test_aside_is_free_and_ours(job, monkeypatch):
    times = iter(["20260101T000000Z", "20260101T000000Z", "20260101T000001Z"])
    monkeypatch.setattr(rebuild_files, "utc", lambda: next(times))
    first = rebuild_files.aside(job)
    os.mkdir(first)
    second = rebuild_files.aside(job)
    os.mkdir(second)
    assert rebuild_files.kept(job.real) == [first, second]


def test_rename_never_replaces_what_holds_something(job, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    with pytest.raises(HotspareError, match="cannot rename"):
        rebuild_files.rename(str(tmp_path / "new"), str(tmp_path / "locks" / "no" / "such"))
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(HotspareError, match="not empty"):
        rebuild_files.rename(str(tmp_path / "new"), job.real)
    (tmp_path / "data" / "precious").unlink()
    rebuild_files.rename(str(tmp_path / "new"), job.real)
    assert os.listdir(job.real) == ["file"]


def test_parents_are_made(job, tmp_path):
    rebuild_files.make_parent(job, str(tmp_path / "a" / "b" / "data"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / "a" / "b" / "data").exists()
    with pytest.raises(HotspareError, match="cannot make the directory"):
        rebuild_files.make_directory(job, str(tmp_path / "a"))


# --- what an interrupted run left ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("note", "files", "source", "expected"),
    [
        (None, None, {}, None),
        (None, [], {}, "foreign"),
        (NOTE, [], {}, "complete"),
        ({**NOTE, "complete": False}, [], {}, "half"),
        ({}, [], {}, "half"),
        ("not JSON", [], {}, "half"),
        (NOTE, ["postmaster.opts"], {}, "foreign"),
        ({**NOTE, "complete": False}, ["postmaster.pid"], {}, "foreign"),
        # Complete, but not of the primary as it is now.
        ({**NOTE, "system_identifier": "8"}, [], {}, "half"),
        ({**NOTE, "timeline": 1}, [], {}, "half"),
        ({**NOTE, "slot": "hotspare_other"}, [], {}, "half"),
        ({**NOTE, "end_lsn": "0/FFFFFF"}, [], {}, "half"),
        (NOTE, [], {"oldest_wal": None}, "complete"),
        (NOTE, [], {"error": "silent"}, "half"),
    ],
)
def test_seed_beside(job, note, files, source, expected):
    if note is not None:
        Path(job.marker).write_text(note if isinstance(note, str) else json.dumps(note))
    if files is not None:
        os.mkdir(job.seeding)
        for name in files:
            (Path(job.seeding) / name).touch()
    assert rebuild_look._seed(job, Source(**{**vars(SOURCE), **source})) == expected


@pytest.mark.parametrize(("label", "expected"), [(True, "placed"), (False, "started")])
def test_seed_in_place(job, label, expected):
    Path(job.marker).write_text(json.dumps(NOTE))
    if label:
        (Path(job.real) / "backup_label").touch()
    assert rebuild_look._seed(job, SOURCE) == expected
    Path(job.marker).write_text(json.dumps({**NOTE, "complete": False}))
    assert rebuild_look._seed(job, SOURCE) is None


def test_seed_that_is_a_link_is_foreign(job):
    Path(job.marker).write_text(json.dumps(NOTE))
    os.symlink("/", job.seeding)
    assert rebuild_look._seed(job, SOURCE) == "foreign"


def test_leftovers_are_our_programs_on_our_names_only(job, tmp_path):
    program = tmp_path / "pg_basebackup"
    program.symlink_to(sys.executable)
    script = "import sys; print('up', flush=True); sys.stdin.read()"
    started = []
    try:
        for name, target in ((program, job.seeding), (program, f"{job.seeding}2"), (sys.executable, job.seeding)):
            started.append(
                subprocess.Popen(
                    [str(name), "-c", script, "--pgdata", target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            assert started[-1].stdout.readline() == b"up\n"
        assert rebuild_look.leftovers(job) == [started[0].pid]
    finally:
        for process in started:
            process.communicate()
    assert rebuild_look.leftovers(job) == []


def test_recovery_targets_of_a_restore_are_found(job):
    auto = Path(job.real) / "postgresql.auto.conf"
    assert not rebuild_files.has_targets(job.instance)
    auto.write_text("work_mem = '4MB'\nrestore_command = 'x'\n")
    assert not rebuild_files.has_targets(job.instance)
    auto.write_text("work_mem = '4MB'\nrecovery_target_time = '2026-01-01'\n")
    assert rebuild_files.has_targets(job.instance)
    assert rebuild_files._remove_targets(job.instance)
    assert auto.read_text() == "work_mem = '4MB'\n"


# --- what programs say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (
            "pg_waldump: error: error in WAL record at 0/3000060: invalid record length at 0/30000D8: wanted 24",
            0x3000061,
        ),
        ("pg_waldump: fatal: error in WAL record at 1/A0: invalid magic number 0000", (1 << 32) + 0xA1),
        ("pg_waldump: error: could not find a valid record after 0/3000060", None),
        ('pg_waldump: error: could not find file "000000010000000000000004": No such file or directory', 64 * MIB),
        ("", None),
    ],
)
def test_end_of_wal(job, monkeypatch, stderr, expected):
    monkeypatch.setattr(rebuild_look, "run", lambda *_args, **_options: Completed([], 1, "", stderr, 0.0))
    control = type("Control", (), {"wal_segment_size": 16 * MIB})
    monkeypatch.setattr(rebuild_look, "read_control", lambda _instance: control)
    assert rebuild_look.waldump(job, job.real, 1, 0x3000000, [])[1] == expected


def test_extent_of_a_base_backup():
    said = (
        "pg_basebackup: write-ahead log start point: 0/2000028 on timeline 3\n"
        "pg_basebackup: write-ahead log end point: 0/2000100\n"
    )
    assert rebuilding._extent(said) == {"start_lsn": "0/2000028", "timeline": 3, "end_lsn": "0/2000100"}
    with pytest.raises(HotspareError, match="did not say what it copied"):
        rebuilding._extent("pg_basebackup: base backup completed")


@pytest.mark.parametrize(
    ("version", "command", "restores"), [(13, "cp", False), (14, "cp", False), (15, "cp", True), (17, "", False)]
)
def test_pg_rewind_takes_wal_from_the_archive_where_it_can(job, monkeypatch, version, command, restores):
    monkeypatch.setattr(rebuild_rewind, "program_version", lambda _instance: version)
    monkeypatch.setattr(rebuild_rewind, "effective_setting", lambda _instance, _name: command)
    argv = rebuild_rewind._pg_rewind(job, job.at(job.rewinding))
    assert argv[argv.index("--target-pgdata") + 1] == job.rewinding
    assert "target_session_attrs=read-write" in argv[argv.index("--source-server") + 1]
    assert ("--restore-target-wal" in argv) is restores


def test_oldest_wal():
    size = 16 * MIB
    names = [f"00000002000000000000000{n}" for n in (5, 6, 9)] + [f"00000001000000000000000{n}" for n in (1, 2, 4)]
    names += ["00000002.history", "archive_status"]
    assert rebuild_look._oldest(names, size, 6 * size + 1) == 4 * size, "what lies before a gap does not count"
    assert rebuild_look._oldest(names, size, 7 * size) == 4 * size, "the segment that comes next is not made yet"
    assert rebuild_look._oldest(["00000002.history"], size, size) is None


def test_addresses(monkeypatch):
    found = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    tcp = (socket.SOCK_STREAM, 6, "")
    found = [(socket.AF_INET, *tcp, ("192.0.2.1", 0)), (socket.AF_INET6, *tcp, ("2001:db8::1", 0, 0, 0))]
    assert rebuild_look.addresses("db1") == []
    found.append((socket.AF_INET, *tcp, ("192.0.2.2", 0)))
    assert rebuild_look.addresses("db1") == ["192.0.2.1", "192.0.2.2"]
    assert rebuild_look.addresses("db1,db2") == ["db1", "db2"]
    assert rebuild_look.addresses("/run/postgresql") == []


def test_untouched_is_found_where_it_is(job):
    assert (job.untouched, job.found) == (False, job.instance)
    os.rename(job.real, job.rewinding)
    assert not job.untouched, "pg_rewind had begun"
    (Path(job.rewinding) / rebuild_look.UNTOUCHED).touch()
    assert job.untouched and job.found.data_directory == job.rewinding
    os.mkdir(job.real)
    assert not job.untouched


def test_locations_of_tablespaces(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "PG_15").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("/nowhere")
    found = [name for name in ("full", "empty", "link", "none") if rebuild_look._occupied(str(tmp_path / name))]
    assert found == ["full", "link"]
