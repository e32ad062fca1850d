# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does what zfs_plan.py decided: looks at both sides, runs the steps one by one, and reads back what has arrived."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Optional

from .shell import HotspareError, write_durably
from .zfs import Side, Snapshot, View, failed, look, parse_estimate, parse_get
from .zfs_plan import SOURCE, TARGET, Command, Plan, Send, Step, make_plan
from .zfs_refusals import Want, require_atomic, require_room
from .zfs_stream import flow, require_plain

ZSTD = ("zstd", "-q", "-1", "-T0", "-c")
UNZSTD = ("zstd", "-q", "-d", "-c")
MBUFFER = ("mbuffer", "-q", "-m", "128M")  # the receiver stops for each transaction group, the network need not
WORTHWHILE = 64 << 20  # bytes, from which on to compress and a look for the program pay
BUFFERED = 1 << 30  # bytes, from which on a buffer does

# What zfs receive says while another one is still at work there: one that was cut off from its sender ends when its
# host notices, and only then the token is its last.
BUSY = "contains partially-complete state"
BUSY_SECONDS = 120.0  # TCP tells it in that time, when the network is back
BUSY_PAUSE = 3.0

GET = ("zfs", "get", "-Hp", "-o", "name,property,value,source")

Flow = Callable[..., int]  # zfs_stream.flow


@dataclass
class Sent:
    """What came of one stream; bytes as zfs send wrote them."""

    planned: Send
    step: Send  # the same, with the GUID once it is known
    estimated: Optional[int]
    sent: int = 0
    seconds: float = 0.0


def work(
    source: Side,
    target: Optional[Side],
    names: tuple[str, str],
    want: Want,
    *,
    check_mode: bool = False,
    status_file: Optional[str] = None,
    now: Optional[datetime] = None,
    transfer: Flow = flow,
    patience: float = BUSY_SECONDS,
) -> dict[str, Any]:
    """Bring about what is wanted between the datasets `names`; the module's result. HotspareError, with the same facts.

    In check mode the same is decided, and estimated. `patience`: seconds for a receive of an earlier run to end.
    """
    deadline = time.monotonic() + patience
    while True:
        work = _Work(source, target, names, want, now or datetime.now(timezone.utc), status_file, transfer)
        try:
            work.look()
            work.estimate()
            if not check_mode:
                work.do()
            return work.record()
        except HotspareError as error:
            busy = BUSY in str(error.facts.get("stderr", ""))
            if busy and time.monotonic() < deadline:
                time.sleep(BUSY_PAUSE)
                continue
            if busy and target:
                error.message = (
                    f"a zfs receive of an earlier run, which lost its sender, is still at work on {target.where}: it "
                    "ends when sshd there notices (ClientAliveInterval in sshd_config), or end it, and run this again"
                )
            error.facts.update({**work.record(), **error.facts})
            raise


