# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_rebuild against real servers: rewinding, and each fault of a rebuild (F21-F37 of the list of faults) by its test.

F21 stopped cleanly, nothing diverged   test_pg_rebuild.py: test_follow_after_a_switchover_in_four_steps
F22 diverged by one record              test_one_record_is_enough_to_diverge
F23 crashed primary                     test_rewind_of_a_crashed_primary
F24 WAL that pg_rewind needs is gone    test_wal_that_pg_rewind_needs_is_gone, test_rewind_keeps_what_was_not_archived,
                                        test_wal_since_the_fork_is_gone
F25 neither hints nor checksums         test_rewind_impossible_is_a_copy
F26 pg_rewind killed half way           test_pg_rewind_killed_half_way, test_module_killed_in_pg_rewind
F27 source lost in pg_rewind            test_source_lost_in_pg_rewind
F28 promoted without a checkpoint       test_no_checkpoint_no_rewind
F29 the node is today's primary         test_pg_rebuild.py: test_refuses_the_primary_itself, _a_running_primary
F30 names swapped, wrong address        test_another_node_than_meant, test_pg_rebuild.py: test_refuses_another_cluster,
                                        _a_source_that_is_a_standby, _the_primary_itself
F31 links and tablespaces               test_rewind_with_tablespaces_and_links, test_pg_rebuild.py:
                                        test_seed_through_a_symbolic_link, _refuses_occupied_tablespaces_and_wal_links
F32 disk too small for a second copy    test_no_room_for_a_copy
F33 another system identifier           test_pg_rebuild.py: test_refuses_another_cluster
F34 ahead on the same timeline          test_pg_rebuild.py: test_standby_ahead_on_the_same_timeline, _two_primaries_...
F35 stale slots on the old primary      test_slots_of_the_former_primary_are_dropped
F36 failover slot of the same name      test_failover_slots_of_the_former_primary
F37 slot lost                           test_slot_lost, test_pg_rebuild.py: test_refuses_a_lost_slot
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
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


def chosen(result):
    (rung,) = [rung["method"] for rung in result["ladder"] if rung["chosen"]]
    return rung


def steps(result):
    return [step["name"] for step in result["steps"]]


def configure(node, text):
    with open(node.instance.config_file, "a", encoding="utf-8") as file:
        file.write(text)


# --- rewinding -------------------------------------------------------------------------------------------------------


def test_rewind_in_four_steps(diverged, four_steps):
    old, new = diverged
    with (old.data / "postgresql.auto.conf").open("a") as file:
        file.write("work_mem = '5MB'\n")
    new.sql("ALTER SYSTEM SET primary_conninfo = 'host=192.0.2.1'")
    results = four_steps("pg_rebuild", wanted(new, old), lambda: (old.running, beside(old, "diverged")))
    assert [result["method"] for result in results] == ["rewind", "rewind", "none", "none"]
    assert_streams(new, old, timeline=2)
    assert old.notes()[:2] == ["both", "new"]
    assert old.sql("SHOW work_mem") == "5MB", "the node's own ALTER SYSTEM is kept"
    assert "192.0.2.1" not in (old.data / "postgresql.auto.conf").read_text()
    (evidence,) = beside(old, "diverged")
    said = (old.data.parent / evidence / "pg_waldump.txt").read_text()
    assert said.count("desc: COMMIT") == 3
    assert any(step["detail"].startswith("3 commits") for step in results[1]["steps"]), results[1]["steps"]
    assert beside(old, "before") == []


def test_rewind_of_a_crashed_primary(pair, run_module):
    """With a restore_command, which pg_rewind reads from the configuration that is not in the data directory."""
    old, new = pair.primary, pair.standby
    with open(old.instance.config_file, "a", encoding="utf-8") as file:
        file.write("restore_command = 'false'\n")
    old.write("both")
    eventually(pair.in_step)
    new.stop()
    old.write("lost")
    old.crash()
    new.start()
    promote(new)
    new.write("new")
    make_slot(new, old)
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == "rewind", result
    assert "crash recovery" in [step["name"] for step in result["steps"]]
    assert_streams(new, old, timeline=2)
    assert old.notes()[:2] == ["both", "new"]


