# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_rebuild: which way a node becomes a standby, and what forbids it, over plain records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import controldata
from ansible_collections.hotspare.postgresql.plugins.module_utils.conninfo import Upstream
from ansible_collections.hotspare.postgresql.plugins.module_utils.rebuild import (
    METHODS,
    NO_DATASET,
    RUNGS,
    Copy,
    Decision,
    Local,
    Position,
    Source,
    Wish,
    choose_method,
    common_point,
    guards,
    ladder,
    position,
    report,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.stale_slots import blocking_slots, stale_slots
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import LSN_END, HistoryEntry
from hypothesis import given
from hypothesis import strategies as st

CONTROL = controldata.parse((Path(__file__).parent / "controldata" / "15-shut-down.txt").read_text())
CLUSTER = CONTROL.system_identifier
FORK = 0x3000100
SLOT = {"type": "physical", "active": False, "active_pid": None, "restart_lsn": "0/3000000", "wal_status": "reserved"}


def history(*forks):
    return [HistoryEntry(number, lsn, "") for number, lsn in enumerate(forks, 1)]


def old_primary(lsn=FORK - 0x78, **more):
    """A primary on timeline 1 whose shutdown checkpoint starts at `lsn`."""
    return Local(
        **{
            "name": "db1",
            "role": "stopped",
            "data": "cluster",
            "major_version": 15,
            "program_version": 15,
            "control": CONTROL,
            "position": Position("primary", 1, lsn),
            "history": [],
            "clients": 0,
            "senders": 0,
            "real_directory": "/data",
            "config_file": "/etc/db1/postgresql.conf",
            "free_bytes": 10**12,
            **more,
        }
    )


def standby(lsn=FORK, timeline=1, replayed=None, **more):
    here = Position("standby", timeline, lsn, lsn if replayed is None else replayed)
    return old_primary(**{"position": here, "role": "standby", **more})


def new_primary(**more):
    """A primary that was promoted to timeline 2 at FORK."""
    return Source(
        **{
            "where": "db2:5432",
            "in_recovery": False,
            "system_identifier": CLUSTER,
            "timeline": 2,
            "history": history(FORK),
            "flush_lsn": FORK + 0x1000,
            "checkpoint_timeline": 2,
            "major_version": 15,
            "full_page_writes": True,
            "may_rewind": True,
            "slot": SLOT,
            "size_bytes": 10**9,
            "wal_bytes": 10**9,
            **more,
        }
    )


WISH = Wish(slot="hotspare_db1", confirm="db1", system_identifier=CLUSTER)
PLAIN = replace(CONTROL, data_checksums=0, wal_log_hints=False)


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "changes", "known", "expected"),
    [
        ("shut down", {}, {}, Position("primary", 1, 0x500)),
        ("shut down in recovery", {"min_recovery_lsn": 0x900}, {}, Position("standby", 1, 0x900, 0x900)),
        ("shut down in recovery", {"min_recovery_lsn": 0}, {}, Position("standby", 1, 0x500, 0x500)),
        ("in archive recovery", {"min_recovery_lsn": 0x900}, {"held": 0xA00}, Position("standby", 1, 0xA00, 0x900)),
        (
            "shut down in recovery",
            {"min_recovery_lsn": 0x900, "min_recovery_timeline": 3},
            {"held": 0x100},
            Position("standby", 3, 0x900, 0x900),
        ),
        ("in production", {}, {}, Position("unknown", 1)),
        ("in crash recovery", {}, {}, Position("unknown", 1)),
        ("shutting down", {}, {}, Position("unknown", 1)),
        ("starting up", {}, {}, Position("unknown", 1)),
        # A standby that crashed in the moment of its promotion: the later timeline counts.
        ("in production", {"min_recovery_timeline": 2}, {}, Position("unknown", 2)),
    ],
)
def test_position(state, changes, known, expected):
    plain = {"timeline": 1, "checkpoint_lsn": 0x500, "min_recovery_lsn": 0, "min_recovery_timeline": 0}
    assert position(replace(CONTROL, state=state, **{**plain, **changes}), **known) == expected


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (([], 1), ([(1, 50)], 2), (1, 50)),
        (([(1, 70)], 2), ([], 1), (1, 70)),
        # Both were promoted from timeline 1, one of them twice.
        (([(1, 70)], 2), ([(1, 50)], 3), (1, 50)),
        (([(1, 50)], 2), ([(1, 50), (2, 90)], 3), (2, 90)),
        (([(1, 50)], 2), ([(1, 50)], 2), (2, LSN_END)),
        (([], 1), ([], 1), (1, LSN_END)),
        (([], 2), ([(1, 50)], 3), None),
    ],
)
def test_common_point(mine, theirs, expected):
    sides = [([HistoryEntry(t, lsn, "") for t, lsn in entries], timeline) for entries, timeline in (mine, theirs)]
    assert common_point(*sides[0], *sides[1]) == expected
    assert common_point(*sides[1], *sides[0]) == expected


