#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# What it does is in plugins/action/zfs_send_wait.py.

from __future__ import annotations

DOCUMENTATION = r"""
module: zfs_send_wait
short_description: Wait for a task in the background and say how far its ZFS stream is
version_added: 0.1.0
description:
  - Waits, as C(poll) of a task does, for what another task has begun in the background, and returns its result.
  - While a ZFS stream is under way it prints a line now and then (what is sent, how much of how much, how quickly, the
    time left), which a module cannot do before it ends.
  - A connection that is lost meanwhile is told once and tried again. What runs on the host goes on without it, also
    when Ansible is interrupted. A host that was restarted meanwhile is an error.
options:
  job:
    description:
      - What the other task has registered, with C(async) and C(poll=0).
      - The result of a task that was not in the background is returned as it is.
    type: dict
    required: true
  status_file:
    description:
      - The O(hotspare.postgresql.zfs_snapshot_send#module:status_file) that tells of the stream. Without it nothing is
        said.
    type: path
  poll:
    description: Seconds between two looks whether it has ended.
    type: float
    default: 5
  interval:
    description: Seconds between two lines.
    type: float
    default: 15
  timeout:
    description: Seconds after which it fails, while the other task goes on as long as its C(async) lets it.
    type: float
    default: 2592000
attributes:
  action:
    description: It runs on the controller, and looks on the host by C(async_status) and C(cat).
    support: full
  check_mode:
    description: Waits and says the same. It changes nothing.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
seealso:
  - module: hotspare.postgresql.zfs_snapshot_send
  - module: ansible.builtin.async_status
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Send what changed since the last time
  hotspare.postgresql.zfs_snapshot_send:
    source: {dataset: tank/pg}
    destination:
      dataset: vault/pg
      host: backup.example.com
      identity: /root/.ssh/zfs
      known_hosts: /root/.ssh/known_hosts
    status_file: /run/zfs-backup.json
  async: 2592000
  poll: 0
  register: sending

- name: Wait until it is there
  hotspare.postgresql.zfs_send_wait:
    job: "{{ sending }}"
    status_file: /run/zfs-backup.json
"""

RETURN = r""" # """