class _Work:
    def __init__(
        self,
        source: Side,
        target: Optional[Side],
        names: tuple[str, str],
        want: Want,
        now: datetime,
        status_file: Optional[str],
        transfer: Flow,
    ) -> None:
        self.sides = {SOURCE: source, **({TARGET: target} if target else {})}
        self.names = {SOURCE: names[0], TARGET: names[1]}
        self.want, self.now, self.transfer = want, now, transfer
        self.views: dict[str, View] = {}
        self.plan = Plan(want.snapshot)
        self.sent: list[Sent] = []
        self.done: list[Step] = []
        self.acted = False
        self.progress = Progress(status_file, self.names)

    # --- decide ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        if any(side.login is not None for side in self.sides.values()):  # at once: another host takes its time
            with ThreadPoolExecutor(len(self.sides)) as pool:
                self.views = dict(zip(self.sides, pool.map(self._look, self.sides)))
        else:
            self.views = {key: self._look(key) for key in self.sides}
        self.plan = make_plan(self.views[SOURCE], self.views.get(TARGET), self.want, self.now)
        self.sent = [Sent(step, step, step.expected) for step in self.plan.sends]

    def _look(self, key: str) -> View:
        deep, copied = self.want.recursive, self.want.copied
        side, name = self.sides[key], self.names[key]
        return look(side, name, recursive=deep, copied=copied, mounts=key == SOURCE, asides=key == TARGET)

    def estimate(self) -> None:
        """Ask zfs send how much each stream will be; of a snapshot that is not there yet, by what was written."""
        for one in self.sent:
            if one.step.guid:
                one.estimated = self._asked(one.step)
            elif one.estimated is None:
                one.estimated = self._foreseen(one.step)
        self._require_room()

    def _asked(self, step: Send) -> Optional[int]:
        verb, *rest = step.send[1:]
        done = self.sides[SOURCE].run("zfs", verb, "-nvP", *rest)
        return parse_estimate(done.stdout + "\n" + done.stderr)

    def _foreseen(self, step: Send) -> Optional[int]:
        """Of a snapshot that is not there yet: up to the newest that is, and what was written since."""
        dataset = self.views[SOURCE].datasets[step.below]
        newest = next((one for one in reversed(dataset.snapshots) if one.guid), None)
        base = next((one for one in (*dataset.snapshots, *dataset.bookmarks) if str(one) == step.base), None)
        if newest is None or (base is not None and newest.createtxg <= base.createtxg):
            return None
        asked = self._asked(replace(step, send=(*step.send[:-1], str(newest))))
        return None if asked is None else asked + dataset.written

    def _require_room(self) -> None:
        if TARGET not in self.views:
            return
        require_room(self.views[TARGET], sum(self._room(one) for one in self.sent if one.step.kind != "resumed"))

    def _room(self, one: Sent) -> int:
        """The most that a stream needs there: what is not sent as it is stored takes less room than in the stream."""
        whole = self.views[SOURCE].datasets[one.step.below].referenced
        if one.estimated is None:  # zfs send does not say; or it will, once the snapshot is there, and this looks again
            return whole if one.step.guid else 0
        return min(one.estimated, whole)

    # --- act ---------------------------------------------------------------------------------------------------------

    def do(self) -> None:
        self.acted = True
        try:
            for _kind, steps in itertools.groupby(self.plan.steps, _together):
                commands: list[Command] = []
                for step in steps:
                    if isinstance(step, Command):
                        commands.append(step)
                    else:
                        self._send(step)
                        self.done.append(step)
                if commands:
                    if self.done and isinstance(self.done[-1], Send):
                        self._read_back()
                    self._run(commands)
        except HotspareError as error:
            self.progress.end(error.message)
            self._let_go()
            raise
        self.progress.end(None)

    def _run(self, steps: Sequence[Command]) -> None:
        """Commands of one side, in one session."""
        side = self.sides[steps[0].side]
        for step, done in zip(steps, side.run_all([step.argv for step in steps], stop=steps[0].act != "unmount")):
            # A rename mounts again only what it can.
            if done.rc != 0 and not (step.act == "unmount" and "not currently mounted" in done.stderr):
                raise failed(side.where, step.argv, done.stderr or done.stdout)
            self.done.append(step)
        if steps[0].act == "snapshot":
            self._prove()

    def _prove(self) -> None:
        """That the snapshot was taken of all datasets at once; their GUIDs are what has to arrive."""
        view, side = self.views[SOURCE], self.sides[SOURCE]
        names = {below: f"{one.name}@{self.plan.name}" for below, one in view.datasets.items()}
        done = side.run(*GET, "guid,createtxg", *names.values())
        found = parse_get(done.stdout)
        made = {
            below: Snapshot(name.partition("@")[0], self.plan.name, *_guid_and_txg(found[name]))
            for below, name in names.items()
        }
        datasets = {
            below: replace(one, snapshots=(*one.snapshots, made[below])) for below, one in view.datasets.items()
        }
        self.views[SOURCE] = replace(view, datasets=datasets)
        require_atomic(self.views[SOURCE], self.plan.name)
        for one in self.sent:
            if not one.step.guid:
                one.step = replace(one.step, guid=made[one.step.below].guid)
                if one.estimated is None or one.estimated >= WORTHWHILE:
                    one.estimated = self._asked(one.step)
        self._require_room()

    def _send(self, planned: Send) -> None:
        one = self._of(planned)
        source, target = self.sides[SOURCE], self.sides[TARGET]
        sending, receiving = [one.step.send], [one.step.receive]
        crosses = source.login is not None or target.login is not None
        if crosses and (one.estimated or 0) >= WORTHWHILE:
            if not one.step.packed and source.has("zstd") and target.has("zstd"):
                sending, receiving = [*sending, ZSTD], [UNZSTD, *receiving]
            if (one.estimated or 0) >= BUFFERED and target.has("mbuffer"):
                receiving = [*receiving[:-1], MBUFFER, receiving[-1]]
        before, after = source.stages(sending), target.stages(receiving)
        # Counted as zfs send wrote it, on whichever side of the ssh this host is.
        if source.login is None and len(before) > 1:
            before, after = before[:1], [*before[1:], *after]
        elif source.login is not None and len(receiving) > 1 and receiving[0] == UNZSTD:
            before, after = [*before, after[0]], after[1:]
        began = time.monotonic()
        self.progress.begin(one, self.sent)

        def tell(count: int) -> None:
            one.sent, one.seconds = count, time.monotonic() - began
            self.progress.tell(one)

        try:
            # What another host sends is received here as root.
            checked = {"head": require_plain} if source.login is not None else {}
            tell(self.transfer(before, after, tell, **checked))
        finally:
            one.seconds = time.monotonic() - began

    def _read_back(self) -> None:
        """That what arrived is what was to arrive, by GUID: an interrupted receive may have been of something else."""
        sent = {done.target: one for done in self.done if isinstance(done, Send) for one in [self._of(done)]}
        if not sent:
            return
        side = self.sides[TARGET]
        names = [f"{target}@{one.step.snapshot.partition('@')[2]}" for target, one in sent.items()]
        done = side.run(*GET, "guid,receive_resume_token", *names, *sent, check=False)
        found = parse_get(done.stdout)
        for (target, one), name in zip(sent.items(), names):
            guid = found.get(name, {}).get("guid", ("",))[0]
            token = found.get(target, {}).get("receive_resume_token", ("-",))[0]
            if guid != one.step.guid or token not in ("-", ""):
                raise HotspareError(
                    f"{name} on {side.where} is not {one.step.snapshot} (GUID {guid or 'none'}, and {one.step.guid} "
                    "was sent): nothing was released; see what else receives there, and run this again"
                )

    def _of(self, planned: Send) -> Sent:
        return next(one for one in self.sent if one.planned is planned)

    def _let_go(self) -> None:
        """Release what this run has held for streams of which nothing has arrived: nobody would ask for it again, and
        the next run gives it up."""
        if any(isinstance(step, Send) for step in self.done) or TARGET not in self.sides:
            return
        with contextlib.suppress(HotspareError):
            deep = self.want.recursive
            view = look(self.sides[TARGET], self.names[TARGET], recursive=deep)
            if any(one.token for one in view.datasets.values()):
                return
            commands = [step for step in self.done if isinstance(step, Command) and step.side == SOURCE]
            new = [one for step in commands if step.act == "snapshot" for one in step.subjects]
            held = [one for step in commands if step.act == "hold" for one in step.subjects if one in new]
            if held:
                self.sides[SOURCE].run("zfs", "release", self.want.prefix, *held)

    # --- tell --------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """What RETURN of the module describes."""
        source = self.views.get(SOURCE)
        kinds = {one.step.kind for one in self.sent}
        seconds = sum(one.seconds for one in self.sent)
        sent = sum(one.sent for one in self.sent)
        points = [
            {"dataset": dataset.name, "guid": snapshot.guid or None, "createtxg": snapshot.createtxg}
            for dataset in (source.datasets.values() if source else ())
            for snapshot in [dataset.named(self.plan.name)]
            if snapshot
        ]
        return {
            "changed": bool(self.done if self.acted else self.plan.steps),
            "snapshot": self.plan.name,
            "snapshots": points,
            "kind": next((kind for kind in ("resumed", "full", "incremental") if kind in kinds), "none"),
            "transfers": [_transfer(one) for one in self.sent],
            "estimated_bytes": _sum(one.estimated for one in self.sent),
            "sent_bytes": sent,
            "seconds": round(seconds, 3),
            "rate": round(sent / seconds) if sent and seconds else None,
            "renamed": next((step.subjects[1] for step in self.plan.commands("rename")), None),
            "pruned": [
                {"side": step.side, "snapshot": subject}
                for step in self.plan.commands("destroy")
                for subject in step.subjects
            ],
            "stale_holds": [{"side": side, "snapshot": name} for side, name in self.plan.stale],
            "steps": [_told(step) for step in self.plan.steps],
        }


