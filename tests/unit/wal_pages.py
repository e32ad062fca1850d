# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL files as PostgreSQL writes them, as far as their page headers go."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, parse_segment_name
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import FILE_HEADER, PAGE_HEADER

SYSTEM = 7345678901234567890
PAGE = 8192
MAGIC = 0xD110
NAME = "000000010000000000000003"


def segment(
    name: str = NAME,
    *,
    size: int = MIB,
    system: int = SYSTEM,
    magic: int = MAGIC,
    used: int | None = None,
    timelines: Sequence[int] | None = None,
    fill: bytes = b"x",
) -> bytes:
    """The segment of this name: `used` pages with WAL (default: all), the rest zeros, as after a switch.

    timelines: of the first pages; the others have that of the name.
    """
    named = parse_segment_name(name[:24], size)
    pages = []
    for index in range(size // PAGE if used is None else used):
        timeline = timelines[index] if timelines and index < len(timelines) else named.timeline
        address = named.start_lsn + index * PAGE
        if index == 0:
            header = FILE_HEADER.pack(magic, 2, timeline, address, 0, system, size, PAGE)
        else:
            header = PAGE_HEADER.pack(magic, index % 2, timeline, address)
        pages.append(header.ljust(24, b"\0").ljust(PAGE, fill))
    return b"".join(pages).ljust(size, b"\0")


HISTORY = "1\t0/3000060\tno recovery target specified\n\n2\t0/5000148\tno recovery target specified\n"
BACKUP_NAME = "000000010000000000000002.00000028.backup"
BACKUP = """\
START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
STOP WAL LOCATION: 0/2000100 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-01-02 03:04:05 UTC
LABEL: pg_basebackup base backup
START TIMELINE: 1
STOP TIME: 2026-01-02 03:04:06 UTC
STOP TIMELINE: 1
"""
