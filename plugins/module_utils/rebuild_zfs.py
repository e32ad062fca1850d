# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node becomes a standby from a ZFS snapshot of the primary, as a whole or by what changed since the last common one.

The copy is made ready where nothing looks for a server (STAGED behind the mount points), and mounted where it belongs
once it has its standby.signal. What the node had keeps its datasets, under another name. A run that dies anywhere is
continued by the next one: the label is with the snapshot on the primary, and what has arrived is not sent again.

Manual: "Making a Base Backup Using the Low Level API" (25.3.4).
"""

from __future__ import annotations

import contextlib
import os
import re
from datetime import datetime, timezone

from .rebuild import Source
from .rebuild_files import configure_staged, own, sync, tidy, wait_until_gone
from .rebuild_look import Job, asking
from .rebuild_zfs_look import PLACED, labelled, placed_mark, require_alone, sides, want
from .records import size
from .shell import HotspareError, write_durably
from .zfs import LABEL, Side, View, failed, look
from .zfs_layout import STAGED, Label, Layout, Zfs, is_in, read_layout, start_lsn
from .zfs_plan import new_name
from .zfs_send import work

CHECKPOINT_SECONDS = 3600  # which begins a backup; with large shared_buffers it takes its time


def seed(job: Job, zfs: Zfs, source: Source) -> None:
    """The node's datasets are those of a snapshot of the primary, mounted and configured as a standby's."""
    wait_until_gone(job)
    with sides(zfs) as (there, here):
        theirs = look(there, zfs.source_dataset, recursive=True, mounts=True)
        layout = read_layout(theirs, job.real, zfs.others(source.tablespaces))
        found = labelled(zfs, source, job.upstream.slot or "", theirs, look(here, zfs.dataset, recursive=True))
        if found is None:
            with job.step("zfs snapshot") as step:
                found = _snapshot(job, zfs, source, there)
                step["detail"] = f"{zfs.source_dataset}@{found[0]}, from {found[1].start_lsn} to {found[1].stop_lsn}"
        name, label = found
        with job.step("zfs send") as step:
            wanted = want(zfs, "sent", name)
            told = work(there, here, (zfs.source_dataset, zfs.dataset), wanted, status_file=zfs.status_file)
            step["detail"] = f"{told['kind']}, {size(told['sent_bytes'])}"
            if told["renamed"]:
                step["detail"] += f"; what the node had is {told['renamed']}"
            # Held by runs whose snapshot nobody can use any more.
            for stale in sorted({one["snapshot"].partition("@")[2] for one in told["stale_holds"]}):
                work(there, here, (zfs.source_dataset, zfs.dataset), want(zfs, "released", stale))
                step["detail"] += f"; released {stale}, which nobody needs"
        ours = look(here, zfs.dataset, recursive=True)
        with job.step("make ready"):
            _make_ready(job, here, ours, layout, label, source.major_version or 0)
        with job.step("mount") as step:
            _place(here, ours, layout, placed_mark(name, source, job.upstream.slot or ""))
            step["detail"] = ", ".join(sorted(layout.paths.values()))


def _snapshot(job: Job, zfs: Zfs, source: Source, there: Side) -> tuple[str, Label]:
    """One atomic snapshot, inside of one backup of one session: PostgreSQL then checks itself how far it has to go."""
    name = new_name(zfs.prefix, datetime.now(timezone.utc))
    names = (zfs.source_dataset, "")
    new = (source.major_version or 0) >= 15
    begin = "pg_backup_start(%s, true)" if new else "pg_start_backup(%s, true, false)"
    end = "pg_backup_stop(false)" if new else "pg_stop_backup(false, false)"
    with asking(job.upstream, job.instance.account, statement_timeout=CHECKPOINT_SECONDS) as cursor:
        cursor.execute(f"SELECT pg_catalog.{begin}", (name,))
        work(there, None, names, want(zfs, "snapshotted", name))
        cursor.execute(f"SELECT lsn::text, labelfile, spcmapfile FROM pg_catalog.{end}")
        stop, text, spaces = cursor.fetchone()
    label = Label(
        str(source.system_identifier), int(source.timeline or 0), job.upstream.slot or "", start_lsn(text), stop, text,
        spaces or "",
    )  # fmt: skip
    there.run("zfs", "set", f"{LABEL}={label.written()}", f"{zfs.source_dataset}@{name}")
    return name, label


def mount_again(zfs: Zfs, job: Job, source: Source) -> None:
    """What a run has placed that died before all of it was mounted."""
    with sides(zfs) as (there, here):
        ours = look(here, zfs.dataset, recursive=True)
        layout = read_layout(look(there, zfs.source_dataset, recursive=True), job.real, source.tablespaces)
        for below, path in layout.ordered:
            one = ours.datasets.get(below)
            if one is None:
                raise HotspareError(f"{zfs.dataset}{below} is gone since it was received: see zfs list, run this again")
            if not one.mounted or one.mountpoint != path:
                _mount(here, one.name, path, layout)


def _make_ready(job: Job, here: Side, ours: View, layout: Layout, label: Label, version: int) -> None:
    """Mounted beside where it belongs: the copy without what is the primary's, with what makes a standby of it."""
    _unmount(here, ours, layout)
    for below, path in layout.ordered:
        here.run("zfs", "set", f"mountpoint={layout.staged(path)}", "canmount=noauto", ours.top + below)
    for below, path in layout.ordered:
        _require_in_copy(layout.staged(path), f"{layout.root(path)}{STAGED}")
        here.run("zfs", "mount", ours.top + below)
    directory = layout.staged(job.real)
    _require_in_copy(directory, f"{layout.root(job.real)}{STAGED}")
    _require_whole(directory, layout, version)
    own(job.instance.account, directory, [f"{root}{STAGED}" for root in layout.roots])
    tidy(directory)
    leave_archiving(directory, layout)
    account = job.instance.account
    if label.spaces:
        write_durably(f"{directory}/tablespace_map", label.spaces, account=account)
    write_durably(f"{directory}/backup_label", label.label, account=account)
    configure_staged(job, directory)
    sync(directory)
    for below, _path in reversed(layout.ordered):
        here.run("zfs", "unmount", ours.top + below)


