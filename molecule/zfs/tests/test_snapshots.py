# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots for a backup pool: by the timer and by hand, sent, pruned, and restored on a clone that is removed."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager

import pytest

TOP, COPIES = "tank/pg", "vault/pg"
UNIT = "hotspare-snapshot-main"
PROGRAM = "/usr/bin/python3 -I /usr/local/lib/hotspare/hotspare.pyz"
HOME = "/var/lib/hotspare-zfs/restore-test"


def names(lab, node, dataset):
    """The snapshots of a dataset, oldest first."""
    words = ("-Hp", "-d", "1", "-t", "snapshot", "-s", "createtxg", "-o", "name")
    listed = lab.run(node, "zfs", "list", *words, dataset, check=False)
    return [name.partition("@")[2] for name in listed.split()]


def backups(lab, node, dataset):
    return [name for name in names(lab, node, dataset) if name.startswith("hotspare:backup-")]


def pools(lab, node):
    """All that ZFS has there, with what a test could change."""
    words = "guid,origin,mounted,canmount,readonly,userrefs,hotspare:made,hotspare:restore,hotspare:restore-test"
    return lab.run(node, "zfs", "get", "-Hpr", "-t", "all", "-o", "name,property,value", words, "tank", "vault")


def left(lab, node):
    """Of restore tests: clones, mounts, servers, directories."""
    found = lab.run(node, "zfs", "list", "-H", "-o", "name").split()
    clones = [name for name in found if ":restore-test" in name]
    mounts = [line for line in lab.run(node, "cat", "/proc/mounts").splitlines() if HOME in line]
    servers = lab.run(node, "pgrep", "-f", f"config_file={HOME}", check=False).split()
    return clones + mounts + servers + lab.run(node, "ls", HOME, check=False).split()


def told(play):
    """In one line, also what status.yml has broken into several."""
    return " ".join(re.sub(r'",\s+"\s+', " ", play.output).split())


def of_timelines(lab, node):
    return {name[:8] for name in lab.run(node, "ls", f"{lab.data}/pg_wal/").split() if name.startswith("0")}


def snapshot(lab, *args, **how):
    """As users run it: in the background of the node, which the other tests' strategy has no use of."""
    return lab.play("snapshot", *args, env={"ANSIBLE_STRATEGY": "linear"}, **how)


def of_amcheck(lab, node):
    """By database, how often it has the extension: pg_amcheck --install-missing makes it in each of the clone."""
    query = "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'"
    return {database: lab.sql(node, query, database=database) for database in ("postgres", "template1")}


def status(lab, node):
    return lab.status()["nodes"][node]["zfs"]


@contextmanager
def slow_pipe(lab, node, rate="100k"):
    """Streams of this node take their time: a zfs that sends by way of a program that holds back."""
    lab.run(node, "tee", "/usr/local/sbin/zfs", stdin=SLOW.format(rate=rate))
    lab.run(node, "chmod", "755", "/usr/local/sbin/zfs")
    try:
        yield
    finally:
        lab.run(node, "rm", "/usr/local/sbin/zfs")


SLOW = """#!/bin/bash
# Without -n it is a stream, and not a question.
if [ "$1" = send ] && [[ "$*" != *-nvP* ]]; then set -o pipefail; /usr/sbin/zfs "$@" | pv -qL {rate}; exit; fi
exec /usr/sbin/zfs "$@"
"""


@pytest.mark.soak
def test_the_timer_waits_on_every_node(lab, guests):
    for node in lab.addresses:
        assert lab.run(node, "systemctl", "is-active", f"{UNIT}.timer").strip() == "active"
        assert lab.run(node, "systemctl", "is-enabled", f"{UNIT}.timer").strip() == "enabled"
        config = json.loads(lab.run(node, "cat", "/etc/hotspare/zfs/main.json"))
        assert config["backup"]["dataset"] == f"{COPIES}/{node}"
        assert guests.properties(node, COPIES, "canmount", "mountpoint") == {"canmount": "off", "mountpoint": "none"}


