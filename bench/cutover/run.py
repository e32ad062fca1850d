#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-cutover`: how long clients cannot write while the primary changes, ours and three other tools in turn.

Each tool has a pair of machines (containers with systemd and PostgreSQL 17, on a network of their own), all with the
same settings. A round takes one tool after the other, so that whatever else the machine does hits all of them alike.
The client (ledger.py) is the same for all. Cases:

idle     planned switchovers, no load but the client's; also of a second pair of ours, which has its archive
load     the same, with pgbench at 200 transactions a second beside it
sync     ours as a synchronous pair, idle
crash    the primary's machine is killed, the operator's command is started at once; later the machine boots again
rebuild  at pgbench scale 100, a primary that was cut off wrote on: until it streams again, by pg_rewind

run.py [--tools ours,repmgr] [--cases idle,load] [--output FILE]; ROUNDS=2 shortens it. bench/cutover/run.py --clean
removes the machines. Writes JSON (all single events) after each event, and prints a table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable

from lab import BenchError, Machine, make_network, remove_all, run, until
from ours import STATE, Archived, Ours
from pair import Pair
from patroni import Patroni
from pg_auto_failover import PgAutoFailover
from repmgr import Repmgr
from report import table

TOOLS: dict[str, type[Pair]] = {tool.name: tool for tool in (Ours, Archived, Repmgr, Patroni, PgAutoFailover)}
ROUNDS = {"idle": 10, "load": 10, "sync": 5, "crash": 3, "rebuild": 2}
ONLY = {
    "sync": ["ours"],
    "crash": [name for name in TOOLS if name != "archived"],
    "rebuild": ["ours", "repmgr"],
}
SCALE, REBUILD_SCALE = 10, 100
RATE = 200
# Modules say when in seconds since 1970, the client in CLOCK_MONOTONIC.
EPOCH = datetime.now(timezone.utc).timestamp() - time.monotonic()


class Ledger:
    """The client, while the block runs; afterwards `acks` [(thread, host, number, seconds)] and `errors`."""

    def __init__(self, pair: Pair, rate: int = 0) -> None:
        self.run = f"{pair.name}-{time.monotonic():.3f}"
        self.command = [
            "docker",
            "exec",
            "-i",
            pair.control.name,
            "python3",
            "/ledger.py",
            self.run,
            pair.hosts,
            str(rate),
        ]
        self.acks: list[tuple[str, str, int, float]] = []
        self.errors: list[list[Any]] = []

    def __enter__(self) -> Ledger:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        said = self.process.stdout.readline().strip()
        if said != "ready":
            self.process.communicate("")
            raise BenchError(f"the client cannot write: {said}")
        return self

    def __exit__(self, *_: object) -> None:
        output, _err = self.process.communicate("", timeout=60)
        told = json.loads(output)
        self.acks = sorted((tuple(ack) for ack in told["acks"]), key=lambda ack: ack[3])
        self.errors = told["errors"]

    def of_client(self) -> list[tuple[str, str, int, float]]:
        return [ack for ack in self.acks if ack[0] == "M"]

    def of_servers(self) -> list[tuple[str, str, int, float]]:
        return [ack for ack in self.acks if ack[0] != "M"]

    def measured(self, old: Machine, new: Machine) -> dict[str, Any]:
        """Outage of client and servers, lost rows, and for how long both machines took writes; seconds."""
        there = {
            tuple(row.split("|"))
            for row in new.sql(f"select thread, number from ledger where run = '{self.run}'", "bench").split()
        }
        missing = [ack for ack in self.acks if (ack[0], str(ack[2])) not in there]
        first = min((at for _, host, _, at in self.acks if host == new.address), default=None)
        late = [at for _, host, _, at in self.acks if host == old.address and first is not None and at > first]
        client = across(self.of_client(), new)
        return {
            "outage": rounded(gap(client)),
            "outage_servers": rounded(gap(across(self.of_servers(), new))),
            "last_ack": rounded(client[0]) if client else None,
            "first_ack": rounded(client[1]) if client else None,
            "writable_at": rounded(first),
            "rows": len(self.of_client()),
            "lost": sum(1 for ack in missing if ack[0] == "M"),
            "lost_servers": sum(1 for ack in missing if ack[0] != "M"),
            "dual_writable": rounded(late[-1] - first) if late and first is not None else 0,
            "dual_rows": len(late),
            "errors": [[thread, round(at, 3), text] for thread, at, text in self.errors if thread == "M"][:5],
        }


