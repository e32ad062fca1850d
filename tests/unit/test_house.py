# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""House rules that no linter knows: modules have tests, roles say what they take, floors hold, words are ours."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.playbook.block import Block
from ansible.playbook.handler import Handler

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "hotspare.postgresql"
UTILS = f"ansible_collections.{NAMESPACE}.plugins.module_utils"

# Each module, and the unit test of the library it calls. Its integration test is always
# tests/integration/test_<module>.py (or ELSEWHERE), where the fixture `four_steps` takes it through
# check mode, real, check mode again, real again.
UNIT_TESTS = {
    "archive_sync": "test_wal_sync",
    "cluster_lock": "test_lock",
    "node_program": "test_packing",
    "pg_promote": "test_promotion",
    "pg_rebuild": "test_rebuild",
    "pg_replication_state": "test_desired",
    "pg_server": "test_serving",
    "zfs_snapshot_send": "test_zfs_send",
}

# What needs a kernel that this machine may not have is tested in virtual machines that have it.
ELSEWHERE = {"zfs_snapshot_send": "molecule/zfs/tests/test_zfs_snapshot_send.py"}

# What works on the controller, and has a module for its documentation only.
ACTIONS = {"zfs_send_wait"}

# plugins/module_utils from the ground up: a file imports only from the lines above its own.
FLOORS = (
    {"archive_client", "asked", "wal", "shell", "problems", "ssh", "version", "zfs_status"},  # ground
    {
        "armed_state",
        "config_file",
        "conninfo",
        "controldata",
        "lock",
        "packing",
        "records",
        "lasting_shell",
        "wal_file",
        "zstd",
    },  # ground: needs the line above
    {"document_tree"},  # ground: documents of a day
    {"archive_gaps", "archive_retention", "archive_shipping"},  # ground: what an archive lacks, and what it may lose
    {"server", "store"},  # first
    {"zfs"},  # first: the commands of ZFS
    {"mounts", "zfs_refusals", "zfs_stream"},  # first: what is not mounted, or not asked for; how a stream goes
    {"zfs_copy", "zfs_layout"},  # first: what is in a backup pool; where the datasets of a server are
    {"zfs_plan"},  # first: what is sent
    {"zfs_send"},  # first: sends it
    {"zfs_serve"},  # first: what a key may have of all that
    {"archive_status", "demotion", "peers", "stale_slots", "stopping"},  # first: what needs a word of the line above
    {"address", "fencing", "guard"},  # first: follows the primary; ends what does not stop; keeps a dead primary down
    {"serving"},  # first: does what pg_server is asked for
    {"archive", "replication", "wire"},  # second
    {"archive_config"},  # second: where WAL and documents come from and go to
    {"tree_files"},  # second: documents of this host
    {"tree_server", "tree_source"},  # second: what takes documents; what has them
    {"archive_known"},  # second: which archives were seen
    {"archive_needs"},  # second: who needs WAL of it
    {"archive_link"},  # second: a destination, seen from who ships
    {"tree_target"},  # second: a destination of documents, seen from who ships
    {"tree_compare"},  # second: what is there of them
    {"tree_sync"},  # second: what ships documents
    {"archive_server"},  # second: the same, seen from there
    {"archive_fetch"},  # second: what restore_command brings
    {"shipper"},  # second: what archive_command asks
    {"topology", "preflight", "report", "status", "desired", "promotion", "rebuild"},  # third
    {"rebuild_zfs_look"},  # third: what a rebuild by ZFS decides on
    {"arming", "forced", "rebuild_look"},  # third: promotes on a proof; what a cutover and a rebuild decide on
    {"cutover", "rebuild_files"},  # third: decides on it; what a rebuild works with
    {"archive_report", "wal_holders"},  # third: what archive_check.yml prints; who has WAL
    {"wal_sync"},  # third: brings it together
    {"zfs_backup", "zfs_restore"},  # third: what the timer sends to a backup pool; whether that can be restored
    {"rebuild_rewind", "rebuild_zfs"},  # third: methods of a rebuild
    {"rebuilding"},  # third: does what rebuild decided
    {"program"},  # above all: does what systemd and sshd run
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}

ROLES = {"archive", "node", "primary", "standby", "failover", "zfs"}
PLAYBOOKS = {"site", "failover", "rebuild_standby", "status", "archive_check", "snapshot", "snapshot_restore_test"}


