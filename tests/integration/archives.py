# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archive hosts on this machine, by the fixture `archives`: an sshd on 127.0.0.1 for each, keys, the program of a node.

    store = archives.host("store")                                    # runs; a directory, CONFIG, keys
    config = archives.config("db1", destinations=[store.place])       # the CONFIG of who ships; its path
    store.stop(); store.start(); store.directory; store.config

Everything belongs to the account postgres; the ssh client may be it or root.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.hotspare.postgresql.plugins.module_utils import packing

from .conftest import ACCOUNT, _free_port, _send, eventually, execute, make_directory

PYTHON = "/usr/bin/python3"
VARIABLES = Path(__file__).resolve().parents[2] / "roles/node/vars/main.yml"
SSHD = "/usr/sbin/sshd"
# Debian locks the account postgres with "!": without PAM sshd would not let it in.
SSHD_CONFIG = """\
ListenAddress 127.0.0.1
HostKey {home}/host_key
AuthorizedKeysFile {home}/authorized_keys
PidFile none
StrictModes no
UsePAM yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
LogLevel VERBOSE
"""


class ArchiveHost:
    """A destination: `directory` holds its archive, `config` is its CONFIG, `place` what others say of it."""

    def __init__(self, home: Path, name: str, program: Path, config: Path, directory: Path) -> None:
        self.home, self.name, self.program = home, name, program
        self.config, self.directory = config, directory
        self.port = _free_port()
        self.log = home / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir()
        make_key(home / "host_key", "root")
        (home / "sshd_config").write_text(SSHD_CONFIG.format(home=home), encoding="utf-8")
        (home / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {_public(home / 'host_key')}\n", encoding="utf-8")
        make_key(home / "id_ed25519", ACCOUNT)
        self.authorize(f"{PYTHON} -I {program} archive-serve {config}")

    @property
    def place(self) -> dict[str, Any]:
        """As in `destinations` of a CONFIG."""
        return {
            "name": self.name,
            "host": "127.0.0.1",
            "port": self.port,
            "account": ACCOUNT,
            "identity": str(self.home / "id_ed25519"),
            "known_hosts": str(self.home / "known_hosts"),
        }

    def authorize(self, command: str) -> None:
        """What the key may do there."""
        line = f'restrict,command="{command}" {_public(self.home / "id_ed25519")}\n'
        (self.home / "authorized_keys").write_text(line, encoding="utf-8")

    def start(self) -> None:
        """Run its sshd; returns when it listens."""
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where it separates its privileges
        with self.log.open("ab") as log:
            argv = [SSHD, "-D", "-e", "-f", str(self.home / "sshd_config"), "-p", str(self.port)]
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, cwd="/", start_new_session=True)
        eventually(self._listens)

    def stop(self) -> None:
        """End the sshd, its connections and the programs at their ends, as if the host had died."""
        if self._process is not None:
            for _ in range(3):  # what is forked meanwhile
                _send(signal.SIGKILL, [*self.processes(), self._process.pid])
            self._process.wait(30)
            self._process = None

    def processes(self) -> list[int]:
        """The sshd of each connection and the programs that they run."""
        assert self._process is not None
        return _descendants(self._process.pid)

    def programs(self) -> list[int]:
        """The archive-serve of each connection."""
        return [pid for pid in self.processes() if b"archive-serve" in _command_line(pid)[3:4]]

    def freeze(self) -> None:
        """Nothing there answers any more, and no connection is closed; end it by thaw()."""
        _send(signal.SIGSTOP, self._all())

    def thaw(self) -> None:
        _send(signal.SIGCONT, self._all())

    def _all(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid, *self.processes()]

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(encoding="utf-8")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Archives:
    """Makes archive hosts, and the CONFIG of who ships to them; all below `directory`, where others may go."""

    def __init__(self) -> None:
        # Not in tmp_path, where only root may go.
        self.directory = make_directory("hotspare-archives-")
        self.directory.chmod(0o755)
        self.program = self.directory / "hotspare.pyz"
        self.program.write_bytes(_packed())
        self._hosts: list[ArchiveHost] = []

    def host(self, name: str = "store", **changes: Any) -> ArchiveHost:
        """An archive host that runs; `changes` of its CONFIG."""
        directory = Path(changes.pop("directory", self.make_directory(f"archive-{name}")))
        config = self.config(name, directory=str(directory), **changes)
        host = ArchiveHost(self.directory / f"host-{name}", name, self.program, config, directory)
        self._hosts.append(host)
        host.start()
        return host

    def config(self, name: str, instance: Any = None, **changes: Any) -> Path:
        """Write the CONFIG of a node (its `instance`) or of an archive host (none); its own archive is a new one."""
        content = {
            "name": name,
            "cluster": "main",
            "node": asdict(instance) if instance is not None else None,
            "peers": [],
            "directory": changes.pop("directory", None) or str(self.make_directory(f"archive-{name}")),
            "compression": "none",
            "require": "one",
            "program": str(self.program),
            "run": str(self.make_directory(f"run-{name}")),
            "spool": str(self.make_directory(f"spool-{name}")),
            "fetch_ahead": 16,
            "destinations": [],
            "keep": {},
            "trees": [],
            **changes,
        }
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def make_directory(self, name: str) -> Path:
        """A directory of the account."""
        path = self.directory / name
        path.mkdir(mode=0o750, exist_ok=True)
        shutil.chown(path, ACCOUNT, ACCOUNT)
        return path

    def close(self) -> None:
        """End what runs, and remove all."""
        for host in self._hosts:
            host.stop()
        shutil.rmtree(self.directory)


class Share:
    """A destination that is a directory of this machine, such as a NAS: `directory` is where it is mounted."""

    def __init__(self, archives: Archives, name: str) -> None:
        self.directory = archives.make_directory(name)
        self.place = {"name": name, "directory": str(self.directory)}
        self._disk = archives.make_directory(f"{name}-disk")

    def mount(self) -> None:
        subprocess.run(["mount", "--bind", self._disk, self.directory], check=True)

    def unmount(self) -> None:
        """The directory is empty now, and the account may write there: so mount points often are."""
        subprocess.run(["umount", "--lazy", self.directory], check=True)

    @property
    def mounted(self) -> bool:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        return str(self.directory) in [line.split()[1] for line in mounts]  # is_mount() does not see a bind mount

    def hidden(self) -> list[str]:
        """What lies in the mount point itself; it is not mounted."""
        assert not self.mounted
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*"))


def setting(command: str, client: str, files: str) -> str:
    """archive_command or restore_command as the role node sets it, with another client and other files."""
    text = str(yaml.safe_load(VARIABLES.read_text(encoding="utf-8"))["_node_archive"][command])
    for name, value in {"_node_archive_client": client, "_node_archive_files": files}.items():
        assert f"{{{{ {name} }}}}" in text
        text = text.replace(f"{{{{ {name} }}}}", value)
    return text


@functools.cache
def _packed() -> bytes:
    return packing.program(packing.source_beside(packing.__name__))


def make_key(path: Path, account: str) -> None:
    """A key pair without a passphrase that belongs to `account`."""
    execute("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path), account="root")
    shutil.chown(path, account)


def _public(key: Path) -> str:
    return key.with_name(key.name + ".pub").read_text(encoding="utf-8").strip()


def _descendants(pid: int) -> list[int]:
    """Of a process: its children and theirs."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except OSError:
        return []
    return [one for child in children for one in (child, *_descendants(child))]


def _command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
