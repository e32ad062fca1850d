# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether and how the primary may change: decided from the records of all nodes, at once, before anything is touched.

Pure. A plan names the target, the old primary, who must follow, and every check with what was seen. Hard checks
refuse unless they are proven true (unknown refuses); the others only warn. What is hard in a planned cutover: all
that could lose a commit, leave a node behind, or stop the new primary from taking writes. What only warns: all that
costs time or somebody's session. In a forced one the primary is gone and waiting is no remedy, so what is merely
wrong on the way back warns, while whatever could make a second primary, or lose more than need be, stays hard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypedDict

from .records import (
    CONTRADICTIONS,
    STANDBY_PARAMETERS,
    Check,
    State,
    Topology,
    can_follow,
    check,
    describe,
    duration,
    has_data,
    held,
    integer,
    joined,
    listed,
    lsn,
    member_states,
    part,
    refused,
    row_of,
    setting,
    setting_int,
    size,
    slot_name,
    stopped_cleanly_as_primary,
    timeline,
)

MAX_LAG_BYTES = 16 * 1024 * 1024
MAX_ARCHIVE_BACKLOG = 128
LONG_TRANSACTION_SECONDS = 300
# A dead sender is silent; one that spoke within this time (s) before the reading is taken to be alive.
ALIVE_SECONDS = 5
WAL_LEVELS = ("minimal", "replica", "logical")


class Loss(TypedDict):
    """What a forced failover gives up, in bytes of WAL. None is unknown."""

    bytes: int | None
    at_least: int | None
    detail: str


class FailoverPlan(TypedDict):
    """What failover.yml may do; see failover_plan()."""

    ok: bool
    reason: str
    mode: str
    target: str | None
    old_primary: str | None
    followers: list[str]
    resume: str | None
    nothing_to_do: bool
    needs_rebuild: list[str]
    unreachable: list[str]
    require_lsn: str | None
    require_timeline: int | None
    system_identifier: str | None
    loss: Loss | None
    checks: list[Check]
    report: list[str]


class _Refusal(Exception):
    """The plan is off for a reason that makes further checks meaningless."""


def failover_plan(
    seen: Topology,
    target: str | None = None,
    mode: str = "planned",
    members: Mapping[str, Mapping[str, object]] | Iterable[str] | None = None,
    confirm_unfenced: str | Iterable[str] | None = None,
    max_lag_bytes: int = MAX_LAG_BYTES,
    max_archive_backlog: int = MAX_ARCHIVE_BACKLOG,
    slot_prefix: str = "hotspare_",
) -> FailoverPlan:
    """Plan a planned (switchover) or forced cutover to `target`; without a target, to the only other node.

    `members` {name: {address, port}} tells which node a standby's upstream is. `confirm_unfenced` names the nodes
    (list, or text with commas) of which the operator knows by other means that they take no writes.
    resume: None = a whole cutover; `promote` = the old primary is stopped cleanly already and only the promotion (with
    require_lsn, require_timeline) and what follows is left; `finish` = the target is primary already, old_primary and
    followers have to be attached (nothing_to_do when they are). needs_rebuild: for rebuild_standby.yml afterwards.
    """
    addresses = {n: dict(v) for n, v in members.items()} if isinstance(members, Mapping) else {}
    nodes = member_states(seen, members)
    confirmed = _names(confirm_unfenced)
    plan: FailoverPlan = {
        "ok": False,
        "reason": "",
        "mode": mode,
        "target": None,
        "old_primary": None,
        "followers": [],
        "resume": None,
        "nothing_to_do": False,
        "needs_rebuild": [],
        "unreachable": [n for n in nodes if nodes[n]["role"] == "unknown"],
        "require_lsn": None,
        "require_timeline": None,
        "system_identifier": None,
        "loss": None,
        "checks": [],
        "report": [describe(state) for state in nodes.values()],
    }
    try:
        _refuse_nonsense(seen, nodes, target or None, mode)
        if mode == "planned":
            _planned(plan, nodes, target or None, max_lag_bytes, max_archive_backlog, slot_prefix)
        else:
            _forced(plan, nodes, target or None, addresses, confirmed, slot_prefix)
    except _Refusal as refusal:
        plan["checks"].append(check("situation", False, str(refusal)))
    bad = refused(plan["checks"])
    plan["ok"] = not bad
    if bad:
        plan.update({"reason": joined(c["detail"] for c in bad), "resume": None, "nothing_to_do": False})
    return plan


