# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypothesis fails no test for the time that it takes: on a busy machine that says nothing of the code.

`make unit` tries the same examples in every run, so that a change is judged by what it changed; `make soak` looks for
new ones (--hypothesis-profile search).
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("hotspare", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=1000)
settings.load_profile("hotspare")
