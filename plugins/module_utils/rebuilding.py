# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node becomes a standby: what was decided in rebuild.py is done here, step by step.

Names beside the data directory X, so that a run that dies anywhere is continued by the next one and no half-made
directory is ever called X:
  X.seeding                a base backup under way; X.seeding.json says whose it is and whether it is complete
  X.rewinding              X while pg_rewind works on it; what an interrupted run leaves of it is not usable
  X.before-<UTC time>      what was X before, kept
  X.diverged-<UTC time>    WAL that the primary does not have, and what it says, kept
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Optional

from .controldata import ControlData
from .rebuild import Decision, Local, Source, Wish, choose_method, common_point, guards, position
from .replication import read_state
from .server import (
    CLEAN_STATES,
    ConnectFailed,
    Instance,
    Upstream,
    assert_upstream,
    connect,
    connect_conninfo,
    effective_setting,
    has_signal,
    log_tail,
    process_id,
    processes,
    read_control,
    set_standby_signal,
    start,
    stop,
    upstream_differs,
    write_upstream,
)
from .shell import CommandError, HotspareError, remove_durably, run, write_durably
from .wal import format_lsn, parse_history, parse_lsn, parse_segment_name

LOCK_DIRECTORY = "/run/lock"
POLL_SECONDS = 0.2
WALDUMP_SECONDS = 600
RECOVERY_SECONDS = 3600  # for crash recovery
SLOT_SECONDS = 30  # until the primary has noticed that a connection of ours is over
EVIDENCE_RECORDS = 100_000  # more are in the segments themselves
KEPT = re.compile(r"\.(before|diverged)-\d{8}T\d{6}Z")


class RewindFailed(HotspareError):
    """pg_rewind could not do it; a base backup can. The data directory was kept."""


@dataclass
class Job:
    """What one run works with. `real` is the data directory without symbolic links."""

    instance: Instance
    upstream: Upstream
    wish: Wish
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


# ---------------------------------------------------------------------------------------------------------------------
# The whole
# ---------------------------------------------------------------------------------------------------------------------


def rebuild(job: Job, *, check_mode: bool = False) -> dict[str, Any]:
    """Make the node a standby of `job.upstream`, or refuse with all reasons and change nothing.

    Returns changed, method, reason, checks, steps, kept and node. `job.timeout`: seconds that the started standby may
    go without any progress before it streams. HotspareError carries what is known.
    """
    with only_one(job, check_mode):
        state, local, source, decision = _look(job)
        result: dict[str, Any] = {"changed": False, "node": state}
        _decide(job, local, source, decision, result)
        waits = decision.method == "follow" and local.configured
        if decision.method == "none" or check_mode:
            return {**result, "changed": decision.method != "none" and not waits and _changes(job, local, decision)}
        try:
            if waits:
                _verify(job)
            else:
                result["changed"] = _act(job, local, source, decision, result)
        except HotspareError as error:
            error.facts = {**result, "kept": kept(job.real), **error.facts}
            raise
        return {**result, "kept": kept(job.real), "node": read_state(job.instance)}


def _look(job: Job) -> tuple[dict[str, Any], Local, Source, Decision]:
    state = read_state(job.instance)
    # After the node: what it had received by then, its primary has flushed by now.
    source = look_at_source(job.upstream, job.instance.account)
    local, source = look_at_node(job, state, source)
    decision = choose_method(local, source, job.wish.method)
    if decision.method == "basebackup" and local.seed != "complete" and source.error is None:
        source = _with_size(source, job)
    return state, local, source, decision


def _decide(job: Job, local: Local, source: Source, decision: Decision, result: dict[str, Any]) -> None:
    """Tell what was decided; HotspareError unless all guards hold."""
    found = guards(local, source, job.wish, decision)
    result.update(method=decision.method, reason=decision.reason, checks=found, steps=job.steps, kept=kept(job.real))
    refused = [check["detail"] for check in found if not check["ok"]]
    if refused:
        raise HotspareError(f"{job.instance.name} was not touched: {'; '.join(refused)}", **result)


def _changes(job: Job, local: Local, decision: Decision) -> bool:
    if decision.method != "follow" or job.start or local.role == "standby":
        return True
    return upstream_differs(job.instance, job.upstream) or not has_signal(job.instance, "standby.signal")


