# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runner asks of a way to archive: two machines, and the commands that an operator would configure."""

from __future__ import annotations

from typing import Any

from lab import Machine, run
from material import DATA


class Box(Machine):
    """A machine of this bench: `node` has the server, `store` is the archive host."""

    network, subnet = "hotspare-bencharch", "10.90.0"


class Way:
    """One tool in one setting; `place` is where the archive is: ssh (on the store), local (a directory on the node)."""

    tool = ""
    # A call that starts everything anew costs the same each time: one in so many of the segments tells it.
    part = 1

    def __init__(self, node: Box, store: Box, place: str = "ssh", compression: str = "none") -> None:
        self.node, self.store, self.place, self.compression = node, store, place, compression
        self.there = store if place == "ssh" else node

    @property
    def name(self) -> str:
        return self.tool if self.compression == "none" else f"{self.tool}, {self.compression}"

    @property
    def archive_command(self) -> str:
        raise NotImplementedError

    @property
    def restore_command(self) -> str:
        """Of the server in `self.data`."""
        raise NotImplementedError

    def start(self, data: str = DATA) -> None:
        """Ready for the first call; `data` is whose server calls."""

    def stop(self) -> None:
        """Nothing of it runs any more."""

    def told(self) -> dict[str, Any]:
        """What is measured of it besides, before it stops."""
        return {}

    def wipe(self) -> None:
        """Its archive holds nothing."""
        raise NotImplementedError

    def held(self) -> tuple[int, int]:
        """Segments in its archive, and their bytes as they are stored."""
        raise NotImplementedError

    def fill(self, names: list[str]) -> None:
        """The archive holds these, by whatever way is quick."""
        raise NotImplementedError


def counted(machine: Box, directory: str) -> tuple[int, int]:
    """Files below it that are named as segments, and their bytes."""
    listed = machine.root(f"find {directory} -type f -name '0000*' -size +100k -printf '%s\\n'").split()
    return len(listed), sum(map(int, listed))


def ssh_as_postgres(node: Box, store: Box, *accounts: str) -> None:
    """postgres of the node logs in as each of these accounts of the store, whose host key it knows."""
    node.postgres("mkdir -p -m 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519 <<<y >/dev/null")
    public = node.postgres("cat .ssh/id_ed25519.pub")
    node.postgres("cat >.ssh/known_hosts", given=host_key(store))
    for account in accounts:
        store.root(f"usermod -p '*' -s /bin/bash {account}")
        store.root("umask 077; mkdir -p ~/.ssh && cat >~/.ssh/authorized_keys", given=public, user=account)


def host_key(machine: Box) -> str:
    return f"{machine.address} {machine.root('cat /etc/ssh/ssh_host_ed25519_key.pub')}"


def copy_segments(names: list[str], node: Box, to: Box, directory: str, owner: str) -> None:
    """From the server's pg_wal into a directory of a machine, past all tools."""
    to.root(f"install -d -o {owner} {directory}")
    listed = " ".join(names)
    pipe = f"docker exec {node.name} tar -C {DATA}/pg_wal -c {listed} | docker exec -i {to.name} tar -C {directory} -x"
    run("bash", "-o", "pipefail", "-c", pipe)
    to.root(f"chown -R {owner} {directory}")
