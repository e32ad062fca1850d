# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many nodes: who is what, what is wrong, and what may be done about it. Pure: records in, records out.

The inventory says who belongs to the cluster; who is primary is only ever read from the nodes' own answers.
A node that is unknown may be the primary: it is never taken for absent or empty, and no plan that would then be
dangerous is ok. The order of the nodes changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, TypedDict

from .records import (
    CONTRADICTIONS,
    STANDBY_PARAMETERS,
    Check,
    Problem,
    State,
    Topology,
    can_follow,
    check,
    describe,
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
    sender_of,
    setting_int,
    slot_name,
    state_of,
    stopped_cleanly_as_primary,
    timeline,
)

__all__ = ["rebuild_plan", "safe_parameters", "site_plan", "slot_name", "topology"]

SEVERITIES = ("error", "warning", "info")
# Problems that leave open which data a node holds.
UNCERTAIN = frozenset(("unknown", "identity_unknown"))
# initdb writes 1-2 MB of WAL and uses some 730 transaction ids; a cluster below both bounds never served anybody.
NEVER_USED_WAL = 16 * 1024 * 1024
NEVER_USED_XIDS = 1000


class SitePlan(TypedDict):
    """What site.yml may do. All lists are empty and nothing may be touched unless ok."""

    ok: bool
    reason: str
    primary: str | None
    bootstrap: bool
    start_primary: bool
    seed: list[str]
    start: list[str]
    configure: list[str]
    report: list[str]


class RebuildPlan(TypedDict):
    """Whether `node` may be rebuilt as a standby of `primary`."""

    ok: bool
    reason: str
    node: str
    primary: str | None
    system_identifier: str | None
    checks: list[Check]
    report: list[str]


class HeldBack(TypedDict):
    """A parameter that cannot have its wanted value yet. kept None: leave the configuration as it is."""

    wanted: int
    kept: int | None
    reason: str


class SafeParameters(TypedDict):
    """Values for one node that no standby refuses to start with."""

    node_values: dict[str, int]
    held_back: dict[str, HeldBack]


# -- who is what ------------------------------------------------------------------------------------------------------


def topology(
    answers: Mapping[str, object],
    expected_version: int | str | None = None,
    members: Iterable[str] | None = None,
    slot_prefix: str = "hotspare_",
) -> Topology:
    """See all nodes together.

    `answers` has for each node what Ansible registered (see records.state_of); a member without an answer is unknown.
    `expected_version` is the major version that the inventory wants. verdict: healthy (one primary, all others stream
    from the cluster), degraded (one primary, something is missing or wrong), empty (every node answered, none holds
    data), no_primary (data, but nobody is primary), contradictory, unknown. `safe`: it is proven who the primary is,
    or that there is no data at all.
    """
    names = sorted(set(answers) | set(members or ()))
    nodes = {name: state_of(name, answers.get(name)) for name in names}
    by_role = {
        role: [n for n in names if nodes[n]["role"] == role]
        for role in ("primary", "standby", "stopped", "absent", "unknown")
    }
    primaries = by_role["primary"]
    primary = primaries[0] if len(primaries) == 1 else None
    version = integer(expected_version)
    problems = _problems(nodes, primary, primaries, version, slot_prefix)
    verdict = _verdict(nodes, primary, problems)
    identities = {s.get("system_identifier") for s in nodes.values() if has_data(s)}
    versions = {s.get("major_version") for s in nodes.values() if has_data(s)}
    return {
        "nodes": nodes,
        "primary": primary,
        "primaries": primaries,
        "standbys": by_role["standby"],
        "stopped": by_role["stopped"],
        "absent": by_role["absent"],
        "unknown": by_role["unknown"],
        "system_identifier": identities.pop() if len(identities) == 1 else None,
        "timeline": timeline(nodes[primary]) if primary else None,
        "major_version": versions.pop() if len(versions) == 1 else None,
        "expected_version": version,
        "problems": problems,
        "safe": verdict in ("healthy", "degraded", "empty"),
        "verdict": verdict,
        "report": [describe(nodes[name]) for name in names],
    }


