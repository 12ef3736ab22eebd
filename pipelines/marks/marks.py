"""Accepted regions of a table, in `TABLE/_marks/<number>.json`: created once, never changed.

A mark is a region: a folder, a class and a box. It covers each detection of that class in that folder whose box
overlaps enough, in images of any run, including later ones (`marks.matching`). A record accepts or withdraws marks; for
each mark the newest record counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from itertools import count
from typing import Any, Final

from pipelines.clock import Clock
from pipelines.errors import RayDetrError, UsageError
from pipelines.store import Store, join_uri, put_if_absent
from pipelines.strict_json import parse_object

MARKS: Final = "_marks/"
RECORD_VERSION: Final = 1
SHARE_DECIMALS: Final = 5  # of sides: 0.04 pixels of a picture that is 4,000 wide
MOST_LEVELS: Final = 20

_FARTHEST: Final = 10  # of sides, in widths and heights of the picture
_MOST_IMAGES: Final = 2**53

_KEY: Final = re.compile(rf"{MARKS}(\d{{4,9}})\.json")
_ID_BYTES: Final = 6

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A region where a class is detected repeatedly.

    Attributes:
        folder: the beginning of its images' addresses, up to a slash.
        levels: number of folders between it and each image (`matching.folders_of`).
        label: name of the class.
        box: xmin, ymin, xmax, ymax as shares of the picture's width and height, five decimals.
        iou: smallest IoU of a covered detection's box with this box.
        images: number of images in which it was found.
    """

    folder: str
    levels: int
    label: str
    box: Box
    iou: float
    images: int

    def __post_init__(self) -> None:
        """Check the types and values of the fields.

        Raises:
            ValueError: a field has a wrong type or value.
        """
        texts = (self.folder, self.label)
        if not all(type(one) is str for one in texts) or not all(
            type(one) is int for one in (self.levels, self.images)
        ):
            raise ValueError("a field of a mark has another type")
        sides: tuple[Any, ...] = self.box  # of any length, as in JSON
        if len(sides) != 4 or not all(type(one) in (int, float) for one in (*sides, self.iou)):
            raise ValueError("the box or iou of a mark is not made of numbers")
        xmin, ymin, xmax, ymax = self.box
        if not (xmin < xmax and ymin < ymax and all(-_FARTHEST <= side <= _FARTHEST for side in self.box)):
            raise ValueError("the box of a mark is out of range")
        if not (0 < self.iou <= 1 and 0 <= self.levels <= MOST_LEVELS and 0 <= self.images <= _MOST_IMAGES):
            raise ValueError("the iou, levels or images of a mark are out of range")

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, a hash of all fields except `images`."""
        described = [self.folder, self.levels, self.label, *(round(side * 10**SHARE_DECIMALS) for side in self.box)]
        iou = round(float(self.iou), 6)  # 1 and 1.0 are equal: browsers write 1.0 as 1
        text = json.dumps([*described, iou], ensure_ascii=False)
        return blake2b(text.encode(), digest_size=_ID_BYTES).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return the fields in the form of records and of a page's files."""
        return {
            "id": self.id, "folder": self.folder, "levels": self.levels, "label": self.label, "box": list(self.box),
            "iou": self.iou, "images": self.images,
        }  # fmt: skip


