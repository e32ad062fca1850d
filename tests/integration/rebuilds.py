# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of pg_rebuild share: options, the proof that a node streams, clusters that diverged, ways to die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from .conftest import PACKAGE, Pair, eventually

TIMEOUT = 20


def wanted(primary, node, **more):
    """The options that make `node` a standby of `primary`."""
    return {
        **node.params,
        "primary": primary.address,
        "slot": node.slot,
        "confirm": node.instance.name,
        "timeout": TIMEOUT,
        **more,
    }


def make_slot(primary, node):
    primary.sql(f"SELECT pg_create_physical_replication_slot('{node.slot}', true)")


def footprint(node):
    """All that a refusal must leave as it was: processes, signal files, settings, the data, the names beside it."""
    home = node.data.parent
    files = [*home.glob("data*/*"), *home.glob("etc/**/*"), *home.glob("data*")]
    logs = {str(node.data) + ".log"}
    alive = sorted(node.processes())
    if (node.data / "postmaster.pid").exists() and node.postmaster in alive:
        alive = [node.postmaster]  # its children come and go
    return (
        alive,
        sorted((str(f), f.stat().st_ino, f.read_bytes() if f.is_file() else b"") for f in files if str(f) not in logs),
    )


def beside(node, what):
    return sorted(path.name for path in node.data.parent.glob(f"data.{what}*"))


def assert_streams(primary, node, timeline=None):
    """What both servers really say, not what the module says."""
    pair = Pair(primary, node)
    eventually(pair.streams)  # a walsender says "catchup" for a moment more
    note = f"after {primary.instance.port}-{node.instance.port}-{len(primary.notes())}"
    primary.write(note)
    eventually(pair.in_step)
    assert node.notes() == primary.notes()
    assert node.sql("SELECT pg_is_in_recovery()") == "t"
    assert node.sql("SELECT slot_name FROM pg_stat_wal_receiver") == node.slot
    if timeline:
        assert node.sql("SELECT received_tli FROM pg_stat_wal_receiver") == str(timeline)
    assert not (node.data.parent / "data.seeding").exists()
    assert not (node.data.parent / "data.seeding.json").exists()
    assert not (node.data.parent / "data.rewinding").exists()
    assert (node.data / "standby.signal").exists()


def promote(node):
    node.sql("SELECT pg_promote()")
    node.sql("CHECKPOINT")


def failed(result):
    return {check["name"] for check in result["checks"] if check["hard"] and not check["ok"]}


def assert_refused(run_module, args, node, *names, others=()):
    """Refused in check mode and for real, by these checks, and nothing was touched on any node."""
    nodes = (node, *others)
    before = [footprint(each) for each in nodes]
    for check in (True, False):
        result = run_module("pg_rebuild", args, check=check)
        assert result.get("failed"), result
        assert not result["changed"]
        assert failed(result) >= set(names), result["checks"]
        assert [footprint(each) for each in nodes] == before
    return result


def diverge(pair):
    """db-two was promoted without the last three rows of db-one, which was stopped cleanly."""
    pair.primary.write("both")
    eventually(pair.in_step)
    pair.standby.stop()
    for note in ("lost 1", "lost 2", "lost 3"):
        pair.primary.write(note)
    pair.primary.stop()
    pair.standby.start()
    promote(pair.standby)
    pair.standby.write("new")
    make_slot(pair.standby, pair.primary)
    return pair.primary, pair.standby


def switch_over(pair):
    """As a planned one: the primary stopped, the standby has its last record, and is promoted."""
    primary, standby = pair.primary, pair.standby
    primary.write("both")
    primary.stop()
    last = primary.control("Latest checkpoint location")
    eventually(lambda: standby.sql(f"SELECT pg_last_wal_replay_lsn() > '{last}'") == "t")
    promote(standby)
    standby.write("new")
    make_slot(standby, primary)
    return primary, standby


def kill_module_when(args, condition):
    """Start the module as Ansible does and kill it, not its children, as soon as `condition` holds."""
    module = subprocess.Popen(
        [sys.executable, "-m", f"{PACKAGE}.pg_rebuild"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
        },
    )
    payload = {key: value for key, value in args.items() if value is not None}
    module.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": payload}).encode())
    module.stdin.close()
    try:
        eventually(lambda: module.poll() is not None or condition())
        assert module.poll() is None, "the module ended before it was killed"
    finally:
        module.send_signal(signal.SIGKILL)
        module.wait()


def fill(primary, megabytes):
    primary.sql(
        f"CREATE TABLE filler AS SELECT i, repeat(md5(i::text), 30) AS t FROM generate_series(1, {megabytes * 1000}) i"
    )


def throttled(node, monkeypatch_bin, program, wrapper):
    """A bin directory where `program` is `wrapper`, a shell script; the rest are links to the real ones."""
    monkeypatch_bin.mkdir()
    for real in Path(node.instance.bin_directory).iterdir():
        if real.name != program:
            (monkeypatch_bin / real.name).symlink_to(real)
    script = monkeypatch_bin / program
    script.write_text(f"#!/bin/sh\n{wrapper.format(real=Path(node.instance.bin_directory) / program)}\n")
    script.chmod(0o755)
    return str(monkeypatch_bin)
