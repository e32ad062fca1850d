# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who needs WAL of the archive, and from where on: every server, its slots, base backups, and what the operator keeps.

A server needs it from the REDO position of its last checkpoint on, not from where it replays: with that it starts
again. A server that does not answer may need anything, and so nothing is removed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from .archive import Entry, Identity
from .archive_config import ArchiveConfig, Keep
from .archive_gaps import FOUND, GapReport
from .archive_retention import Need
from .peers import Peer
from .server import Instance, bounded, connect, connect_conninfo
from .shell import HotspareError
from .wal import parse_lsn, parse_segment_name

ASK_SECONDS = 3.0  # to connect to a server, and again for its answer
DAY = 86400

# What a replication account may ask as well. A slot that has lost its WAL, or never kept any, needs none.
# No view tells of backups by pg_backup_start(), called pg_start_backup() up to 14. But each has a session that lives
# until it ends (an exclusive one, up to 14, has a file), and what that said last is seen, unless it said something else
# since: pgBackRest and Barman do, and are known by their names. The pattern does not find itself in another's question.
QUESTION = r"""SET search_path = pg_catalog;
SELECT json_build_object(
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'redo', (SELECT redo_lsn FROM pg_control_checkpoint()),
  'slots', (SELECT json_object_agg(slot_name, restart_lsn) FROM pg_replication_slots
    WHERE restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost'),
  'backups', (SELECT count(*) FROM pg_stat_progress_basebackup),
  'exclusive', (SELECT size IS NOT NULL FROM pg_stat_file('backup_label', true)),
  'sessions', (SELECT json_agg(coalesce(nullif(application_name, '') || ', ', '') || 'process ' || pid ORDER BY pid)
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND (query ~* 'pg_(backup_start|start_backup)' OR application_name ~* '^(pgbackrest \[backup|barman)')),
  'hidden', (SELECT count(*) FROM pg_stat_activity WHERE query = '<insufficient privilege>'
    AND datid IS NOT NULL AND usesysid IS NOT NULL))"""

_NO_BACKUP = Need(
    "backup",
    "recovery",
    None,
    "the archive has the .backup file of no base backup; take one from the primary with pg_basebackup, since one from a"
    " standby leaves none",
)

_LOCATION = r"([0-9A-F]+/[0-9A-F]+) \(file ([0-9A-F]{24})\)"
_LINES = {
    "start": re.compile(rf"START WAL LOCATION: {_LOCATION}"),
    "stop": re.compile(rf"STOP WAL LOCATION: {_LOCATION}"),
    "started": re.compile(r"START TIME: (.+)"),
    "label": re.compile(r"LABEL: (.*)"),
}


@dataclass(frozen=True)
class Backup:
    """A base backup as its .backup file tells of it; `started` is text, in the time zone of the server's log."""

    start_lsn: int
    start_name: str
    stop_lsn: int
    timeline: int
    started: str
    label: str

    def file_name(self, segment_size: int) -> str:
        return f"{self.start_name}.{self.start_lsn % segment_size:08X}.backup"


def parse_backup(text: str) -> Backup:
    """From the text of a .backup file; HotspareError (manual: "Making a Base Backup Using the Low Level API")."""
    found = {}
    for key, pattern in _LINES.items():
        match = next((match for match in map(pattern.fullmatch, text.split("\n")) if match), None)
        if match is None:
            raise HotspareError(f"a .backup file has no line for the {key} of its base backup: {text[:60]!r}")
        found[key] = match
    return Backup(
        start_lsn=parse_lsn(found["start"][1]),
        start_name=found["start"][2],
        stop_lsn=parse_lsn(found["stop"][1]),
        timeline=int(found["start"][2][:8], 16),
        started=found["started"][1],
        label=found["label"][1],
    )


def oldest_restorable(report: GapReport, backups: Iterable[Backup], segment_size: int) -> Optional[Backup]:
    """The oldest base backup from which an archive leads up to now; None = it knows of none. (Pure.)"""
    if report.complete_from is None:
        return None
    whole_from = parse_segment_name(report.complete_from, segment_size).start_lsn
    found = [stretch for stretch in report.stretches if stretch.state == FOUND]
    usable = [
        backup
        for backup in backups
        if backup.start_lsn >= whole_from and any(s.first <= backup.start_name <= s.last for s in found)
    ]
    return min(usable, key=lambda backup: backup.start_lsn, default=None)


def needs(
    config: ArchiveConfig, entries: Iterable[Entry], backups: Iterable[Backup], now: float, *, identity: Identity
) -> list[Need]:
    """All that archive_retention.cut() has to know; asks every server of the cluster, one after the other.

    `entries` and `backups` are what the archive holds, `now` seconds since 1970. What cannot be told is a need of
    unknown position, never an error.
    """
    if config.keep is None:
        return [Need("keep", "the operator", None, "archive_keep is not set")]
    account = config.node.account if config.node else pwd.getpwuid(os.geteuid()).pw_name
    servers: dict[str, Callable[[], Any]] = {peer.name: partial(_to_peer, peer, account) for peer in config.peers}
    if config.node:
        servers[config.node.name] = partial(_to_node, config.node)
    found = [need for name in servers for need in _asked(name, servers[name], identity.system_identifier)]
    return found + kept(config.keep, list(entries), list(backups), now, identity.segment_size)


