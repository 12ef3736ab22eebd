"""The last part of an address: what a picture is called outside its store."""

import pytest

from pipelines.file_names import file_name


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
