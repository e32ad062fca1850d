# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a destination of documents does, and what it refuses whoever asks."""

from __future__ import annotations

import errno
import hashlib
import os
from types import SimpleNamespace

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_files, tree_server
from ansible_collections.hotspare.postgresql.plugins.module_utils.document_tree import Entry, header, line
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Full

from .trees import Node

FLAGS = "-OtpRe.LsfxCIvu --partial"


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_server, "make_durable", lambda root: None)
    return Node(tmp_path, "db2")


def ask(node, op, payload=(), **arguments):
    server = SimpleNamespace(config=node.config, payload=payload)
    return tree_server.OPS[f"tree_{op}"](server, {"tree": "scans", **arguments})


def entry(path: bytes, content: str = "new", mode: int = 0o100644) -> Entry:
    return Entry(path, len(content), 10**9, mode, hashlib.sha256(content.encode()).hexdigest())


def stage(node, path: bytes, content: str = "new") -> Entry:
    file = os.path.join(os.fsencode(node.path), b".hotspare-incoming/db1", path)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        out.write(content)
    return entry(path, content)


def accept(node, *entries: Entry, **arguments) -> list[str]:
    given = {"source": "db1", "folders": {}, "targets": {}, **arguments}
    return list(ask(node, "accept", entries=[line(one) for one in entries], **given)["outcomes"])


# --- the rsync -------------------------------------------------------------------------------------------------------


def test_an_rsync_into_the_staging_directory(node):
    argv, _, staging = tree_server.receiver(node.config, f"rsync --server {FLAGS} . scans/db1")
    assert staging == os.fsencode(node.path / ".hotspare-incoming/db1")
    assert argv == ["rsync", "--server", *FLAGS.split(), ".", os.fsdecode(staging)]


def test_without_rsync_it_says_what_to_install(node, monkeypatch):
    monkeypatch.setattr(tree_server, "RSYNC", str(node.path / "rsync"))
    before = os.umask(0o022)
    try:
        with pytest.raises(HotspareError, match="install rsync there"):
            tree_server.rsync(node.config, f"rsync --server {FLAGS} . scans/db1")
    finally:
        os.umask(before)
    assert (node.path / ".hotspare-incoming/db1").is_dir()


@pytest.mark.parametrize(
    "command",
    [
        "sh",
        f"rsync --server --sender {FLAGS} . scans/db1",
        "rsync --server -lOtpRe.LsfxCIvu . scans/db1",  # links
        "rsync --server -DOtpRe.LsfxCIvu . scans/db1",  # devices
        f"rsync --server {FLAGS} --delete . scans/db1",
        f"rsync --server {FLAGS} --inplace . scans/db1",
        f"rsync --server {FLAGS} --log-file=/tmp/x . scans/db1",
        f"rsync --server {FLAGS} . /etc",
        f"rsync --server {FLAGS} . scans/../../etc",
        f"rsync --server {FLAGS} . scans/db1/x",
        f"rsync --server {FLAGS} . scans",
        f"rsync --server {FLAGS} . other/db1",
        f"rsync --server {FLAGS} . scans/db1 scans/db3",
        f"rsync --server {FLAGS} . scans/db1; id",
        f"rsync --server {FLAGS} . 'scans/db1",
        "rsync --server",
        "",
    ],
)
def test_any_other_command_is_refused(node, command):
    with pytest.raises(HotspareError):
        tree_server.receiver(node.config, command)


def test_a_tree_of_another_account_is_refused(tmp_path):
    node = Node(tmp_path, "db2", account="somebody")
    with pytest.raises(HotspareError, match="belongs to somebody, not to"):
        ask(node, "look", partition="")


def test_a_tree_whose_place_is_not_there_is_told(node):
    node.home.rmdir()
    node.home.parent.rmdir()
    ask(node, "finish", source="db1", complete="2026-11-20 12:00:00")
    node.path.rmdir()
    with pytest.raises(HotspareError, match="mount it, or run site.yml"):
        ask(node, "look", partition="")


# --- taken -----------------------------------------------------------------------------------------------------------


