# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A destination at the end of a real ssh: real WAL, the forced command, and all that an ssh can say no to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import archive_link
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive import Identity
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import read_archive_config
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_link import connect, ssh_command
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError, as_account
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import INCOMING, Full
from ansible_collections.hotspare.postgresql.plugins.module_utils.wal import MIB
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Refused, Unreachable

from ..unit.wal_pages import SYSTEM, segment
from .archives import make_key
from .conftest import ACCOUNT, eventually

NAMES = [f"0000000100000000000000{number:02X}" for number in range(3, 27)]


@pytest.fixture
def store(archives):
    return archives.host("store", keep={"days": 1})


@pytest.fixture
def link(archives, store, monkeypatch):
    """link() connects to the store; whose WAL is shipped is said by `NAMES` and wal_pages."""
    monkeypatch.setattr(archive_link, "identity_of", lambda config: Identity(SYSTEM, MIB))
    with contextlib.ExitStack() as stack:

        def connected(**changes):
            config = read_archive_config(str(archives.config("db1", destinations=[{**store.place, **changes}])))
            return stack.enter_context(connect(config.destinations[0], config))

        yield connected


@pytest.fixture
def wal(archives) -> Callable[[str], str]:
    """wal(name) -> the path of a segment."""
    directory = archives.make_directory("pg_wal")

    def write(name: str) -> str:
        (directory / name).write_bytes(segment(name))
        return str(directory / name)

    return write


def files(host) -> list[str]:
    """What really lies in its archive, and what was left half."""
    return sorted(path.name for path in (host.directory / "wal").rglob("*") if path.is_file())


# --- what it is for --------------------------------------------------------------------------------------------------


