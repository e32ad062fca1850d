# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""wire.py: what is sent arrives, errors arrive as what they are, and what is no message is told and not waited for."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import wire
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Conflict, Full
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import BadWal
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import (
    CHUNK_BYTES,
    MESSAGE_BYTES,
    Broken,
    Channel,
    Garbage,
    Missing,
    Refused,
    Unreachable,
    exit_code,
    failed,
    failure,
)
from hypothesis import given
from hypothesis import strategies as st

SILENCE = 0.2
ERRORS = [
    Conflict("there is another", path="/a", first_difference=4711),
    BadWal("is cut off", code="size", name="x"),
    Full("no room"),
    Missing("not there"),
    Unreachable("no way"),
    Refused("no key"),
    HotspareError("anything", facts=[1]),
]
messages = st.dictionaries(
    st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()), max_size=5
)


class Pipe:
    """A channel that hears what it says, as long as that fits into a pipe."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.channel = Channel(self.reading, self.writing, silence=SILENCE)

    def say(self, content: bytes, end: bool = True) -> Channel:
        """Let the other end say this, and go."""
        os.write(self.writing, content)
        if end:
            self.end()
        return self.channel

    def end(self) -> None:
        os.close(self.writing)
        self.writing = -1

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            if descriptor >= 0:
                os.close(descriptor)


@contextlib.contextmanager
def piped() -> Iterator[Pipe]:
    pipe = Pipe()
    try:
        yield pipe
    finally:
        pipe.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with piped() as made:
        yield made


def framed(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


# --- what is sent arrives --------------------------------------------------------------------------------------------


@given(st.lists(messages, max_size=5))
def test_messages(said):
    with piped() as pipe:
        for message in said:
            pipe.channel.send(message)
        assert [pipe.channel.receive(SILENCE) for _ in said] == said
        pipe.end()
        assert pipe.channel.receive() is None


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 20), messages)
def test_payloads(chunks, limit, trailer):
    with piped() as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "CHUNK_BYTES", limit)
        assert pipe.channel.send_payload(iter(chunks), lambda: trailer) is None
        payload = pipe.channel.payload()
        heard = list(payload)
        assert b"".join(heard) == b"".join(chunks)
        assert all(0 < len(chunk) <= limit for chunk in heard)
        assert (payload.trailer, payload.done) == (trailer, True)
        assert list(payload) == []


def test_a_file_that_does_not_fit_into_a_pipe(pipe):
    content = os.urandom(3 * CHUNK_BYTES + 17)
    channel = Channel(pipe.reading, pipe.writing)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(channel.send_payload, [content])
        assert b"".join(channel.payload()) == content
        assert sent.result() is None


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=wire.code_of)
def test_an_error_arrives_as_what_it_was(error, pipe):
    pipe.channel.send(failure(error))
    heard = failed(pipe.channel.answer(), "db2")
    assert type(heard) is type(error)
    assert (heard.message, heard.facts) == (f"db2: {error.message}", error.facts)
    if isinstance(error, BadWal):
        assert heard.code == error.code
    assert 1 <= exit_code(heard) <= 125


def test_exit_codes():
    codes = {wire.code_of(error): exit_code(error) for error in ERRORS}
    assert codes == {
        "conflict": 10, "invalid": 11, "unreachable": 12, "refused": 12, "full": 13, "missing": 20, "other": 20,
    }  # fmt: skip


@pytest.mark.parametrize("reply", [{}, {"code": [], "facts": 3}, {"code": "invalid"}, {"code": "of tomorrow"}])
def test_an_error_that_is_not_known_is_an_error(reply):
    assert isinstance(failed({"ok": False, "message": "no", **reply}), HotspareError)


@pytest.mark.parametrize("where", ["chunks", "trailer"])
def test_what_is_given_up_is_given_up_at_both_ends(pipe, where):
    def chunks():
        yield b"half"
        if where == "chunks":
            raise BadWal("is damaged", code="page")

    def trailer():
        raise BadWal("is damaged", code="page")

    given_up = pipe.channel.send_payload(chunks(), trailer)
    assert isinstance(given_up, BadWal)
    payload = pipe.channel.payload()
    with pytest.raises(BadWal, match="is damaged"):
        list(payload)
    assert payload.done
    pipe.channel.send({"and": "on"})
    assert pipe.channel.answer() == {"and": "on"}


# --- what is no message ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("banner", ["Welcome to db2!\n", "\n", "x", "Last login: today\r\n\r\n$ ", "é" * 300])
def test_what_a_shell_says_is_no_message(pipe, banner):
    channel = pipe.say(banner.encode(), end=False)
    pipe.say(framed(b"{}"), end=False)
    with pytest.raises(Garbage) as told:
        channel.answer()
    assert told.value.said.startswith(banner.strip()[:50])


@given(st.binary(max_size=200))
def test_noise_is_an_error_and_nothing_else(noise):
    with piped() as pipe:
        channel = pipe.say(noise)
        with contextlib.suppress(Broken):
            while (message := channel.receive()) is not None:
                assert isinstance(message, dict)
    with piped() as pipe:
        payload = pipe.say(noise).payload()
        with contextlib.suppress(Broken, HotspareError):
            for chunk in payload:
                assert len(chunk) <= CHUNK_BYTES


@given(st.data())
def test_what_is_cut_off_is_told(data):
    with piped() as pipe:
        pipe.channel.send({"op": "put"})
        pipe.channel.send_payload([b"content"], lambda: {"sha256": "x"})
        said = os.read(pipe.reading, 1000)
    cut = data.draw(st.integers(1, len(said) - 1))
    with piped() as pipe:
        channel = pipe.say(said[:cut])
        with pytest.raises(Broken):
            channel.answer()
            list(channel.payload())


@pytest.mark.parametrize("content", [b"[1]", b"null", b"{", b"\xff"])
def test_a_message_is_a_json_object(pipe, content):
    with pytest.raises(Broken, match="JSON"):
        pipe.say(framed(content)).receive()


def test_sizes_have_bounds(pipe):
    with pytest.raises(HotspareError, match="too long"):
        pipe.channel.send({"x": "y" * MESSAGE_BYTES})
    with pytest.raises(Broken, match="at once"):
        list(pipe.say(struct.pack(">I", CHUNK_BYTES + 1), end=False).payload())
    with pytest.raises(Broken):  # not one byte is kept for it
        pipe.say(struct.pack(">I", MESSAGE_BYTES + 1)).receive()
    assert MESSAGE_BYTES < 1 << 24


def test_silence_is_not_waited_for(pipe):
    with pytest.raises(Broken, match="silent for 0.2 s"):
        pipe.channel.answer()
    with pytest.raises(Broken, match="silent for 0.1 s"):
        pipe.channel.answer(0.1)
    with pytest.raises(Broken, match="silent for 0.2 s"):
        pipe.say(framed(b"{}")[:3], end=False).receive()


def test_who_does_not_listen_is_not_waited_for(pipe):
    with pytest.raises(Broken, match="silent for 0.2 s"):
        pipe.channel.send_payload([bytes(CHUNK_BYTES)])


def test_who_is_gone_is_told(pipe):
    os.close(pipe.reading)
    pipe.reading = -1
    with pytest.raises(Broken, match="gone"):
        pipe.channel.send({})