def _verdict(nodes: Mapping[str, State], primary: str | None, problems: Iterable[Problem]) -> str:
    codes = {p["code"] for p in problems if p["severity"] == "error"}
    if codes & CONTRADICTIONS:
        return "contradictory"
    if codes & UNCERTAIN or not nodes:
        return "unknown"
    if primary is None:
        return "no_primary" if any(has_data(s) for s in nodes.values()) else "empty"
    # A primary that its next start makes a standby is no whole cluster either.
    whole = all(
        not s.get("standby_signal") if s["role"] == "primary" else s.get("recovery") == "streaming"
        for s in nodes.values()
    )
    return "healthy" if whole and not codes else "degraded"


def _problem(code: str, node: str | None, detail: str, severity: str = "error") -> Problem:
    return {"code": code, "severity": severity, "node": node, "detail": detail}


def _problems(
    nodes: Mapping[str, State],
    primary: str | None,
    primaries: list[str],
    version: int | None,
    slot_prefix: str,
) -> list[Problem]:
    found: list[Problem] = []
    for name, state in nodes.items():
        theirs = state.get("problems") or []
        own = [_problem(str(p.get("code")), name, str(p.get("detail")), _severity(p)) for p in theirs]
        ours = _node_problems(name, state, version)
        if primary and name != primary:
            ours += _relation_problems(nodes, primary, name)
        codes = {p["code"] for p in ours}
        found += ours + [p for p in own if p["code"] not in codes]
    found += _cluster_problems(nodes, primaries, slot_prefix)
    return sorted(found, key=lambda p: (SEVERITIES.index(p["severity"]), p["node"] or "", p["code"], p["detail"]))


def _severity(problem: Mapping[str, Any]) -> str:
    given = problem.get("severity")
    return str(given) if given in SEVERITIES else "error"


def _node_problems(name: str, state: State, version: int | None) -> list[Problem]:
    """What is wrong with one node whatever the others are."""
    found: list[Problem] = []
    if state["role"] == "unknown":
        code = "foreign_data" if state.get("data") == "foreign" else "unknown"
        found.append(_problem(code, name, str(state.get("reason"))))
    if has_data(state):
        missing = [k for k in ("system_identifier", "major_version") if not state.get(k)]
        if state["role"] == "primary" and timeline(state) is None:
            missing.append("timeline")
        if state["role"] != "unknown" and missing:
            words = listed(missing).replace("_", " ")
            found.append(_problem("identity_unknown", name, f"its {words} could not be read"))
        held_version = state.get("major_version")
        if version and held_version and held_version != version:
            found.append(
                _problem(
                    "major_version",
                    name,
                    f"it holds data of PostgreSQL {held_version}, the inventory wants {version}: "
                    "correct node_version (this collection upgrades nothing)",
                )
            )
    if has_data(state) and state.get("recovery_signal") and state.get("standby_signal") is not True:
        found.append(
            _problem(
                "point_in_time_recovery",
                name,
                "it has recovery.signal: when that recovery ends it is a second primary; finish or remove it first",
            )
        )
    return found


def _relation_problems(nodes: Mapping[str, State], primary: str, name: str) -> list[Problem]:
    """What is wrong with one node beside the only primary."""
    state, source = nodes[name], nodes[primary]
    own, theirs = timeline(state), timeline(source)
    if state["role"] == "absent":
        return [_problem("absent", name, "it holds no data yet: site.yml seeds it", "warning")]
    if state["role"] == "stopped":
        how = "a former primary, stopped" if state.get("standby_signal") is False else "stopped"
        found = [_problem("stopped", name, how)]
    elif state["role"] == "standby":
        found = _standby_problems(nodes, primary, name)
    else:
        return []
    if own and theirs and own > theirs:
        found.append(
            _problem(
                "timeline_ahead",
                name,
                f"it has been on timeline {own}, {primary} runs as primary on timeline {theirs}: "
                f"{primary} is probably a former primary that came back",
            )
        )
    return found


