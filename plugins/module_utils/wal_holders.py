# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has WAL: archives, the pg_wal of this node, and that of the other nodes, all looked at in the same way.

In pg_wal counts what PostgreSQL writes to no more, whatever archive_status says of it: a standby marks as archived what
it streamed, and nobody may ever have archived it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Optional

from . import store
from .archive import Entry, Identity, source
from .archive_config import ArchiveConfig, Place
from .archive_gaps import END, Span, chain
from .archive_link import Destination, Digest, connect, identity_of
from .peers import Peer
from .replication import read_state
from .server import Instance, connect_conninfo
from .shell import HotspareError, as_account
from .wal import HistoryEntry, Segment, parse_lsn, parse_segment_name
from .wal_file import kind

ASK_SECONDS = 3.0  # to connect to another node, and again for each answer
BLOCK = 1 << 20

# What pg_rewind may, too: roles/primary grants it to the replication account.
LISTING = """SET search_path = pg_catalog;
SELECT (SELECT system_identifier::text FROM pg_control_system()),
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
  ARRAY(SELECT pg_ls_dir('pg_wal', true, false))"""
READING = "SELECT pg_catalog.pg_read_binary_file(%s, %s, %s, true)"


@dataclass(frozen=True)
class Server:
    """What the server of this node says of its WAL.

    role: primary, standby, stopped, or unknown for the `reason`. position: up to where it has WAL on disk (bytes).
    """

    role: str
    timeline: int
    history: tuple[HistoryEntry, ...]
    position: int
    identity: Identity
    reason: Optional[str] = None

    @cached_property
    def spans(self) -> list[Span]:
        """Which segments belong to its history, by timeline."""
        return chain(self.timeline, self.history, self.identity.segment_size)

    def ancestors(self, timeline: int) -> Optional[tuple[HistoryEntry, ...]]:
        """The history of a timeline that ours went through; None of another one."""
        if timeline not in (self.timeline, *(entry.timeline for entry in self.history)):
            return None
        return tuple(entry for entry in self.history if entry.timeline < timeline)


def read_server(node: Instance) -> Server:
    """Also of a server that is stopped; HotspareError when it does not tell enough."""
    state = read_state(node)
    control, history = state["control"], state["history"]
    if control is None or history is None:
        why = state["reason"] or next((problem["message"] for problem in state["problems"]), "its WAL has no history")
        raise HotspareError(f"{node} does not tell which WAL it has: {why}; see pg_replication_state")
    return Server(
        role=state["role"],
        timeline=state["timeline"],
        history=tuple(HistoryEntry(entry["timeline"], parse_lsn(entry["switch_lsn"]), "") for entry in history),
        # A server that does not answer has at least all up to its last checkpoint.
        position=parse_lsn(state["lsn"]["held"] or control["checkpoint_lsn"]),
        identity=Identity(int(control["system_identifier"]), control["wal_segment_size"]),
        reason=state["reason"],
    )


def complete(names: Iterable[str], server: Server, position: int) -> list[str]:
    """Of the names in a pg_wal that goes up to `position`, those that are whole and belong to our history. (Pure.)"""
    size = server.identity.segment_size
    found = []
    for name in names:
        segment = _segment(name, size) if kind(name) == "segment" else None
        if segment is not None:
            whole = segment.start_lsn + size <= position
            ours = any(s.timeline == segment.timeline and s.begin <= segment.number < s.end for s in server.spans)
            if whole and ours:
                found.append(name)
        elif kind(name) in ("history", "partial", "backup"):
            found.append(name)
    return sorted(found)


def stray(name: str, server: Server) -> bool:
    """Whether a file goes nowhere: an ancestor wrote it after the switch, or its timeline is newer than ours. (Pure.)

    The first an old primary wrote, the other a server that was promoted beside ours: who recovers would follow it.
    """
    timeline = int(name[:8], 16)
    if timeline > server.timeline or kind(name) == "history":
        return timeline > server.timeline
    segment = _segment(name[:24], server.identity.segment_size)
    end = next((span.end for span in server.spans[:-1] if span.timeline == timeline), END)
    # Of the segment with the switch there is a .partial, and a backup may have begun in it.
    return segment is None or segment.number >= (end if kind(name) == "segment" else end + 1)


