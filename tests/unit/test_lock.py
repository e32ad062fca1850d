# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a node: who may take it, and what is told to whoever may not."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import lock
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError

NOBODY: dict[str, Any] = {"nodes": {"db1": {"lock": None}, "db2": {}}}
ELSEWHERE = {"host": "bastion", "pid": 4711, "started": 99, "boot_id": "another boot", "namespace": "pid:[1]"}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lock, "LOCK_DIRECTORY", str(tmp_path))
    return str(tmp_path / "data")


def run(owner: str = "alice@bastion", token: str = "a", **control: object) -> dict[str, Any]:
    return {"owner": owner, "token": token, "control": {**ELSEWHERE, **control}}


def found(**changes: object) -> dict[str, Any]:
    record = {"since": "2026-01-31 12:00:00 UTC", "purpose": "failover to db2", "expires_in": 60.0, "alive": None}
    return {**run(), **record, **changes}


class TestObstacle:
    """Who may take the lock of alice's run `a`."""

    @pytest.mark.parametrize(
        ("seen", "token", "take_over", "dead", "free"),
        [
            ({}, "a", "", [], True),
            ({}, "b", "", [], False),
            ({}, "b", "", ["a"], True),
            ({}, "b", "", ["c"], False),
            ({}, "b", "alice@bastion", [], True),
            ({}, "b", "bob@bastion", [], False),
            ({"alive": False}, "b", "", [], True),
            ({"alive": True}, "b", "alice@bastion", [], False),
            ({"alive": True}, "a", "", [], True),
            ({"expires_in": -1.0}, "b", "", [], False),
            ({"expires_in": -1.0}, "b", "alice@bastion", [], True),
        ],
    )
    def test_by_whom(self, seen: dict[str, Any], token: str, take_over: str, dead: list[str], free: bool) -> None:
        assert (lock.obstacle(found(**seen), "db1", token, take_over, dead) is None) is free

    def test_says_who_since_when_for_what_until_when_and_what_to_do(self) -> None:
        assert lock.obstacle(found(), "db1", "b", "") == (
            "db1 is locked by alice@bastion since 2026-01-31 12:00:00 UTC for failover to db2, it expires in 60 s: see "
            "whether process 4711 on bastion still runs; if it does not, add -e take_over=alice@bastion"
        )
        assert "it expired 5 s ago" in str(lock.obstacle(found(expires_in=-5.0), "db1", "b", ""))
        assert "take_over names bob, who" in str(lock.obstacle(found(), "db1", "b", "bob"))
        assert "is at work" in str(lock.obstacle(found(alive=True), "db1", "b", "alice@bastion"))

    def test_says_why_it_was_taken(self) -> None:
        assert lock.taken_from(found(), "a") is None
        assert "given up by the operator" in str(lock.taken_from(found(), "b"))
        assert "a run that is dead" in str(lock.taken_from(found(), "b", ["a"]))
        assert "a run that is dead" in str(lock.taken_from(found(alive=False), "b"))


class TestThisRun:
    def test_is_the_same_in_a_worker(self) -> None:
        mine = lock.this_run(NOBODY)
        assert mine["control"]["pid"] == os.getpid()
        assert mine["owner"].endswith(f"@{mine['control']['host']}")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(lock.this_run, (NOBODY,)) == mine

    def test_is_another_in_another_process(self) -> None:
        program = f"import json; from {lock.__name__} import this_run; print(json.dumps(this_run({NOBODY!r})))"
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True
        )
        other = json.loads(done.stdout)
        assert other["token"] != lock.this_run(NOBODY)["token"]
        assert lock.alive(other["control"]) is False
        locks = {"nodes": {"db1": {"lock": other}, "db2": {"lock": found()}}}
        assert lock.this_run(locks)["dead"] == [other["token"]]

    def test_a_number_used_again_is_not_the_run(self) -> None:
        control = lock.this_run(NOBODY)["control"]
        assert lock.alive(control) is True
        assert lock.alive({**control, "started": control["started"] - 1}) is False
        assert lock.alive({**control, "namespace": "pid:[1]"}) is None
        assert lock.alive(ELSEWHERE) is None