def test_what_is_staged_gets_its_name_mode_and_time(node):
    found = stage(node, b"2026/a\xff")
    assert accept(node, found._replace(mode=0o100660), folders={"2026": 0o2770}) == ["new"]
    status = os.stat(os.path.join(os.fsencode(node.path), found.path))
    assert (status.st_mode, status.st_mtime, status.st_nlink) == (0o100660, 1, 1)
    assert (node.path / "2026").stat().st_mode & 0o7777 == 0o2770


def test_what_did_not_arrive_as_announced_is_not_taken(node):
    whole, torn, absent = stage(node, b"a"), stage(node, b"b"), entry(b"c")
    assert accept(node, whole, torn._replace(sha256="0" * 64), absent) == ["new", "changed", "changed"]
    assert node.documents() == {"a": "new"}
    assert not [path for path in node.path.rglob(".hotspare-incoming/db1/*") if path.is_file()]


def test_a_place_that_is_taken_is_not_overwritten(node):
    for path in ("file", "same", "folder/x"):
        node.write(path, "new" if path == "same" else "old")
    (node.path / "link").symlink_to("file")
    (node.path / "way").symlink_to("folder")
    before = node.documents()
    paths = [b"file", b"same", b"folder", b"link", b"file/below", b"way/y"]
    outcomes = []
    for path in paths:  # one after the other, since some cannot be staged together
        outcomes += accept(node, stage(node, path))
        ask(node, "finish", source="db1", complete=None)
    assert outcomes == ["different", "same", "different", "different", "different", "different"]
    assert node.documents() == before
    assert sorted(path for path, _ in node.evidence()) == ["file", "file/below", "folder", "link", "way/y"]
    states = ask(node, "compare", entries=[line(entry(path)) for path in [*paths, b"nothing"]], adjust=False)["states"]
    assert states == ["kept", "same", "kept", "kept", "kept", "kept", "missing"]
    assert ask(node, "compare", entries=[line(entry(b"file", "other"))], adjust=False)["states"] == ["different"]


@pytest.mark.parametrize("path", [b"../a", b"/etc/a", b"a//b", b".hotspare-conflicts/a"])
def test_no_path_leaves_the_tree(node, path):
    with pytest.raises(HotspareError, match="is not a path of a document"):
        accept(node, entry(path))
    with pytest.raises(HotspareError, match="is not a path of a document"):
        accept(node, folders={os.fsdecode(path): 0o777})
    with pytest.raises(HotspareError, match="is not the name of a node"):
        accept(node, source=os.fsdecode(path))
    for op in ("seal", "look", "list"):
        with pytest.raises(HotspareError, match="is not a path of a document"):
            ask(node, op, partition=os.fsdecode(path))


def test_what_is_announced_as_a_document_becomes_no_link(node):
    (node.path / ".hotspare-incoming/db1").mkdir(parents=True)
    (node.path / ".hotspare-incoming/db1/b").symlink_to("/etc/passwd")
    assert accept(node, entry(b"a"), targets={"a": "/etc/passwd"}) == ["changed"]
    assert accept(node, entry(b"b", "/etc/passwd")) == ["changed"]
    assert accept(node, entry(b"c", "/etc/passwd", 0o120777)) == ["changed"]  # it had gone when it was asked for
    assert node.documents() == {}


def test_a_link_is_made_here_and_only_one_that_stays(node):
    inside = entry(b"a/link", "../b", 0o120777)
    assert accept(node, inside, targets={"a/link": "../b"}) == ["new"]
    assert os.readlink(node.path / "a/link") == "../b"
    with pytest.raises(HotspareError, match="leads out of the tree"):
        accept(node, entry(b"out", "/etc", 0o120777), targets={"out": "/etc"})


def test_a_copy_stays_read_only_and_knows_the_modes_of_the_original(node):
    home = tree_files.Home(str(node.directory), "scans")
    root = os.fsencode(node.path)
    tree_files.make_copy(root, home, pytest.fail)
    (node.path / ".hotspare-incoming").mkdir()  # as root may
    accept(node, stage(node, b"2026/a"), folders={"2026": 0o775})
    assert not any(path.stat().st_mode & 0o222 for path in (node.path, node.path / "2026", node.path / "2026/a"))
    tree_files.make_original(root, home, pytest.fail)
    assert (node.path / "2026").stat().st_mode & 0o777 == 0o775
    assert (node.path / "2026/a").stat().st_mode & 0o777 == 0o644


