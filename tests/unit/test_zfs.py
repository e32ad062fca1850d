# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs.py: what the commands print, as OpenZFS 2.3 prints it, and how they are run on another host."""

from __future__ import annotations

import shlex
import time

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import Dataset, Login, Side, Snapshot

from .zfs_model import TOKENS, Here, Host, Stream

SAID = """\
resume token contents:
nvlist version: 0
	object = 0x1
	offset = 0x0
	bytes = 0x150
	toguid = 0x9f2d8f8e2a4b1c3d
	fromguid = 0x64
	toname = tank/pg@seed
	compressok = 1
incremental	seed0	tank/pg@seed	624
size	624
"""


@pytest.fixture
def files(tmp_path):
    for name in ("key", "known"):
        (tmp_path / name).touch()
    return {"identity": str(tmp_path / "key"), "known_hosts": str(tmp_path / "known")}


@pytest.fixture
def far(files):
    with Side(Login("db2", 22, "zfs", **files)) as side:
        yield side


@pytest.fixture
def near(far, monkeypatch, tmp_path):
    """A side at the end of an ssh which runs here what it is told, and notes each start."""
    (tmp_path / "ssh").write_text(f'#!/bin/sh\necho x >>{tmp_path}/started\nshift\nexec sh -c "$1"\n', encoding="utf-8")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setattr(far, "_ssh", lambda **_options: [str(tmp_path / "ssh")])
    return far


@pytest.fixture
def ending(far, monkeypatch):
    """Have the ssh end with this exit code before it runs anything, and say something."""

    def ends(rc: int, said: str) -> Side:
        text = f"printf %s {shlex.quote(said)} >&2; exit {rc}"
        monkeypatch.setattr(far, "_ssh", lambda **_options: ["sh", "-c", text])
        return far

    return ends


# --- what is printed -------------------------------------------------------------------------------------------------


def test_a_token():
    token = zfs.parse_token("1-abc", SAID)
    assert (token.toguid, token.fromguid, token.toname) == (str(0x9F2D8F8E2A4B1C3D), "100", "tank/pg@seed")
    assert zfs.parse_token("1-abc", "cannot resume send: token is corrupt") == zfs.Token("1-abc")


def test_an_estimate():
    assert zfs.parse_estimate(SAID) == 624
    assert zfs.parse_estimate("full\ttank/pg@a\t10\nsize\t10\nfull\ttank/pg@b\t20\nsize\t30\n") == 30
    assert zfs.parse_estimate("cannot open") is None


def test_versions():
    assert zfs.parse_version("zfs-2.3.9-1\nzfs-kmod-2.2.7-1\n") == (2, 2)
    assert zfs.parse_version("zfs-2.1.11-1\nzfs-kmod-2.1.11-1~bpo11+1\n") == (2, 1)
    assert zfs.parse_version("unrecognized command 'version'") == ()


def test_mounts():
    text = "yes\t/srv/pg\ttank/pg\nno\t/srv/wal\ttank/pg/wal\nyes\tlegacy\ttank/old\n"
    assert zfs.parse_mounts(text) == {"/srv/pg": "tank/pg"}


def test_a_snapshot_is_ours_by_its_own_mark_only():
    properties = dict.fromkeys(zfs.SNAPSHOT_PROPERTIES, ("-", "-"))
    properties.update(guid=("7", "-"), createtxg=("3", "-"), userrefs=("1", "-"))
    own = {**properties, zfs.MADE: ("nightly/1-2", "local")}
    found = zfs.parse_snapshot("tank/pg@a", own, frozenset({"x"}))
    assert found == Snapshot("tank/pg", "a", "7", 3, 0, 1, frozenset({"x"}), made="nightly", moment="1-2")
    inherited = {**properties, zfs.MADE: ("nightly", "inherited from tank/pg")}
    assert zfs.parse_snapshot("tank/pg@a", inherited, frozenset()).made == ""
    assert str(zfs.parse_snapshot("tank/pg#a", own, frozenset())) == "tank/pg#a"
    assert zfs.parse_snapshot("tank/pg@a", {**own, "clones": ("tank/x", "-")}, frozenset()).cloned