# --- the method ------------------------------------------------------------------------------------------------------


# A primary on timeline 6, whose history parts from that of a node on timeline 3 at 0/400.
AT_6 = {"timeline": 6, "history": history(FORK, 0x500)}


def chosen(local, source, wanted="auto"):
    return choose_method(local, source, wanted).method


@pytest.mark.parametrize(
    ("local", "changes", "method", "why"),
    [
        # A former primary: its position is where its last record STARTS.
        (old_primary(FORK - 0x78), {}, "follow", "nothing diverged"),
        (old_primary(FORK - 1), {}, "follow", "nothing diverged"),
        (old_primary(FORK), {}, "rewind", "left it at 0/3000100"),
        (old_primary(FORK + 0x1000), {}, "rewind", "left it at 0/3000100"),
        # A standby: its position is the END of what it has.
        (standby(FORK), {}, "follow", "nothing diverged"),
        (standby(FORK + 1), {}, "rewind", "left it"),
        (standby(FORK + 0x100, replayed=FORK), {}, "basebackup", "not replayed yet"),
        # A crashed primary: nobody knows.
        (old_primary(position=Position("unknown", 1)), {}, "rewind", "crashed"),
        # One timeline.
        (standby(0x900, timeline=2), {"flush_lsn": 0x900}, "follow", "which the primary has too"),
        (standby(0x901, timeline=2), {"flush_lsn": 0x900}, "refuse", "1 bytes more than the primary"),
        (old_primary(0x500, position=Position("primary", 2, 0x500)), {}, "refuse", "no LSN can tell"),
        (old_primary(position=Position("unknown", 2)), {}, "refuse", "no LSN can tell"),
        # The node's timeline is no ancestor of the primary's.
        (standby(0x900, timeline=3, history=history(FORK, 0x400)), AT_6, "rewind", "left it at 0/400"),
        (standby(0x900, timeline=5, history=None), AT_6, "basebackup", "history of timeline 5 is missing"),
        (standby(0x900, timeline=5, history=[HistoryEntry(4, 5, "")]), AT_6, "basebackup", "no common ancestor"),
        # The node was promoted after the primary.
        (standby(0x900, timeline=3, history=history(FORK, 0x400)), {}, "refuse", "probably the one to keep"),
        (old_primary(position=Position("unknown", 3)), {}, "refuse", "probably the one to keep"),
        # It would follow a timeline that the primary knows nothing of.
        (standby(FORK, newest_timeline=7), {}, "basebackup", "history of timeline 7"),
        (standby(FORK, newest_timeline=2), {}, "follow", ""),
        # WAL that is gone.
        (standby(FORK), {"oldest_wal": FORK + 1}, "basebackup", "needs WAL from 0/3000100"),
        (standby(FORK, restore_command=True), {"oldest_wal": FORK + 1}, "follow", ""),
        (standby(FORK), {"oldest_wal": FORK}, "follow", ""),
        # pg_rewind is not possible.
        (old_primary(FORK, control=PLAIN), {}, "basebackup", "neither data checksums nor wal_log_hints"),
        (old_primary(FORK, control=replace(PLAIN, wal_log_hints=True)), {}, "rewind", ""),
        (old_primary(FORK, control=replace(PLAIN, data_checksums=1)), {}, "rewind", ""),
        (old_primary(FORK, control=replace(CONTROL, full_page_writes=False)), {}, "basebackup", "full_page_writes"),
        (old_primary(FORK), {"full_page_writes": False}, "basebackup", "full_page_writes is off on the primary"),
        (old_primary(FORK), {"full_page_writes": None}, "basebackup", "full_page_writes"),
        (old_primary(FORK), {"may_rewind": False}, "basebackup", "may not execute"),
        (old_primary(FORK), {"may_rewind": None}, "basebackup", "may not execute"),
        # A rewound node would replay what the primary wrote since the fork.
        (old_primary(FORK), {"oldest_wal": FORK}, "rewind", ""),
        (old_primary(FORK), {"oldest_wal": FORK + 1}, "basebackup", "need the primary's WAL from 0/3000100 on"),
        (old_primary(FORK, restore_command=True), {"oldest_wal": FORK + 1}, "rewind", ""),
        # Nothing there, or only what a dead run left.
        (old_primary(data="absent", position=None), {}, "basebackup", "there is no data"),
        (old_primary(data="empty", position=None), {}, "basebackup", "there is no data"),
        (old_primary(data="absent", position=None, rewinding=True), {}, "basebackup", "interrupted pg_rewind"),
        (old_primary(FORK, seed="complete"), {}, "basebackup", "is complete"),
        (old_primary(FORK, seed="placed"), {}, "follow", "in place"),
        (old_primary(FORK, seed="half"), {}, "rewind", ""),
        (old_primary(FORK, seed="placed", backup_label=True), {}, "follow", "in place"),
        (old_primary(FORK, backup_label=True), {}, "basebackup", "never recovered"),
        # Not known.
        (old_primary(position=None), {}, "refuse", "not known"),
        (old_primary(), {"timeline": None}, "refuse", "not known"),
        (old_primary(), {"history": None}, "refuse", "not known"),
        (standby(), {"flush_lsn": None}, "refuse", "not known"),
        (standby(following=True), {}, "none", "already"),
    ],
)
def test_choose_method(local, changes, method, why):
    source = new_primary(**changes)
    decision = choose_method(local, source)
    assert decision.method == method, decision
    assert why in decision.reason
    # A method that is asked for is taken where it is right, and a base backup always is.
    assert chosen(local, source, "basebackup") == ("none" if local.following else "basebackup")
    assert chosen(local, source, "copy") == ("none" if local.following else "basebackup")
    by_zfs = replace(local, copy=SENT)
    assert chosen(by_zfs, source, "copy") == (
        "none" if local.following else "basebackup" if local.seed == "complete" else "zfs"
    )
    for asked in ("follow", "rewind"):
        assert chosen(local, source, asked) == ("none" if local.following else asked if asked == method else "refuse")

    for asked in METHODS:
        decision = choose_method(local, source, asked)
        rungs = ladder(decision)
        assert tuple(rung["method"] for rung in rungs) == RUNGS
        assert [rung["method"] for rung in rungs if rung["chosen"]] == [m for m in RUNGS if m == decision.method]
        assert all(rung["reason"] for rung in rungs)


