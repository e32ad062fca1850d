# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong half way: each story begins and ends with a pair that streams, whichever node is the primary."""

from __future__ import annotations

from ledger import Watch, assert_pair, both_writable, ledger, missing

SYNCHRONOUS = ("-e", "primary_synchronous_standbys=1")


def force(lab, target, dead):
    """Once the standby has not heard from its primary for so long that nobody takes that for alive."""
    heard = "SELECT count(*) FROM pg_stat_wal_receiver WHERE last_msg_receipt_time > now() - interval '6 s'"
    lab.wait_for(lambda: lab.sql(target, heard) == "0", f"{target} hears nothing")
    return lab.play(
        "failover", "-e", f"target={target}", "-e", "mode=forced", "-e", f"confirm_unfenced={dead}", *SYNCHRONOUS
    )


def test_f02_a_standby_that_lacks_the_last_record_is_not_promoted(lab):
    primary, standby = lab.roles()
    with ledger(lab) as client, Watch(lab.addresses[standby]) as new:
        client.wait_for_rows(lab.addresses[primary], 100)
        with lab.frozen(standby, "walreceiver"):
            given_up = lab.play("failover", "-e", f"target={standby}", "-e", "failover_timeout=10", ok=False)
            assert "given up and nothing was lost" in given_up.output
            assert f"{primary} is the primary as before" in given_up.output
            assert "both must be past" in given_up.output, "it was given up for another reason"
            client.wait_for_rows(lab.addresses[primary], 100)
            # It was told already to come back as a standby. With the signal left, its next start would make it one.
            lab.run(primary, "test", "!", "-e", f"{lab.data}/standby.signal")
        streams = "SELECT status FROM pg_stat_wal_receiver"
        lab.wait_for(lambda: lab.sql(standby, streams) == "streaming", f"{standby} streams again")
    assert new.writable() == []
    assert missing(lab, primary, client.rows) == []
    assert_pair(lab, primary, standby)
    print(f"given up: {given_up.seconds:.1f} s, longest gap {client.longest_gap():.3f} s")


def test_f11_a_promotion_whose_checkpoint_hangs_is_not_taken_back(lab):
    primary, standby = lab.roles()
    old, new = Watch(lab.addresses[primary]), Watch(lab.addresses[standby])
    with ledger(lab) as client, old, new:
        client.wait_for_rows(lab.addresses[primary], 100)
        with lab.frozen(standby, "checkpointer"):
            told = lab.play("failover", "-e", f"target={standby}", "-e", "failover_timeout=5")
            assert "its checkpoint is missing" in told.output
            client.wait_for_rows(lab.addresses[standby], 100)
        lab.play("failover", "-e", f"target={standby}")
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    assert_pair(lab, standby, primary)


def test_synchronous_commits_survive_the_primarys_machine(lab):
    primary, standby = lab.roles()
    lab.play("site", *SYNCHRONOUS)
    synchronous = "SELECT sync_state FROM pg_stat_replication"
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    assert lab.sql(primary, synchronous) == "sync"
    with ledger(lab) as client:
        client.wait_for_rows(lab.addresses[primary], 100)
        with lab.frozen(standby, "walreceiver"):
            lab.wait_for(lambda: lab.sql(primary, waits) == "1", "a commit waits for the standby")
        client.wait_for_rows(lab.addresses[primary], 100)
        lab.docker("kill", primary)
        forced = force(lab, standby, primary)
        assert "commits wait for 0 standbys instead of 1" in forced.output
        client.wait_for_rows(lab.addresses[standby], 100)
        lab.restart_container(primary)
        lab.play("rebuild_standby", "-e", f"node={primary}", "-e", f"confirm={primary}", *SYNCHRONOUS)
        assert lab.sql(standby, synchronous) == "sync"
        client.wait_for_rows(lab.addresses[standby], 100)
    assert missing(lab, standby, client.rows) == []
    assert_pair(lab, standby, primary)


def test_the_newer_of_two_primaries_is_kept(lab):
    older, newer = lab.roles()
    # Only PostgreSQL dies, and the playbook, which does reach the machine, must not start it.
    lab.run(older, "pkill", "-KILL", "-x", "postgres")
    with ledger(lab) as client, Watch(lab.addresses[older]) as old:
        force(lab, newer, older)
        client.wait_for_rows(lab.addresses[newer], 100)
    assert not lab.runs(older)
    assert old.samples == []

    # While the new primary is away nothing tells the old one that it was replaced, but what the fence left.
    lab.run(newer, "systemctl", "stop", lab.service)
    lab.run(older, "rm", f"{lab.data}/standby.signal")
    lab.run(older, "systemctl", "start", lab.service)
    assert lab.is_primary(older)
    wrong = lab.play("rebuild_standby", "-e", f"node={newer}", "-e", f"confirm={newer}", ok=False)
    assert "probably the one to keep" in wrong.output
    # The new one is not locked out by the old one, and now there are two.
    lab.run(newer, "systemctl", "start", lab.service)
    assert lab.is_primary(newer)
    for playbook in ("site", "failover"):
        assert "Nothing was changed" in lab.play(playbook, ok=False).output
    lab.run(older, "systemctl", "stop", lab.service)
    lab.run(older, "systemctl", "start", lab.service, check=False)
    assert not lab.runs(older), "the newer one did not lock it out"

    lab.play("rebuild_standby", "-e", f"node={older}", "-e", f"confirm={older}")
    assert missing(lab, newer, client.rows) == []
    assert_pair(lab, newer, older)
