# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Planned cutovers in bad company: busy clients, archivers that fail or hang, two operators, and all that preflight
refuses. Each story begins and ends with a pair that streams, whichever node is the primary; README.md has the list.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager

import psycopg2
import pytest
from ledger import COMMON, Watch, assert_pair, both_writable, ledger, missing

# --- what is refused before anything is changed: everything is wrong at once, one run tells all of it ---------------


@contextmanager
def rejecting(lab, node, address):
    """No replication connection is let in from there."""
    path = f"/etc/postgresql/{lab.version}/main/pg_hba.conf"
    rule = f"host replication all {address}/32 reject"
    lab.run(node, "sed", "-i", f"1i {rule}", path)
    lab.run(node, "systemctl", "reload", lab.service)
    try:
        yield
    finally:
        lab.run(node, "sed", "-i", f"\\|^{rule}$|d", path)
        lab.run(node, "systemctl", "reload", lab.service)


@contextmanager
def paused(lab, node):
    """Replay stands still, with 20 MB that wait for it."""
    lab.sql(node, "SELECT pg_wal_replay_pause()")
    try:
        yield
    finally:
        lab.sql(node, "SELECT pg_wal_replay_resume()")


@contextmanager
def failover_slot(lab, node):
    """A logical slot that shall survive a failover and has not reached the standby (from PostgreSQL 17 on)."""
    fourth = ", false, true" if lab.version >= 17 else ""
    lab.sql(node, f"SELECT pg_create_logical_replication_slot('books', 'test_decoding', false{fourth})", "ledger")
    try:
        yield
    finally:
        lab.sql(node, "SELECT pg_drop_replication_slot('books')")


@pytest.fixture(scope="module")
def refused(lab):
    """failover.yml on a pair with which everything is wrong: its output, and whether anything was changed."""
    primary, standby = lab.roles()
    with ExitStack() as wrong:
        # A standby may have more connections than its primary, but not the other way round after the cutover.
        wrong.enter_context(
            lab.configured(
                standby,
                max_connections="150",
                max_replication_slots="0",
                recovery_min_apply_delay="50ms",
                synchronous_standby_names="ghost",
            )
        )
        lab.run(standby, "systemctl", "restart", lab.service)
        wrong.callback(lambda: lab.run(standby, "systemctl", "restart", lab.service))
        lab.wait_for(
            lambda: lab.sql(standby, "SELECT status FROM pg_stat_wal_receiver") == "streaming", "streams again"
        )
        wrong.enter_context(rejecting(lab, standby, lab.addresses[primary]))
        wrong.enter_context(failover_slot(lab, primary))
        wrong.enter_context(paused(lab, standby))
        lab.sql(primary, "SELECT pg_logical_emit_message(false, 'lag', repeat('x', 20000000))")
        before = lab.fingerprints()
        play = lab.play("failover", "-e", f"target={standby}", ok=False)
        assert lab.differences(before) == {}
        assert "Nothing was changed" in play.output
        # Most of these lose data or the way back, so nobody may wave them through.
        codes = ",".join(failing(play.output))
        allowed = lab.play("failover", "-e", f"target={standby}", "-e", f"allow={codes}", ok=False)
        assert lab.differences(before) == {}
        assert "Nothing was changed" in allowed.output
    # The restart came last but one: the file is gone by now, so once more without it.
    lab.run(standby, "systemctl", "restart", lab.service)
    lab.wait_for(lambda: lab.sql(standby, "SELECT status FROM pg_stat_wal_receiver") == "streaming", "streams again")
    assert_pair(lab, primary, standby)
    return failing(play.output)


def failing(output):
    """{code: detail} of the checks that must hold and do not."""
    return dict(re.findall(r'"(?:not ok |unknown) must   ?([\w-]+): (.*?)",?$', output, re.MULTILINE))


@pytest.mark.parametrize(
    ("case", "code", "says"),
    [
        ("f08 replay is paused", "replay_not_paused", "paused"),
        ("f09 replay is delayed", "no_apply_delay", "50"),
        ("f10 the standby is far behind", "lag", "behind"),
        ("f16 no way back for replication", "way_back", "pg_hba"),
        ("f17 fewer connections on the standby to be", "parameters", "max_connections"),
        ("f18 no slot for the standby to be", "replication_slots", "free"),
        ("f19 the new primary would wait for a ghost", "synchronous", "ghost"),
    ],
)
def test_f08_to_f19_are_found_before_the_stop(refused, case, code, says):
    found = {name: detail for name, detail in refused.items() if name.startswith(code)}
    assert says in " ".join(found.values()), f"{case}: {refused}"


def test_f15_a_failover_slot_that_is_not_ready(lab, refused):
    # Before 17 no slot survives a failover, so there is nothing to wait for.
    assert ("failover_slots" in refused) == (lab.version >= 17)


# --- what is no hindrance --------------------------------------------------------------------------------------------


