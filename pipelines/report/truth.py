"""Compare a report's rows with COCO annotations: AP, confusion, the worst false positives and misses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detr.evaluation.average_precision import NUMBERS, RECALLS
from detr.evaluation.coco_results import ResultColumns
from pipelines.coco.names import ImageNames
from pipelines.evaluation.annotations import Annotations
from pipelines.evaluation.class_numbers import MatchClasses
from pipelines.evaluation.evaluate import Evaluation, check_has_images, evaluate_rows
from pipelines.evaluation.explanations import explanations, shown_figure
from pipelines.evaluation.table_results import RowChoice, read_table_results
from pipelines.report.examples import LEAST_SCORE, MOST_BOXES, Example, left_out_bins, reaches
from pipelines.report.overlaps import areas, box_iou, intersections
from pipelines.report.page import ROLES, Comparison, Item, PictureRow
from pipelines.report.rows import Classes, Rows
from pipelines.store import StoreOptions

MATCH_IOU: Final = 0.5
CONFUSION_CLASSES: Final = 12
NOTHING: Final = -1
"""The index of "nothing found" and "nothing annotated" in a confusion matrix."""

Array = npt.NDArray[Any]


@dataclass(slots=True)
class AnnotatedRows:
    """The rows of annotated images, collected while the table is read, with the annotated image of each address."""

    annotations: Annotations
    examples: dict[str, Example] = field(default_factory=dict)
    _names: ImageNames = field(init=False)
    _is_placed: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = ImageNames(self.annotations.by_file_name())

    def add(self, rows: Rows) -> None:
        """Process more rows."""
        for row, uri in enumerate(rows.words("uri")):
            match = self._names.find(uri)
            if match is None or not rows.is_ok[row]:
                continue
            if match.name in self.examples and self._is_placed[match.name] >= match.is_placed_alike:
                continue
            values = {name: rows.table[name][row].as_py() for name in ("etag", "size", "width", "height")}
            self.examples[match.name] = Example(uri=uri, boxes=(), **values)
            self._is_placed[match.name] = match.is_placed_alike


@dataclass(slots=True)
class Mistakes:
    """Errors of detections compared with the truth, at one score and an IoU of 0.5.

    Attributes:
        confusion: how often an object of one class was detected as another; `NOTHING` means no object, or not detected.
        false: by image, the false positives, best first, as indices of that image's detections.
        missed: by image, objects that no detection of their class matches.
    """

    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)
    false: dict[int, list[int]] = field(default_factory=dict)
    missed: dict[int, list[int]] = field(default_factory=dict)

    def add(self, image_id: int, found: tuple[Array, Array], truth: tuple[Array, Array, Array]) -> None:
        """Compare one image.

        Boxes are first matched to annotations of their own class, best first; the others then to annotations that are
        still free. As in COCO's measures, a box in a crowd of its class is neither right nor wrong.

        Args:
            image_id: its number.
            found: category ids `(N,)` and corners `(N, 4)` of the detections, best first.
            truth: category ids `(M,)`, corners `(M, 4)`, and which are crowds `(M,)`.
        """
        (classes, boxes), (true_classes, true_boxes, is_crowd) = found, truth
        overlaps = box_iou(boxes, true_boxes)
        is_near = overlaps >= MATCH_IOU
        is_of_class = classes[:, None] == true_classes[None]
        sizes = areas(boxes)[:, None]
        in_crowd = (is_of_class & is_crowd & (sizes > 0) & (intersections(boxes, true_boxes) >= MATCH_IOU * sizes)).any(
            axis=1
        )
        is_free: npt.NDArray[np.bool_] = np.logical_not(is_crowd)
        own = _match(range(len(classes)), overlaps, is_near & is_of_class, is_free)
        others = [row for row in range(len(classes)) if row not in own and not in_crowd[row]]
        wrong = _match(others, overlaps, is_near, is_free)
        false, missed = others, sorted(set(np.flatnonzero(~is_crowd).tolist()) - set(own.values()))
        for row, one in [*own.items(), *wrong.items()]:
            self.confusion[int(true_classes[one]), int(classes[row])] += 1
        for row in others:
            if row not in wrong:
                self.confusion[NOTHING, int(classes[row])] += 1
        for one in np.flatnonzero(is_free).tolist():
            self.confusion[int(true_classes[one]), NOTHING] += 1
        if false:
            self.false[image_id] = false
        if missed:
            self.missed[image_id] = missed


def _match(rows: Iterable[int], overlaps: Array, can_match: Array, is_free: npt.NDArray[np.bool_]) -> dict[int, int]:
    """Return the free annotation with the largest overlap for each of these detections that has one, the best first.

    Args:
        rows: indices of detections.
        overlaps: `(N, M)` of detections and annotations.
        can_match: `(N, M)`, which of them may match.
        is_free: `(M,)`, the annotations that have no detection yet; updated.
    """
    found: dict[int, int] = {}
    for row in rows:
        candidates = np.flatnonzero(can_match[row] & is_free)
        if len(candidates):
            found[row] = best = int(candidates[np.argmax(overlaps[row, candidates])])
            is_free[best] = False
    return found


def compare_with_truth(
    table_uri: str,
    rows: AnnotatedRows,
    classes: Classes,
    *,
    choice: RowChoice,
    match_classes: MatchClasses | None,
    threshold: float,
    most: int,
    options: StoreOptions | None,
) -> tuple[Evaluation, Comparison]:
    """Return the figures of a table against annotations, and the part of the page about them.

    Raises:
        RayDetrError: the table does not fit the annotations.
    """
    annotations = rows.annotations
    results = read_table_results(
        table_uri, annotations, options=options, choice=choice, allow_thresholded=True, match_classes=match_classes
    )
    evaluation = evaluate_rows(results, annotations)
    check_has_images(evaluation)
    names = annotations.class_names()
    found = results.detections.where(np.isin(results.detections.category_ids, list(names)))
    by_image = _by_image(found.where(reaches(found.scores, threshold)))
    truth = _truth(annotations)
    mistakes = Mistakes()
    without_rows = {*results.missing, *results.errors}
    evaluated = annotations.image_ids - {
        image["id"] for image in annotations.truth["images"] if image["file_name"] in without_rows
    }
    for image_id in sorted(evaluated):
        parts = by_image.get(image_id, _NO_RESULTS)
        mistakes.add(image_id, (parts.category_ids, _corners(parts.boxes_xywh)), truth[image_id])
    # annotations of another orientation or size would be drawn at wrong places
    misplaced = {*results.turned_back, *results.other_size}
    images = {
        image["id"]: rows.examples[image["file_name"]]
        for image in annotations.truth["images"]
        if image["file_name"] in rows.examples and image["file_name"] not in misplaced
    }
    gallery = _Gallery(images, found, by_image, truth, mistakes, names, classes, threshold)
    values = {
        "annotations": annotations.name,
        "evaluation": evaluation,
        "explanations": explanations(evaluation),
        "shown_figure": shown_figure,
        "left_out": len(misplaced),
        "numbers": [(name, evaluation.average_precision.numbers()[name]) for name in NUMBERS],
        "curves": _curves(evaluation),
        "threshold": threshold,
        "confusion": _confusion(mistakes.confusion, names),
    }
    return evaluation, Comparison(
        "Against annotations", "truth.html.j2", values, [gallery.false(most), gallery.missed(most)]
    )


@dataclass(frozen=True, slots=True)
class _Gallery:
    """Chooses pictures of errors and draws detections and truth.

    Attributes:
        images: by number, those that can be shown.
        found: all detections.
        compared: by image, those that reach the threshold, best first; `mistakes` are errors of these.
        truth: by image, category ids, corners and which are crowds.
        mistakes: the errors.
        names: of categories.
        classes: of the page.
        threshold: the smallest score of `compared`.
    """

    images: dict[int, Example]
    found: ResultColumns
    compared: dict[int, ResultColumns]
    truth: dict[int, tuple[Array, Array, Array]]
    mistakes: Mistakes
    names: dict[int, str]
    classes: Classes
    threshold: float

    def false(self, most: int) -> PictureRow:
        scores = {
            image_id: float(self.compared[image_id].scores[rows[0]]) for image_id, rows in self.mistakes.false.items()
        }
        notes = {image_id: self._false_note(image_id) for image_id in _highest(scores, self.images, most)}
        note = f"Highest score of a box without an annotation of its class. {self._explanation()}"
        return PictureRow("false-positives", "Worst false positives", note, self._items(notes))

    def missed(self, most: int) -> PictureRow:
        sizes = {
            image_id: float(areas(self.truth[image_id][1][rows]).max())
            for image_id, rows in self.mistakes.missed.items()
        }
        notes = {image_id: self._missed_note(image_id) for image_id in _highest(sizes, self.images, most)}
        note = f"Largest annotation that no box of its class found. {self._explanation()}"
        return PictureRow("misses", "Worst misses", note, self._items(notes))

    def _explanation(self) -> str:
        return f"Mistakes are those of the boxes with a score of {self.threshold:g} or more, wherever the slider is."

    def _false_note(self, image_id: int) -> str:
        found = self.compared[image_id]
        row = self.mistakes.false[image_id][0]
        return f"false at {self.threshold:g}: {self.names[int(found.category_ids[row])]} {found.scores[row]:.2f}"

    def _missed_note(self, image_id: int) -> str:
        lost = Counter(self.names[int(self.truth[image_id][0][row])] for row in self.mistakes.missed[image_id])
        return f"missed at {self.threshold:g}: " + ", ".join(f"{count} {name}" for name, count in lost.items())

    def _items(self, notes: dict[int, str]) -> list[Item]:
        found = _by_image(self.found.where(np.isin(self.found.image_ids, list(notes))))
        return [self._item(image_id, found.get(image_id, _NO_RESULTS), note) for image_id, note in notes.items()]

    def _item(self, image_id: int, every: ResultColumns, note: str) -> Item:
        """Return a picture with its detections, also those below the threshold, and the annotations."""
        true_classes, true_boxes, _ = self.truth[image_id]
        is_false, is_missed = np.zeros(len(every), np.bool_), np.zeros(len(true_classes), np.bool_)
        is_false[self.mistakes.false.get(image_id, [])] = True  # the compared ones come first
        is_missed[self.mistakes.missed.get(image_id, [])] = True
        is_drawn = every.scores >= min(LEAST_SCORE, self.threshold)
        kept = np.lexsort((~is_false, ~is_drawn))[: min(MOST_BOXES, int(is_drawn.sum()))]
        is_drawn[:] = False
        is_drawn[kept] = True
        found = every.where(is_drawn)
        boxes: list[list[object]] = [
            [
                self._number(number),
                round(score, 4),
                *np.round(box, 2).tolist(),
                ROLES.index("false" if wrong else "found"),
            ]
            for number, score, box, wrong in zip(
                found.category_ids.tolist(),
                found.scores.tolist(),
                _corners(found.boxes_xywh),
                is_false[is_drawn],
                strict=True,
            )
        ]
        boxes += [
            [self._number(number), None, *np.round(box, 2).tolist(), ROLES.index("missed" if lost else "truth")]
            for number, box, lost in zip(true_classes.tolist(), true_boxes, is_missed, strict=True)
        ]
        return Item(self.images[image_id], boxes, left_out_bins(every.scores[~is_drawn].astype(np.float32)), note)

    def _number(self, category_id: int) -> int:
        return self.classes.number(self.names[category_id])


_NO_RESULTS = ResultColumns.of_rows([])


def _highest(keys: dict[int, float], images: dict[int, Example], most: int) -> list[int]:
    return sorted((one for one in keys if one in images), key=lambda one: (-keys[one], one))[:most]


def _by_image(found: ResultColumns) -> dict[int, ResultColumns]:
    """Return the detections of each image, best first."""
    ordered = np.lexsort((-found.scores, found.image_ids))
    found = ResultColumns(
        *(getattr(found, name)[ordered] for name in ("image_ids", "category_ids", "boxes_xywh", "scores"))
    )
    ids, starts = np.unique(found.image_ids, return_index=True)
    return {
        image_id: ResultColumns(
            *(getattr(found, name)[start:stop] for name in ("image_ids", "category_ids", "boxes_xywh", "scores"))
        )
        for image_id, (start, stop) in zip(ids.tolist(), pairwise([*starts.tolist(), len(found)]), strict=True)
    }


def _truth(annotations: Annotations) -> dict[int, tuple[Array, Array, Array]]:
    """Return category ids, corners and which are crowds, of each image."""
    rows: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    declared = {category["id"] for category in annotations.truth["categories"]}
    for annotation in annotations.truth["annotations"]:
        if annotation["category_id"] in declared:  # others are not part of any figure
            rows[annotation["image_id"]].append(annotation)
    return {
        image_id: (
            np.array([one["category_id"] for one in rows[image_id]], np.int64),
            _corners(np.array([one["bbox"] for one in rows[image_id]], np.float64).reshape(-1, 4)),
            np.array([bool(one.get("iscrowd", 0)) for one in rows[image_id]], np.bool_),
        )
        for image_id in annotations.image_ids
    }


def _corners(boxes_xywh: Array) -> Array:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def _curves(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return precision over recall as paths in a square of 100."""
    curves = evaluation.average_precision.curves
    return [
        {
            "name": name,
            "path": "M"
            + " L".join(
                f"{100 * recall:g} {100 - 100 * max(0.0, value):.1f}"
                for recall, value in zip(RECALLS, getattr(curves, name), strict=True)
            ),
        }
        for name in ("AP50", "AP75", "AP")
    ]


def _confusion(counts: Counter[tuple[int, int]], names: dict[int, str]) -> dict[str, Any]:
    """Return a table of the classes with most errors."""
    wrong: Counter[int] = Counter()
    for (true, found), count in counts.items():
        for one in {true, found} - {NOTHING} if true != found else set():
            wrong[one] += count
    seen = {one for pair in counts for one in pair} - {NOTHING}
    shown = sorted(seen, key=lambda one: (-wrong[one], names[one]))[:CONFUSION_CLASSES]
    places = [*sorted(shown, key=lambda one: names[one]), NOTHING]
    return {
        "columns": [names.get(one, "not found") for one in places],
        "rows": [
            (
                names.get(true, "nothing annotated"),
                [counts[true, found] if (true, found) != (NOTHING, NOTHING) else None for found in places],
            )
            for true in places
        ],
        "left_out": len(seen) - len(shown),
    }
