# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a destination of documents does, and refuses."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import tree_server
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError


@pytest.mark.parametrize("command", ["rsync --server --sender . /etc", "rsync --server . /", "sh"])
def test_any_other_command_is_refused(command):
    with pytest.raises(HotspareError):
        tree_server.rsync(None, command)
