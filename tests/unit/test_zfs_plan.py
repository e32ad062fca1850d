# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_plan.py and zfs_refusals.py: what is done, in which order, and what is refused with which sentence."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import look
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_plan import Keep, Plan, Send, make_plan
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_refusals import Refusal, Want, require_room
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_send import work

from .zfs_model import TOKENS, Here, Host, Stream, transfer

NOW = datetime(2026, 11, 21, 16, 0, 0, tzinfo=timezone.utc)
TREE = ("tank/pg", "tank/pg/wal")


class Pair:
    """A source with a tree of two, and a destination that may receive it."""

    def __init__(self) -> None:
        self.source, self.target = Host(), Host("backup")
        for name in TREE:
            self.source.make(name)
            self.source.write(name)
        self.runs = 0
        self.whole = lambda: True

    @property
    def now(self) -> datetime:
        return NOW.replace(minute=self.runs)

    def plan(self, **want: Any) -> Plan:
        wanted = Want(**{"recursive": True, **want})
        sides = Here(self.source, "db1"), Here(self.target, "db2")
        views = [
            look(side, name, recursive=wanted.recursive, copied=wanted.copied, mounts=True, asides=True)
            for side, name in zip(sides, self.names)
        ]
        return make_plan(views[0], views[1], wanted, NOW.replace(minute=self.runs + 1))

    names = ("tank/pg", "backup/pg")

    def run(self, check: bool = False, **want: Any) -> dict[str, Any]:
        self.runs += 1
        self.source.now = self.target.now = int(self.now.timestamp())
        return work(
            Here(self.source, "db1"),
            Here(self.target, "db2"),
            self.names,
            Want(**{"recursive": True, **want}),
            check_mode=check,
            now=self.now,
            transfer=transfer(self.source, self.target, lambda: self.whole()),
        )

    def refused(self, **want: Any) -> str:
        """The sentence; nothing was changed, and check mode says the same."""
        before = self.state()
        said = []
        for check in (True, False):
            with pytest.raises(Refusal) as caught:
                self.run(check, **want)
            said.append(caught.value.message)
            assert self.state() == before
        self.runs -= 2
        assert len(set(said)) == 1
        return said[0]

    def state(self) -> str:
        return repr([self.source.data, self.target.data])

    def same(self) -> bool:
        return all(
            self.source.data[name].snaps[-1].content == self.target.data[name.replace("tank", "backup", 1)].content
            for name in TREE
        )


@pytest.fixture
def pair() -> Pair:
    return Pair()


def acts(plan: Plan) -> list[str]:
    return [step.kind if isinstance(step, Send) else f"{step.act} {step.side}" for step in plan.steps]


# --- what is done ----------------------------------------------------------------------------------------------------


def test_a_first_time(pair):
    plan = pair.plan(properties={"canmount": "noauto", "mountpoint": "/srv/pg"}, copied=("recordsize",))
    assert acts(plan) == [
        "snapshot source",
        "hold source",
        "full",
        "full",
        "mark destination",
        "hold destination",
    ]
    first, second = plan.sends
    assert first.send == ("zfs", "send", "-Lec", "tank/pg@hotspare-20261121T160100Z")
    guid = pair.source.data["tank/pg"].guid
    assert " ".join(first.receive) == (
        "zfs receive -s -u -o canmount=noauto -o mountpoint=/srv/pg -o recordsize=131072 "
        f"-o hotspare:from={guid} -o hotspare:flags=Lec backup/pg"
    )
    assert "canmount=noauto" in second.receive and "mountpoint=/srv/pg" not in second.receive
    assert plan.steps[0].argv[:3] == ("zfs", "snapshot", "-r")


def test_and_then_only_what_changed(pair):
    assert pair.run()["kind"] == "full"
    for name in TREE:
        pair.source.write(name)
    plan = pair.plan()
    assert acts(plan) == [
        "snapshot source",
        "hold source",
        "incremental",
        "incremental",
        "mark destination",
        "hold destination",
        "release destination",
        "release source",
    ]
    result = pair.run()
    assert (result["kind"], result["changed"], result["sent_bytes"]) == ("incremental", True, 8192)
    assert pair.same()


