# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a playbook's time goes: writes a line of JSON for each task that ran, to the file HOTSPARE_BENCH_JOURNAL.

{"task", "seconds", and what our modules say of a cutover: "shutdown" of pg_server, "armed" of pg_promote,
"method" and "steps" of pg_rebuild}
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: bench_journal
type: aggregate
short_description: Writes down where a playbook's time goes
description: For bench/cutover and bench/zfs.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "bench_journal"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.step: dict[str, Any] = {"task": "(before the first task)"}
        self.began = time.monotonic()
        self.ran = True

    def _begins(self, name: str) -> None:
        if self.ran:
            self.step["seconds"] = round(time.monotonic() - self.began, 3)
            with open(os.environ["HOTSPARE_BENCH_JOURNAL"], "a", encoding="utf-8") as file:
                file.write(json.dumps(self.step) + "\n")
        self.step, self.began, self.ran = {"task": name}, time.monotonic(), False

    def _result(self, result: Any) -> None:
        self.ran = True
        values = getattr(result, "result", None) or result._result
        self.step.update({name: values[name] for name in ("shutdown", "armed", "method", "steps") if values.get(name)})

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._begins(task.get_name())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._begins(task.get_name())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._begins("")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._result(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._result(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.ran = True
