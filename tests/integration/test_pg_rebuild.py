# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_rebuild against real servers: every way a node becomes a standby, every refusal, and places where it may die.

After each refusal the node's processes and files are what they were. More of the faults: test_pg_rebuild_faults.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from .conftest import Pair, eventually, execute
from .rebuilds import (
    assert_refused,
    assert_streams,
    beside,
    diverge,
    failed,
    fill,
    footprint,
    kill_module_when,
    make_slot,
    promote,
    switch_over,
    throttled,
    wanted,
)


@pytest.fixture
def diverged(pair):
    """db-two was promoted without the last three rows of db-one, which was stopped cleanly."""
    return diverge(pair)


# --- seeding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(lab):
    """A primary with a slot for a node that holds nothing."""
    primary, node = lab.node("db-one"), lab.node("db-two", data=False)
    primary.start()
    primary.write("first")
    make_slot(primary, node)
    return primary, node


def test_seed_in_four_steps(bare, four_steps):
    primary, node = bare
    args = wanted(primary, node, confirm=None)
    check, done, *again = four_steps("pg_rebuild", args, lambda: footprint(node)[1] and node.running)
    assert_streams(primary, node, timeline=1)
    assert check["method"] == done["method"] == "basebackup"
    assert [step["name"] for step in done["steps"]] == ["base backup", "swap", "configure", "start", "verify"]
    assert check["steps"] == [] and done["kept"] == []
    assert [result["method"] for result in again] == ["none", "none"]
    assert done["node"]["role"] == "standby"


def test_seed_replaces_an_empty_directory(bare, run_module):
    primary, node = bare
    execute("mkdir", str(node.data))
    result = run_module("pg_rebuild", wanted(primary, node, confirm=None))
    assert result["method"] == "basebackup", result
    assert_streams(primary, node)
    assert beside(node, "before") == []


def test_seed_through_a_symbolic_link(bare, run_module):
    primary, node = bare
    execute("mkdir", "-p", str(node.data.parent / "elsewhere" / "real"))
    node.data.symlink_to(node.data.parent / "elsewhere" / "real")
    result = run_module("pg_rebuild", wanted(primary, node, confirm=None))
    assert not result.get("failed"), result
    assert node.data.is_symlink()
    eventually(Pair(primary, node).streams)
    node.stop()  # the laboratory looks for processes by the link's name


def test_seed_makes_the_parents(bare, run_module):
    primary, node = bare
    data = node.data.parent / "17" / "main"
    configuration = Path(node.instance.config_file)
    configuration.write_text(configuration.read_text().replace(str(node.data), str(data)))
    result = run_module("pg_rebuild", wanted(primary, node, confirm=None, data_directory=str(data), start=False))
    assert not result.get("failed"), result
    assert (data / "standby.signal").exists()
    assert data.owner() == data.parent.owner() == "postgres"
    assert data.stat().st_mode & 0o777 == 0o700


def test_seed_without_start(bare, run_module):
    primary, node = bare
    args = wanted(primary, node, confirm=None, start=False)
    assert run_module("pg_rebuild", args)["changed"]
    assert not node.running
    assert (node.data / "standby.signal").exists()
    for check in (True, False):
        again = run_module("pg_rebuild", args, check=check)
        assert (again["changed"], again["method"]) == (False, "follow"), again
    assert run_module("pg_rebuild", {**args, "start": True})["changed"]
    assert_streams(primary, node)


def test_seed_killed_in_the_copy_is_made_again(bare, run_module, lab):
    primary, node = bare
    fill(primary, 100)
    slow = throttled(node, lab.directory / "bin", "pg_basebackup", 'exec {real} --max-rate=8M "$@"')
    seeding = node.data.parent / "data.seeding"
    args = wanted(primary, node, confirm=None)
    kill_module_when({**args, "bin_directory": slow}, lambda: (seeding / "base").exists())
    assert seeding.is_dir() and not node.data.exists()
    # The copy goes on without the module; the next run ends it.
    assert primary.sql("SELECT count(*) > 0 FROM pg_stat_replication") == "t"
    checked = run_module("pg_rebuild", args, check=True)
    assert not checked.get("failed"), checked
    assert primary.sql("SELECT count(*) > 0 FROM pg_stat_replication") == "t"
    result = run_module("pg_rebuild", args)
    assert not result.get("failed"), result
    assert [step["name"] for step in result["steps"]][:3] == [
        "end what an interrupted run left",
        "remove the half-made copy",
        "base backup",
    ]
    assert_streams(primary, node)