def test_a_named_one_that_is_there_changes_nothing(pair):
    first = pair.run(snapshot="seed")
    assert [one["dataset"] for one in first["snapshots"]] == list(TREE)
    assert pair.run(snapshot="seed")["changed"] is False
    assert pair.run(True, snapshot="seed")["steps"] == []


def test_check_mode_estimates_and_changes_nothing(pair):
    before = pair.state()
    result = pair.run(True)
    assert (result["changed"], result["estimated_bytes"], result["sent_bytes"]) == (True, 16384, 0)
    assert pair.state() == before
    pair.run(snapshot="seed")
    pair.source.write("tank/pg")
    assert pair.run(True)["estimated_bytes"] == 4096


def test_a_bookmark_is_as_good_as_a_snapshot_on_the_source(pair):
    pair.run()
    for name in TREE:
        one = pair.source.data[name]
        one.bookmarks, one.snaps = one.snaps, []
    plan = pair.plan()
    assert {send.base.partition("#")[2] for send in plan.sends} == {"hotspare-20261121T160100Z"}
    assert pair.run()["kind"] == "incremental"


def test_what_broke_goes_on(pair):
    pair.whole = lambda: False
    with pytest.raises(Exception, match="incomplete stream"):
        pair.run()
    pair.whole = lambda: True
    result = pair.run()
    first = "hotspare-20261121T160100Z"
    assert [(one["kind"], one["snapshot"].partition("@")[2]) for one in result["transfers"]] == [
        ("resumed", first),
        ("full", first),
        ("incremental", "hotspare-20261121T160200Z"),
        ("incremental", "hotspare-20261121T160200Z"),
    ]
    assert pair.same()
    assert result["kind"] == "resumed"


def test_a_dead_token_of_ours_is_given_up(pair):
    pair.whole = lambda: False
    with pytest.raises(Exception, match="incomplete stream"):
        pair.run()
    for name in TREE:
        pair.source.data[name].snaps.clear()
    pair.whole = lambda: True
    assert acts(pair.plan())[0] == "abort destination"
    assert pair.run()["kind"] == "full"
    assert pair.same()


def test_a_child_that_is_new_comes_in_full(pair):
    pair.run()
    pair.source.make("tank/pg/ts")
    result = pair.run()
    assert [one["kind"] for one in result["transfers"]] == ["incremental", "full", "incremental"]
    assert "backup/pg/ts" in pair.target.data


@pytest.mark.parametrize("trouble", ["written", "snapshots", "foreign"])
def test_what_is_in_the_way_is_renamed_and_kept(pair, trouble):
    pair.run()
    pair.target.write("backup/pg")
    if trouble == "snapshots":
        pair.target.snapshot("backup/pg@own", "backup/pg/wal@own")
    if trouble == "foreign":
        for name in TREE:
            pair.source.data[name].snaps.clear()
    mine = pair.target.data["backup/pg"].content
    sentence = pair.refused()
    assert {
        "written": "backup/pg on db2 was written to since hotspare-20261121T160100Z (4.0 kB)",
        "snapshots": "backup/pg on db2 has snapshots of its own since hotspare-20261121T160100Z: own",
        "foreign": "backup/pg on db2 has no snapshot in common with tank/pg on db1, or none that all",
    }[trouble] in sentence
    assert "`in_the_way: rename`" in sentence
    result = pair.run(in_the_way="rename")
    aside = "backup/pg-aside-20261121T160200Z"
    assert result["renamed"] == aside
    assert result["kind"] == ("full" if trouble == "foreign" else "incremental")
    assert pair.target.data[aside].content == mine
    assert pair.target.data[aside].own["canmount"] == "noauto"
    assert pair.same()
    assert pair.run()["kind"] == "incremental"


def test_what_received_sends_back_what_changed(pair):
    """After a cutover. Each received snapshot has a transaction group of its own."""
    pair.run(snapshot="seed")
    pair.target.write("backup/pg")
    pair.source.write("tank/pg")
    pair.source, pair.target, pair.names = pair.target, pair.source, ("backup/pg", "tank/pg")
    back = pair.run(in_the_way="rename")
    assert (back["kind"], back["renamed"]) == ("incremental", "tank/pg-aside-20261121T160200Z")
    assert {one["base"].partition("@")[2] for one in back["transfers"]} == {"seed"}
    assert pair.source.data["backup/pg"].content == pair.target.data["tank/pg"].content


