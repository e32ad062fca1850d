#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: zfs_snapshot_send
short_description: Snapshot a ZFS dataset with all below it at once, and send that to another pool or host
version_added: 0.1.0
description:
  - Takes one snapshot of a dataset and, with O(recursive), of all that is below it, proves that it is of one moment,
    holds it, sends each dataset to the destination, reads back what has arrived, lets go of what it replaces, and gives
    up old snapshots of its own.
  - What both sides have in common is known by GUID, never by name. When there is something, only what changed since is
    sent. When a run was interrupted, the next one goes on where it broke, and then sends a new snapshot as well.
  - Nothing is destroyed to make room. No stream rolls back (C(-F)), replicates (C(-R)) or carries properties (C(-p)). A
    destination that is in the way is refused, or renamed by O(in_the_way=rename). Then what both have in common goes on
    in a clone, so that it is not sent again, and what was renamed still has all that it had.
  - On both sides the newest common snapshot stays held (C(zfs holds)), so that nobody destroys it by accident.
options:
  source:
    description: What is sent.
    type: dict
    required: true
    suboptions: &side
      dataset:
        description: The name of the dataset, a file system.
        type: str
        required: true
      host:
        description:
          - The host where it is, this one by default. At least one of the two sides has to be on this host, so that the
            stream never takes a detour.
        type: str
      port:
        description: The port of ssh there.
        type: int
        default: 22
      account:
        description: The account to log in as there. It needs the rights of C(zfs allow) for what it is to do.
        type: str
        default: root
      identity:
        description: The file of the private key, on this host. Required with a host.
        type: path
      known_hosts:
        description: The file with the key of that host, on this host. Another key is refused. Required with a host.
        type: path
      keep_count:
        description:
          - How many of the snapshots that were made under O(prefix) stay there, the newest ones. Together with
            C(keep_days) what either of them keeps stays. All stay when neither is given.
          - Never given up are the newest that both sides have, what anybody holds, and origins of clones.
        type: int
      keep_days:
        description: How many days such snapshots stay there.
        type: float
  destination:
    description: Where it is sent. Required for O(state=sent). The parent of the dataset has to exist.
    type: dict
    suboptions: *side
  state:
    description:
      - With V(sent) the destination has the snapshot.
      - With V(snapshotted) the source has it, held, to be sent later by its name.
      - With V(pruned) both sides (or the source alone) have given up what they do not have to keep.
      - With V(released) the holds under O(prefix) of O(snapshot) are gone on both sides. Those that nobody needs any
        more are shown in RV(stale_holds).
    type: str
    choices: [sent, snapshotted, pruned, released]
    default: sent
  snapshot:
    description:
      - The name of the snapshot. One that is there already has to be of one moment, and is sent as it is.
      - By default each run makes a new one, whose name is O(prefix) and the time (UTC).
    type: str
  prefix:
    description:
      - What names of new snapshots begin with, the tag of holds, and the mark (C(hotspare:made)) by which retention
        knows what it may give up. Give each destination of the same source a prefix of its own.
    type: str
    default: hotspare
  recursive:
    description: Whether what is below the dataset belongs to it, as the WAL and the tablespaces of a server should.
    type: bool
    default: false
  allow_full:
    description: Whether a dataset may be sent as a whole, when there is nothing in common to go on from.
    type: bool
    default: true
  in_the_way:
    description:
      - What to do when the destination was written to, has snapshots of its own, or is something else.
      - With V(rename) it gets the name C(DATASET-aside-TIME), with all that is below it, and is not mounted any more.
        What this module has received in part from another source is given up then (C(zfs receive -A)).
    type: str
    choices: [fail, rename]
    default: fail
  raw:
    description:
      - Whether an encrypted dataset is sent as it is, so that the destination needs no key. Otherwise it is sent in the
        clear, inside of ssh. Has to be said for an encrypted one, and cannot change later.
    type: bool
  properties:
    description:
      - Properties that a dataset gets when it is received for the first time. All but C(canmount) are set on the
        outermost one only, from which those below inherit.
    type: dict
    default: {canmount: noauto, readonly: "on"}
  copied_properties:
    description:
      - Properties that such a dataset gets from its source, since they decide how its blocks are stored.
      - On a host where an account has only delegated rights, it has to be allowed to set these and O(properties).
    type: list
    elements: str
    default: [recordsize, compression, atime]
  status_file:
    description: A file on this host that tells, as JSON, how far a send is, every second. Its directory has to exist.
    type: path
attributes:
  check_mode:
    description: Decides the same, estimates how much would be sent, and changes nothing.
    support: full
  diff_mode:
    description: There is no difference in text to show; RV(steps) has the commands.
    support: none
