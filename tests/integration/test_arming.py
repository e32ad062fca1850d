# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_promote state=armed against real servers: it promotes itself on the proof, and on nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import arming, lock
from ansible_collections.hotspare.postgresql.plugins.module_utils.armed_state import move, paths, read_armed
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import format_lsn, parse_lsn

from .conftest import PASSWORD, USER, eventually, execute

QUICK = 4  # s, from the end of the stream to writable: less than the five of the trap, however busy the machine is


def state(node) -> dict[str, Any]:
    return read_armed(node.instance.data_directory) or {}


def decided(node) -> dict[str, Any]:
    """What the armed process came to."""
    told = eventually(lambda: (now := state(node))["state"] not in ("armed", "promoting") and now)
    eventually(lambda: not state(node)["alive"])
    return told


def recovers(node) -> bool:
    return node.sql("SELECT pg_is_in_recovery()") == "t"


def stays(node) -> None:
    """The armed process has ended and has asked for nothing: the server stays a standby."""
    eventually(lambda: not state(node).get("alive"))
    assert recovers(node)
    assert not (node.data / "promote").exists()
    assert "received promote request" not in node.log


@pytest.fixture(autouse=True)
def nothing_left(lab):
    """Ends what a test armed, and takes its files away: a test's directory never comes again."""
    yield
    for data in lab.directory.glob("*/data"):
        told = read_armed(str(data))
        if told and told["alive"]:
            os.kill(told["pid"], signal.SIGCONT)
        move(str(data), "disarmed")
        eventually(lambda data=data: not (read_armed(str(data)) or {"alive": False})["alive"])
        for path in vars(paths(str(data))).values():
            Path(path).unlink(missing_ok=True)


@pytest.fixture
def arm(pair, run_module):
    """Arms the standby of the pair; what the module returned."""

    def armed(**options: Any) -> dict[str, Any]:
        result = run_module("pg_promote", {**pair.standby.params, "state": "armed", **options})
        assert not result.get("failed"), result
        assert result["armed"]["state"] == "armed"
        assert result["armed"]["alive"] is True
        return result

    return armed


@pytest.fixture
def collect(pair, run_module):
    def collected(check: bool = False, **options: Any) -> dict[str, Any]:
        return run_module("pg_promote", {**pair.standby.params, "timeout": 20, **options}, check=check)

    return collected


def required(primary) -> dict[str, Any]:
    """What a planned cutover requires of a primary that has stopped."""
    assert primary.control("Database cluster state") == "shut down"
    return {
        "require_lsn": primary.control("Latest checkpoint location"),
        "require_timeline": int(primary.control("Latest checkpoint's TimeLineID")),
        "require_system_identifier": primary.control("Database system identifier"),
    }


def client(primary, standby) -> Any:
    """A connection to whichever of the two takes writes, as libpq finds it."""
    ports = f"{primary.instance.port},{standby.instance.port}"
    return psycopg2.connect(
        host="127.0.0.1,127.0.0.1",
        port=ports,
        user=USER,
        password=PASSWORD,
        dbname="postgres",
        target_session_attrs="read-write",
        connect_timeout=2,
    )


class Ledger(threading.Thread):
    """A client that writes one row after the other; when each was acknowledged."""

    def __init__(self, pair) -> None:
        super().__init__()
        self.pair, self.ended, self.acknowledged = pair, threading.Event(), []

    def run(self) -> None:
        connection, number = None, 0
        while not self.ended.is_set():
            try:
                if connection is None:
                    connection = client(self.pair.primary, self.pair.standby)
                    connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO ledger (note) VALUES (%s)", (f"n{number}",))
                self.acknowledged.append((time.monotonic(), f"n{number}"))
                number += 1
                time.sleep(0.002)
            except psycopg2.Error:
                connection = None
                time.sleep(0.002)
        if connection is not None:
            connection.close()