def _names(given: str | Iterable[str] | None) -> set[str]:
    parts = given.split(",") if isinstance(given, str) else given or ()
    return {str(p).strip() for p in parts if str(p).strip()}


def _refuse_nonsense(seen: Topology, nodes: Mapping[str, State], target: str | None, mode: str) -> None:
    if mode not in ("planned", "forced"):
        raise _Refusal(f"mode is planned or forced, not {mode}")
    if target is not None and target not in nodes:
        raise _Refusal(f"target {target} is not a member of the cluster ({listed(nodes)})")
    found = [p for p in seen["problems"] if p["severity"] == "error" and p["code"] in CONTRADICTIONS]
    if found:
        raise _Refusal(joined(f"{p['node']}: {p['detail']}" if p["node"] else p["detail"] for p in found))
    blind = [n for n, s in nodes.items() if s["role"] != "unknown" and has_data(s) and not s.get("system_identifier")]
    if blind:
        raise _Refusal(f"the system identifier of {listed(blind)} could not be read")


def _role(nodes: Mapping[str, State], role: str) -> list[str]:
    return [n for n in nodes if nodes[n]["role"] == role]


# -- planned ----------------------------------------------------------------------------------------------------------


def _planned(
    plan: FailoverPlan,
    nodes: Mapping[str, State],
    target: str | None,
    max_lag: int,
    max_backlog: int,
    prefix: str,
) -> None:
    unknown = plan["unreachable"]
    if unknown:
        why = joined(f"{n} is unknown ({nodes[n].get('reason')})" for n in unknown)
        lost = "" if _role(nodes, "primary") else ": if the primary is dead, run failover.yml -e mode=forced"
        raise _Refusal(f"{why}; a planned cutover needs an answer from every node{lost}")
    primaries = _role(nodes, "primary")
    if not primaries:
        _plan_promote(plan, nodes, target, prefix)
        return
    primary = primaries[0]
    if target == primary or (target is None and _interrupted_after_promotion(nodes, primary)):
        _plan_finish(plan, nodes, primary)
        return
    chosen = _standby_target(nodes, target, primary)
    plan.update(
        {
            "target": chosen,
            "old_primary": primary,
            "followers": [n for n in _role(nodes, "standby") if n != chosen],
            "needs_rebuild": _role(nodes, "stopped"),
            "system_identifier": nodes[chosen].get("system_identifier"),
            "reason": f"{primary} hands over to {chosen}",
        }
    )
    plan["checks"] = _planned_checks(nodes, primary, chosen, plan["followers"], max_lag, max_backlog, prefix)


def _interrupted_after_promotion(nodes: Mapping[str, State], primary: str) -> bool:
    """Whether the only other node is the cleanly stopped former primary of an older timeline."""
    others = [s for n, s in nodes.items() if n != primary and s["role"] != "absent"]
    return len(others) == 1 and _former_primary(others[0], nodes[primary])


def _former_primary(state: State, primary: State) -> bool:
    own, theirs = timeline(state), timeline(primary)
    return stopped_cleanly_as_primary(state) and own is not None and theirs is not None and own < theirs


def _standby_target(nodes: Mapping[str, State], target: str | None, primary: str | None) -> str:
    """The named target, or the only node it can be; it must run as a standby."""
    others = [n for n in nodes if n != primary and nodes[n]["role"] != "absent"]
    if target is None:
        if len(others) != 1:
            raise _Refusal(
                f"say which node becomes primary: -e target=NODE, one of {listed(others)}"
                if others
                else "there is no other node that could become primary"
            )
        target = others[0]
    state = nodes[target]
    if state["role"] == "unknown":
        raise _Refusal(f"target {target} is unknown ({state.get('reason')})")
    if state["role"] != "standby":
        raise _Refusal(f"target {target} is {state['role']}, only a running standby can become primary")
    return target


