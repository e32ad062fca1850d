# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""config_file.py: what is not ours is not followed, and the sentence says which file."""

from __future__ import annotations

import os

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import config_file
from ansible_collections.hotspare.postgresql.plugins.module_utils.config_file import read_config_file
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


@pytest.fixture
def path(tmp_path):
    written = tmp_path / "hotspare.json"
    written.write_text('{"name": "db1"}', encoding="utf-8")
    return str(written)


def name(found):
    return found["name"]


def test_it_is_read(path):
    assert read_config_file(path, "node", name) == "db1"


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"name": ', "\x00"], ids=repr)
def test_what_a_role_does_not_write(path, content):
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
    with pytest.raises(HotspareError, match=f"{path} is not what the role node writes .*run site.yml"):
        read_config_file(path, "node", name)


def test_what_is_not_there(path):
    os.remove(path)
    with pytest.raises(HotspareError, match=f"cannot read {path}: No such file or directory; run site.yml"):
        read_config_file(path, "node", name)


def test_what_another_account_wrote(path, monkeypatch):
    monkeypatch.setattr(config_file.os, "geteuid", lambda: 4711)
    if os.stat(path).st_uid == 0:
        assert read_config_file(path, "node", name) == "db1"
        os.chown(path, 4712, -1)
    with pytest.raises(HotspareError, match="does not belong to root"):
        read_config_file(path, "node", name)
