# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is looked at before the primary changes: one small function for each check, all of them on records. Pure.

A hard check refuses unless it is proven true. Hard is what could lose a commit, leave a node behind, or stop the new
primary from taking writes; what costs time or somebody's session only warns. Of the hard ones those in WAIVABLE can
lose no data whatever they find, so the operator may waive them by name, and no other.

That the data directory served is the one of the inventory is no check here: a node that cannot prove it is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .lock import obstacle, taken_from
from .problems import UNITS
from .records import (
    STANDBY_PARAMETERS,
    Check,
    State,
    check,
    duration,
    has_data,
    held,
    integer,
    joined,
    listed,
    lsn,
    part,
    row_of,
    setting,
    setting_int,
    size,
    slot_name,
    timeline,
)

MAX_LAG_BYTES = 16 * 1024 * 1024
MAX_ARCHIVE_BACKLOG = 128
LONG_TRANSACTION_SECONDS = 300
LONG_SENDER_TIMEOUT = 60  # s
SEGMENTS_FREE = 3
SEGMENT = 16 * 1024 * 1024
WAL_LEVELS = ("minimal", "replica", "logical")

# Checks by their code: a name is the code, or the code and the node it is about (`way_back_db1`). All of them are here,
# so that a misspelt one in `allow` is told from one that does not apply today.
WAIVABLE = frozenset(
    (
        "archive_backlog",
        "archiving",
        "auto_conf_owner",
        "free_space",
        "hot_standby_back",
        "lag",
        "latest_timeline",
        "no_backup_on",
        "parameters_of",
        "replication_slots",
        "synchronized_slots",
        "synchronous",
        "wal_senders",
        "way_back",
    )
)
UNWAIVABLE = frozenset(
    (
        "armed_elsewhere",
        "cascading",
        "failover_slots",
        "fenced",
        "hot_standby",
        "lock",
        "major_version",
        "most_wal",
        "no_apply_delay",
        "primary_not_clean",
        "replay_not_paused",
        "sender_silent",
        "shutdown_checkpoint",
        "situation",
        "stopped_nodes",
        "streaming",
        "system_identifier",
        "target_is_primary",
        "timeline",
        "unseen_by_peers",
        "wal_level",
    )
)
WARNINGS = frozenset(
    (
        "archiver",
        "idle_slots",
        "logical_slots",
        "long_transaction",
        "loss",
        "pending_restart",
        "prepared_transactions",
        "read_only_default",
        "restore_command",
        "rewindable",
        "room_for_wal",
        "slot_sync_back",
        "slot_wal_keep",
        "wal_sender_timeout",
    )
)
CODES = WAIVABLE | UNWAIVABLE | WARNINGS


def code_of(name: str, nodes: Iterable[str]) -> str | None:
    """The code of a check's name (or the code itself), None when there is no such check."""
    if name in CODES:
        return name
    return next((c for c in sorted(CODES) for node in nodes if name == f"{c}_{node}"), None)


def waived(checks: Iterable[Check], allow: Iterable[str], nodes: Iterable[str]) -> list[Check]:
    """The checks as the operator wants them: one that fails, may be waived and is named by code or name is ok."""
    given, every = set(allow), list(nodes)
    found = []
    for one in checks:
        code = code_of(one["name"], every)
        may = one["hard"] and code in WAIVABLE
        one = {**one, "allow": may}
        if may and one["ok"] is not True and given & {one["name"], code}:
            one = {**one, "ok": True, "detail": f"{one['detail']} (allowed)"}
        found.append(one)
    return found


def not_waivable(allow: Iterable[str], nodes: Iterable[str]) -> list[str]:
    """Why a name in `allow` is of no use, one sentence each."""
    every, found = list(nodes), []
    for name in sorted(set(allow)):
        code = code_of(name, every)
        if code is None:
            found.append(f"allow names {name}, and there is no such check ({listed(sorted(WAIVABLE))} can be allowed)")
        elif code not in WAIVABLE:
            why = "it only warns" if code in WARNINGS else "without it data could be lost or two nodes take writes"
            found.append(f"{name} cannot be allowed: {why}")
    return found


class Refusal(Exception):
    """The plan is off for a reason that makes further checks meaningless."""


