# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What rebuild.py needs to know to decide how a node becomes a standby. Nothing here changes anything."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from .conninfo import Upstream
from .controldata import ControlData
from .rebuild import Decision, Local, Position, Source, Wish, choose_method, position
from .rebuild_zfs_look import assess, mounted_aside, placed
from .replication import read_state
from .server import (
    ConnectFailed,
    Instance,
    connect,
    connect_conninfo,
    effective_setting,
    has_signal,
    processes,
    read_control,
)
from .shell import CommandError, HotspareError, run
from .stale_slots import FAILOVER_SLOTS, stale_slots
from .wal import format_lsn, parse_history, parse_lsn, parse_segment_name
from .zfs_layout import Zfs

WALDUMP_SECONDS = 600
UNTOUCHED = "hotspare-untouched"  # in X.rewinding until pg_rewind begins


@dataclass
class Job:
    """What one run works with. `real` is the data directory without symbolic links."""

    instance: Instance
    upstream: Upstream
    wish: Wish
    zfs: Optional[Zfs] = None
    start: bool = True
    timeout: float = 120
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def real(self) -> str:
        return os.path.realpath(self.instance.data_directory)

    @property
    def seeding(self) -> str:
        return f"{self.real}.seeding"

    @property
    def marker(self) -> str:
        return f"{self.real}.seeding.json"

    @property
    def rewinding(self) -> str:
        return f"{self.real}.rewinding"

    @property
    def untouched(self) -> bool:
        """Whether the data directory has the name X.rewinding, and pg_rewind had not begun when that run died."""
        return not os.path.lexists(self.real) and os.path.lexists(os.path.join(self.rewinding, UNTOUCHED))

    @property
    def found(self) -> Instance:
        """The node with its data directory where that is now."""
        return self.at(self.rewinding) if self.untouched else self.instance

    def at(self, directory: str) -> Instance:
        """This node's server as it would be with another data directory."""
        return replace(self.instance, data_directory=directory, config_file=self.instance.configuration)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a step; what it puts into `detail` is told, also when it fails."""
        entry: dict[str, Any] = {"name": name, "seconds": None, "detail": ""}
        self.steps.append(entry)
        began = time.monotonic()
        try:
            yield entry
        finally:
            entry["seconds"] = round(time.monotonic() - began, 3)


def look(job: Job) -> tuple[dict[str, Any], Local, Source, Decision]:
    """The node's record, what is known of the node and of the primary, and what is to be done."""
    state = read_state(job.found)
    # After the node: what it had received by then, its primary has flushed by now.
    source = look_at_source(job.upstream, job.instance.account)
    local, source = look_at_node(job, state, source)
    if job.zfs:
        local = replace(local, set_aside=mounted_aside(job.zfs, job.real))
    decision = choose_method(local, source, job.wish.method)
    # The other host is asked only where it matters.
    compared = decision.method == "rewind" and job.wish.method == "auto"
    matters = compared or decision.method == "basebackup" or job.wish.method == "zfs"
    if job.zfs and source.error is None and matters:
        copy = assess(job.zfs, source, job.real, job.upstream.slot or "")
        local = replace(local, copy=copy)
        if copy.kind == "incremental":  # then it is compared with that; where it is not known, ZFS is right
            with contextlib.suppress(HotspareError):
                source = with_size(source, job)
        decision = choose_method(local, source, job.wish.method)
    unsized = source.error is None and source.wal_bytes is None
    if decision.method == "basebackup" and local.seed != "complete" and unsized:
        source = with_size(source, job)
    return state, local, source, decision


# Everybody may ask this; without pg_read_all_stats `state` of a standby is NULL. A standby has no current LSN, and CASE
# does not call what it does not choose.
_SOURCE = (
    """SET timezone = 'UTC'; SET search_path = pg_catalog; SELECT json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'flush', CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END,
  'checkpoint_timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
  'version', current_setting('server_version_num')::int / 10000,
  'full_page_writes', current_setting('full_page_writes')::bool,
  'segment_size', (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
  'started', pg_postmaster_start_time()::text,
  'may_rewind', (SELECT bool_and(has_function_privilege(f, 'EXECUTE')) FROM unnest(ARRAY[
      'pg_ls_dir(text,boolean,boolean)', 'pg_stat_file(text,boolean)', 'pg_read_binary_file(text)',
      'pg_read_binary_file(text,bigint,bigint,boolean)']) f),
  'may_label', (SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc
      WHERE proname IN ('pg_backup_start', 'pg_backup_stop', 'pg_start_backup', 'pg_stop_backup')
      AND NOT (proname = 'pg_stop_backup' AND pronargs = 0)),
  'slot', (SELECT json_build_object('type', slot_type, 'active', active, 'active_pid', active_pid,
      'restart_lsn', restart_lsn, 'wal_status', wal_status) FROM pg_replication_slots WHERE slot_name = %(slot)s),
  'failover_slots', """
    + FAILOVER_SLOTS
    + """,
  'streaming', (SELECT json_agg(application_name) FROM pg_stat_replication
      WHERE coalesce(state, 'streaming') = 'streaming'),
  'tablespaces', (SELECT json_agg(pg_tablespace_location(oid)) FROM pg_tablespace
      WHERE pg_tablespace_location(oid) <> '')
)"""
)
_SIZE = """SET search_path = pg_catalog; SELECT
  CASE WHEN bool_and(open) THEN sum(CASE WHEN open THEN pg_database_size(oid) END) END,
  (SELECT setting::bigint * 1024 * 1024 FROM pg_settings WHERE name = 'max_wal_size')
  FROM (SELECT oid, has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE') AS open
        FROM pg_database) d"""


