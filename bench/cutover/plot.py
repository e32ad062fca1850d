#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""plot.py FILE.json PICTURE.svg: each single event of a bench/cutover result as a dot, medians as lines."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, NullFormatter
from report import good, values

PANELS = {
    "idle": ("planned, idle", "outage"),
    "load": ("planned, 200 tps", "outage"),
    "sync": ("planned, synchronous", "outage"),
    "crash": ("crash, command at once", "outage"),
    "rebuild": ("rebuild by rewind, scale 100", "rejoin"),
}
COLOURS = {
    "ours": "#0b7a4b",
    "archived": "#79b79d",
    "repmgr": "#b5651d",
    "patroni": "#3465a4",
    "pg_auto_failover": "#75507b",
}
UNITS = {"outage": "seconds without an acknowledged commit", "rejoin": "seconds until streaming"}


def main() -> None:
    # The same figures make the same file; text stays text.
    plt.rcParams.update({"svg.hashsalt": "hotspare", "svg.fonttype": "none"})
    record = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    events = record["events"]
    panels = {
        case: {tool: numbers for tool in COLOURS if (numbers := values(good(events, case, tool), key))}
        for case, (_, key) in PANELS.items()
    }
    panels = {case: tools for case, tools in panels.items() if tools}
    widths = [len(tools) + 0.5 for tools in panels.values()]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(0.85 * sum(widths) + 1, 3.8), width_ratios=widths, squeeze=False
    )
    for axis, (case, tools) in zip(axes[0], panels.items()):
        title, key = PANELS[case]
        for place, (tool, numbers) in enumerate(tools.items()):
            spread = [place + 0.24 * ((index % 5) - 2) / 2 for index in range(len(numbers))]
            axis.plot(spread, numbers, "o", color=COLOURS[tool], alpha=0.55, markersize=5, markeredgewidth=0)
            middle = statistics.median(numbers)
            axis.hlines(middle, place - 0.36, place + 0.36, color=COLOURS[tool], linewidth=2)
            axis.annotate(
                f"{middle:.2f} s", (place, max(numbers)), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        axis.set_xticks(range(len(tools)), [tool.replace("_", "\n", 1) for tool in tools], fontsize=8)
        axis.set_xlim(-0.6, len(tools) - 0.4)
        axis.set_title(title, fontsize=9)
        axis.grid(axis="y", which="major", color="#dddddd")
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        if key == "outage":
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_ylim(0.03, max(max(max(numbers) for numbers in tools.values()) * 1.8, 3))
        else:
            axis.set_ylim(0, max(max(numbers) for numbers in tools.values()) * 1.2)
        if axis is axes[0][0] or key != "outage":
            axis.set_ylabel(UNITS[key] + (" (log)" if key == "outage" else ""), fontsize=8)
    figure.tight_layout()
    figure.savefig(sys.argv[2], metadata={"Date": None})


if __name__ == "__main__":
    main()
