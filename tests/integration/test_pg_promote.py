# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_promote against real servers: it promotes what may be promoted, and leaves alone what may not."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import format_lsn, parse_lsn

from .conftest import eventually, execute


def look(node) -> tuple[Any, ...]:
    """What a promotion, or any other meddling, would change."""
    shown = "SELECT pg_is_in_recovery(), pg_postmaster_start_time(), pg_conf_load_time(), count(*) FROM pg_ls_waldir()"
    files = [(node.data / name).exists() for name in ("standby.signal", "promote", "pg_wal/00000002.history")]
    where = ["-h", node.instance.socket_directory, "-p", str(node.instance.port), "-d", "postgres"]
    answer = node.program("psql", "-XAtqc", shown, *where, check=False)
    return node.running, answer, *files


def names(result: dict[str, Any]) -> list[str]:
    """The checks that failed."""
    return [check["name"] for check in result["checks"] if not check["ok"]]


@pytest.fixture
def stopped(pair) -> dict[str, Any]:
    """What a planned cutover requires: the primary was stopped, and wrote its last record there."""
    pair.primary.write("last words")
    pair.primary.stop()
    return {
        "require_lsn": pair.primary.control("Latest checkpoint location"),
        "require_timeline": 1,
        "require_system_identifier": pair.primary.control("Database system identifier"),
    }


@pytest.fixture
def refuse(pair, run_module):
    """refuse(options, [checks that fail], words) in check mode and for real, with the standby untouched."""

    def assert_refused(options: dict[str, Any], failing: list[str], says: str) -> dict[str, Any]:
        before = look(pair.standby)
        for check in (True, False):
            result = run_module("pg_promote", {**pair.standby.params, "timeout": 2, **options}, check=check)
            assert result["failed"], result
            assert names(result) == failing, result
            assert re.search(says, result["msg"]), result["msg"]
            assert "nothing was changed" in result["msg"]
            assert (result["changed"], result["pending"]) == (False, False)
            assert result["node"]["name"] == pair.standby.instance.name
            assert look(pair.standby) == before
        return result

    return assert_refused


def test_four_steps(pair, stopped, four_steps):
    results = four_steps("pg_promote", {**pair.standby.params, **stopped}, lambda: look(pair.standby)[2:])
    assert [names(result) for result in results] == [[], [], [], []]
    assert (results[0]["old_timeline"], results[0]["new_timeline"]) == (1, None)
    promoted = results[1]
    assert (promoted["old_timeline"], promoted["new_timeline"]) == (1, 2)
    assert promoted["pending"] is False
    assert promoted["seconds"] > 0
    assert promoted["node"]["role"] == "primary"
    # The timelines part where the old primary's last record ended, so it can follow without pg_rewind.
    history = pair.standby.sql("SELECT pg_read_file('pg_wal/00000002.history')")
    assert promoted["switch_lsn"] in history
    assert parse_lsn(promoted["switch_lsn"]) > parse_lsn(stopped["require_lsn"])
    # Nothing was lost, and pg_control says the new timeline at once: pg_rewind reads it there.
    assert pair.standby.notes() == ["last words"]
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"
    assert (results[3]["old_timeline"], results[3]["new_timeline"], results[3]["checks"]) == (2, 2, [])


def test_a_primary_is_left_as_it_is(pair, run_module):
    before = look(pair.primary)
    result = run_module("pg_promote", {**pair.primary.params, "require_lsn": "FF/0"})
    assert result["changed"] is False
    assert result["node"]["role"] == "primary"
    assert look(pair.primary) == before


def test_a_stopped_standby_is_refused(pair, stopped, refuse):
    pair.standby.stop()
    refuse(stopped, ["standby"], "start it as a standby first")


def test_an_absent_server_is_refused(lab, run_module):
    result = run_module("pg_promote", lab.node("db-three", data=False).params)
    assert names(result) == ["standby"]
    assert "holds no server" in result["msg"]


def test_a_server_that_cannot_be_asked_is_refused(pair, stopped, refuse):
    pair.standby.sql("ALTER SYSTEM SET hot_standby = off")
    pair.standby.stop()
    pair.standby.start()
    refuse({**stopped, "force": True}, ["replay", "apply_delay", "position"], "replay is in a state that is not known")


def test_a_paused_replay_is_refused(pair, stopped, refuse):
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    refuse(stopped, ["replay"], "pg_wal_replay_resume")
    refuse({"force": True}, ["replay"], "pg_wal_replay_resume")


