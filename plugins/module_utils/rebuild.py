# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a node becomes a standby of a primary: which way, why, and what forbids it. Pure; the acts are in rebuilding.

Manual: "pg_rewind", "pg_basebackup", "Streaming Replication Protocol" (IDENTIFY_SYSTEM, TIMELINE_HISTORY), "Timelines".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from .controldata import ControlData
from .records import size
from .wal import LSN_END, HistoryEntry, fork_point, format_lsn

# The ladder, from the least to the most that a node loses, and that is copied.
RUNGS = ("follow", "rewind", "zfs", "basebackup")
METHODS = ("auto", *RUNGS, "copy")
COPIES = {"zfs": "a ZFS snapshot of the primary", "basebackup": "a base backup", "copy": "a whole copy"}


@dataclass(frozen=True)
class Position:
    """How far a node's WAL goes on its last timeline; LSNs in bytes.

    kind "primary": it ended with the shutdown checkpoint that STARTS at `lsn`. kind "standby": it holds all before
    `lsn` and has replayed up to `replayed`. kind "unknown": it crashed as a primary, nobody knows without recovery.
    """

    kind: str
    timeline: int
    lsn: Optional[int] = None
    replayed: Optional[int] = None


@dataclass(frozen=True)
class Copy:
    """A ZFS snapshot of the primary as a way: why not (`obstacle`), or what would be sent. `size` in bytes."""

    obstacle: Optional[str] = None
    reason: str = ""
    kind: str = ""  # none, resumed, incremental, full
    size: Optional[int] = None
    begun: bool = False  # a run died at the swap: what is mounted was renamed already


NO_DATASET = Copy("no ZFS dataset is named for it")


@dataclass(frozen=True)
class Local:
    """What was seen of the node that is to become a standby. None = not known."""

    name: str
    role: str  # as in the record of a node: primary, standby, stopped, absent, unknown
    data: Optional[str]  # absent, empty, cluster, foreign
    reason: Optional[str] = None
    calls_itself: Optional[str] = None  # its application_name as a standby, by the upstream that it has now
    uses_slot: Optional[str] = None  # by the upstream that it has now
    stale_slots: Sequence[Mapping[str, Optional[str]]] = ()  # name and database, of its time as the primary
    following: bool = False  # streams from the primary as wished, nothing to do
    configured: bool = False  # runs as a standby with the upstream that is wished
    major_version: Optional[int] = None  # of the data directory
    program_version: Optional[int] = None  # of the programs in bin_directory
    control: Optional[ControlData] = None
    position: Optional[Position] = None
    history: Optional[Sequence[HistoryEntry]] = None  # of the position's timeline; None: its file is missing
    newest_timeline: int = 0  # of the history files in its pg_wal: a standby follows the latest that it can find
    restore_command: bool = False
    clients: Optional[int] = None
    senders: Optional[int] = None  # standbys and base backups that it serves
    processes: Sequence[int] = ()  # that work in the data directory although no server runs
    receiving_slot: Optional[str] = None  # the slot its own WAL receiver uses now
    # A base backup of ours beside it: half, complete; in place: placed (not yet started), started. Not ours: foreign.
    seed: Optional[str] = None
    leftovers: Sequence[int] = ()  # programs of an interrupted run that still work on its copy
    backup_label: bool = False  # a copy that was not started since it was made
    rewinding: bool = False  # an interrupted pg_rewind left its directory
    mount_point: bool = False
    wal_elsewhere: bool = False  # pg_wal is a symbolic link
    real_directory: str = ""
    config_file: str = ""
    config_exists: bool = True
    free_bytes: Optional[int] = None
    occupied: Sequence[str] = ()  # locations of the primary's tablespaces where something lies on this host
    copy: Copy = NO_DATASET
    set_aside: Optional[str] = None  # the dataset that is mounted there, where a run has renamed it and died
    torn_pages: bool = True  # the file system may write a page in part: all but ZFS


