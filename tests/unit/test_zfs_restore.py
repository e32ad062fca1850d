# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_restore.py: that a clone is nobody's but its own, and that nothing else is removed; the rest: molecule/zfs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_restore
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import Completed, HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_copy import Copy
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_restore import (
    MARK,
    Place,
    checkpoint_time,
    programs,
    reason,
    repoint,
    require_inside,
    require_ours,
    sentences,
    settings,
)
from hypothesis import given
from hypothesis import strategies as st

from .test_zfs_copy import NOTE

PLACE = Place("vault/pg/db2")
CLONE, ORIGIN = "vault/pg/db2:restore-test", "vault/pg/db2@hotspare:backup-20261122T030000Z"
CONTROL = SimpleNamespace(max_connections=300, max_prepared_transactions=5, max_locks_per_transaction=128)


def test_only_clones_that_a_test_made_are_ours():
    inner = ORIGIN.replace("@", "/wal@")
    require_ours(PLACE, {CLONE: (ORIGIN, ORIGIN, "local"), f"{CLONE}/wal": (inner, inner, "local")})
    for origin, mark, source in (
        ("-", "-", "-"),
        (ORIGIN, "-", "-"),
        (ORIGIN, ORIGIN, f"inherited from {CLONE}"),
        (ORIGIN, "another", "local"),
        ("tank/pg@x", "tank/pg@x", "local"),
        ("-", "-", "local"),
    ):
        with pytest.raises(HotspareError, match="is not a clone that a restore test has made"):
            require_ours(PLACE, {CLONE: (origin, mark, source)})


@given(st.text("ab/", min_size=1), st.text("ab/:", min_size=1), st.text("ab/"))
def test_what_is_no_clone_of_this_copy_is_never_ours(dataset, other, below):
    """Whatever it is marked with."""
    place = Place(dataset)
    origin = f"{other}@x"
    clones = {f"{place.clone}{below}": (origin, origin, "local")}
    if other == f"{dataset}{below}":
        assert require_ours(place, clones) is None
    else:
        with pytest.raises(HotspareError):
            require_ours(place, clones)


def test_a_server_that_touches_nothing_else():
    found = settings(PLACE, NOTE, CONTROL)
    expected = {
        "listen_addresses": "",
        "archive_mode": "off",
        "restore_command": "false",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "synchronous_standby_names": "",
        "max_worker_processes": "0",
        "max_logical_replication_workers": "0",
        "max_connections": "300",
        "max_prepared_transactions": "5",
        "shared_preload_libraries": "pg_stat_statements",
        "data_directory": "/var/lib/hotspare-zfs/restore-test/vault_pg_db2/mnt/srv/data/main",
    }
    assert {key: found[key] for key in expected} == expected
    for key in ("hba_file", "ident_file", "unix_socket_directories"):
        assert found[key].startswith(f"{PLACE.run}")
    assert len(f"{PLACE.run}/.s.PGSQL.{zfs_restore.PORT}") < 108
    assert "max_active_replication_origins" not in found
    assert "max_active_replication_origins" in settings(PLACE, replace(NOTE, version=18), CONTROL)


class Clone:
    """Data with WAL and a tablespace elsewhere, as a server on /srv had them, below mnt."""

    def __init__(self, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zfs_restore, "HOME", str(where / "test"))
        self.live = where / "srv"
        self.mounted = [str(self.live / name) for name in ("data", "wal", "fast")]
        for path in self.mounted:
            for root in ("", PLACE.mnt):
                os.makedirs(f"{root}{path}/main")
        self.data = Path(f"{PLACE.mnt}{self.live}/data/main")
        (self.data / "pg_tblspc").mkdir()
        self.link("pg_wal", self.live / "wal/main")
        self.link("pg_tblspc/16400", self.live / "fast/main")

    def link(self, name: str, to: object) -> None:
        os.symlink(str(to), self.data / name)

    def repoint(self) -> None:
        repoint(PLACE, str(self.data), self.mounted)

    def require(self) -> None:
        require_inside(str(self.data), [f"{PLACE.mnt}{path}" for path in self.mounted])


@pytest.fixture
def clone(tmp_path, monkeypatch):
    return Clone(tmp_path, monkeypatch)


