# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_status.py, and what status.yml makes of it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_status
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_status import backup, read_zfs
from hypothesis import given
from hypothesis import strategies as st

from .nodes import primary, standby
from .test_problems import node, problems
from .test_status import table

SEND = {
    "state": "sending",
    "pid": os.getpid(),
    "destination": "vault/pg/db2",
    "dataset": "vault/pg/db2/data",
    "snapshot": "hotspare:backup-20261122T030000Z",
    "kind": "incremental",
    "number": 2,
    "of": 3,
    "sent_bytes": 10 << 20,
    "estimated_bytes": 40 << 20,
    "rate": 4 << 20,
    "seconds_left": 7,
}
WANTED = {"dataset": "vault/pg/db2", "login": None}
NEWEST = {"snapshot": "hotspare:backup-20261122T030000Z", "taken": 1000.0}
RECORD = {"state": "done", "at": "03:00", "reason": "why", "error": None, "newest": NEWEST, "late_after": 8000.0}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Writes what the role and the sends write."""
    monkeypatch.setattr(zfs_status, "CONFIGS", f"{tmp_path}/*.json")
    files = {key: str(tmp_path / key) for key in ("rebuild_status", "status", "record")}

    def write(name: str, content: Any) -> None:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    write("main.json", {"node": {"data_directory": "/srv/data"}, **files, "backup": WANTED})
    return write


def test_a_host_without_zfs_or_with_another_node_has_nothing(host):
    assert read_zfs("/srv/other") is None


def test_what_is_not_known_says_why(host):
    host("main.json", "{")
    assert "cannot be read" in read_zfs("/srv/data")["reason"]
    host("main.json", "[]")
    assert "no JSON object" in read_zfs("/srv/data")["reason"]


def test_nothing_happened_yet(host):
    found = read_zfs("/srv/data")
    assert (found["sends"], found["reason"]) == ([], None)
    assert (found["backup"]["state"], found["backup"]["age_seconds"], found["backup"]["late"]) == (None, None, None)


def test_a_send_is_shown_while_its_process_lives_and_speaks(host, tmp_path):
    host("rebuild_status", SEND)
    (send,) = read_zfs("/srv/data")["sends"]
    assert (send["for"], send["sent_bytes"], send["of"]) == ("rebuild", 10 << 20, 3)
    os.utime(tmp_path / "rebuild_status", (1, 1))
    assert read_zfs("/srv/data")["sends"] == []
    for ended in ({"state": "done"}, {"pid": 2**22 + 1}, {"state": "failed"}):
        host("rebuild_status", {**SEND, **ended})
        assert read_zfs("/srv/data")["sends"] == []
    host("rebuild_status", "half a lin")
    assert read_zfs("/srv/data")["sends"] == []


def test_the_record_of_the_last_run(host):
    host("record", RECORD)
    found = read_zfs("/srv/data")["backup"]
    assert (found["state"], found["newest"], found["late"]) == ("done", NEWEST, True)
    host("record", "nonsense")
    assert "is not what a backup writes" in read_zfs("/srv/data")["reason"]


@given(st.floats(0, 1e10), st.none() | st.floats(0, 1e10), st.none() | st.floats(0, 1e10))
def test_ages_and_lateness(now, taken, late_after):
    record = {**RECORD, "newest": {"taken": taken} if taken is not None else None, "late_after": late_after}
    found = backup({**WANTED, "login": {"host": "nas"}}, record, now)
    assert found["host"] == "nas"
    assert (found["age_seconds"] is None) == (taken is None)
    assert found["age_seconds"] is None or found["age_seconds"] >= 0
    assert found["late"] == (None if late_after is None else now > late_after)


def zfs(*sends: dict[str, Any], **changes: Any) -> dict[str, Any]:
    told = {**RECORD, "dataset": "vault/pg/db2", "host": None, "age_seconds": 90.0, "late": False, **changes}
    return {"sends": list(sends), "backup": told, "reason": None}


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (None, None),
        (zfs(), None),
        (zfs(state="skipped"), None),
        (zfs(state="failed", error="no room"), "snapshot_failed"),
        (zfs(late=True), "snapshot_late"),
        (zfs(state="skipped", late=True), "snapshot_late"),
        (zfs(state=None), "snapshot_missing"),
        (zfs({"for": "backup"}, late=True), None),
        (zfs({"for": "rebuild"}, late=True), "snapshot_late"),
        ({"sends": [], "backup": None, "reason": None}, None),
        ({"sends": [], "backup": None, "reason": "broken"}, "snapshots_unknown"),
    ],
)
def test_problems(state, code):
    assert [one["code"] for one in problems(node("standby", zfs=state))] == ([code] if code else [])


def test_the_table():
    send = {**SEND, "for": "backup"}
    skipped = zfs(state="skipped", newest=None)
    lines = table(primary("db1", "db2", zfs=skipped), standby("db2", zfs=zfs(send, {**send, "for": "rebuild"})))
    text = " ".join(line.strip() for line in lines)
    assert "db1 has snapshots in vault/pg/db2: none yet; not its turn at 03:00: why" in text
    assert "db2 has snapshots in vault/pg/db2: the newest is 1 min 30 s old (hotspare:backup-20261122T030000Z)" in text
    told = "vault/pg/db2/data, part 2 of 3, incremental: 10.0 MB of 40.0 MB (25 %), 4.0 MB/s, time left 7.0 s"
    assert f"snapshot of db2 to be kept: {told}" in text
    assert f"snapshot of the primary for db2: {told}" in text


def test_a_send_of_which_nothing_is_known_yet():
    send = {"for": "backup", **dict.fromkeys(zfs_status.SAID_OF_SEND)}
    text = " ".join(line.strip() for line in table(primary("db1", "db2"), standby("db2", zfs=zfs(send))))
    assert "unknown of unknown, unknown/s, time left unknown" in text