def _act(job: Job, local: Local, source: Source, decision: Decision, result: dict[str, Any]) -> bool:
    result["changed"] = True
    if local.role == "standby":
        local, source, decision = _stop_and_look_again(job, result)
    _clear(job, local)
    if decision.method == "rewind":
        try:
            _rewind(job, local, source)
        except RewindFailed as error:
            if job.wish.method != "auto":
                raise
            local, source, decision = _fall_back(job, result, error)
    if decision.method == "basebackup":
        if local.seed != "complete":
            _copy(job, source)
        _put_in_place(job)
    changed = _follow(job)
    if job.start:
        with job.step("start") as step:
            step["detail"] = start(job.instance, job.timeout)["detail"]
        _verify(job)
        remove_durably(job.marker)
    return changed or job.start or decision.method != "follow"


def _stop_and_look_again(job: Job, result: dict[str, Any]) -> tuple[Local, Source, Decision]:
    """A stopped node's position is final, so the method is chosen again, by the same rules."""
    with job.step("stop") as step:
        stopped = stop(job.instance, timeout=job.timeout)
        step["detail"] = stopped["control"].state
        _wait_until_gone(job)
    deadline = time.monotonic() + SLOT_SECONDS
    while True:
        _, local, source, decision = _look(job)
        if not (source.slot or {}).get("active") or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    try:
        _decide(job, local, source, decision, result)
    except HotspareError as error:
        error.message = f"{job.instance.name} was stopped and nothing else was done: {error.message}"
        raise
    return local, source, decision


def _fall_back(job: Job, result: dict[str, Any], error: RewindFailed) -> tuple[Local, Source, Decision]:
    _, local, source, _ = _look(job)
    decision = Decision("basebackup", f"{result['reason']}; {error.message}")
    _decide(job, local, _with_size(source, job), decision, result)
    return local, source, decision


# ---------------------------------------------------------------------------------------------------------------------
# One at a time
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_one(job: Job, check_mode: bool = False) -> Iterator[None]:
    """Hold the node's lock; HotspareError says who has it and since when. In check mode it is only looked at."""
    path = f"{LOCK_DIRECTORY}/hotspare-{hashlib.sha256(os.fsencode(job.real)).hexdigest()[:16]}.lock"
    descriptor = _open_lock(path, check_mode)
    if descriptor is None:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if check_mode else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "somebody"
            raise HotspareError(
                f"{job.instance.name} is being rebuilt already by {holder} (lock {path}): wait for it", lock=path
            ) from None
        if check_mode:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} since {_utc()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: str, check_mode: bool) -> Optional[int]:
    """None in check mode when nobody ever took it."""
    flags = (os.O_RDONLY if check_mode else os.O_RDWR) | os.O_NOFOLLOW
    try:
        # O_CREAT only if it is missing: with it, Linux does not open another account's file in such a directory.
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        return None if check_mode else os.open(path, flags | os.O_CREAT, 0o600)
    except OSError as error:
        raise HotspareError(
            f"cannot take the lock {path}: {error.strerror}; run this as root, or as the account that ran it before"
        ) from error


def _utc() -> str:
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


# ---------------------------------------------------------------------------------------------------------------------
# Looking
# ---------------------------------------------------------------------------------------------------------------------

# Everybody may ask this; without pg_read_all_stats `state` of a standby is NULL. A standby has no current LSN, and CASE
# does not call what it does not choose.
_SOURCE = """SET timezone = 'UTC'; SET search_path = pg_catalog; SELECT json_build_object(
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
  'slot', (SELECT json_build_object('type', slot_type, 'active', active, 'active_pid', active_pid,
      'restart_lsn', restart_lsn, 'wal_status', wal_status) FROM pg_replication_slots WHERE slot_name = %(slot)s),
  'streaming', (SELECT json_agg(application_name) FROM pg_stat_replication
      WHERE coalesce(state, 'streaming') = 'streaming'),
  'tablespaces', (SELECT json_agg(pg_tablespace_location(oid)) FROM pg_tablespace
      WHERE pg_tablespace_location(oid) <> '')
)"""
_SIZE = """SET search_path = pg_catalog; SELECT
  CASE WHEN bool_and(open) THEN sum(CASE WHEN open THEN pg_database_size(oid) END) END,
  (SELECT setting::bigint * 1024 * 1024 FROM pg_settings WHERE name = 'max_wal_size')
  FROM (SELECT oid, has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE') AS open
        FROM pg_database) d"""