def names(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def text_files() -> Iterator[Path]:
    """Every text file of the project; what tools keep (.git, .cache, ...) and build is not ours."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if (not name.startswith(".") or name in (".ci", ".config", ".github"))
            and name not in ("__pycache__", "output")
        ]
        for name in files:
            path = Path(folder, name)
            if path.is_file() and b"\0" not in path.read_bytes()[:8192]:
                yield path


PYTHON = sorted(path for path in text_files() if path.suffix == ".py")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- 1. every module has its tests -----------------------------------------------------------------------------------


def imported(module: ast.Module) -> set[str]:
    """Full names of all that is imported, `from a import b` as a and a.b."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def claims(function: ast.FunctionDef) -> bool:
    """Whether a test can fail by itself: it asserts, expects an error, or hands over to a function that checks."""
    calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Assert) for node in ast.walk(function)) or any(
        call == "pytest.raises" or re.match(r"(\w+\.)*_?(assert|check|expect)", call) for call in calls
    )


def cases(path: Path) -> list[str]:
    assert path.is_file(), f"{named(path)} is missing"
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]
    return [node.name for node in functions if node.name.startswith("test_") and claims(node)]


def test_every_module_is_listed_with_its_tests() -> None:
    assert names("plugins/modules") == set(UNIT_TESTS) | ACTIONS
    assert names("plugins/action") == ACTIONS
    for name in sorted(ACTIONS):
        assert cases(ROOT / f"tests/integration/test_{name}.py")


@pytest.mark.parametrize("module", sorted(UNIT_TESTS))
def test_a_module_has_unit_tests_of_the_library_it_calls(module: str) -> None:
    path = ROOT / "tests" / "unit" / f"{UNIT_TESTS[module]}.py"
    assert cases(path), f"{named(path)} has no test"
    called = {name for name in imported(tree(ROOT / f"plugins/modules/{module}.py")) if name.startswith(UTILS + ".")}
    tested = imported(tree(path))
    library = UNIT_TESTS[module].replace("test_", f"{UTILS}.", 1)
    assert library in called, f"{module} does not call {library}"
    assert library in tested, f"{named(path)} does not import {library}"


def walked_through_four_steps(module: ast.Module) -> set[str]:
    """Names that tests give to the fixture four_steps, spelt out or by a constant of the file."""
    constants = {
        ast.unparse(node.targets[0]): node.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    tests = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    calls = [
        node
        for test in tests
        if "four_steps" in {argument.arg for argument in test.args.args}
        for node in ast.walk(test)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "four_steps" and node.args
    ]
    given = [constants.get(ast.unparse(call.args[0]), call.args[0]) for call in calls]
    return {str(name.value) for name in given if isinstance(name, ast.Constant)}


@pytest.mark.parametrize("module", sorted(UNIT_TESTS))
def test_a_module_has_integration_tests_and_a_check_mode_case(module: str) -> None:
    path = ROOT / ELSEWHERE.get(module, f"tests/integration/test_{module}.py")
    assert cases(path), f"{named(path)} has no test"
    assert module in walked_through_four_steps(tree(path)), (
        f"{named(path)} has no test that calls four_steps({module!r})"
    )


def test_every_library_has_a_unit_test_that_imports_it() -> None:
    tested = set()
    for path in (ROOT / "tests" / "unit").glob("test_*.py"):
        if path != Path(__file__).resolve() and cases(path):
            tested |= imported(tree(path))
    assert [name for name in sorted(names("plugins/module_utils")) if f"{UTILS}.{name}" not in tested] == []


# --- 2. roles say what they take -------------------------------------------------------------------------------------


def load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=TagLoader)


class TagLoader(yaml.SafeLoader):
    """YAML as Ansible has it: `!vault`, `!unsafe` and the like are plain values here."""


TagLoader.add_multi_constructor("!", lambda loader, tag, node: node.value)


def roles() -> set[str]:
    return {path.name for path in (ROOT / "roles").iterdir() if path.is_dir()}


def test_the_roles_are_there() -> None:
    assert roles() >= ROLES


