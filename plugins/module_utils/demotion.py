# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prepare a primary to be a standby from its next start on, while it runs, and undo that.

From then on whatever starts it (systemd after a crash, a reboot, a hand) makes it a standby, never a second primary.
"""

from __future__ import annotations

from .conninfo import Upstream
from .server import (
    Instance,
    assert_upstream_settings,
    effective_setting,
    has_signal,
    read_text,
    require_configuration,
    require_upstream_directory,
    upstream_differs,
    write_upstream,
)
from .shell import HotspareError, remove_durably, write_durably

# Left over from a restore, any of these would end or promote the standby. PostgreSQL manual, 20.5.6 Recovery Target.
RECOVERY_TARGETS = tuple(f"recovery_target{name}" for name in ("", "_lsn", "_name", "_time", "_xid"))


def prepare(instance: Instance, upstream: Upstream, *, check_mode: bool = False) -> bool:
    """Write whom it will follow and standby.signal, durably; True if that changes something.

    All that a start would read is checked before standby.signal is there; if it does not fit, the files are as they
    were, and HotspareError. For a running primary and a stopped server.
    """
    require_configuration(instance)
    require_upstream_directory(instance)
    if has_signal(instance, "backup_label"):
        raise HotspareError(
            f"{instance} was not prepared to be a standby: backup_label is there, and it would start from that old "
            "backup's position; end the exclusive base backup first"
        )
    targets = [name for name in RECOVERY_TARGETS if effective_setting(instance, name)]
    if targets:
        raise HotspareError(
            f"{instance} was not prepared to be a standby: its configuration sets {', '.join(targets)}, so it would "
            "recover to there instead of following the new primary; remove that first (ALTER SYSTEM RESET, or the file)"
        )
    marked, differs = has_signal(instance, "standby.signal"), upstream_differs(instance, upstream)
    if check_mode:
        return differs or not marked
    if differs:
        before = read_text(instance.upstream_file)
        write_upstream(instance, upstream)
        try:
            assert_upstream_settings(instance, upstream)
        except HotspareError:
            _put_back(instance, before)
            raise
    else:
        assert_upstream_settings(instance, upstream)
    if not marked:
        write_durably(instance.path("standby.signal"), "", account=instance.account)
    return differs or not marked


def give_up(instance: Instance) -> None:
    """Undo `prepare` on a running primary, which it then stays with its next start. standby.signal goes first."""
    remove_durably(instance.path("standby.signal"))
    remove_durably(instance.upstream_file)


def _put_back(instance: Instance, text: str | None) -> None:
    if text is None:
        remove_durably(instance.upstream_file)
    else:
        write_durably(instance.upstream_file, text, account=instance.account)