def across(acks: list[tuple[str, str, int, float]], new: Machine) -> tuple[float, float] | None:
    """(last acknowledgement on the other host, first on this one), where it came to be the one that answers."""
    for before, after in zip(acks, acks[1:]):
        if before[1] != new.address and after[1] == new.address:
            return before[3], after[3]
    return None


def gap(moments: tuple[float, float] | None) -> float | None:
    return moments[1] - moments[0] if moments else None


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def spans(phases: dict[str, Any], event: dict[str, Any]) -> dict[str, float]:
    """What a planned outage of ours is made of, in seconds, as its modules told; {} where they did not."""
    armed = phases.get("armed") or {}
    told, at = armed.get("phases") or {}, armed.get("at") or {}
    if not (told.get("promoted") and at.get("stream_ended") and event["last_ack"]):
        return {}
    ended = at["stream_ended"] - EPOCH
    return {
        "last row to stream ended": round(ended - event["last_ack"], 4),
        "stream ended to proof read": told["proved"],
        "proof read to promoted": round(told["promoted"] - told["proved"], 4),
        "promoted to first row": round(event["first_ack"] - ended - told["promoted"], 4),
    }


def ready(pair: Pair) -> tuple[Machine, Machine]:
    """(primary, standby) of a pair that takes the next command."""
    primary, standby = pair.roles()
    until(f"{pair.name}: ready for the next command", lambda: pair.settled(primary), 120)
    return primary, standby


def planned(pair: Pair, rate: int = 0) -> dict[str, Any]:
    old, new = ready(pair)
    with Ledger(pair, rate) as ledger:
        time.sleep(2 if rate else 1)
        command = pair.switchover(old, new)
        until(f"{pair.name}: the old primary streams", new.has_standby, 60)
        streaming = time.monotonic() - command.began
        time.sleep(0.5)
    event = ledger.measured(old, new)
    event.update(old=old.short, new=new.short, command=told(command), streaming=round(streaming, 2))
    event["spans"] = spans(command.phases, event)
    return event


def told(command: Any) -> dict[str, Any]:
    failed = {"output": command.output[-1500:]} if command.code else {}
    return {"seconds": round(command.seconds, 2), "code": command.code, "phases": command.phases, **failed}


def crash(pair: Pair) -> dict[str, Any]:
    old, new = ready(pair)
    with ThreadPoolExecutor(1) as operator:
        with Ledger(pair) as ledger:
            time.sleep(1)
            old.kill()
            typed = operator.submit(pair.forced, old, new)
            until(f"{pair.name}: {new.short} takes writes", new.is_writable, 150)
            # The commands of the tools that act by themselves go on waiting when all is done.
            if not pair.automatic:
                typed.result()
            # A client may still be waiting for an answer of the dead machine.
            time.sleep(4)
            began = time.monotonic()
            old.start()
            at_boot = watch(old, new)
            watched = time.monotonic()
        # A tool that works by itself has worked since the machine started; an operator begins when the machine is up.
        begun = began if pair.automatic else time.monotonic()
        how, rejoined = rejoin(pair, old, new, begun)
        if at_boot == ALONE:
            rejoined = watched - begun
    command = typed.result()
    event = ledger.measured(old, new)
    event.update(
        old=old.short, new=new.short, command=told(command), at_boot=at_boot, rejoin=round(rejoined, 2), how=how
    )
    event["writable_after_command"] = rounded(event["writable_at"] - command.began) if event["writable_at"] else None
    return event


def rejoin(pair: Pair, old: Machine, new: Machine, began: float) -> tuple[str, float]:
    """How, and seconds until it streams, for which a command may not end at once."""
    with ThreadPoolExecutor(1) as operator:
        typed = operator.submit(pair.rejoin, old, new)
        while not typed.done() and not new.has_standby():
            time.sleep(0.1)
        seconds = time.monotonic() - began
        return typed.result(), seconds


ALONE = "streams by itself"


