# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of the library, for playbooks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

UTILS = "ansible_collections.hotspare.postgresql.plugins.module_utils"
# Where each filter is: module, and function. They are imported when one is called: each worker of Ansible does that
# again, and compiles what it imports of a collection.
FILTERS = {
    "topology": ("topology", "topology"),
    "site_plan": ("topology", "site_plan"),
    "rebuild_plan": ("topology", "rebuild_plan"),
    "safe_parameters": ("topology", "safe_parameters"),
    "failover_plan": ("cutover", "failover_plan"),
    "status_table": ("status", "status_table"),
    "slot_name": ("records", "slot_name"),
    "this_run": ("lock", "this_run"),
    "cutover_timeline": ("report", "cutover_timeline"),
    "archive_table": ("archive_report", "archive_table"),
    "archive_mistake": ("archive_config", "mistake"),
}


def _plain(value: Any) -> Any:
    """Ansible hands out containers that are templated while they are read: read them once, here."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value


def _filter(name: str, module: str, function: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        found = getattr(importlib.import_module(f"{UTILS}.{module}"), function)
        try:
            return found(*_plain(args), **_plain(kwargs))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise AnsibleFilterError(
                f"hotspare.postgresql.{name} cannot read what it was given: {type(error).__name__} {error}"
            ) from error

    return call


class FilterModule:
    """Filters of this collection."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {name: _filter(name, *place) for name, place in FILTERS.items()}