@contextlib.contextmanager
def _asking(upstream: Upstream, account: str, replication: bool = False) -> Iterator[Any]:
    """A cursor on the primary; HotspareError also for a query that fails."""
    parameters = {**upstream.parameters(), "dbname": "postgres", "application_name": "hotspare"}
    with _cursor(
        connect_conninfo(parameters, account=account, replication=replication), f"{upstream.host}:{upstream.port}"
    ) as cursor:
        yield cursor


@contextlib.contextmanager
def _cursor(connection: Any, where: str) -> Iterator[Any]:
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
        with _asking(upstream, account) as cursor:
            cursor.execute(_SOURCE, {"slot": upstream.slot})
            said = cursor.fetchone()[0]
            oldest = None
            if said["may_rewind"] and not said["in_recovery"]:
                cursor.execute("SELECT pg_catalog.pg_ls_dir('pg_wal', true, false)")
                oldest = _oldest([row[0] for row in cursor], said["segment_size"])
        with _asking(upstream, account, replication=True) as cursor:
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
        in_recovery=said["in_recovery"],
        system_identifier=str(identifier),
        timeline=int(timeline),
        history=history,
        flush_lsn=parse_lsn(said["flush"]) if said["flush"] else None,
        checkpoint_timeline=said["checkpoint_timeline"],
        major_version=said["version"],
        full_page_writes=said["full_page_writes"],
        may_rewind=said["may_rewind"],
        oldest_wal=oldest,
        slot=said["slot"],
        started=said["started"],
        streaming=tuple(said["streaming"] or ()),
        tablespaces=tuple(said["tablespaces"] or ()),
    )


def _with_size(source: Source, job: Job) -> Source:
    with _asking(job.upstream, job.instance.account) as cursor:
        cursor.execute(_SIZE)
        size, wal = cursor.fetchone()
    return replace(source, size_bytes=None if size is None else int(size), wal_bytes=int(wal))


def _oldest(names: list[str], size: int) -> Optional[int]:
    starts = []
    for name in names:
        with contextlib.suppress(ValueError):
            starts.append(parse_segment_name(name, size).start_lsn)
    return min(starts, default=None)


def look_at_node(job: Job, state: dict[str, Any], source: Source) -> tuple[Local, Source]:
    """What the decision needs of a node with this record, and the source with what can be told only together."""
    instance, real = job.instance, job.real
    running = state["role"] in ("primary", "standby")
    control = _control(state["control"])
    here = None
    if control is not None:
        known = {name: parse_lsn(value) for name, value in state["lsn"].items() if value and name in ("held", "replay")}
        if not running:
            known["held"] = _end_of_wal(job, control) or 0
        here = position(control, known.get("held"), known.get("replay"))
        if state["role"] == "standby":
            here = replace(here, kind="standby", timeline=state["timeline"], lsn=here.lsn, replayed=here.replayed)
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
        configured=configured,
        following=configured
        and receiver.get("status") == "streaming"
        and receiver.get("received_tli") == source.timeline
        and job.upstream.application_name in source.streaming,
        major_version=state["major_version"],
        program_version=_program_version(instance),
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
        leftovers=_leftovers(job),
        rewinding=os.path.lexists(job.rewinding),
        mount_point=os.path.ismount(real),
        wal_elsewhere=os.path.islink(f"{real}/pg_wal"),
        real_directory=real,
        config_file=os.path.realpath(instance.configuration),
        config_exists=os.path.isfile(instance.configuration),
        free_bytes=state["free_bytes"] if real == instance.data_directory else _free_bytes(real),
        occupied=[location for location in source.tablespaces if _occupied(location)],
    )
    if running and source.started is not None and state["hot_standby"] is not False and state["role"] != "unknown":
        with _cursor(connect(instance), str(instance)) as cursor:
            cursor.execute("SET timezone = 'UTC'; SELECT pg_catalog.pg_postmaster_start_time()::text")
            same_start = cursor.fetchone()[0] == source.started
        source = replace(source, is_this_node=same_start and state["system_identifier"] == source.system_identifier)
    return local, source


