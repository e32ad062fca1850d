# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenZFS in memory, as far as its commands are used here: it refuses what the real one refuses, in its words.

`Host` answers zfs and zpool as `zfs get -Hp` and the others do; `Here` is a host as zfs.Side is one; `transfer` is a
pipeline between two of them. What a dataset contains is a number that grows with every write.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import Completed, HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import Side, Stage, failed

GUIDS = itertools.count(1000)
FEATURES = ("large_blocks", "embedded_data", "lz4_compress", "zstd_compress", "large_dnode", "encryption")
FORBIDDEN = {"-F", "-R", "-p", "-f", "-r"}  # of send, receive, destroy and rollback


class Crash(BaseException):
    """The module was killed."""


class No(Exception):
    """What a command says when it fails."""


@dataclass
class Snap:
    name: str
    guid: int
    txg: int
    content: int
    creation: int
    holds: set[str] = field(default_factory=set)
    made: str = ""
    label: str = ""
    note: str = ""


@dataclass
class Data:
    """`partial`: what an interrupted receive has, (stream, token)."""

    name: str
    guid: int
    txg: int
    content: int = 0
    own: dict[str, str] = field(default_factory=dict)
    origin: str = ""
    mounted: bool = False
    busy: bool = False
    kind: str = "filesystem"
    encryption: str = "off"
    keystatus: str = "-"
    snaps: list[Snap] = field(default_factory=list)
    bookmarks: list[Snap] = field(default_factory=list)
    partial: tuple[Stream, str] | None = None
    written: int = 0

    def snap(self, name: str) -> Snap:
        for one in self.snaps:
            if one.name == name:
                return one
        raise No(
            f"could not find any snapshots to destroy; could not open '{self.name}@{name}': dataset does not exist"
        )


@dataclass(frozen=True)
class Stream:
    to: str  # dataset@name, as the sender calls it
    guid: int
    content: int
    creation: int
    base: int = 0  # GUID; 0: full
    flags: str = ""


