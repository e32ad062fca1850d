# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""archive_link.py: a directory and another host are the same to who ships; the latter's program is the real one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_link
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Archive, Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import Place
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import (
    Destination,
    LocalDestination,
    connect,
    establish_own,
    identity_of,
    ssh_command,
    trouble,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Conflict
from ansible_collections.hotspare.postgresql.plugins.module_utils.version import VERSION
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal_file import BadWal
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import (
    PROTOCOL,
    Broken,
    Garbage,
    Missing,
    Refused,
    Unreachable,
)

from .destinations import PLACE, config, connected, other_end, that_says
from .wal_pages import BACKUP, BACKUP_NAME, HISTORY, NAME, SYSTEM, segment

BACKED_UP = "000000010000000000000020"  # of 1 MB each
NAMES = [f"00000001000000000000000{digit}" for digit in "3456789"]
GREETING = {"ok": True, "protocol": PROTOCOL, "version": VERSION, "name": "db2"}


def framed(message: object) -> bytes:
    text = json.dumps(message).encode()
    return len(text).to_bytes(4, "big") + text


@pytest.fixture(autouse=True)
def system(monkeypatch):
    """The cluster whose WAL is here."""
    monkeypatch.setattr(archive_link, "identity_of", lambda found: Identity(SYSTEM, MIB))


@pytest.fixture
def wal(tmp_path) -> Callable[..., str]:
    """wal(name, content) -> the path of a file with it, by default the segment of this name."""
    (tmp_path / "pg_wal").mkdir()

    def write(name: str, content: bytes | None = None) -> str:
        path = tmp_path / "pg_wal" / name
        path.write_bytes(segment(name) if content is None else content)
        return str(path)

    return write


@pytest.fixture(params=["directory", "host"])
def destination(request, tmp_path, monkeypatch) -> Iterator[Destination]:
    if request.param == "host":
        with connected(monkeypatch, other_end(tmp_path)) as made:
            made.hello()
            yield made
    else:
        (tmp_path / "archive").mkdir()
        yield connect(Place("db2", directory=str(tmp_path / "archive")), config())


@pytest.fixture
def host(tmp_path, monkeypatch) -> Iterator[Destination]:
    with connected(monkeypatch, other_end(tmp_path)) as made:
        made.hello()
        yield made


# --- what every destination does -------------------------------------------------------------------------------------


def test_hello(destination, wal):
    found = destination.hello()
    assert (found["name"], found["version"], found["identity"]) == ("db2", VERSION, None)
    assert found["free_bytes"] > 0
    destination.put(NAME, wal(NAME))
    assert destination.hello()["identity"] == {"system_identifier": SYSTEM, "segment_size": MIB}


def test_what_is_put_is_there(destination, wal, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_link, "BATCH", 2)
    contents = {
        "00000003.history": HISTORY.encode(),
        f"{BACKED_UP}.00000028.backup": BACKUP.replace(BACKUP_NAME[:24], BACKED_UP).encode(),
        f"{NAME}.partial": segment(NAME, used=3),
        **{name: segment(name) for name in NAMES},
    }
    for name, content in contents.items():
        stored = destination.put(name, wal(name, content))
        assert (stored.size, stored.new) == (len(content), True)
        assert destination.put(name, wal(name, content)).new is False
        assert b"".join(destination.get(name)) == content
    archive = Archive(str(tmp_path / "archive"))
    assert destination.names() == archive.inventory()
    assert [entry.name for entry in archive.inventory()] == sorted(contents)
    assert destination.has([*contents, "00000001000000000000000A"]) == {name: archive.has(name) for name in contents}
    digests = destination.digest(contents)
    assert {name: (found.sha256, found.size) for name, found in digests.items()} == {
        name: archive.digest(name) for name in contents
    }
    assert destination.remove([NAMES[1], NAMES[0], NAMES[1], NAMES[3]]) == [NAMES[1], NAMES[0], NAMES[3]]
    assert set(destination.has(NAMES)) == {NAMES[2], *NAMES[4:]}


def test_nothing_is_there(destination):
    assert destination.names() == []
    assert destination.conflicts() == []
    assert destination.has(NAMES) == {}
    assert destination.has([]) == {}
    with pytest.raises(Missing, match=f"{NAME}"):
        destination.get(NAME)
    assert "not in the archive" in destination.digest([NAME])[NAME].error
    assert destination.remove([NAME]) == []


def test_what_is_bad_is_not_shipped(destination, wal):
    cases = {
        "size": segment(NAME)[:-1],
        "empty": b"",
        "magic": b"x" * MIB,
        "address": segment(NAMES[1]),
        "system": segment(NAME, system=4711),
        "hole": segment(NAME)[: MIB // 2] + bytes(8192) + segment(NAME)[MIB // 2 + 8192 :],
    }
    for code, content in cases.items():
        with pytest.raises(BadWal) as told:
            destination.put(NAME, wal(NAME, content))
        assert told.value.code == code
    for name in ("../../etc/passwd", NAME.lower() + "x", "archive.json", f"{NAME}.zst"):
        with pytest.raises(BadWal, match="is not the name of a WAL file"):
            destination.put(name, wal(NAME))
        for operation in (
            destination.get,
            lambda name: destination.has([name]),
            lambda name: destination.remove([name]),
        ):
            with pytest.raises(BadWal, match="is not the name of a WAL file"):
                operation(name)
        assert "is not the name" in destination.digest([name])[name].error
    with pytest.raises(HotspareError, match="cannot read"):
        destination.put(NAME, "/nowhere/at/all")
    assert destination.names() == []
    assert destination.put(NAME, wal(NAME)).new


def test_other_content_is_a_conflict_and_both_are_kept(destination, wal):
    destination.put(NAME, wal(NAME))
    with pytest.raises(Conflict, match="differs from byte 40 ") as told:
        destination.put(NAME, wal(NAME, segment(fill=b"y")))
    facts = told.value.facts
    assert Path(facts["evidence"]).read_bytes() == segment(fill=b"y")
    assert facts["first_difference"] == 40
    assert b"".join(destination.get(NAME)) == segment()
    assert [found["path"] for found in destination.conflicts()] == [facts["evidence"]]
    assert destination.put(NAMES[1], wal(NAMES[1])).new


def test_the_archive_of_another_cluster_takes_nothing(destination, wal, tmp_path):
    Archive(str(tmp_path / "archive")).establish(4711, MIB)
    for name, content in ((NAME, segment()), ("00000003.history", HISTORY.encode())):
        with pytest.raises(BadWal, match="4711") as told:
            destination.put(name, wal(name, content))
        assert told.value.code == "system"


def test_one_that_is_damaged_hides_no_other(destination, wal, tmp_path):
    for name in NAMES[:3]:
        destination.put(name, wal(name))
    broken = Path(Archive(str(tmp_path / "archive")).find(NAMES[1]))
    broken.rename(f"{broken}.zst")
    found = destination.digest(NAMES[:3])
    assert [bool(found[name].error) for name in NAMES[:3]] == [False, True, False]
    with pytest.raises(HotspareError, match="zstd"):
        list(destination.get(NAMES[1]))


def test_a_file_that_changes_is_not_shipped(destination, wal, monkeypatch):
    path = wal(NAME)

    def changing(path, source=archive_link.source):
        for chunk in source(path):
            yield chunk
            os.utime(path)

    monkeypatch.setattr(archive_link, "source", changing)
    monkeypatch.setattr("ansible_collections.hotspare.postgresql.plugins.module_utils.archive.source", changing)
    with pytest.raises(BadWal, match="changed while it was read"):
        destination.put(NAME, path)
    assert destination.names() == []


def test_zstd(tmp_path, monkeypatch, wal):
    for made in (
        connected(monkeypatch, other_end(tmp_path), compression="zstd"),
        LocalDestination(Place("db2", directory=str(tmp_path / "archive")), config(compression="zstd")),
    ):
        with made as destination:
            destination.hello()
            destination.put(NAME, wal(NAME))
            destination.put("00000003.history", wal("00000003.history", HISTORY.encode()))
            assert b"".join(destination.get(NAME)) == segment()
            with pytest.raises(Conflict, match="differs from byte 40 "):
                destination.put(NAME, wal(NAME, segment(fill=b"y")))
            with pytest.raises(BadWal, match="is cut off"):
                destination.put(NAMES[1], wal(NAMES[1], segment(NAMES[1])[:-8192]))
    stored = sorted(path.name for path in (tmp_path / "archive" / "wal").rglob("*") if path.is_file())
    assert stored == [f"{NAME}.zst", "00000003.history"]


# --- a directory -----------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_mounted_is_unreachable(tmp_path):
    with pytest.raises(Unreachable, match="mount it"):
        connect(Place("nas", directory=str(tmp_path / "nas")), config())


# --- an archive that is not mounted ----------------------------------------------------------------------------------


@pytest.fixture(params=["directory", "host"])
def link(request, tmp_path, monkeypatch) -> Callable[[], Destination]:
    """link() -> a new connection from the node db1 to db2, whose archive is in `archive`."""
    (tmp_path / "data").mkdir()
    here = {"node": {"name": "db1", "data_directory": str(tmp_path / "data"), "bin_directory": "/usr/bin"}}
    command = other_end(tmp_path)
    start = archive_link._start
    monkeypatch.setattr(archive_link, "_start", lambda argv, stderr: start(command, stderr))
    local = Place("db2", directory=str(tmp_path / "archive"))

    def make() -> Destination:
        found = config(destinations=[PLACE], **here)
        return connect(local if request.param == "directory" else found.destinations[0], found)

    return make


def unmount(tmp_path: Path) -> None:
    (tmp_path / "archive").rename(tmp_path / "away")
    (tmp_path / "archive").mkdir()


def mount(tmp_path: Path) -> None:
    (tmp_path / "archive").rmdir()
    (tmp_path / "away").rename(tmp_path / "archive")


NOT_MOUNTED = r"archive of db2 was an archive and is none now: mount .*/hotspare-archive-db2.seen.json on db1"


def test_it_is_founded_once(link, wal, tmp_path):
    with link() as first:
        assert (first.vacant, first.identity) == (True, None)
        first.put(NAME, wal(NAME))
        assert (first.vacant, first.identity) == (False, Identity(SYSTEM, MIB))
        unmount(tmp_path)
        for _ in range(2):  # not in the middle of a connection
            with pytest.raises(Unreachable, match="mounted"):
                first.put(NAMES[1], wal(NAMES[1]))
        with pytest.raises(HotspareError, match="mounted"):
            first.get(NAME)
    with pytest.raises(Unreachable, match=NOT_MOUNTED):  # nor by a new one
        link()
    assert list((tmp_path / "archive").iterdir()) == []
    mount(tmp_path)
    with link() as again:
        assert again.put(NAMES[1], wal(NAMES[1])).new
    unmount(tmp_path)
    (tmp_path / "data/hotspare-archive-db2.seen.json").unlink()  # it was emptied on purpose
    with link() as anew:
        assert anew.put(NAME, wal(NAME)).new


def test_who_only_looks_notes_it_when_it_says_so(link, tmp_path):
    """A standby, which may be promoted; restore_command, which needs no right to write there, does not."""
    Archive(str(tmp_path / "archive")).establish(SYSTEM, MIB)
    with link() as looking:
        assert list((tmp_path / "data").iterdir()) == []
        looking.remember()
    unmount(tmp_path)
    with pytest.raises(Unreachable, match=NOT_MOUNTED):
        link()


def test_what_cannot_be_noted_is_not_acknowledged(link, wal, tmp_path):
    (tmp_path / "data/hotspare-archive-db2.seen.json").mkdir()
    with pytest.raises(HotspareError, match=r"hotspare-archive-db2.seen.json"), link() as found:
        found.put(NAME, wal(NAME))


def test_an_older_program_on_this_end_founds_nothing(tmp_path, monkeypatch, wal):
    with connected(monkeypatch, other_end(tmp_path)) as old:
        ask = old._ask
        monkeypatch.setattr(old, "_ask", lambda request, **more: ask(without(request, "vacant"), **more))
        old.hello()
        with pytest.raises(Unreachable, match="archive is no archive"):
            old.put(NAME, wal(NAME))
        Archive(str(tmp_path / "archive")).establish(SYSTEM, MIB)
        assert old.put(NAME, wal(NAME)).new


OLDER = f"""\
from {archive_link.__package__} import archive_server
hello = archive_server.hello
archive_server.expect_archive = lambda archive: None
archive_server.hello = lambda *of: {{key: value for key, value in hello(*of).items() if key != "directory"}}
"""


def test_an_older_program_on_the_other_end(tmp_path, monkeypatch, wal):
    """It founds what it is not to, and does not say in which directory: who connects looks first."""
    (tmp_path / "data").mkdir()
    node = {"name": "db1", "data_directory": str(tmp_path / "data"), "bin_directory": "/usr/bin"}
    command = other_end(tmp_path)
    command[2] = command[2].replace("sys.exit(", f"{OLDER}sys.exit(")
    with connected(monkeypatch, command, node=node) as first:
        first.hello()
        first.put(NAME, wal(NAME))
    unmount(tmp_path)
    with (
        connected(monkeypatch, command, node=node) as again,
        pytest.raises(Unreachable, match="the directory of db2 was"),
    ):
        again.hello()


def without(record: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in record.items() if name != key}


def test_a_node_knows_its_own_archive(tmp_path, monkeypatch, wal):
    """Whoever ships to it, for the first time maybe, founds none where its own is not mounted."""
    (tmp_path / "there").mkdir()
    node = {"name": "db2", "data_directory": str(tmp_path / "there"), "bin_directory": "/usr/bin"}
    command = other_end(tmp_path, node=node)
    establish_own(config(name="db2", node=node, directory=str(tmp_path / "archive")))
    unmount(tmp_path)
    with connected(monkeypatch, command) as host:
        host.hello()
        assert host.vacant
        with pytest.raises(Unreachable, match="archive of db2 was an archive and is none now"):
            host.put(NAME, wal(NAME))
    assert list((tmp_path / "archive").iterdir()) == []


# --- whose WAL it is -------------------------------------------------------------------------------------------------


def test_without_a_server_the_archive_says_whose_wal_it_is(tmp_path):
    found = config(directory=str(tmp_path))
    with pytest.raises(HotspareError, match="nobody's archive yet"):
        identity_of(found)
    Archive(str(tmp_path)).establish(SYSTEM, MIB)
    assert identity_of(found) == Identity(SYSTEM, MIB)


# --- another host ----------------------------------------------------------------------------------------------------


def test_the_command():
    words = ssh_command(config(destinations=[PLACE]).destinations[0])
    options = dict(word.split("=", 1) for word in words if "=" in word)
    assert options["StrictHostKeyChecking"] == options["BatchMode"] == "yes"
    assert options["UserKnownHostsFile"] == PLACE["known_hosts"]
    assert words[-4:] == ["-p", "2222", "-l", "postgres"]


def test_what_it_cannot_do_is_told(host):
    with pytest.raises(HotspareError, match=f"db2: hotspare {VERSION} cannot do 'dance': run site.yml"):
        host.call("dance")
    for nonsense in ({}, {"names": 3}, {"names": [["x"]]}, {"names": ["../x"]}):
        with pytest.raises(HotspareError, match="has failed|is not the name"):
            list(host.stream("has", **nonsense))
    file = {"name": NAME, "encoding": "none", "sent": "none", "system_identifier": SYSTEM, "segment_size": MIB}
    for nonsense, words in (
        ({}, "a file to put has to come"),
        ({"upload": [], "vacant": True}, "failed: KeyError"),
        ({**file, "upload": [], "vacant": True, "system_identifier": "x"}, "put failed: ValueError"),
        ({**file, "upload": [], "vacant": True, "sent": "gzip"}, "sent as 'gzip' cannot be stored as 'none'"),
        ({**file, "upload": [], "vacant": True, "encoding": "zstd"}, "sent as 'none' cannot be stored as 'zstd'"),
        ({**file, "upload": [b"\0" * MIB], "vacant": True, "sent": "zstd"}, "zstd failed"),
    ):
        with pytest.raises(HotspareError, match=f"db2: .*{words}"):
            host.call("put", **nonsense)
    assert host.hello()["name"] == "db2"


def test_where_nothing_is_pruned_nothing_is_removed(tmp_path, monkeypatch, wal):
    with connected(monkeypatch, other_end(tmp_path, keep={})) as host:
        host.hello()
        host.put(NAME, wal(NAME))
        with pytest.raises(HotspareError, match="archive_keep"):
            host.remove([NAME])
        assert set(host.has([NAME])) == {NAME}


def test_it_is_not_used_in_the_middle_of_an_answer(host, wal):
    host.put(NAME, wal(NAME))
    unread = host.get(NAME)
    with pytest.raises(Unreachable, match="connect again"):
        host.hello()
    with pytest.raises(Unreachable, match="connect again"):
        next(unread)


def test_who_stops_reading_connects_again(host, wal):
    host.put(NAME, wal(NAME))
    for _ in host.get(NAME):
        break
    with pytest.raises(Unreachable, match="connect again"):
        host.hello()


def test_an_archive_host_without_its_configuration(tmp_path, monkeypatch):
    command = other_end(tmp_path)
    os.remove(command[-1])
    with pytest.raises(Refused, match="cannot read .*db2.json.*run site.yml"):
        connected(monkeypatch, command)


def test_another_language(monkeypatch):
    with pytest.raises(Refused, match=f"has hotspare 9.1, which this one .{VERSION}. does not understand"):
        connected(monkeypatch, that_says(framed({**GREETING, "protocol": PROTOCOL + 1, "version": "9.1"})))


def test_a_banner(monkeypatch):
    with pytest.raises(Refused, match="db2 .* says 'Welcome!' before the archive's program does: .*postgres's shell"):
        connected(monkeypatch, that_says(b"Welcome!\n" + framed(GREETING)))


@pytest.mark.parametrize("said", [b"", framed(GREETING)[:-1], framed([1]), b"\0\0\0\0", b"\0\0\0\x05{{{{{"], ids=repr)
def test_what_is_no_greeting(monkeypatch, said):
    with pytest.raises(Unreachable, match="cannot be reached"):
        connected(monkeypatch, that_says(said))


def test_a_program_that_cannot_start_says_why(monkeypatch):
    with pytest.raises(Unreachable, match="cannot be reached: No such program; see that host"):
        connected(monkeypatch, that_says(b"", "sys.exit('Permission denied\\nNo such program')"))


def test_silence(monkeypatch):
    with pytest.raises(Unreachable, match="silent for 0.2 s"):
        connect_silent = that_says(b"", "time.sleep(60)")
        monkeypatch.setattr(archive_link, "GREETING_SECONDS", 0.2)
        connected(monkeypatch, connect_silent)


@pytest.mark.parametrize("heard", [0, 100, 200_000])
def test_it_dies_in_the_middle_of_a_file(monkeypatch, wal, heard):
    content = bytearray(segment(NAME))
    for page in range(0, len(content), 8192):  # behind its header, what takes its length on the way, too
        content[page + 64 : page + 8192] = os.urandom(8192 - 64)
    with connected(monkeypatch, that_says(framed(GREETING), f"sys.stdin.buffer.read({heard})")) as host:
        with pytest.raises(Unreachable, match="cannot be reached"):
            host.put(NAME, wal(NAME, bytes(content)))
        with pytest.raises(Unreachable, match="connect again"):
            host.put(NAME, wal(NAME))


@pytest.mark.parametrize(
    ("records", "error"),
    [
        (b'[["../../etc/passwd", 1, 1.0]]', "is no WAL file"),
        (b"[[", "no JSON"),
    ],
)
def test_what_a_destination_says_is_not_believed(monkeypatch, records, error):
    said = framed(GREETING) + framed({"ok": True, "payload": True}) + len(records).to_bytes(4, "big") + records
    with (
        connected(monkeypatch, that_says(said + bytes(4) + framed({}), "sys.stdin.read()")) as host,
        pytest.raises(HotspareError, match=error),
    ):
        host.names()


SSH_SAYS = {
    "the host key of db2 .* is not the one in": "No ED25519 host key is known for [192.0.2.2]:2222 and you have "
    "requested strict checking.\r\nHost key verification failed.\r\n",
    "does not let us in with the key /etc/hotspare": "postgres@192.0.2.2: Permission denied (publickey).\r\n",
    "cannot be reached: ssh: connect to host 192.0.2.2 port 2222: Connection refused; see": "ssh: connect to host "
    "192.0.2.2 port 2222: Connection refused\r\n",
    "cannot be reached: it ended; see": "",
}


@pytest.mark.parametrize(("told", "said"), SSH_SAYS.items())
def test_trouble(told, said):
    place = config(destinations=[PLACE]).destinations[0]
    error = trouble(place, said, Broken("it ended"))
    with pytest.raises(Unreachable, match=told):
        raise error
    assert isinstance(error, Refused) is ("cannot be reached" not in told)
    assert error.facts == {"destination": "db2", "ssh": said}
    assert isinstance(trouble(place, "a warning", Garbage("Hi")), Refused)