def _standby_problems(nodes: Mapping[str, State], primary: str, name: str) -> list[Problem]:
    state = nodes[name]
    found = []
    if state.get("recovery") != "streaming":
        known = {"archive": "reads only the archive", "none": "receives no WAL"}
        how = known.get(str(state.get("recovery")), "may or may not stream: that is unknown")
        found.append(_problem("not_streaming", name, f"it {how}; its log says why"))
        reach, written = held(state), held(nodes[primary])
        if timeline(state) == timeline(nodes[primary]) and reach and written and reach > written:
            found.append(
                _problem("ahead", name, f"it holds more WAL than {primary} has written: they are not one history")
            )
    elif sender_of(nodes, name) is None:
        found.append(_problem("sender_unknown", name, "it streams, but from none of these nodes"))
    elif timeline(state) != timeline(nodes[primary]):
        found.append(_problem("timeline", name, f"it is on timeline {timeline(state) or 'unknown'}, {primary} is not"))
    return found


def _cluster_problems(nodes: Mapping[str, State], primaries: list[str], slot_prefix: str) -> list[Problem]:
    """What is wrong between nodes."""
    found: list[Problem] = []
    if len(primaries) > 1:
        found.append(_problem("two_primaries", None, f"{listed(primaries)} all run as primary; stop the wrong one"))
    for key, words in (("system_identifier", "system identifiers"), ("major_version", "major versions")):
        values = {n: s.get(key) for n, s in nodes.items() if has_data(s) and s.get(key)}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{n} {v}" for n, v in values.items())
            found.append(_problem(key, None, f"the nodes hold data of different {words} ({shown}): not one cluster"))
    for (one, first), (two, second) in combinations(nodes.items(), 2):
        if _same_server(first, second):
            found.append(
                _problem(
                    "same_server",
                    None,
                    f"{one} and {two} have one machine id and one data directory ({first.get('data_directory')}): the "
                    "inventory names one server twice, or the machines are clones and need their own /etc/machine-id",
                )
            )
        if slot_name(slot_prefix, one) == slot_name(slot_prefix, two):
            found.append(
                _problem(
                    "slot_collision",
                    None,
                    f"{one} and {two} would share the slot {slot_name(slot_prefix, one)}: rename one of them",
                )
            )
    return found


def _same_server(first: State, second: State) -> bool:
    """Whether two records show one server. One server cannot have two roles, nor two boots of its machine."""
    if first.get("role") != second.get("role") or first.get("role") == "unknown":
        return False
    traits = [(s.get("boot_id"), part(s, "wal_receiver", "pid")) for s in (first, second)]
    if any(a and b and a != b for a, b in zip(*traits)):
        return False
    return _same_place(first, second) is True


def _same_place(first: State, second: State) -> bool | None:
    """Whether two nodes are one directory of one machine; None when that is not known."""
    directories = first.get("data_directory"), second.get("data_directory")
    machines = first.get("machine_id"), second.get("machine_id")
    if all(directories) and directories[0] != directories[1]:
        return False
    if all(machines) and machines[0] != machines[1]:
        return False
    return True if all(directories) and all(machines) else None


# -- site.yml ---------------------------------------------------------------------------------------------------------


def site_plan(seen: Topology, bootstrap_primary: str | None, members: Iterable[str]) -> SitePlan:
    """What site.yml may do: whom to seed, whom to start, or why nothing may be touched.

    `bootstrap_primary` is looked at only when every member answered and none holds data. `start_primary` means: the
    primary was made by initdb and never used (a first run died before its start), start it as primary. Nodes in
    `seed` get a base backup (an interrupted one counts as none), nodes in `start` are stopped standbys that can follow.
    """
    names = sorted(set(members))
    nodes = member_states(seen, names)
    plan: SitePlan = {
        "ok": False,
        "reason": "",
        "primary": None,
        "bootstrap": False,
        "start_primary": False,
        "seed": [],
        "start": [],
        "configure": [],
        "report": [describe(state) for state in nodes.values()],
    }
    refusals = _contradictions(seen) + _doubts(seen, nodes)
    if not names:
        refusals.append("the cluster has no members: check cluster_group and the inventory")
    if not refusals:
        if seen["primary"]:
            refusals = _plan_beside_primary(plan, nodes, seen["primary"])
        elif any(has_data(s) for s in nodes.values()):
            refusals = _plan_without_primary(plan, nodes, names)
        else:
            refusals = _plan_bootstrap(plan, nodes, bootstrap_primary, names)
    if refusals:
        plan.update(
            {
                "primary": None,
                "bootstrap": False,
                "start_primary": False,
                "seed": [],
                "start": [],
                "reason": joined(refusals),
            }
        )
        return plan
    plan.update({"ok": True, "configure": names})
    return plan


