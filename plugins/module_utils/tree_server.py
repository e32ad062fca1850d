# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a destination does for who ships documents to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .shell import HotspareError

OPS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {}  # as archive_server.OPS; comes within the hour


def rsync(config: Any, command: str) -> int:
    """Receive into the staging directory of a tree, as SSH_ORIGINAL_COMMAND wants it; refuses anything else."""
    raise HotspareError(f"{command!r} is not the rsync of a tree: run site.yml, which brings the same to all hosts")
