# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What archive_check.yml prints. Pure. What is not known is printed as `unknown`, never as 0.

It reads what archive_sync returns for `state: checked` (trees also for `verified`). None = not known.

archive (kind: wal), seen from the node that ships:
  name, cluster       the node, and the cluster of hotspare-archive.json
  timeline, position  of the primary's WAL: an int, and text such as 0/9000060
  places              each destination, then the node's own store, as
    name, own
    error             why it could not be asked (a sentence); then nothing else is known
    gaps              archive_gaps.GapReport.as_dict(); None of the own store, where this node ships nothing
    waiting_seconds   how long its oldest file has been waiting, as the shipper says; 0.0 when none waits
    backup            the oldest base backup that leads up to now, archive_needs.Backup as a dict, or None
    files, bytes, free_bytes   what lies there, as stored, and what is free
    cut               archive_retention.Cut.as_dict(), what prune would do now
    cut_bytes         how much that is, as stored
    conflicts         Archive.conflicts(): name, path, ... of what was refused
trees (kind: tree), a list of
  name, path, error
  missing_days        folders of days that should hold documents, as text
  complete            for each node that shipped here, when (text) it had last shipped all that it had
  destinations        each destination, then the tree of the node itself, as name, own, error, and counts of documents
                      present, missing, different; newest: the newest document there, as text
after_cutover         this node was made the primary just now
problems (both)       what is wrong besides gaps, sentences with the names; each `error` is among them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from .records import duration, listed, size
from .status import aligned, wrapped

HEAD = ("PLACE", "STATE", "WHOLE FROM", "BEHIND", "FILES", "SIZE", "FREE", "NEXT CUT")
MOST = 10  # of a kind, what a line or a page can take
TREE_HEAD = ("TREE", "PLACE", "PRESENT", "MISSING", "DIFFERENT", "NEWEST")


def archive_table(found: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal: a row for each place that has WAL, what is to be said of it, the same for trees, problems.

    `found`: what archive_sync returned, with `archive`, `trees` or both; after a cutover with `after_cutover`.
    """
    parts = []
    if found.get("archive"):
        parts += _wal(found["archive"])
    if found.get("trees"):
        parts += _trees(found["trees"])
        parts += [_indented(_came(found["trees"]))] if found.get("after_cutover") else []
    if found.get("problems"):
        parts.append(["problems:", *_indented(_first(found["problems"], "problems"))])
    return [line for part in parts if part for line in ("", *part)][1:]


def _wal(record: Mapping[str, Any]) -> list[list[str]]:
    """A head, a table, and what is to be said of it."""
    places = record["places"]
    position = record["position"] or "an unknown position"
    head = f"{record['cluster']}: WAL of {record['name']}, timeline {_known(record['timeline'])}, at {position}"
    said = [f"{place['name']}: {line}" for place in places if not place["error"] for line in _said_of(place)]
    cuts = [place["cut"] for place in places if place["cut"] is not None]
    said += dict.fromkeys(f"next cut: {cut['reason']}" for cut in cuts)  # retention cuts all at the same place
    parts = [wrapped(head), aligned([HEAD, *(_place_row(place) for place in places)]), _indented(said)]
    return [part for part in parts if part]


def _place_row(place: Mapping[str, Any]) -> tuple[str, ...]:
    if place["error"]:
        return (_named(place), *["unknown"] * (len(HEAD) - 1))
    report = place["gaps"]
    state = "-" if report is None else {True: "ok", False: "GAPS", None: "unknown"}[report["ok"]]
    whole = "-" if report is None else report["complete_from"] or "nowhere"
    stored = (_known(place["files"]), size(place["bytes"]), size(place["free_bytes"]))
    return (_named(place), state, whole, _behind(place), *stored, _next_cut(place))


def _behind(place: Mapping[str, Any]) -> str:
    if place["gaps"] is None:
        return "-"
    behind = place["gaps"]["behind"]
    return f"{_known(behind)}, {duration(place['waiting_seconds'])}"


def _next_cut(place: Mapping[str, Any]) -> str:
    cut = place["cut"]
    if cut is None:
        return "unknown"
    return f"{len(cut['remove'])} files, {size(place['cut_bytes'])}" if cut["remove"] else "nothing"


def _said_of(place: Mapping[str, Any]) -> Iterator[str]:
    if place["gaps"] is not None:
        yield from _first(place["gaps"]["sentences"], "such gaps")
        yield _restorable(place["backup"])
    for conflict in place["conflicts"] or ():
        yield f"CONFLICT: other content came for {conflict['name']} and was kept as {conflict['path']}"


def _restorable(backup: Optional[Mapping[str, Any]]) -> str:
    if backup is None:
        return "no base backup is known from which it leads up to now: its .backup file, or the backup, is not there"
    return f"the oldest base backup that leads up to now is {backup['label']!r} of {backup['started']}"


def _trees(trees: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [_tree_row(tree["name"], place) for tree in trees for place in tree["destinations"]]
    missing = [(tree["name"], tree["missing_days"]) for tree in trees if tree["missing_days"]]
    said = [f"{name}: no documents of {listed(_first(days, 'days'))}" for name, days in missing]
    return [part for part in (aligned([TREE_HEAD, *rows]), _indented(said)) if part]


def _came(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was written on an old primary after that is here, or it is not: nobody knows."""
    return [
        f"{tree['name']}: all that {source} had at {when} is here"
        for tree in trees
        for source, when in sorted(tree.get("complete", {}).items())
    ]


def _tree_row(tree: str, place: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (_known(place[count]) for count in ("present", "missing", "different"))
    newest = "unknown" if place["error"] else place["newest"] or "none"
    return (tree, _named(place), *counts, newest)


def _named(place: Mapping[str, Any]) -> str:
    return f"{place['name']} (own)" if place["own"] else str(place["name"])


def _indented(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in wrapped(f"  {line}")]


def _first(lines: Sequence[str], what: str) -> list[str]:
    more = len(lines) - MOST
    return [*lines[:MOST], f"{more} more {what}"] if more > 0 else list(lines)


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)