def test_a_delayed_replay_is_refused(pair, stopped, refuse):
    pair.standby.sql("ALTER SYSTEM SET recovery_min_apply_delay = '1ms'")
    pair.standby.sql("SELECT pg_reload_conf()")
    refuse({**stopped, "force": True}, ["apply_delay"], "1 ms, set it to 0")


def test_exactly_the_required_position_is_not_enough(pair, stopped, refuse, run_module):
    held = pair.standby.sql("SELECT pg_last_wal_replay_lsn()")
    refuse({**stopped, "require_lsn": held}, ["position"], f"both must be past {held}")
    refuse({**stopped, "require_lsn": "FF/0", "force": True}, ["position"], "both must be past FF/0")
    options = {**stopped, "require_lsn": format_lsn(parse_lsn(held) - 1)}
    assert run_module("pg_promote", {**pair.standby.params, **options})["changed"] is True


def test_a_standby_that_lacks_the_last_record_is_refused(pair, refuse):
    # The receiver hangs, so the primary's clean stop ends without the standby having all of it.
    receiver = int(pair.standby.sql("SELECT pid FROM pg_stat_wal_receiver"))
    os.kill(receiver, signal.SIGSTOP)
    try:
        pair.primary.write("never arrives")
        pair.primary.stop()
        assert pair.primary.control("Database cluster state") == "shut down"
        missing = {"require_lsn": pair.primary.control("Latest checkpoint location")}
        refuse(missing, ["position"], "both must be past")
    finally:
        os.kill(receiver, signal.SIGCONT)


def test_without_a_position_it_must_be_forced(pair, stopped, refuse, run_module):
    refuse({}, ["position"], "give require_lsn, or force")
    forced = run_module("pg_promote", {**pair.standby.params, "force": True})
    assert (forced["changed"], forced["new_timeline"]) == (True, 2)


def test_a_position_that_is_none(pair, run_module):
    before = look(pair.standby)
    result = run_module("pg_promote", {**pair.standby.params, "require_lsn": "0-3000060"})
    assert "require_lsn" in result["msg"]
    assert look(pair.standby) == before


def test_another_cluster_or_timeline_is_refused(pair, stopped, refuse):
    refuse({**stopped, "require_system_identifier": "42", "force": True}, ["system_identifier"], "42 is required")
    refuse({**stopped, "require_timeline": 7, "force": True}, ["timeline"], "on timeline 1, 7 is required")


def test_an_old_primary_that_still_answers_is_refused(pair, refuse):
    position = {"require_lsn": "0/1"}
    refuse(position, ["old_primary"], "still answers as a primary, stop it first")
    refuse({"force": True}, ["old_primary"], "still answers as a primary, stop it first")
    refuse({**position, "primary": pair.primary.address}, ["old_primary"], "still answers as a primary")
    # A primary that is read-only by default is one all the same.
    pair.primary.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.sql("SELECT pg_reload_conf()")
    refuse(position, ["old_primary"], "still answers as a primary")


def test_an_old_primary_that_does_not_let_us_in_is_unknown(pair, run_module, refuse, tmp_path):
    wrong = {"require_lsn": "0/1", "primary": {**pair.primary.address, "passfile": "/dev/null"}}
    refuse(wrong, ["old_primary"], "make sure that it takes no writes and use force")
    forced = run_module("pg_promote", {**pair.standby.params, **wrong, "force": True}, check=True)
    assert forced["changed"] is True


