# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pair of servers on OpenZFS, built and rebuilt by the playbooks of this checkout, as a user runs them.

What is measured of a rebuild: `seconds` that its task takes on the node, until it streams; `steps` in it; and `whole`,
the playbook. What is before and after it (locks, slots, the state of the cluster) is the same for each method.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from guests import ROOT, SSH_CONFIG, BenchError, Guest, Guests, until
from streams import COPIES, SOURCES, forget

STATE = ROOT / ".cache/bench/zfs"
TOP = "tank/pg"
BIN = "/usr/lib/postgresql/17/bin"
DATA = "/var/lib/postgresql/17/main"
DATASETS = (
    f"zfs create -o canmount=off {TOP}"
    f" && zfs create -o mountpoint=/var/lib/postgresql/17 -o recordsize=8K {TOP}/data"
    f" && zfs create -o mountpoint=/var/lib/postgresql/17-wal -o recordsize=128K {TOP}/wal"
    " && chown postgres: /var/lib/postgresql/17 /var/lib/postgresql/17-wal"
)
BEGUN, ENDED = "Copy from the primary what is needed", "Wait until it is copied"


def inventory(guests: Guests) -> Path:
    variables = {
        "ansible_ssh_common_args": f"-F {SSH_CONFIG}",
        "ansible_ssh_timeout": 60,
        "ansible_python_interpreter": "/usr/bin/python3",
        "node_version": 17,
        "bootstrap_primary": guests.one.name,
        "zfs_dataset": TOP,
        "node_replication_password": "bench",
        "node_parameters": {"wal_log_hints": True, "max_wal_size": "2GB", "shared_buffers": "256MB"},
        # An emulated processor is slow.
        "node_timeout": 120,
        "node_connect_timeout": 30,
        "standby_timeout": 600,
    }
    hosts = {guest.name: {"node_address": guest.address} for guest in guests.both}
    STATE.mkdir(parents=True, exist_ok=True)
    path = STATE / "inventory.json"
    path.write_text(json.dumps({"postgres": {"hosts": hosts, "vars": variables}}, indent=1), encoding="utf-8")
    return path


