# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pair of virtual machines with OpenZFS (lab/guests), and how to run programs in them."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("hotspare-bench-db1", "hotspare-bench-db2")
ADDRESSES = ("10.77.0.11", "10.77.0.12")
SSH_CONFIG = ROOT / ".cache/guests/ssh_config"
# Ours prefers this cipher; all get the same.
CIPHER = "aes128-gcm@openssh.com"


class BenchError(Exception):
    """A command of the bench failed or something did not come true in time."""


def run(*argv: str, given: str | None = None, check: bool = True, timeout: float = 900) -> str:
    """Run a program on this host; its output. BenchError with its last words where it fails or takes too long."""
    try:
        done = subprocess.run(
            argv, input=given or "", capture_output=True, text=True, errors="replace", check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(argv)[-300:]} took longer than {timeout:.0f} s") from error
    if check and done.returncode:
        raise BenchError(f"{' '.join(argv)[-300:]} failed ({done.returncode}): {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def until(what: str, holds: Callable[[], bool], seconds: float, pause: float = 0.5) -> None:
    """Wait until it holds. BenchError after `seconds`."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise BenchError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(pause)


class Guest:
    """One of the two. All commands for it share a connection: an emulated processor needs half a second to open one."""

    def __init__(self, name: str, address: str, sockets: Path) -> None:
        self.name, self.address = name, address
        self._shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath={sockets}/{name}", "-o", "ControlPersist=900"]

    def root(self, script: str, given: str | None = None, check: bool = True, user: str = "root") -> str:
        """Output of a shell script in it."""
        command = f"bash -c {shlex.quote(script)}"
        if user != "root":
            command = f"cd / && runuser -u {user} -- {command}"
        ssh = ["ssh", "-F", str(SSH_CONFIG), "-o", "LogLevel=ERROR", *self._shared, self.name]
        return run(*ssh, command, given=given, check=check)

    def postgres(self, script: str, given: str | None = None, check: bool = True) -> str:
        return self.root(script, given, check, user="postgres")

    def sql(self, statement: str, check: bool = True) -> str:
        return self.postgres("psql -XAtq -v ON_ERROR_STOP=1 postgres", given=statement, check=check).strip()

    def copy(self, files: Path, to: str) -> None:
        """A directory's files, into one that is made there."""
        packed = subprocess.run(["tar", "-cz", "-C", str(files), "."], capture_output=True, check=True).stdout
        ssh = [
            "ssh",
            "-F",
            str(SSH_CONFIG),
            *self._shared,
            self.name,
            f"mkdir -p {to} && tar -xz --no-same-owner -C {to}",
        ]
        subprocess.run(ssh, input=packed, check=True, stdout=subprocess.DEVNULL)

    def contend(self, **told: Any) -> dict[str, Any]:
        """What contend.py says of it."""
        found: dict[str, Any] = json.loads(self.root("python3 /bench/contend.py", given=json.dumps(told)))
        if "failed" in found:
            raise BenchError(f"{self.name}: {found['failed']}")
        return found

    def close(self) -> None:
        ssh = ["ssh", "-F", str(SSH_CONFIG), *self._shared, "-O", "exit", self.name]
        run(*ssh, check=False, timeout=30)


class Guests:
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="hotspare-")  # a socket's path is short
        sockets = Path(self._directory.name)
        self.one, self.two = (Guest(name, address, sockets) for name, address in zip(NAMES, ADDRESSES))

    @property
    def both(self) -> tuple[Guest, Guest]:
        return self.one, self.two

    def up(self) -> None:
        """Start them, with a pool on each of their disks: tank for servers, vault for streams."""
        run(str(ROOT / "lab/guests"), "up", *NAMES)
        options = "-o ashift=12 -O mountpoint=none -O canmount=off -O atime=off -O compression=lz4"
        for guest in self.both:
            for pool, disk in (("tank", "one"), ("vault", "two")):
                guest.root(
                    f"zpool list {pool} >/dev/null 2>&1 || zpool create {options} {pool} /dev/disk/by-id/virtio-{disk}"
                )
            guest.copy(ROOT / "plugins/module_utils", "/bench/hotspare")
            guest.root("cat >/bench/contend.py", given=(Path(__file__).parent / "contend.py").read_text("utf-8"))
            # As a module's files are when they are used for the second time.
            guest.root("touch /bench/hotspare/__init__.py; cd /bench; python3 -m compileall -q hotspare contend.py")

    def versions(self) -> dict[str, str]:
        packages = "zfsutils-linux sanoid mbuffer openssh-server postgresql-17 python3"
        listed = self.one.root(f"dpkg-query -W -f '${{Package}} ${{Version}}\\n' {packages}")
        return dict(line.split() for line in listed.splitlines())

    def close(self) -> None:
        for guest in self.both:
            guest.close()
        self._directory.cleanup()

    def down(self) -> None:
        run(str(ROOT / "lab/guests"), "down", *NAMES)
