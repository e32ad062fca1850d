# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the newest snapshot of a copy can be restored: a server is started on a clone of it, asked, and removed.

The clone is mounted below a directory of its own at the paths that the server knew (MNT/var/lib/postgresql/17), and no
link leads out of it. The server has a configuration of its own, no network, no archive, nobody to follow, and no
background workers, so that nothing in it acts on other servers (subscriptions, pg_cron). It recovers all WAL that the
snapshot holds; from there on it is a primary, and PostgreSQL itself has checked that it is consistent.

Manual: "Recovery Target" (19.5.6; without one all WAL is replayed), "Continuous Archiving" (26.3.5).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Optional

from .conninfo import quote_setting
from .controldata import ControlData
from .rebuild_files import own, tidy
from .rebuild_look import cursor_of
from .records import duration
from .server import DEBIAN_ROOT, ConnectFailed, Instance, connect, process_id, processes, read_control, read_text
from .shell import HotspareError, run, write_durably
from .zfs import HARMLESS, Side, failed, parse_get
from .zfs_copy import Copy, Note, alone, newest
from .zfs_layout import is_in

CHECKS = ("count", "amcheck")
HOME = "/var/lib/hotspare-zfs/restore-test"
SUFFIX = ":restore-test"  # no copy is called so: a colon is in no name of a node there
MARK = "hotspare:restore-test"  # of a clone: the snapshot that it is of
PORT = 54329  # names the socket; there is no network
START_SECONDS = 6 * 3600
CHECK_SECONDS = 24 * 3600
STOP_SECONDS = 60
POLL_SECONDS = 0.2
DESTROY_TRIES = 10
AMCHECK_SINCE = 14
SYSTEM_ACCOUNTS = 999  # the highest uid of a service's account, SYS_UID_MAX in login.defs(5)
PROGRAMS = ("postgres", "pg_ctl", "pg_controldata", "pg_amcheck")  # that are started
LIBRARIES = re.compile(r"([\w.-]+|\$libdir/[\w.-]+)?(\s*,\s*([\w.-]+|\$libdir/[\w.-]+))*")
# Of the data directory besides, what tells the server what the live one is to do.
SETTINGS_FILES = ("postgresql.auto.conf",)


@dataclass(frozen=True)
class Place:
    """Where a test of a copy does its work: the clones, and the directories."""

    dataset: str

    @property
    def clone(self) -> str:
        return f"{self.dataset}{SUFFIX}"

    @property
    def home(self) -> str:
        return f"{HOME}/{self.dataset.replace('/', '_')}"

    @property
    def lock(self) -> str:
        return f"/run/hotspare-restore-test-{self.dataset.replace('/', '_')}.lock"

    @property
    def mnt(self) -> str:
        return f"{self.home}/mnt"

    @property
    def run(self) -> str:
        """The server's: socket, configuration, log."""
        return f"{self.home}/run"

    @property
    def log(self) -> str:
        return f"{self.run}/server.log"

    def inside(self, path: str) -> str:
        """A path of the live server in the clone."""
        return f"{self.mnt}{path}"

    def instance(self, note: Note, bin_directory: str) -> Instance:
        return Instance(
            name=f"the clone of {self.dataset}",
            data_directory=self.inside(note.data_directory),
            bin_directory=bin_directory,
            port=PORT,
            socket_directory=self.run,
            config_file=f"{self.run}/postgresql.conf",
            account=note.account,
        )


def restore_test(dataset: str, check: str, account: str) -> dict[str, Any]:
    """Restore the newest snapshot of a copy on this host, and check it; what was found. HotspareError.

    What is in the databases runs as `account`, which is not for the snapshot to choose. The clone is removed in any
    case; after an error the server's log stays.
    """
    if check not in CHECKS:
        raise HotspareError(f"there is no check {check!r}: say {' or '.join(CHECKS)}")
    place = Place(dataset)
    os.umask(0o022)  # the server's account has to come through what is made here
    with (
        Side() as side,
        alone(place.lock, f"a restore test of {dataset}"),
    ):
        clean(side, place)
        copy = newest(side, dataset)
        if copy is None:
            raise HotspareError(
                f"{dataset} has no whole snapshot of ours that could be restored: run snapshot.yml, and see that its "
                "send came to its end"
            )
        bin_directory = programs(copy.note, check, account)
        try:
            found = _tested(side, place, copy, place.instance(copy.note, bin_directory), check)
        except (HotspareError, OSError) as error:
            kept = f"; the log of its server is {place.log}" if os.path.exists(place.log) else ""
            clean(side, place, keep_log=True)
            facts = error.facts if isinstance(error, HotspareError) else {}
            raise HotspareError(f"{copy} did not pass its restore test: {error}{kept}", **facts) from error
        clean(side, place)
    return found


