#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-zfs`: how quickly ZFS snapshots are sent, and standbys made of them, ours and others in turn.

Two virtual machines of its own (lab/guests), since containers have no ZFS. A round takes one way after the other,
beginning with another one each time, so that whatever else the machine does hits all of them alike. Cases:

streams  a dataset for each record size: sent whole (caches emptied before), then one percent of it changed, then
         nothing changed. By zfs send | ssh | zfs receive, by syncoid, and by ours
adhoc    ours again with nothing changed, by the command `ansible`: what Ansible itself costs
servers  a pair that site.yml built and pgbench filled: a standby made from nothing, and an old primary that diverged
         made a standby again, by ZFS and by pg_rewind

run.py [--cases streams] [--output FILE]; SIZE=16 takes so many MB for each record size, ROUNDS=1 fewer rounds, SCALE=2
fewer rows of pgbench. --keep leaves the machines, --again works in those that were left. Writes JSON (all single
events) after each event, and prints tables at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Optional

import servers
import streams
from guests import ROOT, BenchError, Guests, run
from report import shown, table

SIZE = int(os.environ.get("SIZE", "128"))
SCALE = int(os.environ.get("SCALE", "20"))
ROUNDS = {"streams": int(os.environ.get("ROUNDS", "3")), "servers": min(2, int(os.environ.get("ROUNDS", "2")))}
RECORDS = os.environ.get("RECORDS", "8K 32K 128K").split()
STEPS = ("full", "one percent", "nothing")
Event = dict[str, Any]


class Bench:
    def __init__(self, output: Path) -> None:
        self.output, self.guests = output, Guests()
        self.events: list[Event] = []
        self.began = time.monotonic()
        self.record: dict[str, Any] = {
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
            "command": "make bench-zfs",
            "size": SIZE,
            "scale": SCALE,
        }

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def setup(self) -> None:
        self.guests.up()
        self.record["versions"] = self.guests.versions()
        self.record["versions"]["hotspare"] = run("git", "-C", str(ROOT), "describe", "--always", "--dirty").strip()
        qemu = run("qemu-system-x86_64", "--version").splitlines()[0].split()[3]
        hardware = self.guests.one.root("dmesg | grep -c 'Hypervisor detected: KVM' || true").strip() != "0"
        self.record["machine"].update(qemu=qemu, accelerator="kvm" if hardware else "tcg")
        self.say("both guests are up")

    def streams(self) -> None:
        streams.set_up(self.guests, RECORDS, SIZE)
        self.say(f"{SIZE} MB for each of {', '.join(RECORDS)}")
        for number in range(1, ROUNDS["streams"] + 1):
            for size in RECORDS:
                streams.clear(self.guests, size)
                ways = [way(self.guests, size) for way in streams.WAYS]
                for count, step in enumerate(STEPS, 1):
                    if step == "one percent":
                        streams.change(self.guests, size, SIZE, number)
                    turn = (number + count) % len(ways)
                    for way in ways[turn:] + ways[:turn]:
                        (streams.cool if step == "full" else streams.settle)(self.guests)
                        self.event(step, way.name, number, size, lambda way=way, count=count: way.send(count))

    def adhoc(self) -> None:
        """After streams, whose last snapshot is what it goes on from."""
        for number in range(1, ROUNDS["streams"] + 1):
            self.event("adhoc", "hotspare", number, RECORDS[0], lambda: servers.adhoc(self.guests, RECORDS[0]))

    def servers(self) -> None:
        pair = servers.Pair(self.guests, SCALE)
        self.event("site", "hotspare", 1, "", pair.build)
        self.say(f"pgbench -s {SCALE}: {pair.fill()} MB")
        for number in range(1, ROUNDS["servers"] + 1):
            for method in ("by hand", "basebackup", "zfs"):  # the last leaves what the first rebuild goes on from
                self.event("seed", method, number, "", lambda method=method: pair.seed(method))
            # With WAL in a dataset of its own a base backup is refused: the old server is moved away, and it is a seed.
            for method in ("zfs", "rewind"):
                self.event("rebuild", method, number, "", lambda method=method: pair.rebuild(method))

    def event(self, case: str, way: str, number: int, records: str, what: Callable[[], Event]) -> None:
        event: Event = {"case": case, "way": way, "records": records, "round": number}
        event["load_average"] = round(os.getloadavg()[0], 2)
        try:
            event.update(what())
            self.say(f"{case} {number} {records} {way}: {shown(event)}")
        except BenchError as error:
            event["failed"] = str(error)
            self.say(f"{case} {number} {records} {way} FAILED: {error}")
        self.events.append(event)
        self.record.update(seconds=round(time.monotonic() - self.began), events=self.events)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")


CASES: dict[str, Callable[[Bench], None]] = {
    "streams": Bench.streams,
    "adhoc": Bench.adhoc,
    "servers": Bench.servers,
}


def main() -> Optional[str]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache/bench/zfs.json", help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the machines for a look")
    parser.add_argument("--again", action="store_true", help="work in the machines that --keep left, and leave them")
    options = parser.parse_args()
    cases = options.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    bench = Bench(options.output)
    try:
        if not options.again:
            bench.guests.down()
        bench.setup()
        for case in cases:
            CASES[case](bench)
        print("\n" + table(bench.record))
    except BenchError as error:
        return str(error)
    finally:
        bench.guests.close()
        if not (options.keep or options.again):
            bench.guests.down()
    return "some events failed" if any("failed" in event for event in bench.events) else None


if __name__ == "__main__":
    sys.exit(main())
