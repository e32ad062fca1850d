# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role archive writes where an account could have laid a link, with real accounts and as root."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAY = """\
- hosts: postgres
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.include_role:
        name: hotspare.postgresql.archive
        tasks_from: {tasks}
      loop: "{{{{ folders | default(['none']) }}}}"
      loop_control:
        loop_var: archive_folder
"""


@dataclass
class Account:
    """An account with a home, and `rooms`, a directory of root's that it may not enter."""

    name: str
    home: Path
    rooms: Path

    def play(self, tasks: str, *options: str, **variables: object) -> str:
        """Run a task file of the role; what Ansible says."""
        play = self.rooms / "play.yml"
        play.write_text(PLAY.format(tasks=tasks), encoding="utf-8")
        inventory = self.rooms / "hosts"
        inventory.write_text("[postgres]\nlocalhost\n", encoding="utf-8")
        trees = [{"name": "scans", "account": self.name, "path": "/srv/scans"}]
        member = {"name": "localhost", "account": "postgres", "accounts": [self.name], "trees": trees}
        given = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            # Not every machine has sudo, and the account may not log in.
            "ansible_become_method": "su",
            "ansible_become_flags": "--shell /bin/sh",
            "archive_member": {**member, "destinations": ["localhost"], "config_file": "/etc/hotspare.json"},
            "archive_keys": {"results": [{"item": self.name, "public_key": "ssh-ed25519 AAAA"}]},
            **variables,
        }
        # As an inventory has them: of hostvars there are no extra variables.
        (self.rooms / "host_vars").mkdir(exist_ok=True)
        (self.rooms / "host_vars" / "localhost.json").write_text(json.dumps(given), encoding="utf-8")
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, *options, play],
            cwd="/",
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".cache" / "collections"),
                "ANSIBLE_HOME": str(self.rooms / "ansible"),
                "ANSIBLE_PIPELINING": "true",
            },
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        return f"{done.stdout}{done.stderr}\nrc={done.returncode}"

    def own(self, path: Path) -> None:
        os.lchown(path, pwd.getpwnam(self.name).pw_uid, pwd.getpwnam(self.name).pw_gid)

    def link(self, path: Path, target: Path) -> None:
        path.symlink_to(target)
        self.own(path)

    def folder(self, path: Path) -> Path:
        path.mkdir()
        self.own(path)
        return path


@pytest.fixture
def account() -> Iterator[Account]:
    top = Path(tempfile.mkdtemp(prefix="hs-role-", dir="/tmp"))
    top.chmod(0o755)
    name = f"hs-{secrets.token_hex(4)}"
    rooms = top / "rooms"
    rooms.mkdir(mode=0o700)
    (top / "home").mkdir()
    try:
        shell = ["--shell", "/usr/sbin/nologin"]
        subprocess.run(["useradd", "--home-dir", top / "home" / name, "--create-home", *shell, name], check=True)
        yield Account(name, top / "home" / name, rooms)
    finally:
        subprocess.run(["userdel", name], check=True, stderr=subprocess.DEVNULL)
        shutil.rmtree(top)


def whose(path: Path) -> tuple[str, str]:
    status = path.lstat()
    return pwd.getpwuid(status.st_uid).pw_name, f"{status.st_mode & 0o7777:o}"


def test_the_nodes_are_let_in(account: Account) -> None:
    keys = account.home / ".ssh" / "authorized_keys"
    assert "changed=2 " in (said := account.play("let_in", "--check")), said
    assert not keys.parent.exists()
    assert "changed=2 " in (said := account.play("let_in")), said
    assert whose(keys.parent) == (account.name, "700") and whose(keys) == (account.name, "600")
    mine = keys.read_text(encoding="utf-8") + "ssh-rsa mine\n"
    keys.write_text(mine, encoding="utf-8")
    assert "changed=0 " in (said := account.play("let_in")), said
    assert keys.read_text(encoding="utf-8") == mine
    (line,) = [line for line in mine.splitlines() if "AAAA" in line]
    assert line.startswith('restrict,command="') and "archive-serve-trees /etc/hotspare.json scans" in line


def test_a_link_of_the_account_leads_root_nowhere(account: Account) -> None:
    """sshd would follow it, too, as the account; root would write where it points to."""
    secret = account.rooms / "sudoers"
    secret.write_text("root's\n", encoding="utf-8")
    account.link(account.folder(account.home / ".ssh") / "authorized_keys", secret)
    assert "rc=2" in (said := account.play("let_in")) and "ermission denied" in said, said
    assert (secret.read_text(encoding="utf-8"), whose(secret)[0]) == ("root's\n", "root")

    shutil.rmtree(account.home / ".ssh")
    account.link(account.home / ".ssh", account.rooms)
    assert "rc=2" in (said := account.play("let_in")) and "ermission denied" in said, said
    assert whose(account.rooms) == ("root", "700") and not (account.rooms / "authorized_keys").exists()


def test_an_account_whose_home_is_roots_gets_its_directory_from_root(account: Account) -> None:
    os.chown(account.home, 0, 0)
    account.home.chmod(0o755)  # trixie's useradd makes it 0700
    assert "rc=0" in (said := account.play("let_in")), said
    assert whose(account.home / ".ssh") == (account.name, "700")


def test_an_account_without_a_home_is_told(account: Account) -> None:
    shutil.rmtree(account.home)
    said = account.play("let_in")
    assert "rc=2" in said and f"There is no ~{account.name} in which {account.name} is to have .ssh: make it." in said
    assert not account.home.exists()


def test_a_folder_is_made_by_whoever_has_the_one_above(account: Account) -> None:
    def made(*paths: Path) -> str:
        return account.play("folder", folders=[{"path": str(path), "account": account.name} for path in paths])

    top = account.rooms.parent
    theirs = account.folder(top / "theirs")
    (top / "through").symlink_to(theirs)  # by root: to go through it is to go into theirs
    folders = [top / "scans", theirs / "scans", top / "through" / "more"]
    assert "changed=3 " in (said := made(*folders)), said
    assert [whose(path) for path in folders] == [(account.name, "750")] * 3

    (top / "scans").chmod(0o550)
    account.link(theirs / "nowhere", account.rooms / "new")
    assert "changed=0 " in (said := made(top / "scans", theirs / "nowhere")), said
    assert whose(top / "scans") == (account.name, "550"), "a copy stays read-only"

    account.link(theirs / "away", account.rooms)
    assert "rc=2" in (said := made(theirs / "away" / "scans")) and "Permission denied" in said, said
    assert sorted(path.name for path in account.rooms.iterdir()) == ["ansible", "host_vars", "hosts", "play.yml"]
