# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to have the snapshots of a dataset on another machine: by hand, syncoid, ours. The same data for all, the same
flags of zfs send, the same key and cipher of ssh; each has snapshots and a destination of its own, and makes a new
snapshot in each run, which is measured with it."""

from __future__ import annotations

import shlex
from typing import Any

from guests import CIPHER, Guest, Guests

SOURCES, COPIES = "vault/source", "vault/copies"
FLAGS = "Lec"  # those that ours chooses between pools like these
RECEIVED = {"canmount": "noauto", "readonly": "on"}


def set_up(guests: Guests, sizes: list[str], megabytes: int) -> None:
    """A dataset with one file for each record size. What an earlier run has left goes."""
    for guest in guests.both:
        forget(guest, SOURCES)
        forget(guest, COPIES)
    guests.two.root(f"zfs create -o canmount=off {COPIES}")
    guests.one.root(f"zfs create -o canmount=off {SOURCES}")
    for size in sizes:
        guests.one.root(f"zfs create -o recordsize={size} -o mountpoint=/{size} -o canmount=on {SOURCES}/{size}")
        guests.one.contend(do="fill", path=f"/{size}/file", megabytes=megabytes)


def change(guests: Guests, size: str, megabytes: int, seed: int) -> None:
    """One percent of it, in areas of the largest record size, so that it is one percent for each."""
    guests.one.contend(do="change", path=f"/{size}/file", areas=max(1, megabytes * 8 // 100), seed=seed)
    settle(guests)


def settle(guests: Guests) -> None:
    """Nothing is left to be written when a contender begins."""
    for guest in guests.both:
        guest.root("sync; zpool sync vault")


def cool(guests: Guests) -> None:
    """Nothing of the pool is in memory."""
    for guest in guests.both:
        guest.root("zpool sync vault && zpool export vault && zpool import -d /dev/disk/by-id vault")


def clear(guests: Guests, size: str) -> None:
    """As before the first round: neither copies nor snapshots."""
    forget(guests.two, COPIES)
    guests.two.root(f"zfs create -o canmount=off {COPIES}")
    guests.one.root(f"{RELEASE.format(top=f'{SOURCES}/{size}')}; zfs destroy {SOURCES}/{size}@% || true")


RELEASE = (
    "zfs list -Ht snapshot -o name -r {top} | xargs -r zfs holds -H | "
    "while read -r name tag rest; do zfs release $tag $name; done"
)


def forget(guest: Guest, top: str) -> None:
    guest.root(f"if zfs list {top} >/dev/null 2>&1; then {RELEASE.format(top=top)}; zfs destroy -r {top}; fi")


class Way:
    name = ""

    def __init__(self, guests: Guests, size: str) -> None:
        self.guests, self.size = guests, size
        self.source, self.target = f"{SOURCES}/{size}", f"{COPIES}/{type(self).__name__}-{size}"

    def send(self, number: int) -> dict[str, Any]:
        """A new snapshot, there; `number` counts them in a round, from 1."""
        raise NotImplementedError


class Raw(Way):
    """zfs send | ssh | zfs receive, typed by somebody who knows both sides."""

    name = "zfs send"

    def send(self, number: int) -> dict[str, Any]:
        base = f"-i @raw-{number - 1} " if number > 1 else ""
        options = "".join(f" -o {key}={value}" for key, value in RECEIVED.items()) if number == 1 else ""
        receive = f"zfs receive -u{options} {self.target}"
        script = (
            f"zfs snapshot {self.source}@raw-{number} && zfs send -{FLAGS} {base}{self.source}@raw-{number} | "
            f"ssh -c {CIPHER} {self.guests.two.name} {shlex.quote(receive)}"
        )
        return self.guests.one.contend(do="command", argv=["bash", "-o", "pipefail", "-c", script])


class Syncoid(Way):
    """Of the package sanoid, told what ours finds out. It removes its older snapshots; ours holds the newest one."""

    name = "syncoid"

    def send(self, number: int) -> dict[str, Any]:
        properties = " ".join(f"o {key}={value}" for key, value in RECEIVED.items())
        options = ["--quiet", "--compress=none", f"--sshcipher={CIPHER}", f"--sendoptions={FLAGS}"]
        options += [f"--recvoptions=u {properties}" if number == 1 else "--recvoptions=u"]
        there = f"root@{self.guests.two.name}:{self.target}"
        return self.guests.one.contend(do="command", argv=["syncoid", *options, self.source, there])


class Ours(Way):
    """By the library, as the module zfs_snapshot_send uses it; Ansible's own start is an event of its own."""

    name = "hotspare"

    def send(self, number: int) -> dict[str, Any]:
        return self.guests.one.contend(do="ours", source=self.source, target=self.target, host=self.guests.two.name)


WAYS: list[type[Way]] = [Raw, Syncoid, Ours]
