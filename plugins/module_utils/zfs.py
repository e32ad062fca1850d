# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The zfs and zpool commands of one host, this one or another at the end of ssh, and what they tell, as records.

Sizes are in bytes. Man pages are those of OpenZFS 2.3. What runs here destroys nothing by itself: zfs_plan.py decides.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Optional

from . import ssh
from .lasting_shell import LastingShell, Lost, parts, script
from .shell import PATH, Completed, HotspareError

OLDEST = (2, 1)  # of OpenZFS: what Debian 11 has from its backports
MADE = "hotspare:made"  # of a snapshot: the prefix under which it was made or received, a slash, and its moment
LABEL = "hotspare:label"  # of a snapshot of a running server: its backup label, as zfs_layout.Label writes it
FROM = "hotspare:from"  # of a received dataset: the GUID of the dataset it comes from
FLAGS = "hotspare:flags"  # of a received dataset: the flags of its chain, which must not change

# zfsprops(7). Those of a dataset that a decision needs; what is copied comes on top.
DATASET_PROPERTIES = (
    "type,guid,createtxg,origin,mounted,mountpoint,canmount,encryption,keystatus,receive_resume_token,referenced,"
    "available,written,compression"
).split(",")
SNAPSHOT_PROPERTIES = "guid,createtxg,creation,userrefs,clones".split(",")
SNAPSHOT_NAMES = ",".join([*SNAPSHOT_PROPERTIES, MADE, LABEL])
# Of datasets that come from another host: what its root has put there is no program of root here, and no device.
HARMLESS = {"setuid": "off", "devices": "off"}
BATCH = 200  # names in one command line
LOOK_SECONDS = 600.0  # until a pool with very many snapshots, or one that resilvers, has told of them
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*")
SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
# Over ssh too, where the shell of an account that is not root does not look in sbin.
ENVIRONMENT = ("env", f"PATH={PATH}", "LC_ALL=C")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, or a bookmark (`dataset#name`). `made`: the prefix under which we made it, if we did; `moment`: what
    those that were made at once have in common, their copies too, of which each has a createtxg of its own."""

    dataset: str
    name: str
    guid: str
    createtxg: int
    creation: int = 0  # seconds since 1970
    userrefs: int = 0
    holds: frozenset[str] = frozenset()
    cloned: bool = False
    made: str = ""
    moment: str = ""
    bookmark: bool = False
    label: str = ""

    def __str__(self) -> str:
        return f"{self.dataset}{'#' if self.bookmark else '@'}{self.name}"


@dataclass(frozen=True)
class Token:
    """What a receive_resume_token says: the GUIDs of what it receives, and of what that builds on."""

    text: str
    toguid: str = ""  # empty: it could not be decoded
    fromguid: str = ""
    toname: str = ""


@dataclass(frozen=True)
class Dataset:
    """`snapshots` and `bookmarks` by createtxg. `values`: effective values of the properties that a copy needs."""

    name: str
    kind: str
    guid: str
    createtxg: int = 0
    origin: str = ""
    mounted: bool = False
    mountpoint: str = ""
    canmount: str = ""
    encryption: str = "off"
    key_available: bool = True
    token: Optional[Token] = None
    referenced: int = 0
    written: int = 0  # since the newest snapshot
    values: Mapping[str, str] = field(default_factory=dict)
    came_from: str = ""
    flags: Optional[str] = None
    snapshots: tuple[Snapshot, ...] = ()
    bookmarks: tuple[Snapshot, ...] = ()

    def find(self, guid: str) -> Optional[Snapshot]:
        """The snapshot, or else the bookmark, of this GUID."""
        return next((one for one in (*self.snapshots, *self.bookmarks) if one.guid == guid), None)

    def named(self, name: str) -> Optional[Snapshot]:
        return next((one for one in self.snapshots if one.name == name), None)


@dataclass(frozen=True)
class Pool:
    name: str
    guid: str
    health: str
    features: Mapping[str, str] = field(default_factory=dict)  # disabled, enabled or active, zpool-features(7)

    def offers(self, feature: str) -> bool:
        return self.features.get(feature) in ("enabled", "active")


@dataclass(frozen=True)
class View:
    """What a host has of a dataset and those below it, by their names below it ("" is the dataset itself).

    `available`: what may be written there, of the dataset or, while there is none, of its parent. `encrypts`: whether
    that parent does, and so what is received in it. `aside`: the newest tree that was renamed out of the way of this
    one. `mounts`: every mounted file system of the host, by its path.
    """

    where: str
    top: str
    pool: Pool
    version: tuple[int, ...]
    datasets: Mapping[str, Dataset]
    parent: bool = True
    encrypts: bool = False
    available: int = 0
    aside: Mapping[str, Dataset] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)

    def called(self, below: str = "") -> str:
        """For sentences."""
        return f"{self.top}{below} on {self.where}"


@dataclass(frozen=True)
class Login:
    """How another host is reached."""

    host: str
    port: int
    account: str
    identity: str
    known_hosts: str


Words = Sequence[str]


@dataclass(frozen=True)
class Stage:
    """A program of a pipeline; `name` is for sentences."""

    name: str
    argv: tuple[str, ...]


class Side:
    """One host's commands; as a context manager its connection is ended."""

    def __init__(self, login: Optional[Login] = None) -> None:
        self.login = login
        self.where = login.host if login else "this host"
        self._directory: Optional[tempfile.TemporaryDirectory[str]] = None
        self._shell: Optional[LastingShell] = None
        if login:
            for what in (login.identity, login.known_hosts):
                if not os.path.exists(what):
                    raise HotspareError(f"there is no {what} on this host, which ssh to {login.host} needs: make it")
            self._directory = tempfile.TemporaryDirectory(prefix="hotspare-", dir="/tmp")  # a socket: 107 characters

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._shell is not None:
            self._shell.close()
            self._shell = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def run(self, *words: str, check: bool = True) -> Completed:
        """HotspareError says on which host it failed."""
        (done,) = self.run_all([words])
        if check and done.rc != 0:
            raise failed(self.where, words, done.stderr or done.stdout)
        return done

    def run_all(self, commands: Sequence[Words], *, stop: bool = False) -> list[Completed]:
        """One after the other; `stop` at the first that fails. Whatever their exit codes are: those that were run."""
        began = time.monotonic()
        try:
            out, err = self._connected().ask(script(commands, stop), LOOK_SECONDS * len(commands))
        except OSError as error:
            program, package = ("ssh", "openssh-client") if self.login else ("sh", "dash")
            raise HotspareError(f"cannot run {program} on this host: {error.strerror}; install {package}") from error
        except Lost as lost:
            _said, codes, rest = parts(lost.said)
            words = commands[min(len(codes), len(commands) - 1)]
            if lost.rc is None:
                what = f"{label(self.where, words)} took longer than {LOOK_SECONDS * len(commands):g} s"
                raise HotspareError(f"{what} and was ended: see what that host and its pool wait for") from lost
            if self.login and lost.rc == 255:
                raise unreachable(self.login, rest) from lost
            raise failed(self.where, words, rest) from lost
        wrote, codes, more = parts(out)
        said, known, rest = parts(err)
        whole = len(codes) == len(commands) or (stop and 0 < len(codes) < len(commands) and codes[-1] != 0)
        # What one of them says must not excuse another one: where it is not certain which said what, all of it failed.
        if codes != known or more or not whole:
            raise failed(self.where, commands[min(len(codes), len(known), len(commands) - 1)], rest)
        seconds = time.monotonic() - began
        return [
            Completed(list(words), rc, text, complaint if rc else "", seconds)
            for words, rc, text, complaint in zip(commands, codes, wrote, said)
        ]

    def _connected(self) -> LastingShell:
        """The shell there, by whose connection streams go, too; another one when that was lost."""
        if self._shell is not None and self._shell.ended:
            self._shell.close()
            self._shell = None
            if self.login:
                with contextlib.suppress(FileNotFoundError):  # of an ssh that was killed
                    os.unlink(self._control)
        if self._shell is None:
            there = [*self._ssh(shares=True), self.where, shlex.join([*ENVIRONMENT, "sh"])] if self.login else ["sh"]
            self._shell = LastingShell(there)
        return self._shell

    def stages(self, pipeline: Sequence[Words]) -> list[Stage]:
        """What to start here for a pipeline of programs there."""
        if self.login is None:
            return [Stage(label(self.where, words), tuple(words)) for words in pipeline]
        if len(pipeline) == 1:
            told = shlex.join([*ENVIRONMENT, *pipeline[0]])
        else:  # every program's exit code counts; dash has no pipefail
            told = shlex.join([*ENVIRONMENT, "bash", "-o", "pipefail", "-c", " | ".join(map(shlex.join, pipeline))])
        return [Stage(label(self.where, pipeline[-1]), (*self._ssh(), self.where, told))]

    def has(self, program: str) -> bool:
        """Whether a filter for streams is installed."""
        if self.login is None:
            return shutil.which(program, path=PATH) is not None
        return self.run(program, "--version", check=False).rc == 0

    def _ssh(self, *, shares: bool = False) -> list[str]:
        login = self.login
        if login is None:
            raise AssertionError("it is another host")
        return ssh.command(
            port=login.port,
            account=login.account,
            identity=login.identity,
            known_hosts=login.known_hosts,
            control=self._control,
            shares=shares,
        )

    @property
    def _control(self) -> str:
        if self._directory is None:
            raise AssertionError("it is another host, and not closed")
        return f"{self._directory.name}/ssh"


