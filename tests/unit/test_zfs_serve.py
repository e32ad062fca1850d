# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_serve.py: the key of another host may do what its module does, and nothing else."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
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
from .test_zfs_stream import RESUMES, begin

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


GIVEN = "-o canmount=noauto -o readonly=on -o recordsize=8192 -o hotspare:from=7 -o hotspare:flags=Lec"


def test_what_is_made_has_the_properties_of_the_configuration():
    """Else it would be mounted where it inherits it, with what another host's root has put there."""
    for make in ("zfs receive -s -u {} backup/pg{}", "zfs clone {} backup/pg-aside-20261121T160000Z@a backup/pg{}"):
        assert permitted(BOTH, make.format(GIVEN, ""))
        assert permitted(BOTH, make.format(GIVEN, "/wal"))
        assert permitted(BOTH, make.format("-o hotspare:from=7 -o canmount=noauto", "/wal")), "the others it inherits"
        for lacks in ("canmount=noauto", "readonly=on", "hotspare:from=7"):
            assert not permitted(BOTH, make.format(GIVEN.replace(f"-o {lacks}", ""), ""))
        for lacks in ("canmount=noauto", "hotspare:from=7"):
            assert not permitted(BOTH, make.format(GIVEN.replace(f"-o {lacks}", ""), "/wal"))
        assert not permitted(BOTH, make.format(f"{GIVEN} -o mountpoint=/etc", ""))
        assert not permitted(BOTH, make.format(f"{GIVEN} -o canmount=on", ""))
        assert not permitted(BOTH, make.format(GIVEN, "x"))
    assert permitted(BOTH, "zfs receive -s -u backup/pg"), "of what is there already; the stream is looked at"
    assert not permitted(BOTH, "zfs clone backup/pg-aside-20261121T160000Z@a backup/pg")


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
        good.replace('; echo >&2; echo "=$r=" >&2', ""),
        good.replace(">&2", ">/etc/passwd"),
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
            found = side.run_all([["cat", "/no/such/a"], ["no-such-filter"], ["echo"], ["cat", "/no/such/b"]])
            assert [(one.rc, one.stdout) for one in found] == [(1, ""), (127, ""), (0, "\n"), (1, "")]
            assert [one.stderr.count("\n") for one in found] == [1, 1, 0, 1]
            assert "/no/such/a" in found[0].stderr and "cannot run no-such-filter" in found[1].stderr
            assert "/no/such/b" in found[3].stderr
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


# --- what is received ------------------------------------------------------------------------------------------------

ZFS = """\
#!/bin/sh
echo "$*" >>started
[ ! -e dies ] || { head -c 1 >/dev/null; echo cannot receive: out of space >&2; exit 3; }
[ "$2" != -A ] || exit 0
cat >got
[ -s got ] || { echo cannot receive: failed to read from stream >&2; exit 1; }
[ ! -e incomplete ] || { echo cannot receive: incomplete stream >&2; exit 1; }
"""
RECEIVING = """\
import os, sys
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_serve
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
zfs_serve.PATH = sys.argv[3] + ":" + zfs_serve.PATH
popen = zfs_serve.subprocess.Popen
zfs_serve.subprocess.Popen = lambda *args, **options: popen(*args, **{**options, "cwd": sys.argv[3]})
try:
    sys.exit(zfs_serve.serve(sys.argv[1], sys.argv[2]))
except HotspareError as error:
    sys.exit(error.message)
"""
RECEIVE = ["zfs", "receive", "-s", "-u", "backup/pg"]
NEW = [*RECEIVE[:-1], "-o", "hotspare:from=7", "backup/pg"]
PLAIN = begin(base=5) + os.urandom(3_000_000)


