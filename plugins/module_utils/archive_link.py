# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A destination of WAL, seen from who ships: a directory of this host, or another host at the end of one lasting ssh.

What is refused here or there comes as the same errors: BadWal, Conflict, Full, Missing; Unreachable when there is
nobody to refuse it. An ssh that broke is not mended: whoever uses it connects again.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Optional

from . import archive_known, controldata, ssh
from .archive import COMPRESSED_KINDS, Archive, Entry, Identity, decoded, encoded, source
from .archive_config import ArchiveConfig, Place
from .shell import PATH, HotspareError
from .ssh import ALIVE_COUNT, ALIVE_SECONDS
from .store import Stored
from .version import VERSION
from .wal_file import Check, kind
from .wire import PROTOCOL, Broken, Channel, Garbage, Missing, Payload, Refused, Unreachable, failed

GREETING_SECONDS = 30.0  # until the program has started there
END_SECONDS = 0.5  # an ssh that waits for its network is killed then
BATCH = 1000  # names in one message
LIST_SECONDS = 600.0  # until a large and slow file system has told what it has
TAIL_BYTES = 4000  # of what ssh said

Upload = tuple[Iterable[bytes], Callable[[], Mapping[str, Any]]]


@dataclass(frozen=True)
class Digest:
    """SHA-256 and size of a file's content, read anew; `error` says why there are none."""

    sha256: Optional[str]
    size: Optional[int]
    error: Optional[str] = None


class Destination(abc.ABC):
    """Where WAL is kept; as a context manager it is closed at the end. Every method raises HotspareError.

    What the last hello() told: `identity`, whose archive it is, and `vacant`, whether it is nobody's and never was as
    far as this node has seen; only then may put() found one.
    """

    identity: Optional[Identity] = None
    vacant = False

    def __init__(self, place: Place, config: ArchiveConfig) -> None:
        self.name = place.name
        self._place = place
        self._config = config
        self._directory: Optional[str] = place.directory or None  # of the archive, where it says so
        self._noted = False

    def __enter__(self) -> Destination:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def hello(self, *, wait: Optional[float] = None) -> dict[str, Any]:
        """name, version, directory, identity ({system_identifier, segment_size} or None), free_bytes.

        Unreachable where there was an archive and is none now. `wait`: s, for the answer.
        """
        said = self._hello(wait)
        self._directory = said.get("directory", self._directory)
        self.identity = Identity(**said["identity"]) if said["identity"] else None
        self.vacant = False
        if self.identity is None:
            archive_known.expect_none(self._config.node, self.name, self._directory)
            self.vacant = True
        return said

    def put(self, name: str, path: str) -> Stored:
        """Ship a file of this host; when this returns it is durable there. BadWal, Conflict, Full."""
        stored = self._put(name, path)
        if self.identity is None:
            self.hello()
        self.remember()
        return stored

    def remember(self) -> None:
        """Note that there is an archive, so that none is founded where it should be mounted."""
        if self.identity is not None and not self._noted:
            archive_known.note(self._config.node, self.name, self._directory, self.identity)
            self._noted = True

    @abc.abstractmethod
    def _hello(self, wait: Optional[float]) -> dict[str, Any]:
        """What it says of itself."""

    @abc.abstractmethod
    def _put(self, name: str, path: str) -> Stored:
        """Found the archive where it is vacant, and ship to it."""

    @abc.abstractmethod
    def has(self, names: Iterable[str]) -> dict[str, Entry]:
        """Those of the names that are there."""

    @abc.abstractmethod
    def digest(self, names: Iterable[str]) -> dict[str, Digest]:
        """The content of each, read again there."""

    @abc.abstractmethod
    def names(self) -> list[Entry]:
        """All that is there, by name."""

    @abc.abstractmethod
    def get(self, name: str, *, wait: Optional[float] = None) -> Iterator[bytes]:
        """The content of a file, not verified; Missing (at once, not at the first block). `wait`: s, for the answer."""

    @abc.abstractmethod
    def remove(self, names: Iterable[str]) -> list[str]:
        """Remove these in this order; those that were there."""

    @abc.abstractmethod
    def conflicts(self) -> list[dict[str, Any]]:
        """What was refused and kept there, as Archive.conflicts() tells."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it; nothing to do when it has ended."""


