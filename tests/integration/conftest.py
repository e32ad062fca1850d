# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real PostgreSQL servers of this machine, and modules run as Ansible runs them.

`pair` is a primary and its streaming standby, new for each test; `lab` makes further nodes; `run_module` executes a
module's file in a process of its own, as root; `four_steps` is the contract every module keeps. HOTSPARE_PG_BIN chooses
the PostgreSQL programs, by default the newest under /usr/lib/postgresql.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import lock
from ansible_collections.hotspare.postgresql.plugins.module_utils.conninfo import Upstream, passfile_entry
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import (
    Instance,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import as_account

ACCOUNT = "postgres"
USER = "replicator"
PASSWORD = "o'clock 100%:\\é"  # what a user may choose
PACKAGE = "ansible_collections.hotspare.postgresql.plugins.modules"
SLOW_SECONDS = 30  # waited for at most, on a busy machine

CONFIGURATION = """\
data_directory = '{data}'
hba_file = '{etc}/pg_hba.conf'
ident_file = '{etc}/pg_ident.conf'
port = {port}
listen_addresses = '127.0.0.1'
unix_socket_directories = '{sockets}'
cluster_name = '{name}'
wal_level = replica
wal_log_hints = on
max_wal_senders = 10
max_replication_slots = 10
hot_standby = on
wal_sender_timeout = 5s
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 400ms
password_encryption = 'scram-sha-256'
shared_buffers = 16MB
max_connections = 30
fsync = off
log_line_prefix = '%m [%p] %a '
include_dir 'conf.d'
"""
HBA = """\
local all         postgres                 peer
local replication postgres                 peer
host  replication replicator 127.0.0.1/32  scram-sha-256
host  all         replicator 127.0.0.1/32  scram-sha-256
"""
PREPARATION = """\
CREATE ROLE replicator LOGIN REPLICATION PASSWORD '{password}';
GRANT pg_monitor TO replicator;
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text),
  pg_read_binary_file(text, bigint, bigint, boolean) TO replicator;
CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);
"""


def pytest_configure(config: pytest.Config) -> None:
    if os.geteuid() != 0:
        pytest.exit("the integration tests run modules as root, as Ansible does: run them as root", returncode=2)


def eventually(look: Callable[[], Any], *, timeout: float = SLOW_SECONDS) -> Any:
    """The first true answer of `look`; fails with the last one."""
    deadline = time.monotonic() + timeout
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still {answer!r} after {timeout:g} seconds"
        time.sleep(0.05)


def execute(*argv: str, stdin: str | None = None, account: str = ACCOUNT, check: bool = True) -> str:
    """Run a program without the code under test; its output."""
    entry = pwd.getpwnam(account)
    # Not by subprocess's `user`, which would copy this process's page tables for each program.
    become = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    done = subprocess.run(
        [*(become if os.geteuid() != entry.pw_uid else []), *argv],
        input=stdin or "",
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": entry.pw_dir},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def make_directory(prefix: str) -> Path:
    """A new one, in memory where there is room: it is filled with a thousand files and removed again with each test,
    and a journal-less ext4 takes longer to find an inode the more were freed lately (ext4's recently_deleted()).

    Short: the path of a unix socket may have 107 characters.
    """
    memory = "/dev/shm"
    roomy = os.path.isdir(memory) and shutil.disk_usage(memory).free > 4 << 30
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else "/tmp"))


