# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_replication_state against real servers: what it says of each state they can be in, and what it makes of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import lock, mounts
from ansible_collections.hotspare.postgresql.plugins.module_utils.guard import keep_note
from ansible_collections.hotspare.postgresql.plugins.module_utils.replication import read_state
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import as_account

from .conftest import ACCOUNT, PASSWORD, SLOW_SECONDS, Lab, Node, Pair, eventually, execute

MODULE = "pg_replication_state"


@pytest.fixture
def ask(run_module):
    """What the module says of a node."""

    def _ask(node: Node, **more: Any) -> dict[str, Any]:
        result = run_module(MODULE, {**node.params, **more})
        assert not result.get("failed"), result
        assert not result["changed"]
        return result["node"]

    return _ask


def codes(state: dict[str, Any]) -> set[str]:
    # The servers of the tests run without fsync, to be quick, and on any disk.
    return {found["code"] for found in state["problems"]} - {"fsync_off", "free_space"}


def detail(state: dict[str, Any], code: str) -> str:
    return next(found["detail"] for found in state["problems"] if found["code"] == code)


def upstream_of(node: Node) -> tuple[str, ...]:
    """What is really there of whom a node follows: files and, of a running server, what it uses."""
    files = (Path(node.instance.upstream_file), node.data / "postgresql.auto.conf", node.data / "standby.signal")
    texts = [path.read_text() if path.exists() else "missing" for path in files]
    return (*texts, node.sql("SHOW primary_conninfo; SHOW primary_slot_name") if node.running else "stopped")


def slots_of(node: Node) -> str:
    return node.sql("SELECT slot_name, slot_type, wal_status FROM pg_replication_slots ORDER BY 1")


# --- reading


