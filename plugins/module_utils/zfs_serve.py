# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forced command of the key by which another host sends to this one, or fetches from it: the commands of
zfs_plan.py for the datasets of its configuration, word by word, and nothing else."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from .config_file import read_config_file
from .lasting_shell import AFTER, CODE, ENDED, STOP, script
from .shell import PATH, HotspareError
from .zfs import ENVIRONMENT, FLAGS, FROM, LABEL, MADE, MOUNTS, NAME, SNAPSHOT_NAME, Side, decode
from .zfs_copy import NOTE
from .zfs_plan import ONCE
from .zfs_send import MBUFFER, UNZSTD, ZSTD
from .zfs_stream import copy, makes_dataset, read_head, require_plain, widen

LONGEST = 1 << 20  # characters of a command
NEW = r"\d{8}T\d{6}Z"
STDIN = 0  # of this process


@dataclass(frozen=True)
class Serve:
    """What a key may do. `receive`, `send`: datasets, with all below them. `properties`: what received datasets may
    get, exactly; `copied`: of these any plain value. `rename`: what is in the way; `prune`: snapshots of the prefix."""

    prefix: str
    receive: tuple[str, ...] = ()
    send: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    rename: bool = False
    prune: bool = False

    def __post_init__(self) -> None:
        if not SNAPSHOT_NAME.fullmatch(self.prefix):
            raise ValueError(f"the prefix is {self.prefix!r}")
        for name in (*self.receive, *self.send):
            if not NAME.fullmatch(name) or "/" not in name:
                raise ValueError(f"{name!r} is no dataset of a pool")
        if not self.receive and not self.send:
            raise ValueError("it names no dataset")


def read_serve(path: str) -> Serve:
    """HotspareError when it is not there or not one of ours."""
    return read_config_file(path, "standby", _parse)


def _parse(found: Mapping[str, Any]) -> Serve:
    lists = {key: tuple(found.get(key, ())) for key in ("receive", "send", "copied")}
    return Serve(**{**found, **lists})


def serve(path: str, told: Optional[str]) -> int:
    """Run what the other host asks for (SSH_ORIGINAL_COMMAND); its exit code. HotspareError when it may not."""
    config, pipeline = read_serve(path), parse(told or "")
    if pipeline == [["sh"]]:
        for line in iter(lambda: sys.stdin.readline(LONGEST), ""):
            _run_all(config, parse_line(line))
        return 0
    permit(config, pipeline)
    return _run(pipeline)


@dataclass(frozen=True)
class Line:
    """What lasting_shell.script made."""

    commands: list[list[str]]
    stop: bool


def parse(told: str) -> list[list[str]]:
    """The programs of a pipeline, as zfs.Side sends them. (Pure.) HotspareError for anything else."""
    try:
        words = shlex.split(told if len(told) <= LONGEST else "")
        if tuple(words[: len(ENVIRONMENT)]) != ENVIRONMENT:
            raise ValueError("it does not begin as ours do")
        words = words[len(ENVIRONMENT) :]
        if words[:4] != ["bash", "-o", "pipefail", "-c"]:
            return [words]
        (text,) = words[4:]
        pipeline: list[list[str]] = [[]]
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|")
        lexer.whitespace_split = True
        lexer.commenters = ""
        for word in lexer:
            if word == "|":
                pipeline.append([])
            else:
                pipeline[-1].append(word)
        return pipeline
    except ValueError as error:
        raise _unknown(told, error) from error


def parse_line(told: str) -> Line:
    """What stands in a line for the shell; what is read is written again, and has to be the same. (Pure.)
    HotspareError for any other."""
    try:
        for stop in (False, True):
            end = f"{AFTER}{STOP if stop else ''}; "
            commands = [shlex.split(text) for text in told[1:].split(end)[:-1]]
            if commands and script(commands, stop) == told:
                return Line(commands, stop)
        raise ValueError("it is a script of another kind")
    except ValueError as error:
        raise _unknown(told, error) from error


def _unknown(told: str, error: ValueError) -> HotspareError:
    return HotspareError(f"this key runs no command {told[:200]!r} ({error}): see what uses it")


def permit(config: Serve, pipeline: Sequence[Sequence[str]]) -> None:
    """HotspareError unless each program is one that is permitted, where it is."""
    *filters, last = pipeline
    if filters and tuple(pipeline[-1]) == ZSTD:
        *filters, last = [pipeline[-1], *pipeline[:-1]]
    allowed = {UNZSTD, MBUFFER} if last[:2] == ["zfs", "receive"] else {ZSTD}
    unknown = [words for words in filters if tuple(words) not in allowed]
    line = "\n".join(last)
    if (
        unknown
        or any("\n" in word or "/.." in word for word in last)
        or not any(re.fullmatch(rule, line) for rule in rules(config))
    ):
        raise HotspareError(
            f"this key may not run {shlex.join((unknown or [last])[0])[:500]!r}: see the configuration of its forced "
            "command, and what uses it"
        )
    if list(last[:3]) == ["zfs", "send", "-t"] and not _known(config, last[3]):
        raise HotspareError("this key may not send what that token is of: see the configuration of its forced command")