def standby_target(nodes: Mapping[str, State], target: str | None, primary: str | None) -> str:
    """The named target, or the only node it can be; it must run as a standby. Refusal."""
    others = [n for n in nodes if n != primary and nodes[n]["role"] != "absent"]
    if target is None:
        if len(others) != 1:
            raise Refusal(
                f"say which node becomes primary: -e target=NODE, one of {listed(others)}"
                if others
                else "there is no other node that could become primary"
            )
        target = others[0]
    state = nodes[target]
    if state["role"] == "unknown":
        raise Refusal(f"target {target} is unknown ({state.get('reason')})")
    if state["role"] != "standby":
        raise Refusal(
            f"target {target} is {state['role']}, only a running standby can become primary: "
            f"{_towards_standby(state, target, primary)}"
        )
    return target


def _towards_standby(state: State, target: str, primary: str | None) -> str:
    if state["role"] == "absent":
        return "site.yml seeds it"
    if primary is None:
        return f"start PostgreSQL on {target} first"
    return f"run rebuild_standby.yml -e node={target} -e confirm={target} first"


def newest(nodes: Mapping[str, State], name: str, given_up: Iterable[str] = ()) -> Check:
    """One that a standby has overtaken must not come back as a primary: there was a promotion after it.

    `given_up`: nodes of which the operator says that they do not count when their timeline cannot be seen.
    """
    own, note = timeline(nodes[name]), nodes[name].get("superseded") or {}
    others = {n: timeline(s) for n, s in nodes.items() if n != name and has_data(s)}
    unknown = [n for n, theirs in others.items() if theirs is None and n not in set(given_up)]
    if own is None or unknown:
        return check("timeline", None, f"the timeline of {listed(unknown or [name])} is unknown")
    if (integer(note.get("timeline")) or 0) > own:
        words = f"the guard of {name} has seen {note.get('primary')} as primary on timeline {note.get('timeline')}"
        return check("timeline", False, f"{words}, which is later than what {name} holds")
    later = [n for n, theirs in others.items() if theirs is not None and theirs > own]
    words = f"{listed(later)} is on a later timeline than {name}" if later else f"{name} is on the newest timeline"
    return check("timeline", not later, words)


def members_at(addresses: Mapping[str, Mapping[str, object]], host: object, port: object) -> list[str]:
    """The members at an address; two nodes may share a host and then differ by port."""
    if not host:
        return []
    there = [n for n in sorted(addresses) if str(host) in (n, str(addresses[n].get("address")))]
    wanted = integer(port)
    return [n for n in there if wanted is None or integer(addresses[n].get("port")) in (None, wanted)]


def follows(state: State, addresses: Mapping[str, Mapping[str, object]]) -> str | None:
    """The member that a node's upstream names, running or not; None when it names none, or it is not known."""
    there = members_at(addresses, part(state, "upstream", "host"), part(state, "upstream", "port"))
    return there[0] if len(there) == 1 else None


# -- nobody else is at work -------------------------------------------------------------------------------------------


def lock_free(nodes: Mapping[str, State], token: str, dead: Iterable[str], take_over: str) -> Check:
    """Whether the lock of every node that was seen can be taken; taking it is what decides."""
    held_by = {n: s["lock"] for n, s in nodes.items() if s.get("lock")}
    unread = [f"{n}: {lock.get('reason')}" for n, lock in held_by.items() if lock and not lock.get("token")]
    if unread:
        return check("lock", None, f"it is not known who works on the cluster ({joined(unread)})")
    gone = list(dead)
    found = [why for n, lock in held_by.items() if lock for why in [obstacle(lock, n, token, take_over, gone)] if why]
    if found:
        return check("lock", False, joined(found))
    left = [told for lock in held_by.values() if lock for told in [taken_from(lock, token, gone)] if told]
    return check("lock", True, joined(left) or "nobody else works on the cluster")


def is_armed(state: State) -> bool:
    """Whether a process on the node may promote it, now or when its primary stops; one that is not known may."""
    return part(state, "armed", "state") in ("armed", "promoting", "unknown")


