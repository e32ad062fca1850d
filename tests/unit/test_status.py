# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of status.yml."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.status import WIDTH, status_table
from ansible_collections.hotspare.postgresql.plugins.module_utils.topology import topology
from ansible_collections.hotspare.postgresql.tests.unit.nodes import (
    HERE,
    UNREACHABLE,
    absent,
    answers,
    primary,
    row,
    standby,
    stopped,
)
from ansible_collections.hotspare.postgresql.tests.unit.test_topology import clusters
from hypothesis import given


def table(*states: dict[str, Any], **others: Any) -> list[str]:
    return status_table(topology(answers(*states, **others)))


def cells(lines: list[str], name: str) -> list[str]:
    line = next(line for line in lines if line.startswith(name + " "))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_healthy_pair() -> None:
    lines = status_table(topology(answers(primary("db1", "db2"), standby("db2"))), "10:00", "postgres")
    assert lines[0] == "postgres: HEALTHY - db1 is primary, 1 standby streams (10:00)"
    assert lines[2].split() == ["NODE", "ROLE", "TL", "STREAMS", "LAG", "LSN", "SLOT", "ARCHIVER"]
    assert cells(lines, "db1") == ["db1", "primary", "1", "to db2", "-", "0/5000060", "-", "off"]
    assert cells(lines, "db2") == [
        *("db2", "standby", "1", "from db1", "0 B, 0.0 s", "0/5000060"),
        *("hotspare_db2 reserved", "off"),
    ]
    assert len(lines) == 5


def test_a_cutover_that_did_not_end_shows() -> None:
    armed = {"state": "armed", "alive": True, "expires_in": 9.0, "reason": None}
    lines = table(primary("db1", "db2", standby_signal=True), standby("db2", armed=armed))
    assert (cells(lines, "db1")[1], cells(lines, "db2")[1]) == ("primary, prepared", "standby, armed")
    assert lines[0] == "DEGRADED - db1 is primary, 1 of 1 other nodes stream, prepared to become a standby"
    down = stopped("db1", signal=True, upstream=standby("db1", "db2")["upstream"])
    assert cells(table(down, db2=UNREACHABLE), "db1")[1] == "stopped, prepared"
    crashed = {**down, "control": {**down["control"], "state": "in production"}}
    assert cells(table(crashed, db2=UNREACHABLE), "db1")[1] == "stopped, prepared"
    for other in (stopped("db1", signal=True), {**down, "standby_signal": False}):
        assert cells(table(other, db2=UNREACHABLE), "db1")[1] == "stopped", "fenced, and by hand"
    was_standby = {**down, "control": {**down["control"], "state": "shut down in recovery"}}
    assert cells(table(was_standby, db2=UNREACHABLE), "db1")[1] == "stopped"
    lines = table(primary("db1", "db2"), standby("db2", armed={**armed, "state": "promoted"}))
    assert (cells(lines, "db1")[1], cells(lines, "db2")[1]) == ("primary", "standby")
    note = {"primary": "db2", "timeline": 2, "system_identifier": "x"}
    assert cells(table(stopped("db1", superseded=note), primary("db2", timeline=2)), "db1")[1] == "stopped, superseded"


def test_where_a_primary_ships_its_wal() -> None:
    def line(shipping: dict[str, Any]) -> str:
        lines = table(primary("db1", "db2", archive=shipping), standby("db2", archive=shipping))
        assert len([line for line in lines if "ships WAL" in line]) == 1
        return " ".join(line.strip() for line in lines[6:])

    near = {"name": "db2", "state": "connected", "waiting": 0, "behind": 0, "oldest_waiting_seconds": None}
    nas = {"name": "nas", "state": "full", "waiting": 3, "behind": 9, "oldest_waiting_seconds": 75.0}
    silent = {"name": "far", "state": None, "waiting": None, "behind": None, "oldest_waiting_seconds": None}
    shipping = {"running": True, "acknowledged": "000000010000000000000004", "destinations": [near, nas, silent]}
    assert line(shipping) == (
        "db1 ships WAL to db2 (connected, 0 waiting), nas (full, 12 waiting, the oldest for 1 min 15 s) and far"
        " (unknown, unknown waiting); the last archived is 000000010000000000000004"
    )
    assert line({**shipping, "running": False}) == "db1 ships WAL: unknown, its shipper is down"
    assert line({**shipping, "acknowledged": None, "destinations": [near]}).endswith("; the last archived is none")


