# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a destination does for who ships documents to it: tells what it holds, and takes what it lacks.

rsync brings documents into a staging directory of the tree, .hotspare-incoming/SOURCE. From there they are linked to
their places when their content is what was announced, and never over another file. What differs from what is there
goes to .hotspare-conflicts/PATH/SHA256. Names come from another host, so each one goes through `parse_line`, and no
folder is entered through a link.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import pwd
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Optional

from .archive_config import ArchiveConfig, Tree
from .document_tree import (
    Entry,
    escaped,
    joined,
    line,
    link_stays,
    look,
    parse_line,
    parse_manifest,
    require_inside,
    unescaped,
)
from .shell import PATH, HotspareError
from .store import Full
from .tree_files import (
    EVIDENCE,
    STAGING,
    UNREADABLE,
    WRITE,
    Damaged,
    Home,
    Spool,
    broken,
    content,
    days,
    is_copy,
    make_copy,
    make_durable,
    place,
    walk,
)
from .wire import Reply, Stream

LOCK_SECONDS = 60  # another source is given that long to have its batch taken
RSYNC = "/usr/bin/rsync"
LINES = 1000  # in one chunk
FILE_MODE, FOLDER_MODE = 0o777, 0o2777  # what another host may say of modes here
NAMES = 100  # told of what a day lacks
_SOURCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Modes, times, whole paths; and what both ends can do. Not --inplace: after a crash what is staged may have its name
# already, and only what is renamed over it leaves that alone.
_FLAGS = re.compile(r"-[OptR]+(e[A-Za-z0-9.]*)?")


class Copy:
    """A tree of this host, as a request names it; Unreachable when it is not mounted, HotspareError when not ours."""

    def __init__(self, config: ArchiveConfig, name: str) -> None:
        self.tree: Tree = config.tree(name)
        self.root = os.fsencode(self.tree.path)
        self.home = Home(config.homes, name)
        account = pwd.getpwuid(os.geteuid()).pw_name
        if account != self.tree.account:
            raise HotspareError(
                f"the tree {name} of {config.name} belongs to {self.tree.account}, not to {account}: see archive_trees"
            )
        self.home.require(self.root)
        # A node says itself what it is, by its timer; an archive host is never a primary.
        self.read_only = config.node is None or os.path.exists(self.home.modes)
        self._plain: set[bytes] = set()  # folders that are not behind a link

    def listing(self, partition: str) -> Iterator[Entry]:
        """What a day's folder holds; "" is all that is in none. HotspareError, also for what may not be read."""
        if not partition:
            return walk(self.root, leave=days(self.root, self.tree.partition), refuse=self._unreadable)
        return walk(self.root, require_inside(unescaped(partition)), refuse=self._unreadable)

    def staging(self, source: str) -> bytes:
        """Where rsync brings what `source` ships."""
        if not _SOURCE.fullmatch(source):
            raise HotspareError(f"{source!r} is not the name of a node or an archive host")
        return place(self.root, os.path.join(STAGING, source.encode()))

    def path(self, entry: Entry) -> bytes:
        return place(self.root, entry.path)

    def evidence(self, entry: Entry) -> bytes:
        """Where content lies whose place is taken by other content; relative to the top."""
        return os.path.join(EVIDENCE, entry.path, entry.sha256.encode())

    def holds(self, entry: Entry) -> Optional[bool]:
        """Whether a document is there with this content, which is read; None when nothing is in its place."""
        try:
            self.require_no_link(os.path.dirname(entry.path))
            status = os.lstat(self.path(entry))
            if (status.st_size, stat.S_IFMT(status.st_mode)) != (entry.size, stat.S_IFMT(entry.mode)):
                return False
            return content(self.path(entry)) == entry.sha256
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return False
        except OSError as error:
            raise broken(self.root, entry.path, error) from error

    def require_no_link(self, folder: bytes) -> None:
        """NotADirectoryError when a part of its path is a link."""
        if folder not in self._plain:
            real = os.path.realpath(place(self.root, folder))
            if real != os.path.normpath(place(os.path.realpath(self.root), folder)):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
            self._plain.add(folder)

    def _unreadable(self, path: bytes, reason: str) -> None:
        if reason == UNREADABLE:
            raise HotspareError(f"{escaped(place(self.root, path))} {reason}: give it to {self.tree.account}")


class Opened:
    """Folders of a tree that are written to for a while, made where they are missing; then they are what they were.

    `modes` are those that new folders have on the original. In a read-only copy none keeps its write bits.
    """

    def __init__(self, copy: Copy, modes: Mapping[bytes, int]) -> None:
        self._copy, self._root, self._modes = copy, copy.root, modes
        self._after: dict[bytes, Optional[int]] = {}

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for folder, mode in reversed(self._after.items()):
            if mode is not None:
                os.chmod(place(self._root, folder), mode)

    def open(self, folder: bytes) -> None:
        """NotADirectoryError when something else is in its place."""
        if folder in self._after:
            return
        if folder:
            self.open(b"")  # last to be closed: where a crash left it open, it is seen that more may be
        try:
            self._copy.require_no_link(folder)
            mode = now = stat.S_IMODE(self._mode(folder))
            if not now & stat.S_IWUSR:
                now |= stat.S_IRWXU
                os.chmod(place(self._root, folder), now)
        except FileNotFoundError:
            self.open(os.path.dirname(folder))
            mode, now = self._modes.get(folder, 0o755), 0o700
            os.mkdir(place(self._root, folder), now)
        after = mode & ~WRITE if self._copy.read_only else mode
        self._after[folder] = after if after != now else None

    def _mode(self, folder: bytes) -> int:
        mode = os.lstat(place(self._root, folder)).st_mode
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
        return mode


