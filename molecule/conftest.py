# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of all scenarios use: the operator's hands (ansible-playbook, docker) and eyes (psql, files)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # ledger.py lies beside this file

# s; on a busy machine all takes its time, and what has not come by then does not come.
PATIENCE = 240
PLAY_PATIENCE = 1200

RECAP = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)\s+skipped=(\d+)", re.MULTILINE
)
FATAL = re.compile(r"^(?:fatal|failed): \[.*?\].*? => (\{.*\})$", re.MULTILINE)

# Runs in a container: every file that must not change, with mode, owner and content. Of a data directory only what
# an administrator or the collection writes there, since the server itself writes the rest all the time.
FINGERPRINT = """
import hashlib, json, os, stat, sys
found = {}
for root in ("/etc", "/srv", "/root", "/usr/local", "/var/lib/postgresql", "/var/lib/dpkg/status"):
    paths = [root]
    for directory, directories, files in os.walk(root):
        # Ansible's own remnants, and what the server writes in a data directory.
        directories[:] = [d for d in directories if d not in (".ansible", "__pycache__")]
        if "PG_VERSION" in files:
            directories[:] = []
            files = [f for f in files if f not in ("postmaster.pid", "postmaster.opts", "current_logfiles")]
        paths += [os.path.join(directory, name) for name in directories + files]
    for path in paths:
        if not os.path.lexists(path):
            continue
        s = os.lstat(path)
        content = None
        if stat.S_ISREG(s.st_mode):
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        elif stat.S_ISLNK(s.st_mode):
            content = os.readlink(path)
        found[path] = [oct(s.st_mode), s.st_uid, s.st_gid, content]
json.dump(found, sys.stdout)
"""

# Runs in a container: operations that are under way, or that nobody has ended.
LEFT_BEHIND = """
import glob, json
locks = glob.glob("/run/lock/hotspare-*.operation.json")
armed = [path for path in glob.glob("/run/lock/hotspare-*.armed.json")
         if json.load(open(path)).get("state") in ("armed", "promoting")]
print(json.dumps(locks + armed))
"""