def connect(place: Place, config: ArchiveConfig) -> Destination:
    """One that has said hello. Unreachable; Refused; HotspareError."""
    destination = LocalDestination(place, config) if place.directory else SshDestination(place, config)
    try:
        destination.hello()
    except BaseException:
        destination.close()
        raise
    return destination


def establish_own(config: ArchiveConfig) -> None:
    """Found the archive of this node itself, and note it: from then on one that is empty is not mounted. HotspareError.

    Otherwise whoever ships to it first would, and until then nobody could tell the one from the other.
    """
    with connect(config.own, config) as own:
        if own.vacant:
            Archive(config.directory).establish(**asdict(identity_of(config)))
            own.hello()
        own.remember()


def expect_archive(archive: Archive) -> None:
    """Unreachable when there is none."""
    try:
        identity = archive.identity()
    except HotspareError as error:
        raise Unreachable(error.message, **error.facts) from error
    if identity is None:
        raise Unreachable(f"{archive.directory} is no archive: see that its file system is mounted, and run site.yml")


def identity_of(config: ArchiveConfig) -> Identity:
    """Whose WAL this host has: pg_control says it on a node, its archive elsewhere. HotspareError."""
    if config.node is not None:
        control = controldata.read(config.node.bin_directory, config.node.data_directory, config.node.account)
        return Identity(int(control.system_identifier), control.wal_segment_size)
    identity = Archive(config.directory).identity()
    if identity is None:
        raise HotspareError(f"{config.directory} of {config.name} is nobody's archive yet: there is nothing to ship")
    return identity


def checked(chunks: Iterable[bytes], check: Check) -> Generator[bytes, None, None]:
    """The same, each piece looked at before it goes on; BadWal."""
    for chunk in chunks:
        check.feed(chunk)
        yield chunk


def digest_of(archive: Archive, name: str) -> Digest:
    """One that cannot be read hides no other."""
    try:
        return Digest(*archive.digest(name))
    except HotspareError as error:
        return Digest(None, None, error.message)


# ---------------------------------------------------------------------------------------------------------------------
# A directory of this host
# ---------------------------------------------------------------------------------------------------------------------


class LocalDestination(Destination):
    """The same, in a directory that is there, such as a mounted NAS."""

    def __init__(self, place: Place, config: ArchiveConfig) -> None:
        if not os.path.isdir(place.directory):
            raise Unreachable(f"{place.directory} of {place.name} is not there: mount it, or make it and run site.yml")
        super().__init__(place, config)
        self._ours: Optional[Identity] = None
        self._archive = Archive(place.directory, compression=config.compression)

    def _hello(self, wait: Optional[float]) -> dict[str, Any]:
        return hello(self.name, self._archive)

    def _put(self, name: str, path: str) -> Stored:
        self._ours = self._ours or identity_of(self._config)
        if not self.vacant:
            expect_archive(self._archive)
        self._archive.establish(**asdict(self._ours))
        return self._archive.put(name, path)

    def has(self, names: Iterable[str]) -> dict[str, Entry]:
        found = ((name, self._archive.has(name)) for name in names)
        return {name: entry for name, entry in found if entry is not None}

    def digest(self, names: Iterable[str]) -> dict[str, Digest]:
        return {name: digest_of(self._archive, name) for name in names}

    def names(self) -> list[Entry]:
        return self._archive.inventory()

    def get(self, name: str, *, wait: Optional[float] = None) -> Iterator[bytes]:
        if self._archive.find(name) is None:
            raise Missing(f"{name} is not in the archive of {self.name}")
        return self._archive.read(name)

    def remove(self, names: Iterable[str]) -> list[str]:
        return self._archive.remove(names)

    def conflicts(self) -> list[dict[str, Any]]:
        return self._archive.conflicts()

    def close(self) -> None:
        """There is nothing open."""


