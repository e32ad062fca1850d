# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests/ and soak/ begin with: the ledger's database, made where the primary is."""

from __future__ import annotations

import pytest
from ledger import make_books


@pytest.fixture(scope="session", autouse=True)
def books(lab):
    make_books(lab)
