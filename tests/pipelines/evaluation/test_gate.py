"""The gate that a candidate passes or does not, with both numbers said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detr.evaluation.average_precision import NUMBERS, AveragePrecision, PrecisionCurves
from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation.annotations import Annotations
from pipelines.evaluation.evaluate import Evaluation
from pipelines.evaluation.gate import (
    Baseline,
    check_comparable,
    compare_with_baseline,
    compare_with_expected,
    read_baseline,
)

SHA, OTHER_SHA = "ab" * 32, "cd" * 32
BASELINE = Baseline("old.json", AP=0.42, images=5000, annotations_sha256=SHA, threshold=0.0)
ANNOTATIONS = Annotations("instances.json", {}, frozenset(range(5000)), SHA)


def measured(ap: float, *, threshold: float | None = 0.0) -> Evaluation:
    numbers = dict.fromkeys(NUMBERS, 0.5) | {"AP": ap}
    precision = AveragePrecision(**numbers, class_agnostic=0.5, classes=(), curves=PrecisionCurves((), (), ()))
    return Evaluation(
        precision, 5000, (), (), (), (), (), unannotated=0, undeclared=0, detections=9, threshold=threshold,
        threshold_cost=None, kept_classes=None, models=("m@1",), annotations_sha256=SHA,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ap", "passed"),
    [(0.42, True), (0.5, True), (0.418, True), (0.41799, False), (0.0, False)],
)
def test_ap_may_fall_by_the_drop_that_is_allowed_and_no_more(ap: float, passed: bool) -> None:
    assert compare_with_baseline(measured(ap), BASELINE, max_drop=0.002).passed is passed


def test_both_numbers_are_said() -> None:
    assert compare_with_baseline(measured(0.4117), BASELINE, max_drop=0.002).sentence == (
        "AP is 0.4117 and was 0.4200 in old.json: worse by 0.0083, but only 0.002 is allowed"
    )
    assert compare_with_baseline(measured(0.4301), BASELINE, max_drop=0.002).sentence == (
        "AP is 0.4301 and was 0.4200 in old.json: no worse by more than 0.002"
    )


def test_figures_of_other_images_or_by_another_truth_are_not_compared() -> None:
    check_comparable(BASELINE, ANNOTATIONS)

    with pytest.raises(UsageError, match=r"measured on 5,000 images, and 2 are annotated here"):
        check_comparable(BASELINE, replace(ANNOTATIONS, image_ids=frozenset({1, 2})))
    with pytest.raises(
        RayDetrError, match=r"with annotations other than instances\.json .*abababababab and cdcdcdcdcdcd"
    ):
        check_comparable(BASELINE, replace(ANNOTATIONS, sha256=OTHER_SHA))


@pytest.mark.parametrize(("threshold", "said"), [(0.05, "0.05"), (None, "unknown")])
def test_figures_with_another_threshold_are_not_compared(threshold: float | None, said: str) -> None:
    with pytest.raises(RayDetrError, match=f"with threshold 0, but these have {said}"):
        compare_with_baseline(measured(0.42, threshold=threshold), BASELINE, max_drop=0.002)


@pytest.mark.parametrize(
    ("ap", "passed"), [(0.42, True), (0.422, True), (0.418, True), (0.42201, False), (0.41799, False)]
)
def test_an_expected_ap_is_met_from_both_sides(ap: float, passed: bool) -> None:
    verdict = compare_with_expected(measured(ap), 42.0, tolerance=0.2)

    assert verdict.passed is passed
    assert verdict.sentence.endswith("within 42 +- 0.2")
    assert verdict.sentence.startswith(f"AP {100 * ap:.2f} is")


def test_without_truth_there_is_nothing_to_pass() -> None:
    with pytest.raises(RayDetrError, match=r"^baseline old\.json has no AP"):
        compare_with_baseline(measured(0.42), replace(BASELINE, AP=-1), max_drop=0.002)
    with pytest.raises(RayDetrError, match=r"^this evaluation has no AP"):
        compare_with_baseline(measured(-1.0), replace(BASELINE, AP=0.0), max_drop=1.0)
    with pytest.raises(RayDetrError, match=r"^this evaluation has no AP"):
        compare_with_expected(measured(-1.0), 2.0, tolerance=100.0)
    assert compare_with_baseline(measured(0.0), replace(BASELINE, AP=0.0), max_drop=0.0).passed


def test_a_baseline_is_what_an_evaluation_wrote(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(measured(0.42).as_json()))

    assert read_baseline(str(path)) == replace(BASELINE, name=str(path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "this is not JSON"),
        ("[]", "there is no AP and no images and no annotations_sha256, so"),
        ('{"AP": 0.4, "images": 3}', "there is no annotations_sha256, so no evaluation wrote this file"),
    ],
)
def test_another_file_is_not_a_baseline(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)

    with pytest.raises(RayDetrError, match=rf"baseline .*metrics\.json: {sentence}"):
        read_baseline(str(path))
    with pytest.raises(RayDetrError, match="cannot read the baseline"):
        read_baseline(str(tmp_path / "nowhere.json"))
