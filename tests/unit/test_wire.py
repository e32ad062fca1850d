# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""wire.py: what is sent arrives, and what is no message is told."""

from __future__ import annotations

import os

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Channel, Garbage


def test_a_banner_is_no_message():
    reading, writing = os.pipe()
    channel = Channel(reading, writing)
    os.write(writing, b"Welcome to db2!\n")
    with pytest.raises(Garbage, match="Welcome to db2!"):
        channel.answer(1)
