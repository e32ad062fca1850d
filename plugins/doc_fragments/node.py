# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that every module of the collection shares: which node is meant."""

from __future__ import annotations


class ModuleDocFragment:
    """Equal to NODE_ARGUMENTS in plugins/module_utils/server.py."""

    DOCUMENTATION = r"""
options:
  name:
    description:
      - What the node is called in results and messages, for example its name in the inventory.
      - The default is the host name.
    type: str
  data_directory:
    description: The data directory of the server (PGDATA).
    type: path
    required: true
  bin_directory:
    description:
      - Where the server's programs are.
      - The default is V(/usr/lib/postgresql/VERSION/bin) of the version that made O(data_directory), or of the newest
        version that is installed when there is no data yet.
    type: path
  port:
    description: The port of the server, which also names its unix socket.
    type: int
    default: 5432
  socket_directory:
    description: The directory of the server's unix socket.
    type: path
    default: /var/run/postgresql
  config_file:
    description:
      - The main configuration file, for example V(/etc/postgresql/17/main/postgresql.conf).
      - It must contain C(include_dir 'conf.d'), because the upstream of a standby is written to C(conf.d) beside it.
      - The default is V(postgresql.conf) in O(data_directory).
    type: path
  service:
    description:
      - The systemd unit that runs the server, for example V(postgresql@17-main).
      - Without it C(pg_ctl) starts and stops the server, and its log goes to a file beside O(data_directory) whose
        name ends in C(.log).
    type: str
  account:
    description:
      - The operating system account that runs the server, and the superuser of that name in it.
      - Connections are made through the unix socket with peer authentication.
    type: str
    default: postgres
  slot_prefix:
    description: Replication slots whose name starts with this are managed by this collection, others are never touched.
    type: str
    default: hotspare_
requirements:
  - Python 3.9 or later, PostgreSQL 13 or later
  - psycopg2 2.8 or later, only for a server that runs
notes:
  - Run it as root (C(become=true)), since it may need C(systemctl). It becomes O(account) for each program and each
    connection. It can run as O(account) itself where no systemd unit is involved.
"""
