# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preparing a primary to come back as a standby: what is refused before a file is written, and the order of files."""

from __future__ import annotations

import os

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import demotion
from ansible_collections.hotspare.postgresql.plugins.module_utils.conninfo import Upstream
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError

UPSTREAM = Upstream(host="db2", user="replicator", application_name="db1", slot="hotspare_db1")


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node whose configuration is in order and read without its programs; `settings` is what a start would use."""
    data, configuration = tmp_path / "data", tmp_path / "etc"
    data.mkdir()
    (configuration / "conf.d").mkdir(parents=True)
    instance = Instance(
        "db1", str(data), "/nowhere", config_file=str(configuration / "postgresql.conf"), account="root"
    )
    settings = {}
    monkeypatch.setattr(demotion, "require_configuration", lambda instance: None)
    monkeypatch.setattr(demotion, "effective_setting", lambda instance, name: settings.get(name, ""))
    monkeypatch.setattr(demotion, "assert_upstream_settings", lambda instance, upstream: None)
    return instance, settings


def files(instance):
    return sorted(name for name in os.listdir(instance.data_directory)), os.path.exists(instance.upstream_file)


def test_prepared_twice_and_given_up(node):
    instance, _ = node
    assert demotion.prepare(instance, UPSTREAM, check_mode=True) is True
    assert files(instance) == ([], False)
    assert demotion.prepare(instance, UPSTREAM) is True
    assert files(instance) == (["standby.signal"], True)
    assert demotion.prepare(instance, UPSTREAM) is False
    demotion.give_up(instance)
    assert files(instance) == ([], False)


@pytest.mark.parametrize("name", demotion.RECOVERY_TARGETS)
def test_a_recovery_target_would_end_the_standby(node, name):
    instance, settings = node
    settings[name] = "immediate"
    with pytest.raises(HotspareError, match=f"sets {name}, so"):
        demotion.prepare(instance, UPSTREAM)
    assert files(instance) == ([], False)


def test_an_old_backups_position(node):
    instance, _ = node
    with open(instance.path("backup_label"), "w", encoding="utf-8"):
        pass
    with pytest.raises(HotspareError, match="backup_label is there"):
        demotion.prepare(instance, UPSTREAM)
    assert files(instance) == (["backup_label"], False)


def test_a_configuration_that_does_not_take_it_is_left_as_it_was(node, monkeypatch):
    instance, _ = node

    def overridden(instance, upstream):
        raise HotspareError("primary_conninfo would be something else")

    monkeypatch.setattr(demotion, "assert_upstream_settings", overridden)
    with pytest.raises(HotspareError, match="something else"):
        demotion.prepare(instance, UPSTREAM)
    assert files(instance) == ([], False)
