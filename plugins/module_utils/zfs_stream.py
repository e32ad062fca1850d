# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pipeline of programs through which a stream goes, counted on its way; the exit code of each of them counts. And how
a stream begins, by which one that would bring more than its data is known before anything is received."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Optional

from .shell import PATH, HotspareError
from .zfs import ADVICE, Stage

PIPE_BYTES = 1 << 20  # of a pipe; the kernel's default is 64 KiB
SET_PIPE_SIZE = 1031  # fcntl.F_SETPIPE_SZ, since Python 3.10
TELL_SECONDS = 1.0
TAIL_BYTES = 4000

# The first record of a stream, as far as it is read here: dmu_replay_record and drr_begin in zfs_ioctl.h of OpenZFS.
# Type, length of the payload, magic, versioninfo, when it was made, kind of dataset, flags, toguid, fromguid.
BEGIN = "IIQQQIIQQ"
HEAD_BYTES = struct.calcsize(f"={BEGIN}")
FLAGS_BYTES = 40  # up to flags
KIND_BYTES = 24  # up to versioninfo
MAGIC = 0x2F5BACBAC
SUBSTREAM, COMPOUND = 1, 2  # the two lowest bits of versioninfo
RESUMING = 1 << 22  # in versioninfo: a feature flag, of which the first is bit 2
CLONE = 1  # in flags: a dataset that branches off the snapshot `fromguid`, whichever has that in the whole pool


def require_plain(head: bytes) -> None:
    """HotspareError for a stream with properties (zfs send -p), which zfs receive would set here, such as a mountpoint;
    for one that would branch off a snapshot of any dataset here, which can be promoted then; and for what is no stream.
    (Pure.) `head`: how it begins; of one that ends in there zfs receive says so itself."""
    if len(head) < KIND_BYTES:
        return
    (version,) = struct.unpack_from(f"{_order(head)}Q", head, KIND_BYTES - 8)
    if version & 3 == COMPOUND:
        raise HotspareError(
            "this stream carries properties or more than one snapshot (zfs send -p or -R), and only plain ones are "
            "received: send it without these options"
        )
    if version & 3 != SUBSTREAM:
        raise _no_stream(head)
    if len(head) >= FLAGS_BYTES and struct.unpack_from(f"{_order(head)}I", head, FLAGS_BYTES - 4)[0] & CLONE:
        raise HotspareError(
            "this stream makes a clone of a snapshot that is here (zfs send -i of another dataset's), and only whole "
            "datasets and what changed in one are received: send it without that"
        )


def makes_dataset(head: bytes) -> bool:
    """Whether a plain stream is for a dataset that is not there yet, as zfs receive tells it; of one that resumes there
    is something already. (Pure.) HotspareError for what is no stream."""
    if len(head) < HEAD_BYTES:  # it ends in there
        return False
    fields: tuple[int, ...] = struct.unpack_from(_order(head) + BEGIN, head)
    version, fromguid = fields[3], fields[8]
    return fromguid == 0 and version & RESUMING == 0


def _order(head: bytes) -> str:
    """Of the bytes, which is that of the host that sends; of struct."""
    for order in "<>":
        if head[:4] == bytes(4) and head[8:16] == struct.pack(f"{order}Q", MAGIC):  # the type is DRR_BEGIN, 0
            return order
    raise _no_stream(head)


def _no_stream(head: bytes) -> HotspareError:
    return HotspareError(
        f"this is no stream of zfs send, it begins with {head[:KIND_BYTES]!r}: see what the other host sends"
    )


def flow(
    before: Sequence[Stage],
    after: Sequence[Stage],
    tell: Callable[[int], None],
    *,
    head: Optional[Callable[[bytes], None]] = None,
) -> int:
    """Run the programs, each reading what the one before writes; how many bytes went from `before` to `after`.

    `tell` gets that number about every second, also while nothing moves. `head` is called with the first HEAD_BYTES,
    or what there is where the stream ends before, and only then `after` gets any of it: what it raises ends them all.
    HotspareError names the program that failed, with what it said, when any of them did.
    """
    with contextlib.ExitStack() as stack:
        senders = _launch(before, subprocess.DEVNULL, subprocess.PIPE, stack)
        receivers = _launch(after, subprocess.PIPE, subprocess.DEVNULL, stack)
        source, sink = senders[-1].process.stdout, receivers[0].process.stdin
        if source is None or sink is None:
            raise AssertionError("they are pipes")
        first = b""
        if head is not None:
            first = read_head(source.fileno(), tell)
            head(first)
        total, broken = copy(source.fileno(), sink.fileno(), tell, first)
        source.close()
        sink.close()
        if broken:  # who sends has nobody to send to
            for one in senders:
                one.process.kill()
        for one in (*senders, *receivers):
            while one.process.poll() is None:
                tell(total)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.process.wait(TELL_SECONDS)
        failed = next(
            (one for one in (*reversed(receivers), *senders) if one.process.returncode != 0)
            if broken
            else (one for one in (*senders, *reversed(receivers)) if one.process.returncode != 0),
            None,
        )
        if failed is not None:
            raise _failure(failed, total)
        return total