def test_each_rung_has_its_own_reason():
    def reasons(local, changes, wanted="auto"):
        return [rung["reason"] for rung in ladder(choose_method(local, new_primary(**changes), wanted))]

    follow, rewind, zfs, copy = reasons(old_primary(FORK), {})
    assert follow == f"not possible: {rewind}" and zfs == copy == "not needed: rewind is right"
    follow, rewind, zfs, copy = reasons(old_primary(FORK), {"may_rewind": False})
    assert "left it at 0/3000100" in follow and rewind.startswith("not possible: the replication account")
    assert zfs == "not possible: no ZFS dataset is named for it"
    follow, rewind, zfs, copy = reasons(standby(FORK), {"oldest_wal": FORK + 1})
    assert "needs WAL from" in follow and "nothing diverged" in rewind
    follow, rewind, zfs, copy = reasons(old_primary(), {}, "basebackup")
    assert follow.startswith("possible, but not asked for") and rewind == "not needed: nothing diverged"
    assert len(set(reasons(standby(following=True), {}))) == 1
    follow, rewind, zfs, copy = reasons(old_primary(FORK, copy=SENT), {"may_rewind": False})
    assert rewind.startswith("not possible: the replication") and zfs.endswith(
        "pg_read_binary_file on the primary; sent"
    )
    assert copy == "not needed: zfs is right"


