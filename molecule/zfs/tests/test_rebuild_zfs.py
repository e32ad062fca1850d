# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A standby from a snapshot of the primary: the first one, and an old primary that comes back by what changed."""

from __future__ import annotations

import re

import pytest

TOP = "tank/pg"
PROGRAMS = "/usr/lib/postgresql/17/bin"
RESUME = "receive_resume_token"
ASKED = ("-e", "standby_method=zfs")


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
    lab.run(standby, f"{PROGRAMS}/pg_amcheck", "--heapallindexed", "--jobs=1", "--database=postgres", user="postgres")
    sums = "SELECT sum(abalance), (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_accounts"
    one, other = (lab.sql(node, sums) for node in (primary, standby))
    assert one == other and len(set(one.split("|"))) == 1


def test_the_first_standby_was_made_from_a_snapshot_of_a_primary_at_work(lab, guests):
    primary, standby = lab.roles()
    (name,) = common(guests, primary, standby)
    taken = re.fullmatch(rf"hotspare-{standby}-(\d{{8}}T\d{{6}})Z", name)[1]
    lab.run(primary, "systemctl", "stop", "load")
    moment = f"to_timestamp('{taken}', 'YYYYMMDD\"T\"HH24MISS')"
    worked = f"SELECT min(mtime) < {moment} AND max(mtime) > {moment} FROM pgbench_history"
    assert lab.sql(primary, worked) == "t"
    assert_sound(lab, primary, standby)
    for node in (primary, standby):
        assert_held(lab, node, name)
    assert_mounted_for_good(lab, guests, standby)
    assert lab.sql(standby, "SELECT slot_name FROM pg_stat_wal_receiver WHERE status = 'streaming'")
    assert lab.sql(standby, "SELECT count(*) FROM pg_replication_slots") == "0"
    assert lab.run(standby, "readlink", f"{lab.data}/pg_wal").strip() == "/var/lib/postgresql/17-wal/main"


def rebuild(lab, node, *args, **how):
    return lab.play("rebuild_standby", "-e", f"node={node}", "-e", f"confirm={node}", *args, **how)


def assert_rebuilt(lab, guests, told, primary, standby):
    """It goes on from a snapshot that both have, is sound, and what it had is there still; the name of that."""
    assert_mounted_for_good(lab, guests, standby)
    assert_sound(lab, primary, standby)
    assert_held(lab, standby, common(guests, primary, standby)[-1])
    (aside,) = set(re.findall(rf"kept: ({TOP}-aside-\d{{8}}T\d{{6}}Z)", told.output))
    assert guests.properties(standby, f"{aside}/data", "mounted", "canmount") == {"mounted": "no", "canmount": "noauto"}
    return aside


def test_a_network_that_breaks_while_a_standby_is_made_anew_under_load(lab, guests):
    primary, standby = lab.roles()
    lab.run(primary, f"{PROGRAMS}/pgbench", "-qis", "2", "postgres", user="postgres")
    lab.run(standby, "systemctl", "stop", lab.service)
    waiting = f"{lab.data}/pg_wal/archive_status/000000010000000000000001.ready"
    lab.run(primary, "touch", waiting, user="postgres")
    before = common(guests, primary, standby)[-1]
    script = f"nohup {PROGRAMS}/pgbench -nT 3000 -R 5 postgres >/dev/null 2>&1 & echo $!"
    pid = lab.run(primary, "sh", "-c", script, user="postgres").strip()

    def begun():
        told = lab.run(standby, "zfs", "get", "-H", "-o", "value", RESUME, f"{TOP}/data", check=False)
        return told.strip() not in ("-", "")

    try:
        with guests.slow(primary):
            process = lab.start("rebuild_standby", *ASKED, "-e", f"node={standby}", "-e", f"confirm={standby}")
            lab.wait_for(lambda: process.poll() is not None or begun(), "a part has arrived", 900)
            assert process.poll() is None, process.communicate()[0]
            with guests.cut_off(standby):
                output, _ = process.communicate(timeout=600)
        assert process.returncode != 0, output
        assert not lab.runs(standby)
        told = rebuild(lab, standby, *ASKED)
    finally:
        lab.run(primary, "kill", pid)
    assert "a snapshot that an interrupted run has sent in part is sent to its end" in told.output
    assert before != common(guests, primary, standby)[-1]
    assert lab.run(primary, "ls", waiting).strip() == waiting
    assert "no file" in lab.run(standby, "sh", "-c", f"ls {waiting} || echo no file")
    lab.run(primary, "rm", waiting)
    aside = assert_rebuilt(lab, guests, told, primary, standby)
    rebuild(lab, standby, "-e", "state=cleaned")
    assert aside not in lab.run(standby, "zfs", "list", "-H", "-o", "name")


def test_an_old_primary_that_diverged_comes_back_by_what_changed(lab, guests):
    """After a planned cutover, so that each of the two has sent and received."""
    new, old = lab.roles()
    lab.play("failover", "-e", f"target={old}")
    lab.sql(old, "CREATE TABLE parting (words text)")
    lab.wait_for_replay(new, lab.sql(old, "SELECT pg_current_wal_lsn()"))
    with guests.cut_off(new):
        lab.sql(old, "INSERT INTO parting VALUES ('only the old one has this')")
        guests.cut_power(old)
    forced = ("-e", f"target={new}", "-e", "mode=forced", "-e", f"confirm_unfenced={old}")
    lab.play("failover", *forced, "-e", '{"node_hurry": false}')  # no two seconds to reach an emulated machine
    lab.sql(new, "INSERT INTO parting VALUES ('and this only the new one')")
    guests.start()
    before = common(guests, old, new)[-1]
    told = rebuild(lab, old, *ASKED)
    assert f"what changed since {TOP}@{before}" in re.sub(r"\s+", " ", told.output)
    assert lab.sql(old, "SELECT words FROM parting") == "and this only the new one"
    assert_rebuilt(lab, guests, told, new, old)


@pytest.mark.soak
def test_a_long_copy_says_how_far_it_is(lab, guests):
    """As users run it: in the background of the node, which the other tests' strategy has no use of."""
    primary, standby = lab.roles()
    lab.run(standby, "systemctl", "stop", lab.service)
    lab.sql(primary, "CREATE TABLE bulk AS SELECT md5(n::text) FROM generate_series(1, 200000) n")
    with guests.slow(primary):
        told = rebuild(lab, standby, *ASKED, "-e", "standby_poll=2", env={"ANSIBLE_STRATEGY": "linear"})
    line = rf"{standby}: {TOP}/data, part \d of \d, incremental: [\d.]+ \w+ of [\d.]+ \w+ \(\d+ %\), "
    assert re.search(line, told.output)
    assert f"{standby}: it goes on there, should this run be interrupted" in told.output
    lab.sql(primary, "DROP TABLE bulk")
    assert_mounted_for_good(lab, guests, standby)
    assert_sound(lab, primary, standby)
