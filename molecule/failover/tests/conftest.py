# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the tests import ledger.py, which lies beside them, and makes its database."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def books(lab):
    """A database of the ledger's own, made where the primary is."""
    primary = next(node for node in lab.addresses if lab.is_primary(node))
    lab.sql(primary, "DROP DATABASE IF EXISTS ledger; DROP ROLE IF EXISTS ledger")
    lab.sql(primary, "CREATE ROLE ledger LOGIN PASSWORD 'ledger'")
    lab.sql(primary, "CREATE DATABASE ledger OWNER ledger")
    lab.sql(primary, "CREATE TABLE ledger (number int PRIMARY KEY); ALTER TABLE ledger OWNER TO ledger", "ledger")
