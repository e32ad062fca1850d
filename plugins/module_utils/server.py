# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One PostgreSQL server of this host: where it is, whether it runs, to start, stop and ask it, and whom it follows."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import platform
import re
import select
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import controldata
from .conninfo import Upstream, quote_setting, without_settings
from .controldata import ControlData
from .shell import CommandError, HotspareError, as_account, remove_durably, run, write_durably

DEBIAN_ROOT = "/usr/lib/postgresql"
POLL_SECONDS = 0.1
LOG_LINES = 15
LOG_BYTES = 20000
PROGRAM_SECONDS = 30  # for pg_ctl, systemctl and postgres -C, which answer at once or never
MOST_CHECKPOINTS = 5
CLEAN_STATES = ("shut down", "shut down in recovery")
UPSTREAM_SETTINGS = ("primary_conninfo", "primary_slot_name")

NODE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str"},
    "data_directory": {"type": "path", "required": True},
    "bin_directory": {"type": "path"},
    "port": {"type": "int", "default": 5432},
    "socket_directory": {"type": "path", "default": "/var/run/postgresql"},
    "config_file": {"type": "path"},
    "service": {"type": "str"},
    "account": {"type": "str", "default": "postgres"},
    "slot_prefix": {"type": "str", "default": "hotspare_"},
}


# ---------------------------------------------------------------------------------------------------------------------
# Where it is
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instance:
    """One node: one data directory and the programs, port and configuration that belong to it.

    Without `service` the server is started and stopped by pg_ctl, and logs to `<data_directory>.log`.
    """

    name: str
    data_directory: str
    bin_directory: str
    port: int = 5432
    socket_directory: str = "/var/run/postgresql"
    config_file: str | None = None
    service: str | None = None
    account: str = "postgres"
    slot_prefix: str = "hotspare_"

    @property
    def configuration(self) -> str:
        return self.config_file or os.path.join(self.data_directory, "postgresql.conf")

    @property
    def upstream_file(self) -> str:
        """Our file with primary_conninfo and primary_slot_name, read through `include_dir 'conf.d'`."""
        return os.path.join(os.path.dirname(self.configuration), "conf.d", "60-hotspare-upstream.conf")

    def path(self, *parts: str) -> str:
        return os.path.join(self.data_directory, *parts)

    def program(self, name: str) -> str:
        return os.path.join(self.bin_directory, name)

    def __str__(self) -> str:
        return f"{self.name} ({self.data_directory})"


def instance_from_params(params: Mapping[str, Any]) -> Instance:
    """The node that a module's parameters (NODE_ARGUMENTS) name; installed programs and PG_VERSION fill the gaps.

    HotspareError when we are neither root nor the server's account, since nothing could be done then.
    """
    values = {name: params[name] for name in NODE_ARGUMENTS if params.get(name) is not None}
    values.setdefault("name", platform.node())
    # Normal form: names beside the directory (`X.before-...`) are made from it, a final slash would put them inside.
    values["data_directory"] = os.path.normpath(values["data_directory"])
    values.setdefault("bin_directory", _default_bin_directory(values["data_directory"]))
    instance = Instance(**values)
    if os.geteuid() != 0:
        with as_account(instance.account):  # raises unless we are that account
            pass
    return instance


def installed_versions() -> list[int]:
    """Major versions whose server is installed in Debian's layout, ascending."""
    found = (re.search(r"/(\d+)/bin/postgres$", path) for path in glob.glob(f"{DEBIAN_ROOT}/*/bin/postgres"))
    return sorted(int(match.group(1)) for match in found if match)


def data_directory_kind(instance: Instance) -> str:
    """`absent`, `empty`, `cluster` (PG_VERSION and pg_control are there) or `foreign`; HotspareError = unknown."""
    try:
        os.lstat(instance.data_directory)  # os.path.lexists calls a disk that fails absent
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        raise unreadable(instance.data_directory, error) from error
    try:
        if not os.path.isdir(instance.data_directory):
            return "foreign"
        if not os.listdir(instance.data_directory):
            return "empty"
        for needed in (("PG_VERSION",), ("global", "pg_control")):
            os.stat(instance.path(*needed))
    except FileNotFoundError:
        return "foreign"
    except OSError as error:
        raise unreadable(instance.data_directory, error) from error
    return "cluster"


