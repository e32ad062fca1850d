# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees over a real sshd and rsync, with the forced command and the program as a node has it.

db1 and db2 both have the tree; each ships to the other when it is primary.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_files, tree_sync, tree_target
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import read_archive_config
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import ssh_command

from .conftest import ACCOUNT, _send, execute

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
        node = {"name": self.name, "data_directory": "/nowhere", "bin_directory": "/nowhere"}
        written = {"directory": str(self.host.directory), "trees": [self.tree], "node": node}
        self.config_file = str(self.archives.config(self.name, **written))
        self.config = read_archive_config(self.config_file)

    def write(self, path: str | bytes, content: str = "a document") -> bytes:
        """As the application does, which has the tree's account."""
        file = os.path.join(os.fsencode(self.path), os.fsencode(path))
        execute("mkdir", "-p", os.fsdecode(os.path.dirname(file)))
        with open(file, "w", encoding="utf-8") as out:
            out.write(content)
        shutil.chown(file, ACCOUNT, ACCOUNT)
        return file

    def sync(self, **options: Any) -> dict[str, Any]:
        return tree_sync.sync(self.config, self.config.trees[0], **options)

    def verify(self) -> dict[str, Any]:
        return tree_sync.verify(self.config, self.config.trees[0])

    def writable(self, wanted: bool) -> dict[str, Any]:
        return tree_sync.set_writable(self.config, self.config.trees[0], wanted)

    def manifest(self, day: date) -> Path:
        return self.home / f"{day:%Y/%m/%d}.manifest"

    def documents(self) -> dict[bytes, bytes]:
        """Path to content, or to where a link leads; not what is ours."""
        found = {}
        top = os.fsencode(self.path)
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(b".hotspare-")]
            for path in (os.path.join(folder, name) for name in names):
                if os.path.islink(path):
                    found[os.path.relpath(path, top)] = b"-> " + os.readlink(path)
                elif os.path.isfile(path):
                    with open(path, "rb") as file:
                        found[os.path.relpath(path, top)] = file.read()
        return found


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


def test_odd_names_and_links_travel_and_what_is_no_document_is_refused(pair):
    db1, db2 = pair
    for name in (b"latin \xfc.pdf", b"line\nbreak", b"$(id) 'a' \"b\" \\x41", b"-n", b"#", b"folder/[*]?"):
        db1.write(name)
    os.symlink("folder/[*]?", db1.path / "inside")
    os.symlink("/etc/passwd", db1.path / "outside")
    os.mkfifo(db1.path / "pipe")
    done = db1.sync()
    assert done["refused"] == ["outside leads out of the tree, to /etc/passwd", "pipe is a device, a socket or a pipe"]
    assert at(done)["files"] == 7
    expected = db1.documents()
    del expected[b"outside"]
    assert db2.documents() == expected


def test_what_is_written_still_is_not_shipped_as_finished(pair):
    db1, db2 = pair
    with open(db1.write("slow.pdf", "first half, "), "a", encoding="utf-8") as file:
        done = db1.sync()
        assert (done["changed"], done["skipped_open_files"]) == (False, ["slow.pdf"])
        file.write("second half")
    assert at(db1.sync())["files"] == 1
    assert db2.documents() == {b"slow.pdf": b"first half, second half"}


def test_a_closed_day_is_sealed_and_its_copy_read_again(pair):
    db1, db2 = pair
    db1.ships_to(db2, grace=0)
    db1.write(f"{YESTERDAY:%Y/%m/%d}/a.pdf", "one")
    done = db1.sync()
    assert (done["sealed"], at(done)["sealed"]) == ([f"{YESTERDAY:%Y/%m/%d}"], [f"{YESTERDAY:%Y/%m/%d}"])
    assert db1.manifest(YESTERDAY).read_text() == db2.manifest(YESTERDAY).read_text()
    copy = db2.path / f"{YESTERDAY:%Y/%m/%d}/a.pdf"
    with open(copy, "r+b") as file:  # as a disk that fails
        file.write(b"ON")
    found = db1.verify()
    assert [(place["name"], place["present"], place["different"]) for place in found["destinations"]] == [
        ("db2", 0, 1),
        ("db1", 1, 0),
    ]
    assert found["complete"] == {}
    assert "db1" in db2.verify()["complete"]


def test_a_run_whose_destination_dies_is_continued(pair, monkeypatch):
    db1, db2 = pair
    for number in range(6):
        db1.write(f"{number}", "x" * 100)
    monkeypatch.setattr(tree_target, "BATCH_FILES", 2)
    real = tree_target.Target._call

    def dying(target, op, **arguments):
        reply = real(target, op, **arguments)
        if op == "accept":
            _send(signal.SIGKILL, db2.host.programs())
        return reply

    monkeypatch.setattr(tree_target.Target, "_call", dying)
    done = db1.sync()
    assert done["destinations"][0]["error"].startswith("db2 (")
    assert done["problems"] == [f"db2: {done['destinations'][0]['error']}"]
    assert len(db2.documents()) == done["destinations"][0]["files"] == 2
    monkeypatch.setattr(tree_target.Target, "_call", real)
    assert at(db1.sync())["files"] == 4
    assert db2.documents() == db1.documents()


def test_a_full_destination_keeps_what_it_has_and_catches_up(pair):
    db1, db2 = pair
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", db2.path], check=True)
    try:
        shutil.chown(db2.path, ACCOUNT, ACCOUNT)
        db1.write("small.pdf")
        assert at(db1.sync())["files"] == 1
        db1.write("large.pdf", "x" * 1_500_000)
        done = db1.sync()
        assert "no room" in done["destinations"][0]["error"]
        assert list(db2.documents()) == [b"small.pdf"]
        subprocess.run(["mount", "-o", "remount,size=8m", db2.path], check=True)
        assert at(db1.sync())["files"] == 1
        assert db2.documents() == db1.documents()
    finally:
        subprocess.run(["umount", db2.path], check=True)


def test_the_key_lets_nothing_else_in(pair):
    place = pair[0].config.trees[0].destinations[0]
    for command in (
        "id",
        "rsync --server --sender -logDtpr . /etc",
        "rsync --server -OtpRe.LsfxCIvu --partial . scans/../..",
        "rsync --server -OtpRe.LsfxCIvu --partial . scans/db1; id",
    ):
        done = subprocess.run([*ssh_command(place), place.host, command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


def test_four_steps_of_the_module(pair, four_steps):
    """With documents that nobody has touched for long: the module's process waits for those of today to settle."""
    db1, db2 = pair
    db1.ships_to(db2, path=glob.glob("/usr/lib/python3*/json")[0], partition="")
    db2.ships_to(db1, partition="")
    results = four_steps("archive_sync", {"config_file": db1.config_file, "kind": "tree"}, db2.documents)
    (told,) = results[0]["trees"]
    assert at(told)["files"] == len(db2.documents()) > 0
    assert b"__init__.py" in db2.documents()
