# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which segments are kept for the archive, without a server."""

from __future__ import annotations

import os
import pwd
import tempfile
import time
from pathlib import Path
from typing import Optional

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_status
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_status import (
    complete_segments,
    filled_in,
    lacking,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import parse_lsn
from hypothesis import given
from hypothesis import strategies as st

SIZE = 16 << 20


def segment(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}00000000{number:08X}"


NAMES = [
    f"{segment(3)}.done",
    f"{segment(4)}.done",
    f"{segment(5)}.ready",
    f"{segment(6)}.done",
    f"{segment(7)}.done",
    f"{segment(3, 2)}.done",
    "00000002.history.done",
    f"{segment(6)}.partial.done",
    f"{segment(3)}.00000028.backup.done",
]


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ("0/7000028", [6, 4, 3]),
        # What is held ends before this byte: the sixth is complete.
        ("0/7000000", [6, 4, 3]),
        ("0/7000001", [6, 4, 3]),
        ("0/6FFFFFF", [4, 3]),
        ("0/3000028", []),
        ("0/0", []),
    ],
)
def test_complete_segments_of_the_timeline(held, expected):
    assert complete_segments(NAMES, 1, parse_lsn(held), SIZE) == [segment(number) for number in expected]


def test_the_archive_is_asked_from_the_newest_on_until_it_has_one():
    asked = []

    def has(name: str) -> bool:
        asked.append(name)
        return name in ("b", "a")

    assert lacking(["e", "d", "c", "b", "a"], has) == (["e", "d", "c"], None)
    assert asked == ["e", "d", "c", "b"]


@given(st.lists(st.sampled_from([True, False, None])))
def test_what_is_not_known_to_be_there_is_lacking(answers: list[Optional[bool]]):
    names = [str(number) for number in range(len(answers))]
    lacks, unsaid = lacking(names, lambda name: answers[int(name)])
    first = next((index for index, answer in enumerate(answers) if answer is not False), len(answers))
    unknown = first < len(answers) and answers[first] is None
    assert unsaid == (names[first] if unknown else None)
    assert lacks == (names if unknown else names[:first])


def test_restore_command():
    command = "cp /mnt/%f %p && echo 100%% %r %x"
    assert filled_in(command, "F", "/tmp/x/F") == "cp /mnt/F /tmp/x/F && echo 100% F %x"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("touch %p", True),
        ("touch %p %p.hotspare-ab12", True),
        ("touch %p.hotspare-ab12; exit 1", False),
        # Ended in the middle, as one is that took too long.
        ("touch %p.hotspare-ab12; mkdir %p; kill -9 $$", None),
    ],
)
def test_what_restore_command_leaves_behind_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, answer: Optional[bool]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_where: str(scratch))
    instance = Instance("db1", str(tmp_path), "/nowhere", account=pwd.getpwuid(os.geteuid()).pw_name)
    deadline = time.monotonic() + 600
    monkeypatch.setattr(archive_status, "ASK_SECONDS", 600)
    assert archive_status._archive_has(instance, command, segment(3), deadline) is answer
    assert not scratch.exists()
