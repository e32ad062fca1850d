# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_link.py with its other end, archive_server.py, in a process of its own."""

from __future__ import annotations

from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_link, archive_server

from .destinations import connected, other_end
from .wal_pages import NAME, segment


def test_put_and_get(tmp_path, monkeypatch):
    assert set(archive_server.OPS) >= {"hello", "put", "get"}
    (tmp_path / "segment").write_bytes(segment())
    for compression in ("none", "zstd"):
        with connected(monkeypatch, other_end(tmp_path), compression) as destination:
            assert isinstance(destination, archive_link.Destination)
            assert destination.put(NAME, str(tmp_path / "segment")).new is (compression == "none")
            assert b"".join(destination.get(NAME)) == segment()
            assert [entry.name for entry in destination.names()] == [NAME]
            assert set(destination.has([NAME, NAME.replace("3", "4")])) == {NAME}
