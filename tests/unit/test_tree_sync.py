# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees go to their destinations, whatever happens in between."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import (
    tree_compare,
    tree_files,
    tree_source,
    tree_sync,
    tree_target,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.document_tree import Entry
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable

from .trees import ACCOUNT, PATTERN, Link, Node, connect

NOON = datetime(2026, 11, 20, 12)
DAY = "2026/11/20"


@pytest.fixture
def clock(monkeypatch):
    """clock.now = ...: what the time is."""
    at = SimpleNamespace(now=NOON)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return at.now

    monkeypatch.setattr(tree_source, "datetime", Clock)
    return at


@pytest.fixture
def pair(tmp_path, monkeypatch, clock):
    """(primary, standby)"""
    one, other = Node(tmp_path, "db1"), Node(tmp_path, "db2")
    connect(monkeypatch, one, other)
    one.writable(True)
    other.writable(False)
    return one, other


def at(result):
    """The record of the only destination, which had no error."""
    (place,) = result["destinations"]
    assert place["error"] is None
    return place


def bits(node: Node) -> int:
    """Write bits that something in the tree has."""
    found = 0
    for path in [node.path, *node.path.rglob("*")]:
        if not path.is_symlink() and not {".hotspare-incoming", ".hotspare-tree"} & set(path.parts):
            found |= path.stat().st_mode & 0o222
    return found


def test_what_is_written_goes_there_once(pair):
    db1, db2 = pair
    db1.write(f"{DAY}/a.pdf", "one")
    db1.write("notes", "four")
    told = db1.sync(check_mode=True)
    assert (told["changed"], at(told)["files"], at(told)["bytes"], db2.documents()) == (True, 2, 7, {})
    done = db1.sync()
    assert (done["changed"], done["problems"], at(done)["names"]) == (True, [], ["notes", f"{DAY}/a.pdf"])
    assert db2.documents() == db1.documents()
    assert not bits(db2)
    for check in (True, False):
        assert (db1.sync(check_mode=check)["changed"], at(done)["files"]) == (False, 2)


def test_the_hour_before_midnight_travels(pair, clock):
    db1, db2 = pair
    clock.now = datetime(2026, 11, 20, 23, 30)
    db1.sync()
    db1.write(f"{DAY}/2345.pdf")
    clock.now = datetime(2026, 11, 21, 0, 30)  # a new day, and nothing is shipped by its name
    db1.sync()
    assert db2.documents() == {f"{DAY}/2345.pdf": "document"}
    assert db1.sync()["sealed"] == []
    clock.now = datetime(2026, 11, 21, 2, 0)  # the grace is over
    assert db1.sync(check_mode=True)["sealed"] == [DAY]
    done = db1.sync()
    assert (done["changed"], done["sealed"], at(done)["sealed"]) == (True, [DAY], [DAY])
    assert (db1.home / f"{DAY}.manifest").read_text() == (db2.home / f"{DAY}.manifest").read_text()
    assert db1.sync()["changed"] is False


def test_a_disk_that_goes_during_a_run_seals_no_empty_day(pair, clock, monkeypatch):
    db1, _ = pair
    db1.write("first")
    db1.sync()
    db1.write(f"{DAY}/a")
    clock.now += timedelta(days=2)
    real = tree_source.Source.seal

    def seal(source, partition):
        db1.path.rename(db1.path.with_name("unmounted"))
        db1.path.mkdir()
        real(source, partition)

    monkeypatch.setattr(tree_source.Source, "seal", seal)
    with pytest.raises(Unreachable, match="mount it"):
        db1.sync()
    for node in pair:
        assert not list(node.home.rglob("*.manifest"))


def test_a_run_that_could_not_read_all_is_not_complete(pair, monkeypatch):
    db1, db2 = pair
    db1.write("a")
    db1.write("b")
    real = tree_source.read

    def read(root, entry):
        """b gets another name, which the walk has passed."""
        if entry.path == b"b":
            (db1.path / "b").rename(db1.path / "B")
        return real(root, entry)

    monkeypatch.setattr(tree_source, "read", read)
    done = db1.sync()
    assert (at(done)["names"], done["skipped_open_files"]) == (["a"], [])
    assert not (db2.home / "complete").exists()
    assert at(db1.sync())["names"] == ["B"]
    assert (db2.home / "complete").exists()


