# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""lasting_shell.py: of many commands of one script it is known which one wrote what, and which one said what."""

from __future__ import annotations

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils.lasting_shell import LastingShell, Lost, parts, script


def test_a_text_is_split_at_the_codes():
    assert parts("") == ([], [], "")
    assert parts("a\n\n=0=\n") == (["a\n"], [0], "")
    assert parts("a\n=0=\n\n=255=\nb") == (["a", ""], [0, 255], "b"), "a text may end without a new line"
    assert parts("=0=\n\n=1=\n") == (["=0=\n"], [1], ""), "what a first line looks like is no code"
    assert parts("\n=.=\n\n=x=\n") == ([], [], "\n=.=\n\n=x=\n")


def test_a_script_is_one_line():
    """What takes the place of the shell reads line by line."""
    line = script([["echo", "a b"], ["zfs", "version"]], True)
    assert line.count("\n") == 1 and line.endswith("\n")


SAYS = [
    ["printf", "%s", "no new line"],
    ["sh", "-c", "echo out; printf 'not currently mounted' >&2; exit 1"],
    ["true"],
    ["sh", "-c", "echo dataset is busy >&2; exit 3"],
    ["sh", "-c", "printf '\\n\\n'; printf '=1=' >&2; kill -9 $$"],
]


@pytest.mark.parametrize("program", ["sh", "bash"])
def test_each_has_its_own_on_both_outputs(program):
    shell = LastingShell([program])
    try:
        for _again in range(2):
            out, err = shell.ask(script(SAYS, False), 60)
            assert parts(out) == (["no new line", "out\n", "", "", "\n\n"], [0, 1, 0, 3, 137], "")
            texts, codes, rest = parts(err)
            assert (texts[:4], codes, rest) == (
                ["", "not currently mounted", "", "dataset is busy\n"],
                [0, 1, 0, 3, 137],
                "",
            )
            assert texts[4].startswith("=1=")  # bash adds that it was killed
            out, err = shell.ask(script(SAYS, True), 60)
            assert parts(out) == (["no new line", "out\n"], [0, 1], "")
            assert parts(err) == (["", "not currently mounted"], [0, 1], "")
    finally:
        shell.close()


def test_what_was_said_before_it_was_lost():
    shell = LastingShell(["sh"])
    try:
        with pytest.raises(Lost) as caught:
            shell.ask(script([["true"], ["sh", "-c", "echo why >&2; kill -9 $(ps -o ppid= $PPID) $PPID"]], False), 60)
        assert parts(caught.value.said) == ([""], [0], "why\n")
    finally:
        shell.close()
