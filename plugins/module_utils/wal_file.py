# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a file that PostgreSQL hands to archive_command is what its name says. Pure, but for the bytes fed in.

A segment is checked page by page, by what PostgreSQL itself looks at before it reads one (xlogreader.c,
XLogReaderValidatePageHeader; layouts in xlog_internal.h, the same from 13 to 18). Records and their CRCs are not
looked at: that is pg_waldump's work.
"""

from __future__ import annotations

import hashlib
import re
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from .shell import HotspareError
from .wal import (
    MIB,
    HistoryEntry,
    format_lsn,
    parse_history,
    parse_lsn,
    parse_segment_name,
    segment_name,
    segment_size_ok,
    timeline_at,
)

MAGICS = {0xD106: 13, 0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}  # XLOG_PAGE_MAGIC
CODES = ("name", "size", "magic", "flags", "system", "address", "timeline", "page", "hole", "empty", "parse", "changed")
NEXT = {
    **dict.fromkeys(CODES, "compare it with the file in pg_wal of the server that wrote it"),
    "empty": "a crash or a copy left it so: bring what it held from another node, or remove it if it is a .backup",
    "magic": "see which version wrote it, and whether this hotspare knows that one",
    "system": "see whether another cluster is configured with this archive",
}
TEXTS = ("history", "backup")
TEXT_BYTES = MIB  # a .history has some 60 bytes for each ancestor, a .backup some 400

# Native byte order: PostgreSQL writes its structs as they are.
PAGE_HEADER = struct.Struct("=HHIQ")  # xlp_magic, xlp_info, xlp_tli, xlp_pageaddr
FILE_HEADER = struct.Struct("=HHIQI4xQII")  # the same, xlp_rem_len, then xlp_sysid, xlp_seg_size, xlp_xlog_blcksz
LONG_HEADER = 0x0002  # in xlp_info of the first page of a file, and only there
FLAGS = 0x000F

_TIMELINE = "(?!0{8})[0-9A-F]{8}"
_KINDS = {
    "segment": re.compile(_TIMELINE + r"[0-9A-F]{16}"),
    "partial": re.compile(_TIMELINE + r"[0-9A-F]{16}\.partial"),
    "history": re.compile(_TIMELINE + r"\.history"),
    "backup": re.compile(_TIMELINE + r"[0-9A-F]{16}\.[0-9A-F]{8}\.backup"),
}
_LOCATION = r"^%s WAL LOCATION: ([0-9A-F]{1,8}/[0-9A-F]{1,8}) \(file ([0-9A-F]{24})\)$"
_BACKUP_START = re.compile(_LOCATION % "START", re.MULTILINE)
_BACKUP_STOP = re.compile(_LOCATION % "STOP", re.MULTILINE)


class BadWal(HotspareError):
    """A file that must not be taken for WAL; `code` (one of CODES) is the rule that it breaks."""

    def __init__(self, message: str, *, code: str, **facts: Any) -> None:
        super().__init__(message, code=code, **facts)
        self.code = code


@dataclass(frozen=True)
class WalFacts:
    """What a checked file holds. None and empty for text: only segments know their cluster.

    `timelines`: those of its pages, as they follow; of a .partial, whose tail is old, only that of the first.
    """

    name: str
    kind: str
    size: int
    sha256: str
    system_identifier: Optional[int] = None
    segment_size: Optional[int] = None
    magic: Optional[int] = None
    page_size: Optional[int] = None
    timelines: tuple[int, ...] = ()


@dataclass(frozen=True)
class Header:
    """The long header with which each WAL file begins."""

    magic: int
    info: int
    timeline: int
    address: int
    system_identifier: int
    segment_size: int
    page_size: int


def kind(name: str) -> Optional[str]:
    """By the name alone: segment, partial, history or backup; None for what no archiver ever offers."""
    return next((found for found, pattern in _KINDS.items() if pattern.fullmatch(name)), None)


def header(begin: bytes) -> Optional[Header]:
    """The header of a WAL file that begins so; None when that is none, or too short."""
    if len(begin) < FILE_HEADER.size:
        return None
    magic, info, timeline, address, _length, system, size, page = FILE_HEADER.unpack_from(begin)
    if magic not in MAGICS or not info & LONG_HEADER:
        return None
    return Header(magic, info, timeline, address, system, size, page)


class Check:
    """Feed it a file's content in pieces of any size; BadWal at the first defect.

    system_identifier, segment_size: what it has to be, where that is known. history: the ancestors of the timeline in
    its name, where they are known; without them a segment of an ancestor may pass that was renamed to that timeline.
    """

    def __init__(
        self,
        name: str,
        *,
        system_identifier: Optional[int] = None,
        segment_size: Optional[int] = None,
        history: Optional[Sequence[HistoryEntry]] = None,
    ) -> None:
        found = kind(name)
        if found is None:
            raise BadWal(f"{name!r} is not the name of a WAL file: give what PostgreSQL names %f", code="name")
        self.name = name
        self.kind = found
        self.size = 0
        self._system_identifier = system_identifier
        self._segment_size = segment_size
        self._hash = hashlib.sha256()
        self._rest = b""  # of a page that is not complete yet; of a text, all
        self._header: Optional[Header] = None
        self._address = 0  # of the next page
        self._ancestors = history
        self._timelines: list[int] = []
        self._begins: list[int] = []  # with which page each of them begins, its address
        self._zeros_from: Optional[int] = None  # the address of the first page without anything

    def sha256(self) -> str:
        """Of all that was fed so far."""
        return self._hash.hexdigest()

    def feed(self, chunk: bytes) -> None:
        """The next bytes; BadWal."""
        self._hash.update(chunk)
        self.size += len(chunk)
        data = self._rest + chunk if self._rest else chunk
        if self.kind in TEXTS:
            if self.size > TEXT_BYTES:
                raise self._bad("size", f"has more than {TEXT_BYTES} bytes, which no such file needs")
            self._rest = data
            return
        if self._header is None:
            if len(data) < FILE_HEADER.size:
                self._rest = data
                return
            self._header = self._first_page(data)
        if self.size > self._header.segment_size:
            raise self._bad("size", f"is longer than the {self._header.segment_size} bytes of a segment")
        # The tail of a .partial is what the file held before it was recycled.
        self._rest = self._pages(data, self._header) if self.kind == "segment" else b""

    def finish(self) -> WalFacts:
        """After the last byte: what the file holds; BadWal."""
        if self.size == 0:
            raise self._bad("empty", "is empty")
        if self.kind in TEXTS:
            check = self._history if self.kind == "history" else self._backup
            check(self._rest.decode(errors="surrogateescape"))
            return WalFacts(self.name, self.kind, self.size, self.sha256())
        found = self._header
        if found is None:
            raise self._bad("size", f"is cut off: it has {self.size} bytes, less than the header of a page")
        if self.size != found.segment_size:
            raise self._bad("size", f"is cut off: it has {self.size} of the {found.segment_size} bytes of a segment")
        if self._ancestors is not None:
            self._follows(self._ancestors, found)
        return WalFacts(
            self.name,
            self.kind,
            self.size,
            self.sha256(),
            found.system_identifier,
            found.segment_size,
            found.magic,
            found.page_size,
            tuple(self._timelines),
        )

    def _first_page(self, data: bytes) -> Header:
        magic, info = PAGE_HEADER.unpack_from(data)[:2]
        if magic not in MAGICS:
            raise self._bad("magic", f"begins with 0x{magic:04X}, which is no WAL of PostgreSQL 13 to 18")
        found = header(data)
        if found is None or info & ~FLAGS:
            raise self._bad("flags", f"has the flags 0x{info:04X} in its first page, which no WAL file begins with")
        size, system = found.segment_size, found.system_identifier
        if not segment_size_ok(size) or self._segment_size not in (None, size):
            wanted = f"not {self._segment_size}" if self._segment_size else "which is no segment size"
            raise self._bad("size", f"comes from a cluster with segments of {size} bytes, {wanted}")
        if found.page_size & (found.page_size - 1) or not 1024 <= found.page_size <= 65536:
            raise self._bad("size", f"says that its pages have {found.page_size} bytes, which no PostgreSQL has")
        if self._system_identifier not in (None, system):
            wanted = f"not to {self._system_identifier}"
            raise self._bad("system", f"belongs to the cluster with system identifier {system}, {wanted}")
        try:
            named = parse_segment_name(self.name[:24], size)
        except ValueError as error:
            raise self._bad("name", f"has a name that no segment of {size // MIB} MB has") from error
        if found.address != named.start_lsn:
            actual = segment_name(named.timeline, found.address, size)
            raise self._bad("address", f"begins with {format_lsn(found.address)}, which belongs into {actual}")
        self._address = found.address
        self._timeline(found.timeline, found.address, "its first page")
        return found

    def _pages(self, data: bytes, first: Header) -> bytes:
        """Check all pages that are complete; what is left over."""
        unpack = PAGE_HEADER.unpack_from
        step, magic_wanted = first.page_size, first.magic
        expected, zeros = self._address, bytes(step)
        end = len(data) - len(data) % step
        for offset in range(0, end, step):
            magic, info, timeline, address = unpack(data, offset)
            if magic != magic_wanted or address != expected or self._zeros_from is not None:
                self._other_page(expected, not data.startswith(zeros, offset), magic, address)
            else:
                if info & ~FLAGS or bool(info & LONG_HEADER) != (address == first.address):
                    raise self._bad("flags", f"has the flags 0x{info:04X} in {self._page(address)}")
                if timeline != self._timelines[-1]:
                    self._timeline(timeline, address, self._page(address))
            expected += step
        self._address = expected
        return data[end:]

    def _other_page(self, expected: int, used: bool, magic: int, address: int) -> None:
        """A page that does not follow the one before: after a switch of segments the rest is zeros, all of it."""
        if not used:
            if self._zeros_from is None:
                self._zeros_from = expected
        elif self._zeros_from is not None:
            hole = self._page(self._zeros_from)
            raise self._bad("hole", f"has a hole: {hole} is empty, {self._page(expected)} is not")
        else:
            where = self._page(expected)
            raise self._bad("page", f"is damaged: {where} has the header 0x{magic:04X} of {format_lsn(address)}")

    def _timeline(self, timeline: int, address: int, where: str) -> None:
        """The first segment of a timeline begins with a copy of its ancestor's, so an earlier one is right.

        It may even be in all pages: when it is given up before it goes beyond the page with the switch.
        """
        before = self._timelines[-1] if self._timelines else 1
        if not before <= timeline <= int(self.name[:8], 16):
            after = f" after {before}" if self._timelines else ""
            raise self._bad("timeline", f"has timeline {timeline} in {where}{after}, which its name does not allow")
        self._timelines.append(timeline)
        self._begins.append(address)

    def _follows(self, history: Sequence[HistoryEntry], first: Header) -> None:
        """Each page has the timeline that wrote its first byte; a timeline begins with the segment of its switch."""
        own = int(self.name[:8], 16)
        end = first.address + first.segment_size
        ancestor = timeline_at(history, own, end - 1)
        if ancestor != own:
            actual = segment_name(ancestor, first.address, first.segment_size)
            raise self._bad("timeline", f"lies before the switch to its timeline, so it belongs into {actual}")
        if self.kind == "partial":
            end = first.address + 1  # only of the first page is it known what it holds
        elif self._zeros_from is not None:
            end = self._zeros_from
        # Only there it can change, what is found and what is wanted.
        switches = (-(-entry.switch_lsn // first.page_size) * first.page_size for entry in history)
        for address in sorted({*self._begins, *(page for page in switches if first.address < page < end)}):
            found = self._timelines[bisect_right(self._begins, address) - 1]
            wanted = timeline_at(history, own, address)
            if found != wanted:
                where = self._page(address)
                raise self._bad("timeline", f"has timeline {found} in {where}, which by its history is of {wanted}")

    def _page(self, address: int) -> str:
        if self._header is None:
            raise AssertionError("it was begun")
        offset = address - self._header.address
        return f"page {offset // self._header.page_size} (byte {offset})"

    def _history(self, text: str) -> None:
        own = int(self.name[:8], 16)
        if own < 2:
            raise self._bad("name", "is the history of a timeline that has none: the first one has no ancestor")
        if not text.endswith("\n"):  # half an LSN is an LSN too
            raise self._bad("parse", "is cut off: its last line has no end")
        try:
            last = parse_history(text)[-1]
        except ValueError as error:
            raise self._bad("parse", f"is no timeline history: {error}") from error
        if last.timeline >= own:
            raise self._bad("timeline", f"names timeline {last.timeline} as its ancestor, which is not earlier")

    def _backup(self, text: str) -> None:
        start, stop = _BACKUP_START.search(text), _BACKUP_STOP.search(text)
        if start is None or stop is None or not text.endswith("\n"):
            raise self._bad("parse", "is no backup history: it does not say where the backup begins and ends")
        begin, size, file = parse_lsn(start[1]), self._segment_size, self.name[:24]
        named = f"{segment_name(int(file[:8], 16), begin, size)}.{begin % size:08X}.backup" if size else self.name
        if start[2] != file or self.name != named:
            raise self._bad("address", f"is of the backup that begins at {start[1]} in {start[2]}")

    def _bad(self, code: str, what: str) -> BadWal:
        return BadWal(f"{self.name} {what}; {NEXT[code]}", code=code, name=self.name)
