# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters, as a template of a playbook calls them, and their documentation."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.hotspare.postgresql.plugins.filter import topology as plugin
from ansible_collections.hotspare.postgresql.plugins.module_utils import (
    archive_config,
    archive_report,
    cutover,
    lock,
    records,
    report,
    status,
    topology,
)
from ansible_collections.hotspare.postgresql.tests.unit.nodes import UNREACHABLE, answers, primary, standby

FILTERS = plugin.FilterModule().filters()
FUNCTIONS: dict[str, Any] = {
    "topology": topology.topology,
    "site_plan": topology.site_plan,
    "failover_plan": cutover.failover_plan,
    "rebuild_plan": topology.rebuild_plan,
    "safe_parameters": topology.safe_parameters,
    "status_table": status.status_table,
    "slot_name": records.slot_name,
    "this_run": lock.this_run,
    "cutover_timeline": report.cutover_timeline,
    "archive_table": archive_report.archive_table,
    "archive_mistake": archive_config.mistake,
}


def document(name: str) -> dict[str, Any]:
    path = Path(plugin.__file__).with_name(f"{name}.yml")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_every_filter_is_there_and_documented() -> None:
    assert set(FILTERS) == set(FUNCTIONS)
    assert {path.stem for path in Path(plugin.__file__).parent.glob("*.yml")} == set(FILTERS)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_the_documentation_names_the_options_of_the_function(name: str) -> None:
    documented = document(name)["DOCUMENTATION"]
    _, *parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    assert documented.get("positional", "").split(", ") == ([p.name for p in parameters] or [""])
    options = {key: option for key, option in documented["options"].items() if key != "_input"}
    assert list(options) == [p.name for p in parameters]
    for parameter in parameters:
        option = options[parameter.name]
        assert bool(option.get("required")) is (parameter.default is inspect.Parameter.empty), parameter.name
        if "default" in option:
            assert option["default"] == parameter.default


PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    seen: "{{ asked | hotspare.postgresql.topology(17) }}"
    members: "{{ {'db1': {'address': address}, 'db2': {'address': '192.0.2.2'}} }}"
    address: 192.0.2.1
    wanted: {max_connections: 100}
    silent: "{{ {'db1': asked.db1, 'db2': silence} | hotspare.postgresql.topology }}"
  tasks:
    - ansible.builtin.assert:
        that:
          - seen.verdict == 'healthy'
          - seen.nodes.db2.upstream.host == '192.0.2.1'
          - (seen | hotspare.postgresql.failover_plan('', 'planned', members, confirm_unfenced='')).ok
          - (seen | hotspare.postgresql.site_plan('db2', members)).primary == 'db1'
          - not (seen | hotspare.postgresql.rebuild_plan('db1', 'db1')).ok
          - "(seen | hotspare.postgresql.status_table(cluster='x') | first) is match('x: HEALTHY')"
          - (wanted | hotspare.postgresql.safe_parameters(seen, 'db2')).node_values == wanted
          - "'hotspare_' | hotspare.postgresql.slot_name('db-2') == 'hotspare_db_2'"
          - silent.unknown == ['db2']
          - ({} | hotspare.postgresql.archive_mistake) is search('name')
          - "{'trees': []} | hotspare.postgresql.archive_table == []"
          - (seen | hotspare.postgresql.this_run).token == (silent | hotspare.postgresql.this_run).token
"""


def test_a_play_calls_them(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY, encoding="utf-8")
    given = {"asked": answers(primary("db1", "db2"), standby("db2")), "silence": UNREACHABLE}
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    program = Path(sys.executable).with_name("ansible-playbook")
    collections = str(Path(__file__).resolve().parents[2] / ".cache" / "collections")
    done = subprocess.run(
        [program, "-i", "localhost,", "-c", "local", "-e", "@given.json", "play.yml"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": collections},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("given", ["text", [], {}])
def test_nonsense_is_one_sentence(given: object) -> None:
    with pytest.raises(AnsibleFilterError, match="hotspare.postgresql.site_plan cannot read what it was given"):
        FILTERS["site_plan"](given, "db1", [])
