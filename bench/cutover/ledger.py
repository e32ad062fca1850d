#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench's client: ledger.py RUN HOST,HOST [TPS]. Runs in a machine of its own, with Debian's python3-psycopg2.

Thread M is an application: one libpq connection string with both hosts, a row each 5 ms, reconnecting at once after any
error. Threads D0 and D1 keep a session to one host each, standby or not, and insert as soon as that host takes it: what
the servers offered, and whether both took writes at the same time. TPS: pgbench beside it, at this rate.

Says "ready" after the first acknowledged row, stops at the end of stdin, and prints as JSON {"acks": [[thread, host,
number, seconds]], "errors": [[thread, seconds, text]]}; seconds are CLOCK_MONOTONIC, one clock for all containers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import psycopg2

PAUSE = 0.005
RUN, HOSTS = sys.argv[1], sys.argv[2]
RATE = int(sys.argv[3]) if len(sys.argv) > 3 else 0
LINK = (
    "port=5432 dbname=bench user=postgres connect_timeout=1 tcp_user_timeout=1500 keepalives_idle=1 "
    "keepalives_interval=1 keepalives_count=2 gssencmode=disable sslmode=disable application_name=ledger"
)
MULTI = f"host={HOSTS} target_session_attrs=read-write {LINK}"

stopping = threading.Event()
ready = threading.Event()
acks: list[tuple[str, str, int, float]] = []
errors: list[tuple[str, float, str]] = []


def write_rows(thread: str, dsn: str, wait_for_primary: bool) -> None:
    connection: Any = None
    number = 0
    last_error = ""
    while not stopping.wait(PAUSE):
        try:
            if connection is None:
                connection = psycopg2.connect(dsn)
                connection.autocommit = True
                cursor = connection.cursor()
                cursor.execute("select host(inet_server_addr())")
                host = cursor.fetchone()[0]
            if wait_for_primary:
                cursor.execute("select pg_is_in_recovery() or current_setting('transaction_read_only')::bool")
                if cursor.fetchone()[0]:
                    continue
            number += 1
            cursor.execute("insert into ledger (run, thread, number) values (%s, %s, %s)", (RUN, thread, number))
            acks.append((thread, host, number, time.monotonic()))
            ready.set()
        except psycopg2.Error as error:
            text = " | ".join(str(error).split("\n")[:4])
            if text != last_error:
                errors.append((thread, time.monotonic(), text))
                last_error = text
            if connection is not None:
                connection.close()
                connection = None


def load() -> None:
    """pgbench ends when it loses its server: start it again until we stop."""
    while not stopping.is_set():
        program = subprocess.Popen(
            ["pgbench", "-n", "-c", "4", "-R", str(RATE), "-T", "3600", MULTI.replace("=ledger", "=pgbench")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while program.poll() is None and not stopping.wait(0.02):
            pass
        program.terminate()
        program.wait()


threads = [threading.Thread(target=write_rows, args=("M", MULTI, False))]
for index, name in enumerate(HOSTS.split(",")):
    threads.append(threading.Thread(target=write_rows, args=(f"D{index}", f"host={name} {LINK}", True)))
if RATE:
    threads.append(threading.Thread(target=load))
for one in threads:
    one.start()
ready.wait(30)
print("ready" if ready.is_set() else "no row was acknowledged in 30 s", flush=True)
sys.stdin.read()
stopping.set()
for one in threads:
    one.join()
json.dump({"acks": acks, "errors": errors}, sys.stdout)
