# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever users do to two pools, and wherever runs die: nothing is lost that is not ours, and a run goes on."""

from __future__ import annotations

import os
import re
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_refusals import Keep, Refusal, Want
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_send import work
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from .zfs_model import Crash, Here, Host, No, transfer

EXAMPLES = int(os.environ.get("HOTSPARE_ZFS_EXAMPLES", "60"))
TOP = "pg"
BELOW = st.sampled_from(["", "/wal", "/ts"])
SIDES = st.sampled_from(["a", "b"])
SENDER = st.sampled_from(["a", "a", "a", "b"])  # mostly the one that has something to send
DEATH = st.none() | st.none() | st.integers(0, 60)
RARELY = st.sampled_from([False, False, False, True])
OURS = re.compile(r"hotspare-\d{8}T\d{6}Z")


class Pools(RuleBasedStateMachine):
    """Two hosts of equal rank: a cutover makes the one that received the one that sends."""

    @initialize()
    def begin(self) -> None:
        self.hosts = {"a": Host("tanka"), "b": Host("tankb")}
        self.now = datetime(2026, 11, 21, 16, tzinfo=timezone.utc)
        for below in ("", "/wal"):
            self.hosts["a"].make(f"tanka/{TOP}{below}")
            self.hosts["a"].write(f"tanka/{TOP}{below}")
        self.users = 0
        self.made: set[int] = set()

    def name(self, side: str, below: str = "") -> str:
        return f"tank{side}/{TOP}{below}"

    # --- users -----------------------------------------------------------------------------------------------------

    @rule(side=SIDES, below=BELOW)
    def write(self, side: str, below: str) -> None:
        one = self.hosts[side].data.get(self.name(side, below))
        if one is not None and not (one.partial and not one.snaps):
            self.hosts[side].write(one.name)

    @rule(side=SIDES, together=st.booleans(), like_ours=st.booleans())
    def snapshot(self, side: str, together: bool, like_ours: bool) -> None:
        self.users += 1
        short = f"hotspare-20251121T1600{self.users:02d}Z" if like_ours else f"user{self.users}"
        names = [
            f"{name}@{short}"
            for name, one in self.hosts[side].data.items()
            if name.startswith(self.name(side)) and not one.partial
        ]
        for names_ in [names] if together else [[name] for name in names]:
            self.hosts[side].snapshot(*names_)

    @rule(side=SIDES, below=BELOW, number=st.integers(0, 9), bookmarked=st.booleans())
    def destroy(self, side: str, below: str, number: int, bookmarked: bool) -> None:
        """What ZFS lets a user destroy: not what is held, nor the origin of a clone."""
        host = self.hosts[side]
        one = host.data.get(self.name(side, below))
        if one is not None and number < len(one.snaps):
            snap = one.snaps[number]
            try:
                host._zfs_destroy([f"{one.name}@{snap.name}"])
            except No:
                return
            if bookmarked:
                one.bookmarks.append(snap)

    @rule(side=SIDES)
    def tablespace(self, side: str) -> None:
        name = self.name(side, "/ts")
        top = self.hosts[side].data.get(self.name(side))
        if top is not None and not top.partial and name not in self.hosts[side].data:
            self.hosts[side].make(name)

    @rule(side=SIDES, below=BELOW, number=st.integers(0, 9))
    def hold(self, side: str, below: str, number: int) -> None:
        one = self.hosts[side].data.get(self.name(side, below))
        if one is not None and number < len(one.snaps):
            one.snaps[number].holds.add("user")

    # --- runs ------------------------------------------------------------------------------------------------------

    @rule(
        side=SENDER,
        death=DEATH,
        breaks=RARELY,
        way=st.sampled_from(["fail", "rename"]),
        full=RARELY.map(lambda rarely: not rarely),
        keep=st.sampled_from([None, 0, 1, 3]),
        named=RARELY,
    )
    def send(
        self, side: str, death: int | None, breaks: bool, way: str, full: bool, keep: int | None, named: bool
    ) -> None:
        want = Want(
            recursive=True,
            in_the_way=way,
            allow_full=full,
            keep_source=Keep(keep),
            keep_target=Keep(keep),
            snapshot="named" if named else "",
        )
        self._run(side, want, death, breaks)

    @rule(side=SENDER, death=DEATH, keep=st.sampled_from([None, 0, 1]), below=BELOW)
    def diverges(self, side: str, death: int | None, keep: int | None, below: str) -> None:
        """What received is written to, as after a cutover, and receives again."""
        self.write("b" if side == "a" else "a", below)
        want = Want(recursive=True, in_the_way="rename", keep_source=Keep(keep), keep_target=Keep(keep))
        self._run(side, want, death, False)

    @rule(side=SENDER)
    def goes_on(self, side: str) -> None:
        """Whatever was left by those that died: a run that may rename arrives."""
        if self.name(side) not in self.hosts[side].data:
            return
        source = self.hosts[side]
        if any(one.partial for name, one in source.data.items() if name.startswith(self.name(side))):
            return  # it is itself a copy that is not whole
        result = self._run(side, Want(recursive=True, in_the_way="rename"), None, False)
        assert result is not None
        target = self.hosts["b" if side == "a" else "a"]
        for point in result["snapshots"]:
            there = target.data[point["dataset"].replace(f"tank{side}", target.pool, 1)]
            here = source.data[point["dataset"]]
            assert there.snaps[-1].guid == here.snaps[-1].guid == int(point["guid"])
            assert there.content == here.snaps[-1].content
            assert "hotspare" in there.snaps[-1].holds and "hotspare" in here.snaps[-1].holds
        again = Want(recursive=True, snapshot=result["snapshot"])
        assert self._run(side, again, None, False)["changed"] is False  # type: ignore[index]

    def _run(self, side: str, want: Want, death: int | None, breaks: bool) -> dict[str, Any] | None:
        source, target = self.hosts[side], self.hosts["b" if side == "a" else "a"]
        self.now += timedelta(minutes=1)
        source.now = target.now = int(self.now.timestamp())
        for host in (source, target):
            self._look(host)
        before = {host.pool: self._look(host) for host in (source, target)}
        common = self._common(side)
        left = [death]

        def dies() -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Crash

        def whole() -> bool:
            stream = target_stream()
            held = [s for one in source.data.values() for s in one.snaps if s.guid == stream and "hotspare" in s.holds]
            assert held, "it is sent without a hold"
            dies()
            return not breaks

        def target_stream() -> int:
            words = source.log[-1][2:]
            return source.send(words).guid

        result = None
        try:
            result = work(
                Here(source, "here", dies),
                Here(target, "there", dies),
                (self.name(side), f"{target.pool}/{TOP}"),
                want,
                now=self.now,
                transfer=transfer(source, target, whole),
            )
        except Refusal:
            assert want.in_the_way == "fail" or want.snapshot or not want.allow_full or self._odd(side), "refused"
            assert [self._look(host) for host in (source, target)] == list(before.values())
        except Crash:
            pass
        except HotspareError as error:
            assert breaks and "incomplete stream" in error.message
        for host in (source, target):
            self._check(host, before[host.pool])
        self._still_common(common, self._common(side))
        return result

    def _odd(self, side: str) -> bool:
        """Whether there is nothing to send."""
        data = self.hosts[side].data
        return self.name(side) not in data or any(one.partial for one in data.values())

    def _look(self, host: Host) -> dict[str, Any]:
        snaps = [snap for one in host.data.values() for snap in one.snaps]
        self.made |= {snap.guid for snap in snaps if snap.made.startswith("hotspare/")}  # its copies are as well
        return {
            # A destination that was renamed and received anew has a snapshot twice.
            "others": Counter(
                (snap.guid, snap.name)
                for snap in snaps
                if not (OURS.fullmatch(snap.name) and snap.guid in self.made and snap.holds <= {"hotspare"})
            ),
            "holds": Counter((snap.guid, tag) for snap in snaps for tag in snap.holds - {"hotspare"}),
            "written": {one.content for one in host.data.values() if one.written and not one.partial},
            "bookmarks": {snap.guid for one in host.data.values() for snap in one.bookmarks},
        }

    def _check(self, host: Host, before: dict[str, Any]) -> None:
        after = self._look(host)
        snaps = Counter((snap.guid, snap.name) for one in host.data.values() for snap in one.snaps)
        assert not before["others"] - snaps, "a snapshot that is not ours is gone"
        assert not before["holds"] - after["holds"], "a hold that is not ours is gone"
        contents = {one.content for one in host.data.values()}
        assert before["written"] <= contents, "what was written is gone"
        assert before["bookmarks"] == after["bookmarks"]

    def _common(self, side: str) -> dict[str, set[tuple[int, str]]]:
        """What both sides hold of each dataset that may be sent, in the destination or in what was renamed of it."""
        held = [
            {
                (below, snap.guid, snap.name)
                for name, one in host.data.items()
                if (match := re.fullmatch(rf"{host.pool}/{TOP}(-aside-\w+?)?(|/.*)", name))
                for below in [match[2]]
                for snap in one.snaps
                if "hotspare" in snap.holds
            }
            for host in self.hosts.values()
        ]
        top = self.name(side)
        tree = [name[len(top) :] for name in self.hosts[side].data if name == top or name.startswith(f"{top}/")]
        both = held[0] & held[1]
        return {below: {(guid, name) for of, guid, name in both if of == below} for below in tree}

    def _still_common(self, before: dict[str, set[tuple[int, str]]], after: dict[str, set[tuple[int, str]]]) -> None:
        """Each dataset keeps a base, and one of the same name if they had one: else the next stream is a full one."""
        had = [below for below, found in before.items() if found]
        assert all(after[below] for below in had), "nothing is common any more"
        if _shared(before, had):
            assert _shared(after, had), "no name is common to all any more"

    @invariant()
    def names_are_their_own(self) -> None:
        for host in getattr(self, "hosts", {}).values():
            for name, one in host.data.items():
                assert one.name == name


def _shared(common: dict[str, set[tuple[int, str]]], of: list[str]) -> set[str]:
    """Names that all of these datasets have in common with the other side."""
    names = [{name for _guid, name in common[below]} for below in of]
    return names[0].intersection(*names[1:]) if names else set()


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=EXAMPLES, stateful_step_count=20, deadline=None)