class Host:
    def __init__(self, pool: str = "tank") -> None:
        self.pool = pool
        self.guid = next(GUIDS)
        self.txg = itertools.count(100)
        self.now = 1_700_000_000
        self.available = 1 << 40
        self.referenced = 8192  # of each dataset
        self.health = "ONLINE"
        self.version = "zfs-2.3.9-1\nzfs-kmod-2.3.9-1\n"
        self.features = dict.fromkeys(FEATURES, "enabled")
        self.data: dict[str, Data] = {}
        self.log: list[list[str]] = []
        self.make(pool)

    # --- what tests do ---------------------------------------------------------------------------------------------

    def make(self, name: str, **values: object) -> Data:
        self.data[name] = Data(name, next(GUIDS), next(self.txg), **values)  # type: ignore[arg-type]
        return self.data[name]

    def write(self, name: str) -> None:
        one = self.data[name]
        one.content = next(GUIDS)
        one.written += 4096

    def snapshot(self, *names: str, made: str = "") -> None:
        """At once."""
        txg = next(self.txg)
        for full in names:
            dataset, _at, name = full.partition("@")
            one = self.data[dataset]
            if any(snap.name == name for snap in one.snaps):
                raise No(f"cannot create snapshot '{full}': dataset already exists")
            one.snaps.append(Snap(name, next(GUIDS), txg, one.content, self.now, made=made))
            one.written = 0

    def names(self) -> set[str]:
        return {f"{name}@{snap.name}" for name, one in self.data.items() for snap in one.snaps}

    # --- commands --------------------------------------------------------------------------------------------------

    def answer(self, words: Sequence[str]) -> Completed:
        self.log.append(list(words))
        try:
            out = getattr(self, f"_{words[0]}_{words[1]}")(list(words[2:]))
        except No as error:
            return Completed(list(words), 1, "", f"{error}\n", 0.0)
        return Completed(list(words), 0, out or "", "", 0.0)

    def _under(self, top: str) -> list[Data]:
        if top not in self.data:
            raise No(f"cannot open '{top}': dataset does not exist")
        return [one for name, one in sorted(self.data.items()) if name == top or name.startswith(top + "/")]

    def _zfs_version(self, _words: list[str]) -> str:
        return self.version

    def _zpool_get(self, words: list[str]) -> str:
        rows = {"guid": str(self.guid), "health": self.health, **{f"feature@{k}": v for k, v in self.features.items()}}
        assert words[-1] == self.pool
        return "".join(f"{key}\t{value}\n" for key, value in rows.items())

    def _zfs_list(self, words: list[str]) -> str:
        if "mounted,mountpoint,name" in words:
            rows = [("yes" if d.mounted else "no", d.own.get("mountpoint", "none"), d.name) for d in self.data.values()]
            return "".join("\t".join(row) + "\n" for row in rows)
        top = words[-1]
        inside = [d.name for d in self._under(top) if d.name == top or "/" not in d.name[len(top) + 1 :]]
        return "".join(f"{name}\t{self.available}\t{self.data[name].encryption}\n" for name in inside)

    def _zfs_get(self, words: list[str]) -> str:
        if "guid,createtxg" in words:  # of names
            found = [(full, *full.split("@")) for full in words[words.index("guid,createtxg") + 1 :]]
            snaps = [(full, self.data[dataset].snap(name)) for full, dataset, name in found]
            return _rows(
                [
                    row
                    for full, one in snaps
                    for row in ((full, "guid", str(one.guid), "-"), (full, "createtxg", str(one.txg), "-"))
                ]
            )
        if "guid,receive_resume_token" in words:
            rows = []
            for name in words[words.index("guid,receive_resume_token") + 1 :]:
                dataset, _at, short = name.partition("@")
                if dataset not in self.data:
                    continue
                one = self.data[dataset]
                guid = one.snap(short).guid if short else one.guid
                token = one.partial[1] if one.partial and not short else "-"
                rows += [(name, "guid", str(guid), "-"), (name, "receive_resume_token", token, "-")]
            return _rows(rows)
        properties, top = words[-2].split(","), words[-1]
        deep = "-r" in words
        datasets = self._under(top) if deep else [self._under(top)[0]]
        rows = []
        for one in datasets:
            if "filesystem,volume" in words:
                rows += [(one.name, key, *self._property(one, key)) for key in properties]
            else:
                for sign, snaps in (("@", one.snaps), ("#", one.bookmarks)):
                    for snap in snaps:
                        name = f"{one.name}{sign}{snap.name}"
                        clones = ",".join(d.name for d in self.data.values() if d.origin == name)
                        made = (snap.made, "local") if snap.made else ("-", "-")
                        values = {
                            "guid": (str(snap.guid), "-"),
                            "createtxg": (str(snap.txg), "-"),
                            "creation": (str(snap.creation), "-"),
                            "userrefs": (str(len(snap.holds)) if sign == "@" else "-", "-"),
                            "clones": (clones or ("" if sign == "@" else "-"), "-"),
                            "hotspare:made": made,
                            "hotspare:label": (snap.label, "local") if snap.label else ("-", "-"),
                            "hotspare:restore": (snap.note, "local") if snap.note else ("-", "-"),
                        }
                        rows += [(name, key, *values[key]) for key in properties]
        return _rows(rows)

    def _property(self, one: Data, key: str) -> tuple[str, str]:
        fixed = {
            "type": one.kind,
            "guid": str(one.guid),
            "createtxg": str(one.txg),
            "origin": one.origin or "-",
            "mounted": "yes" if one.mounted else "no",
            "encryption": one.encryption,
            "keystatus": one.keystatus,
            "receive_resume_token": one.partial[1] if one.partial else "-",
            "referenced": str(self.referenced),
            "available": str(self.available),
            "written": str(one.written),
        }
        if key in fixed:
            return fixed[key], "-"
        if key in one.own:
            return one.own[key], "local"
        defaults = {"mountpoint": "none", "canmount": "on", "compression": "lz4", "recordsize": "131072"}
        return defaults.get(key, "-"), "default"

    def _zfs_holds(self, words: list[str]) -> str:
        rows = []
        for full in words[1:]:
            dataset, _at, name = full.partition("@")
            rows += [f"{full}\t{tag}\tnow\n" for tag in sorted(self.data[dataset].snap(name).holds)]
        return "".join(rows)

    def _zfs_snapshot(self, words: list[str]) -> None:
        assert words[-3] == "-o"
        key, _eq, made = words[-2].partition("=")
        assert key == "hotspare:made"
        dataset, _at, name = words[-1].partition("@")
        every = self._under(dataset) if "-r" in words else [self.data[dataset]]
        self.snapshot(*(f"{one.name}@{name}" for one in every), made=made)

    def _zfs_hold(self, words: list[str]) -> None:
        tag, *names = words
        found = [self.data[full.partition("@")[0]].snap(full.partition("@")[2]) for full in names]
        for full, snap in zip(names, found):
            if tag in snap.holds:
                raise No(f"cannot hold snapshot '{full}': tag already exists on this dataset")
        for snap in found:
            snap.holds.add(tag)

    def _zfs_release(self, words: list[str]) -> None:
        tag, *names = words
        for full in names:
            snap = self.data[full.partition("@")[0]].snap(full.partition("@")[2])
            if tag not in snap.holds:
                raise No(f"cannot release hold from snapshot '{full}': no such tag on this dataset")
            snap.holds.remove(tag)

    def _zfs_set(self, words: list[str]) -> None:
        key, _eq, value = words[0].partition("=")
        for full in words[1:]:
            dataset, at, name = full.partition("@")
            if at:
                assert key in ("hotspare:made", "hotspare:restore")
                setattr(self.data[dataset].snap(name), "made" if key == "hotspare:made" else "note", value)
            else:
                self.data[dataset].own[key] = value

    def _zfs_destroy(self, words: list[str]) -> None:
        (full,) = words
        dataset, at, names = full.partition("@")
        assert at, "only snapshots are ever destroyed"
        one = self.data[dataset]
        for name in names.split(","):
            snap = one.snap(name)
            if snap.holds or any(d.origin == f"{dataset}@{name}" for d in self.data.values()):
                raise No(f"cannot destroy snapshot {dataset}@{name}: dataset is busy")
            one.snaps.remove(snap)

    def _zfs_unmount(self, words: list[str]) -> None:
        one = self.data[words[0]]
        if not one.mounted:
            raise No(f"cannot unmount '{words[0]}': not currently mounted")
        inside = f"{one.own.get('mountpoint', 'none')}/"
        if any(d.mounted and d.own.get("mountpoint", "none").startswith(inside) for d in self.data.values()):
            raise No(f"cannot unmount '{words[0]}': pool or dataset is busy")
        one.mounted = False

    def _zfs_rename(self, words: list[str]) -> None:
        old, new = words
        tree = self._under(old)
        if any(one.busy for one in tree):
            raise No(f"cannot unmount '/{old}': pool or dataset is busy")
        if new in self.data:
            raise No(f"cannot rename '{old}': dataset already exists")
        for one in tree:
            del self.data[one.name]
            for other in self.data.values():
                if other.origin.startswith(one.name + "@"):
                    other.origin = new + other.origin[len(old) :]
            one.name = new + one.name[len(old) :]
            self.data[one.name] = one

    def _zfs_clone(self, words: list[str]) -> None:
        origin, name = words[-2:]
        dataset, _at, short = origin.partition("@")
        snap = self.data[dataset].snap(short)
        if name in self.data:
            raise No(f"cannot create '{name}': dataset already exists")
        self._parent(name)
        self.make(name, content=snap.content, origin=origin, own=_options(words))

    def _zfs_promote(self, words: list[str]) -> None:
        one = self.data[words[0]]
        if not one.origin:
            raise No(f"cannot promote '{words[0]}': not a cloned filesystem")
        old = self.data[one.origin.partition("@")[0]]
        snap = old.snap(one.origin.partition("@")[2])
        moved = old.snaps[: old.snaps.index(snap) + 1]
        old.snaps = old.snaps[len(moved) :]
        one.snaps = [*moved, *one.snaps]
        for other in self.data.values():
            dataset, _at, short = other.origin.partition("@")
            if dataset == old.name and any(each.name == short for each in moved):
                other.origin = f"{one.name}@{short}"
        one.origin, old.origin = (
            old.origin if old.origin.partition("@")[0] != one.name else "",
            f"{one.name}@{snap.name}",
        )

    def _parent(self, name: str) -> None:
        if name.rpartition("/")[0] not in self.data:
            raise No(f"cannot create '{name}': parent does not exist")

    # --- streams ---------------------------------------------------------------------------------------------------

    def _zfs_send(self, words: list[str]) -> str:
        """Only asked; the token's text is its content."""
        assert words[0] == "-nvP"
        rest = words[1:]
        if rest[0] == "-t":
            stream = TOKENS[rest[1]]
            says = f"resume token contents:\n\ttoguid = {stream.guid:#x}\n\ttoname = {stream.to}\n"
            says += f"\tfromguid = {stream.base:#x}\n" if stream.base else ""
            try:
                self.send(rest)
            except No as error:
                raise No(f"{says}{error}") from error
            return f"{says}size\t4096\n"
        self.send(rest)
        return "size\t4096\n"

    def send(self, words: list[str]) -> Stream:
        assert not FORBIDDEN & set(words), words
        if words[0] == "-t":
            stream = TOKENS[words[1]]
            for one in self.data.values():
                known = {snap.guid for snap in (*one.snaps, *one.bookmarks)}
                if any(snap.guid == stream.guid for snap in one.snaps) and (not stream.base or stream.base in known):
                    return stream
            raise No(f"cannot resume send: '{stream.to}' used in the initial send no longer exists")
        dataset, _at, name = words[-1].partition("@")
        if dataset not in self.data:
            raise No(f"cannot open '{dataset}': dataset does not exist")
        one = self.data[dataset]
        snap, base = one.snap(name), 0
        if "-i" in words:
            full = words[words.index("-i") + 1]
            kind = one.bookmarks if "#" in full else one.snaps
            found = [each for each in kind if full in (f"{dataset}@{each.name}", f"{dataset}#{each.name}")]
            if not found:
                raise No(f"cannot send '{words[-1]}': incremental source ({full}) does not exist")
            assert found[0].txg < snap.txg
            base = found[0].guid
        return Stream(words[-1], snap.guid, snap.content, snap.creation, base, words[0] if words[0] != "-i" else "")

    def receive(self, words: list[str], stream: Stream, whole: bool) -> None:
        """A stream that is cut off leaves a token, since it is always received with -s."""
        assert words[:2] == ["-s", "-u"] and not FORBIDDEN & set(words), words
        name = words[-1]
        self._parent(name)
        one = self.data.get(name)
        if one is not None and one.partial and one.partial[0] != stream:
            raise No(f'cannot receive: destination {name} contains partially-complete state from "zfs receive -s".')
        resumed = one is not None and one.partial is not None
        if stream.base:
            if one is None:
                raise No(f"cannot receive incremental stream: destination '{name}' does not exist")
            if not one.snaps or one.snaps[-1].guid != stream.base:
                raise No(f"cannot receive incremental stream: most recent snapshot of {name} does not match")
            if one.written:
                raise No(f"cannot receive incremental stream: destination {name} has been modified")
        elif one is None:
            one = self.make(name, own=_options(words))
        elif not resumed:
            raise No(f"cannot receive new filesystem stream: destination '{name}' exists")
        if not whole:
            token = f"1-{next(GUIDS)}"
            TOKENS[token] = stream
            one.partial = (stream, token)
            raise No("cannot receive: checksum mismatch or incomplete stream")
        short = stream.to.partition("@")[2]
        if any(snap.name == short for snap in one.snaps):
            raise No(f"cannot receive: snapshot {name}@{short} exists")
        one.partial, one.content = None, stream.content
        one.snaps.append(Snap(short, stream.guid, next(self.txg), stream.content, stream.creation))

    def _zfs_receive(self, words: list[str]) -> None:
        assert words[0] == "-A"
        one = self.data[words[1]]
        if not one.partial:
            raise No(f"'{words[1]}' does not have any resumable receive state to abort")
        one.partial = None
        if not one.snaps:
            del self.data[words[1]]


