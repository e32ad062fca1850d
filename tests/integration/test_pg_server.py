# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_server against real servers: what it does, what it reports, and what it refuses to start."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psycopg2
import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import lock
from ansible_collections.hotspare.postgresql.plugins.module_utils.asked import asked_file, asked_just_now

from .conftest import PASSWORD, USER, eventually

CLEAN_STATE = {"primary": "shut down", "standby": "shut down in recovery"}


def real(node):
    """What is really there: is it alive and since when, what says pg_control, is it marked as a standby."""
    running = node.running
    return (
        running,
        node.postmaster if running else None,
        node.control("Database cluster state"),
        (node.data / "standby.signal").exists(),
    )


def recovery(node):
    return node.sql("SELECT pg_is_in_recovery()")


# --- the four steps: check, real, check again, real again ----------------------------------------------------------


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_stopped(pair, four_steps, role):
    node = getattr(pair, role)
    check, done, *again = four_steps("pg_server", {**node.params, "state": "stopped"}, lambda: real(node))
    assert not node.running
    assert node.control("Database cluster state") == CLEAN_STATE[role]
    assert check["shutdown"] is None
    for result in (done, *again):
        assert result["shutdown"]["clean"] is True
        assert result["shutdown"]["state"] == CLEAN_STATE[role]
        assert result["shutdown"]["checkpoint_lsn"] == node.control("Latest checkpoint location")
        assert result["shutdown"]["timeline"] == 1
    assert again[-1]["node"]["running"] is False
    assert again[-1]["node"]["control"]["state"] == CLEAN_STATE[role]


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_started(pair, four_steps, role):
    node = getattr(pair, role)
    node.stop()
    arguments = {**node.params, "state": "started", "role": role}
    _check, done, *_again = four_steps("pg_server", arguments, lambda: real(node)[:2])
    assert recovery(node) == ("t" if role == "standby" else "f")
    assert done["node"]["accepting"] is True
    assert done["node"]["process_id"] == node.postmaster
    assert done["shutdown"] is None


def test_a_standby_needs_no_word_about_its_role(pair, run_module):
    pair.standby.stop()
    assert run_module("pg_server", pair.standby.params)["changed"] is True
    assert recovery(pair.standby) == "t"


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_restarted(pair, run_module, role):
    node = getattr(pair, role)
    arguments = {**node.params, "state": "restarted"}
    for _ in range(2):  # it is an act, not a state: each real run restarts
        before = real(node)
        assert run_module("pg_server", arguments, check=True)["changed"] is True
        assert real(node) == before
        result = run_module("pg_server", arguments)
        assert result["changed"] is True
        assert result["shutdown"]["clean"] is True
        assert node.running and node.postmaster != before[1]
        assert recovery(node) == ("t" if role == "standby" else "f")


def test_restarted_starts_what_does_not_run(pair, run_module):
    pair.primary.stop()
    result = run_module("pg_server", {**pair.primary.params, "state": "restarted", "role": "primary"})
    assert result["changed"] is True and result["shutdown"] is None
    assert recovery(pair.primary) == "f"


def test_running_changes_nothing(pair, run_module):
    before = real(pair.primary)
    for check in (True, False, True, False):
        result = run_module("pg_server", {**pair.primary.params, "state": "running", "role": "primary"}, check=check)
        assert result["changed"] is False
        assert result["node"]["running"] is True
        assert real(pair.primary) == before


@pytest.mark.parametrize("check", [True, False])
def test_running_fails_when_it_does_not(pair, run_module, check):
    pair.primary.stop()
    result = run_module("pg_server", {**pair.primary.params, "state": "running"}, check=check)
    assert result["failed"] and "does not run" in result["msg"]
    assert not pair.primary.running


# --- roles ----------------------------------------------------------------------------------------------------------