def label(where: str, words: Words) -> str:
    return f"{' '.join(words[:2])} on {where}"


def unreachable(login: Login, said: str) -> HotspareError:
    """What to tell of an ssh that did not come to run anything. (Pure.)"""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    who = f"{login.account}@{login.host} port {login.port}"
    if "Host key verification failed" in said:
        return HotspareError(
            f"the host key of {who} is not the one in {login.known_hosts}: if that host was made anew, put its new key "
            "there; if it was not, somebody else answers there"
        )
    if "Permission denied (" in said:
        return HotspareError(f"{who} does not let us in with the key {login.identity}: authorize it there")
    return HotspareError(
        f"{who} cannot be reached: {lines[-1] if lines else 'ssh says nothing'}; see that host, its network and sshd"
    )


ADVICE = (
    ("permission denied", "allow it there (zfs allow), or work as root"),
    ("dataset is busy", "stop what uses it (fuser -vm, zfs holds) and run this again"),
    ("key not loaded", "load it there (zfs load-key)"),
    ("out of space", "make room there, or send less"),
    (": not found", "install zfsutils-linux there, and load its kernel module"),
    ("dataset does not exist", "see zfs list there"),
)


def failed(where: str, words: Words, said: str) -> HotspareError:
    """(Pure.)"""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "it printed nothing"
    advice = next((advice for sign, advice in ADVICE if sign in said), "see what it says, and run this again")
    return HotspareError(
        f"{label(where, words)} failed: {last}; {advice}", command=list(words), stderr=said[-4000:], where=where
    )


