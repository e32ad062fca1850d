# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a cutover from the records of real servers: what they really say when a run has died, or they have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.cutover import failover_plan
from ansible_collections.hotspare.postgresql.plugins.module_utils.peers import Peer
from ansible_collections.hotspare.postgresql.plugins.module_utils.replication import read_state
from ansible_collections.hotspare.postgresql.plugins.module_utils.topology import topology

from .conftest import ACCOUNT, Node, Pair, eventually

UNREACHABLE = {"unreachable": True, "msg": "No route to host"}
ONE, TWO = "db-one", "db-two"


@pytest.fixture
def decide(pair: Pair) -> Callable[..., Any]:
    """The plan as failover.yml makes it; `gone` are nodes that cannot be reached from the control node."""
    nodes = {node.instance.name: node for node in (pair.primary, pair.standby)}

    def peers(name: str) -> list[Peer]:
        return [
            Peer(n, *(node.address[key] for key in ("host", "port", "user", "passfile")))
            for n, node in nodes.items()
            if n != name
        ]

    def _decide(target: str = TWO, mode: str = "planned", gone: tuple[str, ...] = (), **more: Any) -> Any:
        answers = {
            name: UNREACHABLE if name in gone else {"node": read_state(node.instance, peers=peers(name))}
            for name, node in nodes.items()
        }
        members = {name: {"address": "127.0.0.1", "port": node.instance.port} for name, node in nodes.items()}
        return failover_plan(topology(answers), target, mode, members, **more)

    return _decide


def wrong(plan: Any, hard: bool = True) -> set[str]:
    return {c["name"] for c in plan["checks"] if c["hard"] is hard and c["ok"] is not True}


def signal(node: Node, upstream: Node) -> None:
    """What a cutover writes to prepare a primary."""
    text = f"primary_conninfo = 'host=127.0.0.1 port={upstream.instance.port} user=replicator application_name=x'\n"
    for path, content in ((Path(node.instance.upstream_file), text), (node.data / "standby.signal", "")):
        path.write_text(content, encoding="utf-8")
        shutil.chown(path, ACCOUNT, ACCOUNT)


def test_a_healthy_pair_passes_every_check(pair: Pair, decide):
    pair.primary.write()
    eventually(pair.in_step)
    plan = decide()
    assert plan["ok"], plan["reason"]
    assert (plan["target"], plan["old_primary"], plan["resume"]) == (TWO, ONE, None)
    # The servers of the tests run on any disk.
    assert {name for name in wrong(plan, hard=False) if not name.startswith("room_for_wal")} == set()


def test_what_is_wrong_is_seen_on_real_servers(pair: Pair, decide):
    """F8, F9, F16, F19: each made for real, and each told by its own check."""
    two = pair.standby
    two.sql("SELECT pg_wal_replay_pause()")
    eventually(lambda: wrong(decide()) == {"replay_not_paused"})
    two.sql("SELECT pg_wal_replay_resume()")
    two.sql("ALTER SYSTEM SET recovery_min_apply_delay = '1min'")
    two.sql("ALTER SYSTEM SET synchronous_standby_names = 'db9'")
    two.sql("SELECT pg_reload_conf()")
    eventually(lambda: wrong(decide()) == {"no_apply_delay", "synchronous"})
    two.sql("ALTER SYSTEM RESET ALL")
    hba = Path(str(two.instance.config_file)).with_name("pg_hba.conf")
    hba.write_text("local all all peer\n", encoding="utf-8")
    two.sql("SELECT pg_reload_conf()")
    eventually(lambda: "way_back_db-one" in wrong(decide()))
    plan = decide(allow="way_back")
    assert "way_back_db-one" not in wrong(plan)


def test_a_primary_that_stopped_prepared(pair: Pair, decide):
    pair.primary.write()
    signal(pair.primary, pair.standby)
    assert decide()["resume"] is None
    pair.primary.stop()
    plan = eventually(lambda: [p for p in [decide()] if p["ok"]])[0]
    assert (plan["resume"], plan["target"], plan["old_primary"]) == ("promote", TWO, ONE)
    assert plan["require_lsn"] == pair.primary.control("Latest checkpoint location")
    plan = decide(mode="forced")
    assert (plan["ok"], plan["mode"], plan["resume"]) == (True, "planned", "promote")
    plan = decide(target=ONE)
    assert (plan["ok"], plan["resume"], plan["target"]) == (True, "back", ONE)


