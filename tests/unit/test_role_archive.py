# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role archive makes of the plan of a cutover and of its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from . import role_cases

ROOT = Path(__file__).resolve().parents[2]
PLAY = f"""
- hosts: db2
  connection: local
  gather_facts: false
  vars_files: [{ROOT}/roles/archive/vars/main.yml]
  tasks:
    - ansible.builtin.copy:
        dest: "{{{{ playbook_dir }}}}/found.json"
        content: "{{{{ dict(asked | zip(asked | map('extract', vars))) | to_json }}}}"
      vars:
        ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
"""
NODE = {"instance": {"name": "db2", "account": "postgres", "config_file": "/etc/main/postgresql.conf"}}


def evaluated(directory: Path, *asked: str, more_nodes: Sequence[str] = ("db1", "db3"), **given: Any) -> dict[str, Any]:
    """Variables of the role on db2, with these besides."""
    nodes = "\n".join(sorted({"db1", "db2", *more_nodes}, key=lambda name: int(name[2:])))
    (directory / "play.yml").write_text(PLAY, encoding="utf-8")
    (directory / "hosts").write_text(f"[postgres]\n{nodes}\n[archive]\nstore\n", encoding="utf-8")
    options = {
        "asked": asked,
        "node_member": NODE,
        "archive_destinations": ["nodes", "store", {"name": "nas", "directory": "/mnt/nas"}],
        "archive_trees": [],
        "archive_keep": {},
        "archive_compression": "none",
        "archive_address": "192.0.2.2",
        "archive_port": 22,
        "archive_dead": [],
        **given,
    }
    (directory / "given.json").write_text(json.dumps(options), encoding="utf-8")
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", "hosts", "-e", "@given.json", "play.yml"],
        cwd=directory,
        env={**os.environ, "ANSIBLE_HOME": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((directory / "found.json").read_text(encoding="utf-8"))
    return found


CASES = """
- hosts: all
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    node_member:
      {cluster: main, passfile: /etc/main/pgpass,
       instance: {name: "{{ inventory_hostname }}", account: postgres, config_file: /etc/main/postgresql.conf,
                  data_directory: /srv/data, bin_directory: /srv/bin, service: postgresql}}
    node_members: {}
  tasks:
    - ansible.builtin.include_tasks: case.yml
      loop: "{{ cases }}"
      loop_control: {loop_var: case}
    - ansible.builtin.copy:
        dest: "{{ playbook_dir }}/told.json"
        content: "{{ told | to_json }}"
      when: inventory_hostname == 'db1'
"""
CASE = """
- vars:
    archive_enabled: true
    archive_destinations: "{{ case.destinations | default(['nodes', 'store']) }}"
    archive_keep: "{{ case.keep | default({}) }}"
    archive_trees: "{{ [tree | combine(case.tree)] if 'tree' in case else [] }}"
    archive_fetch_ahead: "{{ case.fetch_ahead | default(16) }}"
    archive_sync_interval: "{{ case.sync_interval | default('5min') }}"
    archive_cluster: "{{ case.cluster | default('main') }}"
    archive_port: "{{ case.port | default(22) }}"
    tree: {name: scans, path: /srv/scans, account: root, partition: "%Y/%m/%d"}
  block:
    - ansible.builtin.include_role:
        name: hotspare.postgresql.archive
        tasks_from: check
      when: inventory_hostname in groups.postgres
    - ansible.builtin.include_role:
        name: hotspare.postgresql.archive
        tasks_from: check_configuration
    - ansible.builtin.set_fact:
        told: "{{ told | default([]) + [''] }}"
  rescue:
    - ansible.builtin.set_fact:
        told: "{{ told | default([]) + [ansible_failed_result.msg] }}"
"""
NAS = {"name": "nas", "directory": "/mnt/nas/main"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"destinations": ["nodes", "elsewhere"]}, "archive_destinations names elsewhere, no host of the group archive"),
    ({"destinations": ["store", {"name": "nas"}]}, "say the name of a host, or {name: ..., directory: ...}"),
    ({"destinations": ["store", {**NAS, "host": "nas"}]}, "say the name of a host, or {name: ..., directory: ...}"),
    ({"destinations": [NAS, NAS]}, "destinations has a name twice: db1, nas, nas"),
    ({"destinations": [{**NAS, "directory": "mnt"}]}, "directory is 'mnt', which is no absolute path"),
    ({"keep": {"days": -1}}, "keep has days: -1"),
    ({"fetch_ahead": -1}, "fetch_ahead is -1"),
    ({"tree": {"path": "srv/../mail"}}, "path is 'srv/../mail', which is no absolute path"),
    ({"tree": {"grace": -5}}, "the tree scans has a grace of -5"),
    ({"tree": {"skip": [9]}}, "skips [9]"),
    ({"tree": {"partition": "%Y"}}, "the partition '%Y' does not name one folder for each day"),
    ({"tree": {"path": "/srv/data/scans"}}, "overlap"),
    ({"tree": {"account": "nobody-here"}}, "there is no account nobody-here"),
    ({"cluster": "a: b"}, "cluster is 'a: b', which is no plain word"),
    ({"port": "ssh"}, "the port of db2 is 'ssh'"),
    ({"sync_interval": "soon"}, "archive_sync_interval is soon, which is no time span"),
    ({"sync_interval": "0"}, "archive_sync_interval is 0, which is no time span"),
]
MEANT: list[dict[str, Any]] = [
    {"destinations": ["store", NAS], "keep": {"days": "14", "backups": 2}, "tree": {"skip": [5, 6], "grace": 0}},
    {"sync_interval": "1h 30min", "fetch_ahead": 0, "tree": {"partition": ""}},
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What db1 says to REFUSED, and then to MEANT."""
    cases = [case for case, _words in REFUSED] + MEANT
    return role_cases.told(
        tmp_path_factory.mktemp("cases"), CASES, CASE, "[postgres]\ndb1\ndb2\n[archive]\nstore\n", cases
    )


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda number: str(REFUSED[number][0]))
def test_what_could_not_be_read_is_refused_before_it_is_written(told: list[str], number: int) -> None:
    assert REFUSED[number][1] in told[number]
    assert told[number].startswith("db1: ") and told[number].endswith(". Nothing was changed.")


def test_what_is_meant_is_not_refused(told: list[str]) -> None:
    assert told[len(REFUSED) :] == [""] * len(MEANT)


def test_documents_go_to_hosts_only(tmp_path: Path) -> None:
    """A destination that is a directory takes WAL; archive_sync refuses to ship documents there."""
    found = evaluated(tmp_path, "_archive_alive", "_archive_alive_hosts", archive_dead=["db1"])
    assert found == {"_archive_alive": ["db3", "store", "nas"], "_archive_alive_hosts": ["db3", "store"]}


def test_destinations_are_in_the_order_of_the_inventory(tmp_path: Path) -> None:
    """In another one the configuration would change with each run, and the shipper be started again."""
    nodes = [f"db{number}" for number in (1, *range(3, 12))]
    found = evaluated(tmp_path, "_archive_node", more_nodes=nodes)
    assert found["_archive_node"]["destinations"] == [*nodes, "store"]


def test_the_problems_of_wal_and_of_documents_are_told(tmp_path: Path) -> None:
    gaps = [{"gaps": None}, {"gaps": {"ok": True, "sentences": []}}, {"gaps": {"ok": False, "sentences": ["a hole"]}}]
    wal = {"archive": {"places": gaps}, "problems": ["store is away"]}
    trees = {"trees": [{"name": "scans"}], "problems": ["scans: one is missing"]}
    results = {"archive_looked": {"results": [wal, trees]}, "archive_swapped": {"skipped": True}}
    filled = {"archive_filled": {"msg": "store is away", "problems": ["store is away"]}}
    found = evaluated(tmp_path, "_archive_shown", "_archive_troubles", **results, **filled)
    assert found["_archive_shown"] == {
        "after_cutover": True,
        "archive": wal["archive"],
        "trees": trees["trees"],
        "problems": ["store is away", "scans: one is missing"],
    }
    assert found["_archive_troubles"] == ["store is away", "scans: one is missing", "a hole"]


def test_one_that_cannot_be_asked_is_told_as_well(tmp_path: Path) -> None:
    broken = {"msg": "the module has no answer", "failed": True}
    results = {"archive_looked": {"results": [broken, broken]}, "archive_swapped": {}, "archive_filled": broken}
    found = evaluated(tmp_path, "_archive_shown", "_archive_troubles", **results)
    assert (found["_archive_shown"]["archive"], found["_archive_shown"]["trees"]) == (None, [])
    assert found["_archive_troubles"] == [broken["msg"]]


def test_a_run_of_the_timer_that_hangs_is_ended() -> None:
    """A oneshot unit has no start timeout by itself, and its timer waits for it."""
    unit = (ROOT / "roles" / "archive" / "templates" / "sync.service.j2").read_text(encoding="utf-8")
    (timeout,) = (line.partition("=")[2] for line in unit.splitlines() if line.startswith("TimeoutStartSec="))
    assert "Type=oneshot" in unit and timeout not in ("", "0", "infinity")