def kept(keep: Keep, entries: Sequence[Entry], backups: Iterable[Backup], now: float, segment_size: int) -> list[Need]:
    """What the operator wants to be kept (pure); the least number of segments is cut()'s own matter.

    WAL is worth nothing without a base backup to begin with. One that the archive knows nothing of, as one from a
    standby, which leaves no .backup file, may be all that somebody has: without a known one nothing is removed.
    """
    ordered = sorted(backups, key=lambda backup: backup.start_lsn)
    starts = {e.name: parse_segment_name(e.name, segment_size).start_lsn for e in entries if e.kind == "segment"}
    found = []
    if keep.backups:
        oldest = ordered[-keep.backups :][:1]
        found += [_of_backup(backup, f"the newest {keep.backups} base backups are kept") for backup in oldest]
        found += [] if oldest else [_NO_BACKUP]
    elif keep.segments and not keep.days:
        found += [_of_backup(backup, "the newest base backup is kept") for backup in ordered[-1:]]
        found += [] if ordered or len(set(starts.values())) <= keep.segments else [_NO_BACKUP]
    if keep.days:
        came = {entry.name: entry.mtime for entry in entries}
        # Counted from the newest file: a clock that leaps ahead, or a primary that is down, must not age the archive.
        since = min(now, max(came.values(), default=now)) - keep.days * DAY
        young = [start for name, start in starts.items() if came[name] >= since]
        if young:
            found.append(Need("window", "the archive", min(young), f"what came in its last {keep.days:g} days is kept"))
        ended = [b for b in ordered if came.get(b.file_name(segment_size), now) <= since]
        if ended:
            found.append(_of_backup(ended[-1], f"recovery to a time {keep.days:g} days ago begins with it"))
        elif ordered and starts:
            why = f"no base backup is known from more than {keep.days:g} days ago, and one may need this"
            found.append(Need("backup", "the archive", min(starts.values()), why))
        elif len(young) < len(starts):
            found.append(_NO_BACKUP)
    return found


def answered(name: str, answer: Mapping[str, Any], system_identifier: int) -> list[Need]:
    """The needs of a server that gave this answer to QUESTION (pure)."""
    if answer["system_identifier"] != str(system_identifier):
        other = f"it belongs to another cluster, {answer['system_identifier']}, not to {system_identifier}"
        return [Need("server", name, None, other)]
    found = [Need("server", name, parse_lsn(answer["redo"]), "its last checkpoint begins there")]
    for slot, position in sorted((answer["slots"] or {}).items()):
        found.append(Need("slot", f"slot {slot} of {name}", parse_lsn(position), "who uses it has not confirmed more"))
    taken = ["pg_basebackup or the like"] if answer["backups"] else []
    taken += ["an exclusive backup, see backup_label"] if answer["exclusive"] else []
    taken += answer["sessions"] or []
    if taken:
        # It began before, and nobody can tell where.
        detail = f"a base backup is being taken from it ({', '.join(taken)}); wait for its end"
        found.append(Need("running_backup", name, None, detail))
    elif answer["hidden"]:
        detail = f"a backup may be taken from it, {answer['hidden']} of its sessions do not show what they do"
        found.append(Need("running_backup", name, None, f"{detail}; run site.yml, which grants that to who asks"))
    return found


def _of_backup(backup: Backup, detail: str) -> Need:
    return Need("backup", f"base backup {backup.label!r} of {backup.started}", backup.start_lsn, detail)


def _asked(name: str, connecting: Callable[[], Any], system_identifier: int) -> list[Need]:
    try:
        with bounded(2 * ASK_SECONDS):
            return answered(name, _answer(connecting), system_identifier)
    except HotspareError as error:
        return [Need("server", name, None, error.message)]
    except TimeoutError:
        return [Need("server", name, None, f"it did not answer within {2 * ASK_SECONDS:g} s")]


def _answer(connecting: Callable[[], Any]) -> Mapping[str, Any]:
    connection = connecting()  # which says so where psycopg2 is missing
    import psycopg2

    try:
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(QUESTION)
            answer: Mapping[str, Any] = cursor.fetchone()[0]
            return answer
    except psycopg2.Error as error:
        raise HotspareError(f"it does not say: {' '.join(str(error).split())}") from error


def _to_node(instance: Instance) -> Any:
    return connect(instance, timeout=ASK_SECONDS, statement_timeout=ASK_SECONDS)


def _to_peer(peer: Peer, account: str) -> Any:
    conninfo = {"host": peer.host, "port": peer.port, "user": peer.user, "passfile": peer.passfile}
    return connect_conninfo(conninfo, account=account, timeout=ASK_SECONDS, statement_timeout=ASK_SECONDS)