CATALOG = """
SELECT 'role', rolname, rolpassword, rolreplication::text, rolsuper::text FROM pg_authid
UNION ALL SELECT 'database', datname, datcollate, encoding::text, NULL FROM pg_database
UNION ALL SELECT 'slot', slot_name, slot_type, active::text, NULL FROM pg_replication_slots
UNION ALL SELECT 'setting', name, setting, sourcefile, sourceline::text FROM pg_settings
  WHERE source NOT IN ('default', 'override', 'client', 'session')
UNION ALL SELECT 'started', pg_postmaster_start_time()::text, NULL, NULL, NULL
UNION ALL SELECT 'loaded', pg_conf_load_time()::text, NULL, NULL, NULL
ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Play:
    """A finished ansible-playbook: `hosts` is the recap, {host: {ok, changed, unreachable, failed, skipped}}."""

    returncode: int
    output: str
    seconds: float

    @property
    def hosts(self) -> dict[str, dict[str, int]]:
        keys = ("ok", "changed", "unreachable", "failed", "skipped")
        return {m[1]: dict(zip(keys, map(int, m.groups()[1:]))) for m in RECAP.finditer(self.output)}

    @property
    def changed(self) -> int:
        return sum(host["changed"] for host in self.hosts.values())

    @property
    def messages(self) -> list[str]:
        """What failed tasks said, once each."""
        found = []
        for match in FATAL.finditer(self.output):
            result = json.loads(match[1])
            for item in result.get("results") or [result]:
                message = item.get("msg")
                found += [message if isinstance(message, str) else json.dumps(message)]
        return list(dict.fromkeys(found))

    def evaluations(self, host: str) -> int:
        """Tasks that were evaluated for a host: run or skipped."""
        return self.hosts[host]["ok"] + self.hosts[host]["skipped"]


@dataclass(frozen=True)
class Killed:
    """A run of run_until_killed; `steps` are the tasks that ended: {number, name, module, state}."""

    killed: bool
    output: str
    steps: list[dict[str, Any]]


class Lab:
    """The containers of this scenario and the inventory that molecule wrote for them."""

    def __init__(self) -> None:
        self.directory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
        self.inventory = str(self.directory / "inventory")
        self.modules = tempfile.TemporaryDirectory(prefix="hotspare-modules-")  # of this session, whose code stays
        config = yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text(encoding="utf-8"))
        self.variables: dict[str, Any] = config["provisioner"]["inventory"]["group_vars"]["postgres"]
        self.addresses = {p["name"]: p["networks"][0]["ipv4_address"] for p in config["platforms"]}
        self.one, self.two, *_ = self.addresses
        self.version = int(self.variables["node_version"])
        self.data = f"/var/lib/postgresql/{self.version}/main"
        self.service = f"postgresql@{self.version}-main"

    # The operator's hands

    def start(self, playbook: str, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """ansible-playbook in a process group of its own, so that it can be killed as a whole."""
        return subprocess.Popen(
            ["ansible-playbook", "-i", self.inventory, f"hotspare.postgresql.{playbook}", *args],
            env={
                **os.environ,
                "ANSIBLE_FORCE_COLOR": "0",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
                "ANSIBLE_CALLBACKS_ENABLED": "module_cache",
                "HOTSPARE_MODULE_CACHE": self.modules.name,
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def play(self, playbook: str, *args: str, ok: bool | None = True, env: dict[str, str] | None = None) -> Play:
        """Run a playbook to its end; `ok` says how it must end (None: either way)."""
        began = time.monotonic()
        process = self.start(playbook, *args, env=env)
        try:
            output, _ = process.communicate(timeout=PLAY_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"{playbook} {args} did not end within {PLAY_PATIENCE} s:\n{output}")
        play = Play(process.returncode, output, time.monotonic() - began)
        print(f"--- {playbook} {' '.join(args)}: exit code {play.returncode}, {play.seconds:.1f} s\n{output}")
        if ok is not None:
            # All that it printed is among what pytest captured; here what says why.
            told = [line for line in output.splitlines() if line.startswith(("[ERROR]", "fatal:"))]
            assert (play.returncode == 0) == ok, "\n".join([f"{playbook}: exit code {play.returncode}", *told])
        return play

    def run_until_killed(self, playbook: str, *args: str, after: int | str) -> Killed:
        """Run a playbook whose control node dies right after a task, its number or its module as callback/kill_after.py
        has it; where there is none it ends by itself.
        """
        journal = self.directory / f"journal-{time.monotonic_ns()}"
        process = self.start(
            playbook,
            *args,
            env={
                "ANSIBLE_CALLBACKS_ENABLED": "module_cache,kill_after",
                "HOTSPARE_KILL_AFTER": str(after),
                "HOTSPARE_JOURNAL": str(journal),
            },
        )
        output, _ = process.communicate(timeout=PLAY_PATIENCE)
        steps = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        journal.unlink()
        last = f"killed after {after}: {steps[-1]['name']}" if process.returncode < 0 else "not killed"
        print(f"--- {playbook} {' '.join(args)}: {last}\n{output}")
        assert process.returncode in (0, -signal.SIGKILL), output
        return Killed(process.returncode != 0, output, steps)

    @contextmanager
    def frozen(self, node: str, process: str) -> Iterator[None]:
        """A process of the server, named as pg_stat_activity does, that does nothing meanwhile."""
        pid = self.sql(node, f"SELECT pid FROM pg_stat_activity WHERE backend_type = '{process}'")
        self.run(node, "kill", "-STOP", pid)
        try:
            yield
        finally:
            self.run(node, "kill", "-CONT", pid)

    @contextmanager
    def configured(self, node: str, **settings: str) -> Iterator[None]:
        """Settings that somebody wrote by hand, reloaded; they go with the file."""
        path = f"/etc/postgresql/{self.version}/main/conf.d/99-by-hand.conf"
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        self.run(node, "tee", path, stdin=lines)
        self.run(node, "systemctl", "reload", self.service)
        try:
            yield
        finally:
            self.run(node, "rm", path)
            self.run(node, "systemctl", "reload", self.service, check=False)

    @staticmethod
    def docker(*args: str, stdin: str | None = None, check: bool = True, timeout: float = PATIENCE) -> str:
        command = ["docker", *args]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        assert not check or done.returncode == 0, f"docker {args}: {done.stderr}"
        return done.stdout

    def run(
        self,
        node: str,
        *argv: str,
        stdin: str | None = None,
        check: bool = True,
        user: str = "root",
        timeout: float = PATIENCE,
    ) -> str:
        return self.docker("exec", "-i", "-u", user, node, *argv, stdin=stdin, check=check, timeout=timeout)

    def restart_container(self, node: str) -> None:
        """Start it, and wait until its systemd has booted: that is when a server that starts at boot has started."""
        self.docker("start", node)
        self.wait_for(
            lambda: self.run(node, "systemctl", "is-system-running", check=False).strip() in ("running", "degraded"),
            f"{node} has booted",
        )

    # The operator's eyes

    def sql(self, node: str, query: str, database: str = "postgres", port: int = 5432) -> str:
        return self.run(
            node,
            "psql",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-p",
            str(port),
            "-d",
            database,
            stdin=query,
            user="postgres",
        ).strip()

    def is_primary(self, node: str) -> bool:
        return self.sql(node, "SELECT pg_is_in_recovery()") == "f"

    def roles(self) -> tuple[str, ...]:
        """The primary and its standbys, as they are now."""
        nodes = sorted(self.addresses, key=lambda node: not self.is_primary(node))
        assert [self.is_primary(node) for node in nodes] == [True] + [False] * (len(nodes) - 1)
        return tuple(nodes)

    def runs(self, node: str) -> bool:
        return self.run(node, "pgrep", "-x", "postgres", check=False) != ""

    def left_behind(self, node: str) -> list[str]:
        """Locks and armed processes of operations that have not ended; what an armed process decided may stay."""
        found = self.run(node, "python3", "-", stdin=LEFT_BEHIND)
        return json.loads(found)

    def status(self, *args: str) -> dict[str, Any]:
        """What status.yml says with -e format=json."""
        output = self.play("status", "-e", "format=json", *args).output
        return find_json(output)

    def fingerprint(self, node: str) -> dict[str, Any]:
        """Files, packages, unit files, and (of a server that answers) catalog, settings and time of start."""
        files = json.loads(self.run(node, "python3", "-", stdin=FINGERPRINT))
        units = self.run(node, "systemctl", "list-unit-files", "--no-legend", "--no-pager", "postgresql*", check=False)
        active = self.run(node, "systemctl", "is-active", self.service, check=False)
        running = active.strip() == "active"
        return {**files, "units": units, "active": active, "catalog": self.sql(node, CATALOG) if running else None}

    def fingerprints(self, *nodes: str) -> dict[str, dict[str, Any]]:
        return {node: self.fingerprint(node) for node in nodes or self.addresses}

    def differences(self, before: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What has changed on the nodes since their fingerprints `before`."""
        after = self.fingerprints(*before)
        return {
            f"{node}: {key}": (before[node].get(key), after[node].get(key))
            for node in before
            for key in sorted(before[node].keys() | after[node].keys())
            if before[node].get(key) != after[node].get(key)
        }

    @staticmethod
    def wait_for(condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
            time.sleep(0.2)  # most conditions start a process in a container

    def wait_for_replay(self, node: str, lsn: str) -> None:
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"
        self.wait_for(lambda: self.sql(node, replayed) == "t", f"{node} has replayed {lsn}")


def find_json(output: str) -> dict[str, Any]:
    """The document that status.yml prints with -e format=json."""
    start = re.search(r"=> (?=\{\s*\"node_topology\")", output)
    assert start, f"no topology in: {output}"
    found: dict[str, Any] = json.JSONDecoder().raw_decode(output, start.end())[0]["node_topology"]
    return found


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    found = Lab()
    try:
        yield found
    finally:
        found.modules.cleanup()