class _Running:
    def __init__(self, stage: Stage, process: subprocess.Popen[bytes], stderr: int) -> None:
        self.stage, self.process, self._stderr = stage, process, stderr

    @property
    def said(self) -> str:
        size = os.fstat(self._stderr).st_size
        return os.pread(self._stderr, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")


def _launch(stages: Sequence[Stage], stdin: int, stdout: int, stack: contextlib.ExitStack) -> list[_Running]:
    """What is still running when the stack is left is killed: a forgotten receive would keep its dataset busy."""
    running: list[_Running] = []
    for number, stage in enumerate(stages):
        stderr = os.memfd_create("stderr")
        stack.callback(os.close, stderr)
        fcntl.fcntl(stderr, fcntl.F_SETFL, os.O_APPEND)
        previous = running[-1].process.stdout if running else None
        try:
            process = subprocess.Popen(
                stage.argv,
                stdin=previous if previous is not None else stdin,
                stdout=stdout if number == len(stages) - 1 else subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                cwd="/",
                env={"PATH": PATH, "LC_ALL": "C"},
            )
        except OSError as error:
            raise HotspareError(f"cannot run {stage.name}: {error.strerror}; is {stage.argv[0]} installed?") from error
        finally:
            if previous is not None:
                previous.close()
        stack.callback(_end, process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                widen(pipe.fileno())
        running.append(_Running(stage, process, stderr))
    return running


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if process.poll() is None:
        process.kill()
        process.wait()


def widen(pipe: int) -> None:
    with contextlib.suppress(OSError):  # more than an account that is not root may have
        fcntl.fcntl(pipe, SET_PIPE_SIZE, PIPE_BYTES)


def read_head(source: int, tell: Callable[[int], None]) -> bytes:
    """The first HEAD_BYTES of a stream; fewer only where it ends before."""
    readable = select.poll()
    readable.register(source, select.POLLIN)
    head = b""
    tell(0)
    while len(head) < HEAD_BYTES:
        if not readable.poll(int(TELL_SECONDS * 1000)):
            tell(0)
            continue
        try:
            read = os.read(source, HEAD_BYTES - len(head))
        except ConnectionResetError:
            break
        if not read:
            break
        head += read
    return head


def copy(
    source: int, sink: int, tell: Callable[[int], None], head: bytes = b"", *, attentive: bool = False
) -> tuple[int, bool]:
    """`head`, and all from `source` to the pipe `sink`; the bytes, and whether nobody read any more. `attentive`: see
    that while nothing comes, too."""
    readable, writable = select.poll(), select.poll()
    readable.register(source, select.POLLIN)
    writable.register(sink, select.POLLOUT)
    if attentive:
        readable.register(sink, 0)  # an error is told without being asked for
    for pipe in (source, sink):
        os.set_blocking(pipe, False)
    total, told = 0, 0.0
    left = memoryview(head)
    splices = hasattr(os, "splice")  # since Python 3.10: without a copy
    while True:
        if time.monotonic() - told >= TELL_SECONDS:
            tell(total)
            told = time.monotonic()
        try:
            if splices and not left:
                moved = os.splice(source, sink, PIPE_BYTES)
            else:
                left = left or memoryview(os.read(source, PIPE_BYTES))
                moved = os.write(sink, left) if left else 0
                left = left[moved:]
        except BlockingIOError:  # one of them is not ready; both may be and there be room for less
            ready = [] if left else readable.poll(int(TELL_SECONDS * 1000))
            if any(descriptor == sink for descriptor, _event in ready):
                return total, True
            if (left or ready) and writable.poll(int(TELL_SECONDS * 1000)):
                time.sleep(0.001)
            continue
        except BrokenPipeError:
            return total, True
        except ConnectionResetError:  # the end of a socket, where sshd gives us one
            return total, False
        except OSError as error:
            if error.errno != errno.EINVAL or not splices:
                raise
            splices = False  # not everything that can be read can be spliced
            continue
        if not moved:
            return total, False
        total += moved


def _failure(failed: _Running, total: int) -> HotspareError:
    said = failed.said
    rc: Optional[int] = failed.process.returncode
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    how = f"was ended by signal {-rc}" if rc is not None and rc < 0 else f"failed with exit code {rc}"
    last = lines[-1] if lines else "it said nothing"
    advice = next(
        (advice for sign, advice in ADVICE if sign in said),
        "run this again, which goes on where it broke",
    )
    return HotspareError(
        f"{failed.stage.name} {how} after {total} bytes: {last}; {advice}",
        command=list(failed.stage.argv),
        rc=rc,
        stderr=said,
        sent_bytes=total,
    )