def test_links_lead_into_the_clone(clone):
    with pytest.raises(HotspareError, match="out of the clone: it was not started"):
        clone.require()
    clone.link("server.crt", "/etc/ssl/certs/none.pem")
    clone.link("pg_log", "/var/log")
    clone.link("near", "../../wal/main")
    clone.repoint()
    clone.require()
    assert os.readlink(clone.data / "pg_wal") == f"{PLACE.mnt}{clone.live}/wal/main"
    assert os.readlink(clone.data / "pg_tblspc/16400") == f"{PLACE.mnt}{clone.live}/fast/main"
    assert os.readlink(clone.data / "near") == f"{PLACE.mnt}{clone.live}/wal/main"
    assert not os.path.lexists(clone.data / "pg_log")
    assert not os.path.lexists(clone.data / "server.crt")
    clone.repoint()
    clone.require()


@pytest.mark.parametrize("name", ["pg_wal", "pg_tblspc/16400", "base/1"])
def test_what_is_not_in_the_snapshot_is_refused(clone, tmp_path, name):
    (tmp_path / "else").mkdir()
    (clone.data / "base").mkdir()
    (clone.data / name).unlink(missing_ok=True)
    clone.link(name, tmp_path / "else")
    with pytest.raises(HotspareError, match=rf"{name} leads to .*else, which is not in the snapshot"):
        clone.repoint()
    with pytest.raises(HotspareError, match="out of the clone"):
        clone.require()


def test_a_link_inside_of_a_tablespace_that_leads_out_is_found(clone, tmp_path):
    clone.repoint()
    (tmp_path / "else").mkdir()
    os.symlink(tmp_path / "else", f"{PLACE.mnt}{clone.live}/fast/main/PG_17")
    with pytest.raises(HotspareError, match="out of the clone"):
        clone.require()


def test_a_link_to_nothing_is_found(clone):
    os.rmdir(f"{PLACE.mnt}{clone.live}/wal/main")
    clone.repoint()
    with pytest.raises(HotspareError, match="out of the clone"):
        clone.require()


# --- what a note and a snapshot say is the word of another host ------------------------------------------------------


def a_copy(**paths: str) -> Copy:
    found = {below and f"/{below}": path for below, path in paths.items()}
    return Copy(PLACE.dataset, "hotspare:backup-x", replace(NOTE, paths=found), tuple(sorted(found)))


class Recorded:
    """A side on which every command succeeds; `mounts`: what a mount of a dataset shows."""

    def __init__(self, mounts: dict[str, Any] | None = None) -> None:
        self.ran: list[tuple[str, ...]] = []
        self.mounts = mounts or {}

    def run(self, *words: str) -> None:
        self.ran.append(words)
        if words[1] == "mount" and words[-1] in self.mounts:
            self.mounts[words[-1]]()


@pytest.mark.parametrize("path", ["/../../../etc/cron.d", "/srv/../../etc", "/..", "/", "//etc", "/srv/data/"])
def test_a_mountpoint_outside_is_refused_before_anything_is_cloned(tmp_path, monkeypatch, path):
    """Whatever read_note let through."""
    monkeypatch.setattr(zfs_restore, "HOME", str(tmp_path / "test"))
    side = Recorded()
    with pytest.raises(HotspareError, match=f"was mounted at '{path}', which is not below .*: nothing was cloned"):
        zfs_restore._clone(side, PLACE, a_copy(data="/srv/data", wal=path))
    assert side.ran == []
    assert not (tmp_path / "test").exists()


def test_datasets_are_mounted_below_a_directory_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(zfs_restore, "HOME", str(tmp_path / "test"))
    side = Recorded()
    zfs_restore._clone(side, PLACE, a_copy(data="/srv/data", wal="/srv"))
    points = [word for words in side.ran for word in words if word.startswith("mountpoint=")]
    assert points == [f"mountpoint={PLACE.mnt}/srv/data", f"mountpoint={PLACE.mnt}/srv"]
    assert [words[-1] for words in side.ran[2:]] == [f"{CLONE}/wal", f"{CLONE}/data"], "outer ones first"


def test_a_link_in_an_outer_dataset_leads_no_mount_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(zfs_restore, "HOME", str(tmp_path / "test"))
    (tmp_path / "etc").mkdir()

    def shows() -> None:
        os.makedirs(f"{PLACE.mnt}/srv")
        os.symlink(tmp_path / "etc", f"{PLACE.mnt}/srv/data")

    side = Recorded({f"{CLONE}/wal": shows})
    with pytest.raises(HotspareError, match=f"srv/data leads to {tmp_path}/etc by a link, so {CLONE}/data was not mou"):
        zfs_restore._clone(side, PLACE, a_copy(data="/srv/data", wal="/srv"))
    assert [words[-1] for words in side.ran if words[1] == "mount"] == [f"{CLONE}/wal"]