def major_version(instance: Instance) -> int | None:
    """The major version that made the data directory (its PG_VERSION), None without one."""
    return _major_version(instance.data_directory)


def _major_version(data_directory: str) -> int | None:
    path = os.path.join(data_directory, "PG_VERSION")
    text = read_text(path)
    if text is None:
        return None
    match = re.match(r"(\d+)(\.\d+)?\s*$", text)
    if match is None:
        raise HotspareError(f"{path} holds {text[:20]!r} instead of a version: is this a PostgreSQL data directory?")
    return int(match.group(1))


def _default_bin_directory(data_directory: str) -> str:
    # Must not fail: also a bare host, or one whose data this account cannot read, has a state to report.
    try:
        version = _major_version(data_directory)
    except HotspareError:
        version = None
    version = version or max(installed_versions(), default=None)
    return f"{DEBIAN_ROOT}/{version}/bin" if version else "/usr/bin"


def read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> HotspareError:
    return HotspareError(f"cannot read {path}: {error.strerror}; run as root or as the account that owns it")


# ---------------------------------------------------------------------------------------------------------------------
# Whether it runs
# ---------------------------------------------------------------------------------------------------------------------


def process_id(instance: Instance) -> int | None:
    """The postmaster of this data directory, None when there is none; HotspareError when that cannot be told.

    postmaster.pid alone proves nothing: it outlives a crash, and after a reboot or in a new container its number
    belongs to another process. So the process must be a `postgres` that works in this data directory.
    """
    path = instance.path("postmaster.pid")
    text = read_text(path)
    if text is None:
        return None
    match = re.match(r"-?(\d+)\s", text)  # negative: a single-user server
    if match is None:
        raise HotspareError(
            f"{path} names no process, so it is not known whether a server runs there: if no postgres process of "
            f"{instance.account} is left on {instance.name}, remove the file"
        )
    pid = int(match.group(1))
    with as_account(instance.account):  # a root without CAP_SYS_PTRACE, as in containers, may not look itself
        try:
            return pid if _works_in(pid, instance.data_directory) else None
        except PermissionError as error:
            # Not our account's process. With another name it is not PostgreSQL: the file is stale.
            if read_text(f"/proc/{pid}/comm") not in ("postgres\n", "postmaster\n"):
                return None
            raise HotspareError(
                f"process {pid}, which {path} names, does not belong to account {instance.account}, so it is not known "
                "whether it is this server: run as root and name the server's account with `account`"
            ) from error


def processes(instance: Instance) -> list[int]:
    """All server processes that work in this data directory: also those that a killed postmaster left behind, which
    go on committing for a while."""
    found = []
    with as_account(instance.account):
        for entry in os.listdir("/proc"):
            with contextlib.suppress(PermissionError):  # another account's
                if entry.isdigit() and _works_in(int(entry), instance.data_directory):
                    found.append(int(entry))
    return sorted(found)


def _works_in(pid: int, directory: str) -> bool:
    try:
        program = os.readlink(f"/proc/{pid}/exe")
        same = os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.stat(directory))
    except (FileNotFoundError, ProcessLookupError):
        return False
    # An upgraded package leaves "postgres (deleted)" behind.
    return same and os.path.basename(program).split(" ")[0] in ("postgres", "postmaster")


def _postmaster_status(instance: Instance) -> str:
    """What the postmaster says about itself, in no language: starting, stopping, ready, standby, or nothing.

    Line 8 of postmaster.pid (PostgreSQL's pidfile.h, LOCK_FILE_LINE_PM_STATUS).
    """
    lines = (read_text(instance.path("postmaster.pid")) or "").splitlines()
    return lines[7].strip() if len(lines) > 7 else ""


def is_stopping(instance: Instance) -> bool:
    return process_id(instance) is not None and _postmaster_status(instance) == "stopping"