def test_seed_killed_after_the_copy_is_made_again(bare, run_module, lab):
    """Copied, but nobody wrote down that it is complete."""
    primary, node = bare
    done = lab.directory / "done"
    slow = throttled(node, lab.directory / "bin", "pg_basebackup", f'{{real}} "$@"; touch {done}; sleep 60')
    args = wanted(primary, node, confirm=None)
    kill_module_when({**args, "bin_directory": slow}, done.exists)
    assert json.loads((node.data.parent / "data.seeding.json").read_text())["complete"] is False
    result = run_module("pg_rebuild", args)
    assert [step["name"] for step in result["steps"]][:2] == ["remove the half-made copy", "base backup"], result
    assert_streams(primary, node)


def test_seed_killed_before_the_swap_is_used(bare, run_module):
    primary, node = bare
    args = wanted(primary, node, confirm=None)
    assert run_module("pg_rebuild", {**args, "start": False})["changed"]
    # As if the run had died right before the swap.
    node.data.rename(node.data.parent / "data.seeding")
    result = run_module("pg_rebuild", args)
    assert "is complete" in result["reason"], result
    assert [step["name"] for step in result["steps"]] == ["swap", "configure", "start", "verify"]
    assert_streams(primary, node)


def test_seed_that_fails_leaves_nothing(bare, run_module, lab):
    primary, node = bare
    broken = throttled(node, lab.directory / "bin", "pg_basebackup", 'echo "error: the disk is on fire" >&2; exit 1')
    before = footprint(node)
    result = run_module("pg_rebuild", wanted(primary, node, bin_directory=broken, confirm=None))
    assert result.get("failed") and "the disk is on fire" in result["msg"]
    assert footprint(node) == before


def test_a_copy_that_is_not_ours_is_refused(bare, run_module):
    primary, node = bare
    execute("mkdir", f"{node.data}.seeding")
    assert_refused(run_module, wanted(primary, node, confirm=None), node, "directory")


def test_one_at_a_time(bare, run_module, lab):
    primary, node = bare
    hold = lab.directory / "hold"
    hold.touch()
    slow = throttled(
        node, lab.directory / "bin", "pg_basebackup", f'while test -e {hold}; do sleep 0.1; done; exec {{real}} "$@"'
    )
    results = []
    args = wanted(primary, node, confirm=None, bin_directory=slow)
    first = threading.Thread(target=lambda: results.append(run_module("pg_rebuild", args)))
    first.start()
    try:
        eventually(lambda: (node.data.parent / "data.seeding.json").exists())
        for check in (True, False):
            second = run_module("pg_rebuild", {**args, "timeout": 1}, check=check)
            assert second.get("failed") and "is worked on by process" in second["msg"], second
        # As after a control node that died: the run that is made again waits for what the first one has begun.
        waits = threading.Thread(target=lambda: results.append(run_module("pg_rebuild", args)))
        waits.start()
        time.sleep(1)
        assert waits.is_alive()
    finally:
        hold.unlink()
        first.join()
    waits.join()
    assert [(result["changed"], result["method"]) for result in results] == [(True, "basebackup"), (False, "none")]
    assert_streams(primary, node)


# --- following -------------------------------------------------------------------------------------------------------


def test_follow_after_a_switchover_in_four_steps(pair, four_steps):
    old, new = switch_over(pair)
    inode = old.data.stat().st_ino
    results = four_steps("pg_rebuild", wanted(new, old), lambda: (old.running, (old.data / "standby.signal").exists()))
    assert [result["method"] for result in results] == ["follow", "follow", "none", "none"]
    assert "nothing diverged" in results[1]["reason"]
    assert_streams(new, old, timeline=2)
    assert old.data.stat().st_ino == inode
    assert beside(old, "") == ["data.log"]