def test_midnight_passes_during_a_run(pair, clock, monkeypatch):
    db1, db2 = pair
    clock.now = datetime(2026, 11, 20, 23, 59, 59)
    db1.write(f"{DAY}/a.pdf")
    real = tree_target.Target._take

    def take(target, entries):
        clock.now = datetime(2026, 11, 21, 0, 0, 1)
        db1.write("2026/11/21/b.pdf")
        db1.write(f"{DAY}/z.pdf")
        return real(target, entries)

    monkeypatch.setattr(tree_target.Target, "_take", take)
    db1.sync()
    monkeypatch.setattr(tree_target.Target, "_take", real)
    db1.sync()
    assert sorted(db2.documents()) == [f"{DAY}/a.pdf", f"{DAY}/z.pdf", "2026/11/21/b.pdf"]


def test_what_is_written_still_does_not_go(pair, clock):
    db1, db2 = pair
    db1.write(f"{DAY}/a.pdf")
    clock.now += timedelta(days=2)
    with db1.write(f"{DAY}/b.pdf", "half").open("a", encoding="utf-8") as file:
        done = db1.sync()
        assert (done["skipped_open_files"], done["sealed"], done["problems"]) == ([f"{DAY}/b.pdf"], [], [])
        assert db2.documents() == {f"{DAY}/a.pdf": "document"}
        assert not (db2.home / "complete").exists()
        file.write(", whole")
    assert db1.sync()["sealed"] == [DAY]
    assert db2.documents()[f"{DAY}/b.pdf"] == "half, whole"
    assert tree_files.Home(str(db2.directory), "scans").complete() == {"db1": "2026-11-22 12:00:00"}


def test_what_changes_between_two_looks_is_not_stored(pair, monkeypatch):
    db1, db2 = pair
    file = db1.write("a", "first")
    real = tree_target.Target._rsync

    def rsync(target, entries):
        file.write_text("later", encoding="utf-8")
        real(target, entries)

    monkeypatch.setattr(tree_target.Target, "_rsync", rsync)
    done = db1.sync()
    assert (done["skipped_open_files"], at(done)["files"], db2.documents()) == (["a"], 0, {})
    monkeypatch.setattr(tree_target.Target, "_rsync", real)
    db1.sync()
    assert db2.documents() == {"a": "later"}


def test_what_differs_stays_on_both_sides_and_is_kept_once(pair):
    db1, db2 = pair
    db1.write("a", "one")
    db1.sync()
    db1.write("a", "another")
    for check, changed in ((True, True), (False, True), (True, False), (False, False)):
        done = db1.sync(check_mode=check)
        assert (done["changed"], at(done)["files"]) == (changed, int(changed))
        (said,) = at(done)["conflicts"]
        assert said.startswith("a is another one there: both stay, and this one lies there in .hotspare-conflicts as ")
        assert done["problems"] == [f"db2: {said}"]
    assert (db1.documents(), db2.documents()) == ({"a": "another"}, {"a": "one"})
    assert list(db2.evidence().values()) == ["another"]
    assert not bits(db2)


def test_the_same_content_with_another_time_is_the_same(pair):
    db1, db2 = pair
    file = db1.write("a")
    db1.sync()
    os.utime(file, (1, 1))
    for _ in range(2):
        assert (db1.sync()["changed"], (db2.path / "a").stat().st_mtime) == (False, 1)


def test_a_change_in_a_sealed_day_is_told_and_does_not_travel(pair, clock):
    db1, db2 = pair
    db1.write(f"{DAY}/a", "one")
    db1.write(f"{DAY}/b", "two")
    clock.now += timedelta(days=2)
    db1.sync()
    db1.write(f"{DAY}/a", "changed")
    for _ in range(2):
        done = db1.sync()
        assert done["conflicts"] == [
            f"{DAY}/a changed after its day was sealed: it is not shipped, the copies keep theirs"
        ]
        assert (done["changed"], done["problems"]) == (False, done["conflicts"])
    assert (db1.documents()[f"{DAY}/a"], db2.documents()[f"{DAY}/a"]) == ("changed", "one")
    (db2.path / DAY).chmod(0o755)
    (db2.path / DAY / "a").unlink()  # nor to a copy that has lost it
    db1.sync()
    assert f"{DAY}/a" not in db2.documents()


def test_what_comes_late_into_a_sealed_day_is_told_and_shipped(pair, clock):
    db1, db2 = pair
    db1.write(f"{DAY}/a")
    clock.now += timedelta(days=2)
    db1.sync()
    db1.write(f"{DAY}/late")
    assert db1.sync(check_mode=True)["changed"] is True
    done = db1.sync()
    assert done["conflicts"] == [f"{DAY}/late came after its day was sealed: it is shipped, and sealed too"]
    assert (done["sealed"], at(done)["sealed"]) == ([DAY], [DAY])
    assert sorted(db2.documents()) == [f"{DAY}/a", f"{DAY}/late"]
    assert (db1.sync()["changed"], db1.sync()["conflicts"]) == (False, [])


