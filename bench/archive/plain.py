# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runbooks have: cp as in PostgreSQL's manual, but flushed to disk, and rsync for each segment."""

from __future__ import annotations

from material import DATA
from way import Way, counted

DIRECTORY = "/bench/plain"
SOCKET = "/tmp/control"


class Plain(Way):
    def wipe(self) -> None:
        self.there.root(f"rm -rf {DIRECTORY}; install -d -o postgres {DIRECTORY}")

    def held(self) -> tuple[int, int]:
        return counted(self.there, DIRECTORY)


class Copy(Plain):
    tool = "cp && sync"

    @property
    def archive_command(self) -> str:
        return f"test ! -f {DIRECTORY}/%f && cp %p {DIRECTORY}/%f && sync {DIRECTORY}/%f"

    @property
    def restore_command(self) -> str:
        return f"cp {DIRECTORY}/%f %p"


class Rsync(Plain):
    tool = "rsync"
    part = 8

    @property
    def archive_command(self) -> str:
        target = f"{self.store.address}:{DIRECTORY}" if self.place == "ssh" else DIRECTORY
        return f"rsync -a --fsync --ignore-existing %p {target}/%f"


class RsyncControl(Rsync):
    """The ssh connection is there already; OpenSSH hands each rsync a channel of it."""

    tool = "rsync, ControlMaster"

    @property
    def archive_command(self) -> str:
        return super().archive_command.replace("rsync", f"rsync -e 'ssh -o ControlPath={SOCKET}'", 1)

    def start(self, data: str = DATA) -> None:
        options = f"-o ControlMaster=yes -o ControlPath={SOCKET} -o ControlPersist=yes"
        self.node.postgres(f"ssh -fN {options} {self.store.address} >/dev/null 2>&1")

    def stop(self) -> None:
        self.node.postgres(f"ssh -O exit -o ControlPath={SOCKET} {self.store.address}", check=False)
