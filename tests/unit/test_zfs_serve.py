# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_serve.py: the key of another host may do what its module does, and nothing else."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import program, zfs_serve
from ansible_collections.hotspare.postgresql.plugins.module_utils.lasting_shell import LastingShell, script
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import ENVIRONMENT, Login, Side, Token
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_refusals import Keep
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_send import MBUFFER, UNZSTD, ZSTD
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_serve import Serve, parse, parse_line, permit

from .test_zfs_plan import Pair

BOTH = Serve(
    prefix="hotspare",
    receive=("backup/pg",),
    send=("tank/pg",),
    properties={"canmount": "noauto", "readonly": "on"},
    copied=("recordsize", "compression"),
    rename=True,
    prune=True,
)
OPTIONS: dict[str, Any] = {
    "properties": {"canmount": "noauto", "readonly": "on"},
    "copied": ("recordsize", "compression"),
    "keep_source": Keep(1),
    "keep_target": Keep(1),
}


def permitted(config: Serve, *pipeline: str) -> bool:
    try:
        permit(config, [shlex.split(words) for words in pipeline])
    except HotspareError:
        return False
    return True


def test_all_that_the_module_runs_is_permitted(monkeypatch):
    """What a run of each kind did to the model of ZFS, on the side where it did it."""
    monkeypatch.setattr(zfs_serve, "decode", lambda _side, text: Token(text, "1", "", "tank/pg@x"))
    monkeypatch.setattr(zfs_serve, "_guids", lambda _datasets: {"1"})
    pair = Pair()
    pair.source.make("tank/pg-aside-20260101T000000Z")
    pair.run(**OPTIONS)
    pair.run(**OPTIONS)
    pair.target.write("backup/pg")
    pair.target.data["backup/pg"].mounted = True
    pair.run(**OPTIONS, in_the_way="rename")
    pair.whole = lambda: False
    with pytest.raises(HotspareError, match="incomplete stream"):
        pair.run(**OPTIONS)
    pair.whole = lambda: True
    pair.run(**OPTIONS)
    pair.run(state="snapshotted", snapshot="seed")
    pair.run(state="released", snapshot="seed")
    for name in ("backup/pg", "backup/pg/wal"):
        pair.target.data[name].snaps.clear()
    pair.run(**OPTIONS, in_the_way="rename")
    acts = {" ".join(words[:2]) for words in pair.source.log + pair.target.log}
    assert acts >= {
        f"zfs {act}" for act in "snapshot send receive hold release destroy rename clone promote set".split()
    }
    for config, log in (
        (Serve("hotspare", send=BOTH.send, prune=True), pair.source.log),
        (Serve(**{**BOTH.__dict__, "send": ()}), pair.target.log),
    ):
        assert log
        for words in log:
            permit(config, [words])


def test_pipelines():
    receive, send = "zfs receive -s -u backup/pg/wal", "zfs send -Lec tank/pg@a"
    unzstd, mbuffer, zstd = (shlex.join(words) for words in (UNZSTD, MBUFFER, ZSTD))
    assert permitted(BOTH, unzstd, mbuffer, receive)
    assert permitted(BOTH, mbuffer, receive)
    assert permitted(BOTH, send, zstd)
    assert not permitted(BOTH, send, receive)
    assert not permitted(BOTH, "cat /etc/shadow", receive)
    assert not permitted(BOTH, send, "tee /etc/passwd")
    assert not permitted(BOTH, zstd)
    assert not permitted(BOTH, send, zstd, receive)


