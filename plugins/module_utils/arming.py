# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An armed standby: a process beside it promotes it at once when its primary has shut down and it holds all of it.

The proof is in the standby's own WAL: the stream ended, all that came is replayed, and the last record of it is the
primary's CHECKPOINT_SHUTDOWN, after which a primary writes nothing. It holds for ONE stream, the one it was armed on:
a primary that crashed and came back writes such a record as well, at the end of its recovery, and lives. It arrives on
a new stream. So whatever is not the clean end of this one stream is refused, once and for all.

Manual: "Recovery Control Functions" (9.28.4), "pg_stat_wal_receiver" (28.2.5), pg_waldump.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import syslog
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, NoReturn, Optional

from .armed_state import Paths, boot_clock, forget, is_alive, load, locked, move, paths, read_armed, write
from .promotion import (
    OldPrimarySeen,
    PromotionPending,
    PromotionRefused,
    Wanted,
    adder,
    blank_result,
    look_at_primary,
    new_timeline,
    primary_conninfo,
    promote,
    standby_checks,
    wait_until_primary,
)
from .replication import read_state, receiver_is_silent
from .server import Instance, connect
from .shell import HotspareError, run
from .wal import format_lsn, parse_lsn

POLL = 0.005
POLL_ENDED = 0.001
# Who did not look for so long may have missed another stream, which came and went: of a primary that crashed, recovered
# and was connected to again. A standby whose stream broke asks at once, while its primary is down, and then no sooner
# than after wal_retrieve_retry_interval, so it is less than that as well (see `gap_seconds`).
GAP_SECONDS = 0.5
STALL_SECONDS = 5.0  # replay that stands still for so long, with WAL left, is held up, or lacks half a record
ARM_SECONDS = 15  # until the process has looked for the first time; it takes 0.05 s
DECIDE_SECONDS = 5  # for an armed process, once the old primary is known to have stopped
PROMOTE_SECONDS = 600  # after that nobody watches a promotion any more that was asked for
WALDUMP_SECONDS = 5

LOOK = """PREPARE look AS SELECT pg_catalog.pg_is_in_recovery(), r.pid, r.status, r.received_tli,
  pg_catalog.pg_last_wal_receive_lsn()::text, pg_catalog.pg_last_wal_replay_lsn()::text
  FROM (SELECT) AS once LEFT JOIN pg_catalog.pg_stat_wal_receiver AS r ON true"""
RECORD = re.compile(
    r"rmgr: (?P<manager>\S+)\s+len \(rec/tot\):\s*\d+/\s*(?P<length>\d+), tx:\s*\d+, lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+),"
    r" prev [0-9A-F]+/[0-9A-F]+, desc: (?P<what>\S+)(?: redo (?P<redo>[0-9A-F]+/[0-9A-F]+); tli (?P<timeline>\d+);)?"
)
PAGE_HEADER, SEGMENT_HEADER = 24, 40  # bytes, XLogPageHeaderData and XLogLongPageHeaderData


# ---------------------------------------------------------------------------------------------------------------------
# Decided (pure)
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Session:
    """The stream a standby is armed for: its receiver process, its timeline, and the LSN up to which its primary had
    written when it was armed.

    `expires` is a time of boot_clock(); `gap` is for how many seconds nobody may look.
    """

    receiver: int
    timeline: int
    position: int
    expires: float
    gap: float = GAP_SECONDS


@dataclass(frozen=True)
class Seen:
    """One look at the standby. It was asked, and had answered, at these times of boot_clock()."""

    asked: float
    answered: float
    in_recovery: bool
    receiver: Optional[int]
    status: Optional[str]
    timeline: Optional[int]
    received: Optional[int]
    replayed: Optional[int]


@dataclass(frozen=True)
class Watch:
    """What was seen so far: `before` is where a record ends that was replayed before the last one that was."""

    last: float
    replayed: int
    before: int
    moved: float
    ended: Optional[float] = None


@dataclass(frozen=True)
class Verdict:
    """wait, prove (all is replayed: now the last record has to be read), refused or expired, with the reason."""

    what: str
    reason: Optional[str] = None


WAIT, PROVE = Verdict("wait"), Verdict("prove")


def gap_seconds(retry_interval: float) -> float:
    """For how long nobody may look: less than a standby waits before it connects again, both in seconds."""
    return min(GAP_SECONDS, 0.9 * retry_interval)


def begin(seen: Seen) -> Watch:
    replayed = seen.replayed or 0
    return Watch(last=seen.asked, replayed=replayed, before=replayed, moved=seen.answered)


