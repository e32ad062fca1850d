# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the timer of the role zfs does: a snapshot of a node's datasets, sent to its copy in a backup pool.

Every node has the timer, since roles swap, and decides itself whether it is its turn. Each has a copy of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Optional

from .config_file import read_config_file
from .rebuild_look import cursor_of
from .rebuild_zfs_look import COPIED
from .records import listed, size
from .server import ConnectFailed, Instance, connect
from .shell import HotspareError, run, write_durably
from .zfs import NAME, Login, Side, look
from .zfs_copy import NOTE, PREFIX, PROPERTIES, Note, alone, without_note
from .zfs_layout import read_layout
from .zfs_refusals import Keep, Want
from .zfs_send import work

WANTED = ("standby", "primary")
CHECKPOINT_SECONDS = 3600.0  # a restartpoint waits until the running one has ended
CALENDAR_SECONDS = 20.0
DOWN = ("refused", "starting", "shutting_down")  # a server that does not serve, which is no mistake here


@dataclass(frozen=True)
class Backup:
    """`dataset`: of this node's copy. `login`: how its host is reached, None for a pool of this one."""

    dataset: str
    wanted: str
    login: Optional[Login]
    keep: Keep
    on_calendar: str

    def __post_init__(self) -> None:
        if self.wanted not in WANTED:
            raise ValueError(f"it is to be taken from {self.wanted!r}, which is none of {', '.join(WANTED)}")
        if not NAME.fullmatch(self.dataset) or "/" not in self.dataset:
            raise ValueError(f"{self.dataset!r} is no dataset below a pool")

    def __str__(self) -> str:
        return f"{self.dataset} on {self.login.host}" if self.login else self.dataset


@dataclass(frozen=True)
class BackupConfig:
    """`peers`: the other nodes. `backup` None: none are wanted. `status`, `record`: files, see zfs_status.py."""

    node: Instance
    peers: tuple[str, ...]
    dataset: str
    status: str
    record: str
    backup: Optional[Backup]


def read_backup_config(path: str) -> BackupConfig:
    """HotspareError when it is not there or not one of ours."""
    return read_config_file(path, "zfs", _parse)


def _parse(found: Mapping[str, Any]) -> BackupConfig:
    wanted = found["backup"]
    return BackupConfig(
        node=Instance(**found["node"]),
        peers=tuple(found["peers"]),
        dataset=found["dataset"],
        status=found["status"],
        record=found["record"],
        backup=Backup(
            dataset=wanted["dataset"],
            wanted=wanted["from"],
            login=Login(**wanted["login"]) if wanted["login"] else None,
            keep=_keep(**wanted["keep"]),
            on_calendar=wanted["on_calendar"],
        )
        if wanted
        else None,
    )


def _keep(count: object = None, days: object = None) -> Keep:
    """As an inventory has them, where a number may be a word."""
    return Keep(None if count is None else int(str(count)), None if days is None else float(str(days)))


# ---------------------------------------------------------------------------------------------------------------------
# Whose turn it is
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """What the server of this node is now: primary, standby or down (then `why`). `streaming`: who streams from it;
    `receives`: whether a standby has WAL streamed to it; `restores`: whether it has a restore_command, which does not
    tell whether an archive answers; `lsn`: how far it has replayed, or written."""

    role: str
    why: str = ""
    streaming: tuple[str, ...] = ()
    receives: bool = True
    restores: bool = False
    system_identifier: str = ""
    version: int = 0
    lsn: str = ""
    libraries: str = ""
    others: tuple[str, ...] = ()  # its tablespaces


