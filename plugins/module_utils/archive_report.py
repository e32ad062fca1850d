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
  name, path
  error, problems     why it could not be looked at, and what is wrong besides, destinations that do not answer included
  missing_days        folders of days that should hold documents, as text
  destinations        name, and as counts of files present, missing, different; newest: the newest file there, as text
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from .records import duration, listed, size
from .status import aligned, wrapped

HEAD = ("PLACE", "STATE", "WHOLE FROM", "BEHIND", "FILES", "SIZE", "FREE", "NEXT CUT")
MOST = 10  # of a kind, what a line or a page can take
TREE_HEAD = ("TREE", "PLACE", "PRESENT", "MISSING", "DIFFERENT", "NEWEST")


def archive_table(found: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal: a row for each place that has WAL, what is to be said of it, and the same for trees.

    `found`: what archive_sync returned, with `archive`, `trees` or both.
    """
    lines: list[str] = []
    if found.get("archive"):
        lines += _wal(found["archive"])
    if found.get("trees"):
        lines += [*([""] if lines else []), *_trees(found["trees"])]
    return lines


def _wal(record: Mapping[str, Any]) -> list[str]:
    places = record["places"]
    position = record["position"] or "an unknown position"
    lines = wrapped(
        f"{record['cluster']}: WAL of {record['name']}, timeline {_known(record['timeline'])}, at {position}"
    )
    lines += ["", *aligned([HEAD, *(_place_row(place) for place in places)])]
    said = [f"  {line}" for place in places for line in _said_of_place(place)]
    cuts = [place["cut"] for place in places if place["cut"] is not None]
    said += dict.fromkeys(f"  next cut: {cut['reason']}" for cut in cuts)  # retention cuts all at the same place
    return [*lines, *(["", *(w for line in said for w in wrapped(line))] if said else [])]


def _place_row(place: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"{place['name']} (own)" if place["own"] else place["name"]
    if place["error"]:
        return (name, *["unknown"] * (len(HEAD) - 1))
    report = place["gaps"]
    state = "-" if report is None else {True: "ok", False: "GAPS", None: "unknown"}[report["ok"]]
    whole = "-" if report is None else report["complete_from"] or "nowhere"
    stored = (_known(place["files"]), size(place["bytes"]), size(place["free_bytes"]))
    return (name, state, whole, _behind(place), *stored, _next_cut(place))


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


def _said_of_place(place: Mapping[str, Any]) -> Iterator[str]:
    name = place["name"]
    if place["error"]:
        yield f"{name}: {place['error']}"
        return
    report = place["gaps"]
    if report is not None:
        sentences = report["sentences"]
        yield from (f"{name}: {sentence}" for sentence in sentences[:MOST])
        if len(sentences) > MOST:
            yield f"{name}: and {len(sentences) - MOST} more such gaps"
        yield f"{name}: {_restorable(place['backup'])}"
    for conflict in place["conflicts"] or ():
        yield f"{name}: CONFLICT: other content came for {conflict['name']} and was kept as {conflict['path']}"


def _restorable(backup: Optional[Mapping[str, Any]]) -> str:
    if backup is None:
        return "no base backup is known from which it leads up to now: its .backup file, or the backup, is not there"
    return f"the oldest base backup that leads up to now is {backup['label']!r} of {backup['started']}"


def _trees(trees: list[Mapping[str, Any]]) -> list[str]:
    rows = [_tree_row(tree["name"], place) for tree in trees for place in tree["destinations"]]
    said = [f"  {line}" for tree in trees for line in _said_of_tree(tree)]
    lines = aligned([TREE_HEAD, *rows])
    return [*lines, *(["", *(w for line in said for w in wrapped(line))] if said else [])]


def _tree_row(tree: str, place: Mapping[str, Any]) -> tuple[str, ...]:
    counts = ("present", "missing", "different")
    return (tree, place["name"], *(_known(place[count]) for count in counts), place["newest"] or "unknown")


def _said_of_tree(tree: Mapping[str, Any]) -> Iterator[str]:
    name = tree["name"]
    if tree["error"]:
        yield f"{name}: {tree['error']}"
    if tree["missing_days"]:
        yield f"{name}: no documents of {_some(tree['missing_days'])}"
    yield from (f"{name}: {problem}" for problem in tree["problems"][:MOST])


def _some(names: Sequence[str]) -> str:
    return listed(names if len(names) <= MOST else [*names[:MOST], f"{len(names) - MOST} more"])


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)
