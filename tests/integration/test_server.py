# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""server.py against real servers: why a connection fails, whom a node follows, and that we stay who we are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time
from pathlib import Path

import psycopg2.errors
import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import server
from ansible_collections.hotspare.postgresql.plugins.module_utils.conninfo import Upstream
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import (
    ConnectFailed,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.stopping import stop
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_restore import session

from .conftest import SLOW_SECONDS


@pytest.fixture(autouse=True)
def we_stay_root():
    """Whatever happens inside, we are who we were: the next program would run as the wrong account."""
    before = os.getresuid(), os.getresgid(), os.getgroups(), dict(os.environ)
    yield
    after = os.getresuid(), os.getresgid(), os.getgroups(), dict(os.environ)
    before[3]["PYTEST_CURRENT_TEST"] = after[3]["PYTEST_CURRENT_TEST"]
    assert after == before


def ask(connection, query):
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()


def mode_and_owner(path):
    status = os.stat(path)
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


# --- connections ----------------------------------------------------------------------------------------------------


def test_a_connection_is_the_accounts_and_bounded(pair):
    settings = "current_setting('statement_timeout'), current_setting('application_name')"
    connection = server.connect(pair.primary.instance, statement_timeout=7)
    assert connection.autocommit
    assert ask(connection, f"SELECT user, {settings}") == ("postgres", "7s", "hotspare")


def test_options_of_a_session_go_before_what_a_database_says(pair, major):
    """So that what a database of another host says is not loaded when somebody connects."""
    library = "session_preload_libraries"
    ask(server.connect(pair.primary.instance), f"ALTER DATABASE postgres SET {library} = 'auto_explain'; SELECT true")
    shown = f"SELECT current_setting('{library}'), current_setting('statement_timeout')"
    assert ask(server.connect(pair.primary.instance), shown) == ("auto_explain", "30s")
    quiet = server.connect(pair.primary.instance, options=session(major))
    assert ask(quiet, shown) == ("", "30s")


def test_variables_of_libpq_lead_nowhere_else(pair, monkeypatch):
    for name, value in {"PGHOST": "/no/such", "PGPORT": "1", "PGUSER": "nobody", "PGSERVICE": "x"}.items():
        monkeypatch.setenv(name, value)
    assert ask(server.connect(pair.primary.instance), "SELECT user") == ("postgres",)


@pytest.mark.parametrize("replication", [False, True])
def test_another_node_is_asked_with_the_passfile(pair, replication):
    connection = server.connect_conninfo(pair.primary.address, account="postgres", replication=replication)
    if replication:
        identifier, timeline, *_ = ask(connection, "IDENTIFY_SYSTEM")
        assert (identifier, timeline) == (pair.primary.control("Database system identifier"), 1)
    else:
        assert ask(connection, "SELECT user") == ("replicator",)


def test_a_missing_password_is_kind_auth(pair):
    address = {**pair.primary.address, "passfile": "/no/such/file"}
    with pytest.raises(ConnectFailed) as caught:
        server.connect_conninfo(address, account="postgres")
    assert caught.value.kind == "auth"
    assert "passfile" in caught.value.message and "\n" not in caught.value.message


def test_a_user_without_a_pg_hba_line_is_kind_auth(pair):
    with pytest.raises(ConnectFailed) as caught:
        server.connect_conninfo({**pair.primary.address, "user": "nobody"}, account="postgres")
    assert caught.value.kind == "auth"


def test_a_stopped_server_is_kind_refused(pair):
    pair.primary.stop()
    for connect in (
        lambda: server.connect(pair.primary.instance),
        lambda: server.connect_conninfo(pair.primary.address, account="postgres"),
    ):
        with pytest.raises(ConnectFailed) as caught:
            connect()
        assert caught.value.kind == "refused"
        assert caught.value.facts == {"kind": "refused"}


def test_a_frozen_server_is_kind_timeout(pair):
    pair.primary.freeze()
    for connect in (
        lambda: server.connect(pair.primary.instance, timeout=2),
        lambda: server.connect_conninfo(pair.primary.address, account="postgres", timeout=2),
    ):
        began = time.monotonic()
        with pytest.raises(ConnectFailed) as caught:
            connect()
        assert caught.value.kind == "timeout"
        assert time.monotonic() - began < SLOW_SECONDS
    pair.primary.thaw()


def test_a_standby_without_wal_is_kind_starting(pair, lab):
    """The server answers, but has not reached consistency."""
    node = lab.node("db-three", data=False)
    source = ["-h", "127.0.0.1", "-p", str(pair.primary.instance.port), "-U", "replicator", "-X", "none", "-c", "fast"]
    pair.primary.program("pg_basebackup", *source, "-d", f"passfile={node.passfile}", "-D", str(node.data))
    pair.primary.stop()
    server.set_standby_signal(node.instance, True)
    started = server.start(node.instance, timeout=2)
    assert (started["accepting"], node.running) == (False, True)
    with pytest.raises(ConnectFailed) as caught:
        server.connect(node.instance)
    assert caught.value.kind == "starting"


@pytest.mark.parametrize(
    ("status", "kind"), [("starting", "starting"), ("stopping", "shutting_down"), ("ready   ", "other")]
)
def test_a_server_of_another_language_is_asked_by_its_lock_file(pair, monkeypatch, status, kind):
    instance = pair.primary.instance
    lines = (pair.primary.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    pair.primary.stop()
    (pair.primary.data / "postmaster.pid").write_text("\n".join([*lines[:7], status, ""]), encoding="utf-8")

    def german(*_arguments):
        raise ConnectFailed("das Datenbanksystem ist woanders", "other")

    monkeypatch.setattr(server, "_open", german)
    with pytest.raises(ConnectFailed) as caught:
        server.connect(instance)
    assert caught.value.kind == kind


def test_the_server_of_another_directory_is_no_answer(pair):
    wrong = dataclasses.replace(pair.standby.instance, port=pair.primary.instance.port)
    with pytest.raises(ConnectFailed, match="belongs to the server of"):
        server.connect(wrong)


def test_a_statement_ends_in_time(pair):
    connection = server.connect(pair.primary.instance, statement_timeout=0.2)
    with contextlib.closing(connection), pytest.raises(psycopg2.errors.QueryCanceled, match="statement timeout"):
        connection.cursor().execute("SELECT pg_sleep(30)")


# --- whom it follows ------------------------------------------------------------------------------------------------


def upstream(pair, **changes):
    return dataclasses.replace(Upstream(**pair.primary.upstream(pair.standby)), **changes)


NASTY = {"application_name": 'it\'s \\ "so" äöü 100%', "passfile": "/tmp/a b/c'd\\e"}


@pytest.mark.parametrize("running", [True, False])
def test_an_upstream_is_what_a_start_would_use(pair, running):
    node = pair.standby
    wanted = upstream(pair, **NASTY, dbname="o'ne", extra={"sslmode": "prefer"})
    if not running:
        node.stop()
    assert server.upstream_differs(node.instance, wanted)
    assert server.write_upstream(node.instance, wanted) is True
    assert not server.upstream_differs(node.instance, wanted)
    assert server.write_upstream(node.instance, wanted) is False
    assert server.effective_setting(node.instance, "primary_conninfo") == wanted.conninfo()
    server.assert_upstream(node.instance, wanted)
    with pytest.raises(HotspareError, match="primary_slot_name"):
        server.assert_upstream(node.instance, dataclasses.replace(wanted, slot="other"))


def test_a_running_standby_follows_after_a_reload(pair):
    wanted = upstream(pair, application_name="it's \\ new")
    server.write_upstream(pair.standby.instance, wanted)
    server.reload(pair.standby.instance)
    query = "SELECT count(*) FROM pg_stat_replication WHERE application_name = $$it's \\ new$$ AND state = 'streaming'"
    deadline = time.monotonic() + 30
    while pair.primary.sql(query) != "1":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert pair.standby.sql("SHOW primary_conninfo") == wanted.conninfo()


@pytest.mark.parametrize("running", [True, False])
def test_what_alter_system_says_gives_way_and_the_rest_stays(pair, running):
    """postgresql.auto.conf would win over our file. A rewind leaves the wrong primary there."""
    node = pair.standby
    auto = node.data / "postgresql.auto.conf"
    for name, value in {"primary_conninfo": "host=wrong", "primary_slot_name": "wrong", "work_mem": "5MB"}.items():
        node.sql(f"ALTER SYSTEM SET {name} = '{value}'")
    if not running:
        node.stop()
        with auto.open("ab") as file:
            file.write(b"cluster_name = 'in latin1: \xe4'\n")
    before = mode_and_owner(auto)
    wanted = Upstream(**pair.primary.upstream(pair.standby))
    assert server.write_upstream(node.instance, wanted) is True
    assert server.write_upstream(node.instance, wanted) is False
    assert mode_and_owner(auto) == before
    content = auto.read_bytes()
    assert b"primary_" not in content and b"work_mem = '5MB'" in content
    assert running or b"cluster_name = 'in latin1: \xe4'" in content
    server.assert_upstream(node.instance, wanted)


def test_a_standby_without_its_signal_is_not_asserted(pair):
    pair.standby.stop()
    (pair.standby.data / "standby.signal").unlink()
    with pytest.raises(HotspareError, match=r"standby\.signal is missing"):
        server.assert_upstream(pair.standby.instance, upstream(pair))


def test_a_configuration_that_does_not_include_ours_is_found_out(pair):
    config = Path(pair.standby.instance.config_file)
    config.write_text(config.read_text(encoding="utf-8").replace("include_dir", "#include_dir"), encoding="utf-8")
    server.write_upstream(pair.standby.instance, upstream(pair))
    with pytest.raises(HotspareError, match="include_dir"):
        server.assert_upstream(pair.standby.instance, upstream(pair))


def test_without_conf_d_nothing_is_written(lab, pair):
    node = lab.node("db-three", data=False)
    (Path(node.instance.config_file).parent / "conf.d").rmdir()
    with pytest.raises(HotspareError, match="include_dir"):
        server.write_upstream(node.instance, upstream(pair))


def test_the_files_belong_to_the_account(pair):
    node = pair.primary
    node.stop()
    server.write_upstream(node.instance, upstream(pair))
    assert server.set_standby_signal(node.instance, True) is True
    assert server.set_standby_signal(node.instance, True) is False
    owner = os.stat(node.data)
    assert mode_and_owner(node.instance.upstream_file) == (0o640, owner.st_uid, owner.st_gid)
    assert mode_and_owner(node.data / "standby.signal") == (0o600, owner.st_uid, owner.st_gid)
    assert server.set_standby_signal(node.instance, False) is True
    assert server.set_standby_signal(node.instance, False) is False


def test_the_signal_of_a_running_server_stays(pair):
    for node, wanted in ((pair.primary, True), (pair.standby, False)):
        with pytest.raises(HotspareError, match="stop it first"):
            server.set_standby_signal(node.instance, wanted)
        assert server.has_signal(node.instance, "standby.signal") is not wanted


# --- processes ------------------------------------------------------------------------------------------------------


def test_processes_are_those_of_this_server(pair):
    for node in (pair.primary, pair.standby):
        assert server.process_id(node.instance) == node.postmaster
        found = server.processes(node.instance)
        assert node.postmaster in found and len(found) > 3
    assert not set(server.processes(pair.primary.instance)) & set(server.processes(pair.standby.instance))


def test_a_crash_leaves_a_stale_lock_file(pair):
    pair.primary.crash()
    assert (pair.primary.data / "postmaster.pid").exists()
    assert server.process_id(pair.primary.instance) is None
    assert server.processes(pair.primary.instance) == []


def test_stop_tells_clean_and_control(pair):
    stopped = stop(pair.standby.instance)
    assert stopped["clean"] and stopped["control"].state == "shut down in recovery"
    assert stop(pair.standby.instance)["clean"]
    assert server.start(pair.standby.instance)["accepting"]
    assert server.start(pair.standby.instance)["accepting"]
    stopped = stop(pair.primary.instance, "immediate")
    assert not stopped["clean"] and stopped["process_id"] is None
