#!/usr/bin/env python3
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What PostgreSQL's archiver, or its recovery, does with a command: runs in the node's machine, a job on stdin.

The job is JSON: `data` (the data directory), `names`, `command` with %p and %f, and `do`:

archive  all names wait (.ready) from the start, as after a break; each is called in turn and becomes .done
single   each name becomes .ready when the one before is done, and after `pause` seconds, as on a calm server
ahead    as archive, but after the first call the archiver looks away for ten times `pause`, as after failures
restore  each name in turn to pg_wal/RECOVERYXLOG; what came is compared with the segment in pg_wal

Called by system(), as PostgreSQL does it; up to 3 tries. Prints JSON: {"seconds", "calls": [seconds], "failed": [[name,
code]]}; what the commands say goes to stderr.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import sys
import time
from typing import Any

TRIES = 3


def main() -> None:
    job: dict[str, Any] = json.load(sys.stdin)
    os.chdir(job["data"])
    names: list[str] = job["names"]
    done: dict[str, Any] = {"calls": [], "failed": []}
    if job["do"] in ("archive", "ahead"):
        for name in names:
            mark(name, ".ready")
    began = time.monotonic()
    paused = 0.0
    for name in names:
        if job["do"] == "single":
            time.sleep(job["pause"])
            paused += job["pause"]
            mark(name, ".ready")
        at = time.monotonic()
        code = call(job, name)
        done["calls"].append(round(time.monotonic() - at, 5))
        if code:
            done["failed"].append([name, code])
            if len(done["failed"]) > 2:
                break
        elif job["do"] != "restore":
            os.rename(status(name, ".ready"), status(name, ".done"))
        if job["do"] == "ahead" and name == names[0]:
            done["calls"].clear()
            time.sleep(10 * job["pause"])
            paused += 10 * job["pause"]
    done["seconds"] = round(time.monotonic() - began - paused, 4)
    for name in names:
        for suffix in (".ready", ".done"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(status(name, suffix))
    json.dump(done, sys.stdout)


def call(job: dict[str, Any], name: str) -> int:
    """Its exit code, 0 in the end; -1: it brought something else than was archived."""
    restores = job["do"] == "restore"
    path = "pg_wal/RECOVERYXLOG" if restores else f"pg_wal/{name}"
    command = job["command"].replace("%p", path).replace("%f", name)
    code = 1
    for _ in range(1 if restores else TRIES):
        code = os.waitstatus_to_exitcode(os.system(command))
        if code == 0:
            break
    if restores and code == 0:
        same = filecmp.cmp(path, f"pg_wal/{name}", shallow=False)
        os.unlink(path)
        return 0 if same else -1
    return code


def status(name: str, suffix: str) -> str:
    return f"pg_wal/archive_status/{name}{suffix}"


def mark(name: str, suffix: str) -> None:
    with open(status(name, suffix), "w", encoding="ascii"):
        pass


if __name__ == "__main__":
    main()
