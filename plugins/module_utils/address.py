# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service address (IPv4) that is on the node whose server is the primary, and on no other.

A process beside each server keeps one connection to it. It adds the address when the server is a primary and tells the
neighbours (gratuitous ARP, RFC 5227); it takes it away as soon as the server stops, ends or no longer answers, after
the server's connections have been closed over it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from .server import ConnectFailed, Instance, connect, is_stopping
from .shell import HotspareError, run

PRIMARY_SECONDS = 0.1  # between two looks at a primary; if it closes the connection that is seen at once
OTHER_SECONDS = 0.05  # between two looks at any other: clients wait for the new primary
ANSWER_SECONDS = 5.0  # a server that takes longer to say what it is serves nobody
LINGER_SECONDS = 0.2  # for the last packets of connections that the server has closed
CHECK_SECONDS = 1.0  # whether somebody else took the address away, or changed our files
ANNOUNCE_SECONDS = (0.0, 0.1, 0.5, 2.0)  # after the address is there; a packet may be lost
PROGRAM_SECONDS = 5

# What may still have to be sent (RFC 793's names): the other end has not confirmed that it is over.
UNSENT = {0x01: "ESTABLISHED", 0x04: "FIN-WAIT-1", 0x09: "LAST-ACK", 0x0B: "CLOSING"}


@dataclass(frozen=True)
class Place:
    """The address with its network's length, `192.0.2.10/24`, and its interface (empty: the one of that network)."""

    address: str
    interface: str = ""

    @property
    def parsed(self) -> ipaddress.IPv4Interface:
        """HotspareError when it is none."""
        try:
            return ipaddress.IPv4Interface(self.address)
        except ValueError as error:
            raise HotspareError(
                f"node_service_address is no IPv4 address with its network's length: {error}"
            ) from error

    @property
    def ip(self) -> str:
        return str(self.parsed.ip)


# ---------------------------------------------------------------------------------------------------------------------
# Decided (pure)
# ---------------------------------------------------------------------------------------------------------------------


def choose_link(links: Sequence[Mapping[str, Any]], place: Place) -> dict[str, Any]:
    """The interface for the address, of those that `ip -json address` shows; HotspareError when there is none."""
    if place.interface:
        for link in links:
            if link["ifname"] == place.interface:
                return dict(link)
        raise HotspareError(f"there is no interface {place.interface}: correct node_service_interface")
    network = place.parsed.network
    for link in links:
        if any(ip in network and str(ip) != place.ip for ip in addresses_of(link)):
            return dict(link)
    raise HotspareError(f"no interface has an address in {network}: set node_service_interface")


def addresses_of(link: Mapping[str, Any]) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses of an interface."""
    found = [entry["local"] for entry in link.get("addr_info", []) if entry.get("family") == "inet"]
    return [ipaddress.IPv4Address(address) for address in found]


def holders(links: Sequence[Mapping[str, Any]], place: Place) -> list[str]:
    """The interfaces that have the address."""
    return [str(link["ifname"]) for link in links if place.parsed.ip in addresses_of(link)]


def announcements(mac: str, ip: str) -> list[bytes]:
    """The two Ethernet frames that tell all neighbours who has an address: ARP request and reply. RFC 826, 5227."""
    own, address = bytes.fromhex(mac.replace(":", "")), socket.inet_aton(ip)
    everybody = b"\xff" * 6
    frames = []
    for operation, target in ((1, b"\0" * 6), (2, everybody)):
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + own + address + target + address
        frames.append(everybody + own + struct.pack("!H", 0x0806) + arp)
    return frames


def unsent(table: str, ip: str, port: int) -> int:
    """How many connections to the address and port in /proc/net/tcp are not over on both sides."""
    local = f"{int.from_bytes(socket.inet_aton(ip), 'little'):08X}:{port:04X}"
    rows = [line.split() for line in table.splitlines()[1:]]
    return sum(1 for row in rows if len(row) > 3 and row[1] == local and int(row[3], 16) in UNSENT)


# ---------------------------------------------------------------------------------------------------------------------
# What the server is
# ---------------------------------------------------------------------------------------------------------------------


class Witness:
    """The lasting connection to the server of this node."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.connection: Any = None

    def look(self) -> str:
        """primary, standby, or why it is neither: a sentence's end such as `is stopping`."""
        import psycopg2

        # Before it is asked: a smart shutdown would wait for this very connection.
        if is_stopping(self.instance):
            self.close()
            return "is stopping"
        try:
            if self.connection is None:
                self.connection = connect(self.instance, timeout=ANSWER_SECONDS)
            with self.connection.cursor() as cursor:
                cursor.execute("SELECT pg_catalog.pg_is_in_recovery()")
                return "standby" if cursor.fetchone()[0] else "primary"
        except ConnectFailed as error:
            return {"refused": "does not run", "starting": "is starting"}.get(
                error.kind, f"is not known: {error.message}"
            )
        except psycopg2.Error as error:
            self.close()
            return f"ended the connection ({' '.join(str(error).split()) or 'without a word'})"

    def rest(self, seconds: float) -> None:
        """Wait, but no longer than until the server closes the connection."""
        descriptors = [] if self.connection is None else [self.connection.fileno()]
        select.select(descriptors, [], [], seconds)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _wait_for_answer(connection: Any) -> None:
    """psycopg2's way to wait, with an end: a frozen server must not freeze us."""
    import psycopg2
    from psycopg2 import extensions

    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        state = connection.poll()
        if state == extensions.POLL_OK:
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise psycopg2.OperationalError(f"timeout expired: no answer within {ANSWER_SECONDS:g} s")
        waiting = [connection.fileno()]
        reading = state == extensions.POLL_READ
        select.select(waiting if reading else [], [] if reading else waiting, [], left)


