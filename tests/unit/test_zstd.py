# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stream through a program."""

from __future__ import annotations

import random

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zstd import COMPRESS, DECOMPRESS, Filter, through


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_there_and_back(size):
    chunks = [random.Random(size).randbytes(size // 2), bytes(size), b"", b"end"]
    packed = list(through(COMPRESS, chunks))
    assert b"".join(through(DECOMPRESS, packed)) == b"".join(chunks)


def test_more_goes_in_than_comes_out_and_the_other_way_round():
    """Neither side waits for the other for ever."""
    assert b"".join(through(["cat"], [bytes(1 << 20)] * 20)) == bytes(20 << 20)
    assert b"".join(through(["wc", "-c"], [bytes(1 << 20)] * 20)).strip() == b"20971520"
    assert len(b"".join(through(["od", "-v"], [bytes(1 << 20)] * 3))) > 10 << 20


@pytest.mark.parametrize(
    ("argv", "chunks", "why"),
    [
        (DECOMPRESS, [b"no zstd"], "zstd failed: .*unsupported format"),
        (DECOMPRESS, [b"no zstd" * 1_000_000], "zstd failed: .*unsupported format"),
        (DECOMPRESS, [b"\x28\xb5\x2f\xfd"], "zstd failed: "),
        (["sh", "-c", "echo why >&2; exit 3"], [b"x" * 1_000_000], "sh failed: why"),
        (["sh", "-c", "cat; exit 3"], [b"x"], "sh failed: it ended early"),
        (["sh", "-c", "exec >&-; cat >/dev/null"], [b"x" * 1_000_000] * 5, "sh failed: it ended early"),
        (["program-that-is-not-there"], [b"x"], "cannot run program-that-is-not-there: .*; install it on this host"),
    ],
)
def test_a_program_that_fails(argv, chunks, why):
    with pytest.raises(HotspareError, match=why):
        list(through(argv, chunks))


def test_it_does_not_outlive_its_user():
    with Filter(["sleep", "60"]) as program:
        process = program._process
        assert process.poll() is None
    assert process.returncode is not None
    program.close()
