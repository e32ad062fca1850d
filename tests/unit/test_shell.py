# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs and files: time limits, process groups, accounts, and what a crash may leave behind."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import stat
import time
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import shell

ME = pwd.getpwuid(os.geteuid()).pw_name


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestRun:
    def test_returns_what_the_program_said(self):
        done = shell.run(["sh", "-c", "echo out; echo err >&2"])
        assert (done.rc, done.stdout, done.stderr) == (0, "out\n", "err\n")
        assert done.argv[0] == "sh"
        assert 0 <= done.seconds < 60

    def test_arguments_pass_through_no_shell(self):
        words = ["$HOME", "a b", "'", '"', ";id", "ü", ""]
        assert shell.run(["printf", "%s\n", *words]).stdout.splitlines() == words

    def test_the_environment_is_ours_not_the_callers(self, monkeypatch):
        monkeypatch.setenv("PGHOST", "elsewhere")
        monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
        lines = shell.run(["env"], env={"TZ": "UTC"}).stdout.splitlines()
        assert {"LC_ALL=C", "LANGUAGE=C", "TZ=UTC", f"PATH={shell.PATH}"} <= set(lines)
        assert not [line for line in lines if line.startswith("PGHOST=")]

    def test_stdin_reaches_the_program(self):
        text = "a password with ' and % and ü\n" * 50_000
        assert shell.run(["cat"], stdin=text).stdout == text

    def test_without_stdin_the_program_reads_nothing(self):
        assert shell.run(["cat"]).stdout == ""

    def test_cwd(self, tmp_path):
        assert shell.run(["pwd"]).stdout == "/\n"
        assert shell.run(["pwd"], cwd=str(tmp_path)).stdout == f"{tmp_path}\n"

    def test_output_that_is_not_utf8_is_not_fatal(self):
        assert shell.run(["printf", r"\377x"]).stdout == "\ufffdx"

    def test_failure_is_one_sentence_with_the_last_line(self):
        with pytest.raises(shell.CommandError) as caught:
            shell.run(["sh", "-c", "echo out; echo first >&2; echo it broke >&2; exit 3"])
        error = caught.value
        assert error.message == str(error) == "sh failed with exit code 3: it broke"
        assert (error.rc, error.stdout, error.stderr) == (3, "out\n", "first\nit broke\n")
        assert error.argv[0] == "sh"
        assert error.facts["rc"] == 3
        assert isinstance(error, shell.HotspareError)

    def test_death_by_signal_is_a_failure(self):
        with pytest.raises(shell.CommandError) as caught:
            shell.run(["sh", "-c", "kill -9 $$"])
        assert caught.value.rc == -signal.SIGKILL

    def test_unchecked_failure_is_returned(self):
        assert shell.run(["sh", "-c", "exit 3"], check=False).rc == 3

    def test_facts_keep_the_end_of_a_long_output(self):
        with pytest.raises(shell.CommandError) as caught:
            shell.run(["sh", "-c", "seq 1 100000 >&2; exit 1"])
        assert len(caught.value.facts["stderr"]) == shell.TAIL_CHARACTERS
        assert caught.value.facts["stderr"].endswith("100000\n")
        assert caught.value.stderr.startswith("1\n")

    @pytest.mark.parametrize("check", [True, False])
    def test_a_missing_program_is_named(self, check):
        with pytest.raises(shell.CommandError, match="/nowhere/pg_rewind: No such file") as caught:
            shell.run(["/nowhere/pg_rewind"], check=check)
        assert caught.value.rc is None

    def test_a_program_that_may_not_run_is_named(self, tmp_path):
        program = tmp_path / "program"
        program.write_text("")
        with pytest.raises(shell.CommandError, match=f"{program}: Permission denied"):
            shell.run([str(program)])

    @pytest.mark.parametrize("check", [True, False])
    def test_timeout_kills_the_whole_process_group(self, tmp_path, check):
        pids = tmp_path / "pids"
        began = time.monotonic()
        with pytest.raises(shell.CommandError, match="did not end within 3 seconds and was killed: waiting") as caught:
            # the shell ignores what a polite end would send, and so does its child
            script = f"trap '' TERM INT HUP; echo waiting; sleep 300 & echo $! $$ > {pids}; wait"
            shell.run(["sh", "-c", script], timeout=3, check=check)
        assert time.monotonic() - began < 60
        assert caught.value.rc is None
        assert caught.value.stdout == "waiting\n"
        for pid in map(int, pids.read_text().split()):
            wait_until(lambda pid=pid: not alive(pid))

    def test_an_interrupt_kills_the_process_group_too(self, tmp_path):
        pids = tmp_path / "pids"

        class Interrupted(BaseException):
            pass

        def interrupt(number, frame):
            raise Interrupted

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 3)
            with pytest.raises(Interrupted):
                shell.run(["sh", "-c", f"sleep 300 & echo $! $$ > {pids}; wait"])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        for pid in map(int, pids.read_text().split()):
            wait_until(lambda pid=pid: not alive(pid))

    def test_a_daemon_left_behind_neither_delays_nor_dies(self):
        began = time.monotonic()
        done = shell.run(["sh", "-c", "sleep 300 & echo $!"], timeout=200)
        assert time.monotonic() - began < 60
        pid = int(done.stdout)
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)

    def test_file_descriptors_are_given_back(self, tmp_path):
        before = len(os.listdir("/proc/self/fd"))
        shell.run(["true"])
        with contextlib.suppress(shell.CommandError):
            shell.run(["/nowhere/program"])
        shell.write_durably(str(tmp_path / "file"), "text")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_no_time_limit(self):
        assert shell.run(["true"], timeout=None).rc == 0


