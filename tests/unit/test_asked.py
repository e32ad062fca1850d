# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""asked.py: the note is of this boot, fresh, and by somebody who may say so."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import asked


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    directory = tmp_path / "lock"
    directory.mkdir()
    monkeypatch.setattr(asked, "RUNTIME_DIRECTORY", str(directory))
    return directory


def test_a_note_counts_for_a_while(tmp_path):
    data = str(tmp_path)
    assert not asked.asked_just_now(data)
    asked.note_asked(data)
    assert asked.asked_just_now(data)
    assert not asked.asked_just_now(data, within=-1)
    assert not asked.asked_just_now(str(tmp_path / "lock"))


def test_a_data_directory_has_one_note_by_whatever_name(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    asked.note_asked(str(tmp_path / "link"))
    assert asked.asked_just_now(str(tmp_path / "data"))


@pytest.mark.parametrize("text", ["", "x", "1.0 another-boot\n", "99999999999.0 {boot}\n", "{now} {boot} more\n"])
def test_what_is_no_note_of_now_does_not_count(tmp_path, text):
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    now = f"{time.clock_gettime(time.CLOCK_BOOTTIME):.3f}"
    with open(asked.asked_file(str(tmp_path)), "w", encoding="ascii") as file:
        file.write(text.format(boot=boot, now=now))
    assert not asked.asked_just_now(str(tmp_path))


def test_a_note_by_anybody_else_does_not_count(tmp_path):
    asked.note_asked(str(tmp_path))
    os.chown(asked.asked_file(str(tmp_path)), 65534, 65534)
    assert not asked.asked_just_now(str(tmp_path))


def test_nothing_is_written_through_a_link_of_somebody_else(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept", encoding="ascii")
    os.symlink(victim, asked.asked_file(str(tmp_path)))
    asked.note_asked(str(tmp_path))
    assert victim.read_text(encoding="ascii") == "kept"
    assert asked.asked_just_now(str(tmp_path))


def test_without_such_a_directory_there_is_no_note(tmp_path, monkeypatch):
    monkeypatch.setattr(asked, "RUNTIME_DIRECTORY", "/no/such")
    asked.note_asked(str(tmp_path))
    assert not asked.asked_just_now(str(tmp_path))
