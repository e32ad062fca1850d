# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes on with the ZFS snapshots of a node: streams that are under way, and how its backups do.

The role zfs writes a configuration for each cluster of a host, which names the files that tell of it.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Optional

CONFIGS = "/etc/hotspare/zfs/*.json"
SILENT_SECONDS = 60  # who sends writes every second
SENDS = {"rebuild_status": "rebuild", "status": "backup"}
SAID_OF_SEND = (
    "source destination dataset snapshot kind number of sent_bytes estimated_bytes rate seconds_left began updated"
).split()
SAID_OF_BACKUP = "state at reason error newest late_after".split()


def read_zfs(data_directory: str) -> Optional[dict[str, Any]]:
    """Of the node with this data directory; None when it has nothing to do with ZFS.

    sends: the streams that are under way to this node (rebuild) or from it (backup). backup: None if none are wanted.
    reason: why something is not known, else None.
    """
    reasons = []
    for path in sorted(glob.glob(CONFIGS)):
        try:
            config = _read(path)
            if os.path.realpath(config["node"]["data_directory"]) != os.path.realpath(data_directory):
                continue
            return _look(config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reasons.append(f"{path} cannot be read: {error}; run site.yml, which writes it")
    return {"sends": [], "backup": None, "reason": reasons[0]} if reasons else None


def _look(config: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.now().timestamp()
    sends = [_send(str(config[key]), what, now) for key, what in SENDS.items()]
    found: dict[str, Any] = {"sends": [one for one in sends if one], "backup": None, "reason": None}
    if config["backup"]:
        try:
            record = _read(str(config["record"]))
        except FileNotFoundError:
            record = {}
        except (OSError, ValueError) as error:
            return {**found, "reason": f"{config['record']} is not what a backup writes: {error}"}
        found["backup"] = backup(config["backup"], record, now)
    return found


def backup(wanted: Mapping[str, Any], record: Mapping[str, Any], now: float) -> dict[str, Any]:
    """What the last run has noted, and how old the newest copy is by now. (Pure.)"""
    told = {key: record.get(key) for key in SAID_OF_BACKUP}
    taken = (record.get("newest") or {}).get("taken")
    late = record.get("late_after")
    return {
        **told,
        "dataset": wanted["dataset"],
        "host": (wanted.get("login") or {}).get("host"),
        "age_seconds": None if taken is None else max(round(now - taken, 1), 0.0),
        "late": None if late is None else now > late,
    }


def _send(path: str, what: str, now: float) -> Optional[dict[str, Any]]:
    """None unless a process sends just now."""
    try:
        told = _read(path)
        age = now - os.stat(path).st_mtime
    except (OSError, ValueError):
        return None  # there was none since the boot
    if told.get("state") != "sending" or age > SILENT_SECONDS or not os.path.exists(f"/proc/{told.get('pid')}"):
        return None
    return {"for": what, **{key: told.get(key) for key in SAID_OF_SEND}}


def _read(path: str) -> Mapping[str, Any]:
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found