def programs(note: Note, check: str, named: str) -> str:
    """Where PostgreSQL's programs of that version are on this host. HotspareError, also where the server did not run as
    the account `named`."""
    if note.account != named:
        raise HotspareError(
            f"the note of the snapshot says that the server of {note.node} ran as {note.account}, and the inventory "
            f"says {named}: see node_account, and who may write to that copy"
        )
    for directory in (f"{DEBIAN_ROOT}/{note.version}/bin", note.bin_directory):
        if os.path.isabs(directory) and os.path.exists(f"{directory}/postgres"):
            break
    else:
        raise HotspareError(
            f"this host has no PostgreSQL {note.version}, with which {note.node} made its data: install "
            f"postgresql-{note.version} here; no cluster is needed"
        )
    # The note is the other host's word.
    directory = os.path.realpath(directory)
    for path in (directory, *(f"{directory}/{name}" for name in PROGRAMS)):
        if os.path.exists(path) and not _is_roots(path):
            raise HotspareError(f"{path} does not belong to root alone: install postgresql-{note.version} here")
    try:
        account = pwd.getpwnam(note.account)
    except KeyError:
        raise HotspareError(f"this host has no account {note.account}, which the server ran as: make it here") from None
    if not _is_service(account.pw_uid):
        raise HotspareError(
            f"{note.account}, which the server ran as, is no account of a service on this host (uid {account.pw_uid}), "
            f"so nothing is started as it: make it one, with a uid up to {SYSTEM_ACCOUNTS}"
        )
    if not LIBRARIES.fullmatch(note.libraries):
        raise HotspareError(
            f"{note.node} loads {note.libraries} (shared_preload_libraries), and a path is not loaded here: name "
            "libraries without one"
        )
    if check == "amcheck" and not os.path.exists(f"{directory}/pg_amcheck"):
        raise HotspareError(f"{directory} has no pg_amcheck (it is there since PostgreSQL {AMCHECK_SINCE}): say count")
    return directory


def _is_roots(path: str) -> bool:
    """Whether root alone may write there."""
    found = os.stat(path)
    return found.st_uid == 0 and not found.st_mode & (0o002 if found.st_gid == 0 else 0o022)


def _is_service(uid: int) -> bool:
    return 0 < uid <= SYSTEM_ACCOUNTS


