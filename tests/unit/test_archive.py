# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive of one cluster."""

from __future__ import annotations

from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive
from ansible_collections.hotspare.postgresql.tests.unit.wal_pages import NAME, SYSTEM, segment


def test_put(tmp_path):
    (tmp_path / "archive").mkdir()
    (tmp_path / "segment").write_bytes(segment())
    archive = Archive(str(tmp_path / "archive"))
    archive.establish(SYSTEM, 1 << 20)
    assert archive.put(NAME, str(tmp_path / "segment")).new
    assert b"".join(archive.read(NAME)) == segment()
