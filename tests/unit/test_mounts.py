# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""mounts.py: what is not mounted, and belongs where data is looked for."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import mounts
from ansible_collections.hotspare.postgresql.plugins.module_utils.mounts import (
    expect_mounted,
    fstab,
    missing,
    mount_points,
    zfs_table,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import Completed, HotspareError
from hypothesis import given
from hypothesis import strategies as st

FSTAB = """# <file system> <mount point> <type>
UUID=1 / ext4 errors=remount-ro 0 1
UUID=2 none swap sw 0 0
/dev/sdb1\t/srv/big\\040disk/ ext4 defaults
LABEL=pg /srv/pg xfs noatime 0 2

broken
"""
MOUNTINFO = """22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:20 / /proc rw - proc proc rw
31 22 0:31 / /srv/big\\040disk rw - ext4 /dev/sdb1 rw
"""
ZFS = """tank\tnone\ton
tank/var\t/var\toff
tank/pg\t/var/lib/postgresql\tnoauto
tank/pg/wal\t/var/lib/postgresql/wal\ton
tank/old\tlegacy\ton
"""
PATHS = st.lists(st.sampled_from("abc"), max_size=4).map(lambda parts: "/" + "/".join(parts))


def test_what_fstab_says():
    assert fstab(FSTAB) == {"/": "UUID=1", "/srv/big disk": "/dev/sdb1", "/srv/pg": "LABEL=pg"}


def test_what_is_mounted():
    assert mount_points(MOUNTINFO) == {"/", "/proc", "/srv/big disk"}


def test_what_zfs_says():
    assert zfs_table(ZFS) == {"/var/lib/postgresql": "tank/pg", "/var/lib/postgresql/wal": "tank/pg/wal"}


@given(PATHS, st.sets(PATHS), st.sets(PATHS))
def test_only_what_lies_below_the_innermost_mount_can_be_missing(path, table, mounted):
    found = missing(path, {where: f"to {where}" for where in table}, {"/", *mounted})
    above = [where for where in ("/", *table, *mounted) if (path + "/").startswith(where.rstrip("/") + "/")]
    innermost = max(above, key=len)
    if innermost in {"/", *mounted}:
        assert found is None
    else:
        assert found == (f"to {innermost}", innermost)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """host(zfs=what it prints, or an exit code): a machine with the mounts above."""
    for name, text in (("FSTAB", FSTAB), ("MOUNTINFO", MOUNTINFO)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(mounts, name, str(tmp_path / name))
    monkeypatch.setattr(mounts, "POOLS", str(tmp_path / "zpool.cache"))

    def set_up(zfs=None):
        def run(argv, **_options):
            return (
                Completed(argv, zfs, "", "The ZFS modules are not loaded.\nTry\n", 0.0)
                if isinstance(zfs, int)
                else Completed(argv, 0, zfs, "", 0.0)
            )

        monkeypatch.setattr(mounts.shutil, "which", lambda program, path: program if zfs is not None else None)
        monkeypatch.setattr(mounts, "run", run)
        return tmp_path

    return set_up


def test_a_disk_of_fstab_that_is_not_mounted(host):
    host()
    with pytest.raises(HotspareError) as error:
        expect_mounted("/srv/pg/17/main")
    assert error.value.message == (
        "/srv/pg/17/main holds no data, but the file system LABEL=pg of /etc/fstab belongs to /srv/pg and is not "
        "mounted: mount /srv/pg, then look again"
    )
    expect_mounted("/srv/big disk/main")
    expect_mounted("/srv/other")


def test_a_dataset_that_is_not_mounted(host):
    host(zfs=ZFS)
    with pytest.raises(HotspareError) as error:
        expect_mounted("/var/lib/postgresql/17/main")
    assert "the ZFS dataset tank/pg belongs to /var/lib/postgresql and is not mounted: zfs mount tank/pg" in str(
        error.value
    )
    expect_mounted("/var/lib/other")


def test_pools_that_are_not_imported(host):
    directory = host(zfs=1)
    expect_mounted("/var/lib/postgresql")  # the programs alone are not ZFS
    (directory / "zpool.cache").touch()
    with pytest.raises(HotspareError, match=r"zfs list fails \(The ZFS modules are not loaded.\): import them"):
        expect_mounted("/var/lib/postgresql")


def test_a_host_without_fstab(host):
    (host() / "FSTAB").unlink()
    expect_mounted("/srv/pg")
