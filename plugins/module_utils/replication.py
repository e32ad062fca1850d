# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The truth about one node: its record, read in one connection and one statement.

What is not known is None, never 0 and never "as before". Manual: "Monitoring statistics" (28.2), "System
Administration Functions" (9.27), pg_controldata.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pwd
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .archive_shipping import read_shipping
from .armed_state import read_armed
from .conninfo import Upstream
from .controldata import read as read_control
from .guard import holds, read_note
from .lock import fingerprint, read_lock
from .mounts import expect_mounted
from .peers import ASK_SECONDS as PEER_SECONDS
from .peers import Peer
from .peers import ask as ask_peers
from .problems import config_problems, info, problems, severity_order, warning
from .problems import error as problem_error
from .server import (
    ConnectFailed,
    Instance,
    bounded,
    connect,
    data_directory_kind,
    effective_setting,
    has_shut_down,
    installed_versions,
    major_version,
    process_id,
    processes,
)
from .shell import HotspareError
from .wal import format_lsn, parse_history, parse_lsn
from .zfs_status import read_zfs

OLDEST_VERSION = 13
ASK_SECONDS = 5  # a server that is well answers in 0.03 s

# Those that decide about replication and a change of roles; others only when they wait for a restart.
SETTINGS = (
    "archive_command archive_library archive_mode archive_timeout cluster_name config_file data_checksums"
    " default_transaction_read_only fsync full_page_writes hba_file hot_standby hot_standby_feedback"
    " idle_replication_slot_timeout listen_addresses max_connections max_locks_per_transaction"
    " max_prepared_transactions max_replication_slots max_slot_wal_keep_size max_standby_streaming_delay"
    " max_wal_senders max_wal_size max_worker_processes port primary_conninfo primary_slot_name"
    " recovery_min_apply_delay recovery_target_timeline restore_command sync_replication_slots"
    " synchronized_standby_slots synchronous_commit synchronous_standby_names wal_keep_size wal_level"
    " wal_log_hints wal_receiver_status_interval wal_receiver_timeout wal_retrieve_retry_interval"
    " wal_sender_timeout"
).split()
COMMANDS = ("archive_command", "restore_command")  # may carry somebody's keys: shown as set or not, never as they are

RECEIVER = (
    "pid status receive_start_lsn receive_start_tli written_lsn flushed_lsn received_tli last_msg_send_time"
    " last_msg_receipt_time latest_end_lsn latest_end_time slot_name sender_host sender_port"
).split()
SENDER = (
    "pid application_name client_addr usename state sync_state sync_priority sent_lsn write_lsn flush_lsn replay_lsn"
    " write_lag flush_lag replay_lag backend_start reply_time"
).split()
SLOT = (
    "active active_pid temporary restart_lsn wal_status safe_wal_size inactive_since failover synced database plugin"
).split()
ARCHIVER = "archived_count last_archived_wal last_archived_time failed_count last_failed_wal last_failed_time".split()


def read_state(
    instance: Instance, *, timeout: float = ASK_SECONDS, peers: Sequence[Peer] | None = None
) -> dict[str, Any]:
    """The record of one node; see RETURN of the module pg_replication_state for its fields and units.

    A server that is down, starting, frozen or absent is no error: `role` and `reason` say so. `timeout` (s) bounds the
    connection and the answer together. `peers` are asked first, all at once and within two seconds.
    """
    state = _blank(instance)
    directory = os.path.realpath(instance.data_directory)
    state.update(rebuild=_rebuild(directory), **_at_work(directory), **_machine(directory))
    state["archive"] = read_shipping(os.path.dirname(instance.configuration))
    state["zfs"] = read_zfs(directory)
    if peers is not None:
        # First, so that what the node itself says is the younger.
        state["peers"] = ask_peers(peers, instance.account, PEER_SECONDS)
    extra: list[dict[str, Any]] = []
    try:
        state["data"] = data_directory_kind(instance)
        if state["data"] == "cluster":
            try:
                running = not has_shut_down(instance)
            finally:
                # After the process was looked for: what pg_control says of a stopped server is final then.
                _read_directory(instance, state, extra)
            if running:
                _running(instance, state, extra, timeout)
            else:
                _stopped(instance, state, extra)
        elif state["data"] == "foreign":
            _unknown(state, f"{instance.data_directory} holds files that are no PostgreSQL cluster; see what they are")
        else:
            expect_mounted(instance.data_directory)
            state["role"] = "absent"
    except HotspareError as error:
        _unknown(state, error.message)
    state["history"] = _history(instance, state["timeline"])
    _superseded(instance, state, extra)
    state["problems"] = sorted(extra + problems(state), key=severity_order)
    return state


