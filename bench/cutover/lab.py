# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines of the bench: containers with systemd on a network of their own, and how to run programs in them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "hotspare-bench"
SUBNET = "10.89.0"
# lab/clean finds by it what we leave behind.
LABEL = "project=hotspare-lab"
BIN = "/usr/lib/postgresql/17/bin"

# The same for every tool. What is not here is PostgreSQL's or the tool's default.
PARAMETERS = {
    "listen_addresses": "*",
    "wal_level": "replica",
    "wal_log_hints": "on",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_keep_size": "512MB",
}
# Trust: a lab on a bridge of its own, never a model for anything else.
HBA = "local all,replication all trust\n" + "".join(
    f"host all,replication all {source} trust\n" for source in ("127.0.0.1/32", f"{SUBNET}.0/24")
)


class BenchError(Exception):
    """A command of the bench failed or something did not come true in time."""


def run(
    *argv: str, given: str | None = None, check: bool = True, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program on this host; BenchError with its last words where it fails (check) or takes too long."""
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, text=True, errors="replace", check=False, timeout=timeout, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(argv)[:300]} took longer than {timeout:.0f} s") from error
    if check and done.returncode:
        raise BenchError(f"{' '.join(argv)[:300]} failed ({done.returncode}): {(done.stdout + done.stderr)[-1500:]}")
    return done


def until(what: str, holds: Callable[[], bool], seconds: float, pause: float = 0.1) -> float:
    """Wait until it holds; seconds that took, BenchError after `seconds`."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise BenchError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(pause)
    return time.monotonic() - began


class Machine:
    """A container with systemd, sshd, PostgreSQL 17 and the peers' programs, at a fixed address."""

    network, subnet = NETWORK, SUBNET

    def __init__(self, name: str, number: int) -> None:
        self.name = f"{self.network}-{name}"
        self.short = name
        self.address = f"{self.subnet}.{number}"

    def create(self, image: str, *more: str) -> None:
        """Make it anew (`more`: options of docker run), and wait until it has booted."""
        options = run("bash", "-c", ". lab/common.sh && machine_options").stdout.split()
        run("docker", "rm", "--force", "--volumes", self.name, check=False)
        place = ["--network", self.network, "--ip", self.address]
        run(
            "docker",
            "run",
            "--detach",
            "--name",
            self.name,
            "--hostname",
            self.name,
            "--label",
            LABEL,
            *place,
            *options,
            *more,
            image,
        )
        self.wait_booted()

    def wait_booted(self) -> None:
        states = ("running", "degraded")
        until(
            f"{self.name} has booted",
            lambda: self.root("systemctl is-system-running", check=False).strip() in states,
            60,
        )

    def root(self, script: str, given: str | None = None, check: bool = True, user: str = "root") -> str:
        """Output of a shell script in it."""
        home = "/root" if user == "root" else "/var/lib/postgresql"
        path = f"PATH={BIN}:/usr/sbin:/usr/bin:/sbin:/bin"
        command = ["docker", "exec", "-i", "-u", user, "-w", home, "-e", path, self.name, "bash", "-c", script]
        return run(*command, given=given, check=check).stdout

    def postgres(self, script: str, given: str | None = None, check: bool = True) -> str:
        return self.root(script, given, check, user="postgres")

    def write(self, path: str, text: str, owner: str = "root") -> None:
        self.root(f"install -D -o {owner} /dev/stdin {path}", given=text)

    def sql(self, statement: str, database: str = "postgres", check: bool = True) -> str:
        return self.postgres(
            f"timeout 60 psql -XAtq -v ON_ERROR_STOP=1 {database}", given=statement, check=check
        ).strip()

    def is_primary(self) -> bool:
        return self.sql("select pg_is_in_recovery()", check=False) == "f"

    def is_writable(self) -> bool:
        """It takes writes of an ordinary session, which pg_auto_failover forbids for a while after a promotion."""
        shown = self.sql("show transaction_read_only", check=False)
        return shown == "off"

    def has_standby(self) -> bool:
        streaming = "select count(*) from pg_stat_replication where state = 'streaming' and application_name !~ '^pg_'"
        return self.sql(streaming, check=False) not in ("", "0")

    def kill(self) -> None:
        """As a crash of the whole machine, but for the kernel, which closes the sockets."""
        run("docker", "kill", "--signal", "KILL", self.name)

    def start(self) -> None:
        run("docker", "start", self.name)

    def unplug(self) -> None:
        run("docker", "network", "disconnect", self.network, self.name)

    def plug(self) -> None:
        run("docker", "network", "connect", "--ip", self.address, self.network, self.name)


def make_network(network: str = NETWORK, subnet: str = SUBNET) -> None:
    if run("docker", "network", "inspect", network, check=False).returncode:
        run("docker", "network", "create", "--label", LABEL, "--subnet", f"{subnet}.0/24", network)


def remove_all(network: str = NETWORK) -> None:
    """The machines of a network, and the network."""
    names = run(
        "docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}", "--filter", f"name=^{network}-"
    ).stdout.split()
    if names:
        run("docker", "rm", "--force", "--volumes", *names)
    run("docker", "network", "rm", network, check=False)
