# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A dead primary stays dead, and a healthy cluster starts: machines that die and come back, in any order, by any hand.

Each story begins and ends with a pair that streams, whichever node is the primary.
"""

from __future__ import annotations

import time

import pytest
from ledger import Watch, assert_pair

WAIT = 10  # node_guard_wait's default


def log(lab, node):
    """What the service has said since the machine's last boot."""
    return lab.run(node, "journalctl", "--boot", "--no-pager", "--output=cat", "--unit", lab.service)


def streams(lab, standby):
    """Whether it streams; False while its server does not answer."""
    query = ["psql", "-XAtq", "-d", "postgres", "-c", "SELECT status FROM pg_stat_wal_receiver"]
    return lab.run(standby, *query, user="postgres", check=False).strip() == "streaming"


def forced(lab, dead, target):
    vouched = ("-e", "mode=forced", "-e", f"confirm_unfenced={dead}")
    lab.play("failover", "-e", f"target={target}", *vouched)
    assert lab.is_primary(target)


def rebuilt(lab, node, primary):
    lab.play("rebuild_standby", "-e", f"node={node}", "-e", f"confirm={node}")
    assert_pair(lab, primary, node)


def test_a_dead_primary_stays_dead_whatever_starts_it(lab):
    old, new = lab.roles()
    lab.docker("kill", old)
    forced(lab, old, new)
    with Watch(lab.addresses[old]) as watch:
        lab.restart_container(old)
        assert not lab.runs(old)
        said = log(lab, old)
        for part in (f"{new} at {lab.addresses[new]}", "as a primary", f"-e node={old} -e confirm={old}"):
            assert part in said
        # A hand, Debian's own command as root, and what a package upgrade runs.
        for start in (
            ["systemctl", "start", lab.service],
            ["pg_ctlcluster", str(lab.version), "main", "start"],
            ["invoke-rc.d", "postgresql", "start"],
            ["apt-get", "install", "-y", "--reinstall", f"postgresql-{lab.version}"],
        ):
            lab.run(old, *start, check=False)
            assert not lab.runs(old), start
        # It has seen its successor once: that is enough for a boot at which nobody answers.
        lab.docker("kill", new)
        lab.docker("kill", old)
        lab.restart_container(old)
        assert not lab.runs(old)
        assert f"{new} was seen as the primary" in log(lab, old)
        lab.restart_container(new)
        lab.wait_for(lambda: lab.runs(new), "the new primary is back")
        lab.wait_for(lambda: lab.is_primary(new), "the new primary takes connections")
        assert watch.writable() == []
    rebuilt(lab, old, new)


@pytest.mark.parametrize("primary_first", [True, False])
def test_both_machines_lose_their_power(lab, primary_first):
    primary, standby = lab.roles()
    order = (primary, standby) if primary_first else (standby, primary)
    lab.docker("kill", primary, standby)
    for node in order:
        lab.docker("start", node)
        time.sleep(1)
    began = time.monotonic()
    lab.wait_for(lambda: streams(lab, standby), "the pair streams")
    assert_pair(lab, primary, standby)
    print(f"{order[0]} first: the pair streams {time.monotonic() - began:.1f} s after the second was switched on")


@pytest.mark.parametrize("policy", ["start", "refuse"])
def test_a_primary_whose_standby_is_silent(lab, policy):
    primary, standby = lab.roles()
    if policy != "start":
        lab.play("site", "-e", f"node_guard_policy={policy}")
    lab.docker("kill", standby)
    began = time.monotonic()
    lab.run(primary, "systemctl", "restart", lab.service, check=False)
    assert time.monotonic() - began >= WAIT
    assert lab.runs(primary) is (policy == "start")
    assert f"node_guard_policy is {policy}" in log(lab, primary)
    lab.restart_container(standby)
    lab.wait_for(lambda: lab.runs(standby), "the standby is back")
    lab.run(primary, "systemctl", "start", lab.service)
    lab.wait_for(lambda: streams(lab, standby), "the pair streams")
    if policy != "start":
        lab.play("site")
    assert_pair(lab, primary, standby)
