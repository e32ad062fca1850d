# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does without Ansible, as systemd and sshd run it: `python3 hotspare.pyz COMMAND CONFIG`.

CONFIG is the JSON file that the role node (of the archive: the role archive) writes for each cluster; it holds no
secret. A new command is a function in COMMANDS that takes the path of CONFIG and returns the exit code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from .address import Place, keep, release
from .config_file import read_config_file
from .guard import POLICIES, guard, note_path
from .peers import Peer
from .server import Instance
from .shell import HotspareError
from .version import VERSION


@dataclass(frozen=True)
class Config:
    """What CONFIG says; `guard_wait` in seconds, `place` None without a service address."""

    instance: Instance
    peers: list[Peer]
    guard_wait: float
    guard_policy: str
    place: Optional[Place]


def read_config(path: str) -> Config:
    """HotspareError when it is not there or not one of ours."""
    return read_config_file(path, "node", _parse_config)


def _parse_config(found: Mapping[str, Any]) -> Config:
    policy = found["guard"]["policy"]
    if policy not in POLICIES:
        raise ValueError(f"the guard's policy {policy!r} is none of {', '.join(POLICIES)}")
    return Config(
        instance=Instance(**found["node"]),
        peers=[Peer(**peer) for peer in found["peers"]],
        guard_wait=float(found["guard"]["wait"]),
        guard_policy=policy,
        place=Place(**found["address"]) if found["address"] else None,
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; its exit code, 1 for an error, 2 for a usage that is not known."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        sys.stdout.write(f"hotspare {VERSION}\n")
        return 0
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None or len(arguments) - 1 != len(command.words.split()):
        _say("usage: hotspare.pyz --version" + "".join(f" | {name} {known.words}" for name, known in COMMANDS.items()))
        return 2
    try:
        return command.run(*arguments[1:])
    except HotspareError as error:
        _say(error.message)
        return 1


def _guard(path: str) -> int:
    """0: the server may start."""
    config = read_config(path)
    decision = guard(config.instance, config.peers, wait=config.guard_wait, policy=config.guard_policy, say=_say)
    _say(decision.reason)
    if decision.act == "refuse" and decision.note is not None:
        _say(f"If that node is gone for good and this one shall be the primary, remove {note_path(config.instance)}")
    return 0 if decision.act == "start" else 1


def _address(path: str) -> int:
    config = read_config(path)
    if config.place is not None:
        keep(config.instance, config.place, [path, sys.argv[0]], _say)
        # The configuration or this program is a new one: go on with it, the address stays if it is the same.
        if read_config(path).place != config.place:
            release(config.place, config.instance.port)
        os.execv(sys.executable, [sys.executable, "-I", sys.argv[0], "address", path])
    return 0


def _address_off(path: str) -> int:
    """What systemd runs after the other, however that ended."""
    config = read_config(path)
    if config.place is not None:
        release(config.place, config.instance.port)
    return 0


def _archive_serve(path: str) -> int:
    """The forced command of who ships to this host."""
    from .archive_server import serve  # the guard starts quicker without it

    return serve(path, sys.stdin.buffer, sys.stdout.buffer)


def _archive_serve_trees(path: str, trees: str) -> int:
    """The same for who ships documents: these trees, with commas between them, and nothing else."""
    from .archive_server import serve

    return serve(path, sys.stdin.buffer, sys.stdout.buffer, trees.split(","))


def _archive_ship(path: str) -> int:
    """The shipper, until it is ended."""
    from .archive_config import read_archive_config
    from .shipper import Shipper

    Shipper(read_archive_config(path)).run()


def _archive_sync(path: str) -> int:
    """What the timer does with WAL and documents; 1 when something is wrong with one of them."""
    from . import tree_sync, wal_sync
    from .archive_config import read_archive_config

    config = read_archive_config(path)
    problems = []
    for tick in (wal_sync.tick, tree_sync.tick):
        try:
            problems += [problem for result in tick(config) for problem in result["problems"]]
        except HotspareError as error:
            problems.append(error.message)
    for problem in problems:
        _say(problem)
    return 1 if problems else 0


def _archive(config: str, path: str, name: str) -> int:
    """archive_command without the shipper; 1 to 125 for an error."""
    from .archive_config import read_archive_config
    from .shipper import expect_own, ship_alone
    from .wire import exit_code

    try:
        found = read_archive_config(config)
        expect_own(found, os.getcwd())
        ship_alone(found, path, name)
    except HotspareError as error:
        _say(error.message)
        return exit_code(error)
    return 0


def _restore(config: str, name: str, path: str) -> int:
    """restore_command without the shipper; ABSENT for what is not archived, another code for an error."""
    from .archive_client import ABSENT, recovers
    from .archive_config import read_archive_config
    from .archive_fetch import ALONE_PATIENCE, Fetcher, patience
    from .wire import exit_code

    parent = os.getppid()
    try:
        fetcher = Fetcher(read_archive_config(config))
        wait = patience(os.getcwd(), ALONE_PATIENCE)
        strict = recovers(os.getcwd())
        found = fetcher.restore(name, path, wait=wait, wanted=lambda: os.getppid() == parent, strict=strict)
    except HotspareError as error:
        _say(error.message)
        return exit_code(error)
    return 0 if found else ABSENT


def _zfs_serve(path: str) -> int:
    """The forced command of who sends ZFS snapshots to this host, or fetches them."""
    from .zfs_serve import asked, serve

    return serve(path, asked())


def _zfs_backup(path: str) -> int:
    """What the timer of the role zfs does. The result is JSON, and the journal and the operator are told in words."""
    from .zfs_backup import back_up, read_backup_config, sentences

    return _tell(back_up(read_backup_config(path)), sentences)


def _zfs_backup_check(path: str) -> int:
    """What that would do now."""
    from .zfs_backup import back_up, read_backup_config, sentences

    return _tell(back_up(read_backup_config(path), check_mode=True), sentences)


def _zfs_newest(dataset: str) -> int:
    """The newest snapshot of a copy on this host that can be restored, as JSON; {} where there is none."""
    from .zfs import Side
    from .zfs_copy import newest

    with Side() as side:
        found = newest(side, dataset)
    told = {"snapshot": str(found), "node": found.note.node, "taken": found.note.taken} if found else {}
    return _tell(told, lambda told: [])


def _zfs_restore_test(dataset: str, check: str, account: str) -> int:
    """Starts a server on a clone of that as `account`, checks it by `count` or `amcheck`, and removes it."""
    from .zfs_restore import restore_test, sentences

    return _tell(restore_test(dataset, check, account), sentences)


def _tell(result: dict[str, Any], sentences: Callable[[dict[str, Any]], Iterable[str]]) -> int:
    sys.stdout.write(json.dumps(result) + "\n")
    for text in sentences(result):
        _say(text)
    return 0


def _say(text: str) -> None:
    """To the journal, where `systemctl status` shows it."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class Command:
    run: Callable[..., int]
    words: str = "CONFIG"  # its arguments


COMMANDS = {
    "guard": Command(_guard),
    "address": Command(_address),
    "address-off": Command(_address_off),
    "archive-serve": Command(_archive_serve),
    "archive-serve-trees": Command(_archive_serve_trees, "CONFIG TREES"),
    "archive-ship": Command(_archive_ship),
    "archive-sync": Command(_archive_sync),
    "archive": Command(_archive, "CONFIG PATH NAME"),
    "restore": Command(_restore, "CONFIG NAME PATH"),
    "zfs-serve": Command(_zfs_serve),
    "zfs-backup": Command(_zfs_backup),
    "zfs-backup-check": Command(_zfs_backup_check),
    "zfs-newest": Command(_zfs_newest, "DATASET"),
    "zfs-restore-test": Command(_zfs_restore_test, "DATASET CHECK ACCOUNT"),
}
