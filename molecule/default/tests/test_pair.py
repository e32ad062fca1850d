# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What converge built, seen from outside."""

from __future__ import annotations

import pytest
import testinfra


@pytest.fixture(scope="module")
def hosts(lab):
    return {node: testinfra.get_host(f"docker://{node}") for node in lab.addresses}


def test_a_row_written_on_the_primary_is_read_on_the_standby(lab):
    lab.sql(lab.one, "CREATE TABLE IF NOT EXISTS seen (word text); TRUNCATE seen; INSERT INTO seen VALUES ('hot')")
    written = lab.sql(lab.one, "SELECT pg_current_wal_lsn()")
    lab.wait_for_replay(lab.two, written)
    assert lab.sql(lab.two, "SELECT word FROM seen") == "hot"
    assert not lab.is_primary(lab.two)


def test_it_streams_through_a_slot_of_its_own(lab):
    slot = "hotspare_" + lab.two.replace("-", "_")
    assert lab.sql(lab.one, "SELECT slot_name, slot_type, active FROM pg_replication_slots") == f"{slot}|physical|t"
    sender = "SELECT application_name, usename, host(client_addr), state, sync_state FROM pg_stat_replication"
    user = lab.variables.get("node_replication_user", "replicator")
    assert lab.sql(lab.one, sender) == f"{lab.two}|{user}|{lab.addresses[lab.two]}|streaming|async"
    assert lab.sql(lab.two, "SELECT status, slot_name FROM pg_stat_wal_receiver") == f"streaming|{slot}"
    assert lab.sql(lab.two, "SELECT count(*) FROM pg_replication_slots") == "0"


@pytest.mark.parametrize("number", [0, 1])
def test_files_belong_to_the_server_and_secrets_to_nobody_else(lab, hosts, number):
    node = list(lab.addresses)[number]
    host, etc = hosts[node], f"/etc/postgresql/{lab.version}/main"
    passfiles = host.run("ls /var/lib/postgresql/.hotspare-*.pgpass").stdout.split()
    expected = {
        lab.data: 0o700,
        **dict.fromkeys(passfiles, 0o600),
        f"{etc}/pg_hba.conf": 0o640,
        f"{etc}/conf.d/50-hotspare.conf": 0o644,
        f"{etc}/conf.d/60-hotspare-upstream.conf": 0o640,
    }
    assert len(passfiles) == 1
    for path, mode in expected.items():
        file = host.file(path)
        if path.endswith("60-hotspare-upstream.conf") and node == lab.one:
            continue  # the first primary has never followed anybody
        assert (path, file.user, file.group, oct(file.mode)) == (path, "postgres", "postgres", oct(mode))
    assert not host.file(f"{lab.data}/postgresql.auto.conf").contains("primary_conninfo")


def test_both_nodes_are_configured_for_both_directions(lab):
    rules = (
        "SELECT DISTINCT host(address::inet) FROM pg_hba_file_rules"
        " WHERE 'replication' = ANY (database) AND type LIKE 'host%'"
    )
    local = {"127.0.0.1", "::1"}  # Debian's own rules
    methods = "SELECT DISTINCT auth_method FROM pg_hba_file_rules"
    for node, other in ((lab.one, lab.two), (lab.two, lab.one)):
        assert set(lab.sql(node, rules).split()) >= {lab.addresses[other]}
        assert set(lab.sql(node, rules).split()) <= {*lab.addresses.values(), *local}
        assert set(lab.sql(node, methods).split()) <= {"peer", "scram-sha-256"}
        assert lab.sql(node, "SHOW data_checksums") == "on"
        assert lab.sql(node, "SHOW wal_level") == "replica"
        assert lab.sql(node, "SHOW password_encryption") == "scram-sha-256"
        assert lab.sql(node, "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL") == "0"
        assert lab.sql(node, "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"
    verifiers = "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolreplication AND NOT rolsuper"
    assert lab.sql(lab.one, verifiers) == "t"


def test_the_servers_are_the_services(lab, hosts):
    for host in hosts.values():
        assert host.service(lab.service).is_running


def test_a_second_run_changes_nothing_and_is_short(lab):
    before = lab.fingerprints()
    again = lab.play("site")
    assert again.changed == 0, again.output
    assert lab.differences(before) == {}
    counts = {node: again.evaluations(node) for node in lab.addresses}
    print(f"second run: {again.seconds:.1f} s, task evaluations {counts}")
    assert max(counts.values()) <= 60


@pytest.mark.parametrize(
    "playbook",
    [
        ["site"],
        ["site", "--diff"],
        ["status", "--diff"],
        ["failover", "--diff"],
        ["rebuild_standby", "--diff", "-e", "node=hotspare-default-db2", "-e", "confirm=hotspare-default-db2"],
    ],
)
def test_check_mode_changes_nothing(lab, playbook):
    before = lab.fingerprints()
    lab.play(*playbook, "--check")
    assert lab.differences(before) == {}
    assert lab.is_primary(lab.one)


def test_check_mode_tells_of_a_change_and_does_not_make_it(lab):
    path = f"/etc/postgresql/{lab.version}/main/conf.d/50-hotspare.conf"
    text = lab.run(lab.two, "cat", path)
    lab.run(lab.two, "tee", path, stdin=text + "work_mem = '5MB'\n")
    before = lab.fingerprints()
    told = lab.play("site", "--check", "--diff")
    assert told.changed > 0
    assert "-work_mem" in told.output
    assert lab.differences(before) == {}
    made = lab.play("site")
    assert made.changed > 0
    assert lab.run(lab.two, "cat", path) == text