# ---------------------------------------------------------------------------------------------------------------------
# Looking
# ---------------------------------------------------------------------------------------------------------------------


def look(
    side: Side,
    top: str,
    *,
    recursive: bool,
    copied: Iterable[str] = (),
    mounts: bool = False,
    asides: bool = False,
) -> View:
    """What there is of a dataset; with `mounts` of the whole host too, with `asides` what was renamed out of the way of
    it, which only matters where something is received. HotspareError when it cannot be told."""
    pool_name, parent = top.partition("/")[0], top.rpartition("/")[0] or top
    pool_words = ("zpool", "get", "-Hp", "-o", "property,value", "all", pool_name)
    list_words = (*LIST, parent)
    commands = [("zfs", "version"), pool_words, list_words, *get_commands(top, recursive, copied)]
    answers = side.run_all([*commands, *([MOUNTS] if mounts else [])])
    version, pool, listed, *found = answers
    for answer in (pool, listed):
        if answer.rc != 0 and "does not exist" not in answer.stderr and "no such pool" not in answer.stderr:
            raise failed(side.where, answer.argv, answer.stderr)
    around = {name: rest for name, *rest in (line.split("\t") for line in listed.stdout.splitlines())}
    set_aside = sorted(name for name in around if is_aside(name, top)) if asides else []
    there = top in around
    available, _encryption = around.get(top, around.get(parent, ("0", "off")))
    if mounts and found[2].rc != 0:
        raise failed(side.where, MOUNTS, found[2].stderr)
    return View(
        where=side.where,
        top=top,
        pool=parse_pool(pool_name, pool.stdout),
        version=parse_version(version.stdout),
        datasets=read_datasets(side, top, found[0], found[1]) if there else {},
        parent=parent in around,
        encrypts=around.get(parent, ("0", "off"))[1] != "off",
        available=int(available) if available.isdigit() else 0,
        aside=look_datasets(side, set_aside[-1], recursive, copied) if set_aside else {},
        mounts=parse_mounts(found[2].stdout) if mounts else {},
    )


