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
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from . import controldata
from .controldata import ControlData
from .shell import CommandError, HotspareError, as_account, remove_durably, run, write_durably

DEBIAN_ROOT = "/usr/lib/postgresql"
POLL_SECONDS = 0.1
LOG_LINES = 15
LOG_BYTES = 20000
PROGRAM_SECONDS = 30  # for pg_ctl, systemctl and postgres -C, which answer at once or never
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
        raise _unreadable(instance.data_directory, error) from error
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
        raise _unreadable(instance.data_directory, error) from error
    return "cluster"


def major_version(instance: Instance) -> int | None:
    """The major version that made the data directory (its PG_VERSION), None without one."""
    return _major_version(instance.data_directory)


def _major_version(data_directory: str) -> int | None:
    path = os.path.join(data_directory, "PG_VERSION")
    text = _read(path)
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


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> HotspareError:
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
    text = _read(path)
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
            if _read(f"/proc/{pid}/comm") not in ("postgres\n", "postmaster\n"):
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

    Line 8 of postmaster.pid (PostgreSQL's miscadmin.h, LOCK_FILE_LINE_PM_STATUS).
    """
    lines = (_read(instance.path("postmaster.pid")) or "").splitlines()
    return lines[7].strip() if len(lines) > 7 else ""


def _is_stopping(instance: Instance) -> bool:
    return process_id(instance) is not None and _postmaster_status(instance) == "stopping"


def has_shut_down(instance: Instance) -> bool:
    """Whether pg_control is final: no postmaster, or one that only waits for its archiver; HotspareError = unknown."""
    # In this order: a postmaster that is gone by now has written pg_control before.
    return process_id(instance) is None or (_is_stopping(instance) and read_control(instance).state in CLEAN_STATES)


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
    instance: Instance, *, dbname: str = "postgres", timeout: float = 5, statement_timeout: float = 30
) -> Any:  # a psycopg2 connection, which has no types
    """An autocommit connection over the unix socket as the server's account; both timeouts in seconds.

    ConnectFailed with its `kind`. Also when another data directory's server listens there: a wrong port must never
    make us look at, or promote, a neighbour.
    """
    where = f"PostgreSQL of {instance} on port {instance.port} in {instance.socket_directory}"
    parameters = {"host": instance.socket_directory, "port": instance.port, "user": instance.account, "dbname": dbname}
    try:
        connection = _open(where, parameters, instance.account, timeout, statement_timeout)
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


def _open(where: str, parameters: dict[str, Any], account: str, timeout: float, statement_timeout: float) -> Any:
    psycopg2 = _psycopg2()
    parameters.setdefault("application_name", "hotspare")
    parameters["connect_timeout"] = max(2, math.ceil(timeout))  # libpq's least is 2
    parameters["options"] = f"-c statement_timeout={math.ceil(statement_timeout * 1000)}"
    parameters["client_encoding"] = "UTF8"
    try:
        with as_account(account), _account_environment(account):
            connection = psycopg2.connect(**parameters)
    except (psycopg2.Error, UnicodeDecodeError) as error:  # the latter: a message in the server's own encoding
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
        reason = re.sub(r"(FATAL|ERROR):\s+", "", "; ".join(lines)) or "no reason given"
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, str(error))), "other")
        raise ConnectFailed(f"cannot connect to {where}: {reason}; {_ADVICE[kind]}", kind) from error
    connection.autocommit = True
    return connection


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


def checkpoint_primary(instance: Instance, timeout: float) -> bool:
    """CHECKPOINT, at most `timeout` seconds, on a running primary; False (nothing done) on a standby.

    It bounds how long a shutdown takes, and puts a new timeline into pg_control before pg_rewind looks there.
    """
    psycopg2 = _psycopg2()
    connection = connect(instance, statement_timeout=timeout)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.pg_is_in_recovery()")
        if cursor.fetchone()[0]:
            return False
        try:
            cursor.execute("CHECKPOINT")
        except psycopg2.Error as error:
            raise HotspareError(
                f"CHECKPOINT on {instance} failed within {timeout:g} seconds: {str(error).strip()}; see its disk's "
                "load, or allow it more time"
            ) from error
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Stopping and starting it
# ---------------------------------------------------------------------------------------------------------------------


def stop(instance: Instance, mode: str = "fast", timeout: float = 60) -> dict[str, Any]:
    """Stop the server; `mode` is fast or immediate (= a crash). Fine when it does not run.

    Returns `seconds`, `clean`, `control` (ControlData) and `process_id`. Does not wait for the process to end, which
    an archiver may delay for long: the server has stopped once pg_control says so and connections are refused.
    `clean` says that pg_control ended in "shut down" or "shut down in recovery", not that a standby has everything.
    HotspareError after `timeout` seconds.
    """
    began = time.monotonic()
    unit = _unit_state(instance)
    was_running = process_id(instance) is not None
    if was_running and (unit != "active" or mode == "immediate"):
        # systemd would end a unit that is still activating by SIGTERM: a smart shutdown, which waits for all clients.
        # Not waited for, and not checked: it may just have gone. What counts is seen below.
        arguments = ["stop", "--no-wait", "--mode", mode, "--pgdata", instance.data_directory]
        run([instance.program("pg_ctl"), *arguments], account=instance.account, timeout=PROGRAM_SECONDS, check=False)
    if unit is not None and instance.service is not None:
        run(["systemctl", "stop", "--no-block", instance.service], timeout=PROGRAM_SECONDS)
    while True:
        pid = process_id(instance)
        control = read_control(instance)  # after the process was looked for: without one this is final
        clean = control.state in CLEAN_STATES
        seconds = time.monotonic() - began
        # A unit that systemd is about to start again, after a crash, has to be given up by systemd too.
        gone = pid is None and (was_running or _unit_state(instance) is None)
        if gone or (clean and _is_stopping(instance) and _refuses(instance)):
            return {"seconds": round(seconds, 3), "clean": clean, "control": control, "process_id": pid}
        if seconds > timeout:
            raise HotspareError(
                f"PostgreSQL of {instance} did not stop within {timeout:g} seconds: process {pid} is there and "
                f"pg_control says '{control.state}'; see its log for what holds it (a busy archiver, a frozen "
                "standby), then run this again",
                node=summary(instance),
            )
        time.sleep(POLL_SECONDS)


def start(instance: Instance, timeout: float = 60) -> dict[str, Any]:
    """Start the server and wait until it takes connections. Fine when it runs already.

    Returns `seconds`, `accepting` and `detail`: after `timeout` seconds a standby that has not reached consistency is
    running but not accepting, since it may only lack WAL; anything else is a HotspareError with `log`, the last lines.
    Looks at no role: see `role_refusal`.
    """
    began = time.monotonic()
    while _is_stopping(instance):
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
    return _await_connections(instance, began, timeout, log_mark)


def _await_connections(instance: Instance, began: float, timeout: float, log_mark: int = 0) -> dict[str, Any]:
    detail = "it is starting"
    while True:
        launching = _unit_state(instance) in ("activating", "deactivating")  # before the process is looked for
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
    collected = re.search(r"^stderr (.+)$", _read(instance.path("current_logfiles")) or "", re.MULTILINE)
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


def _refuses(instance: Instance) -> bool:
    try:
        connect(instance, timeout=2).close()
    except ConnectFailed as error:
        return error.kind in ("refused", "shutting_down")
    return False


def _unit_state(instance: Instance) -> str | None:
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


@dataclass(frozen=True)
class Upstream:
    """Where a standby streams from; never with a password, which stays in `passfile`."""

    host: str
    port: int = 5432
    user: str | None = None
    application_name: str | None = None
    slot: str | None = None
    passfile: str | None = None
    dbname: str | None = None  # needed by slot synchronisation (17+)
    extra: dict[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, str]:
        """libpq's keywords and values, without the empty ones."""
        named = ("host", "port", "user", "passfile", "dbname", "application_name")
        values = {name: getattr(self, name) for name in named}
        values.update(self.extra)
        values.pop("password", None)
        return {name: str(value) for name, value in values.items() if value not in (None, "")}

    def conninfo(self) -> str:
        """For primary_conninfo. PostgreSQL manual, 34.1.1.1 Keyword/Value Connection Strings."""
        return " ".join(f"{name}={_quote_conninfo(value)}" for name, value in self.parameters().items())

    @classmethod
    def from_conninfo(cls, conninfo: str, slot: str | None = None) -> Upstream:
        """Read a conninfo (either form; its password is dropped); ValueError when it is none."""
        values = parse_conninfo(conninfo)
        values.pop("password", None)
        port = values.pop("port", "5432")
        if not port.isdigit():
            raise ValueError(f"port {port!r} of a connection string is no number")
        named = {name: values.pop(name, None) for name in ("user", "application_name", "passfile", "dbname")}
        return cls(host=values.pop("host", ""), port=int(port), slot=slot or None, extra=values, **named)


def parse_conninfo(conninfo: str) -> dict[str, str]:
    """libpq's connection string, as keywords or as a URI, to its parts; ValueError. PostgreSQL manual, 34.1.1."""
    if re.match(r"postgres(ql)?://", conninfo):
        uri = urlsplit(conninfo)
        named = {"host": uri.hostname, "port": uri.port, "user": uri.username, "password": uri.password}
        named["dbname"] = uri.path.lstrip("/")
        values = {name: unquote(str(value)) for name, value in named.items() if value}
        return {**values, **dict(parse_qsl(uri.query, keep_blank_values=True))}
    pair = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'(?=\s|$)|((?!')(?:[^\s\\]|\\.)*))", re.DOTALL)
    values, position, text = {}, 0, conninfo.rstrip()
    while position < len(text):
        match = pair.match(text, position)
        if match is None:
            raise ValueError(f"a connection string is not understood from its character {position + 1} on")
        quoted, plain = match.group(2), match.group(3)
        values[match.group(1)] = re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted, flags=re.DOTALL)
        position = match.end()
    return values


