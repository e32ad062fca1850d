# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the STATE records of nodes say, read in one place and without guessing.

Everything here is pure. The rule that all of it serves: None is "unknown", and unknown is never zero,
never absent and never empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, cast

from .wal import parse_lsn

FAILURES = {"unreachable": "unreachable", "failed": "asking it failed", "skipped": "it was not asked"}
ROLES = ("primary", "standby", "stopped", "absent", "unknown")

# A standby must not run with less than its primary of any of these ("Hot Standby Parameter Reference" in the manual).
STANDBY_PARAMETERS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)

# Problems after which nobody can say which data is the cluster's: every plan refuses.
CONTRADICTIONS = frozenset(
    (
        "two_primaries",
        "foreign_data",
        "system_identifier",
        "major_version",
        "timeline_ahead",
        "point_in_time_recovery",
        "same_server",
        "slot_collision",
    )
)


class State(TypedDict, total=False):
    """The STATE record of pg_replication_state; every key may be None, which means unknown."""

    name: str
    role: str
    reason: str | None
    data: str | None
    data_directory: str | None
    major_version: int | None
    server_version: int | None
    system_identifier: str | None
    timeline: int | None
    standby_signal: bool | None
    recovery_signal: bool | None
    control: dict[str, Any] | None
    in_recovery: bool | None
    hot_standby: bool | None
    recovery: str | None
    lsn: dict[str, Any] | None
    replay: dict[str, Any] | None
    lag: dict[str, Any] | None
    wal_receiver: dict[str, Any] | None
    replication: list[dict[str, Any]] | None
    slots: list[dict[str, Any]] | None
    archiver: dict[str, Any] | None
    archive: dict[str, Any] | None
    zfs: dict[str, Any] | None
    settings: dict[str, Any] | None
    pending_restart: list[str] | None
    clients: int | None
    prepared_transactions: int | None
    oldest_transaction_seconds: float | None
    running_backups: list[dict[str, Any]] | None
    upstream: dict[str, Any] | None
    tablespaces: list[dict[str, Any]] | None
    rebuild: dict[str, Any] | None
    lock: dict[str, Any] | None
    armed: dict[str, Any] | None
    fingerprint: str | None
    superseded: dict[str, Any] | None
    peers: list[dict[str, Any]] | None
    reachable: bool | None
    synchronous_standby_names: str | None
    data_owner: str | None
    auto_conf_owner: str | None
    wal_free_bytes: int | None
    machine_id: str | None
    boot_id: str | None
    backup_label: bool | None
    history: list[dict[str, Any]] | None
    free_bytes: int | None
    installed_versions: list[int] | None
    problems: list[dict[str, Any]] | None


class Problem(TypedDict):
    """One thing that is wrong; severity is error, warning or info."""

    code: str
    severity: str
    node: str | None
    detail: str


class Check(TypedDict):
    """One check of a plan. ok None is unknown. A hard check that is not true refuses; another only warns.

    `allow`: the operator may waive it by name, since it can lose no data.
    """

    name: str
    ok: bool | None
    detail: str
    hard: bool
    allow: bool


class Topology(TypedDict):
    """Many nodes seen together; see topology.topology()."""

    nodes: dict[str, State]
    primary: str | None
    primaries: list[str]
    standbys: list[str]
    stopped: list[str]
    absent: list[str]
    unknown: list[str]
    system_identifier: str | None
    timeline: int | None
    major_version: int | None
    expected_version: int | None
    problems: list[Problem]
    safe: bool
    verdict: str
    report: list[str]


def check(name: str, ok: bool | None, detail: str, hard: bool = True, allow: bool = False) -> Check:
    """One check as a plain record."""
    return {"name": name, "ok": ok, "detail": detail, "hard": hard, "allow": allow and hard}


def refused(checks: Iterable[Check]) -> list[Check]:
    """The checks that stand in the way: hard and not proven true (false, or unknown)."""
    return [c for c in checks if c["hard"] and c["ok"] is not True]


def joined(details: Iterable[str]) -> str:
    """Several sentences as one text, each said once."""
    return "; ".join(dict.fromkeys(d.rstrip(".") for d in details))


def slot_name(prefix: str, node: str) -> str:
    """The physical slot of `node`: lower case, only [a-z0-9_], at most 63 bytes ("Replication Slots" in the manual).

    Different names can give one slot (db-1 and db_1): topology() reports that as slot_collision.
    """
    return re.sub(r"[^a-z0-9_]", "_", f"{prefix}{node}".lower())[:63]


# -- from an answer to a record ---------------------------------------------------------------------------------------