def _plan_finish(plan: FailoverPlan, nodes: Mapping[str, State], primary: str) -> None:
    """The target is primary already: what is left is to attach the others."""
    stopped = _role(nodes, "stopped")
    returning = [n for n in stopped if _former_primary(nodes[n], nodes[primary])]
    # A demoted node that was started once as a standby and stopped again says so in pg_control.
    returning += [n for n in stopped if n not in returning and _was_standby(nodes[n], nodes[primary])]
    old = returning[0] if returning else None
    standbys = _role(nodes, "standby")
    attached = [n for n in standbys if _attached(nodes, primary, n)]
    plan.update(
        {
            "target": primary,
            "old_primary": old,
            "followers": standbys,
            "resume": "finish",
            "needs_rebuild": [n for n in stopped if n != old],
            "system_identifier": nodes[primary].get("system_identifier"),
            "nothing_to_do": not old and attached == standbys,
            "reason": f"{primary} is the primary already",
        }
    )
    if plan["nothing_to_do"]:
        plan["reason"] += f", attached: {listed(standbys)}" if standbys else ""
    for name in plan["needs_rebuild"]:
        plan["report"].append(f"{name} is stopped: run rebuild_standby.yml -e node={name} -e confirm={name}")
    plan["checks"].append(check("target_is_primary", True, f"{primary} runs as primary"))


def _was_standby(state: State, primary: State) -> bool:
    """A stopped standby that can go on behind `primary`, or whose history cannot be told from here (asked later)."""
    return bool(state.get("standby_signal")) and (
        part(state, "control", "state") in ("shut down in recovery", "in archive recovery")
        and can_follow(state, primary) is not False
    )


def _attached(nodes: Mapping[str, State], primary: str, name: str) -> bool:
    """Whether `name` streams from `primary`, by the word of both."""
    state = nodes[name]
    row = row_of(nodes[primary], state)
    return (
        state.get("recovery") == "streaming"
        and row is not None
        and row.get("state") == "streaming"
        and timeline(state) == timeline(nodes[primary])
    )


def _plan_promote(plan: FailoverPlan, nodes: Mapping[str, State], target: str | None, prefix: str) -> None:
    """Nobody is primary. Only a cleanly stopped former primary lets a planned cutover go on."""
    if not any(has_data(state) for state in nodes.values()):
        raise _Refusal("no node holds data: build the cluster with site.yml first")
    stopped = [n for n in _role(nodes, "stopped") if n != target]
    clean = [n for n in stopped if stopped_cleanly_as_primary(nodes[n])]
    if target and stopped_cleanly_as_primary(nodes[target]):
        raise _Refusal(f"target {target} is the primary, and stopped: start PostgreSQL there, that is all")
    if len(clean) != 1:
        what = f"{listed(clean)} stopped cleanly as primaries" if clean else "no node stopped cleanly as the primary"
        raise _Refusal(
            f"nobody is primary and {what}: start the node that was primary last, or, when it is lost, "
            "run failover.yml -e mode=forced"
        )
    old = clean[0]
    chosen = _standby_target(nodes, target, old)
    require = part(nodes[old], "control", "checkpoint_lsn")
    followers = [n for n in _role(nodes, "standby") if n != chosen]
    plan.update(
        {
            "target": chosen,
            "old_primary": old,
            "followers": followers,
            "resume": "promote",
            "require_lsn": require,
            "require_timeline": timeline(nodes[old]),
            "system_identifier": nodes[chosen].get("system_identifier"),
            "needs_rebuild": [n for n in stopped if n != old],
            "reason": f"{old} is stopped cleanly, {chosen} holds all of its WAL",
        }
    )
    plan["checks"] = [
        _equal("system_identifier", nodes, old, chosen),
        _equal("major_version", nodes, old, chosen),
        _timelines_equal(nodes, old, chosen),
        _holds_shutdown(nodes, old, chosen),
        *_target_checks(nodes[chosen], chosen),
        _synchronous(nodes[chosen], chosen, [old, *followers]),
        _senders_free(nodes[chosen], chosen, 1 + len(followers)),
        _slots_free(nodes[chosen], chosen, [old, *followers], prefix),
    ]


def _holds_shutdown(nodes: Mapping[str, State], old: str, chosen: str) -> Check:
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


# -- checks of a planned cutover --------------------------------------------------------------------------------------


