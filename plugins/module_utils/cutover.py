# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether and how the primary may change: decided from the records of all nodes, at once, before anything is touched.

Pure. A plan names the target, the old primary, who must follow, and every check with what was seen (see preflight).
A run that died is continued by the next one: what it left behind shows in the records, never in a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

from .forced import Loss, back_plan, clean_primary, forced_plan
from .preflight import (
    MAX_ARCHIVE_BACKLOG,
    MAX_LAG_BYTES,
    Refusal,
    armed_elsewhere,
    equal,
    follows,
    holds_shutdown,
    is_armed,
    lock_free,
    newest,
    not_waivable,
    planned_checks,
    senders_free,
    slots_free,
    standby_target,
    synchronous,
    target_checks,
    timelines_equal,
    waived,
)
from .records import (
    CONTRADICTIONS,
    Check,
    State,
    Topology,
    can_follow,
    check,
    describe,
    has_data,
    held,
    joined,
    listed,
    member_states,
    part,
    refused,
    row_of,
    size,
    slot_name,
    stopped_cleanly_as_primary,
    timeline,
)
from .wal import format_lsn

Addresses = Mapping[str, Mapping[str, object]]


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
    collect: bool
    disarm: list[str]
    fence: list[str]
    stonith: list[str]
    needs_confirm: list[str]
    needs_rebuild: list[str]
    unreachable: list[str]
    require_lsn: str | None
    require_timeline: int | None
    system_identifier: str | None
    loss: Loss | None
    checks: list[Check]
    report: list[str]


def failover_plan(
    seen: Topology,
    target: str | None = None,
    mode: str = "planned",
    members: Mapping[str, Mapping[str, object]] | Iterable[str] | None = None,
    confirm_unfenced: str | Iterable[str] | None = None,
    max_lag_bytes: int = MAX_LAG_BYTES,
    max_archive_backlog: int = MAX_ARCHIVE_BACKLOG,
    slot_prefix: str = "hotspare_",
    allow: str | Iterable[str] | None = None,
    has_fence_command: bool = False,
    run: Mapping[str, object] | None = None,
    take_over: str | None = None,
) -> FailoverPlan:
    """Plan a planned (switchover) or forced cutover to `target`; without a target, to the only other node.

    `members` {name: {address, port}} tells which node a standby's upstream is. `confirm_unfenced` names the nodes
    of which the operator knows by other means that they take no writes, `allow` the checks (by code or name) that he
    waives; both are lists, or texts with commas. `run` is what lock.this_run() says, `take_over` the owner whose lock
    is given up.

    resume: None = a whole cutover (also when a former run has prepared the primary or armed the target already).
    `promote` = nobody is primary; only the promotion, with require_lsn and require_timeline, and what follows is left:
    the old primary is stopped cleanly or, when old_primary is None, runs as a standby and is among the followers.
    `finish` = the target is primary already; old_primary and followers have to be attached, and those in `disarm`
    disarmed (nothing_to_do when all is so). With `collect` it promoted itself, armed by a run that died: all that comes
    after a promotion is to be done yet, with require_lsn where the old primary stands as it was stopped.
    `back` = what a run began cannot, or shall not, go on: disarm those in `disarm`, then make `target` (= old_primary,
    running or stopped) the primary that it was, undoing its preparation. Also forced, with a target that stopped
    cleanly as the primary: the standby died in a cutover.

    Forced: those in `disarm` are disarmed, then those in `fence` are reached and fenced, and for those in `stonith` the
    fence command is run; needs_confirm are those that the operator has to name. One whose old primary proves to be
    stopped cleanly, with all of its WAL here, becomes a planned `promote`. needs_rebuild: for rebuild_standby.yml.
    """
    addresses = {n: dict(v) for n, v in members.items()} if isinstance(members, Mapping) else {}
    nodes = member_states(seen, members)
    confirmed, allowed = _names(confirm_unfenced), _names(allow)
    plan: FailoverPlan = {
        "ok": False,
        "reason": "",
        "mode": mode,
        "target": None,
        "old_primary": None,
        "followers": [],
        "resume": None,
        "nothing_to_do": False,
        "collect": False,
        "disarm": [],
        "fence": [],
        "stonith": [],
        "needs_confirm": [],
        "needs_rebuild": [],
        "unreachable": _role(nodes, "unknown"),
        "require_lsn": None,
        "require_timeline": None,
        "system_identifier": None,
        "loss": None,
        "checks": [],
        "report": [describe(state) for state in nodes.values()],
    }
    try:
        _refuse_nonsense(seen, nodes, target or None, mode, allowed)
        token, dead = (run or {}).get("token"), (run or {}).get("dead")
        plan["checks"].append(
            lock_free(nodes, str(token or ""), dead if isinstance(dead, list) else [], str(take_over or ""))
        )
        if mode == "planned":
            _planned(plan, nodes, target or None, addresses, max_lag_bytes, max_archive_backlog, slot_prefix)
        else:
            _forced(plan, nodes, target or None, addresses, confirmed, has_fence_command, slot_prefix)
    except Refusal as refusal:
        plan["checks"].append(check("situation", False, str(refusal)))
    plan["checks"] = waived(plan["checks"], allowed, nodes)
    bad = refused(plan["checks"])
    plan["ok"] = not bad
    if bad:
        plan.update({"reason": joined(c["detail"] for c in bad), "resume": None, "nothing_to_do": False})
        plan.update({"collect": False, "disarm": [], "fence": []})
    return plan