def test_an_old_primary_that_is_starting_up_is_unknown(pair, stopped, refuse):
    (pair.primary.data / "standby.signal").touch()
    with (pair.primary.data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
        file.write("hot_standby = off\n")
    pair.primary.start()
    refuse(stopped, ["old_primary"], "use force")


def test_an_old_primary_that_is_a_standby_now_is_fine(pair, stopped, run_module):
    (pair.primary.data / "standby.signal").touch()
    pair.primary.start()
    result = run_module("pg_promote", {**pair.standby.params, **stopped}, check=True)
    assert result["changed"] is True
    assert "answers as a standby" in result["checks"][-1]["detail"]


def test_an_unknown_upstream_is_refused(pair, stopped, refuse):
    pair.standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
    pair.standby.sql("SELECT pg_reload_conf()")
    refuse(stopped, ["old_primary"], "give primary")


def test_a_frozen_or_crashed_primary_does_not_answer(pair, run_module):
    pair.primary.freeze()
    told = run_module("pg_promote", {**pair.standby.params, "force": True}, check=True)
    assert "does not answer" in told["checks"][-1]["detail"]
    assert "timeout" in told["checks"][-1]["detail"]
    pair.primary.crash()
    result = run_module("pg_promote", {**pair.standby.params, "force": True})
    assert "refused" in result["checks"][-1]["detail"]
    assert pair.standby.sql("SELECT pg_is_in_recovery()") == "f"


def startup(node) -> int:
    return int(node.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'"))


def test_it_waits_until_all_is_replayed(pair, run_module):
    process = startup(pair.standby)
    os.kill(process, signal.SIGSTOP)
    wake = threading.Timer(3, os.kill, (process, signal.SIGCONT))
    wake.start()
    try:
        pair.primary.write("not replayed yet")
        pair.primary.stop()
        required = pair.primary.control("Latest checkpoint location")
        result = run_module("pg_promote", {**pair.standby.params, "require_lsn": required, "timeout": 20})
    finally:
        wake.join()
    assert result["changed"] is True
    assert pair.standby.notes() == ["not replayed yet"]


def test_a_promotion_that_does_not_end_stays_in_force(pair, stopped, run_module):
    process = startup(pair.standby)
    os.kill(process, signal.SIGSTOP)
    try:
        result = run_module("pg_promote", {**pair.standby.params, **stopped, "timeout": 4})
        assert result["failed"]
        assert (result["pending"], result["changed"]) == (True, True)
        assert "the request stays in force, so do not start the old primary" in result["msg"]
        assert result["node"]["role"] == "standby"
    finally:
        os.kill(process, signal.SIGCONT)
    again = run_module("pg_promote", {**pair.standby.params, **stopped})
    assert not again.get("failed")
    assert again["node"]["role"] == "primary"
    assert again["node"]["timeline"] == again["new_timeline"] == 2
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"


def test_a_checkpoint_that_does_not_end_is_no_failed_promotion(pair, stopped, run_module):
    # Whoever reads a failure here may start the old primary again, beside this one.
    checkpointer = int(pair.standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"))
    os.kill(checkpointer, signal.SIGSTOP)
    try:
        result = run_module("pg_promote", {**pair.standby.params, **stopped, "timeout": 4})
    finally:
        os.kill(checkpointer, signal.SIGCONT)
    assert not result.get("failed"), result
    assert (result["changed"], result["pending"], result["new_timeline"]) == (True, False, 2)
    assert "its checkpoint is missing" in str(result["warnings"])
    assert pair.standby.sql("SELECT pg_is_in_recovery()") == "f"


def test_an_old_primary_that_only_waits_for_its_archiver(pair, run_module):
    settings = pair.primary.instance.upstream_file.replace("60-hotspare-upstream", "90-operator")
    execute("tee", settings, stdin="archive_mode = on\narchive_command = 'sleep 60'\n")
    pair.primary.stop()
    pair.primary.start()
    pair.primary.write("last words")
    eventually(pair.in_step)
    stopped = run_module("pg_server", {**pair.primary.params, "state": "stopped"})["shutdown"]
    assert pair.primary.running  # the postmaster, until the archiver is done
    wanted = {"require_lsn": stopped["checkpoint_lsn"], "require_timeline": 1, "timeout": 20}
    result = run_module("pg_promote", {**pair.standby.params, **wanted})
    assert result.get("changed") is True, result
    assert "is shutting down" in result["checks"][-1]["detail"]
    assert pair.standby.notes() == ["last words"]


def test_a_run_that_died_before_its_checkpoint_is_finished(pair, stopped, run_module):
    # Without our CHECKPOINT pg_control keeps the old timeline for a while; a spread checkpoint is made slow here.
    pair.standby.program("pg_ctl", "promote", "-w", "-D", str(pair.standby.data))
    result = run_module("pg_promote", pair.standby.params)
    assert result["changed"] is False
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"


@pytest.mark.parametrize("attempt", range(3))
def test_the_startup_process_is_woken(pair, run_module, attempt):
    # Asked right after the end of the stream it may sleep out this interval instead.
    pair.standby.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '20s'")
    pair.standby.sql("SELECT pg_reload_conf()")
    pair.primary.write()
    pair.primary.stop("immediate")
    result = run_module("pg_promote", {**pair.standby.params, "force": True})
    assert result["seconds"] < 15, "it slept its 20 s"