def ansible(guests: Guests, log: str, *command: str) -> tuple[float, list[dict[str, Any]]]:
    """Run one of Ansible's programs with no ssh connection left over from an earlier one; seconds, and what
    bench_journal has noted of each task."""
    journal = STATE / "journal"
    program, *arguments = command
    argv = [program, "-i", str(inventory(guests)), *arguments]
    journal.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as sockets:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "bench/cutover/callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "bench_journal",
            "HOTSPARE_BENCH_JOURNAL": str(journal),
        }
        began = time.monotonic()
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
    (STATE / f"{log}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        said = f"{' '.join(argv)} failed ({done.returncode}): {done.stdout[-2500:]}{done.stderr[-500:]}"
        raise BenchError(said.replace(f"{ROOT}/", ""))  # results are kept, and no matter of this machine
    steps = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return round(seconds, 1), [json.loads(line) for line in steps]


def adhoc(guests: Guests, size: str) -> dict[str, Any]:
    there = {"identity": "/root/.ssh/id_ed25519", "known_hosts": "/root/.ssh/known_hosts", "host": guests.two.name}
    told = {
        "source": {"dataset": f"{SOURCES}/{size}"},
        "destination": {"dataset": f"{COPIES}/Ours-{size}", **there},
        "prefix": "ours",
    }
    module = "hotspare.postgresql.zfs_snapshot_send"
    return {"seconds": ansible(guests, "adhoc", "ansible", guests.one.name, "-m", module, "-a", json.dumps(told))[0]}


class Pair:
    def __init__(self, guests: Guests, scale: int) -> None:
        self.guests, self.scale = guests, scale
        self.primary, self.standby = guests.one, guests.two

    def build(self) -> dict[str, Any]:
        for guest in self.guests.both:
            waldir = "waldir = '/var/lib/postgresql/%v-wal/%c'"
            guest.root(f'echo "{waldir}" >/etc/postgresql-common/createcluster.d/wal.conf')
        self.primary.root(f"zfs list {TOP} >/dev/null 2>&1 || {{ {DATASETS}; }}")
        seconds, steps = ansible(self.guests, "site", "ansible-playbook", "hotspare.postgresql.site")
        return {"whole": seconds, **_rebuilt(steps)}

    def fill(self) -> int:
        """Megabytes of all databases then."""
        self.primary.postgres(f"{BIN}/pgbench -qis {self.scale} postgres && psql -qc CHECKPOINT postgres")
        self._caught_up()
        return int(self.primary.sql("select sum(pg_database_size(oid))::bigint >> 20 from pg_database"))

    def seed(self, method: str) -> dict[str, Any]:
        """The standby from nothing."""
        conninfo, slot = (self.standby.sql(f"show primary_{name}") for name in ("conninfo", "slot_name"))
        self._wipe(self.standby)
        self._settle()
        if method != "zfs":
            self.standby.root(DATASETS)
        if method != "by hand":
            return self._rebuilt(self.standby, method)
        waldir = "/var/lib/postgresql/17-wal/main"
        script = (
            f"{BIN}/pg_basebackup -d {shlex.quote(conninfo)} -S {slot} -D {DATA} --waldir {waldir} -R -X stream -c fast"
            " && pg_ctlcluster --skip-systemctl-redirect 17 main start"
            ' && until psql -XAtc "select status from pg_stat_wal_receiver" postgres | grep -q streaming;'
            " do sleep 0.1; done"
        )
        argv = ["runuser", "-u", "postgres", "--", "bash", "-c", script]
        found = self.standby.contend(do="command", argv=argv)
        self._caught_up()
        # Debian's service takes over what was started by hand.
        self.standby.root("pg_ctlcluster --skip-systemctl-redirect 17 main stop; systemctl start postgresql@17-main")
        self._caught_up()
        return {"seconds": found["seconds"]}

    def rebuild(self, method: str) -> dict[str, Any]:
        """The standby is promoted while the primary still takes writes, which then dies and has to become a standby."""
        old, new = self.primary, self.standby
        self._tidy()
        self._write(old, 1)
        self._caught_up()
        new.sql("select pg_promote()")
        self._write(old, 1)
        old.root("systemctl kill --signal KILL postgresql@17-main; systemctl stop postgresql@17-main")
        self._write(new, 1)
        self.primary, self.standby = new, old
        self._settle()
        return self._rebuilt(old, method)

    def _rebuilt(self, node: Guest, method: str) -> dict[str, Any]:
        named = ["-e", f"node={node.name}", "-e", f"confirm={node.name}", "-e", f"standby_method={method}"]
        playbook = ["ansible-playbook", "hotspare.postgresql.rebuild_standby", *named, "-e", "waive_backup=true"]
        seconds, steps = ansible(self.guests, f"rebuild-{method}", *playbook)
        found = _rebuilt(steps)
        if found["method"] != method:
            raise BenchError(f"{node.name} was rebuilt by {found['method']}, and {method} was asked for")
        self._caught_up()
        return {"whole": seconds, **found}

    def _write(self, node: Guest, percent: int) -> None:
        """About so many percent of the pages of the accounts, of which each has 61 rows."""
        rows = self.scale * 100000
        node.sql(
            "update pgbench_accounts set abalance = abalance + 1 where aid in "
            f"(select 1 + (random() * {rows - 1})::int from generate_series(1, {rows * percent // 100 // 61}))"
        )

    def _caught_up(self) -> None:
        end = self.primary.sql("select pg_current_wal_flush_lsn()")
        replayed = f"select pg_last_wal_replay_lsn() >= '{end}'"
        until(f"{self.standby.name} has {end}", lambda: self.standby.sql(replayed, check=False) == "t", 300)

    def _settle(self) -> None:
        self.primary.sql("checkpoint")
        for guest in self.guests.both:
            guest.root("sync; zpool sync tank")

    def _wipe(self, node: Guest) -> None:
        node.root("systemctl stop postgresql@17-main")
        self._tidy()
        forget(node, TOP)
        node.root("rm -rf /var/lib/postgresql/17/* /var/lib/postgresql/17-wal/*")

    def _tidy(self) -> None:
        """What rebuilds have kept."""
        for guest in self.guests.both:
            guest.root(f"rm -rf {DATA}.before-* /var/lib/postgresql/17-wal/main.before-*")
            for name in guest.root("zfs list -H -o name -d 1 tank").split():
                if name.startswith(f"{TOP}-aside-"):
                    forget(guest, name)


def _rebuilt(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What pg_rebuild has said, and how long it took: one task has it begin in the background, another one waits."""
    seconds = 0.0
    for step in steps:
        if step["task"].endswith((BEGUN, ENDED)):
            seconds += step["seconds"]
        if step["task"].endswith(ENDED):
            return {"seconds": round(seconds, 1), "method": step.get("method"), "steps": step.get("steps")}
    return {"seconds": None, "method": None}
