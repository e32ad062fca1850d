#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_server
short_description: Start or stop a PostgreSQL server in the role that is meant
version_added: 0.1.0
description:
  - Starts, stops or restarts one PostgreSQL server, and returns what C(pg_control) says after a stop, which is what a
    cutover has to prove against.
  - It never starts a server as a primary unless O(role=primary) says so, since a second primary writes the same
    timeline and the same WAL file names as the first.
options:
  state:
    description:
      - With V(started) the server runs and takes connections. A standby that still lacks the WAL to become consistent
        runs only, see RV(node.accepting).
      - With V(stopped) C(pg_control) says that it is shut down and connections are refused. Its process may remain for
        a while, until the last WAL is archived.
      - With V(restarted) it is stopped, if it runs, and started.
      - With V(running) it is an error if the server does not run. It is neither started nor stopped.
      - With V(reloaded) a server that runs reads its configuration again, and one that does not is left alone.
      - With V(fenced) it takes no writes any more, whatever state it is in, and that is verified. C(standby.signal) is
        written, so that no start makes it a primary, then it is stopped, after 2 seconds by an immediate stop, and then
        every process of it is killed, frozen ones and those that a killed postmaster left behind too. It is an error
        if a process remains, systemd still holds the unit, or something listens at its socket.
    type: str
    choices: [started, stopped, restarted, running, reloaded, fenced]
    default: started
  role:
    description:
      - What the server comes up as, or is when it runs already. Not looked at with O(state=stopped).
      - A V(standby) is started only if C(standby.signal) and C(primary_conninfo) are there.
      - A V(primary) is started only if it last was one, which C(pg_control) says. A C(standby.signal) is removed first,
        which undoes the preparation of a cutover that was given up. Say it only when no other node is the primary or
        can become it, an armed standby has to be disarmed before.
      - A primary that runs and was prepared by O(upstream) loses that preparation again when O(state=running) or
        O(state=started) is said with V(primary) and without O(upstream).
      - Without it a server with C(standby.signal) is started, a server without it is refused. A server that runs is
        restarted in the role that it has.
    type: str
    choices: [primary, standby]
  upstream:
    description:
      - Prepare a primary for a cutover, with O(state=running) while it runs, with O(state=stopped) before it stops.
      - Whom it is to follow is written durably to C(conf.d/60-hotspare-upstream.conf) beside O(config_file), and
        C(standby.signal) to O(data_directory). Its present run does not notice. Whatever starts it from then on, for
        example systemd after a crash, makes it a standby and never a second primary.
      - Refused, and nothing is changed, if a start would not read it or the server runs as a standby.
    type: dict
    suboptions:
      host:
        description: The host name or address of the upstream.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 5432
      user:
        description: The role to log in as, with the attribute REPLICATION.
        type: str
      application_name:
        description: What this node is called there, in C(pg_stat_replication) and C(synchronous_standby_names).
        type: str
      slot:
        description: The physical replication slot there that is this node's. It is not created.
        type: str
      passfile:
        description:
          - A password file of mode 0600 on this node that O(account) can read. A password itself is never written.
        type: path
      dbname:
        description: The database to name, which the synchronisation of failover slots needs (PostgreSQL 17 and newer).
        type: str
      parameters:
        description: Further connection parameters of libpq, for example C(sslmode) and C(sslrootcert). Not C(password).
        type: dict
        default: {}
  mode:
    description:
      - How to stop. V(fast) disconnects the clients, writes a checkpoint and sends all WAL to the standbys that answer.
      - V(immediate) is a crash. The server is not cleanly shut down afterwards, so this is for a server that is given
        up.
    type: str
    choices: [fast, immediate]
    default: fast
  checkpoint:
    description:
      - Make a C(CHECKPOINT) on a running primary first. After a promotion it is needed before C(pg_rewind) looks at
        this server.
      - Before a stop it makes the stop short, so it is repeated until one took less than 0.2 seconds, at most five
        times.
      - It does not count as a change, and is not made in check mode.
    type: bool
    default: false
  immediate_after:
    description:
      - A V(fast) stop that has not ended after so many seconds becomes an immediate one, because a frozen process of
        the server holds it, which may never end. The server is not cleanly shut down then, see RV(shutdown.clean).
      - A stop that only waits for a standby to answer is left alone, C(wal_sender_timeout) bounds it. So is one that
        only waits for the archiver, since the server has shut down by then.
      - Without it a stop that does not end within O(timeout) is an error.
    type: int
  timeout:
    description:
      - How many seconds the stop, the start and the checkpoint may each take.
      - With O(state=fenced) how many seconds processes that were killed may take to be gone.
    type: int
    default: 60