TOKENS: dict[str, Stream] = {}


def _rows(rows: list[tuple[str, str, str, str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def _options(words: list[str]) -> dict[str, str]:
    given = [words[i + 1].partition("=") for i, word in enumerate(words) if word == "-o"]
    return {key: value for key, _eq, value in given}


class Here(Side):
    """A host of the model, as the library sees one. `dies`: what is killed with it, and when."""

    def __init__(self, host: Host, where: str, dies: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.host, self.where, self.dies = host, where, dies

    def run(self, *words: str, check: bool = True) -> Completed:
        self.dies()
        done = self.host.answer(words)
        self.dies()
        if check and done.rc:
            raise failed(self.where, words, done.stderr)
        return done

    def run_all(self, commands: Sequence[Sequence[str]], *, stop: bool = False) -> list[Completed]:
        done: list[Completed] = []
        for words in commands:
            done.append(self.run(*words, check=False))
            if stop and done[-1].rc:
                break
        return done

    def stages(self, pipeline: Sequence[Sequence[str]]) -> list[Stage]:
        return [Stage(self.where, tuple(words)) for words in pipeline]


def transfer(
    source: Host, target: Host, whole: Callable[[], bool] = lambda: True
) -> Callable[[Sequence[Stage], Sequence[Stage], Callable[[int], None]], int]:
    """A pipeline from one to the other; `whole` may say that it breaks, or raise Crash."""

    def flow(before: Sequence[Stage], after: Sequence[Stage], tell: Callable[[int], None]) -> int:
        (send,), (receive,) = [list(stage.argv) for stage in before], [list(stage.argv) for stage in after]
        source.log.append(send)
        target.log.append(receive)
        crash: Crash | None = None
        try:
            stream = source.send(send[2:])
            try:
                complete = whole()
            except Crash as error:
                complete, crash = False, error
            tell(2048)
            target.receive(receive[2:], stream, complete)
        except No as error:
            if crash:
                raise crash from error
            raise HotspareError(str(error)) from error
        return 4096

    return flow
