#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""report.py FILE: the tables of a bench/cutover result, in Markdown."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

TITLES = {
    "idle": "Planned, idle",
    "load": "Planned, pgbench at 200 tps",
    "sync": "Planned, synchronous pair, idle",
    "crash": "Crash of the primary's machine, the operator's command at once",
    "rebuild": "Rebuild by rewind, pgbench scale 100",
}
Event = dict[str, Any]


def good(events: list[Event], case: str, tool: str) -> list[Event]:
    return [event for event in events if event["case"] == case and event["tool"] == tool and "failed" not in event]


def values(events: list[Event], *path: str) -> list[float]:
    """What stands there in each event, None left out: values(events, "command", "seconds")."""
    found: list[Any] = list(events)
    for name in path:
        found = [value[name] for value in found]
    return [value for value in found if value is not None]


def spread(numbers: list[float], digits: int = 3) -> str:
    """min / median / max"""
    if not numbers:
        return "-"
    three = (min(numbers), statistics.median(numbers), max(numbers))
    return "{0:.{d}f} / **{1:.{d}f}** / {2:.{d}f}".format(*three, d=digits)


def median(numbers: list[float], digits: int = 3) -> str:
    return f"{statistics.median(numbers):.{digits}f}" if numbers else "-"


def counted(words: list[str]) -> str:
    return ", ".join(f"{words.count(word)} x {word}" for word in dict.fromkeys(words)) or "-"


def rows(title: str, heads: list[str], lines: list[list[str]]) -> str:
    text = [f"**{title}** (seconds)", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*text, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def table(record: dict[str, Any]) -> str:
    """All tables; `record` is what run.py writes."""
    events = record["events"]
    tools = list(dict.fromkeys(event["tool"] for event in events))
    parts = []
    for case, title in TITLES.items():
        found = {
            tool: good(events, case, tool)
            for tool in tools
            if any(e["case"] == case and e["tool"] == tool for e in events)
        }
        if not found:
            continue
        failed = {
            tool: sum(1 for e in events if e["case"] == case and e["tool"] == tool and "failed" in e) for tool in found
        }
        number = {
            tool: f"{len(found[tool])}" + (f" (+{failed[tool]} failed)" if failed[tool] else "") for tool in found
        }
        if case == "rebuild":
            heads = ["tool", "n", "until streaming min / median / max"]
            lines = [[tool, number[tool], spread(values(of, "rejoin"), 1)] for tool, of in found.items()]
        else:
            heads, lines = writes(case, found, number)
        parts.append(rows(title, heads, lines))
        parts.append(ratios(found, "rejoin" if case == "rebuild" else "outage"))
        told = phases(found.get("ours", []))
        if told:
            parts.append(told + "\n")
    return "\n".join(part for part in parts if part)


def writes(case: str, found: dict[str, list[Event]], number: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Of the cases in which a client writes."""
    heads = ["tool", "n", "client min / median / max", "servers", "command", "rows lost", "both writable"]
    heads += (
        ["writable after the command began", "old primary at boot", "rejoin"]
        if case == "crash"
        else ["streaming again"]
    )
    lines = []
    for tool, of in found.items():
        line = [
            tool,
            number[tool],
            spread(values(of, "outage")),
            median(values(of, "outage_servers")),
            median(values(of, "command", "seconds"), 1) + exits(of),
            str(sum(e["lost"] for e in of)),
            counted([f"{e['dual_writable']:.1f} s" for e in of if e["dual_writable"]]),
        ]
        if case == "crash":
            line.append(median(values(of, "writable_after_command"), 1))
            line.append(counted([e["at_boot"] for e in of]))
            line.append(median(values(of, "rejoin"), 1))
        else:
            line.append(median(values(of, "streaming"), 1))
        lines.append(line)
    return heads, lines


def exits(events: list[Event]) -> str:
    """Of commands that said that they failed."""
    codes = [f"exit {event['command']['code']}" for event in events if event["command"]["code"]]
    return f" ({counted(codes)})" if codes else ""


def ratios(found: dict[str, list[Event]], key: str) -> str:
    """Medians of ours by those of the others."""
    middle = {tool: statistics.median(numbers) for tool, of in found.items() if (numbers := values(of, key))}
    ours = middle.pop("ours", None)
    if ours is None or not middle:
        return ""
    compared = ", ".join(f"{ours / other:.2f} of {tool}'s" for tool, other in middle.items())
    return f"Median of ours: {compared} ({'until streaming' if key == 'rejoin' else 'client'}).\n"


def phases(events: list[Event]) -> str:
    """Where the outage of ours goes; medians in milliseconds."""
    spans = [event["spans"] for event in events if event.get("spans")]
    if not spans:
        return ""
    parts = [f"{name} {1000 * statistics.median(span[name] for span in spans):.0f} ms" for name in spans[0]]
    return f"Ours: {', '.join(parts)}."


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