@pytest.mark.soak
def test_check_mode_tells_whose_turn_it_is_and_changes_nothing(lab, guests):
    primary, standby = lab.roles()
    before = {node: pools(lab, node) for node in lab.addresses}
    play = snapshot(lab, "--check")
    assert f"would be sent to {COPIES}/{standby}: full, about" in told(play)
    assert f"{primary} takes no snapshot: it is the primary, and {standby} streams from it" in told(play)
    assert {node: pools(lab, node) for node in lab.addresses} == before
    play = lab.play("snapshot_restore_test", ok=False)
    assert "There is no whole snapshot" in told(play)


def test_the_standby_sends_snapshots_and_keeps_so_many(lab, guests):
    primary, standby = lab.roles()
    copy = f"{COPIES}/{standby}"
    lab.sql(primary, "CREATE TABLE IF NOT EXISTS kept (n integer)")
    rebuilds = [name for name in names(lab, standby, TOP) if not name.startswith("hotspare:backup-")]
    for count in (1, 2, 3):
        lab.sql(primary, f"INSERT INTO kept VALUES ({count})")
        lab.wait_for_replay(standby, lab.sql(primary, "SELECT pg_current_wal_lsn()"))
        play = snapshot(lab)
        assert play.hosts[standby]["changed"] == 1
        assert play.hosts[primary]["changed"] == 0
        assert f"sent to {copy}: hotspare:backup-" in told(play)
        assert ("full" if count == 1 else "incremental") in told(play)
        assert "CHECKPOINT took" in told(play)
    assert "removed of the copy, by zfs_backup_keep" in told(play)
    for below in ("", "/data", "/wal"):
        assert len(backups(lab, standby, copy + below)) == 2
        assert len(backups(lab, standby, TOP + below)) == 1
        assert backups(lab, standby, TOP + below)[-1] == backups(lab, standby, copy + below)[-1]
    assert backups(lab, primary, TOP) == []
    assert [name for name in names(lab, standby, TOP) if not name.startswith("hotspare:backup-")] == rebuilds
    assert guests.properties(standby, f"{copy}/data", "mounted", "readonly") == {"mounted": "no", "readonly": "on"}


@pytest.mark.soak
def test_the_timers_service_does_the_same(lab, guests):
    primary, standby = lab.roles()
    before = backups(lab, standby, f"{COPIES}/{standby}")
    for node in (primary, standby):
        lab.run(node, "systemctl", "start", f"{UNIT}.service")
    assert backups(lab, standby, f"{COPIES}/{standby}") != before
    lab.run(primary, "journalctl", "--sync")
    journal = lab.run(primary, "journalctl", "-qu", UNIT, "-o", "cat")
    assert f"{primary} takes no snapshot: it is the primary, and {standby} streams from it" in journal
    found = status(lab, standby)["backup"]
    assert (found["state"], found["late"]) == ("done", False)
    assert found["newest"]["snapshot"] == backups(lab, standby, f"{COPIES}/{standby}")[-1]
    assert found["age_seconds"] < 300
    assert status(lab, primary)["backup"]["state"] == "skipped"
    line = rf"{standby} has snapshots in {COPIES}/{standby}: the newest is [\d.]+ s old"
    assert re.search(line, told(lab.play("status")))


