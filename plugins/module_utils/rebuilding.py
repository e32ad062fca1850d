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
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Optional

from .conninfo import Upstream
from .rebuild import Decision, Local, Source, common_point, guards
from .rebuild_look import (
    Job,
    asking,
    cursor_of,
    free_bytes,
    leftovers,
    look,
    look_at_source,
    program_version,
    waldump,
    with_size,
)
from .replication import read_state
from .server import (
    CLEAN_STATES,
    ConnectFailed,
    Instance,
    assert_upstream,
    connect,
    effective_setting,
    has_signal,
    log_tail,
    process_id,
    processes,
    read_control,
    set_standby_signal,
    start,
    upstream_differs,
    write_upstream,
)
from .shell import CommandError, HotspareError, remove_durably, run, write_durably
from .stopping import stop
from .wal import format_lsn, parse_lsn, parse_segment_name

LOCK_DIRECTORY = "/run/lock"
POLL_SECONDS = 0.2
RECOVERY_SECONDS = 3600  # for crash recovery
SLOT_SECONDS = 30  # until the primary has noticed that a connection of ours is over
EVIDENCE_RECORDS = 100_000  # more are in the segments themselves
KEPT = re.compile(r"\.(before|diverged)-\d{8}T\d{6}Z")


class RewindFailed(HotspareError):
    """pg_rewind could not do it; a base backup can. The data directory was kept."""


# ---------------------------------------------------------------------------------------------------------------------
# The whole
# ---------------------------------------------------------------------------------------------------------------------


def rebuild(job: Job, *, check_mode: bool = False) -> dict[str, Any]:
    """Make the node a standby of `job.upstream`, or refuse with all reasons and change nothing.

    Returns changed, method, reason, checks, steps, kept and node. `job.timeout`: seconds that the started standby may
    go without any progress before it streams. HotspareError carries what is known.
    """
    with only_one(job, check_mode):
        state, local, source, decision = look(job)
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


def _decide(job: Job, local: Local, source: Source, decision: Decision, result: dict[str, Any]) -> None:
    """Tell what was decided; HotspareError unless all guards hold."""
    found = guards(local, source, job.wish, decision)
    result.update(method=decision.method, reason=decision.reason, checks=found, steps=job.steps, kept=kept(job.real))
    refused = [check["detail"] for check in found if not check["ok"]]
    if refused:
        raise HotspareError(f"{job.instance.name} is left as it is: {'; '.join(refused)}", **result)


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
        local, source, decision = look(job)[1:]
        if not (source.slot or {}).get("active") or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    try:
        _decide(job, local, source, decision, result)
    except HotspareError:
        # What it was it may be again: nothing but its server was touched.
        if has_signal(job.instance, "standby.signal"):
            with job.step("start again"):
                start(job.instance, job.timeout)
        raise
    return local, source, decision


def _fall_back(job: Job, result: dict[str, Any], error: RewindFailed) -> tuple[Local, Source, Decision]:
    local, source = look(job)[1:3]
    decision = Decision("basebackup", f"{result['reason']}; {error.message}")
    try:
        _decide(job, local, with_size(source, job), decision, result)
    except HotspareError as refusal:
        refusal.message = f"{error.message}; and a base backup is not possible: {refusal.message}"
        raise
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


def _aside(job: Job, what: str = "before") -> str:
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


