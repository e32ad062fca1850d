# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Document trees go to their destinations: what is finished and not there is shipped, closed days are sealed, what
differs is told. Nothing is overwritten, and a deletion does not travel.

A result is a record of the tree: `problems` (sentences; empty = what was asked for is so), `destinations`, a record
for each. Of names the first ones are listed, `counts` has all. Paths are text as document_tree.escaped() has it.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Optional

from .archive_config import ArchiveConfig, Tree
from .server import in_recovery
from .shell import HotspareError, become
from .tree_compare import compare
from .tree_files import Busy, Home, is_copy, make_copy, make_original
from .tree_source import Source, Told, blank, home_of
from .tree_target import connected
from .wire import failed, failure

WAIT_SECONDS = 300  # for another run on the same tree
TICK_SECONDS = 240  # a run of the timer begins no further closed day after that
TEMPORARY = tempfile.gettempdir()
TICKS = 288  # in a day, about: in so many runs of the timer every sealed day is looked at


# ---------------------------------------------------------------------------------------------------------------------
# What the module and the timer ask for
# ---------------------------------------------------------------------------------------------------------------------


def sync(
    config: ArchiveConfig,
    tree: Tree,
    *,
    destinations: Optional[Sequence[str]] = None,
    writable: Optional[bool] = None,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Ship what the destinations (names; default all) lack. HotspareError; what is wrong at one is in `problems`.

    `writable` makes it the original or a copy before that, see set_writable(). As root, or as the tree's account. With
    `check_mode` it tells what it would do.
    """
    return _as_account(tree, partial(_switch_and_sync, config, tree, destinations, writable, check_mode))


def verify(config: ArchiveConfig, tree: Tree, *, destinations: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """Read the copies again and compare them with what is here, and what is here with its manifests. HotspareError."""
    return _as_account(tree, partial(compare, config, tree, destinations, True))


def check(config: ArchiveConfig, tree: Tree, *, destinations: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """The same at a glance: what has the size and the time of the original is taken for it. HotspareError."""
    return _as_account(tree, partial(compare, config, tree, destinations, False))


def set_writable(config: ArchiveConfig, tree: Tree, wanted: bool, *, check_mode: bool = False) -> dict[str, Any]:
    """Make the tree here the original, as on a primary, or a read-only copy, as on a standby. HotspareError.

    What was written here and nowhere else goes to the others with the next sync() or tick().
    """
    return _as_account(tree, partial(_set_writable, config, tree, wanted, check_mode))


def tick(config: ArchiveConfig) -> list[dict[str, Any]]:
    """What the timer does with each tree; the results. HotspareError when it is not known whether this is a primary.

    A primary ships. On a standby the tree becomes a copy; one that was the original ships what only it may have.
    """
    if config.node is None or not config.trees:
        return []
    writable = not in_recovery(config.node)
    results = []
    for tree in config.trees:
        try:
            results.append(_as_account(tree, partial(_switch_and_sync, config, tree, None, writable, timer=True)))
        except Busy:
            continue  # another run does it
        except HotspareError as error:
            results.append({**blank(tree), "problems": [error.message], "error": error.message})
    return results


def _switch_and_sync(
    config: ArchiveConfig,
    tree: Tree,
    names: Optional[Sequence[str]],
    writable: Optional[bool],
    check_mode: bool = False,
    timer: bool = False,
) -> dict[str, Any]:
    """A copy ships nothing, or what was deleted on the original would come back; but what it owes, it does."""
    switched = blank(tree) if writable is None else _set_writable(config, tree, writable, check_mode)
    if not (writable or Home(config.homes, tree.name).ships()):
        return switched
    result = _sync(config, tree, names, check_mode, timer)
    problems = [*switched["problems"], *result["problems"]]
    return {**result, "changed": switched["changed"] or result["changed"], "problems": problems}


# ---------------------------------------------------------------------------------------------------------------------
# As the tree's account
# ---------------------------------------------------------------------------------------------------------------------


def _as_account(tree: Tree, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns or raises in a process that is the tree's account's: what it runs and reads, that may."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(tree.account, work, sending))
    process.start()
    sending.close()
    try:
        answer: dict[str, Any] = receiving.recv()
    except EOFError:
        answer = failure(HotspareError(f"the work on the tree {tree.name} was ended: run it again"))
    finally:
        receiving.close()
        process.join()
    if answer["ok"]:
        return dict(answer["result"])
    raise Busy(answer["message"]) if answer.get("busy") else failed(answer)


def _answer(account: str, work: Callable[[], dict[str, Any]], sending: Connection) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # see tree_files.is_written
    try:
        become(account)
        sending.send({"ok": True, "result": work()})
    except HotspareError as error:
        sending.send({**failure(error), "busy": isinstance(error, Busy)})
    except OSError as error:  # of a temporary file, mostly
        what = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        sending.send(
            failure(HotspareError(f"documents could not be worked on ({what}): see that {TEMPORARY} has room"))
        )


def _set_writable(config: ArchiveConfig, tree: Tree, wanted: bool, check_mode: bool) -> dict[str, Any]:
    root, home = os.fsencode(tree.path), home_of(config, tree)
    refused = Told()

    def is_so() -> bool:
        return home.is_original() if wanted else is_copy(root, home)

    changed = not is_so()
    if changed and not check_mode:
        with home.lock("accept", WAIT_SECONDS):
            changed = not is_so()  # it may have been open only for documents that came
            if changed:
                (make_original if wanted else make_copy)(root, home, refused.path)
    wish = "writable" if wanted else "a read-only copy"
    problems = [f"the tree {tree.name} is not all {wish}: {refused}; give it to {tree.account}"] if refused else []
    return {**blank(tree), "changed": changed, "refused": list(refused), "problems": problems}


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def _sync(
    config: ArchiveConfig, tree: Tree, names: Optional[Sequence[str]], check_mode: bool, timer: bool
) -> dict[str, Any]:
    source = Source(config, tree, check_mode)
    owes = source.home.owes()
    locked = source.home.lock("ship", 0 if timer else WAIT_SECONDS)
    until = time.monotonic() + (TICK_SECONDS if timer else math.inf)
    with contextlib.nullcontext() if check_mode else locked, connected(source, names) as targets:
        if not check_mode and not owes:
            source.home.mark(source.root)
        turn = len(source.days) // TICKS + 1 if timer and not owes else None
        left = ["", *source.order([target.manifests for target in targets if target.works], turn)]
        while left and not (source.is_closed(left[0]) and time.monotonic() > until):
            partition = left.pop(0)
            if source.is_damaged(partition):
                continue
            closes = source.is_closed(partition) and not owes  # only the original seals
            if closes:
                source.seal(partition)
            for target in targets:
                target.attempt(target.bring, partition, closes)
        source.home.require(source.root)  # nor was it unmounted meanwhile
        done = not left and source.whole
        for target in targets if not check_mode else ():
            target.attempt(target.finish, done and not source.conflicts and not target.conflicts)
    everywhere = names is None and bool(targets) and all(target.works for target in targets)
    if owes and done and everywhere and not check_mode:
        source.home.paid()
    found = source.record()
    return {
        **found,
        "changed": bool(source.sealed) or any(target.files or target.sealed for target in targets),
        "problems": [problem for target in targets for problem in target.problems()] + found["problems"],
        "destinations": [target.record() for target in targets],
    }