def _contradictions(seen: Topology, but: str | None = None) -> list[str]:
    return [
        f"{p['node']}: {p['detail']}" if p["node"] else p["detail"]
        for p in seen["problems"]
        if p["severity"] == "error" and p["code"] in CONTRADICTIONS and (but is None or p["node"] != but)
    ]


def _doubts(seen: Topology, nodes: Mapping[str, State]) -> list[str]:
    """Sentences about what is not known and must be, before anything is changed."""
    found = [
        f"{name} is unknown ({state.get('reason')}) and may be the primary"
        for name, state in nodes.items()
        if state["role"] == "unknown"
    ]
    found += [f"{p['node']}: {p['detail']}" for p in seen["problems"] if p["code"] == "identity_unknown"]
    return found


def _plan_beside_primary(plan: SitePlan, nodes: Mapping[str, State], primary: str) -> list[str]:
    refusals = []
    for name, state in nodes.items():
        if name == primary:
            continue
        if state["role"] == "absent":
            plan["seed"].append(name)
        elif state["role"] == "stopped":
            refusal = _start_refusal(name, state, nodes[primary], primary)
            if refusal:
                refusals.append(refusal)
            else:
                plan["start"].append(name)
        elif state["role"] == "standby" and state.get("recovery") != "streaming":
            refusals += _diverged(name, state, nodes[primary], primary)
    plan.update({"primary": primary, "reason": f"{primary} is the primary"})
    return refusals


def _rebuild_words(name: str) -> str:
    return f"rebuild_standby.yml -e node={name} -e confirm={name}"


def _start_refusal(name: str, state: State, source: State, primary: str) -> str | None:
    """Why a stopped node must not simply be started beside `primary`, or None."""
    run = f"to make it a standby of {primary} run {_rebuild_words(name)}"
    signal = state.get("standby_signal")
    if signal is None:
        return f"{name} is stopped and it is not known whether it has standby.signal"
    if not signal:
        return f"{name} is stopped and would start as a second primary (no standby.signal); {run}"
    follows = can_follow(state, source)
    if follows is None:
        return f"{name} is a stopped standby and cannot be proven to share the history of {primary}; {run}"
    if not follows:
        return f"{name} is a stopped standby that left the history of {primary}; {run}"
    return None


def _diverged(name: str, state: State, source: State, primary: str) -> list[str]:
    """A running standby that does not stream and provably never will: starting, waiting and hoping would be a lie."""
    own, theirs, reach, written = timeline(state), timeline(source), held(state), held(source)
    if own is None or theirs is None or reach is None or written is None or own > theirs:
        return []
    limit: int | None = written
    if own < theirs:
        limit = next((lsn(h.get("switch_lsn")) for h in source.get("history") or [] if h.get("timeline") == own), None)
    if limit is None or reach <= limit:
        return []
    return [
        f"{name} is a standby that left the history of {primary} (it holds WAL up to {part(state, 'lsn', 'held')} "
        f"of timeline {own}); run {_rebuild_words(name)}"
    ]


def _never_used(state: State) -> bool:
    """Whether pg_control shows a cluster as initdb made it: stopped cleanly, first segments of timeline 1."""
    at = lsn(part(state, "control", "checkpoint_lsn"))
    segment = integer(part(state, "control", "wal_segment_size"))
    xid = integer(str(part(state, "control", "next_xid") or "").rpartition(":")[2])
    return (
        stopped_cleanly_as_primary(state)
        and state.get("standby_signal") is False
        and timeline(state) == 1
        and at is not None
        and segment is not None
        and at < segment + NEVER_USED_WAL
        and xid is not None
        and xid < NEVER_USED_XIDS
    )


def _plan_without_primary(plan: SitePlan, nodes: Mapping[str, State], names: list[str]) -> list[str]:
    holders = [n for n in nodes if has_data(nodes[n])]
    sole = holders[0]
    leftovers = [n for n in nodes if n != sole and nodes[n].get("rebuild")]
    if holders == [sole] and sole in names and not leftovers and _never_used(nodes[sole]):
        plan.update(
            {
                "primary": sole,
                "start_primary": True,
                "seed": [n for n in names if n != sole],
                "reason": f"{sole} was initialised and never used: it is started as the primary",
            }
        )
        return []
    return [f"no node is primary, but {listed(holders)} hold data; {joined(_advice(nodes, holders))}"]