class TestAccounts:
    """Becoming another account needs root: the system calls are watched here, and done in the integration tests."""

    @pytest.fixture
    def as_root(self, monkeypatch):
        """We are root on a host with an account postgres 26:27; returns the calls that change who we are."""
        calls = []
        entry = pwd.struct_passwd(("postgres", "x", 26, 27, "", "/var/lib/postgresql", "/bin/sh"))
        monkeypatch.setattr(pwd, "getpwnam", lambda name: {"postgres": entry}[name])
        monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 103])
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "getegid", lambda: 0)
        monkeypatch.setattr(os, "getgroups", lambda: [0, 4])
        for name in ("setgroups", "setegid", "seteuid"):
            monkeypatch.setattr(os, name, lambda value, name=name: calls.append((name, value)))
        return calls

    @pytest.fixture
    def as_nobody(self, as_root, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: 65534)

    def test_our_own_account_needs_no_switch(self):
        assert shell.run(["id", "-un"], account=ME).stdout.strip() == ME
        with shell.as_account(ME):
            assert pwd.getpwuid(os.geteuid()).pw_name == ME

    def test_root_runs_a_program_with_the_accounts_user_and_all_its_groups(self, as_root, monkeypatch):
        seen = {}

        def popen(argv, **options):
            seen.update(options)
            raise FileNotFoundError(2, "No such file or directory", argv[0])

        monkeypatch.setattr(shell.subprocess, "Popen", popen)
        with pytest.raises(shell.CommandError):
            shell.run(["pg_ctl"], account="postgres")
        assert (seen["user"], seen["group"], seen["extra_groups"]) == (26, 27, [27, 103])
        assert seen["env"]["HOME"] == "/var/lib/postgresql"
        assert seen["env"]["USER"] == "postgres"

    def test_as_account_changes_groups_first_and_goes_back_the_other_way(self, as_root):
        with pytest.raises(ZeroDivisionError), shell.as_account("postgres"):
            assert as_root == [("setgroups", [27, 103]), ("setegid", 27), ("seteuid", 26)]
            as_root.clear()
            raise ZeroDivisionError
        assert as_root == [("seteuid", 0), ("setegid", 0), ("setgroups", [0, 4])]

    def test_neither_root_nor_the_account(self, as_nobody, tmp_path):
        for attempt in (
            lambda: shell.run(["true"], account="postgres"),
            lambda: shell.as_account("postgres").__enter__(),
            lambda: shell.write_durably(str(tmp_path / "file"), "", account="postgres"),
        ):
            with pytest.raises(shell.HotspareError, match="needs root or the account postgres.*ansible_become: true"):
                attempt()
        assert list(tmp_path.iterdir()) == []

    def test_an_account_that_is_not_there(self, as_root):
        with pytest.raises(shell.HotspareError, match="no account pgsql on this host"):
            shell.run(["true"], account="pgsql")

    def test_a_user_id_without_a_name_still_has_a_home(self, monkeypatch):
        def nameless(uid):
            raise KeyError(uid)

        monkeypatch.setattr(pwd, "getpwuid", nameless)
        assert "HOME=/\n" in shell.run(["env"]).stdout


