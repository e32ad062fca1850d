# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zfs_stream.py: all of a stream arrives, counted, and whichever program fails is named."""

from __future__ import annotations

import os
import shlex

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import zfs_stream
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs import Stage
from ansible_collections.hotspare.postgresql.plugins.module_utils.zfs_stream import flow

SIZE = 5_000_000


def sh(script: str, name: str = "") -> Stage:
    return Stage(name or script, ("sh", "-c", script))


def nothing(_count: int) -> None:
    return None


@pytest.fixture(params=["splice", "copy"])
def way(request, monkeypatch):
    if request.param == "copy":
        monkeypatch.delattr(os, "splice", raising=False)
    return request.param


def test_all_arrives_and_is_counted(way, tmp_path):
    file = tmp_path / "out"
    told: list[int] = []
    packed = [sh("gzip -1")]
    after = [sh("gzip -d"), sh(f"cat > {shlex.quote(str(file))}")]
    sent = flow([sh(f"head -c {SIZE} /dev/urandom")], [*packed, *after], told.append)
    assert sent == SIZE == file.stat().st_size
    assert told == sorted(told)


def test_it_tells_while_nobody_reads(way, monkeypatch):
    monkeypatch.setattr(zfs_stream, "TELL_SECONDS", 0.05)
    told: list[int] = []
    assert flow([sh(f"head -c {SIZE} /dev/zero")], [sh("sleep 1; cat >/dev/null")], told.append) == SIZE
    assert len([count for count in told if 0 < count < SIZE]) > 5, "what the pipe takes, again and again"


def test_what_comes_late_comes_too(way):
    told: list[int] = []
    assert flow([sh("sleep 1.2; echo x")], [sh("cat >&2")], told.append) == 2
    assert told[0] == 0


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (["echo gone >&2; exit 3"], ["cat"], "one failed with exit code 3 after 0 bytes: gone; run this again"),
        (["echo x; kill -9 $$"], ["cat; exit 1"], "one was ended by signal 9 after 2 bytes: it said nothing"),
        (["cat /dev/zero"], ["head -c 9; echo 'out of space' >&2; exit 1"], "two failed .*: out of space; make room"),
        (["cat /dev/zero"], ["cat", "exec 0<&-; echo no >&2; exit 4"], "three failed with exit code 4 .*: no; run"),
        (["echo x"], ["cat", "cat; exit 5"], "three failed with exit code 5 after 2 bytes"),
        (["echo x", "cat; exit 6"], ["cat"], "two failed with exit code 6"),
    ],
)
def test_whoever_fails_is_named(way, before, after, said):
    names = iter(("one", "two", "three"))
    stages = [[sh(script, next(names)) for script in scripts] for scripts in (before, after)]
    with pytest.raises(HotspareError, match=said) as caught:
        flow(stages[0], stages[1], nothing)
    assert "sent_bytes" in caught.value.facts


def test_what_cannot_be_started_leaves_nothing_running():
    with pytest.raises(HotspareError, match="cannot run it: No such file or directory; is /no/such/thing installed"):
        flow([sh("sleep 1000")], [Stage("it", ("/no/such/thing",))], nothing)


def test_who_is_interrupted_ends_them_all(monkeypatch):
    class Stop(Exception):
        pass

    def stop(_count: int) -> None:
        raise Stop

    started = []
    popen = zfs_stream.subprocess.Popen

    def remembered(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(zfs_stream.subprocess, "Popen", remembered)
    with pytest.raises(Stop):
        flow([sh("sleep 1000")], [sh("cat")], stop)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)  # one may see the end of its input first
