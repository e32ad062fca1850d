# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forced failover: who takes over, who must be fenced before, and what is lost. Pure.

The primary is gone and waiting is no remedy, so what is merely wrong on the way back warns, while whatever could make
a second primary, or lose more than need be, stays hard.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from .preflight import (
    armed_elsewhere,
    cascading,
    follows,
    is_armed,
    members_at,
    newest,
    senders_free,
    slots_free,
    standby_target,
    synchronous,
    synchronous_names,
    target_checks,
    way_back,
)
from .records import (
    Check,
    State,
    check,
    duration,
    held,
    listed,
    lsn,
    part,
    size,
    stopped_cleanly_as_primary,
    timeline,
)

# A dead sender is silent; one that spoke within this time (s) before the reading is taken to be alive.
ALIVE_SECONDS = 5
# More than a shutdown checkpoint record takes, with the header of a page.
SHUTDOWN_RECORD = 8192

Addresses = Mapping[str, Mapping[str, object]]


class Loss(TypedDict):
    """What a forced failover gives up, in bytes of WAL; None is unknown.

    synchronous: no commit that was acknowledged is in it, since it waited for a standby that was asked.
    """

    bytes: int | None
    at_least: int | None
    synchronous: bool | None
    detail: str


def forced_plan(
    nodes: Mapping[str, State],
    target: str | None,
    addresses: Addresses,
    confirmed: set[str],
    has_fence_command: bool,
    prefix: str,
) -> dict[str, Any]:
    """What a forced failover adds to the plan (see cutover.FailoverPlan). Refusal when there is nothing to decide."""
    standbys = [n for n in nodes if nodes[n]["role"] == "standby"]
    best, comparison = _most_wal(nodes, standbys, target)
    chosen = target or best
    if chosen is None or chosen not in standbys:
        if chosen is not None:
            standby_target(nodes, chosen, None)
        return {"checks": [comparison]}
    old = _presumed_primary(nodes, chosen, addresses)
    followers = [n for n in standbys if n != chosen]
    loss = _loss(nodes, standbys, chosen, old)
    fences = _fences(nodes, confirmed, has_fence_command)
    state = nodes[chosen]
    # A fence may stop the old primary cleanly: then one that an earlier run armed would promote itself as well.
    disarm = [n for n in followers if is_armed(nodes[n])]
    unsure = [n for n in disarm if part(nodes[n], "armed", "state") == "unknown"]
    checks = [
        comparison,
        *([armed_elsewhere(nodes, chosen)] if unsure else []),
        _stopped_hold_less(nodes, chosen, confirmed),
        *_fenced(nodes, confirmed, fences),
        _unseen_by_peers(nodes, standbys, fences),
        _silent_sender(nodes, standbys, chosen, addresses, fences),
        _nothing_to_save(nodes, chosen, confirmed),
        *target_checks(state, chosen),
        {**cascading(nodes, chosen, followers), "hard": False},
        *[{**way_back(nodes, chosen, n), "hard": False} for n in followers],
        senders_free(state, chosen, 1 + len(followers), hard=False),
        slots_free(state, chosen, [*([old] if old else []), *followers], prefix, hard=False),
        synchronous(state, chosen, followers, hard=False),
        check("loss", _loss_is_none(loss), loss["detail"], hard=False),
    ]
    return {
        "target": chosen,
        "old_primary": old,
        "followers": followers,
        "needs_rebuild": [n for n in nodes if nodes[n]["role"] == "stopped"],
        "system_identifier": nodes[chosen].get("system_identifier"),
        "loss": loss,
        "disarm": disarm,
        **fences,
        "reason": f"{chosen} takes over by force; {loss['detail']}",
        "checks": checks,
        "report": [loss["detail"]],
    }


