# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The resident shipper of a node: answers its archive_command and its restore_command.

Each destination has a lane: a thread with a lasting connection, which works off pg_wal/archive_status/*.ready ahead of
the archiver, since that asks for one file at a time; while several wait, a second one helps it. The archiver is told
that a file is archived once that is durable where `require` says; the other lanes bring it later. What cannot be
shipped stays .ready, and nothing is ever left out but an empty .backup, which a crash or a copy left: no recovery needs
it, and for its sake the archiver would stand still.

An error that nobody expected ends the process: systemd starts it again, and commands work without it meanwhile.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, NoReturn, Optional, Union

from .archive_client import ABSENT, recovers
from .archive_config import ArchiveConfig, Place
from .archive_fetch import Connect, Fetcher, Line, Wanted, always, patience
from .archive_known import system_identifier
from .archive_link import Destination, connect, establish_own
from .server import Instance
from .shell import HotspareError, write_durably
from .store import Conflict, Full
from .version import VERSION
from .wal_file import BadWal, kind
from .wire import CODES, Refused, Unreachable, exit_code

BEAT_SECONDS = 5.0  # who waits for us sees that often that we live; archive_client.SILENT_SECONDS is more
POLL_SECONDS = 0.5  # at most, until what changed in archive_status is seen, and until status.json has it
LOOK_SECONDS = 10.0  # the same for what tells nobody: connections that broke, room that was made
MANY = 4  # files that wait are worth another connection
PATIENCE_SECONDS = 2.0  # until a file that is asked for, and is on its way beside, is taken from there
RETRY_SECONDS = 30.0  # until a file that was refused is tried again, unless it is asked for
REQUEST_BYTES = 1 << 16
REQUEST_SECONDS = 10.0

Outcome = Union[bool, HotspareError]  # of a file at a destination: durable, not yet, or why not


@dataclass(frozen=True)
class File:
    """What the archiver wants to be archived. `mark` tells it from another file of that name; `since`: 1970 and s."""

    name: str
    path: str
    mark: tuple[int, ...]
    since: float

    @property
    def size(self) -> int:
        return self.mark[0]


@dataclass(frozen=True)
class Request:
    """A call of archive_command, and when it came (time.monotonic)."""

    file: File
    began: float


@dataclass(frozen=True)
class Failure:
    error: HotspareError
    at: float


@dataclass(frozen=True)
class Flight:
    """A file on its way; `number` counts departures."""

    file: File
    number: int


# ---------------------------------------------------------------------------------------------------------------------
# Decisions
# ---------------------------------------------------------------------------------------------------------------------


def order(file: File) -> tuple[bool, str]:
    """As the archiver takes them: histories first. (Pure.)"""
    return kind(file.name) != "history", file.name


def is_empty_backup(file: File) -> bool:
    """(Pure.)"""
    return kind(file.name) == "backup" and file.size == 0


def verdict(require: str, outcomes: Sequence[Outcome]) -> Outcome:
    """Whether a file is archived, by what became of it at each destination. (Pure.)"""
    if not outcomes:
        return HotspareError("there is no destination to archive to: name some in archive_destinations, run site.yml")
    errors = [outcome for outcome in outcomes if isinstance(outcome, HotspareError)]
    if outcomes.count(True) >= (len(outcomes) if require == "all" else 1):
        return True
    if len(errors) >= (1 if require == "all" else len(outcomes)):
        return min(errors, key=exit_code)
    return False


def expect_own(config: ArchiveConfig, directory: str) -> None:
    """Refuse the WAL of a copy that was started elsewhere: it has our system identifier, so no archive could tell."""
    own = config.node.data_directory if config.node is not None else None
    with contextlib.suppress(OSError):
        if own is not None and os.path.samefile(directory, own):  # the same by any path, and where it is mounted twice
            return
    raise BadWal(
        f"the WAL of {directory} is not archived, since {config.cluster} of {config.name} has its data in {own}: if "
        "this is a copy, set archive_mode=off in its configuration and restart it",
        code="system",
    )


def ship_alone(config: ArchiveConfig, path: str, name: str, connect: Connect = connect) -> None:
    """archive_command without the shipper: one destination after the other, until it is archived. HotspareError."""
    if is_empty_backup(offered(name, path)):
        say_empty(name)
        return
    outcomes: list[Outcome] = [False] * len(config.destinations)
    for index, destination in enumerate(config.destinations):
        if verdict(config.require, outcomes):
            break
        try:
            with connect(destination, config) as open_destination:
                open_destination.put(name, path)
            outcomes[index] = True
        except HotspareError as error:
            outcomes[index] = error
    answer = verdict(config.require, outcomes)
    if isinstance(answer, HotspareError):
        raise answer


# ---------------------------------------------------------------------------------------------------------------------
# What is to be shipped
# ---------------------------------------------------------------------------------------------------------------------


def find_file(name: str, path: str, since: float) -> File:
    """OSError."""
    status = os.stat(path)
    return File(name, path, (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev), since)


def offered(name: str, path: str) -> File:
    """What archive_command is given. HotspareError."""
    try:
        return find_file(name, path, wall_clock())
    except OSError as error:
        raise HotspareError(f"cannot read {path}: {error.strerror}; is it the path that PostgreSQL gives?") from error


def still_there(file: File) -> bool:
    """Whether it is, and not another one: a segment that is archived gets a new name for new WAL."""
    with contextlib.suppress(OSError):
        return find_file(file.name, file.path, file.since) == file
    return False


def status_mark(node: Instance) -> int:
    """Changes with what is in archive_status."""
    with contextlib.suppress(OSError):
        return os.stat(node.path("pg_wal", "archive_status")).st_mtime_ns
    return 0


def ready_files(node: Instance, known: Mapping[str, File]) -> dict[str, File]:
    """What waits for the archiver, in its order; nothing when that cannot be read. What is known is not looked at."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(node.path("pg_wal", "archive_status")):
            name = entry.name[: -len(".ready")]
            if not entry.name.endswith(".ready"):
                continue
            if name in known:
                found.append(known[name])
            elif kind(name):
                with contextlib.suppress(FileNotFoundError):  # archived or removed meanwhile
                    found.append(find_file(name, node.path("pg_wal", name), entry.stat().st_mtime))
    return {file.name: file for file in sorted(found, key=order) if not is_empty_backup(file)}


def empty_backups(node: Instance) -> list[str]:
    """Those in pg_wal, until PostgreSQL removes them after another backup."""
    found = []
    for path in glob.glob(os.path.join(glob.escape(node.path("pg_wal")), "*.backup")):
        with contextlib.suppress(FileNotFoundError):
            file = find_file(os.path.basename(path), path, 0.0)
            found += [file.name] if is_empty_backup(file) else []
    return sorted(found)


# ---------------------------------------------------------------------------------------------------------------------
# The shipper
# ---------------------------------------------------------------------------------------------------------------------


class Changes(threading.Condition):
    """Guards what the threads share, and counts how often it changed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def notify_all(self) -> None:
        self.count += 1
        super().notify_all()


class Lane:
    """The way to one destination. What it knows is guarded by `changed`, all but its line."""

    def __init__(
        self,
        place: Place,
        config: ArchiveConfig,
        changed: Changes,
        requests: Sequence[Request],
        connect: Connect,
    ) -> None:
        self.name = place.name
        self.todo: deque[File] = deque()
        self.behind: dict[str, File] = {}  # archived elsewhere, and still to come here
        self.left = 0  # the same, but gone from pg_wal before: archive-sync brings them
        self.last: Optional[str] = None
        self.last_at: Optional[str] = None
        self.state = "unreachable"
        self.since = utc()
        self._held: dict[str, File] = {}
        self._failed: dict[str, Failure] = {}
        self._full: Optional[Failure] = None
        self._histories: dict[str, File] = {}  # those that are wanted here
        # What each connection has on its way. They may have the same file: the store takes it twice.
        self._first: Optional[Flight] = None
        self._second: Optional[Flight] = None
        self._departed = self._latest = 0  # numbers of what departed last, and of `last`
        self._line = Line(place, config, connect)
        self._helping = Line(place, config, connect)
        self._changed = changed
        self._requests = requests

    def lacks(self, file: File) -> bool:
        held = self._held.get(file.name)
        return held is None or held.mark != file.mark

    def outcome(self, request: Request) -> Outcome:
        """What became of a file since it was asked for."""
        if not self.lacks(request.file):
            return True
        held_back = self._held_back(request.file)
        because = self._failed.get(held_back.name) if held_back else None
        return self._failure(request) or (because.error if because else None) or self._line.error or False

    def look(self, ready: Iterable[File]) -> None:
        """These are all that the archiver waits for, in this order."""
        gone = [name for name, file in self.behind.items() if not still_there(file)]
        self.left += len(gone)
        for name in gone:
            del self.behind[name]
        asked = (request.file for request in self._requests)
        wanted = {file.name: file for file in (*ready, *self.behind.values(), *asked)}
        self._histories = {name: file for name, file in wanted.items() if kind(name) == "history"}
        self._held = {name: file for name, file in self._held.items() if name in wanted}
        self._failed = {name: failure for name, failure in self._failed.items() if name in wanted}
        now = time.monotonic()
        refused = {name for name, failure in self._failed.items() if now - failure.at < RETRY_SECONDS}
        self.todo = deque(file for name, file in wanted.items() if self.lacks(file) and name not in refused)
        if self._full is not None and now - self._full.at < LOOK_SECONDS:
            self.todo.clear()

    def work(self) -> NoReturn:
        """For ever: the work of a thread."""
        while True:
            with self._changed:
                flight = self._first = self._next()
            error = self._ship(flight.file if flight else None)
            with self._changed:
                self._first = None
                self._note(flight, error)
                self._changed.notify_all()

    def help(self) -> NoReturn:
        """The same, while the other end of the first connection waits for its disk; what fails is left to that one."""
        while True:
            with self._changed:
                needed = self._is_needed()
                flight = self._second = self._next_beside() if needed and self._helping.connected else None
            if not needed:
                self._helping.close()
                continue
            error = None
            try:
                with self._helping.use() as destination:
                    if flight is None:  # nothing waits for a connection that does not come about
                        greet(destination)
                    else:
                        destination.put(flight.file.name, flight.file.path)
            except HotspareError as found:
                error = found
            with self._changed:
                self._second = None
                if flight is not None and error is None:
                    self._hold(flight)
                elif flight is not None:
                    self.todo.appendleft(flight.file)
                self._changed.notify_all()
            if error is not None:
                time.sleep(LOOK_SECONDS)

    def record(self, ready: Iterable[File]) -> dict[str, Any]:
        """For status.json."""
        waiting = [file for file in ready if self.lacks(file)]
        _pending, error = self._judged()
        return {
            "name": self.name,
            "state": self.state,
            "since": self.since,
            "error": error.message if error else None,
            "last": self.last,
            "last_at": self.last_at,
            "waiting": len(waiting),
            "waiting_bytes": sum(file.size for file in waiting),
            "oldest_waiting_seconds": max((round(wall_clock() - file.since, 1) for file in waiting), default=None),
            "behind": len(self.behind),
            "left": self.left,
        }

    def _next(self) -> Optional[Flight]:
        """What to ship, as soon as there is something; None when it is time to look after the connection."""
        idle_until = time.monotonic() + LOOK_SECONDS
        while True:
            now = time.monotonic()
            if self._line.error is not None and now < self._line.again:
                self._changed.wait(self._line.again - now)
                continue
            wake = idle_until
            for request in self._requests:
                file = request.file
                if not self.lacks(file) or self._held_back(file) or self._failure(request) is not None:
                    continue
                if not _has(self._second, file) or now >= request.began + PATIENCE_SECONDS:
                    return self._depart(file)
                wake = min(wake, request.began + PATIENCE_SECONDS)
            waiting = self._first_waiting()
            if waiting is not None:
                return self._depart(waiting)
            if now >= idle_until or not self._line.connected:
                return None
            self._changed.wait(wake - now)

    def _is_needed(self) -> bool:
        """Whether the second connection is, as soon as it is; False when nobody has needed it for long."""
        idle_until = time.monotonic() + LOOK_SECONDS
        while True:
            well = self._line.connected and self._line.error is None and self._full is None
            many = self._helping.connected or len(self.todo) >= MANY
            if well and many and self._first is not None and self._next_segment() is not None:
                return True
            now = time.monotonic()
            if self._helping.connected and now >= idle_until:
                return False
            self._changed.wait(idle_until - now if self._helping.connected else None)

    def _next_beside(self) -> Optional[Flight]:
        file = self._next_segment()
        return self._depart(file) if file is not None else None

    def _next_segment(self) -> Optional[File]:
        """The first that may go, when it is a segment: the other kinds are few, and go in their order."""
        file = self._first_waiting()
        return file if file is not None and kind(file.name) == "segment" else None

    def _first_waiting(self) -> Optional[File]:
        """The first of todo that may go now."""
        while self.todo and not self.lacks(self.todo[0]):
            self.todo.popleft()
        return next((file for file in self.todo if self._may_go(file)), None)

    def _may_go(self, file: File) -> bool:
        under_way = _has(self._first, file) or _has(self._second, file)
        return self.lacks(file) and not under_way and self._held_back(file) is None

    def _held_back(self, file: File) -> Optional[File]:
        """The history that has to come before a file of its timeline: where that is another one's, this is, too."""
        history = self._histories.get(f"{file.name[:8]}.history")
        return history if history is not None and history.name != file.name and self.lacks(history) else None

    def _depart(self, file: File) -> Flight:
        with contextlib.suppress(ValueError):
            self.todo.remove(file)
        self._departed += 1
        self._changed.notify_all()  # there may be something to help
        return Flight(file, self._departed)

    def _ship(self, file: Optional[File]) -> Optional[HotspareError]:
        while True:
            fresh = not self._line.connected
            try:
                with self._line.use() as destination:
                    if file is None:
                        greet(destination)
                    else:
                        destination.put(file.name, file.path)
                return None
            except Unreachable as error:
                if fresh:
                    return error
            except HotspareError as error:
                return error

    def _note(self, flight: Optional[Flight], error: Optional[HotspareError]) -> None:
        if flight is not None and error is None:
            self._hold(flight)
        elif flight is not None and error is not None and self.lacks(flight.file):  # else the other one brought it
            file = flight.file
            if isinstance(error, Unreachable):
                self.todo.appendleft(file)
            elif isinstance(error, Full):
                self._full = Failure(forgetful(error), time.monotonic())
                self.todo.clear()
            elif still_there(file) or any(request.file == file for request in self._requests):
                self._failed[file.name] = Failure(forgetful(error), time.monotonic())
        state, wrong = self._judged()
        if state != self.state:
            self.state, self.since = state, utc()
            say(f"{self.name}: {wrong.message if wrong else state}")

    def _hold(self, flight: Flight) -> None:
        file = flight.file
        self._held[file.name] = file
        self._failed.pop(file.name, None)
        self.behind.pop(file.name, None)
        self._full = None
        if flight.number > self._latest:
            self._latest, self.last = flight.number, file.name
        self.last_at = utc()

    def _failure(self, request: Request) -> Optional[HotspareError]:
        """Why the file was refused since it was asked for."""
        for failure in (self._failed.get(request.file.name), self._full):
            if failure is not None and failure.at >= request.began:
                return failure.error
        return None

    def _judged(self) -> tuple[str, Optional[HotspareError]]:
        """The state, and what is wrong."""
        if self._line.error is not None:
            return "refused" if isinstance(self._line.error, Refused) else "unreachable", self._line.error
        if not self._line.connected:  # for a moment
            return self.state, None
        if self._full is not None:
            return "full", self._full.error
        errors = [failure.error for failure in self._failed.values()]
        for error in errors:
            if isinstance(error, Conflict):
                return "conflict", error
        return ("refused", errors[0]) if errors else ("connected", None)


def _has(flight: Optional[Flight], file: File) -> bool:
    return flight is not None and flight.file.name == file.name


def forgetful(error: HotspareError) -> HotspareError:
    """The error without what was on the stack, such as a megabyte of the file that was sent: it is kept for long."""
    seen: Optional[BaseException] = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    return error


class Shipper:
    """The lanes of a node, and who asks."""

    def __init__(self, config: ArchiveConfig, connect: Connect = connect) -> None:
        if config.node is None:
            raise HotspareError(f"{config.name} is an archive host: it has no server to ship from")
        self._config = config
        self._node = config.node
        self._changed = Changes()
        self._requests: list[Request] = []
        self._ready: dict[str, File] = {}
        self._looked = 0.0
        self._mark = 0
        self._empty: list[str] = []
        self._acknowledged: Optional[str] = None
        self._since = utc()
        self._lanes = [Lane(place, config, self._changed, self._requests, connect) for place in config.destinations]
        self._fetcher = Fetcher(config, connect)
        self._waiting: set[socket.socket] = set()  # who waits for an answer
        self._beat = threading.Lock()

    def run(self) -> NoReturn:
        """Serve until we are ended. HotspareError."""
        threading.excepthook = _end
        self._fetcher.look_ahead(self._config.fetch_ahead)
        listener = listen(self._config.socket)
        works = [work for lane in self._lanes for work in (lane.work, lane.help)]
        for work in (*works, lambda: self._accept(listener), self._beats, self._found_own):
            threading.Thread(target=work, daemon=True).start()
        notify("READY=1")
        written = None
        while True:
            with self._changed:
                if self._is_time_to_look():
                    self._look()
                count, status = self._changed.count, self._status()
            if count != written:
                try:
                    write_durably(self._config.status_file, json.dumps(status, indent=2) + "\n", mode=0o644)
                except HotspareError as error:  # archiving goes on
                    say(error.message)
                written = count
            time.sleep(POLL_SECONDS)

    def _found_own(self) -> None:
        """Once there is a data directory, which a standby may lack at first, and its file system is mounted."""
        said = None
        while True:
            try:
                if system_identifier(self._node) is not None:
                    return establish_own(self._config)
            except HotspareError as error:
                if error.message != said:
                    said = error.message
                    say(said)
            time.sleep(LOOK_SECONDS)

    # --- archive_command ---------------------------------------------------------------------------------------------

    def archive(self, name: str, path: str, wanted: Wanted = always) -> None:
        """Returns once the file is archived. HotspareError; also when `wanted` says no."""
        request = Request(offered(name, path), time.monotonic())
        if is_empty_backup(request.file):
            say_empty(name)
            return
        with self._changed:
            self._requests.append(request)
            try:
                if name not in self._ready:
                    self._look()  # others wait as well
                self._changed.notify_all()
                while not (answer := self._answer(request)):
                    self._changed.wait(BEAT_SECONDS)
                    if not wanted():
                        raise HotspareError(f"{name} is still on its way, and who asked for it has ended")
            finally:
                self._requests.remove(request)
            if isinstance(answer, HotspareError):
                raise answer.with_traceback(None)
            self._acknowledged = name
            for lane in self._lanes:
                if lane.lacks(request.file):
                    lane.behind[name] = request.file
            self._changed.notify_all()

    def _answer(self, request: Request) -> Outcome:
        return verdict(self._config.require, [lane.outcome(request) for lane in self._lanes])

    def _is_time_to_look(self) -> bool:
        """The archiver may pause for a minute while new files come."""
        return status_mark(self._node) != self._mark or time.monotonic() - self._looked >= LOOK_SECONDS

    def _look(self) -> None:
        self._looked, self._mark = time.monotonic(), status_mark(self._node)
        self._ready = ready_files(self._node, self._ready)
        self._empty = empty_backups(self._node)
        for lane in self._lanes:
            lane.look(self._ready.values())
        self._changed.notify_all()

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "since": self._since,
            "version": VERSION,
            "updated": utc(),
            "destinations": [lane.record(self._ready.values()) for lane in self._lanes],
            "acknowledged": self._acknowledged,
            "empty": self._empty,
        }

    # --- who asks ----------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _address = listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(REQUEST_SECONDS)
            try:
                with connection.makefile("rb") as reader:
                    request = reader.readline(REQUEST_BYTES)
            except OSError:
                return
            with self._beat:
                self._waiting.add(connection)
            try:
                code, sentence = self._answered(os.fsdecode(request).rstrip("\n").split("\0"), connection)
            finally:
                with self._beat:
                    self._waiting.remove(connection)
            with contextlib.suppress(OSError):  # it is gone
                connection.sendall(f"{code} {' '.join(sentence.split())}\n".encode(errors="replace"))

    def _answered(self, request: Sequence[str], connection: socket.socket) -> tuple[int, str]:
        """The code and the sentence for a client."""
        command, *words = request
        act = {"archive": self._archive, "restore": self._restore}.get(command)
        if act is None or len(words) != 3:
            return CODES["other"], f"the shipper does not know {command!r} of {len(words)} words: run site.yml"
        try:
            return act(partial(waits, connection), *words), ""
        except HotspareError as error:
            return exit_code(error), error.message

    def _archive(self, wanted: Wanted, directory: str, path: str, name: str) -> int:
        expect_own(self._config, directory)
        self.archive(name, os.path.join(directory, path), wanted)
        return 0

    def _restore(self, wanted: Wanted, directory: str, name: str, path: str) -> int:
        path = os.path.join(directory, path)
        wait, strict = patience(directory), recovers(directory)
        return 0 if self._fetcher.restore(name, path, wait=wait, wanted=wanted, strict=strict) else ABSENT

    def _beats(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self._beat:
                for connection in self._waiting:
                    with contextlib.suppress(OSError):  # it is gone
                        connection.send(b" ")


def greet(destination: Destination) -> None:
    """Whether it still works; Unreachable when it does not. Also a standby notes what it sees: it may be promoted."""
    try:
        destination.hello()
        destination.remember()
    except Unreachable:
        raise
    except HotspareError as error:  # a disk that is not mounted any more
        raise Unreachable(error.message, **error.facts) from error


def waits(connection: socket.socket) -> bool:
    """Whether the client is still there: it says nothing after its request."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)


def listen(path: str) -> socket.socket:
    """A socket for this account alone. HotspareError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise HotspareError(f"cannot listen at {path}: {error.strerror}; is its directory there, and ours?") from error
    finally:
        os.umask(mask)
    listener.listen(16)
    return listener


def notify(state: str) -> None:
    """Tell systemd (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + address[1:] if address.startswith("@") else address)
            manager.send(state.encode())


def utc() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def wall_clock() -> float:
    """Seconds since 1970."""
    return datetime.now(timezone.utc).timestamp()


def say(text: str) -> None:
    """To the journal."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def say_empty(name: str) -> None:
    say(f"{name} is empty, as a crash or a copy left it: it is not archived, and no retention knows of that backup")


def _end(error: threading.ExceptHookArgs) -> None:
    """A thread that is missing would not be missed by anybody."""
    sys.excepthook(error.exc_type, error.exc_value or error.exc_type(), error.exc_traceback)
    os._exit(1)
