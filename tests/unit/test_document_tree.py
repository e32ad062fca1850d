# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Days, names, listings and manifests of document trees."""

from __future__ import annotations

import io
import os
from datetime import date, datetime, timedelta

import pytest
from ansible_collections.hotspare.postgresql.plugins.module_utils import document_tree
from ansible_collections.hotspare.postgresql.plugins.module_utils.document_tree import (
    Entry,
    day_of,
    due,
    escaped,
    first_open,
    header,
    joined,
    line,
    link_stays,
    look,
    missing_days,
    parse_line,
    parse_manifest,
    require_inside,
    require_pattern,
    settled,
    sort_key,
    unescaped,
)
from ansible_collections.hotspare.postgresql.plugins.module_utils.shell import HotspareError
from hypothesis import given
from hypothesis import strategies as st

PATTERN = "%Y/%m/%d"
NAME = st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b".."))
PATHS = st.lists(NAME, min_size=1, max_size=4).map(b"/".join).filter(lambda p: not p.startswith(document_tree.RESERVED))
SHA = st.text("0123456789abcdef", min_size=64, max_size=64)
MODES = st.sampled_from([0o100644, 0o100400, 0o120777])
ENTRIES = st.builds(Entry, PATHS, st.integers(0, 1 << 50), st.integers(-(1 << 62), 1 << 62), MODES, SHA | st.just(""))
LISTING = st.lists(ENTRIES, unique_by=lambda entry: entry.path).map(
    lambda entries: sorted(entries, key=lambda entry: sort_key(entry.path))
)


@given(st.binary())
def test_every_name_is_one_line_of_text_and_back(path):
    text = escaped(path)
    assert unescaped(text) == path
    assert text.isascii() or text.encode().decode() == text
    assert not set(text) & {"\n", "\r", "\0"}


def test_names_that_can_be_read_stay_so():
    assert escaped("Müller, Übersicht 3.pdf".encode()) == "Müller, Übersicht 3.pdf"
    assert escaped(b"a\nb\\x41\xff") == r"a\x0ab\x5cx41\xff"


@given(PATHS)
def test_a_path_of_a_document_is_taken(path):
    assert require_inside(path) == path


@pytest.mark.parametrize("path", [b"", b"/etc/passwd", b"a//b", b"a/../b", b"..", b"a/.", b"a\0b", b".hotspare-x/a"])
def test_a_path_that_leaves_the_tree_is_refused(path):
    with pytest.raises(HotspareError, match="is not a path of a document"):
        require_inside(path)


@pytest.mark.parametrize(
    ("path", "target", "stays"),
    [
        (b"a", b"b", True),
        (b"a", b"./b/c", True),
        (b"d/a", b"../b", True),
        (b"d/a", b"../../b", False),
        (b"a", b"..", False),
        (b"d/a", b"..", True),
        (b"a", b"/srv/scans/b", False),
        (b"d/e/a", b"b/../../../c", False),  # b may be a link itself
        (b"a", b"", False),
    ],
)
def test_a_link_has_to_stay_inside(path, target, stays):
    assert link_stays(path, target) is stays


def test_what_changed_a_moment_ago_is_not_settled():
    assert not settled([98_500_000_000], 100, 2)
    assert settled([98_000_000_000], 100, 2)
    assert settled([500_000_000_000], 100, 2)  # a clock was wrong
    assert not settled([500_000_000_000, 98_500_000_000], 100, 2)  # but somebody was here just now


# --- days ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["", PATTERN, "%Y-%m-%d", "%Y/scans-%m%d", "%Y/%j"])
def test_patterns_that_name_a_day(pattern):
    require_pattern(pattern)
    assert not pattern or day_of(date(2028, 2, 29).strftime(pattern), pattern) == date(2028, 2, 29)


@pytest.mark.parametrize("pattern", ["%Y", "%Y/%m", "day", "%d", "%Y-%m-%d/%H", "../%Y-%j", "/%Y-%j", "%Y//%j"])
def test_patterns_that_do_not(pattern):
    with pytest.raises(ValueError, match="does not name one folder for each day"):
        require_pattern(pattern)