extends_documentation_fragment:
  - hotspare.postgresql.node
attributes:
  check_mode:
    description: Everything is checked and the change is predicted, the server is left as it is.
    support: full
  diff_mode:
    description: There is no file content to show.
    support: none
notes:
  - One task at a time works on a server, of this module, M(hotspare.postgresql.pg_promote) and
    M(hotspare.postgresql.pg_rebuild). Whoever comes next waits for at most O(timeout), since the task of a run that
    died may go on for a while, and then fails with the process that is at work. With O(state=fenced) the server is
    stopped at once all the same, but it counts as fenced only when that process has ended. Check mode does not wait.
seealso:
  - module: hotspare.postgresql.pg_replication_state
  - module: hotspare.postgresql.pg_promote
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Stop the primary for a planned cutover
  hotspare.postgresql.pg_server:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    service: postgresql@17-main
    state: stopped
    checkpoint: true
  register: old_primary

- name: Prepare the primary, which goes on, for a cutover
  hotspare.postgresql.pg_server:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    service: postgresql@17-main
    state: running
    role: primary
    upstream:
      host: db-two.example.org
      user: replicator
      application_name: db-one
      slot: hotspare_db_one
      passfile: /var/lib/postgresql/.hotspare-main.pgpass

- name: Undo that before the primary is stopped
  hotspare.postgresql.pg_server:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    service: postgresql@17-main
    state: running
    role: primary

- name: Make sure that a primary takes no writes any more before another node is promoted
  hotspare.postgresql.pg_server:
    data_directory: /var/lib/postgresql/17/main
    service: postgresql@17-main
    state: fenced
    timeout: 10

- name: Give the cutover up and start the old primary again
  hotspare.postgresql.pg_server:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    service: postgresql@17-main
    state: started
    role: primary

- name: Restart a standby for a setting that needs it
  hotspare.postgresql.pg_server:
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    service: postgresql@17-main
    state: restarted
    role: standby

- name: Put the new timeline into pg_control of the new primary
  hotspare.postgresql.pg_server:
    data_directory: /var/lib/postgresql/17/main
    state: running
    role: primary
    checkpoint: true
"""

RETURN = r"""
node:
  description: What is known about the node afterwards without asking its server.
  returned: when the data directory holds a cluster
  type: dict
  contains:
    name:
      description: What the node is called.
      type: str
      returned: always
      sample: db-one
    data_directory:
      description: Its data directory.
      type: str
      returned: always
      sample: /var/lib/postgresql/17/main
    major_version:
      description: The major version that made the data directory.
      type: int
      returned: always
      sample: 17
    running:
      description: Whether its postmaster runs.
      type: bool
      returned: always
      sample: true
    process_id:
      description: The process of the postmaster, null without one.
      type: int
      returned: always
      sample: 4711
    standby_signal:
      description: Whether C(standby.signal) is there.
      type: bool
      returned: always
      sample: false
    accepting:
      description:
        - Whether it took a connection after a start.
        - It is false for a standby that runs without being consistent yet, and null when this was not looked at.
      type: bool
      returned: on success
      sample: true
    control:
      description: What C(pg_controldata) says, positions as text.
      type: dict
      returned: always
      sample: {state: in production, timeline: 1, checkpoint_lsn: 0/3000028}