def _advice(nodes: Mapping[str, State], holders: Iterable[str]) -> list[str]:
    """What an operator can type when there is data and nobody is primary."""
    found = []
    standbys = [n for n in holders if nodes[n]["role"] == "standby"]
    stopped = [n for n in holders if nodes[n]["role"] == "stopped" and nodes[n].get("standby_signal") is False]
    if stopped:
        found.append(f"start PostgreSQL on the node that was primary last ({' or '.join(stopped)})")
    clean = [n for n in holders if stopped_cleanly_as_primary(nodes[n])]
    prepared = [n for n in clean if nodes[n].get("standby_signal")]
    if prepared:
        found.append(f"run failover.yml to end the cutover that stopped {listed(prepared)}")
    for name in standbys:
        mode = "" if clean else " -e mode=forced"
        found.append(f"or make {name} the primary: failover.yml -e target={name}{mode}")
    if not found:
        found.append("start PostgreSQL on the nodes that are stopped, then look again with status.yml")
    found[0] = found[0][3:] if found[0].startswith("or ") else found[0]
    return found


def _plan_bootstrap(
    plan: SitePlan, nodes: Mapping[str, State], bootstrap_primary: str | None, names: list[str]
) -> list[str]:
    leftovers = [n for n in nodes if nodes[n].get("rebuild")]
    if leftovers:
        return [
            f"no node holds data, but {listed(leftovers)} has the remains of a seed or rebuild beside its data "
            "directory: there was a cluster; find its data, or move these remains away"
        ]
    if not bootstrap_primary:
        return [f"no node holds data: set bootstrap_primary to the node to begin with ({' or '.join(names)})"]
    if bootstrap_primary not in names:
        return [f"bootstrap_primary {bootstrap_primary} is not a member of the cluster ({listed(names)})"]
    plan.update(
        {
            "primary": bootstrap_primary,
            "bootstrap": True,
            "seed": [n for n in names if n != bootstrap_primary],
            "reason": f"no node holds data: {bootstrap_primary} begins a new cluster",
        }
    )
    return []


# -- rebuild_standby.yml ----------------------------------------------------------------------------------------------


def rebuild_plan(seen: Topology, node: str | None, confirm: str | None, give_up: str | None = None) -> RebuildPlan:
    """Whether `node` may be made a standby anew. Its data is renamed aside, and still: only what is proven goes.

    Other nodes may be unknown (after a forced failover one usually is): that is a warning. The node itself, and the
    primary that it is to follow, must be known. A node that has been on a later timeline than the primary was promoted
    after it: it is refused, unless `give_up` names it too.
    """
    nodes, name = seen["nodes"], node or ""
    others = [p for p in seen["primaries"] if p != name]
    primary = others[0] if len(others) == 1 else None
    plan: RebuildPlan = {
        "ok": False,
        "reason": "",
        "node": name,
        "primary": None,
        "system_identifier": None,
        "checks": [],
        "report": [describe(nodes[n]) for n in sorted(nodes)],
    }
    if name not in nodes:
        members = listed(sorted(nodes))
        plan["reason"] = f"say which node to rebuild: -e node=NODE -e confirm=NODE, one of {members}"
        if name:
            plan["reason"] = f"{name} is not a member of the cluster ({members})"
        return plan
    there = primary is not None and _streams(nodes[name], nodes[primary])
    checks = _rebuild_node_checks(name, nodes[name], confirm, there)
    checks += [_one_primary_check(name, others), _others_agree_check(seen, name)]
    if primary:
        checks += _rebuild_pair_checks(nodes, name, primary)
        checks.append(_not_newer_check(nodes, name, primary, give_up == name))
    checks += _rebuild_warnings(seen, name, primary)
    bad = refused(checks)
    plan.update({"checks": checks, "ok": not bad, "reason": joined(c["detail"] for c in bad)})
    if not bad and primary:
        plan.update(
            {
                "primary": primary,
                "system_identifier": nodes[primary].get("system_identifier"),
                "reason": f"{name} can be made a standby of {primary}",
            }
        )
    return plan