def armed_elsewhere(nodes: Mapping[str, State], target: str) -> Check:
    """Two armed standbys would both promote on the one shutdown record."""
    others = [n for n in nodes if n != target and is_armed(nodes[n])]
    if not others:
        return check("armed_elsewhere", True, f"no other node than {target} is armed")
    known = all(part(nodes[n], "armed", "state") != "unknown" for n in others)
    left = max((float(part(nodes[n], "armed", "expires_in") or 0) for n in others), default=0.0)
    return check(
        "armed_elsewhere",
        False if known else None,
        f"{listed(others)} is armed by an earlier run and promotes itself when the primary stops: continue that one "
        f"with -e target={others[0]}, or repeat in {duration(max(0.0, left))}, when that is over",
    )


# -- the whole list ---------------------------------------------------------------------------------------------------


def planned_checks(
    nodes: Mapping[str, State],
    primary: str,
    target: str,
    followers: list[str],
    max_lag: int,
    max_backlog: int,
    prefix: str,
) -> list[Check]:
    """All that is looked at before a primary that lives hands over to `target`."""
    source, standby = nodes[primary], nodes[target]
    others = [primary, *followers]
    return [
        equal("system_identifier", nodes, primary, target),
        equal("major_version", nodes, primary, target),
        timelines_equal(nodes, primary, target),
        cascading(nodes, target, followers),
        _streaming(nodes, primary, target),
        _lag(source, standby, target, max_lag),
        *target_checks(standby, target),
        *[parameters_fit(nodes, target, other) for other in others],
        *[way_back(nodes, target, other) for other in others],
        *[_latest_timeline(nodes[other], other) for other in others],
        _wal_level(source, standby, primary, target),
        senders_free(standby, target, len(others)),
        slots_free(standby, target, others, prefix),
        synchronous(standby, target, others),
        _synchronized_slots(standby, target, others, prefix),
        _failover_slots(source, standby, primary, target),
        _archives_too(source, standby, primary, target),
        _backlog(source, primary, max_backlog),
        *[_no_backups(nodes[n], n) for n in (primary, target)],
        *[_free_space(nodes[n], n) for n in (primary, target)],
        *[_auto_conf_owner(nodes[n], n) for n in (primary, target)],
        _hot_standby_back(source, primary),
        *_planned_warnings(source, standby, primary, target),
    ]


# -- who they are, and how far ----------------------------------------------------------------------------------------


def equal(key: str, nodes: Mapping[str, State], one: str, two: str) -> Check:
    here, there = nodes[one].get(key), nodes[two].get(key)
    ok = here == there if here and there else None
    detail = f"{key.replace('_', ' ')}: {one} {here or 'unknown'}, {two} {there or 'unknown'}"
    return check(key, ok, detail)


def timelines_equal(nodes: Mapping[str, State], one: str, two: str) -> Check:
    own, theirs = timeline(nodes[one]), timeline(nodes[two])
    ok = None if own is None or theirs is None else own == theirs
    return check("timeline", ok, f"timeline: {one} {own or 'unknown'}, {two} {theirs or 'unknown'}")


def cascading(nodes: Mapping[str, State], target: str, followers: Iterable[str]) -> Check:
    """A standby below another standby: who follows whom after the cutover would be a guess."""
    chains = [
        f"{n} streams from {s}"
        for n in [target, *followers]
        for s in sorted(nodes)
        if s != n and nodes[s]["role"] == "standby" and row_of(nodes[s], nodes[n])
    ]
    if chains:
        return check(
            "cascading",
            False,
            f"{listed(chains)}, a standby: cascading is not supported; let every standby stream from the primary "
            "(site.yml), then repeat",
        )
    return check("cascading", True, "no standby streams from another standby")


def _streaming(nodes: Mapping[str, State], primary: str, target: str) -> Check:
    """Both sides must say so: a row at the primary, and a WAL receiver that streams."""
    recovery = nodes[target].get("recovery")
    row = row_of(nodes[primary], nodes[target])
    state = row.get("state") if row else "no walsender"
    if recovery is None or (row and state is None):
        return check("streaming", None, f"it is not known whether {target} streams from {primary}")
    ok = recovery == "streaming" and state == "streaming"
    sync = f" ({row['sync_state']})" if row and row.get("sync_state") else ""
    return check("streaming", ok, f"{target} {recovery}, {primary} has {state} for it{sync}")


def _lag(source: State, standby: State, target: str, bound: int) -> Check:
    row = row_of(source, standby)
    lags = [integer((row.get("lag_bytes") or {}).get(k)) for k in ("flush", "replay")] if row else [None]
    known = [v for v in lags if v is not None]
    if len(known) < 2:
        return check("lag", None, f"the lag of {target} is unknown")
    worst = max(known)
    return check("lag", worst <= bound, f"{target} is {size(worst)} behind, {size(bound)} are allowed")