@dataclass
class Node:
    """A node of the test; asks and moves its server by PostgreSQL's own programs, not by the code under test."""

    instance: Instance
    passfile: str

    @property
    def params(self) -> dict[str, Any]:
        """The options of a module that name this node."""
        named = ("name", "data_directory", "bin_directory", "port", "socket_directory", "config_file")
        return {name: getattr(self.instance, name) for name in named}

    @property
    def slot(self) -> str:
        """The slot that this node uses on its primary."""
        return "hotspare_" + self.instance.name.replace("-", "_")

    @property
    def address(self) -> dict[str, Any]:
        """How others reach this node: the option `primary` of modules."""
        return {"host": "127.0.0.1", "port": self.instance.port, "user": USER, "passfile": self.passfile}

    @property
    def data(self) -> Path:
        return Path(self.instance.data_directory)

    @property
    def log(self) -> str:
        return Path(f"{self.data}.log").read_text(encoding="utf-8", errors="replace")

    def upstream(self, follower: Node) -> dict[str, Any]:
        """What `follower` needs to stream from this node: the option `upstream` of modules."""
        return {**self.address, "application_name": follower.instance.name, "slot": follower.slot}

    def program(self, name: str, *argv: str, stdin: str | None = None, check: bool = True) -> str:
        return execute(self.instance.program(name), *argv, stdin=stdin, check=check)

    def sql(self, query: str) -> str:
        """The answer as psql prints it unaligned; fails when the server does."""
        where = ["-h", self.instance.socket_directory, "-p", str(self.instance.port), "-d", "postgres"]
        return self.program("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *where, stdin=query).strip()

    def start(self) -> None:
        where = ["-D", str(self.data), "-l", f"{self.data}.log", "-o", f"-c config_file={self.instance.config_file}"]
        self.program("pg_ctl", "start", "-w", "-t", "60", *where)

    def stop(self, mode: str = "fast") -> None:
        self.program("pg_ctl", "stop", "-w", "-t", "60", "-m", mode, "-D", str(self.data))

    def control(self, label: str) -> str:
        """A line of pg_controldata."""
        shown = self.program("pg_controldata", "-D", str(self.data))
        match = re.search(rf"^{re.escape(label)}:\s*(.*)$", shown, re.MULTILINE)
        assert match, f"no {label} in {shown}"
        return match.group(1)

    @property
    def running(self) -> bool:
        """Whether the server answers pg_ctl: its postmaster is alive."""
        return "server is running" in self.program("pg_ctl", "status", "-D", str(self.data), check=False)

    @property
    def postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])

    def processes(self) -> list[int]:
        return _processes_under(str(self.data))

    def freeze(self) -> None:
        """As a machine that hangs: connections are made by the kernel, and nobody answers."""
        _send(signal.SIGSTOP, self.processes())

    def thaw(self) -> None:
        _send(signal.SIGCONT, self.processes())

    def crash(self) -> None:
        """As a power cut: every process gone at once, postmaster.pid left behind."""
        processes = self.processes()
        assert processes
        _send(signal.SIGKILL, processes)
        # Until init has buried them: PostgreSQL takes a zombie in postmaster.pid for a server.
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))

    def write(self, note: str = "row") -> str:
        """Insert one acknowledged row; the position after it."""
        return self.sql(f"INSERT INTO ledger (note) VALUES ('{note}'); SELECT pg_current_wal_lsn();")

    def notes(self) -> list[str]:
        return self.sql("SELECT note FROM ledger ORDER BY id").splitlines()


@dataclass
class Pair:
    primary: Node
    standby: Node

    def streams(self) -> bool:
        name = self.standby.instance.name
        query = f"SELECT state FROM pg_stat_replication WHERE application_name = '{name}'"
        return self.primary.sql(query) == "streaming"

    def in_step(self) -> bool:
        """Whether the standby has replayed all that the primary has flushed."""
        position = self.primary.sql("SELECT pg_current_wal_flush_lsn()")
        return self.standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == "t"


class Lab:
    """A directory for the nodes of one test."""

    def __init__(self, template: Path, bin_directory: str) -> None:
        self.template = template
        self.bin_directory = bin_directory
        # Closed for others, open for the account.
        self.directory = make_directory("hs-")
        shutil.chown(self.directory, ACCOUNT, ACCOUNT)
        self.passfile = self.directory / "passfile"
        self.passfile.touch(mode=0o600)
        shutil.chown(self.passfile, ACCOUNT, ACCOUNT)

    def node(self, name: str, *, data: bool = True) -> Node:
        """A stopped node, configured; with the template's data (never started before) or without a data directory."""
        home = self.directory / name
        etc = home / "etc"
        port = _free_port()
        texts = {"name": name, "data": home / "data", "etc": etc, "port": port, "sockets": self.directory}
        (etc / "conf.d").mkdir(parents=True)
        (etc / "postgresql.conf").write_text(CONFIGURATION.format(**texts), encoding="utf-8")
        (etc / "pg_hba.conf").write_text(HBA, encoding="utf-8")
        (etc / "pg_ident.conf").touch()
        with self.passfile.open("a", encoding="utf-8") as file:
            file.write(passfile_entry("127.0.0.1", port, USER, PASSWORD))
        if data:
            subprocess.run(["cp", "-a", "--reflink=auto", self.template, home / "data"], check=True)
        for path in (home, *home.glob("etc/**/*"), etc):
            shutil.chown(path, ACCOUNT, ACCOUNT)
        return Node(
            Instance(
                name=name,
                data_directory=str(home / "data"),
                bin_directory=self.bin_directory,
                port=port,
                socket_directory=str(self.directory),
                config_file=str(etc / "postgresql.conf"),
            ),
            str(self.passfile),
        )

    def follow(self, primary: Node, standby: Node) -> None:
        """Make a node with the same data a standby and wait until it streams; the primary runs."""
        primary.sql(f"SELECT pg_create_physical_replication_slot('{standby.slot}', true)")
        upstream = Upstream(**primary.upstream(standby))
        escaped = upstream.conninfo().replace("'", "''")
        execute(
            "tee",
            standby.instance.upstream_file,
            stdin=f"primary_conninfo = '{escaped}'\nprimary_slot_name = '{standby.slot}'\n",
        )
        execute("touch", str(standby.data / "standby.signal"))
        standby.start()
        eventually(lambda: Pair(primary, standby).streams())

    def close(self) -> None:
        """End the servers under this directory, and only those; remove it and the locks of its nodes."""
        for signal_number in (signal.SIGCONT, signal.SIGQUIT, signal.SIGKILL):
            _send(signal_number, _processes_under(str(self.directory), told=True))
            deadline = time.monotonic() + 5
            while signal_number != signal.SIGCONT and _processes_under(str(self.directory), told=True):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        for data in self.directory.glob("*/data"):
            Path(lock._path(str(data), "lock")).unlink(missing_ok=True)
        shutil.rmtree(self.directory)


