# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_config.py: the configuration is read strictly."""

from __future__ import annotations

import json

from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import read_archive_config

from .destinations import CONFIG


def test_the_smallest(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    found = read_archive_config(str(path))
    assert (found.node, found.keep, found.destinations) == (None, None, ())
