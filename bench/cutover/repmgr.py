# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""repmgr 5.5, its commands typed by hand (repmgrd is not running), with replication slots and use of pg_rewind."""

from __future__ import annotations

from lab import Machine, until
from pair import Command, Pair, debian_cluster, ssh_between

DATA = "/var/lib/postgresql/17/main"
UNIT = "postgresql@17-main"
REPMGR = "repmgr -f /etc/repmgr.conf"
CONFIGURATION = """
node_id={number}
node_name='{name}'
conninfo='host={address} user=repmgr dbname=repmgr connect_timeout=2'
data_directory='/var/lib/postgresql/17/main'
config_directory='/etc/postgresql/17/main'
pg_bindir='/usr/lib/postgresql/17/bin'
use_replication_slots=yes
service_start_command='sudo systemctl start postgresql@17-main'
service_stop_command='sudo systemctl stop postgresql@17-main'
service_restart_command='sudo systemctl restart postgresql@17-main'
service_reload_command='sudo systemctl reload postgresql@17-main'
"""


class Repmgr(Pair):
    name = "repmgr"
    number = 20

    def setup(self) -> None:
        for number, machine in enumerate(self.machines, start=1):
            debian_cluster(machine, shared_preload_libraries="repmgr")
            machine.write("/etc/sudoers.d/repmgr", "postgres ALL=(root) NOPASSWD: /usr/bin/systemctl\n")
            text = CONFIGURATION.format(number=number, name=machine.short, address=machine.address)
            machine.write("/etc/repmgr.conf", text)
        ssh_between(*self.machines)
        self.a.root(f"systemctl start {UNIT}")
        self.a.postgres(f"createuser -s repmgr && createdb -O repmgr repmgr && {REPMGR} primary register")
        self.b.postgres(
            f"rm -rf {DATA} && {REPMGR} -h {self.a.address} -U repmgr -d repmgr standby clone --fast-checkpoint"
        )
        self.b.root(f"systemctl start {UNIT}")
        until("repmgr: the standby streams", self.a.has_standby, 30)
        self.b.postgres(f"{REPMGR} standby register")

    def switchover(self, old: Machine, new: Machine) -> Command:
        return self.to(new, f"{REPMGR} standby switchover")

    def forced(self, old: Machine, new: Machine) -> Command:
        return self.to(new, f"{REPMGR} standby promote")

    def rejoin(self, old: Machine, new: Machine) -> str:
        """node rejoin; where it refuses after a crash: the documented start, clean stop, and again."""
        command = f"{REPMGR} node rejoin -d 'host={new.address} user=repmgr dbname=repmgr' --force-rewind"
        old.root(f"systemctl stop {UNIT}")
        first = self.to(old, command)
        said = "node rejoin"
        if first.code:
            old.root(f"rm -f {DATA}/postmaster.pid; systemctl start {UNIT} && sleep 1 && systemctl stop {UNIT}")
            old.postgres(command)
            refused = " ".join(line for line in first.output.splitlines() if "ERROR" in line)
            said += f" (second try; the first: {refused[:300]})"
        until("repmgr: the old primary streams", new.has_standby, 60)
        return said