def test_primary(pair: Pair, ask, major: int):
    end = pair.primary.write()
    eventually(pair.in_step)
    state = ask(pair.primary)
    assert (state["role"], state["reason"], state["data"], state["in_recovery"]) == ("primary", None, "cluster", False)
    assert (state["major_version"], state["server_version"] // 10000) == (major, major)
    assert state["system_identifier"] == pair.primary.sql("SELECT system_identifier FROM pg_control_system()")
    assert (state["timeline"], state["history"], state["standby_signal"]) == (1, [], False)
    assert pair.primary.sql(f"SELECT '{state['lsn']['held']}' >= '{end}'::pg_lsn") == "t"
    assert state["lsn"]["receive"] is None and state["lag"]["bytes"] is None and state["wal_receiver"] is None
    (row,) = state["replication"]
    assert (row["application_name"], row["state"], row["sync_state"]) == ("db-two", "streaming", "async")
    assert row["slot_name"] == "hotspare_db_two"
    assert set(row["lag_bytes"]) == {"sent", "write", "flush", "replay"}
    (slot,) = state["slots"]
    assert slot["ours"] and slot["active"] and slot["wal_status"] == "reserved" and slot["retained_bytes"] is not None
    if major >= 17:
        assert slot["failover"] is False and slot["synced"] is False
    assert state["archiver"]["mode"] == "off" and state["archiver"]["ready"] == 0
    assert state["clients"] == 0 and state["oldest_transaction_seconds"] == 0
    assert state["settings"]["wal_level"]["value"] == "replica"
    assert state["installed_versions"] and state["free_bytes"] > 0
    assert codes(state) == set()


def test_standby(pair: Pair, ask):
    pair.primary.write()
    eventually(pair.in_step)
    state = ask(pair.standby)
    assert (state["role"], state["in_recovery"], state["hot_standby"]) == ("standby", True, True)
    assert (state["recovery"], state["standby_signal"], state["timeline"]) == ("streaming", True, 1)
    assert state["lsn"]["current"] is None
    position = pair.primary.sql("SELECT pg_current_wal_flush_lsn()")
    assert pair.primary.sql(f"SELECT '{state['lsn']['held']}'::pg_lsn <= '{position}'") == "t"
    receiver = state["wal_receiver"]
    assert (receiver["sender_host"], receiver["sender_port"]) == ("127.0.0.1", pair.primary.instance.port)
    assert (receiver["slot_name"], receiver["application_name"]) == ("hotspare_db_two", "db-two")
    assert state["replay"]["state"] == "not paused" and state["replay"]["paused"] is False
    assert state["replay"]["min_apply_delay_ms"] == 0
    upstream = state["upstream"]
    assert (upstream["host"], upstream["port"], upstream["slot"]) == (
        "127.0.0.1",
        pair.primary.instance.port,
        "hotspare_db_two",
    )
    assert "conninfo" not in receiver
    eventually(lambda: ask(pair.standby)["lag"] == {"bytes": 0, "replay_bytes": 0, "seconds": 0.0})
    assert codes(state) == set()


def test_the_account_itself_may_look(pair: Pair):
    assert read_state(pair.standby.instance)["role"] == "standby"  # loads psycopg2, which the account may not read
    with as_account(ACCOUNT):
        assert read_state(pair.standby.instance)["role"] == "standby"
    with as_account("nobody"):
        state = read_state(pair.standby.instance)
    assert state["role"] == "unknown" and "run as root" in state["reason"]


def test_replay_paused_is_told(pair: Pair, ask):
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    eventually(lambda: ask(pair.standby)["replay"]["state"] == "paused")
    before = pair.primary.write()
    held = eventually(lambda: [s for s in [ask(pair.standby)] if s["lag"]["replay_bytes"]])[0]
    assert held["replay"]["paused"] is True
    assert pair.standby.sql(f"SELECT '{held['lsn']['replay']}'::pg_lsn < '{before}'") == "t"
    assert held["lag"]["seconds"] != 0
    assert "replay_paused" in codes(held)


def test_stream_ended(pair: Pair, ask):
    pair.primary.stop()
    state = eventually(lambda: [s for s in [ask(pair.standby)] if s["recovery"] != "streaming"])[0]
    assert state["role"] == "standby" and state["recovery"] == "none"
    assert state["lag"]["bytes"] is None and state["lag"]["seconds"] is None
    assert "not_streaming" in codes(state)
    assert "slot_inactive" not in codes(state)


def test_a_silent_primary_makes_the_lag_unknown(pair: Pair, ask):
    pair.standby.sql("ALTER SYSTEM SET wal_receiver_timeout = '12s'")
    pair.standby.sql("SELECT pg_reload_conf()")
    pair.primary.write()
    eventually(lambda: ask(pair.standby)["lag"]["bytes"] == 0)
    pair.primary.freeze()
    state = eventually(lambda: [s for s in [ask(pair.standby)] if s["lag"]["bytes"] is None])[0]
    assert state["wal_receiver"]["status"] == "streaming"
    assert state["lag"]["seconds"] is None
    assert "silent" in detail(state, "streaming_unknown")


def test_stopped_standby(pair: Pair, ask):
    pair.standby.stop()
    state = ask(pair.standby)
    assert (state["role"], state["in_recovery"], state["slots"]) == ("stopped", None, None)
    assert state["control"]["state"] == "shut down in recovery"
    assert state["upstream"]["slot"] == "hotspare_db_two"
    assert state["upstream"]["port"] == pair.primary.instance.port
    assert state["archiver"]["ready"] == 0 and state["archiver"]["mode"] is None
    assert codes(state) == set()


def test_stopped_primary(pair: Pair, ask):
    pair.primary.stop()
    state = ask(pair.primary)
    assert state["control"]["state"] == "shut down" and state["upstream"] is None and state["standby_signal"] is False
    assert codes(state) == {"starts_as_primary"}


def test_crashed(pair: Pair, ask):
    pair.primary.crash()
    state = ask(pair.primary)
    assert (state["role"], state["control"]["state"]) == ("stopped", "in production")
    assert codes(state) == {"starts_as_primary", "stopped_unclean"}


def test_a_killed_postmaster_is_not_a_stopped_server(pair: Pair, ask):
    """Its backends go on for a while, and commit."""
    node = pair.primary
    where = ["-h", node.instance.socket_directory, "-p", str(node.instance.port), "-d", "postgres"]
    client = subprocess.Popen(
        [node.instance.program("psql"), "-X", *where, "-c", "SELECT count(*) FROM generate_series(1, 1000000000)"],
        user=ACCOUNT,
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: ask(node)["clients"])
        os.kill(node.postmaster, signal.SIGKILL)
        state = eventually(lambda: [s for s in [ask(node)] if "postmaster" in (s["reason"] or "")])[0]
        assert state["role"] == "unknown" and state["control"]["state"] == "in production"
    finally:
        node.crash()
        client.wait()


def test_standby_signal_without_upstream(lab: Lab, ask):
    node = lab.node("db-one")
    execute("touch", str(node.data / "standby.signal"))
    assert codes(ask(node)) == {"standby_without_upstream"}


def test_a_disk_that_is_not_mounted_is_no_empty_one(lab: Lab, tmp_path: Path, monkeypatch):
    """Else site.yml would seed a server below its mount point."""
    node = lab.node("db-disk", data=False)
    disk = node.data.parent
    disk.mkdir(parents=True, exist_ok=True)
    (tmp_path / "fstab").write_text(f"tmpfs {disk} tmpfs noauto 0 0\n")
    monkeypatch.setattr(mounts, "FSTAB", str(tmp_path / "fstab"))
    state = read_state(node.instance)
    assert (state["role"], state["data"]) == ("unknown", "absent")
    assert f"tmpfs of /etc/fstab belongs to {disk} and is not mounted" in state["reason"]
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True)
    try:
        assert read_state(node.instance)["role"] == "absent"
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("files", "data", "role"), [(None, "absent", "absent"), ((), "empty", "absent"), (("mail",), "foreign", "unknown")]
)
def test_no_cluster(lab: Lab, ask, files, data: str, role: str):
    node = lab.node("db-one", data=False)
    if files is not None:
        node.data.mkdir()
        for name in files:
            (node.data / name).touch()
    state = ask(node)
    assert (state["data"], state["role"]) == (data, role)
    assert bool(state["reason"]) == (role == "unknown")


