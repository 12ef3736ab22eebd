"""The text of a COCO json with the positions of its entries, so that parsed entries need not be kept."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detr.classes import Category
from pipelines.coco.categories import read_categories
from pipelines.coco.names import plain_parts
from pipelines.coco.values import (
    MOST_INT32,
    MOST_INT64,
    annotation_problem,
    id_hash,
    id_key,
    is_crowd,
    picture_size,
    shown,
    whole,
)
from pipelines.errors import UsageError

NOWHERE: Final = -1  # the image number of annotations whose image the json does not declare

USABLE: Final = "usable_annotations"  # usable as training targets, as far as known without the image

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_DECODER: Final = json.JSONDecoder()
_MOST_EXAMPLES: Final = 5  # of each finding
_PACKED: Final = b"\x1f\x8b"  # first bytes of gzip

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CocoText:
    """The text of a COCO json and the positions of its entries.

    Memory: the text, 40 bytes an image and 40 an annotation.

    Attributes:
        sha256: of the bytes.
        other: the top-level fields except images and annotations, parsed.
        categories: ids and names; categories without annotations whose name is empty, N/A or a duplicate are left out.
        used_categories: ids that annotations have, declared or not.
        image_ids: `(N,)` int64, in the json's order; 1, 2, ... where an id is a text or has more than 63 bits.
        is_numbered: whether `image_ids` are such numbers.
        name_hashes: `(N,)` uint64: `name_hash` of the images' keys.
        plain_hashes: `(N,)` uint64: `plain_hash` of the images' file names, equal for all spellings.
        is_repeated: `(N,)` bool: an earlier image has the same id.
        annotations: number of annotations.
        findings: problems of annotations or categories, except the position of boxes in their image: counts by kind.
        examples: a few sentences for each.
    """

    sha256: str
    other: Json
    categories: tuple[Category, ...]
    used_categories: frozenset[int]
    is_numbered: bool
    image_ids: NDArray[np.int64]
    name_hashes: NDArray[np.uint64]
    plain_hashes: NDArray[np.uint64]
    is_repeated: NDArray[np.bool_]
    annotations: int
    findings: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]
    _text: str
    _image_spans: NDArray[np.int64]  # (N, 2): start and end of an entry
    _annotation_spans: NDArray[np.int64]  # (A, 2)
    _by_image: NDArray[np.int64]  # (A,) annotation indices: without an image, of the first image, ...
    _ends: NDArray[np.int64]  # (N + 1,) where in `_by_image` those of no image end, those of the first image, ...

    def image(self, position: int) -> str:
        """Return the text of an image's entry."""
        return _cut(self._text, self._image_spans[position])

    def file_names(self) -> Iterator[str]:
        """Yield the file names of all images, unchanged."""
        for position in range(len(self._image_spans)):
            yield json.loads(self.image(position))["file_name"]

    def document(self) -> Json:
        """Return the whole json, parsed; of its categories those in `categories`."""
        images = [json.loads(self.image(position)) for position in range(len(self._image_spans))]
        annotations = [json.loads(_cut(self._text, span)) for span in self._annotation_spans]
        kept = {category.id for category in self.categories}
        categories = [one for one in self.other["categories"] if whole(one["id"]) in kept]
        return {**self.other, "images": images, "annotations": annotations, "categories": categories}

    def annotations_of(self, position: int) -> list[tuple[int, str]]:
        """Return position and text of an image's annotations, in the json's order; `NOWHERE` is those of no image."""
        end = int(self._ends[position + 1])
        start = 0 if position == NOWHERE else int(self._ends[position])
        return [(int(one), _cut(self._text, self._annotation_spans[one])) for one in self._by_image[start:end]]