@pytest.mark.parametrize("attempt", range(3))
def test_it_promotes_itself_when_its_primary_has_shut_down(pair, arm, collect, attempt):
    pair.primary.sql(f"GRANT ALL ON ledger TO {USER}; CHECKPOINT")
    pair.standby.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '5s'; SELECT pg_reload_conf()")
    ledger = Ledger(pair)
    ledger.start()
    try:
        eventually(lambda: len(ledger.acknowledged) > 50)
        arm()
        pair.primary.sql("CHECKPOINT")
        stopped = datetime.now(timezone.utc).timestamp()
        os.kill(pair.primary.postmaster, signal.SIGINT)
        told = decided(pair.standby)
        rows = len(ledger.acknowledged)
        eventually(lambda: len(ledger.acknowledged) > rows + 50)
    finally:
        ledger.ended.set()
        ledger.join()
    assert told["state"] == "promoted", told
    assert "CHECKPOINT_SHUTDOWN" in told["proof"]
    assert list(told["phases"]) == ["replayed", "proved", "promoted"]
    times = [at for at, _ in ledger.acknowledged]
    held_up = max(after - before for before, after in zip(times, times[1:]))
    print(
        f"held up {held_up:.3f} s; stop to end of stream {told['at']['stream_ended'] - stopped:.3f} s,"
        f" phases {told['phases']}"
    )
    assert told["phases"]["promoted"] < QUICK
    assert abs(told["at"]["writable"] - told["at"]["stream_ended"] - told["phases"]["promoted"]) < 0.01
    eventually(lambda: not pair.primary.running)
    wanted = required(pair.primary)
    assert collect(check=True, **wanted)["changed"] is True
    result = collect(**wanted)
    assert result["changed"] is True, result
    assert result["armed"]["state"] == "promoted"
    assert (result["old_timeline"], result["new_timeline"]) == (1, 2)
    assert parse_lsn(result["switch_lsn"]) > parse_lsn(wanted["require_lsn"])
    assert result["seconds"] < QUICK
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"
    again = collect(**wanted)
    assert (again["changed"], again["switch_lsn"]) == (False, result["switch_lsn"])
    # Every acknowledged row is there.
    assert set(pair.standby.notes()) >= {note for _, note in ledger.acknowledged}


def test_arming_twice(pair, four_steps):
    def look() -> Any:
        told = state(pair.standby)
        return told.get("state"), told.get("pid"), told.get("since")

    results = four_steps("pg_promote", {**pair.standby.params, "state": "armed"}, look)
    assert results[0]["armed"] is None
    for result in results[1:]:
        assert (result["armed"]["state"], result["armed"]["alive"]) == ("armed", True)
        assert 30 < result["armed"]["expires_in"] <= 60
        assert all(check["ok"] for check in result["checks"])
    assert recovers(pair.standby)


def test_disarming_twice(pair, arm, four_steps):
    process = arm()["armed"]["pid"]
    look = lambda: state(pair.standby)["state"]  # noqa: E731
    results = four_steps("pg_promote", {**pair.standby.params, "state": "disarmed"}, look)
    assert [result["armed"]["state"] for result in results] == ["armed", "disarmed", "disarmed", "disarmed"]
    eventually(lambda: not Path(f"/proc/{process}").exists())
    pair.primary.stop()
    stays(pair.standby)


def test_the_armed_process_does_not_hold_the_node(pair, arm):
    arm()
    with lock.working(pair.standby.instance.data_directory, "db2", "pg_server", 0):
        assert state(pair.standby)["alive"] is True


def test_one_that_was_never_armed_is_disarmed(pair, run_module):
    result = run_module("pg_promote", {**pair.standby.params, "state": "disarmed"})
    assert (result["changed"], result["armed"]) == (False, None)


def test_an_archiving_primary_that_did_nothing(pair, arm, collect):
    # It switches to a new segment before it writes its last record.
    settings = pair.primary.instance.upstream_file.replace("60-hotspare-upstream", "90-operator")
    execute("tee", settings, stdin="archive_mode = on\narchive_command = 'true'\n")
    pair.primary.stop()
    pair.primary.start()
    eventually(pair.streams)
    pair.primary.write("before")
    eventually(pair.in_step)
    arm()
    pair.primary.stop()
    told = decided(pair.standby)
    assert told["state"] == "promoted", told
    assert re.search(r"lsn: 0/0?\d000028,", told["proof"]), told
    assert collect(**required(pair.primary))["changed"] is True


def test_there_and_back(pair, lab, arm, run_module, collect):
    arm()
    pair.primary.write("one")
    pair.primary.stop()
    assert decided(pair.standby)["state"] == "promoted"
    assert collect(**required(pair.primary))["new_timeline"] == 2
    lab.follow(pair.standby, pair.primary)
    pair.standby.write("two")
    armed = run_module("pg_promote", {**pair.primary.params, "state": "armed", "require_timeline": 2})
    assert armed.get("changed") is True, armed
    pair.standby.write("three")
    pair.standby.stop()
    assert decided(pair.primary)["state"] == "promoted"
    result = run_module("pg_promote", {**pair.primary.params, **required(pair.standby)})
    assert (result["old_timeline"], result["new_timeline"]) == (2, 3)
    assert pair.primary.notes() == ["one", "two", "three"]
    # What the first one did is over once it follows again, and it can be armed anew.
    pair.primary.sql(f"SELECT pg_drop_replication_slot('{pair.standby.slot}')")
    lab.follow(pair.primary, pair.standby)
    gone = run_module("pg_promote", {**pair.standby.params, "state": "disarmed"})
    assert (gone.get("failed"), gone["changed"]) == (None, False)
    assert arm(require_timeline=3)["changed"] is True
    os.kill(state(pair.standby)["pid"], signal.SIGKILL)
    pair.primary.stop()
    result = collect(**required(pair.primary))
    assert (result["armed"]["state"], result["new_timeline"]) == ("disarmed", 4)