@pytest.mark.parametrize("check", ["amcheck", pytest.param("count", marks=pytest.mark.soak)])
def test_the_newest_can_be_restored_and_nothing_is_left_of_it(lab, guests, check):
    primary, standby = lab.roles()
    before, started = pools(lab, standby), lab.sql(standby, "SELECT pg_postmaster_start_time()")
    timelines = of_timelines(lab, standby)
    extensions = of_amcheck(lab, primary)
    play = lab.play("snapshot_restore_test", "-e", f"check={check}")
    newest = backups(lab, standby, f"{COPIES}/{standby}")[-1]
    assert f"{COPIES}/{standby}@{newest}, of {standby} when it was standby" in told(play)
    identifier = lab.sql(primary, "SELECT system_identifier FROM pg_control_system()")
    assert f"its system identifier is {identifier}, as it should be" in told(play)
    said = "found nothing wrong in" if check == "amcheck" else "could be read"
    assert said in told(play)
    assert "its newest data is" in told(play)
    assert "the clone is removed" in told(play)
    assert left(lab, standby) == []
    assert pools(lab, standby) == before
    assert lab.sql(standby, "SELECT pg_postmaster_start_time()") == started
    assert lab.sql(standby, "SELECT status FROM pg_stat_wal_receiver") == "streaming"
    assert of_timelines(lab, standby) == timelines, "the clone began one of its own, in its own WAL"
    assert of_amcheck(lab, primary) == extensions, "pg_amcheck made its extension in the live server, too"


@pytest.mark.soak
def test_a_copy_that_is_broken_is_told_and_removed_and_the_log_stays(lab, guests):
    """Its WAL was overwritten in a copy of the copy: what pg_control asks for is not there."""
    _primary, standby = lab.roles()
    with broken_wal(lab, standby):
        play = lab.play("snapshot_restore_test", "-e", f"node={standby}", ok=False)
    message = " ".join(play.messages)
    assert "did not pass its restore test: PostgreSQL did not recover: " in message
    log = re.search(r"the log of its server is (\S+)", message)[1]
    assert re.search("FATAL|PANIC", lab.run(standby, "cat", log))
    assert left(lab, standby) == [f"{COPIES}/{standby}".replace("/", "_")], "but for the log"
    lab.play("snapshot_restore_test", "-e", f"node={standby}")
    assert left(lab, standby) == []


@contextmanager
def broken_wal(lab, node):
    """The programs of the restore test get a pg_ctl that spoils the clone before it starts the server there."""
    path = f"/usr/lib/postgresql/{lab.version}/bin/pg_ctl"
    lab.run(node, "mv", path, f"{path}.real")
    lab.run(node, "tee", path, stdin=BREAK)
    lab.run(node, "chmod", "755", path)
    try:
        yield
    finally:
        lab.run(node, "mv", f"{path}.real", path)


BREAK = f"""#!/bin/bash
if [ "$1" = start ] && [[ "$*" == *{HOME}* ]]; then
    for file in {HOME}/*/mnt/var/lib/postgresql/*-wal/main/0*[0-9A-F]; do head -c 16M /dev/zero >"$file"; done
fi
exec "$0.real" "$@"
"""


@pytest.mark.soak
def test_a_test_that_was_killed_is_cleaned_up_by_the_next(lab, guests):
    _primary, standby = lab.roles()
    copy = f"{COPIES}/{standby}"
    script = f"nohup {PROGRAM} zfs-restore-test {copy} amcheck postgres >/dev/null 2>&1 & echo $!"
    pid = lab.run(standby, "sh", "-c", script).strip()
    lab.wait_for(lambda: lab.run(standby, "pgrep", "-f", "pg_amcheck --all", check=False) != "", "it is under way")
    again = lab.run(standby, "sh", "-c", f"{PROGRAM} zfs-restore-test {copy} count postgres 2>&1", check=False)
    assert f"is under way already, by process {pid}" in again
    lab.run(standby, "kill", "-KILL", pid)
    assert left(lab, standby)
    lab.play("snapshot_restore_test", "-e", f"node={standby}")
    assert left(lab, standby) == []


@pytest.mark.soak
def test_a_dataset_that_is_only_called_so_is_left_alone(lab, guests):
    _primary, standby = lab.roles()
    name = f"{COPIES}/{standby}:restore-test"
    lab.run(standby, "zfs", "create", name)
    try:
        play = lab.play("snapshot_restore_test", "-e", f"node={standby}", ok=False)
        assert f"{name} is not a clone that a restore test has made" in " ".join(play.messages)
        assert lab.run(standby, "zfs", "list", "-H", "-o", "name", name).strip() == name
    finally:
        lab.run(standby, "zfs", "destroy", name)