class _Unknown(HotspareError):
    """The state cannot be told; the message is the reason."""


def _unknown(state: dict[str, Any], reason: str) -> None:
    state.update(role="unknown", reason=reason)


def _blank(instance: Instance) -> dict[str, Any]:
    return {
        "name": instance.name,
        "role": "unknown",
        "reason": None,
        "data": None,
        "data_directory": instance.data_directory,
        "wal_directory": None,
        "major_version": None,
        "server_version": None,
        "system_identifier": None,
        "timeline": None,
        "standby_signal": None,
        "recovery_signal": None,
        "backup_label": None,
        "history": None,
        "control": None,
        "in_recovery": None,
        "hot_standby": None,
        "recovery": None,
        "lsn": dict.fromkeys(("current", "insert", "flush", "receive", "replay", "held")),
        "replay": dict.fromkeys(("state", "paused", "last_commit", "min_apply_delay_ms")),
        "lag": dict.fromkeys(("bytes", "replay_bytes", "seconds")),
        "wal_receiver": None,
        "replication": None,
        "slots": None,
        "archiver": None,
        "archive": None,
        "zfs": None,
        "settings": None,
        "pending_restart": None,
        "clients": None,
        "prepared_transactions": None,
        "oldest_transaction_seconds": None,
        "running_backups": None,
        "upstream": None,
        "tablespaces": None,
        "rebuild": None,
        "lock": None,
        "armed": None,
        "fingerprint": None,
        "superseded": None,
        "peers": None,
        "synchronous_standby_names": None,
        "data_owner": None,
        "auto_conf_owner": None,
        "wal_free_bytes": None,
        "machine_id": None,
        "boot_id": None,
        "free_bytes": None,
        "installed_versions": None,
        "problems": [],
    }


# --- what the machine and the files say


def _machine(directory: str) -> dict[str, Any]:
    return {
        "machine_id": _content("/etc/machine-id"),
        "boot_id": _content("/proc/sys/kernel/random/boot_id"),
        "free_bytes": _free_bytes(os.path.dirname(directory)),
        "installed_versions": installed_versions(),
    }


def _at_work(directory: str) -> dict[str, Any]:
    """Who works on the cluster, and whether a process waits to promote this node; what is not known says why."""
    found: dict[str, Any] = {}
    try:
        found["lock"] = read_lock(directory)
    except HotspareError as error:
        control = dict.fromkeys(("host", "pid", "started", "boot_id", "namespace"))
        blank = dict.fromkeys(("owner", "purpose", "since", "token", "expires_in", "alive", "path"))
        found["lock"] = {**blank, "control": control, "reason": error.message}
    try:
        found["armed"] = read_armed(directory)
    except HotspareError as error:
        blank = dict.fromkeys(("alive", "since", "expires_in", "pid", "position", "phases", "proof", "at"))
        found["armed"] = {**blank, "state": "unknown", "reason": error.message}
    return {**found, "fingerprint": fingerprint(directory, found["armed"])}