def superseded(archived: Iterable[str], server: Server) -> Optional[str]:
    """Why WAL of this server does not count: others have left its timeline, and where it did not follow. (Pure.)

    Of a primary it counts. One that is promoted beside it must not end its archive.
    """
    newer = [name for name in archived if kind(name) == "history" and int(name[:8], 16) > server.timeline]
    if server.role == "primary" or not newer:
        return None
    return f"it is on timeline {server.timeline} and {max(newer)} is archived: what it wrote last may belong to nobody"


def account_of(config: ArchiveConfig) -> str:
    """Whose the archive of this host is; HotspareError."""
    if config.node is not None:
        return config.node.account
    try:
        return pwd.getpwuid(os.stat(config.directory).st_uid).pw_name
    except (OSError, KeyError) as error:
        raise HotspareError(
            f"nobody knows whose {config.directory} is ({error}): run site.yml, which makes it"
        ) from error


def ready(node: Instance) -> list[str]:
    """What the archiver of this node has yet to archive, HotspareError."""
    try:
        names = os.listdir(node.path("pg_wal", "archive_status"))
    except OSError as error:
        raise HotspareError(f"cannot read archive_status of {node}: {error.strerror}; see whose it is") from error
    return sorted(name[: -len(".ready")] for name in names if name.endswith(".ready"))


def _segment(name: str, segment_size: int) -> Optional[Segment]:
    try:
        return parse_segment_name(name, segment_size)
    except ValueError:  # of a cluster with other segments
        return None


class Holder:
    """Who has WAL. `held`: bytes by name, as they lie there; `error`: why it is not known what there is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: dict[str, int] = {}
        self.error: Optional[str] = None

    def file(self, name: str) -> AbstractContextManager[str]:
        """A path under which a file's content can be read; HotspareError."""
        raise NotImplementedError

    def digest(self, names: Iterable[str]) -> dict[str, Digest]:
        """The content of each of these, read again; HotspareError."""
        raise NotImplementedError

    def leave_out(self, reason: str) -> None:
        """Nothing is taken from it."""
        self.held, self.error = {}, reason


class OwnWal(Holder):
    """The pg_wal of this node."""

    def __init__(self, node: Instance, server: Server) -> None:
        super().__init__(f"pg_wal of {node.name}")
        self.written: dict[str, float] = {}  # when (seconds since 1970) each was last written to
        self._directory = node.path("pg_wal")
        try:
            found = {entry.name: entry.stat() for entry in os.scandir(self._directory) if entry.is_file()}
            whole = complete(found, server, server.position)
            self.held = {name: found[name].st_size for name in whole}
            self.written = {name: found[name].st_mtime for name in whole}
        except OSError as error:
            self.error = f"cannot read {self._directory}: {error.strerror}; see whose it is"

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[str]:
        path = os.path.join(self._directory, name)
        if not os.path.exists(path):
            raise HotspareError(f"{self.name} has no {name} any more")
        yield path

    def digest(self, names: Iterable[str]) -> dict[str, Digest]:
        return {name: self._digest(name) for name in names}

    def _digest(self, name: str) -> Digest:
        found, size = hashlib.sha256(), 0
        try:
            for block in source(os.path.join(self._directory, name)):
                found.update(block)
                size += len(block)
        except HotspareError as error:  # it was recycled
            return Digest(None, None, error.message)
        return Digest(found.hexdigest(), size)


class PeerWal(Holder):
    """The pg_wal of another node, seen through its replication account: its segments."""

    def __init__(self, peer: Peer, config: ArchiveConfig, server: Server) -> None:
        super().__init__(f"pg_wal of {peer.name}")
        self._peer = peer
        self._config = config
        try:
            with self._asking() as cursor:
                cursor.execute(LISTING)
                identifier, position, names = cursor.fetchone()
        except HotspareError as error:
            self.error = error.message
            return
        if identifier != str(server.identity.system_identifier):
            self.error = f"{peer.where} belongs to another cluster, {identifier}: see who has its address"
        elif position is not None:
            segments = [name for name in names if kind(name) == "segment"]
            self.held = dict.fromkeys(complete(segments, server, parse_lsn(position)), server.identity.segment_size)

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[str]:
        with store.receive(self._config.directory, name) as incoming:
            with self._asking() as cursor:
                block = None
                while block is None or len(block) == BLOCK:
                    cursor.execute(READING, (f"pg_wal/{name}", incoming.size, BLOCK))
                    block = cursor.fetchone()[0]
                    if block is None:
                        raise HotspareError(f"{self.name} has no {name} any more")
                    incoming.write(bytes(block))
            yield incoming.temporary

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Any]:
        import psycopg2

        names = ("host", "port", "user", "passfile")
        connection = connect_conninfo(
            {name: getattr(self._peer, name) for name in names},
            account=account_of(self._config),
            timeout=ASK_SECONDS,
            statement_timeout=ASK_SECONDS,
        )
        try:
            with contextlib.closing(connection), connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            raise HotspareError(f"{self._peer.where} does not say: {' '.join(str(error).split())}") from error


