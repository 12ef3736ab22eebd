from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from detr.augment import augment_scene, mirror_columns, mirror_rows, transpose
from detr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detr.matcher import Target

GOLDEN = Path(__file__).parents[1] / "golden" / "target_transforms.safetensors"  # made by the original's transforms

# 2 x 3 pixels, all channels alike
IMAGE = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).expand(3, 2, 3)
# the pixel that says 3, alone
CORNER = Target(torch.tensor([7]), torch.tensor([[5 / 6, 1 / 4, 1 / 3, 1 / 2]]))


def pixels_in(image: torch.Tensor, target: Target) -> list[int]:
    """The values of the first channel inside the target's only box."""
    height, width = image.shape[1:]
    scaled = cxcywh_to_xyxy(target.boxes_cxcywh[0]) * torch.tensor([width, height, width, height])
    xmin, ymin, xmax, ymax = scaled.round().int().tolist()
    return sorted(image[0, ymin:ymax, xmin:xmax].flatten().tolist())


def test_mirrors_and_transposition_move_pixels() -> None:
    assert mirror_columns(IMAGE, CORNER)[0][0].tolist() == [[3, 2, 1], [6, 5, 4]]
    assert mirror_rows(IMAGE, CORNER)[0][0].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert transpose(IMAGE, CORNER)[0][0].tolist() == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize("change", [mirror_columns, mirror_rows, transpose])
def test_the_box_stays_around_its_pixels(change) -> None:  # type: ignore[no-untyped-def]
    image, target = change(IMAGE, CORNER)

    assert pixels_in(image, target) == [3]
    assert target.labels.tolist() == [7]
    assert pixels_in(IMAGE, CORNER) == [3]  # the arguments are as they were


def test_mirrored_boxes_are_those_of_the_original() -> None:
    with safe_open(GOLDEN, "pt") as file:  # case 0: 640 x 480, mirrored, resized, normalised
        boxes, labels = file.get_tensor("0/in/boxes"), file.get_tensor("0/in/labels")
        expected = file.get_tensor("0/step2/boxes")
    target = Target(labels, xyxy_to_cxcywh(boxes / torch.tensor([640, 480, 640, 480])))

    _, mirrored = mirror_columns(torch.zeros(3, 480, 640, dtype=torch.uint8), target)

    torch.testing.assert_close(mirrored.boxes_cxcywh, expected, rtol=1e-5, atol=1e-6)


def test_boxes_stay_around_their_objects_under_all_chances() -> None:
    seen = set()
    for seed in range(40):
        image = torch.zeros(3, 12, 12, dtype=torch.uint8)
        image[:, 2:4, 5:11] = 255
        target = Target(torch.tensor([1]), torch.tensor([[8 / 12, 3 / 12, 6 / 12, 2 / 12]]))

        changed, moved = augment_scene(image, target, torch.Generator().manual_seed(seed))

        inside = pixels_in(changed, moved)
        assert len(inside) == 12
        assert len(set(inside)) == 1
        assert (changed[0] == inside[0]).sum() == 12
        seen.add(tuple(moved.boxes_cxcywh[0].mul(12).round().int().tolist()))
    assert len(seen) == 8  # all mirrored and transposed versions come up


def test_only_square_pictures_are_transposed() -> None:
    for seed in range(10):
        changed, _ = augment_scene(IMAGE, CORNER, torch.Generator().manual_seed(seed))
        assert changed.shape == (3, 2, 3)


def test_colours_are_permuted_inverted_and_brightened() -> None:
    image = torch.tensor([50, 100, 150], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))

    results = [augment_scene(image, empty, torch.Generator().manual_seed(seed))[0][:, 0, 0] for seed in range(60)]

    assert len({tuple(colours.argsort().tolist()) for colours in results}) == 6
    gains = []
    for colours in results:
        middle = sorted(colours.tolist())[1]
        # 100 stays 100 or becomes 155 when inverted, both times the gain
        gains.append(middle / 100 if int(colours.min()) < 70 else middle / 155)
    assert min(gains) >= 0.79
    assert max(gains) <= 1.16
    assert max(gains) - min(gains) > 0.2
    assert {int(colours.min()) < 70 for colours in results} == {True, False}
    assert all(colours.dtype == torch.uint8 for colours in results)


def test_equal_generators_give_equal_pictures() -> None:
    first, second = (augment_scene(IMAGE, CORNER, torch.Generator().manual_seed(5)) for _ in range(2))

    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].boxes_cxcywh, second[1].boxes_cxcywh)
