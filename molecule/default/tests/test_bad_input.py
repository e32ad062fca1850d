# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users do wrong, and what goes wrong around them: one clear sentence, and nothing was touched."""

from __future__ import annotations

import json

import pytest

ONE, TWO = "hotspare-default-db1", "hotspare-default-db2"


@pytest.fixture(scope="module")
def untouched(lab):
    """What the nodes must be like after each of the refusals in a row."""
    return lab.fingerprints()


def refused(lab, untouched, playbook, *args, says):
    """The playbook fails, says each of `says` in its messages, changes nothing on either node, shows no traceback."""
    play = lab.play(playbook, *args, ok=False)
    text = " ".join(play.messages)
    for words in says:
        assert words in text, play.output
    assert "Traceback" not in play.output
    assert play.changed == 0, play.output
    assert lab.differences(untouched) == {}


@pytest.mark.parametrize(
    ("playbook", "variables", "says"),
    [
        ("failover", ["target=db9"], ["db9", TWO]),
        ("failover", ["mode=force"], ["force", "planned", "forced"]),
        ("failover", ["mode=forced", f"target={TWO}"], [ONE]),
        ("rebuild_standby", [], ["node"]),
        ("rebuild_standby", ["node=db9", "confirm=db9"], ["db9", TWO]),
        ("rebuild_standby", [f"node={TWO}"], ["confirm", TWO]),
        ("rebuild_standby", [f"node={TWO}", f"confirm={ONE}"], ["confirm", TWO]),
        ("rebuild_standby", [f"node={ONE}", f"confirm={ONE}"], [ONE, "primary"]),
        ("site", ["node_version=99"], ["99"]),
        ("site", ["node_replication_password="], ["node_replication_password"]),
        ("site", ["cluster_group=nobody"], ["nobody"]),
        ("site", ["node_layout=gentoo"], ["node_layout", "gentoo"]),
        ("site", ["node_port=99999999"], ["99999999"]),
        ("status", ["cluster_group=nobody"], ["nobody"]),
        ("site", ["ansible_user=nobody", "ansible_become=false"], ["become"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_wrong_variables(lab, untouched, playbook, variables, says):
    refused(lab, untouched, playbook, *(word for pair in variables for word in ("-e", pair)), says=says)


def test_versions_that_differ_between_nodes(lab, untouched):
    versions = {ONE: lab.version, TWO: lab.version - 1}
    variables = {"versions": versions, "node_version": "{{ versions[inventory_hostname] }}"}
    refused(lab, untouched, "site", "-e", json.dumps(variables), says=[str(version) for version in versions.values()])


def test_the_primary_as_target_is_no_cutover(lab, untouched):
    assert lab.play("failover", "-e", f"target={ONE}").changed == 0
    assert lab.differences(untouched) == {}


@pytest.fixture
def instead_of_the_standby(lab):
    """Moves the standby's data directory aside for the test."""
    lab.run(TWO, "systemctl", "stop", lab.service)
    lab.run(TWO, "mv", lab.data, f"{lab.data}.aside")
    yield
    lab.run(TWO, "rm", "-rf", lab.data)
    lab.run(TWO, "mv", f"{lab.data}.aside", lab.data)
    lab.run(TWO, "systemctl", "start", lab.service)
    lab.wait_for_replay(TWO, lab.sql(ONE, "SELECT pg_current_wal_lsn()"))


def refused_without_standby(lab, playbook, *args, says):
    before = lab.fingerprints()
    play = lab.play(playbook, *args, ok=False)
    for words in says:
        assert words in " ".join(play.messages), play.output
    assert play.changed == 0
    assert lab.differences(before) == {}
    assert lab.is_primary(ONE)


def test_a_data_directory_of_another_cluster(lab, instead_of_the_standby):
    initdb = f"/usr/lib/postgresql/{lab.version}/bin/initdb"
    lab.run(TWO, initdb, "-D", lab.data, "-A", "peer", user="postgres")
    says = [ONE, TWO, "system identifier"]
    refused_without_standby(lab, "site", says=says)
    refused_without_standby(lab, "rebuild_standby", "-e", f"node={TWO}", "-e", f"confirm={TWO}", says=says)


def test_a_data_directory_with_somebodys_files(lab, instead_of_the_standby):
    lab.run(TWO, "mkdir", lab.data)
    lab.run(TWO, "tee", f"{lab.data}/diary", stdin="dear diary")
    refused_without_standby(lab, "site", says=[TWO, lab.data])
    refused_without_standby(lab, "rebuild_standby", "-e", f"node={TWO}", "-e", f"confirm={TWO}", says=[lab.data])


def test_a_disk_too_small_for_the_seed(lab):
    place = lab.data.rpartition("/")[0]
    lab.run(TWO, "systemctl", "stop", lab.service)
    lab.run(TWO, "mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", place)
    lab.run(TWO, "chown", "postgres:", place)
    try:
        refused_without_standby(lab, "site", says=["make room"])
        refused_without_standby(lab, "rebuild_standby", "-e", f"node={TWO}", "-e", f"confirm={TWO}", says=["make room"])
    finally:
        lab.run(TWO, "umount", place)
        lab.run(TWO, "systemctl", "start", lab.service)
    lab.wait_for_replay(TWO, lab.sql(ONE, "SELECT pg_current_wal_lsn()"))


def test_a_standby_that_is_frozen(lab):
    pid = lab.run(TWO, "head", "-n1", f"{lab.data}/postmaster.pid").strip()
    before = lab.fingerprints()
    lab.run(TWO, "kill", "-STOP", pid)
    try:
        site = lab.play("site", ok=False)
        planned = lab.play("failover", ok=False)
        forced = lab.play("failover", "-e", "mode=forced", "-e", f"target={TWO}", ok=False)
        status = lab.status()
    finally:
        lab.run(TWO, "kill", "-CONT", pid)
    for play, name in ((site, TWO), (planned, TWO), (forced, ONE)):
        assert play.changed == 0
        assert name in " ".join(play.messages)
    assert status["unknown"] == [TWO]
    assert status["safe"] is False
    assert lab.differences(before) == {}


def test_a_machine_that_is_frozen(lab):
    before = lab.fingerprints()
    lab.docker("pause", TWO)
    try:
        site = lab.play("site", ok=False)
        rebuild = lab.play("rebuild_standby", "-e", f"node={TWO}", "-e", f"confirm={TWO}", ok=False)
        status = lab.status()
    finally:
        lab.docker("unpause", TWO)
    assert TWO in " ".join(site.messages)
    assert TWO in " ".join(rebuild.messages)
    assert (site.changed, rebuild.changed) == (0, 0)
    assert status["unknown"] == [TWO]
    lab.wait_for_replay(TWO, lab.sql(ONE, "SELECT pg_current_wal_lsn()"))
    # The standby comes back to its slot by itself.
    assert {key: value for key, value in lab.differences(before).items() if not key.endswith(": catalog")} == {}


def test_a_machine_that_is_down(lab):
    before = lab.fingerprints(ONE)
    lab.docker("stop", TWO)
    try:
        site = lab.play("site", ok=False)
        failover = lab.play("failover", "-e", f"target={TWO}", ok=False)
        table = lab.play("status")
    finally:
        lab.restart_container(TWO)
    assert (site.changed, failover.changed) == (0, 0)
    assert TWO in " ".join(site.messages)
    assert "unknown" in next(line for line in table.output.splitlines() if TWO in line and "unknown" in line)
    assert {key: value for key, value in lab.differences(before).items() if not key.endswith(": catalog")} == {}
    lab.wait_for_replay(TWO, lab.sql(ONE, "SELECT pg_current_wal_lsn()"))