def watch(old: Machine, new: Machine, seconds: float = 15) -> str:
    """What the old primary does when its machine boots."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if old.is_writable():
            time.sleep(1)
            return "writable"
        if new.has_standby():
            return ALONE
        time.sleep(0.2)
    return "stays down" if not old.sql("select 1", check=False) else "up, not writable"


def rebuild(pair: Pair) -> dict[str, Any]:
    old, new = ready(pair)
    old.unplug()
    try:
        pair.forced(old, new)
        until(f"{pair.name}: {new.short} takes writes", new.is_writable, 60)
        writes = f"pgbench -n -c 2 -R {RATE} -T 5 bench"
        threads = [threading.Thread(target=machine.postgres, args=(writes,)) for machine in (old, new)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        old.plug()
    old.root("systemctl stop postgresql@17-main")
    new.sql("checkpoint")
    began = time.monotonic()
    how, rejoined = rejoin(pair, old, new, began)
    return {"old": old.short, "new": new.short, "rejoin": round(rejoined, 2), "how": how}


CASES: dict[str, Callable[[Pair], dict[str, Any]]] = {
    "idle": planned,
    "load": lambda pair: planned(pair, RATE),
    "sync": planned,
    "crash": crash,
    "rebuild": rebuild,
}


class Bench:
    def __init__(self, tools: list[str], cases: list[str], output: Path) -> None:
        self.cases, self.output = cases, output
        self.control = Machine("control", 2)
        self.pairs = [TOOLS[name](self.control) for name in tools]
        self.events: list[dict[str, Any]] = []
        self.writing = threading.Lock()
        self.began = time.monotonic()
        self.record: dict[str, Any] = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
            "command": "make bench-cutover",
        }

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def setup(self) -> None:
        self.image = run("bench/cutover/image", timeout=900).stdout.strip()
        remove_all()
        make_network()
        self.control.create(self.image)
        self.control.write("/ledger.py", (Path(__file__).parent / "ledger.py").read_text(encoding="utf-8"))
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.build, self.pairs))
        listing = (
            "dpkg-query -W -f '${Package} ${Version}\\n' postgresql-17 repmgr patroni etcd-server pg-auto-failover-cli"
        )
        self.record["versions"] = dict(line.split() for line in self.control.root(listing).splitlines())
        self.record["versions"]["hotspare"] = run("git", "describe", "--always", "--dirty").stdout.strip()

    def build(self, pair: Pair) -> None:
        for machine in pair.machines:
            machine.create(self.image)
        pair.setup()
        pair.fill(SCALE)
        self.say(f"{pair.name}: the pair stands")

    def event(self, case: str, number: int, pair: Pair) -> None:
        event: dict[str, Any] = {
            "case": case,
            "tool": pair.name,
            "round": number,
            "at": round(time.monotonic() - self.began, 1),
        }
        event["load_average"] = round(os.getloadavg()[0], 2)
        try:
            event.update(CASES[case](pair))
            shown = ("outage", "outage_servers", "lost", "streaming", "writable_after_command", "at_boot", "rejoin")
            self.say(
                f"{case} {number} {pair.name}: " + ", ".join(f"{name} {event[name]}" for name in shown if name in event)
            )
        except BenchError as error:
            event["failed"] = str(error)
            self.say(f"{case} {number} {pair.name} FAILED: {error}")
            self.build(pair)
        with self.writing:
            self.events.append(event)
            self.record.update(seconds=round(time.monotonic() - self.began), events=self.events)
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")

    def work(self) -> None:
        most = int(os.environ.get("ROUNDS", "1000"))
        for case in self.cases:
            pairs = [pair for pair in self.pairs if pair.name in ONLY.get(case, TOOLS)]
            ours = [pair for pair in pairs if isinstance(pair, Ours) and case == "sync"]
            for pair in ours:
                pair.set_synchronous(1)
            if case == "rebuild":
                for pair in pairs:
                    pair.fill(REBUILD_SCALE)
            for number in range(1, min(ROUNDS[case], most) + 1):
                # Tools that see a crash by themselves wait out their time limits: these may wait beside each other.
                together = [pair for pair in pairs if case == "crash" and pair.automatic]
                for pair in pairs:
                    if pair not in together:
                        self.event(case, number, pair)
                with ThreadPoolExecutor() as pool:
                    list(pool.map(partial(self.event, case, number), together))
            for pair in ours:
                pair.set_synchronous(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tools", default=",".join(TOOLS), help="default: %(default)s")
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=STATE / "cutover.json", help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the machines for a look")
    parser.add_argument("--clean", action="store_true", help="only remove the machines")
    options = parser.parse_args()
    tools, cases = options.tools.split(","), options.cases.split(",")
    if options.clean:
        return remove_all()
    if unknown := set(tools) - set(TOOLS) | set(cases) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    bench = Bench(tools, cases, options.output)
    try:
        bench.setup()
        bench.work()
    finally:
        if not options.keep:
            remove_all()
    print("\n" + table(bench.record))
    return None


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