def _streams(state: State, source: State) -> bool:
    return state["role"] == "standby" and state.get("recovery") == "streaming" and row_of(source, state) is not None


def _rebuild_node_checks(name: str, state: State, confirm: str | None, there: bool) -> list[Check]:
    """`there`: it streams already, as after a run that died at the end. Nobody is disturbed then (and pg_rebuild, which
    knows what it does, asks again), so whoever reads from it does not keep the run from being finished.
    """
    role = state["role"]
    running = role == "standby"
    clients = integer(state.get("clients")) if running else 0
    rows = state.get("replication") if running else []
    readers = None if rows is None else [str(r.get("application_name")) for r in rows]
    return [
        check("confirmed", confirm == name, f"add -e confirm={name} to say that {name} is the node you mean"),
        check(
            "node_known",
            None if role == "unknown" else True,
            f"{name} is {role}" + (f" ({state.get('reason')}): it may be the primary" if role == "unknown" else ""),
        ),
        check("not_primary", role != "primary", _not_primary_words(name, role)),
        check(
            "no_clients",
            None if clients is None else clients == 0,
            f"{name} has {'an unknown number of' if clients is None else clients} clients; move them away first",
            hard=not there,
        ),
        check(
            "no_readers",
            None if readers is None else not readers,
            f"{listed(readers or []) if readers is not None else 'it is not known who'} streams from {name}",
            hard=not there,
        ),
    ]


def _not_primary_words(name: str, role: str) -> str:
    if role != "primary":
        return f"{name} is {role}"
    return (
        f"{name} is {role}; a running primary is never rebuilt: name the node that is to become a standby of it, or, "
        "to change roles, run failover.yml"
    )


def _one_primary_check(name: str, others: list[str]) -> Check:
    if len(others) == 1:
        return check("one_primary", True, f"{others[0]} is the primary")
    found = f"{listed(others)} all run as primary" if others else f"no other node than {name} runs as primary"
    return check("one_primary", False, f"{found}: there must be exactly one to copy from")


def _others_agree_check(seen: Topology, name: str) -> Check:
    """What is wrong with the node itself is what a rebuild is for, and has checks of its own."""
    found = _contradictions(seen, but=name)
    return check("others_agree", not found, joined(found) or "the other nodes do not contradict each other")


def _rebuild_pair_checks(nodes: Mapping[str, State], name: str, primary: str) -> list[Check]:
    state, source = nodes[name], nodes[primary]
    empty = state["role"] == "absent"
    theirs, own = source.get("system_identifier"), state.get("system_identifier")
    same_id = bool(theirs) if empty else own == theirs if own and theirs else None
    version, their_version = state.get("major_version"), source.get("major_version")
    same_version = bool(their_version) if empty else version == their_version if version and their_version else None
    holds = "nothing" if empty else f"data of system {own or 'unknown'}"
    # A standby that answered as one cannot be the primary that answered as one.
    apart = False if state["role"] == "standby" else _same_place(state, source)
    return [
        check(
            "system_identifier",
            same_id,
            f"{name} holds {holds}, {primary} of {theirs or 'an unknown system'}"
            + ("" if same_id else f"; if it may go, move the data directory of {name} away yourself"),
        ),
        check("major_version", same_version, f"{name} has PostgreSQL {version}, {primary} {their_version}"),
        check(
            "another_server",
            None if apart is None else not apart,
            f"{name} has data directory {state.get('data_directory')} on machine {state.get('machine_id')}, "
            f"{primary} {source.get('data_directory')} on {source.get('machine_id')}: they must not be one",
        ),
    ]


def _not_newer_check(nodes: Mapping[str, State], name: str, primary: str, given_up: bool) -> Check:
    """The later timeline is the later promotion: its commits are the cluster's, as a rule, not those of the primary."""
    own, theirs = timeline(nodes[name]), timeline(nodes[primary])
    if nodes[name]["role"] == "absent":
        return check("not_newer", True, f"{name} holds nothing")
    if own is None or theirs is None:
        return check("not_newer", None, f"the timeline of {name if own is None else primary} is unknown")
    words = f"{name} has been on timeline {own}, {primary} is on {theirs}"
    if own <= theirs:
        return check("not_newer", True, words)
    if given_up:
        return check("not_newer", True, f"{words}; what {name} holds is given up and kept aside whole")
    return check(
        "not_newer",
        False,
        f"{words}: {name} was promoted after {primary} and is probably the one to keep, so stop {primary}, start {name}"
        f" and rebuild {primary}; to give up what {name} holds instead, add -e give_up={name}",
    )


