"""Gates for figures: equal to published ones, or not worse than those of the current model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pipelines.coco.documents import read_document
from pipelines.errors import UsageError
from pipelines.evaluation.annotations import Annotations
from pipelines.evaluation.evaluate import Evaluation
from pipelines.store import StoreOptions, without_secrets
from pipelines.strict_json import parse_json

_ROUNDING: Final = 1e-9  # tolerance for differences of decimal fractions: 42.2 - 42.0 is 0.2000000000000028


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether figures pass, and a sentence with both numbers."""

    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """The figures of a `metrics.json` to compare with.

    Attributes:
        name: its address as it may be shown.
        AP: 0..1.
        images: number of evaluated images.
        annotations_sha256: of the annotations.
        threshold: of the detections; None if unknown.
    """

    name: str
    AP: float
    images: int
    annotations_sha256: str
    threshold: float | None


def read_baseline(uri: str, *, options: StoreOptions | None = None) -> Baseline:
    """Read the `metrics.json` of an evaluation.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    name = without_secrets(uri)
    data = read_document(uri, what="the baseline", options=options)
    try:
        metrics: Any = parse_json(data)
    except ValueError as error:
        raise UsageError(f"baseline {name}: this is not JSON ({error}).") from error
    kinds = {"AP": (int, float), "images": (int,), "annotations_sha256": (str,)}
    wrong = [
        field
        for field, allowed in kinds.items()
        if not isinstance(metrics, dict) or not isinstance(metrics.get(field), allowed)
    ]
    if wrong:
        raise UsageError(
            f"baseline {name}: there is no {' and no '.join(wrong)}, so no evaluation wrote this file. Evaluate the "
            "model in use with --output."
        )
    return Baseline(name, metrics["AP"], metrics["images"], metrics["annotations_sha256"], metrics.get("threshold"))


def check_comparable(baseline: Baseline, annotations: Annotations) -> None:
    """Refuse to compare with figures over other images or annotations. Call this before labelling.

    Raises:
        UsageError: with the reason.
    """
    images = len(annotations.image_ids)
    if baseline.images != images:
        raise UsageError(
            f"baseline {baseline.name} was measured on {baseline.images:,} images, and {images:,} are annotated here: "
            "figures for different images cannot be compared. Evaluate the model in use on these images."
        )
    if baseline.annotations_sha256 != annotations.sha256:
        raise UsageError(
            f"baseline {baseline.name} was measured with annotations other than {annotations.name} (their digests are "
            f"{baseline.annotations_sha256[:12]} and {annotations.sha256[:12]}). Evaluate the model in use with these "
            "annotations."
        )


def compare_with_baseline(evaluation: Evaluation, baseline: Baseline, *, max_drop: float) -> Verdict:
    """Return whether AP fell by no more than `max_drop`, which is in 0..1 like AP.

    Raises:
        UsageError: the two have different thresholds, or one has no annotations to evaluate.
    """
    if evaluation.threshold != baseline.threshold:
        raise UsageError(
            f"baseline {baseline.name} was measured on detections with threshold {_threshold(baseline.threshold)}, but "
            f"these have {_threshold(evaluation.threshold)}: their figures cannot be compared. Evaluate both with the "
            "same threshold."
        )
    _check_measured(baseline.AP, f"baseline {baseline.name}")
    now = evaluation.average_precision.AP
    _check_measured(now, "this evaluation")
    drop = baseline.AP - now
    change = f"AP is {now:.4f} and was {baseline.AP:.4f} in {baseline.name}"
    if drop <= max_drop + _ROUNDING:
        return Verdict(True, f"{change}: no worse by more than {max_drop:g}")
    return Verdict(False, f"{change}: worse by {drop:.4f}, but only {max_drop:g} is allowed")


def compare_with_expected(evaluation: Evaluation, expected: float, *, tolerance: float) -> Verdict:
    """Return whether AP is as expected, both numbers in points as they are published: 42.0 is an AP of 0.420.

    Raises:
        UsageError: there are no annotations to evaluate.
    """
    _check_measured(evaluation.average_precision.AP, "this evaluation")
    points = 100 * evaluation.average_precision.AP
    passed = abs(points - expected) <= tolerance + _ROUNDING
    how = "is within" if passed else "is not within"
    return Verdict(passed, f"AP {points:.2f} {how} {expected:g} +- {tolerance:g}")


def _check_measured(ap: float, whose: str) -> None:
    if ap < 0:  # -1 is pycocotools' value for "no annotations"
        raise UsageError(
            f"{whose} has no AP: its images have no annotated object that counts. Evaluate on images that have some."
        )


def _threshold(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
