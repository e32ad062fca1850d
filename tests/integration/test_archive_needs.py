# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What real servers say of the WAL that they need, asked as a node and as an archive host asks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_needs
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import ArchiveConfig, Keep
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_needs import needs, parse_backup
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_retention import Need
from ansible_collections.hotspare.postgresql.plugins.module_utils.peers import Peer
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB, parse_lsn

from .conftest import ACCOUNT, Lab, Node, Pair, eventually


def peer(node: Node) -> Peer:
    return Peer(node.instance.name, **node.address)


def needed(here: Node, *others: Node, identifier: Optional[int] = None, **changes: Any) -> dict[str, Need]:
    """Who needs what, by kind and name."""
    given: dict[str, Any] = {"node": here.instance, "keep": Keep(segments=4), **changes}
    config = ArchiveConfig(
        name=here.instance.name,
        cluster="main",
        peers=tuple(peer(node) for node in others),
        directory="/var/lib/hotspare/archive/main",
        compression="none",
        require="one",
        program="/usr/local/lib/hotspare/hotspare.pyz",
        run="/run/hotspare-archive-main",
        spool="/var/lib/hotspare/spool/main",
        fetch_ahead=16,
        destinations=(),
        trees=(),
        **given,
    )
    identity = Identity(identifier or int(here.control("Database system identifier")), 16 * MIB)
    return {f"{need.kind} {need.of}": need for need in needs(config, [], [], 0.0, identity=identity)}