def test_real_wal(lab, archives, store):
    """Compressed and not, as the account of the server that wrote it."""
    node = lab.node("db-one")
    node.start()
    for round_ in range(2):
        node.write(f"round {round_}")
        node.sql("SELECT pg_switch_wal()")
    node.write("not at the border of two")
    current = node.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    complete = sorted(path for path in (node.data / "pg_wal").glob("0*") if path.name < current)
    assert complete
    other = archives.host("other")
    for compression, host in (("none", store), ("zstd", other)):
        config = read_archive_config(
            str(archives.config("db1", node.instance, destinations=[host.place], compression=compression))
        )
        with as_account(ACCOUNT), connect(config.destinations[0], config) as destination:
            for path in complete:
                assert destination.put(path.name, str(path)).new
            digests = destination.digest(path.name for path in complete)
            for path in complete:
                assert digests[path.name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
                assert b"".join(destination.get(path.name)) == path.read_bytes()
            identity = destination.hello()["identity"]
            # All of ssh is the account, not only what it may do.
            status = Path(f"/proc/{destination._process.pid}/status").read_text(encoding="ascii")
            assert f"Uid:\t{os.geteuid()}\t{os.geteuid()}\t{os.geteuid()}" in status
        assert str(identity["system_identifier"]) == node.sql("SELECT system_identifier FROM pg_control_system()")
        suffix = ".zst" if compression == "zstd" else ""
        assert files(host) == [f"{path.name}{suffix}" for path in complete]
        assert {path.owner() for path in host.directory.rglob("*")} == {ACCOUNT}


def test_two_ship_the_same_at_once(store, link, wal):
    paths = {name: wal(name) for name in NAMES[:8]}
    with ThreadPoolExecutor(2) as pool:

        def ship(destination):
            return [destination.put(name, path).new for name, path in paths.items()]

        one, other = pool.map(ship, [link(), link()])
    assert [sorted(pair) for pair in zip(one, other)] == [[False, True]] * 8
    assert files(store) == list(paths)


def test_it_lasts(store, link, wal):
    """One connection and one program for all of it."""
    destination = link()
    programs = store.programs()
    for name in NAMES:
        destination.put(name, wal(name))
    assert set(destination.has(NAMES)) == set(NAMES)
    assert destination.remove(NAMES[:-1]) == NAMES[:-1]
    assert files(store) == NAMES[-1:]
    assert store.programs() == programs
    assert len(programs) == 1
    destination.close()
    eventually(lambda: store.programs() == [])


# --- who is not let in -----------------------------------------------------------------------------------------------


def test_another_host_key_is_refused(store, link):
    make_key(store.home / "another", "root")
    public = (store.home / "another.pub").read_text(encoding="utf-8")
    for content in (f"[127.0.0.1]:{store.port} {public}", ""):
        (store.home / "known_hosts").write_text(content, encoding="utf-8")
        with pytest.raises(Refused, match=f"the host key of store .* is not the one in {store.home}/known_hosts: "):
            link()


def test_another_key_is_refused(store, link):
    make_key(store.home / "another", ACCOUNT)
    for key in ("another", "nothing"):
        with pytest.raises(Refused, match=f"does not let us in with the key {store.home}/{key}: run site.yml"):
            link(identity=str(store.home / key))


def test_a_shell_that_talks(store, link):
    store.authorize("echo Welcome to the archive; exec cat")
    with pytest.raises(Refused, match="store .* says 'Welcome to the archive' before the archive's program does"):
        link()


def test_a_program_that_is_not_there(store, link):
    store.authorize("/usr/bin/python3 -I /nowhere/hotspare.pyz archive-serve x")
    with pytest.raises(Unreachable, match="can't open file '/nowhere/hotspare.pyz'"):
        link()
    store.authorize(f"/usr/bin/python3 -I {store.program} archive-serve /nowhere.json")
    with pytest.raises(Refused, match="store .*: cannot read /nowhere.json: .*run site.yml"):
        link()


def test_the_key_is_good_for_nothing_else(store, link, archives):
    config = read_archive_config(str(archives.config("db1", destinations=[store.place])))
    command = [*ssh_command(config.destinations[0]), "127.0.0.1"]
    for wanted in ("id", "rsync --server -vlogDtpre.iLsfxCIvu . /", "bash -i"):
        done = subprocess.run([*command, wanted], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, "")
    plain = subprocess.run(command, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    assert b'"ok": true' in plain.stdout


# --- what breaks -----------------------------------------------------------------------------------------------------


def test_nobody_listens(store, link):
    store.stop()
    with pytest.raises(Unreachable, match="store .* cannot be reached: .*Connection refused"):
        link()
    store.start()
    assert link().hello()["name"] == "store"


def test_it_dies_in_the_middle_of_a_file(store, link, wal, monkeypatch):
    destination = link()
    destination.put(NAMES[0], wal(NAMES[0]))
    with monkeypatch.context() as patch:

        def dying(path, source=archive_link.source):
            content = b"".join(source(path))
            yield content[: MIB // 2]
            eventually(lambda: any(name.startswith(INCOMING) for name in files(store)))
            store.stop()
            yield content[MIB // 2 :]

        patch.setattr(archive_link, "source", dying)
        with pytest.raises(Unreachable, match="store .* cannot be reached"):
            destination.put(NAMES[1], wal(NAMES[1]))
    assert NAMES[1] not in files(store)
    store.start()
    # The half that was left behind goes, and the whole comes.
    assert link().put(NAMES[1], wal(NAMES[1])).new
    assert files(store) == NAMES[:2]


def test_who_ships_dies_in_the_middle_of_a_file(store, link, wal, monkeypatch):
    destination = link()

    def dying(path, source=archive_link.source):
        yield next(source(path))[: MIB // 2]
        eventually(lambda: any(name.startswith(INCOMING) for name in files(store)))
        destination._process.kill()
        yield bytes(MIB // 2)

    monkeypatch.setattr(archive_link, "source", dying)
    with pytest.raises(HotspareError):
        destination.put(NAMES[0], wal(NAMES[0]))
    eventually(lambda: files(store) == [] and store.programs() == [])


def test_it_freezes(store, link, wal, monkeypatch):
    """The network is cut, or the machine hangs: no connection ends, and nobody answers."""
    with monkeypatch.context() as patch:
        patch.setattr(archive_link, "ALIVE_COUNT", 1)  # 5 s: a busy machine says hello in that time
        destination = link()
    store.freeze()
    with pytest.raises(Unreachable, match="store .* cannot be reached: Timeout, server 127.0.0.1 not responding"):
        destination.put(NAMES[0], wal(NAMES[0]))
    store.thaw()
    assert link().put(NAMES[0], wal(NAMES[0])).size == MIB


def test_it_is_full(archives, link, wal, store):
    mount = ["mount", "-t", "tmpfs", "-o", f"size={3 * MIB},mode=0700,uid={store.directory.stat().st_uid}", "tmpfs"]
    subprocess.run([*mount, str(store.directory)], check=True)
    try:
        destination = link()
        with pytest.raises(Full, match="store: no room for .*: make some") as told:
            for name in NAMES:
                destination.put(name, wal(name))
        there = files(store)
        assert there == NAMES[: len(there)]
        assert there
        assert told.value.facts == {}
        # The connection goes on, and so does shipping when there is room.
        subprocess.run(["mount", "-o", f"remount,size={8 * MIB}", str(store.directory)], check=True)
        assert destination.put(NAMES[len(there)], wal(NAMES[len(there)])).new
    finally:
        store.stop()
        subprocess.run(["umount", str(store.directory)], check=True)
