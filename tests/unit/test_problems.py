# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each problem that a node can have is told, and a healthy node has none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.problems import config_problems, problems

SETTINGS = {
    "wal_level": "replica",
    "fsync": "on",
    "full_page_writes": "on",
    "recovery_target_timeline": "latest",
}
SLOT = {
    "name": "hotspare_b",
    "type": "physical",
    "active": True,
    "restart_lsn": "0/1",
    "retained_bytes": 3 << 20,
    "wal_status": "reserved",
    "invalidation_reason": None,
}


def node(role: str, **changes: Any) -> dict[str, Any]:
    """A healthy record; `a__b=c` changes state["a"]["b"]."""
    running = role in ("primary", "standby")
    settings = {name: {"value": value} for name, value in SETTINGS.items()}
    settings["max_wal_size"] = {"value": "1024", "unit": "MB"}
    state = {
        "name": "db1",
        "role": role,
        "reason": "because",
        "data_directory": "/pg",
        "major_version": 15,
        "rebuild": None,
        "lock": None,
        "armed": None,
        "superseded": None,
        "archive": None,
        "zfs": None,
        "control": {"data_checksums": 1, "wal_log_hints": True, "state": "shut down"},
        "free_bytes": 1 << 40,
        "standby_signal": role != "primary",
        "recovery_signal": False,
        "hot_standby": True if role == "standby" else None,
        "recovery": "streaming" if role == "standby" else None,
        "replay": {"state": "not paused", "paused": False, "min_apply_delay_ms": 0},
        "lag": {"bytes": 0, "replay_bytes": 0, "seconds": 0.0},
        "wal_receiver": {"status": "streaming", "latest_end_lsn": "0/1", "silent_seconds": 1.0},
        "archiver": {
            "mode": "on",
            "command_set": True,
            "last_failed_time": None,
            "last_archived_time": None,
            "last_failed_wal": None,
            "ready": 0,
        },
        "prepared_transactions": 0,
        "settings": settings if running else None,
        "pending_restart": [] if running else None,
        "slots": [copy.deepcopy(SLOT)] if running else None,
        "running_backups": [] if running else None,
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        place = state
        for part in path:
            place = place[part]
        place[last] = value
    return state


LOCK = {"owner": "a@b", "since": "now", "purpose": "failover to db2", "token": "t", "alive": None, "reason": None}
ARMED = {"state": "armed", "expires_in": 9.0, "reason": None}


@pytest.mark.parametrize("role", ["primary", "standby", "stopped", "absent"])
def test_a_healthy_node_has_none(role: str):
    assert problems(node(role)) == []


def shipping(**place: Any) -> dict[str, Any]:
    given = {"name": "nas", "state": "connected", "since": "now", "error": None, "waiting": 0, "behind": 0, **place}
    return {"running": True, "reason": None, "destinations": [given]}


def test_a_destination_that_gets_all_is_no_problem() -> None:
    assert problems(node("primary", archive=shipping(waiting=7, behind=8))) == []
    assert problems(node("primary", archive=shipping(waiting=None, behind=8))) == []


def test_a_standby_ships_nothing_that_could_be_waited_for() -> None:
    assert problems(node("standby", archive=shipping(state="unreachable", waiting=200))) == []


def slot(**changes: Any) -> list[dict[str, Any]]:
    return [{**SLOT, **changes}]


FAILED, LATER = "2026-11-20T10:44:58.7+00:00", "2026-11-20T10:44:58.72+00:00"
SEEDING = {"seeding": "/pg.seeding", "rewinding": None}


@pytest.mark.parametrize(
    ("role", "changes", "code", "severity"),
    [
        ("unknown", {}, "unknown", "error"),
        ("primary", {"major_version": 12}, "version_unsupported", "error"),
        ("primary", {"major_version": 19}, "version_unsupported", "warning"),
        ("absent", {"rebuild": SEEDING}, "seeding", "info"),
        ("absent", {"rebuild": {"seeding": None, "rewinding": "/pg.rewinding"}}, "rewind_unfinished", "error"),
        ("stopped", {"control__data_checksums": 0}, "no_checksums", "warning"),
        ("primary", {"lock": LOCK}, "locked", "info"),
        ("standby", {"lock": {**LOCK, "token": None, "reason": "EIO"}}, "lock_unreadable", "error"),
        ("standby", {"armed": ARMED}, "armed", "info"),
        ("standby", {"armed": {**ARMED, "state": "promoting", "expires_in": -1.0}}, "armed", "info"),
        ("standby", {"armed": {**ARMED, "state": "unknown", "reason": "EIO"}}, "armed_unreadable", "error"),
        ("stopped", {"superseded": {"primary": "db2", "timeline": 2}}, "superseded", "warning"),
        ("primary", {"free_bytes": 1 << 20}, "free_space", "warning"),
        ("primary", {"free_bytes": 2 << 30, "settings__max_wal_size__value": "4096"}, "free_space", "warning"),
        ("stopped", {"control__state": "in production"}, "stopped_unclean", "warning"),
        ("stopped", {"standby_signal": False}, "starts_as_primary", "info"),
        ("stopped", {"archiver__ready": 16}, "archive_backlog", "warning"),
        ("standby", {"recovery_signal": True, "standby_signal": False}, "recovery_signal", "error"),
        ("standby", {"standby_signal": False}, "standby_signal_missing", "error"),
        ("standby", {"hot_standby": False, "settings": None}, "streaming_unknown", "warning"),
        ("standby", {"recovery": "none", "wal_receiver": None}, "not_streaming", "error"),
        ("standby", {"recovery": "archive"}, "not_streaming", "error"),
        ("standby", {"lag__bytes": None}, "streaming_unknown", "warning"),
        ("standby", {"replay__paused": True}, "replay_paused", "warning"),
        ("standby", {"replay__min_apply_delay_ms": 5}, "apply_delay", "warning"),
        ("standby", {"settings__recovery_target_timeline__value": "current"}, "timeline_fixed", "warning"),
        ("primary", {"standby_signal": True}, "prepared_primary", "warning"),
        ("primary", {"prepared_transactions": 2}, "prepared_transactions", "info"),
        ("primary", {"archiver__command_set": False}, "archiver_failing", "warning"),
        ("primary", {"archiver__last_failed_time": FAILED}, "archiver_failing", "error"),
        (
            "primary",
            {"archiver__last_failed_time": LATER, "archiver__last_archived_time": FAILED},
            "archiver_failing",
            "error",
        ),
        ("primary", {"archiver__ready": 128}, "archive_backlog", "error"),
        ("primary", {"archive": shipping(state="full", error="no space")}, "archive_full", "error"),
        ("primary", {"archive": shipping(state="unreachable", error="refused")}, "archive_unreachable", "warning"),
        ("primary", {"archive": shipping(state="conflict", error="differs")}, "archive_conflict", "error"),
        ("primary", {"archive": shipping(state="refused", error="bad")}, "archive_refused", "error"),
        ("primary", {"archive": shipping(waiting=10, behind=6)}, "archive_waiting", "warning"),
        ("primary", {"archive": {**shipping(), "empty": ["1.backup"]}}, "archive_empty", "warning"),
        ("primary", {"archive": shipping(waiting=128)}, "archive_waiting", "error"),
        ("standby", {"archive": {"running": False, "reason": "gone"}}, "shipper_down", "warning"),
        ("stopped", {"archive": {"running": None, "reason": "EIO"}}, "shipper_down", "warning"),
        ("primary", {"settings__wal_level__value": "minimal"}, "wal_level", "error"),
        ("primary", {"settings__fsync__value": "off"}, "fsync_off", "error"),
        ("primary", {"settings__full_page_writes__value": "off"}, "full_page_writes_off", "warning"),
        ("primary", {"pending_restart": ["x"]}, "pending_restart", "warning"),
        ("primary", {"slots": slot(wal_status="lost", active=False)}, "slot_lost", "error"),
        ("primary", {"slots": slot(invalidation_reason="idle_timeout")}, "slot_lost", "error"),
        ("primary", {"slots": slot(wal_status="unreserved")}, "slot_unreserved", "error"),
        ("primary", {"slots": slot(restart_lsn=None, active=False)}, "slot_unreserved", "warning"),
        ("primary", {"slots": slot(active=False)}, "slot_inactive", "warning"),
        (
            "primary",
            {"running_backups": [{"application_name": "b", "pid": 1, "phase": "p"}]},
            "backup_running",
            "info",
        ),
    ],
)
def test_each_problem(role: str, changes: dict[str, Any], code: str, severity: str):
    found = [(entry["code"], entry["severity"]) for entry in problems(node(role, **changes))]
    assert found == [(code, severity)]


def test_a_failure_before_the_last_success_is_over():
    over = {"archiver__last_failed_time": FAILED, "archiver__last_archived_time": LATER}
    assert problems(node("primary", **over)) == []


def test_a_silent_start_of_the_stream_is_no_problem():
    """An idle primary tells its position up to 30 s after the standby has connected."""
    state = node("standby", lag__bytes=None, wal_receiver__latest_end_lsn=None)
    assert problems(state) == []


def test_the_worst_comes_first():
    state = node("primary", running_backups=[{"application_name": "", "pid": 1, "phase": "p"}], pending_restart=["x"])
    state["settings"]["fsync"]["value"] = "off"
    assert [entry["severity"] for entry in problems(state)] == ["error", "warning", "info"]


# --- files


def row(file: str, name: str | None, setting: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "setting": setting,
        "sourcefile": file,
        "sourceline": 3,
        "error": None,
        "context": "sighup",
        "source": "configuration file",
        **changes,
    }


OURS, UPSTREAM = "/etc/c/conf.d/50-hotspare.conf", "/etc/c/conf.d/60-hotspare-upstream.conf"
THEIRS, AUTO = "/etc/c/conf.d/90-x.conf", "/pg/postgresql.auto.conf"


def told(*rows: dict[str, Any]) -> list[tuple[str, str]]:
    return [(entry["code"], entry["severity"]) for entry in config_problems(rows, "/etc/c/conf.d")]


def test_our_files_win_over_what_comes_before():
    assert told(row("/etc/c/postgresql.conf", "work_mem", "1"), row(OURS, "work_mem", "2")) == []
    assert told(row(OURS, "primary_conninfo", "a"), row(UPSTREAM, "primary_conninfo", "b")) == []
    assert config_problems(None, "/etc/c/conf.d") == []


def test_what_overrides_ours():
    assert told(row(OURS, "work_mem", "1"), row(THEIRS, "work_mem", "2")) == [("setting_overridden", "warning")]
    assert told(row(OURS, "work_mem", "1"), row(AUTO, "work_mem", "1")) == []
    assert told(row(UPSTREAM, "primary_slot_name", "s"), row(AUTO, "primary_slot_name", "s")) == [
        ("upstream_overridden", "error")
    ]
    assert told(row(OURS, "port", "1", source="command line")) == [("setting_overridden", "warning")]
    assert told(row("/other/conf.d/50-hotspare.conf", "port", "1"), row(AUTO, "port", "2")) == []


def test_errors_in_files():
    assert told(row(THEIRS, None, "", error="syntax error", context=None)) == [("config_error", "error")]
    assert told(row(THEIRS, "work_mem", "x", error="setting could not be applied")) == [("config_error", "error")]
    # It waits for a restart, and is told as that.
    assert told(row(OURS, "port", "1", error="setting could not be applied", context="postmaster")) == []


def test_values_are_not_told():
    rows = [row(UPSTREAM, "primary_conninfo", "host=a"), row(AUTO, "primary_conninfo", "password=geheim")]
    assert "geheim" not in str(config_problems(rows, "/etc/c/conf.d"))