shutdown:
  description: How the server stopped, null when it runs, is fenced, or in check mode before a stop.
  returned: on success
  type: dict
  contains:
    clean:
      description:
        - Whether it was shut down cleanly, as a primary or as a standby.
        - It does not say that a standby has everything. For that its position must be greater than
          RV(shutdown.checkpoint_lsn).
      type: bool
      returned: always
      sample: true
    state:
      description: The state in C(pg_control), for a primary V(shut down), for a standby V(shut down in recovery).
      type: str
      returned: always
      sample: shut down
    checkpoint_lsn:
      description: Where the record of the latest checkpoint starts.
      type: str
      returned: always
      sample: 0/3000028
    timeline:
      description: The timeline of the latest checkpoint.
      type: int
      returned: always
      sample: 1
    seconds:
      description:
        - From the signal to the server until C(pg_control) said that it is shut down, 0 when the server did not run.
        - So long clients waited for nothing at most. The checkpoints before are not in it.
      type: float
      returned: always
      sample: 0.041
    requested_at:
      description: When the server was told to stop, in seconds since 1970. Null when it did not run.
      type: float
      returned: always
      sample: 1763647201.402
    ended_at:
      description: When C(pg_control) said that it is shut down, in seconds since 1970. Null when it did not run.
      type: float
      returned: always
      sample: 1763647201.443
    escalated:
      description: Whether the stop became an immediate one, see O(immediate_after).
      type: bool
      returned: always
      sample: false
    checkpoints:
      description: How many seconds each checkpoint before the stop took.
      type: list
      elements: float
      returned: always
      sample: [1.204, 0.031]
    not_archived:
      description:
        - The WAL segments that the archiver of this server had not archived by then, oldest first.
        - After a promotion of another node they are missing in the archive, unless that node archives them again.
      type: list
      elements: str
      returned: always
      sample: [000000010000000000000007]
fence:
  description: How the server was fenced, and whether it is.
  returned: with O(state=fenced), also when that failed
  type: dict
  contains:
    verified:
      description:
        - Whether it has no process, its unit is not active, connections are refused and a start would not make it a
          primary. In check mode whether that is so already.
      type: bool
      returned: always
      sample: true
    steps:
      description: What was done, in this order.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: One of V(mark), V(fast), V(immediate), V(kill) and V(verify).
          type: str
          returned: always
          sample: kill
        seconds:
          description: How long it took.
          type: float
          returned: always
          sample: 0.043
        detail:
          description: What came of it.
          type: str
          returned: always
          sample: 3 processes were killed
seconds:
  description: How long all of it took.
  returned: on success
  type: float
  sample: 0.402
log:
  description: The last lines of the server's log.
  returned: when a start failed
  type: list
  elements: str
  sample: ["FATAL:  could not map anonymous shared memory: Cannot allocate memory"]
kind:
  description:
    - Why there was no connection, one of V(refused), V(starting), V(shutting_down), V(auth), V(timeout), V(other).
  returned: when a connection failed
  type: str
  sample: timeout
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import NODE_ARGUMENTS, instance_from_params
from ansible_collections.hotspare.postgresql.plugins.module_utils.serving import bring_to, wanted_from_params
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            **NODE_ARGUMENTS,
            state=dict(
                type="str",
                choices=["started", "stopped", "restarted", "running", "reloaded", "fenced"],
                default="started",
            ),
            role=dict(type="str", choices=["primary", "standby"]),
            mode=dict(type="str", choices=["fast", "immediate"], default="fast"),
            checkpoint=dict(type="bool", default=False),
            immediate_after=dict(type="int"),
            upstream=dict(
                type="dict",
                options=dict(
                    host=dict(type="str", required=True),
                    port=dict(type="int", default=5432),
                    user=dict(type="str"),
                    application_name=dict(type="str"),
                    slot=dict(type="str"),
                    passfile=dict(type="path"),
                    dbname=dict(type="str"),
                    parameters=dict(type="dict", default={}),
                ),
            ),
            timeout=dict(type="int", default=60),
        ),
        supports_check_mode=True,
    )
    try:
        instance, wanted = instance_from_params(module.params), wanted_from_params(module.params)
        result = bring_to(instance, wanted, check_mode=module.check_mode)
    except HotspareError as error:
        module.fail_json(msg=error.message, **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