def test_follow_of_a_running_standby_with_another_slot(pair, run_module):
    pair.primary.sql("SELECT pg_create_physical_replication_slot('hotspare_other', true)")
    result = run_module("pg_rebuild", wanted(pair.primary, pair.standby, slot="hotspare_other"))
    assert (result["method"], result["changed"]) == ("follow", True), result
    eventually(pair.streams)
    assert pair.standby.sql("SELECT slot_name FROM pg_stat_wal_receiver") == "hotspare_other"


def test_a_standby_that_was_stopped_in_vain_is_started_again(pair, run_module, lab):
    """The primary goes away in the moment between the two looks."""
    primary, standby = pair.primary, pair.standby
    gone = f"{primary.instance.program('pg_ctl')} stop -m immediate -D {primary.data} >/dev/null 2>&1"
    script = f'test -e {standby.data}/postmaster.pid || {gone}; exec {{real}} "$@"'
    programs = throttled(standby, lab.directory / "bin", "pg_controldata", script)
    args = wanted(primary, standby, application_name="another", bin_directory=programs)
    result = run_module("pg_rebuild", args)
    assert failed(result) == {"source_answers"}, result
    assert result["changed"]
    assert [step["name"] for step in result["steps"]] == ["stop", "start again"]
    assert standby.sql("SELECT pg_is_in_recovery()") == "t"
    primary.start()
    eventually(pair.streams)


def test_a_streaming_standby_needs_no_confirmation(pair, run_module):
    before = footprint(pair.standby)
    result = run_module("pg_rebuild", wanted(pair.primary, pair.standby, confirm=None))
    assert (result["method"], result["changed"]) == ("none", False), result
    assert footprint(pair.standby)[0] == before[0]


def test_follow_of_a_crashed_standby(pair, run_module):
    pair.primary.write("before")
    eventually(pair.in_step)
    pair.standby.crash()
    pair.primary.write("after")
    eventually(lambda: pair.primary.sql("SELECT bool_or(active) FROM pg_replication_slots") == "f")
    result = run_module("pg_rebuild", wanted(pair.primary, pair.standby))
    assert (result["method"], result["changed"]) == ("follow", True), result
    assert_streams(pair.primary, pair.standby)


def test_auto_conf_does_not_win(pair, run_module):
    old, new = switch_over(pair)
    with (old.data / "postgresql.auto.conf").open("a") as file:
        file.write("primary_conninfo = 'host=192.0.2.1'\nprimary_slot_name = 'other'\nwork_mem = '5MB'\n")
        # As a restore of long ago leaves it: as a standby it would promote itself.
        file.write("recovery_target_lsn = '0/1'\nrecovery_target_action = 'promote'\n")
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == "follow", result
    assert_streams(new, old)
    assert old.sql("SHOW work_mem") == "5MB"
    assert old.sql("SHOW recovery_target_lsn") == ""


def test_standby_with_more_wal_than_the_primary(lab, run_module):
    """A second standby received, and had not replayed, WAL that the promoted one never got."""
    one, two, three = lab.node("db-one"), lab.node("db-two"), lab.node("db-three")
    one.start()
    lab.follow(one, two)
    lab.follow(one, three)
    one.write("all")
    eventually(Pair(one, two).in_step)
    eventually(Pair(one, three).in_step)
    two.stop()
    three.sql("SELECT pg_wal_replay_pause()")
    position = one.write("three only")
    eventually(lambda: three.sql(f"SELECT pg_last_wal_receive_lsn() >= '{position}'") == "t")
    three.stop()
    one.crash()
    two.start()
    promote(two)
    make_slot(two, three)
    result = run_module("pg_rebuild", wanted(two, three))
    assert not result.get("failed"), result
    assert result["method"] in ("basebackup", "rewind"), result
    assert_streams(two, three, timeline=2)
    assert "three only" not in three.notes()