def _most_wal(nodes: Mapping[str, State], standbys: list[str], target: str | None) -> tuple[str | None, Check]:
    """The standby that holds most WAL of the newest timeline; equal ones by name, so that the answer is always one."""
    name = "most_wal"
    if not standbys:
        last = [n for n in nodes if stopped_cleanly_as_primary(nodes[n])]
        back = "".join(f"; {n} stopped cleanly, to make it the primary again add -e target={n}" for n in last)
        return None, check(name, False, f"no standby runs and answers: there is nothing to fail over to{back}")
    unknown = [n for n in standbys if held(nodes[n]) is None or timeline(nodes[n]) is None]
    if unknown:
        return None, check(name, None, f"it is not known how much WAL {listed(unknown)} holds")
    reach = {n: (timeline(nodes[n]) or 0, held(nodes[n]) or 0) for n in standbys}
    top = max(reach.values())
    best = min(n for n in standbys if reach[n] == top)
    if target in reach and reach[target] != top:
        return best, check(
            name,
            False,
            f"{best} holds more than {target} (timeline {top[0]}, {part(nodes[best], 'lsn', 'held')}): "
            f"run failover.yml -e mode=forced -e target={best}",
        )
    chosen = target or best
    return best, check(name, True, f"no other reachable standby holds more WAL than {chosen}")


def _stopped_hold_less(nodes: Mapping[str, State], chosen: str, confirmed: set[str]) -> Check:
    """A stopped standby may hold more than pg_control tells, so less is never proven: only more is.

    A crashed primary of the same timeline holds more, as a rule: that is the loss. One of a newer timeline means that
    the target missed a whole promotion.
    """
    name, mine = "stopped_nodes", (timeline(nodes[chosen]) or 0, held(nodes[chosen]) or 0)
    more, perhaps = [], []
    for other in (n for n in nodes if nodes[n]["role"] == "stopped"):
        state = nodes[other]
        reach = (timeline(state) or 0, lsn(part(state, "control", "min_recovery_lsn")) or 0)
        # One that was fenced, or prepared for a cutover, has the signal too; pg_control knows that it was a primary.
        standby = bool(state.get("standby_signal")) and "recovery" in str(part(state, "control", "state"))
        if (reach > mine if standby else reach[0] > mine[0]) and other not in confirmed:
            more.append(other)
        elif standby or reach[0] == 0:
            perhaps.append(other)
    if more:
        return check(
            name,
            False,
            f"{listed(more)} is stopped and holds more than {chosen}: start it first, or give that up with "
            f"-e confirm_unfenced={','.join(more)}",
        )
    if perhaps:
        return check(name, None, f"{listed(perhaps)} is stopped and may hold more than {chosen}", hard=False)
    return check(name, True, f"no stopped node is known to be ahead of {chosen}", hard=False)


# -- back to the one that was the primary last ------------------------------------------------------------------------


def back_plan(nodes: Mapping[str, State], old: str, addresses: Addresses, confirmed: set[str]) -> dict[str, Any]:
    """What it takes to make `old`, which stopped cleanly as the primary, the primary again; see forced_plan().

    It has all that was committed on its timeline, so only one that was promoted since can hold more. Whoever answers
    shows by its timeline that it was not. Of the others the operator must say it, whatever fences them: a fence ends
    the writes of a new primary, and does not undo them.
    """
    standbys = [n for n in nodes if nodes[n]["role"] == "standby"]
    unknown = [n for n in nodes if nodes[n]["role"] == "unknown"]
    stopped = [n for n in nodes if nodes[n]["role"] == "stopped" and n != old]
    given_up = [n for n in unknown if n in confirmed]
    fences = {
        "fence": [n for n in stopped if nodes[n].get("standby_signal") is not True],
        "stonith": [],
        "needs_confirm": [n for n in unknown if n not in confirmed],
    }
    detail = "nothing is lost"
    if given_up:
        detail += (
            f" unless {listed(given_up)} was promoted meanwhile: what it committed then is given up, and it must not "
            f"run as a primary beside {old}, so run rebuild_standby.yml for it before its server starts"
        )
    none = None if given_up else 0
    loss: Loss = {"bytes": none, "at_least": 0, "synchronous": None, "detail": detail}
    return {
        "target": old,
        "old_primary": old,
        "followers": standbys,
        "resume": "back",
        "needs_rebuild": [*stopped, *given_up],
        "system_identifier": nodes[old].get("system_identifier"),
        "loss": loss,
        "disarm": [n for n in nodes if n != old and is_armed(nodes[n])],
        **fences,
        "reason": f"{old}, which stopped cleanly, is the primary again; {detail}",
        "checks": [
            newest(nodes, old, given_up),
            _nobody_went_on(nodes, old),
            *_fenced(nodes, confirmed, fences),
            _unseen_by_peers(nodes, [*standbys, old], fences),
            *[
                {**_silent_sender(nodes, standbys, n, addresses, fences), "name": f"sender_silent_{n}"}
                for n in standbys
            ],
            check("loss", _loss_is_none(loss), detail, hard=False),
        ],
        "report": [detail],
    }