@contextlib.contextmanager
def asking(upstream: Upstream, account: str, replication: bool = False, statement_timeout: float = 30) -> Iterator[Any]:
    """A cursor on the primary; HotspareError also for a query that fails."""
    parameters = {**upstream.parameters(), "dbname": "postgres", "application_name": "hotspare"}
    connection = connect_conninfo(
        parameters, account=account, replication=replication, statement_timeout=statement_timeout
    )
    with cursor_of(connection, f"{upstream.host}:{upstream.port}") as cursor:
        yield cursor


@contextlib.contextmanager
def cursor_of(connection: Any, where: str) -> Iterator[Any]:
    import psycopg2

    try:
        with contextlib.closing(connection), connection.cursor() as cursor:
            yield cursor
    except psycopg2.Error as error:
        reason = " ".join(str(error).split())
        raise ConnectFailed(f"{where} did not answer a question: {reason}; see its log", "other") from error


def look_at_source(upstream: Upstream, account: str) -> Source:
    """What the primary says of itself, over TCP as the replication account. What fails is in `error`."""
    where = f"{upstream.host}:{upstream.port}"
    try:
        with asking(upstream, account) as cursor:
            cursor.execute(_SOURCE, {"slot": upstream.slot})
            said = cursor.fetchone()[0]
            oldest = None
            if said["may_rewind"] and not said["in_recovery"]:
                cursor.execute("SELECT pg_catalog.pg_ls_dir('pg_wal', true, false)")
                oldest = _oldest([row[0] for row in cursor], said["segment_size"], parse_lsn(said["flush"]))
        with asking(upstream, account, replication=True) as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            identifier, timeline = cursor.fetchone()[:2]
            history = []
            if int(timeline) > 1:
                cursor.execute(f"TIMELINE_HISTORY {int(timeline)}")
                content = cursor.fetchone()[1]  # bytea up to PostgreSQL 14, text since
                history = parse_history(
                    content if isinstance(content, str) else bytes(content).decode(errors="replace")
                )
    except (HotspareError, ValueError) as error:
        return Source(where, error=str(error))
    return Source(
        where,
        addresses=addresses(upstream.host),
        in_recovery=said["in_recovery"],
        system_identifier=str(identifier),
        timeline=int(timeline),
        history=history,
        flush_lsn=parse_lsn(said["flush"]) if said["flush"] else None,
        checkpoint_timeline=said["checkpoint_timeline"],
        major_version=said["version"],
        full_page_writes=said["full_page_writes"],
        may_rewind=said["may_rewind"],
        may_label=said["may_label"],
        oldest_wal=oldest,
        slot=said["slot"],
        failover_slots=tuple(said["failover_slots"] or ()),
        started=said["started"],
        streaming=tuple(said["streaming"] or ()),
        tablespaces=tuple(said["tablespaces"] or ()),
    )


def with_size(source: Source, job: Job) -> Source:
    with asking(job.upstream, job.instance.account) as cursor:
        cursor.execute(_SIZE)
        size, wal = cursor.fetchone()
    return replace(source, size_bytes=None if size is None else int(size), wal_bytes=int(wal))


def _oldest(names: list[str], size: int, flushed: int) -> Optional[int]:
    """The first byte of the oldest segment from which on none is missing up to `flushed`; None: it has none."""
    starts = set()
    for name in names:
        with contextlib.suppress(ValueError):
            starts.add(parse_segment_name(name, size).start_lsn)
    # The last one may be about to be made. Old ones that lie about before a gap help nobody.
    first = flushed - flushed % size
    while first - size in starts:
        first -= size
    return first if starts else None


