# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pgBackRest, a process (and a connection) for each segment, or its asynchronous mode with two processes."""

from __future__ import annotations

from lab import until
from material import DATA
from way import Box, Way, counted

REPOSITORY, SPOOL = "/bench/pgbackrest", "/bench/pgbackrest-spool"
STANZA = f"{REPOSITORY}/archive/bench"
LOGGING = "log-level-console=warn\nlog-level-stderr=off\nlog-level-file=off\nlock-path=/tmp/pgbackrest\n"
LOCAL = f"[global]\nrepo1-path={REPOSITORY}\nspool-path={SPOOL}\n{LOGGING}[bench]\npg1-path={DATA}\n"


def set_up(node: Box, store: Box) -> None:
    """A repository on each of the machines, of one and the same server."""
    for machine in (node, store):
        machine.root(f"install -d -o postgres {REPOSITORY} {SPOOL}")
        machine.write("/etc/pgbackrest/pgbackrest.conf", LOCAL)
    remote = f"repo1-host={store.address}\nrepo1-host-user=postgres\nrepo1-host-config=/etc/pgbackrest/pgbackrest.conf"
    node.write("/etc/pgbackrest/ssh.conf", LOCAL.replace(f"repo1-path={REPOSITORY}", remote))
    node.postgres("pgbackrest --stanza=bench --no-online stanza-create")
    made = node.root(f"tar -C {REPOSITORY} -c archive backup | base64")
    store.root(f"base64 -d | tar -C {REPOSITORY} -x", given=made)


class PgBackRest(Way):
    tool = "pgBackRest"
    more = ""
    data = DATA

    @property
    def part(self) -> int:  # type: ignore[override]
        return 8 if self.place == "ssh" else 1

    def command(self, what: str) -> str:
        config = "pgbackrest" if self.place == "local" else "ssh"
        common = f"pgbackrest --config=/etc/pgbackrest/{config}.conf --stanza=bench --pg1-path={self.data}{self.more}"
        return f"{common} {what}"

    @property
    def archive_command(self) -> str:
        return self.command(f"--compress-type={self.compression.replace('zstd', 'zst')} archive-push %p")

    @property
    def restore_command(self) -> str:
        return self.command('archive-get %f "%p"')

    def start(self, data: str = DATA) -> None:
        self.data = data

    def stop(self) -> None:
        idle = "! pgrep --exact pgbackrest >/dev/null"
        until("pgBackRest is idle", lambda: self.node.root(f"{idle} && echo idle", check=False) != "", 60)
        self.node.root(f"rm -rf {SPOOL}/*")

    def wipe(self) -> None:
        self.there.root(f"find {STANZA} -name '0000*' -type f -delete; rm -rf {SPOOL}/*")

    def held(self) -> tuple[int, int]:
        return counted(self.there, STANZA)


class PgBackRestAsync(PgBackRest):
    tool = "pgBackRest async"
    part = 1
    more = " --archive-async --process-max=2"
