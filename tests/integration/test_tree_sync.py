# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees over a real sshd and rsync, with the forced command and the program as a node has it.

db1 and db2 both have the tree; each ships to the other when it is primary.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import (
    tree_files,
    tree_source,
    tree_sync,
    tree_target,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import read_archive_config
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import ssh_command
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable

from .archives import _descendants
from .conftest import ACCOUNT, _send, eventually, execute

TODAY = date.today()
YESTERDAY = TODAY - timedelta(days=1)
SETTLED = tree_files.SETTLE_SECONDS  # in a process of its own, as a module's
RUN = """
import sys
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_config, tree_files, tree_sync
tree_files.SETTLE_SECONDS = 0
config = archive_config.read_archive_config(sys.argv[1])
tree_sync.sync(config, config.trees[0])
"""


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


def test_four_steps_of_the_module(pair, four_steps, tmp_path):
    db1, db2 = pair
    document = db1.write("folder/a.pdf")

    def age() -> float:
        """By the clock of its file system."""
        (tmp_path / "now").touch()
        return (tmp_path / "now").stat().st_ctime - os.stat(document).st_ctime

    eventually(lambda: age() > SETTLED)
    results = four_steps("archive_sync", {"config_file": db1.config_file, "kind": "tree"}, db2.documents)
    (told,) = results[0]["trees"]
    assert at(told)["files"] == 1
    assert db2.documents() == db1.documents()


# --- what goes wrong on real disks -----------------------------------------------------------------------------------


def mounted(path: Path, *options: str, size: str = "64m") -> None:
    """A file system of its own there, which belongs to the account."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size},mode=750", *options]), "tmpfs", path], check=True
    )
    shutil.chown(path, ACCOUNT, ACCOUNT)


def unmounted(path: Path) -> None:
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_tree_on_a_disk_of_its_own(pair):
    """What mke2fs makes there is root's, and no document."""
    db1, db2 = pair
    for side in pair:
        (side.path / "lost+found").mkdir(mode=0o700)
    db1.ships_to(db2, grace=0)
    db1.write(f"{YESTERDAY:%Y/%m/%d}/a.pdf")
    db1.write("notes.txt")
    done = db1.sync()
    assert (at(done)["files"], done["refused"], done["problems"]) == (2, [], [])
    assert db2.documents() == db1.documents()
    assert db1.verify()["problems"] == []
    assert db1.writable(False)["problems"] == []


@pytest.mark.parametrize("partition", ["", "%Y/%m/%d"])
def test_a_source_that_is_not_mounted_looks_neither_deleted_nor_sealed_nor_shipped(pair, partition):
    db1, db2 = pair
    for side, other in ((db1, db2), (db2, db1)):
        side.ships_to(other, grace=0, partition=partition)
    mounted(db1.path)
    try:
        db1.write(f"{YESTERDAY:%Y/%m/%d}/a.pdf")
        assert at(db1.sync())["files"] == 1
        db1.write("last.txt")
        db1.writable(False)
        complete = db2.verify()["complete"]
        hidden = db1.path.with_name("hidden")
        hidden.mkdir()
        subprocess.run(["mount", "--bind", db1.path, hidden], check=True)
        unmounted(db1.path)
        shutil.chown(db1.path, ACCOUNT, ACCOUNT)
        for work in (db1.sync, db1.verify, lambda: db1.sync(writable=False), lambda: db1.writable(True)):
            with pytest.raises(Unreachable, match="mount it"):
                work()
        assert db2.verify()["complete"] == complete
        assert os.listdir(db1.path) == []
        subprocess.run(["mount", "--bind", hidden, db1.path], check=True)
        assert at(db1.sync(writable=False))["names"] == ["last.txt"]  # it still owes it
        assert db2.documents() == db1.documents()
    finally:
        for path in (db1.path, db1.path.with_name("hidden")):
            if os.path.ismount(path):
                unmounted(path)


def test_a_destination_that_is_not_mounted_takes_nothing(pair):
    db1, db2 = pair
    mounted(db2.path)
    db1.write("a.txt")
    assert at(db1.sync())["files"] == 1
    unmounted(db2.path)
    shutil.chown(db2.path, ACCOUNT, ACCOUNT)
    db1.write("b.txt")
    for work in (db1.sync, db1.verify, lambda: db1.sync(check_mode=True)):
        (place,) = [place for place in work()["destinations"] if place["name"] == "db2"]
        assert "mount it" in place["error"]
    with pytest.raises(Unreachable, match="mount it"):
        db2.sync(writable=True)
    assert os.listdir(db2.path) == []


def test_paths_as_long_as_they_can_be(pair):
    db1, db2 = pair
    name = "é" * 127 + "n"  # 255 bytes
    db1.write(name)
    deep = "/".join(["d" * 250] * 12)
    db1.write(f"{deep}/deep.pdf")
    longer = f"{deep}/{'e' * 200}"
    db1.write(f"{longer}/x.pdf")
    done = db1.sync()
    assert (at(done)["files"], done["refused"]) == (2, [f"{longer} has a path of more than 3072 bytes"])
    found = db1.documents()
    del found[os.fsencode(f"{longer}/x.pdf")]
    assert db2.documents() == found
    assert db1.sync()["changed"] is False
    db1.write(f"{deep}/deep.pdf", "another one")
    assert len(at(db1.sync())["conflicts"]) == 1  # and its evidence has a longer path still


def test_a_file_where_the_other_side_has_a_folder(pair):
    db1, db2 = pair
    db2.writable(True)
    day = f"{YESTERDAY:%Y/%m/%d}"
    db1.write("one", "file")
    db2.write("one/below", "kept")
    db1.write("two/below", "below a folder")
    db2.write("two", "kept too")
    db1.write(f"{day}/a", "in a day")
    db2.write(day, "no day")
    before = db2.documents()
    done = db1.sync()
    assert len(at(done)["conflicts"]) == 3
    assert db2.documents() == before
    kept = {
        path.relative_to(db2.path / ".hotspare-conflicts").parent.as_posix()
        for path in db2.path.glob(".hotspare-conflicts/**/*")
        if path.is_file()
    }
    assert kept == {"one", "two/below", f"{day}/a"}
    assert len(at(db1.sync())["conflicts"]) == 3
    assert len(at(db2.sync())["conflicts"]) == 3


@pytest.mark.parametrize(("first", "then"), [("x/y", "x"), ("x", "x/y")])
@pytest.mark.parametrize("link", [False, True])
def test_what_a_dead_run_left_staged_is_in_nobodys_way(pair, monkeypatch, first, then, link):
    db1, db2 = pair
    db1.write(first)
    real = tree_target.Target._call

    def dying(target, op, **arguments):
        if op == "accept":
            _send(signal.SIGKILL, db2.host.programs())
        return real(target, op, **arguments)

    monkeypatch.setattr(tree_target.Target, "_call", dying)
    assert db1.sync()["destinations"][0]["error"]
    assert (db2.path / ".hotspare-incoming/db1" / first).is_file()
    monkeypatch.setattr(tree_target.Target, "_call", real)
    shutil.rmtree(db1.path / "x") if first == "x/y" else (db1.path / "x").unlink()
    db1.write("a")
    if link:
        (db1.path / then).parent.mkdir(exist_ok=True)
        (db1.path / then).symlink_to("../a" if "/" in then else "a")
    else:
        db1.write(then)
    for _ in range(2):
        done = db1.sync()
    assert at(done)["conflicts"] == []
    assert db2.documents() == db1.documents()
    assert not list(db2.path.glob(".hotspare-incoming/*"))


def test_a_file_that_does_not_fit_fills_no_disk(pair):
    db1, db2 = pair
    mounted(db2.path, size="8m")
    try:
        db1.write("large.pdf", "x" * (9 << 20))
        for _ in range(2):
            assert "no room" in db1.sync()["destinations"][0]["error"]
            free = os.statvfs(db2.path)
            assert free.f_bavail * free.f_frsize > 7 << 20
        # What a run that broke left half is not what keeps it from fitting.
        (db1.path / "large.pdf").unlink()
        db1.write("fits.pdf", "y" * (6 << 20))
        staged = db2.path / ".hotspare-incoming/db1"
        staged.mkdir(parents=True, exist_ok=True)
        (staged / "fits.pdf").write_text("y" * (5 << 20), encoding="utf-8")
        for path in (staged.parent, staged, staged / "fits.pdf"):
            shutil.chown(path, ACCOUNT, ACCOUNT)
        assert at(db1.sync())["files"] == 1
        assert db2.documents() == db1.documents()
    finally:
        unmounted(db2.path)


@pytest.mark.parametrize("damage", ["", "hotspare manifest 1\n", "torn"])
@pytest.mark.parametrize("where", ["source", "destination"])
def test_a_damaged_manifest_keeps_other_days_from_nothing(pair, damage, where):
    db1, db2 = pair
    db1.ships_to(db2, grace=0)
    days = [TODAY - timedelta(days=number) for number in (1, 2)]
    for day in days:
        db1.write(f"{day:%Y/%m/%d}/a.pdf")
    assert len(db1.sync()["sealed"]) == 2
    manifest = (db1 if where == "source" else db2).manifest(days[0])
    manifest.write_text(manifest.read_text("utf-8")[:-9] if damage == "torn" else damage, encoding="utf-8")
    db1.write(f"{TODAY:%Y/%m/%d}/new.pdf")
    db1.write(f"{days[1]:%Y/%m/%d}/late.pdf")
    if where == "destination":
        db1.write(f"{days[0]:%Y/%m/%d}/late.pdf")
    done = db1.sync()
    assert db2.documents() == db1.documents()
    (said,) = [problem for problem in done["problems"] if "move it away" in problem]
    assert str(manifest) in said
    assert [problem for problem in db1.verify()["problems"] if "move it away" in problem] or where == "destination"
    manifest.unlink()
    assert not [problem for problem in db1.sync()["problems"] if "move it away" in problem]
    assert db1.manifest(days[0]).read_text("utf-8") == db2.manifest(days[0]).read_text("utf-8")


def test_a_document_that_cannot_be_read_stays_owed(pair):
    db1, db2 = pair
    secret = Path(os.fsdecode(db1.write("folder/secret")))
    shutil.chown(secret, "root")
    secret.chmod(0o600)
    assert db1.sync()["refused"] == ["folder/secret may not be read by the tree's account"]
    assert db2.verify()["complete"] == {}
    db1.writable(False)
    db1.sync(writable=False)
    shutil.chown(secret, ACCOUNT)
    assert at(db1.sync(writable=False))["names"] == ["folder/secret"]
    assert db2.documents() == db1.documents()


def test_with_nowhere_to_go_nothing_is_paid(pair):
    db1, db2 = pair
    db1.write("last")
    db1.ships_to()
    db1.sync(writable=False)
    db1.ships_to(db2)
    assert at(db1.sync(writable=False))["names"] == ["last"]


def test_a_copy_that_was_left_open_is_closed_again(pair):
    """The destination dies while it writes into a folder: nobody else may, afterwards."""
    db1, db2 = pair
    db1.write("a/b")
    db1.sync()
    (db2.path / "a").chmod(0o755)
    db2.path.chmod(0o755)
    assert db2.writable(False)["changed"]
    assert not (db2.path / "a").stat().st_mode & 0o222


def test_what_rots_after_it_was_sealed_is_told(pair):
    db1, db2 = pair
    db1.ships_to(db2, grace=0)
    document = Path(os.fsdecode(db1.write(f"{YESTERDAY:%Y/%m/%d}/a.pdf", "one")))
    db1.sync()
    (copy,) = db2.path.glob("2*/*/*/a.pdf")
    copy.unlink()
    status = document.stat()
    document.write_text("ONE", encoding="utf-8")
    os.utime(document, ns=(status.st_mtime_ns, status.st_mtime_ns))
    done = db1.sync()
    assert done["skipped_open_files"] == []
    assert "a.pdf has the size and the time of what was sealed, and other content" in done["problems"][0]


def test_two_runs_at_once_and_a_third_that_looks(pair):
    db1, db2 = pair
    for number in range(300):
        db1.write(f"folder {number % 7}/{number}", str(number))
    program = [sys.executable, "-c", RUN, db1.config_file]
    runs = [subprocess.Popen(program, env={"PYTHONPATH": os.pathsep.join(sys.path)}) for _ in range(3)]
    checked = db1.sync(check_mode=True)
    assert [run.wait(300) for run in runs] == [0, 0, 0]
    assert checked["problems"] == []
    assert db2.documents() == db1.documents()
    assert db1.verify()["problems"] == []


def test_what_the_application_does_during_a_run(pair, monkeypatch):
    """Folders are renamed, files replaced, made links and pipes: nothing half is stored, and the next run has all."""
    db1, db2 = pair
    for name in ("stays", "goes", "becomes a link", "becomes a pipe", "is replaced", "was/here"):
        db1.write(name, f"first {name}")
    real = tree_files.read

    def read(root, entry):
        if (db1.path / "goes").exists():
            for name in ("goes", "becomes a link", "becomes a pipe"):
                (db1.path / name).unlink()
            (db1.path / "becomes a link").symlink_to("stays")
            os.mkfifo(db1.path / "becomes a pipe")
            db1.write("new", "second is replaced")
            os.rename(db1.path / "new", db1.path / "is replaced")
            os.rename(db1.path / "was", db1.path / "is")
        return real(root, entry)

    monkeypatch.setattr(tree_source, "read", read)
    first = db1.sync()
    assert at(first)["error"] is None
    assert db2.verify()["complete"] == {}
    second = db1.sync()
    assert second["refused"] == ["becomes a pipe is a device, a socket or a pipe"]
    assert db2.documents() == db1.documents()


def test_large_and_sparse_and_linked_files_and_odd_times(pair):
    db1, db2 = pair
    large = db1.write("large")
    os.truncate(large, 2 << 30)
    with open(large, "r+b") as file:
        file.seek(1 << 30)
        file.write(b"in the middle")
    os.link(large, db1.path / "hard link")
    for name, when in (("future", 4102444800), ("past", -86400), ("nano", 1.000000001)):
        os.utime(db1.write(name), ns=(int(when * 10**9), int(when * 10**9)))
    done = db1.sync()
    assert (at(done)["files"], done["problems"]) == (5, [])
    assert db1.sync()["changed"] is False
    assert subprocess.run(["cmp", large, db2.path / "hard link"], check=False).returncode == 0
    assert [(db2.path / name).stat().st_mtime_ns for name in ("future", "past")] == [4102444800 * 10**9, -86400 * 10**9]


@pytest.mark.parametrize("end", ["there", "here"])
def test_a_transfer_that_is_killed_is_made_again(pair, end):
    """rsync and the program at the other end, or the run here; it may have been quicker."""
    db1, db2 = pair
    db1.write("large.pdf", "x" * (100 << 20))
    run = subprocess.Popen([sys.executable, "-c", RUN, db1.config_file], env={"PYTHONPATH": os.pathsep.join(sys.path)})
    eventually(lambda: list(db2.path.glob(".hotspare-incoming/db1/.large*")) or run.poll() is not None, timeout=120)
    _send(signal.SIGKILL, db2.host.processes() if end == "there" else [*_descendants(run.pid), run.pid])
    run.wait(120)
    eventually(lambda: not db2.host.processes())
    assert db2.documents() in ({}, db1.documents())
    assert at(db1.sync())["error"] is None
    assert db2.documents() == db1.documents()
    assert not list(db2.path.glob(".hotspare-incoming/*"))


def test_a_copy_is_not_for_the_application(pair):
    db1, db2 = pair
    db1.write("folder/a.pdf")
    db1.sync()
    for path in ("new.pdf", "folder/new.pdf", "folder/a.pdf"):
        execute("sh", "-c", f"! echo changed >>{db2.path}/{path}")
    execute("sh", "-c", f"! rm -r {db2.path}/folder")
    assert db2.documents() == db1.documents()
    db1.writable(False)
    db2.writable(True)
    execute("sh", "-c", f"echo new >{db2.path}/folder/new.pdf")
    execute("sh", "-c", f"! echo new >{db1.path}/folder/new.pdf")


def test_both_sides_wrote_under_one_name(pair):
    """The old primary went on for a while: each keeps its own, and has that of the other as evidence."""
    db1, db2 = pair
    db2.writable(True)
    db1.write("a.pdf", "of db1")
    db2.write("a.pdf", "of db2")
    db1.writable(False)
    for side, other, ours, theirs in ((db1, db2, "of db1", "of db2"), (db2, db1, "of db2", "of db1")):
        done = side.sync(writable=side is db2)
        assert len(at(done)["conflicts"]) == len(done["problems"]) == 1
        assert (side.path / "a.pdf").read_text("utf-8") == ours
        (kept,) = other.path.glob(".hotspare-conflicts/a.pdf/*")
        assert kept.read_text("utf-8") == ours
        assert (other.path / "a.pdf").read_text("utf-8") == theirs
