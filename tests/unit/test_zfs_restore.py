# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_restore.py: that a clone is nobody's but its own, and that nothing else is removed; the rest: molecule/zfs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_restore
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
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
        programs(note, "count")
    (tmp_path / "17/bin").mkdir(parents=True)
    (tmp_path / "17/bin/postgres").touch()
    assert programs(note, "count") == f"{tmp_path}/17/bin"
    with pytest.raises(HotspareError, match="has no pg_amcheck"):
        programs(note, "amcheck")
    with pytest.raises(HotspareError, match="has no account nobody-here"):
        programs(replace(note, account="nobody-here"), "count")


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
        assert programs(note, "count") == f"{tmp_path}/17/bin", "rather those of this host"
    else:
        with pytest.raises(HotspareError, match=said):
            programs(note, "count")


def test_programs_of_somebody_are_not_started(tmp_path, monkeypatch):
    monkeypatch.setattr(zfs_restore, "DEBIAN_ROOT", str(tmp_path / "none"))
    (tmp_path / "postgres").touch()
    os.chown(tmp_path / "postgres", 1, 1)
    with pytest.raises(HotspareError, match="postgres does not belong to root"):
        programs(replace(NOTE, account="daemon", bin_directory=str(tmp_path)), "count")


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
