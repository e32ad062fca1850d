# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes that ship a document tree to each other within this process: no ssh, no rsync, no other account."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_files, tree_server, tree_sync, tree_target
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import (
    ArchiveConfig,
    parse_archive_config,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.document_tree import Entry

ACCOUNT = pwd.getpwuid(os.geteuid()).pw_name
PATTERN = "%Y/%m/%d"


class Node:
    """A node with the tree `scans`; its standby is `other`, another one."""

    def __init__(self, directory: Path, name: str, *, archive_host: bool = False, **tree: Any) -> None:
        self.name, self.archive_host = name, archive_host
        self.directory, self.path = directory / name, directory / f"{name}-scans"
        self.home = self.directory / "trees" / "scans"
        self.path.mkdir()
        self.home.mkdir(parents=True)
        self.tree = {"name": "scans", "path": str(self.path), "account": ACCOUNT, "partition": PATTERN, **tree}
        self.others: list[Node] = []

    @property
    def config(self) -> ArchiveConfig:
        node = {"name": self.name, "data_directory": "/nowhere", "bin_directory": "/nowhere"}
        ssh = {"host": "192.0.2.1", "account": ACCOUNT, "identity": "/key", "known_hosts": "/known"}
        places = [{"name": other.name, "path": str(other.path), **ssh} for other in self.others]
        named = dict.fromkeys(("directory", "program", "run", "spool"), str(self.directory))
        return parse_archive_config(
            {
                **{"name": self.name, "cluster": "main", "peers": [], "keep": {}, "destinations": [], "fetch_ahead": 0},
                **{**named, "compression": "none", "require": "one", "node": None if self.archive_host else node},
                "trees": [{**self.tree, "destinations": places}],
            }
        )

    def run(self, function: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """A function of tree_sync on the tree."""
        config = self.config
        return dict(function(config, config.trees[0], *arguments, **options))

    def sync(self, **options: Any) -> dict[str, Any]:
        return self.run(tree_sync.sync, **options)

    def writable(self, wanted: bool) -> dict[str, Any]:
        return self.run(tree_sync.set_writable, wanted)

    def write(self, path: str, content: str = "document") -> Path:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        return file

    def documents(self) -> dict[str, str]:
        """Path to content, or to where a link leads; not what is ours."""
        found = {}
        for path in self.path.rglob("*"):
            name = str(path.relative_to(self.path))
            if not name.startswith(".hotspare-") and (path.is_symlink() or path.is_file()):
                found[name] = f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text("utf-8")
        return found

    def evidence(self) -> dict[tuple[str, str], str]:
        """What was kept of conflicts: path and SHA-256 to content."""
        top = self.path / ".hotspare-conflicts"
        files = [path.relative_to(top) for path in top.rglob("*") if path.is_file()]
        return {(str(path.parent), path.name): (top / path).read_text("utf-8") for path in files}


class Link:
    """What archive_link.SshDestination is to a tree: the operations there, through JSON."""

    nodes: dict[str, Node]

    def __init__(self, place: Any, config: Any) -> None:
        self._server = SimpleNamespace(config=self.nodes[place.name].config, payload=None)

    def call(self, op: str, *, wait: float, upload: Iterable[bytes] | None = None, **arguments: Any) -> dict[str, Any]:
        self._server.payload = upload
        reply = tree_server.OPS[op](self._server, json.loads(json.dumps(arguments)))
        return dict(json.loads(json.dumps(reply)))

    def stream(self, op: str, *, wait: float, **arguments: Any) -> Iterator[bytes]:
        reply: Any = tree_server.OPS[op](self._server, json.loads(json.dumps(arguments)))
        yield from reply.chunks

    def close(self) -> None:
        """Nothing is open."""


def connect(patch: pytest.MonkeyPatch, *nodes: Node) -> None:
    """Each ships to all others; documents are finished at once, and what is durable is not the question."""

    def rsync(target: tree_target.Target, entries: list[Entry]) -> None:
        node = Link.nodes[target.place.name]
        top = os.path.join(os.fsencode(node.path), tree_server.STAGING, target.source.config.name.encode())
        os.chmod(node.path, 0o755)  # as the rsync of the destination makes its place
        for path in (entry.path for entry in entries):
            os.makedirs(os.path.dirname(os.path.join(top, path)), mode=0o700, exist_ok=True)
            # As rsync does: what is there may be linked to its place already, and is not written into.
            shutil.copy2(os.path.join(target.source.root, path), os.path.join(top, b"temporary"))
            os.replace(os.path.join(top, b"temporary"), os.path.join(top, path))
        if os.path.exists(node.home / "modes"):
            os.chmod(node.path, 0o555)

    for node in nodes:
        node.others = [other for other in nodes if other is not node]
    patch.setattr(Link, "nodes", {node.name: node for node in nodes}, raising=False)
    patch.setattr(tree_target, "SshDestination", Link)
    patch.setattr(tree_target.Target, "_rsync", rsync)
    patch.setattr(tree_sync, "_as_account", lambda tree, work: work())
    patch.setattr(tree_files, "SETTLE_SECONDS", 0)
    patch.setattr(tree_server, "make_durable", lambda root: None)
