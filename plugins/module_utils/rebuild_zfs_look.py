# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a node can become a standby by a ZFS snapshot of the primary, and what is there for it. Changes nothing."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator
from typing import Optional

from .rebuild import Copy, Source
from .records import size
from .shell import HotspareError
from .zfs import HARMLESS, Side, View, is_aside, look
from .zfs_layout import Label, Layout, Zfs, read_label, read_layout
from .zfs_refusals import Keep, Refusal, Want
from .zfs_send import work

PLACED = "hotspare:placed"  # of the node's outermost dataset: the snapshot that it was made from, until it streams
PAGE = 8192  # block_size as Debian builds PostgreSQL
COPIED = ("recordsize", "compression", "atime", "logbias", "primarycache")
PROPERTIES = {"canmount": "noauto", "mountpoint": "none", "readonly": "off", **HARMLESS}


@contextlib.contextmanager
def sides(zfs: Zfs) -> Iterator[tuple[Side, Side]]:
    """The primary, and this node."""
    with Side(zfs.login) as there, Side() as here:
        yield there, here


def want(zfs: Zfs, state: str, snapshot: str = "") -> Want:
    """One snapshot is kept on each side: the one that both have, which the next rebuild goes on from."""
    return Want(
        state,
        snapshot=snapshot,
        prefix=zfs.prefix,
        recursive=True,
        in_the_way="rename",
        properties=PROPERTIES,
        copied=COPIED,
        keep_source=Keep(count=1),
        keep_target=Keep(count=1),
    )


def assess(zfs: Zfs, source: Source, data_directory: str, slot: str) -> Copy:
    """Whether a snapshot of the primary can be taken and received here, and how much would be sent. Changes nothing."""
    try:
        with sides(zfs) as (there, here):
            theirs = look(there, zfs.source_dataset, recursive=True, mounts=True, copied=("recordsize",))
            require_plain(theirs)
            layout = read_layout(theirs, data_directory, zfs.others(source.tablespaces))
            if source.full_page_writes is False:
                require_whole_pages(theirs, layout)
            ours = look(here, zfs.dataset, recursive=True, mounts=True, asides=True)
            _require_free(layout, ours)
            begun = ours.mounts.get(str(layout.root(data_directory))) in {one.name for one in ours.aside.values()}
            require_alone(layout.roots, data_directory)
            if source.may_label is not True:
                raise Refusal(
                    "the replication account may not execute pg_backup_start and pg_backup_stop on the primary"
                )
            found = labelled(zfs, source, slot, theirs, ours)
            told = work(
                there, here, (zfs.source_dataset, zfs.dataset), want(zfs, "sent", found[0] if found else ""),
                check_mode=True,
            )  # fmt: skip
    except HotspareError as error:
        return Copy(obstacle=error.message)
    base = next((one["base"] for one in told["transfers"] if one["base"]), None)
    much = "of unknown size" if told["estimated_bytes"] is None else f"about {size(told['estimated_bytes'])}"
    words = {
        "none": "a snapshot of the primary that is here already is made ready",
        "resumed": f"a snapshot that an interrupted run has sent in part is sent to its end ({much})",
        "incremental": f"what changed since {base} is sent ({much})",
        "full": f"a snapshot of the primary is sent ({much})",
    }
    return Copy(None, words[told["kind"]], told["kind"], told["estimated_bytes"], begun)


def _require_free(layout: Layout, ours: View) -> None:
    """Refusal where something else than the node's own datasets lies where the copy's are to be mounted."""
    mine = {one.name for one in (*ours.datasets.values(), *ours.aside.values())}  # a run may have died at the swap
    for path in sorted(layout.paths.values()):
        inside = layout.root(path) != path
        if ours.mounts.get(path) in mine or inside or not os.path.lexists(path):
            continue
        if os.path.ismount(path):
            raise Refusal(f"something else is mounted at {path} than a dataset below {ours.top}: see findmnt {path}")
        if not os.path.isdir(path) or os.listdir(path):
            raise Refusal(f"{path} is no dataset below {ours.top}, and something lies in it: move that away")


