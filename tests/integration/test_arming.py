# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_promote state=armed against real servers: it promotes itself on the proof, and on nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.armed_state import move, paths, read_armed
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import parse_lsn

from .conftest import PASSWORD, USER, eventually

QUICK = 0.5  # s, from the end of the stream to writable on a machine that has other things to do


def state(node) -> dict[str, Any]:
    return read_armed(node.instance.data_directory) or {}


def decided(node) -> dict[str, Any]:
    """What the armed process came to."""
    told = eventually(lambda: (now := state(node))["state"] not in ("armed", "promoting") and now)
    eventually(lambda: not state(node)["alive"])
    return told


def recovers(node) -> bool:
    return node.sql("SELECT pg_is_in_recovery()") == "t"


@pytest.fixture(autouse=True)
def nothing_left(lab):
    """Ends what a test armed, and takes its files away: a test's directory never comes again."""
    yield
    for data in lab.directory.glob("*/data"):
        move(str(data), "disarmed")
        eventually(lambda data=data: not (read_armed(str(data)) or {"alive": False})["alive"])
        for path in vars(paths(str(data))).values():
            Path(path).unlink(missing_ok=True)


@pytest.fixture
def arm(pair, run_module):
    """Arms the standby of the pair; what the module returned."""

    def armed(**options: Any) -> dict[str, Any]:
        result = run_module("pg_promote", {**pair.standby.params, "state": "armed", **options})
        assert not result.get("failed"), result
        assert result["armed"]["state"] == "armed"
        assert result["armed"]["alive"] is True
        return result

    return armed


@pytest.fixture
def collect(pair, run_module):
    def collected(check: bool = False, **options: Any) -> dict[str, Any]:
        return run_module("pg_promote", {**pair.standby.params, "timeout": 20, **options}, check=check)

    return collected


def required(primary) -> dict[str, Any]:
    """What a planned cutover requires of a primary that has stopped."""
    assert primary.control("Database cluster state") == "shut down"
    return {
        "require_lsn": primary.control("Latest checkpoint location"),
        "require_timeline": int(primary.control("Latest checkpoint's TimeLineID")),
        "require_system_identifier": primary.control("Database system identifier"),
    }


def client(primary, standby) -> Any:
    """A connection to whichever of the two takes writes, as libpq finds it."""
    ports = f"{primary.instance.port},{standby.instance.port}"
    return psycopg2.connect(
        host="127.0.0.1,127.0.0.1",
        port=ports,
        user=USER,
        password=PASSWORD,
        dbname="postgres",
        target_session_attrs="read-write",
        connect_timeout=2,
    )


class Ledger(threading.Thread):
    """A client that writes one row after the other; when each was acknowledged."""

    def __init__(self, pair) -> None:
        super().__init__()
        self.pair, self.ended, self.acknowledged = pair, threading.Event(), []

    def run(self) -> None:
        connection, number = None, 0
        while not self.ended.is_set():
            try:
                if connection is None:
                    connection = client(self.pair.primary, self.pair.standby)
                    connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO ledger (note) VALUES (%s)", (f"n{number}",))
                self.acknowledged.append((time.monotonic(), f"n{number}"))
                number += 1
                time.sleep(0.002)
            except psycopg2.Error:
                connection = None
                time.sleep(0.002)
        if connection is not None:
            connection.close()


@pytest.mark.parametrize("attempt", range(3))
def test_it_promotes_itself_when_its_primary_has_shut_down(pair, arm, collect, attempt):
    pair.primary.sql(f"GRANT ALL ON ledger TO {USER}; CHECKPOINT")
    pair.standby.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '5s'; SELECT pg_reload_conf()")
    ledger = Ledger(pair)
    ledger.start()
    try:
        eventually(lambda: len(ledger.acknowledged) > 50)
        arm()
        pair.primary.sql("CHECKPOINT")
        stopped = datetime.now(timezone.utc).timestamp()
        os.kill(pair.primary.postmaster, signal.SIGINT)
        told = decided(pair.standby)
        rows = len(ledger.acknowledged)
        eventually(lambda: len(ledger.acknowledged) > rows + 50)
    finally:
        ledger.ended.set()
        ledger.join()
    assert told["state"] == "promoted", told
    assert "CHECKPOINT_SHUTDOWN" in told["proof"]
    assert list(told["phases"]) == ["replayed", "proved", "promoted"]
    times = [at for at, _ in ledger.acknowledged]
    held_up = max(after - before for before, after in zip(times, times[1:]))
    print(
        f"held up {held_up:.3f} s; stop to end of stream {told['at']['stream_ended'] - stopped:.3f} s,"
        f" phases {told['phases']}"
    )
    assert told["phases"]["promoted"] < QUICK
    assert abs(told["at"]["writable"] - told["at"]["stream_ended"] - told["phases"]["promoted"]) < 0.01
    eventually(lambda: not pair.primary.running)
    wanted = required(pair.primary)
    assert collect(check=True, **wanted)["changed"] is True
    result = collect(**wanted)
    assert result["changed"] is True, result
    assert result["armed"]["state"] == "promoted"
    assert (result["old_timeline"], result["new_timeline"]) == (1, 2)
    assert parse_lsn(result["switch_lsn"]) > parse_lsn(wanted["require_lsn"])
    assert result["seconds"] < QUICK
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"
    again = collect(**wanted)
    assert (again["changed"], again["switch_lsn"]) == (False, result["switch_lsn"])
    # Every acknowledged row is there.
    assert set(pair.standby.notes()) >= {note for _, note in ledger.acknowledged}
