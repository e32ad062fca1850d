# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with one node, from its record (pure). What is wrong between nodes is topology's matter.

Severities: error = the node or its replication does not work, or must not be trusted; warning = it works and somebody
should look; info = good to know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Problem = dict[str, Any]

TESTED_VERSIONS = range(13, 19)
# Segments that wait for the archive: repmgr's thresholds for its switchover.
BACKLOG_WARNING, BACKLOG_ERROR = 16, 128
LOW_SPACE = 1 << 30  # bytes; max_wal_size where it is known and larger
CLEAN_STATES = ("shut down", "shut down in recovery")
# What is wrong with a destination of the archive shipper, by its state.
SHIPPING = {
    "full": ("archive_full", "error", "is full"),
    "unreachable": ("archive_unreachable", "warning", "cannot be reached"),
    "conflict": ("archive_conflict", "error", "holds other content of a name"),
    "refused": ("archive_refused", "error", "refuses what is shipped"),
}
UNITS = {"kB": 1 << 10, "8kB": 8 << 10, "MB": 1 << 20}
UPSTREAM_SETTINGS = ("primary_conninfo", "primary_slot_name")
UPSTREAM_FILE = "60-hotspare-upstream.conf"
OUR_FILES = ("50-hotspare.conf", "55-hotspare-primary.conf", UPSTREAM_FILE)


def problem(code: str, severity: str, detail: str) -> Problem:
    return {"code": code, "severity": severity, "detail": detail}


def error(code: str, detail: str) -> Problem:
    return problem(code, "error", detail)


def warning(code: str, detail: str) -> Problem:
    return problem(code, "warning", detail)


def info(code: str, detail: str) -> Problem:
    return problem(code, "info", detail)


def problems(state: Mapping[str, Any]) -> list[Problem]:
    """All that can be told from the record, the worst first."""
    by_role = {"standby": _of_standby, "primary": _of_primary, "stopped": _of_stopped}.get(state["role"], _nothing)
    found = [*_of_node(state), *by_role(state), *(_of_server(state) if state["settings"] is not None else ())]
    return sorted(found, key=severity_order)


def severity_order(entry: Mapping[str, Any]) -> int:
    return ("error", "warning", "info").index(entry["severity"])


def _nothing(state: Mapping[str, Any]) -> Iterator[Problem]:
    return iter(())


def _of_node(state: Mapping[str, Any]) -> Iterator[Problem]:
    if state["role"] == "unknown":
        yield error("unknown", state["reason"] or "its state is not known")
    version = state["major_version"]
    if version is not None and version < TESTED_VERSIONS[0]:
        yield error(
            "version_unsupported", f"PostgreSQL {version} is too old, the oldest supported is {TESTED_VERSIONS[0]}"
        )
    elif version is not None and version not in TESTED_VERSIONS:
        yield warning(
            "version_unsupported", f"PostgreSQL {version} is newer than what was tested, up to {TESTED_VERSIONS[-1]}"
        )
    left = state["rebuild"]
    if left and left["rewinding"]:
        yield error(
            "rewind_unfinished",
            f"{left['rewinding']} is being rewound, or was and cannot be used; pg_rebuild goes on from there",
        )
    yield from _at_work(state)
    yield from _shipping(state)
    yield from _snapshots(state)
    if left and left["seeding"]:
        yield info("seeding", f"{left['seeding']} is being copied, or waits for pg_rebuild to go on with it")
    control = state["control"]
    if control and not control["data_checksums"]:
        also = "" if control["wal_log_hints"] else ", and without wal_log_hints pg_rewind is impossible"
        yield warning(
            "no_checksums", f"data checksums are off{also}; pg_checksums -e turns them on in a stopped server"
        )
    needed = LOW_SPACE
    if state["settings"] is not None:
        limit = state["settings"]["max_wal_size"]
        needed = max(needed, int(limit["value"]) * UNITS[limit["unit"]])
    if state["free_bytes"] is not None and state["free_bytes"] < needed:
        yield warning(
            "free_space",
            f"{state['free_bytes'] >> 20} MiB are free beside {state['data_directory']}, less than {needed >> 20} MiB",
        )


def _at_work(state: Mapping[str, Any]) -> Iterator[Problem]:
    """Who changes something here, or will."""
    lock, armed, superseded = state["lock"], state["armed"], state["superseded"]
    if lock and lock["token"] is None:
        yield error("lock_unreadable", lock["reason"])
    elif lock:
        gone = ", and that run has ended: the next one takes it over" if lock["alive"] is False else ""
        yield info("locked", f"{lock['owner']} works on it since {lock['since']} ({lock['purpose']}){gone}")
    if armed and armed["state"] == "unknown":
        yield error("armed_unreadable", armed["reason"])
    elif armed and armed["state"] in ("armed", "promoting"):
        left = f" for another {armed['expires_in']:.0f} s" if armed["expires_in"] > 0 else ""
        yield info("armed", f"it is armed{left}: it becomes the primary when its primary has stopped cleanly")
    if superseded and state["role"] != "standby":
        yield warning(
            "superseded",
            f"its guard has seen {superseded['primary']} as primary on timeline {superseded['timeline']}: "
            "rebuild_standby.yml makes it a standby",
        )


