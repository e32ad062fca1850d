# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of nodes as pg_replication_state gives them, for the tests of decisions. Positions are in bytes here."""

from __future__ import annotations

from typing import Any

from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import format_lsn

SYSTEM = "7300000000000000001"
OTHER_SYSTEM = "7300000000000000002"
HERE = 0x5000060
MEMBERS = {n: {"address": f"192.0.2.{i}", "port": 5432} for i, n in enumerate(("db1", "db2", "db3", "db4"), 1)}
UNREACHABLE = {"unreachable": True, "msg": "Failed to connect to the host via ssh: No route to host"}


def settings(**changes: Any) -> dict[str, Any]:
    values = {
        "max_connections": "100",
        "max_worker_processes": "8",
        "max_wal_senders": "10",
        "max_prepared_transactions": "0",
        "max_locks_per_transaction": "64",
        "max_replication_slots": "10",
        "wal_level": "replica",
        "hot_standby": "on",
        "full_page_writes": "on",
        "synchronous_standby_names": "",
        "wal_sender_timeout": "15000",
        "recovery_target_timeline": "latest",
        **changes,
    }
    return {name: {"value": value, "unit": None, "pending_restart": False} for name, value in values.items()}


def control(state: str, at: int = HERE, timeline: int = 1, recovered: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "system_identifier": SYSTEM,
        "state": state,
        "checkpoint_lsn": format_lsn(at),
        "timeline": timeline,
        "min_recovery_lsn": format_lsn(recovered),
        "min_recovery_timeline": timeline if recovered else 0,
        "wal_segment_size": 16 * 1024 * 1024,
        "data_checksums": 1,
        "wal_log_hints": False,
        "max_connections": 100,
        "max_worker_processes": 8,
        "max_wal_senders": 10,
        "max_prepared_transactions": 0,
        "max_locks_per_transaction": 64,
        "next_xid": "0:5000",
        **changes,
    }


def node(name: str, role: str, **facts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "reason": None,
        "data": "cluster",
        "data_directory": "/var/lib/postgresql/17/main",
        "wal_directory": "/var/lib/postgresql/17/main/pg_wal",
        "major_version": 17,
        "system_identifier": SYSTEM,
        "timeline": 1,
        "standby_signal": None,
        "recovery_signal": False,
        "replication": [],
        "slots": [],
        "running_backups": [],
        "problems": [],
        "rebuild": None,
        "zfs": None,
        "machine_id": f"machine-of-{name}",
        "lock": None,
        "armed": None,
        "peers": [peer(n) for n in MEMBERS if n != name],
        "data_owner": "postgres",
        "auto_conf_owner": "postgres",
        "wal_free_bytes": 64 * 1024**3,
        **facts,
    }


def peer(name: str, answer: str | None = None, **facts: Any) -> dict[str, Any]:
    """What a node sees of another one: db1 is the primary of most tests."""
    here = {"host": MEMBERS[name]["address"], "port": 5432, "timeline": 1, "seconds": 0.01, "detail": "it answers"}
    said = answer or ("primary" if name == "db1" else "standby")
    known = SYSTEM if said in ("primary", "standby") else None
    return {"name": name, **here, "answer": said, "system_identifier": known, **facts}


def peers_but(name: str, **changed: str | None) -> list[dict[str, Any]]:
    """The peers of `name`, some with another answer."""
    return [peer(n, changed.get(n)) for n in MEMBERS if n != name]


def _running(at: int, **facts: Any) -> dict[str, Any]:
    return {
        "lsn": {"flush": format_lsn(at), "held": format_lsn(at)},
        "settings": settings(),
        "pending_restart": [],
        "clients": 0,
        "prepared_transactions": 0,
        "oldest_transaction_seconds": 0.0,
        "archiver": {"mode": "off", "command_set": False, "ready": 0, "last_failed_time": None},
        "control": control("in production", at),
        **facts,
    }


def row(name: str, lag: int | None = 0, **facts: Any) -> dict[str, Any]:
    return {
        "application_name": name,
        "slot_name": f"hotspare_{name}",
        "state": "streaming",
        "sync_state": "async",
        "lag_bytes": {"sent": lag, "write": lag, "flush": lag, "replay": lag},
        **facts,
    }


def slot(name: str, **facts: Any) -> dict[str, Any]:
    return {"name": f"hotspare_{name}", "type": "physical", "active": True, "wal_status": "reserved", **facts}


def primary(name: str = "db1", *standbys: str, at: int = HERE, **facts: Any) -> dict[str, Any]:
    """A primary to which `standbys` stream."""
    rows, slots = [row(s) for s in standbys], [slot(s) for s in standbys]
    return node(
        name,
        "primary",
        **{
            **_running(at, replication=rows, slots=slots),
            "in_recovery": False,
            "standby_signal": False,
            **facts,
        },
    )


def standby(name: str = "db2", of: str = "db1", at: int = HERE, streams: bool = True, **facts: Any) -> dict[str, Any]:
    address = {"sender_host": MEMBERS[of]["address"], "sender_port": 5432}
    receiver = {"status": "streaming", "slot_name": f"hotspare_{name}", "silent_seconds": 0.2, "pid": 4000, **address}
    return node(
        name,
        "standby",
        **{
            **_running(at),
            "control": control("in archive recovery", at),
            "in_recovery": True,
            "hot_standby": True,
            "standby_signal": True,
            "recovery": "streaming" if streams else "none",
            "wal_receiver": {**receiver, "pid": 4000 + int(name[-1])} if streams else None,
            "replay": {"state": "not paused", "paused": False, "min_apply_delay_ms": 0},
            "lag": {"bytes": 0, "replay_bytes": 0, "seconds": 0.0},
            "upstream": {
                "host": MEMBERS[of]["address"],
                "port": 5432,
                "application_name": name,
                "slot": f"hotspare_{name}",
            },
            **facts,
        },
    )


def stopped(
    name: str, kind: str = "shut down", at: int = HERE, timeline: int = 1, signal: bool | None = False, **facts: Any
) -> dict[str, Any]:
    recovered = at if "recovery" in kind else 0
    return node(
        name,
        "stopped",
        **{
            "timeline": timeline,
            "standby_signal": signal,
            "control": control(kind, at, timeline, recovered),
            **facts,
        },
    )


def absent(name: str, data: str = "absent", **facts: Any) -> dict[str, Any]:
    nothing = {"major_version": None, "system_identifier": None, "timeline": None}
    return node(name, "absent", **{**nothing, "data": data, **facts})


def answers(*states: dict[str, Any], **others: Any) -> dict[str, Any]:
    """What Ansible would have registered; `others` are answers as they are."""
    return {**{s["name"]: {"changed": False, "node": s} for s in states}, **others}
