# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ours: the playbooks of this checkout by their full names, from this host over ssh, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from lab import PARAMETERS, ROOT, SUBNET, BenchError, Machine, run, until
from pair import Command, Pair

STATE = ROOT / ".cache" / "bench"


class Ours(Pair):
    name = "ours"
    number = 10
    synchronous = 0
    archived = False

    @property
    def state(self) -> Path:
        return STATE / self.name

    def setup(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        key = self.state / "id_ed25519"
        if not key.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        known = []
        for machine in self.machines:
            machine.root(
                "umask 077; mkdir -p .ssh; cat >.ssh/authorized_keys", given=key.with_suffix(".pub").read_text()
            )
            known.append(f"{machine.address} {machine.root('cat /etc/ssh/ssh_host_ed25519_key.pub')}")
        (self.state / "known_hosts").write_text("".join(known), encoding="utf-8")
        self.site()

    def site(self) -> None:
        """site.yml: builds the pair, or makes it synchronous or asynchronous."""
        known_hosts = self.state / "known_hosts"
        access = {"contype": "host", "databases": "all", "users": "all", "source": f"{SUBNET}.0/24", "method": "trust"}
        variables = {
            "node_version": 17,
            "bootstrap_primary": self.a.short,
            "node_replication_password": "bench",
            "node_parameters": {name: value for name, value in PARAMETERS.items() if name != "listen_addresses"},
            "node_hba_rules": [access],
            "primary_synchronous_standbys": self.synchronous,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.state / "id_ed25519"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known_hosts} -o StrictHostKeyChecking=yes",
            "archive_enabled": self.archived,
        }
        hosts = {machine.short: {"ansible_host": machine.address} for machine in self.machines}
        inventory = {"postgres": {"hosts": hosts, "vars": variables}}
        (self.state / "inventory.json").write_text(json.dumps(inventory, indent=2), encoding="utf-8")
        self.must(self.playbook("site"))

    def playbook(self, name: str, *arguments: str) -> Command:
        """Run one of the playbooks, with no ssh connection left over from an earlier one."""
        journal, log = self.state / "journal", self.state / f"{name}.log"
        journal.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as sockets:
            environment = {
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
                "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback"),
                "ANSIBLE_CALLBACKS_ENABLED": "bench_journal",
                "HOTSPARE_BENCH_JOURNAL": str(journal),
            }
            command = [
                "ansible-playbook",
                "-i",
                str(self.state / "inventory.json"),
                f"hotspare.postgresql.{name}",
                *arguments,
            ]
            began = time.monotonic()
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
            )
            seconds = time.monotonic() - began
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        steps = (
            [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.exists() else []
        )
        return Command(began, seconds, done.returncode, done.stdout + done.stderr, phases(steps))

    def must(self, command: Command) -> Command:
        if command.code:
            raise BenchError(f"ours failed ({command.code}): {command.output[-2000:]}")
        return command

    def set_synchronous(self, standbys: int) -> None:
        self.synchronous = standbys
        self.site()

    def switchover(self, old: Machine, new: Machine) -> Command:
        return self.playbook("failover", "-e", f"target={new.short}")

    def forced(self, old: Machine, new: Machine) -> Command:
        named = ["-e", "mode=forced", "-e", f"target={new.short}", "-e", f"confirm_unfenced={old.short}"]
        return self.playbook("failover", *named)

    def rejoin(self, old: Machine, new: Machine) -> str:
        command = self.must(self.playbook("rebuild_standby", "-e", f"node={old.short}", "-e", f"confirm={old.short}"))
        until("ours: the old primary streams", new.has_standby, 60)
        return f"rebuild_standby.yml by {command.phases.get('method')}, the whole of it {command.seconds:.1f} s"


class Archived(Ours):
    """With the archive: each node ships its WAL to the other one."""

    name = "archived"
    number = 12
    archived = True


def phases(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the command's time went: seconds by task, and what the modules said of the stop and the promotion."""
    known: dict[str, Any] = {"tasks": {}}
    for step in steps:
        if step["seconds"] >= 0.05:
            tasks = known["tasks"]
            tasks[step["task"]] = round(tasks.get(step["task"], 0) + step["seconds"], 3)
        # The first stop; the last word of the armed standby.
        if "shutdown" in step:
            known.setdefault("shutdown", step["shutdown"])
        if "armed" in step:
            known["armed"] = step["armed"]
        if "method" in step:
            known["method"] = step["method"]
    return known
