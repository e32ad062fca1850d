# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A document tree on this host: what is a document, what is finished, what is a copy."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from datetime import date
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_files
from ansible_collections.hotspare.postgresql.plugins.module_utils.document_tree import Entry, sort_key
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.tree_files import (
    Busy,
    Damaged,
    Home,
    Spool,
    Unfinished,
    days,
    is_copy,
    make_copy,
    make_original,
    read,
    walk,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "scans"
    path.mkdir()
    return os.fsencode(path)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "trees" / "scans").mkdir(parents=True)
    return Home(str(tmp_path), "scans")


def write(root: bytes, path: bytes | str, content: str = "document", mode: int = 0o644) -> Entry:
    file = os.path.join(root, os.fsencode(path))
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        out.write(content)
    os.chmod(file, mode)
    status = os.lstat(file)
    return Entry(os.fsencode(path), status.st_size, status.st_mtime_ns, status.st_mode)


def refused(root: bytes) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    list(walk(root, refuse=found.__setitem__))
    return found


def modes(root: bytes) -> dict[bytes, int]:
    return {entry.path: stat.S_IMODE(entry.mode) for entry in walk(root, folders=True) if not stat.S_ISLNK(entry.mode)}


def test_a_walk_finds_documents_in_their_order(root):
    for path in (b"a/b", b"a-b", b"a/c/d", b"\xff\n", b"A", b".hotspare-incoming/db1/x", b"a/.hotspare-x"):
        write(root, path)
    found = [entry.path for entry in walk(root)]
    assert found == sorted(found, key=sort_key)
    assert found == [b"A", b"a/.hotspare-x", b"a/b", b"a/c/d", b"a-b", b"\xff\n"]
    assert [entry.path for entry in walk(root, b"a")] == [b"a/.hotspare-x", b"a/b", b"a/c/d"]
    assert [entry.path for entry in walk(root, leave={b"a"})] == [b"A", b"a-b", b"\xff\n"]
    assert list(walk(root, b"nothing")) == []


def test_what_is_no_document_is_refused_by_name(root):
    top = os.fsdecode(root)
    os.mkfifo(f"{top}/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{top}/socket")
    os.symlink("/etc/passwd", f"{top}/out")
    os.symlink("../scans/pipe", f"{top}/up")
    os.symlink("docs/a", f"{top}/in")
    assert refused(root) == {
        b"out": "leads out of the tree, to /etc/passwd",
        b"up": "leads out of the tree, to ../scans/pipe",
        b"pipe": "is a device, a socket or a pipe",
        b"socket": "is a device, a socket or a pipe",
    }
    assert [(entry.path, stat.S_ISLNK(entry.mode)) for entry in walk(root)] == [(b"in", True)]


def test_a_document_is_read_when_nobody_writes_it(root, monkeypatch):
    monkeypatch.setattr(tree_files, "SETTLE_SECONDS", 0)
    entry = write(root, "a", "one")
    assert read(root, entry).sha256 == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    with open(os.path.join(root, b"a"), "ab"), pytest.raises(Unfinished):  # for hours, with pauses
        read(root, entry)
    assert read(root, entry).size == 3


def test_a_document_that_was_touched_a_moment_ago_is_not_finished(root):
    entry = write(root, "a")
    os.utime(os.path.join(root, b"a"), (1, 1))  # its name is new, however old its content is
    with pytest.raises(Unfinished):
        read(root, entry)


def test_a_name_that_was_made_a_moment_ago_waits_for_its_content(root, monkeypatch):
    monkeypatch.setattr(tree_files, "SETTLE_SECONDS", 0)
    entry = write(root, "a", "")
    with pytest.raises(Unfinished):
        read(root, entry)
    monkeypatch.setattr(tree_files, "EMPTY_SECONDS", 0)
    assert read(root, entry).size == 0