def _control(record: Optional[dict[str, Any]]) -> Optional[ControlData]:
    if record is None:
        return None
    values: dict[str, Any] = {name: parse_lsn(v) if name.endswith("_lsn") else v for name, v in record.items()}
    return ControlData(**values)


def _end_of_wal(job: Job, control: ControlData) -> Optional[int]:
    """Past what a stopped standby holds in pg_wal beyond what it has replayed; None when there is nothing.

    That is replayed at the next start, whatever pg_control says. The last record's start counts, plus one.
    """
    if control.state not in ("shut down in recovery", "in archive recovery"):
        return None
    begin = control.min_recovery_lsn or control.checkpoint_lsn
    timeline = control.min_recovery_timeline or control.timeline
    return _waldump(job, job.real, timeline, begin, ["--quiet"])[1]


def _waldump(job: Job, directory: str, timeline: int, begin: int, options: list[str]) -> tuple[str, Optional[int]]:
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
    except FileNotFoundError:
        return None, 0
    except (OSError, ValueError) as error:
        raise HotspareError(
            f"cannot read the timeline histories in {directory}/pg_wal: {error}; mend that first"
        ) from error


def _program_version(instance: Instance) -> Optional[int]:
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
        if not note or not _fits(note, job, source):
            return None
        # The server renames it when it starts.
        return "placed" if has_signal(job.instance, "backup_label") else "started"
    started = any(os.path.lexists(f"{job.seeding}/{name}") for name in ("postmaster.pid", "postmaster.opts"))
    if note is None or started or os.path.islink(job.seeding) or not os.path.isdir(job.seeding):
        return "foreign"
    return "complete" if _fits(note, job, source) else "half"


def _fits(note: dict[str, Any], job: Job, source: Source) -> bool:
    """Whether what an interrupted run completed is of this primary as it is now, and the WAL that comes next is kept."""
    if not note.get("complete") or source.error is not None:
        return False
    now = {"system_identifier": source.system_identifier, "timeline": source.timeline, "slot": job.upstream.slot}
    same = all(note[name] == value for name, value in now.items())
    return same and (source.oldest_wal is None or parse_lsn(note["end_lsn"]) >= source.oldest_wal)


def _note(job: Job, source: Source, **more: Any) -> dict[str, Any]:
    """For X.seeding.json: what a later run must know of this one."""
    return {
        "name": job.instance.name,
        "primary": source.where,
        "system_identifier": source.system_identifier,
        "slot": job.upstream.slot,
        "started_at": _utc(),
        "complete": False,
        **more,
    }


def _write_note(job: Job, note: dict[str, Any]) -> None:
    write_durably(job.marker, json.dumps(note, indent=1) + "\n", mode=0o644)


def _free_bytes(real: str) -> Optional[int]:
    directory = os.path.dirname(real)
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    usage = os.statvfs(directory)
    return usage.f_bavail * usage.f_frsize


def _occupied(location: str) -> bool:
    return os.path.lexists(location) and not (os.path.isdir(location) and not os.listdir(location))


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def kept(real: str) -> list[str]:
    """What earlier rebuilds kept beside the data directory `real`, oldest first."""
    parent, name = os.path.split(real)
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return []
    return sorted(os.path.join(parent, n) for n in names if n.startswith(name) and KEPT.fullmatch(n[len(name) :]))


def _aside(job: Job, directory: str, what: str = "before") -> str:
    """A name beside the data directory that is free."""
    while True:
        name = f"{job.real}.{what}-{_utc()}"
        if not os.path.lexists(name):
            return name
        time.sleep(POLL_SECONDS)  # two in one second: the next one


def _rename(old: str, new: str) -> None:
    """Durably; an empty directory called `new` is replaced, anything else never."""
    try:
        os.rename(old, new)
        _sync(os.path.dirname(new))
    except OSError as error:
        raise HotspareError(
            f"cannot rename {old} to {new}: {error.strerror}; see who may write there, and run again"
        ) from error


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_parent(job: Job, path: str) -> None:
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make_parent(job, parent)
        _make_directory(job, parent, 0o755)  # as Debian has them


def _make_directory(job: Job, path: str, mode: int = 0o700) -> None:
    """For the server's account."""
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, mode)
        if os.geteuid() == 0:
            shutil.chown(path, job.instance.account, _group(job.instance.account))
    except OSError as error:
        raise HotspareError(f"cannot make the directory {path}: {error.strerror}; see who may write there") from error


