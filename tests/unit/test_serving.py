# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pg_server does, without a server: which start is refused, what cannot be meant, what a stop waits for."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.server import CLEAN_STATES
from ansible_collections.hotspare.postgresql.plugins.module_utils.serving import role_refusal, wanted_from_params
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from hypothesis import given
from hypothesis import strategies as st

# --- which start is refused -----------------------------------------------------------------------------------------


def refusal(role, **facts):
    stopped_primary = {
        "standby_signal": False,
        "recovery_signal": False,
        "backup_label": False,
        "has_upstream": False,
        "control_state": "shut down",
    }
    return role_refusal(role, **{**stopped_primary, **facts})


@pytest.mark.parametrize(
    ("role", "facts"),
    [
        ("primary", {}),
        ("primary", {"control_state": "in production"}),  # a crash: it recovers
        ("primary", {"standby_signal": True}),  # a cutover that was given up
        ("primary", {"standby_signal": True, "control_state": "in production"}),  # prepared, then it crashed
        ("primary", {"standby_signal": True, "control_state": "shutting down"}),
        ("standby", {"standby_signal": True, "has_upstream": True, "control_state": "shut down in recovery"}),
        (None, {"standby_signal": True, "control_state": "in archive recovery"}),
        (None, {"standby_signal": True, "recovery_signal": True}),  # the manual: standby.signal wins
    ],
)
def test_what_may_be_started(role, facts):
    assert refusal(role, **facts) is None


@pytest.mark.parametrize(
    ("role", "facts", "part"),
    [
        (None, {}, "role: primary"),
        ("standby", {}, "no standby.signal"),
        ("standby", {"standby_signal": True}, "follow nobody"),
        ("primary", {"standby_signal": True, "control_state": "shut down in recovery"}, "last was a standby"),
        ("primary", {"standby_signal": True, "control_state": "in archive recovery"}, "last was a standby"),
        ("primary", {"control_state": "shut down in recovery"}, "last was a standby"),
        ("primary", {"control_state": "in archive recovery"}, "last was a standby"),
        ("primary", {"control_state": "a state of the future"}, "last was a standby"),
        ("primary", {"backup_label": True, "control_state": "in production"}, "backup_label"),
        ("primary", {"recovery_signal": True}, "recovery.signal"),
        ("standby", {"recovery_signal": True, "has_upstream": True}, "recovery.signal"),
        (None, {"recovery_signal": True}, "recovery.signal"),
    ],
)
def test_what_is_refused(role, facts, part):
    assert part in refusal(role, **facts)


@given(
    standby_signal=st.booleans(),
    recovery_signal=st.booleans(),
    backup_label=st.booleans(),
    has_upstream=st.booleans(),
    control_state=st.sampled_from([*CLEAN_STATES, "in production", "in archive recovery", "in crash recovery", "?"]),
)
def test_nothing_becomes_a_primary_unasked_nor_a_standby_one(**facts):
    would_be_primary = not facts["standby_signal"]
    for role in (None, "standby"):
        assert role_refusal(role, **facts) is not None or not would_be_primary
    if "recovery" in facts["control_state"] and facts["control_state"] != "in crash recovery":
        assert role_refusal("primary", **facts) is not None


# --- what cannot be meant -------------------------------------------------------------------------------------------

UPSTREAM = {"host": "db-two", "port": 5432, "slot": "hotspare_db_one", "parameters": {"sslmode": "require"}}
OPTIONS = {"role": None, "mode": "fast", "immediate_after": None, "checkpoint": False, "timeout": 60}


@pytest.mark.parametrize(("state", "role"), [("running", "primary"), ("running", None), ("stopped", None)])
def test_an_upstream_prepares(state, role):
    wanted = wanted_from_params({**OPTIONS, "state": state, "role": role, "upstream": UPSTREAM})
    assert wanted.upstream.conninfo() == "host=db-two port=5432 sslmode=require"
    assert wanted.upstream.slot == "hotspare_db_one"


@pytest.mark.parametrize(
    ("state", "role"), [("started", "primary"), ("restarted", None), ("reloaded", None), ("running", "standby")]
)
def test_an_upstream_elsewhere_is_a_mistake(state, role):
    with pytest.raises(HotspareError, match="pg_replication_state"):
        wanted_from_params({**OPTIONS, "state": state, "role": role, "upstream": UPSTREAM})


def test_a_password_is_no_parameter():
    with pytest.raises(HotspareError, match="passfile"):
        wanted_from_params(
            {**OPTIONS, "state": "running", "upstream": {**UPSTREAM, "parameters": {"password": "geheim"}}}
        )
