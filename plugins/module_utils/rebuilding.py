# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node becomes a standby: what was decided in rebuild.py is done here, step by step."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .rebuild import Decision, Local, Source, by_copy, by_snapshot, guards, ladder, report
from .rebuild_files import (
    POLL_SECONDS,
    aside,
    configure,
    configure_staged,
    has_targets,
    kept,
    make_directory,
    make_parent,
    new_note,
    only_one,
    remove_tree,
    rename,
    sync,
    wait_until_gone,
    write_note,
)
from .rebuild_look import Job, asking, cursor_of, leftovers, look, look_at_source, with_size
from .rebuild_rewind import RewindFailed, rewind
from .rebuild_zfs import forget, mount_again, remove_dataset, seed
from .rebuild_zfs_look import assess, kept_datasets, placed
from .replication import read_state
from .server import (
    ConnectFailed,
    assert_upstream,
    connect,
    has_signal,
    log_tail,
    process_id,
    processes,
    set_standby_signal,
    start,
    upstream_differs,
)
from .shell import CommandError, HotspareError, remove_durably, run
from .stale_slots import drop_slots, stale_slots
from .stopping import stop
from .wal import parse_lsn

SLOT_SECONDS = 30  # until the primary has noticed that a connection of ours is over


def rebuild(job: Job, *, check_mode: bool = False) -> dict[str, Any]:
    """Make the node a standby of `job.upstream`, or refuse with all reasons and change nothing.

    Returns changed, method, reason, ladder, checks, report, steps, kept and node. `job.timeout`: seconds that the
    started standby may go without any progress before it streams. HotspareError carries what is known.
    """
    with only_one(job, check_mode):
        returned = job.untouched and not check_mode
        if returned:
            _give_name_back(job)
        state, local, source, decision = look(job)
        result: dict[str, Any] = {"changed": returned, "node": state}
        _decide(job, local, source, decision, result)
        # It is a standby of this primary already, and may need nothing but time, or to be rid of what it was.
        attached = decision.method == "none" or (decision.method == "follow" and local.configured)
        if check_mode:
            changed = bool(local.stale_slots) if attached else _changes(job, local, decision)
            return {**result, "changed": job.untouched or changed}
        try:
            if not attached:
                result["changed"] = _act(job, local, source, decision, result) or returned
            elif decision.method == "follow":
                _verify(job)
            state = read_state(job.instance)
            stale = stale_slots(state["slots"], source.failover_slots) if state["role"] == "standby" else []
            if stale:
                with job.step("drop stale slots") as step:
                    step["detail"] = ", ".join(str(slot["name"]) for slot in stale)
                    drop_slots(job.instance, stale)
                result["changed"], state = True, read_state(job.instance)
        except HotspareError as error:
            error.facts = {**result, "kept": _kept(job), **error.facts}
            raise
        return {**result, "kept": _kept(job), "node": state}


def _kept(job: Job) -> list[str]:
    """Directories beside the data directory, and datasets."""
    return [*kept(job.real), *kept_datasets(job.zfs)]


def _decide(job: Job, local: Local, source: Source, decision: Decision, result: dict[str, Any]) -> None:
    """Tell what was decided; HotspareError unless all hard guards hold."""
    found = guards(local, source, job.wish, decision)
    result.update(method=decision.method, reason=decision.reason, ladder=ladder(decision), checks=found)
    result.update(report=report(local, source), steps=job.steps, kept=_kept(job))
    refused = [check["detail"] for check in found if check["hard"] and not check["ok"]]
    if refused:
        raise HotspareError(f"{job.instance.name} is left as it is: {'; '.join(refused)}", **result)


def _changes(job: Job, local: Local, decision: Decision) -> bool:
    if decision.method != "follow" or job.start or local.role == "standby":
        return True
    differs = upstream_differs(job.instance, job.upstream) or has_targets(job.instance)
    return differs or not has_signal(job.instance, "standby.signal")


def _act(job: Job, local: Local, source: Source, decision: Decision, result: dict[str, Any]) -> bool:
    result["changed"] = True
    if local.role == "standby":
        local, source, decision = _stop_and_look_again(job, result)
    _clear(job, local)
    if decision.method == "rewind":
        try:
            rewind(job, local, source)
        except RewindFailed as error:
            if job.wish.method != "auto":
                raise
            local, source, decision = _fall_back(job, result, error)
    if decision.method == "zfs" and job.zfs:
        seed(job, job.zfs, source)
    if decision.method == "basebackup":
        if local.seed != "complete":
            _copy(job, source)
        _put_in_place(job)
    if local.seed == "placed" and job.zfs and placed(job.zfs, source, job.upstream.slot or ""):
        with job.step("mount"):
            mount_again(job.zfs, job, source)
    changed = _follow(job)
    if job.start:
        with job.step("start") as step:
            step["detail"] = start(job.instance, job.timeout)["detail"]
        _verify(job)
        remove_durably(job.marker)
        if job.zfs and (decision.method == "zfs" or local.seed in ("placed", "started")):
            forget(job.zfs)
    return changed or job.start or decision.method != "follow"


def _give_name_back(job: Job) -> None:
    """A run died before pg_rewind began: X.rewinding is what X was, and is X again. It may not start as a primary."""
    with job.step("take back the name") as step:
        while leftovers(job):
            _kill(leftovers(job))
            time.sleep(POLL_SECONDS)
        set_standby_signal(job.at(job.rewinding), True)
        rename(job.rewinding, job.real)
        step["detail"] = f"{job.rewinding}, left by a run that died before pg_rewind began"


