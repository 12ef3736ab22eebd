import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from detr.boxes import cxcywh_to_xyxy, generalized_iou
from detr.model import DetrOutput
from detr.training.matcher import MatchWeights, NotFinite, Target, match_layers, pad_targets
from tests.detr.training.matching import match

GOLDEN = (
    Path(__file__).parents[2] / "golden" / "matcher.safetensors"
)  # made by the original's HungarianMatcher(1, 5, 2)


def target(labels: list[int], boxes: list[list[float]]) -> Target:
    return Target(torch.tensor(labels, dtype=torch.int64), torch.tensor(boxes).reshape(-1, 4))


def random_output(images: int, queries: int, classes: int, seed: int) -> DetrOutput:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.05
    return DetrOutput(torch.randn(images, queries, classes + 1, generator=generator) * 3, boxes)


def test_the_assignments_are_those_of_the_original() -> None:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        cases = json.loads(file.metadata()["info"])["cases"]

    for case, info in enumerate(cases):
        images = range(len(info["targets"]))
        targets = [
            Target(tensors[f"{case}/target{image}/labels"], tensors[f"{case}/target{image}/boxes"]) for image in images
        ]
        matches = match(DetrOutput(tensors[f"{case}/logits"], tensors[f"{case}/boxes"]), targets)
        for image in images:
            # every optimum is unique by more than 1e-4 of cost, so no rounding changes it
            assert torch.equal(matches[image].query, tensors[f"{case}/query_idx{image}"]), (case, image)
            assert torch.equal(matches[image].target, tensors[f"{case}/target_idx{image}"]), (case, image)


def test_two_queries_take_the_targets_that_cost_least_together_not_each_its_own_best() -> None:
    # all boxes are equal, so a pair costs minus its probability: greedy is 0.50 + 0.02, crosswise 0.45 + 0.48
    probabilities = torch.tensor([[[0.50, 0.45, 0.05], [0.48, 0.02, 0.50]]])
    box = [0.5, 0.5, 0.2, 0.2]

    (pairs,) = match(DetrOutput(probabilities.log(), torch.tensor([[box, box]])), [target([0, 1], [box, box])])

    assert pairs.query.tolist() == [0, 1]
    assert pairs.target.tolist() == [1, 0]


def test_the_class_decides_between_equal_boxes() -> None:
    logits = torch.tensor([[[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]]])  # query 0 says class 1, query 1 says class 0
    box = [0.5, 0.5, 0.2, 0.2]

    (pairs,) = match(DetrOutput(logits, torch.tensor([[box, box]])), [target([0, 1], [box, box])])

    assert pairs.query.tolist() == [0, 1]
    assert pairs.target.tolist() == [1, 0]


def test_weights_shift_the_choice_from_boxes_to_classes() -> None:
    logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])  # query 0 has the class, query 1 has the box
    output = DetrOutput(logits, torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]]))
    targets = [target([0], [[0.7, 0.7, 0.2, 0.2]])]

    assert match(output, targets)[0].query.tolist() == [1]
    assert match(output, targets, weights=MatchWeights(classification=100))[0].query.tolist() == [0]