def _rebuild_warnings(seen: Topology, name: str, primary: str | None) -> list[Check]:
    nodes = seen["nodes"]
    unknown = [n for n in seen["unknown"] if n != name]
    found = [
        check(
            "others_known",
            None if unknown else True,
            f"{listed(unknown)} cannot be seen" if unknown else "every node answers",
            hard=False,
        )
    ]
    if not primary:
        return found
    state, source = nodes[name], nodes[primary]
    own, theirs = timeline(state), timeline(source)
    reach = held(state) or lsn(part(state, "control", "checkpoint_lsn"))
    written = held(source)
    if own and theirs and own == theirs and reach and written and reach > written:
        found.append(
            check(
                "not_ahead",
                False,
                f"{name} holds WAL that {primary} never had, on the same timeline {own}; it is kept aside, not merged",
                hard=False,
            )
        )
    if _streams(state, source):
        found.append(check("needed", False, f"{name} streams from {primary} already", hard=False))
    return found


# -- parameters that must not be lower on a standby -------------------------------------------------------------------


def safe_parameters(
    desired: Mapping[str, object], seen: Topology, node: str, primary: str | None = None
) -> SafeParameters:
    """The values of STANDBY_PARAMETERS that `node` can have now on the way to `desired`.

    A standby must not have less than its primary runs with, so raising begins on standbys and lowering on the
    primary ("Hot Standby", administrator's overview, in the manual). What is not known is taken for the worst: then
    the node keeps what it has. A name in held_back with kept None is absent from node_values: leave its line alone.
    `primary` is the one that site_plan chose, for when none runs yet.
    """
    result: SafeParameters = {"node_values": {}, "held_back": {}}
    for name in STANDBY_PARAMETERS:
        wanted = integer(desired.get(name))
        if wanted is None:
            continue
        on_primary = (seen["primary"] or primary) == node
        kept, reason = (_for_primary if on_primary else _for_standby)(name, wanted, seen, node)
        if kept is not None:
            result["node_values"][name] = kept
        if kept != wanted:
            result["held_back"][name] = {"wanted": wanted, "kept": kept, "reason": reason}
    return result


def _for_primary(name: str, wanted: int, seen: Topology, node: str) -> tuple[int | None, str]:
    nodes = seen["nodes"]
    # A primary writes the values that it runs with into pg_control as well.
    now = _or(setting_int(nodes[node], name), integer(part(nodes[node], "control", name)))
    if now is not None and wanted <= now:
        return wanted, ""
    lowest, who = wanted, ""
    for other in (n for n in nodes if n != node and nodes[n]["role"] != "absent"):
        value = setting_int(nodes[other], name) if nodes[other]["role"] == "standby" else None
        if value is None:
            return now, f"it is not known with which {name} {other} runs, it may be too low to follow"
        if value < lowest:
            lowest, who = value, f"{other} still runs with {value}; it needs a restart before {node} gets more"
    return (lowest if now is None else max(now, lowest)), who


def _for_standby(name: str, wanted: int, seen: Topology, node: str) -> tuple[int | None, str]:
    nodes, primary = seen["nodes"], seen["primary"]
    state = nodes.get(node)
    own = setting_int(state, name) if state else None
    # A standby's pg_control has what the primary ran with at the WAL it has replayed.
    floor = integer(part(state, "control", name)) if state else None
    if primary:
        source = _or(setting_int(nodes[primary], name), integer(part(nodes[primary], "control", name)))
        if source is not None:
            least = max(source, floor or 0)
            return max(wanted, least), f"{primary} runs, or ran at the WAL replayed so far, with {least}"
    if seen["verdict"] == "empty":
        return wanted, ""
    if own is None and floor is None:
        return None, "it is not known what the primary runs with"
    least = max(own or 0, floor or 0)
    return max(wanted, least), f"it is not known what the primary runs with, so {least} is kept"


def _or(value: int | None, other: int | None) -> int | None:
    return other if value is None else value
