# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_server.py: the forced command does what it is for, and nothing else; test_archive_link.py has the rest."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_server, tree_server
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Channel

from .destinations import connected, other_end
from .wal_pages import NAME, SYSTEM, segment


def told(command: list[str], wanted: str) -> subprocess.CompletedProcess[str]:
    """What the forced command does when the client wants this."""
    environment = {**os.environ, "SSH_ORIGINAL_COMMAND": wanted}
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "wanted", ["ls", "rsync", "rsync --daemon", "/usr/bin/rsync --server .", "sh -c 'rsync --server .'"]
)
def test_no_other_command_is_run(tmp_path, wanted):
    done = told(other_end(tmp_path), wanted)
    assert (done.returncode, done.stdout) == (1, "")
    assert "this key is for the archive only, not for" in done.stderr


def test_an_rsync_is_looked_at_by_who_knows_trees(tmp_path, monkeypatch):
    command = other_end(tmp_path)
    asked = []
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "rsync --server -e.x . y")
    monkeypatch.setattr(tree_server, "rsync", lambda config, wanted: asked.append((config.name, wanted)) or 23)
    with open(os.devnull, "rb") as stdin, open(os.devnull, "wb") as stdout:
        assert archive_server.serve(command[-1], stdin, stdout) == 23
    assert asked == [("db2", "rsync --server -e.x . y")]
    assert set(tree_server.OPS) <= set(archive_server.OPS)


def test_it_ends_when_nobody_is_there_any_more(tmp_path):
    command = other_end(tmp_path)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout.startswith(b"\0\0")
    half = subprocess.run(command, input=b"\0\0\0\x10{", capture_output=True)
    assert half.returncode == 1
    assert b"the connection broke: it ended in the middle" in half.stderr
    banner = subprocess.run(command, input=b"GET / HTTP/1.0\r\n", capture_output=True)
    assert b"it says 'GET / HTTP/1.0'" in banner.stderr


def test_a_client_that_dies_leaves_nothing_behind(tmp_path):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(other_end(tmp_path), **pipes)
    channel = Channel(process.stdout.fileno(), process.stdin.fileno())
    assert channel.answer()["ok"]
    request = {"op": "put", "name": NAME, "encoding": "none", "sent": "none", "vacant": True}
    channel.send({**request, "system_identifier": SYSTEM, "segment_size": 1 << 20, "payload": True})
    half = segment(NAME)[: 1 << 19]
    os.write(process.stdin.fileno(), len(half).to_bytes(4, "big") + half[:1000])
    deadline = time.monotonic() + 30
    while not list(Path(tmp_path, "archive", "wal").rglob(".incoming-*")):
        assert time.monotonic() < deadline, "it was begun"
        time.sleep(0.01)
    process.stdin.close()
    assert process.wait(30) == 1
    process.stdout.close()
    process.stderr.close()
    assert [path for path in Path(tmp_path, "archive", "wal").rglob("*") if path.is_file()] == []


def test_a_key_for_documents_opens_no_wal(tmp_path, monkeypatch):
    python, option, program, path = other_end(tmp_path)
    scoped = program.replace("sys.stdout.buffer)", "sys.stdout.buffer, ['scans'])")
    assert scoped != program
    with connected(monkeypatch, [python, option, scoped, path]) as link:
        assert link.hello()["name"] == "db2"
        for ask in (
            link.names,
            link.conflicts,
            lambda: link.get(NAME),
            lambda: link.remove([NAME]),
            lambda: link.has([NAME]),
        ):
            with pytest.raises(HotspareError, match="this key is for documents only"):
                list(ask())
