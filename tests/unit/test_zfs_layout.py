# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_layout.py: where the datasets of a server are, and what is noted of a snapshot of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import Dataset, Pool, View
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_layout import (
    Label,
    Layout,
    prefix_of,
    read_label,
    read_layout,
    start_lsn,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_refusals import Refusal
from hypothesis import given
from hypothesis import strategies as st

PATHS = {"/data": "/pg/17", "/data/ts": "/pg/17/main/ts", "/wal": "/wal"}
LAYOUT = Layout(PATHS)
DATA = "/pg/17/main"


def view(**mountpoints: str) -> View:
    """Of tank/pg with these below it; an empty mountpoint is one that is not mounted."""
    datasets = {"": Dataset("tank/pg", "filesystem", "1", mountpoint="none")}
    for name, path in mountpoints.items():
        datasets[f"/{name}"] = Dataset(f"tank/pg/{name}", "filesystem", "2", mounted=bool(path), mountpoint=path)
    return View("db1", "tank/pg", Pool("tank", "3", "ONLINE"), (2, 3), datasets)


def test_what_is_copied_is_made_ready_beside_where_it_belongs():
    assert LAYOUT.roots == ["/pg/17", "/wal"]
    assert LAYOUT.staged(DATA) == "/pg/17.staged/main"
    assert LAYOUT.staged("/pg/17/main/ts/PG_17") == "/pg/17.staged/main/ts/PG_17"
    assert LAYOUT.staged("/wal") == "/wal.staged"
    assert [below for below, _path in LAYOUT.ordered] == ["/wal", "/data", "/data/ts"]
    with pytest.raises(Refusal, match=r"/walrus is not in what is copied"):
        LAYOUT.staged("/walrus")


@given(st.dictionaries(st.text("ab/", min_size=1).map("/x".__add__), st.just(""), min_size=1, max_size=5), st.data())
def test_two_copies_never_share_a_place(paths, data):
    layout = Layout({str(number): path for number, path in enumerate(paths)})
    one, other = (data.draw(st.sampled_from(sorted(paths))) for _ in range(2))
    assert (layout.staged(one) == layout.staged(other)) == (one == other)
    assert layout.root(one) in paths


def test_the_layout_of_a_server():
    found = read_layout(view(data="/pg/17", wal="/wal", old=""), DATA, ["/pg/17/fast"])
    assert found.paths == {"/data": "/pg/17", "/wal": "/wal"}


@pytest.mark.parametrize(
    ("mountpoints", "others", "why"),
    [
        ({"data": "/pg/16"}, [], f"{DATA} is not in tank/pg on db1 or below it"),
        ({"data": "/pg/17"}, ["/srv/fast"], "/srv/fast is not in tank/pg on db1 or below it"),
        ({"data": "/pg/17", "wal": "legacy"}, [], r"tank/pg/wal on db1 is mounted by /etc/fstab \(legacy\)"),
        ({"data": "/"}, [], "tank/pg on db1 holds the root of that host"),
        ({}, [], f"{DATA} is not in tank/pg on db1"),
    ],
)
def test_what_cannot_be_copied(mountpoints, others, why):
    with pytest.raises(Refusal, match=why):
        read_layout(view(**mountpoints), DATA, others)


LABEL = Label(
    "7384601931263912345", 2, "hotspare_db2", "0/2000028", "0/2000100", "START WAL ...\nBACKUP\n", "16384 /ts\n"
)


def test_a_label_is_written_on_one_line_and_read_again():
    written = LABEL.written()
    assert read_label(written) == LABEL
    assert written.isprintable() and " " not in written
    for other in ("", "-", "bm90IGpzb24=", "e30=", written[:-8]):
        assert read_label(other) is None


@pytest.mark.parametrize(
    ("now", "usable"),
    [
        (("7384601931263912345", 2, "hotspare_db2", "0/2000000"), True),
        (("7384601931263912345", 2, "hotspare_db2", "0/2000029"), False),  # its WAL may be gone
        (("7384601931263912345", 2, "hotspare_db2", None), False),
        (("7384601931263912345", 3, "hotspare_db2", "0/2000000"), False),
        (("7384601931263912345", 2, "hotspare_db3", "0/2000000"), False),
        (("1", 2, "hotspare_db2", "0/2000000"), False),
    ],
)
def test_a_label_is_used_while_its_wal_is_there(now, usable):
    assert LABEL.usable(*now) is usable


def test_where_a_backup_label_begins():
    assert start_lsn("START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT ...\n") == "0/2000028"
    with pytest.raises(Refusal, match="begins with 'CHECKPOINT', which is none"):
        start_lsn("CHECKPOINT")


def test_each_destination_has_a_prefix():
    assert prefix_of("db2") == "hotspare-db2"
    assert prefix_of("db 2/ä") == "hotspare-db_2__"
    assert replace(LABEL, slot="x") != LABEL