def step(session: Session, watch: Watch, seen: Seen) -> tuple[Watch, Verdict]:
    """What one more look at the standby means."""
    streams = seen.receiver == session.receiver and seen.status == "streaming"
    unseen = seen.answered - watch.last
    watch = replace(watch, last=seen.asked)
    if seen.replayed is not None and seen.replayed > watch.replayed:
        watch = replace(watch, replayed=seen.replayed, before=watch.replayed, moved=seen.answered)
    first_end = watch.ended is None and not streams
    if first_end:
        watch = replace(watch, ended=seen.answered, moved=seen.answered)
    return watch, _verdict(session, watch, seen, streams, unseen)


def _verdict(session: Session, watch: Watch, seen: Seen, streams: bool, unseen: float) -> Verdict:
    if not seen.in_recovery:
        return Verdict("refused", "somebody else made it the primary")
    if seen.timeline not in (None, session.timeline):
        return Verdict("refused", f"the stream went on to timeline {seen.timeline}")
    if watch.ended is not None:
        if unseen > session.gap:
            return Verdict("refused", f"nobody looked for {unseen:.1f} s about when the stream ended")
        if streams or seen.receiver not in (None, session.receiver):
            return Verdict("refused", "the stream ended and a new one began: its primary lives")
    if seen.answered > session.expires:
        return Verdict("expired", "its time is over")
    if watch.ended is None:
        return WAIT
    if seen.replayed is None:
        return Verdict("refused", "it does not say what it replayed")
    if seen.replayed < (seen.received or 0):
        if seen.answered - watch.moved > STALL_SECONDS:
            at = f"{format_lsn(seen.replayed)} of {format_lsn(seen.received or 0)}"
            return Verdict("refused", f"the stream ended and replay stands still at {at}")
        return WAIT
    return PROVE


def refutation(printed: str, session: Session, end: int, block: int, segment: int) -> tuple[Optional[str], str]:
    """Why the last record that pg_waldump `printed` is no proof (None when it is one), and its line.

    It must be a CHECKPOINT_SHUTDOWN of the session's timeline that was written after the arming, and ends where
    replay ended. `block` and `segment` are the sizes of WAL pages and files.
    """
    lines = [line for line in printed.splitlines() if line.startswith("rmgr: ")]
    line = lines[-1].strip() if lines else ""
    said = "the stream ended without the shutdown record"
    record = RECORD.match(line)
    if record is None:
        return f"{said}: nothing was read before {format_lsn(end)}", line
    start = parse_lsn(record["lsn"])
    if (record["manager"], record["what"]) != ("XLOG", "CHECKPOINT_SHUTDOWN"):
        return f"{said}: the last record is {record['manager']} {record['what']} at {record['lsn']}", line
    if record["redo"] is None or parse_lsn(record["redo"]) != start or int(record["timeline"]) != session.timeline:
        return f"{said}: the last record is of another kind ({line})", line
    if start < session.position:
        return f"{said}: the last record is older than the arming", line
    if record_end(start, int(record["length"]), block, segment) != end:
        return f"{said}: after it there is WAL up to {format_lsn(end)}", line
    return None, line


def record_end(start: int, length: int, block: int, segment: int) -> int:
    """Where a record of `length` bytes ends, which starts at `start`: aligned to 8, and over page headers."""
    position, left = start, (length + 7) // 8 * 8
    while True:
        taken = min(left, block - position % block)
        position, left = position + taken, left - taken
        if left == 0:
            return position
        position += SEGMENT_HEADER if position % segment == 0 else PAGE_HEADER


def armed_checks(state: Mapping[str, Any], wanted: Wanted, seen: OldPrimarySeen) -> list[dict[str, Any]]:
    """Whether the standby may be armed, and why (not): as `checks` of promotion, for while its primary still runs."""
    found = standby_checks(state, wanted)
    if not found[0]["ok"]:
        return found
    check = adder(found)
    receiver, upstream = state["wal_receiver"], state["upstream"] or {}
    if receiver is None or receiver["status"] != "streaming":
        check("stream", False, "it does not stream, see its log for why")
    elif receiver_is_silent(receiver, state["settings"]):
        check("stream", False, f"its primary has said nothing for {receiver['silent_seconds']} s")
    else:
        source = (receiver["sender_host"], receiver["sender_port"])
        same = source == (upstream.get("host"), upstream.get("port")) and receiver["received_tli"] == state["timeline"]
        at = f"it streams timeline {receiver['received_tli']} from {source[0]}:{source[1]}"
        check("stream", same, at + ("" if same else ", which is not what it is set to follow: reload or restart it"))
    ok = seen.answer == "primary" and seen.position is not None
    doubt = " or as a standby that is read-only by default" if seen.answer == "primary" and not ok else ""
    advice = "" if ok else f"{doubt}: only a standby of a running primary is armed"
    check("primary", ok, f"the server at {seen.where} {seen.detail}{advice}")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Arm, disarm, collect