def test_rewind_killed_before_the_start_is_continued(diverged, run_module):
    old, new = diverged
    assert run_module("pg_rebuild", wanted(new, old, start=False))["method"] == "rewind"
    assert (old.data / "backup_label").exists()
    result = run_module("pg_rebuild", wanted(new, old, confirm=None))
    assert result["method"] == "follow", result
    assert_streams(new, old, timeline=2)


def test_rewind_keeps_what_was_not_archived(pair, run_module, major):
    """The new primary has no longer the WAL before the fork, the node has: since 14 pg_rewind leaves it there."""
    old, new = pair.primary, pair.standby
    with open(old.instance.config_file, "a", encoding="utf-8") as file:
        file.write("archive_mode = on\narchive_command = 'false'\n")
    new.stop()
    old.stop()
    old.start()
    old.sql("SELECT pg_switch_wal()")
    waiting = sorted(path.stem for path in old.data.glob("pg_wal/archive_status/*.ready"))
    assert waiting
    new.start()
    eventually(pair.in_step)
    new.stop()
    old.write("lost")
    old.stop()
    new.start()
    promote(new)
    make_slot(new, old)
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == ("rewind" if major >= 14 else "basebackup"), result
    (evidence,) = beside(old, "diverged")
    kept = {path.name for path in (old.data.parent / evidence).iterdir()}
    assert kept >= set(waiting)
    assert_streams(new, old)


def test_rewind_of_a_diverged_standby_that_runs(diverged, run_module):
    """The old primary was just started with standby.signal: it runs, is a standby, and can never follow."""
    old, new = diverged
    execute("touch", str(old.data / "standby.signal"))
    old.start()
    assert old.sql("SELECT pg_is_in_recovery()") == "t"
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == "rewind", result
    assert result["steps"][0]["name"] == "stop"
    assert_streams(new, old, timeline=2)


def test_a_later_promotion_is_given_up_only_when_asked(pair, run_module):
    """The standby was promoted by mistake; the primary stayed the primary. It could as well be the other way round."""
    old, new = pair.standby, pair.primary
    new.write("both")
    eventually(pair.in_step)
    promote(old)
    old.write("mistake")
    old.stop()
    new.write("right")
    before = footprint(old)
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == "refuse", result
    assert failed(result) == {"method"}
    assert "say method: copy" in result["msg"]
    assert footprint(old) == before
    result = run_module("pg_rebuild", wanted(new, old, method="copy"))
    assert result["method"] == "basebackup", result
    assert_streams(new, old, timeline=1)
    assert "mistake" not in old.notes()