def rules(config: Serve) -> list[str]:
    """Each command that is permitted, as a pattern of its words, of which each is a line. (Pure.)"""
    part = r"[A-Za-z0-9_.:-]+"
    target = _trees(config.receive, rf"(-aside-{NEW})?(/{part})*")
    aside = _trees(config.receive, rf"-aside-{NEW}(/{part})*")
    inner = _trees(config.receive, rf"(/{part})*")
    source = _trees(config.send, rf"(/{part})*")
    every = f"({target}|{source})"
    tops = [re.escape(name) for name in (*config.receive, *config.send)]
    parents = [re.escape(name.rpartition("/")[0]) for name in (*config.receive, *config.send)]
    pools = [re.escape(name.partition("/")[0]) for name in (*config.receive, *config.send)]
    prefix = re.escape(config.prefix)
    columns = "-o name,property,value,source"
    found = [
        _rule("zfs version"),
        _rule("zpool get -Hp -o property,value all", _any(pools)),
        _rule("zfs list -Hp -d 1 -t filesystem,volume -o name,available,encryption", _any(parents)),
        _rule(
            f"zfs get -Hp {columns}",
            r"(-r|-d\n[01])",
            "-t",
            "(filesystem,volume|snapshot,bookmark)",
            "[a-z_:,]+",
            every,
        ),
        _rule(f"zfs get -Hp {columns}", "guid,(receive_resume_token|createtxg)") + rf"(\n{every}(@{part})?)+",
        _rule("zfs holds -H") + rf"(\n{every}@{part})+",
        _rule("zfs (hold|release)", prefix) + rf"(\n{every}@{part})+",
        _rule("zfs send -nvP -t", r"[0-9a-f-]+"),
        r"(zstd|mbuffer)\n--version",
    ]
    if config.receive:
        settings = [f"{re.escape(key)}={re.escape(value)}" for key, value in config.properties.items()]
        settings += [rf"{re.escape(key)}=[\w.-]+" for key in config.copied]
        settings += [rf"{FROM}=\d+", rf"{FLAGS}=\w*"]
        options = rf"(\n-o\n{_any(settings)})"
        below = _trees(config.receive, rf"(/{part})+")
        once = {key: value for key, value in config.properties.items() if key in ONCE}
        # What may be made, and with what: the outermost dataset has all properties, those below inherit what they can.
        new = [
            (_all(config.properties) + options + "+", _any(tops[: len(config.receive)])),
            (_all(once) + options + "+", below),
        ]
        found += [
            _rule("zfs receive -s -u", inner),  # what is there already: _receive sees to that
            *(_rule("zfs receive -s -u") + rf"{given}\n{name}" for given, name in new),
            _rule("zfs receive -A", inner),
            _rule(f"zfs set {MADE}=") + rf"{prefix}/[\w-]+" + rf"(\n{inner}@{part})+",
            rf"zfs\nset\n{NOTE}=[A-Za-z0-9+/=]+\n{inner}@{prefix}-{NEW}",
        ]
        if config.rename:
            found += [
                "|".join(rf"zfs\nrename\n{top}\n{top}-aside-{NEW}" for top in tops[: len(config.receive)]),
                _rule("zfs unmount", aside),
                _rule("zfs set canmount=noauto") + rf"(\n{aside})+",
                *(_rule("zfs clone") + rf"{given}\n{aside}@{part}\n{name}" for given, name in new),
                _rule("zfs promote", inner),
            ]
    if config.send:
        what = rf"(\n-[Lecw]+)?(\n-i\n{source}[@#]{part})?\n{source}@{part}"
        found += [
            rf"zfs\nset\n{LABEL}=[A-Za-z0-9+/=]+\n{source}@{prefix}-{NEW}",
            r"zfs\nsnapshot(\n-r)?" + rf"\n-o\n{MADE}={prefix}/[\w-]+\n{source}@{part}",
            _rule("zfs send") + rf"(\n-nvP)?{what}",
            _rule("zfs send -t", r"[0-9a-f-]+"),
            "\n".join(re.escape(word) for word in MOUNTS),
        ]
    if config.prune:
        found.append(_rule("zfs destroy") + rf"\n{every}@{prefix}-{NEW}(,{prefix}-{NEW})*")
    return found


def _rule(words: str, *patterns: str) -> str:
    return r"\n".join([*words.split(" "), *patterns])