class TestHold:
    def test_there_is_none(self, directory: str) -> None:
        assert lock.read_lock(directory) is None
        assert lock.release(directory, "a") == {"changed": False, "lock": None, "took_over": None}

    def test_is_kept_until_it_is_given_back(self, directory: str) -> None:
        first = lock.hold(directory, "db1", run(), purpose="failover to db2", seconds=60)
        assert first["changed"] and first["took_over"] is None
        assert {**first["lock"], "expires_in": None} == {**run(), **first["lock"], "expires_in": None}
        assert 59 < first["lock"]["expires_in"] <= 60
        assert first["lock"]["alive"] is None
        assert lock.hold(directory, "db1", run(), purpose="failover to db2", seconds=60)["changed"] is False
        with pytest.raises(
            HotspareError, match="alice@bastion since .* for failover to db2.*Nothing was changed"
        ) as error:
            lock.hold(directory, "db1", run("bob@bastion", "b"), purpose="site", seconds=60)
        assert error.value.facts["lock"]["token"] == "a"
        assert lock.release(directory, "b")["changed"] is False
        assert lock.release(directory, "a")["changed"] is True
        assert lock.read_lock(directory) is None

    def test_is_taken_over_by_name(self, directory: str) -> None:
        lock.hold(directory, "db1", run(), purpose="failover to db2", seconds=-1)
        other = run("bob@bastion", "b")
        with pytest.raises(HotspareError, match="expired 1 s ago"):
            lock.hold(directory, "db1", other, purpose="site", seconds=60)
        taken = lock.hold(directory, "db1", other, purpose="site", seconds=60, take_over="alice@bastion")
        assert "of alice@bastion" in taken["took_over"]
        assert taken["lock"]["owner"] == "bob@bastion"
        # The first one, should it live after all, gives back only its own.
        assert lock.release(directory, "a")["changed"] is False

    def test_a_lock_of_before_the_reboot_has_expired(self, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
        lock.hold(directory, "db1", run(), purpose="failover to db2", seconds=60)
        monkeypatch.setattr(lock, "_machine", lambda: {"boot_id": "the next", "namespace": "pid:[1]"})
        assert lock.read_lock(directory)["expires_in"] <= 0

    def test_check_mode_only_looks(self, directory: str, tmp_path: Path) -> None:
        assert lock.hold(directory, "db1", run(), purpose="site", seconds=60, check_mode=True)["changed"] is True
        assert list(tmp_path.iterdir()) == []
        lock.hold(directory, "db1", run(), purpose="site", seconds=60)
        with pytest.raises(HotspareError, match="is locked by"):
            lock.hold(directory, "db1", run(token="b"), purpose="site", seconds=60, check_mode=True)
        assert lock.release(directory, "a", check_mode=True)["changed"] is True
        assert lock.read_lock(directory) is not None

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"control": 1}', "\xff"])
    def test_what_cannot_be_read_is_no_free_lock(self, directory: str, content: str) -> None:
        Path(lock._path(directory, "operation.json")).write_text(content, encoding="latin-1")
        with pytest.raises(HotspareError, match="is not one of ours"):
            lock.hold(directory, "db1", run(), purpose="site", seconds=60)

    def test_a_planted_link_leads_nowhere(self, directory: str, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("{}", encoding="ascii")
        os.symlink(tmp_path / "elsewhere", lock._path(directory, "operation.json"))
        with pytest.raises(HotspareError, match="cannot read the lock"):
            lock.hold(directory, "db1", run(), purpose="site", seconds=60)


class TestWorking:
    """The flock of a task; a second open of the file is as good as another process."""

    def test_one_at_a_time(self, directory: str) -> None:
        with lock.working(directory, "db1", "pg_server state=stopped", 1):
            for check_mode in (False, True):
                with (
                    pytest.raises(lock.AtWork, match=rf"db1 is worked on by process {os.getpid()} \(pg_server state="),
                    lock.working(directory, "db1", "pg_promote state=armed", 0.05, check_mode=check_mode),
                ):
                    raise AssertionError("two work")
        with lock.working(directory, "db1", "pg_promote state=armed", 0):
            pass

    def test_says_what_to_do(self, directory: str) -> None:
        with (
            lock.working(directory, "db1", "pg_server state=stopped", 0),
            pytest.raises(lock.AtWork) as error,
            lock.working(directory, "db1", "pg_server state=started", 0),
        ):
            pass
        assert "wait until that process has ended, or end it on db1, then run this again" in error.value.message
        assert error.value.facts["lock"] == lock._path(directory, "lock")

    def test_a_process_that_was_forked_meanwhile_does_not_hold_it(self, directory: str) -> None:
        reader, writer = os.pipe()
        with lock.working(directory, "db1", "pg_promote state=armed", 0):
            child = os.fork()
            if child == 0:
                os.read(reader, 1)
                os._exit(0)
        with lock.working(directory, "db1", "pg_server state=stopped", 0):
            pass
        os.write(writer, b".")
        assert os.waitpid(child, 0)[1] == 0
        os.close(reader)
        os.close(writer)

    @pytest.mark.parametrize("taken_over", [False, True])
    def test_who_waited_while_another_run_took_over_does_nothing(
        self, directory: str, taken_over: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock.hold(directory, "db1", run(), purpose="failover to db2", seconds=60)
        told: list[str] = []
        read, looked = lock._token, threading.Event()

        def token(of: str) -> Optional[str]:
            found = read(of)
            looked.set()
            return found

        monkeypatch.setattr(lock, "_token", token)

        def wait() -> None:
            try:
                with lock.working(directory, "db1", "pg_server state=stopped", 600):
                    told.append("worked")
            except lock.AtWork as error:
                told.append(error.message)

        waiting = threading.Thread(target=wait)
        with lock.working(directory, "db1", "pg_server state=stopped", 0):
            waiting.start()
            assert looked.wait(600)
            if taken_over:
                lock.hold(directory, "db1", run("bob", "b"), purpose="site", seconds=60, take_over="alice@bastion")
        waiting.join()
        assert "another run took over" in told[0] if taken_over else told == ["worked"]

    def test_check_mode_only_looks(self, directory: str, tmp_path: Path) -> None:
        with lock.working(directory, "db1", "pg_server state=stopped", 0, check_mode=True):
            assert list(tmp_path.iterdir()) == []
        with lock.working(directory, "db1", "pg_server state=stopped", 0):
            pass
        with (
            lock.working(directory, "db1", "pg_server state=stopped", 0, check_mode=True),
            lock.working(directory, "db1", "pg_server state=stopped", 0),
        ):
            pass


class TestFingerprint:
    @pytest.fixture
    def data(self, directory: str) -> Path:
        path = Path(directory)
        (path / "pg_wal").mkdir(parents=True)
        (path / "PG_VERSION").write_text("17\n", encoding="ascii")
        (path / "postmaster.pid").write_text(f"4711\n{path}\n1795183200\n5432\n", encoding="ascii")
        return path

    def test_is_short_and_stays(self, data: Path, directory: str) -> None:
        assert lock.fingerprint(directory, None) == "data, server 4711 1795183200, no signal, no history, not armed"
        (data / "postmaster.pid").write_text(f"4711\n{data}\n1795183200\n5432\n/tmp\n*\n1 2\nready\n", encoding="ascii")
        (data / "pg_wal" / "000000010000000000000002").touch()
        assert lock.fingerprint(directory, None) == "data, server 4711 1795183200, no signal, no history, not armed"
        for name in ("0000000A.history", "00000002.history", "0000000B.history.tmp"):
            (data / "pg_wal" / name).touch()
        (data / "standby.signal").touch()
        assert lock.fingerprint(directory, {"state": "promoted"}) == (
            "data, server 4711 1795183200, standby.signal, 0000000A.history, promoted"
        )

    @pytest.mark.parametrize("change", ["restart", "stop", "prepare", "promote", "arm", "remove"])
    def test_changes_with(self, data: Path, directory: str, change: str) -> None:
        before, armed = lock.fingerprint(directory, None), None
        if change == "restart":
            (data / "postmaster.pid").write_text(f"4711\n{data}\n1795183201\n", encoding="ascii")
        elif change == "stop":
            (data / "postmaster.pid").unlink()
        elif change == "prepare":
            (data / "standby.signal").touch()
        elif change == "promote":
            (data / "pg_wal" / "00000002.history").touch()
        elif change == "arm":
            armed = {"state": "armed"}
        else:
            data.rename(data.with_name("aside"))
        assert lock.fingerprint(directory, armed) != before

    def test_a_server_that_only_has_to_end_is_gone(self, data: Path, directory: str) -> None:
        """As one whose archiver is busy after the shutdown checkpoint: nothing changes when it has ended."""
        pid = data / "postmaster.pid"
        pid.write_text(f"4711\n{data}\n1795183200\n5432\n/tmp\n*\n1 2\nstopping\n", encoding="ascii")
        before = lock.fingerprint(directory, None)
        pid.unlink()
        assert lock.fingerprint(directory, None) == before

    def test_of_nothing_and_of_something_else(self, directory: str) -> None:
        nothing = "no data, server none, no signal, no history, not armed"
        assert lock.fingerprint(directory, None) == nothing
        Path(directory).write_text("a file", encoding="ascii")
        assert (
            lock.fingerprint(directory, None)
            == "no data, server unknown (Not a directory), no signal, no history, not armed"
        )

    def test_what_changed_is_told(self) -> None:
        lock.require_unchanged("db1", None, "now")
        lock.require_unchanged("db1", "now", "now")
        with pytest.raises(HotspareError, match="db1 changed since this run looked at it: run it again"):
            lock.require_unchanged("db1", "then", "now")