@dataclass(frozen=True)
class Source:
    """What the primary said, over the network and as the replication account. None = not known."""

    where: str
    error: Optional[str] = None  # it could not be asked
    addresses: Sequence[str] = ()  # that its name stands for, when it is more than one of a kind
    in_recovery: Optional[bool] = None
    is_this_node: bool = False
    system_identifier: Optional[str] = None
    timeline: Optional[int] = None
    history: Optional[Sequence[HistoryEntry]] = None
    flush_lsn: Optional[int] = None
    checkpoint_timeline: Optional[int] = None
    major_version: Optional[int] = None
    full_page_writes: Optional[bool] = None
    may_rewind: Optional[bool] = None  # the account may read the primary's files
    may_label: Optional[bool] = None  # the account may begin and end a backup
    oldest_wal: Optional[int] = None  # first byte of the oldest segment from which on it has all
    slot: Optional[dict[str, Any]] = None  # type, active, restart_lsn, wal_status
    failover_slots: Sequence[str] = ()  # names of the logical ones that are to be synchronised (17+)
    started: Optional[str] = None  # its postmaster, to the microsecond
    streaming: Sequence[str] = ()  # application names of the standbys that stream from it
    tablespaces: Sequence[str] = ()  # their locations
    size_bytes: Optional[int] = None  # of all databases
    wal_bytes: Optional[int] = None  # that may come on top while it is copied


@dataclass(frozen=True)
class Wish:
    """What is asked for; see the options of pg_rebuild."""

    slot: str
    method: str = "auto"
    confirm: Optional[str] = None
    system_identifier: Optional[str] = None
    application_name: Optional[str] = None
    waive_backup: bool = False


@dataclass(frozen=True)
class Decision:
    """method: none, follow, rewind, zfs, basebackup or refuse; `diverged_at`: the LSN where the histories part.

    `skipped`: why each rung of the ladder before `method` is not taken.
    """

    method: str
    reason: str
    diverged_at: Optional[int] = None
    skipped: Mapping[str, str] = field(default_factory=dict)


def ladder(decision: Decision) -> list[dict[str, Any]]:
    """Each rung with `chosen` and the reason why it is taken, or why it is not."""
    found = []
    for method in RUNGS:
        chosen, reason = method == decision.method, decision.reason
        if decision.method in RUNGS and not chosen:
            later = RUNGS.index(method) > RUNGS.index(decision.method)
            reason = f"not needed: {decision.method} is right" if later else decision.skipped[method]
        elif decision.method == "none":
            reason = f"not needed: {decision.reason}"
        found.append({"method": method, "chosen": chosen, "reason": reason})
    return found


def by_copy(reason: str, at: Optional[int] = None, *, follow: str = "", rewind: str = "") -> Decision:
    """A base backup, and why nothing less does; without words of their own `reason` holds for the other rungs too."""
    return Decision("basebackup", reason, at, {"follow": follow or reason, "rewind": rewind or reason, "zfs": ""})


def by_snapshot(decision: Decision, local: Local, source: Source, wanted: str) -> Decision:
    """A ZFS snapshot instead of a base backup, where there can be one; else the base backup, which says why."""
    copy = local.copy
    finished = local.seed == "complete"
    if copy.obstacle is None and wanted != "basebackup" and not finished:
        less = _less_by_base_backup(local, source) if wanted == "auto" else None
        if less:
            return replace(decision, skipped={**decision.skipped, "zfs": less})
        skipped = {name: reason for name, reason in decision.skipped.items() if name != "zfs"}
        return Decision("zfs", f"{decision.reason}; {copy.reason}", decision.diverged_at, skipped)
    if copy.obstacle and copy is not NO_DATASET and wanted in ("auto", "copy") and local.torn_pages and not finished:
        return Decision(
            "refuse",
            f"a ZFS snapshot is not possible ({copy.obstacle}), and a base backup would not lie on ZFS: mend that, or "
            "say method: basebackup",
            decision.diverged_at,
        )
    why = "not asked for" if copy.obstacle is None else f"not possible: {copy.obstacle}"
    return replace(decision, skipped={**decision.skipped, "zfs": decision.reason if finished else why})


def _less_by_base_backup(local: Local, source: Source) -> Optional[str]:
    """Why what changed is not sent: it is more than a base backup copies at most, which is possible and lies on ZFS."""
    copy = local.copy
    impossible = local.mount_point or local.wal_elsewhere or local.occupied or local.torn_pages or copy.begun
    if impossible or copy.kind != "incremental" or copy.size is None or source.size_bytes is None:
        return None
    whole = source.size_bytes + (source.wal_bytes or 0)
    if copy.size <= whole:
        return None
    return f"possible, but it sends about {size(copy.size)}, and a base backup copies {size(whole)} at most"


