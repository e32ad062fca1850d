# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of an archive nobody needs any more. Pure.

Everything before the oldest position that anybody needs may go, and nothing when one of them does not say. The digits
of the timeline do not count, as pg_archivecleanup has it: a segment of an ancestor may be needed as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Optional

from .wal import format_lsn, parse_segment_name, segment_name
from .wal_file import kind

NUMBERED = ("segment", "partial", "backup")  # kinds of files; histories are kept for ever


@dataclass(frozen=True)
class Need:
    """Somebody (`of`) who needs WAL from `lsn` on; None = it is not known from where on. `detail` says why."""

    kind: str
    of: str
    lsn: Optional[int]
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "lsn": None if self.lsn is None else format_lsn(self.lsn)}


@dataclass(frozen=True)
class Cut:
    """What may go. before: the digits of log and segment that are kept, with all after them. remove: ascending."""

    ok: bool
    before: Optional[str]
    remove: list[str]
    deciding: Optional[Need]
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "deciding": self.deciding.as_dict() if self.deciding else None}


def cut(names: Iterable[str], needs: Iterable[Need], *, segment_size: int, minimum_segments: int = 0) -> Cut:
    """Which of the files `names` of an archive no need asks for; the newest `minimum_segments` stay in any case.

    In the order in which they have to be removed, so that what an interrupted run leaves has no gap.
    """
    known = list(needs)
    unknown = next((need for need in known if need.lsn is None), None)
    if unknown is not None:
        return _nothing(unknown, f"nobody knows from where on {unknown.of} needs WAL: {unknown.detail}")
    if not known:
        return _nothing(None, "nobody knows who needs WAL")
    try:
        numbers = {name: _number(name, segment_size) for name in names if kind(name) in NUMBERED}
    except ValueError as error:
        return _nothing(None, f"this is no archive of such segments: {error}")
    newest = sorted({numbers[name] for name in numbers if kind(name) != "backup"})[-minimum_segments:]
    if minimum_segments and newest:
        least = f"its newest {minimum_segments} segments are kept"
        known.append(Need("minimum", "the archive", newest[0] * segment_size, least))
    positions = [(need.lsn, need) for need in known if need.lsn is not None]
    lsn, deciding = min(positions, key=lambda pair: pair[0])
    return Cut(
        ok=True,
        before=segment_name(1, lsn, segment_size)[8:],
        remove=sorted(
            (name for name in numbers if numbers[name] < lsn // segment_size), key=lambda name: (numbers[name], name)
        ),
        deciding=deciding,
        reason=f"{deciding.of} needs WAL from {format_lsn(lsn)} on: {deciding.detail}",
    )


def _number(name: str, segment_size: int) -> int:
    return parse_segment_name(name[:24], segment_size).number


def _nothing(deciding: Optional[Need], reason: str) -> Cut:
    return Cut(ok=False, before=None, remove=[], deciding=deciding, reason=f"nothing is removed, {reason}")
