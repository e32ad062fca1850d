# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""restore_command: brings a file from wherever it is archived, verified, whole or not at all.

A file is absent only if every place says so, since PostgreSQL takes that for the end of the WAL; and only an archive of
this cluster can say so, no empty directory where it should be mounted. Where a recovery opens at the end, a hole is
none. While the server replays a segment the next ones are fetched into a spool; it lies outside pg_wal, where pg_rewind
would copy it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, TimeoutError
from functools import partial
from typing import Optional

from .archive import Archive, Identity
from .archive_client import recovers
from .archive_config import ArchiveConfig, Place
from .archive_known import expect_none, system_identifier
from .archive_link import Destination, connect
from .shell import HotspareError
from .store import chunks
from .wal import MIB, HistoryEntry, fork_point, parse_history, parse_segment_name, segment_name
from .wal_file import FILE_HEADER, Check, header, kind
from .wire import Missing, Unreachable

# s, for an answer: a standby asks again, and a promotion asks as well, while the host of the old primary may be dead.
STANDBY_PATIENCE = 0.5
ALONE_PATIENCE = 3.0  # the same without the shipper, when each question needs a connection
STALLED_SECONDS = 1.0  # the same, for a file that is on its way
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # s, between two attempts to connect
WARM_SECONDS = 10.0  # between two looks whether a standby is connected
MOST_FAILURES = 6  # that make the next attempt wait longer
USUAL_SEGMENT = 16 * MIB  # what fetch_ahead counts in: as many segments of 1 GB would fill the disk
TEMPORARY = ".hotspare-"

Put = Callable[[Iterable[bytes]], None]
Connect = Callable[..., Destination]  # archive_link.connect, in tests another one
Wanted = Callable[[], bool]


def always() -> bool:
    return True


class Line:
    """A lasting connection to a destination, made anew when it broke, but not too often. For one thread at a time."""

    def __init__(self, place: Place, config: ArchiveConfig, connect: Connect = connect) -> None:
        self.name = place.name
        self.error: Optional[Unreachable] = None  # why there is no connection
        self.again = 0.0  # when the next one may be tried (time.monotonic)
        self._connect = partial(connect, place, config)
        self._destination: Optional[Destination] = None
        self._opening: Optional[Future[Destination]] = None
        self._failures = 0  # in a row

    @property
    def connected(self) -> bool:
        return self._destination is not None

    @contextlib.contextmanager
    def use(self, wait: Optional[float] = None) -> Iterator[Destination]:
        """The destination; Unreachable, without an attempt when a new connection failed a moment ago.

        wait: s, for a connection; an attempt goes on after that, for who comes next.
        """
        if self.error is not None and time.monotonic() < self.again and not self._succeeded():
            raise self.error.with_traceback(None)
        new = self._destination is None
        try:
            if self._destination is None:
                self._destination = self._opened(wait)
            yield self._destination
            self.error, self._failures = None, 0
        except Unreachable as error:
            self.close()
            if new:  # an old one may be as long dead as nobody used it
                self.error = error
                self.again = time.monotonic() + min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE)
            self._failures = min(self._failures + 1, MOST_FAILURES)
            raise

    def close(self) -> None:
        """End the connection, until there is use for it again."""
        if self._destination is not None:
            self._destination.close()
            self._destination = None

    def open(self) -> None:
        """See that there is a connection soon, and do not wait for it."""
        if self._destination is None:
            self._attempt()

    def _opened(self, wait: Optional[float]) -> Destination:
        try:
            destination = self._attempt().result(wait)
        except TimeoutError:
            raise Unreachable(f"{self.name} has not let us in for {wait:g} s; see that host and its network") from None
        except Unreachable:
            self._opening = None
            raise
        self._opening = None
        return destination

    def _attempt(self) -> Future[Destination]:
        """The one that lasts, or that succeeded while nobody waited for it; else a new one."""
        if self._opening is None or (self._opening.done() and not self._succeeded()):
            self._opening = Future()
            threading.Thread(target=self._try, args=(self._opening,), daemon=True).start()
        return self._opening

    def _try(self, opening: Future[Destination]) -> None:
        try:
            opening.set_result(self._connect())
        except Unreachable as error:
            opening.set_exception(error)
        except HotspareError as error:
            opening.set_exception(Unreachable(error.message, **error.facts))

    def _succeeded(self) -> bool:
        return self._opening is not None and self._opening.done() and self._opening.exception() is None

    def bring(self, name: str, cluster: Optional[int], put: Put, wait: Optional[float]) -> bool:
        with self.use(wait) as destination:
            wait = None if wait is None else wait * 2**self._failures  # who is only slow shall be in time at last
            if destination.identity is None or cluster not in (None, destination.identity.system_identifier):
                destination.hello(wait=wait)  # one of us may have been made anew
            expect_ours(destination.name, destination.identity, cluster)
            try:
                content = destination.get(name, wait=wait)
            except Missing:
                destination.hello(wait=wait)  # it is gone from there, or from nowhere
                expect_ours(destination.name, destination.identity, cluster)
                return False
            put(content)
        return True

    def names(self) -> tuple[Optional[Identity], list[str]]:
        """Whose it is, and all that it has. Unreachable."""
        with self.use() as destination:
            return destination.identity, [entry.name for entry in destination.names()]