def require_plain(theirs: View) -> None:
    """Refusal where a dataset is encrypted: as it is a server could not read it here, and nobody has said that it may
    lie here in the clear."""
    for below, dataset in theirs.datasets.items():
        if dataset.encryption != "off":
            raise Refusal(f"{theirs.called(below)} is encrypted, and of such a one only base backups are made")


def require_whole_pages(theirs: View, layout: Layout) -> None:
    """Refusal where ZFS may write a part of a page: full_page_writes = off is right for whole records only."""
    for below, _path in layout.ordered:
        records = int(theirs.datasets[below].values["recordsize"])
        if records < PAGE:
            raise Refusal(
                f"full_page_writes is off on the primary, and {theirs.called(below)} has a recordsize of "
                f"{size(records)}, less than a page ({size(PAGE)}): a crash could tear it; set full_page_writes = on"
            )


def labelled(zfs: Zfs, source: Source, slot: str, theirs: View, ours: View) -> Optional[tuple[str, Label]]:
    """The newest snapshot for this node whose label is good still, as an interrupted run has left it. Not one that was
    placed here already: a server may have run on it since, to which the label does not apply. (Pure.)"""
    top, here = theirs.datasets.get(""), ours.datasets.get("")
    kept = (source.slot or {}).get("restart_lsn")
    lived_in = any(one.canmount == "on" for one in ours.datasets.values())
    for one in reversed(top.snapshots if top else ()):
        label = read_label(one.label) if one.made == zfs.prefix else None
        if label and label.usable(source.system_identifier, source.timeline, slot, kept):
            return None if lived_in and here and here.find(one.guid) else (one.name, label)
    return None


def require_alone(roots: Iterable[str], data_directory: str) -> None:
    """Refusal where another cluster lies in the datasets: it would be replaced by what the other host has of it.
    Directories that a rebuild has kept beside the data directory are none."""
    for root in roots:
        for depth in ("", "*/", "*/*/"):
            for path in sorted(glob.glob(f"{glob.escape(root)}/{depth}global/pg_control")):
                other = path[: -len("/global/pg_control")]
                if other != data_directory and not other.startswith(f"{data_directory}."):
                    raise Refusal(
                        f"another cluster lies in the same dataset, {other}: a snapshot would take it along; give each "
                        "cluster a dataset of its own, or say method: basebackup"
                    )


def placed_mark(name: str, source: Source, slot: str) -> str:
    """What PLACED says: the snapshot, and of which primary it is."""
    return f"{name}/{source.system_identifier}/{source.timeline}/{slot}"


def placed(zfs: Zfs, source: Source, slot: str) -> bool:
    """Whether what is mounted is a copy of ours, of this primary as it is now, that was not seen streaming yet."""
    with Side() as here:
        done = here.run("zfs", "get", "-Hp", "-s", "local", "-o", "value", PLACED, zfs.dataset, check=False)
    name = done.stdout.strip().partition("/")[0]
    return done.rc == 0 and bool(name) and done.stdout.strip() == placed_mark(name, source, slot)


def mounted_aside(zfs: Zfs, path: str) -> Optional[str]:
    """The dataset that a path is in, where it is one that a rebuild has renamed out of the way."""
    with Side() as here:
        name = here.run("zfs", "list", "-H", "-o", "name", path, check=False).stdout.strip()
    top = "/".join(name.split("/")[: zfs.dataset.count("/") + 1])
    return name if is_aside(top, zfs.dataset) else None


def kept_datasets(zfs: Optional[Zfs]) -> list[str]:
    """What rebuilds renamed out of the way, oldest first."""
    if zfs is None:
        return []
    with Side() as here:
        parent = zfs.dataset.rpartition("/")[0]
        done = here.run("zfs", "list", "-Hp", "-d", "1", "-t", "filesystem", "-o", "name", parent, check=False)
    return sorted(name for name in done.stdout.split() if is_aside(name, zfs.dataset))