def test_a_clock_that_was_wrong_loses_nothing(pair, clock):
    db1, db2 = pair
    db1.write(f"{DAY}/a")
    clock.now += timedelta(days=400)
    assert db1.sync()["sealed"] == [DAY]
    clock.now = NOON
    db1.write(f"{DAY}/b")
    assert db1.sync()["conflicts"] == []  # the day goes on
    assert sorted(db2.documents()) == [f"{DAY}/a", f"{DAY}/b"]
    clock.now += timedelta(days=2)
    done = db1.sync()
    assert (done["sealed"], at(done)["sealed"], len(done["conflicts"])) == ([DAY], [DAY], 1)


def test_a_deletion_does_not_travel(pair, clock):
    db1, db2 = pair
    file, sealed = db1.write("a"), db1.write(f"{DAY}/b")
    clock.now += timedelta(days=2)
    db1.sync()
    file.unlink()
    sealed.unlink()
    sealed.parent.rmdir()
    done = db1.sync()
    assert (done["changed"], done["problems"]) == (False, [])
    assert sorted(db2.documents()) == [f"{DAY}/b", "a"]


def test_missing_days_are_named(pair, clock):
    db1, _ = pair
    db1.tree["skip"] = [5, 6]
    clock.now = datetime(2026, 11, 27, 1)  # Friday, Thursday is open still
    db1.write("2026/11/18/a")  # a Wednesday
    (db1.path / "2026/11/19").mkdir()
    db1.write("2026/11/24/a")
    assert db1.sync()["missing_days"] == ["2026/11/19", "2026/11/20", "2026/11/23", "2026/11/25"]


def test_what_is_no_document_is_refused_by_name(pair):
    db1, db2 = pair
    os.mkfifo(db1.path / "pipe")
    os.symlink("/etc/passwd", db1.path / "out")
    os.symlink("a", db1.path / "in")
    db1.write("a")
    done = db1.sync()
    assert done["refused"] == ["out leads out of the tree, to /etc/passwd", "pipe is a device, a socket or a pipe"]
    assert len(done["problems"]) == 1
    assert db2.documents() == {"a": "document", "in": "-> a"}
    assert db1.sync()["changed"] is False


def test_names_that_are_no_text(pair):
    db1, db2 = pair
    name = b"scan\xff\n 'x'"
    with open(os.path.join(os.fsencode(db1.path), name), "wb") as file:
        file.write(b"1")
    assert at(db1.sync())["names"] == [r"scan\xff\x0a 'x'"]
    assert name in os.listdir(os.fsencode(db2.path))


def test_an_unreachable_destination_does_not_keep_others_from_theirs(tmp_path, monkeypatch, clock):
    db1, db2, db3 = (Node(tmp_path, name) for name in ("db1", "db2", "db3"))
    connect(monkeypatch, db1, db2, db3)

    class Cut(Link):
        def __init__(self, place, config):
            if place.name == "db2":
                raise Unreachable("db2 cannot be reached")
            super().__init__(place, config)

    monkeypatch.setattr(tree_target, "SshDestination", Cut)
    db1.write("a")
    done = db1.sync()
    assert [place["error"] for place in done["destinations"]] == ["db2 cannot be reached", None]
    assert done["problems"] == ["db2: db2 cannot be reached"]
    assert (db2.documents(), db3.documents()) == ({}, {"a": "document"})
    checked = db1.run(tree_sync.check)
    assert [place["present"] for place in checked["destinations"]] == [None, 1, 1]
    assert db1.sync(destinations=["db3"])["problems"] == []
    with pytest.raises(HotspareError, match="goes not to db9"):
        db1.sync(destinations=["db9"])


def test_a_new_destination_gets_all_that_is_sealed(pair, clock, tmp_path, monkeypatch):
    db1, db2 = pair
    db1.write(f"{DAY}/a")
    clock.now += timedelta(days=2)
    db1.sync()
    store = Node(tmp_path, "store", archive_host=True)
    connect(monkeypatch, db1, db2, store)
    done = db1.sync()
    assert [place["sealed"] for place in done["destinations"]] == [[], [DAY]]
    assert (store.documents(), bits(store)) == (db1.documents(), 0)


