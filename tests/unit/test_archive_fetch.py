# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_fetch.py over archives in directories: what is served from where, and when a file counts as absent."""

from __future__ import annotations

import contextlib
import shutil
import struct
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_fetch, archive_link
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive, Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_fetch import (
    Connect,
    Fetcher,
    Line,
    following,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import (
    Destination,
    LocalDestination,
    connect,
    establish_own,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import (
    MIB,
    format_lsn,
    parse_segment_name,
    segment_size_ok,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import BadWal
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable
from hypothesis import given
from hypothesis import strategies as st

from .destinations import config
from .wal_pages import HISTORY, SYSTEM, segment

NAMES = following("000000010000000000000001", MIB, 1)  # 16 of 1 MB each
SECONDS = 30


@pytest.fixture
def site(tmp_path: Path):
    """A node with its own archive and two others, a and b; all empty, but of this cluster."""
    return Site(tmp_path)


class Site:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("own", "a", "b", "spool", "data/pg_wal", "data/global"):
            (directory / name).mkdir(parents=True)
        (directory / "data/global/pg_control").write_bytes(struct.pack("=Q", SYSTEM).ljust(8192, b"\0"))
        for name in ("own", "a", "b"):
            Archive(str(directory / name)).establish(SYSTEM, MIB)
        self.config = config(
            node=asdict(Instance("db1", str(directory / "data"), "/usr/bin")),
            directory=str(directory / "own"),
            spool=str(directory / "spool"),
            destinations=[{"name": name, "directory": str(directory / name)} for name in ("a", "b")],
            fetch_ahead=1,
        )
        self.target = directory / "data/pg_wal/RECOVERYXLOG"
        self.got: list[tuple[str, str]] = []

    def put(self, where: str, name: str, content: bytes) -> None:
        (self.directory / "file").write_bytes(content)
        Archive(str(self.directory / where)).put(name, str(self.directory / "file"))

    def unmount(self, where: str) -> Path:
        """The directory is empty now, and what was in it is elsewhere."""
        away = (self.directory / where).rename(self.directory / f"{where}-away")
        (self.directory / where).mkdir()
        return away

    def mount(self, where: str, away: Path) -> None:
        (self.directory / where).rmdir()
        away.rename(self.directory / where)

    def connect(self, place, found) -> LocalDestination:
        """As connect(), but it is noted what was got."""
        destination = connect(place, found)
        get = destination.get

        def noted(name, *, wait=None):
            content = get(name, wait=wait)
            self.got.append((place.name, name))
            return content

        destination.get = noted
        return destination

    def fetcher(self) -> Fetcher:
        return Fetcher(self.config, self.connect)

    def spooled(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "spool").iterdir())

    def left_over(self) -> list[str]:
        return [path.name for path in self.target.parent.iterdir()]


def greeted(kind: type[Destination]) -> Connect:
    """As connect(), to this kind of destination."""

    def connecting(place, found):
        destination = kind(place, found)
        destination.hello()
        return destination

    return connecting


def eventually(look, wanted) -> None:
    deadline = time.monotonic() + SECONDS
    while look() != wanted:
        assert time.monotonic() < deadline, f"{look()}, not {wanted}"
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["own", "a", "b"])
def test_from_wherever_it_is(site, where):
    site.put(where, NAMES[0], segment(NAMES[0]))
    assert site.fetcher().restore(NAMES[0], str(site.target))
    assert site.target.read_bytes() == segment(NAMES[0])
    assert site.left_over() == ["RECOVERYXLOG"]


def test_absent_only_if_every_place_says_so(site):
    fetcher = site.fetcher()
    for name in (NAMES[0], "00000002.history"):
        assert not fetcher.restore(name, str(site.target))
    (site.directory / "b").rename(site.directory / "c")
    for name in (NAMES[0], "00000002.history"):
        with pytest.raises(HotspareError, match="of b is not there|cannot read"):
            fetcher.restore(name, str(site.target))
    site.put("own", "00000003.history", HISTORY.encode())
    assert fetcher.restore("00000003.history", str(site.target))
    assert site.target.read_text(encoding="utf-8") == HISTORY


def test_an_archive_of_its_own_that_is_not_there_is_not_an_empty_one(site):
    (site.directory / "own").rename(site.directory / "gone")
    with pytest.raises(HotspareError, match="own"):
        site.fetcher().restore(NAMES[0], str(site.target))
    site.put("a", NAMES[0], segment(NAMES[0]))
    assert site.fetcher().restore(NAMES[0], str(site.target))


@pytest.mark.parametrize("name", [NAMES[0], "00000002.history"])
def test_an_empty_directory_is_no_archive_that_lacks_a_file(site, name):
    """As a mount point is after a restart without the file system. A fetcher that lasts has seen it before."""
    lasting = site.fetcher()
    assert not lasting.restore(name, str(site.target))
    away = site.unmount("a")
    for fetcher in (lasting, site.fetcher()):
        with pytest.raises(HotspareError, match="a has no archive: mount|archive.json is gone"):
            fetcher.restore(name, str(site.target))
    site.mount("a", away)
    assert not site.fetcher().restore(name, str(site.target))


def test_one_that_was_mounted_meanwhile_is_asked_again(site, monkeypatch):
    """Else what it has would be absent."""
    site.put("a", NAMES[0], segment(NAMES[0]))
    fetcher = site.fetcher()
    assert not fetcher.restore(NAMES[1], str(site.target))
    away = site.unmount("a")
    identity = Archive.identity

    def mounting(archive):
        if archive.directory == str(site.directory / "a") and away.exists():
            site.mount("a", away)
        return identity(archive)

    monkeypatch.setattr(Archive, "identity", mounting)
    assert fetcher.restore(NAMES[0], str(site.target))


def test_an_archive_of_its_own_may_be_empty_but_not_emptied(site, monkeypatch):
    """A new node has received nothing yet."""
    monkeypatch.setattr(archive_link, "identity_of", lambda config: Identity(SYSTEM, MIB))
    (site.directory / "own/archive.json").unlink()
    assert not site.fetcher().restore(NAMES[0], str(site.target))
    establish_own(site.config)
    assert not site.fetcher().restore(NAMES[0], str(site.target))
    site.unmount("own")
    with pytest.raises(
        Unreachable, match=r"own of db1 was an archive and is none now: mount .*-archive-db1.seen.json on"
    ):
        site.fetcher().restore(NAMES[0], str(site.target))
    with pytest.raises(Unreachable, match="was an archive and is none now"):
        establish_own(site.config)
    assert list((site.directory / "own").iterdir()) == []


@pytest.mark.parametrize("where", ["own", "b"])
def test_a_hole_does_not_end_a_recovery(site, where):
    """That opens where the WAL ends, which a standby does not."""
    site.put("a", NAMES[0], segment(NAMES[0]))
    site.put(where, NAMES[3], segment(NAMES[3]))
    fetcher = site.fetcher()
    for name in NAMES[1:3]:
        assert not fetcher.restore(name, str(site.target))
        with pytest.raises(HotspareError, match=f"no archive has {name}, but {NAMES[3]} of the same timeline is there"):
            fetcher.restore(name, str(site.target), strict=True)
    for name in (NAMES[4], "00000002.history", f"00000002{NAMES[1][8:]}"):  # the end
        assert not fetcher.restore(name, str(site.target), strict=True)
    # One that waits in pg_wal to be written anew has only its name; the right one is taken by PostgreSQL itself.
    (site.target.parent / NAMES[1]).write_bytes(segment(NAMES[0]))
    with pytest.raises(HotspareError, match="no archive has"):
        fetcher.restore(NAMES[1], str(site.target), strict=True)
    (site.target.parent / NAMES[1]).write_bytes(segment(NAMES[1]))
    assert not fetcher.restore(NAMES[1], str(site.target), strict=True)


def test_a_timeline_that_another_one_left_may_end(site):
    """The histories tell, wherever they are; one that is damaged leaves it open."""
    switch = parse_segment_name(NAMES[2], MIB).start_lsn + 0x60
    other = [f"00000002{name[8:]}" for name in NAMES]
    site.put("a", NAMES[5], segment(NAMES[5]))
    site.put("a", other[5], segment(other[5]))
    site.put("b", "00000002.history", f"1\t{format_lsn(switch)}\tno recovery target specified\n".encode())
    fetcher = site.fetcher()

    def ends(name):
        try:
            return not fetcher.restore(name, str(site.target), strict=True)
        except HotspareError:
            return False

    assert [ends(name) for name in NAMES[:5]] == [False, False, True, True, True]
    assert [ends(name) for name in other[:5]] == [True, True, False, False, False]
    stored = next((site.directory / "b").rglob("00000002.history"))
    stored.chmod(0o600)
    stored.write_bytes(b"")
    with pytest.raises(BadWal, match="is empty"):
        fetcher.restore(NAMES[3], str(site.target), strict=True)


def test_never_a_partial(site):
    site.put("own", f"{NAMES[0]}.partial", segment(NAMES[0]))
    assert not site.fetcher().restore(NAMES[0], str(site.target))
    assert not site.fetcher().restore(f"{NAMES[0]}.partial", str(site.target))
    assert site.left_over() == []


def test_what_is_damaged_is_not_delivered_and_another_copy_is(site):
    site.put("a", NAMES[0], segment(NAMES[0]))
    stored = next((site.directory / "a").rglob(NAMES[0]))
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[: MIB // 2])
    with pytest.raises(BadWal):
        site.fetcher().restore(NAMES[0], str(site.target))
    assert site.left_over() == []
    site.put("b", NAMES[0], segment(NAMES[0]))
    assert site.fetcher().restore(NAMES[0], str(site.target))
    assert site.target.read_bytes() == segment(NAMES[0])


def test_of_another_cluster(site):
    (site.directory / "data/global/pg_control").write_bytes(struct.pack("=Q", SYSTEM + 1))
    site.put("a", NAMES[0], segment(NAMES[0]))
    for name in (*NAMES[:2], "00000002.history"):  # what it has, and what it lacks
        with pytest.raises(HotspareError, match=f"archive of another cluster, {SYSTEM}, and this one is {SYSTEM + 1}"):
            site.fetcher().restore(name, str(site.target))
    assert site.left_over() == []


def test_who_asked_is_gone(site):
    site.put("a", NAMES[0], segment(NAMES[0]))
    with pytest.raises(HotspareError, match="has ended"):
        site.fetcher().restore(NAMES[0], str(site.target), wanted=lambda: False)
    assert site.left_over() == []


def test_what_a_killed_one_left_is_removed(site):
    (site.target.parent / f"RECOVERYXLOG{archive_fetch.TEMPORARY}123").touch()
    site.put("a", NAMES[0], segment(NAMES[0]))
    assert site.fetcher().restore(NAMES[0], str(site.target))
    assert site.left_over() == ["RECOVERYXLOG"]


def test_the_next_ones_are_fetched_ahead_and_each_only_once(site):
    (site.directory / "spool" / NAMES[3]).write_bytes(b"from before a power cut")
    for name in NAMES[:6]:
        site.put("a", name, segment(name))
    site.put("own", NAMES[2], segment(NAMES[2]))
    fetcher = site.fetcher()
    fetcher.look_ahead(1)
    for index, name in enumerate(NAMES[:6]):
        assert fetcher.restore(name, str(site.target))
        assert site.target.read_bytes() == segment(name)
        ahead = [later for later in NAMES[index + 1 : 6] if later != NAMES[2]]
        eventually(site.spooled, ahead)
    assert not fetcher.restore(NAMES[6], str(site.target))
    assert sorted(site.got) == [("a", name) for name in NAMES[:6] if name != NAMES[2]]
    # What comes to the archive later is found: the end was not remembered.
    site.put("b", NAMES[6], segment(NAMES[6]))
    assert fetcher.restore(NAMES[6], str(site.target))
    # Another timeline: the rest is of no use.
    other = f"00000002{NAMES[2][8:]}"
    site.put("a", NAMES[7], segment(NAMES[7]))
    site.put("a", other, segment(other))
    assert fetcher.restore(other, str(site.target))
    eventually(site.spooled, [])


def test_the_spool_is_of_no_use_to_another_cluster(site):
    """The data directory was made anew, and the archives, while the shipper runs."""
    for name in NAMES[:3]:
        site.put("a", name, segment(name))
    fetcher = site.fetcher()
    fetcher.look_ahead(1)
    assert fetcher.restore(NAMES[0], str(site.target))
    eventually(site.spooled, NAMES[1:3])
    (site.directory / "data/global/pg_control").write_bytes(struct.pack("=Q", SYSTEM + 1))
    with pytest.raises(HotspareError, match="archive of another cluster"):
        fetcher.restore(NAMES[1], str(site.target))
    assert site.target.read_bytes() == segment(NAMES[0])
    for where in ("own", "a", "b"):
        shutil.rmtree(site.directory / where)
        (site.directory / where).mkdir()
        Archive(str(site.directory / where)).establish(SYSTEM + 1, MIB)
    for name in NAMES[:3]:
        site.put("a", name, segment(name, system=SYSTEM + 1))
    for name in NAMES[:3]:
        assert fetcher.restore(name, str(site.target))
        assert site.target.read_bytes() == segment(name, system=SYSTEM + 1)


def test_a_spool_on_another_disk(site, monkeypatch):
    for name in NAMES[:2]:
        site.put("a", name, segment(name))
    rename = archive_fetch.os.rename

    def between_disks(source, target):
        if str(site.directory / "spool") == str(Path(source).parent) != str(Path(target).parent):
            raise OSError(archive_fetch.errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(archive_fetch.os, "rename", between_disks)
    fetcher = site.fetcher()
    fetcher.look_ahead(1)
    assert fetcher.restore(NAMES[0], str(site.target))
    eventually(site.spooled, [NAMES[1]])
    assert fetcher.restore(NAMES[1], str(site.target))
    assert site.target.read_bytes() == segment(NAMES[1])
    assert site.got == [("a", name) for name in NAMES[:2]]


def test_many_who_ask_at_once(site):
    for name in NAMES:
        site.put("a", name, segment(name))
    fetcher = site.fetcher()
    fetcher.look_ahead(1)
    found = {}

    def ask(name):
        target = site.target.with_name(name)
        found[name] = fetcher.restore(name, str(target)) and target.read_bytes() == segment(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == dict.fromkeys(NAMES, True)


def test_a_standby_does_not_wait_long_for_another_file(site, monkeypatch):
    blocked, release = threading.Event(), threading.Event()

    class Stuck(LocalDestination):
        def get(self, name, *, wait=None):
            blocked.set()
            assert release.wait(SECONDS)
            return super().get(name)

    fetcher = Fetcher(site.config, greeted(Stuck))
    thread = threading.Thread(target=fetcher.restore, args=(NAMES[0], str(site.target)))
    thread.start()
    assert blocked.wait(SECONDS)
    monkeypatch.setattr(archive_fetch, "STALLED_SECONDS", 0.01)
    with pytest.raises(HotspareError, match="nothing came"):
        fetcher.restore(NAMES[1], str(site.target), wait=0.01)
    release.set()
    thread.join(SECONDS)
    assert not fetcher.restore(NAMES[1], str(site.target), wait=SECONDS)


def test_a_line_is_made_anew_but_not_too_often(site, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(archive_fetch.time, "monotonic", lambda: clock[0])
    made, works = [], [True]

    def connecting(place, found):
        made.append(clock[0])
        if not works[0]:
            raise Unreachable("nobody there")
        return connect(place, found)

    def broken():
        with line.use():
            raise Unreachable("it is gone")

    line = Line(site.config.destinations[0], site.config, connecting)
    for _ in range(3):
        with line.use() as destination:
            assert destination.name == "a"
    assert made == [100.0]
    # An old connection may have been dead for long: the next attempt is made at once, and says what is wrong.
    with pytest.raises(Unreachable):
        broken()
    assert line.error is None
    assert not line.connected
    works[0] = False
    for _ in range(2000):
        with pytest.raises(Unreachable, match="nobody there"), line.use():
            pass
        clock[0] += 0.1
    pauses = [later - sooner for sooner, later in zip(made[1:], made[2:])]
    assert pauses[:4] == pytest.approx([0.4, 0.8, 1.6, 3.2], abs=0.15)
    assert pauses[6:] == pytest.approx([archive_fetch.LONGEST_PAUSE] * len(pauses[6:]), abs=0.15)
    works[0] = True
    clock[0] += 10
    with line.use():
        pass
    assert line.error is None


def test_an_attempt_to_connect_goes_on_for_who_comes_next(site):
    site.put("a", NAMES[0], segment(NAMES[0]))
    made, release = [], threading.Event()

    def connecting(place, found):
        made.append(place.name)
        assert release.wait(SECONDS)
        return connect(place, found)

    line = Line(site.config.destinations[0], site.config, connecting)
    got = []
    for _ in range(3):
        with pytest.raises(Unreachable, match="not let us in"):
            line.bring(NAMES[0], SYSTEM, got.extend, 0.01)
        line.open()
    release.set()
    eventually(line._succeeded, True)
    assert line.bring(NAMES[0], SYSTEM, got.extend, 0.01)
    assert b"".join(got) == segment(NAMES[0])
    assert made == ["a"]


def test_a_place_that_is_only_slow_is_waited_for_at_last(site):
    """And not given up for ever, since each answer comes a little too late."""
    site.put("a", NAMES[0], segment(NAMES[0]))

    class Slow(LocalDestination):
        def get(self, name, *, wait=None):
            if wait is not None and wait < 3:
                raise Unreachable("it was silent")
            return super().get(name, wait=wait)

    fetcher = Fetcher(site.config, greeted(Slow))
    deadline = time.monotonic() + SECONDS
    while not site.target.exists():
        assert time.monotonic() < deadline
        with contextlib.suppress(Unreachable):
            fetcher.restore(NAMES[0], str(site.target), wait=0.5)


@pytest.mark.parametrize(
    ("files", "hurries"),
    [
        (["PG_VERSION", "standby.signal"], True),
        (["PG_VERSION", "standby.signal", "recovery.signal"], True),
        (["PG_VERSION"], True),  # the end of a promotion
        (["PG_VERSION", "recovery.signal"], False),
        ([], False),  # pg_rewind
    ],
)
def test_who_is_in_a_hurry(tmp_path, files, hurries):
    for name in files:
        (tmp_path / name).touch()
    assert (archive_fetch.patience(str(tmp_path)) is not None) == hurries


@given(
    st.integers(20, 30).map(lambda bits: 1 << bits),
    st.integers(1, 99),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 64),
)
def test_following(size, timeline, lsn, ahead):
    assert segment_size_ok(size)
    first = archive_fetch.segment_name(timeline, lsn % (1 << 60), size)
    found = [parse_segment_name(name, size) for name in following(first, size, ahead)]
    start = parse_segment_name(first, size).number
    assert [segment.number for segment in found] == list(range(start + 1, start + 1 + len(found)))
    assert {segment.timeline for segment in found} <= {timeline}
    assert len(found) * size <= max(ahead * 16 * MIB, size)
    assert bool(found) == bool(ahead)
