"""COCO's json, read without ever holding what it says: its text, and numbers that tell where each entry stands."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detr.classes import Category
from pipelines.shards.rows import whole
from pipelines.stopped import RunStopped

NOWHERE: Final = -1  # the image of an annotation whose image the json does not declare

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_DECODER: Final = json.JSONDecoder()
_MOST_INT32: Final = 2**31 - 1

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CocoText:
    """The text of a COCO json and where its entries stand.

    Memory: the text, 32 bytes an image and 40 an annotation.

    Attributes:
        sha256: of the bytes.
        other: the top-level fields but images and annotations, parsed.
        categories: ids and names.
        image_ids: `(N,)` int64, in the json's order.
        name_hashes: `(N,)` uint64: `name_hash` of the images' keys.
        is_repeated: `(N,)` bool: an earlier image has the same id.
        annotations: how many there are.
    """

    sha256: str
    other: Json
    categories: tuple[Category, ...]
    image_ids: NDArray[np.int64]
    name_hashes: NDArray[np.uint64]
    is_repeated: NDArray[np.bool_]
    annotations: int
    _text: str
    _image_spans: NDArray[np.int64]  # (N, 2): where an entry begins and ends
    _annotation_spans: NDArray[np.int64]  # (A, 2)
    _by_image: NDArray[np.int64]  # (A,) positions of annotations: those of no image, of the first image, ...
    _ends: NDArray[np.int64]  # (N + 1,) where in `_by_image` those of no image end, those of the first image, ...

    def image(self, position: int) -> str:
        """Return the text of an image's entry."""
        return _cut(self._text, self._image_spans[position])

    def annotations_of(self, position: int) -> list[tuple[int, str]]:
        """Return position and text of an image's annotations, in the json's order; `NOWHERE` is those of no image."""
        end = int(self._ends[position + 1])
        start = 0 if position == NOWHERE else int(self._ends[position])
        return [(int(one), _cut(self._text, self._annotation_spans[one])) for one in self._by_image[start:end]]


def read_coco(data: bytes, *, name: str) -> CocoText:
    """Return the text of a COCO json and where its images and annotations stand.

    Each entry is parsed once, by itself, and forgotten. Memory beside the result: once more the bytes.

    Args:
        data: the json.
        name: what messages call it.

    Raises:
        RunStopped: this is no COCO json that could be trained on; the sentence says where and why.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunStopped(f"annotations {name}: this is not JSON in UTF-8 ({error}).") from error
    images, annotations = _Images(name), _Annotations(name)
    try:
        other = _walk(text, {"images": images.add, "annotations": annotations.add}, name)
    except json.JSONDecodeError as error:
        raise RunStopped(f"annotations {name}: this is not JSON ({error}).") from error
    except RecursionError as error:
        raise RunStopped(f"annotations {name}: a value is nested too deeply to be COCO's.") from error
    if not images.ids:
        raise RunStopped(f"annotations {name}: there are no images, so this is not what COCO's instances files hold.")
    image_ids = np.array(images.ids, np.int64)
    is_repeated, nearest = _places(image_ids, np.array(annotations.image_ids, np.int64))
    place = np.where(np.array(annotations.has_image, np.bool_), nearest, NOWHERE)
    by_image = np.argsort(place, kind="stable")
    return CocoText(
        sha256=hashlib.sha256(data).hexdigest(),
        other=other,
        categories=_categories(other.get("categories"), name),
        image_ids=image_ids,
        name_hashes=np.array(images.name_hashes, np.uint64),
        is_repeated=is_repeated,
        annotations=len(place),
        _text=text,
        _image_spans=np.array(images.spans, np.int64).reshape(-1, 2),
        _annotation_spans=np.array(annotations.spans, np.int64).reshape(-1, 2),
        _by_image=by_image,
        _ends=np.searchsorted(place[by_image], np.arange(NOWHERE, len(image_ids)), side="right"),
    )


def image_key(file_name: str) -> str | None:
    """Return the key of an image below the images' folder, None where its name leads out of it."""
    key = file_name.removeprefix("./")
    return None if not key or key.startswith("/") or ".." in key.split("/") or "://" in key else key


def name_hash(key: str) -> int:
    """Return 64 bits that stand for a key; the same on every machine."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class _Images:
    """Numbers of the images that were walked over."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.ids, self.spans, self.name_hashes = array("q"), array("q"), array("Q")

    def add(self, image: object, start: int, end: int) -> None:
        position = len(self.ids)
        if not isinstance(image, dict):
            raise RunStopped(f"annotations {self._name}: images[{position}] is no object.")
        image_id, file_name = whole(image.get("id")), image.get("file_name")
        sides = [whole(image.get(side), _MOST_INT32) for side in ("width", "height")]
        wrong = [
            field
            for field, is_right in (
                ("id", image_id is not None),
                ("file_name", isinstance(file_name, str) and file_name != ""),
                *(
                    (field, side is not None and side > 0)
                    for field, side in zip(("width", "height"), sides, strict=True)
                ),
            )
            if not is_right
        ]
        if wrong or image_id is None or not isinstance(file_name, str):
            raise RunStopped(
                f"annotations {self._name}: images[{position}] has no usable {' and no usable '.join(wrong)}. Every "
                "image needs a whole number as id, a file_name, and its width and height in pixels."
            )
        self.ids.append(image_id)
        self.spans.extend((start, end))
        self.name_hashes.append(name_hash(image_key(file_name) or file_name))


