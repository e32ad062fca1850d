# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role zfs makes of the inventory: what it refuses, and the configuration that the program reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import Login
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_backup import read_backup_config, want
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_refusals import Keep
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_serve import Serve

from . import role_cases

ROOT = Path(__file__).resolve().parents[2]
PLAY = f"""
- hosts: postgres
  connection: local
  gather_facts: false
  vars_files: [{ROOT}/roles/zfs/vars/main.yml]
  vars:
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
    node_member:
      {{cluster: main, address: 192.0.2.1,
        instance: {{name: "{{{{ inventory_hostname }}}}", data_directory: /srv/data, bin_directory: /bin, port: 5433}}}}
    zfs_dataset: tank/pg
  tasks:
    - ansible.builtin.include_tasks: case.yml
      loop: "{{{{ cases }}}}"
      loop_control: {{loop_var: case}}
    - ansible.builtin.copy:
        dest: "{{{{ playbook_dir }}}}/told.json"
        content: "{{{{ told | to_json }}}}"
      when: inventory_hostname == 'db1'
"""
CASE = """
- vars:
    zfs_backup_dataset: "{{ case.dataset | default('vault/pg') }}"
    zfs_backup_host: "{{ case.host | default('') }}"
    zfs_backup_keep: "{{ case.keep | default({'count': 24, 'days': 7}) }}"
    zfs_backup_from: "{{ case.from | default('standby') }}"
    zfs_backup_on_calendar: "{{ case.on_calendar | default('hourly') }}"
    zfs_backup_port: 22
    zfs_backup_account: root
    zfs_backup_identity: /root/.ssh/id_ed25519
    zfs_backup_known_hosts: /root/.ssh/known_hosts
    zfs_address: 192.0.2.1
    zfs_port: 22
    zfs_account: hotspare-zfs
  block:
    - ansible.builtin.include_role:
        name: hotspare.postgresql.zfs
        tasks_from: member
    - ansible.builtin.set_fact:
        told: "{{ told | default([]) + [{'member': zfs_member, 'config': _zfs_config}] }}"
  rescue:
    - ansible.builtin.set_fact:
        told: "{{ told | default([]) + [ansible_failed_result.msg] }}"
"""
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dataset": "vault"}, "zfs_backup_dataset is vault, which is no dataset below a pool"),
    ({"dataset": "vault/p g"}, "zfs_backup_dataset is vault/p g, which is no dataset below a pool"),
    ({"dataset": "tank/pg"}, "of which one contains the other"),
    ({"dataset": "tank/pg/copies"}, "of which one contains the other"),
    ({"keep": {"count": 0}}, "zfs_backup_keep is {'count': 0}, which keeps nothing"),
    ({"keep": {"count": 3, "days": -1}}, "which keeps nothing; say {count: 24, days: 7}, or {} to keep all"),
    ({"on_calendar": ""}, "zfs_backup_on_calendar is , which is no time"),
    ({"on_calendar": "daily\nExecStart=x"}, "which is no time"),
]
INVALID: list[dict[str, Any]] = [
    {"from": "anywhere"},
    {"keep": {"weeks": 1}},
    {"keep": ["count"]},
    {"keep": {"count": 1.5}},
]
MEANT: list[dict[str, Any]] = [
    {},
    {"dataset": ""},
    {
        "host": "store",
        "dataset": "tank/pg",
        "keep": {},
        "on_calendar": "Mon..Fri 08..18:00/30",
        "from": "primary",
    },
    {"host": "192.0.2.9", "keep": {"count": "3", "days": None}},
    {"host": "nas.example.org", "dataset": "tank/pgcopies", "keep": {"days": 0.5}},
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What db1 says to REFUSED, INVALID and MEANT."""
    hosts = "[postgres]\ndb1\ndb2\n[others]\nstore\nfar ansible_host=192.0.2.9\n"
    cases = [case for case, _words in REFUSED] + INVALID + MEANT
    return role_cases.told(tmp_path_factory.mktemp("cases"), PLAY, CASE, hosts, cases)


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda number: str(REFUSED[number][0]))
def test_what_cannot_be_meant_is_refused(told: list[Any], number: int) -> None:
    assert REFUSED[number][1] in told[number]
    assert told[number].startswith("db1: ") and told[number].endswith(". Nothing was changed.")


@pytest.mark.parametrize("number", range(len(INVALID)), ids=lambda number: str(INVALID[number]))
def test_what_is_no_option_is_refused_by_the_specification(told: list[Any], number: int) -> None:
    assert "Validation of arguments failed" in told[len(REFUSED) + number]


def test_what_is_meant_is_what_the_program_reads(told: list[Any], tmp_path: Path) -> None:
    configs, members = [], []
    for one in told[len(REFUSED) + len(INVALID) :]:
        path = tmp_path / "main.json"
        path.write_text(json.dumps(one["config"]), encoding="utf-8")
        configs.append(read_backup_config(str(path)))
        members.append(one["member"]["backup"])
    first, none, store, far, nas = configs
    assert (first.node.port, first.peers, first.dataset) == (5433, ("db2",), "tank/pg")
    assert first.status == "/run/hotspare-snapshot-main.json"
    assert first.record == "/var/lib/hotspare-zfs/hotspare-snapshot-main.json"
    assert first.backup is not None and none.backup is None
    assert (first.backup.dataset, first.backup.login, first.backup.wanted) == ("vault/pg/db1", None, "standby")
    assert first.backup.keep == Keep(24, 7)
    assert store.backup is not None and far.backup is not None and nas.backup is not None
    assert store.backup.login == Login("store", 22, "root", "/root/.ssh/id_ed25519", "/root/.ssh/known_hosts")
    assert (store.backup.wanted, store.backup.keep) == ("primary", Keep())
    assert (far.backup.keep, nas.backup.keep) == (Keep(3), Keep(None, 0.5))
    assert [member.get("holder") for member in members] == ["db1", None, "store", "far", ""]
    assert members[0]["into"] == "vault/pg/db1"


def test_the_readmes_configuration_is_what_a_backup_asks_for() -> None:
    """A forced command permits these properties and no others."""
    text = (ROOT / "roles/zfs/README.md").read_text(encoding="utf-8")
    found = json.loads(text[text.index('{"prefix"') : text.index("Options: [meta")])
    asked = want(Keep(count=1))
    assert (found["prefix"], found["properties"]) == (asked.prefix, asked.properties)
    assert found["copied"] == list(asked.copied)
    assert Serve(**found).rename and Serve(**found).prune