LIST = ("zfs", "list", "-Hp", "-d", "1", "-t", "filesystem,volume", "-o", "name,available,encryption")
MOUNTS = ("zfs", "list", "-Hp", "-t", "filesystem", "-o", "mounted,mountpoint,name")


ASIDE = re.compile(r"-aside-\d{8}T\d{6}Z(?=/|$)")  # what was renamed out of the way is called so


def is_aside(name: str, top: str) -> bool:
    return name.startswith(top) and ASIDE.fullmatch(name[len(top) :]) is not None


def look_datasets(side: Side, top: str, recursive: bool, copied: Iterable[str]) -> dict[str, Dataset]:
    return read_datasets(side, top, *side.run_all(get_commands(top, recursive, copied)))


def get_commands(top: str, recursive: bool, copied: Iterable[str]) -> list[tuple[str, ...]]:
    """For the datasets, and for their snapshots and bookmarks."""
    get = ("zfs", "get", "-Hp", "-o", "name,property,value,source")
    names = ",".join(dict.fromkeys([*DATASET_PROPERTIES, *copied, FROM, FLAGS]))
    return [
        (*get, *(["-r"] if recursive else ["-d", "0"]), "-t", "filesystem,volume", names, top),
        (*get, *(["-r"] if recursive else ["-d", "1"]), "-t", "snapshot,bookmark", SNAPSHOT_NAMES, top),
    ]


def read_datasets(side: Side, top: str, of_datasets: Completed, of_snapshots: Completed) -> dict[str, Dataset]:
    for done in (of_datasets, of_snapshots):
        if done.rc != 0:
            raise failed(side.where, done.argv, done.stderr)
    datasets, snapshots = parse_get(of_datasets.stdout), parse_get(of_snapshots.stdout)
    holds = look_holds(side, [name for name, of in snapshots.items() if of["userrefs"][0] not in ("0", "-")])
    found: dict[str, list[Snapshot]] = {name: [] for name in datasets}
    for name, properties in snapshots.items():
        snapshot = parse_snapshot(name, properties, holds.get(name, frozenset()))
        if snapshot.dataset in found:
            found[snapshot.dataset].append(snapshot)
    tokens = {
        name: decode(side, properties["receive_resume_token"][0])
        for name, properties in datasets.items()
        if properties["receive_resume_token"][0] not in ("-", "")
    }
    return {
        name[len(top) :]: parse_dataset(name, properties, tokens.get(name), found[name])
        for name, properties in sorted(datasets.items())
    }


