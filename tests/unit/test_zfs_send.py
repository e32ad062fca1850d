# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_send.py: what is run, what is told meanwhile, and what is checked of what has arrived."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_send
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import Login, Stage
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_refusals import Want
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_send import BUFFERED, WORTHWHILE, work
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_stream import require_plain

from .zfs_model import Here, Host, transfer


class Both:
    def __init__(self) -> None:
        self.source, self.target = Host(), Host("backup")
        self.source.make("tank/pg")
        self.sides = Here(self.source, "db1"), Here(self.target, "db2")
        self.flow = transfer(self.source, self.target)

    def run(self, **options: Any) -> dict[str, Any]:
        want = Want(**{"snapshot": "seed", **options.pop("want", {})})
        return work(*self.sides, ("tank/pg", "backup/pg"), want, **{"transfer": self.flow, **options})


@pytest.fixture
def both() -> Both:
    return Both()


def test_the_result(both):
    found = both.run()
    guid = str(both.source.data["tank/pg"].snaps[0].guid)
    assert (found["changed"], found["snapshot"], found["kind"]) == (True, "seed", "full")
    assert found["snapshots"] == [{"dataset": "tank/pg", "guid": guid, "createtxg": 102}]
    assert (found["estimated_bytes"], found["sent_bytes"], found["pruned"], found["renamed"]) == (8192, 4096, [], None)
    (stream,) = found["transfers"]
    assert (stream["dataset"], stream["kind"], stream["guid"], stream["base"]) == ("backup/pg", "full", guid, None)
    assert found["steps"][0].startswith("source: zfs snapshot -o hotspare:made=hotspare/")


@pytest.mark.parametrize("whole", [WORTHWHILE - 1, WORTHWHILE])
def test_a_stream_that_will_be_long_is_estimated_by_zfs_send(both, whole):
    both.source.referenced = whole
    assert both.run()["estimated_bytes"] == (whole if whole < WORTHWHILE else 4096)


def test_a_bookmark_that_is_newer_than_all_snapshots_is_a_base(both):
    """zfs send estimates nothing back in time; how much was written since the bookmark nobody says."""
    both.source.snapshot("tank/pg@old")
    both.run()
    seed = both.source.data["tank/pg"].snaps.pop()
    both.source.data["tank/pg"].bookmarks.append(seed)
    both.source.write("tank/pg")
    planned = both.run(want={"snapshot": "next"}, check_mode=True)
    assert (planned["kind"], planned["estimated_bytes"]) == ("incremental", None)
    found = both.run(want={"snapshot": "next"})
    assert (found["kind"], found["transfers"][0]["base"]) == ("incremental", "tank/pg#seed")


def test_it_looks_at_another_host_and_at_this_one_at_once(both, monkeypatch):
    met = threading.Barrier(2, timeout=10)
    for side in both.sides:

        def answer(words, answer=side.host.answer):
            if words == ("zfs", "version") and not met.broken:
                met.wait()
            return answer(words)

        monkeypatch.setattr(side.host, "answer", answer)
    both.sides[1].login = Login("db2", 22, "root", "/key", "/known")
    assert both.run()["kind"] == "full"
    # Whichever fails, it is told as before.
    both.target.data.clear()
    both.source.data.clear()
    with pytest.raises(HotspareError, match=r"there is no dataset tank/pg on db1"):
        both.run()


def test_how_far_it_is(both, tmp_path):
    path = tmp_path / "status.json"
    seen = []

    def flow(before, after, tell):
        tell(1024)
        seen.append(json.loads(path.read_text(encoding="utf-8")))
        return both.flow_(before, after, tell)

    both.flow_ = both.flow
    both.run(status_file=str(path), transfer=flow)
    (one,) = seen
    assert (one["state"], one["sent_bytes"], one["estimated_bytes"]) == ("sending", 1024, 8192)
    assert (one["dataset"], one["snapshot"], one["number"], one["of"]) == ("backup/pg", "seed", 1, 1)
    assert one["seconds_left"] >= 0
    assert json.loads(path.read_text(encoding="utf-8"))["state"] == "done"


def test_one_that_fails_says_so_and_lets_go_of_what_never_began(both, tmp_path):
    path = tmp_path / "status.json"

    def flow(before, after, tell):
        tell(0)
        raise HotspareError("the network is gone; run this again")

    with pytest.raises(HotspareError, match="the network is gone") as caught:
        both.run(status_file=str(path), transfer=flow)
    assert caught.value.facts["changed"] is True
    said = json.loads(path.read_text(encoding="utf-8"))
    assert (said["state"], said["error"]) == ("failed", "the network is gone; run this again")
    (snap,) = both.source.data["tank/pg"].snaps
    assert snap.holds == set()


def test_what_was_interrupted_stays_held(both):
    with pytest.raises(HotspareError, match="incomplete stream"):
        both.run(transfer=transfer(both.source, both.target, lambda: False))
    (snap,) = both.source.data["tank/pg"].snaps
    assert snap.holds == {"hotspare"}


