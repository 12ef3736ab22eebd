import math

import pytest
import torch

from detr.backbone import ResidualNetwork
from detr.config import SCENES_BACKBONE
from detr.training.dense_losses import assign_tokens, dense_loss, position_loss, token_centres
from detr.training.matcher import PaddedTargets, Target, pad_targets

# a picture of 32 x 32 pixels has a grid of 2 x 2 tokens, centred on pixels 0 and 16 of each axis
NEAR, FAR = 0.5 / 32, 16.5 / 32


def target(labels: list[int], boxes: list[list[float]]) -> Target:
    return Target(torch.tensor(labels, dtype=torch.int64), torch.tensor(boxes).reshape(-1, 4))


def padded(*targets: Target) -> PaddedTargets:
    return pad_targets(targets, images=len(targets), device=torch.device("cpu"))


def owners(*boxes: list[float]) -> list[int]:
    centres = token_centres(32, 32)
    [owners] = assign_tokens(centres, padded(target([0] * len(boxes), list(boxes))), (0.5, 0.5)).tolist()
    return owners


def test_tokens_look_at_every_sixteenth_pixel_row_by_row() -> None:
    expected = torch.tensor([[0.5 / 40, 0.5 / 20], [16.5 / 40, 0.5 / 20], [32.5 / 40, 0.5 / 20]])

    centres = token_centres(20, 40)

    assert centres.shape == (6, 2)  # 2 rows of 3, the last of each partly outside
    torch.testing.assert_close(centres[:3], expected)
    torch.testing.assert_close(centres[3:, 1], torch.full((3,), 16.5 / 20))


def test_a_token_reacts_most_evenly_around_the_pixel_it_is_said_to_look_at() -> None:
    network = ResidualNetwork(SCENES_BACKBONE).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    pixels = torch.rand(1, 3, 320, 320, requires_grad=True)  # large enough that no border is seen

    network(pixels)[0, 0, 10, 8].backward()

    assert pixels.grad is not None
    seen = pixels.grad[0, 0]
    rows, columns = seen.sum(1), seen.sum(0)
    positions = torch.arange(320) + 0.5
    assert float((rows * positions).sum() / rows.sum()) == pytest.approx(160.5, abs=1)
    assert float((columns * positions).sum() / columns.sum()) == pytest.approx(128.5, abs=1)


def test_a_token_belongs_to_the_box_around_it() -> None:
    assert owners([FAR, FAR, 0.6, 0.6]) == [-1, -1, -1, 0]
    assert owners([FAR, NEAR, 0.6, 0.6], [NEAR, FAR, 0.6, 0.6]) == [-1, 0, 1, -1]


def test_a_token_near_the_edge_of_a_box_does_not_learn_it() -> None:
    # the token lies 0.41 and 0.43 of the width from the centre
    assert owners([FAR - 0.41 * 0.9, FAR, 0.9, 0.9])[3] == 0
    assert owners([FAR - 0.43 * 0.9, FAR, 0.9, 0.9])[3] == -1


def test_a_box_smaller_than_a_token_has_the_token_nearest_to_it() -> None:
    between = (NEAR + FAR) / 2

    assert owners([between - 0.01, NEAR, 0.05, 0.05]) == [0, -1, -1, -1]
    assert owners([between + 0.01, NEAR, 0.05, 0.05]) == [-1, 0, -1, -1]


def test_the_nearest_box_wins_in_units_of_its_own_size() -> None:
    # the centre of the small box is nearer in pixels, that of the large one in shares of its size
    small, large = [FAR - 0.22, FAR, 0.6, 0.6], [FAR - 0.24, FAR, 0.9, 0.9]

    assert owners(small, large)[3] == 1
    assert owners(large, small)[3] == 0


def test_dense_losses_by_hand() -> None:
    # the first image has one object of class 1 on the last token, the second has none
    probabilities = torch.tensor([0.25, 0.25, 0.50]).expand(2, 4, 3).clone()
    probabilities[0, 3] = torch.tensor([0.25, 0.50, 0.25])
    boxes = torch.full((2, 4, 4), 0.1)
    boxes[0, 3] = torch.tensor([0.5, 0.5, 0.2, 0.2])
    targets = padded(target([1], [[0.6, 0.5, 0.2, 0.2]]), target([], []))

    losses = dense_loss(probabilities.log(), boxes, targets, 32, 32)

    # every token is right with probability 1/2, so the weights do not show
    assert losses["dense_ce"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["dense_bbox"].item() == pytest.approx(0.1, rel=1e-5)
    assert losses["dense_giou"].item() == pytest.approx(1 - 0.02 / 0.06, rel=1e-5)


def test_a_token_without_object_weighs_a_quarter() -> None:
    probabilities = torch.tensor([0.25, 0.50, 0.25]).expand(
        1, 4, 3
    )  # 1 / 4 for no-object, 1 / 2 for the object's class

    losses = dense_loss(
        probabilities.log(), torch.full((1, 4, 4), 0.5), padded(target([1], [[FAR, FAR, 0.2, 0.2]])), 32, 32
    )

    expected = (math.log(2) + 3 * 0.25 * math.log(4)) / (1 + 3 * 0.25)
    assert losses["dense_ce"].item() == pytest.approx(expected, rel=1e-5)


def test_objects_of_the_second_image_are_not_taken_for_those_of_the_first() -> None:
    first, second = [FAR, FAR, 0.3, 0.3], [NEAR, NEAR, 0.3, 0.3]
    boxes = torch.full((2, 4, 4), 0.9)
    boxes[0, 3], boxes[1, 0] = torch.tensor(first), torch.tensor(second)

    losses = dense_loss(torch.zeros(2, 4, 3), boxes, padded(target([0], [first]), target([1], [second])), 32, 32)

    assert losses["dense_bbox"].item() == pytest.approx(0, abs=1e-6)
    assert losses["dense_giou"].item() == pytest.approx(0, abs=1e-6)


def test_without_any_object_boxes_cost_nothing_and_stay_in_the_graph() -> None:
    boxes = torch.full((1, 4, 4), 0.5, requires_grad=True)

    losses = dense_loss(torch.zeros(1, 4, 3), boxes, padded(target([], [])), 32, 32)
    (losses["dense_bbox"] + losses["dense_giou"]).backward()  # type: ignore[no-untyped-call]

    assert losses["dense_bbox"].item() == losses["dense_giou"].item() == 0
    assert boxes.grad is not None
    assert boxes.grad.abs().sum() == 0


def test_position_loss_is_zero_for_the_places_themselves_and_the_mean_distance_else() -> None:
    places = token_centres(32, 48)[None]

    assert position_loss(places, 32, 48).item() == 0
    assert position_loss(places + torch.tensor([0.2, 0.0]), 32, 48).item() == pytest.approx(0.1, rel=1e-5)