def _nobody_went_on(nodes: Mapping[str, State], old: str) -> Check:
    """On its timeline nobody else was a primary, and nobody has WAL from behind its end (a restored image)."""
    name, own = "most_wal", timeline(nodes[old])
    at = lsn(part(nodes[old], "control", "checkpoint_lsn"))
    if at is None:
        return check(name, None, f"it is not known where the WAL of {old} ends")
    peers = [n for n in nodes if n != old and timeline(nodes[n]) == own]
    also = [
        n for n in peers if nodes[n]["role"] == "stopped" and "recovery" not in str(part(nodes[n], "control", "state"))
    ]
    if also:
        return check(name, False, f"{listed(also)} was a primary on the timeline of {old} too: which was it last?")
    reach = {n: held(nodes[n]) or lsn(part(nodes[n], "control", "min_recovery_lsn")) or 0 for n in peers}
    beyond = [n for n in peers if reach[n] > at + SHUTDOWN_RECORD]
    if beyond:
        return check(name, False, f"{listed(beyond)} holds WAL that {old} lacks: {old} was not the primary last")
    return check(name, True, f"no node that answers holds more WAL than {old}")


# -- nobody takes writes but the new primary --------------------------------------------------------------------------


def _fences(nodes: Mapping[str, State], confirmed: set[str], has_fence_command: bool) -> dict[str, list[str]]:
    """fence: where we can get in and make sure of it ourselves. stonith: where only a fence command can, or a human.

    needs_confirm: who is left when there is no fence command either. Every node that cannot be seen may be a primary
    that takes writes. A stopped one that would start as a primary gets its signal.
    """
    unknown = [n for n in nodes if nodes[n]["role"] == "unknown" and n not in confirmed]
    starts = [n for n in nodes if nodes[n]["role"] == "stopped" and nodes[n].get("standby_signal") is not True]
    silent = [n for n in unknown if nodes[n].get("reachable") is not True]
    return {
        "fence": sorted([*(n for n in unknown if n not in silent), *starts]),
        "stonith": silent,
        "needs_confirm": [] if has_fence_command else silent,
    }


def _fenced(nodes: Mapping[str, State], confirmed: set[str], fences: Mapping[str, list[str]]) -> list[Check]:
    unknown = [n for n in nodes if nodes[n]["role"] == "unknown"]
    found = []
    for name in unknown:
        what = f"{name} is unknown ({nodes[name].get('reason')})"
        if name in fences["needs_confirm"]:
            every = ",".join([*sorted(confirmed), *fences["needs_confirm"]])
            ok, words = (
                None,
                f"{what} and may still take writes as primary; make sure that it does not, then add "
                f"-e confirm_unfenced={every}",
            )
        elif name in fences["stonith"]:
            ok, words = True, f"{what}; the fence command makes sure of it before anything is promoted"
        elif name in fences["fence"]:
            ok, words = True, f"{what}; it can be reached and is fenced before anything is promoted"
        else:
            ok, words = True, f"{name} is unknown; the operator says that it takes no writes"
        found.append(check(f"fenced_{name}", ok, words))
    return found or [check("fenced", True, "every node answers and none is primary")]


def _said_by_peers(nodes: Mapping[str, State], standbys: list[str], about: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(n, p) for n in standbys for p in nodes[n].get("peers") or [] if p.get("name") == about]


