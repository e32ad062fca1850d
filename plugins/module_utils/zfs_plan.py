# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do so that one ZFS tree becomes a copy of another, decided from what both sides have; nothing is run here.

Rules that no plan breaks: nothing is destroyed but snapshots of ours that retention gives up; a dataset in the way is
renamed; what both sides have in common is known by GUID, held on both sides, and let go only when something newer is;
a stream is one dataset's (no -R), carries no properties (no -p), and rolls nothing back (no -F).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Optional, Union

from .records import size
from .zfs import BATCH, FLAGS, FROM, MADE, SNAPSHOT_NAME, Dataset, Snapshot, View
from .zfs_refusals import Keep, Refusal, Want, chain_flags, check_sending, check_source, require_atomic

ONCE = ("canmount",)  # properties that those below do not inherit, zfsprops(7)
SOURCE, TARGET = "source", "destination"


@dataclass(frozen=True)
class Command:
    """A zfs command on one side. `act`: snapshot, hold, release, abort, rename, unmount, quiet, clone, promote, mark,
    destroy."""

    act: str
    side: str
    argv: tuple[str, ...]
    subjects: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Send:
    """One dataset's stream. `snapshot` (`dataset@name`) has this `guid`, empty while it is still to be made."""

    below: str
    kind: str  # full, incremental, resumed
    snapshot: str
    guid: str
    base: str
    target: str
    send: tuple[str, ...]
    receive: tuple[str, ...]
    packed: bool  # its blocks are sent compressed or encrypted: nothing to compress on the way
    expected: Optional[int]  # bytes, by what the dataset holds; None: only zfs send can tell
    reason: str


Step = Union[Command, Send]


@dataclass(frozen=True)
class Plan:
    """`stale`: holds of ours on what is neither sent nor a base, as (side, dataset@name)."""

    name: str
    steps: tuple[Step, ...] = ()
    stale: tuple[tuple[str, str], ...] = ()

    @property
    def sends(self) -> list[Send]:
        return [step for step in self.steps if isinstance(step, Send)]

    def commands(self, act: str) -> list[Command]:
        return [step for step in self.steps if isinstance(step, Command) and step.act == act]


def new_name(prefix: str, now: datetime) -> str:
    """`now` in UTC."""
    return f"{prefix}-{now:%Y%m%dT%H%M%SZ}"


def make_plan(source: View, target: Optional[View], want: Want, now: datetime) -> Plan:
    """`target` None: only the source is looked after. Refusal."""
    planning = _Planning(source, target, want, now)
    {
        "sent": planning.sent,
        "snapshotted": planning.snapshotted,
        "pruned": planning.pruned,
        "released": planning.released,
    }[want.state]()
    return Plan(planning.name, tuple(planning.steps), tuple(planning.stale()))


# ---------------------------------------------------------------------------------------------------------------------
# Planning
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """A snapshot of all datasets of the source at once."""

    name: str
    members: Mapping[str, Snapshot]
    future: bool = False  # still to be made

    def follows(self, below: str, one: Snapshot) -> bool:
        """Whether a snapshot of the same dataset of the source is older. (Only there do its numbers mean something.)"""
        return self.future or one.createtxg < self.members[below].createtxg


