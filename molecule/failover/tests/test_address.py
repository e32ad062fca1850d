# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service address is on the primary and nowhere else, however that ends. F20 has the cutover as its clients see it.

Each story begins and ends with a pair that streams, whichever node is the primary.
"""

from __future__ import annotations

import re
import select
import time
from contextlib import contextmanager

import psycopg2
import pytest
from ledger import COMMON, assert_pair

MONITOR = "/run/test-address.log"


def service_address(lab):
    return lab.variables["node_service_address"].partition("/")[0]


def holders(lab):
    address = service_address(lab)
    return [node for node in lab.addresses if lab.run(node, "ip", "-o", "address", "show", "to", address)]


def settled(lab, *nodes):
    lab.wait_for(lambda: holders(lab) == list(nodes), f"the address is on {nodes}")


@contextmanager
def seen(lab):
    """When each node got or lost the address: [(time of the machine that all containers share, node, has it)]."""
    found = []
    for node in lab.addresses:
        lab.docker("exec", "-d", node, "sh", "-c", f"exec ip -4 -o -ts monitor address >{MONITOR}")
    time.sleep(0.5)
    yield found
    address = re.escape(service_address(lab))
    for node in lab.addresses:
        text = lab.run(node, "cat", MONITOR)
        lab.run(node, "pkill", "-f", "ip -4 -o -ts monitor", check=False)
        found += [
            (stamp, node, not gone)
            for stamp, gone in re.findall(rf"^\[(\S+)\] (Deleted )?.*\b{address}/", text, re.MULTILINE)
        ]
    found.sort()


def test_it_is_never_on_two_nodes(lab):
    primary, standby = lab.roles()
    settled(lab, primary)
    with seen(lab) as moves:
        lab.play("failover", "-e", f"target={standby}")
        settled(lab, standby)
    print(moves)
    assert [(node, has) for _, node, has in moves] == [(primary, False), (standby, True)]
    assert_pair(lab, standby, primary)


KILLED = "kill -KILL $(head -n 1 {data}/postmaster.pid)"


@pytest.mark.parametrize(
    "command",
    ["systemctl stop {service}", KILLED, "pkill -KILL -x postgres"],
    ids=["stop", "postmaster-killed", "all-killed"],
)
def test_it_goes_with_the_server_and_clients_are_told(lab, command):
    primary, standby = lab.roles()
    settled(lab, primary)
    with psycopg2.connect(host=service_address(lab), **COMMON) as client:
        began = time.monotonic()
        lab.run(primary, "sh", "-c", command.format(service=lab.service, data=lab.data))
        # One that only listens learns it too: the connection was closed while the address was still there.
        assert select.select([client], [], [], 5)[0], "the client was left alone"
        told = time.monotonic() - began
    settled(lab)
    print(f"{command}: told after {told:.3f} s, gone after {time.monotonic() - began:.3f} s at most")
    client.close()
    lab.wait_for(lambda: not lab.runs(primary), "no process of the server is left")
    lab.run(primary, "systemctl", "start", lab.service)
    settled(lab, primary)
    lab.wait_for(lambda: lab.sql(standby, "SELECT status FROM pg_stat_wal_receiver") == "streaming", "streams again")
    assert_pair(lab, primary, standby)


def test_a_machine_that_boots_does_not_have_it_before_its_server_is_the_primary(lab):
    primary, standby = lab.roles()
    settled(lab, primary)
    lab.docker("kill", primary)
    lab.play("failover", "-e", f"target={standby}", "-e", "mode=forced", "-e", f"confirm_unfenced={primary}")
    lab.docker("start", primary)
    for _ in range(20):
        assert holders(lab) in ([standby], [])
        time.sleep(0.2)
    settled(lab, standby)
    lab.play("rebuild_standby", "-e", f"node={primary}", "-e", f"confirm={primary}")
    settled(lab, standby)
    assert_pair(lab, standby, primary)


def test_what_keeps_it_there_may_die(lab):
    primary, standby = lab.roles()
    settled(lab, primary)
    unit = "hotspare-address-main.service"
    keeper = lab.run(primary, "systemctl", "show", "--property=MainPID", "--value", unit).strip()
    lab.run(primary, "kill", "-KILL", keeper)

    def another():
        return lab.run(primary, "systemctl", "show", "--property=MainPID", "--value", unit).strip() not in ("0", keeper)

    lab.wait_for(another, "it is kept again")
    settled(lab, primary)
    assert "is on" in lab.run(primary, "systemctl", "status", "--no-pager", unit)
    # It waits for no client: a smart shutdown does not wait for it.
    stop = ["-m", "smart", "-D", lab.data, "-t", "20"]
    lab.run(primary, f"/usr/lib/postgresql/{lab.version}/bin/pg_ctl", "stop", *stop, user="postgres")
    settled(lab)
    lab.run(primary, "systemctl", "start", lab.service)
    lab.wait_for(lambda: lab.sql(standby, "SELECT status FROM pg_stat_wal_receiver") == "streaming", "streams again")
    settled(lab, primary)
    assert_pair(lab, primary, standby)