@pytest.fixture(scope="session")
def bin_directory() -> str:
    """Where the PostgreSQL programs under test are."""
    chosen = os.environ.get("HOTSPARE_PG_BIN")
    if chosen:
        return chosen
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert found, "no PostgreSQL under /usr/lib/postgresql: apt-get install postgresql"
    return str(found[-1].parent)


@pytest.fixture(scope="session")
def major(bin_directory: str) -> int:
    """The major version under test."""
    match = re.search(r"(\d+)", execute(f"{bin_directory}/postgres", "--version"))
    assert match
    return int(match.group(1))


@pytest.fixture(scope="session")
def template(bin_directory: str) -> Iterator[Path]:
    """A data directory to copy: made once, then stopped cleanly."""
    lab = Lab(Path(), bin_directory)
    try:
        node = lab.node("template", data=False)
        options = ["--data-checksums", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres"]
        node.program("initdb", *options, "--auth=peer", "-D", str(node.data))
        node.start()
        node.sql(PREPARATION.format(password=PASSWORD.replace("'", "''")))
        node.stop()
        yield node.data
    finally:
        lab.close()


@pytest.fixture
def lab(template: Path, bin_directory: str) -> Iterator[Lab]:
    """Makes nodes: `lab.node("db-three", data=False)`."""
    laboratory = Lab(template, bin_directory)
    try:
        yield laboratory
    finally:
        laboratory.close()


@pytest.fixture
def pair(lab: Lab) -> Pair:
    """A primary db-one and its standby db-two, which streams through its slot."""
    made = Pair(lab.node("db-one"), lab.node("db-two"))
    made.primary.start()
    lab.follow(made.primary, made.standby)
    return made


@pytest.fixture
def archives() -> Iterator[Any]:
    """Makes archive hosts: `archives.host("store")`; see archives.py."""
    from .archives import Archives

    made = Archives()
    try:
        yield made
    finally:
        made.close()


ModuleRunner = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def run_module() -> ModuleRunner:
    """run_module("pg_server", {...}, check=True) -> the module's result, `failed` and `msg` included."""
    return _run_module


def _run_module(name: str, args: dict[str, Any], check: bool = False, timeout: float = 120) -> dict[str, Any]:
    given = {key: value for key, value in args.items() if value is not None}
    payload = json.dumps({"ANSIBLE_MODULE_ARGS": {**given, "_ansible_check_mode": check}})
    # Variables of libpq that a session may have: they must not lead a module to another server.
    hostile = {"PGHOST": "127.0.0.2", "PGPORT": "1", "PGUSER": "nobody", "PGSERVICE": "none", "PGOPTIONS": "-c x.y=z"}
    done = subprocess.run(
        [sys.executable, "-m", f"{PACKAGE}.{name}"],
        input=payload,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            **hostile,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert PASSWORD not in done.stdout + done.stderr
    assert json.dumps(PASSWORD)[1:-1] not in done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines and lines[-1].startswith("{"), done.stdout + done.stderr
    result: dict[str, Any] = json.loads(lines[-1])
    assert bool(result.get("failed")) == (done.returncode != 0), result
    return result


@pytest.fixture(scope="session")
def four_steps() -> Callable[..., list[dict[str, Any]]]:
    """four_steps("pg_server", {...}, look) -> results of: check mode, real, check mode again, real again.

    `look` returns the real state; it must change in the second step only.
    """

    def steps(name: str, args: dict[str, Any], look: Callable[[], Any]) -> list[dict[str, Any]]:
        before = look()
        results = []
        for check, changed in ((True, True), (False, True), (True, False), (False, False)):
            result = _run_module(name, args, check=check)
            step = f"step {len(results) + 1} ({'check' if check else 'real'})"
            assert not result.get("failed"), f"{step}: {result}"
            assert result["changed"] is changed, f"{step}: {result}"
            results.append(result)
            if len(results) == 1:
                assert look() == before, f"{step} changed something"
            elif len(results) == 2:
                after = look()
                assert after != before, f"{step} changed nothing"
            else:
                assert look() == after, f"{step} changed something"
        return results

    return steps


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _send(signal_number: int, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(pid, signal_number)


def _processes_under(directory: str, *, told: bool = False) -> list[int]:
    """Processes that work in this directory or below, as a server's do in its data directory, even a renamed one; with
    `told` also programs that were told of a place in it, as those that outlive a module that was killed."""
    found = []
    with as_account(ACCOUNT):  # in a container root may not look at other accounts' processes
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    where = os.readlink(entry / "cwd")
                    named = told and f"{directory}/".encode() in (entry / "cmdline").read_bytes()
                except OSError:  # gone, or another account's
                    continue
                if named or (where + "/").startswith(directory + "/"):
                    found.append(int(entry.name))
    return found