def test_names():
    for name in ("tank", "tank/pg", "tank/pg_17/main.x:y-z"):
        assert zfs.NAME.fullmatch(name)
    for name in ("", "/tank", "tank/", "tank//pg", "-o", "tank/p g", "tank@x", "tank;x"):
        assert not zfs.NAME.fullmatch(name)
    assert zfs.is_aside("tank/pg-aside-20261121T160000Z", "tank/pg")
    assert not zfs.is_aside("tank/pg-aside-soon", "tank/pg")


def test_what_a_host_has():
    host = Host()
    for name in ("tank/pg", "tank/pg/wal", "tank/pgx"):
        host.make(name)
    host.snapshot("tank/pg@a", "tank/pg/wal@a")
    host.data["tank/pg"].snaps[0].holds.add("x")
    stream = Stream("far/pg@b", 77, 0, 0, base=host.data["tank/pg"].snaps[0].guid)
    TOKENS["1-z"] = stream
    host.data["tank/pg"].partial = (stream, "1-z")
    view = zfs.look(Here(host, "db1"), "tank/pg", recursive=True, mounts=True)
    assert list(view.datasets) == ["", "/wal"]
    top = view.datasets[""]
    assert top.snapshots[0].holds == {"x"}
    assert top.token is not None and (top.token.toguid, top.token.toname) == ("77", "far/pg@b")
    assert view.pool.offers("large_blocks") and not view.pool.offers("longname")
    assert view.called("/wal") == "tank/pg/wal on db1"
    flat = zfs.look(Here(host, "db1"), "tank/pg", recursive=False)
    assert list(flat.datasets) == [""]
    gone = zfs.look(Here(host, "db1"), "tank/none/at/all", recursive=False)
    assert (gone.datasets, gone.parent) == ({}, False)
    assert top.find(top.snapshots[0].guid) == top.named("a") == top.snapshots[0]
    assert Dataset("x", "filesystem", "1").find("2") is None


# --- how it is run ---------------------------------------------------------------------------------------------------


def test_here_there_is_no_shell():
    stages = Side().stages([("zfs", "send", "a b"), ("zstd", "-c")])
    assert [stage.argv for stage in stages] == [("zfs", "send", "a b"), ("zstd", "-c")]
    assert stages[0].name == "zfs send on this host"


def test_there_words_stay_words(far):
    (stage,) = far.stages([("zfs", "set", "x=a b; reboot", "tank/pg")])
    assert stage.argv[-2] == "db2"
    told = shlex.split(stage.argv[-1])
    assert told == [*zfs.ENVIRONMENT, "zfs", "set", "x=a b; reboot", "tank/pg"]


def test_there_every_exit_code_counts(far):
    (stage,) = far.stages([("zstd", "-d"), ("zfs", "receive", "a'b")])
    told = shlex.split(stage.argv[-1])
    assert told[:-1] == [*zfs.ENVIRONMENT, "bash", "-o", "pipefail", "-c"]
    assert told[-1] == "zstd -d | zfs receive 'a'\"'\"'b'"
    assert stage.name == "zfs receive on db2"


def test_commands_share_one_connection(near, tmp_path):
    for number in range(3):
        assert near.run("echo", str(number), "a b").stdout == f"{number} a b\n"
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\n"
    shell = near._shell
    near.close()
    near.close()
    assert shell.ended


def test_what_a_stream_goes_through_is_the_same_connection(far):
    first, (stage,) = far._ssh(shares=True), far.stages([("zfs", "receive", "x")])
    (path,) = {word for word in [*first, *stage.argv] if word.startswith("ControlPath=")}
    assert len(path) < 100
    assert "ControlMaster=yes" in first and "ControlMaster=yes" not in stage.argv


