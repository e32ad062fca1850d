#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: archive_sync
short_description: Bring archives of WAL and documents to hold all that there is, and look what is wrong with them
version_added: 0.1.0
description:
  - The shipper on the primary sends each segment of WAL when PostgreSQL hands it over. This module sees to the rest. It
    fills the hole that a dead primary leaves, which no server hands over any more, and brings a destination that was
    away to what the others have. It reads archives again, tells what they lack, and removes what nobody needs.
  - What is shipped is taken from C(pg_wal) of the node it runs on, from the archives of all destinations and of the
    node itself, and from C(pg_wal) of the other nodes, which are read through their replication account. Only segments
    count that the server has finished, whether C(archive_status) calls them archived or not.
  - Every file is verified on the way and again at its destination. No file is ever overwritten; other content under the
    same name is an error that says where the two differ, and both are kept.
  - What an old primary wrote after the switch to a new timeline, and files of timelines that are newer than that of the
    node, are left where they are and named in RV(strays).
options:
  config_file:
    description:
      - The configuration that the role P(hotspare.postgresql.archive#role) writes, C(hotspare-archive.json). It says
        where the WAL and the document trees of the node are, and where they go to.
    type: path
    required: true
  kind:
    description: Whether this is about WAL or about document trees.
    type: str
    choices: [wal, tree]
    default: wal
  state:
    description:
      - With V(present) each destination holds all that can be had. Where that cannot be reached it is an error, after
        all that could be shipped was.
      - With V(verified) each file of the destinations is read again and compared with what the others have of that
        name. A file that is missing or different is an error. Nothing is changed.
      - With V(checked) it is told what is there, what is missing and what retention would remove. What is found is no
        error. Nothing is changed.
      - With V(pruned) the archives of the destinations and of the node itself are rid of WAL that nobody needs, the
        oldest first. Nothing is removed, and it is an error, when any of those who may need WAL does not say from where
        on - every server, its slots, every archive for its base backups - or while a backup is seen to be taken. Where
        the configuration does not say what to keep, nothing is removed, and that is no error. Documents are never
        removed.
    type: str
    choices: [present, verified, checked, pruned]
    default: present
  destinations:
    description:
      - The names of the destinations to bring to O(state), all by default. The archive of the node itself counts too,
        but nothing is shipped to it. An empty list is none, as where all others are dead, and no error.
      - Files are taken from the others as well, and compared with theirs.
    type: list
    elements: str
  trees:
    description: The names of the document trees, all by default. Only with O(kind=tree).
    type: list
    elements: str
  writable:
    description:
      - Whether the trees of the node are the originals, as on a primary, or read-only copies, as on a standby. They are
        made that before anything is shipped. Nothing of it is changed by default.
      - The timer does that within its interval. Only with O(kind=tree) and O(state=present).
    type: bool
attributes:
  check_mode:
    description:
      - Says what would be shipped or removed, with counts and bytes. For the states that change nothing it makes no
        difference.
    support: full
  diff_mode:
    description: Shows the names of the files that are shipped or removed, for each destination.
    support: full
requirements:
  - Python 3.9 or later, PostgreSQL 13 or later
  - psycopg2 2.8 or later, where a server runs
  - ssh, and C(zstd) where the archive is compressed, C(rsync) for documents
seealso:
  - module: hotspare.postgresql.pg_replication_state
    description: Says how the shipper of a node is.
notes:
  - Run it as root (C(become=true)). It becomes the account of the server, and on an archive host the account of the
    archive, before it reads or writes any of their files.
  - The timer that the role sets up does the same on the primary, every few minutes.
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Fill the hole that the dead primary left in the archives
  hotspare.postgresql.archive_sync:
    config_file: /etc/postgresql/17/main/hotspare-archive.json
  become: true

- name: See what is missing, what can be restored and what would be removed
  hotspare.postgresql.archive_sync:
    config_file: /etc/postgresql/17/main/hotspare-archive.json
    state: checked
  become: true
  register: archive

- name: Read the archive of one host again
  hotspare.postgresql.archive_sync:
    config_file: /etc/postgresql/17/main/hotspare-archive.json
    state: verified
    destinations: [store]
  become: true

- name: Remove what nobody needs
  hotspare.postgresql.archive_sync:
    config_file: /etc/postgresql/17/main/hotspare-archive.json
    state: pruned
  become: true

- name: Ship the documents that were scanned
  hotspare.postgresql.archive_sync:
    config_file: /etc/postgresql/17/main/hotspare-archive.json
    kind: tree
    trees: [scans]
  become: true

- name: Let documents be written on the new primary
  hotspare.postgresql.archive_sync:
    config_file: /etc/postgresql/17/main/hotspare-archive.json
    kind: tree
    writable: true
  become: true
"""

RETURN = r"""
destinations:
  description: What was done, or would be done in check mode, for each archive.
  returned: with O(kind=wal) and any O(state) but V(checked)
  type: list
  elements: dict
  contains:
    name:
      description: Which archive, a destination or that of the node itself.
      type: str
      sample: store
    error:
      description: Why nothing, or no more, could be done with it, a sentence. V(null) when all was done.
      type: str
      sample: null
    files:
      description: How many files were shipped, read or removed.
      type: int
      sample: 3
    bytes:
      description: Their size in bytes, of their content when shipped or read, as stored when removed.
      type: int
      sample: 50331648
    seconds:
      description: How long that took, in seconds.
      type: float
      sample: 0.412
    rate:
      description: Bytes in a second. V(null) where there were none.
      type: int
      sample: 122163709
    sources:
      description: With O(state=present), how many files came from whom.
      type: dict
      sample: {pg_wal of db2: 2, db3: 1}
    conflicts:
      description: With O(state=present), a sentence for each file that is there with other content.
      type: list
      elements: str
      sample: []
    missing:
      description: With O(state=verified), the files that it lacks and another has.
      type: list
      elements: str
      sample: ["000000010000000000000004"]
    different:
      description: With O(state=verified), the files whose content is not what most of the others have.
      type: list
      elements: str
      sample: []
    damaged:
      description: With O(state=verified), a sentence for each file that cannot be read.
      type: list
      elements: str
      sample: []
    alone:
      description: With O(state=verified), how many files nobody else has, so that there was nothing to compare with.
      type: int
      sample: 0
    newest:
      description: With O(state=verified), the newest segment. V(null) when there is none.
      type: str
      sample: "000000020000000000000009"
strays:
  description: Files of archives that are not shipped on, since no server that follows the primary will read them.
  returned: with O(kind=wal) and O(state=present)
  type: list
  elements: str
  sample: []
cut:
  description:
    - What retention decided. C(ok) is V(false) when nothing may be removed, C(before) are the digits of log and segment
      from which on everything stays, C(remove) the files that may go, the oldest first, C(deciding) who needs the
      oldest WAL, C(reason) a sentence.
  returned: with O(kind=wal) and O(state=pruned)
  type: dict
  sample:
    ok: true
    before: "0000000000000007"
    remove: ["000000010000000000000005", "000000010000000000000006"]
    deciding:
      kind: slot
      of: slot hotspare_db3 of db1
      lsn: 0/7000140
      detail: who uses it has not confirmed more
    reason: slot hotspare_db3 of db1 needs WAL from 0/7000140 on, who uses it has not confirmed more
archive:
  description:
    - The node that was looked from, and its archives. For P(hotspare.postgresql.archive_table#filter).
  returned: with O(kind=wal) and O(state=checked)
  type: dict
  contains:
    name:
      description: The node, or the archive host.
      type: str
      sample: db1
    cluster:
      description: The cluster, as its configuration calls it.
      type: str
      sample: main
    timeline:
      description: The timeline of the node. On an archive host the newest in an archive.
      type: int
      sample: 2
    position:
      description: Up to where the node has WAL on disk. V(null) on an archive host.
      type: str
      sample: 0/9000060
    places:
      description:
        - Each destination, and then the archive of the node itself (C(own)). When it could not be asked, C(error) says
          why, and all but C(name) and C(own) is V(null).
        - C(gaps) compares what is there with what recovery takes - C(stretches) of segments that are found, pending,
          recoverable (somebody else has them) or lost, C(histories), C(orphans) and C(future) timelines, C(unused)
          segments, C(complete_from), the oldest segment from which there is no gap, C(behind), segments that are still
          to come, C(ok), C(sentences). V(null) for the archive of the node itself.
        - C(waiting_seconds) is how long the oldest file that is complete here has not been there. C(backup) is the
          oldest base backup that leads up to now. C(files), C(bytes) and C(cut_bytes) are as stored, C(free_bytes) is
          what is left. C(cut) is as RV(cut). C(conflicts) are files that were refused there and kept.
      type: list
      elements: dict
      sample:
        - name: store
          own: false
          error: null
          gaps: {ok: true, complete_from: "000000010000000000000001", behind: 0}
          waiting_seconds: 0.0
          backup: {label: nightly, started: 2026-01-31 12:00:00 UTC, start_name: "000000010000000000000002"}
          files: 12
          bytes: 184549376
          free_bytes: 53687091200
          cut: {ok: true, before: "0000000000000002", remove: ["000000010000000000000001"]}
          cut_bytes: 16777216
          conflicts: []
trees:
  description:
    - A record for each tree. Of files the first 1000 are listed by name, with what is odd about them. What cannot be
      printed of a name is written as C(\xNN).
  returned: with O(kind=tree)
  type: list
  elements: dict
  contains:
    name:
      description: The name of the tree.
      type: str
      sample: scans
    path:
      description: Where it is on this node.
      type: str
      sample: /srv/scans
    error:
      description: Why it could not be looked at, a sentence. V(null) when it was.
      type: str
      sample: null
    skipped_open_files:
      description: Files that are still being written, which are shipped once they are finished.
      type: list
      elements: str
      sample: []
    refused:
      description: What is no document and is not shipped, as symbolic links out of the tree and special files.
      type: list
      elements: str
      sample: []
    conflicts:
      description: Files that changed, or came, after their day was sealed.
      type: list
      elements: str
      sample: []
    sealed:
      description: Days whose manifest was (or would be) written.
      type: list
      elements: str
      sample: [2026/01/30]
    missing_days:
      description: Folders of days that should hold documents and do not.
      type: list
      elements: str
      sample: []
    counts:
      description: How many files C(skipped_open_files), C(refused) and C(conflicts) tell of.
      type: dict
      sample: {skipped_open_files: 0, refused: 0, conflicts: 0}
    complete:
      description:
        - With O(state=verified) and O(state=checked), for each node that shipped to this one, when all was here last.
      type: dict
      sample: {db2: "2026-01-31 12:00:00"}
    problems:
      description: What is wrong with the tree and its copies, a sentence each.
      type: list
      elements: str
      sample: []
    destinations:
      description:
        - With O(state=present), for each destination C(name), C(error), C(files), C(bytes), C(seconds) and C(rate) as
          in RV(destinations), the C(conflicts) there, and the days that were C(sealed) there.
        - With O(state=verified) and O(state=checked), for each destination and then for the tree on this node itself
          (C(own)), how many files are C(present), C(missing), C(different) and C(extra), their C(bytes), the
          C(newest), and under C(names) which are missing and different. All of these are V(null) when it could not be
          looked at, which C(error) says. V(verified) reads every file again, V(checked) takes a file that has the size
          and the time of the original for it.
      type: list
      elements: dict
      sample:
        - name: db2
          error: null
          files: 12
          bytes: 5242880
          seconds: 0.8
          rate: 6553600
          conflicts: []
          sealed: [2026/01/30]
problems:
  description: What is wrong, a sentence each. With any O(state) but V(checked) the task has failed when there is one.
  returned: always
  type: list
  elements: str
  sample: []
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_sync, wal_sync
from ansible_collections.hotspare.postgresql.plugins.module_utils.archive_config import (
    ArchiveConfig,
    Tree,
    read_archive_config,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


def _require_meant(params: Mapping[str, Any]) -> None:
    """HotspareError for options that would have no effect: who gives one believes that it has."""
    if params["kind"] == "tree" and params["state"] == "pruned":
        raise HotspareError("documents are never removed: state=pruned is for kind=wal")
    for name in ("trees", "writable"):
        if params["kind"] == "wal" and params[name] is not None:
            raise HotspareError(f"{name} is about document trees, and nothing was done: add kind=tree, or leave it out")
    if params["writable"] is not None and params["state"] != "present":
        state = params["state"]
        raise HotspareError(f"writable is for state=present, and state={state} changes no tree: leave one of them out")


def _wal(config: ArchiveConfig, params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    state, names = params["state"], params["destinations"]
    if state == "present":
        return wal_sync.sync(config, destinations=names, check_mode=check_mode)
    if state == "pruned":
        return wal_sync.prune(config, destinations=names, check_mode=check_mode)
    return (wal_sync.verify if state == "verified" else wal_sync.check)(config, destinations=names)


def _tree(config: ArchiveConfig, tree: Tree, params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    state, names = params["state"], params["destinations"]
    if state == "present":
        writable = params["writable"]
        return tree_sync.sync(config, tree, destinations=names, writable=writable, check_mode=check_mode)
    return (tree_sync.verify if state == "verified" else tree_sync.check)(config, tree, destinations=names)


def _trees(config: ArchiveConfig, params: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """One tree that cannot be worked on keeps nothing from the others."""
    named = params["trees"]
    records = []
    for tree in config.trees if named is None else [config.tree(name) for name in named]:
        try:
            records.append(_tree(config, tree, params, check_mode))
        except HotspareError as error:
            unknown = {"changed": False, "missing_days": [], "refused": [], "destinations": []}
            records.append(
                {"name": tree.name, "path": tree.path, "error": error.message, "problems": [error.message], **unknown}
            )
    return {
        "changed": any(record["changed"] for record in records),
        "trees": records,
        "problems": [f"{record['name']}: {problem}" for record in records for problem in record["problems"]],
    }


def _diff(records: Iterable[dict[str, Any]], state: str) -> list[dict[str, str]]:
    """Takes the names out of the records: they may be many."""
    found = []
    for record in records:
        text = "".join(f"{name}\n" for name in record.pop("names"))
        if text:
            before, after = ("", text) if state == "present" else (text, "")
            headers = {"before_header": record["name"], "after_header": record["name"]}
            found.append({**headers, "before": before, "after": after})
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "config_file": {"type": "path", "required": True},
            "kind": {"type": "str", "choices": ["wal", "tree"], "default": "wal"},
            "state": {"type": "str", "choices": ["present", "verified", "checked", "pruned"], "default": "present"},
            "destinations": {"type": "list", "elements": "str"},
            "trees": {"type": "list", "elements": "str"},
            "writable": {"type": "bool"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        _require_meant(params)
        config = read_archive_config(params["config_file"])
        result = (_trees if params["kind"] == "tree" else _wal)(config, params, module.check_mode)
    except HotspareError as error:
        module.fail_json(msg=error.message, **error.facts)
    if params["state"] in ("present", "pruned"):
        records = [record for one in result.get("trees", [result]) for record in one["destinations"]]
        result["diff"] = _diff(records, params["state"])
    for warning in result.pop("warnings", []):
        module.warn(warning)
    if result["problems"] and params["state"] != "checked":
        more = len(result["problems"]) - 1
        module.fail_json(msg=result["problems"][0] + (f" (and {more} more: see problems)" if more else ""), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