def by_less(decision: Decision, local: Local, source: Source, wanted: str) -> Decision:
    """A rewind; or a ZFS snapshot, where less is sent than a rewind copies at least, or the directory has to stay."""
    copy, copied = local.copy, rewound_bytes(decision, local, source)
    if wanted != "auto" or copy.obstacle is not None:
        return decision
    if local.mount_point or copy.begun:
        why = "is a mount point" if local.mount_point else "has been set aside by a run that died"
        skipped = {**decision.skipped, "rewind": f"not possible: {local.real_directory} {why}"}
        return Decision("zfs", f"{decision.reason}; {copy.reason}", decision.diverged_at, skipped)
    if copy.size is None or copied is None:
        return decision
    if copy.size >= copied:
        reason = f"{decision.reason}; a rewind copies {size(copied)} or more, ZFS would send about {size(copy.size)}"
        return replace(decision, reason=reason)
    less = f"possible, but it copies {size(copied)} or more, and ZFS sends about {size(copy.size)}"
    return Decision(
        "zfs", f"{decision.reason}; {copy.reason}", decision.diverged_at, {**decision.skipped, "rewind": less}
    )


def rewound_bytes(decision: Decision, local: Local, source: Source) -> Optional[int]:
    """What pg_rewind copies at least: all WAL that the primary has, and about what the node wrote since they parted."""
    if source.flush_lsn is None or decision.diverged_at is None:
        return None
    begin = decision.diverged_at if source.oldest_wal is None else source.oldest_wal
    own = local.position.lsn if local.position else None
    return max(source.flush_lsn - begin, 0) + max((own or 0) - decision.diverged_at, 0)


def position(control: ControlData, held: Optional[int] = None, replayed: Optional[int] = None) -> Position:
    """How far the WAL of a node goes. `held`, `replayed`: what is known beyond pg_control, of a standby.

    A stopped standby may hold WAL in pg_wal that it has not replayed: it is replayed at the next start, so it counts.
    """
    if control.state == "shut down":
        return Position("primary", control.timeline, control.checkpoint_lsn)
    if control.state in ("shut down in recovery", "in archive recovery"):
        recovered = control.min_recovery_lsn or control.checkpoint_lsn
        timeline = control.min_recovery_timeline or control.timeline
        replayed = max(recovered, replayed or 0)
        return Position("standby", timeline, max(replayed, held or 0), replayed)
    return Position("unknown", max(control.timeline, control.min_recovery_timeline))


def common_point(
    mine: Sequence[HistoryEntry], my_timeline: int, theirs: Sequence[HistoryEntry], their_timeline: int
) -> Optional[tuple[int, int]]:
    """The last timeline that two histories share and the LSN up to which they do; None when they share nothing."""
    ours = [*mine, HistoryEntry(my_timeline, LSN_END, "")]
    others = [*theirs, HistoryEntry(their_timeline, LSN_END, "")]
    found = None
    for one, other in zip(ours, others):
        if one.timeline != other.timeline:
            break
        found = one.timeline, min(one.switch_lsn, other.switch_lsn)
        if one.switch_lsn != other.switch_lsn:
            break
    return found


def choose_method(local: Local, source: Source, wanted: str = "auto") -> Decision:
    """Which way `local` becomes a standby of `source`, and why; `wanted` is one of METHODS.

    A method that is asked for is taken only where it is right; a base backup always is.
    """
    if local.following:
        return Decision("none", f"it streams from {source.where} already")
    natural = _natural(local, source)
    if local.set_aside and natural.method in ("follow", "rewind") and local.copy.obstacle is not None:
        natural = Decision(
            "refuse",
            f"{local.real_directory} is mounted from {local.set_aside}, which a rebuild that died had set aside, and "
            "which will not be mounted at the next boot: say method: zfs, which goes on with that rebuild, or give it "
            "the name back that it had (zfs rename, zfs set canmount=on)",
            natural.diverged_at,
        )
    if natural.method == "basebackup":
        natural = by_snapshot(natural, local, source, wanted)
    elif natural.method == "rewind":
        natural = by_less(natural, local, source, wanted)
    if wanted in ("auto", natural.method) or (wanted == "copy" and natural.method in ("zfs", "basebackup")):
        return natural
    if wanted in ("zfs", "basebackup", "copy"):
        less = {**natural.skipped, natural.method: f"possible, but not asked for: {natural.reason}"}
        if natural.method == "follow":
            less["rewind"] = "not needed: nothing diverged"
        reason = f"{COPIES[wanted]} is asked for ({natural.reason})"
        copied = by_copy(reason, natural.diverged_at, follow=less.get("follow", ""), rewind=less.get("rewind", ""))
        copied = by_snapshot(copied, local, source, wanted)
        if wanted in ("copy", copied.method):
            return copied
        reason = f"zfs is asked for and is {copied.skipped['zfs']}"
        return Decision("refuse", reason, natural.diverged_at)
    return Decision("refuse", f"{wanted} is asked for and is not possible: {natural.reason}", natural.diverged_at)


