# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ours: the program and the client of this checkout as the role archive sets them up, without Ansible."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from typing import Any

import yaml
from lab import BIN, ROOT, until
from material import DATA
from way import Box, Way, counted, host_key

sys.path.append(str(ROOT))
from plugins.module_utils import packing

HOME = "/usr/local/lib/hotspare"
PROGRAM, CLIENT = f"{HOME}/hotspare.pyz", f"{HOME}/archive_client.py"
CONFIG = "/etc/hotspare/main/hotspare-archive.json"
RUN, SPOOL = "/run/hotspare-archive-main", "/bench/hotspare-spool"
DIRECTORY, OWN = "/bench/hotspare/main", "/bench/hotspare/own"
UNIT = "hotspare-archive-main"
# Where the node notes that it saw an archive; one that is emptied on purpose is forgotten.
NOTES = f"{DATA}/hotspare-archive-{{}}.seen.json"
VARIABLES = ROOT / "roles/node/vars/main.yml"
TREES, TREES_CONFIG = "/bench/hotspare-trees", "/etc/hotspare/main/hotspare-trees.json"
# What the module archive_sync calls, from the program that its timer runs.
SYNC = f"""PYTHONPATH={PROGRAM} python3 -c '
import json
from hotspare.archive_config import read_archive_config
from hotspare.tree_sync import sync
config = read_archive_config("{TREES_CONFIG}")
print(json.dumps(sync(config, config.trees[0])))'"""
SERVICE = f"""
[Service]
Type=notify
User=postgres
RuntimeDirectory={UNIT}
ExecStart=/usr/bin/python3 -I {PROGRAM} archive-ship {CONFIG}
"""


def set_up(node: Box, store: Box) -> None:
    sources = ROOT / "plugins" / "module_utils"
    program = packing.program(lambda name: (sources / f"{name}.py").read_text(encoding="utf-8"))
    for machine in (node, store):
        machine.root(f"install -D /dev/null {PROGRAM} && base64 -d >{PROGRAM}", given=b64encode(program).decode())
    node.write(CLIENT, (sources / "archive_client.py").read_text(encoding="utf-8"))
    node.write(f"/etc/systemd/system/{UNIT}.service", SERVICE)
    node.root(f"systemctl daemon-reload; install -d -o postgres {OWN} {SPOOL} {DIRECTORY}")
    store.root(
        "id -u hotspare >/dev/null 2>&1 || useradd --system --create-home --shell /bin/sh --password '*' hotspare"
    )
    store.root(f"install -d -o hotspare {DIRECTORY}")
    store.write(CONFIG, json.dumps(configuration(name="store", node=None, directory=DIRECTORY)))
    key = node.postgres("cat .ssh/id_ed25519.pub")
    forced = f'restrict,command="/usr/bin/python3 -I {PROGRAM} archive-serve {CONFIG}"'
    store.root("umask 077; mkdir -p ~hotspare/.ssh; cat >~hotspare/.ssh/authorized_keys", given=f"{forced} {key}")
    store.root("chown -R hotspare ~hotspare/.ssh")
    node.write("/etc/hotspare/known_hosts", host_key(store))


def configuration(**given: Any) -> dict[str, Any]:
    node = {"name": "node", "data_directory": DATA, "bin_directory": BIN}
    return {
        "name": "node",
        "cluster": "main",
        "node": node,
        "peers": [],
        "directory": OWN,
        "compression": "none",
        "require": "one",
        "program": PROGRAM,
        "run": RUN,
        "spool": SPOOL,
        "fetch_ahead": 16,
        "destinations": [],
        "keep": {},
        "trees": [],
        **given,
    }


def over_ssh(store: Box) -> dict[str, Any]:
    return {
        "name": "store",
        "host": store.address,
        "port": 22,
        "account": "hotspare",
        "identity": "/var/lib/postgresql/.ssh/id_ed25519",
        "known_hosts": "/etc/hotspare/known_hosts",
    }


def set_up_tree(node: Box, store: Box, source: str, target: str) -> None:
    """The tree is postgres's, with a key of its own, and nothing is known of it yet."""
    key = "/var/lib/postgresql/.ssh/id_tree"
    for machine in (node, store):
        machine.root(f"rm -rf {TREES}; install -d -o postgres {TREES} {TREES}/trees {TREES}/trees/scans")
    tree = {"name": "scans", "partition": "%Y/%m/%d", "grace": 7200, "account": "postgres", "skip": []}
    there = {**tree, "path": target, "destinations": []}
    store.write(TREES_CONFIG, json.dumps(configuration(name="store", node=None, directory=TREES, trees=[there])))
    place = {**over_ssh(store), "account": "postgres", "identity": key, "path": target}
    here = {**tree, "path": source, "destinations": [place]}
    node.write(TREES_CONFIG, json.dumps(configuration(directory=TREES, trees=[here])))
    node.postgres(f"test -e {key} || ssh-keygen -q -t ed25519 -N '' -f {key}")
    forced = f'restrict,command="/usr/bin/python3 -I {PROGRAM} archive-serve {TREES_CONFIG}"'
    public = node.postgres(f"cat {key}.pub")
    store.postgres(
        "sed -i /archive-serve/d .ssh/authorized_keys; cat >>.ssh/authorized_keys", given=f"{forced} {public}"
    )


class Ours(Way):
    tool = "hotspare"

    @property
    def archive_command(self) -> str:
        return self.setting("archive_command")

    @property
    def restore_command(self) -> str:
        return self.setting("restore_command")

    def setting(self, name: str) -> str:
        """As the role node has it."""
        text = str(yaml.safe_load(VARIABLES.read_text(encoding="utf-8"))["_node_archive"][name])
        text = text.replace("{{ _node_archive_client }}", f"/usr/bin/python3 -I -S {CLIENT}")
        return text.replace("{{ _node_archive_files }}", f"{RUN}/socket {CONFIG}")

    def start(self, data: str = DATA) -> None:
        place = over_ssh(self.store) if self.place == "ssh" else {"name": "store", "directory": DIRECTORY}
        self.node.write(CONFIG, json.dumps(configuration(compression=self.compression, destinations=[place])))
        # It is known of archives that they were there, or else they might not be mounted: here they begin anew.
        self.node.root(f"rm -rf {SPOOL}/* {OWN}/* {DATA}/hotspare-archive-*.seen.json; systemctl restart {UNIT}")
        until("the shipper is connected", self.connected, 20)

    def connected(self) -> bool:
        said = self.node.root(f"cat {RUN}/status.json", check=False)
        return bool(said) and all(each["state"] == "connected" for each in json.loads(said)["destinations"])

    def stop(self) -> None:
        self.node.root(f"systemctl stop {UNIT}")

    def told(self) -> dict[str, Any]:
        """Most memory (MiB) that the shipper, and all its processes together, had resident."""
        group = f"cat /sys/fs/cgroup/system.slice/{UNIT}.service/cgroup.procs"
        peaks = self.node.root(f"for p in $({group}); do sed -n 's/^VmHWM: *//p' /proc/$p/status; done")
        sizes = [int(line.split()[0]) / 1024 for line in peaks.splitlines()]
        main = self.node.root(f"sed -n 's/^VmHWM: *//p' /proc/$(systemctl show -P MainPID {UNIT})/status")
        return {"memory": round(int(main.split()[0]) / 1024, 1), "memory_all": round(sum(sizes), 1)}

    def wipe(self) -> None:
        self.there.root(f"rm -rf {DIRECTORY}/*")
        self.node.root(f"rm -f {NOTES.format('store')}")

    def held(self) -> tuple[int, int]:
        return counted(self.there, DIRECTORY)
