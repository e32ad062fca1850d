# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""F12, F13: the control node dies half way. The run is killed right after one task, and run again.

Here after those that matter most (of which some have a test of their own); soak/ does it after each. The pair streams
before and after each test.
"""

from __future__ import annotations

import json

import pytest
from ledger import Watch, assert_pair, both_writable, ledger, missing


def killed_and_run_again(lab, after, between=lambda primary, standby: None):
    """A planned cutover, killed after a task, and run again: it ends well."""
    primary, standby = lab.roles()
    old, new = Watch(lab.addresses[primary]), Watch(lab.addresses[standby])
    with ledger(lab) as client, old, new:
        client.wait_for_rows(lab.addresses[primary], 50)
        assert lab.run_until_killed("failover", "-e", f"target={standby}", after=after).killed
        between(primary, standby)
        lab.play("failover", "-e", f"target={standby}")
        client.wait_for_rows(lab.addresses[standby], 50)
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    assert_pair(lab, standby, primary)


@pytest.mark.parametrize("after", ["pg_server:stopped", "pg_server:started"], ids=["stopped", "old-primary-started"])
def test_f12_killed_right_after(lab, after):
    killed_and_run_again(lab, after)


def test_what_comes_after_the_promotion_is_done_by_the_run_that_goes_on(lab):
    primary, standby = lab.roles()
    mark = "/tmp/hotspare-after"
    hook = json.dumps({"failover_after": [{"argv": ["touch", mark], "where": "target"}]})
    cutover = ("failover", "-e", f"target={standby}", "-e", hook)
    with lab.configured(primary, archive_command="/bin/false"):
        segment = lab.sql(primary, "SELECT pg_walfile_name(pg_switch_wal())")
        assert lab.run_until_killed(*cutover, after="pg_server:stopped").killed
        lab.wait_for(lambda: lab.sql(standby, "SELECT pg_is_in_recovery()") == "f", "it has promoted itself")
        told = lab.play(*cutover).output
    assert "rows lost: 0" in told and "CHECKPOINT_SHUTDOWN" in told
    assert segment in told[told.index("kept for the archive: ") :]
    lab.run(standby, "rm", mark)
    assert_pair(lab, standby, primary)


def test_f13_the_old_primarys_machine_reboots_right_after_the_promotion(lab):
    def reboot(primary, standby):
        lab.docker("kill", primary)
        lab.restart_container(primary)
        assert lab.sql(primary, "SELECT pg_is_in_recovery()") == "t", "it came up as a second primary"

    killed_and_run_again(lab, "pg_promote:", reboot)


def test_the_armed_standby_does_not_take_over_from_a_primary_that_crashed(lab):
    """What waits for a proof gets none, now and later: the stream that it was armed on ended without."""
    primary, standby = lab.roles()
    old, new = Watch(lab.addresses[primary]), Watch(lab.addresses[standby])
    with ledger(lab) as client, old, new:
        client.wait_for_rows(lab.addresses[primary], 50)
        assert lab.run_until_killed("failover", "-e", f"target={standby}", after="pg_promote:armed").killed
        lab.run(primary, "pkill", "-KILL", "-x", "postgres")
        lab.wait_for(lambda: not armed(lab, standby), "the armed process has given up")
        # Run again, it gives up what cannot be proven any more: the primary recovers and goes on.
        lab.play("failover", "-e", f"target={standby}", ok=None)
        client.wait_for_rows(lab.addresses[primary], 50)
        assert not new.writable()
        assert_pair(lab, primary, standby)
        lab.play("failover", "-e", f"target={standby}")
        client.wait_for_rows(lab.addresses[standby], 50)
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    assert_pair(lab, standby, primary)


def test_an_armed_standby_to_which_nobody_comes_back_expires(lab):
    primary, standby = lab.roles()
    with ledger(lab) as client, Watch(lab.addresses[standby]) as new:
        expires = ("-e", "failover_arm_timeout=3")
        assert lab.run_until_killed("failover", "-e", f"target={standby}", *expires, after="pg_promote:armed").killed
        lab.wait_for(lambda: not armed(lab, standby), "it has expired")
        client.wait_for_rows(lab.addresses[primary], 50)
        assert "prepared" in lab.play("status").output
        # A stop by hand is just that: nobody waits for its proof any more.
        lab.run(primary, "systemctl", "stop", lab.service)
        assert not new.writable()
        lab.play("failover", "-e", f"target={standby}")
        client.wait_for_rows(lab.addresses[standby], 50)
    assert missing(lab, standby, client.rows) == []
    assert_pair(lab, standby, primary)


def test_forced_and_rebuild_killed_and_run_again(lab):
    primary, standby = lab.roles()
    forced = ("-e", f"target={standby}", "-e", "mode=forced", "-e", f"confirm_unfenced={primary}")
    rebuild = ("-e", f"node={primary}", "-e", f"confirm={primary}")
    with ledger(lab) as client, Watch(lab.addresses[primary]) as old:
        client.wait_for_rows(lab.addresses[primary], 50)
        lab.docker("kill", primary)
        dead = len(old.samples)
        assert lab.run_until_killed("failover", *forced, after="pg_promote").killed
        client.wait_for_rows(lab.addresses[standby], 50)
        lab.play("failover", *forced)
        lab.restart_container(primary)
        assert lab.run_until_killed("rebuild_standby", *rebuild, after="pg_rebuild").killed
        lab.play("rebuild_standby", *rebuild)
    assert [sample for sample in old.samples[dead:] if sample.writable] == []
    rows = [row for row in client.rows if row.host == lab.addresses[standby]]
    assert missing(lab, standby, rows) == []
    assert_pair(lab, standby, primary)


def armed(lab, node):
    return any(path.endswith(".armed.json") for path in lab.left_behind(node))
