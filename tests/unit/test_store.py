# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are never overwritten, and what a crash between any two system calls leaves of them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import tempfile
import threading
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import store
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Conflict, Full
from ansible_collections.hotspare.postgresql.tests.unit.crashing import Crash, Disk, Process, World, rebuild
from hypothesis import given, settings
from hypothesis import strategies as st

ONE, OTHER = b"one content", b"other content"
PATH = "a/b/file"
LIMITS = range(30)  # more than the calls that storing a file takes


def put(root: Path, content: bytes, path: store.AnyPath = PATH, layer: store.Layer | None = None) -> store.Stored:
    with store.receive(root, path, layer=layer or store.Layer()) as incoming:
        incoming.write(content[:4])
        incoming.write(content[4:])
        return incoming.commit(sha256(content))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def disk(root):
    made = Disk(root)
    yield made
    made.close()


# --- what it does ----------------------------------------------------------------------------------------------------


def test_stored(root):
    stored = put(root, ONE)
    assert stored == store.Stored(str(root / PATH), len(ONE), sha256(ONE), True)
    assert files(root) == {PATH: ONE}
    assert (root / PATH).stat().st_mode & 0o7777 == 0o640


def test_modes_whatever_the_umask(root):
    before = os.umask(0o077)
    try:
        with store.receive(root, "x", mode=0o444) as incoming:
            incoming.commit()
    finally:
        os.umask(before)
    assert (root / "x").stat().st_mode & 0o7777 == 0o444


def test_the_same_again(root):
    put(root, ONE)
    assert put(root, ONE) == store.Stored(str(root / PATH), len(ONE), sha256(ONE), False)
    assert files(root) == {PATH: ONE}


def test_other_content(root):
    put(root, ONE)
    for _ in range(2):  # sent again it is not kept again
        with pytest.raises(Conflict, match="is there already and differs from byte 1 on") as error:
            put(root, b"o" + OTHER)
        kept = f"conflicts/{PATH}.{sha256(b'o' + OTHER)[:16]}"
        assert files(root) == {PATH: ONE, kept: b"o" + OTHER}
        assert error.value.facts == {
            "path": str(root / PATH),
            "first_difference": 1,
            "evidence": str(root / kept),
            "existing_sha256": sha256(ONE),
            "sha256": sha256(b"o" + OTHER),
        }


def test_a_conflict_survives_a_journey(root):
    put(root, ONE)
    with pytest.raises(Conflict) as error:
        put(root, OTHER)
    assert Conflict(error.value.message, **error.value.facts).facts == error.value.facts


def test_names_that_are_no_text(root):
    put(root, ONE, b"caf\xe9/\xff")
    assert os.listdir(os.fsencode(root / "caf\udce9")) == [b"\xff"]
    assert not put(root, ONE, "caf\udce9/\udcff").new


def test_given_up(root):
    with store.receive(root, PATH) as incoming:
        incoming.write(ONE)
        assert [name[:10] for name in os.listdir(root / "a/b")] == [store.INCOMING]
    assert files(root) == {}
    incoming.abort()
    with pytest.raises(HotspareError, match="was given up or committed before"):
        incoming.write(ONE)


def test_damaged_on_its_way(root):
    with store.receive(root, PATH) as incoming:
        incoming.write(ONE)
        with pytest.raises(HotspareError, match="did not arrive as it was sent"):
            incoming.commit(sha256(OTHER))
    assert files(root) == {}


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../x", "a//b", "a/", ".", "a/.incoming-1", "a\0b"])
def test_paths_that_lead_elsewhere(root, path):
    with pytest.raises(HotspareError, match="is not a path below"):
        store.receive(root, path)
    with pytest.raises(HotspareError, match="is not a path below"):
        store.remove(root, [path])


def test_links_that_lead_elsewhere(root, tmp_path):
    (root / "a").symlink_to(tmp_path)
    with pytest.raises(HotspareError, match="it is a symbolic link, or no directory"):
        store.receive(root, "a/x")
    (root / "link").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_bytes(ONE)
    with pytest.raises(HotspareError, match="Too many levels of symbolic links"):
        put(root, ONE, "link")
    assert files(root) == {"link": ONE}


def test_the_root_is_never_made(tmp_path):
    with pytest.raises(HotspareError, match="No such file or directory; see that the directory is there"):
        store.receive(tmp_path / "not mounted", PATH)
    assert not (tmp_path / "not mounted").exists()


