# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The armed protocol in a small world: every order of what a control node, two servers and a network can do.

The world is made of one primary, one candidate, the armed process beside it and a run of failover.yml. All states that
can be reached are visited (breadth first); what the armed process decides is decided by the real code: `step`,
`refutation` and the MOVES of its state. In no state are there two primaries, no promotion lacks WAL, and from every
state, with the network mended, one more run ends with one primary that has every row.

What the model takes for given: a primary that crashes and comes back needs longer than `gap_seconds` to recover and to
be connected to; a server that is started with standby.signal is a standby; a walsender ends its stream in a shutdown
after the standby has confirmed the shutdown record, or by its timeout.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple, Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import arming
from ansible_collections.hotspare.postgresql.plugins.module_utils.armed_state import MOVES
from ansible_collections.hotspare.postgresql.plugins.module_utils.arming import (
    GAP_SECONDS,
    Seen,
    Session,
    Verdict,
    Watch,
    record_end,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import format_lsn

BLOCK, SEGMENT = 8192, 16 << 20
ORIGIN = 0x3000028
NONE, ARMED_ON, ANOTHER = 0, 1, 2  # the candidate's receiver, as the armed process knows them
LENGTH = {"row": 80, "shutdown": 114, "recovery": 114}


class World(NamedTuple):
    """Positions in the WAL count records."""

    # the old primary: up, stopping (no writes any more), clean, crashed; what it runs as; whether it has standby.signal
    power: str = "up"
    role: str = "primary"
    signal: bool = False
    wal: tuple[str, ...] = ("row",)
    # the network, and the candidate
    link: bool = True
    receiver: int = ARMED_ON
    received: int = 1
    replayed: int = 1
    promoted: bool = False
    # the armed process
    armed: Optional[str] = None
    alive: bool = False
    position: int = 0
    before: int = 0
    seen: int = 0
    ended: bool = False
    proved: bool = False
    slept: bool = False
    late: bool = False
    # the run: what it does next, or dead
    run: str = "prepare"
    # a task of a run that died goes on, and how many runs may follow that one
    orphan: bool = False
    runs: int = 0
    # what may still go wrong: crashes, cuts, processes that sleep or die
    mishaps: int = 2
    writes: int = 1


# --- what the real code is asked --------------------------------------------------------------------------------------


@cache
def lsns(wal: tuple[str, ...]) -> list[int]:
    """Where each record starts, and where the last one ends."""
    found = [ORIGIN]
    for kind in wal:
        found.append(record_end(found[-1], LENGTH[kind], BLOCK, SEGMENT))
    return found


def printed(world: World, start: int, end: int) -> str:
    """What pg_waldump says of these records."""
    places, lines = lsns(world.wal), []
    for index in range(start, end):
        kind = world.wal[index]
        at = format_lsn(places[index])
        manager, what = (
            ("Heap", "INSERT off 1") if kind == "row" else ("XLOG", f"CHECKPOINT_SHUTDOWN redo {at}; tli 1;")
        )
        lines.append(
            f"rmgr: {manager:<11} len (rec/tot): {LENGTH[kind]:6}/{LENGTH[kind]:6}, tx: {0:10}, lsn: {at}, prev 0/0,"
            f" desc: {what} prev tli 1"
        )
    return "\n".join(lines)


def one_look(world: World) -> tuple[Watch, Verdict]:
    places = lsns(world.wal)
    now = 2 * GAP_SECONDS if world.slept else 0.005
    seen = Seen(
        asked=now,
        answered=now,
        in_recovery=not world.promoted,
        receiver=world.receiver or None,
        status="streaming" if world.receiver else None,
        timeline=1 if world.receiver else None,
        received=places[world.received],
        replayed=places[world.replayed],
    )
    session = Session(ARMED_ON, 1, places[world.position], expires=-1.0 if world.late else 1000.0)
    watch = Watch(0.0, places[world.seen], places[world.before], 0.0, 0.0 if world.ended else None)
    return arming.step(session, watch, seen)


def decided(world: World, to: str, **changes: Any) -> World:
    """The armed process changes the state, if it still may."""
    if to not in MOVES.get(world.armed or "", ()):
        return world._replace(alive=False)
    return world._replace(armed=to, **changes)


def look(world: World) -> World:
    watch, verdict = one_look(world)
    places = lsns(world.wal)
    after = world._replace(
        before=places.index(watch.before),
        seen=places.index(watch.replayed),
        ended=watch.ended is not None,
        slept=False,
    )
    if verdict.what == "wait":
        return after
    if verdict.what != "prove":
        return decided(after, verdict.what, alive=False)
    if world.proved:
        return decided(after, "promoting")
    text = printed(after, after.before, after.seen)
    session = Session(ARMED_ON, 1, places[world.position], 1000.0)
    reason, _ = arming.refutation(text, session, places[after.seen], BLOCK, SEGMENT)
    # Another look before it promotes: what comes in between is for the search to find.
    return after._replace(proved=True) if reason is None else decided(after, "refused", alive=False)


# --- what can happen --------------------------------------------------------------------------------------------------


def servers(w: World) -> Iterator[tuple[str, World]]:
    """The two servers and the network, by themselves."""
    if w.power == "up" and w.role == "primary" and w.writes:
        yield "write", w._replace(wal=(*w.wal, "row"), writes=w.writes - 1)
    if w.receiver and w.received < len(w.wal):
        yield "transfer", w._replace(received=w.received + 1)
    if w.replayed < w.received:
        yield "replay", w._replace(replayed=w.replayed + 1)
    if w.power == "up" and w.link and not w.receiver and not w.promoted:
        yield "connect", w._replace(receiver=ANOTHER, slept=True)
    if w.link and w.mishaps:
        yield "cut", w._replace(link=False, receiver=0, mishaps=w.mishaps - 1)
    if not w.link:
        yield "mend", w._replace(link=True)
    if w.power in ("up", "stopping") and w.mishaps:
        yield "crash", w._replace(power="crashed", receiver=0, mishaps=w.mishaps - 1)
    if w.power == "stopping":
        yield "stopped", w._replace(power="clean", receiver=0)
    if w.power == "crashed" or (w.power == "clean" and w.signal):
        yield "comes back", started(w)


def started(w: World) -> World:
    """By its postmaster, a reboot, a hand on systemctl: what it is then standby.signal says."""
    if w.signal:
        return w._replace(power="up", role="standby")
    wal = (*w.wal, "recovery") if w.power == "crashed" else w.wal
    return w._replace(power="up", role="primary", wal=wal)


def process(w: World) -> Iterator[tuple[str, World]]:
    if not w.alive:
        return
    if w.armed == "armed":
        yield "look", look(w)
    elif w.armed == "promoting":
        yield "promote", w._replace(promoted=True, receiver=0, armed="promoted", alive=False)
    else:
        yield "end", w._replace(alive=False)
    if w.mishaps:
        yield "process dies", w._replace(alive=False, mishaps=w.mishaps - 1)
    if w.mishaps and not w.slept:
        yield "stall", w._replace(slept=True, mishaps=w.mishaps - 1)
    if not w.late:
        yield "expire", w._replace(late=True)


def armable(w: World) -> bool:
    return w.power == "up" and w.role == "primary" and w.link and bool(w.receiver) and not w.promoted


def newly_armed(w: World) -> World:
    return w._replace(
        armed="armed",
        alive=True,
        receiver=ARMED_ON,
        # As far as the primary had written: what the standby holds is not enough, see below.
        position=len(w.wal),
        before=w.replayed,
        seen=w.replayed,
        ended=False,
        proved=False,
        slept=False,
        late=False,
    )


def disarmed(w: World) -> Optional[World]:
    """None when it is too late for that."""
    if w.armed in ("promoting", "promoted"):
        return None
    return w._replace(armed="disarmed" if w.armed == "armed" else w.armed)


def run(w: World) -> Iterator[tuple[str, World]]:
    """One run of failover.yml; it may die before each of its steps, and can do nothing over a network that is cut.

    With `runs` it may die in the middle of a stop as well, which goes on, and another run may come.
    """
    if w.orphan:
        yield "the stop is too late", w._replace(orphan=False)
        if w.power == "up" and w.role == "primary":
            yield (
                "the stop of the dead run",
                w._replace(orphan=False, power="stopping", wal=(*w.wal, "shutdown")),
            )
    if w.run == "dead" and w.runs:
        for begins in ("prepare", "roll back"):
            yield "another run", w._replace(run=begins, runs=w.runs - 1)
    if w.run in ("dead", "done"):
        return
    yield "run dies", w._replace(run="dead")
    if not w.link:
        return
    if w.run == "stop" and w.runs:
        yield "run dies in the stop", w._replace(run="dead", orphan=True)
    if w.run == "arm" or may_work(w):
        yield from STEPS[w.run](w)


def may_work(w: World) -> bool:
    """Whether the old primary is free to be worked on: the lock `working`, and the state is read under it."""
    return not w.orphan


def prepare(w: World) -> Iterator[tuple[str, World]]:
    if w.power == "up" and w.role == "primary":
        yield "prepare", w._replace(signal=True, run="arm")


def arm(w: World) -> Iterator[tuple[str, World]]:
    off = disarmed(w)
    if off is not None and armable(off) and (off.armed is None or not w.alive):
        yield "arm", newly_armed(off)._replace(run="stop")
    yield "give up", w._replace(run="roll back")


def stop(w: World) -> Iterator[tuple[str, World]]:
    if w.power == "up" and w.role == "primary":
        yield "stop", w._replace(power="stopping", wal=(*w.wal, "shutdown"), run="collect")
    yield "give up", w._replace(run="roll back")


def collect(w: World) -> Iterator[tuple[str, World]]:
    if w.promoted:
        yield "collect", w._replace(run="done")
        return
    yield "give up", w._replace(run="roll back")
    if w.power in ("up", "stopping") or (w.armed == "promoting" and w.alive):
        return  # waits
    yield from guarded(w)


def guarded(w: World) -> Iterator[tuple[str, World]]:
    """Disarm first; then the ordinary promotion, with what pg_control of the stopped primary says."""
    off = disarmed(w)
    if off is None and w.alive:
        return
    off = off or w
    if off.power == "clean" and off.replayed == len(off.wal) and off.wal[-1] == "shutdown":
        yield "promote guarded", off._replace(promoted=True, receiver=0, run="done")
    else:
        yield "give up", off._replace(run="roll back")


def roll_back(w: World) -> Iterator[tuple[str, World]]:
    """Disarm, and only when that is proved let the old primary be one again."""
    off = disarmed(w)
    if off is None:
        if w.promoted:
            yield "too late", w._replace(run="done")
        return
    if off.power == "up" and off.role == "primary":
        yield "unprepare", off._replace(signal=False, run="done")
    elif off.power != "stopping" and not off.promoted:
        yield (
            "start as primary",
            started(off._replace(power=_down(off), signal=False, role="primary"))._replace(run="done"),
        )


def _down(w: World) -> str:
    """A prepared primary that came back as a standby is stopped first; it wrote nothing since."""
    return "clean" if w.power == "up" else w.power


STEPS: dict[str, Callable[[World], Iterator[tuple[str, World]]]] = {
    "prepare": prepare,
    "arm": arm,
    "stop": stop,
    "collect": collect,
    "roll back": roll_back,
}


def successors(w: World) -> Iterator[tuple[str, World]]:
    yield from servers(w)
    yield from process(w)
    yield from run(w)


# --- what must hold ---------------------------------------------------------------------------------------------------


def wrong(before: World, after: World) -> Optional[str]:
    # One that is stopping has written its last record, and writes no other.
    if after.promoted and after.power == "up" and after.role == "primary":
        return "two primaries"
    if after.promoted and not before.promoted and "row" in after.wal[after.replayed :]:
        return "a promotion without all rows"
    if after.promoted and not before.promoted and after.wal[-1] != "shutdown":
        return "a promotion without the proof"
    if before.run == after.run == "done" and before.power == "up" and after.power == "stopping":
        return "the cluster of a run that had ended was stopped"
    return None


def told_apart(w: World) -> World:
    """Without what makes no difference any more: what a process knew that is gone."""
    if w.alive:
        return w
    rest = {"position": 0, "before": 0, "seen": 0, "ended": False, "proved": False, "slept": False, "late": False}
    return w._replace(receiver=min(w.receiver, ARMED_ON), **rest)


def search(start: World) -> tuple[set[World], Optional[list[str]]]:
    """All states that can be reached, and the way to the first one that must not be."""
    came: dict[World, tuple[Optional[World], str]] = {start: (None, "start")}
    todo = deque([start])
    while todo:
        world = todo.popleft()
        for name, after in successors(world):
            after = told_apart(after)
            if after in came:
                continue
            came[after] = (world, name)
            if reason := wrong(world, after):
                way, at = [reason], after
                while came[at][0] is not None:
                    way.append(came[at][1])
                    at = came[at][0]  # type: ignore[assignment]
                return set(came), way[::-1]
            todo.append(after)
    return set(came), None


def calm(w: World) -> World:
    return w._replace(link=True, mishaps=0, writes=0, run="dead")


def run_again(w: World) -> World:
    """The network is mended, whoever is down may come back, and failover.yml runs again and is not disturbed."""
    for _ in range(100):
        # What goes on by itself goes on first.
        quiet = [after for name, after in (*servers(w), *process(w)) if name not in ("expire", "connect", "comes back")]
        quiet = [after for after in quiet if after != w]
        if quiet:
            w = quiet[0]
        elif w.promoted:
            # The old primary is made a standby of the new one: its signal is there before it is started.
            return w._replace(signal=True, power="up", role="standby")
        elif w.power == "up" and w.role == "primary" and not w.receiver:
            w = w._replace(receiver=ANOTHER)
        elif w.power == "up" and w.role == "primary":
            off = disarmed(w)
            if off is None:
                # A process died before it asked; the run says "pending", the operator looks, and it is not promoted.
                off = w._replace(armed=None)
            w = newly_armed(off._replace(signal=True, alive=False))
            w = w._replace(power="stopping", wal=(*w.wal, "shutdown"))
        else:
            ways = [after for _, after in guarded(w)]
            assert ways, w
            w = ways[0]
            if w.run == "roll back":
                if w.armed == "promoting":
                    w = w._replace(armed=None)
                ways = [after for _, after in roll_back(w)]
                assert ways, w
                w = ways[0]._replace(run="dead")
    raise AssertionError(f"it does not end: {w}")


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reached() -> set[World]:
    states, way = search(World())
    assert way is None, " -> ".join(way or [])
    return states


def test_never_two_primaries_and_never_a_promotion_without_proof(reached):
    print(f"{len(reached)} states")
    assert len(reached) > 5000  # it is a search
    # The search saw what it is for.
    assert {w.armed for w in reached} == {None, "armed", "promoting", "promoted", "disarmed", "expired", "refused"}
    assert any(w.promoted and w.power == "up" and w.role == "standby" for w in reached)
    assert any(w.run == "dead" and w.armed == "promoted" for w in reached)
    assert any("recovery" in w.wal and w.armed == "refused" for w in reached)


def test_the_armed_process_alone_without_standby_signal_on_the_primary():
    """Nobody prepared the primary, so a crash brings it back as one: its end-of-recovery checkpoint proves nothing."""
    start = newly_armed(World(run="dead", mishaps=4, writes=2))
    states, way = search(start)
    assert way is None, " -> ".join(way or [])
    assert any("recovery" in w.wal for w in states)


def test_a_run_again_ends_with_one_primary_that_has_every_row(reached):
    ends = set()
    for world in {calm(w) for w in reached if w.run in ("dead", "done")}:
        end = run_again(world)
        assert end.promoted or (end.power, end.role) == ("up", "primary"), (world, end)
        assert not (end.promoted and end.role == "primary"), (world, end)
        assert not end.promoted or "row" not in end.wal[end.replayed :], (world, end)
        ends.add(end.promoted)
    assert ends == {True} or ends == {True, False}


def test_a_stop_of_a_dead_run_that_happens_later():
    states, way = search(World(runs=1, mishaps=1))
    assert way is None, " -> ".join(way or [])
    assert any(w.orphan and w.run == "roll back" for w in states)
    assert any(not w.orphan and w.run == "done" and w.runs == 0 for w in states)


# What the model says when a rule is missing: it would have found it.


def test_it_finds_an_armed_process_that_takes_any_stream(monkeypatch):
    real = arming.step

    def forgetful(session: Session, watch: Watch, seen: Seen) -> tuple[Watch, Verdict]:
        return real(Session(seen.receiver or session.receiver, 1, session.position, session.expires), watch, seen)

    monkeypatch.setattr(arming, "step", forgetful)
    way = search(newly_armed(World(run="dead")))[1]
    assert way is not None
    assert "comes back" in way


def test_it_finds_an_armed_process_that_slept(monkeypatch):
    real = arming.step
    monkeypatch.setattr(arming, "step", lambda session, *seen: real(dataclasses.replace(session, gap=1000.0), *seen))
    way = search(newly_armed(World(run="dead")))[1]
    assert way is not None
    assert way[-1] in ("two primaries", "a promotion without the proof")


def test_it_finds_a_promotion_without_the_record(monkeypatch):
    monkeypatch.setattr(arming, "refutation", lambda *arguments: (None, ""))
    assert search(World())[1] is not None


def test_it_finds_that_what_the_standby_holds_is_no_starting_point(monkeypatch):
    """The primary crashed before the arming, and the end of its recovery arrives on the stream that is armed."""
    real = newly_armed
    monkeypatch.setitem(globals(), "newly_armed", lambda w: real(w)._replace(position=w.received))
    way = search(World())[1]
    assert way is not None
    assert way[:2] == ["crash", "comes back"]


def test_it_finds_a_rollback_without_a_disarm(monkeypatch):
    monkeypatch.setitem(globals(), "disarmed", lambda w: w)
    way = search(World())[1]
    assert way is not None
    assert "start as primary" in way


def test_it_finds_a_run_that_works_beside_the_task_of_a_dead_one(monkeypatch):
    monkeypatch.setitem(globals(), "may_work", lambda w: True)
    way = search(World(runs=1, mishaps=0))[1]
    assert way is not None
    assert way[-2:] == ["the stop of the dead run", "the cluster of a run that had ended was stopped"]


def test_it_finds_a_primary_that_was_not_prepared(monkeypatch):
    def forgotten(w: World) -> Iterator[tuple[str, World]]:
        yield "forget", w._replace(run="arm")

    real = started

    def boots(w: World) -> Iterator[tuple[str, World]]:
        if w.power == "clean":
            yield "comes back", real(w)
        yield from process(w)
        yield from run(w)
        yield from servers(w)

    monkeypatch.setitem(STEPS, "prepare", forgotten)
    monkeypatch.setitem(globals(), "successors", boots)
    way = search(World())[1]
    assert way is not None
    assert way[-1] == "two primaries"
