# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pg_controldata prints, as printed by PostgreSQL 13, 15, 17 and 18 (the files in controldata/ are real)."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import fields
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import controldata, shell

SAMPLES = Path(__file__).parent / "controldata"
ME = pwd.getpwuid(os.geteuid()).pw_name
LABELS = [label for label, _ in controldata._LINES.values()]


def sample(name: str) -> str:
    return (SAMPLES / f"{name}.txt").read_text()


def replaced(label: str, value: str) -> str:
    """The sample of a shut down PostgreSQL 15 with another value on one line."""
    lines = sample("15-shut-down").splitlines(keepends=True)
    changed = [f"{label}: {value}\n" if line.startswith(f"{label}:") else line for line in lines]
    assert changed != lines
    return "".join(changed)


class TestParse:
    def test_everything_of_one_sample(self):
        assert controldata.parse(sample("15-shut-down-in-recovery")) == controldata.ControlData(
            system_identifier="7710202904096633295",
            state="shut down in recovery",
            checkpoint_lsn=0x3027990,
            redo_lsn=0x3027928,
            timeline=1,
            prev_timeline=1,
            min_recovery_lsn=0x3027BA0,
            min_recovery_timeline=1,
            backup_start_lsn=0,
            backup_end_required=False,
            wal_segment_size=16 << 20,
            block_size=8192,
            data_checksums=1,
            wal_log_hints=False,
            full_page_writes=True,
            wal_level="replica",
            max_connections=100,
            max_worker_processes=8,
            max_wal_senders=10,
            max_prepared_transactions=0,
            max_locks_per_transaction=64,
            pg_control_version=1300,
            catalog_version=202209061,
            checkpoint_time="Fri Nov 20 10:45:07 2026",
            next_xid="0:725",
        )

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("13-in-production", {"catalog_version": 202007201, "wal_log_hints": True, "data_checksums": 1}),
            ("15-in-production", {"state": "in production", "timeline": 1}),
            ("15-base-backup", {"state": "in production", "backup_end_required": False}),
            ("15-in-archive-recovery", {"state": "in archive recovery", "min_recovery_timeline": 1}),
            ("15-shut-down", {"state": "shut down", "timeline": 1, "clean_primary_shutdown": True}),
            ("15-promoted", {"state": "shut down", "timeline": 2, "prev_timeline": 2}),
            ("17-shut-down", {"pg_control_version": 1700, "wal_segment_size": 64 << 20, "data_checksums": 0}),
            ("18-in-production", {"pg_control_version": 1800, "wal_log_hints": True, "data_checksums": 1}),
        ],
    )
    def test_every_version_and_state(self, name, expected):
        data = controldata.parse(sample(name))
        assert {attribute: getattr(data, attribute) for attribute in expected} == expected

    def test_no_sample_is_left_out(self):
        for path in SAMPLES.iterdir():
            controldata.parse(path.read_text())

    def test_only_a_clean_end_as_primary_is_a_clean_primary_shutdown(self):
        clean = {state: controldata.parse(replaced("Database cluster state", state)).clean_primary_shutdown
                 for state in controldata.STATES if state != "shut down"}  # fmt: skip
        assert not any(clean.values())
        assert len(clean) == 6

    def test_postgresql_19_pads_its_lsns(self):
        data = controldata.parse(replaced("Latest checkpoint location", "0/03027990"))
        assert data.checkpoint_lsn == 0x3027990

    def test_lines_that_are_new_do_not_matter(self):
        text = "Something of PostgreSQL 27:  yes: really\n" + sample("15-shut-down")
        assert controldata.parse(text) == controldata.parse(sample("15-shut-down"))

    @pytest.mark.parametrize("label", LABELS)
    def test_a_missing_line_is_named(self, label):
        lines = sample("15-shut-down").splitlines(keepends=True)
        rest = [line for line in lines if not line.startswith(f"{label}:")]
        assert len(rest) == len(lines) - 1
        with pytest.raises(ValueError, match=f"no line [\"']{label}[\"']"):
            controldata.parse("".join(rest))

    @pytest.mark.parametrize("label", LABELS)
    def test_a_line_without_a_value_is_named(self, label):
        with pytest.raises(ValueError, match=f"printed '' as [\"']{label}[\"']"):
            controldata.parse(replaced(label, ""))

    @pytest.mark.parametrize(
        ("label", "value"),
        [
            ("Database system identifier", "-7710202911935061663"),
            ("Database cluster state", "unrecognized status code"),
            ("Database cluster state", "heruntergefahren"),
            ("Latest checkpoint location", "0x3027990"),
            ("Latest checkpoint's TimeLineID", "one"),
            ("Latest checkpoint's full_page_writes", "an"),
            ("End-of-backup record required", "maybe"),
            ("wal_level setting", "unrecognized wal_level"),
            ("Bytes per WAL segment", "0"),
            ("Bytes per WAL segment", "16777217"),
            ("max_connections setting", "-1"),
        ],
    )
    def test_a_value_that_cannot_be_is_named_not_guessed(self, label, value):
        with pytest.raises(ValueError, match=f"printed '{value}' as [\"']{label}[\"']"):
            controldata.parse(replaced(label, value))

    def test_every_field_has_its_line(self):
        assert {field.name for field in fields(controldata.ControlData)} == set(controldata._LINES)

    def test_to_dict_is_json_with_lsns_as_text(self):
        data = controldata.parse(sample("15-shut-down-in-recovery"))
        record = data.to_dict()
        assert json.loads(json.dumps(record)) == record
        assert {name: value for name, value in record.items() if name.endswith("_lsn")} == {
            "checkpoint_lsn": "0/3027990",
            "redo_lsn": "0/3027928",
            "min_recovery_lsn": "0/3027BA0",
            "backup_start_lsn": "0/0",
        }
        assert record["system_identifier"] == "7710202904096633295"
        assert set(record) == set(controldata._LINES)


