"""Compare the class numbers of detections with those of annotations.

COCO figures match classes by number. Two data sets can number the same classes differently: most converters number from
0 or 1 in the order of their own list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detr.evaluation.coco_results import ResultColumns
from pipelines.errors import UsageError

MatchClasses = Literal["number", "name"]


def align_classes(
    detections: ResultColumns, found: Mapping[int, str], declared: Mapping[int, str], *, by: MatchClasses | None
) -> tuple[ResultColumns, tuple[str, ...]]:
    """Return the detections of a table with the class numbers of the annotations, and differences to report.

    Args:
        detections: with the table's class numbers.
        found: class names of the table by number.
        declared: class names of the annotations by number.
        by: None is by number, refused where a name has another number in the annotations.

    Returns:
        The detections, and a sentence for each number whose class has another name in the annotations. If `by` is
        "name", a class without its name in the annotations has a negative number, which no annotation has.

    Raises:
        UsageError: a class has another number in the annotations, or the annotations have its name twice.
    """
    if by == "name":
        return _renumbered(detections, found, declared), ()
    if by is None:
        check_class_numbers(found, declared, whose="the table")
    renamed = tuple(
        f"{number} is {name!r} in the table and {declared[number]!r} in the annotations"
        for number, name in sorted(found.items())
        if number in declared and _plain(name) != _plain(declared[number])
    )
    return detections, renamed


def check_class_numbers(found: Mapping[int, str], declared: Mapping[int, str], *, whose: str) -> None:
    """Refuse to compare by number if a class has one number in the detections and another in the annotations.

    Args:
        found: class names of the detections by number.
        declared: class names of the annotations by number.
        whose: what has the detections, such as "the table".

    Raises:
        UsageError: names such a class, and the option to choose.
    """
    numbers = _numbers(declared)
    moved = {
        number: (name, numbers[_plain(name)])
        for number, name in found.items()
        if number not in numbers.get(_plain(name), [number])
    }
    if moved:
        number, (name, others) = min(moved.items())
        more = f" (and {len(moved) - 1:,} more)" if len(moved) > 1 else ""
        raise UsageError(
            f"the class {name!r} has the number {number} in {whose} and {others[0]} in the annotations{more}, so equal "
            "numbers do not mean equal classes. Give --match-classes name, or --match-classes number to compare by "
            "number anyway."
        )


def class_names_in(column: pa.ChunkedArray) -> dict[int, str]:
    """Return the names of the classes in a table's column `detections`, by number."""
    found = pc.list_flatten(column)
    classes = pa.table({name: pc.struct_field(found, name) for name in ("category_id", "label")})
    return dict(zip(*classes.group_by(["category_id", "label"]).aggregate([]).to_pydict().values(), strict=True))


def _renumbered(detections: ResultColumns, found: Mapping[int, str], declared: Mapping[int, str]) -> ResultColumns:
    numbers = _numbers(declared)
    renumbered = {}
    for number, name in found.items():
        same = numbers.get(_plain(name), [-1 - number])
        if len(same) > 1:
            raise UsageError(
                f"the annotations have {len(same)} classes with the name {name!r}, with the numbers "
                f"{', '.join(map(str, same))}: classes cannot be matched by name. Give each its own name, or "
                "--match-classes number."
            )
        renumbered[number] = same[0]
    known, inverse = np.unique(detections.category_ids, return_inverse=True)
    ids = np.array([renumbered[number] for number in known.tolist()], np.int64)
    return replace(detections, category_ids=ids[inverse])


def _numbers(declared: Mapping[int, str]) -> dict[str, list[int]]:
    numbers = defaultdict(list)
    for number, name in sorted(declared.items()):
        numbers[_plain(name)].append(number)
    return dict(numbers)


def _plain(name: str) -> str:
    """Return a name without differences of spelling that do not change its meaning."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
