# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Standby to primary, guarded: the checks (pure), and the promotion itself.

Manual: "Failover" (27.3), "Recovery Control Functions" (9.28.4, pg_promote).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .archive_status import keep_before, keep_named
from .conninfo import Upstream
from .replication import read_state
from .server import (
    ConnectFailed,
    Instance,
    checkpoint_primary,
    connect,
    connect_conninfo,
)
from .shell import HotspareError
from .wal import format_lsn, parse_history, parse_lsn

# A server that is asked within some 20 ms of the end of its stream may sleep out wal_retrieve_retry_interval (5 s)
# before it looks at the request. SIGHUP wakes it, so the configuration is reloaded until it has looked: at once when
# it is seen to sleep there, and every now and then should its sleep have another name.
KICK_EVERY = 0.04
SLEEPS = "RecoveryRetrieveRetryInterval"
POLL = 0.005
RECOVERING = (
    "SELECT pg_catalog.pg_is_in_recovery(),"
    " (SELECT wait_event FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup')"
)
# The share of the timeout that may go by in waiting for the standby to hold and to replay what is required.
WAIT_SHARE = 0.5
ASK_SECONDS = 5.0  # the old primary has to answer in
# Where it is taken to be dead the clients wait, and the other nodes were asked as well just before.
FORCED_ASK_SECONDS = 0.5
# No route to a dead machine, or its name is gone: libpq has no code for that, only words.
UNREACHABLE = re.compile(r"No route to host|Network is unreachable|Host is down|could not translate host name")


class PromotionRefused(HotspareError):
    """A check failed; nothing was changed. `facts` has checks and node."""


class PromotionPending(HotspareError):
    """The server was asked and has not answered: the request stays in force. `facts` has pending: true."""


@dataclass(frozen=True)
class Wanted:
    """What must be true of the standby. `require_lsn` must be passed: the record that starts there has to be held."""

    require_lsn: int | None = None
    require_timeline: int | None = None
    require_system_identifier: str | None = None
    force: bool = False


@dataclass(frozen=True)
class OldPrimarySeen:
    """What the address of the old primary answered: primary, standby, stopping, silent (nobody there) or unknown.

    `position` is how far it has written its WAL, when it is a primary for certain.
    """

    answer: str
    where: str
    detail: str
    position: int | None = None


def checks(state: Mapping[str, Any], wanted: Wanted, old_primary_seen: OldPrimarySeen) -> list[dict[str, Any]]:
    """Whether the server described by `state` (the record of read_state) may become the primary, and why (not).

    Returns one `{name, ok, detail}` a check. A server that is no running standby gets the first check only.
    """
    found = standby_checks(state, wanted)
    if not found[0]["ok"]:
        return found
    check = adder(found)
    _check_position(state["lsn"], wanted, check)
    _check_old_primary(old_primary_seen, wanted, check)
    return found


def adder(found: list[dict[str, Any]]) -> Callable[[str, bool, str], None]:
    """What appends a check to `found`."""

    def check(name: str, ok: bool, detail: str) -> None:
        found.append({"name": name, "ok": ok, "detail": detail})

    return check


