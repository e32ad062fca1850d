# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before a server starts: a primary that was dead must not come back beside the one that replaced it.

The other nodes are asked, again and again for a bounded time, while one of them cannot be. What was seen once is
remembered in a note, so that the next boot knows it even if the new primary is silent by then. `decide` is pure.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from .asked import asked_just_now
from .peers import ASK_SECONDS, Peer, ask
from .server import Instance, has_signal, read_control, read_text, unreadable
from .shell import HotspareError, as_account, remove_durably, write_durably

POLICIES = ("start", "refuse")
RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class Own:
    """The node that wants to start; `follows`: it has standby.signal and will be a standby, whatever the others are."""

    name: str
    system_identifier: str
    timeline: int
    follows: bool


@dataclass(frozen=True)
class Decision:
    """`act` is start, refuse or wait (ask again), `reason` a sentence, `note` what is to be remembered from now on."""

    act: str
    reason: str
    note: Optional[dict[str, Any]] = None


def decide(
    own: Own,
    answers: Sequence[Mapping[str, Any]],
    note: Optional[Mapping[str, Any]],
    *,
    elapsed: float,
    wait: float,
    policy: str,
    asked: bool,
) -> Decision:
    """Whether the server may start, from the records that peers.ask() gave of all other nodes.

    `elapsed` of at most `wait` seconds have gone by; then `policy` (start or refuse) holds for nodes that cannot be
    asked. `asked`: a playbook has just looked at all nodes and wants this one as the primary.
    """
    kept = None if note is None else dict(note)
    if own.follows:
        return Decision("start", "it has standby.signal and starts as a standby", kept)
    ahead = [answer for answer in answers if _is_ahead(answer, own)]
    if ahead:
        first = max(ahead, key=lambda answer: (answer["timeline"], answer["answer"] == "primary"))
        primary = str(first["name"]) if first["answer"] == "primary" else f"the primary of {first['name']}"
        seen = {"primary": primary, "timeline": first["timeline"], "system_identifier": own.system_identifier}
        said = f"{first['name']} at {first['host']} port {first['port']} answers as a {first['answer']} of this cluster"
        return Decision("refuse", f"{said} on timeline {first['timeline']}, {_refusal(own)}", seen)

    doubtful = [answer for answer in answers if not _is_definite(answer, own)]
    held = note is not None and holds(note, own.system_identifier, own.timeline)
    # What all others say now is newer than what was remembered.
    if not doubtful and (answers or not held):
        others = ", ".join(f"{a['name']} is a {a['answer']} on timeline {a['timeline']}" for a in answers)
        return Decision("start", f"no other node is its successor ({others or 'there is none'})")
    if asked and not held:
        return Decision("start", "the playbook that starts it has just asked all nodes")
    silent = "; ".join(f"{answer['name']}: {answer['detail'] or answer['answer']}" for answer in doubtful)
    if elapsed < wait:
        return Decision("wait", f"it asks for up to {wait:g} s what the other nodes are ({silent})", kept)
    if held and note is not None:
        known = f"{note['primary']} was seen as the primary of this cluster on timeline {note['timeline']}"
        return Decision(
            "refuse", f"{known}, and is not seen now ({silent or 'no other node is known'}), {_refusal(own)}", kept
        )
    unasked = f"after {elapsed:.0f} s not all other nodes could be asked ({silent})"
    if policy == "refuse":
        way = "start it when they answer, or by pg_server (role: primary), or set node_guard_policy to start"
        return Decision("refuse", f"{unasked}, and node_guard_policy is refuse: {way}", kept)
    return Decision("start", f"{unasked}, and node_guard_policy is start")


def holds(note: Mapping[str, Any], system_identifier: str, timeline: int) -> bool:
    """Whether a note still speaks against a primary on `timeline`: one that was promoted since is past it."""
    return bool(note["system_identifier"] == system_identifier and timeline <= note["timeline"])


def _is_ahead(answer: Mapping[str, Any], own: Own) -> bool:
    """A primary on our timeline or a later one; a standby on a later one, which follows such a primary."""
    if answer["system_identifier"] != own.system_identifier or answer["timeline"] is None:
        return False
    behind = answer["timeline"] < own.timeline
    same = answer["timeline"] == own.timeline
    return not behind and (answer["answer"] == "primary" or (answer["answer"] == "standby" and not same))


