# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_copy.py: what is noted of a snapshot, which one is whole, and that backups and rebuilds never share a name."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import replace

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import (
    SNAPSHOT_NAME,
    Dataset,
    Pool,
    Snapshot,
    View,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_copy import (
    PREFIX,
    TEXTS,
    Note,
    alone,
    choose,
    read_note,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_layout import prefix_of
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_serve import Serve, permit
from hypothesis import given
from hypothesis import strategies as st

NOTE = Note(
    node="db2",
    role="standby",
    system_identifier="7",
    version=17,
    account="postgres",
    bin_directory="/usr/lib/postgresql/17/bin",
    data_directory="/srv/data/main",
    paths={"/data": "/srv/data", "/wal": "/srv/wal"},
    libraries="pg_stat_statements",
    lsn="0/5000060",
    taken=1.5,
)


PART = st.text(st.characters(exclude_characters="/\0\n", exclude_categories=["Cs"]), min_size=1)
PATHS = st.lists(PART.filter(lambda part: part not in (".", "..")), min_size=1).map(lambda parts: f"/{'/'.join(parts)}")
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT, TEXT, st.dictionaries(st.just("") | PATHS, PATHS), PATHS)
def test_a_note_is_read_as_it_was_written(node, libraries, paths, directory):
    note = replace(NOTE, node=node, libraries=libraries, paths=paths, data_directory=directory)
    written = note.written()
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", written)
    assert read_note(written) == note


@pytest.mark.parametrize("text", ["-", "", "e30=", "W10=", "bm90IGpzb24=", "%%%", base64.b64encode(b"[" * 6000)])
def test_what_is_no_note_is_none(text):
    assert read_note(text) is None


OUT = [
    "/../../../etc/cron.d",
    "/srv/../../etc",
    "/srv/..",
    "/srv/./data",
    "/srv//data",
    "/srv/data/",
    "//etc",
    "/",
    "",
    "srv",
    "../etc",
    "/srv/a\nb",
    "/srv/a\0b",
    None,
    1,
    ["/srv"],
]


@pytest.mark.parametrize("path", OUT)
def test_a_path_that_leads_elsewhere_is_in_no_note_of_ours(path):
    """Root mounts datasets there, below a directory of its own: `..` would lead out of that."""
    assert read_note(replace(NOTE, paths={**NOTE.paths, "/data": path}).written()) is None
    assert read_note(replace(NOTE, data_directory=path).written()) is None


@given(st.lists(st.sampled_from(["/", ".", "..", "a", "\n"])).map("".join))
def test_whatever_a_path_is_it_stays_inside(path):
    note = read_note(replace(NOTE, paths={"": path}, data_directory=path).written())
    assert note is None or os.path.normpath(f"/mnt{path}") == f"/mnt{path}"


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name in TEXTS for value in (None, 1, ["x"], "a\0b")),
        *({"version": value} for value in ("17", "../../../srv", 17.0, True, None)),
        *({"taken": value} for value in ("1", True, None, -1.0, float("nan"), float("inf"), 10**400)),
        *({"paths": value} for value in (None, [], "/srv", [["", "/srv"]])),
        *({"paths": {name: "/srv"}} for name in ("data", "..", "/..", "/../x", "/a/../b")),
    ],
)
def test_a_field_of_another_type_is_in_no_note_of_ours(changes):
    assert read_note(replace(NOTE, **changes).written()) is None
    assert read_note(NOTE.written()) == NOTE


@given(st.text(min_size=1))
def test_a_backup_is_never_taken_for_what_a_rebuild_of_some_node_made(node):
    moment = r"-\d{8}T\d{6}Z"
    assert SNAPSHOT_NAME.fullmatch(PREFIX)
    assert prefix_of(node) != PREFIX
    assert not re.fullmatch(re.escape(prefix_of(node)) + moment, f"{PREFIX}-20261122T030000Z")
    assert not re.fullmatch(re.escape(PREFIX) + moment, f"{prefix_of(node)}-20261122T030000Z")


def copy_of(*names: str, moment: str = "m", lacks: tuple[str, ...] = (), made: str = PREFIX) -> View:
    """Three datasets; `lacks`: DATASET@NAME that did not arrive."""

    def of(below: str) -> Dataset:
        full = f"vault/pg/db2{below}"
        found = [
            Snapshot(full, name, f"{below}{name}", number, made=made, moment=f"{moment}{number}")
            for number, name in enumerate(names)
            if f"{below}@{name}" not in lacks
        ]
        return Dataset(full, "filesystem", below, snapshots=tuple(found))

    return View("here", "vault/pg/db2", Pool("vault", "1", "ONLINE"), (2, 3), {b: of(b) for b in ("", "/data", "/wal")})


def test_the_newest_that_is_whole_is_chosen():
    notes = {"a": NOTE, "b": NOTE, "c": NOTE}
    found = choose(copy_of("a", "b", "c"), notes)
    assert (str(found), found.below) == ("vault/pg/db2@c", ("", "/data", "/wal"))
    assert choose(copy_of("a", "b", "c", lacks=("/wal@c",)), notes).name == "b", "it did not arrive to its end"
    assert choose(copy_of("a", "b", "c"), {"a": NOTE}).name == "a", "nobody knows how the others are started"
    assert choose(copy_of("a", made="hotspare-db2"), notes) is None
    assert choose(copy_of(), notes) is None


def test_datasets_of_different_moments_are_not_one_snapshot():
    view = copy_of("a")
    (wal,) = view.datasets["/wal"].snapshots
    other = replace(view.datasets["/wal"], snapshots=(replace(wal, moment="other"),))
    assert choose(replace(view, datasets={**view.datasets, "/wal": other}), {"a": NOTE}) is None


def test_two_do_not_work_at_once(tmp_path):
    path = str(tmp_path / "lock")
    busy = pytest.raises(HotspareError, match=r"a test is under way already, by process \d+: wait")
    with alone(path, "a test"), busy, alone(path, "a test"):
        pass
    with alone(path, "a test"):
        pass


def test_a_key_that_may_receive_may_note_what_it_sent():
    config = Serve(PREFIX, receive=("vault/pg/db2",))
    words = ["zfs", "set", f"hotspare:restore={NOTE.written()}"]
    permit(config, [[*words, f"vault/pg/db2@{PREFIX}-20261122T030000Z"]])
    for wrong in ("vault/pg/db2", "vault/pg/db2@other", f"vault/pg/db1@{PREFIX}-20261122T030000Z"):
        with pytest.raises(HotspareError, match="may not run"):
            permit(config, [[*words, wrong]])
