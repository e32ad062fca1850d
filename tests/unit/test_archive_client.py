# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_client.py as PostgreSQL starts it, before a shipper of the test: what it asks, and the exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_client
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_client import ABORT, ABSENT, OTHER, exit_code
from hypothesis import given
from hypothesis import strategies as st

CODES = st.integers(-64, 300)
VARIABLES = Path(__file__).resolve().parents[2] / "roles/node/vars/main.yml"
PYTHON = f"{sys.executable} -I -S"


@given(CODES, st.booleans())
def test_the_archiver_never_sees_what_would_end_it(code, strict):
    found = exit_code("archive", code, strict)
    assert 0 <= found <= 125
    assert (found == 0) == (code == 0)


@given(CODES)
def test_a_recovery_goes_on_only_when_it_is_known_what_there_is(code):
    assert exit_code("restore", code, True) == {0: 0, ABSENT: ABSENT}.get(code, ABORT)
    standby = exit_code("restore", code, False)
    assert 0 <= standby <= 125
    assert (standby == 0) == (code == 0)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A directory with the client as it is installed; the data directory is `data` below it."""
    text = Path(archive_client.__file__).read_text(encoding="utf-8")
    (tmp_path / "archive_client.py").write_text(text, encoding="utf-8")
    (tmp_path / "data").mkdir()
    return tmp_path


def setting(node: Path, command: str, arguments: str, python: str = PYTHON) -> str:
    """What the role node sets, with the client of this directory."""
    text = yaml.safe_load(VARIABLES.read_text(encoding="utf-8"))["_node_archive"][f"{command}_command"]
    for before, after in {
        "{{ _node_archive_client }}": f"{python} {node}/archive_client.py",
        "{{ _node_archive_files }}": f"{node}/socket /c.json",
        {"archive": "%p %f", "restore": "%f %p"}[command]: arguments,
    }.items():
        assert before in text
        text = text.replace(before, after)
    assert "%" not in text  # PostgreSQL from 16 on refuses what it does not know
    return text


def start(node: Path, command: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """By a shell, as system() does."""
    argv = ["/bin/sh", "-c", setting(node, command, " ".join(arguments), **more)]
    return subprocess.Popen(argv, cwd=node / "data", stderr=subprocess.PIPE, text=True, start_new_session=True)


def call(node: Path, command: str, *arguments: str, **more: str) -> tuple[int, str]:
    """The exit code, and what was said."""
    process = start(node, command, *arguments, **more)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


class Shipper:
    """Takes one request and sends these pieces; then closes, unless `more` comes."""

    def __init__(self, node: Path, *answer: bytes, closes: bool = True) -> None:
        self.request = b""
        self.asked = threading.Event()
        self.closes = closes
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(node / "socket"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Shipper:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(60)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            self.request = connection.makefile("rb").readline()
            for piece in self._answer:
                connection.sendall(piece)
            self.asked.set()
            if not self.closes:
                connection.recv(1)


def program(node: Path, text: str) -> None:
    """What the client finds beside it."""
    (node / archive_client.PROGRAM).write_text(text, encoding="utf-8")


def test_the_shippers_word(node):
    with Shipper(node, b"0 \n") as shipper:
        assert call(node, "archive", "pg_wal/X", "X") == (0, "")
    assert shipper.request == b"\0".join([b"archive", bytes(node / "data"), b"pg_wal/X", b"X"]) + b"\n"


@pytest.mark.parametrize("pieces", [[b" ", b" ", b"13 no", b" room\n"], [b"13 no room\n"]])
def test_it_waits_as_long_as_something_comes(node, pieces):
    with Shipper(node, *pieces):
        assert call(node, "archive", "pg_wal/X", "X") == (13, "hotspare: no room\n")


@pytest.mark.parametrize("pieces", [[], [b"0"], [b"1"], [b"what\n"], [b" "]])
def test_a_shipper_that_dies_is_gone_without(node, pieces):
    program(node, "import sys; sys.exit(11 if sys.argv[1:] == ['archive', '/c.json', 'pg_wal/X', 'X'] else 99)")
    with Shipper(node, *pieces):
        code, said = call(node, "archive", "pg_wal/X", "X")
    assert code == 11
    assert "does not answer" in said


@pytest.mark.parametrize(
    ("text", "archived", "restored"),
    [
        (None, 2, ABORT),
        ("import nothing_of_this_name", 1, ABORT),
        ("import os; os.abort()", OTHER, ABORT),
        ("import os; os._exit(127)", OTHER, ABORT),
        (f"import os; os._exit({ABSENT})", ABSENT, 1),
        ("", 0, 0),
    ],
)
def test_whatever_becomes_of_the_program(node, text, archived, restored):
    if text is not None:
        program(node, text)
    assert call(node, "archive", "pg_wal/X", "X")[0] == archived
    # Of a standby that is being promoted the file is gone when it asks last.
    for signal_file in ("", "standby.signal", "recovery.signal"):
        (node / "data" / signal_file).touch()
        assert 0 <= call(node, "restore", "X", "pg_wal/RECOVERYXLOG")[0] <= 125
    (node / "data" / "standby.signal").unlink()
    assert call(node, "restore", "X", "pg_wal/RECOVERYXLOG")[0] == restored


BROKEN = {
    "no client": ("", PYTHON, 2),
    "half a client": ("def main(", PYTHON, 1),
    "a client of another Python": ("import nothing_of_this_name", PYTHON, 1),
    "no Python": (None, "/nowhere/python3 -I -S", OTHER),
    "a Python that may not run": (None, "/dev/null -I -S", OTHER),
    "no memory": ("import os; os.kill(os.getpid(), 9)", PYTHON, OTHER),
}


@pytest.mark.parametrize(("text", "python", "archived"), BROKEN.values(), ids=BROKEN)
def test_whatever_becomes_of_the_client(node, text, python, archived):
    program(node, "")
    client = node / "archive_client.py"
    client.unlink() if text == "" else client.write_text(client.read_text("utf-8") if text is None else text, "utf-8")
    assert call(node, "archive", "pg_wal/X", "X", python=python)[0] == archived
    assert 1 <= archived <= 125
    killed = text is not None and "kill" in text  # a signal ends any server that recovers, as PostgreSQL has it
    for signals, stops in (
        ((), killed),
        (("standby",), killed),
        (("standby", "recovery"), killed),
        (("recovery",), True),
    ):
        for name in ("standby", "recovery"):
            (node / "data" / f"{name}.signal").unlink(missing_ok=True)
        for name in signals:
            (node / "data" / f"{name}.signal").touch()
        code = call(node, "restore", "X", "pg_wal/RECOVERYXLOG", python=python)[0]
        assert code != 0
        assert (code > 125) is stops, signals


def test_a_shipper_that_hangs_is_gone_without(node):
    client = node / "archive_client.py"
    text = client.read_text(encoding="utf-8")
    assert f"SILENT_SECONDS = {archive_client.SILENT_SECONDS}" in text
    client.write_text(text.replace(f"SILENT_SECONDS = {archive_client.SILENT_SECONDS}", "SILENT_SECONDS = 0.1"))
    program(node, "")
    with Shipper(node, b" ", closes=False):
        assert call(node, "archive", "pg_wal/X", "X")[0] == 0


def test_words_that_are_missing(node):
    assert call(node, "archive")[0] == 2  # the program is not there
    (node / "recovery.signal").touch()
    script = str(node / "archive_client.py")
    for arguments, code in ((["archive"], OTHER), (["restore"], ABORT)):
        assert (
            subprocess.run([sys.executable, "-I", "-S", script, *arguments], cwd=node, check=False).returncode == code
        )


@pytest.mark.parametrize(("command", "code"), [("archive", OTHER), ("restore", -signal.SIGTERM)])
def test_the_end_of_the_server_ends_it_at_once(node, command, code):
    """Its SIGTERM goes to the group of the process that runs the command."""
    with Shipper(node, closes=False) as shipper:
        process = start(node, command, "X", "X")
        assert shipper.asked.wait(60)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == code


@pytest.mark.parametrize(("command", "code"), [("archive", OTHER), ("restore", 128 + signal.SIGTERM)])
def test_so_does_one_for_the_client_alone(node, command, code):
    with Shipper(node, closes=False) as shipper:
        process = start(node, command, "X", "X")
        assert shipper.asked.wait(60)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
        os.kill(int(children), signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == code