@pytest.mark.soak
def test_a_long_send_shows_how_far_it_is(lab, guests):
    primary, standby = lab.roles()
    lab.sql(primary, "CREATE TABLE bulk AS SELECT md5(n::text) FROM generate_series(1, 200000) n")
    lab.wait_for_replay(standby, lab.sql(primary, "SELECT pg_current_wal_lsn()"))
    with slow_pipe(lab, standby):
        lab.run(standby, "systemctl", "start", "--no-block", f"{UNIT}.service")
        lab.wait_for(lambda: bool(sends(lab, standby)), "it sends")
        time.sleep(3)
        output = told(lab.play("status"))
        lab.run(standby, "systemctl", "stop", f"{UNIT}.service")
    assert re.search(
        rf"snapshot of {standby} to be kept: {COPIES}/{standby}/\w+, part \d of \d, incremental: "
        r"[\d.]+ \w+ of [\d.]+ \w+ \(\d+ %\), [\d.]+ kB/s, time left",
        output,
    )
    # It was interrupted; the next one goes on, and says itself how far it is.
    with slow_pipe(lab, standby, "300k"):
        play = snapshot(lab)
    assert "(resumed, " in told(play)
    assert re.search(rf"{standby}: {COPIES}/{standby}/\w+, part \d of \d, resumed: [\d.]+ \w+ of ", told(play))
    lab.sql(primary, "DROP TABLE bulk")


def sends(lab, node):
    text = lab.run(node, "cat", f"/run/{UNIT}.json", check=False)
    told = json.loads(text) if text else {}
    return told.get("state") == "sending" and (told.get("estimated_bytes") or 0) > 5 << 20


@pytest.mark.soak
def test_the_primary_takes_over_while_no_standby_streams(lab, guests):
    primary, standby = lab.roles()
    lab.run(standby, "systemctl", "stop", lab.service)
    try:
        play = snapshot(lab)
        assert f"{primary} takes the snapshot: it is the primary, and no standby streams from it" in told(play)
        assert backups(lab, primary, f"{COPIES}/{primary}")
    finally:
        lab.run(standby, "systemctl", "start", lab.service)
    lab.wait_for(lambda: lab.sql(primary, "SELECT state FROM pg_stat_replication") == "streaming", "it streams again")
    # The newest copy of all is now one of a primary that ran.
    play = lab.play("snapshot_restore_test", "-e", "check=amcheck")
    assert f"of {primary} when it was primary" in told(play)
    assert left(lab, primary) == []


@pytest.mark.soak
def test_what_cannot_be_meant_is_refused(lab, guests):
    before = {node: pools(lab, node) for node in lab.addresses}
    for given, said in (
        ("zfs_backup_dataset=tank/pg/copies", "of which one contains the other"),
        ("zfs_backup_dataset=vault", "which is no dataset below a pool"),
        ("zfs_backup_on_calendar='every day;'", "which is no time"),
    ):
        assert said in " ".join(lab.play("site", "-e", given, ok=False).messages)
    assert "systemd says" in " ".join(lab.play("site", "-e", "zfs_backup_on_calendar=sometimes", ok=False).messages)
    assert "set zfs_backup_dataset" in " ".join(snapshot(lab, "-e", "zfs_backup_dataset=", ok=False).messages)
    assert "which keeps no snapshots" in " ".join(lab.play("snapshot_restore_test", "-e", "node=x", ok=False).messages)
    assert "say count or amcheck" in " ".join(lab.play("snapshot_restore_test", "-e", "check=x", ok=False).messages)
    assert {node: pools(lab, node) for node in lab.addresses} == before


