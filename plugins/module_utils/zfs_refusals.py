# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wanted of a ZFS tree and its copy, and when that is refused, each time with its own sentence. (Pure.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from .records import size
from .shell import HotspareError
from .zfs import OLDEST, View


class Refusal(HotspareError):
    """A sentence that says why nothing is done, and what to do."""


@dataclass(frozen=True)
class Keep:
    """Snapshots of ours that retention leaves: the newest `count`, and those younger than `days`. None: not said."""

    count: Optional[int] = None
    days: Optional[float] = None

    def __post_init__(self) -> None:
        if min(self.count or 0, self.days or 0) < 0:
            raise Refusal(f"retention of {self.count} snapshots or {self.days} days cannot be meant: say 0 or more")

    @property
    def everything(self) -> bool:
        return self.count is None and self.days is None


@dataclass(frozen=True)
class Want:
    """`snapshot`: empty for a new one. `raw`: None when it was not said."""

    state: str = "sent"
    snapshot: str = ""
    prefix: str = "hotspare"
    recursive: bool = False
    allow_full: bool = True
    in_the_way: str = "fail"
    raw: Optional[bool] = None
    properties: Mapping[str, str] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    keep_source: Keep = Keep()
    keep_target: Keep = Keep()


def check_source(source: View, want: Want) -> None:
    """Refusal when it cannot be snapshotted as a whole, or its keys have to be spoken of first."""
    if source.version < OLDEST:
        raise Refusal(_too_old(source))
    if not source.datasets:
        raise Refusal(f"there is no dataset {source.called()}: see zfs list there")
    for below, dataset in source.datasets.items():
        called = source.called(below)
        if dataset.kind != "filesystem":
            raise Refusal(f"{called} is a {dataset.kind}, and only file systems are sent: move it out of {source.top}")
        if dataset.token:
            raise Refusal(
                f"{called} has itself not been received to its end: finish that first, or give it up there by "
                f"zfs receive -A {dataset.name}"
            )
    inside = {dataset.name for dataset in source.datasets.values()}
    paths = [d.mountpoint for d in source.datasets.values() if d.mounted and d.mountpoint.startswith("/")]
    for path, name in sorted(source.mounts.items()):
        if name not in inside and any(path.startswith(outer.rstrip("/") + "/") for outer in paths):
            advice = (
                "set `recursive: true`" if name.startswith(source.top + "/") else f"put it below {source.top} as well"
            )
            raise Refusal(
                f"{name} on {source.where} is mounted at {path}, inside of {source.top}, and would be missing in its "
                f"snapshot: {advice}, or unmount it"
            )


def check_sending(source: View, target: View, want: Want) -> None:
    """Refusal when nothing may be sent between the two, whatever snapshots they have."""
    if target.version < OLDEST:
        raise Refusal(_too_old(target))
    if "/" not in target.top:
        raise Refusal(
            f"{target.called()} is a whole pool, which a receive would overwrite: name a dataset in it, such as "
            f"{target.top}/{source.top.rpartition('/')[2]}"
        )
    if not target.parent:
        parent = target.top.rpartition("/")[0]
        raise Refusal(
            f"there is no {parent} on {target.where}, in which {target.top} is to be: make it there by zfs create -p "
            f"-o canmount=off -o mountpoint=none {parent}"
        )
    if target.pool.health != "ONLINE":
        raise Refusal(
            f"the pool {target.pool.name} on {target.where} is {target.pool.health}, not ONLINE: see zpool status there"
        )
    if source.pool.guid == target.pool.guid and f"{source.top}/".startswith(f"{target.top}/"):
        raise Refusal(f"{target.called()} contains what is to be sent to it: choose another destination")
    if source.pool.guid == target.pool.guid and f"{target.top}/".startswith(f"{source.top}/"):
        raise Refusal(f"{target.called()} is inside of what is to be sent to it: choose another destination")
    for below, dataset in source.datasets.items():
        if dataset.encryption == "off":
            continue
        called = source.called(below)
        if want.raw is None:
            raise Refusal(
                f"{called} is encrypted: set `raw: true` to send it encrypted, without its key, or `raw: false` to "
                "send it in the clear (inside of ssh)"
            )
        if want.raw and not target.pool.offers("encryption"):
            raise Refusal(
                f"{called} is encrypted, which the pool {target.pool.name} on {target.where} cannot store: upgrade "
                "that pool (zpool upgrade), or set `raw: false`"
            )
        if not want.raw and not dataset.key_available:
            raise Refusal(f"the key of {called} is not loaded, so it cannot be read: zfs load-key, or set `raw: true`")
    if source.pool.features.get("large_dnode") == "active" and not target.pool.offers("large_dnode"):
        raise Refusal(
            f"{source.called()} may have large dnodes, which the pool {target.pool.name} on {target.where} cannot "
            "store: upgrade that pool (zpool upgrade)"
        )


