# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three nodes, one story (pytest -x): a planned cutover, a chain that is refused, a dead primary and two heirs."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
from ledger import Watch, assert_pair, both_writable, ledger, missing


@pytest.fixture(scope="session")
def three(lab):
    """The primary and its standbys, as they are at the beginning."""
    return lab.roles()


@contextmanager
def watched(lab):
    """{node: Watch} of all three."""
    with ExitStack() as stack:
        yield {node: stack.enter_context(Watch(address)) for node, address in lab.addresses.items()}


@contextmanager
def cut_off(lab, node, other):
    """Nothing from `other` reaches `node`."""
    rule = ("INPUT", "-s", lab.addresses[other], "-j", "DROP")
    lab.run(node, "iptables", "-I", *rule)
    try:
        yield
    finally:
        lab.run(node, "iptables", "-D", *rule)


@contextmanager
def following(lab, node, upstream):
    """A standby that streams from another standby, as somebody set it up by hand."""
    path = f"/etc/postgresql/{lab.version}/main/conf.d/60-hotspare-upstream.conf"
    before = lab.run(node, "cat", path)
    old = lab.addresses[lab.roles()[0]]
    chained = before.replace(old, lab.addresses[upstream])
    lab.run(node, "tee", path, stdin="\n".join(line for line in chained.splitlines() if "slot" not in line) + "\n")
    lab.run(node, "tee", "-a", path, stdin="primary_slot_name = ''\n")
    lab.run(node, "systemctl", "reload", lab.service)
    host = "SELECT sender_host FROM pg_stat_wal_receiver"
    lab.wait_for(lambda: lab.sql(node, host) == lab.addresses[upstream], f"{node} streams from {upstream}")
    try:
        yield
    finally:
        lab.run(node, "tee", path, stdin=before)
        lab.run(node, "systemctl", "reload", lab.service)
        lab.wait_for(lambda: lab.sql(node, host) == old, f"{node} streams from {old} again")


def test_a_planned_cutover_takes_the_third_along(lab, three):
    one, two, third = three
    with ledger(lab) as client, watched(lab) as nodes:
        client.wait_for_rows(lab.addresses[one], 100)
        # Of two standbys one must be named.
        assert two in lab.play("failover", ok=False).output
        planned = lab.play("failover", "-e", f"target={two}")
        client.wait_for_rows(lab.addresses[two], 100)
    assert missing(lab, two, client.rows) == []
    assert both_writable(nodes[one], nodes[two]) == []
    assert nodes[third].writable() == []
    assert lab.roles()[0] == two
    for standby in (one, third):
        assert_pair(lab, two, standby)
    # Each standby has a slot on the primary, and no standby has one.
    assert lab.sql(two, "SELECT count(*) FROM pg_replication_slots WHERE active") == "2"
    assert [lab.sql(node, "SELECT count(*) FROM pg_replication_slots") for node in (one, third)] == ["0", "0"]
    print(f"planned: {planned.seconds:.1f} s, longest gap {client.longest_gap():.3f} s")


def test_a_chain_of_standbys_is_refused(lab):
    primary, one, third = lab.roles()
    with following(lab, third, one):
        refused = lab.play("failover", "-e", f"target={one}", ok=False)
        # Both ways: as the one in the middle, and as the end of the chain.
        refused_end = lab.play("failover", "-e", f"target={third}", ok=False)
    for play in (refused, refused_end):
        assert f"{third} streams from {one}, a standby: cascading is not supported" in play.output
        assert "Nothing was changed" in play.output
    assert lab.roles()[0] == primary


def test_who_holds_most_takes_over_and_the_third_follows(lab, three):
    one, two, third = three
    with ledger(lab) as client, watched(lab) as nodes:
        client.wait_for_rows(lab.addresses[two], 50)
        with cut_off(lab, third, two):
            client.wait_for_rows(lab.addresses[two], 100)
            lab.docker("kill", two)
        dead = ("-e", "mode=forced", "-e", f"confirm_unfenced={two}")
        # Nobody takes the one that holds less because its name was typed.
        refused = lab.play("failover", "-e", f"target={third}", *dead, ok=False)
        assert one in refused.output
        assert "Nothing was changed" in refused.output
        forced = lab.play("failover", *dead)
        client.wait_for_rows(lab.addresses[one], 50)
    assert nodes[third].writable() == []
    assert_pair(lab, one, third)
    rows = [row for row in client.rows if row.host == lab.addresses[one]]
    assert missing(lab, one, rows) == []
    print(f"forced: {forced.seconds:.1f} s")


def test_the_dead_one_returns_and_three_are_healthy(lab, three):
    one, two, third = three
    with Watch(lab.addresses[two]) as old:
        lab.restart_container(two)
        lab.play("rebuild_standby", "-e", f"node={two}", "-e", f"confirm={two}")
    assert old.writable() == []
    assert lab.roles()[0] == one
    for standby in (two, third):
        assert_pair(lab, one, standby)
    before = lab.fingerprints()
    assert lab.play("site").changed == 0
    assert lab.differences(before) == {}
    assert lab.status()["verdict"] == "healthy"