def refused(run_module, node, arguments, part):
    """The module refuses, in check mode and for real, says why, and leaves all as it was."""
    before = real(node)
    for check in (True, False):
        result = run_module("pg_server", {**node.params, **arguments}, check=check)
        assert result.get("failed"), result
        assert part in result["msg"]
        assert result["msg"].count("\n") == 0
        assert real(node) == before


def test_refuses_a_primary_that_nobody_asked_for(pair, run_module):
    pair.primary.stop()
    refused(run_module, pair.primary, {}, "say `role: primary`")


def test_refuses_a_standby_without_its_signal(pair, run_module):
    pair.standby.stop()
    (pair.standby.data / "standby.signal").unlink()
    refused(run_module, pair.standby, {"role": "standby"}, "no standby.signal")


def test_refuses_a_standby_that_follows_nobody(pair, run_module):
    pair.standby.stop()
    os.unlink(pair.standby.instance.upstream_file)
    refused(run_module, pair.standby, {"role": "standby"}, "primary_conninfo")


def test_refuses_to_make_a_primary_of_a_standby(pair, run_module):
    pair.standby.stop()
    refused(run_module, pair.standby, {"role": "primary"}, "it last was a standby")
    (pair.standby.data / "standby.signal").unlink()
    refused(run_module, pair.standby, {"role": "primary"}, "it last was a standby")


def test_refuses_a_base_backup_as_primary(pair, lab, run_module):
    pair.primary.stop()
    (pair.primary.data / "backup_label").write_text("x", encoding="utf-8")
    refused(run_module, pair.primary, {"role": "primary"}, "backup_label")


def test_refuses_an_unfinished_recovery(pair, run_module):
    pair.primary.stop()
    (pair.primary.data / "recovery.signal").touch()
    refused(run_module, pair.primary, {"role": "primary"}, "recovery.signal")


def test_refuses_the_wrong_role_of_a_running_server(pair, run_module):
    refused(run_module, pair.standby, {"role": "primary"}, "runs as a standby")
    refused(run_module, pair.primary, {"state": "running", "role": "standby"}, "runs as a primary")
    refused(run_module, pair.standby, {"state": "restarted", "role": "primary"}, "it last was a standby")


def test_a_restart_does_not_change_the_role_unasked(pair, run_module):
    (pair.primary.data / "standby.signal").touch()
    refused(run_module, pair.primary, {"state": "restarted"}, "say which `role` is meant")


def test_an_aborted_cutover_starts_the_primary_again(pair, run_module, four_steps):
    """Stopped cleanly and marked as a standby, then given up: the mark goes and it is the primary again."""
    node = pair.primary
    note = node.write("before")
    node.stop()
    (node.data / "standby.signal").touch()
    four_steps("pg_server", {**node.params, "role": "primary"}, lambda: real(node)[1:2] + real(node)[3:])
    assert not (node.data / "standby.signal").exists()
    assert recovery(node) == "f"
    assert node.notes() == ["before"] and note


def test_a_prepared_primary_that_crashed_is_the_primary_again_when_that_is_said(pair, run_module):
    """pg_control proves that it last was a primary; whether the cutover was given up the caller has to know."""
    node = pair.primary
    node.write("kept")
    run_module("pg_server", prepared(pair))
    node.crash()
    assert node.control("Database cluster state") == "in production"
    result = run_module("pg_server", {**node.params, "role": "primary"})
    assert result.get("changed") is True, result
    assert not (node.data / "standby.signal").exists()
    assert recovery(node) == "f"
    assert node.notes() == ["kept"]


def test_a_prepared_primary_that_was_started_as_a_standby_stays_one(pair, run_module):
    """Then pg_control says nothing any more about what it was before."""
    node = pair.primary
    run_module("pg_server", prepared(pair))
    node.crash()
    node.start()
    eventually(lambda: "in archive recovery" in node.control("Database cluster state"))
    node.stop("immediate")
    refused(run_module, node, {"role": "primary"}, "it last was a standby")


