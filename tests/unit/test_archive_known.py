# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_known.py: where an archive was seen, and nothing else, an empty directory is one that is not mounted."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_known import expect_none, note, note_path
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable

from .wal_pages import SYSTEM

IDENTITY = Identity(SYSTEM, MIB)


@pytest.fixture
def node(tmp_path: Path) -> Instance:
    """Of the cluster SYSTEM."""
    (tmp_path / "data/global").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    belongs_to(tmp_path / "data", SYSTEM)
    return Instance("db1", str(tmp_path / "data"), "/usr/bin", config_file=str(tmp_path / "etc/postgresql.conf"))


def belongs_to(data: Path, system: int) -> None:
    (data / "global/pg_control").write_bytes(struct.pack("=Q", system))


def test_what_was_seen_is_expected(node):
    expect_none(node, "nas", "/mnt/nas")
    note(node, "nas", "/mnt/nas", IDENTITY)
    path = note_path(node, "nas")
    assert Path(path).parent == Path(node.config_file).parent
    for directory in ("/mnt/nas", None):  # an older program does not say where it has it
        with pytest.raises(Unreachable, match=f"of nas was an archive and is none now: mount .* remove {path} on db1"):
            expect_none(node, "nas", directory)
    expect_none(node, "other", "/mnt/nas")
    Path(path).unlink()
    expect_none(node, "nas", "/mnt/nas")


def test_another_directory_may_be_a_new_archive(node):
    note(node, "nas", "/mnt/nas", IDENTITY)
    expect_none(node, "nas", "/mnt/larger")
    note(node, "nas", "/mnt/larger", IDENTITY)
    with pytest.raises(Unreachable):
        expect_none(node, "nas", "/mnt/larger")


def test_so_may_that_of_another_cluster(node):
    note(node, "nas", "/mnt/nas", Identity(4711, MIB))
    expect_none(node, "nas", "/mnt/nas")
    Path(node.path("global", "pg_control")).unlink()  # nobody knows which this one is
    with pytest.raises(Unreachable):
        expect_none(node, "nas", "/mnt/nas")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"directory": null, "system_identifier": "x"}'])
def test_a_note_that_says_nothing_is_not_taken_for_none(node, text):
    Path(note_path(node, "nas")).write_text(text, encoding="utf-8")
    with pytest.raises(HotspareError, match=r"nas.seen.json does not say which archive"):
        expect_none(node, "nas", "/mnt/nas")


def test_an_archive_host_notes_nothing():
    note(None, "store", "/srv", IDENTITY)
    expect_none(None, "store", "/srv")


def test_two_connections_note_at_once(node):
    for _ in range(50):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _number: note(node, "nas", "/mnt/nas", IDENTITY), range(2)))
        with pytest.raises(Unreachable):
            expect_none(node, "nas", "/mnt/nas")
        Path(note_path(node, "nas")).unlink()