class Archived(Holder):
    """An archive: a destination, or our own store (`own`), as long as `stack` is open."""

    def __init__(
        self, place: Place, config: ArchiveConfig, identity: Identity, stack: contextlib.ExitStack, *, own: bool = False
    ) -> None:
        super().__init__(place.name)
        self.own = own
        self.entries: dict[str, Entry] = {}
        self.free_bytes: Optional[int] = None
        self._config = config
        try:
            self.link: Destination = stack.enter_context(connect(place, config))
            hello = self.link.hello()
            if hello["identity"] not in (None, asdict(identity)):
                raise HotspareError(
                    f"{place} is the archive of another cluster, {hello['identity']}: give this one its own"
                )
            self.free_bytes = hello["free_bytes"]
            self.entries = {entry.name: entry for entry in self.link.names()}
            self.held = {name: entry.stored_bytes for name, entry in self.entries.items()}
        except HotspareError as error:
            self.error = error.message

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[str]:
        with store.receive(self._config.directory, name) as incoming:
            for chunk in self.link.get(name):
                incoming.write(chunk)
            yield incoming.temporary

    def digest(self, names: Iterable[str]) -> dict[str, Digest]:
        return self.link.digest(names)

    def read(self, name: str) -> str:
        """The content of a small file; HotspareError."""
        return b"".join(self.link.get(name)).decode(errors="surrogateescape")


class Look:
    """All who have WAL, looked at once. Positions come first: what is archived meanwhile is then nobody's lack.

    `chosen` are the archives that are asked about, the others are there to compare and to take from.
    """

    def __init__(
        self, config: ArchiveConfig, chosen: Collection[str], server: Optional[Server], stack: contextlib.ExitStack
    ) -> None:
        self.config = config
        self.server = server
        self.identity = server.identity if server else identity_of(config)
        self.ready: list[str] = []
        self.own_wal: Optional[OwnWal] = None
        self.peers: list[PeerWal] = []
        if config.node is not None and server is not None:
            self.ready = ready(config.node) if server.role == "primary" else []
            self.own_wal = OwnWal(config.node, server)
            self.peers = [PeerWal(peer, config, server) for peer in config.peers]
        own = Place(config.name, directory=config.directory)
        self.archives = [Archived(place, config, self.identity, stack) for place in config.destinations]
        self.archives.append(Archived(own, config, self.identity, stack, own=True))
        self.chosen = [archive for archive in self.archives if archive.name in chosen]
        if self.own_wal is not None and server is not None:
            reason = superseded((name for archive in self.archives for name in archive.held), server)
            if reason is not None:
                self.own_wal.leave_out(reason)

    @property
    def holders(self) -> list[Holder]:
        """In the order in which a file is taken from them: what is near is quick."""
        near = [] if self.own_wal is None else [self.own_wal]
        return [*near, *sorted(self.archives, key=lambda archive: not archive.own), *self.peers]


@contextlib.contextmanager
def look(
    config: ArchiveConfig, destinations: Optional[Sequence[str]] = None, server: Optional[Server] = None
) -> Iterator[Look]:
    """Look around as the account of the archive; `destinations`: names, default all, and the own store. HotspareError.

    `server`: what read_server() said of this node a moment ago.
    """
    known = [*(place.name for place in config.destinations), config.name]
    chosen = known if destinations is None else destinations
    if strange := [name for name in chosen if name not in known]:
        raise HotspareError(f"{config.name} ships nothing to {strange[0]!r}: its archives are {', '.join(known)}")
    if server is None and config.node is not None:
        server = read_server(config.node)
    with as_account(account_of(config)), contextlib.ExitStack() as stack:
        yield Look(config, chosen, server, stack)