def _group(account: str) -> int:
    import pwd

    return pwd.getpwnam(account).pw_gid


def _clear(job: Job, local: Local) -> None:
    """What interrupted runs left: programs still at work and our own half-made copy go, all else is kept aside."""
    if local.leftovers:
        with job.step("end what an interrupted run left") as step:
            step["detail"] = f"processes {', '.join(map(str, local.leftovers))}"
            _end(job)
    if local.seed == "half":
        with job.step("remove the half-made copy"):
            shutil.rmtree(job.seeding)
    if local.rewinding:
        name = _aside(job, job.rewinding)
        with job.step("keep aside") as step:
            _rename(job.rewinding, name)
            step["detail"] = f"{name}, left by an interrupted pg_rewind"


def _leftovers(job: Job) -> list[int]:
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


def _end(job: Job) -> None:
    """Kill the leftovers and wait until the primary has noticed."""
    deadline = time.monotonic() + SLOT_SECONDS
    while True:
        left = _leftovers(job)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        slot = look_at_source(job.upstream, job.instance.account).slot or {}
        if not left and not slot.get("active"):
            return
        if time.monotonic() > deadline:
            raise HotspareError(
                f"slot {job.upstream.slot} is still in use {SLOT_SECONDS} seconds after processes of an interrupted run"
                f" were killed (left: {left}): see what uses it, and run this again"
            )
        time.sleep(POLL_SECONDS)


def _wait_until_gone(job: Job) -> None:
    """HotspareError unless no process works in the data directory any more: only then may it be renamed."""
    deadline = time.monotonic() + job.timeout
    while True:
        left = processes(job.instance) if os.path.isdir(job.real) else []
        if not left and process_id(job.instance) is None:
            return
        if time.monotonic() > deadline:
            raise HotspareError(
                f"PostgreSQL of {job.instance} is stopping, but its processes {left} did not end within {job.timeout:g}"
                " seconds: see its log for what they wait for (often archive_command), and run this again"
            )
        time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------------------------------------------------------------
# Follow, copy, rewind
# ---------------------------------------------------------------------------------------------------------------------


def _follow(job: Job) -> bool:
    """Make the next start of the stopped server one of a standby of the primary, and assert it; True if it changed."""
    _wait_until_gone(job)
    with job.step("configure"):
        changed = _configure(job.instance, job.upstream)
        assert_upstream(job.instance, job.upstream)
    return changed


def _configure(instance: Instance, upstream: Upstream) -> bool:
    # The signal first: whatever is started from here on is no primary.
    signal = set_standby_signal(instance, True)
    recovery = remove_durably(instance.path("recovery.signal"))
    return write_upstream(instance, upstream) or signal or recovery


def _configure_staged(job: Job, directory: str) -> None:
    """The same, and the same assertion, on a directory that is to get the data directory's name."""
    staged = job.at(directory)
    _configure(staged, job.upstream)
    wanted = {"primary_conninfo": job.upstream.conninfo(), "primary_slot_name": job.upstream.slot or ""}
    # The configuration names the final directory, whose postgresql.auto.conf would be read instead of this one's.
    options = ["-D", directory, "-c", f"config_file={staged.configuration}", "-c", f"data_directory={directory}"]
    for name, value in wanted.items():
        found = run([staged.program("postgres"), *options, "-C", name], account=staged.account).stdout.rstrip("\n")
        if found != value:
            raise HotspareError(
                f"{name} of {directory} would be {found!r} instead of {value!r}: see that {staged.configuration} says "
                f"include_dir 'conf.d' and that nothing after {staged.upstream_file} sets it again"
            )
    if not has_signal(staged, "standby.signal"):
        raise HotspareError(f"standby.signal is missing in {directory}: it was not put in place")