def test_a_crashed_primary_recovers_when_it_is_said_to_be_the_primary(pair, run_module):
    pair.primary.write("kept")
    pair.primary.crash()
    result = run_module("pg_server", {**pair.primary.params, "role": "primary"})
    assert result.get("changed") is True, result
    assert pair.primary.notes() == ["kept"]


# --- prepared for a cutover -----------------------------------------------------------------------------------------


def prepared(pair, **more):
    """What prepares the running primary to follow its standby."""
    upstream = pair.standby.upstream(pair.primary)
    return {**pair.primary.params, "state": "running", "role": "primary", "upstream": upstream, **more}


def files(node):
    """What a start would read of its role."""
    path = Path(node.instance.upstream_file)
    return (node.data / "standby.signal").exists(), path.read_text(encoding="utf-8") if path.exists() else None


def test_prepared(pair, four_steps, run_module):
    """It stays the primary, and whatever restarts it makes it a standby."""
    node = pair.primary
    before = node.postmaster
    four_steps("pg_server", prepared(pair), lambda: files(node))
    assert node.postmaster == before and recovery(node) == "f"
    node.write("still the primary")
    node.crash()
    node.start()
    assert recovery(node) == "t"
    assert node.sql("SHOW primary_slot_name") == "hotspare_db_one"


@pytest.mark.parametrize("state", ["running", "started"])
def test_a_preparation_is_undone(pair, four_steps, run_module, state):
    node = pair.primary
    run_module("pg_server", prepared(pair))
    four_steps("pg_server", {**node.params, "state": state, "role": "primary"}, lambda: files(node))
    assert files(node) == (False, None)
    node.stop()
    node.start()
    assert recovery(node) == "f"


def test_only_a_running_primary_is_prepared(pair, run_module):
    for state in ("running", "stopped"):
        arguments = {"state": state, "upstream": pair.primary.upstream(pair.standby)}
        refused(run_module, pair.standby, arguments, "runs as a standby")
    pair.primary.stop()
    refused(run_module, pair.primary, {"state": "running", "upstream": prepared(pair)["upstream"]}, "does not run")


def test_nothing_is_prepared_that_a_start_would_not_read(pair, run_module):
    """Then standby.signal alone would make it a standby of nobody: the files stay as they were."""
    node = pair.primary
    config = Path(node.instance.config_file)
    included = config.read_text(encoding="utf-8")
    config.write_text(included.replace("include_dir", "#include_dir"), encoding="utf-8")
    result = run_module("pg_server", prepared(pair))
    assert result["failed"] and "include_dir" in result["msg"]
    assert files(node) == (False, None)
    config.write_text(included + "no_such_setting = 1\n", encoding="utf-8")
    refused(run_module, node, {"state": "running", "upstream": prepared(pair)["upstream"]}, "no_such_setting")
    config.write_text(included, encoding="utf-8")
    (node.data / "backup_label").touch()
    refused(run_module, node, {"state": "running", "upstream": prepared(pair)["upstream"]}, "backup_label")
    assert files(node) == (False, None)


def test_stopped_and_prepared_in_one(pair, four_steps, run_module):
    node = pair.primary
    four_steps("pg_server", prepared(pair, state="stopped", checkpoint=True), lambda: (real(node), files(node)))
    assert files(node)[0] and node.control("Database cluster state") == "shut down"
    assert run_module("pg_server", {**node.params, "role": "primary"})["changed"] is True
    assert recovery(node) == "f" and files(node)[0] is False


def test_a_start_as_primary_tells_the_guard_that_all_were_asked(pair, run_module):
    node = pair.primary
    node.stop()
    run_module("pg_server", {**node.params, "role": "primary"}, check=True)
    assert not asked_just_now(str(node.data))
    run_module("pg_server", {**node.params, "role": "primary"})
    assert asked_just_now(str(node.data))
    pair.standby.stop()
    run_module("pg_server", pair.standby.params)
    assert not asked_just_now(str(pair.standby.data))
    os.unlink(asked_file(str(node.data)))


