# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_send_wait as Ansible runs it: what a task in the background does, and what is said of it meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.hotspare.postgresql.plugins.action.zfs_send_wait import ActionModule

TOLD = {"state": "sending", "dataset": "vault/pg", "number": 1, "of": 2, "kind": "full", "estimated_bytes": 4096}
TOLD.update(rate=1024, seconds_left=2)


@pytest.fixture
def play(tmp_path):
    """Runs a script in the background (or not) and waits for it; what Ansible ends with, and what it printed."""

    def run(script: str, *options: str, in_background: int = 60, **more: object) -> tuple[int, str]:
        tasks = [
            {
                "ansible.builtin.command": {"argv": ["sh", "-c", script]},
                "async": in_background,
                "poll": 0,
                "register": "begun",
                "changed_when": False,
                "failed_when": False,
            },
            {
                "hotspare.postgresql.zfs_send_wait": {
                    "job": "{{ begun }}",
                    "status_file": str(tmp_path / "status.json"),
                    "poll": 0.2,
                    "interval": 0.1,
                    **more,
                },
                "register": "ended",
            },
            {"ansible.builtin.debug": {"msg": "it said {{ ended.stdout }} (changed: {{ ended.changed }})"}},
        ]
        where = {
            "hosts": "localhost",
            "gather_facts": False,
            "connection": "local",
            "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
        }
        (tmp_path / "play.yml").write_text(yaml.safe_dump([{**where, "tasks": tasks}]), encoding="utf-8")
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", *options, tmp_path / "play.yml"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1"},
        )
        return done.returncode, done.stdout + done.stderr

    return run


def sends(path: Path, *sent: int) -> str:
    """A script that tells of so many bytes, one after the other."""
    lines = [json.dumps({**TOLD, "sent_bytes": count, "updated": str(count)}) for count in sent]
    return "".join(f"echo '{line}' >{path}/status.json; sleep 1.5; " for line in lines) + "echo all is there"


def test_it_says_how_far_it_is_and_returns_what_came_of_it(play, tmp_path):
    rc, said = play(sends(tmp_path, 1024, 2048))
    assert rc == 0, said
    lines = [line for line in said.splitlines() if line.startswith("localhost: vault/pg, part 1 of 2, full: ")]
    assert len(lines) == 2, said
    assert "2.0 kB of 4.0 kB (50 %), 1.0 kB/s, time left 2.0 s" in lines[1]
    assert "it said all is there (changed: True)" in said
    assert not list((tmp_path / ".ansible_async").iterdir()), "its file is cleaned up"


def test_what_an_earlier_run_left_is_not_told(play, tmp_path):
    (tmp_path / "status.json").write_text(json.dumps({**TOLD, "sent_bytes": 1}), encoding="utf-8")
    rc, said = play("sleep 1; echo there was nothing to send")
    assert rc == 0 and "it said there was nothing to send" in said
    assert "vault/pg, part" not in said


@pytest.mark.parametrize("in_background", [0, 60])
def test_a_task_that_failed_has_failed(play, in_background):
    rc, said = play("echo why >&2; exit 3", in_background=in_background)
    assert ("it said" in said) is (in_background == 0), "what was not in the background is not judged twice"
    assert rc == (0 if in_background == 0 else 2), said


def test_what_was_not_in_the_background_is_returned_as_it_is(play):
    rc, said = play("echo at once", in_background=0)
    assert rc == 0 and "it said at once (changed: False)" in said


def test_what_was_killed_has_failed_in_a_sentence(play):
    """The module, whose process is the parent of the script's."""
    rc, said = play("kill -9 $PPID; sleep 1")
    assert rc == 2 and "localhost: it ended without a result, as what is killed does: see the journal" in said


@pytest.mark.parametrize("boots", [["one", "two"], ["one", "", "two"]])
def test_a_host_that_was_restarted_is_not_waited_for(monkeypatch, boots):
    """Also where ssh has connected anew and nobody has noticed; what cannot be read is no restart."""
    action = object.__new__(ActionModule)
    action._vars, action._said = {"inventory_hostname": "db2"}, False
    action._options = {"poll": 0.0, "interval": 0.0, "timeout": 10.0, "status_file": None}
    left = iter(boots)
    monkeypatch.setattr(action, "_boot", lambda: next(left))
    monkeypatch.setattr(action, "_look", lambda _job, _mode: {"finished": False})
    found = action._waited({})
    assert found["failed"] and found["msg"].startswith("db2: it was restarted meanwhile: run this again")
    assert not list(left)


def test_it_waits_no_longer_than_it_may(play):
    rc, said = play("sleep 3", timeout=0.5, poll=0.1)
    assert rc == 2 and "it has not ended within 0.5 seconds, and goes on: see " in said


def test_an_option_that_is_missing():
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "localhost", "-m", "hotspare.postgresql.zfs_send_wait"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "missing required arguments: job" in done.stdout + done.stderr