class _Planning:
    """The steps so far; `source` and `target` become what they will be after these."""

    def __init__(self, source: View, target: Optional[View], want: Want, now: datetime) -> None:
        self.source, self.want, self.now = source, want, now
        self.target = target
        self.name = want.snapshot
        self.steps: list[Step] = []
        self.resumes: dict[str, Snapshot] = {}
        for name in (want.snapshot, want.prefix):
            if name and not SNAPSHOT_NAME.fullmatch(name):
                raise Refusal(f"{name!r} is no name for a snapshot: use letters, digits, and any of _ . : -")

    # --- states ------------------------------------------------------------------------------------------------------

    def sent(self) -> None:
        if self.target is None:
            raise Refusal("to send there has to be a `destination`: name it")
        check_source(self.source, self.want)
        check_sending(self.source, self.target, self.want)
        self._tokens()
        self._prune(SOURCE, self.want.keep_source, self.want.snapshot)  # of runs that failed: else they fill the pool
        while True:
            begun = self._begun()
            if begun is None:
                break
            self._bring(begun)
            self._settle(begun)
        point = self._point()
        self._bring(point)
        self._settle(point)
        self._prune(SOURCE, self.want.keep_source, point.name)
        self._prune(TARGET, self.want.keep_target, point.name)

    def snapshotted(self) -> None:
        check_source(self.source, self.want)
        point = self._point()
        if point.future:
            self._take(point)
        self._hold(SOURCE, point.members.values(), "so that it is there when it is to be sent")
        self._prune(SOURCE, self.want.keep_source, point.name)

    def pruned(self) -> None:
        if not self.source.datasets:
            raise Refusal(f"there is no dataset {self.source.called()}: see zfs list there")
        self._prune(SOURCE, self.want.keep_source, self._common_name(self.source))
        if self.target is not None and self.target.datasets:
            self._prune(TARGET, self.want.keep_target, self._common_name(self.target))

    def released(self) -> None:
        if not self.want.snapshot:
            raise Refusal("to release a hold, name its `snapshot`: the result of a send shows those that nobody needs")
        reason = "you said so"
        for side, view in self._views():
            named = (dataset.named(self.want.snapshot) for dataset in view.datasets.values())
            self._release(side, [one for one in named if one], reason)

    def stale(self) -> Iterator[tuple[str, str]]:
        """Holds of ours that this chain does not need; another one may, if it has the same prefix."""
        if self.target is None:
            return
        for side, view, other in ((SOURCE, self.source, self.there), (TARGET, self.there, self.source)):
            needed = {self.name, *self._last_common(view, other)}
            for dataset in view.datasets.values():
                for one in dataset.snapshots:
                    if self.want.prefix in one.holds and one.name not in needed:
                        yield side, str(one)

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def there(self) -> View:
        if self.target is None:
            raise AssertionError("it is to be sent")
        return self.target

    def _views(self) -> list[tuple[str, View]]:
        return [(SOURCE, self.source), *([(TARGET, self.target)] if self.target is not None else [])]

    def _point(self) -> _Point:
        """The snapshot that was asked for: one that is there, or one still to be made."""
        self.name = self.want.snapshot or new_name(self.want.prefix, self.now)
        found = {below: dataset.named(self.name) for below, dataset in self.source.datasets.items()}
        members = {below: one for below, one in found.items() if one}
        if not members:
            moment = f"{self.source.pool.guid}-{self.now:%Y%m%dT%H%M%SZ}"
            new = {
                below: Snapshot(one.name, self.name, "", 0, made=self.want.prefix, moment=moment)
                for below, one in self.source.datasets.items()
            }
            return _Point(self.name, new, future=True)
        if not self.want.snapshot:
            raise Refusal(f"{self.source.called()} has a snapshot {self.name} already: run this again in a second")
        require_atomic(self.source, self.name)
        return _Point(self.name, members)

    def _points(self) -> list[_Point]:
        """All that the source has, the oldest first."""
        found: dict[str, dict[str, Snapshot]] = {}
        for below, dataset in self.source.datasets.items():
            for one in dataset.snapshots:
                if one.guid:
                    found.setdefault(one.name, {})[below] = one
        points = [_Point(name, members) for name, members in found.items()]
        return sorted(points, key=lambda point: max(one.createtxg for one in point.members.values()))

    def _arrived(self, below: str, guid: str) -> bool:
        theirs = self.there.datasets.get(below)
        return theirs is not None and any(one.guid == guid for one in theirs.snapshots)

    def _can_branch(self, below: str, guid: str) -> bool:
        """Whether a run died when it had renamed the destination, of which a new one can branch off there."""
        theirs = self.there.aside.get(below) if self.want.in_the_way == "rename" else None
        return theirs is not None and any(one.guid == guid for one in theirs.snapshots)

    def _begun(self) -> Optional[_Point]:
        """A snapshot that an earlier run has sent in part, and that is newer than all that it has sent in full."""
        begun: list[_Point] = []
        for point in self._points():
            arrived = [
                below
                for below, one in point.members.items()
                if self._arrived(below, one.guid) or self._can_branch(below, one.guid)
            ]
            resumed = [below for below, one in point.members.items() if self.resumes.get(below) == one]
            if len(arrived) == len(point.members):
                begun = []
            elif arrived or resumed:
                begun.append(point)
        resumed_first = (p for p in begun if any(self.resumes.get(b) == one for b, one in p.members.items()))
        return next(resumed_first, begun[-1] if begun else None)

    def _tokens(self) -> None:
        """Half-received streams of ours are finished, or given up when what they were of is gone."""
        for below, theirs in list(self.there.datasets.items()):
            token = theirs.token
            if token is None:
                continue
            ours = self.source.datasets.get(below)
            to = ours.find(token.toguid) if ours and token.toguid else None
            mine = ours is not None and (
                theirs.came_from == ours.guid or (to is not None and self.want.prefix in to.holds)
            )
            if not mine and theirs.came_from and self.want.in_the_way == "rename":
                self._abort(below, f"{token.toname or 'what it is of'} is of another source than {self.source.where}")
                continue
            if ours is None or not mine:
                raise Refusal(
                    f"{self.there.called(below)} holds a half-received stream of {token.toname or 'something'} that is "
                    f"not ours: see who sends it, or give it up there by zfs receive -A {theirs.name}"
                )
            if to is not None and not to.bookmark and (not token.fromguid or ours.find(token.fromguid)):
                self.resumes[below] = to
            else:
                self._abort(below, f"{token.toname}, which it is of, is gone from {self.source.where}")

    # --- bringing a snapshot there -----------------------------------------------------------------------------------

    def _bring(self, point: _Point) -> None:
        """Send every dataset that the destination has not got at this point."""
        open_ = self._open(point)
        if not open_:
            return
        self._require_forward(point)
        self._require_name(point, open_)
        if self._left_aside(point):
            self._branch(point)
        bases, obstacles = self._way(point, open_)
        if obstacles:
            self._make_way(point, obstacles[0])
            open_ = self._open(point)
            bases, obstacles = self._way(point, open_)
            if obstacles:
                raise Refusal(f"{obstacles[0]}: see what that is, and give it another name or another destination")
        if point.future:  # a destination that is in use has failed by now, and nothing was changed
            self._take(point)
        full = [below for below in open_ if below not in bases and below not in self.resumes]
        if full and not self.want.allow_full:
            raise Refusal(
                f"{self.there.called(full[0])} has no snapshot in common with {self.source.called(full[0])}, and "
                "`allow_full` is false: see why, and allow it for one run"
            )
        flags = {below: chain_flags(self.source, self.there, below, self.want) for below in open_}
        self._hold(SOURCE, [point.members[below] for below in open_], "so that it stays until it has arrived")
        self._hold(SOURCE, [bases[b][0] for b in open_ if b in bases and not bases[b][0].bookmark], BASE)
        self._hold(TARGET, [bases[b][1] for b in open_ if b in bases], BASE)
        for below in open_:
            self._send(point, below, bases.get(below), flags[below])

    def _open(self, point: _Point) -> list[str]:
        """Datasets that have not arrived, outer ones first."""
        return [b for b, one in sorted(point.members.items()) if not (one.guid and self._arrived(b, one.guid))]

    def _require_forward(self, point: _Point) -> None:
        """Refusal when the destination has something newer of the source: it would go back in time."""
        for below in point.members:
            newer = self._newer(point, below)
            if newer is not None:
                raise Refusal(
                    f"{self.there.called(below)} has {newer.name} already, which is newer than {point.name}, and "
                    "nothing is sent back in time: name no `snapshot`, or one that is newer"
                )

    def _require_name(self, point: _Point, open_: Iterable[str]) -> None:
        """Refusal when the destination has something else of that name."""
        for below in open_:
            theirs = self.there.datasets.get(below)
            if theirs is not None and theirs.named(point.name) is not None:
                raise Refusal(
                    f"{self.there.called(below)} has another snapshot {point.name}, of another GUID: name another "
                    "`snapshot`, or see what that one is"
                )

    def _newer(self, point: _Point, below: str) -> Optional[Snapshot]:
        """What a dataset of the destination has of the source that is newer."""
        ours, theirs = self.source.datasets[below], self.there.datasets.get(below)
        if theirs is None:
            return None
        found = (ours.find(one.guid) for one in theirs.snapshots if one.guid)
        to = point.members[below].guid
        return next((one for one in found if one and one.guid != to and not point.follows(below, one)), None)

    def _way(self, point: _Point, open_: Sequence[str]) -> tuple[dict[str, tuple[Snapshot, Snapshot]], list[str]]:
        """From what each dataset goes on, and what is in its way."""
        behind = [below for below in open_ if (d := self.there.datasets.get(below)) and d.snapshots]
        bases = self._bases(point, behind, self.there.datasets)
        return bases, self._obstacles(open_, behind, bases)

    def _bases(
        self, point: _Point, behind: Iterable[str], theirs: Mapping[str, Dataset]
    ) -> dict[str, tuple[Snapshot, Snapshot]]:
        """The newest snapshot (or, on the source, bookmark) that all of them have on both sides, under one name;
        by dataset, as (on the source, on the destination). Empty when there is none."""
        common: list[dict[str, tuple[Snapshot, Snapshot]]] = []
        for below in behind:
            ours = self.source.datasets[below]
            here = {one.guid: one for one in (*ours.bookmarks, *ours.snapshots) if one.guid}  # rather a snapshot
            older = (
                (here[one.guid], one)
                for one in theirs[below].snapshots
                if one.guid in here and point.follows(below, here[one.guid])
            )
            common.append({pair[1].name: pair for pair in older})
        shared = set(common[0]).intersection(*common[1:]) if common else set()
        if not shared:
            return {}
        newest = max(shared, key=lambda name: max(pairs[name][0].createtxg for pairs in common))
        return {below: pairs[newest] for below, pairs in zip(behind, common)}

    def _obstacles(
        self,
        open_: Iterable[str],
        behind: Sequence[str],
        bases: Mapping[str, tuple[Snapshot, Snapshot]],
    ) -> list[str]:
        """What keeps the destination from receiving, a sentence each."""
        found = []
        for below in open_:
            theirs = self.there.datasets.get(below)
            called = self.there.called(below)
            if theirs is None or (below in self.resumes and not theirs.snapshots):
                continue
            if not theirs.snapshots:
                found.append(f"{called} is there and has no snapshot, so it is nothing that was received")
            elif below not in bases:
                whole = "" if len(behind) == 1 else ", or none that all the datasets share"
                found.append(f"{called} has no snapshot in common with {self.source.called(below)}{whole}")
            else:
                base = bases[below][1]
                newer = [one.name for one in theirs.snapshots if one.createtxg > base.createtxg]
                if newer:
                    listed = ", ".join(newer[:3]) + (" and more" if len(newer) > 3 else "")
                    found.append(f"{called} has snapshots of its own since {base.name}: {listed}")
                elif theirs.written:
                    found.append(f"{called} was written to since {base.name} ({size(theirs.written)})")
        return found

    def _left_aside(self, point: _Point) -> bool:
        """Whether a run died after it had renamed the destination and before its branch was there."""
        aside = self.there.aside
        if self.want.in_the_way != "rename" or not aside:
            return False
        names = {str(one) for dataset in aside.values() for one in dataset.snapshots}
        return any(
            below in aside and (below not in self.there.datasets or self.there.datasets[below].origin in names)
            for below in point.members
        )

    def _make_way(self, point: _Point, obstacle: str) -> None:
        """Rename the destination, and branch a new one off at what it has in common with the source."""
        if self.want.in_the_way != "rename":
            raise Refusal(f"{obstacle}: see what that is, and set `in_the_way: rename` to keep it under another name")
        for below in list(self.resumes):
            self._abort(below, "what it builds on goes out of the way")
        if self.there.datasets:
            self._rename(obstacle)
        self._branch(point)

    def _rename(self, obstacle: str) -> None:
        top = self.there.top
        aside = f"{top}-aside-{self.now:%Y%m%dT%H%M%SZ}"
        if self.there.aside and next(iter(self.there.aside.values())).name == aside:
            raise Refusal(f"{aside} on {self.there.where} is there already: run this again in a second")
        self._do("rename", TARGET, ["zfs", "rename", top, aside], [top, aside], obstacle)
        moved = {
            below: replace(
                one,
                name=aside + below,
                snapshots=tuple(replace(snapshot, dataset=aside + below) for snapshot in one.snapshots),
                bookmarks=(),
            )
            for below, one in self.there.datasets.items()
        }
        self.target = replace(self.there, datasets={}, aside=moved)

    def _branch(self, point: _Point) -> None:
        """Continue what was renamed at its newest common snapshot, as a clone that takes that snapshot over,
        zfs-promote(8): nothing is rolled back, and nothing of what is common is sent again. A run that died here is
        continued."""
        aside = self.there.aside
        awake = [one.name for one in aside.values() if one.mounted or one.canmount == "on"]
        if awake:  # in one session with the rename
            quiet = ["zfs", "set", "canmount=noauto", *awake]
            self._do("quiet", TARGET, quiet, awake, "else the next boot mounts it where the new one belongs")
        mounted = [one for one in aside.values() if one.mounted]
        for one in sorted(mounted, key=lambda one: one.mountpoint.count("/"), reverse=True):  # inner ones first
            self._do("unmount", TARGET, ["zfs", "unmount", one.name], [one.name], "it is not in use any more")
        # What was promoted already is not with the old one any more.
        both = {
            below: replace(one, snapshots=(*self._own(below), *one.snapshots))
            for below, one in aside.items()
            if below in point.members
        }
        behind = sorted(below for below, one in both.items() if one.snapshots)
        bases = self._bases(point, behind, both)
        view = replace(self.there, datasets=both)
        for below, (_ours, base) in bases.items():
            there, name = self.there.datasets.get(below), self.there.top + below
            if there is None:
                options = self._options(below, chain_flags(self.source, view, below, self.want))
                clone = ["zfs", "clone", *options, str(base), name]
                self._do("clone", TARGET, clone, [str(base), name], "it goes on from what both sides have")
            elif there.origin != str(base):
                continue
            self._do("promote", TARGET, ["zfs", "promote", name], [name], "the common snapshot is to be its own")
            kept = [
                replace(one, dataset=name, cloned=one.cloned or one == base)  # what was renamed builds on it now
                for one in both[below].snapshots
                if one.createtxg <= base.createtxg
            ]
            kept += [one for one in self._own(below) if one.createtxg > base.createtxg]  # somebody took them since
            branched = there or replace(both[below], name=name, written=0, token=None)
            self._put(below, replace(branched, snapshots=tuple(kept), origin=""))

    def _own(self, below: str) -> tuple[Snapshot, ...]:
        there = self.there.datasets.get(below)
        return there.snapshots if there is not None else ()

    def _send(self, point: _Point, below: str, pair: Optional[tuple[Snapshot, Snapshot]], flags: str) -> None:
        ours, one = self.source.datasets[below], point.members[below]
        theirs = self.there.datasets.get(below)
        target = self.there.top + below
        token = theirs.token if theirs and below in self.resumes else None
        base = pair[0] if pair else None
        receive = ["zfs", "receive", "-s", "-u"]
        if token:
            kind, reason = "resumed", "an earlier run was interrupted"
            send = ["zfs", "send", "-t", token.text]
            expected = None
        else:
            kind = "incremental" if base else "full"
            reason = f"both sides have {base.name}" if base else f"there is no {target} on {self.there.where}"
            send = ["zfs", "send", *([f"-{flags}"] if flags else []), *(["-i", str(base)] if base else []), str(one)]
            expected = None if one.guid else self._expected(ours, base)
            if not base:
                receive += self._options(below, flags)
        self.steps.append(
            Send(
                below=below,
                kind=kind,
                snapshot=str(one),
                guid=one.guid,
                base=str(base) if base and not token else "",
                target=target,
                send=tuple(send),
                receive=(*receive, target),
                packed="w" in flags or ("c" in flags and ours.values.get("compression", "off") != "off"),
                expected=expected,
                reason=reason,
            )
        )
        self.resumes.pop(below, None)
        before = theirs.snapshots if theirs else ()
        arrived = replace(one, dataset=target, createtxg=max((s.createtxg for s in before), default=0) + 1)
        arrived = replace(
            arrived, holds=frozenset(), userrefs=0, made="", moment="", cloned=False, creation=self._created(one)
        )
        encryption = "on" if "w" in flags or self.there.encrypts else "off"
        new = Dataset(target, "filesystem", "", flags=flags, came_from=ours.guid, encryption=encryption)
        self._put(below, replace(theirs or new, token=None, written=0, snapshots=(*before, arrived)))

    def _expected(self, ours: Dataset, base: Optional[Snapshot]) -> Optional[int]:
        """Of a snapshot that is still to be made, which zfs send cannot estimate."""
        if base is None:
            return ours.referenced
        newest = next((one for one in reversed(ours.snapshots) if one.guid), None)
        return ours.written if newest is not None and newest.guid == base.guid else None

    def _options(self, below: str, flags: str) -> list[str]:
        """Of a dataset that is made: what the user wants, for the rest how the source stores, and our notes."""
        wanted = self.want.properties
        values = {key: value for key, value in wanted.items() if not below or key in ONCE}
        of = self.source.datasets[below].values
        values.update({key: of[key] for key in self.want.copied if key not in wanted and of.get(key, "-") != "-"})
        values.update({FROM: self.source.datasets[below].guid, FLAGS: flags})
        return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]

    # --- before and after --------------------------------------------------------------------------------------------

    def _take(self, point: _Point) -> None:
        top = f"{self.source.top}@{point.name}"
        deep = ["-r"] if self.want.recursive else []
        argv = ["zfs", "snapshot", *deep, "-o", _note(point.members[""]), top]
        every = [str(one) for one in point.members.values()]
        self._do("snapshot", SOURCE, argv, every, "one command, so that all datasets are of one moment")
        newest = max((s.createtxg for d in self.source.datasets.values() for s in d.snapshots), default=0)
        for one in point.members.values():
            self._remember(SOURCE, replace(one, createtxg=newest + 1, creation=self._created(one)))

    def _created(self, one: Snapshot) -> int:
        return one.creation or int(self.now.timestamp())

    def _settle(self, point: _Point) -> None:
        """Hold what has arrived, and only then let go of what it replaces."""
        if any(self._newer(point, below) for below in point.members):
            return  # it was replaced itself
        arrived = {}
        for below, one in point.members.items():
            theirs = self.there.datasets.get(below)
            found = theirs.named(one.name) if theirs else None
            if found is not None:
                arrived[below] = found
        unmarked = [
            replace(found, made=self.want.prefix, moment=ours.moment)
            for below in arrived
            for found in self.there.datasets[below].snapshots  # also of a run that was killed when it had sent it
            for ours in [self._sent_as(point, below, found)]
            if not found.made and ours and ours.made == self.want.prefix
        ]
        for note, found_ in itertools.groupby(sorted(unmarked, key=_note), _note):
            for batch in batches(sorted(map(str, found_))):
                self._do("mark", TARGET, ["zfs", "set", note, *batch], batch, "retention is to know that it is ours")
        for found in unmarked:
            self._remember(TARGET, found)
        self._hold(SOURCE, point.members.values(), "it is the base of the next send")
        self._hold(TARGET, [self._now(TARGET, found) for found in arrived.values()], "it is the base of the next send")
        reason = f"{point.name} takes its place"
        here, there = [], []
        for below, found in arrived.items():
            dataset = self.source.datasets[below]
            for old in self.there.datasets[below].snapshots:
                mine = dataset.find(old.guid)
                if mine is not None and old.guid != found.guid and point.follows(below, mine):
                    there.append(old)
                    if not mine.bookmark:
                        here.append(mine)
        self._release(TARGET, there, reason)  # in one session with the holds
        self._release(SOURCE, here, reason)

    def _sent_as(self, point: _Point, below: str, found: Snapshot) -> Optional[Snapshot]:
        """What a snapshot of the destination is on the source."""
        if found.name == point.name:
            return point.members[below]
        return self.source.datasets[below].find(found.guid) if found.guid else None

    def _common_name(self, view: View) -> str:
        """The newest snapshot of ours, which a chain may go on from."""
        dataset = view.datasets.get("")
        names = [one.name for one in dataset.snapshots if one.made] if dataset else []
        return names[-1] if names else ""

    def _prune(self, side: str, keep: Keep, newest: str) -> None:
        """Give up snapshots of ours, the oldest first, each of all datasets or of none."""
        if keep.everything:
            return
        view = self.source if side == SOURCE else self.there
        other = self.there if side == SOURCE and self.target is not None else self.source
        names: dict[str, list[Snapshot]] = {}
        for dataset in view.datasets.values():
            for one in dataset.snapshots:
                names.setdefault(one.name, []).append(one)
        ours = [name for name, found in names.items() if self._is_ours(name, found)]
        ours.sort(key=lambda name: max(one.createtxg for one in names[name]))
        spared = set(ours[-keep.count :] if keep.count else ())
        if keep.days is not None:
            since = self.now.timestamp() - keep.days * 86400
            spared |= {name for name in ours if max(one.creation for one in names[name]) > since}
        last = {newest, *self._last_common(view, other)}
        gone = [
            name
            for name in ours
            if name not in spared and name not in last and not any(one.userrefs or one.cloned for one in names[name])
        ]
        kept = [f"the newest {keep.count}"] if keep.count is not None else []
        kept += [f"those of {keep.days:g} days"] if keep.days is not None else []
        reason = f"retention keeps {' and '.join(kept)}"
        for dataset in view.datasets.values():
            there = [name for name in gone if dataset.named(name)]
            for batch in batches(there):
                subjects = [f"{dataset.name}@{name}" for name in batch]
                argv = ["zfs", "destroy", f"{dataset.name}@{','.join(batch)}"]
                self._do("destroy", side, argv, subjects, reason)
        left = {
            below: replace(dataset, snapshots=tuple(one for one in dataset.snapshots if one.name not in gone))
            for below, dataset in view.datasets.items()
        }
        self._see(side, left)

    def _is_ours(self, name: str, found: Iterable[Snapshot]) -> bool:
        """By its name and by what was noted when it was made: a name alone anybody can choose."""
        made = re.fullmatch(re.escape(self.want.prefix) + r"-\d{8}T\d{6}Z", name)
        return made is not None and all(one.made == self.want.prefix for one in found)

    def _last_common(self, view: View, other: View) -> set[str]:
        """Of each dataset the newest snapshot that the other side has too."""
        found = set()
        for below, dataset in view.datasets.items():
            theirs = other.datasets.get(below)
            if theirs is None or other is view:
                continue
            known = {_identity(one) for one in (*theirs.snapshots, *theirs.bookmarks)}
            common = [one.name for one in dataset.snapshots if _identity(one) in known]
            found.update(common[-1:])
        return found

    # --- steps -------------------------------------------------------------------------------------------------------

    def _do(self, act: str, side: str, argv: Sequence[str], subjects: Iterable[str], reason: str) -> None:
        self.steps.append(Command(act, side, tuple(argv), tuple(subjects), reason))

    def _abort(self, below: str, reason: str) -> None:
        theirs = self.there.datasets[below]
        self._do("abort", TARGET, ["zfs", "receive", "-A", theirs.name], [theirs.name], reason)
        self.resumes.pop(below, None)
        if theirs.snapshots:
            self._put(below, replace(theirs, token=None))
        else:  # zfs-receive(8): a dataset that was being made goes with its state
            left = {key: one for key, one in self.there.datasets.items() if key != below}
            self.target = replace(self.there, datasets=left)

    def _hold(self, side: str, snapshots: Iterable[Snapshot], reason: str) -> None:
        tag = self.want.prefix
        open_ = [one for one in (self._now(side, each) for each in snapshots) if tag not in one.holds]
        for batch in batches(sorted(map(str, open_))):
            self._do("hold", side, ["zfs", "hold", tag, *batch], batch, reason)
        for one in open_:
            self._remember(side, replace(one, holds=one.holds | {tag}, userrefs=one.userrefs + 1))

    def _release(self, side: str, snapshots: Iterable[Snapshot], reason: str) -> None:
        tag = self.want.prefix
        held = [one for one in (self._now(side, each) for each in snapshots) if tag in one.holds]
        for batch in batches(sorted(map(str, held))):
            self._do("release", side, ["zfs", "release", tag, *batch], batch, reason)
        for one in held:
            self._remember(side, replace(one, holds=one.holds - {tag}, userrefs=one.userrefs - 1))

    def _now(self, side: str, snapshot: Snapshot) -> Snapshot:
        """As it is after the steps so far."""
        view = self.source if side == SOURCE else self.there
        for dataset in view.datasets.values():
            if dataset.name == snapshot.dataset:
                return dataset.named(snapshot.name) or snapshot
        return snapshot

    def _remember(self, side: str, snapshot: Snapshot) -> None:
        view = self.source if side == SOURCE else self.there
        datasets = dict(view.datasets)
        for below, dataset in datasets.items():
            if dataset.name == snapshot.dataset:
                others = [one for one in dataset.snapshots if one.name != snapshot.name]
                ordered = sorted([*others, snapshot], key=lambda one: one.createtxg)
                datasets[below] = replace(dataset, snapshots=tuple(ordered))
        self._see(side, datasets)

    def _see(self, side: str, datasets: Mapping[str, Dataset]) -> None:
        if side == SOURCE:
            self.source = replace(self.source, datasets=datasets)
        else:
            self.target = replace(self.there, datasets=datasets)

    def _put(self, below: str, dataset: Dataset) -> None:
        self.target = replace(self.there, datasets={**self.there.datasets, below: dataset})


def _note(one: Snapshot) -> str:
    return f"{MADE}={one.made}/{one.moment}"


def _identity(one: Snapshot) -> str:
    return one.guid or f"new {one.name}"


BASE = "it is what the stream builds on"


def batches(names: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), BATCH):
        yield list(names[start : start + BATCH])
