# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cutover tells the operator at its end: each step, what the clients noticed, what was lost, and the proof.

Pure: from the plan, the results of the modules and the nodes as they are afterwards, to lines of text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from .records import listed, part

WAYS = {"planned": "planned", "forced": "by force"}


def cutover_timeline(record: Mapping[str, Any]) -> list[str]:
    """The lines to print after failover.yml.

    `record`: plan (what failover_plan returned), seconds (of the whole run), nodes (STATE records, afterwards), and
    results: stopped (of pg_server), promoted (of pg_promote), fenced ({node: result of pg_server or of the fence
    command}), relaxed (seconds in which commits waited for no standby), each missing where that step was not made.
    """
    plan, results = record["plan"], record.get("results") or {}
    promoted = results.get("promoted") or {}
    shutdown = (results.get("stopped") or {}).get("shutdown") or {}
    lines = [_headline(plan, promoted, record["seconds"])]
    for seconds, words in _steps(plan, shutdown, promoted, results.get("fenced") or {}):
        lines.append(f"{'' if seconds is None else f'{seconds:.3f} s':>10}  {words}")
    if promoted.get("switch_lsn"):
        lines += _noticed(plan, shutdown, promoted)
        lines.append(_lost(plan, promoted))
        lines += _archive(plan, shutdown, promoted, record["nodes"].get(plan["target"]) or {})
    if results.get("relaxed") is not None:
        lines.append(f"commits waited for no standby for {results['relaxed']:.1f} s, until one streamed again")
    lines += [f"{n} is no standby yet: run rebuild_standby.yml -e node={n} -e confirm={n}" for n in _left(plan)]
    return lines


def _headline(plan: Mapping[str, Any], promoted: Mapping[str, Any], seconds: float) -> str:
    took = f"the whole run took {seconds:.1f} s"
    if promoted.get("switch_lsn"):
        source = f" from {plan['old_primary']}" if plan["old_primary"] else ""
        return f"{plan['target']} took over{source}, {WAYS[plan['mode']]}; {took}"
    return f"{plan['reason']}; {took}"


def _steps(
    plan: Mapping[str, Any], shutdown: Mapping[str, Any], promoted: Mapping[str, Any], fenced: Mapping[str, Any]
) -> list[tuple[Optional[float], str]]:
    """(seconds, what was done) in the order in which it happened."""
    old, target = plan["old_primary"], plan["target"]
    steps: list[tuple[Optional[float], str]] = []
    for name in sorted(fenced):
        fence = (fenced[name] or {}).get("fence")
        if fence:
            for step in fence["steps"]:
                detail = f": {step['detail']}" if step.get("detail") else ""
                steps.append((step["seconds"], f"{name} fenced, {step['name']}{detail}"))
        elif fenced[name]:
            steps.append((None, f"{name} cut off by the fence command"))
    if shutdown.get("checkpoints"):
        steps.append((sum(shutdown["checkpoints"]), f"{len(shutdown['checkpoints'])} more checkpoint(s) on {old}"))
    if shutdown.get("requested_at"):
        where = f"timeline {shutdown['timeline']}, last record at {shutdown['checkpoint_lsn']}"
        steps.append((shutdown["seconds"], f"{old} stopped, {where}"))
    if promoted.get("switch_lsn"):
        steps += _promotion(target, promoted)
    return steps


def _promotion(target: str, promoted: Mapping[str, Any]) -> list[tuple[Optional[float], str]]:
    parted = f"{target} is primary on timeline {promoted['new_timeline']}, parted at {promoted['switch_lsn']}"
    phases = _phases(promoted)
    if phases is None:
        return [(promoted["seconds"], parted)]
    words = (f"{target} replayed what it had received", f"{target} read the proof in its WAL", parted)
    ends = [phases[name] for name in ("replayed", "proved", "promoted")]
    return [(end - begin, said) for begin, end, said in zip([0.0, *ends], ends, words)]


def _phases(promoted: Mapping[str, Any]) -> Optional[Mapping[str, float]]:
    """Of the armed process, None where it was not the one that promoted."""
    armed = promoted.get("armed") or {}
    return armed["phases"] if armed.get("state") == "promoted" else None


def _noticed(plan: Mapping[str, Any], shutdown: Mapping[str, Any], promoted: Mapping[str, Any]) -> list[str]:
    if plan["mode"] != "planned":
        return []
    phases = _phases(promoted)
    if phases is not None and plan["resume"]:
        return [
            f"clients could not write from the stop of {plan['old_primary'] or 'the old primary'}, which an earlier run"
            f" began, until {phases['promoted']:.3f} s after its last record had come"
        ]
    if phases is None or not shutdown.get("requested_at"):
        return ["clients could not write from the stop of the old primary until now: an earlier run stopped it"]
    # The stream ends before the stop does, so the two overlap: this is never too little.
    return [f"clients could not write for {shutdown['seconds'] + phases['promoted']:.3f} s at most"]


def _lost(plan: Mapping[str, Any], promoted: Mapping[str, Any]) -> str:
    target, old = plan["target"], plan["old_primary"] or "the old primary"
    if plan["mode"] != "planned":
        return f"rows lost: {(plan.get('loss') or {}).get('detail') or 'unknown'}"
    proof = (promoted.get("armed") or {}).get("proof") if _phases(promoted) else None
    shown = f": {_record_of(proof)}" if proof else ""
    return f"rows lost: 0, {target} held the record with which {old} shut down before it was promoted{shown}"


def _record_of(proof: str) -> str:
    """Where the record is and what it is, without the counters that follow."""
    text = " ".join(proof.split())
    return "; ".join(text[max(text.find("lsn: "), 0) :].split("; ")[:2])


def _archive(
    plan: Mapping[str, Any], shutdown: Mapping[str, Any], promoted: Mapping[str, Any], state: Mapping[str, Any]
) -> list[str]:
    target, lines = plan["target"], []
    kept = promoted.get("kept_for_archive") or []
    if kept:
        lines.append(f"kept for the archive: {listed(kept)}")
    if part(state, "archiver", "mode") in ("on", "always"):  # type: ignore[arg-type]
        if plan["resume"] and not shutdown:
            lines.append(
                "what the old primary had not archived when it stopped is not known: compare the .ready files"
                " in its pg_wal/archive_status with the archive"
            )
        history = f"{promoted['new_timeline']:08X}.history"
        waiting, last = part(state, "archiver", "ready"), part(state, "archiver", "last_archived_wal")  # type: ignore[arg-type]
        if waiting is None:
            lines.append(f"it is not known whether {target} archived {history}")
        elif waiting == 0 or str(last) == history:
            lines.append(f"{target} archived {history}")
        else:
            lines.append(
                f"{target} has {waiting} file(s) to archive, {history} may be among them; the last was {last or 'none'}"
            )
    return lines


def _left(plan: Mapping[str, Any]) -> list[str]:
    """Who has to be rebuilt by hand: those the plan says, and a dead primary that nobody touched."""
    dead = [plan["old_primary"]] if plan["mode"] == "forced" and plan["resume"] not in ("finish", "back") else []
    return sorted({name for name in [*plan["needs_rebuild"], *dead] if name and name != plan["target"]})