def holds_shutdown(nodes: Mapping[str, State], old: str, chosen: str) -> Check:
    """Strictly past the START of the shutdown checkpoint record: with equality the record itself is missing."""
    name = "shutdown_checkpoint"
    at, reach = lsn(part(nodes[old], "control", "checkpoint_lsn")), held(nodes[chosen])
    if at is None or reach is None:
        return check(name, None, f"it is not known whether {chosen} holds the shutdown checkpoint of {old}")
    if reach > at:
        return check(name, True, f"{chosen} holds the shutdown checkpoint of {old}")
    first = f"remove standby.signal of {old}, then " if nodes[old].get("standby_signal") else ""
    return check(
        name,
        False,
        f"{chosen} lacks {size(at - reach)} and the shutdown checkpoint of {old}: {first}start PostgreSQL on {old} "
        "again (nothing is lost) and repeat",
    )


def target_checks(state: State, target: str) -> list[Check]:
    """What must hold on any standby that is to be promoted."""
    paused, delay = part(state, "replay", "paused"), integer(part(state, "replay", "min_apply_delay_ms"))
    word = "unknown" if paused is None else "paused: SELECT pg_wal_replay_resume()" if paused else "not paused"
    return [
        check(
            "hot_standby",
            state.get("hot_standby"),
            f"{target} {'accepts' if state.get('hot_standby') else 'is not known to accept'} connections",
        ),
        check("replay_not_paused", None if paused is None else not paused, f"replay on {target} is {word}"),
        check(
            "no_apply_delay",
            None if delay is None else delay == 0,
            f"recovery_min_apply_delay on {target} is {'unknown' if delay is None else f'{delay} ms'}",
        ),
    ]


# -- the way back -----------------------------------------------------------------------------------------------------


def way_back(nodes: Mapping[str, State], target: str, other: str) -> Check:
    """`other` is to stream from the target: it has just opened a replication connection there, and met the target."""
    name = f"way_back_{other}"
    peers = nodes[other].get("peers")
    seen: Mapping[str, Any] = next((p for p in peers or [] if p.get("name") == target), {})
    answer = seen.get("answer")
    said = seen.get("detail") or "it was not asked for a replication connection"
    if answer in ("primary", "standby"):
        theirs, own = seen.get("system_identifier"), nodes[target].get("system_identifier")
        if not theirs or not own:
            return check(name, None, f"who {other} reaches as {target} is not known")
        where = f"{seen.get('host')}:{seen.get('port')}"
        if theirs != own or answer != nodes[target]["role"]:
            met = f"a {answer}" if theirs == own else f"the cluster {theirs}"
            return check(name, False, f"{other} reaches {met} at {where}, which is not {target}: mend its address")
        return check(name, True, f"{other} can open a replication connection to {target}")
    ok = None if answer == "unknown" or answer is None else False
    return check(name, ok, f"{other} cannot be seen to open a replication connection to {target}: {said}")


def parameters_fit(nodes: Mapping[str, State], target: str, other: str) -> Check:
    """`other` becomes a standby of `target`: with less than the target of any of these it would refuse to start."""
    low, unknown = [], []
    for name in STANDBY_PARAMETERS:
        here, there = setting_int(nodes[target], name), setting_int(nodes[other], name)
        waits = name in (nodes[other].get("pending_restart") or [])
        if here is None or there is None or waits:
            unknown.append(name)
        elif there < here:
            low.append(f"{name} {there} < {here}")
    ok = False if low else None if unknown else True
    detail = f"{other} can follow {target} with its parameters"
    if low:
        detail = f"{other} could not follow {target}: {', '.join(low)}; raise them there and restart it first"
    elif unknown:
        detail = f"{listed(unknown)} of {target} or {other} cannot be told (a restart may be pending)"
    return check(f"parameters_of_{other}", ok, detail)


def _latest_timeline(state: State, name: str) -> Check:
    value = setting(state, "recovery_target_timeline")
    detail = f"recovery_target_timeline on {name} is {value or 'unknown'}"
    if value not in (None, "latest"):
        detail += ": it would not follow a newly promoted primary; set it to latest and reload"
    return check(f"latest_timeline_{name}", None if value is None else value == "latest", detail)


