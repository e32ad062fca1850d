# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the shipper of a node says of itself, and when it is not believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_shipping import (
    CONFIG_NAME,
    SAID_OF_PLACE,
    SILENT_SECONDS,
    read_shipping,
)


@pytest.fixture
def shipper() -> Iterator[int]:
    """A process that looks like one, and has said so: for a moment after exec its command line is empty."""
    argv = [sys.executable, "-c", "input('here\\n')", "archive-ship", "CONFIG"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        yield process.pid
        process.kill()


def written(tmp_path: Path, **status: Any) -> Path:
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"run": str(tmp_path)}))
    path = tmp_path / "status.json"
    path.write_text(json.dumps({"since": "then", "acknowledged": None, "destinations": [], **status}))
    return path


def test_a_node_without_a_configuration_ships_nothing(tmp_path: Path) -> None:
    assert read_shipping(str(tmp_path)) is None


def test_one_that_runs_is_told_as_it_says(tmp_path: Path, shipper: int) -> None:
    written(tmp_path, pid=shipper, destinations=[{"name": "nas"}], more="than is known")
    assert read_shipping(str(tmp_path)) == {
        "running": True,
        "reason": None,
        "pid": shipper,
        "since": "then",
        "version": None,
        "updated": None,
        "acknowledged": None,
        "empty": None,
        "destinations": [{**dict.fromkeys(SAID_OF_PLACE), "name": "nas"}],
    }


def found(tmp_path: Path) -> tuple[Any, str]:
    shipping = read_shipping(str(tmp_path))
    assert shipping is not None
    return shipping["running"], shipping["reason"]


def test_one_that_is_gone_or_silent_does_not_run(tmp_path: Path, shipper: int) -> None:
    path = written(tmp_path, pid=os.getpid())
    assert found(tmp_path) == (False, f"its process {os.getpid()} is gone"), "the number belongs to another process"
    written(tmp_path, pid=shipper)
    then = path.stat().st_mtime - SILENT_SECONDS - 5
    os.utime(path, (then, then))
    running, reason = found(tmp_path)
    assert running is False
    assert "it has said nothing for" in reason
    path.unlink()
    running, reason = found(tmp_path)
    assert running is False
    assert "there is no" in reason


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"destinations": [1]}', "\xff"])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, text: str) -> None:
    path = written(tmp_path)
    path.write_bytes(text.encode("latin-1"))
    assert found(tmp_path)[0] is None
    path.unlink()
    (tmp_path / CONFIG_NAME).write_bytes(text.encode("latin-1"))
    assert found(tmp_path)[0] is not True