class Receiving:
    """The forced command, with programs of this test in the place of zfs and mbuffer."""

    def __init__(self, config: str, path: Any) -> None:
        self.config, self.path = config, path
        self.program("zfs", ZFS)
        self.program("mbuffer", "#!/bin/sh\nexec cat\n")

    def program(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")
        (self.path / name).chmod(0o755)

    def start(self, *pipeline: Any, stdin: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
        told = [*ENVIRONMENT, "bash", "-o", "pipefail", "-c", " | ".join(map(shlex.join, pipeline))]
        told = told if len(pipeline) > 1 else [*ENVIRONMENT, *pipeline[0]]
        argv = [sys.executable, "-c", RECEIVING, self.config, shlex.join(told), str(self.path)]
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.Popen(argv, stdin=stdin, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def run(self, *pipeline: Any, stdin: bytes) -> tuple[int, str]:
        with self.start(*pipeline) as process:
            _out, err = process.communicate(stdin, timeout=60)
        return process.returncode, err.decode()

    @property
    def started(self) -> list[str]:
        file = self.path / "started"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    @property
    def got(self) -> bytes:
        file = self.path / "got"
        return file.read_bytes() if file.exists() else b""


@pytest.fixture
def receiving(config, tmp_path):
    (tmp_path / "bin").mkdir()
    return Receiving(config, tmp_path / "bin")


FILTERS = [[], [MBUFFER], [UNZSTD], [UNZSTD, MBUFFER]]


def sent(stream: bytes, filters: Any) -> bytes:
    packed = UNZSTD in filters
    return subprocess.run(ZSTD, input=stream, stdout=subprocess.PIPE, check=True).stdout if packed else stream


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("words", [RECEIVE, NEW])
def test_a_plain_stream_arrives_as_it_is(receiving, filters, words):
    assert receiving.run(*filters, words, stdin=sent(PLAIN, filters)) == (0, "")
    assert receiving.got == PLAIN
    assert receiving.started == [" ".join(words[1:])]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("filters", FILTERS)
def test_one_with_properties_never_reaches_zfs(receiving, filters, order):
    stream = begin(2, order) + PLAIN
    for words in (RECEIVE, NEW):
        rc, said = receiving.run(*filters, words, stdin=sent(stream, filters))
        assert rc == 1
        assert "this stream carries properties or more than one snapshot (zfs send -p or -R)" in said
    assert receiving.started == []


def test_nor_what_is_no_stream(receiving):
    rc, said = receiving.run(RECEIVE, stdin=b"no stream" * 9)
    assert (rc, receiving.started) == (1, [])
    assert "this is no stream of zfs send, it begins with b'no stream" in said


@pytest.mark.parametrize("filters", [[], [MBUFFER]])
def test_a_sender_that_goes_on_is_not_waited_for(receiving, filters):
    """Whose stream is refused, the filters end, too."""
    with receiving.start(*filters, RECEIVE) as process:
        process.stdin.write(sent(begin(2) + os.urandom(20_000), filters))
        process.stdin.flush()
        assert process.wait(30) == 1
        assert b"carries properties" in process.stderr.read()
        process.stdin.close()


@pytest.mark.parametrize("filters", [[], [MBUFFER]])
def test_of_an_empty_one_zfs_says_so(receiving, filters):
    assert receiving.run(*filters, RECEIVE, stdin=b"") == (1, "cannot receive: failed to read from stream\n")
    assert receiving.got == b""


@pytest.mark.parametrize("size", [1, 23, 30, 55, 56, 100_000])
def test_of_one_that_was_cut_off_zfs_has_what_came(receiving, size):
    (receiving.path / "incomplete").touch()
    assert receiving.run(RECEIVE, stdin=PLAIN[:size]) == (1, "cannot receive: incomplete stream\n")
    assert receiving.got == PLAIN[:size]


@pytest.mark.parametrize("filters", [[], [MBUFFER]])
def test_when_zfs_ends_early_it_ends_with_its_exit_code(receiving, filters):
    """Also while the sender has nothing to send; a filter waits for more, as in a shell."""
    (receiving.path / "dies").touch()
    with receiving.start(*filters, RECEIVE) as process:
        process.stdin.write(begin(base=5))
        process.stdin.flush()
        if filters:
            assert select.select([process.stderr], [], [], 30)[0]
            process.stdin.close()
        assert process.wait(30) == 3
        assert process.stderr.read() == b"cannot receive: out of space\n"
        if not filters:
            process.stdin.close()
    rc, said = receiving.run(*filters, RECEIVE, stdin=PLAIN)
    assert (rc, said) == (3, "cannot receive: out of space\n")


def test_the_exit_code_of_a_filter_counts(receiving):
    receiving.program("mbuffer", "#!/bin/sh\ncat\nexit 9\n")
    assert receiving.run(MBUFFER, RECEIVE, stdin=PLAIN) == (9, "")
    assert receiving.got == PLAIN
    rc, said = receiving.run(UNZSTD, RECEIVE, stdin=b"not packed")
    assert rc == 1 and "unsupported format" in said and "failed to read from stream" in said


def test_where_the_sender_is_lost_nothing_stays(receiving):
    """Its receive is interrupted as by a connection that is closed."""
    (receiving.path / "incomplete").touch()
    with receiving.start(RECEIVE) as process:
        process.stdin.write(PLAIN[:1000])
        process.stdin.flush()
        until = time.monotonic() + 30
        while not (receiving.started and receiving.got) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert select.select([process.stderr], [], [], 30)[0]
        assert process.stderr.read() == b"cannot receive: incomplete stream\n"
        process.stdin.close()
    assert receiving.got == PLAIN[:1000]


def test_what_comes_through_a_socket(receiving):
    """As sshd gives one to the programs that it starts, unless it gives pipes."""
    ours, theirs = socket.socketpair()
    with receiving.start(RECEIVE, stdin=theirs) as process:
        theirs.close()
        with ours:
            ours.sendall(PLAIN)
            ours.shutdown(socket.SHUT_WR)
            assert process.wait(30) == 0
    assert receiving.got == PLAIN


def test_what_makes_a_dataset_has_to_say_with_what(receiving):
    rc, said = receiving.run(RECEIVE, stdin=begin())
    assert (rc, receiving.started) == (1, [])
    assert "this key may not make backup/pg without the properties in the configuration of its forced command" in said
    assert receiving.run(NEW, stdin=begin()) == (0, "")
    assert receiving.run(RECEIVE, stdin=begin(features=RESUMES)) == (0, ""), "what an earlier run has made"
    assert receiving.got == begin(features=RESUMES)


@pytest.mark.parametrize("line", [RECEIVE, NEW])
def test_no_clone_of_what_the_key_may_not_touch_is_received(receiving, line):
    """Promoted, it would take over the snapshots of another host's copy."""
    rc, said = receiving.run(line, stdin=begin(base=5, flags=1))
    assert (rc, receiving.started) == (1, [])
    assert "this stream makes a clone of a snapshot that is here" in said


def test_what_is_given_up_waits_for_no_stream(receiving):
    with receiving.start(["zfs", "receive", "-A", "backup/pg"]) as process:
        assert process.wait(30) == 0
        process.stdin.close()
    assert receiving.started == ["receive -A backup/pg"]


def test_among_lines_nothing_is_received(receiving):
    """What comes there are the lines themselves."""
    rc, said = receiving.run(["sh"], stdin=2 * script([RECEIVE], False).encode())
    assert (rc, receiving.got, len(receiving.started)) == (0, b"", 2)
    assert said == 2 * "cannot receive: failed to read from stream\n\n=1=\n=.=\n"
