# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages and files over a pair of pipes, such as those of an ssh: framed, bounded, and not waited for without end.

message   its length (4 bytes, big-endian) and a JSON object
payload   chunks of the same shape; then 0, or 0xFFFFFFFF when the sender gave it up; then a message: the trailer, or
          the sender's error
reply     {"ok": true, ...}, or {"ok": false, "code": ..., "message": a sentence, "facts": {...}}, which comes out at
          the other end as the class of error that it was
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

from .shell import HotspareError
from .store import Conflict, Full
from .wal import MIB
from .wal_file import BadWal

PROTOCOL = 2
LENGTH_BYTES = 4
MESSAGE_BYTES = 16 * MIB - 1  # so a length begins with NUL: text that a shell says before us is not taken for one
CHUNK_BYTES = MIB
PIECE_BYTES = MIB // 4  # of a pipe, and at one read: larger blocks are mapped anew each time, which costs time
F_SETPIPE_SZ = 1031  # fcntl has its name from Python 3.10 on
SILENCE_SECONDS = 60.0  # an fsync may take that long on a bad day
SAID_BYTES, SAID_SECONDS = 200, 0.1  # of what is no message
END, GIVEN_UP = 0, 0xFFFFFFFF

# What went wrong, and the exit code of archive_command for it: 1 to 125, or PostgreSQL would end its archiver.
CODES = {"conflict": 10, "invalid": 11, "unreachable": 12, "full": 13, "busy": 14, "other": 20}

CUT_OFF = "it ended in the middle of what it said"


class Broken(Exception):
    """The other end is gone, is silent, or says what is no message: nothing more can be exchanged."""


class Garbage(Broken):
    """Text where a message was expected."""

    def __init__(self, said: str) -> None:
        super().__init__(f"it says {said!r} where a message was expected")
        self.said = said


class Unreachable(HotspareError):
    """A destination that cannot be talked to now: connect again."""


class Refused(Unreachable):
    """A destination that will not let us in before somebody changes something."""


class Missing(HotspareError):
    """What was asked for is not there, and that is known."""


_ERRORS: dict[str, type[HotspareError]] = {
    "conflict": Conflict,
    "full": Full,
    "missing": Missing,
    "refused": Refused,
    "unreachable": Unreachable,
}


def code_of(error: HotspareError) -> str:
    """Its code in a reply."""
    if isinstance(error, BadWal):
        return "invalid"
    return next((code for code, kind in _ERRORS.items() if isinstance(error, kind)), "other")


def exit_code(error: HotspareError) -> int:
    """What archive_command returns for it."""
    code = code_of(error)
    return CODES["unreachable" if code == "refused" else code if code in CODES else "other"]


def failure(error: HotspareError) -> dict[str, Any]:
    """The reply that tells of it."""
    return {"ok": False, "code": code_of(error), "message": error.message, "facts": error.facts}


def failed(reply: Mapping[str, Any], where: str = "") -> HotspareError:
    """The error that a reply tells of, and where it happened."""
    message = f"{where}: {reply.get('message')}" if where else str(reply.get("message"))
    code, facts = reply.get("code"), reply.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    if code == "invalid":
        error: HotspareError = BadWal(message, code=str(facts.get("code")))
    else:
        error = _ERRORS.get(str(code), HotspareError)(message)
    error.facts.update(facts)
    return error


@dataclass(frozen=True)
class Stream:
    """A reply that a payload follows."""

    chunks: Iterable[bytes]
    facts: Mapping[str, Any] = field(default_factory=dict)


Reply = Union[Mapping[str, Any], Stream]