@settings(deadline=None, max_examples=30)
@given(queries=st.integers(1, 4), counts=st.lists(st.integers(0, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_no_other_assignment_is_cheaper(queries: int, counts: list[int], seed: int) -> None:
    output = random_output(len(counts), queries, 3, seed)
    drawn = random_output(len(counts), 5, 3, seed + 1000)
    targets = [
        Target(logits.argmax(-1)[:count] % 3, boxes[:count])
        for logits, boxes, count in zip(drawn.logits, drawn.boxes_cxcywh, counts, strict=True)
    ]

    for image, pairs in enumerate(match(output, targets)):
        count = counts[image]
        assert len(pairs.query) == len(pairs.target) == min(queries, count)
        assert pairs.query.tolist() == sorted(set(pairs.query.tolist()))
        assert len(set(pairs.target.tolist())) == len(pairs.target)

        def cost(query: int, chosen: int, image: int = image) -> float:
            box, wanted = output.boxes_cxcywh[image, query], targets[image].boxes_cxcywh[chosen]
            probability = output.logits[image, query].softmax(0)[targets[image].labels[chosen]]
            overlap = generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(wanted))
            return float(5 * (box - wanted).abs().sum() - probability - 2 * overlap)

        ours = sum(cost(int(q), int(t)) for q, t in zip(pairs.query, pairs.target, strict=True))
        assert ours <= least_cost([[cost(q, t) for t in range(count)] for q in range(queries)]) + 1e-4


def least_cost(costs: list[list[float]]) -> float:
    """Try everything: the first query takes any column or, while there are more queries than columns, none."""
    if not costs or not costs[0]:
        return 0.0
    first, rest = costs[0], costs[1:]
    taken = [cost + least_cost([[*row[:i], *row[i + 1 :]] for row in rest]) for i, cost in enumerate(first)]
    return min([*taken, least_cost(rest)] if len(costs) > len(first) else taken)


def test_an_image_without_targets_has_no_pairs() -> None:
    matches = match(random_output(2, 5, 3, seed=1), [target([], []), target([1], [[0.5, 0.5, 0.1, 0.1]])])

    assert [len(pairs.query) for pairs in matches] == [0, 1]
    assert matches[0].query.dtype == matches[0].target.dtype == torch.int64


def test_half_precision_costs_are_computed_in_float32() -> None:
    # in bfloat16 both distances round to the same figure, and the first query would win the tie
    logits = torch.zeros(1, 2, 2, dtype=torch.bfloat16)
    boxes = torch.tensor([[[0.5, 0.5, 0.2500, 0.25], [0.5, 0.5, 0.2510, 0.25]]], dtype=torch.bfloat16)
    wanted = boxes[0, 1].float() + torch.tensor([0.0, 0.0, 0.0003, 0.0])

    (pairs,) = match(DetrOutput(logits, boxes), [Target(torch.tensor([0]), wanted[None])])

    assert pairs.query.tolist() == [1]


@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_a_cost_that_is_not_a_number_is_refused(where: str) -> None:
    output = random_output(2, 3, 2, seed=2)
    (output.logits if where == "logits" else output.boxes_cxcywh)[1, 0, 0] = math.nan

    with pytest.raises(NotFinite, match="image 1 of the batch: a matching cost is NaN or infinite") as caught:
        match(output, [target([0], [[0.5, 0.5, 0.2, 0.2]])] * 2)

    assert caught.value.image == 1


@pytest.mark.parametrize("broken", [[math.nan, 0.5, 0.2, 0.2], [0.5, 0.5, math.inf, 0.2]])
def test_a_target_that_is_not_a_number_is_refused_wherever_it_is(broken: list[float]) -> None:
    good = [0.5, 0.5, 0.2, 0.2]

    with pytest.raises(NotFinite) as caught:
        match(random_output(3, 3, 2, seed=2), [target([0], [good]), target([], []), target([0, 1], [good, broken])])

    assert caught.value.image == 2


def test_of_several_layers_the_first_broken_image_is_reported() -> None:
    output = random_output(4, 3, 2, seed=2)
    logits = output.logits.expand(2, -1, -1, -1).clone()
    logits[0, 3], logits[1, 2] = math.nan, math.nan  # another image in each layer
    targets = pad_targets([target([0], [[0.5, 0.5, 0.2, 0.2]])] * 4, images=4, device=torch.device("cpu"))

    with pytest.raises(NotFinite) as caught:
        match_layers(logits.log_softmax(-1), output.boxes_cxcywh.expand(2, -1, -1, -1), targets)

    assert caught.value.image == 2


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), layers=st.integers(1, 3), seed=st.integers(0, 99))
def test_all_layers_at_once_are_each_layer_and_each_image_by_itself(counts: list[int], layers: int, seed: int) -> None:
    outputs = [random_output(len(counts), 6, 3, seed * 10 + layer) for layer in range(layers)]
    drawn = random_output(len(counts), 9, 3, seed + 1000)
    targets = [
        Target(logits.argmax(-1)[:count] % 3, boxes[:count])
        for logits, boxes, count in zip(drawn.logits, drawn.boxes_cxcywh, counts, strict=True)
    ]

    pairs = match_layers(
        torch.stack([output.logits for output in outputs]).log_softmax(-1),
        torch.stack([output.boxes_cxcywh for output in outputs]),
        pad_targets(targets, images=len(counts), device=torch.device("cpu")),
    )

    alone = [
        [layer, image, query, chosen]
        for layer, output in enumerate(outputs)
        for image in range(len(counts))
        for each in match(
            DetrOutput(output.logits[image : image + 1], output.boxes_cxcywh[image : image + 1]), [targets[image]]
        )
        for query, chosen in zip(each.query.tolist(), each.target.tolist(), strict=True)
    ]
    assert pairs.dtype == torch.int64
    assert pairs.T.tolist() == alone


def test_padded_targets_keep_each_image_its_own_and_fill_up_with_the_whole_image() -> None:
    box = [0.4, 0.5, 0.2, 0.1]

    padded = pad_targets([target([], []), target([3, 1], [box, box])], images=2, device=torch.device("cpu"))

    assert padded.counts == (0, 2)
    assert padded.labels.tolist() == [[0, 0], [3, 1]]
    expected = torch.tensor([[[0.5, 0.5, 1, 1]] * 2, [box] * 2])
    torch.testing.assert_close(padded.boxes_cxcywh, expected, rtol=0, atol=0)


def test_a_batch_without_any_target_has_no_pairs() -> None:
    assert [len(pairs.query) for pairs in match(random_output(2, 5, 3, seed=1), [target([], [])] * 2)] == [0, 0]


def test_nothing_is_differentiated() -> None:
    output = random_output(1, 3, 2, seed=3)
    output.logits.requires_grad_()
    output.boxes_cxcywh.requires_grad_()

    (pairs,) = match(output, [target([0], [[0.5, 0.5, 0.2, 0.2]])])

    assert not pairs.query.requires_grad


def test_the_number_of_targets_must_be_that_of_images() -> None:
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        match(random_output(2, 3, 2, seed=4), [target([0], [[0.5, 0.5, 0.2, 0.2]])])