def leave_archiving(directory: str, layout: Layout) -> None:
    """Segments that the primary has still to archive are no work of a standby that is promoted: as of those that it
    streams, 26.2.9 ("Continuous Archiving in Standby")."""
    status = f"{_staged(f'{directory}/pg_wal', layout)}/archive_status"
    for name in os.listdir(status) if os.path.isdir(status) else ():
        stem, ending = os.path.splitext(name)
        if ending == ".ready":
            os.replace(f"{status}/{name}", f"{status}/{stem}.done")


def _unmount(here: Side, ours: View, layout: Layout) -> None:
    """What an interrupted run left mounted."""
    for below, _path in reversed(layout.ordered):
        if (one := ours.datasets.get(below)) and one.mounted:
            here.run("zfs", "unmount", one.name)


def _place(here: Side, ours: View, layout: Layout, mark: str) -> None:
    here.run("zfs", "set", f"{PLACED}={mark}", ours.top)
    for below, path in layout.ordered:
        _mount(here, ours.top + below, path, layout)
    for path in layout.roots:
        with contextlib.suppress(OSError):
            os.rmdir(f"{path}{STAGED}")


def _mount(here: Side, name: str, path: str, layout: Layout) -> None:
    """For good."""
    _require_in_copy(path, layout.root(path) or path)
    here.run("zfs", "set", f"mountpoint={path}", "canmount=on", name)
    mounted = here.run("zfs", "get", "-Hp", "-o", "value", "mounted", name).stdout.strip()
    if mounted != "yes":  # zfs set may have done it
        here.run("zfs", "mount", name)


def _require_in_copy(path: str, root: str) -> None:
    """HotspareError where a link that was copied leads out of the copy, which is mounted at `root`: root would mount,
    write and remove there."""
    real = os.path.realpath(path)
    if not is_in(real, os.path.realpath(root)):
        raise HotspareError(
            f"{path} leads to {real} by a symbolic link of the primary, so nothing is mounted or written there: see "
            "who made that link, or say method: basebackup"
        )


def forget(zfs: Zfs) -> None:
    """It streams: nothing has to be continued."""
    with Side() as here:
        here.run("zfs", "inherit", PLACED, zfs.dataset)


def _require_whole(directory: str, layout: Layout, version: int) -> None:
    """HotspareError when a part of the server was not in the snapshot; the copy is not used then."""
    advice = "put that below the dataset that holds the data, too, or say method: basebackup"
    if not os.path.isfile(f"{directory}/global/pg_control"):
        raise HotspareError(
            f"the copy has no data directory at {directory}: that of the primary lies elsewhere in its dataset; give "
            "both nodes the same paths, or say method: basebackup"
        )
    require_alone([f"{root}{STAGED}" for root in layout.roots], directory)
    spaces = f"{directory}/pg_tblspc"
    for path in (f"{directory}/pg_wal", *(os.path.join(spaces, name) for name in sorted(os.listdir(spaces)))):
        to = os.readlink(path) if os.path.islink(path) else path
        there = _staged(path, layout)
        what = re.compile("[0-9A-F]{24}" if path.endswith("/pg_wal") else f"PG_{version}_.*")
        if (os.path.islink(path) and layout.root(to) is None) or not os.path.isdir(there):
            raise HotspareError(
                f"{os.path.basename(path)} of the primary leads to {to}, which is not in what was copied: {advice}"
            )
        _require_in_copy(there, f"{layout.root(to)}{STAGED}" if os.path.islink(path) else directory)
        if not any(what.fullmatch(name) for name in os.listdir(there)):
            raise HotspareError(
                f"{os.path.basename(path)} of the primary ({to}) is empty in what was copied, so something else is "
                f"mounted there: {advice}"
            )
    for path in (f"{directory}/postgresql.auto.conf", f"{_staged(f'{directory}/pg_wal', layout)}/archive_status"):
        if os.path.islink(path) or (os.path.lexists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
            raise HotspareError(
                f"{os.path.basename(path)} of the primary is a symbolic link or a pipe, and this host would write "
                "where that leads: put the file itself there, or say method: basebackup"
            )


def _staged(path: str, layout: Layout) -> str:
    """Where that lies while nothing is in its place: a link names the place."""
    to = os.readlink(path) if os.path.islink(path) else path
    return layout.staged(to) if to != path and layout.root(to) else to


def remove_dataset(name: str) -> None:
    """One that was kept, with all that is in it. HotspareError when it is in use, or held by somebody else."""
    with Side() as here:
        view = look(here, name, recursive=True)
        if any(one.mounted for one in view.datasets.values()):
            raise HotspareError(f"{name} is mounted: see who looks into it, and unmount it")
        held = [one for dataset in view.datasets.values() for one in dataset.snapshots if one.userrefs]
        foreign = [(one, tag) for one in held for tag in sorted(one.holds) if not tag.startswith("hotspare")]
        if foreign:
            raise HotspareError(
                f"{foreign[0][0]} is held by {foreign[0][1]}, which is not ours: see who needs it (zfs holds)"
            )
        for one in held:
            for tag in sorted(one.holds):
                here.run("zfs", "release", tag, str(one))
        done = here.run("zfs", "destroy", "-r", name, check=False)
        if done.rc != 0:
            raise failed(here.where, ("zfs", "destroy", "-r", name), done.stderr)