def _natural(local: Local, source: Source) -> Decision:
    if local.seed == "complete":
        return by_copy("the base backup of an interrupted run is complete and is put in place")
    if local.data in ("absent", "empty"):
        left = " but what an interrupted pg_rewind left, which is not usable" if local.rewinding else ""
        return by_copy(f"there is no data{left}")
    if local.seed == "placed":
        return Decision("follow", "the base backup of an interrupted run is in place and is started")
    if local.backup_label and local.role == "stopped":
        return by_copy("backup_label shows a copy that was never recovered, and how far it goes is not known")
    here, there = local.position, source.timeline
    if here is None or there is None or source.history is None or source.flush_lsn is None:
        return Decision("refuse", "how the node and the primary are related is not known")
    if here.timeline == there:
        return _one_timeline(local, here, source, source.flush_lsn)
    if here.timeline > there:
        return Decision(
            "refuse",
            f"it has been on timeline {here.timeline}, {source.where} is on {there}: it was promoted after that one"
            " and is probably the one to keep; if not, say method: copy (what the node has is kept aside)",
        )
    fork = fork_point(list(source.history), here.timeline)
    # The position of a former primary is where its last record starts, so the fork must be past it.
    needed = None if here.lsn is None else here.lsn + (here.kind == "primary")
    if fork is not None and needed is not None and fork >= needed:
        reason = f"timeline {there} left timeline {here.timeline} at {format_lsn(fork)}, after all that the node has"
        return _follow(local, here, source, f"{reason} (up to {format_lsn(here.lsn or 0)}): nothing diverged")
    return _diverged(local, here, source, there, fork)


def _one_timeline(local: Local, here: Position, source: Source, flushed: int) -> Decision:
    where = f"timeline {here.timeline}"
    if here.kind != "standby" or here.lsn is None:
        # Streaming would go over records of the same names and positions that are not the same.
        return Decision(
            "refuse",
            f"it last ran as a primary on {where}, and so does {source.where}: either it is a copy of that one, or both"
            " took writes on one timeline, which no LSN can tell; find out whose data are right, and if the primary's"
            " are, say method: copy (what the node has is kept aside)",
        )
    if here.lsn > flushed:
        return Decision(
            "refuse",
            f"it holds {where} up to {format_lsn(here.lsn)}, {here.lsn - flushed} bytes more than the primary"
            f" ({format_lsn(flushed)}): the primary has lost WAL, or two servers wrote on one timeline; find out whose"
            " data are right, and if the primary's are, say method: copy (what the node has is kept aside)",
        )
    return _follow(local, here, source, f"it holds {where} up to {format_lsn(here.lsn)}, which the primary has too")


def _follow(local: Local, here: Position, source: Source, reason: str) -> Decision:
    known = {source.timeline, *(entry.timeline for entry in source.history or ())}
    if local.newest_timeline > here.timeline and local.newest_timeline not in known:
        return by_copy(
            f"its pg_wal has the history of timeline {local.newest_timeline}, which the primary does not know and the "
            "node would follow",
            rewind="nothing that it has replayed diverged",
        )
    if (
        source.oldest_wal is not None
        and here.lsn is not None
        and here.lsn < source.oldest_wal
        and not local.restore_command
    ):
        return by_copy(
            f"it needs WAL from {format_lsn(here.lsn)} on, the oldest that the primary still has begins at "
            f"{format_lsn(source.oldest_wal)}, and there is no restore_command",
            rewind="nothing diverged, and a rewind would not bring the WAL that it needs",
        )
    return Decision("follow", reason)


