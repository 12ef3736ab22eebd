"""Sentences that explain the figures of an evaluation: what was left out, what was changed, and why AP may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pipelines.evaluation.evaluate import Evaluation

SHOWN_NAMES: Final = 3


def explanations(evaluation: Evaluation) -> list[str]:
    """Return a sentence for each reason why the figures are not those of all images, boxes and classes.

    The sentences have no full stop; each names a few of the files.
    """
    return [
        *_left_out(evaluation),
        *_of_annotations(evaluation),
        *_matches(evaluation),
        *_sizes(evaluation),
        *_threshold_cost(evaluation),
    ]


def shown_figure(value: float) -> str:
    """Return a figure as text; -1 means that there were no annotations for it."""
    return "none" if value < 0 else f"{value:.3f}"


def counted(count: int, one: str, several: str) -> str:
    """Return a count with the words for one or for several."""
    return f"{count:,} {one if count == 1 else several}"


def _matches(evaluation: Evaluation) -> list[str]:
    lines = []
    if evaluation.renamed_classes:
        others = counted(len(evaluation.renamed_classes), "class has", "classes have")
        lines.append(
            f"{others} another name in the annotations; matched by number ({_some(evaluation.renamed_classes)})"
        )
    if evaluation.matched_otherwise:
        others = counted(len(evaluation.matched_otherwise), "image is", "images are")
        lines.append(
            f"{others} spelled or placed differently from the annotations ({_some(evaluation.matched_otherwise)})"
        )
    return lines


def _sizes(evaluation: Evaluation) -> list[str]:
    lines = []
    if evaluation.turned_back:
        turned = counted(len(evaluation.turned_back), "image was", "images were")
        lines.append(
            f"{turned} annotated as stored, before EXIF rotation: boxes were rotated back "
            f"({_some(evaluation.turned_back)})"
        )
        lines.append(
            "images whose size EXIF rotation does not change (half turns, mirrored and square pictures) count as "
            "annotated upright, because their size does not show it: if they, too, were annotated as stored, AP is too "
            "low"
        )
    if evaluation.other_size:
        sizes = counted(len(evaluation.other_size), "image has", "images have")
        lines.append(f"{sizes} another size than in the annotations ({_some(evaluation.other_size)})")
    if evaluation.unread:
        unread = _some(evaluation.unread)
        lines.append(f"{len(evaluation.unread):,} of these could not be read again to check their rotation ({unread})")
    return lines


def _left_out(evaluation: Evaluation) -> list[str]:
    where = "the results" if evaluation.threshold is None else "the table"
    lines = []
    for names, one, several in (
        (evaluation.missing, f"image is not in {where}", f"images are not in {where}"),
        (evaluation.errors, f"image is an error in {where}", f"images are errors in {where}"),
    ):
        if names:
            lines.append(f"{counted(len(names), one, several)}: nothing counts as detected there ({_some(names)})")
    if evaluation.unannotated:
        rows = counted(
            evaluation.unannotated, "row of the table belongs to an image", "rows of the table belong to images"
        )
        lines.append(f"{rows} without annotations: left out")
    if evaluation.undeclared:
        rows = counted(evaluation.undeclared, "detection is", "detections are")
        lines.append(f"{rows} of categories that the annotations do not declare: left out")
    return lines


# problems of annotations in the order of printing: singular, plural, and their treatment
_FINDINGS: Final = {
    "annotations_of_no_image": (
        "belongs to an image", "belong to images", "that the annotations do not declare: left out"),
    "undeclared_categories": (
        "has a category", "have categories", "that the annotations do not declare: nothing counts as detected there"),
    "boxes_missing": ("has no box", "have no box", "of four numbers: left out"),
    "boxes_not_finite": ("has a box", "have boxes", "with a side that is not a finite number: left out"),
    "boxes_without_area": ("has a box", "have boxes", "without area: never found"),
}  # fmt: skip
_SIZE_WORDS: Final = {
    "APs": "small (below 32 x 32 pixels)",
    "APm": "of medium size (32 x 32 to 96 x 96 pixels)",
    "APl": "large (above 96 x 96 pixels)",
}


def _of_annotations(evaluation: Evaluation) -> list[str]:
    """Return the problems of the annotations, and why figures are undefined."""
    lines = []
    for kind, (one, several, done) in _FINDINGS.items():
        count = evaluation.annotation_findings.get(kind, 0)
        if count:
            examples = "; ".join(evaluation.annotation_examples.get(kind, ())[:SHOWN_NAMES])
            lines.append(f"{counted(count, f'annotation {one}', f'annotations {several}')} {done} ({examples})")
    numbers = evaluation.average_precision.numbers()
    sizes = [size for name, size in _SIZE_WORDS.items() if numbers[name] < 0]
    if numbers["AP"] < 0:
        lines.append("AP is undefined: the images have no annotation that has a declared category and is not a crowd")
    elif sizes:
        lines.append(f"figures shown as none are undefined: no annotated box is {' or '.join(sizes)}")
    return lines


def _threshold_cost(evaluation: Evaluation) -> list[str]:
    lines = []
    if evaluation.kept_classes is not None:
        lines.append(f"only {_some(evaluation.kept_classes)} were kept: nothing counts as detected for other classes")
    cost = evaluation.threshold_cost
    if cost is not None:
        short = counted(cost.short_images, "image has", "images have")
        lines += [
            f"detections with a score below {cost.threshold:.3g} were not kept: the AP is lower than the model's by an "
            "unknown amount",
            f"{short} fewer than 100 detections, which official models give if `ray-detr label` has --threshold 0",
            f"for comparison: without the detections below {cost.doubled:.3g}, too, the AP would be "
            f"{shown_figure(cost.AP_doubled)}",
        ]
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN_NAMES], *(["..."] if len(names) > SHOWN_NAMES else [])])