def test_what_is_not_known_is_unknown_and_never_zero() -> None:
    blank = primary("db1", "db2", replication=[row("db2", None)], lsn=None)
    lines = table(blank, standby("db2", lag=None, lsn=None, archiver=None))
    assert cells(lines, "db2")[4:6] == ["unknown, unknown", "unknown"]
    assert cells(lines, "db2")[-1] == "unknown"
    lines = table(primary("db1"), db2=UNREACHABLE)
    assert cells(lines, "db2") == ["db2", *["unknown"] * 7]
    assert lines[0] == "UNKNOWN - db2 cannot be seen; db1 runs as primary"
    assert any("No route to host" in line for line in lines)


def test_lag_without_a_walsender_is_the_distance_to_the_primary() -> None:
    lines = table(primary("db1", at=HERE + (3 << 20)), standby("db2", streams=False))
    assert cells(lines, "db2")[3:5] == ["no", "3.0 MB, 0.0 s"]
    lines = table(primary("db1", timeline=2), standby("db2", recovery="archive", wal_receiver=None, lag=None))
    assert cells(lines, "db2")[3:5] == ["no (archive)", "unknown, unknown"]


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([primary("db1"), absent("db2")], "DEGRADED - db1 is primary, 0 of 1 other nodes stream"),
        ([absent("db1"), absent("db2")], "EMPTY - no node holds data"),
        ([stopped("db1"), standby("db2", streams=False)], "NO_PRIMARY - there is data"),
        ([primary("db1"), primary("db2")], "CONTRADICTORY - "),
    ],
)
def test_verdicts(states: list[dict[str, Any]], words: str) -> None:
    assert table(*states)[0].startswith(words)


def test_a_base_backup_shows_its_progress() -> None:
    backup = {
        "application_name": "db2",
        "phase": "streaming database files",
        "total_bytes": 4 << 30,
        "streamed_bytes": 1 << 30,
        "bytes_per_second": 32 << 20,
        "seconds_left": 96.0,
    }
    running = primary("db1", running_backups=[backup])
    text = "\n".join(table(running, absent("db2", rebuild={"seeding": "/srv/main.seeding", "rewinding": None})))
    assert "by db2: streaming database files, 1.0 GB of 4.0 GB (25 %), 32.0 MB/s, time left 1 min 36 s" in text
    assert "db2: a seed or rebuild is under way or was interrupted: /srv/main.seeding" in text
    blank = primary("db1", running_backups=[dict.fromkeys(backup)])
    assert "unknown of unknown, unknown rate, time left unknown" in " ".join(table(blank))


def test_archiver() -> None:
    on = {"mode": "on", "ready": 3, "last_failed_time": "2026-01-02", "last_archived_time": "2026-01-01"}
    assert cells(table(primary("db1", archiver=on)), "db1")[-1] == "FAILING, 3 waiting"
    well = {**on, "last_failed_time": None, "ready": None}
    assert cells(table(primary("db1", archiver=well)), "db1")[-1] == "ok, unknown waiting"
    assert cells(table(primary("db1", "db2"), standby("db2", archiver=on)), "db2")[-1] == "standing by"


def test_long_names_fit() -> None:
    long = "a-very-long-host-name-of-a-database-server.internal.example.org"
    state = {**primary("db1"), "name": long}
    lines = table(state, db2={"failed": True, "msg": "word " * 100})
    assert max(map(len, lines)) <= WIDTH


@given(clusters)
def test_any_cluster_has_a_table(asked: dict[str, Any]) -> None:
    lines = status_table(topology(asked))
    assert max(map(len, lines)) <= WIDTH
    for name in asked:
        assert sum(line.startswith(name + " ") for line in lines) == 1
