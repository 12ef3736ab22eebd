import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

from detr.boxes import cxcywh_to_xyxy, generalized_iou
from detr.model import DetrOutput
from detr.training.criterion import LossWeights, criterion
from detr.training.matcher import Target

GOLDEN = Path(__file__).parents[2] / "golden"  # criterion_*: made by the original's SetCriterion, weights 1, 5, 2
RELATIVE = 1e-5  # float32 sums in another order


def target(labels: list[int], boxes: list[list[float]]) -> Target:
    return Target(torch.tensor(labels, dtype=torch.int64), torch.tensor(boxes).reshape(-1, 4))


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    with safe_open(GOLDEN / f"criterion_{name}.safetensors", "pt") as file:
        info = json.loads(file.metadata()["info"])
        return {key: file.get_tensor(key) for key in file.keys()}, info["config"]  # noqa: SIM118


def layers(tensors: dict[str, Tensor], prefix: str, numbers: range) -> DetrOutput:
    outputs = [
        DetrOutput(tensors[f"{prefix}logits{i}"].requires_grad_(), tensors[f"{prefix}boxes{i}"].requires_grad_())
        for i in numbers
    ]
    return replace(outputs[-1], aux=tuple(outputs[:-1]))


def targets_of(tensors: dict[str, Tensor], prefix: str) -> list[Target]:
    return [
        Target(tensors[f"{prefix}target{image}/labels"], tensors[f"{prefix}target{image}/boxes"])
        for image in range(sum(key.startswith(f"{prefix}target") and key.endswith("/labels") for key in tensors))
    ]


def close(ours: Tensor | None, expected: Tensor) -> bool:
    assert ours is not None
    return float((ours.detach() - expected).abs().max()) <= RELATIVE * max(float(expected.abs().max()), 1e-30)


@pytest.mark.parametrize(
    ("name", "prefix", "num_boxes"),
    [
        ("basic", "", None),
        ("empty", "", None),
        # two gloo processes with 9 targets and 1: both divide by (9 + 1) / 2, and no gradient is averaged
        ("two_workers", "0/", 5.0),
        ("two_workers", "1/", 5.0),
    ],
)
def test_losses_and_gradients_are_those_of_the_original(name: str, prefix: str, num_boxes: float | None) -> None:
    tensors, config = golden(name)
    numbers = range(int(str(config["layers"])))
    expected = {key.removeprefix(f"{prefix}loss/"): value for key, value in tensors.items() if f"{prefix}loss/" in key}

    losses = criterion(layers(tensors, prefix, numbers), targets_of(tensors, prefix), num_boxes=num_boxes)
    losses.total.backward()  # type: ignore[no-untyped-call]

    assert losses.parts.keys() == expected.keys()
    for part, value in expected.items():
        assert close(losses.parts[part], value), part
    assert close(losses.total, tensors[f"{prefix}total"])
    for number in numbers:
        assert close(tensors[f"{prefix}logits{number}"].grad, tensors[f"{prefix}grad_logits{number}"]), number
        assert close(tensors[f"{prefix}boxes{number}"].grad, tensors[f"{prefix}grad_boxes{number}"]), number


def test_surplus_targets_stay_unmatched_but_count_in_the_divisor_as_in_the_original() -> None:
    tensors, _ = golden("crowded")  # 120 targets for 100 queries

    losses = criterion(layers(tensors, "", range(1, 2)), targets_of(tensors, ""))
    losses.total.backward()  # type: ignore[no-untyped-call]

    for part in ("loss_ce", "loss_bbox", "loss_giou", "class_error", "cardinality_error"):
        assert close(losses.parts[part], tensors[f"loss/{part}"]), part
    assert close(tensors["boxes1"].grad, tensors["grad_boxes1"])
    gradient = tensors["logits1"].grad
    assert gradient is not None
    assert close(gradient[:, :8], tensors["grad_logits1_first_queries"])