# --- copies of nodes that hold data ----------------------------------------------------------------------------------


def test_base_backup_keeps_the_old_directory(diverged, four_steps):
    old, new = diverged
    inode = old.data.stat().st_ino
    args = wanted(new, old, method="basebackup")
    results = four_steps("pg_rebuild", args, lambda: (old.running, beside(old, "before")))
    assert [result["method"] for result in results] == ["basebackup", "basebackup", "none", "none"]
    assert_streams(new, old, timeline=2)
    (aside,) = beside(old, "before")
    assert (old.data.parent / aside).stat().st_ino == inode


def test_follow_impossible_without_wal_is_a_copy(pair, run_module):
    """The slot went away and the WAL that the standby needs with it."""
    primary, standby = pair.primary, pair.standby
    standby.stop()
    eventually(lambda: primary.sql("SELECT bool_or(active) FROM pg_replication_slots") == "f")
    primary.sql(f"SELECT pg_drop_replication_slot('{standby.slot}')")
    for _ in range(3):
        primary.sql("INSERT INTO ledger (note) VALUES ('x'); SELECT pg_switch_wal();")
    primary.sql("CHECKPOINT")
    make_slot(primary, standby)
    result = run_module("pg_rebuild", wanted(primary, standby))
    assert result["method"] == "basebackup", result
    assert "needs WAL from" in result["reason"]
    assert_streams(primary, standby)


def test_two_primaries_on_one_timeline(lab, run_module):
    """Both wrote timeline 1 from the same start: no LSN tells them apart, and none is followed or rewound."""
    one, two = lab.node("db-one"), lab.node("db-two")
    two.start()
    two.write("of two")
    two.stop()
    one.start()
    for _ in range(20):
        one.write("of one")
    make_slot(one, two)
    result = assert_refused(run_module, wanted(one, two), two, "method")
    assert "no LSN can tell" in result["msg"]
    result = run_module("pg_rebuild", wanted(one, two, method="basebackup"))
    assert result["method"] == "basebackup", result
    assert_streams(one, two)


def test_standby_ahead_on_the_same_timeline(pair, run_module):
    """The primary lost what the standby has."""
    primary, standby = pair.primary, pair.standby
    primary.write("both")
    primary.stop()
    copy = primary.data.parent / "copy"
    shutil.copytree(primary.data, copy, symlinks=True)
    primary.start()
    eventually(pair.streams)
    primary.sql("INSERT INTO ledger (note) SELECT 'lost' FROM generate_series(1, 20000)")
    eventually(pair.in_step)
    standby.stop()
    primary.stop()
    shutil.rmtree(primary.data)
    copy.rename(primary.data)
    execute("chown", "-R", "postgres:", str(primary.data), account="root")
    primary.start()
    result = assert_refused(run_module, wanted(primary, standby), standby, "method")
    assert "more than the primary" in result["msg"]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refuses_the_primary_itself(pair, run_module):
    make_slot(pair.primary, pair.primary)
    refused = assert_refused(run_module, wanted(pair.primary, pair.primary), pair.primary, "node_not_primary")
    assert "source_other" in failed(refused)


def test_refuses_a_running_primary(lab, run_module):
    one, two = lab.node("db-one"), lab.node("db-two")
    one.start()
    two.start()
    make_slot(one, two)
    assert_refused(run_module, wanted(one, two), two, "node_not_primary", others=[one])


def test_refuses_a_source_that_is_a_standby(pair, lab, run_module):
    node = lab.node("db-three", data=False)
    assert_refused(run_module, wanted(pair.standby, node, confirm=None), node, "source_primary", others=[pair.standby])


def test_refuses_another_cluster(bare, lab, run_module):
    primary, node = bare
    options = ["--no-sync", "--username=postgres", "--auth=peer", "-D", str(node.data)]
    node.program("initdb", *options)
    assert_refused(run_module, wanted(primary, node), node, "system_identifier")
    shutil.rmtree(node.data)
    args = wanted(primary, node, system_identifier="7000000000000000000")
    assert_refused(run_module, args, node, "system_identifier")


