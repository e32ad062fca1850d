# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_command and restore_command: asks the shipper of this node, and waits for its answer.

    python3 -I -S archive_client.py archive SOCKET CONFIG %p %f
    python3 -I -S archive_client.py restore SOCKET CONFIG %f %p

A file of its own beside the program, which imports next to nothing: Python's start is most of what a call takes. If the
shipper does not answer, the program does the work itself, which is slow.

PostgreSQL takes an exit code above 125, or death by a signal, for the end of its archiver (pgarch.c), so archiving has
none. Any code of restoring up to 125 means to it that the archive lacks the file: a standby asks again, but a recovery
to a point in time would end there and open too early, so trouble stops that one. A promotion asks once more when its
standby.signal is gone already (writeTimeLineHistory); trouble must not end the new primary. The words around this call
in the settings (_node_archive of the role node) hold it to that when it cannot run, so what the archive lacks has a
code that nobody else says.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` and `socket` take as long to import as all the rest
import _socket
import posix  # `os`, without what it adds: a tenth of the time of a call
import sys

PROGRAM = "hotspare.pyz"
OTHER = 20  # trouble without a code of its own
ABSENT = 3  # a file is not in the archive, and that is known: Python's own errors are 1 and 2
ABORT = 200  # ends the server that recovers
SILENT_SECONDS = 30  # a shipper that works sends something more often than this
SIGNALS = (1, 2, 15)  # HUP, INT, TERM


def main(argv: list[str]) -> int:
    """The exit code of archive_command or restore_command."""
    strict = recovers(".")
    end_with(argv[0], exit_code(argv[0], OTHER, strict))
    command, socket, config, *arguments = argv
    answer = ask(socket, [command, posix.getcwd(), *arguments])
    if answer is None:
        say(f"the shipper at {socket} does not answer: this goes on without it, slowly; see why it does not run")
        answer = alone(command, config, arguments), ""
    code, sentence = answer
    if sentence:
        say(sentence)
    code = exit_code(command, code, strict)
    if code == ABORT:
        say("so the recovery stops, or it would end too early: mend that or change archive_destinations, and try again")
    return code


def end_with(command: str, worst: int) -> None:
    """From now on an error of ours ends us with this exit code; and a signal does, which the archiver must not see.

    The startup process wants to see that its SIGTERM ended restore_command.
    """

    def failed(*error: object) -> None:
        sys.__excepthook__(*error)  # type: ignore[arg-type]
        posix._exit(worst)

    sys.excepthook = failed
    if command == "archive":
        for number in SIGNALS:
            _signal.signal(number, lambda *_arguments: posix._exit(worst))


def recovers(directory: str) -> bool:
    """Whether the server of this data directory recovers from its archive, to open then; no standby does."""
    return _exists(f"{directory}/recovery.signal") and not _exists(f"{directory}/standby.signal")


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except (OSError, ValueError):
        return False
    return True


def exit_code(command: str, code: int, strict: bool) -> int:
    """What comes of what the shipper or the program said; negative is a signal. (Pure.)"""
    if code == 0 or (command == "restore" and code == ABSENT):
        return code
    if command == "restore" and strict:
        return ABORT
    return code if 0 < code <= 125 else OTHER


def ask(path: str, request: list[str]) -> tuple[int, str] | None:
    """The shipper's code and sentence; None when it does not answer."""
    answer = b""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(SILENT_SECONDS)
    try:
        connection.connect(path)
        connection.sendall(_bytes("\0".join(request)) + b"\n")
        while chunk := connection.recv(4096):
            answer += chunk
    except OSError:
        return None
    code, _space, sentence = answer.decode(errors="replace").strip(" ").partition(" ")
    code, sentence = code.strip(), sentence.strip()
    return (int(code), sentence) if answer.endswith(b"\n") and code.isdigit() else None


def _bytes(text: str) -> bytes:
    """As os.fsencode()."""
    return text.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def alone(command: str, config: str, arguments: list[str]) -> int:
    """What the program says, or the signal that ended it as a negative number."""
    import os

    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), PROGRAM)
    return os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-I", program, command, config, *arguments])


def say(sentence: str) -> None:
    """To stderr, which is the server's log."""
    try:
        posix.write(2, f"hotspare: {sentence}\n".encode(errors="replace"))
    except OSError:  # a log that is full does not change the answer
        return


if __name__ == "__main__":
    posix._exit(main(sys.argv[1:]))
