#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""report.py FILE: the tables of a bench/zfs result, in Markdown."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any, Optional

Event = dict[str, Any]
RAW, OURS = "zfs send", "hotspare"
STEPS = ("full", "one percent", "nothing")


def good(events: list[Event], **wanted: Any) -> list[Event]:
    """Events that did not fail, of this case, way, records or round."""
    return [
        event
        for event in events
        if "failed" not in event and all(event[name] == value for name, value in wanted.items())
    ]


def middle(events: list[Event], name: str = "seconds") -> Optional[float]:
    numbers = [event[name] for event in events if event.get(name) is not None]
    return statistics.median(numbers) if numbers else None


def values(events: list[Event], name: str) -> list[Any]:
    """In the order in which they came."""
    return list(dict.fromkeys(event[name] for event in events))


def cell(number: Optional[float]) -> str:
    if number is None:
        return ""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def rows(title: str, heads: list[str], lines: list[list[str]]) -> str:
    text = [f"**{title}**", "", "| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join([*text, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def table(record: dict[str, Any]) -> str:
    """All tables; `record` is what run.py writes."""
    events: list[Event] = record["events"]
    parts = [streams(record, events), ratios(events), costs(events), servers(record, events), failures(events)]
    return "\n".join(part for part in parts if part)


def streams(record: dict[str, Any], events: list[Event]) -> str:
    sent = [event for event in events if event["case"] in STEPS]
    sizes = values(sent, "records")
    heads = ["seconds", *(f"{step}, {size}" for step in STEPS for size in sizes)]
    lines = [
        [way, *(cell(middle(good(sent, case=step, way=way, records=size))) for step in STEPS for size in sizes)]
        for way in values(sent, "way")
    ]
    return rows(f"{record['size']} MB sent (medians)", heads, lines) if lines else ""


def compared(events: list[Event], step: str, records: str, other: str) -> list[float]:
    """How long the other one took, divided by what ours took, for each round."""
    found = []
    for number in values(events, "round"):
        pair = [good(events, case=step, records=records, way=way, round=number) for way in (other, OURS)]
        if all(pair):
            found.append(pair[0][0]["seconds"] / pair[1][0]["seconds"])
    return found


def ratios(events: list[Event]) -> str:
    """What the issue asks for."""
    lines = []
    for step in STEPS:
        for size in values([event for event in events if event["case"] == step], "records"):
            line = [f"{step}, {size}"]
            for other in (RAW, "syncoid"):
                found = compared(events, step, size, other)
                each = ", ".join(f"{ratio:.2f}" for ratio in found)
                line.append(f"{statistics.median(found):.2f} ({each})" if found else "")
            lines.append(line)
    title = "Speed of hotspare as a multiple of others' (median, and each round)"
    return rows(title, ["", RAW, "syncoid"], lines) if lines else ""


def costs(events: list[Event]) -> str:
    """Where the time of ours goes."""
    said = []
    for step in STEPS:
        found = good(events, case=step, way=OURS)
        if found:
            least = min(found, key=lambda event: event["seconds"])
            told = sorted(least["commands"], reverse=True)[:6]
            said.append(
                f"- hotspare, {step}, the quickest: {least['seconds']} s in {len(least['commands'])} commands and a "
                f"stream ({least['stream']} s); " + "; ".join(f"{seconds} {text[:60]}" for seconds, text in told)
            )
    starts = [event["whole"] - event["seconds"] for event in events if "whole" in event and "commands" in event]
    if starts:
        said.append(f"- to start Python and load the library: {statistics.median(starts):.2f} s")
    adhoc = middle(good(events, case="adhoc"))
    if adhoc:
        said.append(f"- nothing changed, by the command ansible from another host: {adhoc:.1f} s")
    return "\n".join(said) + "\n" if said else ""


def servers(record: dict[str, Any], events: list[Event]) -> str:
    lines = []
    for case in ("seed", "rebuild"):
        for way in values([event for event in events if event["case"] == case], "way"):
            found = good(events, case=case, way=way)
            lines.append([f"{case}, {way}", cell(middle(found)), cell(middle(found, "whole")), where(found)])
    title = f"Standbys, pgbench -s {record['scale']} (medians, seconds)"
    return rows(title, ["", "until it streams", "the playbook", "steps of the last"], lines) if lines else ""


def where(events: list[Event]) -> str:
    steps = (events[-1].get("steps") or []) if events else []
    return ", ".join(f"{step['name']} {step['seconds']:.1f}" for step in steps)


def failures(events: list[Event]) -> str:
    """What is in no table above, since it failed."""
    failed = [event for event in events if "failed" in event]
    return "".join("- FAILED: {case} {records} {way}, round {round}: {failed}\n".format(**event) for event in failed)


def shown(event: Event) -> str:
    named = ("seconds", "whole", "stream", "processor", "kind")
    parts = [f"{name} {event[name]}" for name in named if event.get(name) is not None]
    return ", ".join([*parts, *([where([event])] if event.get("steps") else [])])


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
