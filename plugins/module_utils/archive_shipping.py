# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the archive shipping of a node does: what its shipper says in status.json, and whether it lives.

The configuration of the role archive lies beside that of the server, and names the directory of the shipper.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Optional

CONFIG_NAME = "hotspare-archive.json"
SILENT_SECONDS = 60  # it writes every 10
COMMAND = b"archive-ship"
# What the shipper says of itself and of each destination; what it does not say is not known: None.
SAID = ("pid", "since", "version", "updated", "acknowledged", "empty")
SAID_OF_PLACE = "name state since error last last_at waiting waiting_bytes oldest_waiting_seconds behind left".split()


def read_shipping(directory: str) -> Optional[dict[str, Any]]:
    """Of the node whose configuration is in `directory`; None when nothing is shipped from it.

    `running` is None when that cannot be told; `reason` says why it is not true. The rest is the shipper's status.json.
    """
    shipping: dict[str, Any] = {"running": None, "reason": None, **dict.fromkeys(SAID), "destinations": None}
    try:
        config = _read(os.path.join(directory, CONFIG_NAME))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return {**shipping, "reason": f"{CONFIG_NAME} cannot be read: {error}; run site.yml, which writes it"}
    path = os.path.join(str(config.get("run")), "status.json")
    try:
        status = _read(path)
        places = [{key: place.get(key) for key in SAID_OF_PLACE} for place in status["destinations"]]
        age = datetime.now().timestamp() - os.stat(path).st_mtime
    except FileNotFoundError:
        return {**shipping, "running": False, "reason": f"there is no {path}, which it writes when it starts"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {**shipping, "reason": f"{path} is not what a shipper writes ({error})"}
    shipping.update({key: status.get(key) for key in SAID}, destinations=places)
    if not _lives(shipping["pid"]):
        return {**shipping, "running": False, "reason": f"its process {shipping['pid']} is gone"}
    if age > SILENT_SECONDS:
        return {**shipping, "running": False, "reason": f"it has said nothing for {age:.0f} s"}
    return {**shipping, "running": True}


def _read(path: str) -> Mapping[str, Any]:
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _lives(pid: object) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return COMMAND in file.read().split(b"\0")
    except OSError:
        return False
