# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second cluster, both nodes on one host, is built, rebuilt and cut over while the replication password is looked
for in the output (-vvv), in every process's arguments, in logs (all statements are logged) and in all files."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

# The part of the password that no quoting changes: SQL, JSON, libpq and the shell all leave it as it is.
CORE = "Kx7Wq93Zt"
BOOKS = ("-e", "cluster_group=books")


class Processes:
    """Arguments of all processes of the machine, those in the containers too, looked through every 20 ms."""

    def __init__(self, word: str) -> None:
        self.word, self.found, self.looks = word.encode(), set(), 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self) -> None:
        while not self.stopping.wait(0.02):
            self.looks += 1
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        arguments = (entry / "cmdline").read_bytes()
                    except OSError:  # it ended
                        continue
                    if self.word in arguments:
                        self.found.add(arguments.replace(b"\0", b" ").decode(errors="replace"))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopping.set()
        self.thread.join()


def files_with(lab, node, word):
    """All files of a container that hold the word."""
    # -s: a file may go while it is read, which grep's exit code tells like an error.
    places = ["/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr/local", "/var"]
    return set(lab.run(node, "grep", "-rlsaF", "--devices=skip", word, *places, check=False).split())


def journal(lab, node):
    return lab.run(node, "journalctl", "--no-pager", "--output=cat")


@pytest.fixture(scope="module")
def built(lab):
    """The outputs of the second cluster's life, and what the process list showed meanwhile."""
    before = lab.fingerprints(lab.one)
    told = lab.play("site", "--check", *BOOKS, ok=None)
    assert lab.differences(before) == {}
    with Processes(CORE) as processes:
        plays = [
            lab.play("site", *BOOKS, "-vvv"),
            lab.play("site", *BOOKS, "-vvv", "--diff"),
            lab.play("status", *BOOKS, "-vvv"),
            lab.play("rebuild_standby", *BOOKS, "-vvv", "--diff", "-e", "node=books-b", "-e", "confirm=books-b"),
            lab.play("failover", *BOOKS, "-vvv", "--diff"),
        ]
    return told, plays, processes


def test_the_second_cluster_stands_beside_the_first(lab, built):
    _, plays, _ = built
    assert plays[1].changed == 0
    assert lab.sql(lab.one, "SELECT pg_is_in_recovery()", port=5433) == "t"
    assert lab.sql(lab.one, "SELECT pg_is_in_recovery()", port=5434) == "f"
    sender = "SELECT application_name, state FROM pg_stat_replication"
    assert lab.sql(lab.one, sender, port=5434) == "books-a|streaming"
    assert lab.sql(lab.one, sender) == f"{lab.two}|streaming"
    identifier = "SELECT system_identifier FROM pg_control_system()"
    assert lab.sql(lab.one, identifier) != lab.sql(lab.one, identifier, port=5434)


def test_the_password_is_used(lab, built):
    # What follows proves nothing if the password is not needed: all connections of replication come by scram.
    rules = (
        "SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE 'replication' = ANY (database) AND type LIKE 'host%'"
    )
    assert lab.sql(lab.one, rules, port=5434) == "scram-sha-256"
    assert lab.sql(lab.one, "SHOW log_statement", port=5434) == "all"


def test_it_is_in_no_output(built):
    told, plays, _ = built
    assert [play.output for play in (told, *plays) if CORE in play.output] == []


def test_it_is_in_no_process_list(lab, built):
    _, _, processes = built
    assert processes.looks > 100
    assert processes.found == set()
    # The control: what is there is found, in a container too.
    with Processes(CORE) as control:
        lab.run(lab.one, "python3", "-c", "import time; time.sleep(1)", CORE)
    assert control.found


def test_it_is_in_no_log_and_in_no_file_but_passfiles(lab, built):
    for node in lab.addresses:
        assert CORE not in journal(lab, node)
        # Finding it in the passfiles is the control for files.
        found = files_with(lab, node, CORE)
        assert found
        assert {path for path in found if not path.endswith(".pgpass")} == set()


def test_the_controls_for_output_and_logs(lab, built):
    debug = ["-m", "ansible.builtin.debug", "-a", "var=node_replication_password"]
    shown = subprocess.run(
        ["ansible", "-i", lab.inventory, *debug, "books-a"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert CORE in shown.stdout
    # The servers of the plain layout log to the journal, and they log statements.
    lab.sql(lab.one, f"SELECT '{CORE}'", port=5434)
    assert f"SELECT '{CORE}'" in journal(lab, lab.one)
