"""Reading the pictures of a report: stores that are down, large pictures, and progress."""

from __future__ import annotations

import io
import threading
import time

import pytest
from PIL import Image

from pipelines.report.examples import Example
from pipelines.report.pictures import PictureReader, load_pictures
from pipelines.store import Blob, NotFound, StoreDown, Stores


def png(size: tuple[int, int] = (80, 60)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (200, 90, 20)).save(sink, "PNG")
    return sink.getvalue()


class SomeDown(Stores):
    """Stores of which some addresses do not answer."""

    def __init__(self, down: str, data: bytes = b"") -> None:
        super().__init__()
        self.down, self.data, self.asked = down, data or png(), list[str]()

    def get(self, uri: str, *, most_bytes: int | None = None) -> Blob:
        self.asked.append(uri)
        if self.down in uri:
            raise StoreDown(f"{uri} cannot be read: no answer.")
        if "gone" in uri:
            raise NotFound(uri)
        return Blob(self.data, None)


def example(uri: str, size: tuple[int, int] = (80, 60)) -> Example:
    return Example(uri, None, None, *size, ())


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.report.pictures.THREADS", 1)


def test_a_server_that_is_down_is_asked_twice() -> None:
    stores = SomeDown("https://down")
    uris = [f"https://{host}/{number}.png" for number in range(3) for host in ("down", "up")]

    pictures = load_pictures(map(example, uris), stores)

    assert [one for one in stores.asked if "down" in one] == ["https://down/0.png", "https://down/1.png"]
    assert [one.problem for one in pictures if "down" in one.uri] == [
        "The image cannot be read: https://down/0.png cannot be read: no answer.",
        "The image cannot be read: https://down/1.png cannot be read: no answer.",
        "The image was not read: https://down did not answer for other images.",
    ]
    assert [one.problem for one in pictures if "up" in one.uri] == [None] * 3


@pytest.mark.parametrize("before", [[], ["s3://lake/gone.png"]])
def test_one_failure_of_a_server_that_answers_is_not_of_its_other_pictures(before: list[str]) -> None:
    stores = SomeDown("bad")
    uris = [*before, "s3://lake/bad.png", "s3://lake/1.png", "s3://lake/bad2.png", "s3://lake/2.png"]

    pictures = load_pictures(map(example, uris), stores)

    assert [one.source is None for one in pictures] == [True] * len(before) + [True, False, True, False]


def test_damaged_archives_and_local_files_are_not_failures_of_the_others() -> None:
    stores = SomeDown("bad")
    uris = ["s3://lake/bad.tar#/0.png", "s3://lake/bad.tar#/1.png", "s3://lake/1.png", "/lake/bad.png", "/lake/2.png"]

    pictures = load_pictures(map(example, uris), stores)

    assert [one.source is None for one in pictures] == [True, True, False, True, False]
    assert stores.asked == uris


def test_progress_counts_pictures() -> None:
    shown: list[tuple[int, int]] = []

    load_pictures(map(example, ["s3://lake/1.png", "s3://lake/2.png"]), SomeDown("none"), lambda *of: shown.append(of))

    assert shown == [(1, 2), (2, 2)]


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.report.pictures.LARGE_PIXELS", 80 * 60)
    reader, at_once, most = PictureReader(SomeDown("none", png((81, 60)))), 0, 0
    lock = threading.Lock()

    def use(_pixels: object) -> bool:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return True

    uris = [f"s3://lake/{number}.png" for number in range(3)]
    threads = [threading.Thread(target=reader.read, args=(example(uri, (81, 60)), use)) for uri in uris]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == 1


def test_a_picture_keeps_its_size_for_boxes_and_is_embedded_small() -> None:
    (picture,) = load_pictures([example("s3://lake/1.png", (1300, 650))], SomeDown("none", png((1300, 650))))

    assert (picture.width, picture.height) == (1300, 650)
    assert picture.source is not None