SENT = Copy(None, "sent", "incremental", 4096)


@pytest.mark.parametrize(
    ("local", "wanted", "method"),
    [
        (old_primary(FORK, control=PLAIN, copy=SENT), "auto", "zfs"),
        (old_primary(FORK, control=PLAIN), "auto", "basebackup"),
        (old_primary(FORK, control=PLAIN, copy=SENT), "basebackup", "basebackup"),
        (old_primary(FORK, copy=SENT), "zfs", "zfs"),
        (old_primary(FORK, copy=SENT), "rewind", "rewind"),
        (old_primary(copy=SENT), "zfs", "zfs"),
        (old_primary(FORK), "zfs", "refuse"),
        (old_primary(FORK, control=PLAIN, copy=SENT, seed="complete"), "auto", "basebackup"),
        (old_primary(FORK, data="absent", role="absent", position=None, copy=SENT), "auto", "zfs"),
        (standby(following=True, copy=SENT), "zfs", "none"),
    ],
)
def test_a_snapshot_comes_before_a_base_backup(local, wanted, method):
    decision = choose_method(local, new_primary(), wanted)
    assert decision.method == method
    rungs = ladder(decision)
    assert all(rung["reason"] for rung in rungs)
    assert [rung["method"] for rung in rungs if rung["chosen"]] == ([method] if method in RUNGS else [])


@pytest.mark.parametrize(
    ("oldest", "node", "sent", "method"),
    [
        (FORK - 4096, FORK, 4096 + 8192, "rewind"),  # as much: the rung before
        (FORK - 4096, FORK, 4096 + 8191, "zfs"),
        (FORK - 4096, FORK + 1000, 4096 + 8192, "zfs"),  # what the node wrote has to be taken back, too
        (None, FORK, 8192, "rewind"),
        (None, FORK, 8191, "zfs"),
        (None, FORK, None, "rewind"),
    ],
)
def test_a_snapshot_comes_before_a_rewind_that_copies_more(oldest, node, sent, method):
    local = old_primary(node, copy=Copy(None, "what changed is sent", "incremental", sent))
    decision = choose_method(local, new_primary(oldest_wal=oldest, flush_lsn=FORK + 8192))
    assert decision.method == method
    if method == "zfs":
        assert decision.skipped["rewind"].startswith("possible, but it copies")
        assert decision.reason.endswith("; what changed is sent")
    elif sent:
        assert "a rewind copies" in decision.reason
    assert all(rung["reason"] for rung in ladder(decision))


def test_a_data_directory_that_is_a_mount_point_can_be_a_copy_of_a_snapshot():
    for method, ok in (("zfs", True), ("basebackup", False)):
        local = old_primary(FORK, mount_point=True, copy=SENT)
        checks = guards(local, new_primary(), WISH, choose_method(local, new_primary(), method))
        assert {check["name"]: check["ok"] for check in checks}["directory"] is ok