@contextmanager
def session(node: Node, statement: str, application: str = "psql") -> Iterator[Callable[[str], None]]:
    """A session in which this was said and done; says more."""
    where = ["-h", node.instance.socket_directory, "-p", str(node.instance.port), "-d", "postgres"]
    argv = [node.instance.program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", *where]
    environment = {"PATH": os.environ["PATH"], "PGAPPNAME": application}
    with subprocess.Popen(
        argv, user=ACCOUNT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=environment, text=True
    ) as process:

        def say(text: str) -> None:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{text};\n\\echo done\n")
            process.stdin.flush()
            while (line := process.stdout.readline().strip()) != "done":
                assert process.poll() is None, line

        say(statement)
        yield say
        assert process.stdin is not None
        process.stdin.close()


def redo(node: Node) -> int:
    return parse_lsn(node.sql("SELECT redo_lsn FROM pg_control_checkpoint()"))


def test_each_server_needs_its_last_checkpoint_and_its_slots(pair: Pair) -> None:
    one, two = pair.primary, pair.standby
    one.sql("SELECT pg_create_physical_replication_slot('unused')")
    one.sql("SELECT pg_create_physical_replication_slot('held', true)")
    held = parse_lsn(one.sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'held'"))
    one.sql("CREATE TABLE more AS SELECT generate_series(1, 10000)")
    one.sql("CHECKPOINT")
    found = needed(one, two)
    assert set(found) == {
        "server db-one",
        "server db-two",
        "slot slot held of db-one",
        "slot slot hotspare_db_two of db-one",
    }
    assert found["slot slot held of db-one"].lsn == held
    assert found["server db-one"].lsn == redo(one)
    # The standby has made no restart point: it needs more than the primary, whatever it has replayed.
    assert found["server db-two"].lsn == redo(two) < redo(one)

    eventually(pair.in_step)
    two.sql("CHECKPOINT")
    assert needed(one, two)["server db-two"].lsn == redo(one)

    from_an_archive_host = needed(one, one, two, node=None)
    assert from_an_archive_host.keys() == found.keys()
    assert from_an_archive_host["server db-one"].lsn == redo(one)
    assert from_an_archive_host["server db-two"].lsn == redo(two)
    assert [need.lsn for need in needed(one, two, identifier=1).values()] == [None, None], "another cluster answers"
    (need,) = needed(one, two, keep=None).values()
    assert (need.kind, need.lsn) == ("keep", None)


def test_one_that_does_not_answer_may_need_anything(pair: Pair) -> None:
    one, two = pair.primary, pair.standby
    two.stop()
    need = needed(one, two)["server db-two"]
    assert need.lsn is None
    assert "Connection refused" in need.detail
    one.stop()
    assert needed(one)["server db-one"].lsn is None


def test_a_frozen_one_is_not_waited_for_long(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_needs, "ASK_SECONDS", 1.0)
    pair.standby.freeze()
    need = needed(pair.primary, pair.standby)["server db-two"]
    assert need.lsn is None
    assert need.detail == "it did not answer within 2 s"


def test_a_backup_by_functions_keeps_everything_while_its_session_shows_it(pair: Pair, major: int) -> None:
    one, two = pair.primary, pair.standby
    begin, end = ("pg_backup_start('x', true)", "pg_backup_stop(false)")
    if major < 15:
        begin, end = ("pg_start_backup('x', true, false)", "pg_stop_backup(false, false)")
    for node, other in ((one, two), (two, one)):
        name = node.instance.name
        with session(node, f"SELECT {begin}") as say:
            for found in (needed(node, other), needed(other, node), needed(other, node, other, node=None)):
                (need,) = (need for need in found.values() if need.kind == "running_backup")
                assert (need.of, need.lsn) == (name, None)
                assert "a base backup is being taken from it (psql, process " in need.detail
            say(f"SELECT count(*) FROM ({'SELECT ' + end}) x")
            assert f"running_backup {name}" not in needed(node, other)
    # One that says other things meanwhile is known by its name.
    with session(one, "SELECT 1", "pgBackRest [backup]"):
        assert "running_backup db-one" in needed(one, two)
    with session(one, "SELECT 1", "an application"):
        assert "running_backup db-one" not in {*needed(one, two), *needed(two, one)}
        # Whom nobody lets see what others say cannot tell.
        one.sql("REVOKE pg_monitor FROM replicator")
        eventually(lambda: "1 of its sessions do not show" in str(needed(two, one).get("running_backup db-one")))
        assert "running_backup db-one" not in needed(one, two)


def test_an_exclusive_backup_has_a_file(pair: Pair, major: int) -> None:
    """Up to PostgreSQL 14 it goes on without a session."""
    one, label = pair.primary, pair.primary.data / "backup_label"
    if major < 15:
        one.sql("SELECT pg_start_backup('x', true)")
    else:
        label.write_text("as it would be", encoding="utf-8")
    for found in (needed(one), needed(one, one, node=None)):
        assert "an exclusive backup, see backup_label" in found["running_backup db-one"].detail
    if major < 15:
        one.sql("SELECT pg_stop_backup()")
    else:
        label.unlink()
    assert "running_backup db-one" not in needed(one)


def test_a_base_backup_keeps_everything_until_it_has_ended_and_then_leaves_a_note(lab: Lab) -> None:
    node = lab.node("db-one")
    Path(node.instance.upstream_file).write_text(f"archive_mode = on\narchive_command = 'cp %p {lab.directory}/%f'\n")
    node.start()
    where = ["-h", node.instance.socket_directory, "-p", str(node.instance.port), "-U", "postgres"]
    options = ["-X", "none", "-c", "fast", "-l", "tonight: 1", *where]
    slow = [node.instance.program("pg_basebackup"), "-D", f"{node.data}.slow", "-r", "32k", *options]
    backup = subprocess.Popen(slow, user=ACCOUNT, stderr=subprocess.DEVNULL, cwd="/")
    try:
        eventually(lambda: "running_backup db-one" in needed(node))
        assert needed(node)["running_backup db-one"].lsn is None
        assert "running_backup db-one" in needed(node, node, node=None), "the replication account sees it, too"
    finally:
        backup.terminate()
        backup.wait()
    eventually(lambda: "running_backup db-one" not in needed(node))

    node.program("pg_basebackup", "-D", f"{node.data}.copy", *options, "--no-sync")
    (file,) = eventually(lambda: list(lab.directory.glob("*.backup")))
    found = parse_backup(file.read_text())
    assert found.file_name(16 * MIB) == file.name
    assert (found.label, found.timeline, found.start_lsn < found.stop_lsn) == ("tonight: 1", 1, True)