def turn(wanted: str, server: Server, peers: Iterable[str], newest: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether this node takes the snapshot, and why. `newest`: what was recorded of the last one, empty when there is
    none. (Pure.)"""
    if server.role == "down":
        return False, f"its server takes no connections: {server.why}"
    if server.role == "standby" and wanted == "standby" and not server.receives:
        if not server.restores:
            return False, "it is a standby that receives nothing, so what it has is old: see status.yml"
        # It may replay from an archive: then it gets on.
        if newest.get("lsn") and server.lsn in ("", newest["lsn"]):
            return False, (
                f"it is a standby that has replayed nothing since {newest.get('snapshot')} ({newest['lsn']}), so "
                "another snapshot would hold the same: see status.yml, and whether its archive answers"
            )
    if server.role == wanted:
        return True, f"it is {'the primary' if wanted == 'primary' else 'a standby'}, as zfs_backup_from wants it"
    if wanted == "primary":
        return False, "it is a standby, and zfs_backup_from is primary"
    attached = sorted(set(server.streaming) & set(peers))
    if attached:
        return False, f"it is the primary, and {listed(attached)} streams from it: that is where snapshots are taken"
    return True, "it is the primary, and no standby streams from it"


_ASK = """SET search_path = pg_catalog; SELECT json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END,
  'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
  'version', current_setting('server_version_num')::int / 10000,
  'libraries', current_setting('shared_preload_libraries'),
  'receives', EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'),
  'restores', current_setting('restore_command') <> '',
  'streaming', (SELECT json_agg(application_name) FROM pg_stat_replication WHERE state = 'streaming'),
  'tablespaces', (SELECT json_agg(pg_tablespace_location(oid)) FROM pg_tablespace
      WHERE pg_tablespace_location(oid) <> '')
)"""


def ask(instance: Instance) -> Server:
    """HotspareError when the server is there and does not answer as it should."""
    try:
        connection = connect(instance)
    except ConnectFailed as error:
        if error.kind in DOWN:
            return Server("down", why=error.message)
        raise
    with cursor_of(connection, str(instance)) as cursor:
        cursor.execute(_ASK)
        said = cursor.fetchone()[0]
    return Server(
        "standby" if said["in_recovery"] else "primary",
        streaming=tuple(said["streaming"] or ()),
        receives=said["receives"],
        restores=said["restores"],
        system_identifier=said["system_identifier"],
        version=said["version"],
        lsn=said["lsn"] or "",
        libraries=said["libraries"],
        others=tuple(said["tablespaces"] or ()),
    )


def checkpoint(instance: Instance) -> float:
    """On a standby a restartpoint; the seconds that it took. HotspareError."""
    began = time.monotonic()
    connection = connect(instance, statement_timeout=CHECKPOINT_SECONDS)
    with cursor_of(connection, f"CHECKPOINT on {instance}") as cursor:
        cursor.execute("CHECKPOINT")
    return round(time.monotonic() - began, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Taking one
# ---------------------------------------------------------------------------------------------------------------------


def back_up(config: BackupConfig, *, check_mode: bool = False) -> dict[str, Any]:
    """Take one now if it is this node's turn, send it, and give up old ones; what was done. HotspareError.

    In check mode the same is decided and estimated. What came of a run is in the file `config.record`.
    """
    if config.backup is None:
        raise HotspareError(
            f"{config.node.name} has no zfs_backup_dataset, so nothing is backed up: set it in the inventory, and run "
            "site.yml"
        )
    if check_mode:
        return _work(config, config.backup, True)
    with alone(f"{config.status}.lock", f"a backup of {config.node.name}"):
        try:
            done = _work(config, config.backup, False)
        except HotspareError as error:
            _record(config, config.backup, {"state": "failed", "reason": None, "error": error.message})
            raise
        _record(config, config.backup, recorded(done))
    return done


def _work(config: BackupConfig, backup: Backup, check_mode: bool) -> dict[str, Any]:
    server = ask(config.node)
    mine, reason = turn(backup.wanted, server, config.peers, _newest(config))
    done: dict[str, Any] = {
        "node": config.node.name,
        "changed": mine,
        "mine": mine,
        "role": server.role,
        "reason": reason,
        "check_mode": check_mode,
        "copy": str(backup),
    }
    if not mine:
        return done
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(Side())
        there = stack.enter_context(Side(backup.login))
        view = look(here, config.dataset, recursive=True)
        real = os.path.realpath(config.node.data_directory)
        parts = [os.path.realpath(f"{real}/pg_wal"), *server.others]
        paths = read_layout(view, real, parts).paths
        require_inside(parts, paths.values())
        if not check_mode:
            done["checkpoint_seconds"] = checkpoint(config.node)
            server = ask(config.node)
        if server.role != done["role"]:
            raise HotspareError(f"{config.node.name} changed its role meanwhile: the next run looks again")
        told = work(
            here,
            there,
            (config.dataset, backup.dataset),
            want(backup.keep if check_mode else None),
            check_mode=check_mode,
            status_file=config.status,
        )
        done.update({key: told[key] for key in TOLD}, lsn=server.lsn)
        # Held by runs that were killed before anything had arrived: no other one is under way.
        done["released"] = sorted({one["snapshot"].partition("@")[2] for one in told["stale_holds"]})
        if check_mode:
            return done
        made = look(here, config.dataset, recursive=False).datasets[""].named(told["snapshot"])
        done["taken"] = float(made.creation) if made else _now()
        done["guid"] = made.guid if made else None
        note = Note(
            node=config.node.name,
            role=server.role,
            system_identifier=server.system_identifier,
            version=server.version,
            account=config.node.account,
            bin_directory=config.node.bin_directory,
            data_directory=real,
            paths={below: os.path.normpath(path) for below, path in paths.items()},
            libraries=server.libraries,
            lsn=server.lsn,
            taken=done["taken"],
        )
        _note(there, backup.dataset, note, told["snapshot"])
        # Not before: without its note a copy cannot be restored.
        wanted = want(backup.keep)
        for name in done["released"]:  # else they would keep room in the node's own pool for ever
            work(here, there, (config.dataset, backup.dataset), replace(wanted, state="released", snapshot=name))
        left = work(here, there, (config.dataset, backup.dataset), replace(wanted, state="pruned"))
        done["pruned"] = [*done["pruned"], *left["pruned"]]
    return done


def _note(there: Side, dataset: str, note: Note, name: str) -> None:
    """Of the snapshot `name`, and of those that a run has sent which was killed before it had noted anything of them:
    how far their WAL goes nobody knows any more, and they need no more datasets than they have."""
    view, found = without_note(there, dataset)
    for one in found:
        paths = {below: path for below, path in note.paths.items() if view.datasets[below].named(one.name)}
        own = note if one.name == name else replace(note, paths=paths, lsn="", taken=float(one.creation))
        there.run("zfs", "set", f"{NOTE}={own.written()}", f"{dataset}@{one.name}")


def require_inside(parts: Iterable[str], mountpoints: Iterable[str]) -> None:
    """HotspareError where a part of the server only seems to lie in its datasets: something else is mounted there."""
    devices = {os.stat(path).st_dev for path in mountpoints}
    for path in parts:
        if os.stat(path).st_dev not in devices:
            raise HotspareError(
                f"{path} is on another file system than the datasets, so it would be missing in a snapshot: see "
                f"findmnt -T {path}, and put it in a dataset below the one that holds the data"
            )


TOLD = "snapshot kind sent_bytes estimated_bytes seconds rate pruned renamed".split()


def want(keep: Optional[Keep]) -> Want:
    """On the node itself only the one is kept that the next is sent from, whatever comes of this one. Without `keep`
    nothing is given up of the copies. What is encrypted goes as it is: their host needs no key, but for a restore."""
    return Want(
        prefix=PREFIX,
        recursive=True,
        in_the_way="rename",
        raw=True,
        properties=PROPERTIES,
        copied=COPIED,
        keep_source=Keep(count=1),
        keep_target=keep or Keep(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Telling
# ---------------------------------------------------------------------------------------------------------------------


def recorded(done: Mapping[str, Any]) -> dict[str, Any]:
    """What status.yml is to know of a run. (Pure.)"""
    if not done["mine"]:
        return {"state": "skipped", "reason": done["reason"], "error": None}
    keys = ("snapshot", "guid", "lsn", "taken", "kind", "sent_bytes", "seconds")
    return {"state": "done", "reason": done["reason"], "error": None, "newest": {key: done[key] for key in keys}}


def _record(config: BackupConfig, backup: Backup, news: Mapping[str, Any]) -> None:
    at = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    kept = {"newest": _newest(config) or None}
    record = {**kept, **news, "at": at, "late_after": _late_after(backup.on_calendar)}
    write_durably(config.record, json.dumps(record, indent=1) + "\n", mode=0o644)


def _newest(config: BackupConfig) -> dict[str, Any]:
    """What was recorded of the last snapshot that arrived; empty when there is none."""
    try:
        with open(config.record, encoding="utf-8") as file:
            before = json.load(file)
    except (OSError, ValueError):  # the first one, or what a crash of the disk left
        return {}
    found = before.get("newest") if isinstance(before, dict) else None
    return found if isinstance(found, dict) else {}


def _late_after(on_calendar: str) -> Optional[float]:
    """When the timer has to have run twice more, in seconds since 1970; None where systemd does not say."""
    words = ("systemd-analyze", "calendar", "--iterations=2", on_calendar)
    done = run(words, timeout=CALENDAR_SECONDS, check=False)
    return last_elapse(done.stdout) if done.rc == 0 else None


def last_elapse(text: str) -> Optional[float]:
    """Of what systemd-analyze(1) calendar prints; a host in another zone is told each time in UTC, too. (Pure.)"""
    found = re.findall(r"^.*?: \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC$", text, re.MULTILINE)
    if not found:
        return None
    return datetime.strptime(found[-1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc).timestamp()


def _now() -> float:
    return datetime.now(timezone.utc).timestamp()


def sentences(done: Mapping[str, Any]) -> Sequence[str]:
    """For the journal and the operator. (Pure.)"""
    if not done["mine"]:
        return [f"{done['node']} takes no snapshot: {done['reason']}"]
    said = [f"{done['node']} {'would take' if done['check_mode'] else 'takes'} the snapshot: {done['reason']}"]
    much = "of unknown size" if done["estimated_bytes"] is None else f"about {size(done['estimated_bytes'])}"
    if done["check_mode"]:
        said.append(f"would be sent to {done['copy']}: {done['kind']}, {much}")
    else:
        rate = f", {size(done['rate'])}/s" if done["rate"] else ""
        said.append(f"CHECKPOINT took {done['checkpoint_seconds']:.1f} s; the snapshot holds at least {done['lsn']}")
        said.append(
            f"sent to {done['copy']}: {done['snapshot']} ({done['kind']}, {size(done['sent_bytes'])} in "
            f"{done['seconds']:.1f} s{rate})"
        )
    if done["renamed"]:
        said.append(f"what was there has nothing in common with it any more, and is kept as {done['renamed']}")
    would_be = "would be " if done["check_mode"] else ""
    if done["released"]:
        names = ", ".join(done["released"])
        said.append(f"{would_be}released for retention: {names}, held by an earlier run and needed by nobody")
    gone = [one["snapshot"] for one in done["pruned"] if one["side"] == "destination"]
    if gone:
        said.append(f"{would_be}removed of the copy, by zfs_backup_keep: {', '.join(gone)}")
    return said
