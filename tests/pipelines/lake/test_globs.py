"""Patterns of keys, against a slow and plain matcher."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake.globs import glob_to_regex, is_glob, literal_start


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("2026/**/*.jpg", ["2026/a.jpg", "2026/x/a.jpg", "2026/x/y/a.jpg"], ["2026/a.png", "a.jpg", "2026/a.jpg/b"]),
        ("2026/*.jpg", ["2026/a.jpg", "2026/.jpg"], ["2026/x/a.jpg"]),
        ("2026/**", ["2026/a.jpg", "2026/x/y"], ["2026", "2027/a"]),
        ("**/a.jpg", ["a.jpg", "x/a.jpg"], ["xa.jpg", "x/ba.jpg"]),
        ("a**b", ["ab", "axb"], ["a/b"]),
        ("img?.jpg", ["img1.jpg"], ["img.jpg", "img12.jpg", "img/.jpg"]),
        ("img[0-3x].jpg", ["img0.jpg", "img3.jpg", "imgx.jpg"], ["img4.jpg", "img-.jpg"]),
        ("img[!0-3].jpg", ["img4.jpg"], ["img0.jpg", "img/.jpg"]),
        ("[^a].jpg", ["^.jpg", "a.jpg"], ["b.jpg"]),
        ("*.{jpg,jp{eg,e}}", ["a.jpg", "a.jpeg", "a.jpe"], ["a.jp", "a.png"]),
        ("a,b{c", ["a,b{c"], ["a,bc"]),
        ("a[b", ["a[b"], ["ab"]),
        ("a[]b", ["a[]b"], ["ab"]),
        ("a[z-b]", ["a[z-b]"], ["az"]),
        ("a[+--]", ["a[+--]"], ["a+"]),
        ("a.b(c)+$", ["a.b(c)+$"], ["aXb(c)+$"]),
        ("line\n*", ["line\nbreak"], ["line"]),
        ("{a[}]", ["{a}"], ["a", "{a[}]"]),
        ("{a[}]}", ["a}"], ["{a}}", "a"]),
        ("{a[{],b}", ["a{", "b"], ["a", "{a{,b}"]),
    ],
)
def test_a_pattern_matches_whole_keys(pattern: str, matching: list[str], others: list[str]) -> None:
    regex = glob_to_regex(pattern)

    assert [key for key in matching if not regex.fullmatch(key)] == []
    assert [key for key in others if regex.fullmatch(key)] == []


def slowly(pattern: str, key: str) -> bool:
    """The meaning of `*`, `?` and `**`, folder by folder and character by character."""

    def name_matches(pattern: str, name: str) -> bool:
        if not pattern:
            return not name
        if pattern[0] == "*":
            return name_matches(pattern[1:], name) or (bool(name) and name_matches(pattern, name[1:]))
        return bool(name) and pattern[0] in ("?", name[0]) and name_matches(pattern[1:], name[1:])

    def folders_match(patterns: list[str], names: list[str]) -> bool:
        if not patterns:
            return not names
        if patterns[0] == "**":
            if len(patterns) == 1:
                return bool(names)
            return folders_match(patterns[1:], names) or (len(names) > 1 and folders_match(patterns, names[1:]))
        return bool(names) and name_matches(patterns[0], names[0]) and folders_match(patterns[1:], names[1:])

    return folders_match(pattern.split("/"), key.split("/"))


@given(
    pattern=st.lists(
        st.sampled_from(["**", "*", "?", "a", "a*", "*b", "a?b", ".*", "**b"]), min_size=1, max_size=4
    ).map("/".join),
    keys=st.lists(st.text("ab./", max_size=7), max_size=20),
)
def test_it_agrees_with_the_slow_matcher(pattern: str, keys: list[str]) -> None:
    regex = glob_to_regex(pattern)

    assert [bool(regex.fullmatch(key)) for key in keys] == [slowly(pattern, key) for key in keys]


@given(key=st.text("ab[]{},.*?-!^\\&~|/", max_size=8), other=st.text("ab[]{},.*?-!^\\&~|/", max_size=8))
def test_any_text_is_a_pattern(key: str, other: str) -> None:
    glob_to_regex(key).fullmatch(other)


def test_listing_begins_at_what_every_match_begins_with() -> None:
    assert literal_start("2026/11/img*.jpg") == "2026/11/img"
    assert literal_start("2026/{11,12}/*") == "2026/"
    assert literal_start("plain.jpg") == "plain.jpg"


def test_only_special_characters_make_a_pattern() -> None:
    assert [key for key in ("a*", "a?", "a[b", "{a}", "a b (c)+.jpg") if is_glob(key)] == ["a*", "a?", "a[b", "{a}"]