def _names(given: str | Iterable[str] | None) -> set[str]:
    """Names from a list or a text; JSON's brackets and quotes around them are no part of a name."""
    parts = given.split(",") if isinstance(given, str) else given or ()
    return {name for name in (str(p).strip(" \t\n[]\"'") for p in parts) if name}


def _refuse_nonsense(
    seen: Topology, nodes: Mapping[str, State], target: str | None, mode: str, allowed: set[str]
) -> None:
    if mode not in ("planned", "forced"):
        raise Refusal(f"mode is planned or forced, not {mode}")
    if target is not None and target not in nodes:
        raise Refusal(f"target {target} is not a member of the cluster ({listed(nodes)})")
    useless = not_waivable(allowed, nodes)
    if useless:
        raise Refusal(joined(useless))
    found = [p for p in seen["problems"] if p["severity"] == "error" and p["code"] in CONTRADICTIONS]
    if found:
        raise Refusal(joined(f"{p['node']}: {p['detail']}" if p["node"] else p["detail"] for p in found))
    blind = [n for n, s in nodes.items() if s["role"] != "unknown" and has_data(s) and not s.get("system_identifier")]
    if blind:
        raise Refusal(f"the system identifier of {listed(blind)} could not be read")


def _role(nodes: Mapping[str, State], role: str) -> list[str]:
    return [n for n in nodes if nodes[n]["role"] == role]


# -- planned ----------------------------------------------------------------------------------------------------------


def _planned(
    plan: FailoverPlan,
    nodes: Mapping[str, State],
    target: str | None,
    addresses: Addresses,
    max_lag: int,
    max_backlog: int,
    prefix: str,
) -> None:
    unknown, primaries = plan["unreachable"], _role(nodes, "primary")
    prepared = [n for n in primaries if nodes[n].get("standby_signal")]
    # To leave a running primary what it is takes nobody else.
    if unknown and not (prepared and target == primaries[0]):
        why = joined(f"{n} is unknown ({nodes[n].get('reason')})" for n in unknown)
        raise Refusal(f"{why}; a planned cutover needs an answer from every node{_way_on(nodes, unknown, prepared)}")
    if not primaries:
        _without_primary(plan, nodes, target, addresses, prefix)
        return
    primary = primaries[0]
    if target == primary or (target is None and _interrupted_after_promotion(nodes, primary)):
        _plan_finish(plan, nodes, primary, prefix)
        return
    chosen = standby_target(nodes, target, primary)
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
    plan["checks"] += [
        armed_elsewhere(nodes, chosen),
        *planned_checks(nodes, primary, chosen, plan["followers"], max_lag, max_backlog, prefix),
    ]
    if nodes[primary].get("standby_signal"):
        plan["report"].append(f"{primary} was prepared to become a standby by a run that did not end: it goes on")


def _way_on(nodes: Mapping[str, State], unknown: list[str], prepared: list[str]) -> str:
    """What to type where a node is gone for good, by what the others are."""
    if prepared:
        return f": to leave {prepared[0]} the primary, run failover.yml -e target={prepared[0]}"
    if _role(nodes, "primary"):
        return ""
    last = [n for n in _role(nodes, "stopped") if stopped_cleanly_as_primary(nodes[n])]
    if len(last) == 1 and not _role(nodes, "standby"):
        return (
            f": if {listed(unknown)} is dead, make {last[0]} the primary again: failover.yml -e mode=forced "
            f"-e target={last[0]} -e confirm_unfenced={','.join(unknown)}"
        )
    return ": if the primary is dead, run failover.yml -e mode=forced"


