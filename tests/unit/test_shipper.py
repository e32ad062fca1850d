# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""shipper.py: when a file counts as archived, what a lane ships next, and what it says of itself."""

from __future__ import annotations

from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.shipper import File, order, verdict
from ansible_collections.hotspare.postgresql.plugins.module_utils.store import Conflict, Full
from ansible_collections.hotspare.postgresql.plugins.module_utils.wire import Unreachable, exit_code
from hypothesis import given
from hypothesis import strategies as st

OUTCOMES = st.sampled_from([True, False, Conflict("differs"), Full("no room"), Unreachable("gone"), HotspareError("?")])


@given(st.sampled_from(["one", "all"]), st.lists(OUTCOMES, min_size=1, max_size=5))
def test_archived_means_durable_where_it_is_required(require, outcomes):
    found = verdict(require, outcomes)
    enough = all if require == "all" else any
    assert (found is True) == enough(outcome is True for outcome in outcomes)
    # It is an error as soon as it cannot come to be any more.
    hopeless = not enough(outcome is True or outcome is False for outcome in outcomes)
    assert isinstance(found, HotspareError) == hopeless
    if hopeless:
        assert 1 <= exit_code(found) <= 125


def test_without_a_destination_nothing_is_archived():
    assert isinstance(verdict("all", []), HotspareError)
    assert isinstance(verdict("one", []), HotspareError)


def test_files_go_as_the_archiver_takes_them():
    names = ["000000020000000000000004", "00000003.history", "000000010000000000000009", "00000002.history"]
    files = sorted((File(name, f"pg_wal/{name}", (0, 0, 0, 0), 0.0) for name in names), key=order)
    assert [file.name for file in files] == [names[3], names[1], names[2], names[0]]