# ---------------------------------------------------------------------------------------------------------------------
# Transfer
# ---------------------------------------------------------------------------------------------------------------------


def rsync(config: ArchiveConfig, command: str) -> NoReturn:
    """Become the receiving rsync of a staging directory, as SSH_ORIGINAL_COMMAND wants it; HotspareError."""
    argv, copy, staging = receiver(config, command)
    with _explained(copy), copy.home.lock("accept", LOCK_SECONDS), Opened(copy, {}) as folders:
        folders.open(b"")
        os.makedirs(staging, mode=0o700, exist_ok=True)
    os.umask(0o077)
    try:
        os.execve(RSYNC, argv, {"PATH": PATH, "LC_ALL": "C"})
    except OSError as error:
        raise HotspareError(f"cannot run {RSYNC} on {config.name}: {error.strerror}; install rsync there") from error


def receiver(config: ArchiveConfig, command: str) -> tuple[list[str], Copy, bytes]:
    """What to run for `rsync ... HOST:TREE/SOURCE`; it may receive files and folders there, and nothing else."""
    words = command.split(" ")
    flags, target = words[2:-2], "".join(words[-1:])
    allowed = [word for word in flags if _FLAGS.fullmatch(word) or word == "--partial"]
    name, _slash, source = target.partition("/")
    if words[:2] != ["rsync", "--server"] or words[-2:-1] != ["."] or flags != allowed or not source:
        raise HotspareError(f"{command!r} is not the rsync of a document tree: run site.yml, which updates all hosts")
    copy = Copy(config, name)
    staging = copy.staging(source)
    return ["rsync", "--server", *flags, ".", os.fsdecode(staging)], copy, staging


# ---------------------------------------------------------------------------------------------------------------------
# Operations: each names a `tree`; entries are lines of a listing
# ---------------------------------------------------------------------------------------------------------------------