@pytest.mark.parametrize("role", sorted(ROLES | roles()))
def test_a_roles_argument_specs_are_its_defaults(role: str) -> None:
    specs = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]
    defaults = load(ROOT / "roles" / role / "defaults" / "main.yml") or {}
    assert "main" in specs
    options: dict[str, Any] = {}
    for entry, spec in specs.items():
        assert spec.get("short_description"), f"{entry} says not what it does"
        for name, option in (spec.get("options") or {}).items():
            known = options.setdefault(name, option)  # another entry point may need it more, or less
            assert [known.get(key) for key in ("type", "default")] == [option.get(key) for key in ("type", "default")]

    assert [name for name in sorted({*options, *defaults}) if not name.startswith(f"{role}_")] == []
    assert [name for name, option in options.items() if not (option.get("description") and option.get("type"))] == []
    assert sorted(set(defaults) - set(options)) == [], "defaults that argument_specs.yml does not know"
    for name, option in options.items():
        if "default" in option:
            assert not option.get("required"), f"{name} is required and has a default"
            assert name in defaults, f"{name} has a default in argument_specs.yml only"
            assert defaults[name] == option["default"], name
        else:  # a default of null is no default
            assert defaults.get(name) is None, f"{name} has a default in defaults/main.yml only"
            assert not (option.get("required") and name in defaults), f"{name} is required and has a default"


# --- 3. floors -------------------------------------------------------------------------------------------------------


def test_every_library_has_its_floor() -> None:
    assert names("plugins/module_utils") == set(FLOOR)


@pytest.mark.parametrize("name", sorted(set(FLOOR) | names("plugins/module_utils")))
def test_a_library_imports_only_from_floors_below(name: str) -> None:
    module = tree(ROOT / "plugins" / "module_utils" / f"{name}.py")
    for node in ast.walk(module):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        assert node.level == 1, f"line {node.lineno}: an import from outside the library"
        for below in [node.module] if node.module else [alias.name for alias in node.names]:
            assert FLOOR[below] < FLOOR[name], f"line {node.lineno}: {below} is not below {name}"


@pytest.mark.parametrize("name", sorted(set(FLOOR) | names("plugins/module_utils")))
def test_a_library_needs_only_python_and_psycopg2_only_inside_functions(name: str) -> None:
    module = tree(ROOT / "plugins" / "module_utils" / f"{name}.py")
    inside = {
        id(node)
        for function in ast.walk(module)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            packages = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages = {(node.module or "").partition(".")[0]}
        else:
            continue
        foreign = packages - sys.stdlib_module_names
        assert foreign <= {"psycopg2"}, f"line {node.lineno} imports {foreign}: the library runs without Ansible"
        assert not foreign or id(node) in inside, f"line {node.lineno}: psycopg2 is needed before a server is asked"


# --- 4. playbooks and roles ------------------------------------------------------------------------------------------

SECTIONS = ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always")
KEYWORDS = {*Handler.fattributes, *Block.fattributes, "action", "local_action"}
SHELLS = {"shell", "raw"}


def yaml_files() -> list[Path]:
    folders = [ROOT / "roles", ROOT / "playbooks", ROOT / "molecule"]
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".yml", ".yaml")]
    return sorted([*found, *ROOT.glob("*.yml")])


def is_task_file(path: Path) -> bool:
    return path.parent.name in ("tasks", "handlers") or "tasks" in path.relative_to(ROOT).parts[:-1]


def tasks_in(content: Any) -> Iterator[dict[str, Any]]:
    """All tasks of a list of tasks or plays, those in blocks too."""
    for entry in content or []:
        inner = [entry[section] for section in SECTIONS if section in entry]
        for section in inner:
            yield from tasks_in(section)
        if not inner and not {"hosts", "import_playbook", "ansible.builtin.import_playbook"} & set(entry):
            yield entry


def action_of(task: dict[str, Any]) -> str:
    actions = [key for key in task if key not in KEYWORDS and not key.startswith("with_")]
    assert len(actions) == 1, f"which of {actions} is the module of {task.get('name', task)}?"
    return actions[0]


def all_tasks() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in yaml_files():
        content = load(path)
        is_playbook = isinstance(content, list) and not is_task_file(path)
        if is_playbook:
            assert all({"hosts", "import_playbook", "ansible.builtin.import_playbook"} & set(play) for play in content)
        if is_playbook or is_task_file(path):
            found += [(named(path), task) for task in tasks_in(content)]
    return found


