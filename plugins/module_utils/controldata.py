# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pg_control says of a cluster, by pg_controldata: the one witness that speaks when the server is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .shell import HotspareError, run
from .wal import format_lsn, parse_lsn, segment_size_ok

READ_SECONDS = 20
TRIES = 3  # a server that writes pg_control just now can make one reading look damaged


@dataclass(frozen=True)
class ControlData:
    """One reading of pg_control; LSNs and sizes in bytes.

    A running server's settings and positions are newer than this; on a standby `timeline` is that of the last
    restartpoint, after a promotion that of the last checkpoint. `checkpoint_lsn` is where that record begins.
    """

    system_identifier: str
    state: str
    checkpoint_lsn: int
    redo_lsn: int
    timeline: int
    prev_timeline: int
    min_recovery_lsn: int
    min_recovery_timeline: int
    backup_start_lsn: int
    backup_end_required: bool
    wal_segment_size: int
    block_size: int
    data_checksums: int
    wal_log_hints: bool
    full_page_writes: bool
    wal_level: str
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    pg_control_version: int
    catalog_version: int
    checkpoint_time: str
    next_xid: str

    @property
    def clean_primary_shutdown(self) -> bool:
        """Whether it last ran as a primary and wrote its shutdown checkpoint."""
        return self.state == "shut down"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: LSNs as text, the rest as it is."""
        return {name: format_lsn(value) if name.endswith("_lsn") else value for name, value in asdict(self).items()}


def parse(text: str) -> ControlData:
    """What pg_controldata (PostgreSQL 13 or later, C locale) printed; ValueError names the line that is wrong."""
    lines = {
        label.strip(): value.strip() for label, _colon, value in (line.partition(":") for line in text.splitlines())
    }
    values = {}
    for field, (label, convert) in _LINES.items():
        if label not in lines:
            raise ValueError(f"pg_controldata printed no line {label!r}")
        try:
            values[field] = convert(lines[label])
        except ValueError as error:
            raise ValueError(f"pg_controldata printed {lines[label]!r} as {label!r}") from error
    return ControlData(**values)


def read(bin_directory: str, data_directory: str, account: str) -> ControlData:
    """Run pg_controldata on a data directory, its server running or not; `checkpoint_time` is in UTC.

    HotspareError when it fails, says that the file is damaged, or prints what we do not know.
    """
    for remaining in reversed(range(TRIES)):
        done = run(
            [f"{bin_directory}/pg_controldata", "-D", data_directory],
            account=account,
            timeout=READ_SECONDS,
            env={"TZ": "UTC"},
        )
        # It ends with 0 even when the checksum is wrong and "the results below are untrustworthy".
        warnings = [line for line in (done.stderr + done.stdout).splitlines() if "warning:" in line.lower()]
        if not warnings:
            break
        if not remaining:
            raise HotspareError(
                f"pg_control of {data_directory} cannot be trusted: {warnings[0]}; see that {bin_directory} is of the "
                "version that made this data directory, and restore pg_control if it is"
            )
        time.sleep(0.05)
    try:
        return parse(done.stdout)
    except ValueError as error:
        raise HotspareError(
            f"cannot read pg_control of {data_directory}: {error}; see what {bin_directory}/pg_controldata prints"
        ) from error


def _digits(value: str) -> str:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(value)
    return value


def _count(value: str) -> int:
    return int(_digits(value))


def _size_of_segments(value: str) -> int:
    size = _count(value)
    if not segment_size_ok(size):
        raise ValueError(value)
    return size


def _choice(meanings: Mapping[str, Any]) -> Callable[[str], Any]:
    def convert(value: str) -> Any:
        if value not in meanings:
            raise ValueError(value)
        return meanings[value]

    return convert


def _text(value: str) -> str:
    if not value:
        raise ValueError(value)
    return value


STATES = (
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
)
_on_off = _choice({"on": True, "off": False})

_LINES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "system_identifier": ("Database system identifier", _digits),
    "state": ("Database cluster state", _choice({state: state for state in STATES})),
    "checkpoint_lsn": ("Latest checkpoint location", parse_lsn),
    "redo_lsn": ("Latest checkpoint's REDO location", parse_lsn),
    "timeline": ("Latest checkpoint's TimeLineID", _count),
    "prev_timeline": ("Latest checkpoint's PrevTimeLineID", _count),
    "min_recovery_lsn": ("Minimum recovery ending location", parse_lsn),
    "min_recovery_timeline": ("Min recovery ending loc's timeline", _count),
    "backup_start_lsn": ("Backup start location", parse_lsn),
    "backup_end_required": ("End-of-backup record required", _choice({"yes": True, "no": False})),
    "wal_segment_size": ("Bytes per WAL segment", _size_of_segments),
    "block_size": ("Database block size", _count),
    "data_checksums": ("Data page checksum version", _count),
    "wal_log_hints": ("wal_log_hints setting", _on_off),
    "full_page_writes": ("Latest checkpoint's full_page_writes", _on_off),
    "wal_level": ("wal_level setting", _choice({level: level for level in ("minimal", "replica", "logical")})),
    "max_connections": ("max_connections setting", _count),
    "max_worker_processes": ("max_worker_processes setting", _count),
    "max_wal_senders": ("max_wal_senders setting", _count),
    "max_prepared_transactions": ("max_prepared_xacts setting", _count),
    "max_locks_per_transaction": ("max_locks_per_xact setting", _count),
    "pg_control_version": ("pg_control version number", _count),
    "catalog_version": ("Catalog version number", _count),
    "checkpoint_time": ("Time of latest checkpoint", _text),
    "next_xid": ("Latest checkpoint's NextXID", _text),
}
