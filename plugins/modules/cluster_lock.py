#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_lock
short_description: Let one operation at a time work on a cluster
version_added: 0.1.0
description:
  - Takes or gives back the lock of one node. A playbook takes those of all nodes that it can reach before it changes
    anything. It does not wait for the first of them, so that of two playbooks that start at once one has it, and the
    other is told who has and gives back what it took of the others.
  - A lock is not taken away because it is old, since a run whose control node was cut off may still be at work. A run
    that holds it already, and one on the same control node that finds the process of the holder gone, take it without
    a question. For anything else the operator names the holder with O(take_over).
  - A reboot of the node ends its lock.
options:
  state:
    description:
      - With V(held) this run has the lock afterwards, or it is an error that says who has it, since when and for what.
      - With V(released) this run has it no more. The lock of another run is left alone.
    type: str
    choices: [held, released]
    default: held
  run:
    description: Who takes it, as the filter P(hotspare.postgresql.this_run#filter) tells.
    type: dict
    required: true
    suboptions:
      owner:
        description: The operator and the control node, for example V(alice@bastion). This is what O(take_over) names.
        type: str
        required: true
      token:
        description: The same for all tasks of a run, and different for any two runs.
        type: str
        required: true
      control:
        description: The process on the control node - C(host), C(pid), C(started), C(boot_id) and C(namespace).
        type: dict
        required: true
      nodes:
        description: Which nodes have a lock to take, for the playbook. Not looked at here.
        type: list
        elements: str
        default: []
      dead:
        description: Tokens of runs of which the control node knows that their process is gone.
        type: list
        elements: str
        default: []
  purpose:
    description: What the lock is taken for, told to whoever wants it meanwhile. Needed with O(state=held).
    type: str
  expires_in:
    description:
      - Seconds after which the operation should have ended long ago.
      - It is told to whoever wants the lock, and does not end it.
    type: int
    default: 3600
  wait:
    description: Seconds to wait for another run to give it back.
    type: int
    default: 0
  take_over:
    description: The owner of a lock that the operator knows to be left behind.
    type: str
    default: ""
  expect:
    description:
      - What the node was when the run looked at it, its
        RV(hotspare.postgresql.pg_replication_state#module:node.fingerprint).
      - If it is something else once the lock is taken, the lock is given back and it is an error, since what was
        decided may be wrong by now. It is not looked at where the run has the lock already.
      - Without it the node is not looked at.
    type: str
extends_documentation_fragment:
  - hotspare.postgresql.node
attributes:
  check_mode:
    description: Says whether the lock could be taken, and does not take it.
    support: full
  diff_mode:
    description: There is no difference in text to show.
    support: none
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Keep others off the node
  hotspare.postgresql.cluster_lock:
    data_directory: /var/lib/postgresql/17/main
    run: "{{ node_topology | hotspare.postgresql.this_run }}"
    purpose: failover to db2
    expect: "{{ node_state.fingerprint | default(omit, true) }}"
  become: true

- name: Let others work again
  hotspare.postgresql.cluster_lock:
    data_directory: /var/lib/postgresql/17/main
    run: "{{ node_topology | hotspare.postgresql.this_run }}"
    state: released
  become: true
"""

RETURN = r"""
lock:
  description:
    - The lock as it is now, also when it could not be taken. V(null) when there is none.
    - C(expires_in) is in seconds and negative when it has expired. C(alive) is V(null) when it is not known
      from this node whether the run still runs.
  returned: always
  type: dict
  sample:
    owner: alice@bastion
    purpose: failover to db2
    since: 2026-01-31 12:00:00 UTC
    token: 5f0c4b8a9d2e1f37
    control:
      host: bastion
      pid: 4711
      started: 123456
      boot_id: 3f3b3c57-6a5e-4d2b-9d8d-6a1f7a1b2c3d
      namespace: pid:[4026531836]
    expires_in: 3599.9
    alive: null
    path: /run/lock/hotspare-0123456789abcdef.operation.json
took_over:
  description: Whose lock was taken over and why that may be, a sentence. V(null) when there was none.
  returned: success
  type: str
  sample: the lock of alice@bastion since 2026-01-31 12:00:00 UTC for failover to db2 was given up by the operator
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils.armed_state import read_armed
from ansible_collections.hotspare.postgresql.plugins.module_utils.lock import (
    fingerprint,
    hold,
    release,
    require_unchanged,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import (
    NODE_ARGUMENTS,
    Instance,
    instance_from_params,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


def _look_again(instance: Instance, expected: str, token: str, check_mode: bool) -> None:
    """Give the lock back if the node changed before it was taken. HotspareError."""
    try:
        armed = read_armed(instance.data_directory)
    except HotspareError:
        armed = {"state": "unknown"}  # as the state record has it
    try:
        require_unchanged(instance.name, expected, fingerprint(instance.data_directory, armed))
    except HotspareError as error:
        if not check_mode:
            error.facts["lock"] = release(instance.data_directory, token)["lock"]
        raise


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **NODE_ARGUMENTS,
            "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
            "run": {
                "type": "dict",
                "required": True,
                "options": {
                    "owner": {"type": "str", "required": True},
                    "token": {"type": "str", "required": True, "no_log": False},  # names a run, opens nothing
                    "control": {"type": "dict", "required": True},
                    "nodes": {"type": "list", "elements": "str", "default": []},
                    "dead": {"type": "list", "elements": "str", "default": []},
                },
            },
            "purpose": {"type": "str"},
            "expires_in": {"type": "int", "default": 3600},
            "wait": {"type": "int", "default": 0},
            "take_over": {"type": "str", "default": ""},
            "expect": {"type": "str"},
        },
        required_if=[("state", "held", ["purpose"])],
        supports_check_mode=True,
    )
    params = module.params
    run = params["run"]
    try:
        instance = instance_from_params(params)
        if params["state"] == "held":
            result = hold(
                instance.data_directory,
                instance.name,
                run,
                purpose=params["purpose"],
                seconds=params["expires_in"],
                take_over=params["take_over"],
                dead=run["dead"],
                wait=params["wait"],
                check_mode=module.check_mode,
            )
            if params["expect"] is not None and result["changed"]:
                _look_again(instance, params["expect"], run["token"], module.check_mode)
        else:
            result = release(instance.data_directory, run["token"], check_mode=module.check_mode)
    except HotspareError as error:
        module.fail_json(msg=error.message, **error.facts)
    if result["took_over"]:
        module.warn(f"{instance.name}: {result['took_over']}, and was taken over")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