def _remove_tree(path: str) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise HotspareError(
            f"cannot remove {path}: {error.strerror} ({error.filename}); see who may write there"
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
            _remove_tree(job.seeding)
    if local.rewinding:
        name = _aside(job)
        with job.step("keep aside") as step:
            _rename(job.rewinding, name)
            step["detail"] = f"{name}, left by an interrupted pg_rewind"


def _end(job: Job) -> None:
    """Kill the leftovers and wait until the primary has noticed."""
    deadline = time.monotonic() + SLOT_SECONDS
    while True:
        left = leftovers(job)
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
            _remove_tree(job.seeding)
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
            name = _aside(job)
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
        _prepare_rewind(job, staged, local, source)
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
        name = _aside(job)
        _rename(job.rewinding, name)
        raise RewindFailed(f"pg_rewind failed ({error.message}), what it left is {name}", **error.facts) from error
    with job.step("rename back"):
        _rename(job.rewinding, job.real)


def _prepare_rewind(job: Job, staged: Instance, local: Local, source: Source) -> None:
    # A server in single-user mode refuses a directory with a signal.
    for name in ("standby.signal", "recovery.signal"):
        remove_durably(staged.path(name))
    if read_control(staged).state not in CLEAN_STATES:
        with job.step("crash recovery"):
            _recover(staged)
    with job.step("pg_rewind --dry-run"):
        done = run([*_pg_rewind(job, staged), "--dry-run"], account=staged.account, timeout=None)
        said = done.stdout + done.stderr
        if "no rewind required" in said:
            raise HotspareError("it says that no rewind is required, although the histories have parted")
        # From there the node recovers. 13 removes all WAL that the primary has not, later versions keep what it needs.
        begin = re.search(r"last common checkpoint at ([0-9A-F]+/[0-9A-F]+)", said)
        if (
            begin
            and (program_version(staged) or 0) < 14
            and parse_lsn(begin.group(1)) < (source.oldest_wal or 0)
            and not local.restore_command
        ):
            raise HotspareError(
                f"the node would need WAL from {begin.group(1)} on, the oldest that the primary still has begins at"
                f" {format_lsn(source.oldest_wal or 0)}, and there is no restore_command"
            )


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
    if (program_version(staged) or 0) >= 15 and effective_setting(staged, "restore_command"):
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
        text, end = waldump(job, job.real, here.timeline, begin, ["--limit", str(EVIDENCE_RECORDS)])
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
        free = free_bytes(job.real) or 0
        if len(names) * size + len(text) > free:
            raise HotspareError(
                f"{job.instance.name} was not touched: there is no room beside {job.real} to keep the {len(names)} WAL "
                f"segments that the primary does not have ({free // 1_000_000} MB are free); make room, or say "
                "method: basebackup"
            )
        directory = _aside(job, "diverged")
        _make_directory(job, directory)
        for name in names:
            _copy_file(job, f"{job.real}/pg_wal/{name}", f"{directory}/{name}")
        write_durably(f"{directory}/pg_waldump.txt", text, account=job.instance.account)
        commits = len(re.findall(r"^rmgr: Transaction .* desc: COMMIT", text, re.MULTILINE))
        more = "at least " if len(text.splitlines()) >= EVIDENCE_RECORDS else ""
        step["detail"] = (
            f"{more}{commits} commits since {format_lsn(common[1])} are not on the primary; {len(names)} WAL segments"
            f" and what they say are in {directory}"
        )


def _copy_file(job: Job, old: str, new: str) -> None:
    try:
        shutil.copyfile(old, new)
        if os.geteuid() == 0:
            shutil.chown(new, job.instance.account, _group(job.instance.account))
        os.chmod(new, 0o600)
        _sync(new)
    except OSError as error:
        raise HotspareError(
            f"cannot copy {old} to {new}: {error.strerror}; nothing else was done, run this again"
        ) from error


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
    with job.step("verify") as step, asking(job.upstream, job.instance.account) as cursor:
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
                    f" {last['primary_sees'] or 'nothing'}, replayed {last['replay_lsn'] or 'unknown'} of {target});"
                    f" its log ends with: {log[-1] if log else 'nothing'}; see `log`, or say method: basebackup",
                    last=last,
                    log=log,
                    node=read_state(job.instance),
                )
            time.sleep(POLL_SECONDS)


def _standby_position(job: Job) -> dict[str, Any]:
    """What the standby says, None while it takes no connections. One that came up as a primary is stopped at once."""
    unknown = {"replay_lsn": None, "receiver": None, "received_timeline": None}
    try:
        with cursor_of(connect(job.instance), str(job.instance)) as cursor:
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
                _remove_tree(path)
                step["detail"] = path
                result["removed"].append(path)
        return {**result, "steps": job.steps, "kept": kept(job.real), "node": read_state(job.instance)}
