# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runner asks of a tool: a pair of machines, and the commands that an operator would type."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lab import HBA, PARAMETERS, SUBNET, BenchError, Machine, run, until


@dataclass
class Command:
    """What an operator typed: when (CLOCK_MONOTONIC), how long it took, how it ended, what is known of its steps."""

    began: float
    seconds: float
    code: int
    output: str
    phases: dict[str, Any] = field(default_factory=dict)


def timed(*argv: str, timeout: float = 180) -> Command:
    began = time.monotonic()
    done = run(*argv, check=False, timeout=timeout)
    return Command(began, time.monotonic() - began, done.returncode, done.stdout + done.stderr)


class Pair:
    """Two machines under one tool; `control` is a third that all tools share: etcd, the monitor, the client."""

    name = ""
    # By nature: what happens to a dead primary without a command of the operator.
    automatic = False
    number = 0

    def __init__(self, control: Machine) -> None:
        self.control = control
        self.a = Machine(f"{self.name}-a".replace("_", "-"), self.number)
        self.b = Machine(f"{self.name}-b".replace("_", "-"), self.number + 1)
        self.machines = [self.a, self.b]

    @property
    def hosts(self) -> str:
        return f"{self.a.address},{self.b.address}"

    def setup(self) -> None:
        """From empty machines to a pair that streams."""
        raise NotImplementedError

    def switchover(self, old: Machine, new: Machine) -> Command:
        """Planned: the command that returns when it is done."""
        raise NotImplementedError

    def forced(self, old: Machine, new: Machine) -> Command:
        """The operator's command after the crash of the primary."""
        raise NotImplementedError

    def rejoin(self, old: Machine, new: Machine) -> str:
        """The old primary's machine is up again: make it a standby, or wait until the tool has; says what it took."""
        raise NotImplementedError

    def settled(self, new: Machine) -> bool:
        """The next command would be accepted."""
        return new.has_standby()

    def roles(self) -> tuple[Machine, Machine]:
        """(primary, standby)"""
        for primary, standby in ((self.a, self.b), (self.b, self.a)):
            if primary.is_primary():
                return primary, standby
        raise BenchError(f"{self.name}: no primary")

    def to(self, machine: Machine, script: str, timeout: float = 180) -> Command:
        """An operator's command on a machine, as postgres."""
        path = "PATH=/usr/lib/postgresql/17/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        work = "/var/lib/postgresql"
        return timed(
            "docker",
            "exec",
            "-u",
            "postgres",
            "-w",
            work,
            "-e",
            path,
            machine.name,
            "sh",
            "-c",
            script,
            timeout=timeout,
        )

    def fill(self, scale: int) -> None:
        """The database of pgbench and the ledger."""
        primary, _ = self.roles()
        primary.postgres("createdb bench", check=False)
        primary.postgres(f"pgbench --initialize --quiet --scale {scale} bench")
        primary.sql(
            "create table if not exists ledger (run text, thread text, number int, primary key (run, thread, number));"
            "checkpoint",
            "bench",
        )
        until(f"{self.name}: the standby streams", lambda: self.settled(primary), 120)


def configuration(**more: str) -> str:
    return "".join(f"{name} = '{value}'\n" for name, value in {**PARAMETERS, **more}.items())


def debian_cluster(machine: Machine, **more: str) -> None:
    """Debian's cluster 17/main, stopped, with the bench's configuration."""
    machine.root("pg_createcluster 17 main")
    machine.write("/etc/postgresql/17/main/conf.d/bench.conf", configuration(**more))
    machine.write("/etc/postgresql/17/main/pg_hba.conf", HBA, owner="postgres")


def ssh_between(*machines: Machine) -> None:
    """postgres logs in to each of them from each of them, with one key."""
    first = machines[0]
    first.postgres("mkdir -p -m 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
    key = first.postgres("cat .ssh/id_ed25519")
    public = first.postgres("cat .ssh/id_ed25519.pub")
    for machine in machines:
        machine.postgres("umask 077; mkdir -p .ssh; cat >.ssh/id_ed25519", given=key)
        machine.postgres("umask 077; cat >.ssh/authorized_keys", given=public)
        machine.postgres(
            "umask 077; cat >.ssh/config", given=f"Host {SUBNET}.*\nStrictHostKeyChecking no\nLogLevel ERROR\n"
        )
        machine.root("usermod -p '*' postgres")