def _diverged(local: Local, here: Position, source: Source, there: int, fork: Optional[int]) -> Decision:
    common = common_point(local.history or (), here.timeline, source.history or (), there)
    at = common[1] if common is not None and local.history is not None else fork
    if here.kind == "unknown":
        reason = f"it crashed as a primary on timeline {here.timeline} and may have what the primary lacks"
    else:
        reason = f"it holds timeline {here.timeline} up to {format_lsn(here.lsn or 0)}"
    reason += f", the primary's timeline {there} " + (
        f"left it at {format_lsn(at)}" if at is not None else f"does not come from timeline {here.timeline}"
    )
    obstacle = rewind_obstacle(local, here, source, common)
    if obstacle:
        whole = f"{reason}; pg_rewind is not possible: {obstacle}"
        return by_copy(whole, at, follow=f"not possible: {reason}", rewind=f"not possible: {obstacle}")
    return Decision("rewind", reason, at, {"follow": f"not possible: {reason}"})


def rewind_obstacle(local: Local, here: Position, source: Source, common: Optional[tuple[int, int]]) -> Optional[str]:
    """Why pg_rewind cannot be used on the node, as far as it can be told without trying; None if it can be tried."""
    control = local.control
    if control is None:
        return "pg_control cannot be read"
    if local.history is None:
        return f"the history of timeline {here.timeline} is missing in its pg_wal"
    if common is None:
        return "the timelines of the node and of the primary have no common ancestor"
    if not (control.wal_log_hints or control.data_checksums):
        return "the node has neither data checksums nor wal_log_hints"
    if not control.full_page_writes:
        return "full_page_writes is off on the node"
    if source.full_page_writes is not True:
        return "full_page_writes is off on the primary"
    if source.may_rewind is not True:
        return "the replication account may not execute pg_ls_dir, pg_stat_file and pg_read_binary_file on the primary"
    if here.kind == "standby" and (here.replayed or 0) <= common[1]:
        return "what diverged is not replayed yet, which pg_rewind does not look at"
    if source.oldest_wal is not None and source.oldest_wal > common[1] and not local.restore_command:
        # A rewound node replays all since the fork. Without this it would start, and wait for that WAL for ever.
        return (
            f"the node would then need the primary's WAL from {format_lsn(common[1])} on, the oldest that it still has"
            f" begins at {format_lsn(source.oldest_wal)}, and there is no restore_command"
        )
    return None


def report(local: Local, source: Source) -> list[str]:
    """Both servers in a line each, to be read before anything is done."""
    here = local.position
    words = [f"{local.name}: {local.role}, data {local.data} in {local.real_directory}"]
    if here is not None:
        reach = "an unknown position" if here.lsn is None else format_lsn(here.lsn)
        words.append(f"timeline {here.timeline} up to {reach}")
    words.append(f"{_mb(local.free_bytes)} free beside it")
    if source.error is not None:
        return [", ".join(words), f"{source.where}: {source.error}"]
    role = {True: "standby", False: "primary", None: "unknown"}[source.in_recovery]
    theirs = [f"{source.where}: {role}, system {source.system_identifier}", f"timeline {source.timeline}"]
    if source.flush_lsn is not None:
        theirs[-1] += f" up to {format_lsn(source.flush_lsn)}"
    if source.size_bytes is not None:
        theirs.append(f"{_mb(source.size_bytes)} in its databases")
    return [", ".join(words), ", ".join(theirs)]


