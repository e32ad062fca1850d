# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""address.py: which interface, what the neighbours are told, what must still be sent, and what follows from a role."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import address
from ansible_collections.hotspare.postgresql.plugins.module_utils.address import Place
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError

PLACE = Place("192.0.2.100/24")


def link(name: str, *addresses: str, kind: str = "ether") -> dict[str, Any]:
    info = [{"family": "inet", "local": text} for text in addresses] + [{"family": "inet6", "local": "fe80::1"}]
    return {"ifname": name, "link_type": kind, "address": "02:42:ac:1e:56:0b", "addr_info": info}


LINKS = [link("lo", "127.0.0.1", kind="loopback"), link("eth0", "198.51.100.7"), link("eth1", "192.0.2.11")]


def test_the_interface_is_that_of_the_network_or_the_one_that_is_named():
    assert address.choose_link(LINKS, PLACE)["ifname"] == "eth1"
    assert address.choose_link(LINKS, Place("192.0.2.100/24", "eth0"))["ifname"] == "eth0"
    with pytest.raises(HotspareError, match="no interface eth9"):
        address.choose_link(LINKS, Place("192.0.2.100/24", "eth9"))
    # The address itself, left behind on some interface, does not make it that of the network.
    with pytest.raises(HotspareError, match=r"192\.0\.2\.0/24"):
        address.choose_link([link("eth0", "192.0.2.100")], PLACE)


def test_who_has_it():
    assert address.holders(LINKS, PLACE) == []
    assert address.holders([*LINKS, link("eth2", "192.0.2.12", "192.0.2.100")], PLACE) == ["eth2"]


@pytest.mark.parametrize("text", ["", "192.0.2.300/24", "db", "2001:db8::1/64"])
def test_what_is_no_address_is_told(text):
    with pytest.raises(HotspareError, match="node_service_address"):
        _ = Place(text).parsed


def test_the_announcement_says_whose_it_is_now():
    request, reply = address.announcements("02:42:ac:1e:56:0b", "192.0.2.100")
    own, ip = bytes.fromhex("0242ac1e560b"), socket.inet_aton("192.0.2.100")
    for frame, operation in ((request, 1), (reply, 2)):
        assert len(frame) == 42
        assert frame[:14] == b"\xff" * 6 + own + b"\x08\x06"
        assert frame[14:22] == b"\x00\x01\x08\x00\x06\x04" + operation.to_bytes(2, "big")
        assert (frame[22:28], frame[28:32], frame[38:42]) == (own, ip, ip)


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   107        0 1 1 0 100 0 0 10 0
   1: 640200C0:1538 010200C0:D431 01 00000000:00000000 00:00000000 00000000   107        0 2 1 0 100 0 0 10 0
   2: 640200C0:1538 010200C0:D432 04 00000000:00000000 00:00000000 00000000   107        0 3 1 0 100 0 0 10 0
   3: 640200C0:1538 010200C0:D433 05 00000000:00000000 00:00000000 00000000   107        0 4 1 0 100 0 0 10 0
   4: 640200C0:1539 010200C0:D434 01 00000000:00000000 00:00000000 00000000   107        0 5 1 0 100 0 0 10 0
   5: 0B0200C0:1538 010200C0:D435 01 00000000:00000000 00:00000000 00000000   107        0 6 1 0 100 0 0 10 0
"""


def test_what_must_still_be_sent():
    assert address.unsent(TABLE, "192.0.2.100", 5432) == 2  # open, and FIN-WAIT-1; FIN-WAIT-2 is confirmed
    assert address.unsent(TABLE, "192.0.2.100", 5433) == 1
    assert address.unsent(TABLE, "192.0.2.99", 5432) == 0


@pytest.fixture
def host(monkeypatch):
    """What was done to a host whose eth1 is in the network."""
    done: list[str] = []
    there = [*LINKS]

    def take(place):
        done.append("take")
        there[:] = [*LINKS[:2], link("eth1", "192.0.2.11", "192.0.2.100")]
        return there[2]

    def release(place, port):
        done.append("release")
        there[:] = LINKS

    monkeypatch.setattr(address, "take", take)
    monkeypatch.setattr(address, "release", release)
    monkeypatch.setattr(address, "links_now", lambda: there)
    monkeypatch.setattr(address, "announce", lambda link, place: done.append("announce"))
    return done


def test_it_follows_the_role(host, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(address.time, "monotonic", lambda: now[0])
    said: list[str] = []
    keeper = address.Keeper(PLACE, 5432, said.append)
    keeper.follow("standby")
    assert host == ["release"]  # what another process left behind
    keeper.follow("is starting")
    keeper.follow("primary")
    assert host == ["release", "take"]
    for seconds in (0.2, 0.2, 0.4, 2.0):
        now[0] += seconds
        keeper.follow("primary")
    assert host == ["release", "take", "announce", "announce"]
    now[0] += 0.1
    keeper.follow("primary")
    assert host[-3:] == ["announce"] * 3
    keeper.follow("is stopping")
    keeper.follow("does not run")
    assert host[-1] == "release"
    assert host.count("release") == 2
    assert said == [
        "192.0.2.100/24 is not here: the server is a standby",
        "192.0.2.100/24 is not here: the server is starting",
        "192.0.2.100/24 is on eth1: the server is the primary",
        "192.0.2.100/24 is not here: the server is stopping",
        "192.0.2.100/24 is not here: the server does not run",
    ]


def test_what_somebody_else_took_away_is_put_back(host, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(address.time, "monotonic", lambda: now[0])
    keeper = address.Keeper(PLACE, 5432, lambda text: None)
    keeper.follow("primary")
    address.links_now()[:] = LINKS
    now[0] += address.CHECK_SECONDS + 0.1
    keeper.follow("primary")
    assert host == ["release", "take", "take"] or host == ["take", "take"]


def test_what_fails_is_told_and_tried_again(host, monkeypatch):
    def fails(place):
        raise HotspareError("no interface")

    said: list[str] = []
    keeper = address.Keeper(PLACE, 5432, said.append)
    monkeypatch.setattr(address, "take", fails)
    keeper.follow("primary")
    keeper.follow("primary")
    assert said == ["192.0.2.100/24: no interface"]
    monkeypatch.undo()
    assert keeper.link is None


def test_systemd_is_told(tmp_path, monkeypatch):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        address.notify("WATCHDOG=1")
        assert manager.recv(100) == b"WATCHDOG=1"
    address.notify("nobody listens any more")
    monkeypatch.delenv("NOTIFY_SOCKET")
    address.notify("nobody ever did")
