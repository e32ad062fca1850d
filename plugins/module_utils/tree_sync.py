# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees go to their destinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from .shell import HotspareError


def sync(
    config: Any, tree: Any, *, destinations: Optional[Sequence[str]] = None, check_mode: bool = False
) -> dict[str, Any]:
    """Ship what the destinations (names; default all) of a tree (archive_config.Tree) lack."""
    raise HotspareError(f"{tree.name} cannot be shipped yet")


def verify(config: Any, tree: Any, *, destinations: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """Read the copies again and compare."""
    raise HotspareError(f"{tree.name} cannot be verified yet")


def set_writable(config: Any, tree: Any, wanted: bool, *, check_mode: bool = False) -> dict[str, Any]:
    """Make a tree what the primary has (it can be written to) or what a standby has."""
    raise HotspareError(f"{tree.name} cannot be switched yet")


def tick(config: Any) -> list[dict[str, Any]]:
    """What the timer does with every tree."""
    return []
