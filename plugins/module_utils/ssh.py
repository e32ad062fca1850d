# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one ssh command line of the library: a key and a host key that were given, and nothing from anywhere else."""

from __future__ import annotations

CONNECT_SECONDS = 10
ALIVE_SECONDS = 5
ALIVE_COUNT = 3  # a network that is gone is noticed after ALIVE_SECONDS times this


def command(
    *,
    port: int,
    account: str,
    identity: str,
    known_hosts: str,
    alive_seconds: int = ALIVE_SECONDS,
    alive_count: int = ALIVE_COUNT,
    control: str = "",
    shares: bool = False,
) -> list[str]:
    """Less the name of the host, which follows: nothing is asked, nothing taken from configurations.

    control: a socket by which commands share the connection of the one that `shares`, while that runs; without one
    each has its own.
    """
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "IdentityFile": identity,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ClearAllForwardings": "yes",
        "ConnectTimeout": CONNECT_SECONDS,
        "ServerAliveInterval": alive_seconds,
        "ServerAliveCountMax": alive_count,
        "ControlPath": control or "none",
        "Compression": "no",
        "Ciphers": "^aes128-gcm@openssh.com",  # the quickest where the processor knows AES
    }
    if shares:
        options["ControlMaster"] = "yes"
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "/dev/null", "-T", *words, "-p", str(port), "-l", account]
