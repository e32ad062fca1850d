# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runner asks of a way to archive: two machines, and the commands that an operator would configure."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from lab import ROOT, BenchError, Machine, run
from material import DATA

LOG = "/bench/loop.log"
PAUSE = 0.3  # s, between two segments on a calm node


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
        """The archive holds these."""
        self.push(names)

    def push(self, names: list[str], do: str = "archive") -> dict[str, Any]:
        """Archive these into an empty archive, as loop.py does it."""
        self.wipe()
        flush()
        self.start()
        try:
            told = {**self.calls(self.archive_command, names, do), **self.told()}
        finally:
            self.stop()
        held, size = self.held()
        if held != len(names):
            raise BenchError(f"the archive holds {held} segments, not {len(names)}")
        return {**told, "stored": size}

    def fetch(self, names: list[str]) -> dict[str, Any]:
        """Restore these, as loop.py does it."""
        self.fill(names)
        flush()
        self.start()
        try:
            return self.calls(self.restore_command, names, "restore")
        finally:
            self.stop()

    def calls(self, command: str, names: list[str], do: str) -> dict[str, Any]:
        job = {"data": DATA, "names": names, "command": command, "do": do, "pause": PAUSE}
        before = processor(self.node, self.store)
        done: dict[str, Any] = json.loads(self.node.postgres(f"python3 -I /loop.py 2>{LOG}", given=json.dumps(job)))
        if done["failed"]:
            raise BenchError(f"{done['failed']}: {self.node.root(f'tail -c 1500 {LOG}')}")
        times = sorted(1000 * seconds for seconds in done["calls"])
        spread = {"min": times[0], "median": median(times), "p95": times[int(len(times) * 0.95)], "max": times[-1]}
        return {
            "segments": len(names),
            "seconds": done["seconds"],
            "per_second": round(len(names) / done["seconds"], 2),
            "processor": round(processor(self.node, self.store) - before, 2),
            "calls_ms": {name: round(value, 1) for name, value in spread.items()},
        }


def processor(*machines: Box) -> float:
    """Seconds of processor time that they have used."""
    return sum(map(used, machines))


def used(machine: Box) -> float:
    number = run("docker", "inspect", "--format", "{{.Id}}", machine.name).stdout.strip()
    first = Path(f"/sys/fs/cgroup/cpuacct/docker/{number}/cpuacct.usage")
    if first.exists():
        return int(first.read_text(encoding="ascii")) / 1e9
    named = (number, f"lab-{machine.name}")
    groups = [file for file in Path("/sys/fs/cgroup").glob("**/cpu.stat") if file.parent.name.endswith(named)]
    return sum(int(group.read_text(encoding="ascii").split()[1]) for group in groups) / 1e6


def flush() -> None:
    """What others wrote before is not on our account."""
    run("sync", "--file-system", str(ROOT))


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