def _planned_checks(
    nodes: Mapping[str, State],
    primary: str,
    target: str,
    followers: list[str],
    max_lag: int,
    max_backlog: int,
    prefix: str,
) -> list[Check]:
    source, standby = nodes[primary], nodes[target]
    others = [primary, *followers]
    return [
        _equal("system_identifier", nodes, primary, target),
        _equal("major_version", nodes, primary, target),
        _timelines_equal(nodes, primary, target),
        _streaming(nodes, primary, target),
        _lag(source, standby, target, max_lag),
        *_target_checks(standby, target),
        *[_parameters_fit(nodes, target, other) for other in others],
        _wal_level(source, standby, primary, target),
        _senders_free(standby, target, len(others)),
        _slots_free(standby, target, others, prefix),
        _synchronous(standby, target, others),
        _archives_too(source, standby, primary, target),
        _backlog(source, primary, max_backlog),
        _no_backups(source, primary),
        _no_backups(standby, target),
        _failover_slots(source, standby, primary, target),
        _hot_standby_back(source, primary),
        *_planned_warnings(source, standby, primary, target),
    ]


def _equal(key: str, nodes: Mapping[str, State], one: str, two: str) -> Check:
    here, there = nodes[one].get(key), nodes[two].get(key)
    ok = here == there if here and there else None
    detail = f"{key.replace('_', ' ')}: {one} {here or 'unknown'}, {two} {there or 'unknown'}"
    return check(key, ok, detail)


def _timelines_equal(nodes: Mapping[str, State], one: str, two: str) -> Check:
    own, theirs = timeline(nodes[one]), timeline(nodes[two])
    ok = None if own is None or theirs is None else own == theirs
    return check("timeline", ok, f"timeline: {one} {own or 'unknown'}, {two} {theirs or 'unknown'}")


def _streaming(nodes: Mapping[str, State], primary: str, target: str) -> Check:
    """Both sides must say so: a row at the primary, and a WAL receiver that streams."""
    recovery = nodes[target].get("recovery")
    row = row_of(nodes[primary], nodes[target])
    state = row.get("state") if row else "no walsender"
    if recovery is None or (row and state is None):
        return check("streaming", None, f"it is not known whether {target} streams from {primary}")
    ok = recovery == "streaming" and state == "streaming"
    return check("streaming", ok, f"{target} {recovery}, {primary} has {state} for it")


def _lag(source: State, standby: State, target: str, bound: int) -> Check:
    row = row_of(source, standby)
    lags = [integer((row.get("lag_bytes") or {}).get(k)) for k in ("flush", "replay")] if row else [None]
    known = [v for v in lags if v is not None]
    if len(known) < 2:
        return check("lag", None, f"the lag of {target} is unknown")
    worst = max(known)
    return check("lag", worst <= bound, f"{target} is {size(worst)} behind, {size(bound)} are allowed")


def _target_checks(state: State, target: str, hard: bool = True) -> list[Check]:
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


def _parameters_fit(nodes: Mapping[str, State], target: str, other: str) -> Check:
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


def _wal_level(source: State, standby: State, primary: str, target: str) -> Check:
    levels = [setting(source, "wal_level"), setting(standby, "wal_level")]
    ranks = [WAL_LEVELS.index(v) if v in WAL_LEVELS else None for v in levels]
    ok = None if ranks[0] is None or ranks[1] is None else ranks[1] >= max(ranks[0], 1)
    return check("wal_level", ok, f"wal_level: {primary} {levels[0] or 'unknown'}, {target} {levels[1] or 'unknown'}")


def _senders_free(state: State, target: str, needed: int, hard: bool = True) -> Check:
    limit, rows = setting_int(state, "max_wal_senders"), state.get("replication")
    if limit is None or rows is None:
        return check("wal_senders", None, f"free WAL senders on {target}: unknown", hard)
    free = limit - len(rows)
    return check("wal_senders", free >= needed, f"{target} has {free} free WAL senders and needs {needed}", hard)


def _slots_free(state: State, target: str, standbys: Iterable[str], prefix: str, hard: bool = True) -> Check:
    limit, slots = setting_int(state, "max_replication_slots"), state.get("slots")
    if limit is None or slots is None:
        return check("replication_slots", None, f"free replication slots on {target}: unknown", hard)
    needed = len({slot_name(prefix, n) for n in standbys} - {str(s.get("name")) for s in slots})
    free = limit - len(slots)
    return check(
        "replication_slots", free >= needed, f"{target} has {free} free replication slots and needs {needed}", hard
    )