def look_holds(side: Side, names: Sequence[str]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for start in range(0, len(names), BATCH):
        for line in side.run("zfs", "holds", "-H", *names[start : start + BATCH]).stdout.splitlines():
            name, tag = line.split("\t")[:2]
            found.setdefault(name, set()).add(tag)
    return {name: frozenset(tags) for name, tags in found.items()}


def decode(side: Side, text: str) -> Token:
    """What a token says, also when what it names is gone: zfs-send(8) prints that before it looks for it."""
    done = side.run("zfs", "send", "-nvP", "-t", text, check=False)
    return parse_token(text, done.stdout + "\n" + done.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Parsing (pure)
# ---------------------------------------------------------------------------------------------------------------------

Properties = Mapping[str, tuple[str, str]]  # name: value and source


def parse_get(text: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Of `zfs get -Hp -o name,property,value,source`."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for line in text.splitlines():
        name, key, value, source = line.split("\t")
        found.setdefault(name, {})[key] = (value, source)
    return found


def parse_version(text: str) -> tuple[int, ...]:
    """Of `zfs version`: of the tools or the kernel module, whichever is older; empty when it tells neither."""
    found = re.findall(r"^zfs-(?:kmod-)?(\d+)\.(\d+)", text, re.MULTILINE)
    return min((tuple(map(int, version)) for version in found), default=())


def parse_pool(name: str, text: str) -> Pool:
    """Of `zpool get -Hp -o property,value all`."""
    values = dict(line.split("\t")[:2] for line in text.splitlines())
    mark = "feature@"
    features = {key[len(mark) :]: value for key, value in values.items() if key.startswith(mark)}
    return Pool(name, values.get("guid", ""), values.get("health", "unknown"), features)


def parse_mounts(text: str) -> dict[str, str]:
    rows = (line.split("\t") for line in text.splitlines())
    return {path: name for mounted, path, name in rows if mounted == "yes" and path.startswith("/")}


def parse_token(text: str, said: str) -> Token:
    """Of `zfs send -nvP -t`."""
    found = dict(re.findall(r"^\s*(toguid|fromguid|toname) = (\S+)", said, re.MULTILINE))
    guids = {key: str(int(found[key], 16)) for key in ("toguid", "fromguid") if key in found}
    return Token(text, guids.get("toguid", ""), guids.get("fromguid", ""), found.get("toname", ""))


def parse_estimate(text: str) -> Optional[int]:
    """Of `zfs send -nvP`, in bytes."""
    found = re.findall(r"^size\s+(\d+)$", text, re.MULTILINE)
    return int(found[-1]) if found else None


def parse_snapshot(name: str, properties: Properties, holds: frozenset[str]) -> Snapshot:
    bookmark = "#" in name
    dataset, _sign, short = name.partition("#" if bookmark else "@")
    note, source = properties.get(MADE, ("-", "-"))
    # Not what its dataset has.
    made, _slash, moment = note.partition("/") if source == "local" and not bookmark else ("", "", "")
    label, source = properties.get(LABEL, ("-", "-"))
    return Snapshot(
        dataset,
        short,
        properties["guid"][0],
        int(properties["createtxg"][0]),
        _number(properties["creation"][0]),
        _number(properties["userrefs"][0]),
        holds,
        cloned=properties["clones"][0] not in ("-", ""),
        made=made,
        moment=moment,
        bookmark=bookmark,
        label=label if source == "local" and not bookmark else "",
    )


def parse_dataset(name: str, properties: Properties, token: Optional[Token], found: Iterable[Snapshot]) -> Dataset:
    ordered = sorted(found, key=lambda one: one.createtxg)
    own = {key: value for key, (value, source) in properties.items() if source == "local"}
    value = {key: value for key, (value, _source) in properties.items()}
    return Dataset(
        name=name,
        kind=value["type"],
        guid=value["guid"],
        createtxg=_number(value["createtxg"]),
        origin="" if value["origin"] == "-" else value["origin"],
        mounted=value["mounted"] == "yes",
        mountpoint=value["mountpoint"],
        canmount=value["canmount"],
        encryption=value["encryption"],
        key_available=value["keystatus"] in ("-", "available", "none"),
        token=token,
        referenced=_number(value["referenced"]),
        written=_number(value["written"]),
        values=value,
        came_from=own.get(FROM, ""),
        flags=own.get(FLAGS),
        snapshots=tuple(one for one in ordered if not one.bookmark),
        bookmarks=tuple(one for one in ordered if one.bookmark),
    )


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
