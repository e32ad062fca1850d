# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a node follows, as text: libpq's connection strings, the passfile, and lines of postgresql.conf. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .shell import HotspareError


@dataclass(frozen=True)
class Upstream:
    """Where a standby streams from; never with a password, which stays in `passfile`."""

    host: str
    port: int = 5432
    user: str | None = None
    application_name: str | None = None
    slot: str | None = None
    passfile: str | None = None
    dbname: str | None = None  # needed by slot synchronisation (17+)
    extra: dict[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, str]:
        """libpq's keywords and values, without the empty ones."""
        named = ("host", "port", "user", "passfile", "dbname", "application_name")
        values = {name: getattr(self, name) for name in named}
        values.update(self.extra)
        values.pop("password", None)
        return {name: str(value) for name, value in values.items() if value not in (None, "")}

    def conninfo(self) -> str:
        """For primary_conninfo. PostgreSQL manual, 34.1.1.1 Keyword/Value Connection Strings."""
        return " ".join(f"{name}={_quote_conninfo(value)}" for name, value in self.parameters().items())

    @classmethod
    def from_conninfo(cls, conninfo: str, slot: str | None = None) -> Upstream:
        """Read a conninfo (either form; its password is dropped); ValueError when it is none."""
        values = parse_conninfo(conninfo)
        values.pop("password", None)
        port = values.pop("port", "5432")
        if not port.isdigit():
            raise ValueError(f"port {port!r} of a connection string is no number")
        named = {name: values.pop(name, None) for name in ("user", "application_name", "passfile", "dbname")}
        return cls(host=values.pop("host", ""), port=int(port), slot=slot or None, extra=values, **named)


def upstream_from_params(params: Mapping[str, Any]) -> Upstream:
    """From the option `upstream` of a module; HotspareError for what cannot be meant."""
    given = dict(params)
    extra = {name: str(value) for name, value in given.pop("parameters").items()}
    forbidden = sorted({"password", *given} & set(extra))
    if forbidden:
        raise HotspareError(
            f"upstream.parameters must not have {', '.join(forbidden)}: a password belongs in a file named by "
            "upstream.passfile, the others have options of their own"
        )
    return Upstream(**given, extra=extra)


def parse_conninfo(conninfo: str) -> dict[str, str]:
    """libpq's connection string, as keywords or as a URI, to its parts; ValueError. PostgreSQL manual, 34.1.1."""
    if re.match(r"postgres(ql)?://", conninfo):
        uri = urlsplit(conninfo)
        named = {"host": uri.hostname, "port": uri.port, "user": uri.username, "password": uri.password}
        named["dbname"] = uri.path.lstrip("/")
        values = {name: unquote(str(value)) for name, value in named.items() if value}
        return {**values, **dict(parse_qsl(uri.query, keep_blank_values=True))}
    pair = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'(?=\s|$)|((?!')(?:[^\s\\]|\\.)*))", re.DOTALL)
    values, position, text = {}, 0, conninfo.rstrip()
    while position < len(text):
        match = pair.match(text, position)
        if match is None:
            raise ValueError(f"a connection string is not understood from its character {position + 1} on")
        quoted, plain = match.group(2), match.group(3)
        values[match.group(1)] = re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL)
        position = match.end()
    return values


def passfile_entry(host: str, port: int | str, user: str, password: str, database: str = "*") -> str:
    """One line of a passfile; ValueError for what it cannot hold. PostgreSQL manual, 34.16 The Password File."""
    fields = [host, str(port), database, user, password]
    if any(re.search(r"[\n\r\0]", value) for value in fields):
        raise ValueError("a passfile cannot hold a line break or a NUL: choose another password or name")
    return ":".join(value.replace("\\", "\\\\").replace(":", "\\:") for value in fields) + "\n"


def without_settings(text: str, names: tuple[str, ...]) -> str:
    """A configuration file without the lines that set one of `names`; all other lines as they were."""
    setting = re.compile(rf"\s*(?:{'|'.join(names)})(?:\s|=)", re.IGNORECASE)
    return "".join(line for line in re.split(r"(?<=\n)", text) if not setting.match(line))


def quote_setting(value: str) -> str:
    """A string for postgresql.conf; ValueError for NUL. PostgreSQL manual, 20.1.2."""
    if "\0" in value:
        raise ValueError("a setting cannot hold a NUL")
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _quote_conninfo(value: str) -> str:
    if re.fullmatch(r"[\w./:@%+,~-]+", value, re.ASCII):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
