# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""version.py: the program of a node says the version of the collection that brought it."""

from __future__ import annotations

from pathlib import Path

import yaml
from ansible_collections.hotspare.postgresql.plugins.module_utils.version import VERSION


def test_it_is_the_collections():
    galaxy = yaml.safe_load(Path(__file__).resolve().parents[2].joinpath("galaxy.yml").read_text(encoding="utf-8"))
    assert galaxy["version"] == VERSION