def test_f01_f06_f07_f21_busy_clients_and_a_prepared_transaction(lab):
    primary, standby = lab.roles()
    bench = f"/usr/lib/postgresql/{lab.version}/bin/pgbench"
    lab.run(primary, bench, "-i", "-q", "-s", "4", "ledger", user="postgres")
    idle = psycopg2.connect(host=lab.addresses[primary], **COMMON)
    idle.cursor().execute("INSERT INTO ledger VALUES (-1)")
    lab.sql(primary, "BEGIN; INSERT INTO ledger VALUES (-2); PREPARE TRANSACTION 'kept'", "ledger")
    # Forty of them, on two processors that also run everything else; they end when the server does.
    lab.docker("exec", "-d", "-u", "postgres", primary, bench, "-n", "-c", "40", "-R", "200", "-T", "120", "ledger")
    busy = "SELECT count(*) >= 40 FROM pg_stat_activity WHERE application_name = 'pgbench'"
    lab.wait_for(lambda: lab.sql(primary, busy) == "t", "40 clients are busy")
    old, new = Watch(lab.addresses[primary]), Watch(lab.addresses[standby])
    with ledger(lab) as client, old, new:
        client.wait_for_rows(lab.addresses[primary], 100)
        played = lab.play("failover", "-e", f"target={standby}")
        client.wait_for_rows(lab.addresses[standby], 100)
    idle.close()
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    assert client.longest_gap() < 5
    assert_pair(lab, standby, primary)
    lab.sql(standby, "COMMIT PREPARED 'kept'", "ledger")
    assert lab.sql(standby, "SELECT number FROM ledger WHERE number < 0", "ledger") == "-2"
    # Nothing diverged, so nothing was rewound or copied.
    assert lab.run(primary, "find", "/var/lib/postgresql", "-maxdepth", "3", "-name", "main.before-*") == ""
    assert "pg_rewind" not in played.output
    # What the old primary kept for its standby would keep WAL for ever (F35).
    assert lab.sql(primary, "SELECT count(*) FROM pg_replication_slots") == "0"
    print(f"busy: {played.seconds:.1f} s, longest gap {client.longest_gap():.3f} s, {len(client.rows)} rows")


def test_f20_the_service_address_goes_with_the_primary(lab):
    primary, standby = lab.roles()
    address = lab.variables["node_service_address"].partition("/")[0]

    def holders():
        return [node for node in lab.addresses if lab.run(node, "ip", "-o", "address", "show", "to", address)]

    assert holders() == [primary]
    with Watch(address) as service:
        lab.wait_for(service.writable, "the service address answers")
        lab.play("failover", "-e", f"target={standby}")
        moved = len(service.samples)
        lab.wait_for(lambda: len(service.samples) > moved, "the service address answers")
    assert holders() == [standby]
    assert [sample for sample in service.samples if not sample.writable] == [], "it led to a standby"
    assert_pair(lab, standby, primary)


@pytest.mark.parametrize("archiver", ["/bin/false", "/bin/sleep 12"], ids=["f04-fails", "f05-hangs"])
def test_f04_f05_the_archiver_of_the_old_primary(lab, archiver):
    primary, standby = lab.roles()
    old, new = Watch(lab.addresses[primary]), Watch(lab.addresses[standby])
    with ledger(lab) as client, old, new, lab.configured(primary, archive_command=archiver):
        client.wait_for_rows(lab.addresses[primary], 100)
        lab.sql(primary, "SELECT pg_switch_wal()")
        played = lab.play("failover", "-e", f"target={standby}")
        client.wait_for_rows(lab.addresses[standby], 50)
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    assert client.longest_gap() < 5, "the archiver held the clients up"
    assert_pair(lab, standby, primary)
    print(f"{archiver}: {played.seconds:.1f} s, longest gap {client.longest_gap():.3f} s")


def test_a_synchronous_pair_does_not_wait_for_the_old_primary(lab):
    primary, standby = lab.roles()
    wanted = ("-e", "primary_synchronous_standbys=1")
    lab.play("site", *wanted)
    old, new = Watch(lab.addresses[primary]), Watch(lab.addresses[standby])
    with ledger(lab) as client, old, new:
        client.wait_for_rows(lab.addresses[primary], 100)
        played = lab.play("failover", "-e", f"target={standby}", *wanted)
        client.wait_for_rows(lab.addresses[standby], 100)
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    first = next(row.at for row in client.rows if row.host == lab.addresses[standby])
    returned = next(sample.start for sample in old.samples if not sample.writable)
    assert first < returned, "the first commit waited until the old primary was back"
    assert lab.sql(standby, "SELECT sync_state FROM pg_stat_replication") == "sync"
    lab.play("site")
    assert_pair(lab, standby, primary)
    print(f"synchronous: {played.seconds:.1f} s, longest gap {client.longest_gap():.3f} s")


# --- two operators ---------------------------------------------------------------------------------------------------


def test_f14_two_operators_at_once(lab):
    primary, standby = lab.roles()
    with ledger(lab) as client, Watch(lab.addresses[primary]) as old, Watch(lab.addresses[standby]) as new:
        client.wait_for_rows(lab.addresses[primary], 50)
        operators = [lab.start("failover", "-e", f"target={standby}") for _ in range(2)]
        outputs = [process.communicate(timeout=1200)[0] for process in operators]
        client.wait_for_rows(lab.addresses[standby], 50)
    print(*outputs, sep="\n---\n")
    codes = sorted((process.returncode, output) for process, output in zip(operators, outputs))
    assert codes[0][0] == 0, codes[0][1]
    assert codes[1][0] != 0, "both went on"
    assert re.search(r"take_over", codes[1][1]), "the second was not told whom it waits for"
    assert missing(lab, standby, client.rows) == []
    assert both_writable(old, new) == []
    assert_pair(lab, standby, primary)
