# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside of a guest, so that nothing but the contender is measured. A task as JSON on standard input:

{"do": "fill", "path", "megabytes"}         a file of which lz4 leaves half, each 64 KiB alike
{"do": "change", "path", "areas", "seed"}   other content in so many areas of 128 KiB, anywhere in it
{"do": "command", "argv"}                   runs it: `seconds`, and `processor` seconds of all that ran here
{"do": "ours", ...}                         a process that does what the module zfs_snapshot_send does: `seconds` of
                                            its work, `whole` with the start of Python, `commands` with their seconds
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from typing import Any

AREA = 128 << 10
TEXT = b"".join(b"row %08d of what can be made smaller\n" % number for number in range(1000))[: 32 << 10]


def area() -> bytes:
    return b"".join(os.urandom(32 << 10) + TEXT for _ in range(2))


def fill(path: str, megabytes: int) -> dict[str, Any]:
    with open(path, "wb") as file:
        for _ in range(megabytes * 8):
            file.write(area())
        os.fsync(file.fileno())
    return {}


def change(path: str, areas: int, seed: int) -> dict[str, Any]:
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for place in random.Random(seed).sample(range(size // AREA), areas):
            file.seek(place * AREA)
            file.write(area())
        os.fsync(file.fileno())
    return {}


def command(argv: list[str], given: str = "") -> dict[str, Any]:
    began, used = time.monotonic(), _processor()
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode:
        return {"failed": f"{argv[-1][-300:]} ({done.returncode}): {(done.stdout + done.stderr)[-1500:]}"}
    return {"seconds": round(seconds, 3), "processor": round(_processor() - used, 3), "said": done.stdout}


def ours(**told: Any) -> dict[str, Any]:
    found = command([sys.executable, __file__, "work"], json.dumps(told))
    if "failed" in found:
        return found
    worked: dict[str, Any] = json.loads(found["said"])
    return {**worked, "whole": found["seconds"], "processor": found["processor"]}


def work(source: str, target: str, host: str) -> dict[str, Any]:
    """With the defaults of the module."""
    from hotspare import zfs, zfs_refusals, zfs_send

    commands: list[tuple[float, str]] = []
    run_all = zfs.Side.run_all

    def noted(side: Any, told: Any, **options: Any) -> Any:
        began = time.monotonic()
        done = run_all(side, told, **options)
        where = "there" if side.login else "here"
        commands.append(
            (round(time.monotonic() - began, 3), f"{where}: {'; '.join(' '.join(one[:3]) for one in told)}")
        )
        return done

    zfs.Side.run_all = noted
    root = "/root/.ssh"
    want = zfs_refusals.Want(
        prefix="ours",
        properties={"canmount": "noauto", "readonly": "on"},
        copied=("recordsize", "compression", "atime"),
    )
    began = time.monotonic()
    with (
        zfs.Side() as here,
        zfs.Side(zfs.Login(host, 22, "root", f"{root}/id_ed25519", f"{root}/known_hosts")) as there,
    ):
        told = zfs_send.work(here, there, (source, target), want)
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 3),
        "kind": told["kind"],
        "sent_bytes": told["sent_bytes"],
        "stream": told["seconds"],
        "commands": commands,
    }


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


TASKS = {"fill": fill, "change": change, "command": command, "ours": ours}


def main() -> None:
    told = json.load(sys.stdin)
    found = work(**told) if sys.argv[1:] == ["work"] else TASKS[told.pop("do")](**told)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