class TestRead:
    """read() against a program that answers as pg_controldata does; the integration tests run the real one."""

    @pytest.fixture
    def program(self, tmp_path):
        """Make a pg_controldata of the shell lines given; returns its directory."""

        def make(*lines: str) -> str:
            path = tmp_path / "pg_controldata"
            path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
            path.chmod(0o755)
            return str(tmp_path)

        return make

    def cat(self, name: str) -> str:
        return f"cat '{SAMPLES / name}.txt'"

    def test_asks_for_that_directory_in_english_and_utc(self, program, tmp_path, monkeypatch):
        monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
        monkeypatch.setenv("PGDATA", "/elsewhere")
        seen = tmp_path / "seen"
        directory = program(f'echo "$*|$LC_ALL|$TZ|$PGDATA" > {seen}', self.cat("17-shut-down"))
        assert controldata.read(directory, "/data dir", ME) == controldata.parse(sample("17-shut-down"))
        assert seen.read_text() == "-D /data dir|C|UTC|\n"

    @pytest.mark.parametrize(
        "warning",
        [
            'echo "pg_controldata: warning: calculated CRC checksum does not match value stored in control file" >&2',
            'echo "WARNING: Calculated CRC checksum does not match value stored in file."',
            'echo "pg_controldata: warning: invalid WAL segment size in control file (0 bytes)" >&2',
        ],
    )
    def test_a_damaged_file_is_refused_although_it_exits_with_0(self, program, warning):
        directory = program(warning, self.cat("15-shut-down"))
        with pytest.raises(shell.HotspareError, match="pg_control of /data cannot be trusted: .*(CRC|segment size)"):
            controldata.read(directory, "/data", ME)

    def test_a_reading_torn_by_a_running_server_is_tried_again(self, program, tmp_path):
        tried = tmp_path / "tried"
        warn = (
            f"[ -e {tried} ] || echo 'pg_controldata: warning: calculated CRC checksum does not match' >&2; : >{tried}"
        )
        directory = program(warn, self.cat("15-in-production"))
        assert controldata.read(directory, "/data", ME).state == "in production"

    def test_what_we_do_not_know_is_an_error_that_says_where(self, program):
        directory = program("echo 'Database cluster state: shut down'")
        with pytest.raises(shell.HotspareError, match="cannot read pg_control of /data: .*Database system identifier"):
            controldata.read(directory, "/data", ME)

    def test_its_failure_is_ours(self, program):
        directory = program("echo 'pg_controldata: error: could not open file' >&2; exit 1")
        with pytest.raises(shell.CommandError, match="pg_controldata failed with exit code 1: .*could not open file"):
            controldata.read(directory, "/data", ME)

    def test_a_missing_program_is_named(self, tmp_path):
        with pytest.raises(shell.HotspareError, match=f"cannot run pg_controldata: {tmp_path}/pg_controldata: No such"):
            controldata.read(str(tmp_path), "/data", ME)