def test_a_connection_that_was_lost_is_made_again(near, tmp_path):
    near.run("true")
    near._shell._process.kill()
    near._shell._process.wait()
    assert near.run("echo", "again").stdout == "again\n"
    assert (tmp_path / "started").read_text(encoding="utf-8") == "x\nx\n"


def test_a_connection_that_is_lost_meanwhile(near):
    with pytest.raises(HotspareError, match="sh -c on db2 failed: Killed"):
        near.run("sh", "-c", "kill -9 $PPID; kill -9 $(ps -o ppid= $PPID)")


def test_the_one_that_ran_when_it_was_lost_is_named(near, monkeypatch):
    killed = ("sh", "-c", "kill -9 $PPID; kill -9 $(ps -o ppid= $PPID)")
    with pytest.raises(HotspareError, match="sh -c on db2 failed: (Killed|it printed nothing)"):
        near.run_all([("true",), killed])
    monkeypatch.setattr(zfs, "LOOK_SECONDS", 0.2)
    with pytest.raises(HotspareError, match=r"sleep 9 on db2 took longer than 0\.4 s"):
        near.run_all([("true",), ("sleep", "9")])


def test_what_takes_too_long_is_ended(near, monkeypatch, tmp_path):
    monkeypatch.setattr(zfs, "LOOK_SECONDS", 0.2)
    with pytest.raises(HotspareError, match="sleep 1 on db2 took longer than 0.4 s and was ended"):
        near.run_all([("sleep", "1"), ("touch", str(tmp_path / "later"))])
    time.sleep(1)
    assert not (tmp_path / "later").exists()
    monkeypatch.setattr(zfs, "LOOK_SECONDS", 60)
    assert near.run("echo", "again").stdout == "again\n"


COMMANDS = [("printf", "said\n"), ("sh", "-c", "echo it\\'s; echo no such thing >&2; exit 1"), ("echo", "a b; reboot")]


@pytest.mark.parametrize("stop", [False, True])
def test_many_commands_there(near, stop):
    found = near.run_all(COMMANDS, stop=stop)
    assert [(done.rc, done.stdout, done.stderr) for done in found] == [
        (0, "said\n", ""),
        (1, "it's\n", "no such thing\n"),
        (0, "a b; reboot\n", ""),
    ][: 2 if stop else 3]
    assert [done.argv for done in found] == [list(words) for words in COMMANDS[: len(found)]]
    assert near.run("cat").stdout == ""  # the lines that follow are for the shell alone


def fails(said: str, rc: int = 1) -> tuple[str, ...]:
    """A command that says this as it is, and fails."""
    return ("sh", "-c", f"printf %s {shlex.quote(said)} >&2; exit {rc}")


def test_what_one_says_is_not_taken_for_what_another_says(near):
    """By "not currently mounted" and "does not exist" a failure is passed over, which of one that is busy it must not
    be."""
    unmounted, busy = "cannot unmount '/a': not currently mounted\n", "cannot unmount '/b': pool or dataset is busy"
    found = near.run_all([fails(unmounted), ("sh", "-c", "echo ok; echo careful >&2"), fails(busy, 2), fails("")])
    assert [(done.rc, done.stdout, done.stderr) for done in found] == [
        (1, "", unmounted),
        (0, "ok\n", ""),
        (2, "", busy),
        (1, "", ""),
    ]
    (one,) = near.run_all([fails(busy), ("echo", "x")], stop=True)
    assert one.stderr == busy


def test_texts_without_a_new_line_stay_as_they_are(near):
    found = near.run_all([("printf", "%s", "a"), ("printf", "%s", "\n\n"), ("true",), ("printf", "%s", "b\n=x=")])
    assert [done.stdout for done in found] == ["a", "\n\n", "", "b\n=x="]


