# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots that a standby has left over from its time as the primary: they keep WAL for ever, or block slot sync.

Manual: "Replication Slot Synchronization" (47.2.3, PostgreSQL 17+).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .conninfo import Upstream
from .server import Instance, connect, connect_conninfo
from .shell import HotspareError

# For a query on the primary, of any version: the names of its failover slots, which are to be synchronised.
FAILOVER_SLOTS = """(SELECT json_agg(slot_name) FROM pg_replication_slots s
    WHERE (to_jsonb(s) ->> 'failover')::bool)"""


def stale_slots(slots: Iterable[Mapping[str, Any]] | None, theirs: Collection[str]) -> list[dict[str, str | None]]:
    """Which slots of a standby's record are to go (pure), as `{name, database}`. `theirs`: the primary's failover ones.

    A physical one of ours that nobody uses: it would keep WAL for ever. A logical failover slot that is no synchronised
    copy, when the primary has one of that name: slot sync refuses to go over it. Others are somebody's own.
    """
    found = []
    for slot in slots or ():
        if slot["active"]:
            continue
        unsynced = slot.get("failover") is True and slot.get("synced") is False
        if slot["ours"] or (slot["type"] == "logical" and unsynced and slot["name"] in theirs):
            found.append({"name": slot["name"], "database": slot["database"]})
    return found


def blocking_slots(
    slots: Iterable[Mapping[str, Any]] | None, upstream: Upstream, account: str
) -> list[dict[str, str | None]]:
    """Those of a standby's stale slots that block slot sync; its primary is asked when there is one. HotspareError."""
    candidates = [slot for slot in slots or () if slot["type"] == "logical" and slot.get("synced") is False]
    if not stale_slots(candidates, [slot["name"] for slot in candidates]):
        return []
    import psycopg2

    connection = connect_conninfo({**upstream.parameters(), "dbname": "postgres"}, account=account)
    try:
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(f"SET search_path = pg_catalog; SELECT {FAILOVER_SLOTS}")
            theirs = cursor.fetchone()[0] or ()
    except psycopg2.Error as error:
        raise HotspareError(
            f"{upstream.host}:{upstream.port} did not tell its failover slots: {' '.join(str(error).split())}; see its"
            " log"
        ) from error
    return stale_slots(candidates, theirs)


def drop_slots(instance: Instance, slots: Sequence[Mapping[str, str | None]]) -> None:
    """Drop slots of a running server; one that is gone by now is fine. HotspareError."""
    import psycopg2

    for slot in slots:
        # A logical slot is dropped from its own database (manual: 9.28.6).
        connection = connect(instance, dbname=slot["database"] or "postgres")
        try:
            with contextlib.closing(connection), connection.cursor() as cursor:
                cursor.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (slot["name"],))
        except psycopg2.errors.UndefinedObject:
            continue
        except psycopg2.Error as error:
            raise HotspareError(
                f"cannot drop the slot {slot['name']} of {instance}, left over from when it was the primary:"
                f" {' '.join(str(error).split())}; drop it yourself, it keeps WAL or blocks slot sync"
            ) from error
