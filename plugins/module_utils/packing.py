# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""This library as one file that Python runs: the program of a node, for what must work without Ansible."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Optional

from .shell import HotspareError, remove_durably, write_durably

PACKAGE = "hotspare"
ENTRY = "program"
CLIENT = "archive_client"  # a file of its own beside the program
MAIN = f"""\
from {PACKAGE}.{ENTRY} import main

raise SystemExit(main())
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever and wherever it is packed


def program(source: Callable[[str], str]) -> bytes:
    """The zipapp of the entry and all that it imports of the library; `source` gives the text of a module by name."""
    modules = {f"{PACKAGE}/{name}.py": text for name, text in closure(ENTRY, source).items()}
    return pack({**modules, f"{PACKAGE}/__init__.py": "", "__main__.py": MAIN})


def closure(name: str, source: Callable[[str], str]) -> dict[str, str]:
    """A module of the library with all that it needs of the library, by name; floors keep that without a ring."""
    found: dict[str, str] = {}
    wanted = [name]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = source(name)
            wanted += siblings(found[name])
    return found


def siblings(text: str) -> list[str]:
    """The modules beside it that a module imports, by `from .x import y` or `from . import x`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found += [node.module] if node.module else [alias.name for alias in node.names]
    return sorted(set(found))


def pack(files: Mapping[str, str]) -> bytes:
    """A zip file of these texts by path, the same bytes for the same texts on every machine."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:  # how zlib packs is not the same everywhere
        for path in sorted(files):
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[path].encode())
    return memory.getvalue()


def source_beside(name: str) -> Callable[[str], str]:
    """What tells the text of the modules beside the imported module `name`, from wherever Python got it: a directory,
    the zip file in which Ansible sends a module, or the control node, of which mitogen fetches what is imported.
    HotspareError for one that is not there."""
    package = name.rpartition(".")[0]

    def source(module: str) -> str:
        full = f"{package}.{module}"
        spec = importlib.util.find_spec(full)
        loader: Any = spec.loader if spec is not None else None
        text: Optional[str] = None
        if hasattr(loader, "get_source"):
            text = loader.get_source(full)
            if text is None:  # not fetched yet
                importlib.import_module(full)
                text = loader.get_source(full)
        if text is None:
            raise HotspareError(f"the text of {full} is not to be had: install the collection again")
        return text

    return source


def install(wanted: Mapping[str, bytes], *, check_mode: bool = False) -> list[dict[str, Any]]:
    """Make these the contents of files by path, in this order; empty = no such file. New ones are everybody's to read.

    Returns a record `{path, diff}` for each that was (or would be) changed. HotspareError.
    """
    changes = []
    for path, content in wanted.items():
        before = _content(path)
        if before == (content or None):
            continue
        changes.append({"path": path, "diff": _diff(path, before or b"", content)})
        if check_mode:
            continue
        if not content or os.path.islink(path):  # never through a link of the account that owns the directory
            remove_durably(path)
        if content:
            _make_directory(os.path.dirname(path))
            write_durably(path, content.decode(errors="surrogateescape"), mode=0o644, follow=False)
    return changes


def _content(path: str) -> Optional[bytes]:
    """None when there is no such file; a link is never what is wanted."""
    if os.path.islink(path):
        return b""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe that was laid there is replaced
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HotspareError(f"cannot read {path}: {error.strerror}; run this as root") from error


def _diff(path: str, before: bytes, after: bytes) -> dict[str, str]:
    header = {"before_header": path, "after_header": path}
    try:
        return {**header, "before": before.decode(), "after": after.decode()}
    except UnicodeDecodeError:
        return {**header, "before": _size(before), "after": _size(after)}


def _size(content: bytes) -> str:
    return f"{len(content)} bytes\n" if content else ""


def _make_directory(path: str) -> None:
    try:
        if not os.path.isdir(path):
            _make_directory(os.path.dirname(path))
            os.mkdir(path)
            os.chmod(path, 0o755)  # whatever the umask is
    except OSError as error:
        raise HotspareError(f"cannot make the directory {path}: {error.strerror}; run this as root") from error
