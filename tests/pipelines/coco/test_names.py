"""Which annotated image a file is of: by the end of its path, and never by a name that could be another's."""

from __future__ import annotations

import pytest

from pipelines.coco.names import ImageNames, NameMatch, plain_parts


def found(names: list[str], uri: str) -> NameMatch | None:
    return ImageNames(names).find(uri)


CARDS = ["cam1/IMG_0001.jpg", "cam2/IMG_0001.jpg", "cam2/IMG_0002.jpg"]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://lake/2026/cam1/IMG_0001.jpg", "cam1/IMG_0001.jpg"),
        ("file:///data/cam2/IMG_0001.jpg", "cam2/IMG_0001.jpg"),
        ("https://host/x/cam2/IMG_0002.jpg?width=300", "cam2/IMG_0002.jpg"),
        ("s3://lake/a/quite/other/IMG_0001.jpg", None),
        ("s3://lake/xcam1/IMG_0001.jpg", None),
        ("s3://lake/IMG_0001.jpg", None),
        ("s3://lake/cam1/IMG_0003.jpg", None),
    ],
)
def test_a_file_is_of_the_image_whose_whole_name_its_path_ends_in(uri: str, name: str | None) -> None:
    assert found(CARDS, uri) == (None if name is None else NameMatch(name))


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("https://host/x/img?id=1", "img?id=1"),
        ("https://host/x/img?id=2&size=a/b", "img?id=2&size=a/b"),
        ("https://host/x/img?id=3", None),
        ("https://host/x/1.jpg?id=1", "1.jpg"),
        ("https://host/x/2.jpg?next=x/1.jpg", None),
        ("https://host/x/1.jpg#img?id=1", "1.jpg"),
    ],
)
def test_the_query_of_a_web_address_counts_where_it_is_in_the_name(uri: str, name: str | None) -> None:
    match = found(["img?id=1", "img?id=2&size=a/b", "1.jpg"], uri)

    assert match == (None if name is None else NameMatch(name))


def test_a_file_in_other_folders_is_distinguished_from_one_that_is_placed_as_annotated() -> None:
    match = found(CARDS, "s3://lake/a/quite/other/IMG_0002.jpg")

    assert match == NameMatch("cam2/IMG_0002.jpg", is_placed_alike=False)


def test_folders_that_all_annotated_names_begin_with_need_not_agree() -> None:
    names = ["data/2026/cam1/1.jpg", "data/2026/cam2/1.jpg"]

    assert found(names, "s3://lake/photos/cam2/1.jpg") == NameMatch("data/2026/cam2/1.jpg")
    assert found(["val/a.jpg", "val/b.jpg"], "s3://lake/val2017/a.jpg") == NameMatch("val/a.jpg")
    assert found(["a.jpg"], "s3://lake/x/a.jpg") == NameMatch("a.jpg")
    assert ImageNames(names).without_common_folders("data/2026/cam1/1.jpg") == "cam1/1.jpg"


def test_the_longest_name_that_fits_wins() -> None:
    names = ["1.jpg", "cam1/1.jpg"]

    assert found(names, "s3://lake/cam1/1.jpg") == NameMatch("cam1/1.jpg")
    assert found(names, "s3://lake/cam2/1.jpg") == NameMatch("1.jpg")


def test_a_hundred_thousand_names_with_one_last_part_are_distinguished() -> None:
    names = ImageNames(f"clip-{number:06d}/frame.jpg" for number in range(100_000))

    # a second for all of them, where looking at every name for each took an hour
    assert all(names.find(f"s3://lake/clip-{number:06d}/frame.jpg") is not None for number in range(100_000))
    assert names.find("s3://lake/clip-100000/frame.jpg") is None


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("x/my%20photo.jpg", "s3://lake/x/my photo.jpg"),
        ("x\\photo.jpg", "s3://lake/x/photo.jpg"),
        ("x/PHOTO.JPG", "s3://lake/x/photo.jpg"),
        ("x/u\u0308.jpg", "s3://lake/x/\u00fc.jpg"),  # as macOS writes it
        ("x/\u00fc.jpg", "file:///lake/x/u\u0308.jpg"),
        ("/data/local-files/?d=x/photo.jpg", "s3://lake/x/photo.jpg"),  # of Label Studio
        ("/data/local-files/?d=x%5Cphoto.jpg", "s3://lake/x/photo.jpg"),
        (".\\x\\photo.jpg", "s3://lake/x/photo.jpg"),
    ],
)
def test_a_name_is_known_in_every_spelling(name: str, uri: str) -> None:
    assert found([name, "y/other.jpg"], uri) == NameMatch(name, is_spelled_alike=False)


def test_a_spelling_that_could_be_of_two_images_is_of_neither() -> None:
    names = ["x/A.jpg", "x/a.JPG", "y/b.jpg"]

    assert found(names, "s3://lake/x/a.jpg") is None
    assert found(names, "s3://lake/x/A.jpg") == NameMatch("x/A.jpg")


def test_parts_of_a_name_in_one_spelling() -> None:
    assert plain_parts("a%2FB c\\d.JPG") == ["a", "b c", "d.jpg"]
    assert plain_parts("x?d=1.jpg") == ["x?d=1.jpg"]
    assert plain_parts("") == [""]