def test_an_archive_host_has_a_copy_from_the_first_document_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_server, "make_durable", lambda root: None)
    node = Node(tmp_path, "store", archive_host=True)
    before = node.write("a").stat().st_mode
    ask(node, "look", partition="")
    assert (node.path / "a").stat().st_mode == before
    accept(node, stage(node, b"b"))
    assert not [path for path in (node.path, node.path / "a", node.path / "b") if path.stat().st_mode & 0o222]


def test_another_host_gives_away_no_rights_here(node):
    found = stage(node, b"f/a")._replace(mode=0o106777)
    assert accept(node, found, folders={"f": 0o7777}) == ["new"]
    assert [path.stat().st_mode & 0o7777 for path in (node.path / "f", node.path / "f/a")] == [0o2777, 0o777]


def test_only_a_copy_takes_the_time_of_the_other(node):
    node.write("a", "new")
    before = (node.path / "a").stat().st_mtime
    for copy in (False, True):
        if copy:
            (node.home / "modes").touch()
        assert ask(node, "compare", entries=[line(entry(b"a"))], adjust=True)["states"] == ["same"]
        assert (node.path / "a").stat().st_mtime == (1 if copy else before)


def test_a_full_disk_is_told_as_one(node, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/srv/scans/a")

    found = stage(node, b"a")
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(Full, match="no room for /srv/scans/a"):
        accept(node, found)
    monkeypatch.undo()
    monkeypatch.setattr(tree_server, "make_durable", lambda root: None)
    assert accept(node, found) == ["new"]


def test_what_cannot_be_read_is_no_empty_folder(node, monkeypatch):
    monkeypatch.setattr(os, "listdir", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    with pytest.raises(HotspareError, match="may not be read"):
        ask(node, "look", partition="")


# --- sealed ----------------------------------------------------------------------------------------------------------

DAY = "2026/11/20"


def seal(node, *entries: Entry):
    text = str(header(DAY, entries)) + "".join(map(line, entries))
    return ask(node, "seal", payload=[text[:70].encode(), text[70:].encode()], partition=DAY)


def test_a_day_is_sealed_when_all_of_it_is_there(node):
    one, two = entry(f"{DAY}/a".encode()), entry(f"{DAY}/b".encode())
    node.write(f"{DAY}/a", "new")
    assert seal(node, one, two) == {"sealed": False, "lacking": 1, "names": [f"{DAY}/b is not there as it was sealed"]}
    assert not list(ask(node, "manifests").chunks)
    node.write(f"{DAY}/b", "new")
    assert seal(node, one, two)["sealed"] is True
    assert list(ask(node, "manifests").chunks) == [f"{header(DAY, [one, two]).sha256} {DAY}\n".encode()]


def test_a_manifest_is_never_contradicted(node):
    one, two = entry(f"{DAY}/a".encode()), entry(f"{DAY}/b".encode())
    for name in ("a", "b"):
        node.write(f"{DAY}/{name}", "new")
    assert seal(node, two)["sealed"] is True
    assert seal(node, one)["names"] == [f"{DAY}/b is another one in the manifest that is there"]
    assert seal(node, one, two)["sealed"] is True


def test_a_manifest_that_arrives_torn_is_refused(node):
    with pytest.raises(ValueError, match="its lines are not"):
        ask(node, "seal", payload=[str(header(DAY, [entry(b"a")])).encode()], partition=DAY)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_at_the_end_nothing_is_left_staged(node):
    stage(node, b"left/over")
    ask(node, "finish", source="db1", complete="2026-11-20 12:00:00")
    assert os.listdir(node.path / ".hotspare-incoming") == []
    assert tree_files.Home(str(node.directory), "scans").complete() == {"db1": "2026-11-20 12:00:00"}
    ask(node, "finish", source="db1", complete=None)
    assert tree_files.Home(str(node.directory), "scans").complete() == {"db1": "2026-11-20 12:00:00"}
