#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-archive`: how quickly WAL is archived and restored, ours and other tools in turn.

Two machines (containers with systemd and sshd): the node has PostgreSQL 17 with real WAL, the store is the archive
host, reached by ssh; "local" is a directory of the node. A round takes one way after the other, so that whatever else
the machine does hits all of them alike. What starts everything anew for each segment is measured by fewer segments.
Cases:

push       all segments wait, and are archived one call after the other, as PostgreSQL's archiver does it; from pgbench
           and from random bytes
single     a segment at a time becomes ready on a calm node, and is called for at once
ahead      what the call itself costs: the segment is shipped already, since others of a backlog were called for before
restore    all segments, one call after the other, each compared with what was archived; then a crashed server replays
           them by its restore_command
documents  many small files: the first copy, again without a change, again with some new ones

run.py [--cases push,restore] [--ways hotspare,barman] [--output FILE]; SIZE=16 takes fewer segments and files, ROUNDS=1
fewer rounds. --keep leaves the machines, --again works in those that were left, --clean removes them. Writes JSON (all
single events) after each event, and prints a table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable

import barman
import documents
import material
import ours
import pgbackrest
from barman import Barman, BarmanParallel, BarmanRestore
from documents import Documents, OursDocuments, RsyncDocuments, RsyncDurable
from lab import ROOT, BenchError, make_network, remove_all, run
from material import BASE
from ours import Ours
from pgbackrest import PgBackRest, PgBackRestAsync
from plain import Copy, Rsync, RsyncControl
from report import table
from way import Box, Way, flush, ssh_as_postgres

SIZE = int(os.environ.get("SIZE", "128"))
LEAST = 4
FILES = 20000 * SIZE // 128
ROUNDS = {"push": 3, "single": 2, "ahead": 2, "restore": 2, "documents": 2}
SINGLES = 10
RECOVER = "/bench/recover"

PUSH: list[tuple[str, type[Way], str]] = [
    ("ssh", Rsync, "none"),
    ("ssh", RsyncControl, "none"),
    ("ssh", Barman, "none"),
    ("ssh", PgBackRest, "none"),
    ("ssh", PgBackRest, "zstd"),
    ("ssh", PgBackRestAsync, "none"),
    ("ssh", Ours, "none"),
    ("ssh", PgBackRestAsync, "zstd"),
    ("ssh", Ours, "zstd"),
    ("local", Copy, "none"),
    ("local", Rsync, "none"),
    ("local", PgBackRest, "none"),
    ("local", PgBackRest, "zstd"),
    ("local", PgBackRestAsync, "none"),
    ("local", Ours, "none"),
    ("local", PgBackRestAsync, "zstd"),
    ("local", Ours, "zstd"),
]
# Those that begin anew for each segment need no second look: a call is a call.
SINGLE = [each for each in PUSH if each[0] == "ssh" and each[1] in (PgBackRestAsync, Ours)]
RESTORE: list[tuple[str, type[Way], str]] = [
    ("local", Copy, "none"),
    ("ssh", BarmanRestore, "none"),
    ("ssh", BarmanParallel, "none"),
    ("ssh", PgBackRest, "none"),
    ("ssh", PgBackRestAsync, "none"),
    ("ssh", Ours, "none"),
    ("ssh", PgBackRestAsync, "zstd"),
    ("ssh", Ours, "zstd"),
]
Event = dict[str, Any]


