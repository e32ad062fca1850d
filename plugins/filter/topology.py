# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of the library, for playbooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import mistake
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_report import archive_table
from ansible_collections.hotspare.postgresql.plugins.module_utils.cutover import failover_plan
from ansible_collections.hotspare.postgresql.plugins.module_utils.lock import this_run
from ansible_collections.hotspare.postgresql.plugins.module_utils.records import slot_name
from ansible_collections.hotspare.postgresql.plugins.module_utils.report import cutover_timeline
from ansible_collections.hotspare.postgresql.plugins.module_utils.status import status_table
from ansible_collections.hotspare.postgresql.plugins.module_utils.topology import (
    rebuild_plan,
    safe_parameters,
    site_plan,
    topology,
)


def _plain(value: Any) -> Any:
    """Ansible hands out containers that are templated while they are read: read them once, here."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*_plain(args), **_plain(kwargs))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise AnsibleFilterError(
                f"hotspare.postgresql.{name} cannot read what it was given: {type(error).__name__} {error}"
            ) from error

    return call


class FilterModule:
    """Filters of this collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        functions: dict[str, Callable[..., Any]] = {
            "topology": topology,
            "site_plan": site_plan,
            "failover_plan": failover_plan,
            "rebuild_plan": rebuild_plan,
            "safe_parameters": safe_parameters,
            "status_table": status_table,
            "slot_name": slot_name,
            "this_run": this_run,
            "cutover_timeline": cutover_timeline,
            "archive_table": archive_table,
            "archive_mistake": mistake,
        }
        return {name: _filter(name, function) for name, function in functions.items()}