def test_a_copy_is_of_one_moment_as_its_original_was(pair):
    pair.run(snapshot="seed")
    third = Host("third")
    pair.source, pair.target, pair.names = pair.target, third, ("backup/pg", "third/pg")
    assert len({pair.source.data[name].snaps[0].txg for name in ("backup/pg", "backup/pg/wal")}) == 2
    assert pair.run(snapshot="seed")["kind"] == "full"
    pair.source.data["backup/pg"].snaps[0].made = "hotspare/another"
    pair.names = ("backup/pg", "third/more")
    assert "were not taken at once" in pair.refused(snapshot="seed")


def test_what_is_in_use_stays_where_it_is(pair):
    pair.run()
    pair.target.write("backup/pg")
    pair.target.data["backup/pg/wal"].busy = True
    before = pair.state()
    with pytest.raises(HotspareError, match="zfs rename on db2 failed: .* is busy; stop what uses it"):
        pair.run(in_the_way="rename")
    assert pair.state() == before


def mounted(pair: Pair) -> None:
    """The destination is in use; what is inside of the other comes first by name."""
    for name, path in (("backup/pg", "/srv/17"), ("backup/pg/wal", "/srv/17/main/pg_wal")):
        pair.target.data[name].mounted = True
        pair.target.data[name].own.update(mountpoint=path, canmount="on")
        pair.target.write(name)


def test_what_is_renamed_is_not_mounted_any_more_from_the_inside_out(pair):
    pair.run()
    mounted(pair)
    # Outer ones come last by name, too.
    pair.target.data["backup/pg"].own["mountpoint"], pair.target.data["backup/pg/wal"].own["mountpoint"] = (
        "/srv/17/main/pg_wal",
        "/srv/17",
    )
    plan = pair.plan(in_the_way="rename")
    first = acts(plan).index("rename destination")
    # A boot between the two would mount them where they were: both are told in one session.
    assert acts(plan)[first : first + 4] == ["rename destination", "quiet destination", *["unmount destination"] * 2]
    assert pair.run(in_the_way="rename")["kind"] == "incremental"
    assert not any(one.mounted for one in pair.target.data.values())


def test_a_run_that_was_killed_when_it_had_renamed_is_continued(pair):
    pair.run()
    mounted(pair)
    pair.target._zfs_rename(["backup/pg", "backup/pg-aside-20261121T160100Z"])
    assert acts(pair.plan(in_the_way="rename"))[:3] == ["quiet destination", *["unmount destination"] * 2]
    assert pair.run(in_the_way="rename")["kind"] == "incremental"
    assert pair.same()


def test_runs_that_fail_do_not_fill_the_pool_of_the_source(pair):
    pair.run()
    pair.whole = lambda: False
    for number in range(5):
        if number % 2:  # nothing at all has arrived
            pair.target.data["backup/pg"].partial = None
        for name in TREE:
            pair.source.write(name)
        with pytest.raises(HotspareError, match="incomplete stream"):
            pair.run(keep_source=Keep(count=1))
        pair.target.data["backup/pg"].partial = None
        for snap in (snap for name in TREE for snap in pair.source.data[name].snaps[1:]):
            snap.holds.discard("hotspare")  # as where nothing has arrived
    assert len(pair.source.data["tank/pg"].snaps) <= 3
    pair.whole = lambda: True
    assert pair.run(keep_source=Keep(count=1))["kind"] == "incremental"
    assert len(pair.source.data["tank/pg"].snaps) == 1


def test_what_was_sent_right_before_a_run_was_killed_is_ours(pair):
    pair.run()
    pair.run()
    killed = pair.target.data["backup/pg"].snaps[-1].name
    for name in ("backup/pg", "backup/pg/wal"):
        pair.target.data[name].snaps[-1].made = ""
    pair.run(keep_target=Keep(count=1))
    assert killed not in {snap.name for snap in pair.target.data["backup/pg/wal"].snaps}


