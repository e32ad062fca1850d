# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A standby from a snapshot of the primary: the first one, and an old primary that comes back by what changed."""

from __future__ import annotations

import re

TOP = "tank/pg"
AMCHECK = "/usr/lib/postgresql/17/bin/pg_amcheck"


def common(guests, primary, standby):
    """Snapshots that both sides have, the newest last: name behind the @, by dataset below TOP."""
    here, there = (guests.snapshots(node, TOP) for node in (primary, standby))
    return [
        name.partition("@")[2] for name, guid in here.items() if there.get(name) == guid and name.startswith(f"{TOP}@")
    ]


def assert_held(lab, node, snapshot):
    for below in ("", "/data", "/wal"):
        assert f"{TOP}{below}@{snapshot}" in lab.run(node, "zfs", "holds", "-H", f"{TOP}{below}@{snapshot}")


def assert_mounted_for_good(lab, guests, node):
    for below, path in (("/data", "/var/lib/postgresql/17"), ("/wal", "/var/lib/postgresql/17-wal")):
        found = guests.properties(node, f"{TOP}{below}", "mounted", "mountpoint", "canmount", "readonly")
        assert found == {"mounted": "yes", "mountpoint": path, "canmount": "on", "readonly": "off"}
    assert lab.run(node, "zfs", "get", "-Hp", "-s", "local", "-o", "value", "hotspare:placed", TOP) == ""
    assert lab.run(node, "ls", "/var/lib/postgresql").split() == ["17", "17-wal"]


def assert_sound(lab, primary, standby):
    lab.sql(primary, "CREATE EXTENSION IF NOT EXISTS amcheck")
    lab.wait_for_replay(standby, lab.sql(primary, "SELECT pg_current_wal_lsn()"))
    lab.run(standby, AMCHECK, "--heapallindexed", "--jobs=1", "--database=postgres", user="postgres")
    sums = "SELECT sum(abalance), (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_accounts"
    one, other = (lab.sql(node, sums) for node in (primary, standby))
    assert one == other and len(set(one.split("|"))) == 1


def test_the_first_standby_was_made_from_a_snapshot(lab, guests):
    primary, standby = lab.roles()
    (name,) = common(guests, primary, standby)
    assert re.fullmatch(rf"hotspare-{standby}-\d{{8}}T\d{{6}}Z", name)
    for node in (primary, standby):
        assert_held(lab, node, name)
    assert_mounted_for_good(lab, guests, standby)
    assert lab.sql(standby, "SELECT slot_name FROM pg_stat_wal_receiver WHERE status = 'streaming'")
    assert lab.sql(standby, "SELECT count(*) FROM pg_replication_slots") == "0"
    assert lab.run(standby, "readlink", f"{lab.data}/pg_wal").strip() == "/var/lib/postgresql/17-wal/main"


def test_a_standby_is_made_anew_while_pgbench_runs(lab, guests):
    primary, standby = lab.roles()
    lab.run(primary, "/usr/lib/postgresql/17/bin/pgbench", "-qis", "2", "postgres", user="postgres")
    script = "nohup /usr/lib/postgresql/17/bin/pgbench -nT 600 -R 20 postgres >/dev/null 2>&1 & echo $!"
    pid = lab.run(primary, "sh", "-c", script, user="postgres").strip()
    try:
        told = lab.play(
            "rebuild_standby", "-e", f"node={standby}", "-e", f"confirm={standby}", "-e", "standby_method=zfs"
        )
    finally:
        lab.run(primary, "kill", pid)
    assert "what changed since" in told.output
    assert_mounted_for_good(lab, guests, standby)
    assert_sound(lab, primary, standby)
    kept = re.findall(r"kept: (tank/pg-aside-\d{8}T\d{6}Z)", told.output)
    assert len(set(kept)) == 1
    lab.play("rebuild_standby", "-e", f"node={standby}", "-e", f"confirm={standby}", "-e", "state=cleaned")
    assert kept[0] not in lab.run(standby, "zfs", "list", "-H", "-o", "name")
    assert lab.play("site").changed == 0


def test_an_old_primary_that_diverged_comes_back_by_what_changed(lab, guests):
    old, new = lab.roles()
    lab.sql(old, "CREATE TABLE IF NOT EXISTS parting (words text)")
    lab.wait_for_replay(new, lab.sql(old, "SELECT pg_current_wal_lsn()"))
    with guests.cut_off(new):
        lab.sql(old, "INSERT INTO parting VALUES ('only the old one has this')")
        guests.cut_power(old)
    lab.play("failover", "-e", "mode=forced", "-e", f"confirm_unfenced={old}")
    lab.sql(new, "INSERT INTO parting VALUES ('and this only the new one')")
    guests.start()
    before = common(guests, old, new)
    told = lab.play("rebuild_standby", "-e", f"node={old}", "-e", f"confirm={old}", "-e", "standby_method=zfs")
    assert f"what changed since {TOP}@{before[-1]}" in told.output.replace("\n", "")
    assert lab.sql(old, "SELECT words FROM parting") == "and this only the new one"
    assert_mounted_for_good(lab, guests, old)
    assert_sound(lab, new, old)
    # What diverged is there still, under another name.
    aside = next(iter(re.findall(r"kept: (tank/pg-aside-\d{8}T\d{6}Z)", told.output)))
    assert guests.properties(old, f"{aside}/data", "mounted", "canmount") == {"mounted": "no", "canmount": "noauto"}
