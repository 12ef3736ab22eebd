"""Addresses, taken apart and shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store import join_uri, split_uri, without_secrets


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/x/y.jpg", ("s3://b", "x/y.jpg")),
        ("s3://b", ("s3://b", "")),
        ("s3://b/", ("s3://b", "")),
        ("S3://b/x", ("s3://b", "x")),
        ("s3://b/what?#100%25.jpg", ("s3://b", "what?#100%25.jpg")),
        ("s3://b//x//y/", ("s3://b", "/x//y/")),
        ("s3://b/line\nbreak", ("s3://b", "line\nbreak")),
        ("https://h:8080/a/b.jpg?sig=1&x=/y", ("https://h:8080", "a/b.jpg?sig=1&x=/y")),
        ("https://h?sig=1", ("https://h", "?sig=1")),
        ("abfss://container@account.dfs.core.windows.net/x", ("abfss://container@account.dfs.core.windows.net", "x")),
        ("/photos/a b.jpg", ("file:///", "photos/a b.jpg")),
        ("/photos/../x/", ("file:///", "x/")),
        ("/photos/100%?#.jpg", ("file:///", "photos/100%?#.jpg")),
        ("file:///photos/x", ("file:///", "photos/x")),
        ("file:/photos/x", ("file:///", "photos/x")),
        ("file://localhost/photos/x", ("file:///", "photos/x")),
        ("/", ("file:///", "")),
    ],
)
def test_a_uri_is_a_root_and_a_key(uri: str, expected: tuple[str, str]) -> None:
    assert split_uri(uri) == expected


def test_a_relative_path_is_below_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    assert split_uri("photos/a.jpg") == ("file:///", f"{tmp_path}/photos/a.jpg".removeprefix("/"))


@given(root=st.sampled_from(["s3://b", "gs://b", "https://h:1"]), key=st.text())
def test_any_key_survives_joining_and_splitting(root: str, key: str) -> None:
    assert split_uri(join_uri(root, key)) == (root, key)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:password@host/a.jpg", "https://host/a.jpg"),
        ("https://token@host/a.jpg", "https://host/a.jpg"),
        ("ftp://user:password@host/a@b.jpg", "ftp://host/a@b.jpg"),
        ("https://h/a.jpg?X-Amz-Signature=abc&v=1", "https://h/a.jpg?X-Amz-Signature=...&v=..."),
        ("s3://b/a?b=c.jpg", "s3://b/a?b=c.jpg"),
        ("abfss://container@account/x", "abfss://container@account/x"),
    ],
)
def test_secrets_are_not_shown(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
