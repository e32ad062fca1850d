# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive of one cluster: what comes in, what is there, and what may never be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive as library
from ansible_collections.hotspare.postgresql.plugins.module_utils import zstd
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive, Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import INCOMING, Conflict, Layer, Stored
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import BadWal
from ansible_collections.hotspare.postgresql.plugins.module_utils.zstd import compressed
from ansible_collections.hotspare.postgresql.tests.unit.crashing import Crash, Disk, Process
from ansible_collections.hotspare.postgresql.tests.unit.wal_pages import HISTORY, NAME, PAGE, SYSTEM, segment

WAL = segment()
WHOSE = {"system_identifier": SYSTEM, "segment_size": MIB}
PLACE = f"wal/00000001/00000000/{NAME}"
ENCODINGS = ["none", "zstd"]


def packed(content: bytes, level: int = 3) -> bytes:
    return b"".join(compressed([content], level))


def as_sent(content: bytes, encoding: str) -> bytes:
    return packed(content) if encoding == "zstd" else content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def receive(archive: Archive, name: str = NAME, content: bytes = WAL, encoding: str = "none") -> Stored:
    with archive.receive(name, encoding=encoding, **WHOSE) as incoming:
        sent = as_sent(content, encoding)
        for start in range(0, len(sent), 100_000):
            incoming.write(sent[start : start + 100_000])
        return incoming.commit(sha256(content))


