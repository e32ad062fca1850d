# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""node_program as Ansible runs it, and the program that it writes: the guard before the start of real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_client
from ansible_collections.hotspare.postgresql.plugins.module_utils.asked import asked_file, note_asked
from ansible_collections.hotspare.postgresql.plugins.module_utils.guard import note_path, read_note

WAIT = 3


@pytest.fixture
def program(tmp_path: Path):
    """program(node, others) -> the options of node_program for a node whose peers are these."""

    def options(node, *others, wait: float = WAIT, policy: str = "start") -> dict[str, Any]:
        instance = {key: value for key, value in asdict(node.instance).items() if key != "slot_prefix"}
        peers = [{"name": other.instance.name, **other.address} for other in others]
        return {
            "path": str(tmp_path / "lib" / "hotspare.pyz"),
            "config_file": str(tmp_path / f"{instance['name']}.json"),
            "config": {
                "node": instance,
                "peers": peers,
                "guard": {"wait": wait, "policy": policy},
                "address": {},
            },
        }

    return options


class Guard:
    """The program before the start of a node, as systemd runs it: with nothing of this process but its Python.

    `meanwhile` is done when it has said its first line.
    """

    def __init__(self, options: dict[str, Any], meanwhile: Callable[[], object] | None = None) -> None:
        began = time.monotonic()
        argv = [sys.executable, "-I", options["path"], "guard", options["config_file"]]
        with subprocess.Popen(
            argv, env={"PATH": os.environ["PATH"]}, cwd="/", stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            first = ""
            if meanwhile is not None:
                first = process.stderr.readline()
                meanwhile()
            self.said = first + process.communicate(timeout=90)[1]
        self.seconds = time.monotonic() - began
        self.starts = process.returncode == 0
        print(f"{self.seconds:.2f} s: {self.said}")
        assert "Traceback" not in self.said


@pytest.fixture
def ask(program, run_module):
    """ask(node, others) -> what its guard says now."""

    def asked(node, *others, meanwhile: Callable[[], object] | None = None, **more: Any) -> Guard:
        options = program(node, *others, **more)
        assert not run_module("node_program", options).get("failed")
        return Guard(options, meanwhile)

    return asked


def test_four_steps(lab, program, tmp_path, four_steps):
    old, unit = tmp_path / "hotspare-guard", tmp_path / "unit.d" / "50.conf"
    old.write_text("#!/bin/sh\n", encoding="utf-8")
    files = {str(unit): "[Unit]\n", str(old): ""}
    options = {**program(lab.node("db-one", data=False)), "client": True, "files": files}

    def look():
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    results = four_steps("node_program", options, look)
    client = tmp_path / "lib" / "archive_client.py"
    written = [options["path"], str(client), options["config_file"], str(unit), str(old)]
    assert [result["changed_files"] for result in results] == [written, written, [], []]
    assert json.loads(Path(options["config_file"]).read_text(encoding="utf-8")) == options["config"]
    assert unit.read_text(encoding="utf-8") == "[Unit]\n"
    assert client.read_bytes() == Path(archive_client.__file__).read_bytes()


def test_a_standby_starts_without_a_question(pair, ask):
    pair.standby.stop()
    found = ask(pair.standby, pair.primary)
    assert found.starts
    assert "standby" in found.said


def test_a_primary_whose_standby_answers_starts_at_once(pair, ask):
    pair.primary.stop()
    found = ask(pair.primary, pair.standby, wait=30)
    assert found.starts
    assert found.seconds < 10
    assert "db-two is a standby on timeline 1" in found.said


def superseded(pair) -> None:
    """The primary crashes, and the standby takes over: without a checkpoint, so that only the history tells."""
    pair.primary.crash()
    pair.standby.program("pg_ctl", "promote", "-w", "-D", str(pair.standby.data))


def test_a_dead_primary_does_not_come_back_now_or_later(pair, ask):
    superseded(pair)
    refused = ask(pair.primary, pair.standby)
    assert not refused.starts
    for part in ("db-two at 127.0.0.1", "as a primary", "timeline 2", "-e node=db-one -e confirm=db-one"):
        assert part in refused.said
    known = read_note(pair.primary.instance)
    assert known is not None
    assert (known["primary"], known["timeline"]) == ("db-two", 2)
    # The new primary is down now, and this one boots again.
    pair.standby.stop()
    for policy in ("start", "refuse"):
        again = ask(pair.primary, pair.standby, policy=policy)
        assert not again.starts
        assert "db-two was seen as the primary" in again.said
        assert note_path(pair.primary.instance) in again.said
    # And the successor itself is not held up by the old one, dead or alive.
    os.remove(note_path(pair.primary.instance))
    pair.primary.start()
    found = ask(pair.standby, pair.primary, wait=30)
    assert found.starts
    assert "db-one is a primary on timeline 1" in found.said


def test_a_silent_peer_and_the_policy(pair, ask):
    pair.primary.stop()
    pair.standby.freeze()
    for policy, starts in (("start", True), ("refuse", False)):
        found = ask(pair.primary, pair.standby, policy=policy)
        assert found.starts is starts
        assert f"node_guard_policy is {policy}" in found.said
        assert WAIT <= found.seconds < WAIT + 4
    pair.standby.thaw()
    assert ask(pair.primary, pair.standby, policy="refuse").starts


def test_a_peer_that_comes_while_it_is_waited_for(pair, ask):
    """Both were without power: the one that was the standby may be the later."""
    pair.primary.stop()
    pair.standby.stop()
    found = ask(pair.primary, pair.standby, wait=60, policy="refuse", meanwhile=pair.standby.start)
    assert found.starts  # not for its policy
    assert found.said.startswith("it asks for up to 60 s what the other nodes are (db-two: cannot connect")
    assert "db-two is a standby" in found.said.splitlines()[-1]


def test_a_playbook_that_asked_just_now_need_not_wait(pair, ask):
    pair.primary.stop()
    pair.standby.stop()
    note_asked(pair.primary.instance.data_directory)
    try:
        found = ask(pair.primary, pair.standby, wait=30, policy="refuse")
    finally:
        os.remove(asked_file(pair.primary.instance.data_directory))
    assert found.starts
    assert found.seconds < 10


def test_a_data_directory_that_cannot_be_read_is_not_started(lab, ask):
    found = ask(lab.node("db-one", data=False))
    assert not found.starts
    assert "pg_controldata" in found.said
