# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pair and its archive host: what lies in the archives, and what happens to those who ship there."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from ledger import lsn, make_books

SEGMENT = 16 << 20
SHIPPER = "hotspare-archive-main"
SYNC = "hotspare-archive-sync-main"
PROGRAM = "/usr/bin/python3 -I /usr/local/lib/hotspare/hotspare.pyz"
CLIENT = "/usr/bin/python3 -I -S /usr/local/lib/hotspare/archive_client.py"

NOISE = 60_000  # rows of 100 bytes that do not compress well: they fill about half a segment also when compressed
SETTLE = 7  # s, more than tree_files.SETTLE_SECONDS

# Runs in a container: writes a copy of a JSON file with changes.
CHANGE = """
import json, sys
source, target, changes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
found = {**json.load(open(source)), **changes}
json.dump(found, open(target, "w"), indent=2)
"""

# Runs in a container: stops all programs of an account once one of them has received a part of a file, less than
# `whole` bytes; says how much.
STOP_IN_THE_MIDDLE = """
import contextlib, glob, os, pwd, signal, sys, time
incoming, account, whole = sys.argv[1], pwd.getpwnam(sys.argv[2]).pw_uid, int(sys.argv[3])

def part():
    for path in glob.glob(incoming):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            if status.st_nlink == 1 and 0 < status.st_size < whole:
                return status.st_size
    return 0

def tell(number):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if os.stat(f"/proc/{pid}").st_uid == account:
                os.kill(int(pid), number)

deadline = time.monotonic() + 200
while time.monotonic() < deadline:
    if part():
        tell(signal.SIGSTOP)
        if part():  # and it stays so
            sys.exit(print(part()))
        tell(signal.SIGCONT)
    time.sleep(0.0005)
sys.exit("no file was caught on its way")
"""

# Runs in a container: the SHA-256 of what the files with these names hold, below a directory.
HASHES = """
import hashlib, json, os, subprocess, sys
found = {}
for folder, folders, names in os.walk(sys.argv[1]):
    for name in names:
        if name.removesuffix(".zst") in sys.argv[2:]:
            path = os.path.join(folder, name)
            read = ["zstd", "-dcq", path] if name.endswith(".zst") else ["cat", path]
            content = subprocess.run(read, check=True, stdout=subprocess.PIPE).stdout
            found[name.removesuffix(".zst")] = hashlib.sha256(content).hexdigest()
json.dump(found, sys.stdout)
"""

# Runs in a container: so many small documents of one day.
SCAN = """
import os, sys
folder, count = sys.argv[1], int(sys.argv[2])
os.makedirs(folder, exist_ok=True)
for number in range(count):
    with open(f"{folder}/scan-{number:06d}.txt", "w") as file:
        file.write(f"{folder} {number} " * (1 + number % 97))
"""

# Runs in a container: how many documents there are below a directory, and a digest of their names and contents.
DIGEST = """
import hashlib, os, sys
count, found = 0, hashlib.sha256()
for folder, folders, names in os.walk(sys.argv[1]):
    folders[:] = sorted(name for name in folders if not name.startswith(".hotspare"))
    for name in sorted(names):
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
        found.update(f"{os.path.relpath(path, sys.argv[1])} {content}\\n".encode())
        count += 1
print(count, found.hexdigest())
"""

# Runs in a container: the text of each document below a directory.
TEXTS = """
import json, os, sys
found = {}
for folder, folders, names in os.walk(os.path.join(sys.argv[1], sys.argv[2])):
    for name in names:
        path = os.path.join(folder, name)
        found[os.path.relpath(path, sys.argv[1])] = open(path).read()
json.dump(found, sys.stdout)
"""


