# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A destination at the end of a real ssh, with the forced command and the program as a node has it."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import read_archive_config
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import connect


@pytest.fixture
def store(archives):
    return archives.host("store")


@pytest.fixture
def link(archives, store):
    config = read_archive_config(str(archives.config("db1", destinations=[store.place])))
    with connect(config.destinations[0], config) as destination:
        yield destination


def test_hello(store, link):
    found = link.hello()
    assert (found["name"], found["identity"]) == ("store", None)
    assert found["free_bytes"] > 0
    assert len(store.programs()) == 1
