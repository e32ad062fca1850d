# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments that nobody archived are kept for the archiver of the new primary.

With archive_mode=on a standby marks each segment that it streams as archived (.done), since that is the primary's work.
What a dead primary had not archived would never be. Turned back to .ready, the new primary's archiver takes it; the
archive may have it already, which archive_command has to bear (manual: "Setting Up WAL Archiving", 26.3.1).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

from .server import Instance, connect
from .shell import CommandError, HotspareError, as_account, run
from .wal import parse_lsn, segment_name

ASK_SECONDS = 3  # for one question to the archive; a forced failover waits for it
ALL_SECONDS = 6  # for all of them
ARCHIVED = re.compile(r"[0-9A-F]{8}(\.history|[0-9A-F]{16}(\.partial|\.[0-9A-F]{8}\.backup)?)")


def complete_segments(names: Iterable[str], timeline: int, held: int, size: int) -> list[str]:
    """Of the names in archive_status, the segments of `timeline` that are marked .done and complete, newest first.

    The one that byte `held` belongs to is not: WAL ends before it. (Pure.)
    """
    last = segment_name(timeline, held, size)
    found = [name[: -len(".done")] for name in names if name.endswith(".done")]
    return sorted((n for n in found if re.fullmatch(rf"{timeline:08X}[0-9A-F]{{16}}", n) and n < last), reverse=True)


def lacking(candidates: Sequence[str], has: Callable[[str], Optional[bool]]) -> tuple[list[str], Optional[str]]:
    """Those of `candidates` (newest first) that the archive lacks, and the one for which it did not say.

    It is asked until it has one, since what is older was archived before. Once it does not say (None), all that is
    left counts as lacking: an archive takes a second copy, and nothing brings back a first. (Pure, but for `has`.)
    """
    for index, name in enumerate(candidates):
        answer = has(name)
        if answer is None:
            return list(candidates), name
        if answer:
            return list(candidates[:index]), None
    return list(candidates), None


def keep_before(instance: Instance, state: Mapping[str, Any], result: dict[str, Any]) -> None:
    """Before a forced promotion: the complete segments here that the archive lacks are marked to be archived.

    Adds them to `kept_for_archive`, and to `warnings` what could not be told. Never an error: a failover must go on.
    """
    mode, timeline, held = state["settings"]["archive_mode"]["value"], state["timeline"], state["lsn"]["held"]
    if mode == "off" or timeline is None or held is None or state["control"] is None:
        return
    try:
        command = _restore_command(instance)
        if mode == "always" and not command:
            return  # it archived by itself what it marked
        names = os.listdir(instance.path("pg_wal", "archive_status"))
        segments = complete_segments(names, timeline, parse_lsn(held), state["control"]["wal_segment_size"])
        if not command:
            lacks = segments
            if lacks:
                result["warnings"].append(
                    f"{instance.name} has no restore_command, so all {len(lacks)} segments it holds go to the archive"
                    " again: archive_command must succeed when the same file is there already"
                )
        else:
            deadline = time.monotonic() + ALL_SECONDS
            lacks, unsaid = lacking(segments, lambda name: _archive_has(instance, command, name, deadline))
            if unsaid is not None:
                result["warnings"].append(
                    f"restore_command of {instance.name} did not say whether the archive has {unsaid}, so"
                    f" {len(lacks)} segments go to the archive again"
                )
        result["kept_for_archive"] += _mark(instance, sorted(lacks))
    except (HotspareError, OSError) as error:
        result["warnings"].append(f"{instance.name} could not keep segments for the archive: {error}")


def keep_named(instance: Instance, state: Mapping[str, Any], names: Sequence[str], result: dict[str, Any]) -> None:
    """On the new primary: these segments of the old one, which it could not archive, are marked to be archived.

    Those that were archived since the promotion are left alone, so that a second run changes nothing.
    """
    if not names:
        return
    try:
        if strange := [name for name in names if not ARCHIVED.fullmatch(name)]:
            raise HotspareError(f"{strange[0]!r} is not the name of a file that is archived")
        if state["settings"]["archive_mode"]["value"] == "off":
            raise HotspareError("its archive_mode is off")
        since = os.stat(instance.path("pg_wal", f"{state['timeline']:08X}.history")).st_mtime_ns
        gone = [name for name in names if not os.path.exists(instance.path("pg_wal", name))]
        kept = _mark(instance, sorted(set(names) - set(gone)), since)
        result["kept_for_archive"] = sorted({*result["kept_for_archive"], *kept})
        if gone:
            raise HotspareError(f"it has no {', '.join(gone)} any more: copy what the old primary has")
    except (HotspareError, OSError) as error:
        result["warnings"].append(
            f"{instance.name} does not archive all of {', '.join(names)}, which nobody has archived: {error}"
        )


def _mark(instance: Instance, names: Sequence[str], before: Optional[int] = None) -> list[str]:
    """.done becomes .ready, unless it was made after `before` (ns); the names of those that are .ready now."""
    directory = instance.path("pg_wal", "archive_status")
    marked = []
    with as_account(instance.account):  # in its directory root follows nobody's links
        for name in names:
            done, ready = (os.path.join(directory, f"{name}.{status}") for status in ("done", "ready"))
            with contextlib.suppress(FileNotFoundError):
                if before is None or os.stat(done).st_ctime_ns < before:
                    os.rename(done, ready)
            if os.path.exists(ready):
                marked.append(name)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return marked


def _restore_command(instance: Instance) -> str:
    with contextlib.closing(connect(instance)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.current_setting('restore_command')")
        return str(cursor.fetchone()[0])


def filled_in(command: str, name: str, path: str) -> str:
    """restore_command with its %f and %p; %r, the oldest file to be kept, is the file itself: nothing is cleaned up."""
    values = {"%f": name, "%p": path, "%r": name, "%%": "%"}
    return re.sub(r"%[fpr%]", lambda match: values[match.group()], command)


def _archive_has(instance: Instance, command: str, name: str, deadline: float) -> Optional[bool]:
    """Whether restore_command brings the segment, None when it does not say; what it brings is removed."""
    left = min(ASK_SECONDS, deadline - time.monotonic())
    if left <= 0:
        return None
    with as_account(instance.account):
        # Not in pg_wal, where a file that we could not remove would be the server's.
        scratch = tempfile.mkdtemp(prefix="hotspare-", dir="/tmp")
    path = os.path.join(scratch, name)
    try:
        # A shell, as PostgreSQL itself runs it.
        argv = ["/bin/sh", "-c", filled_in(command, name, path)]
        done = run(argv, account=instance.account, timeout=left, check=False, cwd=instance.data_directory)
        if done.rc == 0:
            return os.path.exists(path)
        return False if 0 < done.rc <= 125 else None  # as PostgreSQL takes it: a signal, or the command is missing
    except CommandError:
        return None
    finally:
        # The shipper may still write there for one that was ended: what is left is no reason to lose the answer.
        with as_account(instance.account):
            shutil.rmtree(scratch, ignore_errors=True)