requirements:
  - OpenZFS 2.1 or later on both sides
  - ssh and bash where a side is on another host, C(zstd) and C(mbuffer) are used if both sides have them
seealso:
  - module: hotspare.postgresql.zfs_send_wait
  - name: zfs-send(8)
    description: The manual of what this module calls.
    link: https://openzfs.github.io/openzfs-docs/man/v2.3/8/zfs-send.8.html
notes:
  - Run it as root (C(become=true)), or as an account that C(zfs allow) lets C(send), C(snapshot), C(hold), C(release)
    and C(userprop) on the source, and C(receive), C(create), C(mount), C(hold), C(release) and C(userprop) on the
    destination, with the properties that are set there. Retention takes C(destroy) and C(mount), what is renamed out
    of the way C(rename), C(clone) and C(promote), on the dataset above, too.
  - On the far side the key can be restricted to the datasets concerned by a forced command, C(hotspare.pyz zfs-serve
    CONFIG), see M(hotspare.postgresql.node_program). CONFIG is a file of JSON with the O(prefix), the datasets that the
    key may V(receive) and V(send) (lists), the V(properties) that received ones have to get (with their values), those
    of which any value may be V(copied) (a list), and whether it may V(rename) what is in the way and V(prune)
    snapshots. Of a host that receives, for example,
    C({"prefix":"hotspare","receive":["vault/pg"],"copied":["recordsize","compression","atime"],
    "properties":{"canmount":"noauto","readonly":"on"},"prune":true}).
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Send the data directory of a running server to its new standby
  hotspare.postgresql.zfs_snapshot_send:
    source:
      dataset: tank/pg
    destination:
      dataset: tank/pg
      host: db2.example.com
      identity: /root/.ssh/hotspare_zfs
      known_hosts: /root/.ssh/hotspare_known_hosts
    recursive: true
    snapshot: seed-db2
    prefix: hotspare-db2
    properties: {canmount: noauto, mountpoint: /srv/pg, readonly: "off"}
    status_file: /run/hotspare/zfs.json
  become: true

- name: Keep two weeks of snapshots in the backup pool of this host, and two here
  hotspare.postgresql.zfs_snapshot_send:
    source: {dataset: tank/pg, keep_count: 2}
    destination: {dataset: backup/pg, keep_days: 14}
    recursive: true
    prefix: nightly
  become: true

- name: Release what a run that died had held
  hotspare.postgresql.zfs_snapshot_send:
    source: {dataset: tank/pg}
    snapshot: nightly-20260131T120000Z
    prefix: nightly
    state: released
  become: true
"""

RETURN = r"""
snapshot:
  description: The name of the snapshot, the part behind the C(@).
  returned: always
  type: str
  sample: hotspare-20260131T120000Z
snapshots:
  description:
    - The snapshot of each dataset of the source. Empty in check mode while there is none.
    - An equal C(createtxg) says that they are of one moment.
  returned: always
  type: list
  elements: dict
  sample:
    - {dataset: tank/pg, guid: "10540386201421424532", createtxg: 1234}
    - {dataset: tank/pg/wal, guid: "2093415287630410561", createtxg: 1234}
kind:
  description:
    - V(resumed) when an interrupted stream was continued, otherwise V(full) when a dataset was sent as a whole,
      otherwise V(incremental), or V(none) when nothing had to be sent.
  returned: always
  type: str
  sample: incremental
transfers:
  description: Each stream that was (or in check mode would be) sent, in order.
  returned: always
  type: list
  elements: dict
  contains:
    dataset:
      description: The dataset that received it.
      type: str
      sample: tank/pg
    kind:
      description: V(full), V(incremental) or V(resumed).
      type: str
      sample: incremental
    snapshot:
      description: What was sent.
      type: str
      sample: tank/pg@hotspare-20260131T120000Z
    guid:
      description: Its GUID. V(null) in check mode while it is not there.
      type: str
      sample: "10540386201421424532"
    base:
      description: What it builds on, a snapshot or a bookmark of the source. V(null) when it was sent as a whole.
      type: str
      sample: tank/pg@hotspare-20260130T120000Z
    estimated_bytes:
      description: What zfs send estimated. V(null) when it cannot be known before the snapshot is taken.
      type: int
      sample: 1048576
    sent_bytes:
      description: What it sent, in this run.
      type: int
      sample: 1051224
    seconds:
      description: How long that took, in seconds.
      type: float
      sample: 0.82
    rate:
      description: Bytes in a second. V(null) when nothing was sent.
      type: int
      sample: 1281980
