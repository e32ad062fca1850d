# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files by date, from the node to the store: plain rsync, and ours."""

from __future__ import annotations

import json
import time
from typing import Any

import ours  # which finds the collection
from lab import BenchError
from plugins.module_utils.tree_files import SETTLE_SECONDS
from way import Box, processor

SOURCE, TARGET = "/bench/scans", "/bench/scans-copy"
STEPS = ("first", "again", "some new")
# Half of them of a day that is over; written an hour ago; 2 to 14 KiB that do not compress, as scanned pages.
MAKE = """
import os, sys, time
count, first = int(sys.argv[1]), int(sys.argv[2])
now = time.time()
for number in range(first, first + count):
    day = time.strftime("%Y/%m/%d", time.localtime(now - 5 * 86400 * (number % 2)))
    os.makedirs(f"/bench/scans/{day}", exist_ok=True)
    path = f"/bench/scans/{day}/scan-{number:06d}.jpg"
    with open(path, "wb") as file:
        file.write(os.urandom(2048 + number * 7919 % 12288))
    os.utime(path, (now - 3600, now - 3600))
"""


def make(node: Box, count: int, first: int = 0) -> None:
    if first == 0:
        node.root(f"rm -rf {SOURCE}; install -d -o postgres {SOURCE}")
    node.postgres(f"python3 - {count} {first}", given=MAKE)


def settle() -> None:
    """Until nobody takes them for files that are still being written."""
    time.sleep(SETTLE_SECONDS + 1)


class Documents:
    name = ""
    place = "ssh"

    def __init__(self, node: Box, store: Box) -> None:
        self.node, self.store = node, store

    def step(self, what: str) -> dict[str, Any]:
        if what == "first":
            self.wipe()
        elif what == "some new":
            make(self.node, 200, first=1000000)
            # All of today, so that no day that is over changes.
            today = "$(date +%Y/%m/%d)"
            self.node.postgres(f"cd {SOURCE}; for d in */*/*; do [ $d = {today} ] || mv $d/scan-1* {today}/; done")
        settle()
        files = int(self.node.root(f"find {SOURCE} -type f | wc -l"))
        began, before = time.monotonic(), processor(self.node, self.store)
        self.copy()
        seconds, used = time.monotonic() - began, processor(self.node, self.store) - before
        there = int(self.store.root(f"find {TARGET} -type f -name '*.jpg' | wc -l"))
        if there != files:
            raise BenchError(f"{there} of {files} files arrived")
        return {"files": files, "seconds": round(seconds, 2), "processor": round(used, 2)}

    def wipe(self) -> None:
        self.store.root(f"rm -rf {TARGET}; install -d -o postgres {TARGET}")

    def copy(self) -> None:
        raise NotImplementedError


class RsyncDocuments(Documents):
    name = "rsync"
    options = "-a"

    def copy(self) -> None:
        self.node.postgres(f"rsync {self.options} {SOURCE}/ {self.store.address}:{TARGET}/")


class RsyncDurable(RsyncDocuments):
    """As durable as ours."""

    name = "rsync --fsync"
    options = "-a --fsync"


class OursDocuments(Documents):
    """With hashes at both ends, manifests of days that are over, and everything made durable."""

    name = "hotspare"

    def wipe(self) -> None:
        super().wipe()
        ours.set_up_tree(self.node, self.store, SOURCE, TARGET)

    def copy(self) -> None:
        told = json.loads(self.node.postgres(ours.SYNC))
        if told["problems"]:
            raise BenchError(f"the tree was not copied: {told['problems']}")