def _tested(side: Side, place: Place, copy: Copy, instance: Instance, check: str) -> dict[str, Any]:
    began = time.monotonic()
    _clone(side, place, copy)
    control = _make_ready(place, copy.note, instance)
    started = time.monotonic()
    _start(place, instance, copy.note.version)
    try:
        recovered = time.monotonic()
        told = _asked(instance, copy.note)
        found = (_amchecked if check == "amcheck" else _counted)(instance, copy.note.version)
    finally:
        _stop(instance)
    now = datetime.now(timezone.utc).timestamp()
    data_at = max(filter(None, (told["committed"], checkpoint_time(control))), default=None)
    return {
        "copy": str(copy),
        "node": copy.note.node,
        "role": copy.note.role,
        "system_identifier": told["system_identifier"],
        "taken": copy.note.taken,
        "age_seconds": round(now - copy.note.taken, 1),
        "data_at": data_at,
        "data_age_seconds": None if data_at is None else round(now - data_at, 1),
        "timeline": told["timeline"],
        "clone_seconds": round(started - began, 3),
        "recovery_seconds": round(recovered - started, 3),
        "check": check,
        "check_seconds": round(time.monotonic() - recovered, 3),
        **found,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The clone
# ---------------------------------------------------------------------------------------------------------------------


def _clone(side: Side, place: Place, copy: Copy) -> None:
    """All datasets, mounted below a directory of ours, outer ones first. HotspareError before one is mounted
    elsewhere."""
    for was in copy.note.paths.values():
        require_below(place, was)
    os.makedirs(place.mnt)
    for below in copy.below:  # sorted: a dataset is after the one that it is in
        origin = f"{copy.dataset}{below}@{copy.name}"
        path = copy.note.paths.get(below)
        options = {
            "canmount": "noauto",
            "mountpoint": place.inside(path) if path else "none",
            "readonly": "off",
            **HARMLESS,
            "exec": "off",  # neither programs nor libraries of the other host
            MARK: origin,
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        side.run("zfs", "clone", *words, origin, f"{place.clone}{below}")
    for below, was in sorted(copy.note.paths.items(), key=lambda item: item[1].count("/")):
        where = place.inside(was)
        # mount(8) follows a link that lies in an outer one.
        if os.path.realpath(where) != f"{os.path.realpath(place.mnt)}{was}":
            raise HotspareError(
                f"{where} leads to {os.path.realpath(where)} by a link, so {place.clone}{below} was not mounted there: "
                "see who has put that link in the snapshot"
            )
        side.run("zfs", "mount", f"{place.clone}{below}")


def require_below(place: Place, path: str) -> None:
    """HotspareError unless what the live server had at `path` is mounted below our directory. (Pure.)"""
    where = place.inside(path)
    if os.path.normpath(where) != where or not where.startswith(f"{place.mnt}/"):
        raise HotspareError(
            f"the note of the snapshot says that a dataset was mounted at {path!r}, which is not below {place.mnt} in "
            "the clone: nothing was cloned; see who may write to that copy"
        )


def clean(side: Side, place: Place, *, keep_log: bool = False) -> None:
    """Remove what a test has made, also one that was killed: its server, its clones, its directories. HotspareError
    where something is called as ours and is not."""
    words = ("zfs", "get", "-Hpr", "-t", "filesystem", "-o", "name,property,value,source", CLONE_PROPERTIES)
    done = side.run(*words, place.clone, check=False)
    if done.rc != 0 and "does not exist" not in done.stderr:
        raise failed(side.where, words, done.stderr)
    clones = parse_get(done.stdout) if done.rc == 0 else {}
    require_ours(place, {name: (of["origin"][0], *of[MARK]) for name, of in clones.items()})
    mounted = [of["mountpoint"][0] for of in clones.values() if of["mounted"][0] == "yes"]
    _stop_all(mounted)
    for path in sorted(mounted, key=len, reverse=True):
        side.run("zfs", "unmount", next(name for name, of in clones.items() if of["mountpoint"][0] == path))
    for name in sorted(clones, reverse=True):
        _destroy(side, name)
    # What a mount has made on the way there; what is not empty is not ours.
    try:
        for folder, _folders, _files in os.walk(place.mnt, topdown=False):
            os.rmdir(folder)
        if not (keep_log and os.path.exists(place.log)) and os.path.isdir(place.home):
            shutil.rmtree(place.home)
    except OSError as error:
        raise HotspareError(f"cannot remove {error.filename}: {error.strerror}; see what is there") from error


CLONE_PROPERTIES = f"origin,mounted,mountpoint,{MARK}"


def require_ours(place: Place, clones: Mapping[str, tuple[str, str, str]]) -> None:
    """HotspareError unless each dataset is a clone of the copy that a test has made: its origin, its mark and where
    that was set. (Pure.)"""
    for name, (origin, mark, source) in clones.items():
        below = name[len(place.clone) :]
        if source != "local" or mark != origin or origin.partition("@")[0] != f"{place.dataset}{below}":
            raise HotspareError(f"{name} is not a clone that a restore test has made: see what it is, and rename it")


def _destroy(side: Side, name: str) -> None:
    """Without -r: what somebody else has made of it keeps it. The kernel may need a moment to let go of it."""
    words = ("zfs", "destroy", name)
    for attempt in range(DESTROY_TRIES):
        done = side.run(*words, check=False)
        if done.rc == 0:
            return
        if "busy" not in done.stderr or attempt == DESTROY_TRIES - 1:
            raise failed(side.where, words, done.stderr)
        time.sleep(1)


# ---------------------------------------------------------------------------------------------------------------------
# What is in it
# ---------------------------------------------------------------------------------------------------------------------


def _make_ready(place: Place, note: Note, instance: Instance) -> ControlData:
    """The clone is nobody's but its own: links, settings and signals. What pg_control said before the start."""
    directory = instance.data_directory
    roots = [place.inside(path) for path in note.paths.values()]
    if os.path.realpath(directory) != directory or not os.path.isfile(f"{directory}/PG_VERSION"):
        raise HotspareError(f"there is no data directory {note.data_directory} in the snapshot")
    own(note.account, directory, roots)
    repoint(place, directory, note.paths.values())
    require_inside(directory, roots)
    # A label of a backup counts only where no server had begun with it, and this one took connections.
    tidy(directory, *SETTINGS_FILES)
    control = read_control(instance)
    if control.system_identifier != note.system_identifier:
        raise HotspareError(
            f"its system identifier is {control.system_identifier}, and {note.node} had {note.system_identifier}"
        )
    account = pwd.getpwnam(note.account)
    os.makedirs(place.run, mode=0o700)
    os.chown(place.run, account.pw_uid, account.pw_gid)
    files = {
        "postgresql.conf": "".join(
            f"{name} = {quote_setting(value)}\n" for name, value in settings(place, note, control).items()
        ),
        "pg_hba.conf": "local all all peer\n",
        "pg_ident.conf": "",
    }
    for name, text in files.items():
        write_durably(f"{place.run}/{name}", text, account=note.account)
    write_durably(f"{directory}/recovery.signal", "", account=note.account)
    return control


def settings(place: Place, note: Note, control: ControlData) -> dict[str, str]:
    """Of a server that touches nothing but the clone. (Pure.)"""
    found = {
        "data_directory": place.inside(note.data_directory),
        "hba_file": f"{place.run}/pg_hba.conf",
        "ident_file": f"{place.run}/pg_ident.conf",
        "cluster_name": "hotspare-restore-test",
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": place.run,
        "unix_socket_permissions": "0700",
        # Nobody to follow, nothing to archive or to fetch: all WAL that it gets is in the snapshot.
        "restore_command": "false",
        "archive_mode": "off",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "synchronous_standby_names": "",
        # Without these no background worker runs: neither jobs nor subscriptions, which would act on other servers. A
        # hot standby would need as many as its primary; this one takes connections when it has recovered.
        "max_worker_processes": "0",
        "max_logical_replication_workers": "0",
        "hot_standby": "off",
        "autovacuum": "off",
        # What the recovery has to hold.
        "max_connections": str(control.max_connections),
        "max_prepared_transactions": str(control.max_prepared_transactions),
        "max_locks_per_transaction": str(control.max_locks_per_transaction),
        "max_replication_slots": "1000",  # origins of replication, too, which are in the snapshot
        "shared_preload_libraries": note.libraries,
        # Small and quick: it will be thrown away.
        "shared_buffers": "64MB",
        "fsync": "off",
        "full_page_writes": "off",
        "ssl": "off",
        "logging_collector": "off",
        "log_destination": "stderr",
        "lc_messages": "C",
        "log_timezone": "UTC",
    }
    if note.version >= 18:
        found["max_active_replication_origins"] = found["max_replication_slots"]
    return found


def links(directory: str) -> Iterator[str]:
    """Symbolic links in a data directory and in the tablespaces that it leads to."""
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                yield path


def repoint(place: Place, directory: str, mounted: Iterable[str]) -> None:
    """Links to WAL and tablespaces lead into the clone; others at the top (logs, certificates) are not needed there.
    HotspareError for a part of the server that is not in the snapshot."""
    mounted = list(mounted)
    for path in list(links(directory)):
        target = os.readlink(path)
        whole = os.path.normpath(os.path.join(os.path.dirname(path), target))
        whole = whole[len(place.mnt) :] if is_in(whole, place.mnt) else whole
        needed = os.path.basename(path) == "pg_wal" or os.path.basename(os.path.dirname(path)) == "pg_tblspc"
        if any(is_in(whole, one) for one in mounted):
            os.unlink(path)
            os.symlink(place.inside(whole), path)
        elif needed or os.path.dirname(path) != directory:
            raise HotspareError(f"{path[len(place.mnt) :]} leads to {target}, which is not in the snapshot")
        else:
            os.unlink(path)


def require_inside(directory: str, roots: Iterable[str]) -> None:
    """HotspareError unless every link leads into the clone: the server would write into the live one's files."""
    roots = list(roots)
    spaces = os.path.join(directory, "pg_tblspc")
    folders = [directory, *(os.path.realpath(os.path.join(spaces, name)) for name in os.listdir(spaces))]
    devices = {os.stat(root).st_dev for root in roots}
    for folder in folders:
        for path in links(folder):
            real = os.path.realpath(path)
            inside = any(is_in(real, root) for root in roots) and os.path.exists(real)
            if not inside or os.stat(real).st_dev not in devices:
                raise HotspareError(f"{path} leads to {real}, out of the clone: it was not started")


def checkpoint_time(control: ControlData) -> Optional[float]:
    """Of pg_controldata in UTC and the C locale, in seconds since 1970; None where it is not written so. (Pure.)"""
    try:
        found = datetime.strptime(control.checkpoint_time, "%a %b %d %H:%M:%S %Y")
    except ValueError:
        return None
    return found.replace(tzinfo=timezone.utc).timestamp()


# ---------------------------------------------------------------------------------------------------------------------
# Its server
# ---------------------------------------------------------------------------------------------------------------------


def session(version: int) -> str:
    """Options of a session in which nothing runs by itself that a database says. (Pure.)"""
    quiet = {"session_preload_libraries": "", "local_preload_libraries": ""}
    if version >= 17:
        quiet["event_triggers"] = "off"  # there are some for the login
    return " ".join(f"-c {name}={value}" for name, value in quiet.items())


def _start(place: Place, instance: Instance, version: int) -> None:
    """Until it has recovered and takes connections."""
    options = ["--log", place.log, "--options", f"-c config_file={instance.configuration}"]
    words = ["start", "--wait", f"--timeout={START_SECONDS}", "--pgdata", instance.data_directory, *options]
    done = run([instance.program("pg_ctl"), *words], account=instance.account, timeout=START_SECONDS + 60, check=False)
    deadline = time.monotonic() + START_SECONDS
    while done.rc == 0:  # pg_ctl does not wait for the end of a recovery that takes no connections
        gone = process_id(instance) is None  # before it is asked
        try:
            connect(instance, options=session(version)).close()
            return
        except ConnectFailed as error:
            if error.kind != "starting" or gone or time.monotonic() > deadline:
                break
        time.sleep(POLL_SECONDS)
    raise HotspareError(f"PostgreSQL did not recover: {reason(read_text(place.log) or done.stderr)}")


def reason(log: str) -> str:
    """The line of a server's log that says why it ended. (Pure.)"""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    grave = [re.sub(r"^.*?(?=FATAL|PANIC)", "", line) for line in lines if re.search(r"\b(FATAL|PANIC):", line)]
    return (grave or lines or ["it logged nothing"])[-1 if not grave else 0]


def _stop(instance: Instance) -> None:
    """HotspareError when one of its processes is left."""
    words = ["stop", "--wait", "--mode=immediate", f"--timeout={STOP_SECONDS}", "--pgdata", instance.data_directory]
    run([instance.program("pg_ctl"), *words], account=instance.account, timeout=STOP_SECONDS + 30, check=False)
    _require_gone(instance)


def _require_gone(instance: Instance) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while left := processes(instance):
        if time.monotonic() > deadline:
            raise HotspareError(f"processes {left} of the server on the clone do not end: end them (kill -9)")
        time.sleep(0.1)


def _stop_all(mounted: Iterable[str]) -> None:
    """Servers that a test that was killed has left on its clone: by their postmaster.pid, if it is theirs."""
    for root in mounted:
        for folder, folders, files in os.walk(root):
            if "PG_VERSION" in files and "global" in folders:
                folders[:] = []
                owner = os.stat(folder).st_uid
                # What is in a snapshot is the other host's word, as its note is: no pipe is read, no link followed,
                # no program from elsewhere started, and none as root.
                if not stat.S_ISREG(os.lstat(f"{folder}/PG_VERSION").st_mode) or not _is_service(owner):
                    continue
                version = (read_text(f"{folder}/PG_VERSION") or "").strip()
                if not re.fullmatch("[0-9]+", version):
                    continue
                try:
                    account = pwd.getpwuid(owner).pw_name
                except KeyError:
                    continue  # of another host: nobody has started it here
                instance = Instance("the clone", folder, f"{DEBIAN_ROOT}/{version}/bin", account=account)
                if processes(instance):
                    _stop(instance)


# ---------------------------------------------------------------------------------------------------------------------
# Asking it
# ---------------------------------------------------------------------------------------------------------------------

_ASK = """SELECT pg_catalog.pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
  (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),
  extract(epoch FROM pg_catalog.pg_last_xact_replay_timestamp())"""
_DATABASES = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname"
# What a connection may read, and what has rows of its own.
_TABLES = """SELECT pg_catalog.format('%I.%I', nspname, relname) FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
  WHERE (relkind = 'r' OR relkind = 'm' AND relispopulated) AND relpersistence <> 't' ORDER BY 1"""


@contextlib.contextmanager
def _asking(instance: Instance, version: int, database: str = "postgres") -> Iterator[Any]:
    connection = connect(
        instance, dbname=database, timeout=60, statement_timeout=CHECK_SECONDS, options=session(version)
    )
    with cursor_of(connection, f"{instance.name}, database {database},") as cursor:
        yield cursor


def _asked(instance: Instance, note: Note) -> dict[str, Any]:
    with _asking(instance, note.version) as cursor:
        cursor.execute(_ASK)
        recovering, identifier, timeline, committed = cursor.fetchone()
    if recovering:
        raise HotspareError("its recovery has not ended")
    if identifier != note.system_identifier:
        raise HotspareError(f"it says that its system identifier is {identifier}, not {note.system_identifier}")
    return {
        "system_identifier": identifier,
        "timeline": int(timeline),
        "committed": None if committed is None else float(committed),
    }


def _counted(instance: Instance, version: int) -> dict[str, Any]:
    """Every row of every table is read, catalogs too."""
    with _asking(instance, version) as cursor:
        cursor.execute(_DATABASES)
        databases = [row[0] for row in cursor]
    tables = rows = 0
    for database in databases:
        with _asking(instance, version, database) as cursor:
            cursor.execute(_TABLES)
            for (name,) in list(cursor):
                cursor.execute(f"SELECT count(*) FROM {name}")
                rows += int(cursor.fetchone()[0])
                tables += 1
    return {"databases": len(databases), "tables": tables, "rows": rows}


def _amchecked(instance: Instance, version: int) -> dict[str, Any]:
    """Every table and index, by pg_amcheck; its extension is made in the clone. HotspareError with what it found."""
    words = ["--all", "--heapallindexed", "--install-missing", "--no-password"]
    where = ["--host", instance.socket_directory, "--port", str(instance.port), "--username", instance.account]
    done = run(
        [instance.program("pg_amcheck"), *words, *where],
        account=instance.account,
        timeout=CHECK_SECONDS,
        check=False,
        env={"PGOPTIONS": session(version)},
    )
    if done.rc != 0:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        raise HotspareError(
            f"pg_amcheck found something wrong: {said[0] if said else 'it does not say what'}",
            found=said[:50],
        )
    with _asking(instance, version) as cursor:
        cursor.execute(_DATABASES)
        return {"databases": len(list(cursor)), "tables": None, "rows": None}


# ---------------------------------------------------------------------------------------------------------------------
# Telling
# ---------------------------------------------------------------------------------------------------------------------


def sentences(found: Mapping[str, Any]) -> list[str]:
    """For the operator. (Pure.)"""
    data = "of unknown age" if found["data_age_seconds"] is None else f"{duration(found['data_age_seconds'])} old"
    checked = (
        f"pg_amcheck --heapallindexed found nothing wrong in {found['databases']} databases"
        if found["check"] == "amcheck"
        else f"{found['rows']} rows of {found['tables']} tables in {found['databases']} databases could be read"
    )
    return [
        f"{found['copy']}, of {found['node']} when it was {found['role']}, {duration(found['age_seconds'])} old",
        f"a server on a clone of it recovered in {duration(found['recovery_seconds'])}; its newest data is {data}",
        f"its system identifier is {found['system_identifier']}, as it should be",
        f"{checked} ({duration(found['check_seconds'])})",
        "the clone is removed",
    ]