def test_a_folder_that_only_looks_like_a_day():
    assert day_of("2026/11/20", PATTERN) == date(2026, 11, 20)
    for folder in ("2026/1/5", "2026/02/30", "2026/11/20/a", "notes", ""):
        assert day_of(folder, PATTERN) is None


def test_yesterday_is_open_until_the_grace_is_over():
    midnight = datetime(2026, 11, 21).timestamp()
    assert first_open(midnight - 1, 0) == date(2026, 11, 20)
    assert first_open(midnight, 0) == date(2026, 11, 21)
    assert first_open(midnight + 7199, 7200) == date(2026, 11, 20)
    assert first_open(midnight + 7200, 7200) == date(2026, 11, 21)


def test_days_are_worked_on_newest_first_and_sealed_ones_in_turn():
    days = {f"2026-11-{number}": date(2026, 11, number) for number in range(10, 22)}
    looked = {f"2026-11-{number}": float(number) for number in range(10, 16)}
    looked["2026-11-21"] = 1.0  # sealed by a clock that was wrong
    unsealed = [f"2026-11-{number}" for number in range(21, 15, -1)]
    open_day = date(2026, 11, 20)
    assert due(days, looked, [], open_day, 0) == unsealed
    assert due(days, looked, [], open_day, 2) == [*unsealed, "2026-11-11", "2026-11-10"]
    assert due(days, looked, ["2026-11-14", "gone"], open_day, 1) == [*unsealed, "2026-11-14", "2026-11-10"]
    assert due(days, looked, [], open_day, None) == sorted(days, reverse=True)


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 6)))
def test_missing_days_are_those_nobody_wrote(days, skip):
    start = date(2026, 9, 1)
    today = start + timedelta(days=60)
    held = {start + timedelta(days=number) for number in days}
    found = missing_days(held, today, sorted(skip))
    span = [start + timedelta(days=number) for number in range(60)]
    assert found == [day for day in span if held and min(held) < day and day not in held and day.weekday() not in skip]


# --- listings --------------------------------------------------------------------------------------------------------


@given(ENTRIES)
def test_a_line_is_an_entry(entry):
    assert parse_line(line(entry)) == entry


@given(st.lists(LISTING, min_size=1, max_size=3))
def test_joined_listings_are_what_a_dictionary_would_say(listings):
    by_path = [{entry.path: entry for entry in listing} for listing in listings]
    rows = list(joined(*listings))
    paths = [next(entry.path for entry in row if entry is not None) for row in rows]
    assert paths == sorted(set().union(*by_path), key=sort_key)
    assert rows == [tuple(held.get(path) for held in by_path) for path in paths]


@given(LISTING, LISTING)
def test_equal_looks_are_equal_listings(one, other):
    seen = [[(entry.path, entry.size, entry.mtime, entry.mode & 0o170000) for entry in side] for side in (one, other)]
    assert (look(one) == look(other)) is (seen[0] == seen[1])
    assert look(one) == look(entry._replace(sha256="") for entry in one)


def manifest(entries):
    return str(header("2026/11/20", entries)) + "".join(map(line, entries))


@given(LISTING)
def test_a_manifest_is_what_was_sealed(entries):
    text = manifest(entries)
    assert list(parse_manifest(io.StringIO(text, newline="\n"))) == entries


@given(LISTING.filter(bool), st.data())
def test_a_manifest_that_was_touched_is_refused(entries, data):
    text = manifest(entries).encode()
    begin = text.index(b"\n\n") + 2
    place = data.draw(st.integers(begin, len(text) - 1))
    touched = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
    with pytest.raises((ValueError, HotspareError)):
        list(parse_manifest(io.StringIO(touched.decode("utf-8", "surrogateescape"), newline="\n")))
    with pytest.raises(ValueError, match="its lines are not"):
        list(parse_manifest(io.StringIO(text[: text[:-1].rindex(b"\n") + 1].decode(), newline="\n")))


def test_entries_are_in_the_order_of_a_walk(tmp_path):
    for name in ("a/b", "a-b", "a/c/d", "b", "A"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    walked = sorted((os.path.relpath(p, tmp_path).encode() for p in tmp_path.rglob("*") if p.is_file()), key=sort_key)
    assert walked == [b"A", b"a/b", b"a/c/d", b"a-b", b"b"]
