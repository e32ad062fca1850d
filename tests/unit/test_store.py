# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are never overwritten, and what a crash leaves of them."""

from __future__ import annotations

from ansible_collections.hotspare.postgresql.plugins.module_utils import store


def test_stored(tmp_path):
    with store.receive(tmp_path, "a/b/c") as incoming:
        incoming.write(b"content")
        stored = incoming.commit()
    assert (tmp_path / "a/b/c").read_bytes() == b"content"
    assert stored.new
