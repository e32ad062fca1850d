# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits for a task in the background, and says meanwhile how far its ZFS stream is; described in plugins/modules."""

from __future__ import annotations

import json
import os
import shlex
import time
from typing import Any, Optional

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

OPTIONS = {
    "job": {"type": "dict", "required": True},
    "status_file": {"type": "path"},
    "poll": {"type": "float", "default": 5.0},
    "interval": {"type": "float", "default": 15.0},
    "timeout": {"type": "float", "default": 2592000.0},
}


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=OPTIONS)
        job = options["job"]
        if not job.get("ansible_job_id"):  # it was not in the background: this is its result
            return {
                **{key: value for key, value in job.items() if key not in ("warnings", "deprecations")},
                "changed": False,
            }
        self._vars, self._options, self._said = task_vars, options, False
        return self._waited(job)

    def _waited(self, job: dict[str, Any]) -> dict[str, Any]:
        began = said = time.monotonic()
        before, boot, lost = self._told(), self._boot(), False
        while True:
            time.sleep(self._options["poll"])
            try:
                result = self._look(job, "status")
                if result.get("finished") or (result.get("failed") and result.get("_ansible_parsed")):
                    self._look(job, "cleanup")
                    return _explained(result, self._host)
                due = time.monotonic() - said >= self._options["interval"]
                # ssh may have connected anew without a word.
                if boot and (lost or due) and self._boot() not in (boot, ""):
                    return self._failed("it was restarted meanwhile: run this again, which goes on where it broke")
                if due:
                    said, before = time.monotonic(), self._say(before)
                lost = False
            except AnsibleConnectionFailure as error:
                if not lost:
                    display.warning(f"{self._host}: {error.message}; what runs there goes on, and is asked again")
                lost = True
            if time.monotonic() - began > self._options["timeout"]:
                return self._failed(
                    f"it has not ended within {self._options['timeout']:g} seconds, and goes on: see "
                    f"{job.get('results_file')} there, or run this again, which waits or goes on"
                )

    def _failed(self, message: str) -> dict[str, Any]:
        return {"failed": True, "msg": f"{self._host}: {message}"}

    def _boot(self) -> str:
        """Another one after each restart, random(4); empty where it cannot be read."""
        return str(self._low_level_execute_command("cat /proc/sys/kernel/random/boot_id")["stdout"]).strip()

    @property
    def _host(self) -> str:
        return str(self._vars["inventory_hostname"])

    def _look(self, job: dict[str, Any], mode: str) -> dict[str, Any]:
        words = {"jid": job["ansible_job_id"], "mode": mode, "_async_dir": os.path.dirname(str(job["results_file"]))}
        found: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status", module_args=words, task_vars=self._vars
        )
        return found

    def _told(self) -> Optional[dict[str, Any]]:
        """What stands in the status file; None when there is none, or not one of ours."""
        if not self._options["status_file"]:
            return None
        done = self._low_level_execute_command(f"cat {shlex.quote(self._options['status_file'])}")
        try:
            told = json.loads(done["stdout"])
        except ValueError:
            return None
        return told if isinstance(told, dict) else None

    def _say(self, before: Optional[dict[str, Any]]) -> Optional[dict[str, Any]]:
        """Only what is new: a run that was killed leaves its file."""
        from ansible_collections.hotspare.postgresql.plugins.module_utils.status import stream_progress

        told = self._told()
        if told and told != before and told.get("state") == "sending":
            display.display(f"{self._host}: {stream_progress(told)}")
            if not self._said:
                display.display(f"{self._host}: it goes on there, should this run be interrupted")
            self._said = True
        return told


def _explained(result: dict[str, Any], host: str) -> dict[str, Any]:
    """(Pure.) async_wrapper has no words of its own for a module that ended without a result."""
    if not result.get("failed") or "No start of json char found" not in str(result.get("msg")):
        return result
    message = "it ended without a result, as what is killed does: see the journal there, and run this again"
    return {"failed": True, "msg": f"{host}: {message}", "stderr": result.get("stderr", "")}
