# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""packing.py: one program of many modules, the same bytes everywhere, written only where it differs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import packing
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError

SOURCES = {
    "program": "from .b import x\nfrom . import c\nimport os\n",
    "b": "def f():\n    from .d import y\n",
    "c": "from .b import x\nfrom json import loads\n",
    "d": "",
    "unneeded": "",
}


def test_it_has_all_that_the_entry_needs_and_no_more():
    assert set(packing.closure("program", SOURCES.__getitem__)) == {"program", "b", "c", "d"}


def test_the_same_texts_are_the_same_bytes(tmp_path):
    first = packing.program(SOURCES.__getitem__)
    assert first == packing.program(dict(reversed(SOURCES.items())).__getitem__)
    path = tmp_path / "x.pyz"
    path.write_bytes(first)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {entry.date_time for entry in archive.infolist()} == {packing.EPOCH}


def test_python_runs_the_real_one(tmp_path):
    path = tmp_path / "hotspare.pyz"
    path.write_bytes(packing.program(packing.source_beside(packing.__name__)))
    done = subprocess.run(
        [sys.executable, "-I", path, "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith("hotspare ")
    wrong = subprocess.run([sys.executable, "-I", path, "dance", "x"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "usage" in wrong.stderr) == (2, True)


def test_a_module_that_is_not_there_is_an_error():
    with pytest.raises(HotspareError, match=r"module_utils\.nothing"):
        packing.source_beside(packing.__name__)("nothing")


def test_only_what_differs_is_written(tmp_path):
    new, same, old = tmp_path / "deep" / "er" / "new", tmp_path / "same", tmp_path / "old"
    same.write_bytes(b"a")
    old.write_bytes(b"gone")
    wanted = {str(new): b"\xff\x00zip", str(same): b"a", str(old): b""}
    told = packing.install(wanted, check_mode=True)
    assert [change["path"] for change in told] == [str(new), str(old)]
    assert (new.exists(), old.exists()) == (False, True)
    umask = os.umask(0o077)
    try:
        assert packing.install(wanted) == told
    finally:
        os.umask(umask)
    assert new.read_bytes() == b"\xff\x00zip"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new, new.parent)] == [0o644, 0o755]
    assert not old.exists()
    assert packing.install(wanted) == []


def test_a_pipe_in_its_place_does_not_keep_it(tmp_path):
    path = tmp_path / "file"
    os.mkfifo(path)
    assert [change["path"] for change in packing.install({str(path): b"new"})] == [str(path)]
    assert path.is_file() and path.read_bytes() == b"new"


def test_it_does_not_write_through_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs")
    link.symlink_to(target)
    assert [change["path"] for change in packing.install({str(link): b"ours"})] == [str(link)]
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"theirs", b"ours", False)


def test_nor_through_one_that_is_laid_again_meanwhile(tmp_path, monkeypatch):
    """The account that owns the directory may be quick."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs")
    link.symlink_to(target)
    removed = packing.remove_durably
    monkeypatch.setattr(packing, "remove_durably", lambda path: (removed(path), os.symlink(target, path)))
    with pytest.raises(HotspareError, match="cannot write .*link"):
        packing.install({str(link): b"ours"})
    assert target.read_bytes() == b"theirs"


def test_the_difference_is_shown_as_text_where_it_is_text(tmp_path):
    path = tmp_path / "x"
    path.write_text("before\n", encoding="utf-8")
    assert packing.install({str(path): b"after\n"})[0]["diff"] == {
        "before_header": str(path),
        "after_header": str(path),
        "before": "before\n",
        "after": "after\n",
    }
    assert packing.install({str(path): b"\xff\xfe"})[0]["diff"]["after"] == "2 bytes\n"


def test_a_directory_in_the_way_is_told(tmp_path):
    Path(tmp_path / "x").mkdir()
    with pytest.raises(HotspareError, match="cannot read"):
        packing.install({str(tmp_path / "x"): b"a"})
