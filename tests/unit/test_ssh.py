# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh.py: nothing but what was given decides who is let in, and who answers."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import ssh

LOGIN: dict[str, Any] = {"port": 2222, "account": "zfs", "identity": "/etc/key", "known_hosts": "/etc/known"}


def options(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_what_is_given():
    words = ssh.command(**LOGIN)
    assert words[:4] == ["ssh", "-F", "/dev/null", "-T"]
    assert words[-4:] == ["-p", "2222", "-l", "zfs"]
    found = options(words)
    assert (found["IdentityFile"], found["UserKnownHostsFile"]) == ("/etc/key", "/etc/known")
    assert (found["BatchMode"], found["StrictHostKeyChecking"], found["IdentitiesOnly"]) == ("yes", "yes", "yes")
    assert (found["GlobalKnownHostsFile"], found["ControlPath"]) == ("/dev/null", "none")


def test_commands_may_share_a_connection():
    shares = options(ssh.command(**LOGIN, control="/run/x/ssh", shares=True))
    assert (shares["ControlPath"], shares["ControlMaster"]) == ("/run/x/ssh", "yes")
    found = options(ssh.command(**LOGIN, control="/run/x/ssh"))
    assert found["ControlPath"] == "/run/x/ssh" and "ControlMaster" not in found


@pytest.mark.parametrize("control", ["", "/run/x/ssh"])
def test_ssh_knows_them_all(control):
    words = ssh.command(**LOGIN, control=control)
    shown = subprocess.run([words[0], "-G", *words[1:], "db2"], capture_output=True, text=True, check=True).stdout
    assert "stricthostkeychecking true" in shown
    assert "serveraliveinterval 5" in shown