def passfile_entry(host: str, port: int | str, user: str, password: str, database: str = "*") -> str:
    """One line of a passfile; ValueError for what it cannot hold. PostgreSQL manual, 34.16 The Password File."""
    fields = [host, str(port), database, user, password]
    if any(re.search(r"[\n\r\0]", value) for value in fields):
        raise ValueError("a passfile cannot hold a line break or a NUL: choose another password or name")
    return ":".join(value.replace("\\", "\\\\").replace(":", "\\:") for value in fields) + "\n"


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
    overridden = _read(instance.path("postgresql.auto.conf")) or ""
    written = _read(instance.upstream_file) == _upstream_text(upstream)
    return not written or without_settings(overridden, UPSTREAM_SETTINGS) != overridden


def write_upstream(instance: Instance, upstream: Upstream) -> bool:
    """Write whom this node follows, durably and effective with the next start or reload; True if a file changed.

    postgresql.auto.conf overrides our file, so the two settings are removed there.
    """
    directory = os.path.dirname(instance.upstream_file)
    if not os.path.isdir(directory):
        raise HotspareError(
            f"{directory} is missing on {instance.name}: it must be there and {instance.configuration} must say "
            "include_dir 'conf.d'"
        )
    changed = write_durably(instance.upstream_file, _upstream_text(upstream), mode=0o640, account=instance.account)
    return _reset_upstream_settings(instance) or changed


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
    wanted = {"primary_conninfo": upstream.conninfo(), "primary_slot_name": upstream.slot or ""}
    for name, value in wanted.items():
        found = effective_setting(instance, name)
        if found != value:
            raise HotspareError(
                f"{name} of {instance} would be {found!r} instead of {value!r}: see that {instance.configuration} says "
                f"include_dir 'conf.d' and that nothing after {instance.upstream_file} sets it again"
            )