def _unseen_by_peers(nodes: Mapping[str, State], standbys: list[str], fences: Mapping[str, list[str]]) -> Check:
    """One that we cannot reach, and that the operator calls dead, may still answer a standby as a primary."""
    name = "unseen_by_peers"
    fenced = {*fences["fence"], *fences["stonith"]} - set(fences["needs_confirm"])
    unknown = [n for n in nodes if nodes[n]["role"] == "unknown" and n not in fenced]
    identities = {nodes[n].get("system_identifier") for n in standbys}
    lively, unasked = [], []
    for about in unknown:
        said = _said_by_peers(nodes, standbys, about)
        ours = [(n, p) for n, p in said if (p.get("system_identifier") or None) in {None, *identities}]
        lively += [f"{n} reaches {about}, which answers as a primary" for n, p in ours if p.get("answer") == "primary"]
        if not said:
            unasked.append(about)
    if lively:
        return check(name, False, f"{listed(lively)}: it is alive, so a second primary would be made; stop it first")
    if unasked:
        return check(name, None, f"no standby was asked whether it reaches {listed(unasked)}", hard=False)
    return check(name, True, "no standby reaches a primary" if unknown else "no node is left to be asked for")


def _silent_sender(
    nodes: Mapping[str, State],
    standbys: list[str],
    chosen: str,
    addresses: Addresses,
    fences: Mapping[str, list[str]],
) -> Check:
    """A primary that cannot be reached from here, but from which the standby has just heard, is alive.

    Unless that standby, asked now, finds that it does not answer any more: what it heard is older than that.
    """
    state, name = nodes[chosen], "sender_silent"
    if state.get("recovery") in ("archive", "none"):
        return check(name, True, f"{chosen} receives no WAL")
    host, port = part(state, "wal_receiver", "sender_host"), part(state, "wal_receiver", "sender_port")
    senders = members_at(addresses, host, port)
    if senders and all(n in nodes and nodes[n]["role"] == "standby" for n in senders):
        return check(name, True, f"{chosen} receives WAL from {listed(senders)}, a standby")
    fenced = {*fences["fence"], *fences["stonith"]} - set(fences["needs_confirm"])
    if senders and set(senders) <= fenced:
        return check(name, True, f"{listed(senders)} is fenced before anything is promoted")
    who, silent = listed(senders) if senders else host or "its primary", part(state, "wal_receiver", "silent_seconds")
    answers = [str(said[1].get("answer")) for about in senders for said in _said_by_peers(nodes, [chosen], about)]
    gone = bool(answers) and set(answers) <= {"refused", "silent"}
    if isinstance(silent, bool) or not isinstance(silent, (int, float)):
        if gone:
            return check(name, True, f"{who} does not answer {chosen} any more")
        return check(name, None, f"it is not known when {chosen} heard from {who} last; repeat in a few seconds")
    heard = f"{chosen} heard from {who} {duration(float(silent))} before it was asked"
    if gone:
        return check(name, True, f"{heard}, and it does not answer any more")
    if silent < ALIVE_SECONDS:
        return check(name, False, f"{heard}: it is alive; stop it or, if it died just now, repeat in a few seconds")
    return check(name, True, heard)


def _presumed_primary(nodes: Mapping[str, State], chosen: str, addresses: Addresses) -> str | None:
    """Who was primary: the node that the target's upstream names, else the only one that it can be."""
    able = [n for n in nodes if nodes[n]["role"] in ("unknown", "stopped")]
    named = follows(nodes[chosen], addresses)
    if named in able:
        return named
    able = [n for n in able if nodes[n]["role"] == "unknown" or not nodes[n].get("standby_signal")]
    return able[0] if len(able) == 1 else None


# -- what is lost -----------------------------------------------------------------------------------------------------


def clean_primary(nodes: Mapping[str, State], chosen: str) -> str | None:
    """The one stopped node whose shutdown checkpoint `chosen` holds: nothing is lost, and force is not needed."""
    mine, reach = timeline(nodes[chosen]), held(nodes[chosen])
    clean = [n for n in nodes if stopped_cleanly_as_primary(nodes[n])]
    if len(clean) != 1 or mine is None or reach is None or timeline(nodes[clean[0]]) != mine:
        return None
    at = lsn(part(nodes[clean[0]], "control", "checkpoint_lsn"))
    return clean[0] if at is not None and reach > at else None