def test_what_it_did_once_is_forgotten_when_it_is_promoted_again(pair, lab, arm, collect):
    arm()
    pair.primary.stop()
    assert decided(pair.standby)["state"] == "promoted"
    lab.follow(pair.standby, pair.primary)
    pair.standby.stop()
    pair.primary.program("pg_ctl", "promote", "-w", "-D", str(pair.primary.data))
    pair.primary.sql(f"SELECT pg_drop_replication_slot('{pair.standby.slot}')")
    lab.follow(pair.primary, pair.standby)
    pair.primary.stop()
    result = collect(**required(pair.primary))
    assert (result["changed"], result["armed"]) == (True, None), result
    assert read_armed(pair.standby.instance.data_directory) is None


def test_a_killed_primary_is_no_proof(pair, arm, collect):
    arm()
    pair.primary.write("one")
    pair.primary.crash()
    told = decided(pair.standby)
    assert told["state"] == "refused"
    assert "without the shutdown record" in told["reason"] or "stands still" in told["reason"], told
    assert recovers(pair.standby)
    # One shot: its clean stop later on is none of it.
    pair.primary.start()
    eventually(pair.streams)
    pair.primary.stop()
    stays(pair.standby)
    result = collect(**required(pair.primary))
    assert (result["changed"], result["armed"]["state"]) == (True, "refused")
    assert pair.standby.notes() == ["one"]


def last_record(node) -> str:
    position = node.sql("SELECT pg_last_wal_replay_lsn()")
    begin = format_lsn(parse_lsn(position) // (1 << 24) * (1 << 24))
    wal = ["-p", str(node.data / "pg_wal"), "-t", "1", "-s", begin, "-e", position]
    return node.program("pg_waldump", *wal).strip().splitlines()[-1]


@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "asleep"])
def test_the_end_of_a_crash_recovery_is_no_proof(pair, arm, asleep):
    """The primary crashed, came back, wrote such a record at the end of its recovery, and is cut off: it lives."""
    pair.primary.sql("VACUUM")  # so that no look at it writes hints
    eventually(pair.in_step)
    process = arm()["armed"]["pid"]
    if asleep:
        os.kill(process, signal.SIGSTOP)
    pair.primary.crash()
    pair.primary.start()
    eventually(lambda: pair.standby.sql("SELECT status FROM pg_stat_wal_receiver") == "streaming")
    eventually(lambda: "CHECKPOINT_SHUTDOWN" in last_record(pair.standby))
    # As a cut of the network would end it.
    pair.standby.sql("ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()")
    eventually(lambda: pair.standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0")
    if asleep:
        os.kill(process, signal.SIGCONT)
    told = decided(pair.standby)
    assert told["state"] == "refused", told
    assert ("nobody looked" in told["reason"]) is asleep, told
    assert recovers(pair.standby)
    pair.primary.write("it lives")


def test_it_expires(pair, arm, collect):
    arm(timeout=1)
    told = decided(pair.standby)
    assert (told["state"], told["reason"]) == ("expired", "its time is over")
    assert told["expires_in"] <= 0
    pair.primary.stop()
    stays(pair.standby)
    result = collect(**required(pair.primary))
    assert (result["changed"], result["armed"]["state"]) == (True, "expired")


def test_the_module_is_killed_after_it_armed(pair, arm):
    process = arm()["armed"]["pid"]
    # Nothing of it is left but this one: no parent, no terminal, no session of anybody else.
    assert os.getsid(process) not in (os.getsid(0), process)
    session = os.getsid(process)
    assert not Path(f"/proc/{session}").exists()
    shown = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    assert int(shown[4]) == 0  # no terminal
    with pytest.raises(ProcessLookupError):
        os.kill(session, signal.SIGKILL)
    pair.primary.stop()
    assert decided(pair.standby)["state"] == "promoted"


def test_armed_by_ansible_whose_files_are_gone_by_then(pair):
    """A module's own archive of our code disappears with the module; what the process needs it has imported."""
    options = json.dumps({**pair.standby.params, "state": "armed"})
    shown = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "localhost", "-m", "hotspare.postgresql.pg_promote", "-a", options],
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(Path(arming.__file__).parents[5]),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "CHANGED" in shown.stdout, shown.stdout + shown.stderr
    pair.primary.write("one")
    pair.primary.stop()
    told = decided(pair.standby)
    assert told["state"] == "promoted", told
    print(told["phases"])


