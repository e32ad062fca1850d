# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""barman-wal-archive and barman-wal-restore of Barman, which is on the store, over ssh."""

from __future__ import annotations

from material import DATA
from way import Box, Way, copy_segments, counted

HOME = "/bench/barman"
SERVER = """
[bench]
description = bench
conninfo = host={address} user=postgres dbname=postgres
backup_method = postgres
archiver = on
"""


def set_up(node: Box, store: Box) -> None:
    store.root(f"install -d -o barman {HOME}")
    store.write(
        "/etc/barman.conf",
        f"[barman]\nbarman_user = barman\nbarman_home = {HOME}\n{SERVER}".format(address=node.address),
    )


class Barman(Way):
    tool = "barman-wal-archive"
    part = 8

    @property
    def archive_command(self) -> str:
        return f"barman-wal-archive -U barman {self.store.address} bench %p"

    @property
    def restore_command(self) -> str:
        return f"barman-wal-restore -U barman {self.store.address} bench %f %p"

    def wipe(self) -> None:
        folders = f"{HOME}/bench/incoming {HOME}/bench/wals"
        self.store.root(f"rm -rf {folders}; install -d -o barman {HOME}/bench {folders}")

    def held(self) -> tuple[int, int]:
        return counted(self.store, f"{HOME}/bench/incoming")

    def fill(self, names: list[str]) -> None:
        """Where `barman archive-wal` would put them, which wants a base backup first."""
        self.wipe()
        copy_segments(names, self.node, self.store, f"{HOME}/bench/wals/{names[0][:16]}", "barman")


class BarmanRestore(Barman):
    tool = "barman-wal-restore"


class BarmanParallel(Barman):
    """Fetches eight segments at a time, and goes on when all are there."""

    tool = "barman-wal-restore -p 8"
    part = 4
    spool = "/bench/barman-spool"

    @property
    def restore_command(self) -> str:
        return super().restore_command.replace("-U", f"-p 8 --spool-dir {self.spool} -U")

    def start(self, data: str = DATA) -> None:
        self.node.root(f"rm -rf {self.spool}; install -d -o postgres {self.spool}")