def _shipping(state: Mapping[str, Any]) -> Iterator[Problem]:
    archive = state["archive"]
    if archive is None:
        return
    if not archive["running"]:
        known = "does not run" if archive["running"] is False else "may not run"
        yield warning(
            "shipper_down", f"its archive shipper {known}: {archive['reason']}; without it WAL is archived slowly"
        )
        return
    if state["role"] != "primary":
        return
    if archive.get("empty"):
        yield warning(
            "archive_empty",
            f"{', '.join(archive['empty'])} in pg_wal is empty, as a crash or a copy left it, and is not archived: "
            "retention does not know of that backup, so see that archive_keep has days enough for it",
        )
    for place in archive["destinations"]:
        if place["state"] in SHIPPING:
            code, severity, words = SHIPPING[place["state"]]
            yield problem(code, severity, f"{place['name']} {words} since {place['since']}: {place['error']}")
        waiting = waiting_files(place)
        if waiting is not None and waiting >= BACKLOG_WARNING:
            severity = "error" if waiting >= BACKLOG_ERROR else "warning"
            yield problem("archive_waiting", severity, f"{waiting} files of WAL wait to be shipped to {place['name']}")


def _snapshots(state: Mapping[str, Any]) -> Iterator[Problem]:
    """Of the timer that sends snapshots to a backup pool."""
    zfs = state["zfs"]
    if zfs is None:
        return
    if zfs["reason"]:
        yield warning("snapshots_unknown", f"nobody knows how its snapshots do: {zfs['reason']}")
    backup = zfs["backup"]
    if backup is None or any(send["for"] == "backup" for send in zfs["sends"]):
        return  # none are wanted; or one is under way, and what it comes to is told then
    if backup["state"] is None:
        yield info("snapshot_missing", f"nothing was sent to {backup['dataset']} yet: the timer will, or snapshot.yml")
    elif backup["state"] == "failed":
        yield error("snapshot_failed", f"its last snapshot ({backup['at']}) failed: {backup['error']}")
    elif backup["late"]:
        yield error(
            "snapshot_late",
            f"its timer has missed two of its times since {backup['at']}: see systemctl list-timers 'hotspare-*'",
        )


def waiting_files(place: Mapping[str, Any]) -> int | None:
    """How many a destination has yet to get: those that nobody has, and those that others have."""
    waiting, behind = place["waiting"], place["behind"]
    return None if waiting is None or behind is None else int(waiting) + int(behind)


def _of_stopped(state: Mapping[str, Any]) -> Iterator[Problem]:
    control = state["control"]
    if control and control["state"] not in CLEAN_STATES:
        yield warning(
            "stopped_unclean", f"no server runs and pg_control says {control['state']!r}: it did not stop cleanly"
        )
    if not state["standby_signal"]:
        yield info("starts_as_primary", "it has no standby.signal: started, it would be a primary")
    if state["recovery_signal"] and not state["standby_signal"]:
        yield warning("recovery_signal", "it has recovery.signal: started, it would recover and then be a primary")
    yield from _backlog(state)


def _of_standby(state: Mapping[str, Any]) -> Iterator[Problem]:
    if state["recovery_signal"] and not state["standby_signal"]:
        yield error("recovery_signal", "it recovers from an archive towards a target and will then be a primary")
    elif state["standby_signal"] is False:
        yield error(
            "standby_signal_missing",
            "it runs as a standby and standby.signal is gone: restarted, it would be a primary",
        )
    if not state["hot_standby"]:
        yield warning("streaming_unknown", f"it does not accept connections yet: {state['reason']}")
        return
    receiver, lag = state["wal_receiver"], state["lag"]
    if state["recovery"] != "streaming":
        source = "it reads the archive" if state["recovery"] == "archive" else "no WAL comes in"
        status = f"its WAL receiver is {receiver['status']}" if receiver else "it has no WAL receiver"
        yield error("not_streaming", f"{status}, {source}; its log says why")
    elif lag["bytes"] is None and receiver and receiver["latest_end_lsn"] is not None:
        yield warning(
            "streaming_unknown",
            f"its primary has been silent for {receiver['silent_seconds']} s: its lag is not known; is it frozen?",
        )
    if state["replay"]["paused"]:
        yield warning(
            "replay_paused", f"replay is {state['replay']['state']}; SELECT pg_wal_replay_resume() resumes it"
        )
    if state["replay"]["min_apply_delay_ms"]:
        yield warning("apply_delay", f"recovery_min_apply_delay is {state['replay']['min_apply_delay_ms']} ms")
    target = state["settings"]["recovery_target_timeline"]["value"]
    if target != "latest":
        yield warning(
            "timeline_fixed", f"recovery_target_timeline is {target!r}: it will not follow a newly promoted primary"
        )


