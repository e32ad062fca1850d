#!/usr/bin/python
# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_program
short_description: Install what a node runs without Ansible
version_added: 0.1.0
description:
  - Writes the library of this collection as one Python program, which the system's Python runs. It has the commands
    C(guard), which keeps a dead primary from starting beside the one that replaced it, C(address), which keeps a
    service address on the primary, and those of the archive, C(archive-ship), C(archive-sync), C(archive-serve),
    C(archive) and C(restore).
  - Writes the program's configuration for one cluster, and the files (units of systemd) that call it.
  - The same version makes the same file on every machine. It starts and stops nothing.
options:
  path:
    description: Where the program is.
    type: path
    default: /usr/local/lib/hotspare/hotspare.pyz
  client:
    description:
      - Whether C(archive_client.py) is installed beside the program, for C(archive_command) and C(restore_command). It
        starts quicker than the program, and asks the shipper, which is the command C(archive-ship).
    type: bool
    default: false
  config_file:
    description: Where the configuration of the cluster is. Its directory must be there.
    type: path
    required: true
  config:
    description:
      - The configuration, written as JSON.
      - It must hold no secret, since everybody may read it.
    type: dict
    required: true
  files:
    description:
      - Further files by path, with their text.
      - A file with an empty text is removed.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Says what would be written and writes nothing.
    support: full
  diff_mode:
    description: Shows the texts of all files but that of the program itself.
    support: full
requirements:
  - Python 3.9 or later
notes:
  - Run it as root (C(become=true)).
author:
  - hotspare contributors (@hotspare)
"""

EXAMPLES = r"""
- name: Install the program and its configuration
  hotspare.postgresql.node_program:
    config_file: /etc/postgresql/17/main/hotspare.json
    config: "{{ my_configuration }}"
    files:
      /etc/systemd/system/postgresql@17-main.service.d/50-hotspare.conf: |
        [Service]
        ExecStartPre=/usr/bin/python3 -I /usr/local/lib/hotspare/hotspare.pyz guard /etc/hotspare/main/hotspare.json
  become: true
"""

RETURN = r"""
changed_files:
  description: The files that were (or would be) written or removed.
  returned: success
  type: list
  elements: str
  sample: [/usr/local/lib/hotspare/hotspare.pyz]
version:
  description: The version of the program.
  returned: success
  type: str
  sample: 0.1.0
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hotspare.postgresql.plugins.module_utils.packing import CLIENT, install, program, source_beside
from ansible_collections.hotspare.postgresql.plugins.module_utils.program import VERSION, read_config
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/usr/local/lib/hotspare/hotspare.pyz"},
            "client": {"type": "bool", "default": False},
            "config_file": {"type": "path", "required": True},
            "config": {"type": "dict", "required": True},
            "files": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    config = json.dumps(params["config"], indent=2, sort_keys=True) + "\n"
    source = source_beside(read_config.__module__)
    client = os.path.join(os.path.dirname(params["path"]), f"{CLIENT}.py")
    wanted = {
        params["path"]: program(source),
        **({client: source(CLIENT).encode()} if params["client"] else {}),
        params["config_file"]: config.encode(),
        **{path: text.encode() for path, text in params["files"].items()},
    }
    try:
        changes = install(wanted, check_mode=module.check_mode)
    except HotspareError as error:
        module.fail_json(msg=error.message, **error.facts)
    module.exit_json(
        changed=bool(changes),
        changed_files=[change["path"] for change in changes],
        version=VERSION,
        diff=[change["diff"] for change in changes],
    )


if __name__ == "__main__":
    main()