def test_a_snapshot_that_is_not_there_yet_is_estimated(pair):
    pair.run()
    for name in TREE:
        pair.source.write(name)
        pair.source.snapshot(f"{name}@theirs")
        pair.source.write(name)
    assert pair.run(True)["estimated_bytes"] == 2 * (4096 + 4096)


def test_what_is_encrypted_there_gets_no_embedded_blocks(pair):
    pair.target.data["backup"].encryption = "aes-256-gcm"
    assert {send.send[2] for send in pair.plan().sends} == {"-Lc"}
    pair.run()
    for name in ("backup/pg", "backup/pg/wal"):
        pair.target.data[name].encryption = "aes-256-gcm"
    assert {send.send[2] for send in pair.plan().sends} == {"-Lc"}


@pytest.mark.parametrize("way", ["fail", "rename"])
def test_a_name_that_is_taken_there_is_refused_before_anything_is_taken(pair, way):
    pair.run(snapshot="seed")
    for name in TREE:
        pair.source.data[name].snaps.clear()
    assert "has another snapshot seed, of another GUID" in pair.refused(snapshot="seed", in_the_way=way)


def test_a_snapshot_of_somebody_on_a_branch_that_was_begun(pair):
    pair.run()
    pair.target.write("backup/pg")
    aside = "backup/pg-aside-20261121T160100Z"
    pair.target._zfs_rename(["backup/pg", aside])
    pair.target._zfs_clone(["-o", "canmount=noauto", f"{aside}@{pair.target.data[aside].snaps[-1].name}", "backup/pg"])
    pair.target.snapshot("backup/pg@theirs")
    assert pair.run(in_the_way="rename")["kind"] == "incremental"
    assert pair.same()
    assert any(name.endswith("@theirs") for name in pair.target.names())


@pytest.mark.parametrize("way", ["fail", "rename"])
def test_what_another_source_of_ours_has_sent_in_part(pair, way):
    """As where the primary was cut off in the middle of it, and another one sends now."""
    pair.whole = lambda: False
    with pytest.raises(HotspareError, match="incomplete stream"):
        pair.run()
    pair.whole = lambda: True
    third = Host()
    for name in TREE:
        third.make(name)
        third.write(name)
    pair.source = third
    if way == "fail":
        assert "that is not ours" in pair.refused()
    else:
        assert acts(pair.plan(in_the_way=way))[0] == "abort destination"
        assert pair.run(in_the_way=way)["kind"] == "full"


def test_a_branch_that_a_run_had_begun_is_finished(pair):
    """Renamed, and then killed: before the clone, and between the clone and its promotion."""
    pair.run()
    pair.target.write("backup/pg")
    aside = "backup/pg-aside-20261121T160100Z"
    pair.target._zfs_rename(["backup/pg", aside])
    assert acts(pair.plan(in_the_way="rename"))[:3] == ["quiet destination", "clone destination", "promote destination"]
    base = pair.target.data[aside].snaps[-1].name
    pair.target._zfs_clone(["-o", "canmount=noauto", f"{aside}@{base}", "backup/pg"])
    plan = pair.plan(in_the_way="rename")
    assert acts(plan)[:4] == ["quiet destination", "promote destination", "clone destination", "promote destination"]
    assert pair.run(in_the_way="rename")["kind"] == "incremental"
    assert pair.same()


def test_retention(pair):
    for name in ("daily", "hotspare-mine"):
        pair.source.snapshot(*(f"{dataset}@{name}" for dataset in TREE))
    for _ in range(4):
        pair.run(keep_source=Keep(count=2), keep_target=Keep(count=3))
    left = [snap.name for snap in pair.source.data["tank/pg"].snaps]
    assert left == ["daily", "hotspare-mine", "hotspare-20261121T160300Z", "hotspare-20261121T160400Z"]
    assert len(pair.target.data["backup/pg/wal"].snaps) == 3
    held = [snap.name for snap in pair.target.data["backup/pg"].snaps if snap.holds]
    assert held == ["hotspare-20261121T160400Z"]


