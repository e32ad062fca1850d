# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role archive writes for a node or an archive host: where WAL and documents come from and go to.

The same file is read at both ends: by who ships, and by the forced command that receives. It holds no secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .config_file import read_config_file
from .document_tree import require_pattern
from .peers import Peer
from .server import Instance
from .shell import HotspareError

COMPRESSIONS = ("none", "zstd")
REQUIRE = ("one", "all")

# A word of an ssh command or a part of a path: it is never taken for an option, nor for a way out of a directory.
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")


@dataclass(frozen=True)
class Place:
    """A destination: either a host reached by ssh, or a `directory` of this one, such as a mounted NAS."""

    name: str
    host: str = ""
    port: int = 22
    account: str = ""
    identity: str = ""
    known_hosts: str = ""
    directory: str = ""

    def __post_init__(self) -> None:
        _word("name", self.name)
        if self.directory:
            _absolute("directory", self.directory)
            if self.host:
                raise ValueError(f"{self.name} has both a host and a directory")
            return
        if not isinstance(self.host, str) or not _HOST.fullmatch(self.host):
            raise ValueError(f"the host of {self.name} is {self.host!r}")
        _number(f"the port of {self.name}", self.port)
        if not 0 < self.port < 65536:
            raise ValueError(f"the port of {self.name} is {self.port}")
        _word("account", self.account)
        _absolute("identity", self.identity)
        _absolute("known_hosts", self.known_hosts)

    def __str__(self) -> str:
        return f"{self.name} ({self.directory or f'{self.account}@{self.host} port {self.port}'})"


@dataclass(frozen=True)
class TreePlace(Place):
    """A host that holds a copy of a tree, in `path`."""

    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directory:
            raise ValueError(f"{self.name} is a directory, and trees go to hosts only")
        _absolute("path", self.path)


@dataclass(frozen=True)
class Tree:
    """A document tree; `partition` is the strftime() pattern of a day's folder, empty = it has none.

    `grace` (s): how long a day goes on after midnight. `skip`: weekdays without documents, Monday = 0.
    """

    name: str
    path: str
    account: str
    partition: str = ""
    grace: float = 7200
    skip: tuple[int, ...] = ()
    destinations: tuple[TreePlace, ...] = ()

    def __post_init__(self) -> None:
        _word("name", self.name)
        _absolute("path", self.path)
        _word("account", self.account)
        require_pattern(self.partition)
        _unique("destinations", (place.name for place in self.destinations))
        _number(f"the grace of the tree {self.name}", self.grace, whole=False)
        if self.grace < 0 or not set(self.skip) <= set(range(7)):
            raise ValueError(
                f"the tree {self.name} has a grace of {self.grace} s and skips {list(self.skip)}: take 0 s or more, and"
                " days from 0 (Monday) to 6"
            )


@dataclass(frozen=True)
class Keep:
    """What retention leaves at least: a window of `days`, the newest `segments` and `backups`; None = not said."""

    days: Optional[float] = None
    segments: Optional[int] = None
    backups: Optional[int] = None

    def __post_init__(self) -> None:
        said = {name: value for name, value in vars(self).items() if value is not None}
        if not said:
            raise ValueError("keep says nothing: give it days, segments or backups, or leave it empty")
        for name, value in said.items():
            _number(f"{name} of keep", value, whole=name != "days")
            if value <= 0:
                raise ValueError(f"keep has {name}: {value}, which keeps nothing: take more, or leave it out")


@dataclass(frozen=True)
class ArchiveConfig:
    """`node` is None on an archive host; `keep` None: nothing is ever pruned.

    state: where the account of each tree has a place. Not in the archive of a node: the server's account could lead it
    astray there. Empty on an archive host, where all belongs to one account.
    """

    name: str
    cluster: str
    node: Optional[Instance]
    peers: tuple[Peer, ...]
    directory: str
    compression: str
    require: str
    program: str
    run: str
    spool: str
    fetch_ahead: int
    destinations: tuple[Place, ...]
    keep: Optional[Keep]
    trees: tuple[Tree, ...]
    state: str = ""

    def __post_init__(self) -> None:
        _word("name", self.name)
        _word("cluster", self.cluster)
        for what in ("directory", "program", "run", "spool"):
            _absolute(what, getattr(self, what))
        if self.state:
            _absolute("state", self.state)
        _one_of("compression", self.compression, COMPRESSIONS)
        _one_of("require", self.require, REQUIRE)
        _number("fetch_ahead", self.fetch_ahead)
        if self.fetch_ahead < 0:
            raise ValueError(f"fetch_ahead is {self.fetch_ahead}: take 0 or more")
        _unique("destinations", (self.name, *(place.name for place in self.destinations)))
        _unique("trees", (tree.name for tree in self.trees))

    @property
    def socket(self) -> str:
        """Where the shipper listens."""
        return os.path.join(self.run, "socket")

    @property
    def status_file(self) -> str:
        """What the shipper writes about itself."""
        return os.path.join(self.run, "status.json")

    @property
    def homes(self) -> str:
        """Where tree_files.Home has what is known of the trees."""
        return self.state or self.directory

    @property
    def own(self) -> Place:
        """The archive of this host itself."""
        return Place(self.name, directory=self.directory)

    def tree(self, name: str) -> Tree:
        """HotspareError when there is none."""
        for tree in self.trees:
            if tree.name == name:
                return tree
        raise HotspareError(f"{self.name} has no tree {name!r}: see archive_trees, and run site.yml")


def read_archive_config(path: str) -> ArchiveConfig:
    """HotspareError when it is not there or not one of ours."""
    return read_config_file(path, "archive", parse_archive_config)


def parse_archive_config(found: Mapping[str, Any]) -> ArchiveConfig:
    """From the JSON; ValueError, KeyError, TypeError or AttributeError when it is not one of ours. (Pure.)"""
    simple = ("name", "cluster", "directory", "compression", "require", "program", "run", "spool", "fetch_ahead")
    return ArchiveConfig(
        **{key: found[key] for key in simple},
        node=Instance(**found["node"]) if found["node"] else None,
        peers=tuple(Peer(**peer) for peer in found["peers"]),
        destinations=tuple(Place(**place) for place in found["destinations"]),
        keep=Keep(**found["keep"]) if found["keep"] else None,
        trees=tuple(_tree(tree) for tree in found["trees"]),
        state=found.get("state", ""),
    )


def mistake(found: Mapping[str, Any]) -> str:
    """Why it is none of ours, a sentence; empty = it is one. (Pure.)"""
    try:
        parse_archive_config(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return ""


def _tree(found: Mapping[str, Any]) -> Tree:
    return Tree(
        **{
            **found,
            "skip": tuple(found.get("skip", ())),
            "destinations": tuple(TreePlace(**place) for place in found.get("destinations", ())),
        }
    )


def _word(what: str, value: str) -> None:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"{what} is {value!r}, which is no plain word: use letters, digits, and in between _ . -")


def _absolute(what: str, value: str) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"/[^/\0][^\0]*", value) or os.path.normpath(value) != value:
        raise ValueError(f"{what} is {value!r}, which is no absolute path")


def _number(what: str, value: object, whole: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"{what} is {value!r}, which is no {'whole ' if whole else ''}number")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} is {value!r}, which is none of {', '.join(known)}")


def _unique(what: str, names: Iterable[str]) -> None:
    seen = list(names)
    if len(seen) != len(set(seen)):
        raise ValueError(f"{what} has a name twice: {', '.join(sorted(seen))}")
