# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""molecule/failover/tests/README.md: each fault has a test, each test named there exists, and no number is made up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = range(1, 38)
ROW = re.compile(r"^\| F(\d+) \| .+ \| .+ \| (.+) \|$", re.MULTILINE)


def table() -> dict[int, list[str]]:
    """{number of the fault: [file::function]}"""
    text = (ROOT / "molecule" / "failover" / "tests" / "README.md").read_text(encoding="utf-8")
    rows = [(int(number), re.findall(r"`([^`]+)`", tests)) for number, tests in ROW.findall(text)]
    assert [number for number, _ in rows] == list(FAULTS)
    return dict(rows)


def functions(path: Path) -> set[str]:
    module = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("fault", FAULTS, ids="F{}".format)
def test_each_fault_has_its_tests(fault: int) -> None:
    tests = table()[fault]
    assert tests
    for test in tests:
        file, _, function = test.partition("::")
        assert function.startswith("test_"), test
        assert function in functions(ROOT / file), f"{test} does not exist"


def test_a_number_in_the_name_of_a_test_is_in_the_table() -> None:
    named = {test: [f for f, tests in table().items() if test in tests] for tests in table().values() for test in tests}
    for path in sorted((ROOT / "molecule").rglob("test_*.py")):
        for function in sorted(functions(path)):
            numbers = [int(number) for number in re.findall(r"(?<=_f)\d\d(?=_)", function)]
            claimed = named.get(f"{path.relative_to(ROOT)}::{function}", [])
            if "_to_" in function and numbers:
                numbers = [number for number in claimed if numbers[0] <= number <= numbers[-1]]
            assert set(numbers) <= set(claimed), f"{function} is not in the table under each of its numbers"