def hello(name: str, archive: Archive) -> dict[str, Any]:
    """What a destination says of itself."""
    identity = archive.identity()
    return {
        "name": name,
        "version": VERSION,
        "directory": archive.directory,
        "identity": asdict(identity) if identity else None,
        "free_bytes": archive.free_bytes(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Another host
# ---------------------------------------------------------------------------------------------------------------------


def ssh_command(place: Place) -> list[str]:
    """ssh to a place, less the name of its host, which follows."""
    return ssh.command(
        port=place.port,
        account=place.account,
        identity=place.identity,
        known_hosts=place.known_hosts,
        alive_seconds=ALIVE_SECONDS,
        alive_count=ALIVE_COUNT,
    )


def trouble(place: Place, said: str, noticed: Broken) -> Unreachable:
    """What to tell when a connection is of no use; `said`: by ssh. (Pure.)"""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    facts = {"destination": place.name, "ssh": said[-TAIL_BYTES:]}
    if "Host key verification failed" in said:
        return Refused(
            f"the host key of {place} is not the one in {place.known_hosts}: if that host was made anew, run site.yml, "
            "which reads its key; if it was not, somebody else answers there",
            **facts,
        )
    if "Permission denied (" in said:  # and the methods that were tried
        return Refused(
            f"{place} does not let us in with the key {place.identity}: run site.yml, which authorizes it there",
            **facts,
        )
    if isinstance(noticed, Garbage):
        return Refused(
            f"{place} says {noticed.said!r} before the archive's program does: see that nothing which "
            f"{place.account}'s shell reads when it starts prints anything",
            **facts,
        )
    because = lines[-1] if lines else str(noticed)
    return Unreachable(f"{place} cannot be reached: {because}; see that host, its network and its sshd", **facts)


class SshDestination(Destination):
    """The program of another host, behind the forced command of a key; one request at a time."""

    def __init__(self, place: Place, config: ArchiveConfig) -> None:
        super().__init__(place, config)
        self.version = ""  # of the program there
        self._ours: Optional[Identity] = None
        self._payload: Optional[Payload] = None  # the last one that came, read to its end or not
        self._stderr = os.memfd_create("ssh")
        fcntl.fcntl(self._stderr, fcntl.F_SETFL, os.O_APPEND)
        self._process: Optional[subprocess.Popen[bytes]] = None
        try:
            self._process = _start([*ssh_command(place), place.host], self._stderr)
            if self._process.stdin is None or self._process.stdout is None:
                raise AssertionError("it was started")
            self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
            self._greet()
        except BaseException:
            self.close()
            raise

    # --- operations --------------------------------------------------------------------------------------------------

    def _hello(self, wait: Optional[float]) -> dict[str, Any]:
        return self.call("hello", wait=wait)

    def _put(self, name: str, path: str) -> Stored:
        self._ours = self._ours or identity_of(self._config)
        check = Check(name, **asdict(self._ours))
        compressible = check.kind in COMPRESSED_KINDS
        encoding = self._config.compression if compressible else "none"
        sent = "zstd" if compressible else "none"  # whatever is stored: ssh works longer at a byte than zstd
        request = {"op": "put", "name": name, "encoding": encoding, "sent": sent, "vacant": self.vacant}
        request.update(asdict(self._ours))
        with contextlib.closing(encoded(checked(source(path), check), sent)) as chunks:
            reply = self._ask(request, upload=(chunks, lambda: {"sha256": check.finish().sha256}))
        return Stored(*(reply[key] for key in ("path", "size", "sha256", "new")))

    def has(self, names: Iterable[str]) -> dict[str, Entry]:
        return {entry.name: entry for entry in map(_entry, self._records("has", names))}

    def digest(self, names: Iterable[str]) -> dict[str, Digest]:
        return {name: Digest(*values) for name, *values in self._records("digest", names)}

    def names(self) -> list[Entry]:
        return [_entry(record) for record in self._records("names")]

    def get(self, name: str, *, wait: Optional[float] = None) -> Iterator[bytes]:
        reply = self._ask({"op": "get", "name": name}, wait=wait)
        return decoded(self._chunks(), str(reply["encoding"]))

    def remove(self, names: Iterable[str]) -> list[str]:
        return list(self._records("remove", names))

    def conflicts(self) -> list[dict[str, Any]]:
        return list(self._records("conflicts"))

    def call(
        self, op: str, *, wait: Optional[float] = None, upload: Optional[Iterable[bytes]] = None, **arguments: Any
    ) -> dict[str, Any]:
        """Any other operation of archive_server.OPS; `wait` (s) when its answer may take long."""
        return self._ask({**arguments, "op": op}, upload=(upload, dict) if upload is not None else None, wait=wait)

    def stream(self, op: str, *, wait: Optional[float] = None, **arguments: Any) -> Iterator[bytes]:
        """The same for one that answers with a payload."""
        self._ask({**arguments, "op": op}, wait=wait)
        return self._chunks()

    def close(self) -> None:
        self._end()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1

    # --- exchange ----------------------------------------------------------------------------------------------------

    def _ask(
        self, request: Mapping[str, Any], *, upload: Optional[Upload] = None, wait: Optional[float] = None
    ) -> dict[str, Any]:
        """What it replies; the error that it tells of, or that kept us from sending all."""
        ours: Optional[HotspareError] = None
        with self._talking() as channel:
            channel.send({**request, "payload": upload is not None})
            if upload is not None:
                ours = channel.send_payload(*upload)
            reply = channel.answer(wait)
        os.ftruncate(self._stderr, 0)  # warnings that did not matter
        if ours is not None:
            raise ours
        if not reply.get("ok"):
            raise failed(reply, self.name)
        if reply.get("payload"):
            self._payload = channel.payload()
        return reply

    def _chunks(self) -> Iterator[bytes]:
        """The payload that follows a reply; who does not read it to its end has to connect again."""
        if self._payload is None:
            raise AssertionError("it was begun")
        try:
            with self._talking(reading=True):
                yield from self._payload
        finally:
            if not self._payload.done:
                self._end()

    def _records(self, op: str, names: Optional[Iterable[str]] = None) -> Iterator[Any]:
        """What a list operation finds; asked for in batches, answered in chunks, so that no list is too long."""
        for batch in [None] if names is None else _batches(names):
            self._ask({"op": op} if batch is None else {"op": op, "names": batch}, wait=LIST_SECONDS)
            for chunk in self._chunks():
                try:
                    records = json.loads(chunk)
                except ValueError as error:
                    raise Unreachable(f"{self._place} answers {op} by what is no JSON: {error}") from error
                yield from records

    @contextlib.contextmanager
    def _talking(self, *, reading: bool = False) -> Iterator[Channel]:
        """Ends the connection where the two ends may not agree any more on what comes next."""
        if self._process is None or (self._payload is not None and not self._payload.done and not reading):
            self._end()
            raise Unreachable(f"the connection to {self._place} was given up: connect again")
        try:
            yield self._channel
        except Broken as error:
            self._end()
            said = os.pread(self._stderr, TAIL_BYTES, max(0, os.fstat(self._stderr).st_size - TAIL_BYTES))
            raise trouble(self._place, said.decode(errors="replace"), error) from error
        except HotspareError:
            raise
        except BaseException:
            self._end()
            raise

    def _greet(self) -> None:
        with self._talking() as channel:
            greeting = channel.answer(GREETING_SECONDS)
        self.version = str(greeting.get("version"))
        if not greeting.get("ok"):
            raise Refused(failed(greeting, str(self._place)).message)
        if greeting.get("protocol") != PROTOCOL:
            raise Refused(
                f"{self._place} has hotspare {self.version}, which this one ({VERSION}) does not understand: run "
                "site.yml, which brings the same to all hosts"
            )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(argv: Sequence[str], stderr: int) -> subprocess.Popen[bytes]:
    # Under as_account() only the effective user is the account: of this one ssh is to be all.
    switch: dict[str, Any] = {}
    if os.getuid() != os.geteuid():
        switch = {"user": os.geteuid(), "group": os.getegid()}
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C"},
            start_new_session=True,
            **switch,
        )
    except OSError as error:
        raise Refused(f"cannot run {argv[0]}: {error.strerror}; install openssh-client on this host") from error


def _entry(record: Sequence[Any]) -> Entry:
    """From [name, stored_bytes, mtime]; a name becomes that of a file here, so it has to be one of WAL."""
    name, stored_bytes, mtime = record
    found = kind(name)
    if found is None:
        raise HotspareError(f"a destination says that it has {name!r}, which is no WAL file: see who answers there")
    return Entry(name, found, stored_bytes, mtime)


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    left = iter(names)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch
