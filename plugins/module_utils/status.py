# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of status.yml. Pure. What is not known is printed as `unknown`, never as 0."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .problems import waiting_files
from .records import (
    State,
    Topology,
    duration,
    held,
    integer,
    listed,
    part,
    row_of,
    sender_of,
    size,
    timeline,
)

WIDTH = 120
CELL = 30
# Of a stopped node: it was a primary, whatever its next start makes of it.
PRIMARY_STATES = ("shut down", "shutting down", "in production")
HEAD = ("NODE", "ROLE", "TL", "STREAMS", "LAG", "LSN", "SLOT", "ARCHIVER")


def status_table(seen: Topology, now: str | None = None, cluster: str | None = None) -> list[str]:
    """Lines for a terminal, at most WIDTH characters each: verdict, one row for each node, what goes on, problems.

    `now` (text) is printed beside the verdict as the time of reading; `cluster` names the cluster.
    """
    nodes = seen["nodes"]
    rows = [HEAD] + [_row(nodes, name) for name in sorted(nodes)]
    lines = wrapped(_verdict_line(seen, now, cluster))
    lines += ["", *aligned(rows)]
    parts = (_ships, _backups, _snapshots, _remains)
    said = [line for name in sorted(nodes) for part in parts for line in part(nodes[name])]
    if said:
        lines += ["", *(w for line in said for w in wrapped(line))]
    if seen["problems"]:
        lines += ["", "problems:"]
    for p in seen["problems"]:
        where = p["node"] or "cluster"
        lines += wrapped(f"  {p['severity']:<8}{where}: {p['detail']} [{p['code']}]", " " * 10)
    return lines


