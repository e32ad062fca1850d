# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rebuild_zfs.py and rebuild_zfs_look.py against OpenZFS in memory; on real pools: molecule/zfs."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import rebuild_files, rebuild_zfs, rebuild_zfs_look
from ansible_collections.hotspare.postgresql.plugins.module_utils.rebuild import Source
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import Completed, HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import (
    Dataset,
    Login,
    Pool,
    Side,
    Snapshot,
    View,
    look,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_layout import EMPTIED, Label, Layout, Zfs
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_send import work

from .zfs_model import Crash, Here, Host, transfer

LABEL = Label("7", 1, "hotspare_db2", "0/2000028", "0/2000100", "START WAL LOCATION: ...\n", "")
SLOT = {"restart_lsn": "0/2000000"}
SOURCE = Source("db1:5432", system_identifier="7", timeline=1, slot=SLOT, may_label=True)
ZFS = Zfs("tank/pg", "tank/pg", Login("db1", 22, "root", "/key", "/hosts"), "hotspare-db2")


class Hosts:
    """The primary with a server on two datasets, and a node that may receive them."""

    def __init__(self, where: Path) -> None:
        self.top = where
        self.there, self.here = Host(), Host()
        self.data = f"{where}/pg/17/main"
        self.there.make("tank/pg")
        for name, path in (("data", f"{where}/pg/17"), ("wal", f"{where}/wal")):
            self.there.make(f"tank/pg/{name}", own={"mountpoint": path}, mounted=True)
            self.there.write(f"tank/pg/{name}")

    def assess(self, **more):
        return rebuild_zfs_look.assess(ZFS, replace(SOURCE, **more), self.data, "hotspare_db2")

    def labelled(self, name: str, label: Label = LABEL) -> None:
        every = [f"{one}@{name}" for one in self.there.data if one.startswith("tank/pg")]
        self.there.snapshot(*every, made="hotspare-db2/1")
        self.there.data["tank/pg"].snap(name).label = label.written()


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    found = Hosts(tmp_path)

    @contextlib.contextmanager
    def sides(_zfs):
        yield Here(found.there, "db1"), Here(found.here, "db2")

    monkeypatch.setattr(rebuild_zfs_look, "sides", sides)
    return found


def test_all_of_it_is_sent_where_nothing_is(hosts):
    before = repr([hosts.there.data, hosts.here.data])
    copy = hosts.assess()
    assert (copy.obstacle, copy.kind) == (None, "full")
    assert copy.reason.startswith("a snapshot of the primary is sent (about ")
    assert repr([hosts.there.data, hosts.here.data]) == before


def test_a_snapshot_of_an_interrupted_run_is_used_while_its_wal_is_there(hosts):
    hosts.labelled("hotspare-db2-20260101T000000Z")
    hosts.labelled("hotspare-db2-20260101T000001Z", replace(LABEL, timeline=2))
    theirs = look(Here(hosts.there, "db1"), "tank/pg", recursive=True)
    ours = look(Here(hosts.here, "db2"), "tank/pg", recursive=True)
    name, label = rebuild_zfs_look.labelled(ZFS, SOURCE, "hotspare_db2", theirs, ours)
    assert (name, label) == ("hotspare-db2-20260101T000000Z", LABEL)
    for later in (replace(SOURCE, slot={"restart_lsn": "0/3000000"}), replace(SOURCE, slot=None)):
        assert rebuild_zfs_look.labelled(ZFS, later, "hotspare_db2", theirs, ours) is None
    assert rebuild_zfs_look.labelled(replace(ZFS, prefix="nightly"), SOURCE, "hotspare_db2", theirs, ours) is None


@pytest.mark.parametrize("canmount", ["noauto", "on"])
def test_a_label_is_not_for_a_dataset_that_a_server_may_have_run_on_since(hosts, canmount):
    name = "hotspare-db2-20260101T000000Z"
    hosts.labelled(name)
    theirs = look(Here(hosts.there, "db1"), "tank/pg", recursive=True)
    guid = theirs.datasets[""].named(name).guid
    arrived = Dataset("tank/pg", "filesystem", "1", snapshots=(Snapshot("tank/pg", name, guid, 1),))
    data = Dataset("tank/pg/data", "filesystem", "2", canmount=canmount)
    ours = View("db2", "tank/pg", Pool("tank", "3", "ONLINE"), (2, 3), {"": arrived, "/data": data})
    found = rebuild_zfs_look.labelled(ZFS, SOURCE, "hotspare_db2", theirs, ours)
    assert (found is None) is (canmount == "on")
    # One that has not arrived is sent to whatever is there, which is set aside.
    ours = replace(ours, datasets={"": replace(arrived, snapshots=()), "/data": data})
    assert rebuild_zfs_look.labelled(ZFS, SOURCE, "hotspare_db2", theirs, ours) is not None


def test_what_earlier_rebuilds_of_the_primary_set_aside_is_not_looked_at(hosts):
    """The key of this node may not read it."""
    hosts.there.make("tank/pg-aside-20260101T000000Z")
    hosts.there.log.clear()
    assert hosts.assess().obstacle is None
    assert not [words for words in hosts.there.log if "aside" in " ".join(words)]


@pytest.mark.parametrize(("records", "good"), [("4096", False), ("8192", True), ("131072", True)])
def test_with_full_page_writes_off_a_record_holds_whole_pages(hosts, records, good):
    hosts.there.data["tank/pg/data"].own["recordsize"] = records
    assert hosts.assess(full_page_writes=True).obstacle is None
    obstacle = hosts.assess(full_page_writes=False).obstacle
    assert obstacle is None if good else "tank/pg/data on db1 has a recordsize of 4" in str(obstacle)


def test_no_standby_is_made_of_what_is_encrypted(hosts):
    hosts.there.data["tank/pg/wal"].encryption = "aes-256-gcm"
    assert hosts.assess().obstacle == "tank/pg/wal on db1 is encrypted, and of such a one only base backups are made"


@pytest.mark.parametrize("linked", [False, True])
def test_what_the_primary_has_still_to_archive_is_its_work(tmp_path, linked):
    layout = Layout({"/data": f"{tmp_path}/pg", **({"/wal": f"{tmp_path}/wal"} if linked else {})})
    directory, live = Path(layout.staged(f"{tmp_path}/pg/17/main")), tmp_path / "wal/main/archive_status/LIVE.ready"
    wal = Path(layout.staged(f"{tmp_path}/wal/main")) if linked else directory / "pg_wal"
    for path in (directory, live.parent, wal):
        path.mkdir(parents=True)
    live.touch()  # of another server, where the copy is to be
    if linked:
        (directory / "pg_wal").symlink_to(f"{tmp_path}/wal/main")
    rebuild_zfs.leave_archiving(str(directory), layout)
    status = wal / "archive_status"
    status.mkdir()
    for name in ("000000010000000000000001.ready", "000000010000000000000002.done", "00000002.history.ready"):
        (status / name).touch()
    rebuild_zfs.leave_archiving(str(directory), layout)
    assert live.exists()
    assert sorted(path.name for path in status.iterdir()) == [
        "000000010000000000000001.done",
        "000000010000000000000002.done",
        "00000002.history.done",
    ]


def test_another_cluster_in_the_same_dataset_is_an_obstacle(hosts):
    other = Path(hosts.top, "pg", "17", "other")
    hosts.here.make("tank/pg")
    hosts.here.make("tank/pg/data", own={"mountpoint": f"{hosts.top}/pg/17"}, mounted=True)
    for kept in ("main", "main.before-20260101T000000Z"):
        (other.parent / kept / "global").mkdir(parents=True)
        (other.parent / kept / "global" / "pg_control").touch()
    assert "another cluster" not in str(hosts.assess().obstacle)
    (other / "global").mkdir(parents=True)
    (other / "global" / "pg_control").touch()
    assert hosts.assess().obstacle.startswith(f"another cluster lies in the same dataset, {other}: ")


@pytest.mark.parametrize(
    ("mark", "ours"),
    [
        ("s/7/1/hotspare_db2", True),
        ("s/7/2/hotspare_db2", False),
        ("s/8/1/hotspare_db2", False),
        ("s", False),
        ("", False),
        ("-", False),
    ],
)
def test_a_placed_copy_is_of_the_primary_as_it_is_now(monkeypatch, mark, ours):
    monkeypatch.setattr(Side, "run", lambda _side, *words, check: Completed(list(words), 0, f"{mark}\n", "", 0.0))
    assert rebuild_zfs_look.placed(ZFS, SOURCE, "hotspare_db2") is ours


def test_wal_that_is_elsewhere_is_noticed_before_anything_is_sent(hosts):
    inside, elsewhere = (replace(ZFS, source_wal=path) for path in (f"{hosts.top}/wal/main", "/nvme/wal"))
    assert rebuild_zfs_look.assess(inside, SOURCE, hosts.data, "hotspare_db2").obstacle is None
    obstacle = rebuild_zfs_look.assess(elsewhere, SOURCE, hosts.data, "hotspare_db2").obstacle
    assert str(obstacle).startswith("/nvme/wal is not in tank/pg on db1 or below it")


def test_a_run_that_died_at_the_swap_is_continued(hosts):
    """Renamed, and mounted still."""
    name = "tank/pg-aside-20260101T000000Z"
    Path(hosts.top, "pg/17/main").mkdir(parents=True)
    hosts.here.make(name)
    hosts.here.make(f"{name}/data", own={"mountpoint": f"{hosts.top}/pg/17"}, mounted=True)
    copy = hosts.assess()
    assert (copy.obstacle, copy.begun) == (None, True)


def test_what_lies_where_the_copy_belongs_is_an_obstacle(hosts):
    place = Path(hosts.top, "pg", "17")
    place.mkdir(parents=True)
    assert hosts.assess().obstacle is None
    (place / "main").mkdir()
    assert hosts.assess().obstacle == f"{place} is no dataset below tank/pg, and something lies in it: move that away"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            {"may_label": False},
            "the replication account may not execute pg_backup_start and pg_backup_stop on the primary",
        ),
        (
            {"may_label": None},
            "the replication account may not execute pg_backup_start and pg_backup_stop on the primary",
        ),
        ({"tablespaces": ("/srv/fast",)}, "/srv/fast is not in tank/pg on db1 or below it"),
    ],
)
def test_obstacles(hosts, more, why):
    assert hosts.assess(**more).obstacle.startswith(why)