def test_two_queries_by_hand() -> None:
    # query 0 is matched to the only target and sees its class at 1/2, query 1 sees no-object at 4/5
    probabilities = torch.tensor([[[0.50, 0.25, 0.25], [0.15, 0.05, 0.80]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    wanted = target([0], [[0.6, 0.5, 0.2, 0.2]])

    losses = criterion(DetrOutput(probabilities.log(), boxes), [wanted])

    ce = (1 * math.log(2) + 0.1 * math.log(5 / 4)) / 1.1
    giou = 0.02 / 0.06  # half of each box overlaps, and the enclosing box 0.3 x 0.2 is the union
    assert losses.parts["loss_ce"].item() == pytest.approx(ce, rel=1e-5)
    assert losses.parts["loss_bbox"].item() == pytest.approx(0.1, rel=1e-5)
    assert losses.parts["loss_giou"].item() == pytest.approx(1 - giou, rel=1e-5)
    assert losses.total.item() == pytest.approx(ce + 5 * 0.1 + 2 * (1 - giou), rel=1e-5)
    assert losses.parts["class_error"].item() == 0
    assert losses.parts["cardinality_error"].item() == 0


@pytest.mark.parametrize(
    ("seed", "queries", "counts"),
    [(0, 12, (4, 0, 7)), (1, 12, (12, 12, 1)), (2, 12, (0, 15, 3)), (3, 100, (3, 0, 120)), (4, 100, (120, 99, 100))],
)
def test_transformers_loss_has_the_same_parts_on_random_inputs(
    seed: int, queries: int, counts: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = [
        DetrOutput(
            torch.randn(3, queries, 8, generator=generator), torch.rand(3, queries, 4, generator=generator) * 0.5 + 0.1
        )
        for _ in range(3)
    ]
    targets = [
        Target(torch.randint(7, (count,), generator=generator), torch.rand(count, 4, generator=generator) * 0.5 + 0.1)
        for count in counts
    ]
    theirs = ImageLoss(HungarianMatcher(1, 5, 2), 7, 0.1, ["labels", "boxes", "cardinality"])  # type: ignore[no-untyped-call]
    as_theirs = [{"logits": output.logits, "pred_boxes": output.boxes_cxcywh} for output in outputs]

    expected = theirs(
        {**as_theirs[-1], "auxiliary_outputs": as_theirs[:-1]},
        [{"class_labels": item.labels, "boxes": item.boxes_cxcywh} for item in targets],
    )
    losses = criterion(replace(outputs[-1], aux=tuple(outputs[:-1])), targets)

    assert losses.parts.keys() - {"class_error"} == expected.keys()
    for name, value in expected.items():
        assert close(losses.parts[name], value), name


def test_weights_scale_the_total_and_leave_the_parts() -> None:
    tensors, _ = golden("basic")
    output, targets = layers(tensors, "", range(3, 4)), targets_of(tensors, "")

    plain, heavy = criterion(output, targets), criterion(output, targets, weights=LossWeights(classification=5))

    assert heavy.parts["loss_ce"] == plain.parts["loss_ce"]
    assert (heavy.total - plain.total).item() == pytest.approx(4 * plain.parts["loss_ce"].item(), rel=1e-4)


def test_less_than_one_box_a_worker_counts_as_one() -> None:
    output = DetrOutput(torch.zeros(1, 2, 3), torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]))
    wanted = [target([0], [[0.6, 0.5, 0.2, 0.2]])]

    assert criterion(output, wanted, num_boxes=0.25).parts["loss_bbox"].item() == pytest.approx(0.1, rel=1e-5)
    assert criterion(output, wanted, num_boxes=4.0).parts["loss_bbox"].item() == pytest.approx(0.025, rel=1e-5)


def test_errors_are_logged_without_gradient() -> None:
    tensors, _ = golden("basic")

    losses = criterion(layers(tensors, "", range(4)), targets_of(tensors, ""))

    assert not losses.parts["class_error"].requires_grad
    assert not losses.parts["cardinality_error_2"].requires_grad


@pytest.mark.parametrize("label", [-1, 2, 3])  # 2 would train no-object without a word, 3 is an assertion on a GPU
def test_a_label_that_is_not_a_class_is_refused(label: int) -> None:
    output = DetrOutput(torch.zeros(2, 2, 3), torch.full((2, 2, 4), 0.3))

    with pytest.raises(ValueError, match=r"image 1 of the batch has labels .* but the classes are 0 \.\. 1"):
        criterion(output, [target([], []), target([0, label], [[0.5, 0.5, 0.2, 0.2]] * 2)])


def test_giou_row_by_row_is_the_diagonal_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (cxcywh_to_xyxy(torch.rand(20, 4, generator=generator)) for _ in range(2))

    assert torch.equal(generalized_iou(a, b), generalized_iou(a[:, None], b[None]).diagonal())


def test_micro_batches_that_share_their_count_of_boxes_average_to_the_whole_batch() -> None:
    tensors, _ = golden("basic")
    whole, targets = layers(tensors, "", range(3, 4)), targets_of(tensors, "")
    share = sum(len(item.labels) for item in targets) / 3

    micro = [
        criterion(DetrOutput(whole.logits[i : i + 1], whole.boxes_cxcywh[i : i + 1]), [targets[i]], num_boxes=share)
        for i in range(3)
    ]

    for part in ("loss_bbox", "loss_giou"):  # not loss_ce, a weighted mean: the spec says so
        mean = sum(float(losses.parts[part].detach()) for losses in micro) / 3
        assert mean == pytest.approx(float(criterion(whole, targets).parts[part].detach()), rel=1e-5)


def test_losses_of_half_precision_outputs_are_computed_in_float32_under_autocast_too() -> None:
    tensors, _ = golden("basic")
    targets = targets_of(tensors, "")
    half = {name: value.bfloat16() for name, value in tensors.items() if name.startswith(("logits", "boxes"))}
    same_values = {name: value.float() for name, value in half.items()}

    output = layers(half, "", range(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(output, targets)
    losses.total.backward()  # type: ignore[no-untyped-call]
    expected = criterion(layers(same_values, "", range(4)), targets)

    assert losses.total.dtype == torch.float32
    assert torch.equal(losses.total, expected.total)
    for name, value in expected.parts.items():
        assert torch.equal(losses.parts[name], value), name
    assert output.logits.grad is not None
    assert output.logits.grad.dtype == torch.bfloat16


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations for which the host would wait for a device, other than copies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::unique_dim"):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_with_targets_on_the_cpu_the_host_waits_for_nothing_but_the_copy_of_the_costs() -> None:
    tensors, _ = golden("basic")
    output, targets = layers(tensors, "", range(4)), targets_of(tensors, "")

    with Waits() as waits:
        criterion(output, targets).total.backward()  # type: ignore[no-untyped-call]
    with Waits() as control:
        float(output.logits.detach()[0, 0, 0])

    assert waits.names == []
    assert control.names == ["aten::_local_scalar_dense"]


def test_parts_come_last_layer_first_by_the_originals_names() -> None:
    tensors, _ = golden("basic")

    names = list(criterion(layers(tensors, "", range(3)), targets_of(tensors, "")).parts)

    assert names == [
        *("class_error", "loss_ce", "loss_bbox", "loss_giou", "cardinality_error"),
        *("loss_ce_0", "loss_bbox_0", "loss_giou_0", "cardinality_error_0"),
        *("loss_ce_1", "loss_bbox_1", "loss_giou_1", "cardinality_error_1"),
    ]
