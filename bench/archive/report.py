#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""report.py FILE: the tables of a bench/archive result, in Markdown."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

Event = dict[str, Any]
Value = Callable[[Event], Optional[float]]


def good(events: list[Event], **wanted: str) -> list[Event]:
    """Events that did not fail, of this case, place, kind or way."""
    return [
        event
        for event in events
        if "failed" not in event and all(event[name] == value for name, value in wanted.items())
    ]


def middle(events: list[Event], value: Value) -> Optional[float]:
    numbers = [number for event in events if (number := value(event)) is not None]
    return statistics.median(numbers) if numbers else None


def rate(event: Event) -> Optional[float]:
    found: Optional[float] = event.get("per_second")
    return found


def call(event: Event) -> Optional[float]:
    found: Optional[float] = event.get("calls_ms", {}).get("median")
    return found


def seconds(event: Event) -> Optional[float]:
    found: Optional[float] = event.get("seconds")
    return found


def processor(event: Event) -> Optional[float]:
    """Milliseconds of processor time for a segment, all processes of both machines."""
    return 1000 * event["processor"] / event["segments"] if event.get("segments") else None


def cell(number: Optional[float]) -> str:
    if number is None:
        return ""
    return f"{number:.0f}" if number >= 20 else f"{number:.1f}"


def rows(title: str, heads: list[str], lines: list[list[str]]) -> str:
    text = [f"**{title}**", "", "| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join([*text, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def table(record: dict[str, Any]) -> str:
    """All tables; `record` is what run.py writes."""
    events: list[Event] = record["events"]
    parts = [archived(events), restored(events), documents(events), aims(events), failures(events)]
    return "\n".join(part for part in parts if part)


def ways(events: list[Event], *cases: str) -> list[str]:
    return list(dict.fromkeys(event["way"] for event in events if not cases or event["case"] in cases))


def archived(events: list[Event]) -> str:
    columns: list[tuple[str, dict[str, str], Value]] = [
        ("ssh, pgbench", {"case": "push", "place": "ssh", "kind": "pgbench"}, rate),
        ("ssh, random", {"case": "push", "place": "ssh", "kind": "random"}, rate),
        ("local, pgbench", {"case": "push", "place": "local", "kind": "pgbench"}, rate),
        ("local, random", {"case": "push", "place": "local", "kind": "random"}, rate),
        ("backlog", {"case": "push", "place": "ssh", "kind": "pgbench"}, call),
        ("calm", {"case": "single", "place": "ssh"}, call),
        ("ahead", {"case": "ahead", "place": "ssh"}, call),
        ("CPU", {"case": "push", "place": "ssh", "kind": "pgbench"}, processor),
    ]
    heads = ["segments/s; then over ssh, in ms: a call, processor time", *(head for head, _, _ in columns)]
    return compared("Archived", heads, events, ways(events, "push"), columns)


def restored(events: list[Event]) -> str:
    columns: list[tuple[str, dict[str, str], Value]] = [
        ("restore loop", {"case": "restore"}, rate),
        ("a call, ms", {"case": "restore"}, call),
        ("recovery of a server", {"case": "recover"}, rate),
    ]
    heads = ["segments/s, over ssh but for cp", *(head for head, _, _ in columns)]
    return compared("Restored", heads, events, ways(events, "restore", "recover"), columns)


def documents(events: list[Event]) -> str:
    steps = list(dict.fromkeys(event["kind"] for event in events if event["case"] == "documents"))
    columns: list[tuple[str, dict[str, str], Value]] = [
        (step, {"case": "documents", "kind": step}, seconds) for step in steps
    ]
    return compared("Documents", ["seconds", *steps], events, ways(events, "documents"), columns)


def compared(
    title: str,
    heads: list[str],
    events: list[Event],
    names: list[str],
    columns: list[tuple[str, dict[str, str], Value]],
) -> str:
    lines = [
        [name, *(cell(middle(good(events, way=name, **wanted), value)) for _, wanted, value in columns)]
        for name in names
    ]
    return rows(title + " (medians)", heads, lines) if lines else ""


def aims(events: list[Event]) -> str:
    """What the issue asks for, in one line each."""
    said = []
    for kind in ("pgbench", "random"):
        for compression in ("", ", zstd"):
            rates = {
                tool: middle(good(events, case="push", place="ssh", kind=kind, way=tool), rate)
                for tool in (f"hotspare{compression}", f"pgBackRest async{compression}", "barman-wal-archive")
            }
            ours, *others = rates.values()
            if ours and all(others):
                ratios = ", ".join(
                    f"{ours / other:.2f} x {tool}" for tool, other in zip(list(rates)[1:], others) if other
                )
                said.append(f"- {kind}, hotspare{compression}: {ratios}")
    for kind in dict.fromkeys(event["kind"] for event in events if event["case"] == "documents"):
        took = {
            tool: middle(good(events, case="documents", kind=kind, way=tool), seconds)
            for tool in ("hotspare", "rsync", "rsync --fsync")
        }
        ours, *others = took.values()
        if ours and all(others):
            ratios = ", ".join(f"{ours / other:.2f} x {tool}" for tool, other in zip(list(took)[1:], others) if other)
            said.append(f"- documents, {kind}, seconds: {ratios}")
    memory = [event["memory"] for event in events if "memory" in event]
    if memory:
        everything = max(event["memory_all"] for event in events if "memory" in event)
        said.append(f"- memory of the shipper: at most {max(memory)} MiB, {everything} MiB with all its processes")
    return "\n".join(said) + "\n" if said else ""


def failures(events: list[Event]) -> str:
    """What is in no table above, since it failed."""
    failed = [event for event in events if "failed" in event]
    said = ["{case} {place} {kind} {way}, round {round}: {failed}".format(**event) for event in failed]
    return "".join(f"- FAILED: {one}\n" for one in said)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