def _look(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """The digest of the listing of a `partition`."""
    return {"look": look(copy.listing(str(request["partition"])))}


def _list(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """The listing of a `partition`."""
    return Stream(_chunks(map(line, copy.listing(str(request["partition"])))))


def _compare(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """What each of the `entries` is here: missing, same, different, or kept (as different before).

    With `adjust` the time of what is the same becomes that of the source, so that it is the same at a glance.
    """
    return {"states": [_state(copy, entry, bool(request["adjust"])) for entry in map(parse_line, request["entries"])]}


def _accept(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """Take the `entries` that `source` has staged: new, same, different (and kept), or changed (not as announced).

    `targets` of links and modes of `folders` by path. What is told is durable.
    """
    entries = [parse_line(text) for text in request["entries"]]
    targets = {require_inside(unescaped(path)): unescaped(target) for path, target in request["targets"].items()}
    modes = {require_inside(unescaped(path)): int(mode) & FOLDER_MODE for path, mode in request["folders"].items()}
    staging = copy.staging(str(request["source"]))
    with _explained(copy), copy.home.lock("accept", LOCK_SECONDS):
        if copy.read_only and not is_copy(copy.root, copy.home):
            make_copy(copy.root, copy.home, lambda path, reason: None)
        arrived = [entry for entry in entries if _has_arrived(staging, entry, targets)]
        if copy.read_only:
            new = [(mode, path) for path, mode in modes.items() if not os.path.exists(place(copy.root, path))]
            files = [(entry.mode & FILE_MODE, entry.path) for entry in arrived if entry.mode & WRITE]
            copy.home.note_modes([*new, *files])
        for entry in arrived:
            if not stat.S_ISLNK(entry.mode):
                path = os.path.join(staging, entry.path)
                _set_time(path, entry)
                os.chmod(path, entry.mode & FILE_MODE & ~(WRITE if copy.read_only else 0))
        make_durable(copy.root)  # content, before it has its names
        with Opened(copy, modes) as folders:
            folders.open(b"")
            copy.home.mark(copy.root)
            outcomes = {entry.path: _store(copy, staging, entry, targets, folders) for entry in arrived}
        make_durable(copy.root)
    return {"outcomes": [outcomes.get(entry.path, "changed") for entry in entries]}


def _room(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """What is free for documents, in bytes."""
    found = os.statvfs(copy.root)
    return {"free_bytes": found.f_bavail * found.f_frsize}


def _manifests(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """The sealed days: SHA-256 and partition of each."""
    # What is damaged is told when the day is to be sealed again.
    heads = copy.home.manifests(lambda said: None)
    return Stream(_chunks(f"{head.sha256} {name}\n" for name, head in sorted(heads.items())))


def _seal(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """Take the manifest of a `partition` (payload), if all that it names is here: it is read for that.

    Nor may it contradict the one that is here. Else `lacking` says what keeps it from that.
    """
    partition = str(request["partition"])
    require_inside(unescaped(partition))
    with Spool() as text, Spool() as entries, copy.home.lock("accept", LOCK_SECONDS):
        for chunk in payload:
            text.add(chunk)
        lacking = []
        try:
            for entry, before in joined(parse_manifest(text.lines()), copy.home.sealed(partition)):
                if before is not None and not (entry is not None and entry.same_content(before)):
                    lacking.append(f"{escaped(before.path)} is another one in the manifest that is there")
                elif entry is not None and not copy.holds(entry):
                    lacking.append(f"{escaped(entry.path)} is not there as it was sealed")
                elif entry is not None:
                    entries.add(line(entry).encode())
        except Damaged as error:
            lacking.append(error.message)
        if not lacking:
            copy.home.seal(partition, entries)
    return {"sealed": not lacking, "lacking": len(lacking), "names": lacking[:NAMES]}


def _finish(copy: Copy, request: Mapping[str, Any], payload: Iterable[bytes]) -> Reply:
    """The end of a run of `source`, which shipped all it had at `complete` (or null): what is left over goes."""
    source = str(request["source"])
    with _explained(copy), copy.home.lock("accept", LOCK_SECONDS):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(copy.staging(source))
        if request["complete"]:
            copy.home.note_complete(source, str(request["complete"]))
    return {}


def _handler(
    act: Callable[[Copy, Mapping[str, Any], Iterable[bytes]], Reply],
) -> Callable[[Any, Mapping[str, Any]], Reply]:
    def handle(server: Any, request: Mapping[str, Any]) -> Reply:
        return act(Copy(server.config, str(request["tree"])), request, server.payload or ())

    return handle


OPS = {
    f"tree_{name}": _handler(act)
    for name, act in {
        "look": _look,
        "list": _list,
        "compare": _compare,
        "accept": _accept,
        "room": _room,
        "manifests": _manifests,
        "seal": _seal,
        "finish": _finish,
    }.items()
}


def _state(copy: Copy, entry: Entry, adjust: bool) -> str:
    held = copy.holds(entry)
    if held is None:
        return "missing"
    if held:
        if adjust and copy.read_only:
            _set_time(copy.path(entry), entry)
        return "same"
    return "kept" if os.path.lexists(place(copy.root, copy.evidence(entry))) else "different"


def _has_arrived(staging: bytes, entry: Entry, targets: Mapping[bytes, bytes]) -> bool:
    """Whether what is staged, or the target of a link, is what was announced; what is not goes."""
    if stat.S_ISLNK(entry.mode):
        target = targets.get(entry.path)
        if target is not None and not link_stays(entry.path, target):
            raise HotspareError(f"the link {escaped(entry.path)} leads out of the tree: it is not taken")
        return target is not None and hashlib.sha256(target).hexdigest() == entry.sha256
    path = os.path.join(staging, entry.path)
    try:
        if stat.S_ISREG(os.lstat(path).st_mode) and content(path) == entry.sha256:
            return True
        os.unlink(path)
    except IsADirectoryError:  # of a run that died before there was a document of that name
        shutil.rmtree(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return False


def _set_time(path: bytes, entry: Entry) -> None:
    os.utime(path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)


def _store(copy: Copy, staging: bytes, entry: Entry, targets: Mapping[bytes, bytes], folders: Opened) -> str:
    """Give what is staged its name; what happened. A link is made here: an rsync that may bring links may bring any."""
    staged = os.path.join(staging, entry.path)
    is_link = stat.S_ISLNK(entry.mode)

    def name(path: bytes) -> None:
        if is_link:
            os.symlink(targets[entry.path], path)
            _set_time(path, entry)
        else:
            os.link(staged, path, follow_symlinks=False)

    try:
        folders.open(os.path.dirname(entry.path))
        name(copy.path(entry))
        outcome = "new"
    except (FileExistsError, NotADirectoryError):
        outcome = "same" if copy.holds(entry) else "different"
        if outcome == "different":
            folders.open(os.path.dirname(copy.evidence(entry)))
            with contextlib.suppress(FileExistsError):
                name(place(copy.root, copy.evidence(entry)))
    if not is_link:
        os.unlink(staged)
    return outcome


def _chunks(lines: Iterable[str]) -> Iterator[bytes]:
    left = iter(lines)
    while batch := list(itertools.islice(left, LINES)):
        yield "".join(batch).encode()


@contextlib.contextmanager
def _explained(copy: Copy) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = escaped(os.fsencode(error.filename)) if error.filename else copy.tree.path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Full(f"no room for {where} ({error.strerror}): make some; it is sent again") from error
        raise HotspareError(
            f"cannot store {where}: {error.strerror}; see that {copy.tree.account} owns what is in {copy.tree.path}, "
            "and that its file system has hard links"
        ) from error