def test_what_a_rebuild_left(lab: Lab, ask):
    node = lab.node("db-one", data=False)
    for suffix in ("seeding", "rewinding"):
        (node.data.parent / f"data.{suffix}").mkdir()
    (node.data.parent / "data.seeding.json").write_text('{"method": "basebackup"}')
    state = ask(node)
    assert state["role"] == "absent"
    assert state["rebuild"] == {
        "seeding": f"{node.data}.seeding",
        "rewinding": f"{node.data}.rewinding",
        "note": {"method": "basebackup"},
    }
    assert codes(state) == {"rewind_unfinished", "seeding"}


def test_frozen_server_is_unknown_soon(pair: Pair, ask):
    pair.standby.freeze()
    began = time.monotonic()
    state = ask(pair.standby)
    assert time.monotonic() - began < 15
    assert state["role"] == "unknown" and "frozen" in state["reason"]
    assert state["replication"] is None and state["slots"] is None and state["clients"] is None
    assert state["control"]["state"] == "in archive recovery"
    assert "unknown" in codes(state)


def test_standby_before_consistency(pair: Pair, lab: Lab, ask):
    """A copy that lacks WAL for consistency runs, accepts nobody, and still is known to be a standby."""
    copy = lab.node("db-three", data=False)
    execute("mkdir", "-m", "700", str(copy.data))
    connection = ["-h", pair.primary.instance.socket_directory, "-p", str(pair.primary.instance.port)]
    copy.program("pg_basebackup", *connection, "-D", str(copy.data), "-X", "none", "--no-sync", "-c", "fast")
    execute("touch", str(copy.data / "standby.signal"))
    execute("tee", copy.instance.upstream_file, stdin="primary_conninfo = 'host=127.0.0.1 port=1 user=replicator'\n")
    where = ["-D", str(copy.data), "-l", f"{copy.data}.log", "-o", f"-c config_file={copy.instance.config_file}"]
    copy.program("pg_ctl", "start", "-W", *where)
    state = eventually(lambda: [s for s in [ask(copy)] if s["role"] == "standby"])[0]
    assert state["hot_standby"] is False and state["in_recovery"] is True and state["recovery"] is None
    assert state["reason"] and state["lag"]["bytes"] is None
    assert state["upstream"]["port"] == 1
    assert "streaming_unknown" in codes(state)


def test_wrong_port_is_unknown(pair: Pair, ask):
    state = ask(pair.standby, port=pair.primary.instance.port)
    assert state["role"] == "unknown" and str(pair.primary.data) in state["reason"]