def unknown_state(
    name: str, reason: str, known: Mapping[str, Any] | None = None, reachable: bool | None = False
) -> State:
    """A node of which it is not known what it is; facts that were seen are kept, the role is not."""
    blank: dict[str, Any] = dict.fromkeys(State.__annotations__)
    blank.update(known or {})
    blank.update(name=name, role="unknown", reason=reason, reachable=reachable)
    return cast(State, blank)


def state_of(name: str, answer: object) -> State:
    """The STATE record in what Ansible registered for one node, or an unknown one that says why.

    `answer` is a module result ({node: STATE}), a STATE itself, {unreachable: true, msg}, {failed: true, msg},
    or nothing at all. A record that contradicts itself is not believed: its role becomes unknown.
    `reachable`: whether its machine let us in, so that more can be done there.
    """
    if not isinstance(answer, Mapping) or not answer:
        return unknown_state(name, "it gave no answer")
    inner = answer.get("node")
    record = inner if isinstance(inner, Mapping) else answer if "role" in answer else None
    for flag, words in FAILURES.items():
        if answer.get(flag):
            message = " ".join(str(answer.get("msg") or answer.get("skip_reason") or "no message").split())
            return unknown_state(name, f"{words}: {message}", record, reachable=flag == "failed")
    if record is None:
        return unknown_state(name, "its answer holds no state")
    doubt = _doubt(record)
    if doubt:
        return unknown_state(name, doubt, record, reachable=True)
    return cast(State, {**unknown_state(name, ""), **record, "name": name, "reachable": True})


def _doubt(record: Mapping[str, Any]) -> str | None:
    """Why the role in a record cannot be believed, or None."""
    role, data, recovering = record.get("role"), record.get("data"), record.get("in_recovery")
    where = record.get("data_directory") or "its data directory"
    if role not in ROLES or role == "unknown":
        return str(record.get("reason") or "it does not know its own role")
    if data == "foreign":
        return f"{where} holds something that is not a PostgreSQL cluster"
    if role == "absent" and data not in ("absent", "empty"):
        return f"it says absent, but {where} is {data or 'unknown'}"
    if role == "stopped" and data != "cluster":
        return f"it says stopped, but {where} is {data or 'unknown'}"
    if role == "primary" and recovering is not False:
        return "it says primary, but not that it has left recovery"
    if role == "standby" and recovering is False:
        return "it says standby, but it is not in recovery"
    return None


def member_states(topology: Topology, members: Iterable[str] | None) -> dict[str, State]:
    """The records of all nodes; a member that was not even asked is unknown. Sorted, so that order never matters."""
    nodes = dict(topology["nodes"])
    for name in members or ():
        nodes.setdefault(name, unknown_state(name, "it was not asked"))
    return {name: nodes[name] for name in sorted(nodes)}


# -- reading a record -------------------------------------------------------------------------------------------------


def lsn(text: object) -> int | None:
    """An LSN as a number, None when there is none or it cannot be read."""
    try:
        return parse_lsn(text) if isinstance(text, str) and text else None
    except ValueError:
        return None


def part(state: State, group: str, key: str) -> Any:
    """`state[group][key]`, None when either is not known."""
    inner = cast("dict[str, Any]", state).get(group)
    return inner.get(key) if isinstance(inner, Mapping) else None


def held(state: State) -> int | None:
    """How far this running node's WAL reaches (bytes): flush on a primary, greatest(receive, replay) on a standby."""
    return lsn(part(state, "lsn", "held"))


def setting(state: State, name: str) -> str | None:
    """The running value of a setting as text, None when not known."""
    value = part(state, "settings", name)
    value = value.get("value") if isinstance(value, Mapping) else value
    return None if value is None else str(value)


def integer(value: object) -> int | None:
    """A whole number out of a record or the inventory; None when it is none (an empty text is not zero)."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    try:
        return int(value)
    except ValueError:
        return None


def setting_int(state: State, name: str) -> int | None:
    """The running value of a numeric setting, in that setting's unit."""
    return integer(setting(state, name))


def timeline(state: State) -> int | None:
    """The newest timeline a node has been on; of a stopped one as pg_control tells."""
    seen = [
        integer(state.get("timeline")),
        integer(part(state, "control", "timeline")),
        integer(part(state, "control", "min_recovery_timeline")),
    ]
    if state.get("role") in ("primary", "standby"):
        # Just after a promotion pg_control still shows the old timeline: the server itself knows better.
        return seen[0] or seen[1]
    return max((tli for tli in seen if tli), default=None)


def has_data(state: State) -> bool:
    """True when the node holds a cluster's data (running or stopped)."""
    return state.get("role") in ("primary", "standby", "stopped") or state.get("data") == "cluster"