def _wal_level(source: State, standby: State, primary: str, target: str) -> Check:
    levels = [setting(source, "wal_level"), setting(standby, "wal_level")]
    ranks = [WAL_LEVELS.index(v) if v in WAL_LEVELS else None for v in levels]
    ok = None if ranks[0] is None or ranks[1] is None else ranks[1] >= max(ranks[0], 1)
    return check("wal_level", ok, f"wal_level: {primary} {levels[0] or 'unknown'}, {target} {levels[1] or 'unknown'}")


def senders_free(state: State, target: str, needed: int, hard: bool = True) -> Check:
    limit, rows = setting_int(state, "max_wal_senders"), state.get("replication")
    if limit is None or rows is None:
        return check("wal_senders", None, f"free WAL senders on {target}: unknown", hard)
    free = limit - len(rows)
    return check("wal_senders", free >= needed, f"{target} has {free} free WAL senders and needs {needed}", hard)


def slots_free(state: State, target: str, standbys: Iterable[str], prefix: str, hard: bool = True) -> Check:
    limit, slots = setting_int(state, "max_replication_slots"), state.get("slots")
    if limit is None or slots is None:
        return check("replication_slots", None, f"free replication slots on {target}: unknown", hard)
    needed = len({slot_name(prefix, n) for n in standbys} - {str(s.get("name")) for s in slots})
    free = limit - len(slots)
    return check(
        "replication_slots", free >= needed, f"{target} has {free} free replication slots and needs {needed}", hard
    )


def synchronous_names(value: str) -> tuple[int, set[str]]:
    """How many standbys a commit waits for, and the names it may wait for (lower case, `*` for any)."""
    match = re.fullmatch(r"(?is)\s*(?:(?:FIRST|ANY)\s+)?(\d+)\s*\((.*)\)\s*", value)
    count, text = (int(match[1]), match[2]) if match else (1, value)
    return count, {n.strip().strip('"').lower() for n in text.split(",")}


def synchronous(state: State, target: str, standbys: list[str], hard: bool = True) -> Check:
    """What synchronous_standby_names does the second `target` is primary: writes hang until enough of it streams."""
    value = setting(state, "synchronous_standby_names")
    if value is None:
        return check("synchronous", None, f"synchronous_standby_names on {target}: unknown", hard)
    if not value.strip():
        return check("synchronous", True, f"synchronous_standby_names is empty on {target}", hard)
    count, wanted = synchronous_names(value)
    able = [n for n in standbys if "*" in wanted or n.lower() in wanted]
    detail = f"{target} has synchronous_standby_names = '{value}' of its own and "
    if len(able) >= count:
        return check("synchronous", True, detail + f"its writes wait until {listed(able)} streams from it", hard)
    return check("synchronous", False, detail + "its writes would hang: too few of these are standbys of it", hard)


def _synchronized_slots(state: State, target: str, standbys: Iterable[str], prefix: str) -> Check:
    """PostgreSQL 17+: logical subscribers wait for these slots, for ever if nobody uses them."""
    name, value, slots = "synchronized_slots", setting(state, "synchronized_standby_slots"), state.get("slots")
    if not value or not value.strip():
        # Unknown is older than 17, or the settings are not known at all, which other checks refuse.
        return check(name, True, f"synchronized_standby_slots is empty on {target}")
    if slots is None:
        return check(name, None, f"the slots of {target} are unknown")
    wanted = [n.strip().strip('"') for n in value.split(",")]
    there = {slot_name(prefix, n) for n in standbys} | {str(s.get("name")) for s in slots if s.get("active")}
    missing = [n for n in wanted if n not in there]
    words = f"{listed(missing)} would be used by nobody and subscribers would wait: correct it" if missing else "fine"
    return check(name, not missing, f"{target} has synchronized_standby_slots = '{value}': {words}")


