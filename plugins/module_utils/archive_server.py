# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a destination does for who ships to it: the forced command of a key, which may do this and nothing else.

Names, numbers and paths come from another host: what becomes part of a path here goes through Archive.place() first.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from typing import IO, Any, Optional

from . import store, tree_server
from .archive import SUFFIXES, Archive, Entry, decoded
from .archive_config import ArchiveConfig, read_archive_config
from .archive_known import expect_none
from .archive_link import digest_of, expect_archive, hello
from .shell import HotspareError
from .version import VERSION
from .wire import PROTOCOL, Broken, Channel, Missing, Payload, Reply, Stream, failure

RECORDS = 200  # in one chunk, where they fit even if each has a path that is as long as a path can be


def serve(config_path: str, stdin: IO[bytes], stdout: IO[bytes], trees: Optional[Collection[str]] = None) -> int:
    """Be the forced command: answer until the other end has gone; the exit code.

    trees: a key of who ships documents opens these trees only, and no WAL; None: all that is here.
    """
    command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    channel = None if command else Channel(stdin.fileno(), stdout.fileno())
    try:
        config = read_archive_config(config_path)
        if trees is not None:
            config = replace(config, trees=tuple(tree for tree in config.trees if tree.name in trees))
        if channel is not None:
            Server(config, channel, OPS if trees is None else TREE_OPS).serve()
            return 0
        if command.startswith("rsync --server "):
            return tree_server.rsync(config, command)
        raise HotspareError(f"this key is for the archive only, not for {command!r}")
    except HotspareError as error:
        sys.stderr.write(f"{error.message}\n")
        if channel is not None:
            with contextlib.suppress(Broken):
                channel.send(failure(error))
    except Broken as error:
        sys.stderr.write(f"the connection broke: {error}\n")
    return 1


class Server:
    """One connection; `payload` is what comes with a request, a handler need not read all of it."""

    def __init__(self, config: ArchiveConfig, channel: Channel, ops: Optional[Operations] = None) -> None:
        self.config = config
        self.archive = Archive(config.directory)
        self.payload: Optional[Payload] = None
        self._channel = channel
        self._ops = OPS if ops is None else ops

    def serve(self) -> None:
        """Answer until the other end has gone; Broken."""
        self._channel.send({"ok": True, "protocol": PROTOCOL, "version": VERSION, "name": self.config.name})
        while (request := self._channel.receive()) is not None:
            self.payload = self._channel.payload() if request.get("payload") else None
            reply = self._reply(request)
            self._read_rest()
            if isinstance(reply, Stream):
                self._channel.send({**reply.facts, "ok": True, "payload": True})
                self._channel.send_payload(reply.chunks)
            else:
                self._channel.send(reply)

    def _reply(self, request: Mapping[str, Any]) -> Reply:
        op = str(request.get("op"))
        try:
            if op in OPS and op not in self._ops:
                raise HotspareError(f"this key is for documents only, not for {op!r}")
            if op not in OPS:
                raise HotspareError(
                    f"hotspare {VERSION} cannot do {op!r}: run site.yml, which brings the same version to all hosts"
                )
            reply = self._ops[op](self, request)
            return reply if isinstance(reply, Stream) else {**reply, "ok": True}
        except HotspareError as error:
            return failure(error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return failure(HotspareError(f"{op} failed: {error!r}; see that all hosts have the same version"))

    def _read_rest(self) -> None:
        """What is on its way still, when a handler failed in the middle: the next request comes behind it."""
        with contextlib.suppress(HotspareError):
            for _chunk in self.payload or ():
                pass


# ---------------------------------------------------------------------------------------------------------------------
# Operations
# ---------------------------------------------------------------------------------------------------------------------


def _hello(server: Server, request: Mapping[str, Any]) -> Reply:
    return hello(server.config.name, server.archive)


def _put(server: Server, request: Mapping[str, Any]) -> Reply:
    """Payload: the file as `sent` says, to be stored as `encoding` does; trailer: the sha256 of its content.

    vacant: an archive may be founded.
    """
    if server.payload is None:
        raise HotspareError("a file to put has to come with the request")
    if request.get("vacant") is not True:
        expect_archive(server.archive)
    elif server.archive.identity() is None:
        expect_none(server.config.node, server.config.name, server.config.directory)
    sent, encoding = str(request["sent"]), str(request["encoding"])
    if sent not in (encoding, "zstd"):
        raise HotspareError(f"a file that is sent as {sent!r} cannot be stored as {encoding!r}: run site.yml")
    receiving = server.archive.receive(
        str(request["name"]),
        encoding=encoding,
        system_identifier=int(request["system_identifier"]),
        segment_size=int(request["segment_size"]),
    )
    with receiving:
        for chunk in server.payload if sent == encoding else decoded(iter(server.payload), sent):
            receiving.write(chunk)
        return asdict(receiving.commit(str(server.payload.trailer["sha256"])))


def _has(server: Server, request: Mapping[str, Any]) -> Reply:
    found = (server.archive.has(str(name)) for name in request["names"])
    return Stream(_chunks(_record(entry) for entry in found if entry is not None))


def _digest(server: Server, request: Mapping[str, Any]) -> Reply:
    """Each by itself, so that the other end sees that we are at work."""
    names = map(str, request["names"])
    return Stream(_chunks(((name, *astuple(digest_of(server.archive, name))) for name in names), 1))


def _names(server: Server, request: Mapping[str, Any]) -> Reply:
    return Stream(_chunks(map(_record, server.archive.inventory())))


def _get(server: Server, request: Mapping[str, Any]) -> Reply:
    """As it is stored: who asks decompresses."""
    name = str(request["name"])
    path = server.archive.find(name)
    if path is None:
        raise Missing(f"it has no {name}")
    return Stream(_stored(path), {"encoding": "zstd" if path.endswith(SUFFIXES["zstd"]) else "none"})


def _remove(server: Server, request: Mapping[str, Any]) -> Reply:
    if server.config.keep is None:
        raise HotspareError("archive_keep of that host does not let anything be removed: set it and run site.yml")
    return Stream(_chunks(server.archive.remove(map(str, request["names"]))))


def _conflicts(server: Server, request: Mapping[str, Any]) -> Reply:
    return Stream(_chunks(server.archive.conflicts()))


Operations = Mapping[str, Callable[[Server, Mapping[str, Any]], Reply]]

TREE_OPS: Operations = {"hello": _hello, **tree_server.OPS}
OPS: Operations = {
    "hello": _hello,
    "put": _put,
    "has": _has,
    "digest": _digest,
    "names": _names,
    "get": _get,
    "remove": _remove,
    "conflicts": _conflicts,
    **tree_server.OPS,
}


def _record(entry: Entry) -> Sequence[Any]:
    return entry.name, entry.stored_bytes, entry.mtime


def _chunks(records: Iterable[Any], size: int = RECORDS) -> Iterator[bytes]:
    """Records as JSON lists, some in each chunk."""
    left = iter(records)
    while batch := list(itertools.islice(left, size)):
        yield json.dumps(batch).encode()


def _stored(path: str) -> Iterator[bytes]:
    try:
        yield from store.chunks(path)
    except OSError as error:
        raise HotspareError(f"cannot read {path}: {error.strerror}; see its file system") from error
