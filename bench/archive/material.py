# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real WAL to be archived, of two kinds, and the crashed data directory from which it is replayed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from lab import Machine

DATA, BASE = "/bench/data", "/bench/base"
MIB = 16  # of a segment
SCALE = 30
NOTE = "/bench/material.json"
SETTINGS = """
listen_addresses = ''
wal_level = replica
wal_keep_size = 64GB
max_wal_size = 8GB
min_wal_size = 80MB
wal_recycle = off
shared_buffers = 512MB
checkpoint_timeout = 1h
checkpoint_completion_target = 0
fsync = off
"""


@dataclass(frozen=True)
class Material:
    """Names of `kinds`: "pgbench" (with full-page images, compresses well), "random" (does not compress)."""

    kinds: dict[str, list[str]]
    compressed: dict[str, float]  # what zstd -3 leaves of it


def make(node: Machine, count: int) -> Material:
    """`count` complete segments of each kind in pg_wal of a server that is stopped, made anew."""
    node.root(f"rm -rf {DATA} {BASE} {NOTE}; chown postgres /bench")
    node.postgres(f"initdb --pgdata {DATA} --auth trust --no-sync")
    node.write(f"{DATA}/postgresql.auto.conf", SETTINGS, owner="postgres")
    start(node)
    node.postgres("createdb bench")
    node.postgres(f"pgbench --initialize --quiet --scale {SCALE} bench")
    node.sql("create extension pgcrypto; create table noise (bytes bytea)", "bench")
    # A crash right after a checkpoint: what is replayed from the archive begins here.
    node.sql("select pg_switch_wal()")
    node.sql("checkpoint")
    first = current(node)
    node.postgres(f"pg_ctl stop --mode immediate --pgdata {DATA}")
    node.postgres(f"cp --archive {DATA} {BASE} && pg_archivecleanup {BASE}/pg_wal {first}")
    start(node)
    kinds = {"pgbench": pgbench(node, first, count)}
    node.sql("select pg_switch_wal()")
    kinds["random"] = random(node, current(node), count)
    node.sql("select pg_switch_wal()")
    node.postgres(f"pg_ctl stop --mode fast --pgdata {DATA}")
    node.postgres(f"rm -f {DATA}/pg_wal/archive_status/*")
    left = {kind: compressed(node, names) for kind, names in kinds.items()}
    made = Material(kinds, left)
    node.write(NOTE, json.dumps(asdict(made)))
    return made


def made_before(node: Machine) -> Material:
    """What an earlier run left in the machine."""
    found: dict[str, Any] = json.loads(node.root(f"cat {NOTE}"))
    return Material(**found)


def start(node: Machine) -> None:
    node.postgres(f"pg_ctl start --wait --timeout 120 --pgdata {DATA} --log /bench/data.log")


def current(node: Machine) -> str:
    return node.sql("select pg_walfile_name(pg_current_wal_lsn())")


def segments(first: str, count: int) -> list[str]:
    number = int(first[8:16], 16) << 8 | int(first[16:], 16)
    return [f"{first[:8]}{n >> 8:08X}{n & 0xFF:08X}" for n in range(number, number + count)]


def pgbench(node: Machine, first: str, count: int) -> list[str]:
    wanted = segments(first, count)
    while current(node) <= wanted[-1]:
        node.sql("checkpoint")
        node.postgres("PGOPTIONS='-c synchronous_commit=off' pgbench -n -c 4 -j 2 -M prepared -N -T 4 bench")
    return wanted


def random(node: Machine, first: str, count: int) -> list[str]:
    wanted = segments(first, count)
    while current(node) <= wanted[-1]:
        node.sql("insert into noise select gen_random_bytes(1000) from generate_series(1, 120000)", "bench")
        node.sql("truncate noise", "bench")
    return wanted


def compressed(node: Machine, names: list[str]) -> float:
    few = " ".join(names[:: max(1, len(names) // 8)][:8])
    size = int(node.postgres(f"cd {DATA}/pg_wal && cat {few} | zstd -3 --stdout | wc -c"))
    return round(size / (len(few.split()) * MIB * 1024 * 1024), 3)