def guards(local: Local, source: Source, wish: Wish, decision: Decision) -> list[dict[str, Any]]:
    """What is looked at before a node is touched, at once: `{name, ok, hard, detail}`; what is not known is not ok.

    All that are hard must hold.
    """
    found: list[dict[str, Any]] = []

    def check(name: str, ok: bool, good: str, bad: str, hard: bool = True) -> None:
        found.append({"name": name, "ok": ok, "hard": hard, "detail": good if ok else bad})

    _guard_source(local, source, wish, check)
    if decision.method == "none":
        return found
    _guard_node(local, wish, decision, check)
    if source.error is None:
        if local.role in ("standby", "stopped", "absent"):  # else the other checks say it better
            check("method", decision.method != "refuse", f"{decision.method}: {decision.reason}", decision.reason)
        _guard_slot(local, source, wish, decision, check)
    if decision.method == "rewind":
        check(
            "source_checkpoint",
            source.checkpoint_timeline == source.timeline,
            f"the last checkpoint of {source.where} is on timeline {source.timeline}",
            f"the last checkpoint of {source.where} is on timeline {source.checkpoint_timeline or 'unknown'}, it writes"
            f" on {source.timeline or 'unknown'} and pg_rewind would see no divergence: run CHECKPOINT there",
        )
    if decision.method in ("rewind", "zfs", "basebackup"):
        _guard_directory(local, decision, check)
    if decision.method == "basebackup" and local.seed != "complete":
        _guard_copy(local, source, check)
    if source.full_page_writes is False and decision.method != "zfs":
        check(
            "torn_pages",
            not local.torn_pages,
            f"full_page_writes is off on {source.where}, and {local.real_directory} is on ZFS too",
            f"full_page_writes is off on {source.where}, and {local.real_directory} on {local.name} is not on ZFS: "
            "after a crash there pages would be torn, and nothing would mend them; set full_page_writes = on",
        )
    return found


def _guard_source(local: Local, source: Source, wish: Wish, check: Any) -> None:
    check("source_answers", source.error is None, f"{source.where} answers", f"{source.error}")
    if source.error is not None:
        return
    check(
        "source_direct",
        not source.addresses,
        f"{source.where} is one server",
        f"{source.where} stands for {', '.join(source.addresses)}, so which server it is next time nobody knows: name"
        " one address",
    )
    check(
        "source_primary",
        source.in_recovery is False,
        f"{source.where} is a primary",
        f"{source.where} is itself in recovery: name the primary",
    )
    check(
        "source_other",
        not source.is_this_node,
        f"{source.where} is another server than this node",
        f"{source.where} is this very node: name the primary",
    )
    theirs = source.system_identifier
    expected = {
        "asked for": wish.system_identifier,
        "of the node": local.control.system_identifier if local.control else None,
    }
    wrong = [f"{identifier} is {what}" for what, identifier in expected.items() if identifier not in (None, theirs)]
    check(
        "system_identifier",
        theirs is not None and not wrong,
        f"the primary's system identifier is {theirs}",
        f"the system identifier of {source.where} is {theirs or 'unknown'}, but"
        f" {' and '.join(wrong) or 'unknown is no answer'}: another cluster, see the addresses and the data directory",
    )
    versions = {
        "programs": local.program_version,
        "data directory": local.major_version if local.data == "cluster" else source.major_version,
    }
    other = [
        f"its {what} of {version or 'unknown'}" for what, version in versions.items() if version != source.major_version
    ]
    check(
        "major_version",
        source.major_version is not None and not other,
        f"both are PostgreSQL {source.major_version}",
        f"{source.where} runs PostgreSQL {source.major_version or 'unknown'}, the node has {' and '.join(other)}:"
        " install and name that version (bin_directory)",
    )


def _guard_node(local: Local, wish: Wish, decision: Decision, check: Any) -> None:
    known = local.role in ("primary", "standby", "stopped", "absent") and local.data in ("absent", "empty", "cluster")
    check(
        "node_known",
        known,
        f"{local.name} is {local.role}",
        f"the state of {local.name} is not known: {local.reason or 'no reason given'}",
    )
    mine = (None, wish.application_name or local.name)
    check(
        "identity",
        local.calls_itself in mine or local.uses_slot in (None, wish.slot),
        f"it is {local.name} by its own configuration" if local.calls_itself else "its configuration names no other",
        f"{local.real_directory} calls itself {local.calls_itself} and uses slot {local.uses_slot}: this is another"
        f" node than {local.name}, see the address of {local.name} in the inventory",
    )
    check("node_not_primary", local.role != "primary", f"{local.name} is no primary", f"{local.name} runs as a primary")
    check(
        "processes",
        not local.processes,
        "no process is left of a stopped server",
        f"processes {', '.join(map(str, local.processes))} still work in {local.real_directory}: end them first",
    )
    if local.role == "standby" and not (decision.method == "follow" and local.configured):
        check(
            "clients",
            local.clients == 0,
            f"no client is connected to {local.name}",
            f"{'an unknown number of' if local.clients is None else local.clients} clients are connected to"
            f" {local.name}: disconnect them first",
        )
        check(
            "senders",
            local.senders == 0,
            f"nobody copies from {local.name}",
            f"{'an unknown number of' if local.senders is None else local.senders} standbys or base backups stream from"
            f" {local.name}: let them follow the primary first",
        )
    if local.data == "cluster" and not _unfinished(local, decision):
        check(
            "confirm",
            wish.confirm == local.name,
            f"{local.name} is confirmed",
            f"{local.real_directory} holds data: confirm must be {local.name}, it is {wish.confirm or 'not given'}",
        )
        check(
            "backup",
            wish.waive_backup,
            "a backup is vouched for, or done without (waive_backup)",
            "nobody vouches for a recent and verified backup: what the node holds is kept, but see that there is one,"
            " and say waive_backup",
            hard=False,
        )
    check(
        "configuration",
        local.config_exists,
        f"{local.config_file} is there",
        f"{local.config_file} is missing: configure the node first",
    )