def _synchronous(state: State, target: str, standbys: list[str], hard: bool = True) -> Check:
    """What synchronous_standby_names does the second `target` is primary: writes hang until enough of it streams."""
    value = setting(state, "synchronous_standby_names")
    if value is None:
        return check("synchronous", None, f"synchronous_standby_names on {target}: unknown", hard)
    if not value.strip():
        return check("synchronous", True, f"synchronous_standby_names is empty on {target}", hard)
    match = re.fullmatch(r"(?is)\s*(?:(?:FIRST|ANY)\s+)?(\d+)\s*\((.*)\)\s*", value)
    count, text = (int(match[1]), match[2]) if match else (1, value)
    wanted = {n.strip().strip('"').lower() for n in text.split(",")}
    able = [n for n in standbys if "*" in wanted or n.lower() in wanted]
    detail = f"{target} has synchronous_standby_names = '{value}' of its own and "
    if len(able) >= count:
        return check("synchronous", True, detail + f"its writes wait until {listed(able)} streams from it", hard)
    return check("synchronous", False, detail + "its writes would hang: too few of these are standbys of it", hard)


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
    """A demoted node archives no more: what waits there now may never reach the archive."""
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


def _planned_warnings(source: State, standby: State, primary: str, target: str) -> list[Check]:
    """What costs time or a session, and no commit."""
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
        check(
            "archiver",
            None if failing is None else not failing,
            f"the archiver of {primary} {works}",
            hard=False,
        ),
        _plain_logical_slots(source, primary),
        _rewindable(source, primary),
    ]
    for name, state in ((primary, source), (target, standby)):
        waits = state.get("pending_restart")
        words = "unknown" if waits is None else listed(waits)
        found.append(
            check(
                f"pending_restart_{name}",
                None if waits is None else not waits,
                f"waits for a restart of {name}: {words}",
                hard=False,
            )
        )
    idle = setting_int(standby, "idle_replication_slot_timeout")
    if idle:
        detail = f"{target} invalidates slots idle for {idle} s: keep the outage shorter"
        found.append(check("idle_slots", False, detail, hard=False))
    if setting_int(source, "wal_sender_timeout") == 0:
        found.append(
            check("wal_sender_timeout", False, f"it is 0 on {primary}: a hanging standby blocks the stop", hard=False)
        )
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


# -- forced -----------------------------------------------------------------------------------------------------------


def _forced(
    plan: FailoverPlan,
    nodes: Mapping[str, State],
    target: str | None,
    addresses: Mapping[str, Mapping[str, object]],
    confirmed: set[str],
    prefix: str,
) -> None:
    primaries = _role(nodes, "primary")
    if primaries and target == primaries[0]:
        _plan_finish(plan, nodes, primaries[0])
        return
    if primaries:
        raise _Refusal(
            f"{primaries[0]} answers as primary: a forced failover is for a dead one, use -e mode=planned "
            f"(or stop {primaries[0]} first)"
        )
    strangers = sorted(confirmed - set(nodes))
    if strangers:
        raise _Refusal(f"confirm_unfenced names {listed(strangers)}, which is no member ({listed(nodes)})")
    standbys = _role(nodes, "standby")
    best, comparison = _most_wal(nodes, standbys, target)
    chosen = target or best
    if chosen is None or chosen not in standbys:
        plan["checks"].append(comparison)
        if chosen is not None:
            _standby_target(nodes, chosen, None)
        return
    old = _presumed_primary(nodes, chosen, addresses)
    followers = [n for n in standbys if n != chosen]
    loss = _loss(nodes, chosen, old)
    plan.update(
        {
            "target": chosen,
            "old_primary": old,
            "followers": followers,
            "needs_rebuild": _role(nodes, "stopped"),
            "system_identifier": nodes[chosen].get("system_identifier"),
            "loss": loss,
            "reason": f"{chosen} takes over by force; {loss['detail']}",
        }
    )
    state = nodes[chosen]
    plan["checks"] = [
        comparison,
        _stopped_hold_less(nodes, chosen, confirmed),
        *_fenced(nodes, confirmed),
        _silent_sender(nodes, chosen, addresses),
        _nothing_to_save(nodes, chosen, confirmed),
        *_target_checks(state, chosen),
        _senders_free(state, chosen, 1 + len(followers), hard=False),
        _slots_free(state, chosen, [*([old] if old else []), *followers], prefix, hard=False),
        _synchronous(state, chosen, followers, hard=False),
        check("loss", None if loss["bytes"] is None else loss["bytes"] == 0, loss["detail"], hard=False),
    ]
    plan["report"].append(loss["detail"])