class NoClone:
    where = "this host"

    def run(self, *words: str, check: bool = True) -> Completed:
        return Completed(list(words), 1, "", "cannot open: dataset does not exist", 0.0)


def test_after_a_failure_only_the_log_of_a_server_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(zfs_restore, "HOME", str(tmp_path / "test"))
    os.makedirs(f"{PLACE.mnt}/srv")
    zfs_restore.clean(NoClone(), PLACE, keep_log=True)
    assert not os.path.exists(PLACE.home)
    os.makedirs(PLACE.run)
    Path(PLACE.log).write_text("FATAL: no")
    zfs_restore.clean(NoClone(), PLACE, keep_log=True)
    assert os.listdir(PLACE.home) == ["run"]
    zfs_restore.clean(NoClone(), PLACE)
    assert not os.path.exists(PLACE.home)


def where(note: Any, check: str) -> str:
    return programs(note, check, note.account)


def test_a_snapshot_does_not_choose_the_account_that_runs_what_is_in_it():
    with pytest.raises(HotspareError, match="ran as backup, and the inventory says postgres: see node_account"):
        programs(replace(NOTE, account="backup", bin_directory="/bin"), "count", "postgres")


@pytest.mark.parametrize(("version", "triggers"), [(16, False), (17, True), (18, True)])
def test_in_a_session_runs_nothing_that_a_database_says(version, triggers):
    found = zfs_restore.session(version)
    assert ("-c event_triggers=off" in found) is triggers
    assert "-c session_preload_libraries= " in f"{found} "
    assert "-c local_preload_libraries= " in f"{found} "


@pytest.mark.parametrize(
    ("version", "owner", "stopped"),
    [
        ("17\n", 1, True),
        ("../../../../srv/evil", 1, False),
        ("17/../../../srv", 1, False),
        ("", 1, False),
        ("17", 0, False),
        ("17", 65534, False),
    ],
)
def test_what_a_snapshot_holds_starts_no_program_from_elsewhere_and_none_as_root(
    tmp_path, monkeypatch, version, owner, stopped
):
    (tmp_path / "main/global").mkdir(parents=True)
    (tmp_path / "main/PG_VERSION").write_text(version, encoding="utf-8")
    os.chown(tmp_path / "main", owner, owner)
    found = []
    monkeypatch.setattr(zfs_restore, "processes", lambda _instance: [7])
    monkeypatch.setattr(zfs_restore, "_stop", found.append)
    zfs_restore._stop_all([str(tmp_path)])
    expected = [(f"{zfs_restore.DEBIAN_ROOT}/17/bin", "daemon")] if stopped else []
    assert [(one.bin_directory, one.account) for one in found] == expected


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/proc/self/environ", path)])
def test_a_version_that_is_no_file_is_not_read(tmp_path, monkeypatch, make):
    (tmp_path / "main/global").mkdir(parents=True)
    make(tmp_path / "main/PG_VERSION")
    os.chown(tmp_path / "main", 1, 1)
    monkeypatch.setattr(zfs_restore, "read_text", lambda path: pytest.fail(f"{path} is read"))
    zfs_restore._stop_all([str(tmp_path)])


def test_why_a_server_did_not_recover():
    log = """2026-11-22 LOG:  starting
2026-11-22 03:00:00 UTC [7] FATAL:  WAL ends before consistent recovery point
2026-11-22 LOG:  startup process (PID 7) exited with exit code 1
"""
    assert reason(log) == "FATAL:  WAL ends before consistent recovery point"
    assert reason("LOG: a\nLOG: b\n") == "LOG: b"
    assert reason("") == "it logged nothing"


def test_when_it_was_checkpointed():
    assert checkpoint_time(SimpleNamespace(checkpoint_time="Sun Nov 22 05:00:00 2026")) == 1795323600
    assert checkpoint_time(SimpleNamespace(checkpoint_time="Sonntag")) is None


