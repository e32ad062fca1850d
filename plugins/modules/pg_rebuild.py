#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_rebuild
short_description: Make a node a standby of the primary, from nothing, from an old primary or from a broken standby
version_added: 0.1.0
description:
  - Seeds a node that holds nothing, and turns a former primary or a broken standby into a standby again, by the least
    that is right. It starts a node that has not diverged (C(follow)), rewinds one that has (C(pg_rewind)), and when
    neither is possible copies the primary, by a ZFS snapshot (O(zfs)) where that is possible, else by
    C(pg_basebackup).
  - A standby that streams from this primary, with this slot and this name, is left as it is.
  - All guards are checked at once, before anything is touched, and returned. It refuses a node that runs as a primary
    or whose state is not known, a primary that cannot be asked or is none, another cluster, a node with clients or
    standbys, and one whose name was not confirmed.
  - Nothing is destroyed. The former data directory is renamed to C(PGDATA.before-TIME), the former datasets to
    C(DATASET-aside-TIME), and WAL that the primary does not have is kept in C(PGDATA.diverged-TIME) before a rewind.
    O(state=cleaned) removes these, and nothing else does.
  - Copies and rewinds are made under another name beside the data directory. A run that dies anywhere is continued by
    running it again.
  - Slots that a former primary has left over are dropped once it streams, which are physical ones of ours that nobody
    uses, and on 17 and later logical failover slots that are no synchronised copies and have the name of one on the
    primary (they block slot synchronisation).
  - It ends when the primary sees the node streaming and the node has replayed what the primary had written by then.