def _failover_slots(source: State, standby: State, primary: str, target: str) -> Check:
    """PostgreSQL 17+: a failover slot that is not yet synced is dropped by the promotion."""
    name, slots = "failover_slots", source.get("slots")
    if slots is None:
        return check(name, None, f"the slots of {primary} are unknown")
    wanted = [str(s.get("name")) for s in slots if s.get("failover") and not s.get("temporary")]
    ready = {
        s.get("name")
        for s in standby.get("slots") or []
        if s.get("synced") and s.get("temporary") is False and not s.get("invalidation_reason")
    }
    late = [n for n in wanted if n not in ready]
    if not wanted:
        return check(name, True, f"{primary} has no failover slots")
    ready_or_not = f"{listed(late)} is not" if late else f"{listed(wanted)} of {primary} is"
    return check(name, not late, f"{ready_or_not} ready on {target}")


def _hot_standby_back(source: State, primary: str) -> Check:
    value = setting(source, "hot_standby")
    ok = None if value is None else value == "on"
    return check("hot_standby_back", ok, f"hot_standby on {primary}, the later standby, is {value or 'unknown'}")


# -- archive, backups and disks ---------------------------------------------------------------------------------------


def _archives(state: State) -> bool | None:
    mode = part(state, "archiver", "mode")
    if mode is None:
        return None
    if mode == "off":
        return False
    command = part(state, "archiver", "command_set")
    return command if isinstance(command, bool) else None


def _archives_too(source: State, standby: State, primary: str, target: str) -> Check:
    name, here, there = "archiving", _archives(source), _archives(standby)
    if here is False:
        return check(name, True, f"{primary} archives nothing")
    if here is None or there is None:
        return check(name, None, f"it is not known whether {primary} and {target} archive WAL")
    words = "archives too" if there else "would not archive: set archive_mode and archive_command"
    return check(name, there, f"{primary} archives WAL, {target} {words}")


def _backlog(source: State, primary: str, bound: int) -> Check:
    """A demoted node archives no more: what waits there now has to be archived again by the new primary."""
    if part(source, "archiver", "mode") == "off":
        return check("archive_backlog", True, f"{primary} archives nothing")
    ready = integer(part(source, "archiver", "ready"))
    if ready is None:
        return check("archive_backlog", None, f"{primary}: how many files wait for the archive is unknown")
    return check("archive_backlog", ready <= bound, f"{primary}: {ready} files wait for the archive, {bound} may")


def _no_backups(state: State, name: str) -> Check:
    backups = state.get("running_backups")
    if backups is None:
        return check(f"no_backup_on_{name}", None, f"base backups running from {name}: unknown")
    left = joined(f"time left {duration(b.get('seconds_left'))}" for b in backups)
    detail = f"{len(backups)} base backups run from {name} and would be broken off ({left})" if backups else ""
    return check(f"no_backup_on_{name}", not backups, detail or f"no base backup runs from {name}")


def _bytes_of(state: State, name: str) -> int | None:
    """A setting of a size, in bytes; None when it is not known, or -1 (no bound)."""
    value, unit = setting_int(state, name), (part(state, "settings", name) or {}).get("unit")
    return None if value is None or value < 0 else value * UNITS.get(str(unit), 1 << 20)


def _free_space(state: State, name: str) -> Check:
    """A cutover switches segments on both sides; a disk that is full there stops the server in the middle of it."""
    needed = SEGMENTS_FREE * (integer(part(state, "control", "wal_segment_size")) or SEGMENT)
    free = integer(state.get("wal_free_bytes"))
    words = f"{size(free)} are free for the WAL of {name}, {size(needed)} are needed"
    return check(f"free_space_{name}", None if free is None else free > needed, words)


def _room_for_wal(state: State, name: str) -> list[Check]:
    free, wanted = integer(state.get("wal_free_bytes")), _bytes_of(state, "max_wal_size")
    if free is None or wanted is None or free > wanted:
        return []
    return [
        check(f"room_for_wal_{name}", False, f"{name} has {size(free)} for WAL, max_wal_size is {size(wanted)}", False)
    ]


def _auto_conf_owner(state: State, name: str) -> Check:
    """A server that cannot read postgresql.auto.conf does not start again."""
    code, owner, data_owner = f"auto_conf_owner_{name}", state.get("auto_conf_owner"), state.get("data_owner")
    if owner is None or data_owner is None:
        return check(code, None, f"to whom postgresql.auto.conf of {name} belongs is unknown")
    words = f"postgresql.auto.conf of {name} belongs to {owner}"
    if owner != data_owner:
        words += f", its data to {data_owner}: chown it"
    return check(code, owner == data_owner, words)


# -- what costs time or a session, and no commit ----------------------------------------------------------------------