def _all(properties: Mapping[str, str]) -> str:
    """That the options which follow have each of these, and where the dataset comes from."""
    settings = [*(f"{re.escape(key)}={re.escape(value)}" for key, value in properties.items()), rf"{FROM}=\d+"]
    return "".join(rf"(?=(\n.*)*\n-o\n{setting}\n)" for setting in settings)


def _trees(names: Sequence[str], below: str) -> str:
    return f"{_any([re.escape(name) for name in names])}{below}" if names else "(?!)"


def _any(patterns: Sequence[str]) -> str:
    return f"({'|'.join(patterns)})"


def _known(config: Serve, text: str) -> bool:
    """Whether a token is of something that may be sent; it does not say so itself in a way that can be read. Its names
    are the other host's words: what zfs send looks for are its GUIDs."""
    with Side() as here:
        token = decode(here, text)
    dataset = token.toname.partition("@")[0]
    if not any(f"{dataset}/".startswith(f"{name}/") for name in config.send):
        return False
    return {token.toguid, *([token.fromguid] if token.fromguid else [])} <= _guids(config.send)


def _guids(datasets: Sequence[str]) -> set[str]:
    words = ("zfs", "list", "-Hpr", "-t", "snapshot,bookmark", "-o", "guid")
    with Side() as here:
        return set(here.run(*words, *datasets, check=False).stdout.split())


def _run_all(config: Serve, line: Line) -> None:
    """As sh does it, where each command is permitted."""
    for words in line.commands:
        permit(config, [words])
    for words in line.commands:
        try:
            rc = _run([words], stdin=subprocess.DEVNULL)
        except HotspareError as error:
            sys.stderr.write(f"{error.message}\n")
            rc = 127  # as sh
        for stream in (sys.stdout, sys.stderr):
            stream.write(CODE.format(rc))
            stream.flush()
        if rc and line.stop:
            break
    for stream in (sys.stdout, sys.stderr):
        stream.write(ENDED.decode())
        stream.flush()


def _run(pipeline: Sequence[Sequence[str]], stdin: Optional[int] = None) -> int:
    """As bash with pipefail: the exit code of the last program that failed, or 0. What `zfs receive` reads of the other
    host goes through our hands."""
    *before, last = pipeline
    running: list[subprocess.Popen[bytes]] = []
    source = stdin
    try:
        for words in before:
            running.append(_start(words, source, subprocess.PIPE))
            source = _output(running)
        if list(last[:2]) == ["zfs", "receive"] and list(last[2:3]) != ["-A"] and stdin is None:
            _receive(last, STDIN if source is None else source, running)
        else:
            running.append(_start(last, source, None))
    except HotspareError:
        for process in running:
            process.kill()
        raise
    finally:
        for process in running:
            if process.stdout is not None:
                process.stdout.close()
        codes = [process.wait() for process in running]
    failed = [code for code in codes if code != 0]
    return (failed[-1] if failed[-1] > 0 else 128 - failed[-1]) if failed else 0


def _start(words: Sequence[str], stdin: Optional[int], stdout: Optional[int]) -> subprocess.Popen[bytes]:
    environment = {"PATH": PATH, "LC_ALL": "C"}
    try:
        return subprocess.Popen(list(words), bufsize=0, stdin=stdin, stdout=stdout, cwd="/", env=environment)
    except OSError as error:
        raise HotspareError(f"cannot run {words[0]}: {error.strerror}; install it here") from error


def _output(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """What the last one writes; the one before it is to notice when that one has ended."""
    *before, last = (process.stdout for process in running)
    for pipe in before:
        if pipe is not None:
            pipe.close()
    if last is None:
        raise AssertionError("it is a pipe")
    widen(last.fileno())
    return last.fileno()


def _receive(words: Sequence[str], source: int, running: list[subprocess.Popen[bytes]]) -> None:
    """HotspareError, before `zfs receive` is started, for a stream that would bring what the key may not give."""
    head = read_head(source, _untold)
    require_plain(head)
    if "-o" not in words and makes_dataset(head):
        raise HotspareError(
            f"this key may not make {words[-1]} without the properties in the configuration of its forced command: "
            "send it with these"
        )
    receiver = _start(words, subprocess.PIPE, None)
    running.append(receiver)
    if receiver.stdin is None:
        raise AssertionError("it is a pipe")
    with receiver.stdin as sink:
        widen(sink.fileno())
        copy(source, sink.fileno(), _untold, head, attentive=True)


def _untold(_count: int) -> None:
    """How far a stream is, its sender tells."""


def asked() -> Optional[str]:
    """What the other host asks for, as sshd tells it."""
    return os.environ.get("SSH_ORIGINAL_COMMAND")