def files(archive: Archive) -> set[str]:
    top = Path(archive.directory)
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()} - {"archive.json", ".lock"}


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "archive").mkdir()
    return Archive(str(tmp_path / "archive"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(WAL)
    return path


class TestIn:
    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_stored_as_it_was_sent(self, archive, encoding):
        place = PLACE + {"none": "", "zstd": ".zst"}[encoding]
        path = Path(archive.directory, place)
        assert receive(archive, encoding=encoding) == Stored(str(path), MIB, sha256(WAL), True)
        assert files(archive) == {place}
        assert path.read_bytes() == as_sent(WAL, encoding)
        assert b"".join(archive.read(NAME)) == WAL
        assert archive.digest(NAME) == (sha256(WAL), MIB)

    @pytest.mark.parametrize("first", ENCODINGS)
    @pytest.mark.parametrize("again", ENCODINGS)
    def test_the_same_again_in_any_encoding(self, archive, first, again):
        stored = receive(archive, encoding=first)
        assert receive(archive, encoding=again) == Stored(stored.path, MIB, sha256(WAL), False)
        assert len(files(archive)) == 1

    def test_the_same_compressed_otherwise(self, archive):
        receive(archive, encoding="zstd")
        with archive.receive(NAME, encoding="zstd", **WHOSE) as incoming:
            incoming.write(packed(WAL, 19))
            assert not incoming.commit().new

    @pytest.mark.parametrize("first", ENCODINGS)
    @pytest.mark.parametrize("again", ENCODINGS)
    def test_other_content(self, archive, first, again):
        stored = receive(archive, encoding=first)
        other = bytearray(WAL)
        other[3 * PAGE + 500] ^= 1
        for _ in range(2):
            with pytest.raises(Conflict) as error:
                receive(archive, content=bytes(other), encoding=again)
            assert f"differs from byte {3 * PAGE + 500} (page 3) on" in error.value.message
            assert f"there timeline 1 of system {SYSTEM}; here timeline 1 of system {SYSTEM}" in error.value.message
            (kept,) = archive.conflicts()
            assert error.value.facts == {
                "path": stored.path,
                "first_difference": 3 * PAGE + 500,
                "evidence": kept["path"],
                "existing_sha256": sha256(WAL),
                "sha256": sha256(other),
            }
            assert (kept["name"], kept["kind"]) == (NAME, "segment")
            assert len(files(archive)) == 2
        assert archive.digest(NAME)[0] == sha256(WAL)

    def test_another_history_of_the_same_timeline(self, archive):
        receive(archive, "00000003.history", HISTORY.encode())
        with pytest.raises(Conflict) as error:
            receive(archive, "00000003.history", HISTORY.replace("0/5000148", "0/5000150").encode())
        assert r"there '2\t0/5000148\tno recovery target specified'; here '2\t0/5000150\t" in error.value.message

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_an_ancestor_s_segment_under_a_later_name_is_known_by_the_history_that_is_here(self, archive, encoding):
        renamed = "00000002" + NAME[8:]
        receive(archive, "00000002.history", b"1\t0/5000148\tno recovery target specified\n", encoding)
        with pytest.raises(BadWal) as error:
            receive(archive, renamed, WAL, encoding)
        assert error.value.code == "timeline" and f"it belongs into {NAME}" in error.value.message
        assert receive(archive, NAME, WAL, encoding).new, "timeline 1 has no history"
        assert receive(archive, "00000003" + NAME[8:], WAL, encoding).new, "its history is not here: nobody can tell"
        assert archive.find(renamed) is None

    def test_a_history_that_was_damaged_here(self, archive):
        Path(receive(archive, "00000002.history", b"1\t0/5000148\tx\n").path).write_bytes(b"\0\0")
        with pytest.raises(HotspareError) as error:
            receive(archive, "00000002" + NAME[8:], WAL)
        assert "00000002.history is damaged" in error.value.message

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_what_the_archive_has_is_damaged(self, archive, encoding):
        path = Path(receive(archive, encoding=encoding).path)
        damaged = bytearray(path.read_bytes())
        damaged[-PAGE if encoding == "none" else -1] ^= 1
        path.chmod(0o640)
        path.write_bytes(damaged)
        with pytest.raises(HotspareError) as error:
            receive(archive)
        if encoding == "none":
            assert "there damaged, since" in error.value.message and "page 127" in error.value.message
        else:
            assert error.value.message.startswith(f"cannot read {path}: zstd failed: ")
        assert path.read_bytes() == damaged

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_bad_wal_leaves_nothing(self, archive, encoding):
        with pytest.raises(BadWal, match="is cut off"):
            receive(archive, content=WAL[: MIB // 2], encoding=encoding)
        with pytest.raises(BadWal, match="belongs to the cluster with system identifier 4711"):
            receive(archive, content=segment(system=4711), encoding=encoding)
        assert files(archive) == set()

    def test_damaged_on_its_way(self, archive):
        with archive.receive(NAME, **WHOSE) as incoming:
            incoming.write(WAL)
            with pytest.raises(HotspareError, match="did not arrive as it was sent, its SHA-256 is"):
                incoming.commit(sha256(b""))
        assert files(archive) == set()

    @pytest.mark.parametrize(
        "sent", [b"", WAL, packed(WAL)[:-3], packed(WAL)[:20] + b"\0" + packed(WAL)[20:]], ids=["", "raw", "cut", "bad"]
    )
    def test_not_what_zstd_makes(self, archive, sent):
        with archive.receive(NAME, encoding="zstd", **WHOSE) as incoming, pytest.raises(HotspareError):
            incoming.write(sent)
            incoming.commit()
        assert files(archive) == set()

    def test_little_that_becomes_much(self, archive):
        """Refused as soon as it is too much, not when it fills the memory."""
        bomb = packed(WAL + bytes(100 * MIB))
        with archive.receive(NAME, encoding="zstd", **WHOSE) as incoming:
            with pytest.raises(BadWal, match="longer than"):
                incoming.write(bomb)
                incoming.commit()
            assert incoming.check.size < 20 * MIB

    def test_names_that_are_none(self, archive):
        for name in ("../../etc/passwd", "archive.json", NAME + ".zst", ""):
            with pytest.raises(BadWal, match="is not the name of a WAL file"):
                archive.receive(name, **WHOSE)
            with pytest.raises(BadWal, match="is not the name of a WAL file"):
                archive.has(name)

    def test_what_it_does_not_know(self, archive, tmp_path):
        with pytest.raises(HotspareError, match="encoding 'gzip' is none of none, zstd"):
            archive.receive(NAME, encoding="gzip", **WHOSE)
        with pytest.raises(HotspareError, match="compression 'gzip' is none of none, zstd"):
            Archive(str(tmp_path), compression="gzip")

    def test_two_at_once_in_two_encodings(self, archive):
        """One of them comes to be, and never both NAME and NAME.zst."""
        other = segment(fill=b"y")
        told: list[bool | None] = []

        def work(content: bytes, encoding: str) -> None:
            try:
                told.append(receive(Archive(archive.directory), content=content, encoding=encoding).new)
            except Conflict:
                told.append(None)

        threads = [threading.Thread(target=work, args=(WAL, "none")) for _ in range(3)]
        threads += [threading.Thread(target=work, args=(other, "zstd")) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(str, told)) == ["False", "False", "None", "None", "None", "True"]
        assert len([path for path in files(archive) if path.startswith("wal/")]) == 1

    def test_another_comes_between_the_look_and_the_link(self, archive):
        """It has to wait, and then finds a conflict."""
        told: list[str] = []

        def work() -> None:
            try:
                receive(Archive(archive.directory), content=segment(fill=b"y"), encoding="zstd")
            except Conflict:
                told.append("conflict")

        other = threading.Thread(target=work)

        class Overtaken(Layer):
            def link(self, source, target):
                if target.endswith(NAME):
                    other.start()
                    other.join(0.5)  # so long it would take, if it did not have to wait
                super().link(source, target)

        assert receive(Archive(archive.directory, layer=Overtaken())).new
        other.join()
        assert told == ["conflict"]
        assert [path for path in files(archive) if path.startswith("wal/")] == [PLACE]


class TestPut:
    @pytest.mark.parametrize("compression", ENCODINGS)
    def test_a_file(self, archive, source, compression):
        archive = Archive(archive.directory, compression=compression)
        archive.establish(SYSTEM, MIB)
        assert archive.put(NAME, str(source)).new
        assert files(archive) == {PLACE + {"none": "", "zstd": ".zst"}[compression]}
        assert b"".join(archive.read(NAME)) == WAL
        assert not archive.put(NAME, str(source)).new

    def test_small_files_are_not_compressed(self, archive, source):
        archive = Archive(archive.directory, compression="zstd")
        archive.establish(SYSTEM, MIB)
        source.write_text(HISTORY)
        archive.put("00000003.history", str(source))
        assert files(archive) == {"wal/00000003.history"}

    def test_whose_it_is_comes_first(self, archive, source):
        with pytest.raises(HotspareError, match="is nobody's archive yet"):
            archive.put(NAME, str(source))

    @pytest.mark.parametrize("compression", ENCODINGS)
    def test_a_file_that_changes_meanwhile(self, archive, source, monkeypatch, compression):
        archive = Archive(archive.directory, compression=compression)
        archive.establish(SYSTEM, MIB)
        plain = library.source

        def touched(path):
            for chunk in plain(path):
                os.utime(source, ns=(1, 1))
                yield chunk

        monkeypatch.setattr(library, "source", touched)
        with pytest.raises(BadWal, match="changed while it was read") as error:
            archive.put(NAME, str(source))
        assert error.value.code == "changed" and files(archive) == set()

    def test_what_is_no_file(self, archive, source, tmp_path):
        archive.establish(SYSTEM, MIB)
        (tmp_path / "link").symlink_to(source)
        os.mkfifo(tmp_path / "fifo")
        for name, why in (("none", "No such file"), ("link", "symbolic links"), ("fifo", "not a regular file")):
            with pytest.raises(HotspareError, match=why):
                archive.put(NAME, str(tmp_path / name))
        assert files(archive) == set()

    def test_zstd_is_missing(self, archive, source, monkeypatch):
        archive = Archive(archive.directory, compression="zstd")
        archive.establish(SYSTEM, MIB)
        monkeypatch.setattr(zstd, "LIBRARY", "libzstd-that-is-not-there.so")
        monkeypatch.setattr(zstd, "_library", zstd._library.__wrapped__)
        with pytest.raises(
            HotspareError, match=r"cannot load libzstd-that-is-not-there.so: .*; install libzstd1 on this"
        ):
            archive.put(NAME, str(source))
        assert files(archive) == set()


class TestIdentity:
    def test_once_and_for_all(self, archive):
        assert archive.identity() is None
        assert archive.establish(SYSTEM, MIB) == Identity(SYSTEM, MIB)
        assert Archive(archive.directory).identity() == Identity(SYSTEM, MIB)
        assert archive.establish(SYSTEM, MIB) == Identity(SYSTEM, MIB)
        assert json.loads(Path(archive.directory, "archive.json").read_text()) == WHOSE

    @pytest.mark.parametrize(("other", "code"), [((4711, MIB), "system"), ((SYSTEM, 16 * MIB), "size")])
    def test_of_another_cluster(self, archive, other, code):
        archive.establish(SYSTEM, MIB)
        with pytest.raises(BadWal, match=f"is the archive of a cluster with system identifier {SYSTEM}") as error:
            Archive(archive.directory).establish(*other)
        assert error.value.code == code
        with pytest.raises(BadWal, match="give each cluster its own"):
            archive.receive(NAME, system_identifier=other[0], segment_size=other[1])

    def test_no_segment_size(self, archive):
        with pytest.raises(BadWal, match="3 bytes is not a segment size"):
            archive.establish(SYSTEM, 3)

    def test_another_is_quicker(self, archive, monkeypatch):
        archive.establish(SYSTEM, MIB)
        late = Archive(archive.directory)
        known = [None, Identity(SYSTEM, MIB)]
        monkeypatch.setattr(late, "identity", lambda: known.pop(0))
        with pytest.raises(BadWal, match="is the archive of a cluster with"):
            late.establish(4711, MIB)

    def test_not_mounted(self, archive):
        receive(archive)
        Path(archive.directory, "archive.json").unlink()
        with pytest.raises(HotspareError, match=r"archive.json is gone: see whether the file system .* is mounted"):
            receive(archive)

    def test_no_directory(self, tmp_path):
        archive = Archive(str(tmp_path / "none"))
        for ask in (archive.identity, archive.inventory, archive.free_bytes, archive.conflicts):
            with pytest.raises(HotspareError, match="cannot read .*none: No such file"):
                ask()
        for ask in (archive.has, archive.read, archive.digest):
            with pytest.raises(HotspareError, match="cannot read .*none: No such file"):
                ask(NAME)
        with pytest.raises(HotspareError, match="cannot read .*none: No such file"):
            archive.receive(NAME, **WHOSE)

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"system_identifier": "x", "segment_size": 1}', "\xff"])
    def test_damaged(self, archive, text):
        Path(archive.directory, "archive.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(HotspareError, match="does not say whose archive this is"):
            archive.establish(SYSTEM, MIB)


class TestThere:
    NAMES = ("00000002.history", NAME, "000000010000000000001000", "000000010000000100000000")

    @pytest.fixture
    def filled(self, archive):
        receive(archive, "00000002.history", b"1\t0/3000060\tx\n")
        for name, encoding in ((NAME, "none"), ("000000010000000100000000", "zstd"), (NAME + ".partial", "none")):
            receive(archive, name, segment(name), encoding)
        return archive

    def test_inventory(self, filled):
        top = Path(filled.directory)
        (top / "wal/00000001/00000000" / (NAME + ".zst")).write_bytes(b"by hand")
        for stray in ("wal/" + NAME, "wal/00000001/00000000/.incoming-1", "wal/00000001/00000000/README"):
            (top / stray).write_bytes(b"stray")
        (top / "wal/00000001/00000000/000000020000000000000003").write_bytes(b"in a wrong place")
        entries = filled.inventory()
        assert [(entry.name, entry.kind) for entry in entries] == [
            (NAME, "segment"),
            (NAME + ".partial", "partial"),
            ("000000010000000100000000", "segment"),
            ("00000002.history", "history"),
        ]
        assert entries == [filled.has(entry.name) for entry in entries]
        assert entries[0].stored_bytes == MIB > entries[2].stored_bytes
        assert filled.has("000000010000000000000004") is None

    def test_empty(self, archive):
        assert (archive.inventory(), archive.conflicts(), archive.has(NAME)) == ([], [], None)
        with pytest.raises(HotspareError, match=f"{NAME} is not in the archive"):
            archive.read(NAME)

    def test_removed(self, filled):
        gone = ["000000010000000000000001", NAME, "000000010000000100000000"]
        assert filled.remove(gone) == gone[1:]
        assert [entry.name for entry in filled.inventory()] == [NAME + ".partial", "00000002.history"]

    def test_free_bytes(self, archive):
        assert archive.free_bytes() > 0

    def test_ordinary_tools_read_it(self, filled):
        path = Path(filled.directory, "wal/00000001/00000001/000000010000000100000000.zst")
        done = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True)
        assert done.stdout == segment("000000010000000100000000")

    def test_a_dead_writers_file_is_swept(self, archive):
        receive(archive)
        stale = Path(archive.directory, "wal/00000001/00000000", INCOMING + "0")
        stale.touch()
        receive(Archive(archive.directory))
        assert not stale.exists()


# --- what a crash leaves ---------------------------------------------------------------------------------------------


def offer(directory: Path, disk: Disk, encoding: str, limit: int | None = None) -> bool:
    try:
        receive(Archive(str(directory), layer=Process(disk, limit, written=MIB)), encoding=encoding)
    except Crash:
        return False
    return True


@pytest.mark.parametrize("limit", range(36))
@pytest.mark.parametrize(("first", "again"), [("none", "zstd"), ("zstd", "none")])
def test_a_writer_dies_then_another_is_told_in_another_encoding_then_the_power_fails(tmp_path, limit, first, again):
    """The first file of an archive: its identity and its directories come with it."""
    disk = Disk(tmp_path)
    told = offer(tmp_path, disk, first, limit)
    assert told or limit < 35  # more than it takes
    assert offer(tmp_path, disk, again)
    worlds = 0
    for world in disk.worlds():
        worlds += 1
        assert json.loads(world["archive.json"]) == WHOSE
        found = [path for path in world if path.startswith(f"wal/00000001/00000000/{NAME}")]
        assert len(found) == 1
        assert world[found[0]] == as_sent(WAL, "zstd" if found[0].endswith(".zst") else "none")
    assert worlds
    disk.close()