@pytest.mark.parametrize("confirm", [None, "db-two", "DB-ONE"])
def test_refuses_without_the_right_confirmation(diverged, run_module, confirm):
    old, new = diverged
    assert_refused(run_module, wanted(new, old, confirm=confirm), old, "confirm")


def test_refuses_with_clients(pair, run_module):
    where = ["-h", pair.standby.instance.socket_directory, "-p", str(pair.standby.instance.port), "-d", "postgres"]
    client = subprocess.Popen(
        ["runuser", "-u", "postgres", "--", pair.standby.instance.program("psql"), "-XAtq", *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    with client:
        client.stdin.write(b"SELECT 1;\n")
        client.stdin.flush()
        client.stdout.readline()
        args = wanted(pair.primary, pair.standby, application_name="another")
        before = pair.standby.postmaster
        for check in (True, False):
            result = run_module("pg_rebuild", args, check=check)
            assert failed(result) == {"clients"}, result
        assert pair.standby.postmaster == before
        assert pair.streams()


def test_refuses_with_a_standby_of_its_own(pair, lab, run_module):
    lab.follow(pair.standby, lab.node("db-three"))
    args = wanted(pair.primary, pair.standby, application_name="another")
    assert failed(run_module("pg_rebuild", args)) == {"senders"}
    assert pair.streams()


def test_refuses_a_frozen_source(diverged, run_module):
    old, new = diverged
    new.freeze()
    try:
        result = assert_refused(run_module, wanted(new, old), old, "source_answers")
        assert "cannot connect" in result["msg"]
    finally:
        new.thaw()


def test_refuses_a_frozen_node(pair, run_module):
    pair.standby.freeze()
    try:
        assert_refused(run_module, wanted(pair.primary, pair.standby), pair.standby, "node_known")
    finally:
        pair.standby.thaw()


def test_refuses_orphans(pair, lab, run_module):
    """Its postmaster was killed, its backends live on and could still commit."""
    standby = pair.standby
    children = [pid for pid in standby.processes() if pid != standby.postmaster]
    standby.freeze()
    os.kill(standby.postmaster, signal.SIGKILL)
    try:
        eventually(lambda: sorted(standby.processes()) == sorted(children))
        assert_refused(run_module, wanted(pair.primary, standby), standby, "processes")
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_refuses_without_a_slot(diverged, run_module):
    old, new = diverged
    result = assert_refused(run_module, wanted(new, old, slot="hotspare_none"), old, "slot")
    assert "there is no slot hotspare_none" in result["msg"]


def test_refuses_a_slot_that_another_has(pair, lab, run_module):
    node = lab.node("db-three", data=False)
    args = wanted(pair.primary, node, slot=pair.standby.slot, confirm=None)
    assert "is in use by process" in assert_refused(run_module, args, node, "slot")["msg"]


def test_refuses_a_lost_slot(bare, run_module):
    primary, node = bare
    primary.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    primary.sql("SELECT pg_reload_conf()")
    for _ in range(4):
        primary.sql("INSERT INTO ledger (note) VALUES ('x'); SELECT pg_switch_wal();")
    primary.sql("CHECKPOINT")
    assert primary.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    assert "is lost" in assert_refused(run_module, wanted(primary, node, confirm=None), node, "slot")["msg"]


def test_refuses_a_slot_that_holds_no_wal(bare, run_module):
    primary, node = bare
    primary.sql("SELECT pg_create_physical_replication_slot('hotspare_empty')")
    assert_refused(run_module, wanted(primary, node, confirm=None, slot="hotspare_empty"), node, "slot")


def test_refuses_occupied_tablespaces_and_wal_links(diverged, run_module, lab):
    old, new = diverged
    place = lab.directory / "space"
    execute("mkdir", str(place))
    new.sql(f"CREATE TABLESPACE far LOCATION '{place}'")
    shutil.move(old.data / "pg_wal", old.data.parent / "wal")
    (old.data / "pg_wal").symlink_to(old.data.parent / "wal")
    args = wanted(new, old, method="basebackup")
    assert_refused(run_module, args, old, "tablespaces", "wal_directory", others=[new])


def test_refuses_an_unconfigured_node(bare, run_module):
    primary, node = bare
    args = wanted(primary, node, confirm=None, config_file=str(node.data.parent / "nowhere" / "postgresql.conf"))
    assert_refused(run_module, args, node, "configuration")


def test_refuses_a_configuration_inside(diverged, run_module):
    old, new = diverged
    execute("cp", "-r", *map(str, Path(old.instance.config_file).parent.iterdir()), str(old.data))
    args = wanted(new, old, config_file=str(old.data / "postgresql.conf"))
    assert_refused(run_module, args, old, "directory")


def test_refuses_foreign_data(bare, run_module):
    primary, node = bare
    execute("mkdir", "-p", str(node.data / "photographs"))
    assert_refused(run_module, wanted(primary, node), node, "node_known")


def test_standby_that_does_not_catch_up_says_why(pair, run_module):
    old, new = switch_over(pair)
    configuration = Path(old.instance.config_file)
    text = configuration.read_text()
    configuration.write_text(text + "recovery_min_apply_delay = 1h\n")
    result = run_module("pg_rebuild", wanted(new, old, timeout=3))
    assert result.get("failed") and "does not catch up" in result["msg"], result
    assert result["changed"] and result["node"]["role"] == "standby"
    assert result["last"]["primary_sees"] == "streaming" and result["last"]["receiver"] == "streaming"
    assert result["log"]
    # It is configured and runs: the next run only waits for it.
    configuration.write_text(text)
    old.sql("SELECT pg_reload_conf()")
    postmaster = old.postmaster
    result = run_module("pg_rebuild", wanted(new, old, confirm=None))
    assert [step["name"] for step in result["steps"]][-1] == "drop stale slots", result
    assert not run_module("pg_rebuild", wanted(new, old, confirm=None))["changed"]
    assert old.postmaster == postmaster
    assert_streams(new, old)


def test_account_without_replication_is_told(pair, run_module):
    old, new = switch_over(pair)
    hba = Path(new.instance.config_file).parent / "pg_hba.conf"
    hba.write_text(hba.read_text().replace("host  replication replicator", "#"))
    new.sql("SELECT pg_reload_conf()")
    refused = assert_refused(run_module, wanted(new, old), old, "source_answers")
    assert failed(refused) == {"source_answers"}
    assert "pg_hba.conf" in refused["msg"]


# --- removing what was kept ------------------------------------------------------------------------------------------


def test_cleaned_in_four_steps(diverged, run_module, four_steps):
    old, new = diverged
    assert run_module("pg_rebuild", wanted(new, old, method="basebackup"))["kept"]
    keep = old.data.parent / "data.before-tomorrow"
    execute("mkdir", str(keep))
    args = {**old.params, "state": "cleaned", "confirm": "db-one"}
    check, done, *_ = four_steps("pg_rebuild", args, lambda: beside(old, "before"))
    assert check["removed"] == done["removed"] and len(done["removed"]) == 1
    assert beside(old, "before") == [keep.name], "only names of our making are removed"
    assert_streams(new, old)


@pytest.mark.parametrize("way", ["confirm", "link", "server"])
def test_cleaned_refuses(diverged, run_module, way):
    old, new = diverged
    aside = old.data.parent / "data.before-20260101T000000Z"
    args = {**old.params, "state": "cleaned", "confirm": "db-one"}
    if way == "link":
        aside.symlink_to(new.data)
    elif way == "confirm":
        execute("mkdir", str(aside))
        args["confirm"] = "db-two"
    else:
        execute("cp", "-a", str(old.data), str(aside))
        where = ["-D", str(aside), "-l", f"{old.data}.log", "-o"]
        options = f"-c config_file={old.instance.config_file} -c data_directory={aside}"
        old.program("pg_ctl", "start", "-w", *where, options)
    for check in (True, False):
        result = run_module("pg_rebuild", args, check=check)
        assert result.get("failed") and "nothing was removed" in result["msg"], result
    assert aside.exists()
    assert new.notes()