def test_the_timer_looks_at_every_sealed_day_in_turn(pair, clock, monkeypatch):
    db1, _ = pair
    monkeypatch.setattr(tree_sync, "TICKS", 2)
    days = [NOON.date() - timedelta(days=number) for number in range(1, 6)]
    for day in days:
        db1.write(f"{day:{PATTERN}}/a")
    db1.sync()
    looked: list[str] = []
    monkeypatch.setattr(tree_target.Target, "_fill", lambda target, partition: looked.append(partition) or True)
    for number in range(2):
        for day in days:  # as if each had its own time
            manifest = db1.home / f"{day:{PATTERN}}.manifest"
            if f"{day:{PATTERN}}" not in looked:
                os.utime(manifest, (day.toordinal(), day.toordinal()))
        db1.run(tree_sync._sync, None, False, True)
        assert len(looked) == 4 * (number + 1)  # what is in no day, and three of five
    assert set(looked) == {"", *(f"{day:{PATTERN}}" for day in days)}


def test_a_long_run_of_the_timer_leaves_closed_days_to_the_next_one(pair, clock, monkeypatch):
    db1, db2 = pair
    monkeypatch.setattr(tree_sync, "TICK_SECONDS", -1)
    db1.write("2026/11/17/old")
    db1.write(f"{DAY}/new")
    db1.run(tree_sync._sync, None, False, True)
    assert db2.documents() == {f"{DAY}/new": "document"}
    assert not (db2.home / "complete").exists()


# --- verified --------------------------------------------------------------------------------------------------------


def test_the_copies_are_read_again(pair, clock):
    db1, db2 = pair
    for name in ("a", "b", "c"):
        db1.write(f"{DAY}/{name}", name)
    db1.write("open", "1")
    os.utime(db1.path / DAY / "c", (2e9, 2e9))
    clock.now += timedelta(days=2)
    db1.sync()
    (db2.path / DAY).chmod(0o755)
    (db2.path / DAY / "a").unlink()
    damaged = db2.path / DAY / "b"
    status = damaged.stat()
    damaged.chmod(0o644)
    damaged.write_text("B", encoding="utf-8")
    os.utime(damaged, ns=(status.st_mtime_ns, status.st_mtime_ns))
    db2.path.chmod(0o755)
    db2.write("extra")

    db1.write("fresh")
    seen = db1.run(tree_sync.check)
    glance = seen["destinations"][0]
    assert (glance["present"], glance["missing"], glance["different"], glance["extra"]) == (3, 1, 0, 1)
    assert (glance["waiting"], len(seen["problems"])) == (1, 1)  # what no run has shipped yet is no problem
    found = db1.run(tree_sync.verify)
    there, here = found["destinations"]
    assert [there[key] for key in ("name", "own", "present", "missing", "different")] == ["db2", False, 2, 2, 1]
    assert there["names"] == {"missing": ["fresh", f"{DAY}/a"], "different": [f"{DAY}/b"]}
    assert there["newest"].startswith(f"{DAY}/c of 2033-05-18 ")
    assert [here[key] for key in ("name", "own", "present", "missing", "different")] == ["db1", True, 5, 0, 0]
    assert len(found["problems"]) == 2

    (db1.path / DAY / "a").unlink()  # of this node only its manifest knows
    db1.write(f"{DAY}/b", "changed")
    here = db1.run(tree_sync.verify)["destinations"][1]
    assert (here["present"], here["missing"], here["different"]) == (3, 1, 1)


def test_a_tree_that_is_not_mounted_is_not_an_empty_one(pair, clock):
    db1, db2 = pair
    db1.write(f"{DAY}/a")
    clock.now += timedelta(days=2)
    db1.sync()
    for node in (db1, db2):
        node.path.rename(node.path.with_name("unmounted"))
        node.path.mkdir()
        if node is db1:
            with pytest.raises(HotspareError, match="which the tree scans has there: mount it"):
                db1.sync()
        else:
            assert "mount it" in db1.sync()["destinations"][0]["error"]
        node.path.rmdir()
        node.path.with_name("unmounted").rename(node.path)


# --- roles -----------------------------------------------------------------------------------------------------------