def _is_definite(answer: Mapping[str, Any], own: Own) -> bool:
    """It said what it is, and it is of our cluster: a server of another one there does not tell where ours went."""
    known = answer["answer"] in ("primary", "standby") and answer["timeline"] is not None
    return known and answer["system_identifier"] == own.system_identifier


def _refusal(own: Own) -> str:
    return (
        f"{own.name} was the primary on timeline {own.timeline} and is not started. Make it a standby: "
        f"ansible-playbook hotspare.postgresql.rebuild_standby -e node={own.name} -e confirm={own.name}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The note
# ---------------------------------------------------------------------------------------------------------------------


def note_path(instance: Instance) -> str:
    """Where it is remembered: beside the configuration, which no rebuild replaces and the server's account owns."""
    return os.path.join(os.path.dirname(instance.configuration), "hotspare-superseded.json")


def read_note(instance: Instance) -> Optional[dict[str, Any]]:
    """The note {primary, timeline, system_identifier}, or None; HotspareError when it is not known what it says.

    It may be out of date: see `holds`.
    """
    path = note_path(instance)
    text = read_text(path)
    if text is None:
        return None
    try:
        found = json.loads(text)
        return {
            "primary": str(found["primary"]),
            "timeline": int(found["timeline"]),
            "system_identifier": str(found["system_identifier"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise HotspareError(
            f"{path} is not one of ours ({type(error).__name__}): see which node is the primary; if it is this one, "
            "remove the file"
        ) from error


def keep_note(instance: Instance, note: Optional[Mapping[str, Any]]) -> bool:
    """Make it the note, or remove it; True if that changed something. HotspareError."""
    path = note_path(instance)
    with as_account(instance.account):  # it is the account's directory: root must not be led elsewhere by a link
        if note is None:
            return remove_durably(path)
        return write_durably(path, json.dumps(note) + "\n", mode=0o644)


# ---------------------------------------------------------------------------------------------------------------------
# Asked and done
# ---------------------------------------------------------------------------------------------------------------------


def look_at_own(instance: Instance) -> Own:
    """What the data directory says of this node; HotspareError when it cannot be read, as the server could not."""
    control = read_control(instance)
    path = instance.path("pg_wal")
    try:
        files = os.listdir(path)
    except OSError as error:
        raise unreadable(path, error) from error
    # pg_control shows a promotion only after the next checkpoint, its history file is there at once.
    histories = [int(name[:8], 16) for name in files if re.fullmatch(r"[0-9A-F]{8}\.history", name)]
    follows = has_signal(instance, "standby.signal")
    return Own(instance.name, control.system_identifier, max([control.timeline, *histories]), follows)


def guard(
    instance: Instance, peers: Sequence[Peer], *, wait: float, policy: str, say: Callable[[str], None]
) -> Decision:
    """Decide on a start, waiting as long as that takes (at most `wait` seconds and one question), and remember.

    `say` is told what it waits for. HotspareError when this node's own state cannot be read: then it must not start.
    """
    began = _clock()
    if has_signal(instance, "standby.signal"):  # not to be held up by anything else
        return Decision("start", "it has standby.signal and starts as a standby")
    own, note, waiting = look_at_own(instance), read_note(instance), False
    while True:
        left = wait - (_clock() - began)
        answers = ask(peers, instance.account, min(ASK_SECONDS, max(left, 1.0)))
        asked = asked_just_now(instance.data_directory)
        decision = decide(own, answers, note, elapsed=_clock() - began, wait=wait, policy=policy, asked=asked)
        if decision.act != "wait":
            break
        if not waiting:
            say(decision.reason)
        waiting = True
        time.sleep(RETRY_SECONDS)
    if decision.note != note:
        try:
            keep_note(instance, decision.note)
        except HotspareError as error:
            say(f"what was decided could not be remembered: {error.message}")
    return decision


def _clock() -> float:
    """Seconds since the boot, those in which the machine slept included; no clock that is set changes it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