def mark_of(fields: Any) -> Mark:
    """Return the mark of a JSON object.

    Raises:
        ValueError: it is not a valid mark, or its `id` does not match.
    """
    if not isinstance(fields, dict):
        raise ValueError("a mark is not an object")  # noqa: TRY004 - the document is wrong, not the caller
    try:
        names = ("folder", "levels", "label", "box", "iou", "images")
        folder, levels, label, box, iou, images = (fields[name] for name in names)
        mark = Mark(folder, levels, label, tuple(box), iou, images)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a mark has no valid {error}") from error
    if fields.get("id") != mark.id:
        raise ValueError(f"the mark {fields.get('id')} was changed after it was written")
    return mark


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of accepting or withdrawing marks.

    Attributes:
        number: of the record; None if nothing was written.
        changed: marks that were added or withdrawn.
        unchanged: marks that were already in force.
        in_force: marks in force afterwards.
    """

    number: int | None
    changed: int
    unchanged: int
    in_force: int


def read_marks(table: Store) -> list[Mark]:
    """Return the marks in force, in the order of their ids. A table without marks takes one listing.

    Raises:
        RayDetrError: a record is damaged, or of another release.
        StoreError: the store refused.
    """
    marks, _ = _read_all(table)
    return sorted(marks.values(), key=lambda mark: mark.id)


def accept_marks(table: Store, marks: Iterable[Mark], clock: Clock) -> Accepted:
    """Append a record with the marks that are not in force yet; write nothing if all are.

    Raises:
        RayDetrError: a record of the table is damaged.
        StoreError: the store refused.
    """
    wanted = {mark.id: mark for mark in marks}
    known, last = _read_all(table)
    new = [wanted[one] for one in sorted(wanted) if one not in known]
    number = _append(table, last, new, (), clock.now()) if new else None
    return Accepted(number, len(new), len(wanted) - len(new), len(known) + len(new))


def withdraw_marks(table: Store, ids: Iterable[str], clock: Clock) -> Accepted:
    """Append a record that withdraws marks; write nothing if none of them is in force.

    Raises:
        UsageError: the table never had such a mark.
        RayDetrError: a record of the table is damaged.
        StoreError: the store refused.
    """
    wanted = sorted(set(ids))
    ever: set[str] = set()
    known, last = _read_all(table, ever)
    unknown = [one for one in wanted if one not in ever]
    if unknown:
        raise UsageError(
            f"table {table.uri} never had the mark {unknown[0]}. `ray-detr repeats --table {table.uri}` lists "
            "its marks."
        )
    gone = [one for one in wanted if one in known]
    number = _append(table, last, (), gone, clock.now()) if gone else None
    return Accepted(number, len(gone), len(wanted) - len(gone), len(known) - len(gone))


def _append(table: Store, last: int, accepted: Sequence[Mark], withdrawn: Sequence[str], now: datetime) -> int:
    """Create the next record; if another command has taken its number, the one after that."""
    for number in count(last + 1):
        fields = {
            "record_version": RECORD_VERSION,
            "number": number,
            "created": now.isoformat(),
            "accepted": [mark.as_json() for mark in accepted],
            "withdrawn": list(withdrawn),
        }
        data = (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()
        if put_if_absent(table, marks_key(number), data) == data:
            return number
    raise AssertionError("numbers do not end")


def marks_key(number: int) -> str:
    """Return the key of a record in its table."""
    return f"{MARKS}{number:04}.json"


def _read_all(table: Store, ever: set[str] | None = None) -> tuple[dict[str, Mark], int]:
    """Return the marks in force by id, and the number of the last record; `ever` gets the ids of all marks."""
    found = (_KEY.fullmatch(entry.key) for entry in table.list(MARKS))
    marks: dict[str, Mark] = {}
    number = 0
    for number in sorted(int(one[1]) for one in found if one is not None):
        accepted, withdrawn = _read(table, number)
        marks.update((mark.id, mark) for mark in accepted)
        if ever is not None:
            ever.update(marks)
        for one in withdrawn:
            marks.pop(one, None)
    return marks, number


def _read(table: Store, number: int) -> tuple[list[Mark], list[str]]:
    key = marks_key(number)
    uri = join_uri(table.uri, key)
    try:
        fields = parse_object(table.get(key).data)
        version = fields["record_version"]
        if version != RECORD_VERSION:
            raise RayDetrError(
                f"{uri} is a record of version {version}, and this release reads {RECORD_VERSION}. Use the release "
                "that wrote it."
            )
        accepted, withdrawn = [mark_of(one) for one in fields["accepted"]], list(fields["withdrawn"])
        if fields["number"] != number or not all(isinstance(one, str) for one in withdrawn):
            raise ValueError("its number differs from its file name")  # noqa: TRY301 - one sentence for all damage
    except (KeyError, TypeError, ValueError) as error:
        raise RayDetrError(
            f"{uri} is damaged: it cannot be read as a record of marks ({error}). Restore it; if it is deleted, the "
            "detections that it marked appear again."
        ) from error
    return accepted, withdrawn
