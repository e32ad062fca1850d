# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_config.py: the configuration is read strictly, since it says what is run as whom, and where."""

from __future__ import annotations

import json

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import (
    Keep,
    Place,
    read_archive_config,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.peers import Peer
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.tree_source import home_of

from .destinations import CONFIG, PLACE

NODE = {"name": "db1", "data_directory": "/srv/data", "bin_directory": "/srv/bin", "port": 5433}
TREE = {
    "name": "scans",
    "path": "/srv/scans",
    "partition": "%Y/%m/%d",
    "grace": 7200,
    "account": "scans",
    "skip": [5, 6],
    "destinations": [{**PLACE, "account": "scans", "path": "/srv/copies/scans"}],
}


@pytest.fixture
def written(tmp_path):
    def write(**changes):
        path = tmp_path / "hotspare-archive.json"
        path.write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
        return str(path)

    return write


def test_a_node(written):
    nas = {"name": "nas", "directory": "/mnt/nas/main"}
    found = read_archive_config(
        written(node=NODE, destinations=[PLACE, nas], keep={"days": 14, "segments": 64, "backups": 2}, trees=[TREE])
    )
    assert (found.node.name, found.node.port, found.node.account) == ("db1", 5433, "postgres")
    assert found.peers == (Peer("db2", "192.0.2.2", 5432, "replicator", "/srv/pgpass"),)
    assert found.keep == Keep(14, 64, 2)
    assert found.destinations[1] == Place("nas", directory="/mnt/nas/main")
    assert [str(place) for place in found.destinations] == ["db2 (postgres@192.0.2.2 port 2222)", "nas (/mnt/nas/main)"]
    assert (found.socket, found.status_file) == (
        "/run/hotspare-archive-main/socket",
        "/run/hotspare-archive-main/status.json",
    )
    tree = found.tree("scans")
    assert (tree.partition, tree.grace, tree.skip) == ("%Y/%m/%d", 7200, (5, 6))
    assert (tree.destinations[0].path, tree.destinations[0].account) == ("/srv/copies/scans", "scans")
    with pytest.raises(HotspareError, match="no tree 'letters'"):
        found.tree("letters")


def test_an_archive_host(written):
    found = read_archive_config(written())
    assert (found.node, found.keep, found.destinations, found.trees) == (None, None, (), ())
    assert found.homes == found.directory


def test_what_is_known_of_trees_lies_where_the_server_leads_nobody_astray(written, tmp_path):
    state = str(tmp_path / "state")
    found = read_archive_config(written(state=state, trees=[{**TREE, "path": str(tmp_path)}]))
    assert home_of(found, found.tree("scans")).path == f"{state}/trees/scans"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../db1"},
        {"name": 3},
        {"cluster": ""},
        {"node": {"name": "db1"}},
        {"peers": [{"host": "x"}]},
        {"directory": "archive"},
        {"directory": "/srv/../etc"},
        {"state": "state"},
        {"compression": "gzip"},
        {"require": "most"},
        {"fetch_ahead": -1},
        {"fetch_ahead": "many"},
        {"fetch_ahead": 1.5},
        {"directory": "/srv/archive/"},
        {"directory": "//srv/archive"},
        {"destinations": [{"name": "db1", "directory": "/mnt/nas"}]},
        {"destinations": [{"name": "nas"}]},
        {"destinations": [{"name": "nas", "directory": "mnt/nas"}]},
        {"destinations": [{"name": 3, "directory": "/mnt/nas"}]},
        {"destinations": [{**PLACE, "port": "ssh"}]},
        {"destinations": [{**PLACE, "port": 0}]},
        {"trees": [{**TREE, "grace": -5}]},
        {"trees": [{**TREE, "grace": "long"}]},
        {"trees": [{**TREE, "partition": "%Y"}]},
        {"trees": [{**TREE, "partition": "%Y/%m/%d/%H"}]},
        {"trees": [{**TREE, "partition": "../%Y-%m-%d"}]},
        {"trees": [{**TREE, "partition": "/%Y-%m-%d"}]},
        {"keep": {"weeks": 2}},
        {"keep": {"days": -1}},
        {"keep": {"days": 0}},
        {"keep": {"days": None}},
        {"keep": {"days": "14"}},
        {"keep": {"segments": 0}},
        {"keep": {"backups": 0, "days": 14}},
        {"keep": {"backups": 1.5}},
        {"destinations": {"db2": PLACE}},
        {"destinations": [PLACE, PLACE]},
        {"destinations": [{"name": "db2"}]},
        {"destinations": [{**PLACE, "host": "-oProxyCommand=reboot"}]},
        {"destinations": [{**PLACE, "account": "-x"}]},
        {"destinations": [{**PLACE, "identity": "key"}]},
        {"destinations": [{**PLACE, "directory": "/mnt"}]},
        {"trees": [{**TREE, "path": "scans"}]},
        {"trees": [{**TREE, "name": "a/b"}]},
        {"trees": [{**TREE, "skip": [7]}]},
        {"trees": [TREE, TREE]},
        {"trees": [{**TREE, "destinations": [PLACE]}]},
        {"trees": [{**TREE, "destinations": [{"name": "nas", "directory": "/mnt"}]}]},
    ],
    ids=repr,
)
def test_what_is_not_ours_is_refused(written, changes):
    path = written(**changes)
    with pytest.raises(HotspareError, match=f"{path} is not what the role archive writes"):
        read_archive_config(path)
