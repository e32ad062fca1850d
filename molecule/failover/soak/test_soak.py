# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""F12 in full, `make soak`: the control node dies after each single task, and at moments that nobody chose.

The run is made again, and ends well: a pair that streams, no acknowledged row lost, never two writable nodes.
HOTSPARE_SOAK_FROM=N begins with task N, HOTSPARE_SOAK_SEED repeats the moments of a run before.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess

from ledger import Watch, assert_pair, both_writable, ledger, lsn, missing

FIRST = int(os.environ.get("HOTSPARE_SOAK_FROM", "1"))
MOMENTS = int(os.environ.get("HOTSPARE_SOAK_MOMENTS", "20"))


def switched(lab, interrupt):
    """A planned cutover under load that `interrupt(args)` begins and lets die, and that is then run again."""
    primary, standby = lab.roles()
    target = ("-e", f"target={standby}")
    old, new = Watch(lab.addresses[primary]), Watch(lab.addresses[standby])
    with ledger(lab) as client, old, new:
        client.wait_for_rows(lab.addresses[primary], 20)
        died = interrupt(target)
        lab.play("failover", *target)
        client.wait_for_rows(lab.addresses[standby], 20)
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    assert_pair(lab, standby, primary)
    return died, client.longest_gap()


def test_planned_killed_after_each_task(lab):
    table = []
    for after in itertools.count(FIRST):
        died, gap = switched(lab, lambda target, n=after: lab.run_until_killed("failover", *target, after=n))
        if not died.killed:
            break
        table.append(f"{after:3} {gap:7.3f} s  {died.steps[-1]['name']}")
        print(table[-1])
    print("planned, killed after the task and run again; longest gap between two acknowledged rows:", *table, sep="\n")
    assert len(table) > 10 or FIRST > 1, "it was never killed, so nothing was proven"


def test_planned_killed_at_any_moment(lab):
    primary, standby = lab.roles()
    whole = lab.play("failover", "-e", f"target={standby}").seconds
    assert_pair(lab, standby, primary)
    seed = os.environ.get("HOTSPARE_SOAK_SEED") or str(random.SystemRandom().randrange(1_000_000))
    print(f"HOTSPARE_SOAK_SEED={seed}")
    chance = random.Random(seed)

    def dies(target, after):
        process = lab.start("failover", *target)
        try:
            process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    for _ in range(MOMENTS):
        moment = chance.uniform(0.2, whole)
        _, gap = switched(lab, lambda target, after=moment: dies(target, after))
        print(f"killed after {moment:6.3f} s of {whole:.1f}, longest gap {gap:.3f} s")


def test_forced_and_rebuild_killed_after_each_task(lab):
    """The primary's machine dies; both playbooks are killed after the same task and run again."""
    table = []
    for after in itertools.count(FIRST):
        primary, standby = lab.roles()
        forced = ("-e", f"target={standby}", "-e", "mode=forced", "-e", f"confirm_unfenced={primary}")
        rebuild = ("-e", f"node={primary}", "-e", f"confirm={primary}")
        with ledger(lab) as client, Watch(lab.addresses[primary]) as old:
            client.wait_for_rows(lab.addresses[primary], 20)
            lab.docker("kill", primary)
            dead = len(old.samples)
            one = lab.run_until_killed("failover", *forced, after=after)
            lab.play("failover", *forced)
            client.wait_for_rows(lab.addresses[standby], 20)
            lab.restart_container(primary)
            other = lab.run_until_killed("rebuild_standby", *rebuild, after=after)
            lab.play("rebuild_standby", *rebuild)
        assert [sample for sample in old.samples[dead:] if sample.writable] == []
        assert lost_past_the_fork(lab, standby, client) == []
        assert_pair(lab, standby, primary)
        if not one.killed and not other.killed:
            break
        names = [run.steps[-1]["name"] if run.killed else "-" for run in (one, other)]
        table.append(f"{after:3}  {' / '.join(names)}")
        print(table[-1])
    print("forced / rebuild, killed after the task and run again:", *table, sep="\n")
    assert len(table) > 10 or FIRST > 1, "it was never killed, so nothing was proven"


def lost_past_the_fork(lab, node, client):
    """Acknowledged rows that are missing although their commit ended before the timelines parted, or on `node`."""
    timeline = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
    history = lab.sql(node, f"SELECT pg_read_file('pg_wal/' || {timeline} || '.history')")
    fork = lsn(history.strip().splitlines()[-1].split()[1])
    return [row for row in missing(lab, node, client.rows) if row.lsn <= fork or row.host == lab.addresses[node]]
