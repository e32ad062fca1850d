# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node dies: kills ansible-playbook, its whole process group, right after a task that it was told.

HOTSPARE_KILL_AFTER is the number of the task, counting from 1 those that ran on any host, or "module" or
"module:state" of one of ours ("module:" without a state), of which it is the first; 0 only keeps the journal.
HOTSPARE_JOURNAL is the file for a line of JSON about each task that ended: {number, name, module, state}.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: kill_after
type: aggregate
short_description: Kills ansible-playbook after a task
description: For tests of what a control node leaves behind that dies.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_after"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.last = os.environ["HOTSPARE_KILL_AFTER"]
        self.journal = Path(os.environ["HOTSPARE_JOURNAL"])
        self.number = 0
        self.task: Any = None
        self.ran = False

    def _ended(self) -> None:
        """The task that was under way has ended on every host, since the next one begins."""
        if self.task is None or not self.ran:
            return
        self.number += 1
        state = self.task.args.get("state") if isinstance(self.task.args, dict) else None
        module = self.task.action.rpartition(".")[2]
        step = {"number": self.number, "name": self.task.get_name(), "module": module, "state": state}
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step) + "\n")
        if self.last in (str(self.number), module, f"{module}:{state or ''}"):
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _begins(self, task: Any) -> None:
        self._ended()
        self.task, self.ran = task, False

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._begins(task)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._begins(task)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._begins(None)

    def v2_runner_on_ok(self, result: Any) -> None:
        self.ran = True

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.ran = True

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.ran = True