estimated_bytes:
  description: The sum of all transfers. V(null) when one of them cannot be known.
  returned: always
  type: int
  sample: 1048576
sent_bytes:
  description: The sum of all transfers, before any compression on the way.
  returned: always
  type: int
  sample: 1051224
seconds:
  description: The sum of all transfers, in seconds.
  returned: always
  type: float
  sample: 0.82
rate:
  description: Bytes in a second over all transfers. V(null) when nothing was sent.
  returned: always
  type: int
  sample: 1281980
renamed:
  description: What the destination that was in the way is called now. V(null) when it was not.
  returned: always
  type: str
  sample: tank/pg-aside-20260131T120000Z
pruned:
  description: The snapshots that retention gave up, C(side) is V(source) or V(destination).
  returned: always
  type: list
  elements: dict
  sample:
    - {side: source, snapshot: tank/pg@hotspare-20260129T120000Z}
stale_holds:
  description:
    - Snapshots that are held under O(prefix) and are not what the next send builds on, as those of a run that died
      before it had sent anything. O(state=released) releases them by their names.
  returned: always
  type: list
  elements: dict
  sample:
    - {side: source, snapshot: tank/pg@hotspare-20260128T120000Z}
steps:
  description: Each command that was (or in check mode would be) run, on which side, and why.
  returned: always
  type: list
  elements: str
  sample:
    - "source: zfs hold hotspare tank/pg@hotspare-20260131T120000Z (so that it stays until it has arrived)"
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import NAME, Login, Side
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_refusals import Keep, Want
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_send import work

SIDE = {
    "dataset": {"type": "str", "required": True},
    "host": {"type": "str"},
    "port": {"type": "int", "default": 22},
    "account": {"type": "str", "default": "root"},
    "identity": {"type": "path"},
    "known_hosts": {"type": "path"},
    "keep_count": {"type": "int"},
    "keep_days": {"type": "float"},
}


def _side(given: Mapping[str, Any]) -> Side:
    if not NAME.fullmatch(given["dataset"]):
        raise HotspareError(f"{given['dataset']!r} is no name of a dataset: give it as zfs list shows it")
    if given["host"] is None:
        return Side()
    return Side(Login(*(given[key] for key in ("host", "port", "account", "identity", "known_hosts"))))


def _keep(given: Optional[Mapping[str, Any]]) -> Keep:
    return Keep(given["keep_count"], given["keep_days"]) if given else Keep()


def _text(value: Any) -> str:
    """YAML takes a plain on or off for a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _work(params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    source, target = params["source"], params["destination"]
    if target and source["host"] and target["host"]:
        raise HotspareError(
            f"neither {source['dataset']} nor {target['dataset']} is on this host, through which the stream would take "
            "a detour: run this task on one of the two"
        )
    want = Want(
        state=params["state"],
        snapshot=params["snapshot"] or "",
        prefix=params["prefix"],
        recursive=params["recursive"],
        allow_full=params["allow_full"],
        in_the_way=params["in_the_way"],
        raw=params["raw"],
        properties={key: _text(value) for key, value in params["properties"].items()},
        copied=tuple(params["copied_properties"]),
        keep_source=_keep(source),
        keep_target=_keep(target),
    )
    with ExitStack() as stack:
        return work(
            stack.enter_context(_side(source)),
            stack.enter_context(_side(target)) if target else None,
            (source["dataset"], target["dataset"] if target else ""),
            want,
            check_mode=check_mode,
            status_file=params["status_file"],
        )


def main() -> None:
    side = {"type": "dict", "options": SIDE, "required_by": {"host": ["identity", "known_hosts"]}}
    module = AnsibleModule(
        argument_spec={
            "source": {**side, "required": True},
            "destination": side,
            "state": {"type": "str", "choices": ["sent", "snapshotted", "pruned", "released"], "default": "sent"},
            "snapshot": {"type": "str"},
            "prefix": {"type": "str", "default": "hotspare"},
            "recursive": {"type": "bool", "default": False},
            "allow_full": {"type": "bool", "default": True},
            "in_the_way": {"type": "str", "choices": ["fail", "rename"], "default": "fail"},
            "raw": {"type": "bool"},
            "properties": {"type": "dict", "default": {"canmount": "noauto", "readonly": "on"}},
            "copied_properties": {"type": "list", "elements": "str", "default": ["recordsize", "compression", "atime"]},
            "status_file": {"type": "path"},
        },
        required_if=[("state", "sent", ["destination"]), ("state", "released", ["snapshot"])],
        supports_check_mode=True,
    )
    try:
        result = _work(module.params, module.check_mode)
    except HotspareError as error:
        module.fail_json(msg=error.message, **error.facts)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