def test_roles_swap_and_nothing_of_the_old_primary_is_lost(pair):
    db1, db2 = pair
    db1.write(f"{DAY}/a").chmod(0o664)
    db1.sync()
    db1.write(f"{DAY}/last").chmod(0o664)  # after the last run
    db1.write("only/here")
    assert db1.writable(False)["changed"] is True
    assert db2.writable(True)["changed"] is True
    assert (bits(db1), bits(db2)) == (0, 0o222 & 0o775)
    assert (db2.path / DAY / "a").stat().st_mode & 0o777 == 0o664
    db2.write(f"{DAY}/new")

    done = db1.sync(writable=False)
    assert (done["problems"], at(done)["names"]) == ([], ["only/here", f"{DAY}/last"])
    assert (db2.path / DAY / "last").stat().st_mode & 0o777 == 0o664
    (db2.path / "only/here").unlink()
    assert db1.sync(writable=False)["changed"] is False  # what db2 deletes now stays so
    assert not (db2.path / "only/here").exists()

    done = db2.sync(writable=True)
    assert at(done)["names"] == [f"{DAY}/new"]
    assert sorted(db1.documents()) == [f"{DAY}/a", f"{DAY}/last", f"{DAY}/new", "only/here"]
    assert bits(db1) == 0


def test_what_the_old_primary_owes_waits_for_the_new_one(pair, monkeypatch):
    db1, db2 = pair
    db1.write("last")
    db1.writable(False)
    db2.writable(True)
    monkeypatch.setattr(Link, "__init__", lambda *arguments: (_ for _ in ()).throw(Unreachable("cut")))
    assert db1.sync(writable=False)["problems"] == ["db2: cut"]
    monkeypatch.undo()
    assert tree_files.Home(str(db1.directory), "scans").owes()


def test_the_timer_goes_by_the_role(pair, monkeypatch):
    db1, db2 = pair
    db1.write("a")
    monkeypatch.setattr(tree_sync, "in_recovery", lambda node: node.name == "db2")
    assert [result["problems"] for result in tree_sync.tick(db2.config)] == [[]]
    assert [result["changed"] for result in tree_sync.tick(db1.config)] == [True]
    assert db2.documents() == {"a": "document"}
    assert tree_sync.tick(Node(db1.directory, "store", archive_host=True).config) == []


def test_the_timer_leaves_a_tree_alone_on_which_another_run_works(pair, monkeypatch):
    db1, _ = pair
    monkeypatch.setattr(tree_sync, "in_recovery", lambda node: False)
    with tree_files.Home(str(db1.directory), "scans").lock("ship", 0):
        assert tree_sync.tick(db1.config) == []


def test_a_tree_that_is_not_there_is_told(pair, monkeypatch):
    db1, _ = pair
    monkeypatch.setattr(tree_sync, "in_recovery", lambda node: False)
    db1.path.rmdir()
    (result,) = tree_sync.tick(db1.config)
    assert result["problems"] == [result["error"]]
    assert result["error"].startswith(f"{db1.path} of the tree scans is not there")


# --- another process -------------------------------------------------------------------------------------------------


def test_work_is_done_in_a_process_of_the_account():
    tree = SimpleNamespace(name="scans", account=ACCOUNT)
    assert tree_sync._as_account(tree, lambda: {"pid": os.getpid()})["pid"] != os.getpid()

    def fail(error):
        raise error

    for error in (HotspareError("no", where="here"), tree_files.Busy("no"), Unreachable("no")):
        with pytest.raises(type(error), match="no") as raised:
            tree_sync._as_account(tree, lambda error=error: fail(error))
        assert raised.value.facts == error.facts
    with pytest.raises(HotspareError, match="the work on the tree scans was ended: run it again"):
        tree_sync._as_account(tree, lambda: os._exit(9))
    with pytest.raises(HotspareError, match="there is no account nobody-at-all"):
        tree_sync._as_account(SimpleNamespace(name="scans", account="nobody-at-all"), dict)


# --- small parts -----------------------------------------------------------------------------------------------------


def test_what_is_told_by_name_is_bounded(monkeypatch):
    monkeypatch.setattr(tree_source, "NAMES", 4)
    told = tree_source.Told()
    assert not told
    for name in "abcadef":
        told.add(name)
    assert (len(told), list(told), str(told)) == (6, ["a", "b", "c", "d"], "a, b, c and 3 more")


def test_of_a_place_that_was_not_looked_at_to_the_end_nothing_is_known():
    count = tree_compare.Count()
    count.add(Entry(b"a", 1, 0, 0o100644), "same")
    known = count.record("db2", False, None, 0)
    unknown = count.record("db2", False, "db2 cannot be reached", 0)
    assert (known["present"], known["newest"]) == (1, None)
    assert {unknown[key] for key in ("present", "missing", "different", "waiting", "extra", "bytes", "newest")} == {
        None
    }
