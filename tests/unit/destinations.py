# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A destination without an ssh: the program of the other end, started here, with its CONFIG and its archive."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_link
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import (
    ArchiveConfig,
    parse_archive_config,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import SshDestination

CONFIG: dict[str, Any] = {
    "name": "db1",
    "cluster": "main",
    "node": None,
    "peers": [{"name": "db2", "host": "192.0.2.2", "port": 5432, "user": "replicator", "passfile": "/srv/pgpass"}],
    "directory": "/var/lib/hotspare/archive/main",
    "compression": "none",
    "require": "one",
    "program": "/usr/local/lib/hotspare/hotspare.pyz",
    "run": "/run/hotspare-archive-main",
    "spool": "/var/lib/hotspare/spool/main",
    "fetch_ahead": 16,
    "destinations": [],
    "keep": {},
    "trees": [],
}
PLACE = {
    "name": "db2",
    "host": "192.0.2.2",
    "port": 2222,
    "account": "postgres",
    "identity": "/etc/hotspare/ssh/main-postgres/id_ed25519",
    "known_hosts": "/etc/hotspare/ssh/main-postgres/known_hosts",
}
SERVE = f"""\
import sys
sys.path[:0] = {sys.path!r}
from {archive_link.__package__}.archive_server import serve
sys.exit(serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer))
"""


def config(**changes: Any) -> ArchiveConfig:
    return parse_archive_config({**CONFIG, **changes})


def other_end(directory: Path, **changes: Any) -> list[str]:
    """The command that is a destination which keeps its archive in `directory`, and lets it be pruned."""
    (directory / "archive").mkdir(exist_ok=True)
    path = directory / "db2.json"
    content = {**CONFIG, "name": "db2", "directory": str(directory / "archive"), "keep": {"days": 1}, **changes}
    path.write_text(json.dumps(content), encoding="utf-8")
    return [sys.executable, "-c", SERVE, str(path)]


def that_says(content: bytes, then: str = "") -> list[str]:
    """The command that says this instead, does what follows, and ends."""
    return [sys.executable, "-c", f"import os, sys, time\nos.write(1, {content!r})\n{then}"]


def connected(monkeypatch: pytest.MonkeyPatch, command: list[str], **changes: Any) -> SshDestination:
    """A connection to what this command is."""
    start = archive_link._start
    with monkeypatch.context() as patch:
        patch.setattr(archive_link, "_start", lambda argv, stderr: start(command, stderr))
        here = config(destinations=[PLACE], **changes)
        return SshDestination(here.destinations[0], here)