def _most_wal(nodes: Mapping[str, State], standbys: list[str], target: str | None) -> tuple[str | None, Check]:
    """The standby that holds most WAL of the newest timeline; equal ones by name, so that the answer is always one."""
    name = "most_wal"
    if not standbys:
        return None, check(name, False, "no standby runs and answers: there is nothing to fail over to")
    unknown = [n for n in standbys if held(nodes[n]) is None or timeline(nodes[n]) is None]
    if unknown:
        return None, check(name, None, f"it is not known how much WAL {listed(unknown)} holds")
    reach = {n: (timeline(nodes[n]) or 0, held(nodes[n]) or 0) for n in standbys}
    top = max(reach.values())
    best = min(n for n in standbys if reach[n] == top)
    if target in reach and reach[target] != top:
        return best, check(
            name,
            False,
            f"{best} holds more than {target} (timeline {top[0]}, {part(nodes[best], 'lsn', 'held')}): "
            f"run failover.yml -e mode=forced -e target={best}",
        )
    chosen = target or best
    return best, check(name, True, f"no other reachable standby holds more WAL than {chosen}")


def _stopped_hold_less(nodes: Mapping[str, State], chosen: str, confirmed: set[str]) -> Check:
    """A stopped standby may hold more than pg_control tells, so less is never proven: only more is.

    A crashed primary of the same timeline holds more, as a rule: that is the loss. One of a newer timeline means that
    the target missed a whole promotion.
    """
    name, mine = "stopped_nodes", (timeline(nodes[chosen]) or 0, held(nodes[chosen]) or 0)
    more, perhaps = [], []
    for other in _role(nodes, "stopped"):
        state = nodes[other]
        reach = (timeline(state) or 0, lsn(part(state, "control", "min_recovery_lsn")) or 0)
        standby = bool(state.get("standby_signal")) and not stopped_cleanly_as_primary(state)
        if (reach > mine if standby else reach[0] > mine[0]) and other not in confirmed:
            more.append(other)
        elif standby or reach[0] == 0:
            perhaps.append(other)
    if more:
        return check(
            name,
            False,
            f"{listed(more)} is stopped and holds more than {chosen}: start it first, or give that up with "
            f"-e confirm_unfenced={','.join(more)}",
        )
    if perhaps:
        return check(name, None, f"{listed(perhaps)} is stopped and may hold more than {chosen}", hard=False)
    return check(name, True, f"no stopped node is known to be ahead of {chosen}", hard=False)


def _fenced(nodes: Mapping[str, State], confirmed: set[str]) -> list[Check]:
    """Every node that cannot be seen may be a primary that takes writes: only the operator's word helps."""
    unknown = _role(nodes, "unknown")
    missing = [n for n in unknown if n not in confirmed]
    found = [
        check(
            f"fenced_{name}",
            None if name in missing else True,
            f"{name} is unknown ({nodes[name].get('reason')}) and may still take writes as primary; make sure that it "
            f"does not, then add -e confirm_unfenced={','.join(unknown)}"
            if name in missing
            else f"{name} is unknown; the operator says that it takes no writes",
        )
        for name in unknown
    ]
    return found or [check("fenced", True, "every node answers and none is primary")]


def _at_address(addresses: Mapping[str, Mapping[str, object]], host: object, port: object) -> list[str]:
    """The members at an address; two nodes may share a host and then differ by port."""
    if not host:
        return []
    there = [n for n in sorted(addresses) if str(host) in (n, str(addresses[n].get("address")))]
    wanted = integer(port)
    return [n for n in there if wanted is None or integer(addresses[n].get("port")) in (None, wanted)]


