# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stream through a program."""

from __future__ import annotations

from ansible_collections.hotspare.postgresql.plugins.module_utils.zstd import COMPRESS, DECOMPRESS, through


def test_there_and_back():
    chunks = [bytes([index]) * 100_000 for index in range(50)]
    packed = list(through(COMPRESS, chunks))
    assert b"".join(through(DECOMPRESS, packed)) == b"".join(chunks)
