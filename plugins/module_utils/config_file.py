# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of what runs on a host without Ansible: a JSON file that a role writes, and nobody else may."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from .shell import HotspareError

T = TypeVar("T")


def read_config_file(path: str, role: str, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of it; HotspareError when it is not there, or not what `role` writes.

    `parse` says so by a ValueError, KeyError, TypeError or AttributeError.
    """
    try:
        with open(path, encoding="utf-8") as file:
            # It says what is done as whom, and may lie in a directory of the server's account.
            if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):
                raise HotspareError(f"{path} does not belong to root: remove it and run site.yml, which writes it")
            return parse(json.load(file))
    except OSError as error:
        raise HotspareError(f"cannot read {path}: {error.strerror}; run site.yml, which writes it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HotspareError(
            f"{path} is not what the role {role} writes ({error}): run site.yml, which writes it"
        ) from error