def addresses(host: str) -> list[str]:
    """What a host name stands for, when that is more than one address of a kind: then it names no one server."""
    if host.startswith("/"):
        return []
    named = host.split(",")
    if len(named) > 1:
        return named
    by_family: dict[int, set[str]] = {}
    try:
        for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            family, where = found[0], found[4]
            by_family.setdefault(family, set()).add(str(where[0]))
    except OSError:
        return []  # the connection will say it better
    several = [names for names in by_family.values() if len(names) > 1]
    return sorted(several[0]) if several else []


def look_at_node(job: Job, state: dict[str, Any], source: Source) -> tuple[Local, Source]:
    """What the decision needs of a node with this record, and the source with what can be told only together."""
    instance = job.found
    real = os.path.realpath(instance.data_directory)
    running = state["role"] in ("primary", "standby")
    control = _control(state["control"])
    here = None
    if control is not None:
        if state["role"] == "standby":
            # It is one now, whatever pg_control, which is written from time to time, says of what it was.
            floor = control.min_recovery_lsn or control.checkpoint_lsn
            held, replayed = (max(floor, parse_lsn(state["lsn"][name] or "0/0")) for name in ("held", "replay"))
            here = Position("standby", state["timeline"], held, replayed)
        else:
            here = position(control, _end_of_wal(job, real, control))
    history, newest = _histories(real, here.timeline if here else 0)
    upstream, receiver = state["upstream"] or {}, state["wal_receiver"] or {}
    configured = (
        state["role"] == "standby"
        and upstream.get("conninfo") == job.upstream.conninfo()
        and upstream.get("slot") == job.upstream.slot
    )
    local = Local(
        name=instance.name,
        role=state["role"],
        data=state["data"],
        reason=state["reason"],
        calls_itself=upstream.get("application_name"),
        uses_slot=upstream.get("slot"),
        stale_slots=stale_slots(state["slots"], source.failover_slots) if state["role"] == "standby" else (),
        configured=configured,
        following=configured
        and receiver.get("status") == "streaming"
        and receiver.get("received_tli") == source.timeline
        and job.upstream.application_name in source.streaming,
        major_version=state["major_version"],
        program_version=program_version(instance),
        control=control,
        position=here,
        history=history,
        newest_timeline=newest,
        restore_command=_has_restore_command(instance, state),
        # A server that is not consistent yet takes no connections, so it has none.
        clients=0 if state["hot_standby"] is False else state["clients"],
        senders=len(state["replication"]) if running else 0,
        processes=tuple(processes(instance)) if not running and state["data"] == "cluster" else (),
        receiving_slot=receiver.get("slot_name"),
        seed=_seed(job, source),
        backup_label=has_signal(instance, "backup_label"),
        leftovers=leftovers(job),
        rewinding=os.path.lexists(job.rewinding) and not job.untouched,
        mount_point=os.path.ismount(real),
        wal_elsewhere=os.path.islink(f"{real}/pg_wal"),
        real_directory=job.real,
        config_file=os.path.realpath(instance.configuration),
        config_exists=os.path.isfile(instance.configuration),
        free_bytes=free_bytes(real),
        occupied=[location for location in source.tablespaces if _occupied(location)],
        torn_pages=file_system(real) != "zfs",
    )
    if running and source.started is not None and state["hot_standby"] is not False:
        with cursor_of(connect(instance), str(instance)) as cursor:
            cursor.execute("SET timezone = 'UTC'; SELECT pg_catalog.pg_postmaster_start_time()::text")
            same_start = cursor.fetchone()[0] == source.started
        source = replace(source, is_this_node=same_start and state["system_identifier"] == source.system_identifier)
    return local, source


def _control(record: Optional[dict[str, Any]]) -> Optional[ControlData]:
    if record is None:
        return None
    values: dict[str, Any] = {name: parse_lsn(v) if name.endswith("_lsn") else v for name, v in record.items()}
    return ControlData(**values)


def _end_of_wal(job: Job, real: str, control: ControlData) -> Optional[int]:
    """Past what a stopped standby holds in pg_wal beyond what it has replayed; None when there is nothing.

    That is replayed at the next start, whatever pg_control says. The last record's start counts, plus one.
    """
    if control.state not in ("shut down in recovery", "in archive recovery"):
        return None
    begin = control.min_recovery_lsn or control.checkpoint_lsn
    timeline = control.min_recovery_timeline or control.timeline
    return waldump(job, real, timeline, begin, ["--quiet"])[1]


