# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL that a real server hands to its archiver, in segments of 1, 16 and 64 MB, and what only looks like it.

Each cluster lives through a backup, a switch of segments and a promotion, so that all kinds of files are there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Conflict, Full
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import (
    MIB,
    HistoryEntry,
    fork_point,
    parse_history,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import MAGICS, BadWal, Check, WalFacts, kind

from .conftest import Lab, Node, eventually, execute

PAGE = 8192
SIZES = (1, 16, 64)
ENCODINGS = ("none", "zstd")


@dataclass
class Cluster:
    """A cluster that was promoted twice; `files` is what its archiver was to archive."""

    files: Path
    system_identifier: int
    segment_size: int

    def content(self, name: str) -> bytes:
        return (self.files / name).read_bytes()

    def names(self, wanted: str, timeline: int = 1) -> list[str]:
        begin = f"{timeline:08X}"
        return sorted(name for name in os.listdir(self.files) if kind(name) == wanted and name.startswith(begin))

    def history(self, timeline: int) -> list[HistoryEntry]:
        return parse_history(self.content(f"{timeline:08X}.history").decode()) if timeline > 1 else []

    def check(self, name: str, content: Optional[bytes] = None) -> WalFacts:
        identity = {"system_identifier": self.system_identifier, "segment_size": self.segment_size}
        check = Check(name, **identity, history=self.history(int(name[:8], 16)) if kind(name) else None)
        content = self.content(name) if content is None else content
        for start in range(0, len(content), MIB):
            check.feed(content[start : start + MIB])
        return check.finish()


def live(lab: Lab, node: Node, files: Path, megabytes: int, major: int) -> Cluster:
    """Start the node, let it do all that leaves files to archive, stop it."""
    settings = [
        "archive_mode = on",
        f"archive_command = 'cp --sparse=always %p {files}/%f'",
        f"min_wal_size = {max(80, 2 * megabytes)}MB",
        "wal_init_zero = off",
        "autovacuum = off",
    ]
    execute("tee", f"{lab.directory}/{node.instance.name}/etc/conf.d/archive.conf", stdin="\n".join(settings) + "\n")
    execute("mkdir", str(files))
    node.start()
    fill = "INSERT INTO wal SELECT repeat(md5(n::text), 200) FROM generate_series(1, {}) n"  # 6 kB each
    node.sql("CREATE TABLE wal (text text); ALTER TABLE wal ALTER text SET STORAGE EXTERNAL")
    node.sql(fill.format(250 * min(megabytes, 16)))
    begin, end = ("pg_start_backup('x', true, false)", "pg_stop_backup(false, false)")
    if major > 14:
        begin, end = ("pg_backup_start('x', true)", "pg_backup_stop(false)")
    node.sql(f"SELECT {begin}; SELECT {end};")
    node.sql(fill.format(10))
    node.sql("SELECT pg_switch_wal()")
    node.sql(fill.format(10))
    node.stop()
    execute("touch", str(node.data / "standby.signal"))
    node.start()
    node.sql("SELECT pg_promote()")
    node.sql(fill.format(10))
    node.sql("SELECT pg_switch_wal()")
    node.stop()
    execute("touch", str(node.data / "standby.signal"))
    node.start()
    node.sql("SELECT pg_promote()")
    # At once: as a rule nothing of its first segment lies beyond the page with the switch.
    last = node.sql("SELECT pg_walfile_name(pg_switch_wal())")
    eventually(lambda: node.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= last)
    system = int(node.control("Database system identifier"))
    node.stop("immediate")
    return Cluster(files, system, megabytes * MIB)


@pytest.fixture(scope="module")
def clusters(template: Path, bin_directory: str, major: int) -> Iterator[dict[int, Cluster]]:
    """By the size of their segments in MB."""
    lab = Lab(template, bin_directory)
    made = {}
    try:
        for megabytes in SIZES:
            node = lab.node(f"wal{megabytes}", data=megabytes == 16)
            if megabytes != 16:
                options = ["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "--auth=peer"]
                node.program("initdb", *options, f"--wal-segsize={megabytes}", "-D", str(node.data))
            made[megabytes] = live(lab, node, lab.directory / f"files{megabytes}", megabytes, major)
        yield made
    finally:
        lab.close()


@pytest.fixture(params=SIZES)
def cluster(request, clusters) -> Cluster:
    return clusters[request.param]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    (tmp_path / "archive").mkdir()
    return Archive(str(tmp_path / "archive"))


def test_all_that_postgresql_archives_is_good(cluster, major):
    ends = set()
    for name in sorted(os.listdir(cluster.files)):
        facts = cluster.check(name)
        if facts.kind in ("segment", "partial"):
            assert facts.size == cluster.segment_size
            assert facts.magic is not None and MAGICS[facts.magic] == major
            ends.add(any(cluster.content(name)[-PAGE:]))
    assert ends >= {False} and (True in ends or cluster.segment_size > 16 * MIB)  # given up early, and full
    assert len(cluster.names("backup")) == len(cluster.names("partial")) == len(cluster.names("history", 2)) == 1


def test_the_first_segment_of_a_timeline_has_pages_of_two(cluster):
    """Pages before the one of the fork are a copy; from the next one on they have the new timeline."""
    first = cluster.names("segment", 2)[0]
    assert cluster.names("partial") == ["00000001" + first[8:] + ".partial"]
    history = cluster.content("00000002.history").decode()
    fork = fork_point(parse_history(history), 1)
    assert fork is not None and first[8:] == f"{fork >> 32:08X}{fork % 2**32 // cluster.segment_size:08X}"
    assert cluster.check(first).timelines[0] == 1
    assert cluster.check(cluster.names("segment", 3)[0]).timelines in [(2,), (2, 3)]


def test_a_segment_that_was_renamed_to_a_later_timeline(cluster):
    """Without the history nobody can tell: its address is right, and a first segment may have pages of none but older
    timelines, see above."""
    old, switch = cluster.names("segment")[0], cluster.names("segment", 2)[0]
    for name, timeline in ((old, 2), (old, 3), (switch, 3)):
        renamed = f"{timeline:08X}{name[8:]}"
        content = cluster.content(name)
        check = Check(renamed)
        check.feed(content)
        assert check.finish().timelines == cluster.check(name).timelines
        with pytest.raises(BadWal) as error:
            cluster.check(renamed, content)
        assert error.value.code == "timeline"
        assert f"lies before the switch to its timeline, so it belongs into {name}" in error.value.message


@pytest.mark.parametrize("compression", ENCODINGS)
def test_what_went_in_comes_out(cluster, archive, compression):
    archive = Archive(archive.directory, compression=compression)
    archive.establish(cluster.system_identifier, cluster.segment_size)
    names = [cluster.names("segment")[-1], *cluster.names("partial"), *cluster.names("backup"), "00000002.history"]
    for new in (True, False):
        for name in names:
            assert archive.put(name, str(cluster.files / name)).new is new
    assert [entry.name for entry in archive.inventory()] == sorted(names)
    for name in names:
        facts = cluster.check(name)
        assert archive.digest(name) == (facts.sha256, facts.size)


def bad_inputs(cluster: Cluster, clusters: dict[int, Cluster]) -> dict[str, tuple[str, bytes, str, str]]:
    """Name, content, the code and the words by which it is refused."""
    name, *_, another = cluster.names("segment")
    partial, backup, newer = cluster.names("partial")[0], cluster.names("backup")[0], cluster.names("segment", 2)[0]
    good, size, history = cluster.content(name), cluster.segment_size, cluster.content("00000002.history")
    other = clusters[1 if size != MIB else 64]
    flipped = good[: 2 * PAGE + 9] + bytes([good[2 * PAGE + 9] ^ 1]) + good[2 * PAGE + 10 :]
    hole = good[: 2 * PAGE] + bytes(PAGE) + good[3 * PAGE :]
    return {
        "truncated": (name, good[: size // 2], "size", f"is cut off: it has {size // 2} of the {size} bytes"),
        "less than a header": (name, good[:17], "size", "is cut off: it has 17 bytes, less than the header of a page"),
        "too long": (name, good + bytes(PAGE), "size", "is longer than"),
        "wrong name": (another, good, "address", f"which belongs into {name}"),
        "flipped bit in a header": (name, flipped, "page", f"is damaged: page 2 (byte {2 * PAGE})"),
        "zero hole": (name, hole, "hole", f"page 2 (byte {2 * PAGE}) is empty, page 3 (byte {3 * PAGE}) is not"),
        "zeros": (name, bytes(size), "magic", "begins with 0x0000"),
        "no WAL": (name, b"%PDF-1.7".ljust(size), "magic", "which is no WAL of PostgreSQL"),
        "segments of another size": (
            other.names("segment")[0],
            other.content(other.names("segment")[0]),
            "size",
            f"segments of {other.segment_size} bytes, not {size}",
        ),
        "timeline after its name": ("00000001" + newer[8:], cluster.content(newer), "timeline", "timeline 2 in page"),
        "end of another": (name, good[: 2 * PAGE] + cluster.content(another)[2 * PAGE :], "page", "is damaged"),
        "empty segment": (name, b"", "empty", "is empty"),
        "empty .backup": (backup, b"", "empty", "is empty"),
        "empty .history": ("00000002.history", b"", "empty", "is empty"),
        "short .partial": (partial, cluster.content(partial)[: size // 2], "size", "is cut off"),
        "half a .history": ("00000002.history", history[:9], "parse", "last line has no end"),
        "half a .backup": (backup, cluster.content(backup)[:80], "parse", "is no backup history"),
        ".backup of another": (
            backup[:25] + "00000000.backup",
            cluster.content(backup),
            "address",
            "of the backup that",
        ),
        "no name": ("archive_status", good, "name", "is not the name of a WAL file"),
    }


def test_bad_inputs_are_refused_each_with_its_sentence(cluster, clusters):
    said = set()
    for what, (name, content, code, words) in bad_inputs(cluster, clusters).items():
        with pytest.raises(BadWal) as error:
            cluster.check(name, content)
        assert (what, error.value.code) == (what, code)
        assert words in error.value.message and name in error.value.message, what
        said.add(error.value.message)
    assert len(said) == len(bad_inputs(cluster, clusters))


@pytest.mark.parametrize("compression", ENCODINGS)
def test_nothing_of_them_gets_into_an_archive(clusters, archive, tmp_path, compression):
    cluster = clusters[1]
    archive = Archive(archive.directory, compression=compression)
    archive.establish(cluster.system_identifier, cluster.segment_size)
    for what, (name, content, code, _) in bad_inputs(cluster, clusters).items():
        (tmp_path / "source").write_bytes(content)
        with pytest.raises(BadWal) as error:
            archive.put(name, str(tmp_path / "source"))
        assert (what, error.value.code) == (what, code)
    assert {path.name for path in Path(archive.directory).rglob("*") if path.is_file()} <= {"archive.json", ".lock"}


def test_another_cluster(clusters, archive):
    """The archive of one cluster takes nothing of another, not even what says nothing of its cluster."""
    cluster, foreign = clusters[16], clusters[1].system_identifier
    name = cluster.names("segment")[0]
    archive.establish(foreign, cluster.segment_size)
    with pytest.raises(BadWal, match=f"system identifier {cluster.system_identifier}, not to {foreign}") as error:
        archive.put(name, str(cluster.files / name))
    assert error.value.code == "system"
    with pytest.raises(BadWal, match="give each cluster its own"):
        archive.receive(
            "00000002.history",
            system_identifier=cluster.system_identifier,
            segment_size=cluster.segment_size,
        )


def test_other_content_under_a_name(clusters, archive, tmp_path):
    cluster = clusters[1]
    archive.establish(cluster.system_identifier, cluster.segment_size)
    first = cluster.names("segment")[0]
    segment = bytearray(cluster.content(first))
    segment[-1] ^= 1
    history = cluster.content("00000002.history").replace(b"no recovery target", b"another target")
    source = tmp_path / "source"
    for name, other, where in (
        (
            first,
            bytes(segment),
            f"byte {MIB - 1} (page 127) on: there timeline 1 of system {cluster.system_identifier}",
        ),
        ("00000002.history", history, f"byte {history.index(b'another')} on: there '1"),
    ):
        archive.put(name, str(cluster.files / name))
        source.write_bytes(other)
        with pytest.raises(Conflict) as error:
            archive.put(name, str(source))
        assert f"{name} is in the archive already and differs from {where}" in error.value.message
        assert Path(error.value.facts["evidence"]).read_bytes() == other
        assert archive.digest(name)[0] == cluster.check(name).sha256
    assert len(archive.conflicts()) == 2


def test_no_room_then_room(clusters, tmp_path):
    cluster, where = clusters[16], str(tmp_path)
    name = cluster.names("segment")[0]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "none", where], check=True)
    try:
        archive = Archive(where)
        archive.establish(cluster.system_identifier, cluster.segment_size)
        archive.put("00000002.history", str(cluster.files / "00000002.history"))
        room = archive.free_bytes()
        with pytest.raises(Full, match=f"no room for .*{name} .*: make some; nothing is removed for it"):
            archive.put(name, str(cluster.files / name))
        assert [entry.name for entry in archive.inventory()] == ["00000002.history"]
        assert room - archive.free_bytes() < MIB  # but for directories
        subprocess.run(["mount", "-o", "remount,size=20m", where], check=True)
        assert archive.put(name, str(cluster.files / name)).new
    finally:
        subprocess.run(["umount", where], check=True)