def test_a_killed_armed_process_is_told_and_replaced_by_the_guarded_way(pair, arm, collect, run_module):
    os.kill(arm()["armed"]["pid"], signal.SIGKILL)
    told = eventually(lambda: (now := state(pair.standby))["state"] == "dead" and now)
    assert (told["alive"], "is gone" in told["reason"]) == (False, True)
    # Another one can be armed.
    again = arm()
    assert again["changed"] is True
    os.kill(again["armed"]["pid"], signal.SIGKILL)
    pair.primary.write("one")
    pair.primary.stop()
    stays(pair.standby)
    result = collect(**required(pair.primary))
    assert (result["changed"], result["armed"]["state"], result["new_timeline"]) == (True, "disarmed", 2), result
    assert pair.standby.notes() == ["one"]


def test_a_frozen_receiver_holds_it_up_and_the_guarded_way_refuses(pair, arm, collect):
    arm()
    receiver = int(pair.standby.sql("SELECT pid FROM pg_stat_wal_receiver"))
    os.kill(receiver, signal.SIGSTOP)
    try:
        pair.primary.write("one")
        pair.primary.stop()
        assert state(pair.standby)["state"] == "armed"
        result = collect(timeout=4, **required(pair.primary))
        assert result["failed"]
        assert "both must be past" in result["msg"]
        assert result["armed"]["state"] == "disarmed"
    finally:
        os.kill(receiver, signal.SIGCONT)
    eventually(lambda: pair.standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0")
    stays(pair.standby)


def test_a_receiver_that_was_frozen_for_a_while(pair, arm):
    arm()
    receiver = int(pair.standby.sql("SELECT pid FROM pg_stat_wal_receiver"))
    os.kill(receiver, signal.SIGSTOP)
    pair.primary.write("one")
    pair.primary.stop()  # by its wal_sender_timeout
    os.kill(receiver, signal.SIGCONT)
    # All of it was under way; or it was not, and then there is no proof.
    told = decided(pair.standby)
    assert (told["state"] == "promoted") is ("CHECKPOINT_SHUTDOWN" in (told["proof"] or "")), told
    assert recovers(pair.standby) is (told["state"] != "promoted")


def test_a_replay_that_is_paused_is_given_up(pair, arm):
    arm()
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    pair.primary.write("one")
    pair.primary.stop()
    told = decided(pair.standby)
    assert (told["state"], "replay stands still" in told["reason"]) == ("refused", True), told


def test_a_replay_that_is_slow_is_waited_for(pair, arm, collect):
    arm()
    startup = int(pair.standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'"))
    os.kill(startup, signal.SIGSTOP)
    pair.primary.write("one")
    pair.primary.stop()
    time.sleep(1)
    assert state(pair.standby)["state"] == "armed"
    os.kill(startup, signal.SIGCONT)
    result = collect(**required(pair.primary))
    assert (result["changed"], result["armed"]["state"]) == (True, "promoted")
    assert pair.standby.notes() == ["one"]


@pytest.mark.parametrize("after", [0.0, 0.01, 0.02, 0.03])
def test_a_disarm_that_comes_with_the_promotion(pair, arm, run_module, after):
    arm()
    outcome: dict[str, Any] = {}

    def disarm() -> None:
        # In this process: a module takes a while to begin.
        outcome["moved"] = move(pair.standby.instance.data_directory, "disarmed", reason="test")

    pair.primary.sql("CHECKPOINT")
    os.kill(pair.primary.postmaster, signal.SIGINT)
    waited = threading.Timer(after, disarm)
    waited.start()
    waited.join()
    told = decided(pair.standby)
    assert told["state"] == ("disarmed" if outcome["moved"] else "promoted")
    if outcome["moved"]:
        stays(pair.standby)
    else:
        eventually(lambda: not recovers(pair.standby))
    result = run_module("pg_promote", {**pair.standby.params, "state": "disarmed"})
    assert bool(result.get("failed")) is not outcome["moved"]
    if not outcome["moved"]:
        assert result["pending"] is True
        assert "do not start the old primary" in result["msg"]


def test_a_forced_failover_does_not_wait_for_an_armed_process(pair, arm, collect):
    arm()
    pair.primary.freeze()
    result = collect(force=True)
    assert (result["changed"], result["armed"]["state"]) == (True, "disarmed"), result


def test_it_is_not_armed(pair, run_module, lab):
    def refused(node, says: str) -> None:
        for check in (True, False):
            result = run_module("pg_promote", {**node.params, "state": "armed"}, check=check)
            assert result["failed"], result
            assert re.search(says, result["msg"]), result["msg"]
            assert read_armed(node.instance.data_directory) is None

    refused(pair.primary, "it is primary")
    refused(lab.node("db-three", data=False), "holds no server")
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    refused(pair.standby, "pg_wal_replay_resume")
    pair.standby.sql("SELECT pg_wal_replay_resume()")
    pair.primary.stop()
    refused(pair.standby, "does not stream.*does not answer")
    pair.standby.stop()
    refused(pair.standby, "start it as a standby first")


# What nobody has archived --------------------------------------------------------------------------------------------


@pytest.fixture
def archiving(pair):
    """Both archive to one directory, where a file may be again if it is the same; the primary's archiver is broken."""
    archive = pair.primary.data.parent.parent / "archive"
    execute("mkdir", str(archive))
    broken = pair.primary.data.parent.parent / "broken"
    command = f"test ! -e {broken} && (cmp -s %p {archive}/%f || (test ! -e {archive}/%f && cp %p {archive}/%f))"
    for node in (pair.standby, pair.primary):
        settings = node.instance.upstream_file.replace("60-hotspare-upstream", "90-operator")
        execute("tee", settings, stdin=f"archive_mode = on\narchive_command = '{command}'\nwal_keep_size = 512MB\n")
        node.stop()
        node.start()
    eventually(pair.streams)

    def switch() -> str:
        pair.primary.write()
        return pair.primary.sql("SELECT pg_walfile_name(pg_switch_wal())")

    def archived() -> list[str]:
        return sorted(path.name for path in archive.iterdir() if re.fullmatch(r"[0-9A-F]{24}", path.name))

    first = switch()
    eventually(lambda: first in archived())
    execute("touch", str(broken))
    lacks = [switch(), switch()]
    eventually(pair.in_step)
    eventually(lambda: all((pair.standby.data / f"pg_wal/archive_status/{name}.done").exists() for name in lacks))
    return {"archived": archived, "lacks": lacks, "mend": lambda: execute("rm", str(broken)), "directory": archive}


def test_what_the_stopped_primary_had_not_archived(pair, archiving, run_module):
    pair.primary.stop()
    missing = sorted(path.stem for path in (pair.primary.data / "pg_wal/archive_status").glob("*.ready"))
    assert set(missing) >= set(archiving["lacks"])
    archiving["mend"]()
    options = {**pair.standby.params, **required(pair.primary), "archive_again": missing}
    result = run_module("pg_promote", options)
    assert result["kept_for_archive"] == missing, result
    pair.standby.sql("SELECT pg_switch_wal()")  # the archiver looks once a minute, and at each new segment
    eventually(lambda: set(archiving["archived"]()) >= set(missing))
    eventually(lambda: not list((pair.standby.data / "pg_wal/archive_status").glob("*.ready")))
    again = run_module("pg_promote", options)
    assert (again["changed"], again["kept_for_archive"]) == (False, [])
    absent = run_module("pg_promote", {**options, "archive_again": ["0000000100000000000000FF"]})
    assert "copy what the old primary has" in str(absent["warnings"])


@pytest.mark.parametrize("asks", [True, False], ids=["restore_command", "nothing to ask"])
def test_what_a_dead_primary_had_not_archived(pair, archiving, run_module, asks):
    if asks:
        pair.standby.sql(f"ALTER SYSTEM SET restore_command = 'cp {archiving['directory']}/%f %p'")
        pair.standby.stop()
        pair.standby.start()
        eventually(pair.streams)
    pair.primary.crash()
    archiving["mend"]()
    result = run_module("pg_promote", {**pair.standby.params, "force": True})
    assert not result.get("failed"), result
    kept = result["kept_for_archive"]
    assert kept == archiving["lacks"] if asks else set(kept) > set(archiving["lacks"])
    assert ("archive_command must succeed" in str(result.get("warnings"))) is not asks
    eventually(lambda: set(archiving["archived"]()) >= set(archiving["lacks"]))