def _copy(job: Job, source: Source) -> None:
    """A base backup into X.seeding, complete with signal and upstream."""
    upstream = replace(job.upstream, application_name=f"{job.upstream.application_name}-seed")
    note = _note(job, source)
    with job.step("base backup") as step:
        _make_parent(job, job.real)
        # The note before the directory: what is there without a note is not ours.
        _write_note(job, note)
        _make_directory(job, job.seeding)
        argv = [job.instance.program("pg_basebackup"), "--pgdata", job.seeding, "--dbname", upstream.conninfo()]
        argv += ["--wal-method", "stream", "--checkpoint", "fast", "--no-password", "--verbose"]
        argv += ["--slot", str(job.upstream.slot)]
        try:
            done = run(argv, account=job.instance.account, timeout=None)
        except CommandError:
            shutil.rmtree(job.seeding)
            remove_durably(job.marker)
            raise
        note.update(_extent(done.stderr), complete=True)
        step["detail"] = f"from {source.where}, {note['start_lsn']} to {note['end_lsn']} on timeline {note['timeline']}"
        if note["timeline"] != source.timeline:
            raise HotspareError(
                f"{source.where} changed its timeline during the copy: see who is primary, and run this again"
            )
        _configure_staged(job, job.seeding)
        _sync(job.seeding)
        _write_note(job, note)


def _extent(messages: str) -> dict[str, Any]:
    begin = re.search(r"start point: ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)", messages)
    end = re.search(r"end point: ([0-9A-F]+/[0-9A-F]+)", messages)
    if not (begin and end):
        raise HotspareError(
            "pg_basebackup did not say what it copied; see whether its version is supported", stderr=messages[-4000:]
        )
    return {"start_lsn": begin.group(1), "timeline": int(begin.group(2)), "end_lsn": end.group(1)}


def _put_in_place(job: Job) -> None:
    _wait_until_gone(job)
    with job.step("swap") as step:
        if os.path.lexists(job.real) and os.listdir(job.real):
            name = _aside(job, job.real)
            _rename(job.real, name)
            step["detail"] = f"the former directory is {name}"
        _rename(job.seeding, job.real)


def _rewind(job: Job, local: Local, source: Source) -> None:
    """pg_rewind under another name; RewindFailed when it cannot be done."""
    _wait_until_gone(job)
    _save_evidence(job, local, source)
    auto_conf = f"{job.rewinding}/postgresql.auto.conf"
    staged = job.at(job.rewinding)
    with job.step("rename") as step:
        _rename(job.real, job.rewinding)
        step["detail"] = job.rewinding
    # Outside of what pg_rewind overwrites with the primary's.
    own_settings = _text(auto_conf)
    try:
        _prepare_rewind(job, staged)
    except HotspareError as error:
        # Nothing was rewound: it gets its name back. But a former primary must never start as one.
        set_standby_signal(staged, True)
        _rename(job.rewinding, job.real)
        raise RewindFailed(f"pg_rewind cannot be used: {error.message}", **error.facts) from error
    try:
        with job.step("pg_rewind") as step:
            done = run(_pg_rewind(job, staged), account=staged.account, timeout=None)
            step["detail"] = _last_line(done.stderr + done.stdout)
        if own_settings is not None:
            write_durably(auto_conf, own_settings, account=staged.account)
        _configure_staged(job, job.rewinding)
        end = format_lsn(source.flush_lsn or 0)
        _write_note(job, _note(job, source, complete=True, timeline=source.timeline, end_lsn=end))
    except HotspareError as error:
        name = _aside(job, job.rewinding)
        _rename(job.rewinding, name)
        raise RewindFailed(f"pg_rewind failed ({error.message}), what it left is {name}", **error.facts) from error
    with job.step("rename back"):
        _rename(job.rewinding, job.real)


def _prepare_rewind(job: Job, staged: Instance) -> None:
    # A server in single-user mode refuses a directory with a signal.
    for name in ("standby.signal", "recovery.signal"):
        remove_durably(staged.path(name))
    if read_control(staged).state not in CLEAN_STATES:
        with job.step("crash recovery"):
            _recover(staged)
    with job.step("pg_rewind --dry-run"):
        done = run([*_pg_rewind(job, staged), "--dry-run"], account=staged.account, timeout=None)
        if "no rewind required" in done.stdout + done.stderr:
            raise HotspareError("it says that no rewind is required, although the histories have parted")


def _recover(staged: Instance) -> None:
    """Crash recovery in single-user mode.

    Ours, not pg_rewind's: that one finds no configuration in Debian's layout (before 15 it takes none), and the
    data_directory which the configuration names is another. wal_keep_size: the checkpoint at the end would remove the
    very WAL that pg_rewind needs next.
    """
    options = {
        "config_file": staged.configuration,
        "data_directory": staged.data_directory,
        "wal_keep_size": "2147483647",
    }
    argv = [staged.program("postgres"), "--single", "-F", "-D", staged.data_directory]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    run([*argv, "template1"], account=staged.account, timeout=RECOVERY_SECONDS)
    state = read_control(staged).state
    if state != "shut down":
        raise HotspareError(f"crash recovery of {staged.data_directory} ended with pg_control saying '{state}'")


