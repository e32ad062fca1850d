#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""plot.py FILE.json PICTURE.svg: each single event of a bench/archive result as a dot, medians as bars."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, NullFormatter
from report import Value, call, good, rate, seconds, ways

# Title, what is on the axis, what is taken from which events.
PANELS: list[tuple[str, str, Value, dict[str, str]]] = [
    ("archived over ssh, from pgbench", "segments/s", rate, {"case": "push", "place": "ssh", "kind": "pgbench"}),
    ("archived over ssh, random", "segments/s", rate, {"case": "push", "place": "ssh", "kind": "random"}),
    ("one call, a segment at a time", "ms", call, {"case": "single"}),
    ("restored over ssh", "segments/s", rate, {"case": "restore", "place": "ssh"}),
    ("a crashed server recovers", "segments/s", rate, {"case": "recover"}),
    ("documents, first copy", "seconds", seconds, {"case": "documents", "kind": "first"}),
]
OURS, OTHERS = "#0b7a4b", "#8a9099"


def panel(axis: Any, events: list[dict[str, Any]], title: str, unit: str, value: Value) -> None:
    names = ways(events)[::-1]
    for place, name in enumerate(names):
        numbers = [number for event in good(events, way=name) if (number := value(event)) is not None]
        colour = OURS if name.startswith("hotspare") else OTHERS
        middle = statistics.median(numbers)
        axis.barh(place, middle, 0.62, color=colour, alpha=0.55)
        axis.plot(numbers, [place] * len(numbers), "o", color=colour, markersize=3.5, markeredgewidth=0)
        shown = f"{middle:.0f}" if middle >= 20 else f"{middle:.1f}"
        axis.annotate(shown, (max(numbers), place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title(f"{title}: {unit}", fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.margins(x=0.14)
    axis.set_xlim(left=0)
    if unit == "ms":
        axis.set_xscale("log")
        axis.set_xlim(1, axis.get_xlim()[1] * 2)
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", which="major", color="#dddddd")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    # The same figures make the same file; text stays text.
    plt.rcParams.update({"svg.hashsalt": "hotspare", "svg.fonttype": "none"})
    record = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    panels = [
        (found, title, unit, value)
        for title, unit, value, wanted in PANELS
        if (found := good(record["events"], **wanted))
    ]
    rows = [panels[index : index + 2] for index in range(0, len(panels), 2)]
    heights = [max(len(ways(found)) for found, *_ in row) + 1.6 for row in rows]
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(10, 0.27 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (found, title, unit, value) in zip(axes.flat, panels):
        panel(axis, found, title, unit, value)
    figure.savefig(sys.argv[2], metadata={"Date": None})


if __name__ == "__main__":
    main()