def test_a_mount_point_is_not_rewound_where_zfs_is_possible():
    """Its directory could not be kept, however much ZFS sends."""
    local = old_primary(FORK, copy=Copy(None, "all is sent", "full", 1 << 50), mount_point=True)
    decision = choose_method(local, new_primary())
    assert decision.method == "zfs"
    assert "is a mount point" in decision.skipped["rewind"]
    assert [check for check in guards(local, new_primary(), WISH, decision) if check["hard"] and not check["ok"]] == []
    decision = choose_method(replace(local, copy=Copy("no pool")), new_primary())
    assert decision.method == "rewind"


def test_what_a_run_that_died_has_set_aside_is_not_rewound():
    local = old_primary(FORK, copy=Copy(None, "all is sent", "full", 1 << 50, begun=True))
    decision = choose_method(local, new_primary())
    assert (decision.method, "set aside by a run that died" in decision.skipped["rewind"]) == ("zfs", True)


@pytest.mark.parametrize("local", [old_primary(), old_primary(FORK)], ids=["follow", "rewind"])
@pytest.mark.parametrize(("copy", "wanted", "method"), [
    (NO_DATASET, "auto", "refuse"),  # the primary was not asked
    (Copy("db1 cannot be reached"), "auto", "refuse"),
    (SENT, "zfs", "zfs"),
    (SENT, "copy", "zfs"),
])  # fmt: skip
def test_a_server_does_not_go_on_in_what_a_run_that_died_has_set_aside(local, copy, wanted, method):
    decision = choose_method(replace(local, set_aside="tank/pg-aside-T/data", copy=copy), new_primary(), wanted)
    assert decision.method == method
    if method == "refuse":
        assert "mounted from tank/pg-aside-T/data, which a rebuild that died had set aside" in decision.reason


@pytest.mark.parametrize(
    ("torn", "wanted", "method"),
    [
        (True, "auto", "refuse"),
        (False, "auto", "basebackup"),
        (True, "basebackup", "basebackup"),
        (True, "copy", "refuse"),
        (False, "copy", "basebackup"),
    ],
)
def test_what_belongs_on_zfs_is_put_nowhere_else_unless_somebody_says_so(torn, wanted, method):
    new = old_primary(FORK, data="absent", role="absent", position=None, torn_pages=torn)
    decision = choose_method(replace(new, copy=Copy("db1 cannot be reached")), new_primary(), wanted)
    assert decision.method == method
    assert method != "refuse" or "(db1 cannot be reached), and a base backup would not lie on ZFS" in decision.reason
    assert choose_method(new, new_primary(), wanted).method == "basebackup", "no dataset is named"


@pytest.mark.parametrize(
    ("sent", "more", "wanted", "method"),
    [
        (Copy(None, "sent", "incremental", 2 * 10**9), {}, "auto", "zfs"),  # as much as a base backup at most
        (Copy(None, "sent", "incremental", 2 * 10**9 + 1), {}, "auto", "basebackup"),
        (Copy(None, "sent", "incremental", 2 * 10**9 + 1), {}, "zfs", "zfs"),
        (Copy(None, "sent", "incremental", 2 * 10**9 + 1), {}, "copy", "zfs"),
        (Copy(None, "sent", "full", 2 * 10**9 + 1), {}, "auto", "zfs"),  # the next one is an increment then
        (Copy(None, "sent", "incremental", None), {}, "auto", "zfs"),
        *(
            (Copy(None, "sent", "incremental", 1 << 50), more, "auto", "zfs")
            for more in (
                {"mount_point": True},
                {"wal_elsewhere": True},
                {"occupied": ["/srv/space"]},
                {"torn_pages": True},
            )
        ),
    ],
)
def test_what_changed_is_not_sent_where_a_base_backup_is_less(sent, more, wanted, method):
    local = old_primary(FORK, control=PLAIN, copy=sent, **{"torn_pages": False, **more})
    decision = choose_method(local, new_primary(), wanted)
    assert decision.method == method
    if method == "basebackup":
        assert "a base backup copies" in ladder(decision)[2]["reason"]