def test_two_at_once(root):
    """Many writers of two contents: one content wins, whoever sent it is told so, the others are told of a conflict."""
    told: list[tuple[bytes, bool]] = []

    def work(content: bytes) -> None:
        try:
            told.append((content, put(root, content).new))
        except Conflict:
            told.append((content, False))

    threads = [threading.Thread(target=work, args=(content,)) for content in [ONE, OTHER] * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [content for content, new in told if new] == [(root / PATH).read_bytes()]
    assert len(told) == 16 and len(files(root)) == 2


def test_removed_in_order(root):
    paths = [f"{directory}/{name}" for directory in "abc" for name in "123"]
    for path in paths:
        put(root, ONE, path)
    assert store.remove(root, ["a/1", "a/none", "none/1", *paths[1:4]]) == [str(root / path) for path in paths[:4]]
    assert sorted(files(root)) == paths[4:]
    assert store.remove(root, []) == []


def test_what_cannot_be_removed_is_told(root):
    put(root, ONE, "a/1/2")
    with pytest.raises(HotspareError, match="cannot remove"):
        store.remove(root, ["a/1"])


def test_sweep_takes_what_a_dead_writer_left(root, disk):
    with contextlib.suppress(Crash):
        put(root, ONE, layer=Process(disk, 8))
    left = files(root)
    assert [Path(name).name[:10] for name in left] == [store.INCOMING]
    with store.receive(root, PATH) as alive:
        alive.write(ONE)
        assert store.sweep(root) == [str(root / name) for name in left]
        alive.commit()
    assert files(root) == {PATH: ONE}


def test_a_sweep_between_creation_and_lock(root):
    swept: list[str] = []

    class Overtaken(store.Layer):
        def create(self, path, mode):
            descriptor = super().create(path, mode)
            if not swept:
                swept.extend(store.sweep(root))
            return descriptor

    assert put(root, ONE, layer=Overtaken()).new
    assert len(swept) == 1 and files(root) == {PATH: ONE}


class TestFirstDifference:
    @given(st.binary(max_size=40), st.binary(max_size=40), st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
    def test_whatever_the_pieces(self, one, other, cuts, other_cuts):
        expected = next((i for i, (a, b) in enumerate(itertools.zip_longest(one, other)) if a != b), None)
        assert store.first_difference(pieces(one, cuts), pieces(other, other_cuts)) == expected
        assert store.first_difference(pieces(one, cuts), pieces(one, other_cuts)) is None


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    return [content[start:end] for start, end in itertools.pairwise(bounds)]


# --- what a crash leaves ---------------------------------------------------------------------------------------------


def final(world: World) -> World:
    """The files of a world that have a name, other than a temporary one."""
    return {path: content for path, content in world.items() if store.INCOMING not in path and not path.endswith("/")}


def assert_sound(disk: Disk, acknowledged: dict[str, bytes], offered: set[bytes]) -> None:
    """Whatever is left: what was acknowledged is there, and no name holds anything that nobody offered."""
    for world in disk.worlds():
        found = final(world)
        assert {path: found.get(path) for path in acknowledged} == acknowledged
        assert set(found.values()) <= offered


def calls_of(root: Path, work) -> int:
    """How many system calls it takes, on a disk of its own."""
    with tempfile.TemporaryDirectory(dir=root.parent) as directory:
        trial = Disk(Path(directory))
        layer = Process(trial)
        work(Path(directory), layer)
        trial.close()
        return layer.calls


def attempt(root: Path, content: bytes, layer: store.Layer, path: str = PATH) -> bool:
    """Whether the sender was told that it is stored."""
    try:
        put(root, content, path, layer)
    except (Crash, HotspareError):
        return False
    return True


def test_the_limits_are_enough(root):
    assert 10 < calls_of(root, lambda where, layer: put(where, OTHER, layer=layer)) < LIMITS[-1]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_crash_before_any_call(root, disk, limit):
    told = attempt(root, ONE, Process(disk, limit))
    assert_sound(disk, {PATH: ONE} if told else {}, {ONE})
    assert told == (limit >= calls_of(root, lambda where, layer: put(where, ONE, layer=layer)))


@pytest.mark.parametrize("limit", LIMITS)
def test_after_the_power_failed_it_is_sent_again(root, disk, tmp_path, limit):
    attempt(root, ONE, Process(disk, limit))
    for number, world in enumerate(disk.worlds()):
        again = tmp_path / str(number)
        rebuild(world, again)
        store.sweep(again)
        put(again, ONE)
        assert files(again) == {PATH: ONE}


@pytest.mark.parametrize("first", LIMITS)
def test_a_writer_dies_then_another_is_told_then_the_power_fails(root, disk, first):
    """What the first one left may look finished and not be durable."""
    attempt(root, ONE, Process(disk, first))
    assert attempt(root, ONE, Process(disk))
    assert_sound(disk, {PATH: ONE}, {ONE})


def test_a_copy_that_somebody_else_made_then_the_power_fails(root, disk):
    (root / PATH).parent.mkdir(parents=True)
    (root / PATH).write_bytes(ONE)
    assert len(list(disk.worlds())) > 1
    assert attempt(root, ONE, Process(disk))
    assert_sound(disk, {PATH: ONE}, {ONE})


def renew(directory: Path) -> None:
    """Somebody else removes it and makes it anew, a tick of the clock later at least."""
    before = directory.parent.stat().st_ctime_ns
    while directory.parent.stat().st_ctime_ns == before:
        directory.rmdir()
        directory.mkdir()


def test_a_directory_that_was_made_anew_is_made_durable_again(root, disk, monkeypatch):
    monkeypatch.setattr(store, "QUIET_SECONDS", -1)
    process = Process(disk)
    assert attempt(root, ONE, process)
    first = process.calls
    (root / PATH).unlink()
    assert attempt(root, ONE, process)
    assert process.calls - first < first - 2, "what is known is not done again"
    (root / PATH).unlink()
    renew((root / PATH).parent)
    assert attempt(root, OTHER, process)
    assert_sound(disk, {PATH: OTHER}, {ONE, OTHER})


def test_nothing_is_known_of_a_directory_that_just_changed(root, disk, monkeypatch):
    """Within the same tick of the clock it may change once more."""
    monkeypatch.setattr(store, "QUIET_SECONDS", 1e9)
    process = Process(disk)
    assert attempt(root, ONE, process)
    assert process.durable == {}
    monkeypatch.setattr(store, "QUIET_SECONDS", -1)
    assert attempt(root, ONE, process)
    assert process.durable.keys() == {str(root / "a"), str(root / "a" / "b")}


@pytest.mark.parametrize("first", LIMITS)
def test_a_writer_dies_then_other_content_comes(root, disk, first):
    told = attempt(root, ONE, Process(disk, first))
    told_other = attempt(root, OTHER, Process(disk))
    assert not (told and told_other)
    assert_sound(disk, {PATH: ONE if told else OTHER} if told or told_other else {}, {ONE, OTHER})
    assert told_other or (root / PATH).read_bytes() == ONE


@pytest.mark.parametrize("limit", LIMITS)
def test_a_crash_while_a_conflict_is_kept(root, disk, limit):
    assert attempt(root, ONE, Process(disk))
    try:
        put(root, OTHER, layer=Process(disk, limit))
    except Conflict as conflict:
        kept = {str(Path(conflict.facts["evidence"]).relative_to(root)): OTHER}
    except Crash:
        kept = {}
    assert_sound(disk, {PATH: ONE, **kept}, {ONE, OTHER})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_call_that_fails(root, disk, limit, number):
    """It is told, leaves nothing, and the next one gets on."""
    try:
        put(root, ONE, layer=Process(disk, limit, number))
        told = True
    except HotspareError as error:
        told = False
        assert isinstance(error, Full) == (number != errno.EIO)
    assert_sound(disk, {PATH: ONE} if told else {}, {ONE})
    left = files(root)
    assert left in ({}, {PATH: ONE}) or all(store.INCOMING in name for name in set(left) - {PATH})
    assert attempt(root, ONE, Process(disk))
    store.sweep(root)
    assert files(root) == {PATH: ONE}
    assert_sound(disk, {PATH: ONE}, {ONE})


@pytest.mark.parametrize("limit", range(16))
def test_a_crash_while_files_are_removed_leaves_no_hole(root, disk, limit):
    paths = [f"{directory}/{name}" for directory in "abc" for name in "12"]
    for path in paths:
        put(root, ONE, path, Process(disk))
    try:
        store.remove(root, paths, Process(disk, limit))
        gone = True
    except Crash:
        gone = False
    for world in disk.worlds():
        left = sorted(final(world))
        assert not gone or left == []
        # Within a directory the order is the file system's; a later one is not begun before it is durable.
        begun = [path for path in paths if path not in left]
        assert not begun or not [path for path in left if path[0] < begun[-1][0]]


steps = st.lists(
    st.tuples(
        st.sampled_from(["x", "d/x", "d/e/y"]),
        st.sampled_from([ONE, OTHER]),
        st.one_of(st.none(), st.integers(0, 30)),
        st.sampled_from(["goes on", "process dies", "power fails"]),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=150)
@given(steps, st.randoms(use_true_random=False))
def test_any_life(story, random):
    """Writers that live and die, and a power that fails: an acknowledged file stays, a name has one content."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "0")
        root.mkdir()
        disk, acknowledged = Disk(root), {}
        layer = Process(disk)
        for number, (path, content, limit, then) in enumerate(story, start=1):
            if limit is not None:
                layer = Process(disk, limit)
            if attempt(root, content, layer, path):
                assert acknowledged.setdefault(path, content) == content
            assert_sound(disk, acknowledged, {ONE, OTHER})
            if then == "power fails":
                world = random.choice(list(disk.worlds()))
                disk.close()
                root = Path(directory, str(number))
                rebuild(world, root)
                disk = Disk(root)
                for found, _, names in os.walk(root):  # what was read back from a disk is on it
                    for name in ["", *names]:
                        disk.sync(os.path.join(found, name).rstrip("/"))
            if then != "goes on" or limit is not None:
                layer = Process(disk)
                store.sweep(root, layer)
        disk.close()