def _of_primary(state: Mapping[str, Any]) -> Iterator[Problem]:
    if state["standby_signal"]:
        yield warning(
            "prepared_primary",
            "it has standby.signal, as in a cutover that did not end: its next start makes it a standby; run "
            f"failover.yml again to go on, or failover.yml -e target={state['name']} to leave it the primary",
        )
    if state["prepared_transactions"]:
        yield info("prepared_transactions", f"{state['prepared_transactions']} prepared transactions are open")
    archiver = state["archiver"]
    if archiver["mode"] not in (None, "off"):
        failed, archived = archiver["last_failed_time"], archiver["last_archived_time"]
        if archiver["command_set"] is False:
            yield warning("archiver_failing", "archive_mode is on and there is no archive_command: WAL piles up")
        elif failed and (not archived or failed > archived):
            yield error("archiver_failing", f"archiving {archiver['last_failed_wal']} failed at {failed}; see its log")
    yield from _backlog(state)


def _backlog(state: Mapping[str, Any]) -> Iterator[Problem]:
    ready = (state["archiver"] or {}).get("ready")
    if ready is not None and ready >= BACKLOG_WARNING:
        severity = "error" if ready >= BACKLOG_ERROR else "warning"
        yield problem("archive_backlog", severity, f"{ready} files of WAL wait to be archived")


def _of_server(state: Mapping[str, Any]) -> Iterator[Problem]:
    settings = state["settings"]
    if settings["wal_level"]["value"] == "minimal":
        yield error("wal_level", "wal_level is minimal: no standby can follow it; set it to replica and restart")
    if settings["fsync"]["value"] == "off":
        yield error("fsync_off", "fsync is off: a crash may destroy it")
    if settings["full_page_writes"]["value"] == "off":
        yield warning("full_page_writes_off", "full_page_writes is off: pg_rewind from it is impossible")
    if state["pending_restart"]:
        yield warning("pending_restart", f"a restart is needed for: {', '.join(state['pending_restart'])}")
    for slot in state["slots"]:
        yield from _of_slot(slot)
    for backup in state["running_backups"]:
        who = backup["application_name"] or f"process {backup['pid']}"
        yield info("backup_running", f"a base backup is being taken by {who}: {backup['phase']}")


def _of_slot(slot: Mapping[str, Any]) -> Iterator[Problem]:
    name, kept = slot["name"], slot["retained_bytes"]
    if slot["wal_status"] == "lost" or slot["invalidation_reason"]:
        why = f" ({slot['invalidation_reason']})" if slot["invalidation_reason"] else ""
        yield error("slot_lost", f"slot {name} has lost its WAL{why}: what used it needs a rebuild and a new slot")
    elif slot["wal_status"] == "unreserved":
        yield error("slot_unreserved", f"slot {name} is about to lose its WAL at the next checkpoint")
    elif slot["type"] == "physical" and slot["restart_lsn"] is None:
        yield warning("slot_unreserved", f"slot {name} has never been used and keeps no WAL")
    elif not slot["active"]:
        keeps = "an unknown amount of WAL" if kept is None else f"{kept >> 20} MiB of WAL"
        yield warning("slot_inactive", f"nobody uses slot {name}, which keeps {keeps}")


def config_problems(rows: Sequence[Mapping[str, Any]] | None, our_directory: str) -> list[Problem]:
    """From pg_file_settings (in reading order): errors in the files, and what overrides the files of ours (pure).

    Values are not told: they may be secrets. `rows` also has context and source of pg_settings.
    """
    found: list[Problem] = []
    last: dict[str, Mapping[str, Any]] = {}
    ours: dict[str, Mapping[str, Any]] = {}
    for row in rows or ():
        # A setting that waits for a restart is marked as an error as well; pending_restart tells of those.
        if row["error"] and row["context"] != "postmaster":
            what = f"{row['name']}: {row['error']}" if row["name"] else row["error"]
            found.append(
                error("config_error", f"{_where(row)}: {what}; mend it, a reload cannot be trusted until then")
            )
        if row["name"]:
            last[row["name"]] = row
            if _is_ours(row, our_directory):
                ours[row["name"]] = row
    for name, mine in ours.items():
        winner, by = last[name], None
        upstream = name in UPSTREAM_SETTINGS
        # Of the upstream even an equal value is a trap: it stays when ours changes.
        if not _is_ours(winner, our_directory) and (upstream or winner["setting"] != mine["setting"]):
            by = _where(winner)
        elif mine["source"] in ("command line", "environment variable"):
            by = f"the {mine['source']}"
        if by and upstream:
            found.append(error("upstream_overridden", f"{name} of {_where(mine)} is overridden by {by}"))
        elif by:
            found.append(warning("setting_overridden", f"{name} of {_where(mine)} is overridden by {by}"))
    return found


def _is_ours(row: Mapping[str, Any], our_directory: str) -> bool:
    directory, name = os.path.split(row["sourcefile"])
    return name in OUR_FILES and os.path.realpath(directory) == os.path.realpath(our_directory)


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['sourcefile']}:{row['sourceline']}"