def test_where_the_programs_are(tmp_path, monkeypatch):
    note = replace(NOTE, account="daemon", bin_directory=str(tmp_path / "none"))
    monkeypatch.setattr(zfs_restore, "DEBIAN_ROOT", str(tmp_path))
    with pytest.raises(HotspareError, match="this host has no PostgreSQL 17, with which db2 made its data: install"):
        where(note, "count")
    (tmp_path / "17/bin").mkdir(parents=True)
    (tmp_path / "17/bin/postgres").touch()
    assert where(note, "count") == f"{tmp_path}/17/bin"
    with pytest.raises(HotspareError, match="has no pg_amcheck"):
        where(note, "amcheck")
    with pytest.raises(HotspareError, match="has no account nobody-here"):
        where(replace(note, account="nobody-here"), "count")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"account": "root"}, "root, which the server ran as, is no account of a service on this host \\(uid 0\\)"),
        ({"account": "nobody"}, "is no account of a service"),
        ({"libraries": "pg_stat_statements, /tmp/x"}, "loads pg_stat_statements, /tmp/x .* a path is not loaded here"),
        ({"libraries": "../x"}, "a path is not loaded here"),
        ({"libraries": ""}, None),
        ({"libraries": "auto_explain, $libdir/pg_stat_statements,x-1.2"}, None),
    ],
)
def test_what_a_note_says_is_the_word_of_another_host(tmp_path, monkeypatch, changes, said):
    monkeypatch.setattr(zfs_restore, "DEBIAN_ROOT", str(tmp_path))
    note = replace(NOTE, **{"account": "daemon", "bin_directory": str(tmp_path / "theirs"), **changes})
    for folder in ("17/bin", "theirs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "postgres").touch()
    if said is None:
        assert where(note, "count") == f"{tmp_path}/17/bin", "rather those of this host"
    else:
        with pytest.raises(HotspareError, match=said):
            where(note, "count")


def test_programs_of_somebody_are_not_started(tmp_path, monkeypatch):
    monkeypatch.setattr(zfs_restore, "DEBIAN_ROOT", str(tmp_path / "none"))
    (tmp_path / "postgres").touch()
    os.chown(tmp_path / "postgres", 1, 1)
    with pytest.raises(HotspareError, match="postgres does not belong to root"):
        where(replace(NOTE, account="daemon", bin_directory=str(tmp_path)), "count")


@pytest.mark.parametrize("name", ["pg_ctl", "pg_controldata", "pg_amcheck", ""])
@pytest.mark.parametrize("spoil", [lambda path: os.chown(path, 1, 1), lambda path: os.chmod(path, 0o757)])
def test_nor_are_programs_that_somebody_may_change(tmp_path, monkeypatch, name, spoil):
    monkeypatch.setattr(zfs_restore, "DEBIAN_ROOT", str(tmp_path / "none"))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for program in ("postgres", "pg_ctl", "pg_controldata", "pg_amcheck"):
        (theirs / program).touch(0o755)
    note = replace(NOTE, account="daemon", bin_directory=str(theirs))
    assert where(note, "amcheck") == str(theirs)
    spoil(theirs / name)
    with pytest.raises(HotspareError, match="does not belong to root alone: install postgresql-17 here"):
        where(note, "amcheck")


def test_programs_are_not_looked_for_where_we_are(tmp_path, monkeypatch):
    monkeypatch.setattr(zfs_restore, "DEBIAN_ROOT", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/postgres").touch()
    with pytest.raises(HotspareError, match="this host has no PostgreSQL 17"):
        where(replace(NOTE, account="daemon", bin_directory="bin"), "count")


def test_what_is_told():
    found = {
        "copy": ORIGIN,
        "node": "db2",
        "role": "standby",
        "system_identifier": "7",
        "age_seconds": 90.0,
        "data_age_seconds": None,
        "recovery_seconds": 2.0,
        "check": "count",
        "check_seconds": 1.0,
        "databases": 2,
        "tables": 3,
        "rows": 4,
    }
    said = sentences(found)
    assert said[0] == f"{ORIGIN}, of db2 when it was standby, 1 min 30 s old"
    assert said[1] == "a server on a clone of it recovered in 2.0 s; its newest data is of unknown age"
    assert said[3] == "4 rows of 3 tables in 2 databases could be read (1.0 s)"
    said = sentences({**found, "check": "amcheck", "data_age_seconds": 100.0})
    assert said[1].endswith("its newest data is 1 min 40 s old")
    assert said[3] == "pg_amcheck --heapallindexed found nothing wrong in 2 databases (1.0 s)"
    assert MARK.startswith("hotspare:")
