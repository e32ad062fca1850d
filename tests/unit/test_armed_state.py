# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of an armed standby: who may change it to what, and what is told of it."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import armed_state
from ansible_collections.hotspare.postgresql.plugins.module_utils.armed_state import (
    MOVES,
    boot_clock,
    forget,
    is_alive,
    locked,
    move,
    paths,
    read_armed,
    write,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError

STATES = ("armed", "promoting", "promoted", "disarmed", "expired", "refused")


def stored(state: str = "armed") -> dict[str, Any]:
    return {
        "state": state,
        "reason": None,
        "since": "2026-11-20 14:00:00 UTC",
        "expires": boot_clock() + 60,
        "pid": 42,
        "receiver": 43,
        "collected": False,
        "position": "0/3000060",
        "phases": {},
        "proof": None,
        "at": {},
    }


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(armed_state, "LOCK_DIRECTORY", str(tmp_path))
    return "/srv/data"


def test_there_is_none(directory):
    assert read_armed(directory) is None
    assert move(directory, "disarmed") is False
    assert is_alive(paths(directory)) is False


def test_what_is_told(directory):
    write(paths(directory), stored())
    with locked(paths(directory).alive):
        told = read_armed(directory)
    assert told is not None
    assert (told["state"], told["alive"], told["pid"]) == ("armed", True, 42)
    assert 59 < told["expires_in"] <= 60
    assert set(told) == {*stored(), "alive", "expires_in"} - {"expires", "receiver"}


def test_an_armed_process_that_is_gone_is_dead(directory):
    write(paths(directory), stored())
    told = read_armed(directory)
    assert told is not None
    assert (told["state"], told["alive"]) == ("dead", False)
    assert "process 42 is gone" in told["reason"]
    # What it had asked the server for stays in force, whoever is gone.
    write(paths(directory), stored("promoting"))
    assert (read_armed(directory) or {})["state"] == "promoting"


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("to", STATES)
def test_moves(directory, before, to):
    write(paths(directory), stored(before))
    allowed = to in MOVES.get(before, ())
    assert move(directory, to, reason="why") is allowed
    told = read_armed(directory)
    assert told is not None
    assert told["state"] == (to if allowed else "dead" if before == "armed" else before)
    assert (told["reason"] == "why") is allowed


def test_what_is_over_is_forgotten(directory):
    forget(directory)
    write(paths(directory), stored("promoted"))
    forget(directory)
    assert read_armed(directory) is None


def test_of_two_that_come_together_one_is_too_late(directory):
    for _ in range(20):
        write(paths(directory), stored())
        done: dict[str, bool] = {}

        def go(to: str, done: dict[str, bool] = done) -> None:
            done[to] = move(directory, to)

        threads = [threading.Thread(target=go, args=(to,)) for to in ("promoting", "disarmed")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done.values()) == [False, True]
        assert (read_armed(directory) or {})["state"] == next(to for to, won in done.items() if won)


def test_what_cannot_be_read_is_no_state(directory, tmp_path):
    where = paths(directory)
    with open(where.state, "w", encoding="utf-8") as file:
        file.write("{}")
    with pytest.raises(HotspareError, match="not one of ours"):
        read_armed(directory)
    os.unlink(where.state)
    os.symlink(tmp_path / "elsewhere", where.state)
    with pytest.raises(HotspareError, match="cannot read"):
        read_armed(directory)
    # And what is written replaces the link, not the file it names.
    write(where, stored())
    assert not os.path.lexists(tmp_path / "elsewhere")
    assert not os.path.islink(where.state)


@pytest.mark.parametrize(("owner", "believed"), [(0, True), (os.geteuid(), True), (4711, False)])
def test_only_root_and_we_are_believed(directory, monkeypatch, owner, believed):
    write(paths(directory), stored())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda descriptor: SimpleNamespace(st_uid=owner))
        if believed:
            assert read_armed(directory) is not None
            return
        with pytest.raises(HotspareError, match="is not one of ours .it belongs to account number 4711.: see who"):
            read_armed(directory)


def test_a_lock_that_another_holds(directory):
    with (
        locked(paths(directory).mutex),
        pytest.raises(HotspareError, match="is held for 0.02 s"),
        locked(paths(directory).mutex, 0.02),
    ):
        raise AssertionError("two hold it")
