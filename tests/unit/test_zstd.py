# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams in zstd, and what is none."""

from __future__ import annotations

import random
import subprocess

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zstd
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zstd import (
    Compressor,
    Decompressor,
    compressed,
    decompressed,
)
from hypothesis import given
from hypothesis import strategies as st

NOISE = random.Random(4).randbytes(5_000_000)


def packed(*chunks: bytes) -> bytes:
    return b"".join(compressed(chunks))


def unpacked(*chunks: bytes) -> bytes:
    return b"".join(decompressed(chunks))


def program(option: str, content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", option], input=content, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("size", [0, 1, 100_000, zstd.BLOCK - 3, zstd.BLOCK, 3_000_000])
def test_there_and_back(size):
    chunks = [NOISE[: size // 2], bytes(size), b"", b"end"]
    assert unpacked(*compressed(chunks)) == b"".join(chunks)


@given(st.lists(st.binary(max_size=50)), st.integers(1, 40))
def test_there_and_back_in_pieces_of_any_size(chunks, size):
    sent = packed(*chunks)
    assert unpacked(*(sent[start : start + size] for start in range(0, len(sent), size))) == b"".join(chunks)


@pytest.mark.parametrize(
    "content", [b"", b"content", NOISE, bytes(20_000_000)], ids=["none", "little", "noise", "zeros"]
)
def test_it_is_what_the_program_reads_and_writes(content):
    """Also when a little holds very much, and the other way round."""
    assert program("-d", packed(content)) == content
    assert unpacked(program("-3", content)) == content


def test_several_frames():
    assert unpacked(packed(b"one"), packed(b""), packed(b"two")) == b"onetwo"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no zstd", "Unknown frame descriptor"),
        (b"no zstd" * 1_000_000, "Unknown frame descriptor"),
        (b"\x28\xb5\x2f\xfd", "it is cut off"),
        (b"", "it is cut off"),
        (packed(NOISE)[:-1], "it is cut off"),
        (packed(b"content")[:-1] + b"?", "checksum"),
        (packed(b"content") + b"and more", "Unknown frame descriptor"),
    ],
)
def test_what_is_no_zstd(content, why):
    with pytest.raises(HotspareError, match=f"zstd failed: .*{why}.*; the data is damaged"):
        unpacked(content)


@pytest.mark.parametrize("kind", [Compressor, Decompressor])
def test_it_may_be_given_up(kind):
    with kind() as stream:
        list(stream.feed(packed(b"content")))
    stream.close()


def test_no_memory(monkeypatch):
    monkeypatch.setattr(Compressor, "_create", lambda self: None)
    with pytest.raises(HotspareError, match="it gets no memory"):
        Compressor()
