# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that keeps books of what was acknowledged, and a watch that sees which nodes take writes."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from types import TracebackType

import psycopg2

# What an ordinary client would use: libpq goes through the hosts until one takes writes.
COMMON = {
    "dbname": "ledger",
    "user": "ledger",
    "password": "ledger",
    "connect_timeout": 2,
    "tcp_user_timeout": 1500,
    "application_name": "ledger",
    "gssencmode": "disable",
}

ANYWHERE = 1 << 64


def lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


@dataclass(frozen=True)
class Row:
    """An acknowledged insert; its commit record ends at `lsn` or before it. `at` is monotonic, in seconds."""

    number: int
    host: str
    at: float
    lsn: int


class Worker:
    """A thread that runs between enter and exit; what it raises is raised at the exit."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def work(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error
            raise

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self.thread.join(30)
        if error is None and self.error is not None:
            raise self.error


class Ledger(Worker):
    """Inserts numbered rows one after another through a multi-host connection string, and notes the acknowledged."""

    def __init__(self, addresses: list[str], first: int) -> None:
        super().__init__()
        self.addresses, self.number = addresses, first
        self.rows: list[Row] = []

    def work(self) -> None:
        connection = None
        while not self.stopping.is_set():
            try:
                if connection is None:
                    connection = psycopg2.connect(
                        host=",".join(self.addresses), target_session_attrs="read-write", **COMMON
                    )
                    connection.autocommit = True
                with connection.cursor() as cursor:
                    self.number += 1
                    cursor.execute("INSERT INTO ledger (number) VALUES (%s)", (self.number,))
                    at = time.monotonic()
                    # A second question only tells where the row's commit ended at most. Without an answer the row is
                    # acknowledged all the same, and its commit may have ended anywhere.
                    host = connection.info.host
                    self.rows.append(Row(self.number, host, at, ANYWHERE))
                    cursor.execute("SELECT pg_current_wal_insert_lsn()::text")
                    self.rows[-1] = Row(self.number, host, at, lsn(cursor.fetchone()[0]))
            except (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction):
                if connection is not None:
                    connection.close()
                connection = None
            self.stopping.wait(0.02)
        if connection is not None:
            connection.close()

    def wait_for_rows(self, host: str | None = None, count: int = 50, timeout: float = 240) -> None:
        """Until `count` more rows were acknowledged (by `host`)."""
        start, deadline = len(self.rows), time.monotonic() + timeout
        while sum(host in (None, row.host) for row in self.rows[start:]) < count:
            assert time.monotonic() < deadline, f"no {count} rows from {host or 'any host'} within {timeout} s"
            assert self.error is None, self.error
            time.sleep(0.05)

    def longest_gap(self) -> float:
        """Seconds between two acknowledged rows: what a client felt."""
        return max(b.at - a.at for a, b in zip(self.rows, self.rows[1:]))


@dataclass(frozen=True)
class Sample:
    """One answer of a node, asked at `start`, answered at `end` (monotonic, in seconds)."""

    start: float
    end: float
    writable: bool


class Watch(Worker):
    """Asks one node every 50 ms whether it takes writes."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.samples: list[Sample] = []

    def work(self) -> None:
        connection = None
        while not self.stopping.is_set():
            try:
                if connection is None:
                    connection = psycopg2.connect(host=self.address, **COMMON)
                    connection.autocommit = True
                with connection.cursor() as cursor:
                    start = time.monotonic()
                    cursor.execute("SELECT NOT pg_is_in_recovery()")
                    writable = bool(cursor.fetchone()[0])
                    self.samples.append(Sample(start, time.monotonic(), writable))
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                if connection is not None:
                    connection.close()
                connection = None
            self.stopping.wait(0.05)
        if connection is not None:
            connection.close()

    def writable(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.writable]


def both_writable(old: Watch, new: Watch) -> list[Sample]:
    """Answers of the old primary that show it writable after the new one was: there must be none."""
    first = min((sample.end for sample in new.writable()), default=float("inf"))
    return [sample for sample in old.writable() if sample.start > first]


def make_books(lab):
    """The ledger's database, owned by the account that writes in it; what was in it goes."""
    primary, *_ = lab.roles()
    lab.sql(primary, "DROP DATABASE IF EXISTS ledger; DROP ROLE IF EXISTS ledger")
    lab.sql(primary, "CREATE ROLE ledger LOGIN PASSWORD 'ledger'")
    lab.sql(primary, "CREATE DATABASE ledger OWNER ledger")
    lab.sql(primary, "CREATE TABLE ledger (number int PRIMARY KEY); ALTER TABLE ledger OWNER TO ledger", "ledger")


FIRST = itertools.count(0, 1_000_000)


def ledger(lab):
    """A client of the whole cluster, with numbers of its own."""
    return Ledger(list(lab.addresses.values()), next(FIRST))


def missing(lab, node, rows):
    """The acknowledged rows that a node has not."""
    held = {int(number) for number in lab.sql(node, "SELECT number FROM ledger", "ledger").split()}
    return [row for row in rows if row.number not in held]


def assert_pair(lab, primary, standby):
    """`standby` streams from `primary`: a row written now is read there."""
    number = time.monotonic_ns() % 1_000_000_000 + 1_000_000_000
    lab.sql(primary, f"INSERT INTO ledger VALUES ({number})", "ledger")
    at = lab.sql(primary, "SELECT pg_current_wal_lsn()")
    assert lab.sql(standby, "SELECT pg_is_in_recovery(), status FROM pg_stat_wal_receiver") == "t|streaming"
    lab.wait_for_replay(standby, at)
    assert lab.sql(standby, f"SELECT count(*) FROM ledger WHERE number = {number}", "ledger") == "1"
    # Nothing is under way any more, and nothing would make the primary a standby at its next start.
    assert {node: lab.left_behind(node) for node in (primary, standby)} == {primary: [], standby: []}
    lab.run(primary, "test", "!", "-e", f"{lab.data}/standby.signal")
    lab.run(standby, "test", "-e", f"{lab.data}/standby.signal")