def test_a_primary_that_crashed_prepared(pair: Pair, decide):
    signal(pair.primary, pair.standby)
    pair.primary.crash()
    plan = eventually(lambda: [p for p in [decide()] if p["resume"]])[0]
    assert (plan["ok"], plan["resume"], plan["target"]) == (True, "back", ONE), plan["reason"]


def test_the_standby_that_was_to_take_over_died(pair: Pair, decide):
    """Its machine is gone before it has promoted itself, as far as anybody knows: the old one can be it again."""
    signal(pair.primary, pair.standby)
    plan = decide(target=ONE, gone=(TWO,))
    assert wrong(plan) == {"armed_elsewhere"}, "it streams, so it may be armed"
    pair.standby.stop()
    plan = eventually(lambda: [p for p in [decide(target=ONE, gone=(TWO,))] if p["ok"]])[0]
    assert (plan["resume"], plan["target"]) == ("back", ONE), "a running one, which is left what it is"
    pair.primary.stop()
    assert f"-e mode=forced -e target={ONE} -e confirm_unfenced={TWO}" in decide(gone=(TWO,))["reason"]
    plan = decide(target=ONE, mode="forced", gone=(TWO,))
    assert (plan["ok"], plan["needs_confirm"]) == (False, [TWO])
    plan = decide(target=ONE, mode="forced", gone=(TWO,), confirm_unfenced=TWO)
    assert (plan["ok"], plan["resume"], plan["target"]) == (True, "back", ONE), plan["reason"]
    # Not dead at all: it runs as a primary, and the stopped one is asked whether it sees it.
    pair.standby.start()
    pair.standby.sql("SELECT pg_promote()")
    plan = decide(target=ONE, mode="forced", gone=(TWO,), confirm_unfenced=TWO)
    assert (wrong(plan), plan["resume"]) == ({"unseen_by_peers"}, None)


def test_a_primary_that_was_restarted_prepared(pair: Pair, decide):
    """Both are standbys: the target has every record, or the other one is named."""
    pair.primary.write("kept")
    eventually(pair.in_step)
    signal(pair.primary, pair.standby)
    pair.primary.stop()
    pair.primary.start()
    plan = eventually(lambda: [p for p in [decide()] if p["ok"]])[0]
    assert (plan["resume"], plan["target"], plan["old_primary"], plan["followers"]) == ("promote", TWO, None, [ONE])
    asked = f"SELECT pg_last_wal_replay_lsn() > '{plan['require_lsn']}'"
    assert pair.standby.sql(asked) == "t", "what the promotion wants is what the target has"
    pair.standby.sql("SELECT pg_promote()")
    plan = eventually(lambda: [p for p in [decide()] if p["ok"]])[0]
    assert (plan["resume"], plan["target"]) == ("finish", TWO)
    assert pair.standby.notes()[-1] == "kept"


def test_a_primary_that_lives_is_not_forced_away_by_one_who_cannot_reach_it(pair: Pair, decide):
    plan = decide(mode="forced", gone=(ONE,), confirm_unfenced=ONE)
    assert wrong(plan) == {"unseen_by_peers", "sender_silent"}
    pair.primary.freeze()
    try:
        plan = decide(mode="forced", gone=(ONE,), confirm_unfenced=ONE)
        assert plan["ok"], plan["reason"]
        plan = decide(mode="forced", gone=(ONE,))
        assert (plan["ok"], plan["needs_confirm"], plan["stonith"]) == (False, [ONE], [ONE])
        plan = decide(mode="forced")
        assert (plan["ok"], plan["fence"]) == (True, [ONE]), "one that can be reached is fenced"
    finally:
        pair.primary.thaw()


def test_a_primary_that_crashed(pair: Pair, decide):
    pair.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '\"db-two\"'; SELECT pg_reload_conf()")
    eventually(lambda: pair.primary.sql("SELECT sync_state FROM pg_stat_replication") == "sync")
    pair.primary.write()
    pair.primary.crash()
    assert "mode=forced" in decide()["reason"]
    plan = decide(mode="forced")
    assert plan["ok"], plan["reason"]
    assert (plan["old_primary"], plan["fence"], plan["loss"]["synchronous"]) == (ONE, [ONE], True)
    gone = decide(mode="forced", gone=(ONE,), confirm_unfenced=ONE)
    assert (gone["ok"], gone["loss"]["bytes"]) == (True, None)
