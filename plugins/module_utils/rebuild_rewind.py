# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_rewind of a stopped node, on a name of its own, with what it takes away kept before. Manual: "pg_rewind"."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace

from .rebuild import Local, Source, common_point
from .rebuild_files import (
    aside,
    configure_staged,
    copy_file,
    make_directory,
    new_note,
    read_own,
    rename,
    wait_until_gone,
    write_note,
)
from .rebuild_look import UNTOUCHED, Job, free_bytes, program_version, waldump
from .server import CLEAN_STATES, Instance, effective_setting, read_control, set_standby_signal
from .shell import HotspareError, remove_durably, run, write_durably
from .wal import format_lsn, parse_lsn, parse_segment_name

RECOVERY_SECONDS = 3600  # for crash recovery
EVIDENCE_RECORDS = 100_000  # more are in the segments themselves


class RewindFailed(HotspareError):
    """pg_rewind could not do it; a base backup can. The data directory was kept."""


def rewind(job: Job, local: Local, source: Source) -> None:
    """pg_rewind under another name; RewindFailed when it cannot be done."""
    wait_until_gone(job)
    save_evidence(job, local, source)
    auto_conf = f"{job.rewinding}/postgresql.auto.conf"
    staged = job.at(job.rewinding)
    with job.step("rename") as step:
        write_durably(f"{job.real}/{UNTOUCHED}", "", account=job.instance.account)
        rename(job.real, job.rewinding)
        step["detail"] = job.rewinding
    # Outside of what pg_rewind overwrites with the primary's.
    own_settings = read_own(auto_conf)
    try:
        _prepare_rewind(job, staged, local, source)
    except HotspareError as error:
        # Nothing was rewound: it gets its name back. But a former primary must never start as one.
        set_standby_signal(staged, True)
        rename(job.rewinding, job.real)
        remove_durably(f"{job.real}/{UNTOUCHED}")
        raise RewindFailed(f"pg_rewind cannot be used: {error.message}", **error.facts) from error
    try:
        with job.step("pg_rewind") as step:
            remove_durably(staged.path(UNTOUCHED))
            done = run(_pg_rewind(job, staged), account=staged.account, timeout=None)
            step["detail"] = _copied(done.stdout + done.stderr)
        if own_settings is not None:
            write_durably(auto_conf, own_settings, account=staged.account)
        configure_staged(job, job.rewinding)
        end = format_lsn(source.flush_lsn or 0)
        write_note(job, new_note(job, source, complete=True, timeline=source.timeline, end_lsn=end))
    except HotspareError as error:
        name = aside(job)
        rename(job.rewinding, name)
        raise RewindFailed(f"pg_rewind failed ({error.message}), what it left is {name}", **error.facts) from error
    with job.step("rename back"):
        rename(job.rewinding, job.real)


def _prepare_rewind(job: Job, staged: Instance, local: Local, source: Source) -> None:
    # A server in single-user mode refuses a directory with a signal.
    for name in ("standby.signal", "recovery.signal"):
        remove_durably(staged.path(name))
    if read_control(staged).state not in CLEAN_STATES:
        with job.step("crash recovery"):
            _recover(staged)
    with job.step("pg_rewind --dry-run"):
        done = run([*_pg_rewind(job, staged), "--dry-run"], account=staged.account, timeout=None)
        said = done.stdout + done.stderr
        if "no rewind required" in said:
            raise HotspareError("it says that no rewind is required, although the histories have parted")
        # From there the node recovers. 13 removes all WAL that the primary has not, later versions keep what it needs.
        begin = re.search(r"last common checkpoint at ([0-9A-F]+/[0-9A-F]+)", said)
        if (
            begin
            and (program_version(staged) or 0) < 14
            and parse_lsn(begin.group(1)) < (source.oldest_wal or 0)
            and not local.restore_command
        ):
            raise HotspareError(
                f"the node would need WAL from {begin.group(1)} on, the oldest that the primary still has begins at"
                f" {format_lsn(source.oldest_wal or 0)}, and there is no restore_command"
            )