def read_coco(data: bytes, *, name: str) -> CocoText:
    """Return the text of a COCO json and the positions of its images and annotations.

    Each entry is parsed once, separately, and discarded. Additional memory: the size of the bytes.

    Args:
        data: the json.
        name: its name in error messages.

    Raises:
        UsageError: this is not a COCO json that can be trained on; the message says where and why.
    """
    text = json_text(data, name=f"annotations {name}")
    images, annotations = _Images(name), _Annotations(name)
    try:
        other = _walk(text, {"images": images.add, "annotations": annotations.add}, name)
    except json.JSONDecodeError as error:
        raise UsageError(f"annotations {name}: this is not JSON ({error}).") from error
    except RecursionError as error:
        raise UsageError(f"annotations {name}: a value is nested too deeply for a COCO file.") from error
    if not images.hashes:
        raise UsageError(f"annotations {name}: there are no images, so this is not a COCO instances file.")
    hashes = np.array(images.hashes, np.int64)
    is_repeated, nearest = _places(hashes, np.array(annotations.hashes, np.int64))
    place = np.where(np.array(annotations.has_image, np.bool_), nearest, NOWHERE)
    by_image = np.argsort(place, kind="stable")
    categories, left_out = read_categories(other.get("categories"), annotations.categories.keys(), name)
    spans = np.array(annotations.spans, np.int64).reshape(-1, 2)
    findings, examples = annotations.findings(categories)
    homeless = [json.loads(_cut(text, spans[position])) for position in by_image[: int((place == NOWHERE).sum())]]
    declared = {category.id for category in categories}
    findings[USABLE] -= sum(_is_target(one, declared) for one in homeless)
    findings["annotations_of_no_image"] = len(homeless)
    examples["annotations_of_no_image"] = [_example(one, "image_id") for one in homeless[:_MOST_EXAMPLES]]
    findings["categories_left_out"], examples["categories_left_out"] = len(left_out), left_out[:_MOST_EXAMPLES]
    return CocoText(
        sha256=hashlib.sha256(data).hexdigest(),
        other=other,
        categories=categories,
        used_categories=frozenset(annotations.categories),
        is_numbered=not images.are_numbers,
        image_ids=hashes if images.are_numbers else np.arange(1, len(hashes) + 1, dtype=np.int64),
        name_hashes=np.array(images.name_hashes, np.uint64),
        plain_hashes=np.array(images.plain_hashes, np.uint64),
        is_repeated=is_repeated,
        annotations=len(place),
        findings={kind: count for kind, count in findings.items() if count},
        examples={kind: tuple(some) for kind, some in examples.items() if some},
        _text=text,
        _image_spans=np.array(images.spans, np.int64).reshape(-1, 2),
        _annotation_spans=spans,
        _by_image=by_image,
        _ends=np.searchsorted(place[by_image], np.arange(NOWHERE, len(hashes)), side="right"),
    )


def json_text(data: bytes, *, name: str) -> str:
    """Return the text of a json file in UTF-8, UTF-16 or UTF-32, with or without byte order mark or compression.

    Raises:
        UsageError: it is in another encoding, or damaged.
    """
    try:
        if data.startswith(_PACKED):
            data = gzip.decompress(data)
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: this is not JSON in UTF-8 or UTF-16 ({error}).") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{name}: this cannot be unpacked with gzip ({error}).") from error


def image_key(file_name: str) -> str | None:
    """Return the key of an image below the images' folder; None if its name leads outside."""
    key = file_name.removeprefix("./")
    return None if not key or key.startswith("/") or ".." in key.split("/") or "://" in key else key


def name_hash(key: str) -> int:
    """Return a 64-bit hash of a key, the same on every machine."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def plain_hash(name: str) -> int:
    """Return a 64-bit hash that is the same for all spellings of a file name; see `plain_parts`."""
    return name_hash("/".join(plain_parts(name)))


class _Images:
    """Arrays of the images that were parsed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.hashes, self.spans = array("q"), array("q")
        self.name_hashes, self.plain_hashes = array("Q"), array("Q")
        self.are_numbers = True

    def add(self, image: object, start: int, end: int) -> None:
        position = len(self.hashes)
        if not isinstance(image, dict):
            raise UsageError(f"annotations {self._name}: images[{position}] is not an object.")
        key, file_name = id_key(image.get("id")), image.get("file_name")
        wrong = [] if key is not None else ["id"]
        if not isinstance(file_name, str) or not file_name:
            wrong.append("file_name")
        try:
            picture_size(image)
        except ValueError as error:
            wrong.append(str(error))
        if wrong or key is None or not isinstance(file_name, str):
            raise UsageError(
                f"annotations {self._name}: images[{position}] has no usable {' and no usable '.join(wrong)}. Every "
                "image needs an id, a file_name, and its width and height in pixels or neither of them."
            )
        self.are_numbers &= isinstance(key, int) and abs(key) <= MOST_INT64
        self.hashes.append(id_hash(key))
        self.spans.extend((start, end))
        self.name_hashes.append(name_hash(image_key(file_name) or file_name))
        self.plain_hashes.append(plain_hash(file_name))


