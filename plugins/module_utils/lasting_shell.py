# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A shell that stays, here or on another host: many commands, one after the other, cost one ssh, and no start of a
program from Python."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence

from .shell import PATH

# What the shell says behind each command, on both of its outputs: its exit code, on a line of its own whether or not
# the text before ends a line. Behind each script: that it has ended.
AFTER = '; r=$?; echo; echo "=$r="; echo >&2; echo "=$r=" >&2'
CODE = "\n={}=\n"
STOP = "; [ $r = 0 ] || exit 1"
ENDED = b"=.=\n"
END = " </dev/null; echo =.=; echo =.= >&2\n"
CLOSE_SECONDS = 10


def script(commands: Sequence[Sequence[str]], stop: bool) -> str:
    """A line for sh that tells the exit code of each command behind what it writes; `stop` at the first that fails.
    (Pure.)"""
    told = "".join(f"{shlex.join(words)}{AFTER}{STOP if stop else ''}; " for words in commands)
    return f"({told}){END}"


def parts(text: str) -> tuple[list[str], list[int], str]:
    """Of one output of a script: what each command wrote there, their exit codes, and what is behind the last of these.
    (Pure.)"""
    *found, rest = re.split(CODE.format(r"(\d+)"), text)
    return found[0::2], [int(code) for code in found[1::2]], rest


class Lost(Exception):
    """It ended before it was told to: with what exit code (None: it took too long), and what it said."""

    def __init__(self, rc: int | None, said: str) -> None:
        super().__init__(said)
        self.rc, self.said = rc, said


class LastingShell:
    """`argv` is sh, an ssh that runs it, or what reads its lines in its place. To be closed."""

    def __init__(self, argv: Sequence[str]) -> None:
        """OSError when it cannot be started."""
        pipe = subprocess.PIPE
        # In a session of its own: an interrupt at a terminal is for us, who then ends it.
        self._process = subprocess.Popen(
            argv,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C"},
            start_new_session=True,
        )
        if self._process.stdin is None or self._process.stdout is None or self._process.stderr is None:
            raise AssertionError("they are pipes")
        self._in, self._out, self._err = self._process.stdin, self._process.stdout, self._process.stderr
        self._left = b""  # read already of what the next line will say

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, line: str, timeout: float) -> tuple[str, str]:
        """Have a line of `script` run: what came on its standard output, and on its standard error. Lost."""
        left = line.encode()
        with contextlib.suppress(BrokenPipeError):  # what it said is read below
            while left:
                left = left[self._in.write(left) or 0 :]
        out, err = bytearray(), bytearray(self._left)
        said = {self._out.fileno(): out, self._err.fileno(): err}
        until = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for descriptor in said:
                selector.register(descriptor, selectors.EVENT_READ)
            # Behind its own end an ssh may have something to say of what else it carries.
            while not (out.endswith(ENDED) and ENDED in err):
                ready = selector.select(max(0.0, until - time.monotonic()))
                if not ready:
                    self._kill()
                    raise Lost(None, err.decode(errors="replace"))
                for key, _events in ready:
                    read = os.read(key.fd, 1 << 16)
                    said[key.fd] += read
                    if not read:
                        selector.unregister(key.fd)
                if not selector.get_map():
                    raise Lost(self._process.wait(), err.decode(errors="replace"))
        wrote, _end, self._left = bytes(err).partition(ENDED)
        return out[: -len(ENDED)].decode(errors="replace"), wrote.decode(errors="replace")

    def close(self) -> None:
        """What goes through the same connection ends first."""
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
        self._out.close()
        self._err.close()

    def _kill(self) -> None:
        """With what it has started: of a script nothing more is done."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
