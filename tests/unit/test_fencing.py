# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fencing.py without a server: what is no server is fenced, and what cannot be told is not."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import fencing
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


def node(tmp_path):
    return Instance("db-one", str(tmp_path / "data"), "/usr/bin", socket_directory=str(tmp_path), account="root")


@pytest.mark.parametrize("check_mode", [True, False])
def test_no_server_is_fenced(tmp_path, check_mode):
    result = fencing.fence(node(tmp_path), check_mode=check_mode)
    assert result["changed"] is False
    assert result["fence"]["verified"] is True
    assert [step["name"] for step in result["fence"]["steps"]] == ["verify"]
    assert result["node"]["running"] is False


def test_somebody_who_listens_there_is_not_fenced(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / ".s.PGSQL.5432"))
        listener.listen()
        with pytest.raises(HotspareError, match="somebody listens") as caught:
            fencing.fence(node(tmp_path))
        assert caught.value.facts["fence"]["verified"] is False
        assert fencing.fence(node(tmp_path), check_mode=True)["fence"]["verified"] is False
    assert fencing.fence(node(tmp_path))["fence"]["verified"] is True, "the socket's file is left, nobody listens"


def test_a_directory_that_cannot_be_read_is_marked_all_the_same(tmp_path, monkeypatch):
    """A disk that fails is no reason to leave processes alone, nor to say that a start is harmless."""

    def fails(_instance):
        raise HotspareError("cannot read: Input/output error")

    monkeypatch.setattr(fencing, "data_directory_kind", fails)
    with pytest.raises(HotspareError, match="its next start would make it a primary") as caught:
        fencing.fence(node(tmp_path))  # the directory is not there, so nothing can be written into it
    assert caught.value.facts["fence"]["verified"] is False
    assert [step["name"] for step in caught.value.facts["fence"]["steps"]] == ["mark", "kill", "verify"]