def test_where_there_are_no_leases_age_has_to_do(root, monkeypatch):
    monkeypatch.setattr(tree_files, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(fcntl, "F_SETLEASE", 0xFFFF)
    entry = write(root, "a")
    with open(os.path.join(root, b"a"), "ab"):
        assert read(root, entry).sha256


def test_a_document_that_changes_while_it_is_read_is_not_finished(root, monkeypatch):
    monkeypatch.setattr(tree_files, "SETTLE_SECONDS", 0)
    entry = write(root, "a")

    def written(descriptor: int) -> bool:
        os.utime(descriptor, ns=(1, 1))
        return False

    monkeypatch.setattr(tree_files, "is_written", written)
    with pytest.raises(Unfinished, match="changed while it was read"):
        read(root, entry)


def test_days_are_folders_and_no_links(root):
    for path in ("2026/11/20/a", "2026/11/2/b", "2026/11/30/c/d", "notes/a", "2026/x/20/a"):
        write(root, path)
    os.symlink("20", os.path.join(os.fsdecode(root), "2026/11/21"))
    assert days(root, "%Y/%m/%d") == {b"2026/11/20": date(2026, 11, 20), b"2026/11/30": date(2026, 11, 30)}
    assert days(root, "") == {}


def test_a_copy_has_no_write_bits_and_gets_them_back(root, home):
    write(root, "2026/a", mode=0o664)
    write(root, "b", mode=0o440)
    os.chmod(os.path.join(root, b"2026"), 0o2775)
    os.symlink("b", os.path.join(root, b"link"))
    before = modes(root)
    assert not is_copy(root, home)
    assert make_copy(root, home, pytest.fail) == 3
    assert is_copy(root, home)
    assert modes(root) == {path: mode & ~0o222 for path, mode in before.items()}
    assert make_copy(root, home, pytest.fail) == 0

    make_original(root, home, pytest.fail)
    assert (modes(root), home.is_original()) == (before, True)
    make_original(root, home, pytest.fail)
    assert modes(root) == before


@pytest.mark.parametrize("calls", range(1, 6))
def test_a_switch_that_was_interrupted_is_continued(root, home, monkeypatch, calls):
    monkeypatch.setattr(tree_files, "BATCH", 2)
    for number in range(3):
        write(root, f"{number}/a", mode=0o664)
    before = modes(root)
    real, left = os.chmod, [calls]

    def dying(path: bytes, mode: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(path, mode)

    for step in (make_copy, make_original):
        monkeypatch.setattr(os, "chmod", dying)
        left[0] = calls
        with pytest.raises(KeyboardInterrupt):
            step(root, home, pytest.fail)
        assert not (is_copy(root, home) if step is make_copy else home.is_original())
        monkeypatch.setattr(os, "chmod", real)
        step(root, home, pytest.fail)
    assert modes(root) == before


def test_without_its_record_a_copy_becomes_writable_all_the_same(root, home):
    write(root, "2026/a")
    make_copy(root, home, pytest.fail)
    os.unlink(home.modes)
    make_original(root, home, pytest.fail)
    assert modes(root) == {b"": 0o755, b"2026": 0o755, b"2026/a": 0o444}


def test_what_was_the_original_owes_until_it_paid(root, home):
    make_original(root, home, pytest.fail)
    assert (home.is_original(), home.owes()) == (True, False)
    make_copy(root, home, pytest.fail)
    assert (home.is_original(), home.owes()) == (False, True)
    home.paid()
    assert (home.is_original(), home.owes()) == (False, False)


def test_a_tree_is_where_its_mark_is(root, home):
    home.require(root)  # nothing is known of it
    home.mark(root)
    home.mark(root)
    home.require(root)
    assert list(walk(root, folders=True))[1:] == []
    os.rename(root, root + b"-unmounted")
    with pytest.raises(Unreachable, match="is not there: mount it"):
        home.require(root)
    os.mkdir(root)
    with pytest.raises(Unreachable, match=rf"has no .hotspare-tree, .* remove {home.marked}"):
        home.require(root)
    os.unlink(home.marked)
    home.require(root)
    other = Home(os.path.dirname(os.path.dirname(home.path)), "letters")
    with pytest.raises(Unreachable, match="holds the tree scans, not letters"):
        other.require(root + b"-unmounted")


def test_a_mark_that_cannot_be_made_is_told(root, home):
    write(root, ".hotspare-tree")
    with pytest.raises(HotspareError, match="cannot make .*/.hotspare-tree: Not a directory"):
        home.mark(root)
    assert not os.path.exists(home.marked)


def test_names_that_are_not_for_documents(root):
    write(root, ".hotspare-notes")
    write(root, "lost+found/a")  # of the application
    deep = "/".join(["d" * 250] * 13)
    os.makedirs(os.path.join(os.fsdecode(root), deep))
    found = refused(root)
    assert found.pop(b".hotspare-notes") == "begins with .hotspare-, as only what is ours may"
    assert list(found.values()) == ["has a path of more than 3072 bytes"]
    assert [entry.path for entry in walk(root)] == [b"lost+found/a"]


def test_one_at_a_time(home):
    with home.lock("ship", 0), home.lock("accept", 0), pytest.raises(Busy, match="another run"), home.lock("ship", 0):
        pass
    with home.lock("ship", 0):
        assert Path(home.path, "ship.lock").exists()


def test_a_manifest_is_kept_and_any_damage_noticed(home):
    entries = [Entry(b"2026/11/20/\xff", 3, 1, 0o100644, "0" * 64)]
    assert list(home.sealed("2026/11/20")) == []
    assert home.header("2026/11/20") is None
    with Spool(entries) as spool:
        home.seal("2026/11/20", spool)
    assert list(home.sealed("2026/11/20")) == entries
    assert [(name, head.files) for name, head in home.manifests(pytest.fail).items()] == [("2026/11/20", 1)]
    path = Path(home.manifest("2026/11/20"))
    path.write_text(path.read_text().replace(" 3 1 ", " 4 1 "))
    with pytest.raises(HotspareError, match="move it away"):
        list(home.sealed("2026/11/20"))
    said: list[str] = []
    path.write_text("")
    assert home.manifests(said.append) == {}
    assert ["move it away" in one for one in said] == [True]
    with Spool(entries) as spool:
        home.seal("2026/11/20", spool)
    path.write_bytes(path.read_bytes()[:-8])  # a torn line leaves no path
    with pytest.raises(Damaged):
        list(home.sealed("2026/11/20"))


def test_when_a_source_was_complete(home):
    assert home.complete() == {}
    home.note_complete("db1", "2026-11-20 12:00:00")
    home.note_complete("db2", "2026-11-20 13:00:00")
    assert home.complete() == {"db1": "2026-11-20 12:00:00", "db2": "2026-11-20 13:00:00"}
