# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module archive_sync refuses options that would have no effect, before it reads anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.modules import archive_sync


def told(directory: Path, **options: Any) -> str:
    """What the module fails with; its configuration is not there."""
    given = {"ANSIBLE_MODULE_ARGS": {"config_file": str(directory / "none.json"), **options}}
    done = subprocess.run(
        [sys.executable, "-m", archive_sync.__name__],
        input=json.dumps(given),
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout)
    assert result["failed"], result
    return str(result["msg"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"writable": False}, "writable is about document trees"),
        ({"trees": ["scans"], "state": "checked"}, "trees is about document trees"),
        ({"kind": "tree", "writable": True, "state": "verified"}, "writable is for state=present"),
        ({"kind": "tree", "state": "pruned"}, "documents are never removed"),
        ({"kind": "tree", "writable": True, "trees": ["scans"], "destinations": []}, "cannot read"),
        ({"state": "pruned"}, "cannot read"),
    ],
    ids=repr,
)
def test_options_that_would_have_no_effect_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    assert told(tmp_path, **options).startswith(sentence)