def _stop_and_look_again(job: Job, result: dict[str, Any]) -> tuple[Local, Source, Decision]:
    """A stopped node's position is final, so the method is chosen again, by the same rules."""
    with job.step("stop") as step:
        stopped = stop(job.instance, timeout=job.timeout)
        step["detail"] = stopped["control"].state
        wait_until_gone(job)
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
    left = result["ladder"][0]["reason"]  # of follow
    decision = by_copy(f"{result['reason']}; {error.message}", follow=left, rewind=error.message)
    if job.zfs and source.error is None:
        local = replace(local, copy=assess(job.zfs, source, job.real, job.upstream.slot or ""))
    try:
        if source.error is None:
            source = with_size(source, job)
        decision = by_snapshot(decision, local, source, job.wish.method)
        _decide(job, local, source, decision, result)
    except HotspareError as refusal:
        refusal.message = f"{error.message}; and a base backup is not possible: {refusal.message}"
        raise
    return local, source, decision


def _clear(job: Job, local: Local) -> None:
    """What interrupted runs left: programs still at work and our own half-made copy go, all else is kept aside."""
    if local.leftovers:
        with job.step("end what an interrupted run left") as step:
            step["detail"] = f"processes {', '.join(map(str, local.leftovers))}"
            _end(job)
    if local.seed == "half":
        with job.step("remove the half-made copy"):
            remove_tree(job.seeding)
    if local.rewinding:
        name = aside(job)
        with job.step("keep aside") as step:
            rename(job.rewinding, name)
            step["detail"] = f"{name}, left by an interrupted pg_rewind"


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _end(job: Job) -> None:
    """Kill the leftovers and wait until the primary has noticed."""
    deadline = time.monotonic() + SLOT_SECONDS
    while True:
        left = leftovers(job)
        _kill(left)
        slot = look_at_source(job.upstream, job.instance.account).slot or {}
        if not left and not slot.get("active"):
            return
        if time.monotonic() > deadline:
            raise HotspareError(
                f"slot {job.upstream.slot} is still in use {SLOT_SECONDS} seconds after processes of an interrupted run"
                f" were killed (left: {left}): see what uses it, and run this again"
            )
        time.sleep(POLL_SECONDS)


def _follow(job: Job) -> bool:
    """Make the next start of the stopped server one of a standby of the primary, and assert it; True if it changed."""
    wait_until_gone(job)
    with job.step("configure"):
        changed = configure(job.instance, job.upstream)
        assert_upstream(job.instance, job.upstream)
    return changed


def _copy(job: Job, source: Source) -> None:
    """A base backup into X.seeding, complete with signal and upstream."""
    upstream = replace(job.upstream, application_name=f"{job.upstream.application_name}-seed")
    note = new_note(job, source)
    with job.step("base backup") as step:
        make_parent(job, job.real)
        # The note before the directory: what is there without a note is not ours.
        write_note(job, note)
        make_directory(job, job.seeding)
        argv = [job.instance.program("pg_basebackup"), "--pgdata", job.seeding, "--dbname", upstream.conninfo()]
        argv += ["--wal-method", "stream", "--checkpoint", "fast", "--no-password", "--verbose"]
        argv += ["--slot", str(job.upstream.slot)]
        try:
            done = run(argv, account=job.instance.account, timeout=None)
        except CommandError:
            remove_tree(job.seeding)
            remove_durably(job.marker)
            raise
        note.update(_extent(done.stderr), complete=True)
        step["detail"] = f"from {source.where}, {note['start_lsn']} to {note['end_lsn']} on timeline {note['timeline']}"
        if note["timeline"] != source.timeline:
            raise HotspareError(
                f"{source.where} changed its timeline during the copy: see who is primary, and run this again"
            )
        configure_staged(job, job.seeding)
        sync(job.seeding)
        write_note(job, note)


def _extent(messages: str) -> dict[str, Any]:
    begin = re.search(r"start point: ([0-9A-F]+/[0-9A-F]+) on timeline (\d+)", messages)
    end = re.search(r"end point: ([0-9A-F]+/[0-9A-F]+)", messages)
    if not (begin and end):
        raise HotspareError(
            "pg_basebackup did not say what it copied; see whether its version is supported", stderr=messages[-4000:]
        )
    return {"start_lsn": begin.group(1), "timeline": int(begin.group(2)), "end_lsn": end.group(1)}


def _put_in_place(job: Job) -> None:
    wait_until_gone(job)
    with job.step("swap") as step:
        if os.path.lexists(job.real) and os.listdir(job.real):
            name = aside(job)
            rename(job.real, name)
            step["detail"] = f"the former directory is {name}"
        rename(job.seeding, job.real)


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
        found = _kept(job)
        result: dict[str, Any] = {"changed": bool(found), "removed": [], "kept": found}
        if not found:
            return {**result, "node": read_state(job.instance)}
        trouble = [f"confirm must be {job.instance.name}, it is {job.wish.confirm or 'not given'}"]
        if job.wish.confirm == job.instance.name:
            trouble = []
        for path in kept(job.real):
            if os.path.islink(path) or not os.path.isdir(path):
                trouble.append(f"{path} is no directory")
            elif processes(job.at(path)):
                trouble.append(f"a server works in {path}")
        datasets = [name for name in found if not name.startswith("/")]
        if datasets and read_state(job.instance)["role"] not in ("standby", "primary"):
            trouble.append(
                f"the server does not run, and {datasets[0]} may be all that it has: make a standby of the node first"
            )
        if trouble:
            raise HotspareError(f"nothing was removed: {'; '.join(trouble)}", **result)
        if check_mode:
            return {**result, "removed": found, "kept": [], "node": read_state(job.instance)}
        for path in found:
            with job.step("remove") as step:
                if path.startswith("/"):
                    remove_tree(path)
                else:
                    remove_dataset(path)
                step["detail"] = path
                result["removed"].append(path)
        return {**result, "steps": job.steps, "kept": _kept(job), "node": read_state(job.instance)}
