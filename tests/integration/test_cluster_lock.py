# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cluster_lock as Ansible runs it: one run at a time, whoever comes first."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import lock

CONTROL = {"host": "bastion", "pid": 4711, "started": 99, "boot_id": "another boot", "namespace": "pid:[1]"}


@pytest.fixture
def options(tmp_path: Path):
    """options(token) -> what a run gives to the module; what is left behind is removed."""

    def made(token: str = "a", **more: Any) -> dict[str, Any]:
        who = {"owner": f"{token}@bastion", "token": token, "control": CONTROL, **more.pop("run", {})}
        node = {"name": "db1", "data_directory": str(tmp_path / "data"), "bin_directory": "/nowhere"}
        return {**node, "run": who, "purpose": "failover to db2", **more}

    yield made
    for kind in ("operation.json", "operation.lock"):
        Path(lock._path(str(tmp_path / "data"), kind)).unlink(missing_ok=True)


def holder(options) -> str | None:
    found = lock.read_lock(options()["data_directory"])
    return found["token"] if found else None


@pytest.fixture
def dead() -> dict[str, Any]:
    """The control process of a run on this machine that is over."""
    process = subprocess.Popen(["sleep", "60"])
    control = {**lock.this_run({"nodes": {}})["control"], "pid": process.pid, "started": lock._started(process.pid)}
    assert lock.alive(control) is True
    process.kill()
    process.wait()
    return control


def test_four_steps_to_hold(options, four_steps):
    results = four_steps("cluster_lock", options(), lambda: holder(options))
    assert [result["lock"] and result["lock"]["owner"] for result in results] == [None, *["a@bastion"] * 3]


def test_four_steps_to_release(options, four_steps, run_module):
    run_module("cluster_lock", options())
    four_steps("cluster_lock", options(state="released", purpose=None), lambda: holder(options))


def test_another_is_told_and_takes_it_by_name_only(options, run_module):
    run_module("cluster_lock", options(expires_in=-3))
    for check in (True, False):
        refused = run_module("cluster_lock", options("b"), check=check)
        assert refused["failed"] and refused["lock"]["token"] == "a"
        assert "db1 is locked by a@bastion since" in refused["msg"]
        assert re.search(r"it expired \d+ s ago", refused["msg"])
        assert "-e take_over=a@bastion" in refused["msg"]
    assert run_module("cluster_lock", options("b", take_over="a@bastion"))["took_over"]
    assert holder(options) == "b"
    assert run_module("cluster_lock", options(state="released"))["changed"] is False
    assert holder(options) == "b"


def test_of_a_run_that_is_dead_it_is_taken_without_a_question(options, run_module, dead):
    run_module("cluster_lock", options(run={"control": dead}))
    assert "dead" in run_module("cluster_lock", options("b"))["took_over"]
    # On another machine only the control node knows.
    assert run_module("cluster_lock", options("c"))["failed"]
    assert "dead" in run_module("cluster_lock", options("c", run={"dead": ["b"]}))["took_over"]
    assert holder(options) == "c"


def test_of_a_run_that_lives_it_is_not_taken_by_name_either(options, run_module):
    run_module("cluster_lock", options(run={"control": lock.this_run({"nodes": {}})["control"]}))
    assert "wait for it" in run_module("cluster_lock", options("b", take_over="a@bastion"))["msg"]


def test_of_many_at_once_one_has_it(options, run_module):
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda token: run_module("cluster_lock", options(token)), "abcdef"))
    winners = [result["lock"]["token"] for result in results if not result.get("failed")]
    assert winners == [holder(options)]
    assert all(f"locked by {winners[0]}@bastion" in result["msg"] for result in results if result.get("failed"))


def test_it_waits_for_one_that_gives_it_back(options, run_module):
    run_module("cluster_lock", options())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run_module, "cluster_lock", options("b", wait=30))
        run_module("cluster_lock", options(state="released"))
        assert waiting.result()["lock"]["token"] == "b"


def test_of_a_node_that_changed_it_is_given_back(options, run_module):
    seen = lock.fingerprint(options()["data_directory"], None)
    assert run_module("cluster_lock", options(expect=seen))["lock"]
    Path(options()["data_directory"]).mkdir()
    Path(options()["data_directory"], "PG_VERSION").write_text("17\n", encoding="ascii")
    # Who has it knows what it does.
    assert run_module("cluster_lock", options(expect=seen))["changed"] is False
    run_module("cluster_lock", options(state="released"))
    for check in (True, False):
        refused = run_module("cluster_lock", options(expect=seen), check=check)
        assert refused["failed"]
        assert "db1 changed since this run looked at it: run it again" in refused["msg"]
        assert holder(options) is None


@pytest.mark.parametrize("role", ["primary", "standby", "stopped", "absent", "foreign"])
def test_a_node_that_did_not_change_is_what_was_seen(pair, run_module, role):
    node = pair.primary if role == "primary" else pair.standby
    if role in ("stopped", "absent", "foreign"):
        node.stop()
    if role in ("absent", "foreign"):
        node.data.rename(f"{node.data}.aside")
    if role == "foreign":
        node.data.mkdir()
        (node.data / "notes").touch()
    who = {"owner": "a@bastion", "token": "a", "control": CONTROL}
    seen = run_module("pg_replication_state", node.params)["node"]
    named = {name: node.params[name] for name in ("name", "data_directory", "bin_directory")}
    given = {**named, "run": who, "purpose": "site"}
    taken = run_module("cluster_lock", {**given, "expect": seen["fingerprint"]})
    assert taken["changed"] is True
    run_module("cluster_lock", {**given, "state": "released"})
    assert run_module("pg_replication_state", node.params)["node"]["fingerprint"] == seen["fingerprint"]
    for kind in ("operation.json", "operation.lock"):
        Path(lock._path(str(node.data), kind)).unlink(missing_ok=True)


def test_a_restart_is_a_change(pair, run_module):
    node = pair.standby
    before = run_module("pg_replication_state", node.params)["node"]["fingerprint"]
    node.stop()
    node.start()
    assert run_module("pg_replication_state", node.params)["node"]["fingerprint"] != before
