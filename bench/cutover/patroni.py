# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Patroni 4.0 with one etcd, with its default times (ttl 30, loop_wait 10, retry_timeout 10)."""

from __future__ import annotations

import json

from lab import BIN, HBA, PARAMETERS, Machine, until
from pair import Command, Pair

DATA = "/var/lib/postgresql/17/patroni"
CTL = "patronictl -c /etc/patroni/config.yml"


class Patroni(Pair):
    name = "patroni"
    number = 30
    automatic = True

    def setup(self) -> None:
        peer = f"http://{self.control.address}:2379"
        text = f"ETCD_NAME=bench\nETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379\nETCD_ADVERTISE_CLIENT_URLS={peer}\n"
        self.control.write("/etc/default/etcd", text)
        self.control.root("systemctl restart etcd && ETCDCTL_API=3 etcdctl del --prefix /service/bench")
        for machine in self.machines:
            machine.write("/etc/patroni/config.yml", json.dumps(self.configuration(machine)))
        self.a.root("systemctl enable --quiet --now patroni")
        until("patroni: the first node is the primary", self.a.is_primary, 60)
        self.b.root("systemctl enable --quiet --now patroni")
        until("patroni: the standby streams", lambda: self.settled(self.a), 90)

    def configuration(self, machine: Machine) -> dict[str, object]:
        parameters = {name: value for name, value in PARAMETERS.items() if name != "listen_addresses"}
        times = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}
        server = {"use_pg_rewind": True, "use_slots": True, "parameters": parameters}
        return {
            "scope": "bench",
            "name": machine.short,
            "restapi": {"listen": "0.0.0.0:8008", "connect_address": f"{machine.address}:8008"},
            "etcd3": {"host": f"{self.control.address}:2379"},
            "bootstrap": {"dcs": {**times, "postgresql": server}, "initdb": [{"encoding": "UTF8"}]},
            "postgresql": {
                "listen": "0.0.0.0:5432",
                "connect_address": f"{machine.address}:5432",
                "data_dir": DATA,
                "bin_dir": BIN,
                "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
                "pg_hba": HBA.splitlines(),
                "parameters": {"unix_socket_directories": "/var/run/postgresql"},
            },
        }

    def settled(self, new: Machine) -> bool:
        listed = self.control_listing(new)
        return listed.get(new.short) == "running" and "streaming" in listed.values()

    def control_listing(self, machine: Machine) -> dict[str, str]:
        text = machine.postgres(f"{CTL} list --format json", check=False)
        return {member["Member"]: member["State"] for member in json.loads(text)} if text.startswith("[") else {}

    def switchover(self, old: Machine, new: Machine) -> Command:
        return self.to(new, f"{CTL} switchover bench --leader {old.short} --candidate {new.short} --force")

    def forced(self, old: Machine, new: Machine) -> Command:
        return self.to(new, f"{CTL} failover bench --candidate {new.short} --force")

    def rejoin(self, old: Machine, new: Machine) -> str:
        until("patroni: the old primary streams", new.has_standby, 120)
        return "by itself"
