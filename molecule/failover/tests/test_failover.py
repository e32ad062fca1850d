# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One story, told from top to bottom: the primary's machine dies under load, the pair heals, and swaps back.

The tests depend on each other in this order (pytest -x): db1 is the primary at first.
"""

from __future__ import annotations

import re

from ledger import Watch, assert_pair, both_writable, ledger, lsn, missing


def test_the_primarys_machine_dies_and_the_standby_takes_over(lab):
    with ledger(lab) as client, Watch(lab.addresses[lab.two]) as new:
        client.wait_for_rows(lab.addresses[lab.one], 300)
        lab.docker("kill", lab.one)
        # Planned is the default, and a dead primary cannot be stopped cleanly: refused, with the way out.
        refused = lab.play("failover", "-e", f"target={lab.two}", ok=False)
        assert "mode=forced" in refused.output
        assert not new.writable()
        dead = ("-e", "mode=forced", "-e", f"confirm_unfenced={lab.one}")
        forced = lab.play("failover", "-e", f"target={lab.two}", *dead)
        client.wait_for_rows(lab.addresses[lab.two])
    assert lab.is_primary(lab.two)
    timeline = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
    history = lab.sql(lab.two, f"SELECT pg_read_file('pg_wal/' || {timeline} || '.history')")
    fork = re.findall(r"[0-9A-F]+/[0-9A-F]+", history)[-1]
    assert "is lost" in forced.output, "the report does not speak of the loss"
    assert fork in forced.output, "the report does not say where the timelines parted"
    # Replication is asynchronous: a row may be lost, but only one that was committed past the reported position.
    lost = missing(lab, lab.two, client.rows)
    assert [row for row in lost if row.lsn <= lsn(fork)] == []
    assert [row for row in lost if row.host == lab.addresses[lab.two]] == []
    print(f"forced: {forced.seconds:.1f} s, {len(client.rows)} rows acknowledged, {len(lost)} of them lost past {fork}")


def test_status_tells_it_with_one_node_down(lab):
    table = lab.play("status").output
    assert re.search(rf"{lab.two}\b.*\bprimary\b", table)
    assert re.search(rf"{lab.one}\b.*\bunknown\b", table), "an unreachable node is unknown, not stopped"
    found = lab.status()
    assert found["primary"] == lab.two
    assert found["unknown"] == [lab.one]
    assert found["safe"] is False


def test_f23_the_dead_primary_comes_back_and_is_no_primary(lab):
    with Watch(lab.addresses[lab.one]) as old:
        lab.restart_container(lab.one)
        # Nor does anybody's site.yml make it one.
        lab.play("site", ok=None)
        assert lab.is_primary(lab.two)
        wrong = lab.play("rebuild_standby", "-e", f"node={lab.one}", "-e", f"confirm={lab.two}", ok=False)
        assert "confirm" in wrong.output
        rebuilt = lab.play("rebuild_standby", "-e", f"node={lab.one}", "-e", f"confirm={lab.one}")
        assert_pair(lab, lab.two, lab.one)
    assert old.writable() == []
    print(f"rebuilt in {rebuilt.seconds:.1f} s")


def test_f29_the_primary_is_not_rebuilt(lab):
    before = lab.fingerprints()
    refused = lab.play("rebuild_standby", "-e", f"node={lab.two}", "-e", f"confirm={lab.two}", ok=False)
    assert "Nothing was changed" in refused.output
    assert lab.differences(before) == {}
    assert lab.is_primary(lab.two)


def test_site_changes_nothing_on_swapped_roles(lab):
    before = lab.fingerprints()
    again = lab.play("site")
    assert again.changed == 0, again.output
    assert lab.differences(before) == {}
    assert_pair(lab, lab.two, lab.one)


def test_a_planned_switchover_back_loses_nothing(lab):
    old, new = Watch(lab.addresses[lab.two]), Watch(lab.addresses[lab.one])
    with ledger(lab) as client, old, new:
        client.wait_for_rows(lab.addresses[lab.two], 300)
        planned = lab.play("failover", "-e", f"target={lab.one}")
        client.wait_for_rows(lab.addresses[lab.one], 300)
    assert missing(lab, lab.one, client.rows) == []
    assert both_writable(old, new) == []
    assert old.writable(), "the watch saw nothing, so it proves nothing"
    assert new.writable(), "the watch saw nothing, so it proves nothing"
    assert_pair(lab, lab.one, lab.two)
    print(f"planned: {planned.seconds:.1f} s, longest gap {client.longest_gap():.3f} s, {len(client.rows)} rows")


def test_status_of_the_healthy_pair(lab):
    table = lab.play("status").output
    assert "HEALTHY" in table
    assert re.search(rf"{lab.one} +primary +3 +to {lab.two}", table)
    assert re.search(rf"{lab.two} +standby +3 +from {lab.one[:12]}", table)
    found = lab.status()
    assert (found["verdict"], found["safe"]) == ("healthy", True)
    assert (found["primary"], found["standbys"]) == (lab.one, [lab.two])
    # One forced and one planned cutover.
    assert {node["timeline"] for node in found["nodes"].values()} == {3}