def wrapped(line: str, indent: str = "    ") -> list[str]:
    """A line in lines of at most WIDTH characters."""
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _verdict_line(seen: Topology, now: str | None, cluster: str | None) -> str:
    streaming = [n for n in seen["standbys"] if seen["nodes"][n].get("recovery") == "streaming"]
    primary = seen["primary"]
    unseen = f"{listed(seen['unknown'])} cannot be seen" if seen["unknown"] else "not all that matters is known"
    said = {
        "healthy": f"{primary} is primary, {_count(len(streaming), 'standby streams', 'standbys stream')}",
        "degraded": f"{primary} is primary, {len(streaming)} of {len(seen['nodes']) - 1} other nodes stream"
        + (", prepared to become a standby" if primary and seen["nodes"][primary].get("standby_signal") else ""),
        "empty": "no node holds data: site.yml begins a new cluster",
        "no_primary": "there is data, and no node is primary",
        "contradictory": "the nodes contradict each other; nothing may be changed before that is settled",
        "unknown": unseen + (f"; {primary} runs as primary" if primary else ""),
    }[seen["verdict"]]
    head = f"{cluster}: {seen['verdict'].upper()}" if cluster else seen["verdict"].upper()
    return f"{head} - {said}" + (f" ({now})" if now else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as needed; when the line is too long the widest cells are cut, shown by a ~."""
    table = [[_cut(cell, CELL) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*table)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widths[widths.index(max(widths))] -= 1
    return ["  ".join(_cut(cell, w).ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


def _row(nodes: Mapping[str, State], name: str) -> tuple[str, ...]:
    state = nodes[name]
    role = str(state["role"])
    if role == "unknown":
        return (name, "foreign" if state.get("data") == "foreign" else role, *["unknown"] * 6)
    if role == "absent":
        return (name, role, *["-"] * 6)
    tli = str(timeline(state) or "unknown")
    role += _waiting(state)
    if state["role"] == "stopped":
        at = part(state, "control", "min_recovery_lsn")
        at = part(state, "control", "checkpoint_lsn") if at in (None, "0/0") else at
        return (name, role, tli, "-", "-", str(at or "unknown"), "-", "-")
    position = str(part(state, "lsn", "held") or "unknown")
    if state["role"] == "primary":
        return (name, role, tli, _streams_to(nodes, name), "-", position, "-", _archiver(state))
    sender = sender_of(nodes, name)
    lag, slot = _lag(nodes, name, sender), _slot(nodes, name, sender)
    return (name, role, tli, _streams_from(state, sender), lag, position, slot, _archiver(state))


def _waiting(state: State) -> str:
    """What a cutover that is under way, or did not end, has made of a node; the problems below say more."""
    if state["role"] == "standby":
        return ", armed" if part(state, "armed", "state") in ("armed", "promoting") else ""
    # One that was fenced was the primary and has the signal too, but was told of nobody to follow.
    stopped = part(state, "control", "state") in PRIMARY_STATES and part(state, "upstream", "host")
    prepared = (state["role"] == "primary" or stopped) and state.get("standby_signal")
    return ", prepared" if prepared else ", superseded" if state.get("superseded") else ""


def _streams_to(nodes: Mapping[str, State], name: str) -> str:
    shown = []
    for other in sorted(nodes):
        row = row_of(nodes[name], nodes[other]) if other != name else None
        if row:
            sync = row.get("sync_state")
            shown.append(f"{other} ({sync})" if sync in ("sync", "quorum", "potential") else other)
    return f"to {', '.join(shown)}" if shown else "to none"


def _streams_from(state: State, sender: str | None) -> str:
    recovery = state.get("recovery")
    if recovery != "streaming":
        return {"archive": "no (archive)", "none": "no"}.get(str(recovery), "unknown")
    host, port = part(state, "wal_receiver", "sender_host"), part(state, "wal_receiver", "sender_port")
    return f"from {sender}" if sender else f"from {host}:{port}" if host else "from unknown"


def _lag(nodes: Mapping[str, State], name: str, sender: str | None) -> str:
    """Bytes not yet replayed, and seconds. Without a row at a sender: how far the primary is ahead."""
    state = nodes[name]
    row = row_of(nodes[sender], state) if sender else None
    count = integer((row.get("lag_bytes") or {}).get("replay")) if row else None
    if count is None:
        count = _distance(nodes, state)
    return f"{size(count)}, {duration(part(state, 'lag', 'seconds'))}"


def _distance(nodes: Mapping[str, State], state: State) -> int | None:
    primaries = [s for s in nodes.values() if s["role"] == "primary"]
    if len(primaries) != 1 or timeline(primaries[0]) != timeline(state):
        return None
    written, reach = held(primaries[0]), held(state)
    if written is None or reach is None:
        return None
    # Both were read at slightly different moments.
    return max(0, written - reach)


def _slot(nodes: Mapping[str, State], name: str, sender: str | None) -> str:
    state = nodes[name]
    slot = part(state, "wal_receiver", "slot_name") or part(state, "upstream", "slot")
    if not slot:
        return "none"
    holders = [nodes[sender]] if sender else [s for s in nodes.values() if s["role"] == "primary"]
    found = [s for h in holders for s in h.get("slots") or [] if s.get("name") == slot]
    status = str(found[0].get("wal_status") or "unused") if found else "unknown"
    return f"{slot} {status}"


def _archiver(state: State) -> str:
    archiver: Mapping[str, Any] = state.get("archiver") or {}
    mode, ready = archiver.get("mode"), archiver.get("ready")
    if mode is None:
        return "unknown"
    if mode == "off":
        return "off"
    if state["role"] == "standby" and mode != "always":
        return "standing by"
    waiting = f"{'unknown' if ready is None else ready} waiting"
    failed, archived = archiver.get("last_failed_time"), archiver.get("last_archived_time")
    return f"{'FAILING' if failed and (not archived or failed > archived) else 'ok'}, {waiting}"


def _ships(state: State) -> list[str]:
    """Where a primary's WAL goes; of the others only what is wrong is told, as a problem."""
    archive: Mapping[str, Any] = state.get("archive") or {}
    if state["role"] != "primary" or not archive:
        return []
    if not archive["running"]:
        return [f"{state['name']} ships WAL: unknown, its shipper is down"]
    places = [_place(place) for place in archive["destinations"]]
    return [f"{state['name']} ships WAL to {listed(places)}; the last archived is {archive['acknowledged'] or 'none'}"]


def _place(place: Mapping[str, Any]) -> str:
    waiting, seconds = waiting_files(place), place["oldest_waiting_seconds"]
    count = "unknown" if waiting is None else str(waiting)
    oldest = "" if seconds is None else f", the oldest for {duration(seconds)}"
    return f"{place['name']} ({place['state'] or 'unknown'}, {count} waiting{oldest})"


def _backups(state: State) -> list[str]:
    return [_progress(str(state.get("name")), b) for b in state.get("running_backups") or []]


def _progress(node: str, backup: Mapping[str, Any]) -> str:
    done, total = integer(backup.get("streamed_bytes")), integer(backup.get("total_bytes"))
    share = f" ({100 * done // total} %)" if done is not None and total else ""
    rate, left = backup.get("bytes_per_second"), backup.get("seconds_left")
    speed = "unknown rate" if rate is None else f"{size(int(rate))}/s"
    who, phase = backup.get("application_name") or "unknown", backup.get("phase") or "phase unknown"
    done_of_total = f"{size(done)} of {size(total)}{share}"
    return f"base backup from {node} by {who}: {phase}, {done_of_total}, {speed}, time left {duration(left)}"


def _snapshots(state: State) -> list[str]:
    """What ZFS sends just now, and the newest copy in the backup pool."""
    zfs: Mapping[str, Any] = state.get("zfs") or {}
    return [_send(str(state.get("name")), one) for one in zfs.get("sends") or []] + _copies(state, zfs.get("backup"))


def _send(node: str, send: Mapping[str, Any]) -> str:
    what = f"snapshot of the primary for {node}" if send["for"] == "rebuild" else f"snapshot of {node} to be kept"
    return f"{what}: {stream_progress(send)}"


def stream_progress(send: Mapping[str, Any]) -> str:
    """Of a status file that zfs_send.py writes."""
    done, total = integer(send.get("sent_bytes")), integer(send.get("estimated_bytes"))
    share = f" ({min(100 * done // total, 100)} %)" if done is not None and total else ""
    rate, left = integer(send.get("rate")), send.get("seconds_left")
    part_of = f"{send.get('dataset')}, part {send.get('number')} of {send.get('of')}, {send.get('kind')}"
    done_of_total = f"{size(done)} of {size(total)}{share}"
    return f"{part_of}: {done_of_total}, {size(rate)}/s, time left {duration(left)}"


def _copies(state: State, backup: Mapping[str, Any] | None) -> list[str]:
    if backup is None:
        return []
    newest = backup.get("newest")
    where = f"{backup['dataset']} on {backup['host']}" if backup.get("host") else backup["dataset"]
    age = f"the newest is {duration(backup['age_seconds'])} old ({newest['snapshot']})" if newest else "none yet"
    skips = f"; not its turn at {backup['at']}: {backup['reason']}" if backup.get("state") == "skipped" else ""
    return [f"{state.get('name')} has snapshots in {where}: {age}{skips}"]


def _remains(state: State) -> list[str]:
    rebuild: Mapping[str, Any] = state.get("rebuild") or {}
    paths = [str(rebuild[k]) for k in ("seeding", "rewinding") if rebuild.get(k)]
    return [f"{state.get('name')}: a seed or rebuild is under way or was interrupted: {listed(paths)}"] if paths else []