@pytest.mark.soak
def test_without_a_place_there_is_no_timer(lab, guests):
    assert lab.play("site", "-e", "zfs_backup_dataset=").changed > 0
    assert lab.play("site", "-e", "zfs_backup_dataset=").changed == 0
    for node in lab.addresses:
        assert lab.run(node, "systemctl", "list-unit-files", "--no-legend", f"{UNIT}*", check=False) == ""
        assert lab.run(node, "systemctl", "is-active", f"{UNIT}.timer", check=False).strip() == "inactive"
        assert status(lab, node)["backup"] is None
    assert lab.play("site").changed > 0
    assert lab.play("site").changed == 0


@pytest.mark.soak
def test_what_is_encrypted_stays_so_and_needs_its_key_to_be_restored(lab, guests):
    _primary, standby = lab.roles()
    name, copy, key = f"{TOP}/secret", f"{COPIES}/{standby}/secret", "/root/backup.key"
    words = ("-o", "encryption=aes-256-gcm", "-o", "keyformat=raw", "-o", f"keylocation=file://{key}")
    lab.run(standby, "dd", "if=/dev/urandom", f"of={key}", "bs=32", "count=1")
    lab.run(standby, "zfs", "create", *words, "-o", "mountpoint=/mnt/secret", name)
    try:
        lab.run(standby, "tee", "/mnt/secret/file", stdin="nobody reads this")
        for kind in ("full", "incremental"):
            assert f"({kind}, " in told(snapshot(lab))
        assert guests.properties(standby, copy, "encryption", "keystatus") == {
            "encryption": "aes-256-gcm",
            "keystatus": "unavailable",
        }
        message = " ".join(lab.play("snapshot_restore_test", "-e", f"node={standby}", ok=False).messages)
        assert "key not loaded; load it there (zfs load-key)" in message
        assert left(lab, standby) == []
        lab.run(standby, "zfs", "load-key", "-L", f"file://{key}", copy)
        assert "the clone is removed" in told(lab.play("snapshot_restore_test", "-e", f"node={standby}"))
    finally:
        for dataset in (name, copy):
            for held in guests.snapshots(standby, dataset):
                lab.run(standby, "zfs", "release", "hotspare:backup", held, check=False)
            lab.run(standby, "zfs", "destroy", "-r", dataset)
    assert "(incremental, " in told(snapshot(lab))


FAR = """
postgres:
  hosts:
    {one}: {{zfs_backup_host: {two}}}
    {two}: {{zfs_backup_host: {one}}}
"""


@pytest.mark.soak
def test_a_pool_of_another_host(lab, guests, tmp_path):
    """Each node's copies lie on the other one, which is in the inventory: the restore test runs there."""
    primary, standby = lab.roles()
    (tmp_path / "far.yml").write_text(FAR.format(one=primary, two=standby), encoding="utf-8")
    far = ("-i", str(tmp_path / "far.yml"), "-e", "zfs_backup_dataset=vault/far")
    lab.play("site", *far)
    assert "there is no vault/far" in " ".join(snapshot(lab, *far, ok=False).messages)
    assert status(lab, standby)["backup"]["state"] == "failed"
    assert "snapshot_failed" in told(lab.play("status"))
    lab.run(primary, "zfs", "create", "-o", "canmount=off", "-o", "mountpoint=none", "vault/far")
    try:
        assert f"sent to vault/far/{standby} on {primary}: " in told(snapshot(lab, *far))
        play = lab.play("snapshot_restore_test", *far)
        assert f"vault/far/{standby}@hotspare:backup-" in told(play)
        assert "the clone is removed" in told(play)
        assert left(lab, primary) == []
        assert lab.sql(primary, "SELECT count(*) FROM kept") != "0"
    finally:
        for name in guests.snapshots(primary, "vault/far"):
            lab.run(primary, "zfs", "release", "hotspare:backup", name, check=False)
        lab.run(primary, "zfs", "destroy", "-r", "vault/far")
        lab.play("site")
