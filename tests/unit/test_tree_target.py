# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rsync of a batch of documents, and what becomes of one that fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_target
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import TreePlace
from ansible_collections.hotspare.postgresql.plugins.module_utils.document_tree import Entry
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Full
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable

ENTRIES = [Entry(b"#1", 60, 0, 0o100644), Entry(b"2026/\xff", 40, 0, 0o100644)]


@pytest.fixture
def rsync(monkeypatch):
    """rsync(rc, stderr, free, host) -> (argv, content of the list of files); rsync.called: what was asked for there"""
    called: list[str] = []

    def made(rc: int = 0, stderr: str = "", free: int = 10**9, host: str = "192.0.2.2") -> tuple[list[str], bytes]:
        place = TreePlace("db2", host, 22, "scans", "/etc/key", "/etc/known hosts", path="/srv/scans")
        tree = SimpleNamespace(name="scans", path="/srv/scans")
        source: Any = SimpleNamespace(tree=tree, config=SimpleNamespace(name="db1"))
        target = tree_target.Target(source, place)
        monkeypatch.setattr(target, "_call", lambda op, **arguments: called.append(op) or {"free_bytes": free})
        seen: list[Any] = []

        def run(argv: list[str], **options: Any) -> Any:
            (files,) = (word.partition("=")[2] for word in argv if word.startswith("--files-from="))
            with open(files, "rb") as file:
                seen.extend((argv, file.read()))
            return SimpleNamespace(rc=rc, stderr=stderr)

        monkeypatch.setattr(tree_target, "run", run)
        target._rsync(ENTRIES)
        return seen[0], seen[1]

    made.called = called
    return made


def test_an_rsync_brings_these_files_and_no_others(rsync):
    argv, names = rsync()
    assert names == b"./#1\0./2026/\xff"
    assert argv[-2:] == ["/srv/scans/", "192.0.2.2:scans/db1"]
    assert argv[0] == "rsync"
    assert not {"--delete", "--links", "--recursive", "--archive"} & set(argv)
    assert "'UserKnownHostsFile=/etc/known hosts'" in argv[argv.index("-e") + 1]
    assert rsync(host="2001:db8::1")[0][-1] == "[2001:db8::1]:scans/db1"


@pytest.mark.parametrize("rc", [0, 23, 24])
def test_what_did_not_arrive_is_found_out_there(rsync, rc):
    assert rsync(rc=rc)


def test_an_rsync_that_fails_says_why(rsync):
    with pytest.raises(Full, match="no room any more for 100 bytes of documents: make some"):
        rsync(rc=11, stderr='rsync: write failed on "/srv/scans/a": No space left on device (28)')
    assert rsync.called == ["room", "finish"]  # what is half does not keep the disk full
    with pytest.raises(
        Unreachable, match="failed with exit code 12: connection unexpectedly closed; see its log there"
    ):
        rsync(rc=12, stderr="connection unexpectedly closed\nand more\n")


def test_nothing_is_sent_that_does_not_fit(rsync):
    with pytest.raises(Full, match="no room for 100 bytes of documents: make some"):
        rsync(free=99)
    assert rsync.called == ["room", "finish", "room"]


def test_batches_are_small_in_files_and_bytes_and_names(monkeypatch):
    monkeypatch.setattr(tree_target, "BATCH_FILES", 3)
    monkeypatch.setattr(tree_target, "BATCH_BYTES", 100)
    rows = [(Entry(b"%d" % number, size, 0, 0), None) for number, size in enumerate([1, 1, 1, 200, 60, 60, 1])]
    assert [[row[0].size for row in batch] for batch in tree_target.batches(rows)] == [[1, 1, 1], [200], [60, 60], [1]]
    monkeypatch.setattr(tree_target, "BATCH_NAMES", 6)
    rows = [(Entry(b"n" * length, 0, 0, 0), None) for length in (2, 4, 9, 1, 1)]
    assert [[len(row[0].path) for row in batch] for batch in tree_target.batches(rows)] == [[2, 4], [9], [1, 1]]