class Bench:
    def __init__(self, cases: list[str], wanted: list[str], output: Path) -> None:
        self.cases, self.wanted, self.output = cases, wanted, output
        self.node, self.store = Box("node", 2), Box("store", 3)
        self.events: list[Event] = []
        self.began = time.monotonic()
        self.record: dict[str, Any] = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
            "command": "make bench-archive",
        }

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def setup(self, again: bool) -> None:
        if again:
            self.material = material.made_before(self.node)
        else:
            self.machines()
            self.material = material.make(self.node, SIZE)
            barman.set_up(self.node, self.store)
            pgbackrest.set_up(self.node, self.store)
            self.say(f"{SIZE} segments of each kind; zstd leaves {self.material.compressed}")
        ours.set_up(self.node, self.store)
        listing = (
            "dpkg-query -W -f '${Package} ${Version}\\n' postgresql-17 pgbackrest barman rsync openssh-server zstd"
        )
        self.record["versions"] = dict(line.split() for line in self.node.root(listing).splitlines())
        self.record["versions"]["hotspare"] = run("git", "describe", "--always", "--dirty").stdout.strip()
        self.record["material"] = {
            "segments": {kind: len(names) for kind, names in self.material.kinds.items()},
            "compressed": self.material.compressed,
        }

    def machines(self) -> None:
        image = run("bench/archive/image", timeout=900).stdout.strip()
        remove_all(Box.network)
        make_network(Box.network, Box.subnet)
        for machine in (self.node, self.store):
            machine.create(image, "--volume", "/bench")
        self.node.root("install -d -o postgres /bench")
        ssh_as_postgres(self.node, self.store, "postgres", "barman")
        self.node.write("/loop.py", (Path(__file__).parent / "loop.py").read_text(encoding="utf-8"))

    def ways(self, listed: list[tuple[str, type[Way], str]]) -> list[Way]:
        made = [way(self.node, self.store, place, compression) for place, way, compression in listed]
        return [way for way in made if not self.wanted or any(word in way.name.lower() for word in self.wanted)]

    def work(self) -> None:
        most = int(os.environ.get("ROUNDS", "1000"))
        for case in self.cases:
            for number in range(1, min(ROUNDS[case], most) + 1):
                CASES[case](self, number)

    def push(self, number: int) -> None:
        for kind, names in self.material.kinds.items():
            for way in self.ways(PUSH):
                self.event("push", way, number, kind, partial(way.push, some(way, names)))

    def single(self, number: int) -> None:
        names = self.material.kinds["pgbench"][:SINGLES]
        for way in self.ways(SINGLE):
            self.event("single", way, number, "pgbench", partial(way.push, names, "single"))

    def ahead(self, number: int) -> None:
        names = self.material.kinds["pgbench"][: 2 * SINGLES]
        for way in self.ways(SINGLE):
            self.event("ahead", way, number, "pgbench", partial(way.push, names, "ahead"))

    def restore(self, number: int) -> None:
        for way in self.ways(RESTORE):
            names = some(way, self.material.kinds["pgbench"])
            self.event("restore", way, number, "pgbench", partial(way.fetch, names))
            self.event("recover", way, number, "pgbench", partial(recovered, way, names))

    def documents(self, number: int) -> None:
        kinds: list[type[Documents]] = [RsyncDocuments, RsyncDurable, OursDocuments]
        for kind in kinds:
            if not self.wanted or any(word in kind.name for word in self.wanted):
                way = kind(self.node, self.store)
                documents.make(self.node, FILES)
                for step in documents.STEPS:
                    self.event("documents", way, number, step, partial(way.step, step))

    def event(self, case: str, way: Any, number: int, kind: str, what: Callable[[], Event]) -> None:
        event: Event = {"case": case, "way": way.name, "place": way.place, "kind": kind, "round": number}
        event["load_average"] = round(os.getloadavg()[0], 2)
        try:
            event.update(what())
            self.say(f"{case} {number} {way.place} {kind} {way.name}: {shown(event)}")
        except BenchError as error:
            event["failed"] = str(error)
            self.say(f"{case} {number} {way.place} {kind} {way.name} FAILED: {error}")
        self.events.append(event)
        self.record.update(seconds=round(time.monotonic() - self.began), events=self.events)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")


def some(way: Way, names: list[str]) -> list[str]:
    return names[: max(LEAST, len(names) // way.part)]


def recovered(way: Way, names: list[str]) -> Event:
    """A server that crashed before them replays what way.fetch() restored; `seconds` by its log, from first to last."""
    node = way.node
    node.postgres(f"rm -rf {RECOVER} {RECOVER}.log; cp --archive {BASE} {RECOVER}; touch {RECOVER}/recovery.signal")
    flush()
    way.start(RECOVER)
    settings = f"restore_command = '{way.restore_command}'\nhot_standby = off\nport = 5433\n"
    node.postgres(f"cat >>{RECOVER}/postgresql.auto.conf", given=settings)
    began = time.monotonic()
    try:
        node.postgres(f"pg_ctl start --wait --pgdata {RECOVER} --log {RECOVER}.log")
        # Without hot_standby pg_ctl does not wait for the end of recovery.
        done = f"grep -qE 'ready to accept|is shut down' {RECOVER}.log"
        node.root(f"for _ in $(seq 2500); do if {done}; then break; fi; sleep 0.1; done")
        whole = time.monotonic() - began
        said = node.root(f"cat {RECOVER}.log")
        node.postgres(f"pg_ctl stop --mode immediate --pgdata {RECOVER}")
    finally:
        way.stop()
        node.root(f"rm -rf {RECOVER}")
    restored = [name for name in names if f'restored log file "{name}"' in said]
    if len(restored) != len(names) or "redo done at" not in said:
        raise BenchError(f"{len(restored)} of {len(names)} segments were restored: {said[-1500:]}")
    seconds = float(said.split("elapsed: ")[1].split()[0])
    return {
        "segments": len(names),
        "seconds": seconds,
        "whole": round(whole, 2),
        "per_second": round(len(names) / seconds, 2),
    }


def shown(event: Event) -> str:
    parts = [f"{event['segments']} segments, {event['per_second']} /s"] if "segments" in event else []
    if "calls_ms" in event:
        parts.append("a call {min} / {median} / {p95} / {max} ms".format(**event["calls_ms"]))
    named = ("seconds", "whole", "files", "stored", "processor", "memory")
    return ", ".join(parts + [f"{name} {event[name]}" for name in named if name in event])


CASES: dict[str, Callable[[Bench, int], None]] = {
    "push": Bench.push,
    "single": Bench.single,
    "ahead": Bench.ahead,
    "restore": Bench.restore,
    "documents": Bench.documents,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--ways", default="", help="only those whose names contain one of these words")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache/bench/archive.json", help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the machines for a look")
    parser.add_argument("--again", action="store_true", help="work in the machines that --keep left, and leave them")
    parser.add_argument("--clean", action="store_true", help="only remove the machines")
    options = parser.parse_args()
    if options.clean:
        return remove_all(Box.network)
    cases = options.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    bench = Bench(cases, [word.lower() for word in options.ways.split(",") if word], options.output)
    try:
        bench.setup(options.again)
        bench.work()
    finally:
        if not (options.keep or options.again):
            remove_all(Box.network)
    print("\n" + table(bench.record))
    if failed := sum("failed" in event for event in bench.events):
        raise BenchError(f"{failed} of {len(bench.events)} events failed")
    return None


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