def test_without_full_page_writes_only_zfs_will_do():
    for torn in (True, False):
        local, source = old_primary(FORK, torn_pages=torn), new_primary(full_page_writes=False)
        checks = {check["name"]: check for check in guards(local, source, WISH, choose_method(local, source))}
        assert checks["torn_pages"]["ok"] is not torn and checks["torn_pages"]["hard"]
        by_zfs = guards(local, source, WISH, Decision("zfs", "a snapshot of the primary is sent"))
        assert "torn_pages" not in {check["name"] for check in by_zfs}, "it brings its file system along"


LSNS = st.integers(1, 1 << 40)
KINDS = st.sampled_from(["primary", "standby", "unknown"])


@given(KINDS, LSNS, LSNS, st.integers(1, 4), st.integers(1, 4), st.lists(LSNS, min_size=3, max_size=3), st.data())
def test_never_follows_what_diverged(kind, lsn, flushed, here, there, forks, data):
    """Whatever is followed has nothing that the primary's history lacks."""
    forks = sorted(forks)
    mine = Position(kind, here, None if kind == "unknown" else lsn, lsn if kind == "standby" else None)
    local = old_primary(position=mine, history=history(*forks[: here - 1]))
    source = new_primary(timeline=there, history=history(*forks[: there - 1]), flush_lsn=flushed)
    asked = data.draw(st.sampled_from(METHODS))
    decision = choose_method(local, source, asked)
    if decision.method == "follow":
        shared = flushed if here == there else forks[here - 1]
        assert here <= there
        assert kind != "unknown"
        assert lsn + (kind == "primary") <= shared
        assert not (kind == "primary" and here == there)
    if decision.method == "rewind":
        assert here != there


@given(st.data())
def test_what_is_not_known_is_never_touched_silently(data):
    """Take away one fact: the decision becomes more careful, or a guard fails, but nothing is followed on a guess."""
    local, source = standby(FORK, role="stopped"), new_primary()
    field = data.draw(st.sampled_from(["timeline", "history", "flush_lsn", "system_identifier", "in_recovery", "slot"]))
    blind = replace(source, **{field: None})
    decision = choose_method(local, blind)
    assert decision.method == "refuse" or failed(local, blind, WISH)


# --- the guards ------------------------------------------------------------------------------------------------------


def failed(local, source, wish=WISH):
    return {
        check["name"]
        for check in guards(local, source, wish, choose_method(local, source, wish.method))
        if check["hard"] and not check["ok"]
    }


@pytest.mark.parametrize(
    "local", [old_primary(), old_primary(FORK), standby(), old_primary(data="absent", role="absent")]
)
def test_guards_let_pass(local):
    local = replace(local, position=None if local.data == "absent" else local.position)
    assert failed(local, new_primary()) == set()


