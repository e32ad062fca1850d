# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node sees of the other nodes: real replication connections, all at once, within a bound.

pg_hba.conf, the passfile, the address and the network are all right if, and only if, the connection is made that a
standby will make. Manual: "Streaming Replication Protocol" (IDENTIFY_SYSTEM, SHOW).
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .server import as_client, connect_failed

ASK_SECONDS = 2.0
READ_ONLY = ("transaction_read_only", "default_transaction_read_only")
# libpq's words for what the kernel says of a host that is not there.
GONE = re.compile(r"No route to host|Network is unreachable|Host is down|Connection timed out|timeout expired")


@dataclass(frozen=True)
class Peer:
    """Another node, and how this one reaches it."""

    name: str
    host: str
    port: int = 5432
    user: str | None = None
    passfile: str | None = None

    @property
    def where(self) -> str:
        return f"PostgreSQL of {self.name} at {self.host} port {self.port}"

    def parameters(self, timeout: float) -> dict[str, Any]:
        """libpq's; the replication connection that pg_hba.conf has to allow."""
        given = {"host": self.host, "port": self.port, "user": self.user, "passfile": self.passfile}
        return {
            **{key: value for key, value in given.items() if value is not None},
            "dbname": "replication",
            "replication": "true",
            "application_name": "hotspare",
            "connect_timeout": max(2, round(timeout)),
            "options": f"-c statement_timeout={round(timeout * 1000)}",
        }


def peers_from_params(params: Sequence[Mapping[str, Any]] | None) -> list[Peer] | None:
    """From the option `peers` of the module pg_replication_state; None when it is not given."""
    names = ("name", "host", "port", "user", "passfile")  # Ansible leaves the alias of one beside it
    return None if params is None else [Peer(**{name: given[name] for name in names}) for given in params]


def ask(peers: Sequence[Peer], account: str, timeout: float = ASK_SECONDS) -> list[dict[str, Any]]:
    """Ask all of them, as `account`, for at most `timeout` seconds together; one record for each, in their order.

    answer: primary or standby; refused (the host says that nobody listens); silent (no answer in time, or no way
    there); auth (pg_hba.conf or the password); unknown (anything else, such as a server that is starting up or
    shutting down). system_identifier (text) and timeline are None unless it answered, seconds is how long that took.
    """
    found: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    try:
        with as_client(account):
            running = {peer.name: _Question(peer, timeout) for peer in peers}
            while running:
                for name, question in list(running.items()):
                    if question.step():
                        found[name] = {**question.found, "seconds": round(time.monotonic() - began, 3)}
                        del running[name]
                left = began + timeout - time.monotonic()
                if left <= 0:
                    break
                _wait(list(running.values()), left)
            for question in running.values():
                question.close()
    except ImportError:
        nobody = "this node has no psycopg2 to ask it with: install python3-psycopg2"
        return [{**_blank(peer), "detail": nobody} for peer in peers]
    silence = {"answer": "silent", "detail": f"it did not answer within {timeout:g} s"}
    return [found.get(peer.name) or {**_blank(peer), **silence, "seconds": round(timeout, 3)} for peer in peers]


def _blank(peer: Peer) -> dict[str, Any]:
    return {
        "name": peer.name,
        "host": peer.host,
        "port": peer.port,
        "answer": "unknown",
        "detail": None,
        "system_identifier": None,
        "timeline": None,
        "seconds": None,
    }


def role_said(settings: Mapping[str, str]) -> str:
    """primary, standby or unknown, by in_hot_standby (PostgreSQL 14 and later) or by READ_ONLY.

    In recovery every transaction is read-only, whatever the default is; where the default says so too, nobody knows.
    """
    if "in_hot_standby" in settings:
        return "standby" if settings["in_hot_standby"] == "on" else "primary"
    transaction, default = (settings[name] for name in READ_ONLY)
    if transaction == "off":
        return "primary"
    return "standby" if default == "off" else "unknown"


def _wait(questions: Sequence[_Question], left: float) -> None:
    reading = [q.connection for q in questions if q.wanted == "read"]
    writing = [q.connection for q in questions if q.wanted == "write"]
    if reading or writing:
        select.select(reading, writing, [], left)


class _Question:
    """One peer being asked: never blocks, `step` goes as far as it can."""

    def __init__(self, peer: Peer, timeout: float) -> None:
        self.peer = peer
        self.found = _blank(peer)
        self.wanted = ""
        self.connection: Any = None
        self._talk = self._talking(peer.parameters(timeout))

    def step(self) -> bool:
        """Whether it is answered, or never will be."""
        import psycopg2

        try:
            self.wanted = next(self._talk)
            return False
        except StopIteration:
            pass
        except (psycopg2.Error, UnicodeDecodeError) as error:  # the latter: a message in the server's own encoding
            self.found.update(_failure(self.peer, error))
        self.close()
        return True

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def _talking(self, parameters: Mapping[str, Any]) -> Generator[str, None, None]:
        import psycopg2

        self.connection = psycopg2.connect(**parameters, async_=True)
        yield from self._until_ready()
        cursor = self.connection.cursor()
        said: dict[str, Any] = {}
        # Only 14 and later say it outright.
        names = ["in_hot_standby"] if self.connection.server_version >= 140000 else list(READ_ONLY)
        for command in ("IDENTIFY_SYSTEM", *[f"SHOW {name}" for name in names]):
            cursor.execute(command)
            yield from self._until_ready()
            said[command.removeprefix("SHOW ")] = cursor.fetchone()
        identifier, timeline = said.pop("IDENTIFY_SYSTEM")[:2]
        answer = role_said({name: row[0] for name, row in said.items()})
        self.found.update(
            answer=answer,
            detail=f"it answers as a {answer}"
            if answer != "unknown"
            else "it is read-only, as a standby or by its default",
            system_identifier=str(identifier),
            timeline=int(timeline),
        )

    def _until_ready(self) -> Generator[str, None, None]:
        from psycopg2 import extensions

        while True:
            state = self.connection.poll()
            if state == extensions.POLL_OK:
                return
            yield "read" if state == extensions.POLL_READ else "write"


def _failure(peer: Peer, error: Exception) -> dict[str, Any]:
    failed = connect_failed(peer.where, error)
    answers = {"refused": "refused", "timeout": "silent", "auth": "auth"}
    answer = answers.get(failed.kind, "silent" if GONE.search(str(error)) else "unknown")
    return {"answer": answer, "detail": failed.message}
