from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

from detr.model import DetrOutput
from detr.training.criterion import criterion
from detr.training.matcher import Target
from tests.detr.training.matching import match

RELATIVE = 1e-5  # float32 sums in another order
QUERIES, CLASSES, LAYERS = 100, 20, 3
BATCHES = [
    (0, 0, 0),
    (1, 0, 12),
    (60, 99, 100),
    (120, 0, 7),  # more targets than queries
    (120, 130, 101),
]


def random_layers(images: int, seed: int) -> list[DetrOutput]:
    generator = torch.Generator().manual_seed(seed)
    return [
        DetrOutput(
            (torch.randn(images, QUERIES, CLASSES + 1, generator=generator) * 2).requires_grad_(),
            random_boxes(images * QUERIES, generator).view(images, QUERIES, 4).requires_grad_(),
        )
        for _ in range(LAYERS)
    ]


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Inside the image, sides from 1/50 to 1/2 of it."""
    sides = torch.rand(count, 2, generator=generator) * 0.48 + 0.02
    centres = sides / 2 + torch.rand(count, 2, generator=generator) * (1 - sides)
    return torch.cat((centres, sides), dim=1)


def random_targets(counts: tuple[int, ...], seed: int) -> list[Target]:
    generator = torch.Generator().manual_seed(seed + 1000)
    return [
        Target(torch.randint(CLASSES, (count,), generator=generator), random_boxes(count, generator))
        for count in counts
    ]


def as_theirs(targets: list[Target]) -> list[dict[str, Tensor]]:
    return [{"class_labels": target.labels, "boxes": target.boxes_cxcywh} for target in targets]


def close(ours: Tensor | None, expected: Tensor | None) -> bool:
    assert ours is not None
    assert expected is not None
    largest = float(expected.detach().abs().max())
    return float((ours.detach() - expected.detach()).abs().max()) <= RELATIVE * max(largest, 1e-30)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", BATCHES)
def test_the_same_queries_answer_for_the_same_targets(counts: tuple[int, ...], seed: int) -> None:
    (output, *_), targets = random_layers(len(counts), seed), random_targets(counts, seed)
    theirs = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)

    expected = theirs({"logits": output.logits, "pred_boxes": output.boxes_cxcywh}, as_theirs(targets))
    matches = match(output, targets)

    assert [len(pairs.query) for pairs in matches] == [min(QUERIES, count) for count in counts]
    for pairs, (query, target) in zip(matches, expected, strict=True):
        assert torch.equal(pairs.query, query)
        assert torch.equal(pairs.target, target)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", BATCHES)
def test_total_parts_and_gradients_are_the_same_at_every_layer(counts: tuple[int, ...], seed: int) -> None:
    targets = random_targets(counts, seed)
    config = DetrConfig(decoder_layers=LAYERS, auxiliary_loss=True)  # its costs and weights are the paper's
    config.num_labels = CLASSES
    *earlier, last = their_layers = random_layers(len(counts), seed)
    expected, expected_parts, _ = ForObjectDetectionLoss(  # type: ignore[no-untyped-call]
        last.logits,
        as_theirs(targets),
        "cpu",
        last.boxes_cxcywh,
        config,
        outputs_class=[layer.logits for layer in their_layers],
        outputs_coord=[layer.boxes_cxcywh for layer in their_layers],
    )
    expected.backward()

    *earlier, last = our_layers = random_layers(len(counts), seed)
    losses = criterion(replace(last, aux=tuple(earlier)), targets)
    losses.total.backward()  # type: ignore[no-untyped-call]

    # they have no class error
    assert losses.parts.keys() - {"class_error"} == expected_parts.keys()
    for name, value in expected_parts.items():
        assert close(losses.parts[name], value), name
    assert close(losses.total, expected)
    for ours, theirs in zip(our_layers, their_layers, strict=True):
        assert close(ours.logits.grad, theirs.logits.grad)
        assert close(ours.boxes_cxcywh.grad, theirs.boxes_cxcywh.grad)
