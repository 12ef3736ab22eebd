from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detr.classes import COCO_CATEGORIES, Category, UnknownClass
from detr.model import DetrOutput
from detr.postprocess import Detections, class_thresholds, postprocess, rank, read_detections

GOLDEN = Path(__file__).parents[1] / "golden" / "postprocess.safetensors"  # the original's PostProcess

INFINITE = float("inf")
PETS = (Category(0, "N/A"), Category(17, "cat"), Category(18, "dog"), Category(19, "horse"))


def test_scores_classes_and_boxes_are_those_of_the_original() -> None:
    golden = load_file(GOLDEN)

    scores, classes, boxes = postprocess(DetrOutput(golden["logits"], golden["boxes"]), golden["target_sizes_hw"])

    assert torch.equal(classes, golden["labels"])
    torch.testing.assert_close(scores, golden["scores"], rtol=0, atol=1e-6)
    torch.testing.assert_close(boxes, golden["boxes_xyxy"], rtol=1e-6, atol=1e-6)


def test_no_object_takes_its_share_of_the_softmax_but_is_never_the_answer() -> None:
    logits = torch.tensor([[[0.0, 1.0, 10.0]]])

    scores, classes, _ = postprocess(DetrOutput(logits, torch.full((1, 1, 4), 0.5)), torch.tensor([[10, 10]]))

    assert classes.tolist() == [[1]]
    assert scores.item() == pytest.approx(0.000123, rel=1e-2)  # e / (1 + e + e^10)


def test_boxes_are_pixels_of_the_given_height_and_width_and_may_reach_outside() -> None:
    boxes_cxcywh = torch.tensor([[[0.5, 0.25, 0.5, 0.5], [0.9, 0.5, 0.4, 1.0]]])

    _, _, boxes = postprocess(DetrOutput(torch.zeros(1, 2, 3), boxes_cxcywh), torch.tensor([[100, 200]]))

    torch.testing.assert_close(boxes, torch.tensor([[[50.0, 0.0, 150.0, 50.0], [140.0, 0.0, 220.0, 100.0]]]))


def test_half_precision_logits_give_float32_scores() -> None:
    output = DetrOutput(torch.zeros(1, 2, 3, dtype=torch.bfloat16), torch.zeros(1, 2, 4, dtype=torch.bfloat16))

    scores, _, boxes = postprocess(output, torch.tensor([[480, 640]]))

    assert (scores.dtype, boxes.dtype) == (torch.float32, torch.float32)


def kept(scores: list[float], classes: list[int], boxes: torch.Tensor, threshold: float) -> Detections:
    """What is kept of one image in which each query has one score, class and box."""
    ranked = rank(torch.tensor([scores]), torch.tensor([classes]), boxes[None], torch.full((len(PETS),), threshold))
    return read_detections(ranked, PETS)[0]


def test_detections_come_best_first_and_equal_scores_in_query_order() -> None:
    found = kept([0.2, 0.9, 0.5, 0.9, 0.5], [1, 1, 2, 3, 1], torch.arange(20.0).view(5, 4), threshold=0.3)

    assert found.labels == ("cat", "horse", "dog", "cat")
    assert found.category_ids.tolist() == [17, 19, 18, 17]
    assert found.scores.tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5])
    assert found.boxes_xyxy.tolist() == [[4, 5, 6, 7], [12, 13, 14, 15], [8, 9, 10, 11], [16, 17, 18, 19]]
    assert len(found) == 4


def test_a_score_equal_to_the_threshold_is_kept() -> None:
    assert kept([0.5, 0.49999], [1, 1], torch.zeros(2, 4), threshold=0.5).scores.tolist() == [0.5]


def test_nothing_found_has_the_shapes_of_nothing() -> None:
    found = kept([0.0, 0.0, 0.0], [1, 1, 1], torch.zeros(3, 4), threshold=0.5)

    assert len(found) == 0
    assert found.labels == ()
    assert (found.category_ids.shape, found.category_ids.dtype) == ((0,), torch.int64)
    assert found.boxes_xyxy.shape == (0, 4)


def test_each_image_of_a_batch_is_ranked_by_the_threshold_of_each_class() -> None:
    thresholds = torch.tensor([INFINITE, 0.1, 0.6, 0.0])
    boxes = torch.arange(24.0).view(2, 3, 4)

    ranked = rank(
        torch.tensor([[0.5, 0.2, 0.5], [0.7, 0.9, 0.0]]), torch.tensor([[2, 1, 3], [2, 0, 3]]), boxes, thresholds
    )

    assert ranked[..., 1].tolist() == [[3, 1, -1], [2, 3, -1]]
    torch.testing.assert_close(ranked[..., 0], torch.tensor([[0.5, 0.2, 0.5], [0.7, 0.0, 0.9]]))
    assert ranked[0, 0, 2:].tolist() == [8, 9, 10, 11]
    first, second = read_detections(ranked, PETS)
    assert (first.labels, second.labels) == (("horse", "cat"), ("dog", "horse"))
    ranked.zero_()
    assert second.boxes_xyxy.tolist() == [[12, 13, 14, 15], [20, 21, 22, 23]]


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.0, [0, 0, 0, 0]), (0.05, [INFINITE, 0.05, 0.05, 0.05]), (1e-9, [INFINITE] + [1e-9] * 3)]
)
def test_ids_that_the_data_set_does_not_use_are_kept_at_threshold_0_only(threshold: float, kept: list[float]) -> None:
    assert class_thresholds(PETS, threshold, classes=None, model="pets").tolist() == pytest.approx(kept)


def test_wanted_classes_have_their_own_threshold_or_the_common_one_and_others_are_dropped() -> None:
    thresholds = class_thresholds(PETS, 0.1, classes={"dog": 0.7, "cat": None}, model="pets")

    assert thresholds.tolist() == pytest.approx([INFINITE, 0.1, 0.7, INFINITE])


def test_wanted_classes_at_threshold_0_do_not_bring_the_unused_ids() -> None:
    assert class_thresholds(PETS, 0, classes={"cat": None}, model="pets").isinf().tolist() == [True, False, True, True]


def test_an_own_threshold_of_0_is_a_threshold() -> None:
    assert class_thresholds(PETS, 0.5, classes={"cat": 0.0}, model="pets")[1] == 0


def test_an_empty_choice_of_classes_keeps_nothing() -> None:
    assert class_thresholds(PETS, 0.5, classes={}, model="pets").isinf().all()


def test_an_unknown_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownClass) as refused:
        class_thresholds(COCO_CATEGORIES, 0.5, classes={"cellphone": None}, model="facebook/detr-resnet-50")

    assert str(refused.value) == (
        "classes: 'cellphone' is not a class of facebook/detr-resnet-50. Did you mean 'cell phone'?"
    )


@pytest.mark.parametrize(
    ("threshold", "classes", "named"),
    [(1.5, None, "1.5"), (-0.1, None, "-0.1"), (float("nan"), None, "nan"), (0.5, {"cat": 50.0}, "50.0")],
)
def test_a_threshold_outside_0_to_1_is_refused(
    threshold: float, classes: dict[str, float | None] | None, named: str
) -> None:
    with pytest.raises(ValueError, match=rf"threshold: {named} is not in 0\.\.1"):
        class_thresholds(PETS, threshold, classes=classes, model="pets")