def stopped_cleanly_as_primary(state: State) -> bool:
    """True when pg_control proves that this stopped server was a primary and wrote its shutdown checkpoint.

    A standby that stops says "shut down in recovery", a crashed primary "in production".
    """
    return state.get("role") == "stopped" and part(state, "control", "state") == "shut down"


def row_of(sender: State, standby: State, slot: str | None = None) -> dict[str, Any] | None:
    """The row of `standby` in the pg_stat_replication of `sender`, found by slot or application_name."""
    slots = {part(standby, "wal_receiver", "slot_name"), part(standby, "upstream", "slot"), slot} - {None, ""}
    names = {part(standby, "upstream", "application_name"), standby.get("name")} - {None, ""}
    rows = [r for r in sender.get("replication") or [] if r.get("state") != "backup"]
    by_slot = [r for r in rows if r.get("slot_name") in slots]
    by_name = [r for r in rows if r.get("application_name") in names]
    return next(iter(by_slot + by_name), None)


def sender_of(nodes: Mapping[str, State], name: str) -> str | None:
    """The node that streams to `name` now, None when no node of ours has a row for it."""
    for other in sorted(nodes):
        if other != name and row_of(nodes[other], nodes[name]):
            return other
    return None


def end_of_wal_before(state: State, limit: int) -> bool | None:
    """Whether a stopped node's WAL ends at or before `limit` (bytes), None when pg_control cannot tell.

    After a clean shutdown of a primary pg_control names the START of its last record, so equality means that the
    record lies behind the limit. After recovery it names the end ("pg_controldata" in the manual).
    """
    kind = part(state, "control", "state")
    if kind == "shut down":
        start = lsn(part(state, "control", "checkpoint_lsn"))
        return None if start is None else start < limit
    if kind in ("shut down in recovery", "in archive recovery"):
        end = lsn(part(state, "control", "min_recovery_lsn"))
        if end:
            return end <= limit
        start = lsn(part(state, "control", "checkpoint_lsn"))
        return None if start is None else start < limit
    return None


def can_follow(state: State, primary: State) -> bool | None:
    """Whether a stopped node can go on as a standby of `primary` without a rewind; None when that cannot be told.

    Needs the primary's timeline history (`history`: [{timeline, switch_lsn}]) when the timelines differ.
    """
    own, theirs, reach = timeline(state), timeline(primary), held(primary)
    if own is None or theirs is None or reach is None:
        return None
    if own > theirs:
        return False
    if own == theirs:
        # A copy that was never started is the primary's own WAL, whatever its pg_control says.
        return True if state.get("backup_label") else end_of_wal_before(state, reach)
    fork = next((lsn(h.get("switch_lsn")) for h in primary.get("history") or [] if h.get("timeline") == own), None)
    return None if fork is None else end_of_wal_before(state, fork)


# -- words ------------------------------------------------------------------------------------------------------------


def size(count: int | None) -> str:
    """Bytes for people, in PostgreSQL's units (1 kB = 1024 B); unknown stays `unknown`."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds for people; unknown stays `unknown`."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listed(names: Iterable[str]) -> str:
    """Names as words: `db1`, `db1 and db2`, `db1, db2 and db3`."""
    every = list(names)
    return every[0] if len(every) == 1 else f"{', '.join(every[:-1])} and {every[-1]}" if every else "none"


def describe(state: State) -> str:
    """One line that says what a node is."""
    role = state.get("role")
    words = {"primary": _running, "standby": _running, "stopped": _stopped}.get(str(role))
    if words:
        version = state.get("major_version") or "unknown"
        identity = state.get("system_identifier") or "unknown"
        return f"{state['name']}: {words(state)}, PostgreSQL {version}, system identifier {identity}"
    if role == "absent":
        return f"{state['name']}: {state.get('data')}: no data in {state.get('data_directory') or 'its data directory'}"
    return f"{state['name']}: unknown: {state.get('reason') or 'no reason given'}"


def _running(state: State) -> str:
    at = part(state, "lsn", "held") or "an unknown position"
    line = f"timeline {timeline(state) or 'unknown'}, at {at}"
    if state.get("role") == "primary":
        return f"primary, {line}"
    how = {"streaming": "streaming", "archive": "reading the archive", "none": "not streaming"}
    return f"standby, {how.get(str(state.get('recovery')), 'streaming unknown')}, {line}"


def _stopped(state: State) -> str:
    kind = part(state, "control", "state")
    at = part(state, "control", "checkpoint_lsn") or "an unknown position"
    signal = {True: "standby.signal", False: "no standby.signal"}.get(cast(bool, state.get("standby_signal")))
    return (
        f"stopped ('{kind or 'unknown'}'), timeline {timeline(state) or 'unknown'}, "
        f"checkpoint at {at}, {signal or 'standby.signal unknown'}"
    )
