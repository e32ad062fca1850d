# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees go to their destinations."""

from __future__ import annotations

from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_sync


def test_without_trees_there_is_nothing_to_do():
    assert tree_sync.tick(None) == []
