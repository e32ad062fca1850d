# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a server's answer to the record: nothing unknown becomes zero, and no version's columns are missed."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import replication
from ansible_collections.hotspare.postgresql.plugins.module_utils.replication import (
    SETTINGS,
    difference,
    read_state,
    running_record,
    state_query,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import ConnectFailed, Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from hypothesis import given
from hypothesis import strategies as st

VALUES = {
    "archive_mode": "off",
    "archive_command": "(disabled)",
    "recovery_min_apply_delay": "0",
    "wal_receiver_timeout": "60000",
}
RECEIVER = {
    "pid": 7,
    "status": "streaming",
    "received_tli": 1,
    "latest_end_lsn": "0/5000000",
    "slot_name": "hotspare_b",
    "sender_host": "a",
    "sender_port": 5432,
    "conninfo": "user=u password=******** application_name=db two host=a fallback_application_name=x",
    "silent_seconds": 1.5,
}
SENDER = {
    "pid": 8,
    "application_name": "b",
    "state": "streaming",
    "sent_lsn": "0/4000000",
    "write_lsn": "0/3000000",
    "flush_lsn": "0/3000000",
    "replay_lsn": None,
    "write_lag": 0.0012345,
    "flush_lag": None,
    "replay_lag": None,
}
SLOT = {
    "slot_name": "hotspare_b",
    "slot_type": "physical",
    "active": True,
    "active_pid": 8,
    "restart_lsn": "0/3000000",
    "wal_status": "reserved",
}


def answer(**changes: Any) -> dict[str, Any]:
    """What state_query returns of a primary."""
    settings = {
        name: {"value": VALUES.get(name, ""), "unit": None, "source": "default", "sourcefile": None}
        for name in SETTINGS
    }
    settings.update(changes.pop("settings", {}))
    return {
        "in_recovery": False,
        "server_version": 150004,
        "system_identifier": "7",
        "primary_slot_name": "",
        "recovery_timeline": 0,
        "checkpoint_timeline": 1,
        "wal_file": "000000020000000000000004",
        "current": "0/4000000",
        "insert": "0/4000000",
        "flush": "0/4000000",
        "receive": None,
        "replay": None,
        "replay_state": None,
        "last_commit": None,
        "last_commit_seconds": None,
        "wal_receiver": None,
        "replication": None,
        "slots": None,
        "archiver": dict.fromkeys(replication.ARCHIVER),
        "ready": 0,
        "settings": settings,
        "pending_restart": None,
        "file_settings": None,
        "clients": {"count": 0, "oldest": 0},
        "prepared_transactions": 0,
        "backups": None,
        "tablespaces": None,
        **changes,
    }


def standby(**changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("wal_file", "current", "insert", "flush"))
    own = {
        "in_recovery": True,
        "receive": "0/5000000",
        "replay": "0/5000000",
        "replay_state": "not paused",
        "wal_receiver": copy.deepcopy(RECEIVER),
        "last_commit_seconds": 99.12345,
    }
    return answer(**{**nothing, **own, **changes})


def record(raw: dict[str, Any], **more: Any) -> dict[str, Any]:
    return running_record(raw, slot_prefix="hotspare_", **more)


def test_a_primary():
    state = record(answer(replication=[SENDER], slots=[SLOT, {**SLOT, "slot_name": "other", "active_pid": None}]))
    assert (state["role"], state["recovery"], state["hot_standby"]) == ("primary", None, None)
    assert state["timeline"] == 2  # of the WAL it writes: the checkpoint's is the old one after a promotion
    assert state["lsn"]["held"] == "0/4000000"
    assert state["lag"] == {"bytes": None, "replay_bytes": None, "seconds": None}
    assert state["replay"]["paused"] is None and state["replay"]["min_apply_delay_ms"] is None
    (row,) = state["replication"]
    assert row["lag_bytes"] == {"sent": 0, "write": 0x1000000, "flush": 0x1000000, "replay": None}
    assert (row["write_lag"], row["flush_lag"], row["slot_name"]) == (0.001, None, "hotspare_b")
    assert [(slot["name"], slot["ours"], slot["retained_bytes"]) for slot in state["slots"]] == [
        ("hotspare_b", True, 0x1000000),
        ("other", False, 0x1000000),
    ]


def test_a_standby_in_step():
    state = record(standby())
    assert (state["role"], state["recovery"], state["hot_standby"], state["timeline"]) == (
        "standby",
        "streaming",
        True,
        1,
    )
    assert state["lag"] == {"bytes": 0, "replay_bytes": 0, "seconds": 0.0}
    assert state["wal_receiver"]["application_name"] == "db two"
    assert "conninfo" not in state["wal_receiver"]


@pytest.mark.parametrize(
    ("changes", "lag"),
    [
        ({"replay": "0/4000000"}, {"bytes": 0, "replay_bytes": 0x1000000, "seconds": 99.123}),
        ({"wal_receiver": None}, {"bytes": None, "replay_bytes": 0, "seconds": None}),
        (
            {"wal_receiver": {**RECEIVER, "status": "waiting"}},
            {"bytes": None, "replay_bytes": 0, "seconds": None},
        ),
        ({"wal_receiver": {**RECEIVER, "latest_end_lsn": None}}, {"bytes": None, "replay_bytes": 0, "seconds": None}),
        ({"wal_receiver": {**RECEIVER, "silent_seconds": 33}}, {"bytes": None, "replay_bytes": 0, "seconds": None}),
        ({"wal_receiver": {**RECEIVER, "silent_seconds": None}}, {"bytes": None, "replay_bytes": 0, "seconds": None}),
        ({"receive": "0/4000000", "replay": None}, {"bytes": 0x1000000, "replay_bytes": None, "seconds": 99.123}),
        ({"receive": None, "replay": None}, {"bytes": None, "replay_bytes": None, "seconds": None}),
    ],
)
def test_lag_is_zero_only_if_it_is_known_to_be(changes: dict[str, Any], lag: dict[str, Any]):
    assert record(standby(**changes))["lag"] == lag


def test_held_is_the_greatest():
    """The position received falls back to the start of a segment when the receiver restarts."""
    assert record(standby(receive="0/3000000", replay="0/3329B60"))["lsn"]["held"] == "0/3329B60"
    assert record(standby(receive="1/0", replay="0/FFFFFFFF"))["lsn"]["held"] == "1/0"
    assert record(standby(receive=None, replay=None))["lsn"]["held"] is None


def test_timeline_of_a_standby_is_the_newest_it_is_known_to_have_reached():
    assert record(standby(recovery_timeline=3))["timeline"] == 3
    assert record(standby(wal_receiver={**RECEIVER, "received_tli": 4}))["timeline"] == 4
    assert record(standby(wal_receiver=None), control={"timeline": 5})["timeline"] == 5


def test_how_wal_comes_in():
    archive = {"settings": {"restore_command": {"value": "cp key=X", "source": "x"}}}
    state = record(standby(wal_receiver=None, **archive))
    assert state["recovery"] == "archive"
    assert state["settings"]["restore_command"]["value"] == "(set)"
    assert record(standby(wal_receiver=None))["recovery"] == "none"


@pytest.mark.parametrize("shown", ["not paused", "pause requested", "paused"])
def test_replay_that_is_about_to_pause_counts_as_paused(shown: str):
    assert record(standby(replay_state=shown))["replay"]["paused"] is (shown != "not paused")


def test_slots_of_later_versions():
    newer = {**SLOT, "inactive_since": "x", "failover": True, "synced": False, "invalidation_reason": "wal_removed"}
    (slot,) = record(answer(slots=[newer]))["slots"]
    assert (slot["failover"], slot["synced"], slot["invalidation_reason"]) == (True, False, "wal_removed")
    (slot,) = record(answer(slots=[{**SLOT, "conflicting": True}]))["slots"]
    assert slot["invalidation_reason"] == "conflicting"
    (slot,) = record(answer(slots=[SLOT]))["slots"]
    assert slot["failover"] is None and slot["invalidation_reason"] is None


def test_a_logical_slot_is_never_ours():
    (slot,) = record(answer(slots=[{**SLOT, "slot_type": "logical"}]))["slots"]
    assert slot["ours"] is False


def test_archiver():
    on = {"archive_mode": {"value": "on"}, "archive_command": {"value": "ship --key=geheim %p"}}
    state = record(answer(settings=on, ready=5))
    assert state["archiver"]["command_set"] is True and state["archiver"]["ready"] == 5
    assert "geheim" not in str(state)
    assert record(answer())["archiver"]["command_set"] is None
    on["archive_command"] = {"value": ""}
    assert record(answer(settings=on))["archiver"]["command_set"] is False
    on["archive_library"] = {"value": "basic_archive"}
    assert record(answer(settings=on))["archiver"]["command_set"] is True


def test_a_password_is_not_in_the_settings():
    told = {"primary_conninfo": {"value": "host=a password='ge heim' user=u"}}
    assert record(answer(settings=told))["settings"]["primary_conninfo"]["value"] == "host=a port=5432 user=u"
    told = {"primary_conninfo": {"value": "host=a password='geheim"}}
    assert record(answer(settings=told))["settings"]["primary_conninfo"]["value"] is None


BACKUP = {"pid": 1, "application_name": "b", "phase": "p", "started_at": "t"}


@pytest.mark.parametrize(
    ("total", "done", "seconds", "rate", "left"),
    [
        (1000, 250, 2.5, 100, 7.5),
        (1000, 1200, 2, 600, 0.0),
        (None, 250, 2.5, 100, None),
        (1000, 0, 2.5, None, None),
        (1000, 250, 0, None, None),
        (None, None, 0, None, None),
    ],
)
def test_progress_of_a_base_backup(total, done, seconds, rate, left):
    row = {**BACKUP, "backup_total": total, "backup_streamed": done, "seconds": seconds}
    (backup,) = record(answer(backups=[row]))["running_backups"]
    assert (backup["bytes_per_second"], backup["seconds_left"]) == (rate, left)


@given(st.one_of(st.none(), st.integers(0, 2**64 - 1)), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_difference_never_invents(ahead, behind):
    def text(lsn):
        return None if lsn is None else f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"

    found = difference(text(ahead), text(behind))
    assert found == (None if None in (ahead, behind) else max(0, ahead - behind))


def test_the_statement_fits_the_version():
    assert "pg_get_wal_replay_pause_state" not in state_query(130012)
    assert "pg_get_wal_replay_pause_state" in state_query(140000)
    # json_build_object takes 100 arguments.
    assert len(re.findall(r"^  '", state_query(180000), re.MULTILINE)) < 50


# --- what cannot be asked


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A directory that looks like a running cluster; the test says what became of the connection."""
    for name, value in (
        ("data_directory_kind", "cluster"),
        ("has_shut_down", False),
        ("process_id", None),
        ("processes", []),
        ("major_version", 15),
        ("effective_setting", ""),
    ):
        monkeypatch.setattr(replication, name, lambda *args, value=value: value)

    def unreadable(*args):
        raise HotspareError("no pg_controldata")

    monkeypatch.setattr(replication, "read_control", unreadable)
    return Instance("a", str(tmp_path), "/nowhere")


def refuse(monkeypatch, kind: str) -> None:
    def connect(*args, **kwargs):
        raise ConnectFailed(f"no: {kind}", kind)

    monkeypatch.setattr(replication, "connect", connect)


@pytest.mark.parametrize("kind", ["refused", "starting", "shutting_down", "auth", "timeout", "other"])
def test_a_running_server_that_does_not_answer_is_unknown(cluster, monkeypatch, kind: str):
    refuse(monkeypatch, kind)
    state = read_state(cluster)
    assert (state["role"], state["reason"], state["in_recovery"]) == ("unknown", f"no: {kind}", None)
    assert {found["code"] for found in state["problems"]} >= {"unknown", "control_unreadable"}
    for name in ("timeline", "control", "replication", "slots", "clients", "settings", "running_backups", "archiver"):
        assert state[name] is None


def test_a_starting_server_is_a_standby_only_if_the_signal_was_there_first(cluster, monkeypatch, tmp_path):
    refuse(monkeypatch, "starting")
    (tmp_path / "postmaster.opts").touch()
    (tmp_path / "standby.signal").touch()
    assert read_state(cluster)["role"] == "unknown"
    (tmp_path / "postmaster.opts").write_text("started after that")
    state = read_state(cluster)
    assert (state["role"], state["hot_standby"], state["in_recovery"]) == ("standby", False, True)
    assert state["lsn"]["held"] is None
    refuse(monkeypatch, "timeout")
    assert read_state(cluster)["role"] == "unknown"


def test_processes_without_a_postmaster_are_unknown(cluster, monkeypatch):
    monkeypatch.setattr(replication, "has_shut_down", lambda *args: True)
    assert read_state(cluster)["role"] == "stopped"
    monkeypatch.setattr(replication, "processes", lambda *args: [17])
    state = read_state(cluster)
    assert state["role"] == "unknown" and "17" in state["reason"]


def test_a_postmaster_that_only_waits_for_its_archiver_is_stopped(cluster, monkeypatch):
    monkeypatch.setattr(replication, "has_shut_down", lambda *args: True)
    monkeypatch.setattr(replication, "process_id", lambda *args: 17)
    monkeypatch.setattr(replication, "processes", lambda *args: [17, 18])
    state = read_state(cluster)
    assert state["role"] == "stopped" and "still_ending" in {found["code"] for found in state["problems"]}


@pytest.mark.parametrize("failing", ["data_directory_kind", "has_shut_down", "major_version"])
def test_what_cannot_be_read_is_unknown(cluster, monkeypatch, failing: str):
    def fail(*args):
        raise HotspareError("a disk fails")

    monkeypatch.setattr(replication, failing, fail)
    state = read_state(cluster)
    assert (state["role"], state["reason"]) == ("unknown", "a disk fails")


def test_an_odd_note_of_a_rebuild_is_no_error(tmp_path):
    (tmp_path / "data.seeding.json").write_text("{half")
    state = read_state(Instance("a", str(tmp_path / "data"), "/nowhere"))
    assert (state["role"], state["rebuild"]) == ("absent", {"seeding": None, "rewinding": None, "note": None})


def test_what_a_rebuild_left_is_found_beside_what_a_link_names(tmp_path):
    for name in ("real", "real.rewinding"):
        (tmp_path / name).mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "real")
    state = read_state(Instance("a", str(tmp_path / "data"), "/nowhere"))
    assert state["rebuild"]["rewinding"] == str(tmp_path / "real.rewinding")


def test_history(cluster, monkeypatch, tmp_path):
    refuse(monkeypatch, "timeout")
    (tmp_path / "pg_wal").mkdir()
    (tmp_path / "pg_wal" / "00000002.history").write_text("1\t0/3000000\tno recovery target specified\n")
    found = {timeline: replication._history(cluster, timeline) for timeline in (None, 1, 2, 3)}
    assert found == {None: None, 1: [], 2: [{"timeline": 1, "switch_lsn": "0/3000000"}], 3: None}