def _pg_rewind(job: Job, staged: Instance) -> list[str]:
    upstream = replace(
        job.upstream,
        application_name=f"{job.upstream.application_name}-rewind",
        dbname="postgres",
        extra={**job.upstream.extra, "target_session_attrs": "read-write"},
    )
    argv = [staged.program("pg_rewind"), "--target-pgdata", staged.data_directory, "--no-ensure-shutdown"]
    argv += ["--source-server", upstream.conninfo()]
    # Before 15 pg_rewind looks for restore_command in the data directory only, where no configuration is.
    if (_program_version(staged) or 0) >= 15 and effective_setting(staged, "restore_command"):
        argv += ["--restore-target-wal", "--config-file", staged.configuration]
    return argv


def _save_evidence(job: Job, local: Local, source: Source) -> None:
    """Keep the WAL that the primary does not have, since it holds the transactions that are lost."""
    here, control = local.position, local.control
    common = (
        common_point(local.history or (), here.timeline, source.history or (), source.timeline or 0) if here else None
    )
    if here is None or control is None or common is None:
        raise HotspareError(
            f"where {job.instance.name} diverged is not known, so it cannot be rewound"
        )  # refused before
    with job.step("keep the diverged WAL") as step:
        ancestors = [entry for entry in local.history or () if entry.timeline >= common[0]]
        begin = max([common[1], *(entry.switch_lsn for entry in ancestors)])
        text, end = _waldump(job, job.real, here.timeline, begin, ["--limit", str(EVIDENCE_RECORDS)])
        wanted = {here.timeline, *(entry.timeline for entry in ancestors)}
        names, size = [], control.wal_segment_size
        for name in sorted(os.listdir(f"{job.real}/pg_wal")):
            with contextlib.suppress(ValueError):
                segment = parse_segment_name(name, size)
                # Segments past the end are old ones, renamed to be used again.
                past = end is not None and segment.start_lsn >= end
                diverged = segment.timeline in wanted and segment.start_lsn + size > common[1] and not past
                # Not archived yet, and pg_rewind removes it.
                if diverged or os.path.lexists(f"{job.real}/pg_wal/archive_status/{name}.ready"):
                    names.append(name)
        free = _free_bytes(job.real) or 0
        if len(names) * size + len(text) > free:
            raise HotspareError(
                f"{job.instance.name} was not touched: there is no room beside {job.real} to keep the {len(names)} WAL "
                f"segments that the primary does not have ({free // 1_000_000} MB are free); make room, or say "
                "method: basebackup"
            )
        directory = _aside(job, job.real, "diverged")
        _make_directory(job, directory)
        for name in names:
            shutil.copyfile(f"{job.real}/pg_wal/{name}", f"{directory}/{name}")
            if os.geteuid() == 0:
                shutil.chown(f"{directory}/{name}", job.instance.account, _group(job.instance.account))
            os.chmod(f"{directory}/{name}", 0o600)
            _sync(f"{directory}/{name}")
        write_durably(f"{directory}/pg_waldump.txt", text, account=job.instance.account)
        commits = len(re.findall(r"^rmgr: Transaction .* desc: COMMIT", text, re.MULTILINE))
        more = "at least " if len(text.splitlines()) >= EVIDENCE_RECORDS else ""
        step["detail"] = (
            f"{more}{commits} commits since {format_lsn(common[1])} are not on the primary; {len(names)} WAL segments"
            f" and what they say are in {directory}"
        )