def waldump(job: Job, directory: str, timeline: int, begin: int, options: list[str]) -> tuple[str, Optional[int]]:
    """What pg_waldump says of the WAL from `begin` to its end, and where it ends (None: it could not tell)."""
    arguments = ["--path", f"{directory}/pg_wal", "--timeline", str(timeline), "--start", format_lsn(begin), *options]
    program = job.instance.program("pg_waldump")
    done = run([program, *arguments], account=job.instance.account, timeout=WALDUMP_SECONDS, check=False)
    last = re.search(r"error in WAL record at ([0-9A-F]+/[0-9A-F]+)", done.stderr)
    missing = re.search(r'could not (?:find|open) file "(?:.*/)?([0-9A-F]{24})"', done.stderr)
    end = None
    if last:
        end = parse_lsn(last.group(1)) + 1
    elif missing:
        control = read_control(job.at(directory))
        end = parse_segment_name(missing.group(1), control.wal_segment_size).start_lsn
    return done.stdout + done.stderr, end


def _histories(directory: str, timeline: int) -> tuple[Optional[list[Any]], int]:
    """The history of a timeline (None: not there) and the latest timeline that pg_wal has a history of."""
    try:
        names = [name for name in os.listdir(f"{directory}/pg_wal") if re.fullmatch(r"[0-9A-F]{8}\.history", name)]
        newest = max((int(name[:8], 16) for name in names), default=0)
        if timeline <= 1:
            return [], newest
        with open(f"{directory}/pg_wal/{timeline:08X}.history", encoding="utf-8", errors="replace") as file:
            return list(parse_history(file.read())), newest
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    except (OSError, ValueError) as error:
        raise HotspareError(
            f"cannot read the timeline histories in {directory}/pg_wal: {error}; mend that first"
        ) from error


def program_version(instance: Instance) -> Optional[int]:
    try:
        text = run([instance.program("postgres"), "--version"], timeout=30).stdout
    except CommandError:
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", text)
    return int(match.group(1)) if match else None


def _has_restore_command(instance: Instance, state: dict[str, Any]) -> bool:
    if state["settings"]:
        return bool(state["settings"]["restore_command"]["value"])
    if state["data"] != "cluster" or not os.path.isfile(instance.configuration):
        return False
    try:
        return effective_setting(instance, "restore_command") != ""
    except CommandError:
        return False  # it is told apart later, by assert_upstream, with the reason


def _seed(job: Job, source: Source) -> Optional[str]:
    """What an interrupted run of ours left: see Local.seed."""
    try:
        with open(job.marker, encoding="utf-8") as file:
            note = json.load(file)
    except FileNotFoundError:
        note = None
    except (OSError, ValueError):
        note = {}
    if not os.path.lexists(job.seeding):
        by_zfs = job.zfs is not None and os.path.lexists(job.real) and placed(job.zfs, source, job.upstream.slot or "")
        if not by_zfs and (not note or not _fits(note, job, source)):
            return None
        # The server renames it when it starts.
        return "placed" if has_signal(job.instance, "backup_label") else "started"
    started = any(os.path.lexists(f"{job.seeding}/{name}") for name in ("postmaster.pid", "postmaster.opts"))
    if note is None or started or os.path.islink(job.seeding) or not os.path.isdir(job.seeding):
        return "foreign"
    return "complete" if _fits(note, job, source) else "half"


def _fits(note: dict[str, Any], job: Job, source: Source) -> bool:
    """Whether what an interrupted run completed is of this primary as it is now, which has the WAL that comes next."""
    if not note.get("complete") or source.error is not None:
        return False
    now = {"system_identifier": source.system_identifier, "timeline": source.timeline, "slot": job.upstream.slot}
    same = all(note[name] == value for name, value in now.items())
    return same and (source.oldest_wal is None or parse_lsn(note["end_lsn"]) >= source.oldest_wal)


def free_bytes(real: str) -> Optional[int]:
    directory = os.path.dirname(real)
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    usage = os.statvfs(directory)
    return usage.f_bavail * usage.f_frsize


def file_system(path: str) -> str:
    """The kind of the file system that a path is on, or will be once it is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return run(["stat", "--file-system", "--format=%T", path]).stdout.strip()


def _occupied(location: str) -> bool:
    return os.path.lexists(location) and not (os.path.isdir(location) and not os.listdir(location))


def leftovers(job: Job) -> list[int]:
    """Programs that work for us on X.seeding or X.rewinding. We hold the lock, so they are those of a run that died.

    pg_basebackup's process for WAL goes on for ever when the other one is killed.
    """
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                program, *arguments = os.fsdecode(file.read()).split("\0")
        except OSError:  # it has ended
            continue
        ours = os.path.basename(program) in ("pg_basebackup", "pg_rewind", "postgres")
        if ours and (job.seeding in arguments or job.rewinding in arguments):
            found.append(int(pid))
    return sorted(found)