def values_of(content: Any, key: str) -> Iterator[Any]:
    """Every value under `key`, however deep."""
    if isinstance(content, dict):
        yield from (value for name, value in content.items() if name == key)
        for value in content.values():
            yield from values_of(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from values_of(value, key)


def test_the_playbooks_and_the_roles_have_tasks() -> None:
    assert {path.stem for path in (ROOT / "playbooks").glob("*.yml")} >= PLAYBOOKS
    with_tasks = {where for where, _ in all_tasks()}
    for role in ROLES:
        assert [where for where in with_tasks if where.startswith(f"roles/{role}/tasks/")], f"{role} does nothing"


def test_every_task_names_its_module_in_full() -> None:
    short = [(where, action_of(task)) for where, task in all_tasks() if action_of(task).count(".") < 2]
    assert short == []


def test_roles_are_named_in_full() -> None:
    used = [
        (where, task[action]["name"])
        for where, task in all_tasks()
        for action in ("ansible.builtin.include_role", "ansible.builtin.import_role")
        if action in task
    ]
    for path in yaml_files():
        content = load(path)
        if isinstance(content, list) and not is_task_file(path):
            for listed in values_of(content, "roles"):
                used += [(named(path), role if isinstance(role, str) else role["role"]) for role in listed]
    assert used, "no playbook uses a role"
    assert [(where, role) for where, role in used if role.count(".") < 2 and "{{" not in role] == []


def test_no_task_runs_a_shell() -> None:
    shells = [(where, action) for where, task in all_tasks() for action in task if action.rpartition(".")[2] in SHELLS]
    assert shells == []


def test_no_unit_does_something_as_root_for_another_account() -> None:
    """`ExecStartPre=+...` would, each time it starts, and where that account may have laid a link by then."""
    units = [
        path for path in ROOT.glob("roles/archive/templates/*.j2") if "[Service]" in path.read_text(encoding="utf-8")
    ]
    assert units
    risen = [
        (named(path), line) for path in units for line in re.findall(r"^Exec\w+=[@:-]*[+!].*", path.read_text(), re.M)
    ]
    assert risen == []


def test_a_command_says_when_it_changed_something() -> None:
    def says(task: dict[str, Any]) -> bool:
        options = {**task.get("args", {}), **(task[action_of(task)] if isinstance(task[action_of(task)], dict) else {})}
        return "changed_when" in task or bool({"creates", "removes"} & set(options))

    commands = ("ansible.builtin.command", "ansible.builtin.script")
    silent = [
        (where, task.get("name")) for where, task in all_tasks() if action_of(task) in commands and not says(task)
    ]
    assert silent == []


def test_no_error_is_ignored() -> None:
    ignored = [named(path) for path in yaml_files() for _ in values_of(load(path), "ignore_errors")]
    assert ignored == []


def test_the_searches_above_find_what_they_look_for() -> None:
    plays = yaml.safe_load(
        """
        - hosts: all
          roles: [node]
          tasks:
            - name: A block
              block:
                - {name: Deep, shell: ls, ignore_errors: true, register: out}
              rescue:
                - {name: Fine, ansible.builtin.command: ls, changed_when: false, loop: [1]}
        """
    )
    assert [action_of(task) for task in tasks_in(plays)] == ["shell", "ansible.builtin.command"]
    assert list(values_of(plays, "ignore_errors")) == [True]
    assert list(values_of(plays, "roles")) == [["node"]]
    tests = ast.parse("M = 'pg_a'\ndef test_a(four_steps): four_steps(M, {})\ndef test_b(): four_steps('pg_b')")
    assert walked_through_four_steps(tests) == {"pg_a"}


# --- 5. words, and habits of Python ----------------------------------------------------------------------------------

# Spelt in two parts, so that this file may be searched as well. Names that others gave their things stay.
UNWANTED = re.compile(r"(?<!post)(?<!control)mas" + r"ter|sla" + r"ve", re.IGNORECASE)


def test_words() -> None:
    assert UNWANTED.search("the Mas" + "ter")
    assert not UNWANTED.search("postmaster.pid, ControlMaster")
    found = []
    for path in text_files():
        if UNWANTED.search(named(path)):
            found.append(named(path))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if UNWANTED.search(line):
                found.append(f"{named(path)}:{number}")
    assert found == []


def ends_in_raise(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


@pytest.mark.parametrize("path", PYTHON, ids=named)
def test_python_habits(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines()[:4] if not line.startswith("#!")]
    assert lines[0] == "# Copyright: (c) 2026, hotspare contributors"
    assert lines[2] == "# SPDX-License-Identifier: GPL-3.0-or-later"
    assert "\nfrom __future__ import annotations\n" in text
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler) and not ends_in_raise(node):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"line {node.lineno}: a blanket except"
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            assert name != "time.time", f"line {node.lineno}: a deadline wants time.monotonic()"
            assert not re.fullmatch(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)", name), (
                f"line {node.lineno}: a test that may not run"
            )
