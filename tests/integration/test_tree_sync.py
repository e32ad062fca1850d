# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees over a real sshd and rsync, with the forced command and the program as a node has it.

db1 and db2 both have the tree; each ships to the other when it is primary.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_files, tree_sync
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import read_archive_config

from .conftest import ACCOUNT, execute

TODAY = date.today()
YESTERDAY = TODAY - timedelta(days=1)


class Side:
    """A node with the tree."""

    def __init__(self, archives: Any, name: str, **tree: Any) -> None:
        self.archives, self.name = archives, name
        self.path = archives.make_directory(f"scans-{name}")
        self.host = archives.host(name)
        self.home = self.host.directory / "trees" / "scans"
        self.tree = {"name": "scans", "path": str(self.path), "account": ACCOUNT, "partition": "%Y/%m/%d", **tree}
        for folder in (self.home.parent, self.home):
            folder.mkdir()
            shutil.chown(folder, ACCOUNT, ACCOUNT)

    def ships_to(self, *others: Side, **changes: Any) -> None:
        self.tree.update(changes, destinations=[{**other.host.place, "path": str(other.path)} for other in others])
        path = self.archives.config(self.name, directory=str(self.host.directory), trees=[self.tree], **self._node())
        self.config = read_archive_config(str(path))

    def _node(self) -> dict[str, Any]:
        return {"node": {"name": self.name, "data_directory": "/nowhere", "bin_directory": "/nowhere"}}

    def write(self, path: str | bytes, content: str = "a document", mode: int = 0o644) -> Path:
        """As the application does."""
        file = Path(os.fsdecode(os.path.join(os.fsencode(self.path), os.fsencode(path))))
        execute("mkdir", "-p", str(file.parent)) if file.parent != self.path else None
        file.write_text(content, encoding="utf-8")
        shutil.chown(file, ACCOUNT, ACCOUNT)
        file.chmod(mode)
        return file

    def sync(self, **options: Any) -> dict[str, Any]:
        return tree_sync.sync(self.config, self.config.trees[0], **options)

    def verify(self) -> dict[str, Any]:
        return tree_sync.verify(self.config, self.config.trees[0])

    def writable(self, wanted: bool) -> dict[str, Any]:
        return tree_sync.set_writable(self.config, self.config.trees[0], wanted)

    def documents(self) -> dict[bytes, str]:
        """What is in the tree but for what is ours."""
        found = {}
        for folder, folders, names in os.walk(os.fsencode(self.path)):
            folders[:] = [name for name in folders if not name.startswith(b".hotspare-")]
            for name in names:
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, os.fsencode(self.path))
                found[relative] = os.fsdecode(os.readlink(path)) if os.path.islink(path) else Path(os.fsdecode(path)).read_text()
        return found

    def manifest(self, day: date) -> Path:
        return self.home / f"{day:%Y/%m/%d}.manifest"


@pytest.fixture
def pair(archives, monkeypatch):
    """(primary, standby), and documents are finished at once."""
    monkeypatch.setattr(tree_files, "SETTLE_SECONDS", 0)
    one, other = Side(archives, "db1"), Side(archives, "db2")
    one.ships_to(other)
    other.ships_to(one)
    assert one.writable(True)["changed"]
    assert other.writable(False)["changed"]
    return one, other


def at(result: dict[str, Any]) -> dict[str, Any]:
    assert [place["error"] for place in result["destinations"]] == [None] * len(result["destinations"])
    return result["destinations"][0]


def test_roles_are_swapped_and_the_last_documents_go_along(pair):
    db1, db2 = pair
    db1.write("last.txt")
    given = db1.sync(writable=False)
    assert (given["changed"], at(given)["files"], given["problems"]) == (True, 1, [])
    taken = db2.sync(writable=True)
    assert (taken["changed"], at(taken)["files"], taken["problems"]) == (True, 0, [])
    assert (db1.path.stat().st_mode & 0o200, db2.path.stat().st_mode & 0o200) == (0, 0o200)
    db2.write("next.txt")
    assert db2.sync(writable=True)["changed"]
    assert db1.documents() == db2.documents()
    assert [side.sync(writable=side is db2)["changed"] for side in pair] == [False, False]


def test_what_is_written_goes_there_once(pair):
    db1, db2 = pair
    db1.write(f"{TODAY:%Y/%m/%d}/a.pdf", "one")
    db1.write("notes.txt", "two")
    told = db1.sync(check_mode=True)
    assert (told["changed"], at(told)["files"], at(told)["bytes"]) == (True, 2, 6)
    assert db2.documents() == {}

    done = db1.sync()
    assert done["problems"] == []
    assert (done["changed"], at(done)["files"], at(done)["names"]) == (True, 2, at(told)["names"])
    assert db2.documents() == db1.documents()
    assert not any(path.stat().st_mode & 0o222 for path in [db2.path, *db2.path.glob("2*"), db2.path / "notes.txt"])
    assert not list(db2.path.glob(".hotspare-incoming/*"))

    for check in (True, False):
        again = db1.sync(check_mode=check)
        assert (again["changed"], at(again)["files"]) == (False, 0)
