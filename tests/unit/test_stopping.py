# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""stopping.py without a server: what a server that stops waits for, and what the archiver has left."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import Instance
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.stopping import (
    Child,
    not_archived,
    waits_for_standbys,
)

SENDER = "postgres: db-one: walsender replicator 127.0.0.1(41234) streaming 0/3000060"


def waits(*titles: str, state: str = "S") -> bool:
    return waits_for_standbys([Child(number, title, state) for number, title in enumerate(titles)])


@pytest.mark.parametrize(
    "titles",
    [
        (SENDER,),
        (SENDER, "postgres: db-one: checkpointer", "postgres: db-one: archiver last was 000000010000000000000003"),
        ("postgres: walsender replicator [local] streaming 0/3000060", "postgres: logger ", "postgres: checkpointer "),
        (SENDER, "postgres: stats collector", "postgres: io worker 0"),
    ],
)
def test_a_standby_that_hangs_is_waited_for(titles):
    assert waits(*titles)
    assert not waits(*titles, state="T"), "a process that is frozen here never ends"


@pytest.mark.parametrize(
    "titles",
    [
        (),
        ("postgres: db-one: checkpointer",),
        (SENDER, "postgres: db-one: postgres postgres [local] idle"),
        (SENDER, "postgres: db-one: autovacuum worker ledger"),
        (SENDER, "postgres: db-one: postgres walsender_notes [local] COMMIT"),
    ],
)
def test_whatever_else_holds_it_is_given_up(titles):
    assert not waits(*titles)


def test_what_waits_for_the_archiver(tmp_path):
    instance = Instance("db-one", str(tmp_path), "/usr/bin")
    with pytest.raises(HotspareError, match="cannot read"):
        not_archived(instance)  # unknown is not nothing
    status = tmp_path / "pg_wal" / "archive_status"
    status.mkdir(parents=True)
    assert not_archived(instance) == []
    for name in ("000000010000000000000005.ready", "000000010000000000000004.ready", "000000010000000000000003.done"):
        (status / name).touch()
    for name in ("00000002.history.ready", "000000010000000000000002.00000028.backup.ready"):
        (status / name).touch()
    assert not_archived(instance) == ["000000010000000000000004", "000000010000000000000005"]