def has_shut_down(instance: Instance) -> bool:
    """Whether pg_control is final: no postmaster, or one that only waits for its archiver; HotspareError = unknown."""
    # In this order: a postmaster that is gone by now has written pg_control before.
    return process_id(instance) is None or (is_stopping(instance) and read_control(instance).state in CLEAN_STATES)


def read_control(instance: Instance) -> ControlData:
    """pg_control of this node, by pg_controldata; HotspareError when it cannot be read."""
    return controldata.read(instance.bin_directory, instance.data_directory, instance.account)


def summary(instance: Instance) -> dict[str, Any]:
    """What is known about a node without asking the server."""
    pid = process_id(instance)
    return {
        "name": instance.name,
        "data_directory": instance.data_directory,
        "major_version": major_version(instance),
        "running": pid is not None,
        "process_id": pid,
        "standby_signal": has_signal(instance, "standby.signal"),
        "control": read_control(instance).to_dict(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Asking it
# ---------------------------------------------------------------------------------------------------------------------


class ConnectFailed(HotspareError):
    """No connection; `kind` says why: refused, starting, shutting_down, auth, timeout or other."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind=kind)
        self.kind = kind


_KINDS = {
    "starting": r"starting up|not (yet )?accepting connections|in recovery mode",
    "shutting_down": r"shutting down|due to administrator command",
    "timeout": r"timeout expired|timed out",
    "auth": r"authentication|no pg_hba\.conf entry|no password supplied|role .* (does not exist|is not permitted)",
    "refused": r"Connection refused|No such file or directory",
}
_ADVICE = {
    "refused": "start the server, or mend the address and port",
    "starting": "wait, or read the server's log for what it waits for",
    "shutting_down": "wait until it has stopped",
    "auth": "see pg_hba.conf there and the passfile here",
    "timeout": "see whether the host is up and the server not frozen",
    "other": "see the server's log",
}


def connect(
    instance: Instance,
    *,
    dbname: str = "postgres",
    timeout: float = 5,
    statement_timeout: float = 30,
    options: str = "",
) -> Any:  # a psycopg2 connection, which has no types
    """An autocommit connection over the unix socket as the server's account; both timeouts in seconds. `options`: of
    the server's session, as libpq takes them (-c NAME=VALUE); they go before those of databases and roles.

    ConnectFailed with its `kind`. Also when another data directory's server listens there: a wrong port must never
    make us look at, or promote, a neighbour.
    """
    where = f"PostgreSQL of {instance} on port {instance.port} in {instance.socket_directory}"
    parameters = {"host": instance.socket_directory, "port": instance.port, "user": instance.account, "dbname": dbname}
    try:
        connection = _open(where, parameters, instance.account, timeout, statement_timeout, options)
    except ConnectFailed as error:
        if error.kind != "other":
            raise
        # A server that speaks another language than English: ask its lock file instead.
        kinds = {"starting": "starting", "standby": "starting", "stopping": "shutting_down"}
        error.kind = error.facts["kind"] = kinds.get(_postmaster_status(instance), "other")
        raise
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        theirs = _data_directory_of(connection, where)
        if os.path.realpath(theirs) != os.path.realpath(instance.data_directory):
            raise ConnectFailed(
                f"port {instance.port} in {instance.socket_directory} belongs to the server of {theirs}, not to that "
                f"of {instance}: mend `port` or `socket_directory`",
                "other",
            )
        stack.pop_all()
    return connection


def connect_conninfo(
    conninfo: Mapping[str, Any],
    *,
    account: str,
    replication: bool = False,
    timeout: float = 5,
    statement_timeout: float = 30,
) -> Any:
    """An autocommit connection to another node, as `account` so that its passfile can be read.

    `conninfo` has libpq's keywords. With `replication` the connection takes replication commands only. ConnectFailed.
    """
    where = f"PostgreSQL at {conninfo.get('host')} port {conninfo.get('port', 5432)}"
    parameters = {"dbname": "postgres", **{key: value for key, value in conninfo.items() if value is not None}}
    # A host that dies while we wait for an answer must not hold us for the kernel's default of 15 minutes.
    parameters["tcp_user_timeout"] = math.ceil(timeout * 1000)
    if replication:
        parameters["replication"] = "true"
    return _open(where, parameters, account, timeout, statement_timeout)


def _open(
    where: str, parameters: dict[str, Any], account: str, timeout: float, statement_timeout: float, options: str = ""
) -> Any:
    psycopg2 = _psycopg2()
    parameters.setdefault("application_name", "hotspare")
    parameters["connect_timeout"] = max(2, math.ceil(timeout))  # libpq's least is 2
    parameters["options"] = f"-c statement_timeout={math.ceil(statement_timeout * 1000)} {options}".rstrip()
    parameters["client_encoding"] = "UTF8"
    try:
        with as_client(account):
            connection = psycopg2.connect(**parameters)
    except (psycopg2.Error, UnicodeDecodeError) as error:  # the latter: a message in the server's own encoding
        raise connect_failed(where, error) from error
    connection.autocommit = True
    return connection


def connect_failed(where: str, error: Exception) -> ConnectFailed:
    """What libpq said of a connection that was not made, with its kind."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    reason = re.sub(r"(FATAL|ERROR):\s+", "", "; ".join(lines)) or "no reason given"
    kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, str(error))), "other")
    return ConnectFailed(f"cannot connect to {where}: {reason}; {_ADVICE[kind]}", kind)