def test_retention_by_age_and_what_it_never_takes(pair):
    pair.run()
    pair.run()
    pair.run()
    for name in TREE:
        for one in pair.source.data[name].snaps:
            one.creation -= 10 * 86400
    first, second, _third = pair.source.data["tank/pg"].snaps
    second.holds.add("somebody")
    with pytest.raises(HotspareError, match="cannot be meant: say 0 or more"):
        Keep(count=-1)
    result = pair.run(state="pruned", keep_source=Keep(days=7), keep_target=Keep(days=7))
    assert {one["snapshot"] for one in result["pruned"]} == {f"{name}@{first.name}" for name in TREE}
    assert pair.run(state="pruned", keep_source=Keep(days=7))["changed"] is False
    assert acts(pair.plan(state="pruned", keep_source=Keep(count=0), keep_target=Keep(count=0))) == [
        "destroy destination",
        "destroy destination",
    ]


def test_the_origin_of_a_clone_stays(pair):
    pair.run()
    pair.run()
    first = pair.source.data["tank/pg/wal"].snaps[0]
    pair.source.make("tank/clone", origin=f"tank/pg/wal@{first.name}")
    assert pair.run(state="pruned", keep_source=Keep(count=1))["pruned"] == []


def test_a_snapshot_only_and_its_release(pair):
    assert acts(pair.plan(state="snapshotted", snapshot="seed")) == ["snapshot source", "hold source"]
    pair.run(state="snapshotted", snapshot="seed")
    assert pair.run(state="snapshotted", snapshot="seed")["changed"] is False
    pair.run(state="released", snapshot="seed")
    assert not any(snap.holds for name in TREE for snap in pair.source.data[name].snaps)
    with pytest.raises(Refusal, match="name its `snapshot`"):
        pair.run(state="released")


def test_holds_that_nobody_needs_are_shown(pair):
    pair.run(state="snapshotted", snapshot="forgotten")
    result = pair.run(snapshot="seed")
    assert [one["snapshot"] for one in result["stale_holds"]] == [f"{name}@forgotten" for name in TREE]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_snapshot_that_is_not_of_one_moment(pair):
    for name in TREE:
        pair.source.snapshot(f"{name}@seed")
    assert "were not taken at once (transaction groups: tank/pg@seed in " in pair.refused(snapshot="seed")
    pair.source.data["tank/pg/wal"].snaps.clear()
    assert "tank/pg/wal on db1 has no snapshot seed, though those around it have" in pair.refused(snapshot="seed")


def test_no_base_and_no_full(pair):
    assert "and `allow_full` is false" in pair.refused(allow_full=False)


@pytest.mark.parametrize("dead", [False, True])
def test_a_token_of_another(pair, dead):
    pair.source.snapshot("tank/pg@theirs")
    guid = pair.source.data["tank/pg"].snaps[0].guid
    pair.target.make("backup/pg")
    stream = Stream("tank/pg@theirs", 1 if dead else guid, 0, 0)
    TOKENS["1-theirs"] = stream
    pair.target.data["backup/pg"].partial = (stream, "1-theirs")
    assert "backup/pg on db2 holds a half-received stream of tank/pg@theirs that is not ours" in pair.refused()
    assert "that is not ours" in pair.refused(in_the_way="rename")


def test_a_dataset_without_snapshots_is_nothing_received(pair):
    pair.target.make("backup/pg")
    assert "backup/pg on db2 is there and has no snapshot" in pair.refused()


def test_back_in_time(pair):
    pair.run(snapshot="old")
    pair.run(snapshot="new")
    assert pair.run(snapshot="old")["changed"] is False
    for one in ("backup/pg", "backup/pg/wal"):
        del pair.target.data[one].snaps[0]
    for way in ("fail", "rename"):
        assert "has new already, which is newer than old" in pair.refused(snapshot="old", in_the_way=way)


def test_encryption(pair):
    one = pair.source.data["tank/pg/wal"]
    one.encryption, one.keystatus = "aes-256-gcm", "available"
    assert "tank/pg/wal on db1 is encrypted: set `raw: true`" in pair.refused()
    one.keystatus = "unavailable"
    assert "the key of tank/pg/wal on db1 is not loaded" in pair.refused(raw=False)
    pair.target.features["encryption"] = "disabled"
    assert "which the pool backup on db2 cannot store" in pair.refused(raw=True)
    pair.target.features["encryption"] = "enabled"
    assert [send.send[2] for send in pair.plan(raw=True).sends] == ["-Lec", "-w"]
    pair.run(raw=True)
    one.keystatus = "available"
    assert "backup/pg/wal on db2 was received encrypted (raw), and a chain cannot change that" in pair.refused(
        raw=False
    )