class _Annotations:
    """Numbers of the annotations that were walked over."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.image_ids, self.spans, self.has_image = array("q"), array("q"), array("b")

    def add(self, annotation: object, start: int, end: int) -> None:
        if not isinstance(annotation, dict):
            raise RunStopped(f"annotations {self._name}: annotations[{len(self.image_ids)}] is no object.")
        image_id = whole(annotation.get("image_id"))
        self.has_image.append(image_id is not None)
        self.image_ids.append(image_id or 0)
        self.spans.extend((start, end))


def _walk(text: str, lists: dict[str, Callable[[object, int, int], None]], name: str) -> Json:
    """Give every element of the top-level lists that are named to its function; return the other fields.

    Raises:
        JSONDecodeError: this is no json.
        RunStopped: it is none of COCO's.
    """
    other: Json = {}
    seen: set[str] = set()
    place = _after_space(text, 0)
    if not text.startswith("{", place):
        raise RunStopped(f"annotations {name}: this is no object, so not what COCO's instances files hold.")
    place = _after_space(text, place + 1)
    while not text.startswith("}", place):
        if not text.startswith('"', place):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, place)
        key, place = _DECODER.raw_decode(text, place)
        place = _after_space(text, _after(text, ":", place))
        if key in seen:
            raise RunStopped(f"annotations {name}: the field {key!r} is there twice, and only one can be meant.")
        seen.add(key)
        if key not in lists:
            other[key], place = _DECODER.raw_decode(text, place)
        elif text.startswith("[", place):
            place = _walk_list(text, place, lists[key])
        else:
            raise RunStopped(f"annotations {name}: {key} is no list, so this is not what COCO's instances files hold.")
        place = _next(text, place, "}")
    place = _after_space(text, place + 1)
    if place != len(text):
        raise json.JSONDecodeError("Extra data", text, place)
    missing = [key for key in lists if key not in seen]
    if missing:
        raise RunStopped(
            f"annotations {name}: there are no {' and no '.join(missing)}, so this is not what COCO's instances files "
            "hold."
        )
    return other


def _walk_list(text: str, place: int, add: Callable[[object, int, int], None]) -> int:
    """Give each element of the list at `place`, with where it begins and ends, to `add`; return the list's end."""
    place = _after_space(text, place + 1)
    while not text.startswith("]", place):
        element, end = _DECODER.raw_decode(text, place)
        add(element, place, end)
        place = _next(text, end, "]")
    return place + 1


def _next(text: str, place: int, closing: str) -> int:
    """Return where the next element begins, or the closing bracket stands."""
    place = _after_space(text, place)
    if text.startswith(closing, place):
        return place
    after = _after_space(text, _after(text, ",", place))
    if text.startswith(closing, after):
        raise json.JSONDecodeError("Expecting value", text, after)
    return after


def _after(text: str, sign: str, place: int) -> int:
    place = _after_space(text, place)
    if not text.startswith(sign, place):
        raise json.JSONDecodeError(f"Expecting {sign!r} delimiter", text, place)
    return place + 1


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None  # it matches nothing, too
    return found.end()


def _places(image_ids: NDArray[np.int64], named: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which images have the id of an earlier one, and the image that each id in `named` is of, or `NOWHERE`."""
    unique, first = np.unique(image_ids, return_index=True)
    is_repeated = np.ones(len(image_ids), np.bool_)
    is_repeated[first] = False
    nearest = np.minimum(np.searchsorted(unique, named), len(unique) - 1)
    return is_repeated, np.where(unique[nearest] == named, first[nearest], NOWHERE)


def _categories(entries: object, name: str) -> tuple[Category, ...]:
    if not isinstance(entries, list) or not entries:
        raise RunStopped(
            f"annotations {name}: there are no categories, so this is not what COCO's instances files hold."
        )
    categories: list[Category] = []
    for position, entry in enumerate(entries):
        category_id = whole(entry.get("id"), _MOST_INT32) if isinstance(entry, dict) else None
        if category_id is None or not isinstance(entry.get("name"), str):
            raise RunStopped(
                f"annotations {name}: categories[{position}] needs a whole number below 2**31 as id, and a name."
            )
        categories.append(Category(category_id, entry["name"]))
    ids = [category.id for category in categories]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise RunStopped(f"annotations {name}: the category id {twice[0]} is declared twice. Give each its own.")
    return tuple(categories)


def _cut(text: str, span: NDArray[np.int64]) -> str:
    start, end = span.tolist()
    return text[start:end]