class TestWriteDurably:
    def test_new_file(self, tmp_path):
        path = tmp_path / "file.conf"
        assert shell.write_durably(str(path), "text ü\n") is True
        assert path.read_text(encoding="utf-8") == "text ü\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["file.conf"]

    def test_mode_of_a_new_file_is_exact_whatever_the_umask(self, tmp_path):
        before = os.umask(0o077)
        try:
            shell.write_durably(str(tmp_path / "file"), "", mode=0o644)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644

    def test_unchanged_content_is_not_rewritten(self, tmp_path):
        path = tmp_path / "file"
        shell.write_durably(str(path), "text")
        before = path.stat()
        assert shell.write_durably(str(path), "text") is False
        after = path.stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_a_changed_file_keeps_its_mode(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("old")
        path.chmod(0o640)
        assert shell.write_durably(str(path), "new", mode=0o600) is True
        assert path.read_text() == "new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_a_changed_file_keeps_its_owner_and_a_new_one_gets_the_account(self, tmp_path, monkeypatch):
        """As seen by the system calls: the tests need not be root."""
        owners = []
        monkeypatch.setattr(os, "fchown", lambda descriptor, uid, gid: owners.append((uid, gid)))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "getegid", lambda: 0)
        entry = pwd.struct_passwd(("postgres", "x", 26, 27, "", "/", "/bin/sh"))
        monkeypatch.setattr(pwd, "getpwnam", {"postgres": entry}.__getitem__)
        path = tmp_path / "file"
        shell.write_durably(str(path), "new", account="postgres")
        assert owners == [(26, 27)]

        real = os.fstat
        owned = os.stat_result([0o100640, 0, 0, 1, 1234, 5678, 0, 0, 0, 0])
        monkeypatch.setattr(os, "fstat", lambda descriptor: owned)
        shell.write_durably(str(path), "changed", account="postgres")
        monkeypatch.setattr(os, "fstat", real)
        assert owners == [(26, 27), (1234, 5678)]
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_a_symbolic_link_stays_one(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "file").write_text("old")
        link = tmp_path / "link"
        link.symlink_to("real/file")
        shell.write_durably(str(link), "new")
        assert link.is_symlink()
        assert (tmp_path / "real" / "file").read_text() == "new"

    def test_a_symbolic_link_that_must_not_be_followed(self, tmp_path):
        (tmp_path / "file").write_text("old", encoding="utf-8")
        (tmp_path / "link").symlink_to("file")
        with pytest.raises(shell.HotspareError, match="cannot write .*link"):
            shell.write_durably(str(tmp_path / "link"), "new", follow=False)
        assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
        assert shell.write_durably(str(tmp_path / "file"), "new", follow=False)
        assert (tmp_path / "file").read_text(encoding="utf-8") == "new"

    def test_what_a_killed_run_left_is_cleaned_up_and_no_planted_link_is_followed(self, tmp_path):
        victim = tmp_path / "victim"
        victim.write_text("mine")
        (tmp_path / ".file.conf.hotspare-tmp").symlink_to(victim)
        shell.write_durably(str(tmp_path / "file.conf"), "new")
        assert victim.read_text() == "mine"
        assert sorted(os.listdir(tmp_path)) == ["file.conf", "victim"]

    @pytest.mark.parametrize("dies_in", ["fsync", "rename"])
    def test_the_old_content_survives_a_death_half_way(self, tmp_path, monkeypatch, dies_in):
        path = tmp_path / "file.conf"
        path.write_text("old")

        class Died(BaseException):
            pass

        def die(*arguments):
            raise Died

        monkeypatch.setattr(os, dies_in, die)
        with pytest.raises(Died):
            shell.write_durably(str(path), "new")
        monkeypatch.undo()
        assert path.read_text() == "old"
        # PostgreSQL reads *.conf of an include_dir: the half file must not be one
        assert [name for name in os.listdir(tmp_path) if name.endswith(".conf")] == ["file.conf"]
        assert shell.write_durably(str(path), "new") is True
        assert os.listdir(tmp_path) == ["file.conf"]

    def test_content_and_name_are_both_synced_in_that_order(self, tmp_path, monkeypatch):
        path = tmp_path / "file"
        events = []
        sync, rename = os.fsync, os.rename

        def watch_sync(descriptor):
            events.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            sync(descriptor)

        def watch_rename(*arguments):
            events.append("rename")
            rename(*arguments)

        monkeypatch.setattr(os, "fsync", watch_sync)
        monkeypatch.setattr(os, "rename", watch_rename)
        shell.write_durably(str(path), "text")
        assert events == ["file", "rename", "directory"]
        events.clear()
        shell.remove_durably(str(path))
        assert events == ["directory"]

    def test_a_missing_directory_is_named(self, tmp_path):
        path = tmp_path / "nowhere" / "file"
        with pytest.raises(shell.HotspareError, match=f"cannot write {path}: No such file or directory"):
            shell.write_durably(str(path), "text")

    def test_relative_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert shell.write_durably("file", "text") is True
        assert shell.remove_durably("file") is True


class TestRemoveDurably:
    def test_gone(self, tmp_path):
        path = tmp_path / "standby.signal"
        path.write_text("")
        assert shell.remove_durably(str(path)) is True
        assert not path.exists()
        assert shell.remove_durably(str(path)) is False

    def test_a_link_goes_not_what_it_names(self, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / "link").symlink_to("file")
        assert shell.remove_durably(str(tmp_path / "link")) is True
        assert os.listdir(tmp_path) == ["file"]

    def test_a_directory_is_refused(self, tmp_path):
        with pytest.raises(shell.HotspareError, match=f"cannot remove {tmp_path}: Is a directory"):
            shell.remove_durably(str(tmp_path))


def test_hotspare_error_carries_facts():
    error = shell.HotspareError("what, where, what next", node={"role": "standby"})
    assert (error.message, error.facts) == ("what, where, what next", {"node": {"role": "standby"}})
    assert shell.HotspareError("x").facts == {}