def _unfinished(local: Local, decision: Decision) -> bool:
    """Whether only what an earlier run began is finished: nothing is stopped, replaced or changed that ever served."""
    return decision.method == "follow" and (local.seed in ("placed", "started") or local.configured)


def _guard_slot(local: Local, source: Source, wish: Wish, decision: Decision, check: Any) -> None:
    slot, what = source.slot, f"slot {wish.slot} on {source.where}"
    if slot is None:
        check("slot", False, "", f"there is no {what}: create it first, reserving WAL at once")
        return
    trouble = None
    if slot["type"] != "physical":
        trouble = f"{what} is {slot['type']}, not physical: name another"
    elif slot["wal_status"] == "lost":
        trouble = f"{what} is lost, it fell behind too far: drop it and create it again"
    elif slot["active"] and not (local.leftovers or (local.role == "standby" and local.receiving_slot == wish.slot)):
        trouble = (
            f"{what} is in use by process {slot['active_pid']}: another standby has it, or this one's last connection"
            " is not over"
        )
    elif slot["restart_lsn"] is None and decision.method in ("zfs", "basebackup"):
        trouble = (
            f"{what} holds no WAL, some could vanish during the copy: drop it and create it again reserving WAL at once"
        )
    check("slot", trouble is None, f"{what} is there and free", trouble or "")


def _guard_directory(local: Local, decision: Decision, check: Any) -> None:
    inside = local.config_file.startswith(local.real_directory + "/")
    trouble = None
    if local.mount_point and decision.method != "zfs":
        trouble = f"{local.real_directory} is a mount point and cannot be renamed: put the data one directory deeper"
    elif inside:
        trouble = (
            f"{local.config_file} lies in the data directory and would be overwritten: keep the configuration elsewhere"
        )
    elif local.seed == "foreign":
        trouble = f"{local.real_directory}.seeding is not of our making, or a server has run there: move it away"
    check("directory", trouble is None, f"{local.real_directory} can be renamed", trouble or "")


def _guard_copy(local: Local, source: Source, check: Any) -> None:
    check(
        "wal_directory",
        not local.wal_elsewhere,
        "pg_wal is no symbolic link",
        f"{local.real_directory}/pg_wal is a symbolic link, which a base backup would not keep: make it a directory"
        " first",
    )
    check(
        "tablespaces",
        not local.occupied,
        "the locations of the tablespaces are free",
        f"the primary has tablespaces in {', '.join(local.occupied)}, where something lies on this host: move that away"
        " first",
    )
    needed = None if source.size_bytes is None or source.wal_bytes is None else source.size_bytes + source.wal_bytes
    unknown = "how much the primary holds is not known: let the replication account connect to all its databases, or " \
        "grant it pg_read_all_stats" if needed is None else "how much room there is is not known"  # fmt: skip
    enough = needed is not None and local.free_bytes is not None and local.free_bytes >= needed
    room = f"the copy takes up to {_mb(needed)}, {_mb(local.free_bytes)} are free beside {local.real_directory}"
    check("space", enough, room, unknown if needed is None or local.free_bytes is None else f"{room}: make room first")


def _mb(size: Optional[int]) -> str:
    return "an unknown size" if size is None else f"{size / 1e6:.0f} MB"