def _together(step: Step) -> str:
    """What is run in one go: commands of one side; those that need a look behind them alone."""
    if isinstance(step, Send):
        return "send"
    return f"{step.side} {step.act if step.act in ('snapshot', 'unmount') else 'others'}"


def _guid_and_txg(properties: Mapping[str, tuple[str, str]]) -> tuple[str, int]:
    return properties["guid"][0], int(properties["createtxg"][0])


def _transfer(one: Sent) -> dict[str, Any]:
    step = one.step
    return {
        "dataset": step.target,
        "kind": step.kind,
        "snapshot": step.snapshot,
        "guid": step.guid or None,
        "base": step.base or None,
        "estimated_bytes": one.estimated,
        "sent_bytes": one.sent,
        "seconds": round(one.seconds, 3),
        "rate": round(one.sent / one.seconds) if one.sent and one.seconds else None,
    }


def _told(step: Step) -> str:
    if isinstance(step, Send):
        return f"{step.kind}: {' '.join(step.send)} | {' '.join(step.receive)} ({step.reason})"
    return f"{step.side}: {' '.join(step.argv)} ({step.reason})"


def _sum(numbers: Any) -> Optional[int]:
    """None as soon as one is not known."""
    found = list(numbers)
    return None if None in found else sum(found)


class Progress:
    """What a long send tells while it is under way, in a file that status.yml reads."""

    def __init__(self, path: Optional[str], names: Mapping[str, str]) -> None:
        self.path, self.names = path, names
        self.state: dict[str, Any] = {}
        self.written = False

    def begin(self, one: Sent, every: Sequence[Sent]) -> None:
        self.state = {
            "state": "sending",
            "pid": os.getpid(),
            "began": _utc(),
            "source": self.names[SOURCE],
            "destination": self.names[TARGET],
            "dataset": one.step.target,
            "snapshot": one.step.snapshot.partition("@")[2],
            "kind": one.step.kind,
            "number": every.index(one) + 1,
            "of": len(every),
        }

    def tell(self, one: Sent) -> None:
        rate = one.sent / one.seconds if one.seconds else 0
        left = max(one.estimated - one.sent, 0) if one.estimated is not None else None
        self._write(
            sent_bytes=one.sent,
            estimated_bytes=one.estimated,
            rate=round(rate),
            seconds=round(one.seconds, 1),
            seconds_left=round(left / rate) if rate and left is not None else None,
        )

    def end(self, error: Optional[str]) -> None:
        if self.state:
            self._write(state="failed" if error else "done", error=error)

    def _write(self, **values: Any) -> None:
        self.state.update(values, updated=_utc())
        if self.path:
            try:
                write_durably(self.path, json.dumps(self.state) + "\n", mode=0o644)
                self.written = True
            except HotspareError:
                if not self.written:  # a path that cannot be meant; a disk that is full later on stops no long send
                    raise


def _utc() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
