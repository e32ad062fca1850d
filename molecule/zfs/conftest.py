# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operator's hands and eyes where the nodes are virtual machines: ssh in place of docker exec, and lab/guests."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
SSH = ("ssh", "-F", str(PROJECT / ".cache/guests/ssh_config"), "-o", "LogLevel=ERROR")


class Guests:
    """Commands in the guests, and what can happen to a machine.

    All commands for a guest share one ssh connection: to open one takes an emulated processor half a second.
    """

    def __init__(self, names: list[str], directory: Path) -> None:
        self.names = names
        self.directory = directory
        self.shared: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, node: str, *argv: str, stdin: str | None = None, check: bool = True, user: str = "root") -> str:
        command = ["runuser", "-u", user, "--", *argv] if user != "root" else [*argv]
        done = subprocess.run(
            [*SSH, "-o", f"ControlPath={self._connection(node)}", node, shlex.join(command)],
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, f"{node}: {argv}: {done.stderr}"
        return done.stdout

    def _connection(self, node: str) -> Path:
        """The socket of the shared connection, opened anew where it broke. Until it stands ssh makes its own."""
        path = self.directory / node
        process = self.shared.get(node)
        if process is None or process.poll() is not None:
            path.unlink(missing_ok=True)
            self.shared[node] = subprocess.Popen(
                [*SSH, "-MNT", "-o", f"ControlPath={path}", "-o", "ServerAliveInterval=5", node],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return path

    def _disconnect(self, node: str) -> None:
        process = self.shared.pop(node, None)
        if process is not None:
            process.terminate()
            process.wait()

    def close(self) -> None:
        for node in list(self.shared):
            self._disconnect(node)

    def lab(self, *args: str) -> None:
        done = subprocess.run([PROJECT / "lab/guests", *args], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"lab/guests {args}: {done.stderr}"

    @contextmanager
    def cut_off(self, node: str) -> Iterator[None]:
        """A guest whose cable to the other one is pulled: packets are lost, nothing is refused."""
        self.lab("cable", node, "off")
        try:
            yield
        finally:
            self.lab("cable", node, "on")

    @contextmanager
    def slow(self, node: str) -> Iterator[None]:
        """What it sends to the other one takes its time, so that there is some to break a stream."""
        limit = ["tbf", "rate", "4mbit", "burst", "16kb", "latency", "400ms"]
        self.run(node, "tc", "qdisc", "add", "dev", "eth1", "root", *limit)
        try:
            yield
        finally:
            self.run(node, "tc", "qdisc", "del", "dev", "eth1", "root")

    def cut_power(self, node: str) -> None:
        self.lab("kill", node)
        self._disconnect(node)

    def start(self) -> None:
        """All guests, those too whose power was cut."""
        self.lab("up", *self.names)

    # Datasets

    def properties(self, node: str, dataset: str, *names: str) -> dict[str, str]:
        """Exact values, as scripts get them."""
        lines = self.run(node, "zfs", "get", "-Hp", "-o", "property,value", ",".join(names), dataset).splitlines()
        return dict(line.split("\t", 1) for line in lines)

    def snapshots(self, node: str, dataset: str) -> dict[str, str]:
        """GUIDs by name, below a dataset, oldest first."""
        listed = self.run(node, "zfs", "list", "-Hpr", "-t", "snapshot", "-s", "createtxg", "-o", "name,guid", dataset)
        return dict(line.split("\t", 1) for line in listed.splitlines())


@pytest.fixture(scope="session", autouse=True)
def guests(lab: Any) -> Iterator[Guests]:
    # A socket's path is short.
    with tempfile.TemporaryDirectory(prefix="hotspare-") as directory:
        found = Guests([lab.one, lab.two], Path(directory))
        lab.run = found.run  # in place of docker exec
        try:
            yield found
        finally:
            found.close()
