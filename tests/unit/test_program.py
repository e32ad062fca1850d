# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""program.py: the configuration is read strictly, and a command's word is its exit code."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from ansible_collections.hotspare.postgresql.plugins.module_utils import (
    archive_config,
    program,
    shipper,
    tree_sync,
    wal_sync,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.address import Place
from ansible_collections.hotspare.postgresql.plugins.module_utils.guard import Decision
from ansible_collections.hotspare.postgresql.plugins.module_utils.peers import Peer
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError

from . import destinations

CONFIG = {
    "node": {"name": "db1", "data_directory": "/srv/data", "bin_directory": "/srv/bin", "port": 5433},
    "peers": [{"name": "db2", "host": "192.0.2.2", "port": 5432, "user": "replicator", "passfile": "/srv/pgpass"}],
    "guard": {"wait": 10, "policy": "start"},
    "address": {"address": "192.0.2.100/24", "interface": ""},
}


@pytest.fixture
def config(tmp_path):
    def written(**changes):
        path = tmp_path / "hotspare.json"
        path.write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
        return str(path)

    return written


def test_the_configuration(config):
    found = program.read_config(config())
    assert (found.instance.name, found.instance.port, found.instance.account) == ("db1", 5433, "postgres")
    assert found.peers == [Peer("db2", "192.0.2.2", 5432, "replicator", "/srv/pgpass")]
    assert (found.guard_wait, found.guard_policy, found.place) == (10.0, "start", Place("192.0.2.100/24"))
    assert program.read_config(config(address=None)).place is None


@pytest.mark.parametrize(
    "changes",
    [{"node": {"name": "db1"}}, {"peers": [{"host": "x"}]}, {"guard": {"wait": 10, "policy": "hope"}}, {"guard": None}],
)
def test_what_is_not_ours_is_refused(config, changes, capsys):
    path = config(**changes)
    with pytest.raises(HotspareError, match=path):
        program.read_config(path)
    assert program.main(["guard", path]) == 1
    assert path in capsys.readouterr().err


def test_what_is_not_there_and_what_another_wrote_is_refused(config, tmp_path, monkeypatch):
    with pytest.raises(HotspareError, match="cannot read"):
        program.read_config(str(tmp_path / "nothing"))
    path = config()
    monkeypatch.setattr(program.os, "geteuid", lambda: 4711)
    if os.stat(path).st_uid == 0:
        assert program.read_config(path)
        os.chown(path, 4712, -1)
    with pytest.raises(HotspareError, match="does not belong to root"):
        program.read_config(path)


@pytest.mark.parametrize(("act", "code"), [("start", 0), ("refuse", 1)])
def test_the_guards_word_is_the_exit_code(config, monkeypatch, capsys, act, code):
    monkeypatch.setattr(program, "guard", lambda *args, **more: Decision(act, f"to {act}: so be it"))
    assert program.main(["guard", config()]) == code
    assert capsys.readouterr().err == f"to {act}: so be it\n"


def test_without_a_service_address_there_is_nothing_to_do(config):
    assert program.main(["address", config(address=None)]) == 0
    assert program.main(["address-off", config(address=None)]) == 0


def test_the_timer_does_documents_also_where_wal_fails(monkeypatch, capsys):
    def fails(config):
        raise HotspareError("the server does not tell")

    monkeypatch.setattr(archive_config, "read_archive_config", lambda path: path)
    monkeypatch.setattr(wal_sync, "tick", fails)
    monkeypatch.setattr(tree_sync, "tick", lambda config: [{"problems": []}, {"problems": [f"{config}: a symlink"]}])
    assert program.main(["archive-sync", "CONFIG"]) == 1
    assert capsys.readouterr().err == "the server does not tell\nCONFIG: a symlink\n"
    monkeypatch.setattr(wal_sync, "tick", lambda config: [])
    monkeypatch.setattr(tree_sync, "tick", lambda config: [])
    assert program.main(["archive-sync", "CONFIG"]) == 0


def test_without_the_shipper_a_copy_of_the_server_archives_nothing(tmp_path, monkeypatch, capsys):
    data, copy = tmp_path / "data", tmp_path / "copy"
    found = destinations.config(node=asdict(Instance("db1", str(data), "/usr/bin")))
    shipped = []
    monkeypatch.setattr(archive_config, "read_archive_config", lambda path: found)
    monkeypatch.setattr(shipper, "ship_alone", lambda config, path, name: shipped.append((path, name)))
    for directory, code in ((copy, 11), (data, 0)):
        directory.mkdir()
        monkeypatch.chdir(directory)
        assert program.main(["archive", "CONFIG", "pg_wal/00000002.history", "00000002.history"]) == code
    assert shipped == [("pg_wal/00000002.history", "00000002.history")]
    assert f"the WAL of {copy} is not archived" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["guard"], ["dance", "x"], ["guard", "a", "b"]])
def test_usage(arguments, capsys):
    assert program.main(arguments) == 2
    assert "| guard CONFIG | address CONFIG | address-off CONFIG |" in capsys.readouterr().err


def test_the_version_is_the_collections(capsys):
    galaxy = yaml.safe_load((Path(__file__).parents[2] / "galaxy.yml").read_text(encoding="utf-8"))
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hotspare {galaxy['version']}\n"