class _Annotations:
    """Arrays of the annotations that were parsed, and their problems."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.hashes, self.spans, self.has_image = array("q"), array("q"), array("b")
        self.categories: dict[int, list[str]] = {}  # examples of each
        self._counts: Counter[int | None] = Counter()  # of each category
        self._problems: dict[str, list[str]] = {}
        self._problem_counts: Counter[str] = Counter()
        self._targets: Counter[int | None] = Counter()  # of each category, without crowds and unusable boxes

    def add(self, annotation: object, start: int, end: int) -> None:
        if not isinstance(annotation, dict):
            raise UsageError(f"annotations {self._name}: annotations[{len(self.hashes)}] is not an object.")
        key = id_key(annotation.get("image_id"))
        self.has_image.append(key is not None)
        self.hashes.append(0 if key is None else id_hash(key))
        self.spans.extend((start, end))
        category_id = whole(annotation.get("category_id"), MOST_INT32)
        self._counts[category_id] += 1
        if category_id is None:
            _add(self._problems, "undeclared_categories", annotation, "category_id")
        else:
            some = self.categories.setdefault(category_id, [])
            if len(some) < _MOST_EXAMPLES:
                some.append(_example(annotation, "category_id"))
        problem = annotation_problem(annotation)
        self._problem_counts["crowds"] += is_crowd(annotation)
        self._targets[category_id] += problem is None and not is_crowd(annotation)
        if problem is not None:
            self._problem_counts[problem] += 1
            _add(self._problems, problem, annotation, "bbox")

    def findings(self, categories: Sequence[Category]) -> tuple[Counter[str], dict[str, list[str]]]:
        """Return the problems of annotations in a data set with these categories: counts, and a few examples."""
        declared = {category.id for category in categories}
        counts = self._problem_counts.copy()
        counts["undeclared_categories"] = sum(
            count for category_id, count in self._counts.items() if category_id not in declared
        )
        counts[USABLE] = sum(self._targets[category_id] for category_id in declared)
        examples = {kind: list(some) for kind, some in self._problems.items()}
        for category_id, some in self.categories.items():
            if category_id not in declared:
                examples.setdefault("undeclared_categories", []).extend(some)
        return counts, {kind: some[:_MOST_EXAMPLES] for kind, some in examples.items()}


def _is_target(annotation: Json, declared: Collection[int]) -> bool:
    """Return whether training can use an annotation, ignoring the position of its box in the image."""
    category_id = whole(annotation.get("category_id"), MOST_INT32)
    return category_id in declared and annotation_problem(annotation) is None and not is_crowd(annotation)


def _add(examples: dict[str, list[str]], kind: str, annotation: Json, field: str) -> None:
    some = examples.setdefault(kind, [])
    if len(some) < _MOST_EXAMPLES:
        some.append(_example(annotation, field))


def _example(annotation: Json, field: str) -> str:
    return f"annotation {shown(annotation.get('id'))}: {field} {shown(annotation.get(field))}"


def _walk(text: str, lists: dict[str, Callable[[object, int, int], None]], name: str) -> Json:
    """Pass every element of some top-level lists to the list's function; return the other fields.

    Raises:
        JSONDecodeError: this is not json.
        UsageError: the file does not have COCO's layout.
    """
    other: Json = {}
    seen: set[str] = set()
    place = _after_space(text, 0)
    if not text.startswith("{", place):
        raise UsageError(f"annotations {name}: this is not a JSON object, so it is not a COCO instances file.")
    place = _after_space(text, place + 1)
    while not text.startswith("}", place):
        if not text.startswith('"', place):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, place)
        key, place = _DECODER.raw_decode(text, place)
        place = _after_space(text, _after(text, ":", place))
        if key in seen:
            raise UsageError(f"annotations {name}: the field {key!r} appears twice. Keep one of them.")
        seen.add(key)
        if key not in lists:
            other[key], place = _DECODER.raw_decode(text, place)
        elif text.startswith("[", place):
            place = _walk_list(text, place, lists[key])
        else:
            raise UsageError(f"annotations {name}: {key} is not a list, so this is not a COCO instances file.")
        place = _next(text, place, "}")
    place = _after_space(text, place + 1)
    if place != len(text):
        raise json.JSONDecodeError("Extra data", text, place)
    missing = [key for key in lists if key not in seen]
    if missing:
        raise UsageError(
            f"annotations {name}: there are no {' and no '.join(missing)}, so this is not a COCO instances file."
        )
    return other


def _walk_list(text: str, place: int, add: Callable[[object, int, int], None]) -> int:
    """Pass each element of the list at `place`, with its start and end, to `add`; return the list's end."""
    place = _after_space(text, place + 1)
    while not text.startswith("]", place):
        element, end = _DECODER.raw_decode(text, place)
        add(element, place, end)
        place = _next(text, end, "]")
    return place + 1


def _next(text: str, place: int, closing: str) -> int:
    """Return the position of the next element or of the closing bracket."""
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
    assert found is not None  # it also matches the empty string
    return found.end()


def _places(image_ids: NDArray[np.int64], named: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which images repeat the id of an earlier one, and the image of each id in `named`, or `NOWHERE`."""
    unique, first = np.unique(image_ids, return_index=True)
    is_repeated = np.ones(len(image_ids), np.bool_)
    is_repeated[first] = False
    nearest = np.minimum(np.searchsorted(unique, named), len(unique) - 1)
    return is_repeated, np.where(unique[nearest] == named, first[nearest], NOWHERE)


def _cut(text: str, span: NDArray[np.int64]) -> str:
    start, end = span.tolist()
    return text[start:end]