@pytest.mark.parametrize("lasts", [False, True])
def test_a_receive_that_lost_its_sender_is_waited_for(both, lasts, monkeypatch):
    """It had not ended when we looked."""
    monkeypatch.setattr(zfs_send, "BUSY_PAUSE", 0.01)
    with pytest.raises(HotspareError):
        both.run(transfer=transfer(both.source, both.target, lambda: False))
    sent = []

    def flow(before, after, tell):
        sent.append(before)
        if lasts or len(sent) < 4:
            raise HotspareError(
                "it failed", stderr='destination backup/pg contains partially-complete state from "-s".'
            )
        return both.flow(before, after, tell)

    if lasts:
        with pytest.raises(HotspareError) as caught:
            both.run(transfer=flow, patience=0.1)
        assert "which lost its sender, is still at work on " in caught.value.message
    else:
        assert both.run(transfer=flow)["kind"] == "resumed"
    assert len(sent) > 2


@pytest.mark.parametrize("wrong", ["other", "token", "gone"])
def test_what_arrived_is_read_back(both, wrong):
    both.run(want={"snapshot": "base"})
    both.source.write("tank/pg")

    def flow(before, after, tell):
        sent = both.flow(before, after, tell)
        one = both.target.data["backup/pg"]
        if wrong == "other":
            one.snaps[-1].guid += 1
        elif wrong == "gone":
            one.snaps.pop()
        else:
            one.partial = (None, "1-more")
        return sent

    with pytest.raises(HotspareError, match="backup/pg@seed on db2 is not tank/pg@seed .*: nothing was released"):
        both.run(transfer=flow)
    assert both.source.data["tank/pg"].snaps[0].holds == {"hotspare"}


def test_a_snapshot_that_is_not_of_one_moment_is_not_sent(both, monkeypatch):
    both.source.make("tank/pg/wal")

    def torn(words):
        for one in ("tank/pg", "tank/pg/wal"):
            both.source.snapshot(f"{one}@seed")

    monkeypatch.setattr(both.source, "_zfs_snapshot", torn)
    with pytest.raises(HotspareError, match="were not taken at once"):
        both.run(want={"recursive": True})
    assert "backup/pg" not in both.target.data


class Far(Here):
    """A host of the model that is reached by ssh; `filters` are installed there."""

    def __init__(self, host: Host, where: str, filters: set[str]) -> None:
        super().__init__(host, where)
        self.login = Login(where, 22, "root", "/key", "/known")
        self.filters = filters

    def has(self, program: str) -> bool:
        return program in self.filters

    def stages(self, pipeline):
        return [Stage(f"ssh {self.where}", ("ssh", " | ".join(" ".join(words) for words in pipeline)))]


class Near(Far):
    def __init__(self, host: Host, where: str, filters: set[str]) -> None:
        super().__init__(host, where, filters)
        self.login = None

    def stages(self, pipeline):
        return Here.stages(self, pipeline)


@pytest.mark.parametrize("push", [True, False])
@pytest.mark.parametrize(
    ("size", "filters", "packed", "sent", "received"),
    [
        (BUFFERED, {"zstd", "mbuffer"}, False, "zstd", "zstd mbuffer"),
        (BUFFERED, {"zstd", "mbuffer"}, True, "", "mbuffer"),
        (BUFFERED - 1, {"zstd", "mbuffer"}, True, "", ""),
        (WORTHWHILE, {"zstd", "mbuffer"}, False, "zstd", "zstd"),
        (BUFFERED, set(), False, "", ""),
        (WORTHWHILE - 1, {"zstd", "mbuffer"}, False, "", ""),
    ],
)
def test_filters(both, monkeypatch, push, size, filters, packed, sent, received):
    ends = (Near, Far) if push else (Far, Near)
    both.sides = tuple(end(side.host, side.where, filters) for end, side in zip(ends, both.sides))
    if not packed:
        both.source.features["lz4_compress"] = "active"
        both.target.features = {}
    both.source.referenced = size
    monkeypatch.setattr(both.source, "_zfs_send", lambda words: f"size\t{size}\n")
    seen = []

    def flow(before, after, tell, **checked):
        assert checked == ({} if push else {"head": require_plain}), "what another host sends is looked at here"
        seen.append(([" ".join(stage.argv) for stage in before], [" ".join(stage.argv) for stage in after]))
        raise HotspareError("that is enough")

    with pytest.raises(HotspareError, match="that is enough"):
        both.run(transfer=flow)
    ((before, after),) = seen
    everything = " | ".join([*before, *after])
    programs = [text.split()[0] for text in everything.replace("ssh ", "").split(" | ")]
    assert programs == ["zfs", *sent.split(), *received.split(), "zfs"]
    # What is counted is what zfs send wrote.
    assert before[-1].split()[-1] == "tank/pg@seed" or (not push and before[-1].startswith("zstd -q -d"))
    assert len(before) == (2 if sent and not push else 1)


def test_where_zfs_send_does_not_say_how_much_it_is_there_has_to_be_room_for_all(both, monkeypatch):
    both.source.snapshot("tank/pg@seed")
    both.target.available = 4096
    monkeypatch.setattr(both.source, "_zfs_send", lambda words: "")
    with pytest.raises(HotspareError, match="has room for 4.0 kB, and 8.0 kB would be sent"):
        both.run()
    assert "backup/pg" not in both.target.data
