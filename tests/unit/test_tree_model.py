# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever an application does to a tree, roles do and runs die of: no document is lost, and none is overwritten."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_files, tree_source, tree_sync
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .trees import PATTERN, Node, connect

CALLS = ("link", "unlink", "rename", "chmod", "mkdir", "utime")
NAMES = st.sampled_from(["a", "b", "c/d", "c/e", "c"])
CONTENTS = st.sampled_from(["one", "two", "three"])
EXAMPLES = int(os.environ.get("HOTSPARE_TREE_EXAMPLES", "25"))
CRASH = st.none() | st.integers(0, 25)


class Crash(BaseException):
    """The power fails."""


class Trees(RuleBasedStateMachine):
    """`before` is what each node's tree held at the last look, less what the application has changed since."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        self.clock = SimpleNamespace(now=datetime(2026, 11, 20, 12))
        outer = self.clock

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return outer.now

        self.patch.setattr(tree_source, "datetime", Clock)
        self.primary, self.standby = Node(self.directory, "db1"), Node(self.directory, "db2")
        connect(self.patch, self.primary, self.standby)
        self.versions: dict[str, set[str]] = defaultdict(set)
        self.before: dict[str, dict[str, str]] = {"db1": {}, "db2": {}}
        self.crashed = False

    def teardown(self) -> None:
        self.stack.close()

    @initialize()
    def roles(self) -> None:
        self.primary.writable(True)
        self.standby.writable(False)

    # --- the application ----------------------------------------------------------------------------------------------

    @rule(days=st.integers(0, 3), name=NAMES, content=CONTENTS)
    def write(self, days: int, name: str, content: str) -> None:
        folder = f"{self.clock.now - timedelta(days=days):{PATTERN}}" if days < 3 else "other"
        path = f"{folder}/{name}"
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):  # "c" may be a folder
            self.primary.write(path, content)
            self.versions[path].add(content)
            self.before[self.primary.name].pop(path, None)

    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        if documents := sorted(self.primary.documents()):
            path = data.draw(st.sampled_from(documents))
            (self.primary.path / path).unlink()
            self.before[self.primary.name].pop(path, None)

    @rule(days=st.integers(1, 2))
    def wait(self, days: int) -> None:
        self.clock.now += timedelta(days=days)

    # --- runs ---------------------------------------------------------------------------------------------------------

    @rule(crash=CRASH, timer=st.booleans())
    def sync(self, crash: int | None, timer: bool) -> None:
        result = self._run(crash, self.primary, tree_sync._sync, None, False, timer)
        if result is not None and not timer:
            self._check_shipped(result, self.primary, self.standby)

    @rule(crash=CRASH)
    def swap(self, crash: int | None) -> None:
        old, new = self.primary, self.standby
        self._run(crash, old, tree_sync.set_writable, False)
        self._run(crash, new, tree_sync.set_writable, True)
        old.writable(False)
        new.writable(True)
        self.primary, self.standby = new, old
        result = self._run(crash, old, tree_sync._switch_and_sync, None, False) or self._run(
            None, old, tree_sync._switch_and_sync, None, False
        )
        if result is not None and result["destinations"]:
            self._check_shipped(result, old, new)
        assert not tree_files.Home(str(old.directory), "scans").owes()

    def _run(self, crash: int | None, node: Node, function: Any, *arguments: Any) -> dict[str, Any] | None:
        """The result, None when it died in its call number `crash` that changes something."""
        if crash is None:
            return node.run(function, *arguments)
        left = [crash]

        def dying(real: Any) -> Any:
            def call(*given: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
                return real(*given, **named)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                return node.run(function, *arguments)
            except Crash:
                self.crashed = True
                return None

    # --- what always holds --------------------------------------------------------------------------------------------

    @staticmethod
    def _check_shipped(result: dict[str, Any], source: Node, target: Node) -> None:
        (place,) = result["destinations"]
        assert place["error"] is None
        kept = {(path, content) for (path, _), content in target.evidence().items()}
        theirs = target.documents()
        for path, content in source.documents().items():
            if theirs.get(path) != content:
                assert (path, content) in kept or any(
                    said.startswith(f"{path} changed") for said in result["conflicts"]
                )
                assert any(said.startswith(f"{path} ") for said in [*result["conflicts"], *place["conflicts"]])

    @invariant()
    def nothing_is_lost_or_overwritten(self) -> None:
        for node in (self.primary, self.standby):
            now = node.documents()
            assert self.before[node.name].items() <= now.items()
            assert all(content in self.versions[path] for path, content in now.items())
            self.before[node.name] = now

    @invariant()
    def manifests_can_be_read(self) -> None:
        for node in (self.primary, self.standby):
            home = tree_files.Home(str(node.directory), "scans")
            for partition in home.manifests(pytest.fail):
                assert all(entry.sha256 for entry in home.sealed(partition))

    @precondition(lambda self: not self.crashed)
    @invariant()
    def a_copy_is_read_only(self) -> None:
        if not (self.standby.home / "modes").exists():
            return
        for folder, folders, names in os.walk(self.standby.path):
            ours = (tree_files.STAGING, tree_files.MARKS)
            folders[:] = [name for name in folders if os.fsencode(name) not in ours]
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                assert not os.stat(path).st_mode & 0o222


Trees.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=15, deadline=None)


def test_trees() -> None:
    expect_no_counterexample = Trees.TestCase()
    expect_no_counterexample.runTest()