@contextlib.contextmanager
def as_client(account: str) -> Iterator[None]:
    """Inside, libpq finds what it finds for the account (files, environment), and nothing of ours."""
    with as_account(account), _account_environment(account):
        yield


def _psycopg2() -> Any:
    try:
        import psycopg2
    except ImportError as error:
        raise HotspareError(
            f"{sys.executable} has no psycopg2, which is needed to ask a running server: install python3-psycopg2"
        ) from error
    return psycopg2


@contextlib.contextmanager
def _account_environment(account: str) -> Iterator[None]:
    # libpq reads PG* variables, and looks under HOME for certificates, where root's is closed to the account.
    saved = dict(os.environ)
    for name in saved:
        if name.startswith("PG"):
            del os.environ[name]
    os.environ["HOME"] = os.path.expanduser(f"~{account}")
    os.environ["LANGUAGE"] = "C"  # Ansible takes over the host's locale, and _KINDS reads English
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextlib.contextmanager
def bounded(timeout: float) -> Iterator[None]:
    """Inside, psycopg2 waits for a server no longer than `timeout` seconds, then TimeoutError.

    connect_timeout ends with the connection, and statement_timeout is kept by the backend, which a frozen one does not.
    """
    try:
        from psycopg2 import extensions
    except ImportError:
        yield  # connect() says what to install
        return
    deadline = time.monotonic() + timeout

    def wait(connection: Any) -> None:
        while True:
            wanted = connection.poll()
            if wanted == extensions.POLL_OK:
                return
            reading = [connection] if wanted == extensions.POLL_READ else []
            writing = [connection] if wanted == extensions.POLL_WRITE else []
            ready = select.select(reading, writing, [], max(0.0, deadline - time.monotonic()))
            if not (ready[0] or ready[1]):
                raise TimeoutError

    extensions.set_wait_callback(wait)
    try:
        yield
    finally:
        extensions.set_wait_callback(None)


def _data_directory_of(connection: Any, where: str) -> str:
    psycopg2 = _psycopg2()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.current_setting('data_directory')")
            return str(cursor.fetchone()[0])
    except psycopg2.Error as error:
        raise ConnectFailed(f"{where} does not tell its data directory: {str(error).strip()}", "other") from error