def test_a_pool_without_room_is_an_obstacle(hosts):
    hosts.here.available = 1000
    assert "has room for 1000 B" in hosts.assess().obstacle


@pytest.fixture
def copy(tmp_path):
    """A data directory that was copied while the server ran, and its layout."""
    directory = tmp_path / "17.staged" / "main"
    for name in (*EMPTIED, "pg_tblspc", "pg_wal", "base", "pg_replslot/hotspare_db2"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    for name in (
        "PG_VERSION",
        "postmaster.pid",
        "recovery.signal",
        "backup_label.old",
        "pg_replslot/hotspare_db2/state",
    ):
        (directory / name).write_text("x")
    (directory / "pg_notify" / "0000").write_text("x")
    return directory, Layout({"/data": f"{tmp_path}/17", "/wal": f"{tmp_path}/wal"})


def test_a_copy_keeps_nothing_that_is_the_primarys(copy):
    directory, _layout = copy
    rebuild_files.tidy(str(directory))
    left = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
    assert left == sorted(["PG_VERSION", "base", "pg_tblspc", "pg_wal", *EMPTIED])
    rebuild_files.tidy(str(directory))


def test_what_a_copy_leads_to_is_left_alone(copy, tmp_path):
    """Whoever may write on the primary may make links, and root works on the copy of them here."""
    directory, _layout = copy
    outside = tmp_path / "etc"
    outside.mkdir()
    (outside / "passwd").touch()
    for name in ("pg_dynshmem", "pg_notify"):
        rebuild_files.remove_tree(str(directory / name))
    (directory / "pg_dynshmem").symlink_to(outside)
    os.chown(directory, 4242, 4242)
    rebuild_files.tidy(str(directory))
    assert (outside / "passwd").exists()
    for name in ("pg_dynshmem", "pg_notify"):
        status = os.lstat(directory / name)
        assert (stat.S_ISDIR(status.st_mode), status.st_uid) == (True, 4242)


def test_no_link_leads_root_out_of_a_copy(copy, tmp_path):
    directory, layout = copy
    (directory / "global").mkdir()
    (directory / "global" / "pg_control").touch()
    (directory / "pg_wal" / "000000010000000000000002").touch()
    rebuild_zfs._require_in_copy(str(directory), str(directory.parent))
    with pytest.raises(HotspareError, match="17.staged/main leads to .*/17.staged/main by a symbolic link of the prim"):
        rebuild_zfs._require_in_copy(str(directory), f"{tmp_path}/other")
    for path in (directory / "postgresql.auto.conf", directory / "pg_wal" / "archive_status"):
        path.symlink_to(tmp_path)
        with pytest.raises(HotspareError, match=f"{path.name} of the primary is a symbolic link or a pipe"):
            rebuild_zfs._require_whole(str(directory), layout, 17)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(HotspareError, match=f"{path.name} of the primary is a symbolic link or a pipe"):
            rebuild_zfs._require_whole(str(directory), layout, 17)
        path.unlink()
    rebuild_zfs._require_whole(str(directory), layout, 17)
    (directory / "pg_tblspc" / "16384").symlink_to(f"{tmp_path}/17/../elsewhere")
    (tmp_path / "elsewhere" / "PG_17_202406281").mkdir(parents=True)
    with pytest.raises(HotspareError, match="elsewhere leads to .*/elsewhere by a symbolic link of the primary"):
        rebuild_zfs._require_whole(str(directory), layout, 17)


def test_what_the_copy_leads_to_was_copied_too(copy, tmp_path):
    directory, layout = copy

    def require():
        rebuild_zfs._require_whole(str(directory), layout, 17)

    with pytest.raises(HotspareError, match="the copy has no data directory at .*; give both nodes the same paths"):
        require()
    (directory / "global").mkdir()
    (directory / "global" / "pg_control").touch()
    with pytest.raises(HotspareError, match="pg_wal of the primary .* is empty in what was copied"):
        require()
    (directory / "pg_wal" / "000000010000000000000002").touch()
    require()
    (directory / "pg_wal" / "000000010000000000000002").rename(tmp_path / "000000010000000000000002")
    (directory / "pg_wal").rmdir()
    (directory / "pg_wal").symlink_to(f"{tmp_path}/wal/17")
    with pytest.raises(HotspareError, match=r"pg_wal of the primary leads to .*/wal/17, which is not in what"):
        require()
    (tmp_path / "wal.staged" / "17").mkdir(parents=True)
    with pytest.raises(HotspareError, match="is empty in what was copied"):
        require()
    (tmp_path / "000000010000000000000002").rename(tmp_path / "wal.staged" / "17" / "000000010000000000000002")
    require()
    (directory / "pg_tblspc" / "16384").symlink_to(f"{tmp_path}/17/fast")
    (directory.parent / "fast").mkdir()
    with pytest.raises(
        HotspareError, match="16384 of the primary .* is empty in what was copied, so something else is"
    ):
        require()
    (directory.parent / "fast" / "PG_17_202406281").mkdir()
    require()
    (directory / "pg_tblspc" / "16385").symlink_to("/srv/fast")
    with pytest.raises(HotspareError, match="16385 of the primary leads to /srv/fast"):
        require()
    (directory / "pg_tblspc" / "16385").unlink()
    (directory.parent / "other" / "global").mkdir(parents=True)
    (directory.parent / "other" / "global" / "pg_control").touch()
    with pytest.raises(HotspareError, match=r"another cluster lies in the same dataset, .*/17.staged/other: "):
        require()


def test_the_copy_gets_this_hosts_account(copy, tmp_path):
    directory, _layout = copy
    (tmp_path / "wal.staged").mkdir()
    (tmp_path / "wal.staged" / "0001").write_text("x")
    mine = pwd.getpwnam("nobody")
    theirs = 4242
    every = [*directory.parent.rglob("*"), *(tmp_path / "wal.staged").rglob("*"), tmp_path / "wal.staged"]
    for path in every:
        os.lchown(path, theirs, theirs)
    os.lchown(directory / "base", 0, 0)
    roots = [str(directory.parent), str(tmp_path / "wal.staged")]
    rebuild_files.own("nobody", str(directory), roots)
    assert {os.lstat(path).st_uid for path in every} == {mine.pw_uid, 0}
    assert os.lstat(directory / "base").st_uid == 0
    rebuild_files.own("nobody", str(directory), roots)


class Mounting:
    """A host whose datasets are mounted by zfs mount, and not by zfs set."""

    def __init__(self, *mounted: str) -> None:
        self.mounted, self.said = set(mounted), []

    def run(self, *words: str, **_options: object) -> Completed:
        self.said.append(" ".join(words))
        if words[1] == "mount":
            self.mounted.add(words[-1])
        out = ("yes" if words[-1] in self.mounted else "no") if words[1] == "get" else ""
        return Completed(list(words), 0, f"{out}\n", "", 0.0)


def received(top: str, **below: Dataset) -> View:
    return View("db2", top, Pool("tank", "3", "ONLINE"), (2, 3), {f"/{name}": one for name, one in below.items()})


def test_it_is_marked_before_it_is_mounted_outer_datasets_first(tmp_path):
    layout = Layout({"/wal": f"{tmp_path}/17/main/pg_wal", "/data": f"{tmp_path}/17"})
    here = Mounting()
    rebuild_zfs._place(here, received("tank/pg"), layout, "s/7/1/slot")
    assert [words for words in here.said if " get " not in words] == [
        "zfs set hotspare:placed=s/7/1/slot tank/pg",
        f"zfs set mountpoint={tmp_path}/17 canmount=on tank/pg/data",
        "zfs mount tank/pg/data",
        f"zfs set mountpoint={tmp_path}/17/main/pg_wal canmount=on tank/pg/wal",
        "zfs mount tank/pg/wal",
    ]


def test_what_a_dead_run_has_not_mounted_is_mounted(monkeypatch):
    data = Dataset("tank/pg/data", "filesystem", "1", mounted=True, mountpoint="/pg/17", canmount="on")
    wal = Dataset("tank/pg/wal", "filesystem", "2", mountpoint="/wal.staged", canmount="noauto")
    theirs = received("tank/pg", data=data, wal=replace(wal, mounted=True, mountpoint="/wal"))
    here, job = Mounting("tank/pg/data"), SimpleNamespace(real="/pg/17/main")
    monkeypatch.setattr(rebuild_zfs, "sides", lambda _zfs: contextlib.nullcontext(("there", here)))
    ours = {"now": received("tank/pg", data=data, wal=wal)}
    monkeypatch.setattr(rebuild_zfs, "look", lambda side, _name, **_options: ours["now"] if side is here else theirs)
    rebuild_zfs.mount_again(ZFS, job, SOURCE)
    assert [words for words in here.said if " get " not in words] == [
        "zfs set mountpoint=/wal canmount=on tank/pg/wal",
        "zfs mount tank/pg/wal",
    ]
    ours["now"] = received("tank/pg", data=data)
    with pytest.raises(HotspareError, match="tank/pg/wal is gone since it was received"):
        rebuild_zfs.mount_again(ZFS, job, SOURCE)


def test_a_dataset_that_somebody_else_holds_keeps_all_holds(monkeypatch):
    held = Snapshot("tank/pg-aside-x", "a", "1", 1, userrefs=1, holds=frozenset({"hotspare-db2"}))
    foreign = Snapshot("tank/pg-aside-x", "b", "2", 2, userrefs=1, holds=frozenset({"hotspare-db2", "nightly"}))
    said = []

    def run(_side, *words, check=True):
        said.append(words)
        return Completed(list(words), 0, "", "", 0.0)

    monkeypatch.setattr(Side, "run", run)
    view = received("tank/pg-aside-x", x=Dataset("tank/pg-aside-x", "filesystem", "1", snapshots=(held, foreign)))
    monkeypatch.setattr(rebuild_zfs, "look", lambda *_words, **_options: view)
    with pytest.raises(HotspareError, match="@b is held by nightly, which is not ours"):
        rebuild_zfs.remove_dataset("tank/pg-aside-x")
    assert said == []


@pytest.mark.parametrize("death", range(0, 60, 2))
def test_a_swap_that_is_killed_anywhere_is_continued(hosts, death):
    """A node in use gets the next snapshot. Its command runs, or not, and then nothing more is done."""
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    here, there = Here(hosts.here, "db2"), Here(hosts.there, "db1")
    names = (ZFS.source_dataset, ZFS.dataset)

    def send(node: Side, name: str, minute: int) -> dict:
        told = rebuild_zfs_look.want(ZFS, "sent", name)
        flow = transfer(hosts.there, hosts.here)
        return work(there, node, names, told, now=now.replace(minute=minute), transfer=flow)

    send(here, "first", 1)
    for below, path in (("data", f"{hosts.top}/pg/17"), ("wal", f"{hosts.top}/pg/17/main/pg_wal")):
        one = hosts.here.data[f"tank/pg/{below}"]
        one.own.update(mountpoint=path, canmount="on")
        one.mounted = True
        hosts.here.write(one.name)
        hosts.there.write(one.name)
    left = [death]

    def dies() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    with contextlib.suppress(Crash):
        send(Here(hosts.here, "db2", dies), "second", 2)
    assert hosts.assess().obstacle is None
    told = send(here, "second", 3)
    assert told["kind"] in ("incremental", "none")
    for below in ("", "/data", "/wal"):
        assert hosts.here.data[f"tank/pg{below}"].snaps[-1].guid == hosts.there.data[f"tank/pg{below}"].snaps[-1].guid
    asides = [one for name, one in hosts.here.data.items() if "-aside-" in name]
    assert [one.own["canmount"] for one in asides if one.name.count("/") > 1] == ["noauto", "noauto"]
    assert not any(one.mounted for one in asides)