def test_pools_and_places(pair):
    pair.target.health = "DEGRADED"
    assert "the pool backup on db2 is DEGRADED, not ONLINE" in pair.refused()
    pair.target.health = "ONLINE"
    pair.target.available = 4096
    assert "backup/pg on db2 has room for 4.0 kB, and 16.0 kB would be sent" in pair.refused()
    pair.target.version = "zfs-0.8.6\n"
    assert "OpenZFS on db2 says 0.8, and 2.1 is needed" in pair.refused()
    pair.names = ("tank/pg", "backup")
    pair.target.version = pair.source.version
    assert "backup on db2 is a whole pool" in pair.refused()
    pair.names = ("tank/pg", "backup/far/pg")
    assert "there is no backup/far on db2, in which backup/far/pg is to be" in pair.refused()
    pair.names = ("tank/nothing", "backup/pg")
    assert "there is no dataset tank/nothing on db1" in pair.refused()
    pair.source.version = "nothing"
    assert "says no version" in pair.refused()


def test_to_itself(pair):
    pair.target = pair.source
    for target, said in (("tank/pg/copy", "is inside of"), ("tank/pg", "contains")):
        pair.names = ("tank/pg", target)
        assert said in pair.refused()


def test_what_the_snapshot_would_miss(pair):
    for name, path in (("tank/pg", "/srv/pg"), ("tank/logs", "/srv/pg/logs")):
        pair.source.data.get(name) or pair.source.make(name)
        pair.source.data[name].own["mountpoint"] = path
        pair.source.data[name].mounted = True
    assert "tank/logs on db1 is mounted at /srv/pg/logs, inside of tank/pg, and would be missing" in pair.refused()
    del pair.source.data["tank/logs"]
    wal = pair.source.data["tank/pg/wal"]
    wal.mounted, wal.own["mountpoint"] = True, "/srv/pg/wal"
    assert "set `recursive: true`" in pair.refused(recursive=False)


def test_a_volume_and_a_half_received_source(pair):
    pair.source.make("tank/pg/swap", kind="volume")
    assert "tank/pg/swap on db1 is a volume" in pair.refused()
    del pair.source.data["tank/pg/swap"]
    pair.source.data["tank/pg"].partial = (Stream("x@y", 1, 0, 0), "1-source")
    TOKENS["1-source"] = Stream("x@y", 1, 0, 0)
    assert "tank/pg on db1 has itself not been received to its end" in pair.refused()


def test_flags_stay_those_of_the_chain(pair):
    pair.run()
    pair.target.features["embedded_data"] = "disabled"
    assert "was received with the flags -Lec of zfs send" in pair.refused()
    pair.target.features["embedded_data"] = "enabled"
    pair.target.data["backup/pg"].own["hotspare:flags"] = "L"
    assert [send.send[2] for send in pair.plan().sends] == ["-L", "-Lec"]
    pair.source.features["zstd_compress"] = "active"
    pair.target.features["zstd_compress"] = "disabled"
    fresh = Pair()
    fresh.source.features, fresh.target.features = pair.source.features, pair.target.features
    assert {send.send[2] for send in fresh.plan().sends} == {"-Le"}
    fresh.source.features["large_dnode"] = "active"
    fresh.target.features["large_dnode"] = "disabled"
    assert "may have large dnodes" in fresh.refused()


def test_names(pair):
    assert "'a b' is no name for a snapshot" in pair.refused(snapshot="a b")
    assert "'a/b' is no name for a snapshot" in pair.refused(prefix="a/b")
    pair.source.snapshot(*(f"{name}@hotspare-20261121T160100Z" for name in TREE))
    with pytest.raises(Refusal, match="has a snapshot hotspare-20261121T160100Z already"):
        pair.run()


def test_room(pair):
    view = look(Here(pair.target, "db2"), "backup/pg", recursive=True)
    require_room(view, view.available)
    with pytest.raises(Refusal, match="make room in the pool backup"):
        require_room(replace(view, available=1), 2)
