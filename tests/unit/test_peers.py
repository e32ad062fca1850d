# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libpq says of another node, as one word; real connections are the integration test's matter."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import peers
from ansible_collections.hotspare.postgresql.plugins.module_utils.peers import Peer, peers_from_params

DB2 = Peer("db2", "192.0.2.2", 5433, "replicator", "/pass")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('connection to server at "192.0.2.2", port 5432 failed: Connection refused', "refused"),
        ("could not connect to server: No route to host", "silent"),
        ("could not connect to server: Network is unreachable", "silent"),
        ("connection to server failed: Connection timed out", "silent"),
        ("timeout expired", "silent"),
        ('FATAL:  no pg_hba.conf entry for replication connection from host "192.0.2.1"', "auth"),
        ('FATAL:  password authentication failed for user "replicator"', "auth"),
        ("fe_sendauth: no password supplied", "auth"),
        ("FATAL:  the database system is starting up", "unknown"),
        ("FATAL:  the database system is shutting down", "unknown"),
        ('could not translate host name "db2" to address: Temporary failure in name resolution', "unknown"),
        ("FATAL:  sorry, too many clients already", "unknown"),
        ("server closed the connection unexpectedly", "unknown"),
        ("", "unknown"),
    ],
)
def test_only_what_is_certain_is_said(text: str, answer: str) -> None:
    found = peers._failure(DB2, OSError(text))
    assert found["answer"] == answer
    assert "db2 at 192.0.2.2 port 5433" in found["detail"]


@pytest.mark.parametrize(
    ("settings", "role"),
    [
        ({"in_hot_standby": "on"}, "standby"),
        ({"in_hot_standby": "off"}, "primary"),
        ({"transaction_read_only": "off", "default_transaction_read_only": "off"}, "primary"),
        ({"transaction_read_only": "off", "default_transaction_read_only": "on"}, "primary"),
        ({"transaction_read_only": "on", "default_transaction_read_only": "off"}, "standby"),
        # Either of them; a guard that took it for a primary would keep a healthy one down.
        ({"transaction_read_only": "on", "default_transaction_read_only": "on"}, "unknown"),
    ],
)
def test_what_it_is_by_its_settings(settings: dict[str, str], role: str) -> None:
    assert peers.role_said(settings) == role


def test_the_connection_is_the_one_that_a_standby_makes() -> None:
    given = DB2.parameters(2.0)
    assert (given["replication"], given["host"], given["port"]) == ("true", "192.0.2.2", 5433)
    assert (given["user"], given["passfile"], given["connect_timeout"]) == ("replicator", "/pass", 2)
    assert "user" not in Peer("db2", "192.0.2.2").parameters(2.0)


def test_options_of_the_module() -> None:
    assert peers_from_params(None) is None
    assert peers_from_params([]) == []
    assert peers_from_params(
        [{"name": "db2", "host": "192.0.2.2", "port": 5433, "user": "replicator", "passfile": "/pass", "address": "x"}]
    ) == [DB2]


def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "psycopg2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    (found,) = peers.ask([DB2], "root")
    assert (found["answer"], found["name"], found["system_identifier"]) == ("unknown", "db2", None)
    assert "python3-psycopg2" in found["detail"]