def _interrupted_after_promotion(nodes: Mapping[str, State], primary: str) -> bool:
    """Whether a cutover to `primary` has not attached the others yet, so that it is not to be turned round.

    Without a target only this tells: the only other node is the cleanly stopped former primary of an older timeline,
    or the primary has promoted itself since its boot, and no run has seen that yet or one that runs does not stream
    from it.
    """
    others = [n for n, s in nodes.items() if n != primary and s["role"] != "absent"]
    if len(others) == 1 and _former_primary(nodes[others[0]], nodes[primary]):
        return True
    if _uncollected(nodes[primary]):
        return True
    promoted = part(nodes[primary], "armed", "state") == "promoted"
    return promoted and any(nodes[n]["role"] == "standby" and not _attached(nodes, primary, n) for n in others)


def _uncollected(state: State) -> bool:
    """Whether a primary promoted itself on its proof and the run that had armed it never came to see that."""
    return part(state, "armed", "state") == "promoted" and part(state, "armed", "collected") is False


def _former_primary(state: State, primary: State) -> bool:
    own, theirs = timeline(state), timeline(primary)
    return stopped_cleanly_as_primary(state) and own is not None and theirs is not None and own < theirs


# -- continued --------------------------------------------------------------------------------------------------------


def _plan_finish(
    plan: FailoverPlan, nodes: Mapping[str, State], primary: str, prefix: str, confirmed: Iterable[str] = ()
) -> None:
    """The target is primary already: what is left is to attach the others."""
    if nodes[primary].get("standby_signal"):
        # A run to another target died before the stop, and this one wants none of it.
        _plan_back(plan, nodes, primary, f"{primary} stays the primary, what a cutover away from it began is undone")
        plan["checks"].append(_no_stranger_armed(nodes, primary, set(plan["unreachable"]) - set(confirmed), prefix))
        return
    stopped = _role(nodes, "stopped")
    returning = [n for n in stopped if _former_primary(nodes[n], nodes[primary])]
    # A demoted node that was started once as a standby and stopped again says so in pg_control.
    returning += [n for n in stopped if n not in returning and _was_standby(nodes[n], nodes[primary])]
    old = returning[0] if returning else None
    standbys = _role(nodes, "standby")
    attached = [n for n in standbys if _attached(nodes, primary, n)]
    armed = _armed(nodes, primary)
    collect = _uncollected(nodes[primary])
    if collect:
        plan["mode"] = "planned"  # there is proof, however this run was called
        if old and _former_primary(nodes[old], nodes[primary]):
            plan["require_lsn"] = part(nodes[old], "control", "checkpoint_lsn")
    plan.update(
        {
            "target": primary,
            "old_primary": old,
            "followers": standbys,
            "resume": "finish",
            "disarm": armed,
            "needs_rebuild": [n for n in stopped if n != old],
            "system_identifier": nodes[primary].get("system_identifier"),
            "nothing_to_do": not old and not armed and not collect and attached == standbys,
            "collect": collect,
            "reason": f"{primary} is the primary already" + (", what comes after it is left" if collect else ""),
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


def _armed(nodes: Mapping[str, State], but: str) -> list[str]:
    return [n for n in nodes if n != but and is_armed(nodes[n])]


def _no_stranger_armed(nodes: Mapping[str, State], primary: str, unknown: Iterable[str], prefix: str) -> Check:
    """An armed standby promotes itself at the end of the stream that it was armed for, and never on a later one.

    So one that cannot be asked may be armed as long as it streams: with the preparation undone, a restart of the
    primary would then make two.
    """
    name, asked = "armed_elsewhere", sorted(unknown)
    if not asked:
        return check(name, True, "every other node can be disarmed, or is named as dead")
    if nodes[primary].get("replication") is None:
        return check(name, None, f"it is not known whether {listed(asked)} streams from {primary} and may be armed")
    streams = [n for n in asked if row_of(nodes[primary], nodes[n], slot_name(prefix, n))]
    if not streams:
        return check(name, True, f"{listed(asked)} does not stream from {primary}, so it is not armed")
    return check(
        name,
        False,
        f"{listed(streams)} cannot be asked and streams from {primary}, so it may be armed: mend the way to it, or, "
        f"when failover_arm_timeout is over, add -e mode=forced -e confirm_unfenced={','.join(streams)}",
    )


def _plan_back(plan: FailoverPlan, nodes: Mapping[str, State], old: str, reason: str) -> None:
    plan.update(
        {
            "target": old,
            "old_primary": old,
            "followers": _role(nodes, "standby"),
            "resume": "back",
            "disarm": _armed(nodes, old),
            "needs_rebuild": [n for n in _role(nodes, "stopped") if n != old],
            "system_identifier": nodes[old].get("system_identifier"),
            "reason": reason,
        }
    )


def _without_primary(
    plan: FailoverPlan, nodes: Mapping[str, State], target: str | None, addresses: Addresses, prefix: str
) -> None:
    """Nobody is primary: a run died behind the stop, or somebody stopped the primary, or it crashed."""
    if not any(has_data(state) for state in nodes.values()):
        raise Refusal("no node holds data: build the cluster with site.yml first")
    last = [n for n in _role(nodes, "stopped") if _prepared(nodes, n, addresses)]
    if len(last) == 1 and (target == last[0] or not stopped_cleanly_as_primary(nodes[last[0]])):
        how = "stopped" if stopped_cleanly_as_primary(nodes[last[0]]) else "did not stop cleanly"
        _plan_back(plan, nodes, last[0], f"{last[0]} {how} in a cutover that did not end and is the primary again")
        plan["checks"].append(newest(nodes, last[0]))
        return
    swapped = _restarted_as_standby(nodes, target, addresses)
    if swapped:
        _plan_all_standbys(plan, nodes, *swapped, prefix)
        return
    if target and stopped_cleanly_as_primary(nodes[target]):
        raise Refusal(f"target {target} is the primary, and stopped: start PostgreSQL there, that is all")
    stopped = [n for n in _role(nodes, "stopped") if n != target]
    clean = [n for n in stopped if stopped_cleanly_as_primary(nodes[n])]
    if len(clean) != 1:
        what = f"{listed(clean)} stopped cleanly as primaries" if clean else "no node stopped cleanly as the primary"
        raise Refusal(
            f"nobody is primary and {what}: start the node that was primary last, or, when it is lost, "
            "run failover.yml -e mode=forced"
        )
    old = clean[0]
    chosen = standby_target(nodes, target, old)
    held_all = holds_shutdown(nodes, old, chosen)
    if held_all["ok"] is False and old in last:
        _plan_back(plan, nodes, old, f"{chosen} lacks the end of {old}, which is the primary again: nothing is lost")
        plan["checks"].append(newest(nodes, old))
        return
    _plan_promote(plan, nodes, old, chosen, prefix)


def _prepared(nodes: Mapping[str, State], name: str, addresses: Addresses) -> bool:
    """Whether a stopped node was the primary and a cutover had told it to come back as a standby.

    pg_control still says that it ran, or stopped, as a primary. A crash of a standby shows otherwise.
    """
    state = nodes[name]
    was_primary = part(state, "control", "state") in ("shut down", "shutting down", "in production")
    return bool(state.get("standby_signal")) and was_primary and follows(state, addresses) in _role(nodes, "standby")


def _restarted_as_standby(
    nodes: Mapping[str, State], target: str | None, addresses: Addresses
) -> tuple[str, str] | None:
    """The target and the old primary, which a cutover had prepared and which was restarted: now both are standbys.

    Proof: of two running standbys each is told to follow the other, and nobody else holds data that could be newer.
    """
    standbys = _role(nodes, "standby")
    if any(s["role"] not in ("standby", "absent") for s in nodes.values()):
        return None
    pairs = [
        (one, two)
        for one in standbys
        for two in standbys
        if one != two and follows(nodes[one], addresses) == two and follows(nodes[two], addresses) == one
    ]
    if target is not None:
        return next((pair for pair in pairs if pair[0] == target), None)
    # Which of the two was the primary is open, and no matter: the one that holds more can be promoted.
    return max(pairs, key=lambda pair: (held(nodes[pair[0]]) or 0, bool(nodes[pair[0]].get("armed"))), default=None)


def _plan_all_standbys(plan: FailoverPlan, nodes: Mapping[str, State], chosen: str, other: str, prefix: str) -> None:
    others = [n for n in _role(nodes, "standby") if n != chosen]
    reaches = {n: held(nodes[n]) for n in [chosen, *others]}
    # The receiver is asked for WAL only when all that lies in pg_wal is replayed: before that `held` is no end.
    blind = [n for n in reaches if reaches[n] is None or not part(nodes[n], "lsn", "receive")]
    mine = reaches[chosen]
    most = max((r for r in reaches.values() if r is not None), default=0)
    name = "most_wal"
    if blind or mine is None:
        reach = check(name, None, f"it is not known how much WAL {listed(blind)} holds; repeat in a few seconds")
    elif mine < most:
        best = min(n for n in reaches if reaches[n] == most)
        detail = f"{best} holds {size(most - mine)} more than {chosen}: run failover.yml -e target={best}"
        reach = check(name, False, detail)
    else:
        reach = check(name, True, f"no node holds more WAL than {chosen}")
    plan.update(
        {
            "target": chosen,
            "old_primary": None,
            "followers": others,
            "resume": "promote",
            # At least as much as anybody: the promotion wants to be strictly past this.
            "require_lsn": format_lsn(most - 1) if most else None,
            "require_timeline": timeline(nodes[chosen]),
            "system_identifier": nodes[chosen].get("system_identifier"),
            "reason": f"{other} was restarted as a standby in a cutover that did not end, {chosen} holds all its WAL",
        }
    )
    plan["checks"] += [
        armed_elsewhere(nodes, chosen),
        reach,
        *[timelines_equal(nodes, chosen, n) for n in others],
        *_promotable(nodes, chosen, others, prefix),
    ]


def _plan_promote(plan: FailoverPlan, nodes: Mapping[str, State], old: str, chosen: str, prefix: str) -> None:
    """The old primary is stopped cleanly: what is left is to promote, with the proof that nothing is lost."""
    followers = [n for n in _role(nodes, "standby") if n != chosen]
    plan.update(
        {
            "mode": "planned",
            "target": chosen,
            "old_primary": old,
            "followers": followers,
            "resume": "promote",
            "require_lsn": part(nodes[old], "control", "checkpoint_lsn"),
            "require_timeline": timeline(nodes[old]),
            "system_identifier": nodes[chosen].get("system_identifier"),
            "needs_rebuild": [n for n in _role(nodes, "stopped") if n != old],
            "reason": f"{old} is stopped cleanly, {chosen} holds all of its WAL",
        }
    )
    plan["checks"] += [
        armed_elsewhere(nodes, chosen),
        equal("system_identifier", nodes, old, chosen),
        equal("major_version", nodes, old, chosen),
        timelines_equal(nodes, old, chosen),
        holds_shutdown(nodes, old, chosen),
        *_promotable(nodes, chosen, [old, *followers], prefix),
    ]


def _promotable(nodes: Mapping[str, State], chosen: str, others: list[str], prefix: str) -> list[Check]:
    return [
        *target_checks(nodes[chosen], chosen),
        synchronous(nodes[chosen], chosen, others),
        senders_free(nodes[chosen], chosen, len(others)),
        slots_free(nodes[chosen], chosen, others, prefix),
    ]


# -- forced -----------------------------------------------------------------------------------------------------------


def _forced(
    plan: FailoverPlan,
    nodes: Mapping[str, State],
    target: str | None,
    addresses: Addresses,
    confirmed: set[str],
    has_fence_command: bool,
    prefix: str,
) -> None:
    primaries = _role(nodes, "primary")
    if primaries and (target == primaries[0] or (target is None and _interrupted_after_promotion(nodes, primaries[0]))):
        _plan_finish(plan, nodes, primaries[0], prefix, confirmed)
        return
    if primaries:
        raise Refusal(
            f"{primaries[0]} answers as primary: a forced failover is for a dead one, use -e mode=planned "
            f"(or stop {primaries[0]} first)"
        )
    strangers = sorted(confirmed - set(nodes))
    if strangers:
        raise Refusal(f"confirm_unfenced names {listed(strangers)}, which is no member ({listed(nodes)})")
    if target is not None and stopped_cleanly_as_primary(nodes[target]):
        decided = back_plan(nodes, target, addresses, confirmed)
    else:
        decided = forced_plan(nodes, target, addresses, confirmed, has_fence_command, prefix)
    chosen = decided.get("target")
    if chosen is not None and decided.get("resume") is None and not plan["unreachable"]:
        old = clean_primary(nodes, chosen)
        if old is not None:
            # The fence itself, or somebody before, has stopped it cleanly: then there is proof, and nothing is lost.
            _plan_promote(plan, nodes, old, chosen, prefix)
            return
    checks, report = decided.pop("checks"), decided.pop("report", [])
    plan.update(decided)  # type: ignore[typeddict-item]
    plan["checks"] += checks
    plan["report"] += report