def _too_old(view: View) -> str:
    found = ".".join(map(str, view.version)) or "no version"
    return f"OpenZFS on {view.where} says {found}, and {'.'.join(map(str, OLDEST))} is needed: upgrade it there"


def require_atomic(view: View, name: str) -> None:
    """Refusal unless the snapshot was taken of all datasets at once: then they share a createtxg. Copies share what was
    noted then. A dataset that is younger need not have it. `creation` proves nothing (openzfs/zfs#18220)."""
    found = {below: dataset.named(name) for below, dataset in view.datasets.items()}
    members = [snapshot for snapshot in found.values() if snapshot]
    txgs = {snapshot.createtxg for snapshot in members}
    moments = {snapshot.moment for snapshot in members}
    if len(txgs) > 1 and (len(moments) > 1 or "" in moments):
        parts = ", ".join(f"{one} in {one.createtxg}" for one in members)
        raise Refusal(
            f"the snapshots {name} on {view.where} were not taken at once (transaction groups: {parts}), so that "
            "PostgreSQL would start on them and be corrupt: take them again by one zfs snapshot -r"
        )
    for below, snapshot in found.items():
        if snapshot is None and view.datasets[below].createtxg < min(txgs, default=0):
            raise Refusal(
                f"{view.called(below)} has no snapshot {name}, though those around it have: take it again by one zfs "
                "snapshot -r"
            )


def require_room(target: View, needed: int) -> None:
    """Refusal unless so many bytes fit."""
    if needed > target.available:
        raise Refusal(
            f"{target.called()} has room for {size(target.available)}, and {size(needed)} would be sent: make room in "
            f"the pool {target.pool.name}, or see its quotas"
        )


# ---------------------------------------------------------------------------------------------------------------------
# What a stream is
# ---------------------------------------------------------------------------------------------------------------------


def possible_flags(source: View, target: View, below: str) -> str:
    """Of zfs send, for blocks as they are: L large, e embedded, c compressed, if the destination can store them. What
    is encrypted there has no embedded ones."""
    flags, theirs = "", target.datasets.get(below) or target.datasets.get("")
    encrypted = theirs.encryption != "off" if theirs else target.encrypts
    if target.pool.offers("large_blocks"):
        flags += "L"
    if target.pool.offers("embedded_data") and not encrypted:
        flags += "e"
    ways = [name for name, state in source.pool.features.items() if name.endswith("_compress") and state == "active"]
    if all(target.pool.offers(way) for way in ways):
        flags += "c"
    return flags


def chain_flags(source: View, target: View, below: str, want: Want) -> str:
    """Those with which the chain of a dataset goes on, or begins. Refusal when it cannot."""
    theirs, ours = target.datasets.get(below), source.datasets[below]
    encrypted = ours.encryption != "off"
    raw = bool(want.raw) and encrypted
    begun = theirs is not None and bool(theirs.snapshots)
    possible = possible_flags(source, target, below)
    if not begun or theirs is None:
        return "w" if raw else possible
    was_raw = "w" in theirs.flags if theirs.flags is not None else theirs.encryption != "off" and raw
    if raw != was_raw:
        raise Refusal(
            f"{target.called(below)} was received {'encrypted (raw)' if was_raw else 'in the clear'}, and a chain "
            f"cannot change that: set `raw: {str(was_raw).lower()}`, or begin a new one under "
            "another name"
        )
    if raw:
        return "w"
    flags = theirs.flags if theirs.flags is not None else ours.flags  # this was the destination once, before a cutover
    if flags is None or "w" in flags:
        return possible
    if theirs.encryption != "off":
        flags = flags.replace("e", "")
    if not set(flags) <= set(possible):
        raise Refusal(
            f"{target.called(below)} was received with the flags -{flags} of zfs send, and the pool {target.pool.name} "
            f"cannot store more than -{possible} any more: upgrade that pool (zpool upgrade)"
        )
    return flags