options:
  primary:
    description:
      - The primary, reached over the network as the replication account. Needed for O(state=standby).
      - The account must be let in to replication and to the database V(postgres). For C(pg_rewind) it also needs to
        execute C(pg_ls_dir), C(pg_stat_file) and both C(pg_read_binary_file) that pg_rewind uses.
    type: dict
    suboptions:
      host:
        description: Its host name or address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 5432
      user:
        description: The replication account.
        type: str
        required: true
      passfile:
        description: A password file on this node that O(account) can read.
        type: path
      dbname:
        description:
          - A database named in C(primary_conninfo). Only slot synchronisation (C(sync_replication_slots), 17 and later)
            needs one.
        type: str
  slot:
    description:
      - The physical replication slot on the primary for this node. It must exist, and must have reserved WAL for a
        base backup, so that no WAL vanishes during the copy (see
        O(hotspare.postgresql.pg_replication_state#module:slots)).
      - Needed for O(state=standby).
    type: str
  zfs:
    description:
      - Where the server lies on OpenZFS, here and on the primary. The node fetches a snapshot of it from there.
      - The data directory, C(pg_wal) and all tablespaces have to be in this dataset and those below it, and have the
        same paths on both hosts. The replication account has to be allowed to execute C(pg_backup_start) and
        C(pg_backup_stop), or C(pg_start_backup) and C(pg_stop_backup) up to PostgreSQL 14.
      - Both sides keep the last snapshot that they have in common, so that another rebuild sends only what changed.
    type: dict
    suboptions:
      dataset:
        description: The outermost dataset of the server on this node.
        type: str
        required: true
      source_dataset:
        description:
          - The same on the primary.
          - The default is O(zfs.dataset).
        type: str
      source_wal_directory:
        description:
          - Where the WAL of the primary lies (RV(hotspare.postgresql.pg_replication_state#module:node.wal_directory)).
          - With it, WAL outside of the dataset is noticed before anything is touched; without it, in the copy.
        type: path
      host:
        description:
          - The primary's host, as ssh reaches it.
          - The default is the host of O(primary).
        type: str
      port:
        description: The port of ssh there.
        type: int
        default: 22
      account:
        description: The account to log in as there. Its key may be restricted to C(hotspare.pyz zfs-serve CONFIG).
        type: str
        default: root
      identity:
        description: The file of the private key, on this node.
        type: path
        required: true
      known_hosts:
        description: The file with the key of that host, on this node. Another key is refused.
        type: path
        required: true
      status_file:
        description: A file on this node that tells, as JSON, how far a send is, every second.
        type: path
  application_name:
    description:
      - What the node calls itself on the primary.
      - The default is O(name).
    type: str
  system_identifier:
    description: The system identifier of the cluster. Without it the node's own one must be that of the primary.
    type: str
  confirm:
    description:
      - Must be equal to O(name) when the data directory holds data, or when kept directories are to be removed.
    type: str
  waive_backup:
    description:
      - Says that there is a recent and verified backup of the cluster, or that the rebuild is wanted without one.
      - Without it the module warns, when the data directory holds data. It keeps what the node holds, but two copies
        of which one is being rebuilt are one copy.
    type: bool
    default: false
  method:
    description:
      - V(auto) takes the least that is right. V(follow) and V(rewind) are refused where they are not right, V(zfs)
        where it is not possible, V(basebackup) is always possible. The guards hold for all of them.
      - With O(zfs) a V(basebackup) that would lie on another file system than ZFS is made only if it is asked for. One
        that lies on ZFS is made where more has changed since the common snapshot than it copies at most.
      - V(copy) takes V(zfs) where that is possible, else V(basebackup), so that what the node had is kept as it is.
      - Some nodes are refused by V(auto) because they may hold what the primary has lost. V(copy) replaces these, too.
    type: str
    choices: [auto, follow, rewind, zfs, basebackup, copy]
    default: auto
  start:
    description: Start the node and wait until it streams. Without it everything else is done.
    type: bool
    default: true
  timeout:
    description:
      - Seconds the started node may go without any progress until it streams, and seconds its server may take to
        stop.
      - How long a copy or a rewind takes is not limited.
      - Another task that works on the node, perhaps of a run that died, is waited for as long.
    type: int
    default: 120
  state:
    description:
      - V(standby) makes the node a standby of O(primary).
      - V(cleaned) removes the directories that earlier runs kept beside the data directory, C(PGDATA.before-TIME) and
        C(PGDATA.diverged-TIME), and with O(zfs) the datasets, C(DATASET-aside-TIME). Tablespaces of a kept directory
        lie elsewhere and are not removed.
    type: str
    choices: [standby, cleaned]
    default: standby
extends_documentation_fragment:
  - hotspare.postgresql.node
attributes:
  check_mode:
    description: Makes the same decision and checks, and writes nothing.
    support: full
  diff_mode:
    description: There is no difference in text to show.
    support: none
notes:
  - Do a C(CHECKPOINT) on a primary that was promoted a moment ago, before a node is rewound from it.
    M(hotspare.postgresql.pg_promote) does.
seealso:
  - module: hotspare.postgresql.pg_replication_state
  - module: hotspare.postgresql.pg_promote
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Make the old primary a standby of the new one
  hotspare.postgresql.pg_rebuild:
    name: db1
    data_directory: /var/lib/postgresql/17/main
    config_file: /etc/postgresql/17/main/postgresql.conf
    service: postgresql@17-main
    primary:
      host: db2.example.org
      user: replicator
      passfile: /var/lib/postgresql/.hotspare-main.pgpass
    slot: hotspare_db1
    confirm: db1
  become: true

- name: Remove what was kept of the old primary
  hotspare.postgresql.pg_rebuild:
    name: db1
    data_directory: /var/lib/postgresql/17/main
    state: cleaned
    confirm: db1
  become: true
"""

RETURN = r"""
method:
  description:
    - What was done, or would be in check mode. V(none) when the node streams already, V(refuse) when no method is
      right.
  returned: with O(state=standby), once the node was looked at
  type: str
  sample: rewind
ladder:
  description: The methods from the least to the most that a node loses, and why each is taken or is not.
  returned: with O(state=standby), once the node was looked at
  type: list
  elements: dict
  contains:
    method:
      description: V(follow), V(rewind), V(zfs) or V(basebackup).
      type: str
      returned: always
    chosen:
      description: Whether it is what RV(method) says.
      type: bool
      returned: always
    reason:
      description: Why it is taken, why it is not possible, or that less is enough.
      type: str
      returned: always
  sample:
    - method: follow
      chosen: false
      reason: "not possible: it holds timeline 1 up to 0/3000060, the primary's timeline 2 left it at 0/3000028"
    - method: rewind
      chosen: true
      reason: it holds timeline 1 up to 0/3000060, the primary's timeline 2 left it at 0/3000028
    - method: zfs
      chosen: false
      reason: "not needed: rewind is right"
    - method: basebackup
      chosen: false
      reason: "not needed: rewind is right"
report:
  description: The node and the primary in a line each, as they were before anything was done.
  returned: with O(state=standby), once the node was looked at
  type: list
  elements: str
  sample:
    - "db1: stopped, data cluster in /var/lib/postgresql/17/main, timeline 1 up to 0/3000060, 80210 MB free beside it"
    - "db2.example.org:5432: primary, system 7384601931263912345, timeline 2 up to 0/3013B40"
reason:
  description: Why this method.
  returned: with O(state=standby), once the node was looked at
  type: str
  sample: it holds timeline 1 up to 0/3000060, the primary's timeline 2 left it at 0/3000028
checks:
  description: What must hold before the node is touched.
  returned: with O(state=standby), once the node was looked at
  type: list
  elements: dict
  contains:
    name:
      description: The check.
      type: str
      returned: always
    ok:
      description: Whether it holds. What is not known does not hold.
      type: bool
      returned: always
    hard:
      description: Whether it must hold. Of the others the module warns.
      type: bool
      returned: always
    detail:
      description: What was seen, and what to do next if it does not hold.
      type: str
      returned: always
  sample:
    - name: source_primary
      ok: true
      hard: true
      detail: db2.example.org:5432 is a primary
steps:
  description: What was done, in this order. Empty in check mode.
  returned: with O(state=standby), once the node was looked at
  type: list
  elements: dict
  contains:
    name:
      description: The step.
      type: str
      returned: always
    seconds:
      description: How long it took, in seconds.
      type: float
      returned: always
    detail:
      description: What came of it.
      type: str
      returned: always
  sample:
    - name: verify
      seconds: 0.412
      detail: it streams on timeline 2 and has replayed 0/3013B40
kept:
  description: Directories beside the data directory, and datasets, that this run and earlier ones have kept.
  returned: once the node was looked at
  type: list
  elements: str
  sample: [/var/lib/postgresql/17/main.before-20261120T101500Z]
removed:
  description: Directories and datasets that were removed, or would be in check mode.
  returned: with O(state=cleaned)
  type: list
  elements: str
  sample: [/var/lib/postgresql/17/main.before-20261120T101500Z]
last:
  description: What the primary and the node said last, when the node did not stream in time.
  returned: when it did not stream
  type: dict
  sample:
    target_lsn: 0/3013B40
    primary_sees: null
    replay_lsn: 0/3000060
    receiver: null
    received_timeline: null
log:
  description: The last lines of the server's log, when it did not start or did not stream.
  returned: on such a failure
  type: list
  elements: str
node:
  description: The state of the node afterwards, as M(hotspare.postgresql.pg_replication_state) returns it.
  returned: once the node was looked at
  type: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils.conninfo import Upstream
from ansible_collections.hotspare.postgresql.plugins.module_utils.rebuild import METHODS, Wish
from ansible_collections.hotspare.postgresql.plugins.module_utils.rebuild_look import Job
from ansible_collections.hotspare.postgresql.plugins.module_utils.rebuilding import clean, rebuild
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import (
    NODE_ARGUMENTS,
    instance_from_params,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import NAME, Login
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_layout import Zfs, prefix_of


def _zfs(given: Mapping[str, Any], upstream: Upstream) -> Zfs:
    for key in ("dataset", "source_dataset"):
        if given[key] is not None and not NAME.fullmatch(given[key]):
            raise HotspareError(f"zfs.{key} is {given[key]!r}, no name of a dataset: give it as zfs list shows it")
    login = Login(
        given["host"] or upstream.host, *(given[key] for key in ("port", "account", "identity", "known_hosts"))
    )
    source = given["source_dataset"] or given["dataset"]
    prefix = prefix_of(upstream.application_name)
    return Zfs(given["dataset"], source, login, prefix, given["status_file"], given["source_wal_directory"])


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            **NODE_ARGUMENTS,
            primary=dict(
                type="dict",
                options=dict(
                    host=dict(type="str", required=True),
                    port=dict(type="int", default=5432),
                    user=dict(type="str", required=True),
                    passfile=dict(type="path"),
                    dbname=dict(type="str"),
                ),
            ),
            slot=dict(type="str"),
            zfs=dict(
                type="dict",
                options=dict(
                    dataset=dict(type="str", required=True),
                    source_dataset=dict(type="str"),
                    source_wal_directory=dict(type="path"),
                    host=dict(type="str"),
                    port=dict(type="int", default=22),
                    account=dict(type="str", default="root"),
                    identity=dict(type="path", required=True),
                    known_hosts=dict(type="path", required=True),
                    status_file=dict(type="path"),
                ),
            ),
            application_name=dict(type="str"),
            system_identifier=dict(type="str"),
            confirm=dict(type="str"),
            waive_backup=dict(type="bool", default=False),
            method=dict(type="str", choices=list(METHODS), default="auto"),
            start=dict(type="bool", default=True),
            timeout=dict(type="int", default=120),
            state=dict(type="str", choices=["standby", "cleaned"], default="standby"),
        ),
        required_if=[("state", "standby", ("primary", "slot"))],
        supports_check_mode=True,
    )
    params = module.params
    try:
        instance = instance_from_params(params)
        upstream = Upstream(
            **(params["primary"] or {"host": ""}),
            application_name=params["application_name"] or instance.name,
            slot=params["slot"],
        )
        wish = Wish(
            slot=params["slot"] or "",
            method=params["method"],
            confirm=params["confirm"],
            system_identifier=params["system_identifier"],
            application_name=upstream.application_name,
            waive_backup=params["waive_backup"],
        )
        zfs = _zfs(params["zfs"], upstream) if params["zfs"] else None
        job = Job(instance, upstream, wish, zfs, start=params["start"], timeout=params["timeout"])
        act = rebuild if params["state"] == "standby" else clean
        result = act(job, check_mode=module.check_mode)
        for check in result.get("checks", ()):
            if not (check["ok"] or check["hard"]):
                module.warn(check["detail"])
    except HotspareError as error:
        module.fail_json(msg=error.message, **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