# ---------------------------------------------------------------------------------------------------------------------
# Where the address is
# ---------------------------------------------------------------------------------------------------------------------


def links_now() -> list[dict[str, Any]]:
    """The interfaces of this host; HotspareError."""
    shown = run(["ip", "-json", "address", "show"], timeout=PROGRAM_SECONDS).stdout
    found: list[dict[str, Any]] = json.loads(shown)
    return found


def take(place: Place) -> dict[str, Any]:
    """Put the address on its interface, if it is not there yet, and tell the neighbours; the interface."""
    links = links_now()
    link = choose_link(links, place)
    if not holders(links, place):
        run(["ip", "address", "add", place.address, "dev", link["ifname"]], timeout=PROGRAM_SECONDS)
    announce(link, place)
    return link


def release(place: Place, port: int) -> bool:
    """Take the address away, True if it was there. A connection that is being closed gets a moment, and one that the
    server holds open after that is reset, since its client could not learn otherwise that nobody is there."""
    found = holders(links_now(), place)
    if not found:
        return False
    deadline = time.monotonic() + LINGER_SECONDS
    while (left := unsent(_tcp_table(), place.ip, port)) and time.monotonic() < deadline:
        time.sleep(0.005)
    if left:
        # Not every kernel can (CONFIG_INET_DIAG_DESTROY); the address goes all the same.
        reset = ["ss", "--kill", "--tcp", "--no-header", f"src {place.ip} and sport = :{port}"]
        with contextlib.suppress(HotspareError):
            run(reset, timeout=PROGRAM_SECONDS)
    for interface in found:
        run(["ip", "address", "delete", place.address, "dev", interface], timeout=PROGRAM_SECONDS)
    return True


def announce(link: Mapping[str, Any], place: Place) -> None:
    """Tell the neighbours of an Ethernet; others have none."""
    if link.get("link_type") != "ether":
        return
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as ethernet:
            ethernet.bind((link["ifname"], 0x0806))
            for frame in announcements(link["address"], place.ip):
                ethernet.send(frame)
    except OSError as error:
        raise HotspareError(
            f"cannot tell the neighbours of {place.ip} on {link['ifname']}: {error.strerror}"
        ) from error


def _tcp_table() -> str:
    with open("/proc/net/tcp", encoding="ascii") as file:
        return file.read()


# ---------------------------------------------------------------------------------------------------------------------
# Kept there
# ---------------------------------------------------------------------------------------------------------------------


class Keeper:
    """The address of one node, as it was left when something last changed."""

    def __init__(self, place: Place, port: int, say: Callable[[str], None]) -> None:
        self.place, self.port, self.say = place, port, say
        self.link: Optional[dict[str, Any]] = None
        self.said = ""
        self.since = self.checked = 0.0
        self.announced = 0

    def follow(self, role: str) -> None:
        """Do what the role asks for."""
        now = time.monotonic()
        try:
            if role != "primary":
                self.leave()
                self.tell(
                    f"{self.place.address} is not here: the server {'is a standby' if role == 'standby' else role}"
                )
            elif self.link is None or now > self.checked + CHECK_SECONDS:
                link = take(self.place) if self.link is None or not holders(links_now(), self.place) else self.link
                if self.link is None:
                    self.since, self.announced = now, 1
                self.link, self.checked = link, now
                self.tell(f"{self.place.address} is on {link['ifname']}: the server is the primary")
            elif self.announced < len(ANNOUNCE_SECONDS) and now > self.since + ANNOUNCE_SECONDS[self.announced]:
                self.announced += 1
                announce(self.link, self.place)
        except HotspareError as error:
            self.tell(f"{self.place.address}: {error.message}")

    def leave(self) -> None:
        # Also what a process before this one has left behind, once.
        if self.link is not None or not self.said:
            release(self.place, self.port)
            self.link = None

    def tell(self, text: str) -> None:
        """To the journal, and to `systemctl status`; once."""
        if text != self.said:
            self.said = text
            self.say(text)
            notify(f"STATUS={text}")


def keep(instance: Instance, place: Place, files: Sequence[str], say: Callable[[str], None]) -> None:
    """Let the address follow the server, until one of `files` changes (it stays then) or a signal ends us (it goes)."""
    from psycopg2 import extensions

    extensions.set_wait_callback(_wait_for_answer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    keeper, witness = Keeper(place, instance.port, say), Witness(instance)
    begun = _written(files)
    changed, looked = False, time.monotonic()
    try:
        while not changed:
            notify("WATCHDOG=1")
            try:
                role = witness.look()
            except HotspareError as error:
                role = f"is not known: {error.message}"
            keeper.follow(role)
            witness.rest(PRIMARY_SECONDS if role == "primary" else OTHER_SECONDS)
            if time.monotonic() > looked + CHECK_SECONDS:
                changed, looked = _written(files) != begun, time.monotonic()
    finally:
        witness.close()
        if not changed:
            release(place, instance.port)


def notify(text: str) -> None:
    """Tell systemd, if it runs us. Manual: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
            manager.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)


def _end(number: int, _frame: Any) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)
    raise SystemExit(0)


def _written(files: Sequence[str]) -> list[tuple[int, int]]:
    found = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # being removed: that is for systemd to act on
            status = os.stat(path)
            found.append((status.st_mtime_ns, status.st_ino))
    return found