def _silent_sender(nodes: Mapping[str, State], chosen: str, addresses: Mapping[str, Mapping[str, object]]) -> Check:
    """A primary that cannot be reached from here, but from which the standby has just heard, is alive."""
    state, name = nodes[chosen], "sender_silent"
    if state.get("recovery") in ("archive", "none"):
        return check(name, True, f"{chosen} receives no WAL")
    host, port = part(state, "wal_receiver", "sender_host"), part(state, "wal_receiver", "sender_port")
    senders = _at_address(addresses, host, port)
    if senders and all(n in nodes and nodes[n]["role"] == "standby" for n in senders):
        return check(name, True, f"{chosen} receives WAL from {listed(senders)}, a standby")
    who, silent = listed(senders) if senders else host or "its primary", part(state, "wal_receiver", "silent_seconds")
    if isinstance(silent, bool) or not isinstance(silent, (int, float)):
        return check(name, None, f"it is not known when {chosen} heard from {who} last; repeat in a few seconds")
    heard = f"{chosen} heard from {who} {duration(float(silent))} before it was asked"
    if silent < ALIVE_SECONDS:
        return check(name, False, f"{heard}: it is alive; stop it or, if it died just now, repeat in a few seconds")
    return check(name, True, heard)


def _presumed_primary(
    nodes: Mapping[str, State], chosen: str, addresses: Mapping[str, Mapping[str, object]]
) -> str | None:
    """Who was primary: the node that the target's upstream names, else the only one that it can be."""
    able = [n for n in nodes if nodes[n]["role"] in ("unknown", "stopped")]
    host, port = part(nodes[chosen], "upstream", "host"), part(nodes[chosen], "upstream", "port")
    named = [n for n in _at_address(addresses, host, port) if n in able]
    if len(named) == 1:
        return named[0]
    able = [n for n in able if nodes[n]["role"] == "unknown" or not nodes[n].get("standby_signal")]
    return able[0] if len(able) == 1 else None


def _nothing_to_save(nodes: Mapping[str, State], chosen: str, confirmed: set[str]) -> Check:
    """A primary that stopped cleanly still has everything: force is not what this needs."""
    name, mine, reach = "primary_not_clean", timeline(nodes[chosen]) or 0, held(nodes[chosen])
    # One of an older timeline was replaced long ago. An unknown timeline may be the newest.
    clean = [n for n in nodes if stopped_cleanly_as_primary(nodes[n]) and (timeline(nodes[n]) or mine) >= mine]
    for other in clean:
        at = lsn(part(nodes[other], "control", "checkpoint_lsn"))
        if timeline(nodes[other]) == mine and at is not None and reach is not None and reach > at:
            return check(
                name,
                False,
                f"{other} stopped cleanly and {chosen} holds all of its WAL: "
                f"run failover.yml -e target={chosen} without mode=forced",
            )
        if other not in confirmed:
            return check(
                name,
                False,
                f"{other} stopped cleanly and holds WAL that {chosen} lacks: start it again (nothing is lost), or, "
                f"when it cannot be started, give that WAL up with -e confirm_unfenced={other}",
            )
    return check(name, True, f"what {listed(clean)} holds is given up" if clean else "no primary stopped cleanly")


def _loss(nodes: Mapping[str, State], chosen: str, old: str | None) -> Loss:
    """How much the target lacks of what the old primary wrote, as far as the old one's pg_control can tell."""
    reach = held(nodes[chosen])
    at = lsn(part(nodes[old], "control", "checkpoint_lsn")) if old and nodes[old]["role"] == "stopped" else None
    if old is None or at is None or reach is None:
        detail = "how much is lost is unknown: the end of the old primary's WAL cannot be seen"
        return {"bytes": None, "at_least": None, "detail": detail}
    if timeline(nodes[old]) != timeline(nodes[chosen]):
        detail = f"how much is lost is unknown: {old} is on another timeline"
        return {"bytes": None, "at_least": None, "detail": detail}
    least = max(0, at - reach)
    if stopped_cleanly_as_primary(nodes[old]):
        # The shutdown record itself carries no transaction.
        return {"bytes": least, "at_least": least, "detail": f"{size(least)} of WAL of {old} are given up"}
    seen = f"at least {size(least)} of WAL of {old} are lost, and " if least else ""
    detail = f"{seen}how much {'more ' if least else ''}is lost is unknown: {old} did not stop cleanly"
    return {"bytes": None, "at_least": least, "detail": detail}