# ---------------------------------------------------------------------------------------------------------------------


def arm(
    instance: Instance,
    wanted: Wanted,
    *,
    primary: Optional[Mapping[str, Any]] = None,
    timeout: float = 60,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Start the process that promotes the standby on the proof, for `timeout` seconds; returns once it watches.

    One that is armed on the same stream already is left alone while more than half of that time remains.
    PromotionRefused when a check fails or it could not be started, PromotionPending when the one before it promotes.
    """
    state = read_state(instance)
    result = blank_result(state)
    seen = OldPrimarySeen("unknown", "its address", "was not looked at")
    if state["role"] == "standby":
        conninfo = primary_conninfo(state, primary)
        seen = look_at_primary(conninfo, account=instance.account, system_identifier=state["system_identifier"])
    result["checks"] = armed_checks(state, wanted, seen)
    failed = [entry["detail"] for entry in result["checks"] if not entry["ok"]]
    if failed:
        raise PromotionRefused(f"{instance.name} is not armed: {'; '.join(failed)}", **result)

    result["armed"] = told = read_armed(instance.data_directory)
    receiver = state["wal_receiver"]["pid"]
    if told and told["state"] == "armed":
        stored = load(paths(instance.data_directory)) or {}
        if stored.get("receiver") == receiver and told["expires_in"] > timeout / 2:
            return result
    if check_mode:
        return {**result, "changed": True}
    disarm(instance, check_mode=False)
    # What the primary has written by now is no proof, though it may come later: a primary that crashed before it was
    # armed wrote the end of its recovery before it took connections.
    position = max(parse_lsn(state["lsn"]["held"]), seen.position or 0)
    error = _start(instance, Session(receiver, state["timeline"], position, timeout))
    result.update(armed=read_armed(instance.data_directory), node=read_state(instance))
    if error is not None:
        raise PromotionRefused(f"{instance.name} is not armed: {error}", **result)
    return {**result, "changed": True}


def disarm(instance: Instance, *, check_mode: bool = False) -> dict[str, Any]:
    """Have an armed process never promote any more; `changed` if there was one. It is proved when this returns.

    PromotionPending when it is too late: it promotes, or has promoted, so the old primary must not be started.
    """
    where = instance.data_directory
    told, changed = read_armed(where), False
    if told and told["state"] in ("armed", "dead"):
        changed = check_mode or move(where, "disarmed", reason="it was disarmed")
        if not check_mode:
            _await_end(where)
            told = read_armed(where)
    result = {**blank_result(read_state(instance)), "changed": changed, "armed": told}
    if told and told["state"] in ("promoting", "promoted") and not _follows_again(instance, told["state"]):
        raise PromotionPending(
            f"{instance.name} cannot be disarmed any more: it was asked to become the primary on the proof that it"
            " holds all WAL, so do not start the old primary as one; collect it with state=promoted",
            **{**result, "pending": True},
        )
    return result


def collect(
    instance: Instance,
    wanted: Wanted,
    *,
    primary: Optional[Mapping[str, Any]] = None,
    timeout: float = 60,
    archive_again: Sequence[str] = (),
    check_mode: bool = False,
) -> dict[str, Any]:
    """The standby as the primary: what an armed process has done is awaited and verified, else it is promoted guarded.

    Errors as of `promote`. A process that has not decided is disarmed first, so never two promote it.
    """
    where = instance.data_directory
    started = time.monotonic()
    told = read_armed(where)
    if told and told["state"] in ("armed", "dead", "promoting") and not check_mode:
        # A forced failover has no clean end to wait for.
        patience = 0 if wanted.force or told["state"] == "dead" else min(DECIDE_SECONDS, timeout / 2)
        told = _await_decision(where, patience, started + timeout)
    left = max(1.0, timeout - (time.monotonic() - started))
    result: dict[str, Any] = {}
    try:
        result = promote(
            instance, wanted, primary=primary, timeout=left, archive_again=archive_again, check_mode=check_mode
        )
    except HotspareError as error:
        error.facts["armed"] = told
        raise
    result["armed"] = told
    if told and told["state"] == "promoted":
        if result["changed"] or result["node"]["role"] != "primary":
            result["armed"] = None  # of an earlier time: it was made a standby again
            if not check_mode:
                forget(where)
        else:
            _verify(instance, wanted, result)
            stored = load(paths(where)) or {}
            result["changed"] = not stored.get("collected")
            if result["changed"] and not check_mode:
                move(where, "promoted", collected=True)
    return result


def _verify(instance: Instance, wanted: Wanted, result: dict[str, Any]) -> None:
    """What the armed process did is what is required now; it cannot be undone, only told."""
    result.update(new_timeline(instance))
    phases = result["armed"]["phases"]
    result["seconds"] = round(phases["promoted"] - phases["proved"], 3)
    parted, required = parse_lsn(result["switch_lsn"]), wanted.require_lsn
    if required is not None and parted <= required:
        raise PromotionPending(
            f"{instance.name} became the primary at {result['switch_lsn']}, and {format_lsn(required)} was to be"
            " passed: what the old primary wrote from there on it alone has, so do not start it; see what it wrote",
            **{**result, "pending": True},
        )


def _await_decision(directory: str, patience: float, deadline: float) -> Optional[dict[str, Any]]:
    """What became of an armed process; one that is undecided after `patience` seconds is disarmed."""
    began = time.monotonic()
    while True:
        told = read_armed(directory)
        if told is None:
            return None
        undecided = told["state"] in ("armed", "dead")
        if undecided and (told["state"] == "dead" or time.monotonic() > began + patience):
            move(directory, "disarmed", reason=told["reason"] or "it had not decided when it was to be collected")
            _await_end(directory)
            told = read_armed(directory) or told
        promotes = told["state"] == "promoting" and told["alive"] and time.monotonic() < deadline
        if not promotes and told["state"] != "armed":
            return told
        time.sleep(POLL)


def _await_end(directory: str) -> None:
    """A disarmed process cannot promote; it is gone soon as well, and the next one can begin."""
    deadline = time.monotonic() + 1
    while is_alive(paths(directory)) and time.monotonic() < deadline:
        time.sleep(POLL)


def _follows_again(instance: Instance, state: str) -> bool:
    """Whether what was asked or done once is over, since the server is a standby of a later start; unknown is no."""
    import psycopg2

    asked = os.stat(paths(instance.data_directory).state).st_mtime
    try:
        with contextlib.closing(connect(instance)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_catalog.pg_is_in_recovery(), extract(epoch FROM pg_catalog.pg_postmaster_start_time())"
            )
            recovering, started = cursor.fetchone()
    except (HotspareError, psycopg2.Error):
        return False
    return bool(recovering) and (state == "promoted" or float(started) > asked)


# ---------------------------------------------------------------------------------------------------------------------
# The process
# ---------------------------------------------------------------------------------------------------------------------


def _start(instance: Instance, wanted: Session) -> Optional[str]:
    """Start the process and wait until it is armed; else the reason. `wanted.expires` is a duration here."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _detach(instance, wanted, theirs)
    os.close(theirs)
    os.waitpid(child, 0)
    try:
        ready = select.select([ours], [], [], ARM_SECONDS)[0]
        answer = os.read(ours, 4096).decode() if ready else f"its process did not look within {ARM_SECONDS} s"
    finally:
        os.close(ours)
    if answer == "armed":
        return None
    move(instance.data_directory, "disarmed", reason="it was too late")
    return answer or "its process ended"


def _detach(instance: Instance, wanted: Session, answer: int) -> NoReturn:
    """In the child: a process of its own session that holds nothing of ours open, then `_serve`. Never returns.

    All that it needs is imported already: the file that a module is run from disappears with the module.
    """
    try:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            os.chdir("/")
            os.umask(0o022)
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            for name in os.listdir("/proc/self/fd"):
                if int(name) > 2 and int(name) != answer:
                    with contextlib.suppress(OSError):  # the one that listed them
                        os.close(int(name))
            _serve(instance, wanted, answer)
    finally:
        os._exit(0)


def _serve(instance: Instance, wanted: Session, answer: int) -> None:
    import psycopg2

    where = paths(instance.data_directory)
    try:
        with locked(where.alive), contextlib.closing(connect(instance)) as connection, connection.cursor() as cursor:
            cursor.execute(LOOK)
            seen = look(cursor)
            sizes, retry_interval = settings(cursor)
            session = replace(wanted, expires=seen.asked + wanted.expires, gap=gap_seconds(retry_interval))
            if (seen.receiver, seen.status, seen.timeline) != (session.receiver, "streaming", session.timeline):
                raise HotspareError("the stream ended while it was armed, run this again")
            with locked(where.mutex):
                write(where, _armed(session))
            os.write(answer, b"armed")
            os.close(answer)
            answer = -1
            _watch(instance, cursor, session, begin(seen), sizes, where)
    except (HotspareError, psycopg2.Error, OSError) as error:
        reason = " ".join(str(error).split())
        if answer >= 0:
            os.write(answer, reason.encode())
        _say(instance, f"gave up: {reason}")
        move(instance.data_directory, "refused", reason=f"its process gave up: {reason}")


def _armed(session: Session) -> dict[str, Any]:
    return {
        "state": "armed",
        "reason": None,
        "since": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "expires": session.expires,
        "pid": os.getpid(),
        "receiver": session.receiver,
        "position": format_lsn(session.position),
        "phases": {},
        "proof": None,
        "at": {},
        "collected": False,
    }


def look(cursor: Any) -> Seen:
    """One look; the connection has prepared LOOK. The receiver is looked at before the positions, which then are final
    if it is gone."""
    asked = boot_clock()
    cursor.execute("EXECUTE look")
    recovering, receiver, status, timeline, received, replayed = cursor.fetchone()
    return Seen(
        asked=asked,
        answered=boot_clock(),
        in_recovery=recovering,
        receiver=receiver,
        status=status,
        timeline=timeline,
        received=parse_lsn(received) if received else None,
        replayed=parse_lsn(replayed) if replayed else None,
    )


def settings(cursor: Any) -> tuple[tuple[int, int], float]:
    """Bytes of a WAL page and of a WAL file, and the seconds of wal_retrieve_retry_interval."""
    cursor.execute(
        "SELECT setting::int FROM pg_catalog.pg_settings WHERE name IN"
        " ('wal_block_size', 'wal_retrieve_retry_interval', 'wal_segment_size') ORDER BY name"
    )
    (block,), (retry_milliseconds,), (segment,) = cursor.fetchall()
    return (int(block), int(segment)), retry_milliseconds / 1000


def _watch(
    instance: Instance, cursor: Any, session: Session, watch: Watch, sizes: tuple[int, int], where: Paths
) -> None:
    ours = os.stat(where.state).st_ino  # another one when somebody else wrote it
    while os.stat(where.state).st_ino == ours:
        watch, verdict = step(session, watch, look(cursor))
        phases = {}
        line: Optional[str] = None
        if verdict is PROVE:
            phases["replayed"] = _since(watch)
            reason, line = refutation(_last_records(instance, session, watch), session, watch.replayed, *sizes)
            phases["proved"] = _since(watch)
            # Reading took its time; nothing may have come meanwhile.
            watch, verdict = step(session, watch, look(cursor))
            if verdict is PROVE and reason is not None:
                verdict = Verdict("refused", reason)
        if verdict is PROVE:
            _promote(instance, cursor, watch, phases, line or "")
            return
        if verdict is not WAIT:
            move(instance.data_directory, verdict.what, reason=verdict.reason, phases=phases, proof=line)
            _say(instance, f"{verdict.what}: {verdict.reason}")
            return
        time.sleep(POLL if watch.ended is None else POLL_ENDED)


def _last_records(instance: Instance, session: Session, watch: Watch) -> str:
    between = ["--start", format_lsn(watch.before), "--end", format_lsn(watch.replayed)]
    if watch.before >= watch.replayed:
        return ""
    arguments = ["--path", instance.path("pg_wal"), "--timeline", str(session.timeline), *between]
    program = instance.program("pg_waldump")
    return run([program, *arguments], account=instance.account, timeout=WALDUMP_SECONDS).stdout


def _promote(instance: Instance, cursor: Any, watch: Watch, phases: dict[str, float], line: str) -> None:
    ended = _now() - _since(watch)
    if not move(instance.data_directory, "promoting", phases=phases, proof=line, at={"stream_ended": ended}):
        return
    cursor.execute("SELECT pg_catalog.pg_promote(false)")
    if wait_until_primary(cursor, time.monotonic() + PROMOTE_SECONDS):
        at = {"stream_ended": round(ended, 4), "writable": round(_now(), 4)}
        move(instance.data_directory, "promoted", phases={**phases, "promoted": _since(watch)}, at=at)
        _say(instance, f"promoted {_since(watch)} s after the stream ended, on the proof {line}")


def _since(watch: Watch) -> float:
    return round(boot_clock() - (watch.ended or 0.0), 4)


def _now() -> float:
    """The wall clock, to be told and never to be reckoned with."""
    return datetime.now(timezone.utc).timestamp()


def _say(instance: Instance, text: str) -> None:
    """To the system's log: nobody else may be there to hear it."""
    syslog.openlog("hotspare", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_NOTICE, f"armed {instance.name}: {text}")
