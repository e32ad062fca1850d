# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_backup.py against OpenZFS in memory: whose turn it is, what is sent and told; on real pools: molecule/zfs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import program, zfs_backup
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import Completed, HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_backup import (
    Server,
    back_up,
    last_elapse,
    read_backup_config,
    recorded,
    sentences,
    turn,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_copy import newest, read_note
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_send import work
from hypothesis import given
from hypothesis import strategies as st

from .zfs_model import Here, Host, transfer

NODES = st.sampled_from(["db1", "db2", "db3", "pg_receivewal"])


@given(
    st.sampled_from(["standby", "primary"]),
    st.sampled_from(["standby", "primary", "down"]),
    st.lists(NODES).map(tuple),
    st.sets(NODES),
)
def test_somebody_takes_it_and_who_does_not_says_why(wanted, role, streaming, peers):
    mine, reason = turn(wanted, Server(role, why="it is down", streaming=streaming), peers, {})
    assert reason
    assert not (mine and role == "down")
    assert mine or role != wanted
    if role == "primary":  # backups do not stop: it leaves them only to a member that streams from it
        assert mine == (wanted == "primary" or not set(streaming) & peers)
    if role == "standby":
        assert mine == (wanted == "standby")


def test_the_reasons():
    assert turn("standby", Server("primary", streaming=("db2", "x")), ["db2", "db3"], {}) == (
        False,
        "it is the primary, and db2 streams from it: that is where snapshots are taken",
    )
    assert turn("standby", Server("primary"), ["db2"], {})[1].endswith("no standby streams from it")
    taken, why = turn("standby", Server("standby", receives=False), ["db2"], {})
    assert (taken, why.startswith("it is a standby that receives nothing")) == (False, True)
    assert turn("primary", Server("standby"), ["db2"], {}) == (False, "it is a standby, and zfs_backup_from is primary")


NEWEST = {"snapshot": "hotspare:backup-20261122T010000Z", "lsn": "0/5000060"}


@pytest.mark.parametrize(
    ("lsn", "newest", "gets_on"),
    [
        ("0/5000060", {}, True),
        ("0/5000060", {"lsn": ""}, True),
        ("0/5000061", NEWEST, True),
        ("0/4000000", NEWEST, True),  # of another timeline, once it was rebuilt
        ("0/5000060", NEWEST, False),
        ("", NEWEST, False),
    ],
)
def test_a_standby_that_only_an_archive_feeds_has_to_get_on(lsn, newest, gets_on):
    """restore_command alone says nothing: an archive that does not answer feeds nobody."""
    server = Server("standby", receives=False, restores=True, lsn=lsn)
    mine, reason = turn("standby", server, ["db1"], newest)
    assert mine is gets_on
    if not gets_on:
        assert reason.startswith(
            "it is a standby that has replayed nothing since hotspare:backup-20261122T010000Z (0/5000060), so another "
            "snapshot would hold the same"
        )
    assert turn("standby", replace(server, receives=True), ["db1"], newest)[0], "it streams: its primary is idle"


UTC = """Normalized form: *-*-* *:00:00
    Next elapse: Sun 2026-11-22 04:00:00 UTC
       From now: 55min left
   Iteration #2: Sun 2026-11-22 05:00:00 UTC
       From now: 1h 55min left
"""
ZONE = """  Original form: hourly
Normalized form: *-*-* *:00:00
    Next elapse: Sun 2026-11-22 05:00:00 CET
       (in UTC): Sun 2026-11-22 04:00:00 UTC
       From now: 55min left
       Iter. #2: Sun 2026-11-22 06:00:00 CET
       (in UTC): Sun 2026-11-22 05:00:00 UTC
       From now: 1h 55min left
"""


def test_when_the_timer_has_to_have_run_twice():
    assert last_elapse(UTC) == last_elapse(ZONE) == 1795323600
    assert last_elapse("    Next elapse: never\n") is None


class Lab:
    """A node with a pool of its own and one for copies, and what its server says."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.here, self.vault = Host(), Host("vault")
        self.vault.make("vault/pg")
        self.here.make("tank/pg")
        for name, path in (("data", where / "data"), ("wal", where / "wal")):
            path.mkdir()
            self.here.make(f"tank/pg/{name}", own={"mountpoint": str(path)}, mounted=True)
            self.here.write(f"tank/pg/{name}")
        (where / "data/main").mkdir()
        (where / "data/main/pg_wal").symlink_to(where / "wal")
        self.server = Server("standby", system_identifier="7", version=17, lsn="0/5000060")
        self.checkpoints = 0
        self.now = datetime(2026, 11, 22, tzinfo=timezone.utc)
        self.whole = True

    def config(self, **changes: Any) -> str:
        path = self.where / "main.json"
        wanted = {"dataset": "vault/pg/db2", "from": "standby", "login": None, "keep": {}, "on_calendar": "hourly"}
        node = {"name": "db2", "data_directory": str(self.where / "data/main"), "bin_directory": "/srv/bin"}
        content = {
            "node": node,
            "peers": ["db1"],
            "dataset": "tank/pg",
            "status": str(self.where / "status"),
            "record": str(self.where / "record"),
            "backup": {**wanted, **changes},
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    def run(self, *, check_mode: bool = False, **changes: Any) -> dict[str, Any]:
        return back_up(read_backup_config(self.config(**changes)), check_mode=check_mode)

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.where / "record").read_text(encoding="utf-8"))
        return found


@pytest.fixture
def lab(tmp_path, monkeypatch):
    found = Lab(tmp_path)
    opened = itertools.count()

    def checkpoint(_instance):
        found.checkpoints += 1
        return 0.1

    def side(login=None):
        """The node's own pool first, then that of the copies."""
        return Here(found.vault if next(opened) % 2 else found.here, "nas" if login else "this host")

    def sent(*arguments, **more):
        if arguments[3].state == "sent":
            found.now += timedelta(hours=1)
        found.here.now = int(found.now.timestamp())
        return work(*arguments, **more, now=found.now, transfer=transfer(found.here, found.vault, lambda: found.whole))

    monkeypatch.setattr(zfs_backup, "ask", lambda _instance: found.server)
    monkeypatch.setattr(zfs_backup, "checkpoint", checkpoint)
    monkeypatch.setattr(zfs_backup, "run", lambda words, **_more: Completed(list(words), 0, UTC, "", 0.0))
    monkeypatch.setattr(zfs_backup, "Side", side)
    monkeypatch.setattr(zfs_backup, "work", sent)
    return found


def test_a_snapshot_is_sent_and_can_be_restored_from_what_is_noted_of_it(lab):
    done = lab.run()
    assert (done["kind"], done["role"], done["lsn"], lab.checkpoints) == ("full", "standby", "0/5000060", 1)
    found = newest(Here(lab.vault, "here"), "vault/pg/db2")
    assert (found.name, found.below) == ("hotspare:backup-20261122T010000Z", ("", "/data", "/wal"))
    note = found.note
    assert (note.node, note.version, note.data_directory) == ("db2", 17, str(lab.where / "data/main"))
    assert dict(note.paths) == {"/data": str(lab.where / "data"), "/wal": str(lab.where / "wal")}
    assert lab.vault.data["vault/pg/db2/data"].own["canmount"] == "noauto"
    assert lab.vault.data["vault/pg/db2"].own["readonly"] == "on"
    assert lab.record["state"] == "done"
    assert lab.record["newest"]["snapshot"] == found.name
    assert lab.record["late_after"] == 1795323600


def test_paths_are_noted_as_they_are_read(lab):
    """zfs set takes a mountpoint with a slash at its end."""
    lab.here.data["tank/pg/data"].own["mountpoint"] = f"{lab.where}/data/"
    lab.run()
    assert newest(Here(lab.vault, "here"), "vault/pg/db2").note.paths["/data"] == str(lab.where / "data")


def test_the_next_ones_send_what_changed_and_old_ones_go(lab):
    for count in range(4):
        done = lab.run(keep={"count": 2})
        assert done["kind"] == ("incremental" if count else "full")
    gone = [f"vault/pg/db2{below}@hotspare:backup-20261122T020000Z" for below in ("", "/data", "/wal")]
    assert [one["snapshot"] for one in done["pruned"] if one["side"] == "destination"] == gone
    left = [one.name for one in lab.vault.data["vault/pg/db2"].snaps]
    assert left == ["hotspare:backup-20261122T030000Z", "hotspare:backup-20261122T040000Z"]
    assert len(lab.vault.data["vault/pg/db2/wal"].snaps) == 2
    assert len(lab.here.data["tank/pg/wal"].snaps) == 1, "the base of the next one"


def test_what_is_encrypted_goes_as_it_is(lab):
    lab.here.data["tank/pg/wal"].encryption, lab.here.data["tank/pg/wal"].keystatus = "aes-256-gcm", "available"
    assert [lab.run()["kind"], lab.run()["kind"]] == ["full", "incremental"]
    sends = [words for words in lab.here.log if list(words[:2]) == ["zfs", "send"] and "-nvP" not in words]
    assert ["-w" in words for words in sends if "tank/pg/wal@" in words[-1]] == [True, True]
    assert not any("-w" in words for words in sends if "tank/pg/wal@" not in words[-1])


def test_snapshots_of_rebuilds_are_left_alone(lab):
    name = "hotspare-db1-20261121T000000Z"
    lab.here.snapshot(*(f"tank/pg{below}@{name}" for below in ("", "/data", "/wal")), made="hotspare-db1/1")
    for _count in range(3):
        lab.run(keep={"count": 1})
    assert f"tank/pg/data@{name}" in lab.here.names()
    assert not [one for one in lab.vault.names() if name in one]


def test_check_mode_estimates_and_changes_nothing(lab):
    before = repr([lab.here.data, lab.vault.data])
    done = lab.run(check_mode=True)
    assert repr([lab.here.data, lab.vault.data]) == before
    assert (done["changed"], done["kind"], lab.checkpoints) == (True, "full", 0)
    assert not (lab.where / "record").exists()
    assert sentences(done)[1].startswith("would be sent to vault/pg/db2: full, about ")


def test_who_has_no_turn_does_nothing_and_keeps_what_is_known(lab):
    lab.run()
    lab.server = Server("primary", streaming=("db1",))
    done = lab.run()
    assert (done["changed"], done["mine"], lab.checkpoints) == (False, False, 1)
    assert lab.record["state"] == "skipped"
    assert lab.record["newest"]["snapshot"] == "hotspare:backup-20261122T010000Z"
    assert sentences(done) == [f"db2 takes no snapshot: {done['reason']}"]


def test_a_standby_whose_archive_does_not_answer_takes_no_snapshot_of_the_same_again(lab):
    lab.server = replace(lab.server, receives=False, restores=True)
    lab.run()
    done = lab.run()
    assert (done["mine"], lab.record["state"], lab.checkpoints) == (False, "skipped", 1)
    assert "has replayed nothing since hotspare:backup-20261122T010000Z (0/5000060)" in lab.record["reason"]
    assert lab.run(check_mode=True)["mine"] is False
    assert lab.record["newest"]["snapshot"] == "hotspare:backup-20261122T010000Z", "how old it is can still be told"
    lab.server = replace(lab.server, lsn="0/6000000")
    assert (lab.run()["mine"], lab.record["newest"]["lsn"]) == (True, "0/6000000")
    (lab.where / "record").write_text('{"newest": 1}', encoding="utf-8")
    assert lab.run()["mine"], "nothing is known of an earlier one"


def test_what_runs_that_were_killed_have_held_is_released_and_removed(lab):
    """Else it would fill the node's own pool, which holds every block that has changed since."""
    lab.run()
    dead = [f"hotspare:backup-20261122T01{minute}00Z" for minute in (10, 20)]
    for name in dead:
        wanted = replace(zfs_backup.want(None), state="snapshotted", snapshot=name)
        work(Here(lab.here, "here"), None, ("tank/pg", ""), wanted)
    assert len(lab.here.data["tank/pg/wal"].snaps) == 3
    before = repr([lab.here.data, lab.vault.data])
    assert f"would be released for retention: {', '.join(dead)}, held by" in sentences(lab.run(check_mode=True))[2]
    assert repr([lab.here.data, lab.vault.data]) == before
    done = lab.run()
    assert done["released"] == dead
    assert f"released for retention: {', '.join(dead)}, held by an earlier run and needed by nobody" in sentences(done)
    gone = {one["snapshot"] for one in done["pruned"] if one["side"] == "source"}
    assert {f"tank/pg{below}@{name}" for below in ("", "/data", "/wal") for name in dead} <= gone
    for below in ("", "/data", "/wal"):
        assert [one.name for one in lab.here.data[f"tank/pg{below}"].snaps] == [done["snapshot"]]
        held = [one.name for one in lab.vault.data[f"vault/pg/db2{below}"].snaps if one.holds]
        assert held == [done["snapshot"]], "the base of the next one"
    done = lab.run()
    assert (done["kind"], done["released"]) == ("incremental", [])


def test_holds_of_somebody_else_stay(lab):
    lab.run()
    lab.here.data["tank/pg/wal"].snaps[0].holds.add("somebody")
    done = lab.run()
    assert done["released"] == []
    assert [one.holds for one in lab.here.data["tank/pg/wal"].snaps] == [{"somebody"}, {"hotspare:backup"}]


def test_a_failure_is_noted_and_the_next_run_goes_on(lab):
    lab.run()
    lab.whole = False
    with pytest.raises(HotspareError, match="incomplete stream"):
        lab.run()
    assert lab.record["state"] == "failed"
    assert "incomplete stream" in lab.record["error"]
    assert lab.record["newest"]["snapshot"] == "hotspare:backup-20261122T010000Z"
    lab.whole = True
    assert lab.run()["kind"] == "resumed"
    assert newest(Here(lab.vault, "here"), "vault/pg/db2").name == "hotspare:backup-20261122T030000Z"
    assert lab.record["state"] == "done"
    noted = {one.name: read_note(one.note) for one in lab.vault.data["vault/pg/db2"].snaps}
    assert [note.lsn for _name, note in sorted(noted.items())] == ["0/5000060", "", "0/5000060"]
    assert len({note.taken for note in noted.values()}) == 3


@pytest.mark.parametrize("where", ["receive", "_note"])
def test_runs_that_fail_each_time_do_not_fill_the_nodes_own_pool(lab, monkeypatch, where):
    def refused(*_arguments):
        raise HotspareError("permission denied")

    lab.run()
    owner = lab.vault if where == "receive" else zfs_backup
    with monkeypatch.context() as patched:
        patched.setattr(owner, where, refused)
        for _hour in range(6):
            with pytest.raises(HotspareError, match="permission denied"):
                lab.run()
    for below in ("", "/data", "/wal"):
        left = lab.here.data[f"tank/pg{below}"].snaps
        assert len(left) <= 3
        assert any(one.guid == lab.vault.data[f"vault/pg/db2{below}"].snaps[-1].guid for one in left), "the common base"
    lab.run()
    assert [len(lab.here.data[f"tank/pg{below}"].snaps) for below in ("", "/data", "/wal")] == [1, 1, 1]


def test_a_copy_that_a_killed_run_has_sent_is_noted_by_the_next(lab, monkeypatch):
    lab.run()
    lab.here.data["tank/pg/late"] = lab.here.make("tank/pg/late")
    with monkeypatch.context() as patched:
        patched.setattr(zfs_backup, "_note", lambda *_more: (_ for _ in ()).throw(HotspareError("killed")))
        with pytest.raises(HotspareError, match="killed"):
            lab.run()
    del lab.here.data["tank/pg/late"]
    lab.run()
    noted = [read_note(one.note) for one in lab.vault.data["vault/pg/db2"].snaps]
    assert [note.lsn for note in noted] == ["0/5000060", "", "0/5000060"]
    assert sorted(note.taken for note in noted) == [note.taken for note in noted]


def test_wal_that_lies_elsewhere_is_refused(lab):
    (lab.where / "else").mkdir()
    (lab.where / "data/main/pg_wal").unlink()
    (lab.where / "data/main/pg_wal").symlink_to(lab.where / "else")
    with pytest.raises(HotspareError, match="else is not in tank/pg on this host or below it"):
        lab.run()
    assert lab.checkpoints == 0


def test_what_is_said_of_one(lab):
    login = {"host": "nas", "port": 22, "account": "root", "identity": "/key", "known_hosts": "/hosts"}
    said = sentences(lab.run(login=login))
    assert said[0] == "db2 takes the snapshot: it is a standby, as zfs_backup_from wants it"
    assert said[1] == "CHECKPOINT took 0.1 s; the snapshot holds at least 0/5000060"
    assert said[2].startswith("sent to vault/pg/db2 on nas: hotspare:backup-20261122T010000Z (full, ")
    for _count in range(2):
        said = sentences(lab.run(login=login, keep={"count": 1}))
    assert said[-1].startswith("removed of the copy, by zfs_backup_keep: vault/pg/db2@hotspare:backup-")
    assert recorded({"mine": False, "reason": "x"}) == {"state": "skipped", "reason": "x", "error": None}


def test_without_a_place_nothing_is_done(lab):
    path = Path(lab.config())
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "backup": None}), encoding="utf-8")
    with pytest.raises(HotspareError, match="db2 has no zfs_backup_dataset"):
        back_up(read_backup_config(str(path)))


@pytest.mark.parametrize(
    "changes", [{"from": "anywhere"}, {"dataset": "vault"}, {"keep": {"weeks": 1}}, {"login": {"a": 1}}]
)
def test_what_is_not_ours_is_refused(lab, changes):
    with pytest.raises(HotspareError, match="is not what the role zfs writes"):
        read_backup_config(lab.config(**changes))


def test_the_command(lab, capsys):
    assert program.main(["zfs-backup-check", lab.config()]) == 0
    assert program.main(["zfs-backup", lab.config()]) == 0
    told = capsys.readouterr()
    assert [json.loads(line)["check_mode"] for line in told.out.splitlines()] == [True, False]
    assert "would be sent to vault/pg/db2" in told.err
    assert program.main(["zfs-backup", f"{lab.where}/none.json"]) == 1
    assert "run site.yml" in capsys.readouterr().err
