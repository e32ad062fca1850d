# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is WAL, and what only has its name."""

from __future__ import annotations

from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import Check
from ansible_collections.hotspare.postgresql.tests.unit.wal_pages import NAME, SYSTEM, segment


def test_a_segment():
    check = Check(NAME, system_identifier=SYSTEM)
    check.feed(segment())
    assert check.finish().timelines == (1,)
