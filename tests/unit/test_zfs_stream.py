# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_stream.py: all of a stream arrives, counted, and whichever program fails is named."""

from __future__ import annotations

import os
import shlex
import socket
import struct
import subprocess
import threading
import time

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_stream
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import Stage
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_stream import (
    HEAD_BYTES,
    copy,
    flow,
    makes_dataset,
    read_head,
    require_plain,
)

SIZE = 5_000_000


def sh(script: str, name: str = "") -> Stage:
    return Stage(name or script, ("sh", "-c", script))


def nothing(_count: int) -> None:
    return None


def begin(kind: int = 1, order: str = "<", *, features: int = 0, flags: int = 0, base: int = 0) -> bytes:
    """The first record of a stream: dmu_replay_record of 312 bytes, as OpenZFS writes it."""
    version = kind | features << 2
    head = struct.pack(f"{order}IIQQQIIQQ", 0, 0, 0x2F5BACBAC, version, 1_700_000_000, 2, flags, 77, base)
    return head + b"tank/pg@a".ljust(256, b"\0")


SOME = 1 << 2 | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 22  # features of a zfs send -Lec
RESUMES = 1 << 20


@pytest.fixture(params=["splice", "copy"])
def way(request, monkeypatch):
    if request.param == "copy":
        monkeypatch.delattr(os, "splice", raising=False)
    return request.param


def test_all_arrives_and_is_counted(way, tmp_path):
    file = tmp_path / "out"
    told: list[int] = []
    packed = [sh("gzip -1")]
    after = [sh("gzip -d"), sh(f"cat > {shlex.quote(str(file))}")]
    sent = flow([sh(f"head -c {SIZE} /dev/urandom")], [*packed, *after], told.append)
    assert sent == SIZE == file.stat().st_size
    assert told == sorted(told)


def test_it_tells_while_nobody_reads(way, monkeypatch):
    monkeypatch.setattr(zfs_stream, "TELL_SECONDS", 0.05)
    told: list[int] = []
    assert flow([sh(f"head -c {SIZE} /dev/zero")], [sh("sleep 1; cat >/dev/null")], told.append) == SIZE
    assert len([count for count in told if 0 < count < SIZE]) > 5, "what the pipe takes, again and again"


def test_what_comes_late_comes_too(way):
    told: list[int] = []
    assert flow([sh("sleep 1.2; echo x")], [sh("cat >&2")], told.append) == 2
    assert told[0] == 0


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (["echo gone >&2; exit 3"], ["cat"], "one failed with exit code 3 after 0 bytes: gone; run this again"),
        (["echo x; kill -9 $$"], ["cat; exit 1"], "one was ended by signal 9 after 2 bytes: it said nothing"),
        (["cat /dev/zero"], ["head -c 9; echo 'out of space' >&2; exit 1"], "two failed .*: out of space; make room"),
        (["cat /dev/zero"], ["cat", "exec 0<&-; echo no >&2; exit 4"], "three failed with exit code 4 .*: no; run"),
        (["echo x"], ["cat", "cat; exit 5"], "three failed with exit code 5 after 2 bytes"),
        (["echo x", "cat; exit 6"], ["cat"], "two failed with exit code 6"),
    ],
)
def test_whoever_fails_is_named(way, before, after, said):
    names = iter(("one", "two", "three"))
    stages = [[sh(script, next(names)) for script in scripts] for scripts in (before, after)]
    with pytest.raises(HotspareError, match=said) as caught:
        flow(stages[0], stages[1], nothing)
    assert "sent_bytes" in caught.value.facts


@pytest.fixture
def started(monkeypatch):
    """The programs that a flow starts, in order."""
    found = []
    popen = zfs_stream.subprocess.Popen

    def remembered(*args, **options):
        found.append(popen(*args, **options))
        return found[-1]

    monkeypatch.setattr(zfs_stream.subprocess, "Popen", remembered)
    return found


def test_what_cannot_be_started_leaves_nothing_running():
    with pytest.raises(HotspareError, match="cannot run it: No such file or directory; is /no/such/thing installed"):
        flow([sh("sleep 1000")], [Stage("it", ("/no/such/thing",))], nothing)


def test_who_is_interrupted_ends_them_all(started):
    class Stop(Exception):
        pass

    def stop(_count: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        flow([sh("sleep 1000")], [sh("cat")], stop)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)  # one may see the end of its input first


# --- how a stream begins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("features", [0, SOME, SOME | RESUMES])
def test_a_plain_one_is_let_through(order, features):
    whole = begin(1, order, features=features)
    assert len(whole) == 312
    for size in (312, HEAD_BYTES, 24, 23, 1, 0):  # of one that ends too early zfs receive says so
        require_plain(whole[:size])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("features", [0, SOME])
def test_one_that_carries_properties_is_not(order, features):
    for size in (24, HEAD_BYTES, 312):
        with pytest.raises(HotspareError, match=r"carries properties .*\(zfs send -p or -R\), and only plain ones are"):
            require_plain(begin(2, order, features=features)[:size])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("flags", [1, 5])
def test_one_that_makes_a_clone_is_not(order, flags):
    """zfs receive looks for its origin in the whole pool, whatever the key may receive."""
    for size in (40, HEAD_BYTES, 312):
        with pytest.raises(HotspareError, match=r"makes a clone of a snapshot that is here .*only whole datasets and"):
            require_plain(begin(1, order, base=5, flags=flags)[:size])
    require_plain(begin(1, order, base=5, flags=flags)[:39])
    require_plain(begin(1, order, base=5, flags=4))