class Channel:
    """One end of it; `silence`: seconds after which the other end is given up while it owes us something."""

    def __init__(self, reading: int, writing: int, *, silence: float = SILENCE_SECONDS) -> None:
        self._reading, self._writing = reading, writing
        self._silence = silence
        os.set_blocking(writing, False)
        for pipe in (reading, writing):  # fewer switches between its two ends
            with contextlib.suppress(OSError):  # no pipe; or this account has its share of wide ones
                fcntl.fcntl(pipe, F_SETPIPE_SZ, PIECE_BYTES)

    def send(self, message: Mapping[str, Any]) -> None:
        """Broken; HotspareError when it is too long."""
        text = json.dumps(message, default=str).encode()
        if len(text) > MESSAGE_BYTES:
            raise HotspareError(f"a message of {len(text)} bytes is too long: ask for less at once")
        self._write(_length(len(text)) + text)

    def receive(self, wait: Optional[float] = None) -> Optional[dict[str, Any]]:
        """The next message, which is waited for as long as said; None when there will be no more. Broken."""
        head = self._read(LENGTH_BYTES, wait)
        if not head:
            return None
        if head[0]:
            raise Garbage(self._said(head))
        if len(head) < LENGTH_BYTES:
            raise Broken(CUT_OFF)
        try:
            message = json.loads(self._whole(int.from_bytes(head, "big")))
        except ValueError as error:
            raise Broken(f"its message is no JSON: {error}") from error
        if not isinstance(message, dict):
            raise Broken("its message is no JSON object")
        return message

    def answer(self, wait: Optional[float] = None) -> dict[str, Any]:
        """The next message, which has to come, within `wait` seconds if not the usual time; Broken."""
        message = self.receive(self._silence if wait is None else wait)
        if message is None:
            raise Broken("it ended")
        return message

    def send_payload(
        self, chunks: Iterable[bytes], trailer: Callable[[], Mapping[str, Any]] = dict
    ) -> Optional[HotspareError]:
        """What `chunks` gives, and then what `trailer` does; Broken.

        When either raises a HotspareError the other end is told and gives it up as well; then it is returned.
        """
        try:
            for chunk in chunks:
                for start in range(0, len(chunk), CHUNK_BYTES):
                    part = chunk[start : start + CHUNK_BYTES]
                    self._write(_length(len(part)))  # not together: that would copy it all
                    self._write(part)
            end, last = END, trailer()
            error = None
        except HotspareError as found:
            end, last = GIVEN_UP, failure(found)
            error = found
        self._write(_length(end))
        self.send(last)
        return error

    def payload(self) -> Payload:
        """The payload that comes next."""
        return Payload(self)

    def chunk(self) -> Optional[bytes]:
        """The next one of a payload, None after the last; Broken, or what the sender gave it up for."""
        length = int.from_bytes(self._whole(LENGTH_BYTES), "big")
        if length == END:
            return None
        if length == GIVEN_UP:
            raise failed(self.answer())
        if length > CHUNK_BYTES:
            raise Broken(f"it sends {length} bytes at once, more than the {CHUNK_BYTES} that are allowed")
        return self._whole(length)

    def _whole(self, size: int) -> bytes:
        data = self._read(size, self._silence)
        if len(data) < size:
            raise Broken(CUT_OFF)
        return data

    def _read(self, size: int, wait: Optional[float]) -> bytes:
        """So many bytes, fewer at the end only; `wait` is for the first."""
        pieces: list[bytes] = []
        left = size
        while left:
            self._ready(self._reading, select.POLLIN, self._silence if pieces else wait)
            try:
                piece = os.read(self._reading, min(left, PIECE_BYTES))
            except BlockingIOError:
                continue
            except OSError as error:
                raise Broken(f"it is gone ({error.strerror})") from error
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._writing, left) :]
            except BlockingIOError:
                self._ready(self._writing, select.POLLOUT, self._silence)
            except OSError as error:
                raise Broken(f"it is gone ({error.strerror})") from error

    @staticmethod
    def _ready(descriptor: int, event: int, wait: Optional[float]) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(None if wait is None else wait * 1000):
            raise Broken(f"it was silent for {wait:g} s")

    def _said(self, head: bytes) -> str:
        """Text that is no message, as far as it is there already; up to the NUL of a message behind it."""
        said = head
        with contextlib.suppress(Broken):
            while len(said) < SAID_BYTES and (more := self._read(1, SAID_SECONDS)) not in (b"", b"\0"):
                said += more
        return said.decode(errors="replace").strip()


class Payload:
    """The chunks of one; after the last one `trailer` is the message behind it, and `done` says that it was read."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.trailer: dict[str, Any] = {}
        self.done = False

    def __iter__(self) -> Iterator[bytes]:
        while not self.done:
            try:
                chunk = self._channel.chunk()
            except HotspareError:
                self.done = True
                raise
            if chunk is None:
                self.trailer = self._channel.answer()
                self.done = True
            else:
                yield chunk


def _length(count: int) -> bytes:
    return count.to_bytes(LENGTH_BYTES, "big")
