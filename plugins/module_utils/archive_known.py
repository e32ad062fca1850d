# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which archives this node has seen: where one was, an empty directory is a file system that is not mounted.

A note for each lies beside the server's configuration, which no rebuild replaces, and not in an archive, where it would
be gone as well. It holds as long as the archive has the same directory and the node the same cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict
from typing import Optional

from .archive import Identity
from .server import Instance, read_text
from .shell import HotspareError, write_durably
from .wire import Unreachable


def note_path(node: Instance, name: str) -> str:
    """Where it is noted that the archive `name` was seen."""
    return os.path.join(os.path.dirname(node.configuration), f"hotspare-archive-{name}.seen.json")


def note(node: Optional[Instance], name: str, directory: Optional[str], identity: Identity) -> None:
    """Note for good that there is an archive; an archive host (`node` None) notes nothing. HotspareError."""
    if node is not None:
        text = json.dumps({"directory": directory, **asdict(identity)}) + "\n"
        path = note_path(node, name)
        with _one_at_a_time(os.path.dirname(path)):  # two connections may found it at once
            write_durably(path, text, mode=0o644)


@contextlib.contextmanager
def _one_at_a_time(directory: str) -> Iterator[None]:
    """HotspareError."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HotspareError(f"cannot look into {directory}: {error.strerror}; see who may read there") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def expect_none(node: Optional[Instance], name: str, directory: Optional[str]) -> None:
    """Unreachable when there was an archive in this directory, which has none now; HotspareError if nobody knows."""
    text = read_text(note_path(node, name)) if node is not None else None
    if node is None or text is None:
        return
    path = note_path(node, name)
    try:
        seen = json.loads(text)
        there, identifier = seen["directory"], int(seen["system_identifier"])
    except (ValueError, KeyError, TypeError) as error:
        raise HotspareError(
            f"{path} does not say which archive it is about ({error}): see who wrote it, and remove it if {name} never "
            "was an archive"
        ) from error
    elsewhere = None not in (there, directory) and there != directory
    if not elsewhere and identifier == (system_identifier(node) or identifier):
        raise Unreachable(
            f"{directory or 'the directory'} of {name} was an archive and is none now: mount its file system there or, "
            f"if it was emptied on purpose, remove {path} on {node.name}",
            destination=name,
        )


def system_identifier(node: Instance) -> Optional[int]:
    """Of the data directory; None when there is none yet."""
    try:
        with open(node.path("global", "pg_control"), "rb") as file:
            return int(struct.unpack("=Q", file.read(8))[0])  # the first field in all versions
    except (OSError, struct.error):
        return None