def _owner(path: str) -> str | None:
    try:
        uid = os.stat(path).st_uid
    except OSError:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _content(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip() or None
    except OSError:
        return None


def _free_bytes(path: str) -> int | None:
    """For an account that is not root, on the file system that `path` is on, or will be on once it is made."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        file_system = os.statvfs(path)
    except OSError:
        return None
    return file_system.f_bavail * file_system.f_frsize


def _rebuild(directory: str) -> dict[str, Any] | None:
    """What pg_rebuild left beside the data directory, or is working on: a copy, or a directory being rewound."""
    seeding, rewinding = f"{directory}.seeding", f"{directory}.rewinding"
    found = {name: path for name, path in (("seeding", seeding), ("rewinding", rewinding)) if os.path.isdir(path)}
    note = _content(f"{seeding}.json")
    if not found and note is None:
        return None
    try:
        detail = json.loads(note) if note else None
    except ValueError:
        detail = None
    return {"seeding": found.get("seeding"), "rewinding": found.get("rewinding"), "note": detail}


def _read_directory(instance: Instance, state: dict[str, Any], extra: list[dict[str, Any]]) -> None:
    directory = instance.data_directory
    try:
        state["major_version"] = major_version(instance)
        state["standby_signal"] = _exists(instance.path("standby.signal"))
        state["recovery_signal"] = _exists(instance.path("recovery.signal"))
        state["backup_label"] = _exists(instance.path("backup_label"))
    except OSError as error:
        raise _Unknown(f"cannot read {directory}: {error.strerror}; run as root or {instance.account}") from error
    wal_directory = os.path.realpath(instance.path("pg_wal"))  # through a link, when the WAL has a disk of its own
    state.update(
        data_owner=_owner(directory),
        auto_conf_owner=_owner(instance.path("postgresql.auto.conf")),
        wal_directory=wal_directory,
        wal_free_bytes=_free_bytes(wal_directory),
    )
    try:
        control = read_control(instance.bin_directory, directory, instance.account)
    except HotspareError as error:
        extra.append(problem_error("control_unreadable", error.message))
        return
    state.update(
        control=control.to_dict(),
        system_identifier=control.system_identifier,
        timeline=max(control.timeline, control.min_recovery_timeline),
    )


def _history(instance: Instance, timeline: int | None) -> list[dict[str, Any]] | None:
    """The ancestors of a timeline, the oldest first; timeline 1 has none, None = not known."""
    if timeline is None or timeline == 1:
        return None if timeline is None else []
    try:
        entries = parse_history(_content(instance.path("pg_wal", f"{timeline:08X}.history")) or "")
    except ValueError:
        return None
    return [{"timeline": entry.timeline, "switch_lsn": format_lsn(entry.switch_lsn)} for entry in entries]


def _superseded(instance: Instance, state: dict[str, Any], extra: list[dict[str, Any]]) -> None:
    """The note of the guard, where it still keeps the node from starting as a primary."""
    if state["data"] != "cluster" or state["standby_signal"]:
        return
    try:
        note = read_note(instance)
    except HotspareError as error:
        extra.append(warning("superseded_unreadable", error.message))
        return
    identifier, timeline = state["system_identifier"], state["timeline"]
    if note and (identifier is None or timeline is None or holds(note, identifier, timeline)):
        state["superseded"] = note


def _exists(path: str) -> bool:
    """As os.path.exists, but a directory that we may not look into is no proof of absence."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


# --- a server that does not answer


def _stopped(instance: Instance, state: dict[str, Any], extra: list[dict[str, Any]]) -> None:
    pid = process_id(instance)
    orphans = processes(instance)
    if pid is not None:
        extra.append(info("still_ending", f"it has shut down, and process {pid} has not ended: is its archiver busy?"))
    elif orphans:
        raise _Unknown(
            f"the postmaster of {instance} is gone and its processes {orphans} are there and may commit: end them"
        )
    state["role"] = "stopped"
    _configured(instance, state, extra)
    links = sorted(glob.glob(os.path.join(glob.escape(instance.data_directory), "pg_tblspc", "*")))
    # Their names are in a catalog that nobody can read now, their numbers will do.
    state["tablespaces"] = [
        {"name": os.path.basename(link), "location": os.readlink(link)} for link in links if os.path.islink(link)
    ]
    try:
        waiting = [name for name in os.listdir(instance.path("pg_wal", "archive_status")) if name.endswith(".ready")]
    except OSError:
        return
    state["archiver"] = {**dict.fromkeys(("mode", "command_set", *ARCHIVER)), "ready": len(waiting)}


def _configured(instance: Instance, state: dict[str, Any], extra: list[dict[str, Any]]) -> None:
    """The upstream that the server's files name, as the server itself would read them."""
    try:
        conninfo = effective_setting(instance, "primary_conninfo")
        slot = effective_setting(instance, "primary_slot_name")
        state["synchronous_standby_names"] = effective_setting(instance, "synchronous_standby_names")
    except HotspareError as error:
        extra.append(problem_error("config_error", error.message))
        return
    state["upstream"] = _upstream(conninfo, slot, extra)
    if state["standby_signal"] and not conninfo:
        extra.append(
            problem_error(
                "standby_without_upstream", "it has standby.signal and no primary_conninfo: it follows nobody"
            )
        )


def _running(instance: Instance, state: dict[str, Any], extra: list[dict[str, Any]], timeout: float) -> None:
    try:
        with bounded(timeout), contextlib.closing(connect(instance, timeout=timeout)) as connection:
            raw = _ask(connection)
    except ConnectFailed as error:
        _not_answering(instance, state, extra, error)
        return
    except TimeoutError as error:
        raise _Unknown(f"the server of {instance} runs and did not answer within {timeout:g} s: frozen?") from error
    if state["system_identifier"] not in (None, raw["system_identifier"]):
        raise _Unknown(
            f"the server of {instance} has system identifier {raw['system_identifier']}, pg_control there has "
            f"{state['system_identifier']}: the directory was exchanged under it; find out what it serves, restart it"
        )
    state.update(running_record(raw, slot_prefix=instance.slot_prefix, control=state["control"]))
    state["upstream"] = _upstream(raw["settings"]["primary_conninfo"]["value"], raw["primary_slot_name"], extra)
    extra.extend(config_problems(raw["file_settings"], os.path.dirname(instance.upstream_file)))


def _not_answering(
    instance: Instance, state: dict[str, Any], extra: list[dict[str, Any]], error: ConnectFailed
) -> None:
    if error.kind != "starting" or not _started_as_standby(instance):
        raise _Unknown(error.message)
    # It may lack WAL for long. It can only come up as a standby; what it streams nobody can ask.
    state.update(role="standby", in_recovery=True, hot_standby=False, reason=error.message)
    _configured(instance, state, extra)


def _started_as_standby(instance: Instance) -> bool:
    """Whether standby.signal was there when the server that is starting now looked for it.

    postmaster.opts is written right before that, and by each start; a promotion removes standby.signal.
    """
    try:
        written = os.stat(instance.path("standby.signal")).st_ctime_ns
        return written < os.stat(instance.path("postmaster.opts")).st_mtime_ns
    except FileNotFoundError:
        return False


# --- a server that answers


def _ask(connection: Any, tries: int = 2) -> dict[str, Any]:
    """One statement, one answer."""
    import psycopg2

    version = connection.server_version
    if version < OLDEST_VERSION * 10000:
        raise _Unknown(f"PostgreSQL {version // 10000} is too old, versions from {OLDEST_VERSION} on are supported")
    try:
        with connection.cursor() as cursor:
            cursor.execute(state_query(version), {"settings": list(SETTINGS)})
            answer: dict[str, Any] = cursor.fetchone()[0]
            return answer
    except psycopg2.errors.ObjectNotInPrerequisiteState as error:
        if tries > 1:  # it was promoted while it answered
            return _ask(connection, tries - 1)
        raise _Unknown(f"the server could not say its state: {' '.join(str(error).split())}") from error
    except psycopg2.Error as error:
        raise _Unknown(f"the server could not say its state: {' '.join(str(error).split())}") from error


def state_query(server_version: int) -> str:
    """The one statement; rows as JSON, so that a column that a version lacks is simply not there."""
    paused = (
        "pg_get_wal_replay_pause_state()"
        if server_version >= 140000
        else "CASE WHEN pg_is_wal_replay_paused() THEN 'paused' ELSE 'not paused' END"
    )
    # Functions of primaries and of standbys refuse on the other, and CASE does not call what it does not choose.
    return f"""SET timezone = 'UTC'; SET search_path = pg_catalog;
SELECT json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'server_version', current_setting('server_version_num')::int,
  'primary_slot_name', current_setting('primary_slot_name'),
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'recovery_timeline', (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
  'checkpoint_timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
  'segment_timeline', CASE WHEN pg_is_in_recovery() THEN
    (SELECT max(left(name, 8)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{{24}}$') END,
  'wal_file', CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END,
  'current', CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END,
  'insert', CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END,
  'flush', CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END,
  'receive', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END,
  'replay', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END,
  'replay_state', CASE WHEN pg_is_in_recovery() THEN {paused} END,
  'last_commit', CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() END,
  'last_commit_seconds', extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()),
  'wal_receiver', (SELECT to_jsonb(r) || jsonb_build_object('silent_seconds',
      extract(epoch FROM clock_timestamp() - last_msg_receipt_time)) FROM pg_stat_wal_receiver r),
  'replication', (SELECT jsonb_agg(to_jsonb(r) || jsonb_build_object(
      'write_lag', extract(epoch FROM write_lag), 'flush_lag', extract(epoch FROM flush_lag),
      'replay_lag', extract(epoch FROM replay_lag)) ORDER BY application_name, pid) FROM pg_stat_replication r),
  'slots', (SELECT jsonb_agg(to_jsonb(s) ORDER BY slot_name) FROM pg_replication_slots s),
  'archiver', (SELECT to_jsonb(a) FROM pg_stat_archiver a),
  'ready', (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%%.ready'),
  'settings', (SELECT jsonb_object_agg(name, jsonb_build_object('value', setting, 'unit', unit, 'source', source,
      'sourcefile', sourcefile, 'pending_restart', pending_restart)) FROM pg_settings WHERE name = ANY (%(settings)s)),
  'pending_restart', (SELECT jsonb_agg(name ORDER BY name) FROM pg_settings WHERE pending_restart),
  'file_settings', (SELECT jsonb_agg(jsonb_build_object('name', lower(f.name), 'setting', f.setting,
      'sourcefile', f.sourcefile, 'sourceline', f.sourceline, 'error', f.error, 'applied', f.applied,
      'context', g.context, 'source', g.source) ORDER BY seqno)
      FROM pg_file_settings f LEFT JOIN pg_settings g ON lower(g.name) = lower(f.name)),
  'clients', (SELECT jsonb_build_object('count', count(*),
      'oldest', coalesce(extract(epoch FROM clock_timestamp() - min(xact_start)), 0)) FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
      AND NOT (application_name = 'hotspare' AND usename = current_user)),
  'prepared_transactions', (SELECT count(*) FROM pg_prepared_xacts),
  'backups', (SELECT jsonb_agg(to_jsonb(p) || jsonb_build_object('application_name', a.application_name,
      'started_at', coalesce(a.query_start, a.backend_start),
      'seconds', extract(epoch FROM clock_timestamp() - coalesce(a.query_start, a.backend_start))) ORDER BY pid)
      FROM pg_stat_progress_basebackup p JOIN pg_stat_activity a USING (pid)),
  'tablespaces', (SELECT jsonb_agg(jsonb_build_object('name', spcname, 'location', pg_tablespace_location(oid))
      ORDER BY spcname) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> '')
)"""


def running_record(
    raw: Mapping[str, Any], *, slot_prefix: str, control: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The part of the record that the answer to `state_query` gives (pure)."""
    standby = raw["in_recovery"]
    settings = _settings(raw["settings"])
    lsn = {name: raw[name] for name in ("current", "insert", "flush", "receive", "replay")}
    lsn["held"] = _greatest(raw["receive"], raw["replay"]) if standby else raw["flush"]
    receiver = _receiver(raw["wal_receiver"])
    streaming = receiver is not None and receiver["status"] == "streaming"
    timelines = [(control or {}).get("timeline"), raw["checkpoint_timeline"], raw["recovery_timeline"]]
    timelines.append((receiver or {}).get("received_tli"))
    timelines.append(int(raw["segment_timeline"], 16) if raw.get("segment_timeline") else None)
    if standby:
        # WAL comes by the stream, else from the archive if there is one, else not at all.
        recovery = "streaming" if streaming else "archive" if raw["settings"]["restore_command"]["value"] else "none"
    else:
        recovery = None
    return {
        "role": "standby" if standby else "primary",
        "server_version": raw["server_version"],
        "system_identifier": raw["system_identifier"],
        # A standby's pg_control lags behind, its receiver may be gone, and WAL that it received is named after its
        # timeline: each is a lower bound. A primary's pg_control names the old one until it makes a checkpoint.
        "timeline": max(t for t in timelines if t is not None) if standby else int(raw["wal_file"][:8], 16),
        "in_recovery": standby,
        "hot_standby": True if standby else None,
        "recovery": recovery,
        "lsn": lsn,
        "replay": {
            "state": raw["replay_state"],
            "paused": raw["replay_state"] != "not paused" if raw["replay_state"] else None,
            "last_commit": raw["last_commit"],
            "min_apply_delay_ms": int(settings["recovery_min_apply_delay"]["value"]) if standby else None,
        },
        "lag": _lag(raw, lsn, receiver, settings) if standby else dict.fromkeys(("bytes", "replay_bytes", "seconds")),
        "wal_receiver": receiver,
        "replication": [_sender(row, lsn, raw["slots"] or []) for row in raw["replication"] or []],
        "slots": [_slot(row, lsn, slot_prefix) for row in raw["slots"] or []],
        "archiver": _archiver(raw, settings),
        "settings": settings,
        "pending_restart": raw["pending_restart"] or [],
        "clients": raw["clients"]["count"],
        "prepared_transactions": raw["prepared_transactions"],
        "oldest_transaction_seconds": _seconds(raw["clients"]["oldest"]),
        "running_backups": [_backup(row) for row in raw["backups"] or []],
        "tablespaces": raw["tablespaces"] or [],
        "synchronous_standby_names": settings["synchronous_standby_names"]["value"],
    }


def _settings(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    shown = {name: dict(rows[name]) for name in sorted(rows)}
    for name in COMMANDS:
        if shown[name]["value"] not in ("", "(disabled)"):
            shown[name]["value"] = "(set)"
    if shown["primary_conninfo"]["value"]:
        upstream = _upstream(shown["primary_conninfo"]["value"], None, [])
        shown["primary_conninfo"]["value"] = upstream["conninfo"] if upstream else None
    return shown


def _upstream(conninfo: str, slot: str | None, extra: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Whom a standby follows; a password in it stays behind."""
    if not conninfo:
        return None
    try:
        upstream = Upstream.from_conninfo(conninfo)
    except (HotspareError, ValueError):
        # Its text is not repeated: it may hold a password.
        extra.append(problem_error("upstream_unreadable", "primary_conninfo is no connection string; correct it"))
        return None
    return {
        "conninfo": upstream.conninfo(),
        "host": upstream.host,
        "port": upstream.port,
        "user": upstream.user,
        "application_name": upstream.application_name,
        "passfile": upstream.passfile,
        "slot": slot or None,
    }


def _receiver(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    # The view shows the connection string without any quotes, so it can only be searched.
    name = re.search(r"(?:^| )application_name=(.*?)(?= \w+=|$)", row.get("conninfo") or "")
    return {
        **{name: row.get(name) for name in RECEIVER},
        "slot_name": row.get("slot_name") or None,
        "application_name": name.group(1) if name else None,
        "silent_seconds": _seconds(row["silent_seconds"]),
    }


def receiver_is_silent(receiver: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the primary did not answer the ping that half of wal_receiver_timeout without a message brings.

    Until the whole timeout is over the receiver calls itself streaming, from a frozen primary too.
    """
    limit = int(settings["wal_receiver_timeout"]["value"]) / 1000 or 60.0
    return receiver["silent_seconds"] is None or receiver["silent_seconds"] > limit / 2 + 2


def _lag(
    raw: Mapping[str, Any],
    lsn: Mapping[str, str | None],
    receiver: Mapping[str, Any] | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    replay_bytes = difference(lsn["held"], lsn["replay"])
    behind = None
    if receiver is not None and receiver["status"] == "streaming" and not receiver_is_silent(receiver, settings):
        behind = difference(receiver["latest_end_lsn"], lsn["held"])
    if behind is None:
        # How old the last replayed commit is says nothing when it is not known what the primary has written since.
        seconds = None
    elif behind == replay_bytes == 0:
        seconds = 0.0
    else:
        seconds = _seconds(raw["last_commit_seconds"])
    return {"bytes": behind, "replay_bytes": replay_bytes, "seconds": seconds}


def _sender(
    row: Mapping[str, Any], lsn: Mapping[str, str | None], slots: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    end = lsn["current"] or lsn["held"]
    record: dict[str, Any] = {name: row.get(name) for name in SENDER}
    for name in ("write_lag", "flush_lag", "replay_lag"):
        record[name] = _seconds(row[name])
    record["lag_bytes"] = {
        stage: difference(end, row[f"{stage}_lsn"]) for stage in ("sent", "write", "flush", "replay")
    }
    record["slot_name"] = next((slot["slot_name"] for slot in slots if slot["active_pid"] == row["pid"]), None)
    return record


def _slot(row: Mapping[str, Any], lsn: Mapping[str, str | None], prefix: str) -> dict[str, Any]:
    # PostgreSQL 16 says only that a logical slot conflicts, from 17 on there is the reason.
    reason = row.get("invalidation_reason") or ("conflicting" if row.get("conflicting") else None)
    return {
        "name": row["slot_name"],
        "type": row["slot_type"],
        **{name: row.get(name) for name in SLOT},
        "invalidation_reason": reason,
        "retained_bytes": difference(lsn["current"] or lsn["held"], row["restart_lsn"]),
        "ours": row["slot_type"] == "physical" and row["slot_name"].startswith(prefix),
    }


def _archiver(raw: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    command, library = settings["archive_command"]["value"], settings.get("archive_library", {}).get("value")
    return {
        "mode": settings["archive_mode"]["value"],
        # With archive_mode off the server does not show its command.
        "command_set": None if command == "(disabled)" else bool(command or library),
        **{name: raw["archiver"][name] for name in ARCHIVER},
        "ready": raw["ready"],
    }


def _backup(row: Mapping[str, Any]) -> dict[str, Any]:
    total, done, seconds = row["backup_total"], row["backup_streamed"], _seconds(row["seconds"])
    rate = done / seconds if done and seconds else None
    return {
        "pid": row["pid"],
        "application_name": row["application_name"],
        "phase": row["phase"],
        "total_bytes": total,
        "streamed_bytes": done,
        "started_at": row["started_at"],
        "seconds": seconds,
        "bytes_per_second": round(rate) if rate else None,
        # The total is an estimate and may be passed.
        "seconds_left": round(max(0, total - done) / rate, 1) if rate and total else None,
    }


def difference(ahead: str | None, behind: str | None) -> int | None:
    """Bytes of WAL between two positions, 0 when the second is ahead, None when one is not known."""
    if ahead is None or behind is None:
        return None
    return max(0, parse_lsn(ahead) - parse_lsn(behind))


def _greatest(*positions: str | None) -> str | None:
    """pg_last_wal_receive_lsn() alone falls back to the start of a segment when the receiver restarts."""
    known = [parse_lsn(position) for position in positions if position is not None]
    return format_lsn(max(known)) if known else None


def _seconds(value: Any) -> float | None:
    return None if value is None else round(float(value), 3)