def test_no_checkpoint_no_rewind(pair, run_module, bin_directory):
    old, new = pair.primary, pair.standby
    old.write("both")
    eventually(pair.in_step)
    new.stop()
    old.write("lost")
    old.stop()
    new.start()
    with open(new.instance.config_file, "a", encoding="utf-8") as file:
        file.write("checkpoint_timeout = 1h\ncheckpoint_completion_target = 0.9\n")
    new.sql("SELECT pg_reload_conf()")
    # A promotion asks for a checkpoint itself; a frozen checkpointer keeps pg_control on the old timeline.
    checkpointer = int(new.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"))
    os.kill(checkpointer, signal.SIGSTOP)
    try:
        new.sql("SELECT pg_promote()")
        make_slot(new, old)
        result = assert_refused(run_module, wanted(new, old), old, "source_checkpoint")
        assert "run CHECKPOINT there" in result["msg"]
    finally:
        os.kill(checkpointer, signal.SIGCONT)


@pytest.mark.parametrize("way", ["hints", "rights"])
def test_rewind_impossible_is_a_copy(diverged, run_module, way):
    old, new = diverged
    if way == "rights":
        new.sql("REVOKE EXECUTE ON FUNCTION pg_read_binary_file(text) FROM replicator")
    else:
        configuration = Path(old.instance.config_file)
        configuration.write_text(configuration.read_text().replace("wal_log_hints = on", "wal_log_hints = off"))
        old.program("pg_checksums", "--disable", "--no-sync", "-D", str(old.data))
        old.start()
        old.stop()
    refused = assert_refused(run_module, wanted(new, old, method="rewind"), old, "method")
    assert "pg_rewind is not possible" in refused["msg"]
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == "basebackup", result
    assert "pg_rewind is not possible" in result["reason"]
    assert_streams(new, old, timeline=2)
    (aside,) = beside(old, "before")
    assert result["kept"] == [str(old.data.parent / aside)]
    assert (old.data.parent / aside / "PG_VERSION").exists()


@pytest.mark.parametrize("when", ["dry-run", "for real"])
def test_rewind_that_fails_is_a_copy(diverged, run_module, lab, when):
    old, new = diverged
    test = "--dry-run" if when == "dry-run" else "-never"
    script = f'case "$*" in *{test}*) echo "error: no such WAL" >&2; exit 1;; *--dry-run*) exec {{real}} "$@";; esac; '
    script += "echo 'error: half way' >&2; exit 1"
    broken = throttled(old, lab.directory / "bin", "pg_rewind", script)
    args = wanted(new, old, bin_directory=broken)
    forced = run_module("pg_rebuild", {**args, "method": "rewind"})
    assert forced.get("failed") and "pg_rewind" in forced["msg"], forced
    assert not (old.data.parent / "data.rewinding").exists()
    if when == "dry-run":
        # It has its name back, and cannot start as a primary.
        assert (old.data / "standby.signal").exists()
        assert old.control("Database cluster state") == "shut down"
    else:
        assert not old.data.exists()
        assert len(beside(old, "before")) == 1
    result = run_module("pg_rebuild", args)
    assert result["method"] == "basebackup", result
    assert_streams(new, old, timeline=2)
    assert len(beside(old, "before")) == 1


def test_module_killed_in_pg_rewind(diverged, run_module, lab):
    old, new = diverged
    mark = lab.directory / "mark"
    script = f'case "$*" in *--dry-run*) exec {{real}} "$@";; esac; touch {mark}; sleep 60'
    slow = throttled(old, lab.directory / "bin", "pg_rewind", script)
    args = wanted(new, old)
    kill_module_when({**args, "bin_directory": slow}, mark.exists)
    assert not old.data.exists()
    assert beside(old, "rewinding") == ["data.rewinding"]
    result = run_module("pg_rebuild", {**args, "confirm": None})
    assert result["method"] == "basebackup", result
    assert "interrupted pg_rewind" in result["reason"]
    assert_streams(new, old, timeline=2)
    assert len(beside(old, "before")) == 1


def test_one_record_is_enough_to_diverge(pair, run_module):
    """Only the shutdown checkpoint is not on the standby: its timeline forks where that record starts."""
    old, new = pair.primary, pair.standby
    old.write("both")
    old.sql("CHECKPOINT")
    eventually(pair.in_step)
    new.stop()
    old.stop()
    new.start()
    promote(new)
    make_slot(new, old)
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == chosen(result) == "rewind", result
    assert any(step["detail"].startswith("0 commits") for step in result["steps"]), result["steps"]
    assert_streams(new, old, timeline=2)
    assert old.notes()[0] == "both"


@pytest.mark.parametrize("archived", [False, True])
def test_wal_that_pg_rewind_needs_is_gone(pair, run_module, lab, major, archived):
    """The former primary has recycled its WAL before the fork; pg_rewind can take it from an archive since 15."""
    old, new = pair.primary, pair.standby
    archive = lab.directory / "archive"
    execute("mkdir", str(archive))
    configure(old, f"archive_mode = on\narchive_command = 'cp %p {archive}/%f'\n")
    if archived:
        configure(old, f"restore_command = 'cp {archive}/%f %p'\n")
    new.stop()
    old.stop()
    old.start()
    new.start()
    eventually(pair.streams)
    old.write("both")
    eventually(pair.in_step)
    new.stop()
    eventually(lambda: old.sql("SELECT bool_or(active) FROM pg_replication_slots") == "f")
    old.sql(f"SELECT pg_drop_replication_slot('{new.slot}')")
    for _ in range(3):
        old.sql("INSERT INTO ledger (note) VALUES ('lost'); SELECT pg_switch_wal();")
        old.sql("CHECKPOINT")
    eventually(lambda: old.sql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'") == "0")
    old.sql("CHECKPOINT")
    old.stop()
    new.start()
    promote(new)
    make_slot(new, old)
    result = run_module("pg_rebuild", wanted(new, old))
    assert not result.get("failed"), result
    assert result["method"] == chosen(result) == ("rewind" if archived and major >= 15 else "basebackup"), result
    assert_streams(new, old, timeline=2)


def test_wal_since_the_fork_is_gone(diverged, run_module):
    """The new primary has no longer what it wrote since the fork: a rewound node would wait for that for ever."""
    old, new = diverged
    new.sql(f"SELECT pg_drop_replication_slot('{old.slot}')")
    for _ in range(3):
        new.sql("INSERT INTO ledger (note) VALUES ('x'); SELECT pg_switch_wal();")
        new.sql("CHECKPOINT")
    make_slot(new, old)
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == "basebackup", result
    assert "need the primary's WAL from" in result["ladder"][1]["reason"]
    assert_streams(new, old, timeline=2)


def half_way(new, old, lab, then):
    """A bin directory whose pg_rewind has begun to copy a table of 60 MB when the shell commands `then` get $pid."""
    fill(new, 60)
    path = f"{old.data}.rewinding/{new.sql('SELECT pg_relation_filepath($$filler$$)')}"
    begun = f'{{real}} "$@" & pid=$!; until test -e {path}; do :; done'
    script = f'case "$*" in *--dry-run*) exec {{real}} "$@";; esac; {begun}; {then}; wait $pid'
    return throttled(old, lab.directory / "bin", "pg_rewind", script)


def test_pg_rewind_killed_half_way(diverged, run_module, lab):
    old, new = diverged
    programs = half_way(new, old, lab, "kill -KILL $pid")
    result = run_module("pg_rebuild", wanted(new, old, bin_directory=programs))
    assert result["method"] == chosen(result) == "basebackup", result
    assert "pg_rewind failed" in result["ladder"][1]["reason"]
    assert "pg_rewind" in steps(result) and len(beside(old, "before")) == 1
    assert_streams(new, old, timeline=2)


@pytest.mark.parametrize("lost", ["connection", "server"])
def test_source_lost_in_pg_rewind(diverged, run_module, lab, lost):
    old, new = diverged
    mark, go = lab.directory / "mark", lab.directory / "go"
    wait = f"kill -STOP $pid; touch {mark}; until test -e {go}; do sleep 0.05; done; kill -CONT $pid"
    programs = half_way(new, old, lab, wait)
    results = []
    args = wanted(new, old)
    run = threading.Thread(target=lambda: results.append(run_module("pg_rebuild", {**args, "bin_directory": programs})))
    run.start()
    try:
        eventually(mark.exists)
        if lost == "server":
            new.stop("immediate")
        else:
            ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name ~ 'rewind$'"
            assert new.sql(ended) != "0"
    finally:
        go.touch()
        run.join()
    (result,) = results
    if lost == "server":
        assert result.get("failed") and "pg_rewind failed" in result["msg"], result
        assert not old.data.exists(), "nothing half-made is called the data directory"
        new.start()
        result = run_module("pg_rebuild", wanted(new, old, confirm=None))
    assert result["method"] == "basebackup", result
    assert len(beside(old, "before")) == 1
    assert_streams(new, old, timeline=2)


@pytest.mark.parametrize("where", ["dry run", "recovery"])
def test_killed_before_pg_rewind_begins(pair, run_module, lab, where):
    """The data directory has another name and is whole: it is taken back, and rewound after all."""
    old, new = pair.primary, pair.standby
    old.write("both")
    eventually(pair.in_step)
    new.stop()
    old.write("lost")
    old.crash()
    new.start()
    promote(new)
    make_slot(new, old)
    mark = lab.directory / "mark"
    program, pattern = ("pg_rewind", "*--dry-run*") if where == "dry run" else ("postgres", "*--single*")
    script = f'case "$*" in {pattern}) {{real}} "$@" & kill -STOP $!; touch {mark}; wait;; *) exec {{real}} "$@";; esac'
    programs = throttled(old, lab.directory / "bin", program, script)
    args = wanted(new, old)
    kill_module_when({**args, "bin_directory": programs}, mark.exists)
    assert not old.data.exists() and beside(old, "rewinding") == ["data.rewinding"]
    before = footprint(old)
    checked = run_module("pg_rebuild", args, check=True)
    assert (checked["method"], checked["changed"], checked["steps"]) == ("rewind", True, []), checked
    assert footprint(old) == before
    result = run_module("pg_rebuild", args)
    assert result["method"] == "rewind", result
    assert steps(result)[0] == "take back the name"
    assert_streams(new, old, timeline=2)
    assert beside(old, "before") == []
    assert not (old.data / "hotspare-untouched").exists()


# --- the wrong node, no room -----------------------------------------------------------------------------------------


def test_another_node_than_meant(pair, lab, run_module):
    """The inventory has the address of db-two for db-three: what runs there says that it is db-two."""
    two, three = pair.standby, lab.node("db-three", data=False)
    make_slot(pair.primary, three)
    args = {**wanted(pair.primary, three), **two.params, "name": "db-three"}
    result = assert_refused(run_module, args, two, "identity", others=[pair.primary])
    assert "calls itself db-two and uses slot hotspare_db_two" in result["msg"]
    assert pair.streams()
    two.stop()
    assert_refused(run_module, args, two, "identity", others=[pair.primary])


def test_no_room_for_a_copy(diverged, run_module):
    """The primary says that it holds more than fits beside the old data."""
    old, new = diverged
    directory = new.sql("SELECT 'base/' || oid FROM pg_database WHERE datname = 'postgres'")
    sparse = new.data / directory / "999999"
    execute("truncate", "--size=10T", str(sparse))
    result = assert_refused(run_module, wanted(new, old, method="basebackup"), old, "space", others=[new])
    assert "make room first" in result["msg"]
    # A rewind needs no room for a copy.
    sparse.unlink()
    assert run_module("pg_rebuild", wanted(new, old))["method"] == "rewind"
    assert_streams(new, old, timeline=2)


def test_rewind_with_tablespaces_and_links(lab, run_module):
    """Its own tablespaces and its link to pg_wal are kept as they are."""
    old, new = lab.node("db-one"), lab.node("db-two", data=False)
    old_space, new_space = lab.directory / "space-one", lab.directory / "space-two"
    execute("mkdir", str(old_space), str(new_space))
    old.start()
    old.sql(f"CREATE TABLESPACE far LOCATION '{old_space}'")
    old.sql("CREATE TABLE there (note text) TABLESPACE far; INSERT INTO there VALUES ('both')")
    old.stop()
    for source, target in ((old.data, new.data), (old_space, new_space)):
        subprocess.run(["cp", "-a", "-T", source, target], check=True)
    (link,) = (new.data / "pg_tblspc").iterdir()
    link.unlink()
    link.symlink_to(new_space)
    wal = old.data.parent / "wal"
    shutil.move(old.data / "pg_wal", wal)
    (old.data / "pg_wal").symlink_to(wal)
    old.start()
    lab.follow(old, new)
    diverge(Pair(old, new))
    new.sql("INSERT INTO there VALUES ('new')")
    result = run_module("pg_rebuild", wanted(new, old))
    assert result["method"] == "rewind", result
    assert_streams(new, old, timeline=2)
    assert old.sql("SELECT string_agg(note, ' ') FROM there") == "both new"
    assert os.readlink(old.data / "pg_tblspc" / link.name) == str(old_space)
    assert os.readlink(old.data / "pg_wal") == str(wal)


# --- slots -----------------------------------------------------------------------------------------------------------


def test_slots_of_the_former_primary_are_dropped(pair, run_module):
    pair.primary.sql("SELECT pg_create_physical_replication_slot('mine', true)")
    old, new = switch_over(pair)
    assert old.control("Database cluster state") == "shut down"
    result = run_module("pg_rebuild", wanted(new, old))
    assert steps(result)[-1] == "drop stale slots", result
    assert result["steps"][-1]["detail"] == new.slot
    assert old.sql("SELECT slot_name FROM pg_replication_slots") == "mine", "what is not ours is left alone"
    # Left there by a run that died, or made since: a node that streams is rid of it, too.
    make_slot(old, new)
    for check in (True, False):
        again = run_module("pg_rebuild", wanted(new, old, confirm=None), check=check)
        assert (again["method"], again["changed"]) == ("none", True), again
    assert not run_module("pg_rebuild", wanted(new, old, confirm=None))["changed"]
    assert_streams(new, old, timeline=2)


@pytest.mark.parametrize("way", ["rebuild", "start"])
def test_failover_slots_of_the_former_primary(pair, run_module, major, way):
    """Since 17: slot sync refuses to go over one of the same name. Before, a logical slot is somebody's own."""
    for node in (pair.primary, pair.standby):
        configure(node, "wal_level = logical\nhot_standby_feedback = on\n")
        configure(node, "sync_replication_slots = on\n" if major >= 17 else "")
    pair.standby.stop()
    pair.primary.stop()
    pair.primary.start()
    pair.standby.start()
    eventually(pair.streams)
    arguments = "false, false, true" if major >= 17 else "false"
    for name in ("app", "only_here"):
        pair.primary.sql(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput', {arguments})")
    eventually(pair.in_step)
    old, new = switch_over(pair)
    new.sql("SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_type = 'logical'")
    new.sql(f"SELECT pg_create_logical_replication_slot('app', 'pgoutput', {arguments})")
    if way == "rebuild":
        result = run_module("pg_rebuild", {**wanted(new, old), "primary": {**new.address, "dbname": "postgres"}})
    else:  # as failover.yml does it
        upstream = {**old.params, "upstream": {**new.upstream(old), "dbname": "postgres"}}
        run_module("pg_replication_state", upstream)
        run_module("pg_server", {**old.params, "state": "started", "role": "standby"})
        follow = {**upstream, "role": "standby", "slots": [], "wait_for": {"streaming": True}}
        result = run_module("pg_replication_state", follow)
        assert result["changed"] and not run_module("pg_replication_state", follow)["changed"], result
    assert not result.get("failed"), result
    assert_streams(new, old, timeline=2)
    names = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_type = 'logical'"
    if major < 17:
        assert old.sql(names) == "app only_here"
        return
    assert way == "start" or result["steps"][-1]["detail"] == f"app, {new.slot}"

    def synced():
        new.sql("SELECT pg_replication_slot_advance('app', pg_current_wal_lsn())")
        return old.sql("SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'app'") == "t"

    eventually(synced, timeout=60)
    assert old.sql(names) == "app only_here", "one that the primary has not is somebody's own"


def test_slot_lost(pair, run_module, major):
    """The standby was away for too long: it says so, and a new slot is all that is needed. Since 18 also by time."""
    primary, standby = pair.primary, pair.standby
    setting, short, none = ("max_slot_wal_keep_size", "1MB", "-1")
    if major >= 18:
        setting, short, none = ("idle_replication_slot_timeout", "1s", "0")
    primary.sql(f"ALTER SYSTEM SET {setting} = '{short}'")
    primary.sql("SELECT pg_reload_conf()")
    standby.stop()
    eventually(lambda: primary.sql("SELECT bool_or(active) FROM pg_replication_slots") == "f")

    def lost():
        for _ in range(3):
            primary.sql("INSERT INTO ledger (note) VALUES ('x'); SELECT pg_switch_wal();")
        primary.sql("CHECKPOINT")
        return primary.sql("SELECT wal_status FROM pg_replication_slots") == "lost"

    eventually(lost)
    result = assert_refused(run_module, wanted(primary, standby), standby, "slot")
    assert "is lost, it fell behind too far: drop it and create it again" in result["msg"]
    # Else the new slot is lost as well, while nobody uses it between the copy and the start.
    primary.sql(f"ALTER SYSTEM SET {setting} = '{none}'")
    primary.sql("SELECT pg_reload_conf()")
    renewed = run_module("pg_replication_state", {**primary.params, "role": "primary", "slots": [standby.slot]})
    assert renewed["changed"], renewed
    result = run_module("pg_rebuild", wanted(primary, standby))
    assert not result.get("failed") and result["method"] == chosen(result) == "basebackup", result
    assert_streams(primary, standby, timeline=1)