@pytest.mark.parametrize(
    ("local", "changes", "wish", "expected"),
    [
        (old_primary(), {"error": "cannot connect"}, {}, {"source_answers"}),
        (old_primary(), {"in_recovery": True}, {}, {"source_primary"}),
        (old_primary(), {"in_recovery": None}, {}, {"source_primary"}),
        (old_primary(), {"is_this_node": True}, {}, {"source_other"}),
        (old_primary(), {"addresses": ["192.0.2.1", "192.0.2.2"]}, {}, {"source_direct"}),
        (old_primary(calls_itself="db3", uses_slot="hotspare_db3"), {}, {}, {"identity"}),
        (old_primary(calls_itself="db3", uses_slot="hotspare_db1"), {}, {}, set()),
        (old_primary(calls_itself="db1", uses_slot="hotspare_other"), {}, {}, set()),
        (old_primary(calls_itself=None, uses_slot="hotspare_other"), {}, {}, set()),
        (old_primary(calls_itself="db3", uses_slot="hotspare_db3"), {}, {"application_name": "db3"}, set()),
        (old_primary(), {"system_identifier": "1"}, {}, {"system_identifier"}),
        (old_primary(), {"system_identifier": None}, {}, {"system_identifier"}),
        (old_primary(), {}, {"system_identifier": "1"}, {"system_identifier"}),
        (old_primary(), {"major_version": 16}, {}, {"major_version"}),
        (old_primary(), {"major_version": None}, {}, {"major_version"}),
        (old_primary(program_version=None), {}, {}, {"major_version"}),
        (old_primary(program_version=16), {}, {}, {"major_version"}),
        (old_primary(major_version=14), {}, {}, {"major_version"}),
        (old_primary(role="primary"), {}, {}, {"node_not_primary"}),
        (old_primary(role="unknown"), {}, {}, {"node_known"}),
        (old_primary(data="foreign"), {}, {}, {"node_known"}),
        (old_primary(data=None), {}, {}, {"node_known"}),
        (old_primary(processes=[17, 18]), {}, {}, {"processes"}),
        (standby(clients=1), {}, {}, {"clients"}),
        (standby(clients=None), {}, {}, {"clients"}),
        (standby(senders=2), {}, {}, {"senders"}),
        (standby(senders=None), {}, {}, {"senders"}),
        (standby(clients=None, senders=None, configured=True), {}, {"confirm": None}, set()),
        (standby(clients=3, following=True), {}, {"confirm": None}, set()),
        (old_primary(), {}, {"confirm": None}, {"confirm"}),
        (old_primary(), {}, {"confirm": "db2"}, {"confirm"}),
        (old_primary(seed="placed"), {}, {"confirm": None}, set()),
        (standby(role="stopped", seed="started"), {}, {"confirm": None}, set()),
        (old_primary(FORK, seed="started"), {}, {"confirm": None}, {"confirm"}),
        (old_primary(config_exists=False), {}, {}, {"configuration"}),
        (old_primary(), {"slot": None}, {}, {"slot"}),
        (old_primary(), {"slot": {**SLOT, "type": "logical"}}, {}, {"slot"}),
        (old_primary(), {"slot": {**SLOT, "wal_status": "lost"}}, {}, {"slot"}),
        (old_primary(), {"slot": {**SLOT, "active": True, "active_pid": 7}}, {}, {"slot"}),
        (standby(), {"slot": {**SLOT, "active": True, "active_pid": 7}}, {}, {"slot"}),
        (standby(receiving_slot="hotspare_db1"), {"slot": {**SLOT, "active": True, "active_pid": 7}}, {}, set()),
        (old_primary(leftovers=[9]), {"slot": {**SLOT, "active": True, "active_pid": 7}}, {}, set()),
        (old_primary(), {"slot": {**SLOT, "restart_lsn": None}}, {}, set()),
        (old_primary(), {"slot": {**SLOT, "restart_lsn": None}}, {"method": "basebackup"}, {"slot"}),
        (old_primary(FORK), {"checkpoint_timeline": 1}, {}, {"source_checkpoint"}),
        (old_primary(FORK), {"checkpoint_timeline": None}, {}, {"source_checkpoint"}),
        (old_primary(), {"checkpoint_timeline": 1}, {}, set()),
        (old_primary(mount_point=True), {}, {}, set()),
        (old_primary(FORK, mount_point=True), {}, {}, {"directory"}),
        (old_primary(mount_point=True), {}, {"method": "basebackup"}, {"directory"}),
        (old_primary(FORK, config_file="/data/postgresql.conf"), {}, {}, {"directory"}),
        (old_primary(FORK, config_file="/data2/postgresql.conf"), {}, {}, set()),
        (old_primary(seed="foreign"), {}, {"method": "basebackup"}, {"directory"}),
        (old_primary(wal_elsewhere=True), {}, {}, set()),
        (old_primary(wal_elsewhere=True), {}, {"method": "basebackup"}, {"wal_directory"}),
        (old_primary(occupied=["/space"]), {}, {"method": "basebackup"}, {"tablespaces"}),
        (old_primary(free_bytes=2 * 10**9), {}, {"method": "basebackup"}, set()),
        (old_primary(free_bytes=2 * 10**9 - 1), {}, {"method": "basebackup"}, {"space"}),
        (old_primary(free_bytes=None), {}, {"method": "basebackup"}, {"space"}),
        (old_primary(), {"size_bytes": None}, {"method": "basebackup"}, {"space"}),
        (old_primary(free_bytes=0, seed="complete"), {}, {}, set()),
        (standby(FORK, timeline=2, role="stopped"), {"flush_lsn": 5}, {}, {"method"}),
        (old_primary(), {}, {"method": "rewind"}, {"method"}),
        # All at once.
        (
            standby(FORK + 1, clients=4, senders=1, processes=[3], config_exists=False),
            {"in_recovery": True, "slot": None, "checkpoint_timeline": 1},
            {"confirm": "db3"},
            {
                "source_primary",
                "processes",
                "clients",
                "senders",
                "confirm",
                "configuration",
                "slot",
                "source_checkpoint",
            },
        ),
    ],
)
def test_guards(local, changes, wish, expected):
    source, wish = new_primary(**changes), replace(WISH, **wish)
    assert failed(local, source, wish) == expected
    for check in guards(local, source, wish, choose_method(local, source, wish.method)):
        assert check["detail"] and "None" not in check["detail"], check


