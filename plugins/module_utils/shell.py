# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs and files of another account: run one with a time limit, write one so that a crash cannot halve it."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KILL_SECONDS = 5  # a killed process goes at once, unless it hangs in the kernel on a dead disk
TAIL_CHARACTERS = 4000  # what an error carries of a program's output


class HotspareError(Exception):
    """What a module tells the user: one sentence (what, where, what next) and the facts gathered so far."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, Any] = facts


class CommandError(HotspareError):
    """A program could not be started, failed, or ran out of time; `rc` is None unless it ended by itself."""

    def __init__(self, message: str, argv: Sequence[str], rc: int | None, stdout: str = "", stderr: str = "") -> None:
        super().__init__(
            message, command=list(argv), rc=rc, stdout=stdout[-TAIL_CHARACTERS:], stderr=stderr[-TAIL_CHARACTERS:]
        )
        self.argv = list(argv)
        self.rc = rc
        self.stdout = stdout
        self.stderr = stderr


@dataclass(frozen=True)
class Completed:
    """A program that ended by itself; `seconds` is its wall clock time, a negative `rc` the signal that ended it."""

    argv: list[str]
    rc: int
    stdout: str
    stderr: str
    seconds: float


def run(
    argv: Sequence[str],
    *,
    account: str | None = None,
    timeout: float | None = 60,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cwd: str = "/",
) -> Completed:
    """Run a program as `account` (default: as we are) for at most `timeout` seconds, then kill its process group.

    No shell, and a clean environment (C locale, fixed PATH, no PG* variable of the caller) plus `env`. Returns when
    the program itself ends, even if a daemon it left behind still holds its output open, as `pg_ctl start` does.
    Not to be called inside `as_account`. Secrets belong in `stdin` or a file: an error carries `argv`.
    CommandError: cannot be started, out of time, or (with `check`) a non-zero exit code.
    """
    argv = list(argv)
    program = os.path.basename(argv[0])
    switch: dict[str, Any] = {}
    if account is not None and _must_switch(account):
        entry = _entry(account)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        switch = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
    environment = {"PATH": PATH, "LC_ALL": "C", "LANGUAGE": "C", **_home(account), **(env or {})}

    with contextlib.ExitStack() as stack:
        # Files in memory, not pipes: nothing to drain, and no end-of-file to wait for.
        out, err, inp = (_memory_file(stack, name) for name in ("stdout", "stderr", "stdin"))
        os.pwrite(inp, (stdin or "").encode(), 0)
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                argv, stdin=inp, stdout=out, stderr=err, cwd=cwd, env=environment, start_new_session=True, **switch
            )
        except OSError as error:
            where = error.filename if isinstance(error.filename, str) else argv[0]
            raise CommandError(
                f"cannot run {program}: {where}: {error.strerror}; is it installed and may {account or 'this account'} "
                "run it?",
                argv,
                None,
            ) from error
        expired = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            expired = True
        finally:  # also when we are interrupted: a forgotten pg_rewind would go on writing
            if process.returncode is None:
                _kill_group(process)
        done = Completed(argv, process.returncode or 0, _content(out), _content(err), time.monotonic() - began)

    if expired:
        raise CommandError(
            f"{program} did not end within {timeout:g} seconds and was killed: {_last_line(done)}; "
            "see what it waits for, or allow it more time",
            argv,
            None,
            done.stdout,
            done.stderr,
        )
    if check and done.rc != 0:
        raise CommandError(
            f"{program} failed with exit code {done.rc}: {_last_line(done)}", argv, done.rc, done.stdout, done.stderr
        )
    return done


@contextlib.contextmanager
def as_account(account: str) -> Iterator[None]:
    """Inside, the effective user and groups are the account's (peer authentication, files only it may read).

    Nothing to do when we are that account already. HotspareError when we are neither it nor root. Changes the whole
    process: not for programs with threads.
    """
    if not _must_switch(account):
        yield
        return
    entry = _entry(account)
    gid, groups = os.getegid(), os.getgroups()
    try:
        os.setgroups(os.getgrouplist(entry.pw_name, entry.pw_gid))
        os.setegid(entry.pw_gid)
        os.seteuid(entry.pw_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def become(account: str) -> None:
    """Make the whole process the account's for good: for one that was forked to work as it. HotspareError as above."""
    if _must_switch(account):
        entry = _entry(account)
        os.setgroups(os.getgrouplist(entry.pw_name, entry.pw_gid))
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)


def write_durably(path: str, text: str, *, mode: int = 0o600, account: str | None = None, follow: bool = True) -> bool:
    """Make `text` (UTF-8) the content of `path`, all or nothing even if the power fails; False if it was already.

    A file that exists keeps its owner and mode, a new one gets `mode` and belongs to `account` (default: to us). A
    symbolic link stays, the file it names is replaced; without `follow` it is an error, as where root writes in the
    directory of another account. HotspareError when it cannot be read or written.
    """
    target = os.path.realpath(path) if follow else path
    # A fixed name, so that a run that was killed leaves one stray file at most, which the next run takes away. It has
    # no .conf at its end: PostgreSQL's include_dir must not read it.
    temporary = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.hotspare-tmp")
    content = text.encode(errors="surrogateescape")  # what was read so is written as it was
    try:
        try:
            # A pipe that an account laid there would keep us for ever.
            reading = os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
            with open(os.open(target, reading), "rb") as file:
                if file.read() == content:
                    return False
                status = os.fstat(file.fileno())
            uid, gid, mode = status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)
        except FileNotFoundError:
            uid, gid = os.geteuid(), os.getegid()
            if account is not None and _must_switch(account):
                uid, gid = _entry(account).pw_uid, _entry(account).pw_gid
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        # O_EXCL: root writes in directories of other accounts, which must not lead it elsewhere by a planted link.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if (uid, gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(temporary, target)
        _sync_directory(target)
    except OSError as error:
        raise _file_error("write", path, error) from error
    return True


def remove_durably(path: str) -> bool:
    """Remove a file (or a symbolic link) so that it stays removed if the power fails; False if there was none."""
    try:
        os.unlink(path)
        _sync_directory(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _file_error("remove", path, error) from error
    return True


def _entry(account: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(account)
    except KeyError:
        raise HotspareError(
            f"there is no account {account} on this host: install PostgreSQL, or name its account with `account`"
        ) from None


def _must_switch(account: str) -> bool:
    """Whether we must become the account, and may: False when we are it, HotspareError when we are not root."""
    if os.geteuid() == _entry(account).pw_uid:
        return False
    if os.geteuid() != 0:
        raise HotspareError(f"this needs root or the account {account}: set `ansible_become: true` for this host")
    return True


def _home(account: str | None) -> dict[str, str]:
    try:
        entry = _entry(account) if account is not None else pwd.getpwuid(os.geteuid())
    except KeyError:  # a user id without a name, as in some containers
        return {"HOME": "/"}
    return {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}


def _memory_file(stack: contextlib.ExitStack, name: str) -> int:
    descriptor = os.memfd_create(name)
    stack.callback(os.close, descriptor)
    return descriptor


def _content(descriptor: int) -> str:
    # pread: a daemon left behind may still write, and shares our file position.
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)


def _last_line(done: Completed) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_error(act: str, path: str, error: OSError) -> HotspareError:
    return HotspareError(f"cannot {act} {path}: {error.strerror}; see that its directory exists and has room")