@pytest.mark.parametrize(
    "words",
    [
        "zfs receive -F backup/pg",
        "zfs receive -s -u -F backup/pg",
        "zfs receive -s -u backup/pgx",
        "zfs receive -s -u backup",
        "zfs receive -s -u tank/pg",
        "zfs receive -s -u -o mountpoint=/etc backup/pg",
        "zfs receive -s -u -o canmount=on backup/pg",
        "zfs receive -s -u -o recordsize=8192\n-F backup/pg",
        "zfs receive backup/pg",
        "zfs destroy backup/pg",
        "zfs destroy -r backup/pg@hotspare-20261121T160000Z",
        "zfs destroy backup/pg@mine",
        "zfs destroy backup/pg@hotspare-20261121T160000Z,mine",
        "zfs destroy backup/pg@hotspare-20261121T160000Z%",
        "zfs destroy tank/other@hotspare-20261121T160000Z",
        "zfs rollback backup/pg@a",
        "zfs set mountpoint=/etc backup/pg",
        "zfs set canmount=on backup/pg-aside-20261121T160000Z",
        "zfs rename backup/pg backup/other",
        "zfs rename backup/pg backup/pg-aside-20261121T160000Z/x",
        "zfs clone backup/other@a backup/pg",
        "zfs release other backup/pg@a",
        "zfs hold hotspare other/pg@a",
        "zfs send -R tank/pg@a",
        "zfs send -p tank/pg@a",
        "zfs send -i other/pg@a tank/pg@a",
        "zfs send tank/pg/../other@a",
        "zfs snapshot other/pg@a",
        "zfs get -Hp -o name,property,value,source -r -t all all backup/pg",
        "zfs list",
        "zfs allow everyone destroy tank/pg",
        "zpool destroy tank",
        "zpool get -Hp -o property,value all other",
        "bash",
        "sh -c id",
        "",
    ],
)
def test_what_is_not_permitted(words):
    assert not permitted(BOTH, words)


def test_who_may_only_receive_may_not_send_nor_give_up():
    config = Serve("hotspare", receive=("backup/pg",))
    assert permitted(config, "zfs receive -s -u backup/pg")
    for words in (
        "zfs send backup/pg@a",
        "zfs destroy backup/pg@hotspare-20261121T160000Z",
        "zfs rename backup/pg backup/pg-aside-20261121T160000Z",
        "zfs snapshot -o hotspare:made=hotspare/1 backup/pg@a",
    ):
        assert not permitted(config, words)


def test_a_token_has_to_be_of_what_may_be_sent(monkeypatch):
    told = {"of-another": Token("", "1", "", "tank/other@x"), "good": Token("", "1", "2", "tank/pg@x")}
    told.update(forged=Token("", "3", "", "tank/pg@x"), base=Token("", "1", "3", "tank/pg@x"))
    monkeypatch.setattr(zfs_serve, "decode", lambda _side, text: told[text])
    monkeypatch.setattr(zfs_serve, "_guids", lambda _datasets: {"1", "2"})
    for text in told:
        if text == "good":
            assert zfs_serve._known(BOTH, text)
        else:
            assert not zfs_serve._known(BOTH, text)
    monkeypatch.setattr(zfs_serve, "decode", lambda _side, text: Token(text, "1", "", f"{text}@x"))
    with pytest.raises(HotspareError, match="this key may not send what that token is of"):
        permit(BOTH, [["zfs", "send", "-t", "1-abc"]])


def test_it_reads_what_the_module_sends(tmp_path):
    for name in ("key", "known"):
        (tmp_path / name).touch()
    with Side(Login("db2", 22, "root", str(tmp_path / "key"), str(tmp_path / "known"))) as side:
        for pipeline in (
            [["zfs", "set", "x=a b|c", "tank/pg"]],
            [["zstd", "-d"], ["zfs", "receive", "a|b", "it's", "c d"], ["x"]],
        ):
            (stage,) = side.stages(pipeline)
            assert parse(stage.argv[-1]) == pipeline


def test_it_reads_lines_and_no_other_script():
    commands = [["zfs", "hold", "x", "a; b"], ["zfs", "version"]]
    for stop in (False, True):
        assert parse_line(script(commands, stop)) == zfs_serve.Line(commands, stop)
    good = script(commands, True)
    for bad in (
        good + "reboot\n",
        "reboot; " + good,
        good.replace("version", "version; reboot"),
        good.replace("</dev/null", "</etc/shadow"),
        "reboot\n",
        good[:-1],
        "\n",
    ):
        with pytest.raises(HotspareError, match="this key runs no command"):
            parse_line(bad)