class Archives:
    """What a test needs of the archives; `store` is the archive host."""

    def __init__(self, lab: Any, store: str, address: str) -> None:
        self.lab, self.store, self.store_address = lab, store, address
        self.shipper = SHIPPER
        self.config = f"/etc/postgresql/{lab.version}/main/hotspare-archive.json"

    # What lies there

    def directory(self, host: str) -> str:
        return f"/var/lib/hotspare/archive/{'postgres' if host == self.store else 'main'}"

    def known(self, host: str) -> str:
        """Where what is known of the trees lies."""
        return f"{self.directory(host) if host == self.store else '/var/lib/hotspare/state/main'}/trees"

    def held(self, host: str) -> set[str]:
        """The names of what is archived on a host."""
        found = self.lab.run(host, "find", f"{self.directory(host)}/wal", "-type", "f", "-printf", "%f\\n", check=False)
        names = (name.removesuffix(".zst") for name in found.split())
        return {name for name in names if not name.startswith(".")}

    def unfinished(self, host: str) -> str:
        """What has come in part."""
        return self.lab.run(host, "find", f"{self.directory(host)}/wal", "-name", ".incoming-*")

    def hashes(self, host: str, names: list[str]) -> dict[str, str]:
        """The SHA-256 of these archived segments, as PostgreSQL would get them back."""
        return json.loads(self.lab.run(host, "python3", "-", f"{self.directory(host)}/wal", *names, stdin=HASHES))

    def required(self, primary: str) -> set[str]:
        """Each segment from the first to the one that is being written, and each history, as PostgreSQL counts them."""
        timeline = int(self.lab.sql(primary, "SELECT timeline_id FROM pg_control_checkpoint()"))
        now = lsn(self.lab.sql(primary, "SELECT pg_current_wal_lsn()"))
        history = f"pg_wal/{timeline:08X}.history"
        text = self.lab.sql(primary, f"SELECT pg_read_file('{history}')") if timeline > 1 else ""
        ends = [(int(m[1]), lsn(m[2])) for m in re.finditer(r"(?m)^(\d+)\t(\S+)\t", text)] + [(timeline, now)]
        names, begin = {f"{number:08X}.history" for number, _ in ends if number > 1}, SEGMENT
        for number, end in ends:
            segments = range(begin // SEGMENT, end // SEGMENT)
            names |= {f"{number:08X}{segment // 256:08X}{segment % 256:08X}" for segment in segments}
            begin = end
        return names

    def lacking(self, host: str, primary: str) -> set[str]:
        return self.required(primary) - self.held(host)

    def wait_for_all(self, primary: str, *hosts: str) -> None:
        """Until nothing is missing between the first segment and now."""
        for host in hosts:
            self.lab.wait_for(lambda host=host: not self.lacking(host, primary), f"{host} has all of {primary}")

    def ready(self, node: str) -> list[str]:
        """What waits for the archiver."""
        return self.lab.run(node, "sh", "-c", f"ls {self.lab.data}/pg_wal/archive_status | grep ready || true").split()

    # What is written

    def write(self, primary: str, segments: int) -> list[str]:
        """Write segments to their end; the names."""
        names = []
        for _ in range(segments):
            text = "||".join(["md5(random()::text)"] * 3)
            self.lab.sql(primary, f"INSERT INTO noise SELECT {text} FROM generate_series(0, {NOISE})")
            names.append(self.lab.sql(primary, "SELECT pg_walfile_name(pg_current_wal_lsn())"))
            self.lab.sql(primary, "SELECT pg_switch_wal()")
        return names

    def shipping(self, node: str) -> dict[str, Any]:
        """What the shipper of a node says of each destination, by name."""
        status = json.loads(self.lab.run(node, "cat", f"/run/{SHIPPER}/status.json"))
        return {place["name"]: place for place in status["destinations"]}

    def wait_for_state(self, node: str, state: str, place: str = "") -> None:
        """Of the shipper of a node towards a place, by default the store."""
        place = place or self.store
        self.lab.wait_for(lambda: self.shipping(node)[place]["state"] == state, f"{node} finds {place} {state}")

    # What happens

    def change(self, node: str, target: str = "", **changes: Any) -> None:
        self.lab.run(node, "python3", "-", self.config, target or self.config, json.dumps(changes), stdin=CHANGE)

    @contextmanager
    def changed(self, node: str, **changes: Any) -> Iterator[None]:
        """A shipper with another configuration meanwhile."""
        before = self.lab.run(node, "cat", self.config)
        self.change(node, **changes)
        self._restart(node)
        try:
            yield
        finally:
            self.lab.run(node, "tee", self.config, stdin=before)
            self._restart(node)

    @contextmanager
    def cut_off(self, host: str, *rule: str) -> Iterator[None]:
        """Packets to a host that do not arrive, or are refused."""
        self.lab.run(host, "iptables", "-I", "INPUT", *rule)
        try:
            yield
        finally:
            self.lab.run(host, "iptables", "-D", "INPUT", *rule)

    @contextmanager
    def stopped_in_the_middle(self, primary: str) -> Iterator[list[str]]:
        """The store has a part of a segment, and nobody goes on there meanwhile; the segments that were written."""
        argv = ("python3", "-", f"{self.directory(self.store)}/wal/*/*/.incoming-*", "hotspare", str(SEGMENT))
        names = []
        try:
            with ThreadPoolExecutor(1) as pool:
                stopped = pool.submit(self.lab.run, self.store, *argv, stdin=STOP_IN_THE_MIDDLE)
                while not stopped.done():
                    names += self.write(primary, 1)
            print(f"{int(stopped.result())} of {SEGMENT} bytes had come")
            yield names
        finally:
            self.lab.run(self.store, "pkill", "-CONT", "-u", "hotspare", check=False)

    @contextmanager
    def small_disk(self, primary: str, size: str) -> Iterator[str]:
        """The store has only so much room for what comes next; the directory. What came stays."""
        name = self.lab.sql(primary, "SELECT pg_walfile_name(pg_current_wal_lsn())")
        directory = f"{self.directory(self.store)}/wal/{name[:8]}/{name[8:16]}"
        self.lab.run(self.store, "install", "-d", "-o", "hotspare", "-g", "hotspare", directory)
        self.lab.run(self.store, "mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", directory)
        try:
            yield directory
        finally:
            # Nobody writes while what came moves below.
            self.lab.run(self.store, "systemctl", "stop", "ssh")
            self.lab.run(self.store, "pkill", "-KILL", "-u", "hotspare", check=False)
            self.lab.run(self.store, "cp", "-a", directory, "/root/came")
            self.lab.run(self.store, "umount", directory)
            self.lab.run(self.store, "cp", "-an", "/root/came/.", directory)
            self.lab.run(self.store, "rm", "-r", "/root/came")
            self.lab.run(self.store, "systemctl", "start", "ssh")

    def tree(self, host: str) -> str:
        return "/var/lib/hotspare/trees/postgres/scans" if host == self.store else "/srv/scans"

    def documents(self, host: str, day: str) -> dict[str, str]:
        """Text of each document of a day by its path in the tree."""
        return json.loads(self.lab.run(host, "python3", "-", self.tree(host), day, stdin=TEXTS))

    def digest(self, host: str) -> str:
        """How many documents there are, and a digest of their names and contents."""
        return self.lab.run(host, "python3", "-", self.tree(host), stdin=DIGEST, timeout=600).strip()

    def scan(self, node: str, day: str, count: int) -> None:
        """As the application writes many small documents of one day."""
        self.lab.run(node, "python3", "-", f"/srv/scans/{day}", str(count), stdin=SCAN, user="scans", timeout=600)

    def document(self, node: str, path: str, text: str) -> None:
        """As the application writes it; it fails where the tree is a copy."""
        script = f"mkdir -p $(dirname {path}) && printf %s {shlex.quote(text)} >{path}"
        self.lab.run(node, "sh", "-c", f"cd /srv/scans && {script}", user="scans")

    @staticmethod
    def settle() -> None:
        """Until what was written counts as finished."""
        time.sleep(SETTLE)

    def sync(self, node: str, *, at: str = "", ok: bool = True) -> str:
        """What the timer does, and what it says; `at`: as if its clock said this. The last line is the clock then.

        While the timer itself is at it, it leaves that to the timer: use no_timer().
        """
        script = f"{PROGRAM} archive-sync {self.config} 2>&1; code=$?; date '+%Y/%m/%d %T'; exit $code"
        clock = ("faketime", at) if at else ()
        said = self.lab.run(node, "sh", "-c", shlex.join([*clock, "sh", "-c", script]) + "; echo $?", timeout=1800)
        said, _newline, code = said.rstrip().rpartition("\n")
        assert (code == "0") == ok, said
        return said

    def look_next(self, node: str, day: str) -> None:
        """Of the sealed days the timer looks at a few in each run, first at those that it has not seen for longest."""
        self.lab.run(node, "touch", "-d", "2000-01-01", f"{self.known(node)}/scans/{day}.manifest")

    @contextmanager
    def no_timer(self, node: str) -> Iterator[None]:
        self.lab.run(node, "systemctl", "stop", f"{SYNC}.timer", f"{SYNC}.service")
        try:
            yield
        finally:
            self.lab.run(node, "systemctl", "start", f"{SYNC}.timer")

    @contextmanager
    def clock(self, node: str) -> Iterator[Callable[[str], None]]:
        """A shipper whose clock can be stepped, such as by +3d."""
        drop_in = f"/run/systemd/system/{SHIPPER}.service.d"
        library = self.lab.run(node, "sh", "-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1").strip()
        settings = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": "/run/clock",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        lines = "".join(f"Environment={name}={value}\n" for name, value in settings.items())
        self.lab.run(node, "install", "-d", drop_in)
        self.lab.run(node, "tee", f"{drop_in}/clock.conf", stdin=f"[Service]\n{lines}")
        self.lab.run(node, "tee", "/run/clock", stdin="+0\n")
        try:
            self._restart(node)
            yield lambda jump: self.lab.run(node, "tee", "/run/clock", stdin=f"{jump}\n")
        finally:
            self.lab.run(node, "rm", "-r", drop_in)
            self._restart(node)

    def _restart(self, node: str) -> None:
        self.lab.run(node, "systemctl", "daemon-reload")
        self.lab.run(node, "systemctl", "restart", SHIPPER)

    # A new server

    def base_backup(self, node: str, primary: str, directory: str) -> None:
        """A copy of the primary without any WAL."""
        address = self.lab.addresses[primary]
        self.lab.run(
            node,
            "sh",
            "-c",
            f"PGPASSFILE=/var/lib/postgresql/.hotspare-main.pgpass pg_basebackup -h {address} -U replicator"
            f" -D {directory} -X none -c fast",
            user="postgres",
        )

    @contextmanager
    def restored(self, node: str, directory: str) -> Iterator[int]:
        """A server made of a base backup and what the store has; its port."""
        program = f"/usr/lib/postgresql/{self.lab.version}/bin"
        places = json.loads(self.lab.run(node, "cat", self.config))["destinations"]
        store = [place for place in places if place["name"] == self.store]
        empty = "/var/lib/postgresql/empty"
        self.lab.run(node, "install", "-d", "-o", "postgres", f"{empty}/archive", f"{empty}/spool")
        self.change(
            node, "/etc/hotspare/restore.json", destinations=store, directory=f"{empty}/archive", spool=f"{empty}/spool"
        )
        restore = f"{CLIENT} restore /run/nobody/socket /etc/hotspare/restore.json %f %p"
        settings = {
            "port": "5499",
            "restore_command": restore,
            "recovery_target_timeline": "latest",
            "hba_file": f"/etc/postgresql/{self.lab.version}/main/pg_hba.conf",
            "ident_file": f"/etc/postgresql/{self.lab.version}/main/pg_ident.conf",
            "unix_socket_directories": "/var/run/postgresql",
        }
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        self.lab.run(node, "tee", f"{directory}/postgresql.conf", stdin=text, user="postgres")
        self.lab.run(node, "touch", f"{directory}/recovery.signal", user="postgres")
        start = (f"{program}/pg_ctl", "start", "-w", "-D", directory, "-l", f"{directory}.log")
        try:
            self.lab.run(node, *start, user="postgres")
            recovering = "SELECT pg_is_in_recovery()"
            self.lab.wait_for(
                lambda: self.lab.sql(node, recovering, port=5499) == "f", "the new server has all there is"
            )
            yield 5499
        finally:
            print(self.lab.run(node, "tail", "-n", "40", f"{directory}.log", check=False))
            self.lab.run(
                node, f"{program}/pg_ctl", "stop", "-m", "immediate", "-D", directory, user="postgres", check=False
            )


@pytest.fixture(scope="session")
def lab(lab):
    """The pair alone; the archive host is no node."""
    lab.store = next(name for name in lab.addresses if name.endswith("store"))
    lab.store_address = lab.addresses.pop(lab.store)
    return lab


@pytest.fixture(scope="session")
def archives(lab):
    return Archives(lab, lab.store, lab.store_address)


@pytest.fixture(scope="session", autouse=True)
def books(lab):
    make_books(lab)
    lab.sql(lab.roles()[0], "CREATE TABLE IF NOT EXISTS noise (text text)")
