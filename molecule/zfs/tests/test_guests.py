# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pair on OpenZFS: where its files lie, and that it survives what happens to machines."""

from __future__ import annotations

import pytest


def streams(lab, primary):
    return lab.sql(primary, "SELECT state FROM pg_stat_replication") == "streaming"


def test_data_on_real_openzfs(lab, guests):
    for node in lab.addresses:
        assert "zfs-kmod-" in lab.run(node, "zfs", "version")
        assert lab.run(node, "findmnt", "-no", "FSTYPE,SOURCE", "-T", lab.data).split() == ["zfs", "tank/pg/data"]


@pytest.mark.soak
def test_cable_pulled(lab, guests):
    """The standby is cut off, the primary goes on; both meet again without anybody's help."""
    primary, standby = lab.roles()
    lab.sql(primary, "CREATE TABLE IF NOT EXISTS cable (n integer)")
    with guests.cut_off(standby):
        lab.sql(primary, "INSERT INTO cable VALUES (1)")
        lsn = lab.sql(primary, "SELECT pg_current_wal_flush_lsn()")
        assert lab.sql(standby, f"SELECT pg_last_wal_receive_lsn() < '{lsn}'") == "t"
    lab.wait_for(lambda: streams(lab, primary), "the standby streams again", 180)
    lab.wait_for_replay(standby, lsn)


@pytest.mark.soak
def test_power_cut(lab, guests):
    """A standby whose power was cut imports its pools, mounts its datasets, starts its server and streams."""
    primary, standby = lab.roles()
    boot = lab.run(standby, "cat", "/proc/sys/kernel/random/boot_id")
    guests.cut_power(standby)
    lab.sql(primary, "CREATE TABLE power AS SELECT generate_series(1, 10000) AS n")
    lsn = lab.sql(primary, "SELECT pg_current_wal_flush_lsn()")
    guests.start()
    assert lab.run(standby, "cat", "/proc/sys/kernel/random/boot_id") != boot
    lab.wait_for(lambda: streams(lab, primary), "the standby streams again", 180)
    lab.wait_for_replay(standby, lsn)
    assert lab.sql(standby, "SELECT count(*) FROM power") == "10000"