def _planned_warnings(source: State, standby: State, primary: str, target: str) -> list[Check]:
    prepared = integer(source.get("prepared_transactions"))
    oldest = source.get("oldest_transaction_seconds")
    failing = _archiver_failing(source)
    works = "may or may not work" if failing is None else "fails" if failing else "works"
    found = [
        check(
            "prepared_transactions",
            None if prepared is None else prepared == 0,
            f"{primary} has {'unknown' if prepared is None else prepared} prepared transactions, they move along",
            hard=False,
        ),
        check(
            "long_transaction",
            None if oldest is None else oldest <= LONG_TRANSACTION_SECONDS,
            f"the oldest transaction on {primary} runs for {duration(oldest)} and is broken off",
            hard=False,
        ),
        check("archiver", None if failing is None else not failing, f"the archiver of {primary} {works}", hard=False),
        _plain_logical_slots(source, primary),
        _rewindable(source, primary),
    ]
    for name, state in ((primary, source), (target, standby)):
        waits = state.get("pending_restart")
        words = "unknown" if waits is None else listed(waits)
        detail = f"waits for a restart of {name}: {words}"
        found.append(check(f"pending_restart_{name}", None if waits is None else not waits, detail, hard=False))
        found += _room_for_wal(state, name)
    return found + _settings_that_surprise(source, standby, primary, target)


def _settings_that_surprise(source: State, standby: State, primary: str, target: str) -> list[Check]:
    """Settings that show only once the roles have changed; each is a line only where it does."""
    found = []

    def warn(name: str, detail: str) -> None:
        found.append(check(name, False, detail, hard=False))

    idle = setting_int(standby, "idle_replication_slot_timeout")
    if idle:
        warn("idle_slots", f"{target} invalidates slots idle for {idle} s: keep the outage shorter")
    limit = setting_int(source, "wal_sender_timeout")
    if limit == 0:
        warn("wal_sender_timeout", f"it is 0 on {primary}: a hanging standby blocks the stop")
    elif limit is not None and limit > LONG_SENDER_TIMEOUT * 1000:
        warn("wal_sender_timeout", f"it is {limit // 1000} s on {primary}: a hanging standby delays the stop that long")
    if setting(standby, "default_transaction_read_only") == "on":
        warn("read_only_default", f"default_transaction_read_only is on at {target}: writes would be refused there")
    kept, room = _bytes_of(standby, "max_slot_wal_keep_size"), _bytes_of(standby, "max_wal_size")
    if kept is not None and room is not None and kept < room:
        warn(
            "slot_wal_keep",
            f"slots on {target} keep {size(kept)} of WAL, {primary} must be back before that is written",
        )
    if len({bool(setting(s, "restore_command")) for s in (source, standby)}) > 1:
        with_one, without = (primary, target) if setting(source, "restore_command") else (target, primary)
        warn("restore_command", f"{with_one} has a restore_command and {without} has none")
    slots = source.get("slots") or []
    if any(s.get("failover") for s in slots) and setting(source, "sync_replication_slots") != "on":
        warn("slot_sync_back", f"sync_replication_slots is off at {primary}: failover slots would not be synced back")
    return found


def _archiver_failing(state: State) -> bool | None:
    if part(state, "archiver", "mode") is None:
        return None
    failed, archived = part(state, "archiver", "last_failed_time"), part(state, "archiver", "last_archived_time")
    return bool(failed and (not archived or failed > archived))


def _plain_logical_slots(source: State, primary: str) -> Check:
    slots = source.get("slots")
    plain = [
        str(s.get("name"))
        for s in slots or []
        if s.get("type") == "logical" and not s.get("failover") and not s.get("temporary")
    ]
    detail = f"logical slots {listed(plain)} stay behind on {primary}" if plain else "no logical slot stays behind"
    return check("logical_slots", None if slots is None else not plain, detail, hard=False)


def _rewindable(source: State, primary: str) -> Check:
    sums, hints = part(source, "control", "data_checksums"), part(source, "control", "wal_log_hints")
    pages = setting(source, "full_page_writes")
    known = not (sums is None or hints is None or pages is None)
    ok = bool((sums or hints) and pages == "on") if known else None
    return check("rewindable", ok, f"data checksums or wal_log_hints, and full_page_writes, on {primary}", hard=False)
