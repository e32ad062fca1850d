# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A note for the guard: a playbook has asked all nodes just now and wants this one as a primary, so it need not wait.

One line, `<seconds of CLOCK_BOOTTIME> <boot_id>`, in a file that a reboot removes and a copy of the data has not got.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time

RUNTIME_DIRECTORY = "/run/lock"
FRESH_SECONDS = 60


def asked_file(data_directory: str) -> str:
    """Where the note of this data directory is."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(data_directory))).hexdigest()[:16]
    return f"{RUNTIME_DIRECTORY}/hotspare-{digest}.asked"


def note_asked(data_directory: str) -> None:
    """Write the note. Where there is no such directory there is none: the guard then asks for itself."""
    path = asked_file(data_directory)
    # Anybody may write in that directory: never through a file or link that another has put there.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.9f} {_boot_id()}\n")


def asked_just_now(data_directory: str, within: float = FRESH_SECONDS) -> bool:
    """Whether there is a note of this boot, not older than `within` seconds, by root or the data's owner."""
    try:
        with open(asked_file(data_directory), encoding="ascii", errors="replace") as file:
            owner, text = os.fstat(file.fileno()).st_uid, file.read(200)
        trusted = owner in (0, os.stat(data_directory).st_uid)
    except OSError:
        return False
    found = re.fullmatch(r"(\d+\.\d+) (\S+)\n", text)
    if found is None or not trusted or found.group(2) != _boot_id():
        return False
    return 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - float(found.group(1)) <= within


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
