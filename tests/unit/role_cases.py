# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a play that includes case.yml for each case, and reads what that wrote: Ansible starts once for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def told(directory: Path, play: str, case: str, hosts: str, cases: Sequence[Any]) -> list[Any]:
    """What came of each case, in their order."""
    (directory / "play.yml").write_text(play, encoding="utf-8")
    (directory / "case.yml").write_text(case, encoding="utf-8")
    (directory / "hosts").write_text(hosts, encoding="utf-8")
    (directory / "cases.json").write_text(json.dumps({"cases": list(cases)}), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "hosts", "-e", "@cases.json", "play.yml"],
        cwd=directory,
        env={
            **os.environ,
            "ANSIBLE_HOME": str(directory),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".cache" / "collections"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[Any] = json.loads((directory / "told.json").read_text(encoding="utf-8"))
    assert len(found) == len(cases)
    return found