def test_where_it_is_not_certain_who_said_what_it_failed(near, monkeypatch):
    for text in ("b\n=0=", "\n=0=\n"):
        with pytest.raises(HotspareError, match="printf %s on db2 failed: it printed nothing"):
            near.run_all([("printf", "%s", text)])
    shell = near._connected()
    monkeypatch.setattr(shell, "ask", lambda _line, _timeout: ("\n=1=\n\n=1=\n", "does not exist\n=1=\nis busy"))
    with pytest.raises(HotspareError, match="zfs b on db2 failed: is busy; "):
        near.run_all([("zfs", "a"), ("zfs", "b")])


def test_what_ssh_says_of_something_else_is_not_waited_for(near):
    shell = near._connected()
    line = "(echo x; echo why >&2; echo =0=) </dev/null; echo =.=; (echo =.=; echo channel 3: open failed) >&2\n"
    assert shell.ask(line, 10) == ("x\n=0=\n", "why\n")
    assert "channel 3: open failed\n" in near.run("sh", "-c", "echo no >&2; exit 1", check=False).stderr


def test_much_is_read(near):
    done = near.run("sh", "-c", "seq 200000; seq 100000 >&2; exit 3", check=False)
    assert (done.rc, done.stdout.count("\n"), done.stderr.count("\n")) == (3, 200000, 100000)
    assert near.run("echo", "x" * 100000).stdout == "x" * 100000 + "\n"


def test_here_it_is_the_same():
    with Side() as side:
        done = side.run_all([("echo", "a"), ("false",), ("echo", "b")], stop=True)
        assert [(one.rc, one.stdout) for one in done] == [(0, "a\n"), (1, "")]
        assert [one.rc for one in side.run_all([("false",), ("true",)])] == [1, 0]
        shell = side._shell
    assert shell.ended


def test_without_a_key_it_is_not_tried(tmp_path):
    with pytest.raises(HotspareError, match=f"there is no {tmp_path}/key on this host"):
        Side(Login("db2", 22, "root", str(tmp_path / "key"), str(tmp_path)))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Host key verification failed.", "the host key of zfs@db2 port 22 is not the one in"),
        ("zfs@db2: Permission denied (publickey).", "zfs@db2 port 22 does not let us in with the key"),
        ("ssh: connect to host db2 port 22: Connection refused", "cannot be reached: ssh: connect to host db2"),
        ("", "ssh says nothing"),
    ],
)
def test_who_cannot_be_reached(ending, said, told):
    with pytest.raises(HotspareError, match=told):
        ending(255, said).run("zfs", "list", check=False)


def test_what_may_not_be_run_there(ending):
    with pytest.raises(HotspareError, match="zfs list on db2 failed: this key may not run it"):
        ending(1, "this key may not run it\n").run("zfs", "list", check=False)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("cannot hold: permission denied", "allow it there \\(zfs allow\\)"),
        ("cannot unmount '/x': pool or dataset is busy", "stop what uses it"),
        ("cannot receive: out of space", "make room there"),
        ("something new", "see what it says"),
        ("", "it printed nothing"),
    ],
)
def test_what_fails_says_where_and_what_next(near, said, advice):
    words = ("sh", "-c", f"printf %s {shlex.quote(said)} >&2; exit 1")
    with pytest.raises(HotspareError, match=f"sh -c on db2 failed: .*{advice}") as caught:
        near.run(*words)
    assert caught.value.facts["command"] == list(words)
    assert near.run(*words, check=False).rc == 1


def test_an_exit_code_of_zfs_is_not_taken_for_one_of_ssh(near):
    """`zfs send -t` ends with 255 where the snapshot is gone, as ssh does without a connection."""
    done = near.run("sh", "-c", "echo toguid = 1f; echo cannot resume send >&2; exit 255", check=False)
    assert (done.rc, done.stdout, done.stderr) == (255, "toguid = 1f\n", "cannot resume send\n")


def test_what_is_not_installed(near):
    with Side() as here:
        for side in (here, near):
            with pytest.raises(HotspareError, match="no-such-program x on .* failed: .*; install zfsutils-linux there"):
                side.run("no-such-program", "x")


def test_which_filters_there_are(near):
    with Side() as here:
        for side in (here, near):
            assert side.has("cat") and not side.has("no-such-filter")