class Own:
    """The archive of this host itself. It may be nobody's yet: others ship to it."""

    def __init__(self, config: ArchiveConfig) -> None:
        self.archive = Archive(config.directory)
        self._config = config

    def bring(self, name: str, cluster: Optional[int], put: Put, wait: Optional[float] = None) -> bool:
        identity = self.archive.identity()
        if identity is None:
            expect_none(self._config.node, self._config.name, self._config.directory)
            return False
        expect_ours(self._config.name, identity, cluster)
        if self.archive.find(name) is None:
            return False
        put(self.archive.read(name))
        return True

    def names(self) -> tuple[Optional[Identity], list[str]]:
        return self.archive.identity(), [entry.name for entry in self.archive.inventory()]


class Fetcher:
    """Serves restore_command of a node: one request after the other, and before anything that is fetched ahead."""

    def __init__(self, config: ArchiveConfig, connect: Connect = connect) -> None:
        if config.node is None:
            raise HotspareError(f"{config.name} is an archive host: it has no server that could restore anything")
        self._node = config.node
        self._own = Own(config)
        self._lines = [Line(place, config, connect) for place in config.destinations]
        self._places: list[Own | Line] = [self._own, *self._lines]
        self._spool = config.spool
        self._ahead = 0  # until look_ahead()
        self._turn = threading.Condition()
        self._busy = False
        self._moved = 0.0  # when something came last (time.monotonic)
        self._asked = 0  # how many wait for their turn, or have it
        self._window: list[str] = []  # what to have in the spool, in this order
        self._cluster: Optional[int] = None  # whose segments these are

    def restore(
        self, name: str, path: str, *, wait: Optional[float] = None, wanted: Wanted = always, strict: bool = False
    ) -> bool:
        """Make an archived file `path`; False when it is not archived, HotspareError when that is not known.

        strict: for a server that opens where the WAL ends, so that a hole in it is an error too.
        wait: seconds to wait for an answer, more where one was late before. If `wanted` says no once the file has come,
        whoever asked is gone, and the next one may have asked: it is dropped.
        """
        if kind(name) in (None, "partial"):  # no server asks for these: a .partial never is the segment
            return False
        with self._served(wait):
            if not self._take(name, path, wanted) and not self._fetch(name, path, wait, wanted):
                if strict and kind(name) == "segment":
                    self._expect_end(name, os.path.dirname(path))
                return False
            if self._ahead and kind(name) == "segment":
                self._look_after(name, os.stat(path).st_size)
        return True

    def look_ahead(self, count: int) -> None:
        """From now on, fetch so many segments ahead. HotspareError."""
        try:
            os.makedirs(self._spool, mode=0o700, exist_ok=True)
            self._keep([])  # what another left may be from before a power cut
        except OSError as error:
            raise _failed("use", self._spool, error) from error
        self._ahead = count
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: not self._asked and self._missing(), WARM_SECONDS)
            with self._served():
                if os.path.exists(self._node.path("standby.signal")):
                    for line in self._lines:
                        line.open()  # for a promotion, which asks as well
                name = self._missing()
                if name is not None and not self._spooled(name):
                    self._window = self._window[: self._window.index(name)]  # it ends here, for now

    @contextlib.contextmanager
    def _served(self, wait: Optional[float] = None) -> Iterator[None]:
        """Inside it is our turn. HotspareError."""
        with self._turn:
            self._asked += 1
            while self._busy and (wait is None or time.monotonic() < self._moved + STALLED_SECONDS):
                self._turn.wait(STALLED_SECONDS)
            ours = not self._busy
            self._busy = True
            if ours:
                self._moved = time.monotonic()
        try:
            if not ours:
                raise HotspareError(
                    f"another file is on its way, and nothing came for {STALLED_SECONDS:g} s: ask again"
                )
            yield
        finally:
            with self._turn:
                self._asked -= 1
                if ours:
                    self._busy = False
                self._turn.notify_all()

    def _fetch(self, name: str, path: str, wait: Optional[float] = None, wanted: Wanted = always) -> bool:
        """Have the first place that has it bring it; False when none has, HotspareError when one cannot say."""
        cluster = system_identifier(self._node)

        def put(content: Iterable[bytes]) -> None:
            write(self._moving(content), path, Check(name, system_identifier=cluster), wanted)

        troubles = []
        for place in self._places:
            try:
                if place.bring(name, cluster, put, wait):
                    return True
            except HotspareError as error:
                troubles.append(error)
        if troubles:
            raise troubles[0]
        return False

    def _expect_end(self, name: str, pg_wal: str) -> None:
        """HotspareError unless the WAL may end where this segment is missing. What is in pg_wal is not missing."""
        found = [place.names() for place in self._places]
        names = {each for _identity, there in found for each in there}
        size = next((identity.segment_size for identity, _there in found if identity is not None), None)
        if size is None or not later_than(name, names) or lies_in(pg_wal, name, size):
            return
        histories = {}
        for other in names:
            if kind(other) == "history" and other[:8] >= name[:8]:
                histories[int(other[:8], 16)] = self._history(other)
        later = hole(name, names, histories, size)
        if later is not None:
            raise HotspareError(
                f"no archive has {name}, but {later} of the same timeline is there: bring it from wherever it is left, "
                "or set a recovery target that lies before it, and recovery_prefetch=off from PostgreSQL 15 on"
            )

    def _history(self, name: str) -> list[HistoryEntry]:
        cluster = system_identifier(self._node)
        text = bytearray()

        def put(content: Iterable[bytes]) -> None:
            check = Check(name)
            for chunk in content:
                check.feed(chunk)
                text.extend(chunk)
            check.finish()

        if not any(place.bring(name, cluster, put, None) for place in self._places):
            raise HotspareError(f"{name} was in an archive a moment ago and is not any more: see who removed it")
        return parse_history(text.decode(errors="surrogateescape"))

    def _moving(self, content: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in content:
            self._moved = time.monotonic()
            yield chunk

    # --- the spool ---------------------------------------------------------------------------------------------------

    def _take(self, name: str, path: str, wanted: Wanted) -> bool:
        """From the spool, where it is verified; unless the data directory was made anew meanwhile."""
        spooled = os.path.join(self._spool, name)
        if not self._ahead or not os.path.exists(spooled) or not wanted():
            return False
        if self._cluster != system_identifier(self._node):
            return False  # what comes instead moves the window
        try:
            os.rename(spooled, path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise _failed("write", path, error) from error
            write(chunks(spooled), path, Check(name), wanted)
        return True

    def _spooled(self, name: str) -> bool:
        """Put it there; False when that cannot be now, which is told to who asks for it."""
        try:
            return self._fetch(name, os.path.join(self._spool, name))
        except HotspareError:
            return False

    def _look_after(self, name: str, size: int) -> None:
        """What comes after this segment shall be in the spool, unless it is here anyway, and nothing else."""
        cluster = system_identifier(self._node)
        try:
            if cluster != self._cluster:
                self._keep([])
            self._cluster = cluster
            self._window = [
                later for later in following(name, size, self._ahead) if self._own.archive.find(later) is None
            ]
            self._keep(self._window)
        except (HotspareError, OSError):
            self._window = []

    def _missing(self) -> Optional[str]:
        """The next file that the spool lacks."""
        return next((name for name in self._window if not os.path.exists(os.path.join(self._spool, name))), None)

    def _keep(self, names: Sequence[str]) -> None:
        for name in set(os.listdir(self._spool)) - set(names):
            os.unlink(os.path.join(self._spool, name))


def patience(directory: str, seconds: float = STANDBY_PATIENCE) -> Optional[float]:
    """How long a place is waited for when restore_command runs here: so long for a standby, or one that is promoted.

    A recovery to a point in time, or pg_rewind, fails without an answer, so it waits as long as that takes.
    """
    is_server = os.path.exists(os.path.join(directory, "PG_VERSION"))
    return seconds if is_server and not recovers(directory) else None


def following(name: str, size: int, ahead: int) -> list[str]:
    """The names of the segments after this one, for `ahead` of the usual size; at least one unless it is 0. (Pure.)"""
    segment = parse_segment_name(name, size)
    count = max(1, ahead * USUAL_SEGMENT // size) if ahead else 0
    return [segment_name(segment.timeline, segment.start_lsn + size * (1 + index), size) for index in range(count)]


def later_than(name: str, names: Collection[str]) -> list[str]:
    """The segments among these names that come after this one on its timeline. (Pure.)"""
    return sorted(other for other in names if kind(other) == "segment" and other[:8] == name[:8] and other > name)


def hole(name: str, names: Collection[str], histories: Mapping[int, list[HistoryEntry]], size: int) -> Optional[str]:
    """The segment after the hole that is left by this one, which is missing; None where the WAL may end. (Pure.)

    histories: by timeline, its own and those of newer ones. It has no segment from before it began, though PostgreSQL
    asks the newest timeline first; and where a newer one left it, what follows is of no use to that one.
    """
    segment = parse_segment_name(name, size)
    end = segment.start_lsn + size
    own = histories.get(segment.timeline)
    forks = [fork_point(history, segment.timeline) for history in histories.values()]
    if (own is not None and end <= own[-1].switch_lsn) or any(fork is not None and fork < end for fork in forks):
        return None
    return next(iter(later_than(name, names)), None)


def lies_in(pg_wal: str, name: str, size: int) -> bool:
    """Whether the segment is in pg_wal, where PostgreSQL looks next; one that waits for new WAL has only its name."""
    try:
        with open(os.path.join(pg_wal, name), "rb") as file:
            found = header(file.read(FILE_HEADER.size))
    except OSError:
        return False
    return found is not None and found.address == parse_segment_name(name, size).start_lsn


def expect_ours(name: str, identity: Optional[Identity], cluster: Optional[int]) -> None:
    """Whether an archive can say what there is of this cluster (its system identifier, if known). HotspareError."""
    if identity is None:
        raise Unreachable(f"{name} has no archive: mount its file system there, unless nothing was ever shipped to it")
    if cluster not in (None, identity.system_identifier):
        raise HotspareError(
            f"{name} is the archive of another cluster, {identity.system_identifier}, and this one is {cluster}: see "
            "archive_destinations, each cluster needs its own"
        )


def write(content: Iterable[bytes], path: str, check: Check, wanted: Wanted = always) -> None:
    """Make a verified content the file `path`, at once as a whole. BadWal, HotspareError."""
    for stale in glob.glob(f"{glob.escape(path)}{TEMPORARY}*"):  # of one who was killed
        with contextlib.suppress(FileNotFoundError):
            os.unlink(stale)
    temporary = f"{path}{TEMPORARY}{secrets.token_hex(4)}"
    try:
        mode = os.stat(os.path.dirname(path) or ".").st_mode & 0o640  # the group may read what it may enter
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            for chunk in content:
                check.feed(chunk)
                file.write(chunk)
        check.finish()
        if not wanted():
            raise HotspareError(f"{path} is not wanted any more: who asked for it has ended")
        os.rename(temporary, path)
    except OSError as error:
        raise _failed("write", path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _failed(act: str, path: str, error: OSError) -> HotspareError:
    return HotspareError(f"cannot {act} {path}: {error.strerror}; see that its directory is there and has room")
