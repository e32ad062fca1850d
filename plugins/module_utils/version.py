# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hotspare this is: a node may have another one for a moment, while site.yml goes from host to host."""

from __future__ import annotations

VERSION = "0.1.0"  # of the collection