def _text(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


# ---------------------------------------------------------------------------------------------------------------------
# Proof
# ---------------------------------------------------------------------------------------------------------------------


# Only members of pg_read_all_stats see the state. Whose connection holds the slot, everybody sees.
_SEEN = """SELECT coalesce(state, 'connected'), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
  FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
  WHERE application_name = %s AND slot_name = %s"""


def _verify(job: Job) -> None:
    """Wait until the standby streams from the primary and has replayed what that one had written when we asked.

    A standby that started is not yet attached: a diverged one starts too, and only logs for ever that it cannot follow.
    """
    last: dict[str, Any] = {}
    with job.step("verify") as step, _asking(job.upstream, job.instance.account) as cursor:
        cursor.execute("SELECT pg_catalog.pg_current_wal_lsn()::text")
        target = str(cursor.fetchone()[0])
        deadline, furthest = time.monotonic() + job.timeout, 0
        while True:
            cursor.execute(_SEEN, (job.upstream.application_name, job.upstream.slot))
            row = cursor.fetchone()
            last = {"target_lsn": target, "primary_sees": row[0] if row else None, **_standby_position(job)}
            replayed = parse_lsn(last["replay_lsn"]) if last["replay_lsn"] else 0
            timeline = int(row[1], 16) if row else None
            if (
                last["primary_sees"] in ("streaming", "connected")
                and last["receiver"] == "streaming"
                and last["received_timeline"] == timeline
                and replayed >= parse_lsn(target)
            ):
                step["detail"] = f"it streams on timeline {timeline} and has replayed {last['replay_lsn']}"
                return
            if replayed > furthest:
                furthest, deadline = replayed, time.monotonic() + job.timeout
            if time.monotonic() > deadline:
                log = log_tail(job.instance)
                step["detail"] = f"no progress: {last}"
                raise HotspareError(
                    f"{job.instance.name} runs as a standby of {job.upstream.host}:{job.upstream.port} but does not"
                    f" catch up: no progress for {job.timeout:g} seconds (the primary sees"
                    f" {last['primary_sees'] or 'nothing'}, replayed {last['replay_lsn'] or 'unknown'} of {target}); its log ends with:"
                    f" {log[-1] if log else 'nothing'}; see `log`, or say method: basebackup",
                    last=last,
                    log=log,
                    node=read_state(job.instance),
                )
            time.sleep(POLL_SECONDS)


def _standby_position(job: Job) -> dict[str, Any]:
    """What the standby says, None while it takes no connections. One that came up as a primary is stopped at once."""
    unknown = {"replay_lsn": None, "receiver": None, "received_timeline": None}
    try:
        with _cursor(connect(job.instance), str(job.instance)) as cursor:
            cursor.execute(
                "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_replay_lsn()::text, (SELECT status FROM"
                " pg_catalog.pg_stat_wal_receiver), (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver)"
            )
            standby, *values = cursor.fetchone()
    except ConnectFailed as error:
        if process_id(job.instance) is None:
            log = log_tail(job.instance)
            raise HotspareError(
                f"PostgreSQL of {job.instance} ended after its start: {log[-1] if log else 'its log is empty'}; see"
                " `log`",
                log=log,
            ) from error
        if error.kind == "auth":
            raise
        return unknown
    if not standby:
        stop(job.instance, "immediate")
        raise HotspareError(f"PostgreSQL of {job.instance} came up as a primary and was stopped at once: see its log")
    return dict(zip(unknown, values))


# ---------------------------------------------------------------------------------------------------------------------
# Removing what was kept: a separate, named act
# ---------------------------------------------------------------------------------------------------------------------


def clean(job: Job, *, check_mode: bool = False) -> dict[str, Any]:
    """Remove the directories that rebuilds kept beside the data directory. Nothing in use, nothing by a link."""
    with only_one(job, check_mode):
        found = kept(job.real)
        result: dict[str, Any] = {"changed": bool(found), "removed": [], "kept": found}
        if not found:
            return {**result, "node": read_state(job.instance)}
        trouble = [f"confirm must be {job.instance.name}, it is {job.wish.confirm or 'not given'}"]
        if job.wish.confirm == job.instance.name:
            trouble = []
        for path in found:
            if os.path.islink(path) or not os.path.isdir(path):
                trouble.append(f"{path} is no directory")
            elif processes(job.at(path)):
                trouble.append(f"a server works in {path}")
        if trouble:
            raise HotspareError(f"nothing was removed: {'; '.join(trouble)}", **result)
        if check_mode:
            return {**result, "removed": found, "kept": [], "node": read_state(job.instance)}
        for path in found:
            with job.step("remove") as step:
                shutil.rmtree(path)
                step["detail"] = path
                result["removed"].append(path)
        return {**result, "steps": job.steps, "kept": kept(job.real), "node": read_state(job.instance)}