# --- stopping -------------------------------------------------------------------------------------------------------


def test_an_immediate_stop_is_not_clean(pair, run_module):
    node = pair.primary
    result = run_module("pg_server", {**node.params, "state": "stopped", "mode": "immediate"})
    assert result["changed"] is True
    assert result["shutdown"]["clean"] is False
    assert node.control("Database cluster state") == "in production"
    again = run_module("pg_server", {**node.params, "state": "stopped"})
    assert again["changed"] is False
    assert again["shutdown"]["clean"] is False


def test_checkpoints_are_made_until_one_is_short_and_the_times_are_told(pair, run_module):
    node = pair.primary
    node.sql("INSERT INTO ledger (note) SELECT repeat('x', 500) FROM generate_series(1, 20000)")
    began = time.clock_gettime(time.CLOCK_REALTIME)
    shutdown = run_module("pg_server", {**node.params, "state": "stopped", "checkpoint": True})["shutdown"]
    taken = shutdown["checkpoints"]
    assert 1 <= len(taken) <= 5
    assert all(seconds >= 0.2 for seconds in taken[:-1])
    assert began < shutdown["requested_at"] <= shutdown["ended_at"] < time.clock_gettime(time.CLOCK_REALTIME)
    assert shutdown["seconds"] == pytest.approx(shutdown["ended_at"] - shutdown["requested_at"], abs=0.002)
    assert shutdown["escalated"] is False and shutdown["not_archived"] == []
    again = run_module("pg_server", {**node.params, "state": "stopped", "checkpoint": True})["shutdown"]
    assert (again["checkpoints"], again["requested_at"], again["ended_at"], again["seconds"]) == ([], None, None, 0)


def a_session(node):
    """A client that stays connected; its process on the server."""
    connection = psycopg2.connect(
        host="127.0.0.1", port=node.instance.port, user=USER, password=PASSWORD, dbname="postgres"
    )
    return connection, connection.info.backend_pid


def test_a_frozen_backend_is_given_up(pair, run_module):
    """PostgreSQL waits for it for ever; after `immediate_after` seconds the stop is a crash, and said to be one."""
    node = pair.primary
    connection, backend = a_session(node)
    os.kill(backend, signal.SIGSTOP)
    result = run_module("pg_server", {**node.params, "state": "stopped", "immediate_after": 1, "timeout": 20})
    connection.close()
    assert not result.get("failed"), result
    shutdown = result["shutdown"]
    assert shutdown["escalated"] is True and shutdown["clean"] is False
    assert 1 <= shutdown["seconds"] < 20, "the timeout"
    assert node.processes() == []
    assert run_module("pg_server", {**node.params, "role": "primary"})["changed"] is True


