# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module zfs_snapshot_send between two machines with real OpenZFS, beside the cluster that runs there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

MODULE = "zfs_snapshot_send"
TOP, THERE = "tank/send", "vault/copies"
PART = 16  # MB, of which pipes and sockets hold some 5: a stream that is slowed down takes half a minute for it
ARRIVED = 1 << 19  # bytes that the destination has on disk: these need not be sent again


class Send:
    """A tree on the first machine, and what sends it to the second."""

    def __init__(self, guests: Any, inventory: str) -> None:
        self.guests, self.inventory = guests, inventory
        self.one, self.two = guests.names

    # --- hands -------------------------------------------------------------------------------------------------------

    def command(self, check: bool, args: dict[str, Any], node: str) -> list[str]:
        module = f"hotspare.postgresql.{MODULE}"
        argv = ["ansible", node, "-i", self.inventory, "-m", module, "-a", json.dumps(args)]
        return [*argv, *(["--check"] if check else [])]

    def start(
        self, args: dict[str, Any], node: str = "", check: bool = False, pipelining: bool = True
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(check, args, node or self.one),
            env={
                **os.environ,
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_FORCE_COLOR": "0",
                "ANSIBLE_PIPELINING": str(pipelining),
                "ANSIBLE_STRATEGY": "linear",  # mitogen does not pay for a single task
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        output, _ = process.communicate(timeout=300)
        found = re.search(r"(SUCCESS|CHANGED|FAILED!) => (\{.*)", output, re.DOTALL)
        assert found, output
        result: dict[str, Any] = {"failed": found[1] == "FAILED!", **json.JSONDecoder().raw_decode(found[2])[0]}
        print(json.dumps(result, indent=1))
        return result

    def run(self, check: bool = False, node: str = "", **args: Any) -> dict[str, Any]:
        result = self.finish(self.start({**self.args, **args}, node, check))
        assert not result.get("failed"), result["msg"]
        return result

    def refused(self, **args: Any) -> str:
        """The sentence; nothing was changed. That check mode says the same is tested where it takes no time."""
        before = self.state()
        result = self.finish(self.start({**self.args, **args}))
        assert result["failed"], result
        assert self.state() == before
        return str(result["msg"])

    @property
    def args(self) -> dict[str, Any]:
        return {
            "source": {"dataset": f"{TOP}/pg"},
            "destination": {"dataset": f"{THERE}/pg", **self.login(self.two)},
            "recursive": True,
        }

    def login(self, node: str) -> dict[str, Any]:
        return {"host": node, "identity": "/root/.ssh/id_ed25519", "known_hosts": "/root/.ssh/known_hosts"}

    def zfs(self, node: str, *words: str, check: bool = True) -> str:
        return str(self.guests.run(node, "zfs", *words, check=check))

    def fill(self, node: str, path: str, megabytes: int = 1) -> None:
        """What no compression makes smaller."""
        self.guests.run(node, "dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={megabytes}", "conv=fsync")

    # --- eyes --------------------------------------------------------------------------------------------------------

    def guids(self, node: str, dataset: str) -> dict[str, str]:
        listed = self.zfs(node, "list", "-Hpr", "-t", "snapshot", "-s", "createtxg", "-o", "name,guid", dataset)
        rows = (line.split("\t") for line in listed.splitlines())
        return {name[len(dataset) :]: guid for name, guid in rows}

    def holds(self, node: str, snapshot: str) -> set[str]:
        return {line.split("\t")[1] for line in self.zfs(node, "holds", "-H", snapshot).splitlines()}

    def value(self, node: str, name: str, key: str) -> str:
        return self.zfs(node, "get", "-Hp", "-o", "value", key, name).strip()

    def token(self, node: str, name: str) -> str:
        found = self.zfs(node, "get", "-Hp", "-o", "value", "receive_resume_token", name, check=False).strip()
        return "" if found == "-" else found

    def state(self) -> list[str]:
        """All that ZFS has of the two trees."""
        found = []
        for node, top in ((self.one, TOP), (self.two, THERE)):
            names = (
                "guid,createtxg,userrefs,mountpoint,canmount,readonly,origin,hotspare:made,hotspare:from,hotspare:flags"
            )
            found.append(self.zfs(node, "get", "-Hpr", "-t", "all", "-o", "name,property,value", names, top))
            found.append(self.zfs(node, "get", "-Hpr", "-t", "filesystem", "-o", "value", "receive_resume_token", top))
        return found

    def content(self, node: str, snapshot: str) -> str:
        """The sums of the files in a snapshot, read through a clone of it."""
        dataset = snapshot.partition("@")[0]
        clone = f"{dataset.partition('/')[0]}/look"
        self.zfs(node, "clone", "-o", "readonly=on", "-o", "mountpoint=/mnt/look", "-o", "canmount=on", snapshot, clone)
        try:
            return str(self.guests.run(node, "sh", "-c", "cd /mnt/look && find . -type f -exec sha256sum {} + | sort"))
        finally:
            self.zfs(node, "destroy", clone)

    def same(self, name: str, below: tuple[str, ...] = ("", "/wal")) -> None:
        for one in below:
            here = self.content(self.one, f"{TOP}/pg{one}@{name}")
            assert here
            assert here == self.content(self.two, f"{THERE}/pg{one}@{name}")

    def wait_for(self, look: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
        """The first true answer; not while a process that would make it so has ended."""
        deadline = time.monotonic() + 180
        while True:
            answer = look()
            if answer:
                return answer
            assert process is None or process.poll() is None, process.communicate()[0] if process else ""
            assert time.monotonic() < deadline
            time.sleep(0.1)


def release_and_destroy(send: Send, node: str, top: str) -> None:
    """Only datasets that these tests made."""
    if send.zfs(node, "list", "-H", top, check=False):
        for line in send.zfs(node, "list", "-Hr", "-t", "snapshot", "-o", "name,userrefs", top).splitlines():
            name, userrefs = line.split("\t")
            for tag in send.holds(node, name) if userrefs != "0" else ():
                send.zfs(node, "release", tag, name)
        for line in send.zfs(node, "list", "-Hr", "-t", "filesystem", "-o", "name", top).splitlines():
            if send.token(node, line):
                send.zfs(node, "receive", "-A", line)
        send.zfs(node, "destroy", "-R", top)


@pytest.fixture
def send(guests: Any, lab: Any) -> Iterator[Send]:
    found = Send(guests, lab.inventory)

    def clean() -> None:
        release_and_destroy(found, found.one, TOP)
        release_and_destroy(found, found.two, THERE)

    clean()
    found.zfs(found.one, "create", "-o", "mountpoint=/mnt/send", "-o", "canmount=off", TOP)
    found.zfs(found.one, "create", "-o", "recordsize=8k", f"{TOP}/pg")
    found.zfs(found.one, "create", f"{TOP}/pg/wal")
    found.zfs(found.two, "create", "-o", "mountpoint=none", "-o", "canmount=off", THERE)
    for below in ("", "/wal"):
        found.fill(found.one, f"/mnt/send/pg{below}/first")
    yield found
    clean()


@pytest.fixture
def four_steps(send: Send) -> Callable[..., list[dict[str, Any]]]:
    """four_steps("zfs_snapshot_send", {...}) -> results of: check mode, real, check mode again, real again."""

    def steps(name: str, args: dict[str, Any]) -> list[dict[str, Any]]:
        assert name == MODULE
        before = send.state()
        results = []
        for check, changed in ((True, True), (False, True), (True, False), (False, False)):
            results.append(send.run(check, **args))
            assert results[-1]["changed"] is changed
            if len(results) == 1:
                assert send.state() == before
            elif len(results) == 2:
                after = send.state()
                assert after != before
            else:
                assert send.state() == after
        return results

    return steps


# --- what it does ----------------------------------------------------------------------------------------------------


def test_four_steps(send, four_steps):
    mountpoint = {"canmount": "noauto", "mountpoint": "/mnt/copy", "readonly": "on"}
    planned, sent, *again = four_steps(MODULE, {"snapshot": "seed", "properties": mountpoint})
    assert (planned["kind"], sent["kind"]) == ("full", "full")
    assert [one["kind"] for one in again] == ["none", "none"]
    assert sent["sent_bytes"] > 2 << 20
    assert planned["estimated_bytes"] > 2 << 20
    txgs = {one["createtxg"] for one in sent["snapshots"]}
    assert len(txgs) == 1
    guids = {one["dataset"]: one["guid"] for one in sent["snapshots"]}
    there = send.guids(send.two, f"{THERE}/pg")
    assert {f"{TOP}/pg": there["@seed"], f"{TOP}/pg/wal": there["/wal@seed"]} == guids
    assert send.holds(send.one, f"{TOP}/pg@seed") == send.holds(send.two, f"{THERE}/pg/wal@seed") == {"hotspare"}
    top, wal = f"{THERE}/pg", f"{THERE}/pg/wal"
    assert [send.value(send.two, top, key) for key in ("canmount", "mountpoint", "mounted", "recordsize")] == [
        "noauto",
        "/mnt/copy",
        "no",
        "8192",
    ]
    assert [send.value(send.two, wal, key) for key in ("canmount", "mountpoint", "readonly")] == [
        "noauto",
        "/mnt/copy/wal",
        "on",
    ]
    send.same("seed")


def pruned(result: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["side"], one["snapshot"].partition("@")[2]) for one in result["pruned"]}


def test_only_what_changed_and_retention(send):
    args = send.args
    args["source"]["keep_count"], args["destination"]["keep_count"] = 1, 2
    first = send.run(**args)
    send.fill(send.one, "/mnt/send/pg/second")
    second = send.run(**args)
    assert second["kind"] == "incremental"
    assert pruned(second) == {("source", first["snapshot"])}
    assert 1 << 20 < second["sent_bytes"] < 2 << 20
    empty = send.run(**args)
    assert empty["kind"] == "incremental"
    assert empty["sent_bytes"] < 100_000
    assert pruned(empty) == {("source", second["snapshot"]), ("destination", first["snapshot"])}
    names = [second["snapshot"], empty["snapshot"]]
    assert [key for key in send.guids(send.two, f"{THERE}/pg") if key.startswith("@")] == [f"@{name}" for name in names]
    assert send.holds(send.two, f"{THERE}/pg@{names[0]}") == set()
    assert send.holds(send.one, f"{TOP}/pg@{names[1]}") == {"hotspare"}
    send.same(empty["snapshot"])


@pytest.mark.soak
def test_from_a_bookmark_and_pulled(send):
    """The second machine asks the first one."""
    source = {"dataset": f"{TOP}/pg", **send.login(send.one)}
    pulled = {"source": source, "destination": {"dataset": f"{THERE}/pg"}}
    send.run(node=send.two, **pulled, snapshot="base")
    for below in ("", "/wal"):
        name = f"{TOP}/pg{below}"
        send.zfs(send.one, "bookmark", f"{name}@base", f"{name}#base")
        send.zfs(send.one, "release", "hotspare", f"{name}@base")
        send.zfs(send.one, "destroy", f"{name}@base")
    send.fill(send.one, "/mnt/send/pg/wal/second")
    found = send.run(node=send.two, **pulled, snapshot="next")
    assert (found["kind"], found["transfers"][0]["base"]) == ("incremental", f"{TOP}/pg#base")
    send.same("next")


@pytest.mark.soak
def test_within_one_machine(send):
    send.zfs(send.one, "create", "-o", "mountpoint=none", f"{TOP}/here")
    args = {"destination": {"dataset": f"{TOP}/here/pg"}, "snapshot": "seed"}
    assert send.run(**args)["kind"] == "full"
    assert send.run(**args)["changed"] is False
    assert send.guids(send.one, f"{TOP}/here/pg") == send.guids(send.one, f"{TOP}/pg")


# --- what breaks, and goes on ----------------------------------------------------------------------------------------


SOAKED = [pytest.param(victim, marks=pytest.mark.soak) for victim in ("network", "module")]


@pytest.mark.parametrize("victim", ["sender", "receiver", *SOAKED])
def test_what_broke_goes_on(send, victim):
    send.fill(send.one, "/mnt/send/pg/much", PART)
    send.guests.run(send.one, "rm", "-f", "/run/hotspare-send.json")
    with send.guests.slow(send.one):
        args = {**send.args, "snapshot": "seed", "status_file": "/run/hotspare-send.json"}
        # Only a module that was copied there can be told from others by its command line.
        process = send.start(args, pipelining=victim != "module")
        progress = "import json; print(json.load(open('/run/hotspare-send.json'))['sent_bytes'])"
        look = ["python3", "-c", progress]
        send.wait_for(lambda: int(send.guests.run(send.one, *look, check=False) or 0) > 1 << 20, process)
        used = ("get", "-Hp", "-o", "value", "used", f"{THERE}/pg")
        send.wait_for(lambda: int(send.zfs(send.two, *used, check=False) or 0) > ARRIVED, process)
        if victim == "network":
            with send.guests.cut_off(send.two):
                result = send.finish(process)
        else:
            node = send.two if victim == "receiver" else send.one
            # Not with a pattern that the shell which looks for it has in its own command line.
            pattern = {"sender": "^zfs send", "receiver": "^zfs receive", "module": "zfs_snapshot_sen[d]"}[victim]
            send.guests.run(node, "pkill", "-KILL", "-f", pattern)
            if victim == "module":
                process.communicate(timeout=60)
                result = {"failed": True, "msg": "zfs"}
            else:
                result = send.finish(process)
    assert result["failed"]
    assert "zfs" in result["msg"]
    token = send.wait_for(lambda: send.token(send.two, f"{THERE}/pg"))
    if victim == "sender":
        planned = send.run(True, snapshot="seed")
        assert (planned["kind"], send.token(send.two, f"{THERE}/pg")) == ("resumed", token)
    found = send.run(snapshot="seed")
    assert [one["kind"] for one in found["transfers"]] == ["resumed", "full"]
    whole = int(send.guests.run(send.one, "sh", "-c", f"zfs send -Lec {TOP}/pg@seed | wc -c"))
    assert found["transfers"][0]["sent_bytes"] < whole - ARRIVED // 2
    send.same("seed")


@contextmanager
def interrupted(send: Send) -> Iterator[str]:
    """The token of a stream that broke off, of which nothing is under way any more."""
    send.fill(send.one, "/mnt/send/pg/much", PART)
    with send.guests.slow(send.one):
        process = send.start({**send.args, "snapshot": "seed"})
        send.wait_for(lambda: send.guests.run(send.two, "pgrep", "-f", "^zfs receive", check=False), process)
        time.sleep(3)  # some blocks arrive
        send.guests.run(send.one, "pkill", "-KILL", "-f", "^zfs send")
        assert send.finish(process)["failed"]
    yield send.wait_for(lambda: send.token(send.two, f"{THERE}/pg"))


@pytest.mark.soak
def test_a_dead_token_is_given_up(send):
    with interrupted(send):
        for below in ("", "/wal"):
            send.zfs(send.one, "release", "hotspare", f"{TOP}/pg{below}@seed")
            send.zfs(send.one, "destroy", f"{TOP}/pg{below}@seed")
        found = send.run(snapshot="anew")
    assert found["steps"][0].startswith(f"destination: zfs receive -A {THERE}/pg (")
    assert found["kind"] == "full"
    send.same("anew")


@pytest.mark.soak
def test_a_token_of_another_is_left_alone(send):
    with interrupted(send) as token:
        send.zfs(send.two, "inherit", "hotspare:from", f"{THERE}/pg")
        for below in ("", "/wal"):
            send.zfs(send.one, "release", "hotspare", f"{TOP}/pg{below}@seed")
        assert f"holds a half-received stream of {TOP}/pg@seed that is not ours" in send.refused()
        assert send.token(send.two, f"{THERE}/pg") == token


# --- what is in the way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["written", "snapshots", "foreign"])
def test_what_is_in_the_way_is_kept(send, how):
    there = f"{THERE}/pg"
    properties = {"canmount": "noauto", "mountpoint": "/mnt/copy", "readonly": "off"}
    if how == "foreign":
        send.zfs(send.two, "create", "-o", "mountpoint=/mnt/copy", there)
        send.zfs(send.two, "create", f"{there}/wal")
    else:
        send.run(snapshot="seed", properties=properties)
        send.zfs(send.two, "mount", there)
    send.fill(send.two, "/mnt/copy/mine")
    if how == "snapshots":
        send.zfs(send.two, "snapshot", "-r", f"{there}@mine")
    mine = send.guests.run(send.two, "sha256sum", "/mnt/copy/mine").split()[0]
    assert {
        "written": f"{there} on {send.two} was written to since seed",
        "snapshots": f"{there} on {send.two} has snapshots of its own since seed: mine",
        "foreign": f"{there} on {send.two} is there and has no snapshot",
    }[how] in send.refused(snapshot="next")

    if how == "written":
        keeps_what_is_in_use(send, there, properties)
    send.fill(send.one, "/mnt/send/pg/second")
    found = send.run(snapshot="next", in_the_way="rename", properties=properties)
    aside = found["renamed"]
    assert re.fullmatch(re.escape(there) + r"-aside-\d{8}T\d{6}Z", aside)
    assert found["kind"] == ("full" if how == "foreign" else "incremental")
    assert [send.value(send.two, aside, key) for key in ("mounted", "canmount")] == ["no", "noauto"]
    assert send.value(send.two, there, "recordsize") == "8192"
    send.same("next")
    send.zfs(send.two, "set", "mountpoint=/mnt/aside", aside)
    send.zfs(send.two, "mount", aside)
    assert send.guests.run(send.two, "sha256sum", "/mnt/aside/mine").split()[0] == mine
    send.zfs(send.two, "unmount", aside)
    if how == "snapshots":
        assert send.run(snapshot="next", properties=properties)["changed"] is False
        assert send.run(snapshot="more")["kind"] == "incremental"


def keeps_what_is_in_use(send: Send, there: str, properties: dict[str, str]) -> None:
    """A process that works in it keeps it where it is."""
    before = send.state()
    in_use = subprocess.Popen(
        [
            "ssh",
            "-F",
            f"{os.environ['MOLECULE_PROJECT_DIRECTORY']}/.cache/guests/ssh_config",
            send.two,
            "cd /mnt/copy && echo there && read _",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert in_use.stdout is not None and in_use.stdout.readline() == "there\n"
    result = send.finish(
        send.start({**send.args, "snapshot": "next", "in_the_way": "rename", "properties": properties})
    )
    assert result["failed"]
    assert "busy; stop what uses it" in result["msg"]
    assert (send.state(), send.value(send.two, there, "mounted")) == (before, "yes")
    in_use.communicate("\n", timeout=60)


@pytest.mark.soak
def test_back_after_a_cutover(send):
    """What received sends now, and the other way round: from what both held all the time."""
    properties = {"canmount": "noauto", "mountpoint": "/mnt/copy", "readonly": "off"}
    send.run(snapshot="seed", properties=properties)
    for name in (f"{THERE}/pg", f"{THERE}/pg/wal"):
        send.zfs(send.two, "mount", name)
    send.fill(send.two, "/mnt/copy/new")
    send.fill(send.one, "/mnt/send/pg/lost")
    back = {
        "source": {"dataset": f"{THERE}/pg"},
        "destination": {"dataset": f"{TOP}/pg", **send.login(send.one)},
        "snapshot": "back",
        "in_the_way": "rename",
        "properties": {"canmount": "noauto", "mountpoint": "/mnt/send/pg", "readonly": "off"},
    }
    found = send.run(node=send.two, **back)
    assert found["kind"] == "incremental"
    assert found["sent_bytes"] < 2 << 20
    assert send.run(node=send.two, **back)["changed"] is False
    send.same("back")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_would_be_no_whole_copy_is_refused(send):
    for below in ("", "/wal"):
        send.zfs(send.one, "snapshot", f"{TOP}/pg{below}@apart")
    assert "were not taken at once (transaction groups: " in send.refused(snapshot="apart")
    send.zfs(send.two, "set", "quota=1M", THERE)
    assert "would be sent: make room in the pool vault, or see its quotas" in send.refused()


@pytest.mark.soak
def test_refusals(send):
    assert "and `allow_full` is false" in send.refused(allow_full=False)
    assert "is mounted at /mnt/send/pg/wal, inside of" in send.refused(recursive=False)
    assert "is a whole pool" in send.refused(destination={"dataset": "vault", **send.login(send.two)})
    far = {"dataset": "vault/none/pg", **send.login(send.two)}
    assert "there is no vault/none" in send.refused(destination=far)
    wrong = {**send.args["destination"], "known_hosts": "/dev/null"}
    assert "the host key of root@" in send.refused(destination=wrong)
    both = {"dataset": f"{TOP}/pg", **send.login(send.two)}
    assert "would take a detour" in send.refused(source=both)
    assert "there is no dataset" in send.refused(source={"dataset": "tank/nothing"})


@pytest.fixture
def secret(send):
    """What sends an encrypted dataset."""
    key = ["-o", "encryption=aes-256-gcm", "-o", "keyformat=raw", "-o", "keylocation=file:///root/zfs.key"]
    send.guests.run(send.one, "dd", "if=/dev/urandom", "of=/root/zfs.key", "bs=32", "count=1")
    send.zfs(send.one, "create", *key, f"{TOP}/secret")
    send.fill(send.one, "/mnt/send/secret/file")
    return {
        "source": {"dataset": f"{TOP}/secret"},
        "destination": {"dataset": f"{THERE}/secret", **send.login(send.two)},
        "recursive": False,
    }


def test_an_encrypted_source_is_refused(send, secret):
    assert "is encrypted: set `raw: true`" in send.refused(**secret)


@pytest.mark.soak
def test_an_encrypted_source_is_sent_as_it_is(send, secret):
    args = {**secret, "snapshot": "seed"}
    sent = send.run(**args, raw=True)
    assert " send -w " in " ".join(sent["steps"])
    assert send.value(send.two, f"{THERE}/secret", "keystatus") == "unavailable"
    assert send.run(**args, raw=True)["changed"] is False
    send.fill(send.one, "/mnt/send/secret/more")
    args["snapshot"] = "next"
    assert "was received encrypted (raw), and a chain cannot change that" in send.refused(**args, raw=False)
    assert send.run(**args, raw=True)["kind"] == "incremental"


# --- who may what ----------------------------------------------------------------------------------------------------

PROGRAM = "/usr/bin/python3 -I /usr/local/lib/hotspare/hotspare.pyz"  # which site.yml has installed
CONFIG = "/etc/hotspare-zfs-send.json"


@contextmanager
def authorized(send: Send, account: str, home: str, options: str = "") -> Iterator[dict[str, Any]]:
    """The login of a new key of the first machine at the second one."""
    key = f"/root/key-{account}"
    send.guests.run(send.one, "rm", "-f", key, f"{key}.pub")
    send.guests.run(send.one, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    public = send.guests.run(send.one, "cat", f"{key}.pub")
    path = f"{home}/.ssh/authorized_keys"
    before = send.guests.run(send.two, "cat", path, check=False)
    send.guests.run(send.two, "install", "-d", "-m", "700", "-o", account, f"{home}/.ssh")
    send.guests.run(send.two, "tee", path, stdin=f"{before}{options}{public}")
    send.guests.run(send.two, "chown", account, path)
    try:
        yield {**send.login(send.two), "identity": key, "account": account}
    finally:
        send.guests.run(send.two, "tee", path, stdin=before)


@pytest.mark.soak
def test_a_key_that_may_receive_one_dataset(send):
    properties = {"canmount": "noauto", "readonly": "on"}
    copied = ["recordsize", "compression", "atime"]
    config = {"prefix": "hotspare", "receive": [f"{THERE}/pg"], "properties": properties, "copied": copied}
    send.guests.run(send.two, "tee", CONFIG, stdin=json.dumps(config))
    forced = f'restrict,command="{PROGRAM} zfs-serve {CONFIG}" '
    with authorized(send, "root", "/root", forced) as login:
        there = {"dataset": f"{THERE}/pg", **login}
        assert send.run(destination=there, snapshot="seed")["kind"] == "full"
        assert send.run(destination=there, snapshot="seed")["changed"] is False
        other = {"dataset": f"{THERE}/other", **login}
        assert "this key may not run" in send.refused(destination=other)
        ssh = ["ssh", "-i", login["identity"], "-o", "IdentitiesOnly=yes", send.two]
        send.guests.run(send.one, *ssh, f"zfs destroy -r {THERE}/pg", check=False)
        send.guests.run(send.one, *ssh, f"env x zfs destroy -r {THERE}/pg", check=False)
    send.same("seed")


@pytest.mark.soak
def test_an_account_with_delegated_rights(send):
    """It may do what was allowed, and is told what was not."""
    send.guests.run(send.two, "useradd", "--create-home", "zrecv", check=False)
    rights = "create,mount,receive,hold,release,userprop,canmount,readonly,recordsize,compression,atime"
    send.zfs(send.two, "allow", "zrecv", rights, THERE)
    with authorized(send, "zrecv", "/home/zrecv") as login:
        there = {"dataset": f"{THERE}/pg", **login}
        assert send.run(destination=there, snapshot="seed")["kind"] == "full"
        assert send.run(destination=there, snapshot="seed")["changed"] is False
        send.same("seed")
        send.zfs(send.two, "unallow", "zrecv", THERE)
        result = send.finish(send.start({**send.args, "destination": there, "snapshot": "next"}))
        assert result["failed"]
        assert "permission denied; allow it there (zfs allow), or work as root" in result["msg"]
