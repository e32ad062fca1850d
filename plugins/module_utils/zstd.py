# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zstd through its program, as a stream: Python has it only from 3.14 on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Optional

from .shell import PATH, HotspareError

COMPRESS = ("zstd", "-q", "-c", "-T1", "--check")
DECOMPRESS = ("zstd", "-q", "-d", "-c")
BLOCK = 1 << 20
F_SETPIPE_SZ = 1031  # fcntl has its name from Python 3.10 on


class Filter:
    """A program that turns a stream into another; as a context manager it does not outlive its user."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._name = argv[0]
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={"PATH": PATH, "LC_ALL": "C"},
            )
        except OSError as error:
            raise HotspareError(f"cannot run {self._name}: {error.strerror}; install it on this host") from error
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("it was started")
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._stdin, self._stdout):  # fewer switches between it and us
            with contextlib.suppress(OSError):  # this account has its share of such pipes
                fcntl.fcntl(pipe, F_SETPIPE_SZ, BLOCK)
        os.set_blocking(self._stdin, False)
        self._ready = select.poll()
        self._ready.register(self._stdin, select.POLLOUT)
        self._ready.register(self._stdout, select.POLLIN)

    def __enter__(self) -> Filter:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Give it the next bytes; what it has for us so far. HotspareError."""
        view = memoryview(chunk)
        while view:
            for descriptor, _event in self._ready.poll():
                if descriptor == self._stdout:
                    block = os.read(self._stdout, BLOCK)
                    if not block:
                        raise self._failed()
                    yield block
                else:
                    try:
                        view = view[os.write(self._stdin, view) :]
                    except BrokenPipeError:
                        raise self._failed() from None

    def finish(self) -> Iterator[bytes]:
        """The stream has ended; the rest of what it has for us. HotspareError."""
        if self._process.stdin is None:
            raise AssertionError("it was started")
        self._process.stdin.close()
        while block := os.read(self._stdout, BLOCK):
            yield block
        if self._process.wait() != 0:
            raise self._failed()

    def close(self) -> None:
        """End it, wherever it is."""
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def _failed(self) -> HotspareError:
        if self._process.stdin is None or self._process.stderr is None:
            raise AssertionError("it was started")
        self._process.stdin.close()  # it ends when it has read all, even of what it cannot use
        said = self._process.stderr.read().decode(errors="replace").strip() or "it ended early"
        return HotspareError(f"{self._name} failed: {said}; the data is damaged, or not what it was said to be")


def through(argv: Sequence[str], chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    """What a program makes of a stream; HotspareError."""
    with Filter(argv) as program:
        for chunk in chunks:
            yield from program.feed(chunk)
        yield from program.finish()