@pytest.mark.parametrize(
    "head",
    [
        begin(0),
        begin(3),
        b"\1" + begin()[1:],  # the record of another type
        begin()[:8] + begin(1, ">")[8:16] + begin()[16:],  # the magic of another order: so is the rest, for zfs too
        b"\0" * 56,
        b"This account is currently not available.\n",
        b"\x28\xb5\x2f\xfd" + b"x" * 60,  # compressed
    ],
)
def test_what_is_no_stream_is_not(head):
    with pytest.raises(HotspareError, match="this is no stream of zfs send, it begins with b"):
        require_plain(head)


@pytest.mark.parametrize("order", ["<", ">"])
def test_which_make_a_dataset(order):
    """As zfs receive tells: stream_wantsnewfs in libzfs_sendrecv.c."""
    assert makes_dataset(begin(1, order, features=SOME))
    assert not makes_dataset(begin(1, order, features=SOME, base=5))
    assert not makes_dataset(begin(1, order, features=SOME, base=5, flags=4))
    assert not makes_dataset(begin(1, order, features=SOME | RESUMES))
    assert not makes_dataset(begin(1, order)[:55])


def test_the_head_is_seen_first(way, tmp_path):
    file, source = tmp_path / "out", tmp_path / "in"
    whole = begin() + os.urandom(SIZE)
    source.write_bytes(whole)
    seen = []

    def look(head):
        time.sleep(0.3)
        seen.append((head, file.read_bytes()))

    after = [sh(f"cat > {shlex.quote(str(file))}")]
    file.touch()
    assert flow([sh(f"cat {shlex.quote(str(source))}")], after, nothing, head=look) == len(whole)
    assert seen == [(whole[:HEAD_BYTES], b"")]
    assert file.read_bytes() == whole


def test_one_that_is_refused_ends_them_all(started, way, tmp_path):
    file = tmp_path / "out"
    source = tmp_path / "in"
    source.write_bytes(begin(2))
    with pytest.raises(HotspareError, match="this stream carries properties"):
        flow(
            [sh(f"cat {shlex.quote(str(source))}; exec sleep 20")],
            [sh("exec cat"), sh(f"exec cat > {shlex.quote(str(file))}")],
            nothing,
            head=require_plain,
        )
    assert len(started) == 3
    assert all(process.returncode is not None for process in started)
    assert not file.exists() or file.read_bytes() == b""


def test_it_tells_while_the_head_does_not_come(way, monkeypatch):
    monkeypatch.setattr(zfs_stream, "TELL_SECONDS", 0.05)
    told: list[int] = []
    seen: list[bytes] = []
    before = [sh("printf a; sleep 2; head -c 99 /dev/zero")]
    assert flow(before, [sh("cat >/dev/null")], told.append, head=seen.append) == 100
    assert seen == [b"a" + bytes(HEAD_BYTES - 1)], "though it came in pieces"
    assert told[:5] == [0] * 5 and told == sorted(told)


@pytest.mark.parametrize("size", [0, 1, 55])
def test_one_that_ends_in_its_head_is_for_the_receiver_to_tell(way, tmp_path, size):
    file = tmp_path / "out"
    after = [sh(f"cat > {shlex.quote(str(file))}; echo incomplete stream >&2; exit 1", "receive")]
    with pytest.raises(HotspareError, match=f"receive failed with exit code 1 after {size} bytes: incomplete stream"):
        flow([sh(f"head -c {size} /dev/zero")], after, nothing, head=lambda _head: None)
    assert file.stat().st_size == size


def test_a_sender_that_fails_before_the_head_is_named(way):
    with pytest.raises(HotspareError, match="send failed with exit code 3 after 0 bytes: gone"):
        flow([sh("echo gone >&2; exit 3", "send")], [sh("cat")], nothing, head=require_plain)


# --- from what sshd gives us -----------------------------------------------------------------------------------------


@pytest.fixture
def cat():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_it_copies_from_a_socket(way, cat):
    ours, theirs = socket.socketpair()
    whole = begin() + os.urandom(SIZE)

    def send():
        with theirs:
            theirs.sendall(whole)

    got: list[bytes] = []
    sending, reading = threading.Thread(target=send), threading.Thread(target=lambda: got.append(cat.stdout.read()))
    sending.start()
    reading.start()
    with ours:
        head = read_head(ours.fileno(), nothing)
        assert copy(ours.fileno(), cat.stdin.fileno(), nothing, head) == (len(whole), False)
    cat.stdin.close()
    sending.join()
    reading.join()
    assert got == [whole]


def test_a_socket_that_is_reset_has_ended(way, cat):
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"never read")
        theirs.send(b"x" * 9)
        theirs.close()
        assert read_head(ours.fileno(), nothing) in (b"", b"x" * 9)
        assert copy(ours.fileno(), cat.stdin.fileno(), nothing)[1] is False


def test_it_copies_what_cannot_be_spliced(monkeypatch, cat, tmp_path):
    def no(*_args):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", no, raising=False)
    (tmp_path / "in").write_bytes(b"y" * 5000)
    with open(tmp_path / "in", "rb") as file:
        assert copy(file.fileno(), cat.stdin.fileno(), nothing, b"x") == (5001, False)
    cat.stdin.close()
    assert cat.stdout.read() == b"x" + b"y" * 5000


def test_it_ends_when_nobody_reads_any_more_though_nothing_comes(way):
    read, write = os.pipe()
    with subprocess.Popen(["sh", "-c", "head -c 1 >/dev/null"], stdin=subprocess.PIPE) as process:
        began = time.monotonic()
        assert copy(read, process.stdin.fileno(), nothing, b"x", attentive=True) == (1, True)
        assert time.monotonic() - began < 60  # without it there is no end
    for descriptor in (read, write):
        os.close(descriptor)