@pytest.fixture
def stopping(pair, run_module):
    """The task of a run that died: it stops the primary, which a frozen backend holds up. Its end is the fixture's."""
    node = pair.primary
    connection, backend = a_session(node)
    os.kill(backend, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(run_module, "pg_server", {**node.params, "state": "stopped", "timeout": 60})
        eventually(lambda: "shutting down" in node.log or "fast shutdown" in node.log)
        yield SimpleNamespace(task=task, backend=backend)
        if not task.done():
            os.kill(backend, signal.SIGCONT)
    connection.close()


def test_one_works_at_a_time(pair, run_module, stopping):
    node = pair.primary
    again = {**node.params, "role": "primary"}
    held = rf"{node.instance.name} is worked on by process \d+ \(pg_server state=stopped\) since"
    for name, options in (
        ("pg_server", {**again, "timeout": 1}),
        ("pg_server", {**node.params, "state": "running", "role": "primary", "timeout": 1}),
        ("pg_promote", {**node.params, "state": "disarmed", "timeout": 1}),
    ):
        began = time.monotonic()
        refused = run_module(name, options)
        assert refused["failed"] and re.search(held, refused["msg"]), refused
        assert "end it on" in refused["msg"]
        assert time.monotonic() - began >= 1
        # Check mode only looks, and waits for nobody.
        assert re.search(held, run_module(name, options, check=True)["msg"])
    with ThreadPoolExecutor(1) as pool:
        next_one = pool.submit(run_module, "pg_server", again)
        time.sleep(1)
        os.kill(stopping.backend, signal.SIGCONT)
        # What it finds is what the one before it left: a server that is stopped.
        result = next_one.result()
    assert stopping.task.result()["shutdown"]["clean"] is True
    assert result["changed"] is True, result
    assert recovery(node) == "f"


def test_a_fence_does_not_wait_for_the_one_at_work(pair, run_module, stopping):
    node = pair.primary
    fenced = run_module("pg_server", {**node.params, "state": "fenced", "timeout": 10})
    assert fenced["fence"]["verified"] is True and fenced["changed"] is True, fenced
    stopping.task.result(timeout=30)  # it has given the node free, and ends by itself
    assert node.processes() == []
    assert (node.data / "standby.signal").exists()


def test_a_fence_beside_one_that_stays_at_work_is_none(pair, run_module):
    node = pair.primary
    with lock.working(node.instance.data_directory, "db", "pg_rebuild", 0):
        refused = run_module("pg_server", {**node.params, "state": "fenced", "timeout": 1})
    assert refused["failed"] and f"process {os.getpid()} (pg_rebuild)" in refused["msg"]
    assert node.processes() == []


def test_a_server_that_was_started_does_not_hold_the_node(pair, run_module):
    node = pair.primary
    node.stop()
    assert run_module("pg_server", {**node.params, "role": "primary"})["changed"] is True
    with lock.working(node.instance.data_directory, "db", "pg_server", 0):
        assert node.running


def test_a_hung_receiver_is_waited_for(pair, run_module):
    """wal_sender_timeout (5 s here) bounds it, so it is no reason to give the cleanness up."""
    node = pair.primary
    pair.standby.freeze()
    node.sql("INSERT INTO ledger (note) SELECT repeat('x', 500) FROM generate_series(1, 30000)")  # fills the socket
    result = run_module("pg_server", {**node.params, "state": "stopped", "immediate_after": 1, "timeout": 30})
    pair.standby.thaw()
    assert not result.get("failed"), result
    assert result["shutdown"]["escalated"] is False
    assert result["shutdown"]["clean"] is True


def test_what_is_not_archived_is_told(pair, run_module):
    node = pair.primary
    with open(node.instance.config_file, "a", encoding="utf-8") as file:
        file.write("archive_mode = on\narchive_command = 'false'\n")
    node.stop()
    node.start()
    node.write()
    name = node.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
    node.sql("SELECT pg_switch_wal()")
    node.write()
    left = run_module("pg_server", {**node.params, "state": "stopped"})["shutdown"]["not_archived"]
    assert left[0] == name and len(left) >= 2, "a stop switches the segment, so that one waits too"
    assert left == run_module("pg_server", {**node.params, "state": "stopped"})["shutdown"]["not_archived"]


def test_the_shutdown_tells_what_a_standby_must_have(pair, run_module):
    """A standby that had everything is strictly past the shutdown checkpoint's start."""
    pair.primary.write()
    shutdown = run_module("pg_server", {**pair.primary.params, "state": "stopped", "checkpoint": True})["shutdown"]
    held = "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
    assert pair.standby.sql(f"SELECT {held} > '{shutdown['checkpoint_lsn']}'") == "t"


def test_a_stop_does_not_wait_for_the_archiver(pair, run_module):
    """pg_control says "shut down" while the process lives on: it is stopped, and it is started again once it ended."""
    node = pair.primary
    enough = node.data.parent / "enough"
    with open(node.instance.config_file, "a", encoding="utf-8") as file:
        file.write(f"archive_mode = on\narchive_command = 'until test -e {enough}; do sleep 0.1; done'\n")
    node.stop()
    node.start()
    node.sql("SELECT pg_switch_wal()")
    for changed in (True, False):
        result = run_module("pg_server", {**node.params, "state": "stopped"})
        assert result["changed"] is changed
        assert result["shutdown"]["clean"] is True
        assert result["node"]["running"] is True
        assert node.control("Database cluster state") == "shut down"
    assert run_module("pg_server", {**node.params, "state": "running"})["failed"]
    before = node.postmaster
    enough.touch()
    again = run_module("pg_server", {**node.params, "role": "primary"})
    assert again["changed"] is True
    assert node.postmaster != before
    assert recovery(node) == "f"


def test_a_frozen_server_is_not_reported_as_stopped(pair, run_module):
    node = pair.primary
    node.freeze()
    result = run_module("pg_server", {**node.params, "state": "stopped", "timeout": 3})
    assert result["failed"] and "did not stop within 3 seconds" in result["msg"]
    assert result["node"]["running"] is True
    assert result["node"]["control"]["state"] == "in production"
    node.thaw()


def test_processes_of_a_killed_postmaster_are_no_stopped_server(pair, run_module):
    """Killing only the postmaster is no fence: a backend goes on committing, so `stopped` must not be said."""
    node = pair.primary
    others = [pid for pid in node.processes() if pid != node.postmaster]
    node.freeze()  # so that they stay
    os.kill(node.postmaster, signal.SIGKILL)
    result = run_module("pg_server", {**node.params, "state": "stopped"})
    assert result["failed"] and "may still commit" in result["msg"]
    assert str(others[0]) in result["msg"]
    result = run_module("pg_server", {**node.params, "role": "primary"})
    assert result["failed"] and "may still commit" in result["msg"]


def test_a_stale_lock_file_is_no_server(pair, run_module):
    """After a reboot the number in postmaster.pid is another process, here even one of the same account."""
    node = pair.primary
    other = pair.standby.postmaster
    lock = (node.data / "postmaster.pid").read_text(encoding="utf-8")
    node.stop()
    (node.data / "postmaster.pid").write_text(lock.replace(lock.split("\n")[0], str(other), 1), encoding="utf-8")
    shutil.chown(node.data / "postmaster.pid", "postgres", "postgres")
    result = run_module("pg_server", {**node.params, "state": "stopped"})
    assert result["changed"] is False
    assert result["node"]["running"] is False
    assert pair.standby.running


@pytest.mark.parametrize("content", ["", "abc\n"])
def test_a_damaged_lock_file_is_unknown(pair, run_module, content):
    pair.primary.stop()
    (pair.primary.data / "postmaster.pid").write_text(content, encoding="utf-8")
    result = run_module("pg_server", {**pair.primary.params, "state": "stopped"})
    assert result["failed"] and "not known whether a server runs" in result["msg"]


# --- fenced ---------------------------------------------------------------------------------------------------------


def fenced(result):
    """It is, and why that is known; the names of the steps."""
    assert not result.get("failed"), result
    assert result["fence"]["verified"] is True
    return [step["name"] for step in result["fence"]["steps"]]


def is_dead(node):
    return node.processes() == [] and (node.data / "standby.signal").exists()


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_fenced(pair, four_steps, role):
    node = getattr(pair, role)
    check, done, *again = four_steps("pg_server", {**node.params, "state": "fenced"}, lambda: real(node)[:2])
    assert is_dead(node)
    assert check["fence"]["verified"] is False
    assert "fast" in fenced(done) and "immediate" not in fenced(done)
    assert node.control("Database cluster state") == CLEAN_STATE[role]
    for result in again:
        assert fenced(result) == ["verify"]


def test_a_stopped_primary_is_only_marked(pair, four_steps):
    node = pair.primary
    node.stop()
    _check, done, *_again = four_steps(
        "pg_server", {**node.params, "state": "fenced"}, lambda: real(node)[::2] + real(node)[3:]
    )
    assert fenced(done) == ["mark", "kill", "verify"] and is_dead(node)


def test_a_frozen_server_is_fenced(pair, run_module):
    """As a postmaster that hangs: it hears no signal but one."""
    node = pair.primary
    node.freeze()
    began = time.monotonic()
    assert "fast" not in fenced(run_module("pg_server", {**node.params, "state": "fenced"}))
    assert time.monotonic() - began < 10
    assert is_dead(node)


def test_a_frozen_backend_is_fenced(pair, run_module):
    node = pair.primary
    connection, backend = a_session(node)
    os.kill(backend, signal.SIGSTOP)
    fenced(run_module("pg_server", {**node.params, "state": "fenced"}))
    connection.close()
    assert is_dead(node)


def test_a_backend_in_the_middle_of_work_is_fenced(pair, run_module):
    """One that does not look at signals for long, here a session that a hung receiver lets wait for its commit."""
    node = pair.primary
    pair.standby.freeze()
    node.sql("INSERT INTO ledger (note) SELECT repeat('x', 500) FROM generate_series(1, 30000)")
    steps = fenced(run_module("pg_server", {**node.params, "state": "fenced"}))
    pair.standby.thaw()
    assert "immediate" in steps
    assert is_dead(node)


def test_processes_without_their_postmaster_are_fenced(pair, run_module):
    node = pair.primary
    others = [pid for pid in node.processes() if pid != node.postmaster]
    node.freeze()
    os.kill(node.postmaster, signal.SIGKILL)
    assert others
    fenced(run_module("pg_server", {**node.params, "state": "fenced"}))
    assert is_dead(node)


def test_a_damaged_lock_file_does_not_save_a_server(pair, run_module):
    node = pair.primary
    (node.data / "postmaster.pid").write_text("", encoding="utf-8")
    fenced(run_module("pg_server", {**node.params, "state": "fenced"}))
    assert is_dead(node)


def test_a_fence_that_cannot_be_marked_says_so(pair, run_module):
    """It takes no writes, which is more than nothing, but a start would bring it back."""
    node = pair.primary
    (node.data / ".standby.signal.hotspare-tmp" / "x").mkdir(parents=True)
    result = run_module("pg_server", {**node.params, "state": "fenced"})
    assert result["failed"] and "its next start would make it a primary" in result["msg"]
    assert result["fence"]["verified"] is False
    assert node.processes() == []


def test_a_fenced_primary_can_be_the_primary_again_when_that_is_said(pair, run_module):
    node = pair.primary
    node.write("kept")
    run_module("pg_server", {**node.params, "state": "fenced"})
    assert run_module("pg_server", {**node.params, "role": "primary"})["changed"] is True
    assert node.notes() == ["kept"]


# --- bad input ------------------------------------------------------------------------------------------------------


def test_checkpoint_is_no_change_and_not_made_in_check_mode(pair, run_module):
    node = pair.primary
    arguments = {**node.params, "state": "running", "checkpoint": True}
    before = node.control("Latest checkpoint location")
    node.write()
    assert run_module("pg_server", arguments, check=True)["changed"] is False
    assert node.control("Latest checkpoint location") == before
    assert run_module("pg_server", arguments)["changed"] is False
    assert node.control("Latest checkpoint location") != before
    # On a standby it would be a restartpoint, which is not meant.
    assert run_module("pg_server", {**pair.standby.params, "state": "running", "checkpoint": True})["changed"] is False


def test_reload_is_for_a_server_that_runs(pair, lab, run_module):
    asked = "SELECT pg_conf_load_time()"
    before = pair.primary.sql(asked)
    assert run_module("pg_server", {**pair.primary.params, "state": "reloaded"}, check=True)["changed"] is True
    assert pair.primary.sql(asked) == before
    assert run_module("pg_server", {**pair.primary.params, "state": "reloaded"})["changed"] is True
    deadline = time.monotonic() + 10
    while pair.primary.sql(asked) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # A stopped one stays stopped, systemd would start it; and one that has no data yet is none.
    pair.primary.stop()
    assert run_module("pg_server", {**pair.primary.params, "state": "reloaded"})["changed"] is False
    assert not pair.primary.running
    bare = lab.node("bare", data=False)
    assert run_module("pg_server", {**bare.params, "state": "reloaded"})["changed"] is False


def test_a_start_that_fails_says_why(pair, run_module):
    """From this start, not what else stands in the log."""
    node = pair.primary
    node.program("psql", "-h", node.instance.socket_directory, "-p", str(node.instance.port), "-d", "old", check=False)
    node.stop()
    assert 'database "old" does not exist' in node.log
    with open(node.instance.config_file, "a", encoding="utf-8") as file:
        file.write("shared_preload_libraries = 'no_such_library'\n")
    result = run_module("pg_server", {**node.params, "role": "primary"})
    assert result["failed"] and "no_such_library" in result["msg"]
    assert not any("old" in line for line in result["log"])


def test_a_server_is_not_stopped_for_a_configuration_it_cannot_start_with(pair, run_module):
    node = pair.primary
    with open(node.instance.config_file, "a", encoding="utf-8") as file:
        file.write("no_such_setting = 1\n")
    refused(run_module, node, {"state": "restarted"}, 'unrecognized configuration parameter "no_such_setting"')
    assert node.running
    node.stop()
    refused(run_module, node, {"role": "primary"}, 'unrecognized configuration parameter "no_such_setting"')


def test_the_configuration_of_another_directory_is_refused(pair, run_module):
    pair.primary.stop()
    pair.standby.stop()
    wrong = {**pair.primary.params, "config_file": pair.standby.instance.config_file, "role": "primary"}
    result = run_module("pg_server", wrong)
    assert result["failed"] and "belongs to the data directory" in result["msg"]
    assert not pair.primary.running and not pair.standby.running


def test_the_port_of_another_server_is_refused(pair, run_module):
    wrong = {**pair.standby.params, "port": pair.primary.instance.port, "state": "running", "role": "primary"}
    result = run_module("pg_server", wrong)
    assert result["failed"] and "belongs to the server of" in result["msg"]


def test_a_directory_without_a_cluster(lab, run_module, tmp_path):
    node = lab.node("db-three", data=False)
    for path, kind in ((node.data, "absent"), (tmp_path, "empty"), (tmp_path.parent, "foreign")):
        result = run_module("pg_server", {**node.params, "data_directory": str(path), "state": "stopped"})
        assert result["failed"] and f"is {kind}" in result["msg"], result


def test_an_unknown_account(pair, run_module):
    result = run_module("pg_server", {**pair.primary.params, "account": "no-such-account"})
    assert result["failed"] and "there is no account no-such-account" in result["msg"]


def test_a_standby_that_lacks_wal_is_started_but_does_not_accept(pair, lab, run_module):
    """Its primary is gone and it has not reached consistency: that is no failed start."""
    pair.standby.stop("immediate")
    # Reading starts at the redo position but the WAL after it is missing, as after a base backup whose source died.
    node = lab.node("db-three", data=False)
    source = ["-h", "127.0.0.1", "-p", str(pair.primary.instance.port), "-U", "replicator", "-X", "none", "-c", "fast"]
    connection = f"passfile={pair.primary.passfile}"
    pair.primary.program("pg_basebackup", *source, "-d", connection, "-D", str(node.data))
    pair.primary.stop()
    (node.data / "standby.signal").touch()
    shutil.chown(node.data / "standby.signal", "postgres", "postgres")
    result = run_module("pg_server", {**node.params, "timeout": 3})
    assert result["changed"] is True
    assert result["node"]["running"] is True
    assert result["node"]["accepting"] is False