def without_settings(text: str, names: tuple[str, ...]) -> str:
    """A configuration file without the lines that set one of `names`; all other lines as they were."""
    setting = re.compile(rf"\s*(?:{'|'.join(names)})(?:\s|=)", re.IGNORECASE)
    return "".join(line for line in re.split(r"(?<=\n)", text) if not setting.match(line))


def _reset_upstream_settings(instance: Instance) -> bool:
    path = instance.path("postgresql.auto.conf")
    text = _read(path)
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


def quote_setting(value: str) -> str:
    """A string for postgresql.conf; ValueError for NUL. PostgreSQL manual, 20.1.2."""
    if "\0" in value:
        raise ValueError("a setting cannot hold a NUL")
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def _quote_conninfo(value: str) -> str:
    if re.fullmatch(r"[\w./:@%+,~-]+", value, re.ASCII):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _config_option(instance: Instance) -> str:
    return f"config_file={instance.configuration}"


# ---------------------------------------------------------------------------------------------------------------------
# What pg_server does
# ---------------------------------------------------------------------------------------------------------------------


def role_refusal(
    role: str | None,
    *,
    standby_signal: bool,
    recovery_signal: bool,
    backup_label: bool,
    has_upstream: bool,
    control_state: str,
) -> str | None:
    """Why a stopped server must not be started as `role` (primary, standby, None = a standby if it is one), or None.

    A node started as a primary beside another one writes the same timeline, with the same WAL file names: the worst
    that can happen to a cluster. So a primary is started only if it was one last, and a standby only as a standby.
    """
    if recovery_signal and not standby_signal:
        return (
            "recovery.signal is there, so it would recover to some point and become a primary of its own: finish or "
            "remove that recovery by hand"
        )
    if role == "standby" and not standby_signal:
        return "it has no standby.signal and would be a primary: give it its `upstream` (pg_replication_state) first"
    if role == "standby" and not has_upstream:
        return "it has no primary_conninfo and would follow nobody: give it its `upstream` (pg_replication_state) first"
    if role == "standby" or (role is None and standby_signal):
        return None
    if role is None:
        return "it would be a primary: say `role: primary` if no other node is"
    if backup_label:
        return (
            "backup_label shows a copy made by a base backup, which is a second primary when started as one: make it a "
            "standby (pg_rebuild), or remove backup_label if this is the primary itself and crashed during a backup"
        )
    if standby_signal and control_state != "shut down":
        return (
            f"standby.signal is there and pg_control says '{control_state}' instead of 'shut down': only a primary "
            "that was stopped cleanly can be one again without promotion, so use pg_promote or pg_rebuild"
        )
    if control_state not in ("shut down", "shutting down", "in production", "in crash recovery"):
        return f"pg_control says '{control_state}': it last was a standby, and only pg_promote makes a primary of one"
    return None