FORCED = """\
import sys
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_serve
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
zfs_serve.rules = lambda config: [r"(echo|false|cat|no-such-filter)(\\n.*)*"]
try:
    sys.exit(zfs_serve.serve(sys.argv[1], sys.argv[2]))
except HotspareError as error:
    sys.exit(error.message)
"""


def test_a_side_talks_to_it(config, tmp_path, monkeypatch):
    """What answers line by line is what a shell would be: tried as it is forced on a key."""
    for name in ("key", "known"):
        (tmp_path / name).touch()
    with Side(Login("db2", 22, "root", str(tmp_path / "key"), str(tmp_path / "known"))) as side:
        text = f'cd {shlex.quote(os.getcwd())}; export PYTHONPATH={shlex.quote(":".join(sys.path))}; exec "$@"'
        forced = ["sh", "-c", text, "sh", sys.executable, "-c", FORCED, config]
        told = shlex.join([*ENVIRONMENT, "sh"])
        monkeypatch.setattr(side, "_connected", lambda: shells[0])
        shells = [LastingShell([*forced, told])]
        try:
            done = side.run_all([["echo", "a b"], ["cat"], ["false"], ["echo", "it's"]])
            assert [(one.rc, one.stdout) for one in done] == [(0, "a b\n"), (0, ""), (1, ""), (0, "it's\n")]
            assert [one.rc for one in side.run_all([["false"], ["echo"]], stop=True)] == [1]
            assert not side.has("no-such-filter") and side.has("cat")
            with pytest.raises(HotspareError, match="echo x on db2 failed: this key may not run 'reboot'"):
                side.run_all([["echo", "x"], ["reboot"]])
            assert shells[0].ended
        finally:
            shells[0].close()


@pytest.mark.parametrize(
    "told", ["", "zfs version", "env x zfs version", "env 'broken", "env PATH=/tmp LC_ALL=C zfs version"]
)
def test_other_commands(told):
    with pytest.raises(HotspareError, match="this key runs no command"):
        parse(told)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "serve.json"
    path.write_text(json.dumps({"prefix": "hotspare", "receive": ["backup/pg"]}), encoding="utf-8")
    return str(path)


def test_the_command_of_the_program(config, monkeypatch, capfd):
    told = shlex.join([*ENVIRONMENT, "zfs", "version"])
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", told)
    ran: list[Any] = []
    monkeypatch.setattr(zfs_serve, "_run", lambda pipeline: ran.append(pipeline) or 3)
    assert program.main(["zfs-serve", config]) == 3
    assert ran == [[["zfs", "version"]]]
    monkeypatch.delenv("SSH_ORIGINAL_COMMAND")
    assert program.main(["zfs-serve", config]) == 1
    assert "this key runs no command ''" in capfd.readouterr().err


@pytest.mark.parametrize(
    "found",
    [
        {"prefix": "a b", "receive": ["x/y"]},
        {"prefix": "a", "receive": ["x"]},
        {"prefix": "a"},
        {"prefix": "a", "z": 1},
    ],
)
def test_a_configuration_that_is_not_ours(tmp_path, found):
    path = tmp_path / "serve.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(HotspareError, match="is not what the role standby writes"):
        zfs_serve.read_serve(str(path))


@pytest.mark.parametrize(
    ("pipeline", "code"),
    [
        (["true"], 0),
        (["sh -c 'exit 7'"], 7),
        (["sh -c 'exit 7'", "cat"], 7),
        (["true", "sh -c 'kill -9 $$'"], 137),
        (["sh -c 'echo x'", "grep -q x"], 0),
    ],
)
def test_every_exit_code_counts(pipeline, code):
    assert zfs_serve._run([shlex.split(words) for words in pipeline]) == code


def test_what_is_not_installed():
    with pytest.raises(HotspareError, match="cannot run no-such-program"):
        zfs_serve._run([["true"], ["no-such-program"]])
