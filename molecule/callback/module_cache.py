# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All runs of a test session share the modules that Ansible has packed for the nodes: by itself each run packs them
anew. They lie in HOTSPARE_MODULE_CACHE, a directory for one state of the collection.
"""

from __future__ import annotations

import os
from pathlib import Path

from ansible import constants as C
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: module_cache
type: aggregate
short_description: Packed modules are kept from run to run
description: [For the tests; the directory is HOTSPARE_MODULE_CACHE.]
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "module_cache"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook):
        # Where ansible.executor.module_common keeps them, in a directory of this run.
        Path(C.DEFAULT_LOCAL_TMP, "ansiballz_cache").symlink_to(os.environ["HOTSPARE_MODULE_CACHE"])
