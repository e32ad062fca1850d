# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_auto_failover 2.2 with its default times, replication-quorum false on both nodes: an asynchronous pair."""

from __future__ import annotations

from lab import SUBNET, Machine, until
from pair import Command, Pair, configuration

DATA = "/var/lib/postgresql/17/pgaf"
MONITOR = "/var/lib/postgresql/monitor"
TRUST = f"host all all {SUBNET}.0/24 trust\n"
UNIT = """
[Unit]
After=network.target
[Service]
User=postgres
WorkingDirectory=/var/lib/postgresql
Environment=PGDATA={data} PATH=/usr/lib/postgresql/17/bin:/usr/bin:/bin
ExecStart=/usr/bin/pg_autoctl run
Restart=always
[Install]
WantedBy=multi-user.target
"""


class PgAutoFailover(Pair):
    name = "pg_auto_failover"
    number = 40
    automatic = True

    def setup(self) -> None:
        control, place = self.control, ".config/pg_autoctl .local/share/pg_autoctl"
        control.root("systemctl disable --quiet --now pgaf", check=False)
        control.postgres(f"rm -rf {MONITOR} {place}")
        self.link = f"postgres://autoctl_node@{control.address}:6000/pg_auto_failover"
        how = "--auth trust --no-ssl"
        control.postgres(
            f"pg_autoctl create monitor --pgdata {MONITOR} --pgport 6000 --hostname {control.address} {how}"
        )
        control.postgres(f"cat >>{MONITOR}/pg_hba.conf", given=TRUST)
        self.service(control, MONITOR)
        until("pg_auto_failover: the monitor answers", lambda: self.asked("select 1") == "1", 30)
        for machine in self.machines:
            node = f"--hostname {machine.address} --name {machine.short} --pgport 5432 --monitor '{self.link}'"
            machine.write("/var/lib/postgresql/bench.conf", configuration())
            machine.postgres(f"pg_autoctl create postgres --pgdata {DATA} {node} {how}")
            machine.postgres(
                f"grep -q '^host all all {SUBNET}.0/24 trust' {DATA}/pg_hba.conf || cat >>{DATA}/pg_hba.conf",
                given=TRUST,
            )
            include = "include '/var/lib/postgresql/bench.conf'\n"
            machine.postgres(
                f"grep -q bench.conf {DATA}/postgresql.conf || cat >>{DATA}/postgresql.conf", given=include
            )
            self.service(machine, DATA)
            if machine is self.a:
                until("pg_auto_failover: the first node is the primary", self.a.is_writable, 60)
        until("pg_auto_failover: both nodes have their roles", lambda: self.settled(self.a), 90)
        for machine in self.machines:
            machine.postgres(f"pg_autoctl set node replication-quorum false --pgdata {DATA}")
        until("pg_auto_failover: asynchronous", lambda: self.a.sql("show synchronous_standby_names") == "", 60)
        until("pg_auto_failover: both nodes have their roles", lambda: self.settled(self.a), 90)

    def service(self, machine: Machine, data: str) -> None:
        machine.write("/etc/systemd/system/pgaf.service", UNIT.format(data=data))
        machine.root("systemctl daemon-reload && systemctl enable --quiet --now pgaf")

    def states(self) -> str:
        states = "reportedstate || '/' || goalstate"
        return self.asked(f"select string_agg({states}, ' ' order by {states}) from pgautofailover.node")

    def asked(self, statement: str) -> str:
        """The monitor's answer, "" where it has none."""
        command = f'psql -XAtq "host={self.control.address} port=6000 user=autoctl_node dbname=pg_auto_failover"'
        return self.control.postgres(command, given=statement, check=False).strip()

    def settled(self, new: Machine) -> bool:
        return self.states() == "primary/primary secondary/secondary"

    def switchover(self, old: Machine, new: Machine) -> Command:
        return self.to(self.control, f"pg_autoctl perform switchover --monitor '{self.link}'")

    def forced(self, old: Machine, new: Machine) -> Command:
        return self.to(self.control, f"pg_autoctl perform failover --monitor '{self.link}'")

    def rejoin(self, old: Machine, new: Machine) -> str:
        until("pg_auto_failover: the old primary streams", new.has_standby, 120)
        return "by itself"