def _nothing_to_save(nodes: Mapping[str, State], chosen: str, confirmed: set[str]) -> Check:
    """A primary that stopped cleanly still has everything: force is not what this needs."""
    name, mine, reach = "primary_not_clean", timeline(nodes[chosen]) or 0, held(nodes[chosen])
    # One of an older timeline was replaced long ago. An unknown timeline may be the newest.
    clean = [n for n in nodes if stopped_cleanly_as_primary(nodes[n]) and (timeline(nodes[n]) or mine) >= mine]
    for other in clean:
        at = lsn(part(nodes[other], "control", "checkpoint_lsn"))
        if timeline(nodes[other]) == mine and at is not None and reach is not None and reach > at:
            return check(name, True, f"{other} stopped cleanly and {chosen} holds all of its WAL")
        if other not in confirmed:
            return check(
                name,
                False,
                f"{other} stopped cleanly and holds WAL that {chosen} lacks: start it again (nothing is lost), or, "
                f"when it cannot be started, give that WAL up with -e confirm_unfenced={other}",
            )
    return check(name, True, f"what {listed(clean)} holds is given up" if clean else "no primary stopped cleanly")


def _loss_is_none(loss: Loss) -> bool | None:
    if loss["synchronous"] or loss["bytes"] == 0:
        return True
    return None if loss["bytes"] is None else False


def _loss(nodes: Mapping[str, State], standbys: list[str], chosen: str, old: str | None) -> Loss:
    """How much the target lacks of what the old primary wrote, as far as the old one's files can tell."""
    reach = held(nodes[chosen])
    at = lsn(part(nodes[old], "control", "checkpoint_lsn")) if old and nodes[old]["role"] == "stopped" else None
    if old is None or at is None or reach is None:
        detail = "how much is lost is unknown: the end of the old primary's WAL cannot be seen"
        return {"bytes": None, "at_least": None, "synchronous": None, "detail": detail}
    if timeline(nodes[old]) != timeline(nodes[chosen]):
        detail = f"how much is lost is unknown: {old} is on another timeline"
        return {"bytes": None, "at_least": None, "synchronous": None, "detail": detail}
    least = max(0, at - reach)
    waited = waited_for(nodes, standbys, old)
    clean = stopped_cleanly_as_primary(nodes[old])
    if waited:
        detail = (
            f"none lost, synchronous: every commit that {old} acknowledged had waited for a standby that was asked "
            f"(synchronous_standby_names = '{nodes[old].get('synchronous_standby_names')}'), unless a session asked "
            "for less by synchronous_commit"
        )
    elif clean and reach > at:
        detail = f"none lost: {chosen} holds the shutdown checkpoint of {old}"
    elif clean:
        # The shutdown record itself carries no transaction.
        detail = f"{size(least)} of WAL of {old} are given up"
    else:
        seen = f"at least {size(least)} of WAL of {old} are lost, and " if least else ""
        detail = f"{seen}how much {'more ' if least else ''}is lost is unknown: {old} did not stop cleanly"
    return {"bytes": least if clean else None, "at_least": least, "synchronous": waited, "detail": detail}


def waited_for(nodes: Mapping[str, State], standbys: list[str], old: str) -> bool | None:
    """Whether each commit of `old` waited for one of the `standbys` that were asked; None when that cannot be told.

    The one with most WAL of these then holds them all. `*` may have been anybody.
    """
    value = nodes[old].get("synchronous_standby_names")
    if value is None:
        return None
    count, wanted = synchronous_names(value)
    if not value.strip() or count < 1:
        return False
    if "*" in wanted:
        return None
    asked = {n.lower() for n in standbys} & wanted
    # Whichever `count` of them acknowledged, one of those asked is among them.
    return True if len(asked) > len(wanted) - count else None
