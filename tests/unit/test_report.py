# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cutover tells at its end."""

from __future__ import annotations

from typing import Any

from ansible_collections.hotspare.postgresql.plugins.module_utils.report import cutover_timeline

PROOF = "rmgr: XLOG  len: 114, lsn: 0/03000060, desc: CHECKPOINT_SHUTDOWN redo 0/3000060; tli 1; prev tli 1; fpw true"
SHUTDOWN = {
    "clean": True,
    "checkpoint_lsn": "0/3000060",
    "timeline": 1,
    "seconds": 0.06,
    "requested_at": 1795183200.0,
    "ended_at": 1795183200.06,
    "checkpoints": [0.25, 0.05],
}
ARMED = {"state": "promoted", "phases": {"replayed": 0.001, "proved": 0.006, "promoted": 0.041}, "proof": PROOF}
PROMOTED = {"switch_lsn": "0/30000D8", "new_timeline": 2, "seconds": 0.035, "armed": ARMED, "kept_for_archive": []}


def plan(**changes: Any) -> dict[str, Any]:
    made = {"mode": "planned", "target": "db2", "old_primary": "db1", "resume": None, "needs_rebuild": [], "loss": None}
    return {**made, "reason": "db1 hands over to db2", **changes}


def told(plan: dict[str, Any], archiver: dict[str, Any] | None = None, **results: Any) -> list[str]:
    nodes = {"db2": {"archiver": archiver or {"mode": "off"}}}
    return cutover_timeline({"plan": plan, "seconds": 7.12, "nodes": nodes, "results": results})


def test_a_planned_cutover() -> None:
    assert told(plan(), stopped={"shutdown": SHUTDOWN}, promoted=PROMOTED) == [
        "db2 took over from db1, planned; the whole run took 7.1 s",
        "   0.300 s  2 more checkpoint(s) on db1",
        "   0.060 s  db1 stopped, timeline 1, last record at 0/3000060",
        "   0.001 s  db2 replayed what it had received",
        "   0.005 s  db2 read the proof in its WAL",
        "   0.035 s  db2 is primary on timeline 2, parted at 0/30000D8",
        "clients could not write for 0.101 s at most",
        "rows lost: 0, db2 held the record with which db1 shut down before it was promoted: lsn: 0/03000060, "
        "desc: CHECKPOINT_SHUTDOWN redo 0/3000060; tli 1",
    ]


def test_one_that_was_continued_knows_no_time_of_the_stop() -> None:
    lines = told(plan(resume="promote"), stopped={"shutdown": {**SHUTDOWN, "requested_at": None}}, promoted=PROMOTED)
    assert not any("stopped, timeline" in line for line in lines)
    assert any(
        "the stop of db1, which an earlier run began, until 0.041 s after its last record" in line for line in lines
    )
    ordinary = told(plan(resume="promote"), promoted={**PROMOTED, "armed": None})
    assert any("an earlier run stopped it" in line for line in ordinary)
    refused = {**PROMOTED, "armed": {**ARMED, "state": "refused"}}
    assert "   0.035 s  db2 is primary on timeline 2, parted at 0/30000D8" in told(plan(), promoted=refused)
    assert told(plan(), promoted=refused)[-1].endswith("shut down before it was promoted")


def test_a_forced_one_says_what_may_be_lost_and_who_is_left() -> None:
    forced = plan(mode="forced", loss={"bytes": None, "detail": "how much is lost is unknown"})
    fence = {"verified": True, "steps": [{"name": "kill", "seconds": 0.2, "detail": "3 processes"}]}
    promoted = {**PROMOTED, "armed": None, "kept_for_archive": ["000000010000000000000002", "000000010000000000000003"]}
    assert told(forced, fenced={"db1": {"fence": fence}, "db3": {"rc": 0}}, promoted=promoted) == [
        "db2 took over from db1, by force; the whole run took 7.1 s",
        "   0.200 s  db1 fenced, kill: 3 processes",
        "            db3 cut off by the fence command",
        "   0.035 s  db2 is primary on timeline 2, parted at 0/30000D8",
        "rows lost: how much is lost is unknown",
        "kept for the archive: 000000010000000000000002 and 000000010000000000000003",
        "db1 is no standby yet: run rebuild_standby.yml -e node=db1 -e confirm=db1",
    ]


def test_one_that_promoted_itself_after_its_run_had_died() -> None:
    finished = plan(resume="finish", reason="db2 is the primary already", collect=True)
    lines = told(finished, stopped={"shutdown": {**SHUTDOWN, "requested_at": None}}, promoted=PROMOTED)
    assert lines[0].startswith("db2 took over from db1, planned")
    assert lines[-1].startswith("rows lost: 0, db2 held the record with which db1 shut down")
    started = told(finished, {"mode": "on", "ready": 0}, promoted=PROMOTED)
    assert "what the old primary had not archived when it stopped is not known" in started[-2]


def test_one_that_is_the_primary_again_is_not_to_be_rebuilt() -> None:
    back = plan(mode="forced", resume="back", target="db1", reason="db1 is the primary again", needs_rebuild=["db1"])
    assert told(back) == ["db1 is the primary again; the whole run took 7.1 s"]


def test_nothing_was_promoted() -> None:
    finished = plan(resume="finish", reason="db2 is the primary already", needs_rebuild=["db3"])
    assert told(finished) == [
        "db2 is the primary already; the whole run took 7.1 s",
        "db3 is no standby yet: run rebuild_standby.yml -e node=db3 -e confirm=db3",
    ]


def test_commits_that_waited_for_nobody() -> None:
    assert "commits waited for no standby for 2.1 s, until one streamed again" in told(plan(), relaxed=2.12)


def test_whether_the_history_is_in_the_archive() -> None:
    def archive(**archiver: Any) -> str:
        return told(plan(), {"mode": "on", **archiver}, promoted=PROMOTED)[-1]

    assert archive(ready=0, last_archived_wal="00000001000000000000000A") == "db2 archived 00000002.history"
    assert archive(ready=3, last_archived_wal="00000002.history") == "db2 archived 00000002.history"
    assert "3 file(s) to archive, 00000002.history may be among them" in archive(ready=3, last_archived_wal="0A")
    assert "4 file(s) to archive" in archive(ready=4, last_archived_wal=None), "nothing ever was"
    assert "not known" in archive(ready=None, last_archived_wal=None)