def in_recovery(instance: Instance, timeout: float = 5) -> bool:
    """Whether the running server is a standby; ConnectFailed."""
    with contextlib.closing(connect(instance, timeout=timeout)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_is_in_recovery()")
        return bool(cursor.fetchone()[0])


def checkpoint_primary(instance: Instance, timeout: float, short: float | None = None) -> list[float]:
    """CHECKPOINT on a running primary; the seconds that it took. Empty (nothing done) on a standby.

    It may take `timeout` seconds. With `short` it is repeated until one took less than that many seconds: what a
    shutdown then has left to write is as little. At most five times, and none that would not fit into `timeout`.
    """
    psycopg2 = _psycopg2()
    began = time.monotonic()
    connection = connect(instance, statement_timeout=timeout)
    taken: list[float] = []
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_is_in_recovery()")
        if cursor.fetchone()[0]:
            return []
        while True:
            asked = time.monotonic()
            try:
                cursor.execute("CHECKPOINT")
            except psycopg2.Error as error:
                raise HotspareError(
                    f"CHECKPOINT on {instance} failed within {timeout:g} seconds: {str(error).strip()}; see its disk's "
                    "load, or allow it more time"
                ) from error
            now = time.monotonic()
            taken.append(round(now - asked, 3))
            enough = short is None or taken[-1] < short or len(taken) == MOST_CHECKPOINTS
            if enough or now - began + taken[-1] > timeout:
                return taken


# ---------------------------------------------------------------------------------------------------------------------
# Starting it
# ---------------------------------------------------------------------------------------------------------------------


def start(instance: Instance, timeout: float = 60) -> dict[str, Any]:
    """Start the server and wait until it takes connections. Fine when it runs already.

    Returns `seconds`, `accepting` and `detail`: after `timeout` seconds a standby that has not reached consistency is
    running but not accepting, since it may only lack WAL; anything else is a HotspareError with `log`, the last lines.
    Looks at no role: see `role_refusal`.
    """
    began = time.monotonic()
    while is_stopping(instance):
        if time.monotonic() - began > timeout:
            raise HotspareError(
                f"the former server of {instance} did not end within {timeout:g} seconds, so it was not started again: "
                "see its log for what it waits for (often archive_command), then run this again",
                log=log_tail(instance),
            )
        time.sleep(POLL_SECONDS)
    log = _log_path(instance)
    log_mark = os.path.getsize(log) if os.path.exists(log) else 0
    if process_id(instance) is None:
        _launch(instance, max(1.0, timeout - (time.monotonic() - began)))
    return await_connections(instance, began, timeout, log_mark)


def await_connections(instance: Instance, began: float, timeout: float, log_mark: int = 0) -> dict[str, Any]:
    detail = "it is starting"
    while True:
        launching = unit_state(instance) in ("activating", "deactivating")  # before the process is looked for
        pid = process_id(instance)
        if pid is None and not launching:
            log = log_tail(instance, log_mark)
            fatal = [line for line in log if re.search("FATAL|PANIC", line)] or log
            reason = re.sub(r"^.*?(?=FATAL|PANIC)", "", fatal[-1]) if fatal else "it logged nothing"
            raise HotspareError(f"PostgreSQL of {instance} did not start: {reason}; see `log`", log=log)
        if pid is not None and _postmaster_status(instance) in ("ready", "standby"):
            try:
                connect(instance).close()
            except ConnectFailed as error:
                if error.kind not in ("starting", "shutting_down", "refused"):
                    raise
                detail = error.message
            else:
                seconds = round(time.monotonic() - began, 3)
                return {"seconds": seconds, "accepting": True, "detail": "it accepts connections"}
        if time.monotonic() - began > timeout:
            break
        time.sleep(POLL_SECONDS)
    if has_signal(instance, "standby.signal"):
        return {"seconds": round(time.monotonic() - began, 3), "accepting": False, "detail": detail}
    raise HotspareError(
        f"PostgreSQL of {instance} took no connections within {timeout:g} seconds ({detail}): see `log`, or allow it "
        "more time for its crash recovery",
        log=log_tail(instance, log_mark),
        node=summary(instance),
    )


def reload(instance: Instance) -> None:
    """Have the server read its configuration files again; returns before it has. CommandError when none runs."""
    arguments = ["reload", "--pgdata", instance.data_directory]
    run([instance.program("pg_ctl"), *arguments], account=instance.account, timeout=PROGRAM_SECONDS)


def log_tail(instance: Instance, position: int = 0) -> list[str]:
    """The last lines of the server's log that begin after `position` bytes, as far as it is found; for messages."""
    try:
        with open(_log_path(instance), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(position if position <= size else 0, size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    if not text.strip() and instance.service is not None:
        # Nothing in its own log: it did not even begin, and why is in the journal (a guard's word, say).
        arguments = ["--unit", instance.service, "--lines", str(LOG_LINES), "--output=cat", "--no-pager"]
        text = run(["journalctl", *arguments], check=False, timeout=PROGRAM_SECONDS).stdout
    return [line.strip() for line in text.splitlines() if line.strip()][-LOG_LINES:]


def _log_path(instance: Instance) -> str:
    collected = re.search(r"^stderr (.+)$", read_text(instance.path("current_logfiles")) or "", re.MULTILINE)
    if collected:
        return os.path.join(instance.data_directory, collected.group(1))
    debian = re.fullmatch(r"postgresql@(\d+)-(.+?)(?:\.service)?", instance.service or "")
    if debian:
        return f"/var/log/postgresql/postgresql-{debian.group(1)}-{debian.group(2)}.log"
    return f"{instance.data_directory}.log"


def require_configuration(instance: Instance) -> None:
    """HotspareError unless the configuration can be read and is this node's: before a stop, not after it."""
    try:
        named = effective_setting(instance, "data_directory")
    except CommandError as error:
        # The line before the last says what is wrong, the last one only that something is.
        lines = [re.sub(r"^.*?(LOG|FATAL|ERROR):\s+", "", line) for line in error.stderr.splitlines()[:2]]
        raise HotspareError(
            f"the configuration of {instance} cannot be used: {'; '.join(lines) or error.message}; mend it, and see "
            f"what `postgres -C data_directory` says of {instance.configuration}"
        ) from error
    # One copied from another node names that node's directory, and -D would not win over it.
    if os.path.realpath(named) != os.path.realpath(instance.data_directory):
        raise HotspareError(
            f"{instance.configuration} belongs to the data directory {named}, not to {instance}: mend its "
            "`data_directory`, or name the right `config_file`"
        )


def _launch(instance: Instance, timeout: float) -> None:
    require_configuration(instance)
    if instance.service is not None:
        # A unit that failed too often refuses to start until this; it fails for one that never did.
        run(["systemctl", "reset-failed", instance.service], timeout=PROGRAM_SECONDS, check=False)
        run(["systemctl", "start", "--no-block", instance.service], timeout=PROGRAM_SECONDS)
        return
    # pg_ctl itself tells a server that died from one that takes its time; what became of it the caller looks at.
    seconds = math.ceil(timeout)
    arguments = ["start", "--wait", f"--timeout={seconds}", "--pgdata", instance.data_directory]
    options = ["--log", f"{instance.data_directory}.log", "--options", f"-c {shlex.quote(_config_option(instance))}"]
    program = instance.program("pg_ctl")
    run([program, *arguments, *options], account=instance.account, timeout=seconds + PROGRAM_SECONDS, check=False)


def refuses(instance: Instance) -> bool:
    try:
        connect(instance, timeout=2).close()
    except ConnectFailed as error:
        return error.kind in ("refused", "shutting_down")
    return False


def unit_state(instance: Instance) -> str | None:
    """The unit's ActiveState (`activating` also while its start is only queued), None when systemd does not hold the
    server: no unit, one that is inactive or failed, or a server that somebody started by hand beside it."""
    if instance.service is None:
        return None
    arguments = ["show", "--property=ActiveState,Job", instance.service]
    shown = run(["systemctl", *arguments], timeout=PROGRAM_SECONDS).stdout
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    state = values.get("ActiveState", "")
    if state not in ("inactive", "failed"):
        return state
    return "activating" if values.get("Job", "0") not in ("", "0") else None


# ---------------------------------------------------------------------------------------------------------------------
# Whom it follows
# ---------------------------------------------------------------------------------------------------------------------


def has_signal(instance: Instance, name: str) -> bool:
    """Whether `standby.signal`, `recovery.signal` or `backup_label` is in the data directory."""
    return os.path.lexists(instance.path(name))


def set_standby_signal(instance: Instance, wanted: bool) -> bool:
    """Write or remove standby.signal; True if that changed something. HotspareError while the server runs.

    Removing it turns the next start into one of a primary: see `role_refusal` first.
    """
    if has_signal(instance, "standby.signal") == wanted:
        return False
    if not has_shut_down(instance):
        raise HotspareError(
            f"standby.signal of {instance} was left as it is, since the server runs and its next start would change "
            "its role: stop it first"
        )
    path = instance.path("standby.signal")
    return write_durably(path, "", account=instance.account) if wanted else remove_durably(path)


def upstream_differs(instance: Instance, upstream: Upstream) -> bool:
    """Whether `write_upstream` would change a file."""
    overridden = read_text(instance.path("postgresql.auto.conf")) or ""
    written = read_text(instance.upstream_file) == _upstream_text(upstream)
    return not written or without_settings(overridden, UPSTREAM_SETTINGS) != overridden


def write_upstream(instance: Instance, upstream: Upstream) -> bool:
    """Write whom this node follows, durably and effective with the next start or reload; True if a file changed.

    postgresql.auto.conf overrides our file, so the two settings are removed there.
    """
    require_upstream_directory(instance)
    changed = write_durably(instance.upstream_file, _upstream_text(upstream), mode=0o640, account=instance.account)
    return _reset_upstream_settings(instance) or changed


def require_upstream_directory(instance: Instance) -> None:
    """HotspareError unless the directory of our upstream file is there."""
    directory = os.path.dirname(instance.upstream_file)
    if not os.path.isdir(directory):
        raise HotspareError(
            f"{directory} is missing on {instance.name}: it must be there and {instance.configuration} must say "
            "include_dir 'conf.d'"
        )


def effective_setting(instance: Instance, name: str) -> str:
    """What the configuration files say a start would use, by `postgres -C`; CommandError."""
    arguments = ["-D", instance.data_directory, "-c", _config_option(instance), "-C", name]
    done = run([instance.program("postgres"), *arguments], account=instance.account, timeout=PROGRAM_SECONDS)
    return done.stdout.removesuffix("\n")


def assert_upstream(instance: Instance, upstream: Upstream) -> None:
    """HotspareError unless a start now makes this node a standby of `upstream`: to be called before every such start.

    A server started without these is a second primary on the timeline of the first.
    """
    if not has_signal(instance, "standby.signal"):
        raise HotspareError(f"standby.signal is missing in {instance}: it was not started, it would be a primary")
    assert_upstream_settings(instance, upstream)


def assert_upstream_settings(instance: Instance, upstream: Upstream) -> None:
    """HotspareError unless the configuration as it is read by a start names `upstream`."""
    wanted = {"primary_conninfo": upstream.conninfo(), "primary_slot_name": upstream.slot or ""}
    for name, value in wanted.items():
        found = effective_setting(instance, name)
        if found != value:
            raise HotspareError(
                f"{name} of {instance} would be {found!r} instead of {value!r}: see that {instance.configuration} says "
                f"include_dir 'conf.d' and that nothing after {instance.upstream_file} sets it again"
            )


def _reset_upstream_settings(instance: Instance) -> bool:
    path = instance.path("postgresql.auto.conf")
    text = read_text(path)
    if text is None:
        return False
    kept = without_settings(text, UPSTREAM_SETTINGS)
    if kept == text:
        return False
    if process_id(instance) is not None:
        psycopg2 = _psycopg2()
        try:
            with contextlib.closing(connect(instance)) as connection, connection.cursor() as cursor:
                for name in UPSTREAM_SETTINGS:
                    cursor.execute(f"ALTER SYSTEM RESET {name}")
            return True
        except ConnectFailed as error:
            if error.kind not in ("starting", "shutting_down", "refused"):
                raise
        except psycopg2.errors.FeatureNotSupported:
            pass  # allow_alter_system = off (17+): the operator's tools own this file, so we only take our lines out
    return write_durably(path, kept, account=instance.account)


def _upstream_text(upstream: Upstream) -> str:
    return (
        "# Written by hotspare.postgresql: whom this node follows when it is a standby. Changes here are lost.\n"
        f"primary_conninfo = {quote_setting(upstream.conninfo())}\n"
        f"primary_slot_name = {quote_setting(upstream.slot or '')}\n"
    )


def _config_option(instance: Instance) -> str:
    return f"config_file={instance.configuration}"
