# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pipeline of programs through which a stream goes, counted on its way; the exit code of each of them counts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
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


def flow(before: Sequence[Stage], after: Sequence[Stage], tell: Callable[[int], None]) -> int:
    """Run the programs, each reading what the one before writes; how many bytes went from `before` to `after`.

    `tell` gets that number about every second, also while nothing moves. HotspareError names the program that failed,
    with what it said, when any of them did.
    """
    with contextlib.ExitStack() as stack:
        senders = _launch(before, subprocess.DEVNULL, subprocess.PIPE, stack)
        receivers = _launch(after, subprocess.PIPE, subprocess.DEVNULL, stack)
        source, sink = senders[-1].process.stdout, receivers[0].process.stdin
        if source is None or sink is None:
            raise AssertionError("they are pipes")
        total, broken = _copy(source.fileno(), sink.fileno(), tell)
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
                with contextlib.suppress(OSError):  # more than an account that is not root may have
                    fcntl.fcntl(pipe.fileno(), SET_PIPE_SIZE, PIPE_BYTES)
        running.append(_Running(stage, process, stderr))
    return running


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if process.poll() is None:
        process.kill()
        process.wait()


def _copy(source: int, sink: int, tell: Callable[[int], None]) -> tuple[int, bool]:
    """All from one pipe to the other; the bytes, and whether nobody read any more."""
    readable, writable = select.poll(), select.poll()
    readable.register(source, select.POLLIN)
    writable.register(sink, select.POLLOUT)
    for pipe in (source, sink):
        os.set_blocking(pipe, False)
    total, told = 0, 0.0
    left = memoryview(b"")
    while True:
        if time.monotonic() - told >= TELL_SECONDS:
            tell(total)
            told = time.monotonic()
        try:
            if hasattr(os, "splice"):  # since Python 3.10: without a copy
                moved = os.splice(source, sink, PIPE_BYTES)
            else:
                left = left or memoryview(os.read(source, PIPE_BYTES))
                moved = os.write(sink, left) if left else 0
                left = left[moved:]
        except BlockingIOError:  # one of them is not ready; both may be and there be room for less
            if (left or readable.poll(int(TELL_SECONDS * 1000))) and writable.poll(int(TELL_SECONDS * 1000)):
                time.sleep(0.001)
            continue
        except BrokenPipeError:
            return total, True
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