def test_without_psycopg2(pair: Pair, lab: Lab, monkeypatch):
    """Stopped and absent need no driver; for a running server one sentence says what to install."""
    for name in [name for name in sys.modules if name.split(".")[0] == "psycopg2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    state = read_state(pair.primary.instance)
    assert state["role"] == "unknown" and "install python3-psycopg2" in state["reason"]
    assert state["system_identifier"] is not None
    pair.primary.stop()
    assert read_state(pair.primary.instance)["role"] == "stopped"
    assert read_state(lab.node("db-three", data=False).instance)["role"] == "absent"


def test_settings_overridden_pending_and_broken(pair: Pair, ask):
    node = pair.primary
    directory = Path(node.instance.upstream_file).parent
    ours, theirs = str(directory / "50-hotspare.conf"), str(directory / "90-operator.conf")
    execute("tee", ours, stdin="work_mem = '8MB'\nwal_keep_size = '64MB'\nmax_connections = 31\nDateStyle = 'ISO'\n")
    execute("tee", theirs, stdin="work_mem = '16MB'\ndatestyle = 'ISO'\n")
    node.sql("ALTER SYSTEM SET wal_keep_size = '32MB'")
    node.sql("SELECT pg_reload_conf()")
    state = eventually(lambda: [s for s in [ask(node)] if s["pending_restart"]])[0]
    assert state["pending_restart"] == ["max_connections"]
    assert state["settings"]["max_connections"]["value"] == "30"
    found = [entry["detail"] for entry in state["problems"] if entry["code"] == "setting_overridden"]
    assert sorted(found) == [
        f"wal_keep_size of {ours}:2 is overridden by {node.data}/postgresql.auto.conf:3",
        f"work_mem of {ours}:1 is overridden by {theirs}:1",
    ]
    assert {"setting_overridden", "pending_restart"} == codes(state)
    execute("tee", theirs, stdin="work_mem = 'much'\n")
    assert f"{theirs}:1" in detail(ask(node), "config_error")
    execute("tee", theirs, stdin="work_mem 16MB 17MB\n")
    assert f"{theirs}:1" in detail(ask(node), "config_error")


def test_archiver_failing_and_backlog(pair: Pair, ask, lab: Lab):
    node = pair.primary
    config = node.instance.upstream_file.replace("60-hotspare-upstream", "90-operator")
    execute("tee", config, stdin="archive_mode = on\narchive_command = 'false key=X'\n")
    node.stop()
    node.start()
    for _ in range(17):
        node.write()
        node.sql("SELECT pg_switch_wal()")
    state = eventually(lambda: [s for s in [ask(node)] if "archiver_failing" in codes(s)])[0]
    assert state["archiver"]["failed_count"] > 0 and state["archiver"]["command_set"] is True
    assert "archive_backlog" in codes(state) and state["archiver"]["ready"] >= 17
    assert "key=X" not in json.dumps(state)
    node.stop("immediate")
    assert ask(node)["archiver"]["ready"] >= 17


def under_way(backups: list[dict[str, Any]]) -> bool:
    return bool(backups) and backups[0]["seconds_left"] is not None


def test_running_backup_clients_transactions_tablespaces(pair: Pair, lab: Lab, ask):
    node = pair.primary
    place = lab.directory / "elsewhere"
    execute("mkdir", str(place))
    node.sql(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    where = ["-h", node.instance.socket_directory, "-p", str(node.instance.port)]
    options = ["-D", str(lab.directory / "copy"), "-F", "t", "-X", "none", "-c", "fast", "-r", "512k", "--no-sync"]
    backup = subprocess.Popen([node.instance.program("pg_basebackup"), *where, *options], user=ACCOUNT, cwd="/")
    client = subprocess.Popen(
        [node.instance.program("psql"), "-X", *where, "-d", "postgres", "-c", "SELECT pg_sleep(60)"],
        user=ACCOUNT,
        cwd="/",
        stdout=subprocess.DEVNULL,
    )
    try:
        state = eventually(lambda: [s for s in [ask(node)] if s["clients"] and under_way(s["running_backups"])])[0]
    finally:
        for process in (backup, client):
            process.kill()
            process.wait()
    (running,) = state["running_backups"]
    assert running["application_name"] == "pg_basebackup" and running["total_bytes"] > running["streamed_bytes"] > 0
    assert running["bytes_per_second"] > 0
    assert state["clients"] == 1 and state["oldest_transaction_seconds"] > 0
    assert state["tablespaces"] == [{"name": "elsewhere", "location": str(place)}]
    assert codes(state) == {"backup_running"}


def test_a_password_in_primary_conninfo_is_never_told(pair: Pair, run_module, ask):
    node = pair.standby
    node.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 password=geheim port=1 user=x'")
    node.sql("SELECT pg_reload_conf()")
    state = eventually(lambda: [s for s in [ask(node)] if s["upstream"]["port"] == 1])[0]
    assert "upstream_overridden" in codes(state)
    assert "geheim" not in json.dumps(state)
    result = run_module(MODULE, {**node.params, "upstream": pair.primary.upstream(node)})
    assert result["changed"] and "geheim" not in json.dumps(result)
    node.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 password'")
    node.sql("SELECT pg_reload_conf()")
    assert "upstream_unreadable" in codes(eventually(lambda: [s for s in [ask(node)] if not s["upstream"]])[0])


# --- the desired state


def test_role_is_asserted(pair: Pair, run_module):
    assert not run_module(MODULE, {**pair.primary.params, "role": "primary"}).get("failed")
    result = run_module(MODULE, {**pair.standby.params, "role": "primary"})
    assert result["failed"] and "it is a standby, not a primary" in result["msg"]
    assert result["node"]["role"] == "standby"


def test_upstream_of_a_running_standby(pair: Pair, four_steps, run_module):
    """Another application_name and an ALTER SYSTEM in the way: taken without a restart."""
    node = pair.standby
    node.sql("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'")
    node.sql("ALTER SYSTEM SET work_mem = '5MB'")
    node.sql("SELECT pg_reload_conf()")
    postmaster = node.postmaster
    upstream = {**pair.primary.upstream(node), "application_name": "db-2 é", "parameters": {"keepalives_idle": 7}}
    wanted = {
        **node.params,
        "role": "standby",
        "upstream": upstream,
        "wait_for": {"streaming": True, "received_timeline": 1},
    }
    results = four_steps(MODULE, wanted, lambda: upstream_of(node))
    assert node.postmaster == postmaster
    assert "primary_conninfo" not in (node.data / "postgresql.auto.conf").read_text()
    assert "work_mem" in (node.data / "postgresql.auto.conf").read_text()
    assert "keepalives_idle=7" in node.sql("SHOW primary_conninfo")
    assert results[0]["diff"] == results[1]["diff"]
    assert results[0]["diff"]["before"]["upstream"]["conninfo"] == "host=127.0.0.1 port=1"
    assert "db-2" in results[0]["diff"]["after"]["upstream"]["conninfo"]
    assert results[2]["diff"]["before"] == results[2]["diff"]["after"]
    assert results[1]["node"]["upstream"]["application_name"] == "db-2 é"
    assert results[1]["unmet"] == []
    assert pair.primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    assert run_module(MODULE, node.params)["node"]["wal_receiver"]["application_name"].startswith("db-2")


def test_upstream_of_a_stopped_server(pair: Pair, four_steps):
    """An old primary that gets an upstream comes up as a standby of it."""
    old, new = pair.primary, pair.standby
    old.stop()
    eventually(lambda: "streaming" not in new.sql("SELECT coalesce(max(status), '') FROM pg_stat_wal_receiver"))
    new.sql("SELECT pg_promote()")
    new.sql(f"SELECT pg_create_physical_replication_slot('{old.slot}', true)")
    results = four_steps(MODULE, {**old.params, "upstream": new.upstream(old)}, lambda: upstream_of(old))
    assert (old.data / "standby.signal").exists()
    assert results[1]["node"]["role"] == "stopped" and results[1]["node"]["upstream"]["slot"] == old.slot
    assert results[0]["diff"]["before"]["standby_signal"] is False
    assert results[0]["diff"]["after"]["standby_signal"] is True
    old.start()
    assert old.sql("SELECT pg_is_in_recovery()") == "t"
    eventually(lambda: Pair(new, old).streams())


def test_upstream_of_a_primary_that_only_waits_for_its_archiver(pair: Pair, ask, four_steps):
    """Its shutdown checkpoint is written, nothing more will be: a cutover need not wait for the archive."""
    node = pair.primary
    config = node.instance.upstream_file.replace("60-hotspare-upstream", "90-operator")
    execute("tee", config, stdin="archive_mode = on\narchive_command = 'sleep 30'\n")
    node.stop()
    node.start()
    eventually(pair.streams)
    node.write()
    node.sql("SELECT pg_switch_wal()")
    node.program("pg_ctl", "stop", "--no-wait", "-D", str(node.data))
    eventually(lambda: node.control("Database cluster state") == "shut down")
    state = ask(node)
    assert state["role"] == "stopped" and "still_ending" in codes(state)

    def look() -> tuple[bool, bool]:
        return (node.data / "standby.signal").exists(), Path(node.instance.upstream_file).exists()

    four_steps(MODULE, {**node.params, "upstream": pair.standby.upstream(node)}, look)
    assert node.processes()
    # Its end may come between a run's look and its lock, and is no change.
    seen = ask(node)["fingerprint"]
    node.program("pg_ctl", "stop", "--mode", "immediate", "-D", str(node.data))
    assert not node.processes() and ask(node)["fingerprint"] == seen


def test_upstream_of_a_primary_is_refused(pair: Pair, run_module):
    before = upstream_of(pair.primary)
    result = run_module(MODULE, {**pair.primary.params, "upstream": pair.standby.upstream(pair.primary)})
    assert result["failed"] and "running primary" in result["msg"]
    assert upstream_of(pair.primary) == before


def test_upstream_that_something_overrides(pair: Pair, run_module):
    node = pair.standby
    other = node.instance.upstream_file.replace("60-hotspare-upstream", "90-operator")
    execute("tee", other, stdin="primary_conninfo = 'host=127.0.0.1 port=1'\n")
    node.sql("SELECT pg_reload_conf()")
    upstream = {**pair.primary.upstream(node), "application_name": "another"}
    result = run_module(MODULE, {**node.params, "upstream": upstream, "timeout": 1})
    assert result["failed"] and other in result["msg"]
    assert "upstream_overridden" in codes(result["node"])


@pytest.mark.parametrize(
    ("parameters", "message"), [({"password": "x"}, "passfile"), ({"host": "elsewhere"}, "options of their own")]
)
def test_upstream_parameters_that_cannot_be_meant(pair: Pair, run_module, parameters, message: str):
    upstream = {**pair.primary.upstream(pair.standby), "parameters": parameters}
    result = run_module(MODULE, {**pair.standby.params, "upstream": upstream})
    assert result["failed"] and message in result["msg"]


def test_slots(pair: Pair, four_steps):
    """Exactly these of ours; not ours stay; one in use stays."""
    node = pair.primary
    node.sql("SELECT pg_create_physical_replication_slot('hotspare_old', true)")
    node.sql("SELECT pg_create_physical_replication_slot('backup_tool', true)")
    node.sql("SELECT pg_create_physical_replication_slot('hotspare_empty')")
    args = {**node.params, "role": "primary", "slots": ["hotspare_db_two", "hotspare_new", "hotspare_empty"]}
    look = lambda: node.sql("SELECT slot_name, restart_lsn IS NULL FROM pg_replication_slots ORDER BY 1")  # noqa: E731
    results = four_steps(MODULE, args, look)
    assert look().splitlines() == ["backup_tool|f", "hotspare_db_two|f", "hotspare_empty|f", "hotspare_new|f"]
    before, after = results[0]["diff"]["before"], results[0]["diff"]["after"]
    assert before["slots"] == ["hotspare_db_two", "hotspare_empty", "hotspare_old"]
    assert after["slots"] == ["hotspare_db_two", "hotspare_empty", "hotspare_new"]
    assert results[0]["diff"] == results[1]["diff"]
    assert pair.streams()


def test_slots_that_are_refused(pair: Pair, run_module, major: int):
    node = pair.primary
    before = slots_of(node)
    for slots, message in (
        ([], "is used by process"),
        (["other", "hotspare_db_two"], "does not begin with hotspare_"),
        (["hotspare_db-two", "hotspare_db_two"], "no valid name"),
    ):
        result = run_module(MODULE, {**node.params, "slots": [*slots, *(["hotspare_more"] if slots else [])]})
        assert result["failed"] and message in result["msg"], result
        assert slots_of(node) == before
    pair.primary.stop()
    assert "not known" in run_module(MODULE, {**node.params, "slots": []})["msg"]


def test_slot_that_lost_its_wal_is_made_anew(pair: Pair, four_steps, ask):
    node = pair.primary
    pair.standby.stop()
    node.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    node.sql("ALTER SYSTEM SET min_wal_size = '32MB'")
    node.sql("ALTER SYSTEM SET max_wal_size = '32MB'")
    node.sql("SELECT pg_reload_conf()")

    def lost() -> bool:
        node.write()
        node.sql("SELECT pg_switch_wal()")
        node.sql("CHECKPOINT")
        return "slot_lost" in codes(ask(node))

    eventually(lost)
    four_steps(MODULE, {**node.params, "slots": ["hotspare_db_two"]}, lambda: slots_of(node))
    assert slots_of(node) == "hotspare_db_two|physical|reserved"


def test_slots_beyond_max_replication_slots(pair: Pair, run_module):
    slots = ["hotspare_db_two", *(f"hotspare_{number}" for number in range(10))]
    result = run_module(MODULE, {**pair.primary.params, "slots": slots})
    assert result["failed"] and "cannot create slot hotspare_9" in result["msg"]
    assert len(result["node"]["slots"]) == 10


def test_wait_for(pair: Pair, run_module):
    end = pair.primary.write()
    wait = {"streaming": True, "replayed_lsn": end, "lag_bytes": 0, "received_timeline": 1}
    result = run_module(MODULE, {**pair.standby.params, "role": "standby", "wait_for": wait})
    assert not result.get("failed") and not result["changed"] and result["unmet"] == []
    wait = {"streaming_to": ["db-two"], "replayed_lsn": end, "lag_bytes": 0}
    result = run_module(MODULE, {**pair.primary.params, "role": "primary", "wait_for": wait})
    assert not result.get("failed") and not result["changed"] and result["unmet"] == []


def test_wait_for_what_does_not_come(pair: Pair, run_module):
    wait = {"streaming_to": ["db-nine"], "replayed_lsn": "F/0"}
    args = {**pair.primary.params, "wait_for": wait, "timeout": 1}
    expected = [
        "it does not stream to db-nine",
        "db-nine has replayed up to unknown, not yet F/0",
    ]
    result = run_module(MODULE, args, check=True)
    assert not result.get("failed") and result["unmet"] == expected
    began = time.monotonic()
    result = run_module(MODULE, args)
    assert result["failed"] and time.monotonic() - began < 10
    assert result["unmet"] == expected and result["node"]["replication"][0]["application_name"] == "db-two"
    result = run_module(MODULE, {**pair.primary.params, "wait_for": {"streaming": True}})
    assert result["failed"] and "is a primary" in result["msg"]
    result = run_module(MODULE, {**pair.standby.params, "wait_for": {"replayed_lsn": "nonsense"}})
    assert result["failed"] and "replayed_lsn" in result["msg"]
    pair.standby.stop()
    result = run_module(MODULE, {**pair.standby.params, "wait_for": {"streaming": True}})
    assert result["failed"] and "start it first" in result["msg"]


def test_an_upstream_in_auto_conf_alone_moves_to_our_file(pair: Pair, four_steps):
    """As pg_basebackup -R leaves it: the same values, in the wrong place."""
    node = pair.standby
    text = Path(node.instance.upstream_file).read_text()
    execute("tee", "-a", str(node.data / "postgresql.auto.conf"), stdin=text)
    execute("rm", node.instance.upstream_file)
    node.sql("SELECT pg_reload_conf()")
    upstream = pair.primary.upstream(node)
    four_steps(MODULE, {**node.params, "upstream": upstream}, lambda: upstream_of(node))
    assert pair.streams()


def test_a_name_that_libpq_must_quote_survives(pair: Pair, run_module):
    """A copied passfile in an odd place: the standby streams by it."""
    node = pair.standby
    odd = node.data.parent / "pass 'file' \\x"
    shutil.copy(node.passfile, odd)
    shutil.chown(odd, ACCOUNT, ACCOUNT)
    upstream = {**pair.primary.upstream(node), "passfile": str(odd)}
    result = run_module(MODULE, {**node.params, "upstream": upstream, "wait_for": {"streaming": True}})
    assert not result.get("failed"), result
    assert result["node"]["upstream"]["passfile"] == str(odd)
    eventually(pair.streams)


# --- what a node sees of the others


def peer(node: Node, **changes: Any) -> dict[str, Any]:
    """The option `peers` for another node."""
    return {"name": node.instance.name, **node.address, **changes}


def answers(state: dict[str, Any]) -> dict[str, str]:
    return {seen["name"]: seen["answer"] for seen in state["peers"]}


def test_peers_see_what_the_others_are(pair: Pair, four_steps):
    """Several at once, in check mode too, and beside what else is asked for."""
    one, two = pair.primary, pair.standby
    gone = peer(one, name="gone", port=1)
    stranger = peer(one, name="stranger", user="nobody")
    asked = {**one.params, "slots": ["hotspare_db_two", "hotspare_x"], "peers": [peer(two), peer(one), gone, stranger]}
    results = four_steps(MODULE, asked, lambda: slots_of(one))
    for state in (result["node"] for result in results):
        assert answers(state) == {"db-two": "standby", "db-one": "primary", "gone": "refused", "stranger": "auth"}
        assert state["role"] == "primary", "its own state is not touched by what others say"
    seen = state["peers"][0]
    assert (seen["system_identifier"], seen["timeline"]) == (state["system_identifier"], 1)
    assert seen["seconds"] < 2 and (seen["host"], seen["port"]) == ("127.0.0.1", two.instance.port)
    assert "Connection refused" in state["peers"][2]["detail"] and "pg_hba.conf" in state["peers"][3]["detail"]
    assert PASSWORD not in json.dumps(results, ensure_ascii=False)


def test_peers_see_a_standby_and_the_way_back(pair: Pair, ask):
    one, two = pair.primary, pair.standby
    assert answers(ask(one, peers=[peer(two)])) == {"db-two": "standby"}
    # F16: the password of the way back is wrong, or pg_hba.conf there has no line for it.
    empty = pair.primary.data.parent / "empty"
    empty.touch(mode=0o600)
    shutil.chown(empty, ACCOUNT, ACCOUNT)
    state = ask(one, peers=[peer(two, passfile=str(empty))])
    assert answers(state) == {"db-two": "auth"} and "password" in state["peers"][0]["detail"]
    hba = Path(str(two.instance.config_file)).with_name("pg_hba.conf")
    hba.write_text("local all all peer\n")
    two.sql("SELECT pg_reload_conf()")
    eventually(lambda: answers(ask(one, peers=[peer(two)])) == {"db-two": "auth"})


def test_a_read_only_default_makes_no_standby_of_a_primary_nor_the_other_way_round(pair: Pair, ask):
    one, two = pair.primary, pair.standby
    for server in (one, two):
        with open(server.instance.configuration, "a", encoding="utf-8") as file:
            file.write("default_transaction_read_only = on\n")
        server.sql("SELECT pg_reload_conf()")
    told = int(one.sql("SHOW server_version_num")) >= 140000  # 13 does not say it outright
    eventually(lambda: answers(ask(two, peers=[peer(one)])) == {"db-one": "primary" if told else "unknown"})
    eventually(lambda: answers(ask(one, peers=[peer(two)])) == {"db-two": "standby" if told else "unknown"})


def test_peers_that_hang_are_silent_together(pair: Pair, ask):
    """A frozen server takes connections and says nothing: all such are waited for at once."""
    one, two = pair.primary, pair.standby
    one.freeze()
    began = time.monotonic()
    try:
        state = ask(two, peers=[peer(one, name=name) for name in ("a", "b", "c", "d")] + [peer(two)])
    finally:
        one.thaw()
    assert answers(state) == {**dict.fromkeys("abcd", "silent"), "db-two": "standby"}
    assert {seen["seconds"] for seen in state["peers"][:4]} == {2.0}
    assert time.monotonic() - began < SLOW_SECONDS


def test_a_stopped_node_asks_as_well(pair: Pair, ask):
    pair.primary.stop()
    state = ask(pair.primary, peers=[peer(pair.standby)])
    assert (state["role"], answers(state)) == ("stopped", {"db-two": "standby"})
    assert ask(pair.standby, peers=[peer(pair.primary)])["peers"][0]["answer"] == "refused"
    assert ask(pair.standby)["peers"] is None and ask(pair.standby, peers=[])["peers"] == []


def test_who_is_at_work_and_whose_files(pair: Pair, ask, lab: Lab):
    state = ask(pair.primary)
    assert (state["lock"], state["armed"], state["superseded"]) == (None, None, None)
    assert state["data_owner"] == state["auto_conf_owner"] == ACCOUNT
    assert state["wal_free_bytes"] > 0
    shutil.chown(pair.primary.data / "postgresql.auto.conf", "root")
    assert ask(pair.primary)["auto_conf_owner"] == "root"
    run = {"owner": "alice@control", "token": "t", "control": lock.this_run({"nodes": {}})["control"]}
    directory = str(pair.primary.data)
    lock.hold(directory, "db-one", run, purpose="failover", seconds=60)
    path = Path(lock._path(directory, "operation.json"))
    try:
        state = ask(pair.primary)
        assert (state["lock"]["owner"], state["lock"]["alive"]) == ("alice@control", True)
        assert "alice@control works on it" in detail(state, "locked")
        path.write_text("{")
        state = ask(pair.primary)
        assert state["lock"]["token"] is None and "not one of ours" in detail(state, "lock_unreadable")
    finally:
        path.unlink()
        Path(lock._path(directory, "operation.lock")).unlink()


def test_the_note_of_the_guard(pair: Pair, ask):
    node = pair.primary
    node.stop()
    state = ask(node)
    note = {"primary": "db-two", "timeline": 2, "system_identifier": state["system_identifier"]}
    assert keep_note(node.instance, note)
    state = ask(node)
    assert state["superseded"] == note and "rebuild_standby.yml" in detail(state, "superseded")
    # Nothing depends on it once the node is a standby, or was promoted itself.
    (node.data / "standby.signal").touch()
    assert ask(node)["superseded"] is None
    (node.data / "standby.signal").unlink()
    keep_note(node.instance, {**note, "timeline": 0})
    assert ask(node)["superseded"] is None
    Path(node.instance.config_file).with_name("hotspare-superseded.json").write_text("{")
    state = ask(node)
    assert state["superseded"] is None and "not one of ours" in detail(state, "superseded_unreadable")


def test_wal_on_a_disk_of_its_own(lab: Lab, ask):
    """F31: pg_wal is a symbolic link; the space there counts."""
    node = lab.node("db-one")
    other = Path("/dev/shm") / f"{lab.directory.name}-wal"
    shutil.copytree(node.data / "pg_wal", other)
    execute("rm", "-r", str(node.data / "pg_wal"))
    (node.data / "pg_wal").symlink_to(other)
    try:
        there = os.statvfs(other)
        assert ask(node)["wal_free_bytes"] == pytest.approx(there.f_bavail * there.f_frsize, rel=0.1)
    finally:
        shutil.rmtree(other)


def test_for_whom_commits_waited_is_told_by_a_stopped_node(pair: Pair, ask):
    pair.primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (\"db-two\")'; SELECT pg_reload_conf()")
    eventually(lambda: ask(pair.primary)["synchronous_standby_names"] == 'FIRST 1 ("db-two")')
    pair.primary.crash()
    state = ask(pair.primary)
    assert (state["role"], state["synchronous_standby_names"]) == ("stopped", 'FIRST 1 ("db-two")')
    assert ask(pair.standby)["synchronous_standby_names"] == ""


def test_a_prepared_primary_is_told(pair: Pair, ask):
    (pair.primary.data / "standby.signal").touch()
    state = ask(pair.primary)
    assert state["role"] == "primary" and "failover.yml -e target=" in detail(state, "prepared_primary")


def test_what_a_shipper_says_of_itself_is_told(pair, ask, tmp_path):
    """Beside the configuration of the server lies that of the archive, which names the shipper's directory."""
    one, two = pair.primary, pair.standby
    assert ask(one)["archive"] is None
    config = Path(one.instance.config_file).with_name("hotspare-archive.json")
    config.write_text(json.dumps({"run": str(tmp_path)}))
    state = ask(one)
    assert state["archive"]["running"] is False
    assert "status.json" in detail(state, "shipper_down")

    place = {"name": "db-two", "state": "full", "since": "now", "error": "no space left", "waiting": 20, "behind": 0}
    argv = [sys.executable, "-c", "input()", "archive-ship", str(config)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as shipper:
        status = {"pid": shipper.pid, "acknowledged": "000000010000000000000003", "destinations": [place]}
        (tmp_path / "status.json").write_text(json.dumps(status))
        state = ask(one)
        shipper.kill()
    assert state["archive"]["running"] is True
    assert state["archive"]["acknowledged"] == "000000010000000000000003"
    assert detail(state, "archive_full") == "db-two is full since now: no space left"
    assert detail(state, "archive_waiting") == "20 files of WAL wait to be shipped to db-two"
    assert "is gone" in detail(ask(one), "shipper_down")
    assert ask(two)["archive"] is None
