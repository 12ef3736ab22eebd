"""Addresses, taken apart and shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store import file_name, has_secret, join_uri, split_uri, without_known_secrets, without_secrets


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


def test_a_tilde_at_the_beginning_is_the_home_folder_as_in_shells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)

    assert split_uri("~/table") == ("file:///", "home/me/table")
    assert split_uri("~/table/") == ("file:///", "home/me/table/")
    assert split_uri("~") == ("file:///", "home/me")
    for name in ("./~/table", "a/~/b", "~$draft.jpg"):
        assert split_uri(name)[1].startswith(f"{tmp_path}/".removeprefix("/"))


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
        ("https://user:pass/wo@rd@host/a.jpg", "https://host/a.jpg"),
        ("s3://AKIA:se/cret@b/x", "s3://b/x"),
        ("s3://b/x?X-Amz-Credential=AKIA/x&y=1", "s3://b/x?X-Amz-Credential=...&y=1"),
        ("az://c/x?sv=1&sig=abc", "az://c/x?sv=1&sig=..."),
    ],
)
def test_secrets_are_not_shown(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
    assert has_secret(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/a?b=c.jpg",
        "s3://b/saved.jpg?token=1",
        "abfss://container@account/x",
        "http://[::1]:8080/a@b.jpg",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/x@y",
        "/photos/a?sig=1",
        "file:///photos/user:password@x",
    ],
)
def test_names_that_only_look_like_secrets_are_shown_whole(uri: str) -> None:
    assert without_secrets(uri) == uri
    assert not has_secret(uri)


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("https://cdn.example/img?id=1&path=a/b.jpg", "https://cdn.example/img?id=1&path=a/b.jpg"),
        ("https://h/a.jpg?X-Amz-Signature=abc&v=1", "https://h/a.jpg?X-Amz-Signature=...&v=1"),
        ("https://user:password@h/a.jpg?v=1", "https://h/a.jpg?v=1"),
        ("https://h/x?%73ig=abc&v=1", "https://h/x?%73ig=...&v=1"),
        ("https://h/resize?url=https://u:pw@h/a.jpg&w=9", "https://h/resize?url=...&w=9"),
        ("https://h/resize?url=https%3A%2F%2Fb%2Fa%3FX-Amz-Signature%3Dab&w=9", "https://h/resize?url=...&w=9"),
        (
            "https://h/resize?url=https%3A%2F%2Fb%2Fa%3Fid%3D7&w=9",
            "https://h/resize?url=https%3A%2F%2Fb%2Fa%3Fid%3D7&w=9",
        ),
        ("s3://b/saved.jpg?token=1", "s3://b/saved.jpg?token=1"),
        ("s3://b/x?X-Amz-Credential=AKIA/x&y=1", "s3://b/x?X-Amz-Credential=...&y=1"),
        ("/photos/user:password@x?v=1", "/photos/user:password@x?v=1"),
    ],
)
def test_files_made_of_rows_lose_known_secrets_and_no_other_value(uri: str, kept: str) -> None:
    assert without_known_secrets(uri) == kept
    assert not has_secret(kept) or "..." in kept


def test_a_query_about_sizes_is_not_a_secret() -> None:
    assert not has_secret("https://host:8080/a@b.jpg?width=600&page=2")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://lake/2026/a b?.jpg", "a b?.jpg"),
        ("/photos/a%20b.jpg", "a%20b.jpg"),
        ("file:///photos/a.jpg", "a.jpg"),
        ("a.jpg", "a.jpg"),
        ("https://host/x/a%20b.jpg?key=1/2#top", "a b.jpg"),
        ("gs://bucket/a.tar#member.jpg", "a.tar#member.jpg"),
    ],
)
def test_the_file_name_is_the_last_part_of_an_address(uri: str, name: str) -> None:
    assert file_name(uri) == name