@given(
    st.sampled_from(["primary", "unknown"]),
    st.sampled_from(["absent", "empty", "cluster", "foreign", None]),
    st.sampled_from(METHODS),
    st.booleans(),
    st.sampled_from([None, "half", "complete", "placed", "started"]),
)
def test_a_primary_and_an_unknown_node_are_never_touched(role, data, method, configured, seed):
    local = old_primary(role=role, data=data, configured=configured, seed=seed)
    assert failed(local, new_primary(), replace(WISH, method=method))


def test_a_backup_is_asked_for_and_not_insisted_on():
    for waived in (False, True):
        wish = replace(WISH, waive_backup=waived)
        (check,) = [c for c in guards(old_primary(), new_primary(), wish, choose_method(old_primary(), new_primary()))
                    if c["name"] == "backup"]  # fmt: skip
        assert (check["ok"], check["hard"]) == (waived, False)


def test_report_names_both_servers():
    assert report(old_primary(FORK), new_primary()) == [
        "db1: stopped, data cluster in /data, timeline 1 up to 0/3000100, 1000000 MB free beside it",
        f"db2:5432: primary, system {CLUSTER}, timeline 2 up to 0/3001100, 1000 MB in its databases",
    ]
    blind = report(old_primary(position=None, free_bytes=None), new_primary(error="cannot connect"))
    assert blind == [
        "db1: stopped, data cluster in /data, an unknown size free beside it",
        "db2:5432: cannot connect",
    ]


# --- slots of a former primary ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"ours": True, "type": "physical"}, True),
        ({"ours": True, "type": "physical", "active": True}, False),
        ({"type": "physical"}, False),
        ({"failover": True, "synced": False}, True),
        ({"failover": True, "synced": False, "active": True}, False),
        ({"failover": True, "synced": True}, False),
        ({"failover": False, "synced": False}, False),
        ({"failover": None, "synced": None}, False),
        ({"failover": True, "synced": False, "name": "another"}, False),
    ],
)
def test_stale_slots(changes, stale):
    slot = {"name": "app", "type": "logical", "ours": False, "active": False, "database": "shop", **changes}
    expected = [{"name": slot["name"], "database": "shop"}] if stale else []
    assert stale_slots([slot], ["app"]) == expected
    assert stale_slots(None, ["app"]) == []


def test_nobody_is_asked_about_slots_that_cannot_block():
    slots = [
        {"name": "app", "type": "logical", "ours": False, "active": False, "database": "shop", "failover": failover,
         "synced": synced}
        for failover, synced in ((True, True), (False, False), (None, None))
    ]  # fmt: skip
    assert blocking_slots(slots, Upstream("nowhere.invalid"), "nobody") == []