def standby_checks(state: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    """The part of `checks` that holds at any time before a promotion: the right standby, which replays."""
    found: list[dict[str, Any]] = []
    check = adder(found)
    _check_role(state, check)
    if not found[0]["ok"]:
        return found
    identifier, timeline = state["system_identifier"], state["timeline"]
    if wanted.require_system_identifier is not None:
        check(
            "system_identifier",
            identifier == wanted.require_system_identifier,
            f"it belongs to the cluster {identifier or 'unknown'}, {wanted.require_system_identifier} is required",
        )
    if wanted.require_timeline is not None:
        check(
            "timeline",
            timeline == wanted.require_timeline,
            f"it is on timeline {timeline or 'unknown'}, {wanted.require_timeline} is required",
        )
    _check_replay(state["replay"], check)
    return found


def _check_role(state: Mapping[str, Any], check: Any) -> None:
    role = state["role"]
    if role == "standby" and state["recovery_signal"] and not state["standby_signal"]:
        check("standby", False, "it recovers from an archive to a target and follows no primary")
    elif role == "standby":
        check("standby", True, "it is a standby")
    else:
        why = {"stopped": "it is stopped, start it as a standby first", "absent": "it holds no server"}.get(role)
        check(
            "standby",
            False,
            why or f"it is {role}, not a standby" + (f": {state['reason']}" if state["reason"] else ""),
        )


def _check_replay(replay: Mapping[str, Any], check: Any) -> None:
    paused = replay["state"] != "not paused" or replay["paused"] is not False
    check(
        "replay",
        not paused,
        f"its replay is {replay['state'] or 'in a state that is not known'}"
        + (", resume it with pg_wal_replay_resume()" if paused else ""),
    )
    delay = replay["min_apply_delay_ms"]
    shown = "not known" if delay is None else f"{delay} ms"
    check(
        "apply_delay",
        delay == 0,
        f"its recovery_min_apply_delay is {shown}" + ("" if delay == 0 else ", set it to 0 and let it catch up"),
    )


def _check_position(lsn: Mapping[str, str | None], wanted: Wanted, check: Any) -> None:
    held, replayed = lsn["held"], lsn["replay"]
    at = f"it holds {held or 'an unknown position'} and replayed {replayed or 'an unknown position'}"
    if wanted.require_lsn is None:
        # Unknown is never zero: without a position to compare with nobody knows what this standby lacks.
        check(
            "position",
            wanted.force,
            f"{at}, how much it lacks is not known" + (" (forced)" if wanted.force else ": give require_lsn, or force"),
        )
        return
    # Strictly past: require_lsn is where the last record starts, and a server that stands there lacks that record.
    ok = all(p is not None and parse_lsn(p) > wanted.require_lsn for p in (held, replayed))
    check("position", ok, f"{at}, both must be past {format_lsn(wanted.require_lsn)}")


def _check_old_primary(seen: OldPrimarySeen, wanted: Wanted, check: Any) -> None:
    # One that is shutting down may wait for its archiver long after its last record, which require_lsn names. Without
    # that proof it may be a smart shutdown, in which sessions still commit.
    proved = seen.answer == "stopping" and wanted.require_lsn is not None
    doubtful = seen.answer in ("unknown", "stopping") and not proved
    ok = proved or seen.answer in ("standby", "silent") or (doubtful and wanted.force)
    advice = ", stop it first" if seen.answer == "primary" else ""
    if doubtful:
        advice = " (forced)" if wanted.force else ": make sure that it takes no writes and use force"
    check("old_primary", ok, f"the old primary at {seen.where} {seen.detail}{advice}")


def look_at_primary(
    conninfo: Mapping[str, Any], *, account: str, system_identifier: str | None, timeout: float = ASK_SECONDS
) -> OldPrimarySeen:
    """Ask the old primary over the replication protocol (its pg_hba lets the account in for that) what it is."""
    import psycopg2

    host, port = conninfo.get("host"), conninfo.get("port", 5432)
    if not host:
        return OldPrimarySeen("unknown", "an unknown address", "cannot be looked at: no upstream is set, give primary")
    where = f"{host}:{port}"
    try:
        connection = connect_conninfo(dict(conninfo), account=account, replication=True, timeout=timeout)
    except ConnectFailed as error:
        if error.kind in ("refused", "timeout") or UNREACHABLE.search(error.message):
            return OldPrimarySeen("silent", where, f"does not answer ({error.message})")
        if error.kind == "shutting_down":
            return OldPrimarySeen("stopping", where, "is shutting down and takes no connections any more")
        return OldPrimarySeen("unknown", where, f"answers in a way that does not tell its role ({error.message})")
    try:
        with connection.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            identified = cursor.fetchone()
            found, position = identified[0], identified[2]
            settings = {}
            names = ["transaction_read_only", "default_transaction_read_only"]
            for name in names + ["in_hot_standby"] * (connection.server_version >= 140000):
                cursor.execute(f"SHOW {name}")
                settings[name] = cursor.fetchone()[0]
    except psycopg2.Error as error:
        return OldPrimarySeen("unknown", where, f"did not say what it is ({' '.join(str(error).split())})")
    finally:
        connection.close()
    if system_identifier is not None and str(found) != system_identifier:
        return OldPrimarySeen("unknown", where, f"answers, but as the cluster {found} instead of {system_identifier}")
    # PostgreSQL 13 does not say it. In recovery all transactions are read-only whatever the default; such a default
    # proves nothing, and what is not proved to be a standby counts as a primary.
    read_only, default = settings["transaction_read_only"] == "on", settings["default_transaction_read_only"] == "on"
    if settings.get("in_hot_standby", "on" if read_only and not default else "off") == "on":
        return OldPrimarySeen("standby", where, "answers as a standby")
    writes = "in_hot_standby" in settings or not read_only
    return OldPrimarySeen("primary", where, "still answers as a primary", parse_lsn(position) if writes else None)


def primary_conninfo(state: Mapping[str, Any], primary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where the old primary is looked for: `primary`, completed from (or replaced by) the standby's own upstream."""
    conninfo: dict[str, Any] = {}
    if state["upstream"]:
        conninfo.update(Upstream.from_conninfo(state["upstream"]["conninfo"]).parameters())
        conninfo.pop("application_name", None)  # it is the standby's own, and we are not that
    given = {key: value for key, value in (primary or {}).items() if value is not None}
    return {**conninfo, **given}


def blank_result(state: Mapping[str, Any]) -> dict[str, Any]:
    """What pg_promote returns when nothing was done; see its RETURN."""
    return {
        "changed": False,
        "pending": False,
        "checks": [],
        "old_timeline": state["timeline"],
        "new_timeline": state["timeline"],
        "switch_lsn": None,
        "seconds": 0.0,
        "armed": None,
        "kept_for_archive": [],
        "warnings": [],
        "node": state,
    }


def promote(
    instance: Instance,
    wanted: Wanted,
    *,
    primary: Mapping[str, Any] | None = None,
    timeout: float = 60,
    archive_again: Sequence[str] = (),
    check_mode: bool = False,
) -> dict[str, Any]:
    """Make a standby the primary, or refuse and change nothing. A primary is left as it is.

    `archive_again`: segments that no archive has, for the new primary's archiver; with `wanted.force` those that
    the archive lacks are looked for before the promotion as well. What was kept is in `kept_for_archive`.

    `timeout` is in seconds: half of it may be waited for the required position, the rest for the promotion; the
    CHECKPOINT afterwards may take as long again, and if it does not end, that is in `warnings`: the node is the
    primary all the same. Errors: PromotionRefused, PromotionPending, HotspareError.
    """
    started = time.monotonic()
    state = read_state(instance)
    result = blank_result(state)
    if state["role"] == "primary":
        # A run that died between promotion and CHECKPOINT is finished here.
        if not check_mode:
            keep_named(instance, state, archive_again, result)
            if (state["control"] or {}).get("timeline") != state["timeline"]:
                _checkpoint(instance, timeout, result)
                result["node"] = read_state(instance)
        return result

    state, result["checks"] = _settle(instance, state, wanted, primary, started + timeout * WAIT_SHARE)
    result.update(node=state, old_timeline=state["timeline"])
    failed = [entry["detail"] for entry in result["checks"] if not entry["ok"]]
    if failed:
        raise PromotionRefused(
            f"{instance.name} is not promoted and nothing was changed: {'; '.join(failed)}", **result
        )
    if check_mode:
        return {**result, "changed": True, "new_timeline": None}

    result["changed"] = True
    if wanted.force:
        keep_before(instance, state, result)
    asked = time.monotonic()
    _ask_and_wait(instance, started + timeout, timeout, result)
    result["seconds"] = round(time.monotonic() - asked, 3)
    result.update(new_timeline(instance))
    _checkpoint(instance, timeout, result)
    result["node"] = read_state(instance)
    keep_named(instance, result["node"], archive_again, result)
    return result


def _settle(
    instance: Instance, state: dict[str, Any], wanted: Wanted, primary: Mapping[str, Any] | None, deadline: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Check; while the required position is all that fails, wait for it until `deadline` and check again."""

    def look() -> OldPrimarySeen:
        if state["role"] != "standby":
            return OldPrimarySeen("unknown", "its address", "was not looked at")
        conninfo = primary_conninfo(state, primary)
        return look_at_primary(
            conninfo,
            account=instance.account,
            system_identifier=state["system_identifier"],
            timeout=FORCED_ASK_SECONDS if wanted.force else ASK_SECONDS,
        )

    seen = look()
    found = checks(state, wanted, seen)
    waited = False
    while (
        [entry["name"] for entry in found if not entry["ok"]] == ["position"]
        and wanted.require_lsn is not None
        and time.monotonic() < deadline
    ):
        waited = True
        time.sleep(0.1)
        state = read_state(instance)
        found = checks(state, wanted, seen)
    if waited:
        # Time went by: whoever was silent before may be back.
        found = checks(state, wanted, look())
    return state, found


def _ask_and_wait(instance: Instance, deadline: float, timeout: float, result: dict[str, Any]) -> None:
    import psycopg2

    try:
        connection = connect(instance)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_promote(false)")
                if not cursor.fetchone()[0]:
                    raise HotspareError(
                        f"{instance.name} could not be asked to become the primary, see its log", **result
                    )
                if wait_until_primary(cursor, deadline):
                    return
        finally:
            connection.close()
    except psycopg2.Error as error:
        raise PromotionPending(
            f"{instance.name} was asked to become the primary and then the connection to it failed"
            f" ({' '.join(str(error).split())}): the request may be in force, so do not start the old primary;"
            " look at the server's log and run this again",
            **{**result, "pending": True},
        ) from error
    raise PromotionPending(
        f"{instance.name} was asked to become the primary and is still in recovery after {timeout:g} s:"
        " the request stays in force, so do not start the old primary; find out what holds the startup process"
        " of this server (its log, pg_stat_activity) and run this again",
        **{**result, "pending": True, "node": read_state(instance)},
    )


def wait_until_primary(cursor: Any, deadline: float) -> bool:
    """Whether the server that was asked for it has left recovery before `deadline` (of time.monotonic()); wakes it."""
    kicked = time.monotonic()
    while True:
        cursor.execute(RECOVERING)
        recovering, waits_for = cursor.fetchone()
        if not recovering:
            return True
        now = time.monotonic()
        if now > deadline:
            return False
        if waits_for == SLEEPS or now > kicked + KICK_EVERY:
            kicked = now
            cursor.execute("SELECT pg_catalog.pg_reload_conf()")
        time.sleep(POLL)


def new_timeline(instance: Instance) -> dict[str, Any]:
    """Timelines and fork point from the history file; pg_control names the old timeline until the next checkpoint."""
    connection = connect(instance)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")
            name = cursor.fetchone()[0]
            cursor.execute("SELECT pg_read_file('pg_wal/' || %s || '.history')", (name,))
            last = parse_history(cursor.fetchone()[0])[-1]
    finally:
        connection.close()
    return {"old_timeline": last.timeline, "new_timeline": int(name, 16), "switch_lsn": format_lsn(last.switch_lsn)}


def _checkpoint(instance: Instance, timeout: float, result: dict[str, Any]) -> None:
    """CHECKPOINT, so that pg_control has the new timeline: pg_rewind reads it there and would see no divergence.

    A warning if it fails, never an error: whoever reads an error may start the old primary again.
    """
    try:
        checkpoint_primary(instance, timeout)
    except HotspareError as error:
        result["warnings"].append(
            f"{instance.name} is the primary now, but its checkpoint is missing: make one before anything is rewound"
            f" from it ({error.message})"
        )