def bring_to(
    instance: Instance,
    state: str,
    *,
    role: str | None = None,
    mode: str = "fast",
    checkpoint: bool = False,
    timeout: float = 60,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Make the server `started`, `stopped`, `restarted` or `reloaded`, or assert that it is `running`; what pg_server
    returns.

    `role` is what it must come up as (or be). In check mode everything is checked and nothing done. HotspareError.
    """
    began = time.monotonic()
    kind = data_directory_kind(instance)
    if kind != "cluster":
        if state == "reloaded":  # a node to be, whose configuration was written before its data
            node = {"name": instance.name, "data_directory": instance.data_directory, "running": False}
            return {"changed": False, "node": node, "shutdown": None, "seconds": 0.0}
        raise HotspareError(
            f"{instance} holds no PostgreSQL cluster but is {kind}: mend `data_directory`, or seed it with pg_rebuild"
        )
    pid = process_id(instance)
    # One that has shut down and only waits for its archiver is stopped, for `stop` as for us.
    running = pid is not None and not (_is_stopping(instance) and read_control(instance).state in CLEAN_STATES)
    if state == "reloaded":
        if running and not check_mode:
            reload(instance)
        node = summary(instance)
        return {"changed": running, "node": node, "shutdown": None, "seconds": round(time.monotonic() - began, 3)}
    if state == "running" and not running:
        raise HotspareError(f"PostgreSQL of {instance} does not run: start it with `state: started`")
    if pid is None:
        orphans = processes(instance)
        if orphans:
            raise HotspareError(
                f"the postmaster of {instance} is gone but its processes {orphans} are there and may still commit: "
                "end them, then run this again"
            )
    starts = state == "restarted" or (state == "started" and not running)
    stops = running and state in ("stopped", "restarted")
    if state == "stopped" and pid is None and _unit_state(instance) == "activating":
        stops = True  # crashed, and systemd is about to start it again
    if starts:
        require_configuration(instance)
        _require_start_role(instance, role, mode if running else None)
    elif running and role is not None and state != "stopped":
        _require_running_role(instance, role)

    shutdown = None
    if running and checkpoint and not check_mode:
        checkpoint_primary(instance, timeout)
    if stops and not check_mode:
        shutdown = _shutdown(stop(instance, mode, timeout))
    elif state == "stopped" and not stops:
        control = read_control(instance)
        shutdown = _shutdown({"control": control, "clean": control.state in CLEAN_STATES, "seconds": 0.0})
    accepting = None
    if starts and not check_mode:
        _take_role(instance, role, time.monotonic() + timeout)
        accepting = start(instance, timeout)["accepting"]
    elif state == "started" and not check_mode:
        # Only waited for: if somebody stops it just now, a start would be one whose role nobody looked at.
        accepting = _await_connections(instance, time.monotonic(), timeout)["accepting"]
    return {
        "changed": starts or stops,
        "node": {**summary(instance), "accepting": accepting},
        "shutdown": shutdown,
        "seconds": round(time.monotonic() - began, 3),
    }


def _shutdown(stopped: dict[str, Any]) -> dict[str, Any]:
    control: dict[str, Any] = stopped["control"].to_dict()
    facts = {name: control[name] for name in ("state", "checkpoint_lsn", "timeline")}
    return {"clean": stopped["clean"], "seconds": stopped["seconds"], **facts}


def _require_running_role(instance: Instance, role: str) -> None:
    actual = "standby" if in_recovery(instance) else "primary"
    if actual != role:
        raise HotspareError(f"PostgreSQL of {instance} runs as a {actual}, not as a {role}: ask who is primary first")


def _require_start_role(instance: Instance, role: str | None, stop_mode: str | None) -> None:
    """Refuse a start (after a stop in `stop_mode`, when it runs) that would bring up the wrong role."""
    if stop_mode is None:
        state = read_control(instance).state
    else:
        actual = "standby" if in_recovery(instance) else "primary"
        coming = "standby" if has_signal(instance, "standby.signal") else "primary"
        if role is None and coming != actual:
            raise HotspareError(
                f"PostgreSQL of {instance} runs as a {actual} and would come up as a {coming}: say which `role` is "
                "meant"
            )
        role = role or actual
        after_fast = {"primary": "shut down", "standby": "shut down in recovery"}
        after_immediate = {"primary": "in production", "standby": "in archive recovery"}
        state = (after_immediate if stop_mode == "immediate" else after_fast)[actual]
    refusal = role_refusal(
        role,
        standby_signal=has_signal(instance, "standby.signal"),
        recovery_signal=has_signal(instance, "recovery.signal"),
        backup_label=has_signal(instance, "backup_label"),
        has_upstream=role != "standby" or effective_setting(instance, "primary_conninfo") != "",
        control_state=state,
    )
    if refusal:
        raise HotspareError(f"PostgreSQL of {instance} was not started: {refusal}")


def _take_role(instance: Instance, role: str | None, deadline: float) -> None:
    """Right before a start: once more on the real state, then make the signal file fit."""
    if role == "primary" and has_signal(instance, "standby.signal"):
        while process_id(instance) is not None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        _require_start_role(instance, role, None)
        set_standby_signal(instance, False)