def _recover(staged: Instance) -> None:
    """Crash recovery in single-user mode.

    Ours, not pg_rewind's: that one finds no configuration in Debian's layout (before 15 it takes none), and the
    data_directory which the configuration names is another. wal_keep_size: the checkpoint at the end would remove the
    very WAL that pg_rewind needs next.
    """
    options = {
        "config_file": staged.configuration,
        "data_directory": staged.data_directory,
        "wal_keep_size": "2147483647",
    }
    argv = [staged.program("postgres"), "--single", "-F", "-D", staged.data_directory]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    run([*argv, "template1"], account=staged.account, timeout=RECOVERY_SECONDS)
    state = read_control(staged).state
    if state != "shut down":
        raise HotspareError(f"crash recovery of {staged.data_directory} ended with pg_control saying '{state}'")


def _pg_rewind(job: Job, staged: Instance) -> list[str]:
    upstream = replace(
        job.upstream,
        application_name=f"{job.upstream.application_name}-rewind",
        dbname="postgres",
        extra={**job.upstream.extra, "target_session_attrs": "read-write"},
    )
    argv = [staged.program("pg_rewind"), "--target-pgdata", staged.data_directory, "--no-ensure-shutdown", "--progress"]
    argv += ["--source-server", upstream.conninfo()]
    # Before 15 pg_rewind looks for restore_command in the data directory only, where no configuration is.
    if (program_version(staged) or 0) >= 15 and effective_setting(staged, "restore_command"):
        argv += ["--restore-target-wal", "--config-file", staged.configuration]
    return argv


def save_evidence(job: Job, local: Local, source: Source) -> None:
    """Keep the WAL that the primary does not have, since it holds the transactions that are lost."""
    here, control = local.position, local.control
    common = (
        common_point(local.history or (), here.timeline, source.history or (), source.timeline or 0) if here else None
    )
    if here is None or control is None or common is None:
        raise HotspareError(
            f"where {job.instance.name} diverged is not known, so it cannot be rewound"
        )  # refused before
    with job.step("keep the diverged WAL") as step:
        ancestors = [entry for entry in local.history or () if entry.timeline >= common[0]]
        begin = max([common[1], *(entry.switch_lsn for entry in ancestors)])
        text, end = waldump(job, job.real, here.timeline, begin, ["--limit", str(EVIDENCE_RECORDS)])
        wanted = {here.timeline, *(entry.timeline for entry in ancestors)}
        names, size = [], control.wal_segment_size
        for name in sorted(os.listdir(f"{job.real}/pg_wal")):
            with contextlib.suppress(ValueError):
                segment = parse_segment_name(name, size)
                # Segments past the end are old ones, renamed to be used again.
                past = end is not None and segment.start_lsn >= end
                diverged = segment.timeline in wanted and segment.start_lsn + size > common[1] and not past
                # Not archived yet, and pg_rewind removes it.
                if diverged or os.path.lexists(f"{job.real}/pg_wal/archive_status/{name}.ready"):
                    names.append(name)
        free = free_bytes(job.real) or 0
        if len(names) * size + len(text) > free:
            raise HotspareError(
                f"{job.instance.name} was not touched: there is no room beside {job.real} to keep the {len(names)} WAL "
                f"segments that the primary does not have ({free // 1_000_000} MB are free); make room, or say "
                "method: basebackup"
            )
        directory = aside(job, "diverged")
        make_directory(job, directory)
        for name in names:
            copy_file(job, f"{job.real}/pg_wal/{name}", f"{directory}/{name}")
        write_durably(f"{directory}/pg_waldump.txt", text, account=job.instance.account)
        commits = len(re.findall(r"^rmgr: Transaction .* desc: COMMIT", text, re.MULTILINE))
        more = "at least " if len(text.splitlines()) >= EVIDENCE_RECORDS else ""
        step["detail"] = (
            f"{more}{commits} commits since {format_lsn(common[1])} are not on the primary; {len(names)} WAL segments"
            f" and what they say are in {directory}"
        )


def _copied(said: str) -> str:
    """What pg_rewind says with --progress of its work."""
    found = re.search(r"need to copy (\d+) MB \(total source directory size is (\d+) MB\)", said)
    return f"copied {found.group(1)} of {found.group(2)} MB" if found else ""
