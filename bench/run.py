#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: how long the playbooks take on a fresh demo pair, and how many tasks they evaluate on each node.

Removes the demo pair and builds it anew, so that the first site.yml starts from bare Debian. Writes
bench/results/playbooks.json and prints it as a table.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "playbooks.json"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=\d+\s+failed=\d+\s+skipped=(\d+)", re.MULTILINE)
RUNS = [
    ("site.yml, from bare Debian", ["site.yml"]),
    ("site.yml, again", ["site.yml"]),
    ("site.yml --check", ["site.yml", "--check"]),
    ("status.yml", ["status.yml"]),
    ("failover.yml, planned", ["failover.yml", "-e", "target=db2"]),
    ("site.yml, roles swapped", ["site.yml"]),
]


def play(what: str, arguments: list[str]) -> dict[str, Any]:
    """Run one playbook; seconds of wall clock, and evaluated (run or skipped) and changed tasks of each node."""
    command = ["ansible-playbook", "-i", "inventories/demo", *arguments]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    hosts = {name: (int(ok) + int(skipped), int(changed)) for name, ok, changed, skipped in RECAP.findall(done.stdout)}
    return {
        "what": what,
        "command": " ".join(command),
        "seconds": round(seconds, 1),
        "tasks_per_node": {name: evaluated for name, (evaluated, _) in hosts.items()},
        "changed": sum(changed for _, changed in hosts.values()),
    }


def main() -> None:
    subprocess.run(["lab/demo", "down"], cwd=ROOT, check=True)
    subprocess.run(["lab/demo", "up"], cwd=ROOT, check=True)
    results = [play(*run) for run in RUNS]
    record = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
        "command": "make bench",
        "runs": results,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("| | seconds | tasks evaluated per node | changed |\n|---|--:|--:|--:|")
    for result in results:
        tasks = max(result["tasks_per_node"].values())
        print(f"| `{result['what']}` | {result['seconds']} | {tasks} | {result['changed']} |")


if __name__ == "__main__":
    main()
