from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detr.images.drawing import class_colour, draw_detections, text_colour
from detr.postprocess import Detections

GREY = 128


def detections(*found: tuple[int, str, float, tuple[float, float, float, float]]) -> Detections:
    return Detections(
        category_ids=torch.tensor([item[0] for item in found], dtype=torch.int64),
        labels=tuple(item[1] for item in found),
        scores=torch.tensor([item[2] for item in found], dtype=torch.float32),
        boxes_xyxy=torch.tensor([item[3] for item in found], dtype=torch.float32).reshape(-1, 4),
    )


def grey(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def painted(picture: Image.Image) -> tuple[int, int, int, int]:
    """The bounds (xmin, ymin, xmax, ymax) of all that is not grey."""
    rows, columns = np.nonzero((pixels(picture) != GREY).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def letters(picture: Image.Image, category_id: int) -> int:
    """How many pixels are neither grey nor of the class's colour."""
    drawn = pixels(picture)
    return int(((drawn != GREY).any(axis=2) & (drawn != class_colour(category_id)).any(axis=2)).sum())


def test_a_box_is_outlined_in_the_colour_of_its_class_at_its_pixels() -> None:
    picture = draw_detections(grey(480, 640), detections((3, "car", 0.9, (100.2, 200.0, 300.0, 399.9))))

    drawn, colour = pixels(picture), list(class_colour(3))
    assert drawn[300, 100].tolist() == drawn[300, 101].tolist() == colour  # 2 pixels wide at 480
    assert drawn[300, 99].tolist() == drawn[300, 102].tolist() == [GREY] * 3
    assert drawn[300, 299].tolist() == drawn[399, 200].tolist() == drawn[200, 250].tolist() == colour
    assert drawn[300, 300].tolist() == drawn[400, 200].tolist() == [GREY] * 3


def test_the_image_is_not_changed_whether_tensor_or_pil() -> None:
    tensor, image = grey(60, 80), Image.new("RGB", (80, 60), (GREY,) * 3)
    found = detections((1, "disc", 0.5, (10, 20, 50, 50)))

    from_tensor, from_image = draw_detections(tensor, found), draw_detections(image, found)

    assert from_tensor.tobytes() == from_image.tobytes()
    assert bool((tensor == GREY).all())
    assert image.getcolors() == [(4800, (GREY,) * 3)]


def test_a_tensor_is_channels_first_rgb() -> None:
    tensor = torch.zeros(3, 20, 30, dtype=torch.uint8)
    tensor[0, 5, 7], tensor[2, 6, 8] = 200, 100

    picture = draw_detections(tensor, detections())

    assert picture.size == (30, 20)
    assert picture.getpixel((7, 5)) == (200, 0, 0)
    assert picture.getpixel((8, 6)) == (0, 0, 100)


def test_a_grey_pil_image_is_drawn_on_in_colour() -> None:
    picture = draw_detections(Image.new("L", (80, 60), GREY), detections((1, "disc", 0.5, (10, 20, 50, 50))))

    assert picture.mode == "RGB"
    assert picture.getpixel((10, 40)) == class_colour(1)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)]
)
def test_another_tensor_is_refused(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match=r"cannot draw on a .*: give uint8 \(3, H, W\)"):
        draw_detections(tensor, detections())


@pytest.mark.parametrize(
    "box",
    [(0, 0, 40, 30), (600, 0, 640, 30), (0, 450, 40, 480), (600, 450, 640, 480), (300, 0, 340, 480)],
    ids=["top left", "top right", "bottom left", "bottom right", "full height"],
)
def test_a_label_stays_inside_the_picture_whole(box: tuple[float, float, float, float]) -> None:
    middle = draw_detections(grey(480, 640), detections((5, "traffic light", 0.87, (300, 200, 340, 230))))
    picture = draw_detections(grey(480, 640), detections((5, "traffic light", 0.87, box)))

    assert letters(middle, 5) > 200
    assert letters(picture, 5) == letters(middle, 5)


def test_a_label_is_above_its_box_where_there_is_room_and_inside_at_the_top_edge() -> None:
    above = painted(draw_detections(grey(480, 640), detections((1, "disc", 0.5, (200, 100, 400, 300)))))
    inside = painted(draw_detections(grey(480, 640), detections((1, "disc", 0.5, (200, 6, 400, 300)))))

    assert above[0] == 200
    assert 75 < above[1] < 90
    assert above[2:] == (400, 300)
    assert inside == (200, 6, 400, 300)


def test_the_letters_lie_within_their_label() -> None:
    drawn = pixels(draw_detections(grey(480, 640), detections((1, "dg", 0.5, (200, 100, 400, 300)))))
    is_letter = (drawn != GREY).any(axis=2) & (drawn != class_colour(1)).any(axis=2)
    top = int(np.nonzero((drawn[:, 200] != GREY).any(axis=1))[0][0])  # of the label, whose left side is the box's

    rows, columns = np.nonzero(is_letter)

    assert top < rows.min() <= top + 3
    assert 100 - 4 <= rows.max() < 100 - 1
    assert 200 < columns.min() <= 200 + 4


@pytest.mark.parametrize("box", [(100.0, 200.0, 400.0, 400.0), (300.0, 0.0, 340.0, 480.0)])
def test_labels_of_equal_boxes_are_both_readable(box: tuple[float, float, float, float]) -> None:
    alone = draw_detections(grey(480, 640), detections((1, "disc", 0.9, box)))

    both = draw_detections(grey(480, 640), detections((1, "disc", 0.9, box), (1, "disc", 0.9, box)))

    assert letters(alone, 1) > 50
    assert letters(both, 1) == 2 * letters(alone, 1)


def test_where_labels_must_overlap_the_best_lies_on_top() -> None:
    box = (0.0, 0.0, 60.0, 12.0)
    best = pixels(draw_detections(grey(24, 60), detections((1, "disc", 0.9, box))))

    crowd = pixels(draw_detections(grey(24, 60), detections((1, "disc", 0.9, box), *[(2, "star", 0.4, box)] * 5)))

    assert crowd[:12, :40].tolist() == best[:12, :40].tolist()


def test_the_best_detection_lies_on_top_in_whatever_order_they_come() -> None:
    best, other = (1, "disc", 0.9, (100.0, 100.0, 300.0, 300.0)), (2, "star", 0.4, (100.0, 100.0, 300.0, 300.0))

    first = draw_detections(grey(480, 640), detections(best, other))
    last = draw_detections(grey(480, 640), detections(other, best))

    assert first.tobytes() == last.tobytes()
    assert first.getpixel((100, 200)) == class_colour(1)


@pytest.mark.parametrize(("height", "width", "least", "most"), [(480, 640, 11, 20), (1333, 1500, 30, 50)])
def test_letters_grow_with_the_picture(height: int, width: int, least: int, most: int) -> None:
    picture = draw_detections(grey(height, width), detections((1, "disc", 0.5, (100, 200, 400, 400))))

    assert least < 200 - painted(picture)[1] < most  # the height of the label above the box


@pytest.mark.parametrize("spacing", [40, 120])
def test_small_objects_in_a_large_picture_stay_visible(spacing: int) -> None:
    side, colour = 24, torch.tensor([10, 20, 30], dtype=torch.uint8)
    image = grey(1500, 2000)
    corners = [(x, y) for x in range(400, 400 + 12 * spacing, spacing) for y in range(400, 400 + 8 * spacing, spacing)]
    for x, y in corners:
        image[:, y : y + side, x : x + side] = colour[:, None, None]
    boxes = [(6, "triangle", 0.9, (float(x), float(y), float(x + side), float(y + side))) for x, y in corners]

    drawn = pixels(draw_detections(image, detections(*boxes)))

    is_object = (drawn == colour.numpy()).all(axis=2)
    visible = [int(is_object[y : y + side, x : x + side].sum()) / side**2 for x, y in corners]
    assert min(visible) > 0.4


def test_letters_are_no_wider_than_a_large_object_and_stay_readable_at_a_small_one() -> None:
    def label_height(side: int) -> int:
        box = (500.0, 500.0, 500.0 + side, 500.0 + side)
        return 500 - painted(draw_detections(grey(1500, 2000), detections((1, "disc", 0.5, box))))[1]

    assert label_height(700) > label_height(100) > label_height(30) >= 12


def test_a_label_that_would_hide_other_objects_is_left_out() -> None:
    boxes = [(float(x), float(y), x + 8.0, y + 8.0) for x in range(0, 64, 8) for y in range(0, 64, 8)]

    picture = draw_detections(grey(64, 64), detections(*((1, "disc", 0.9, box) for box in boxes)))

    assert letters(picture, 1) == 0
    assert picture.getpixel((4, 4)) == (GREY,) * 3


def test_a_picture_too_narrow_for_letters_gets_its_boxes_without_them() -> None:
    picture = draw_detections(grey(40, 20), detections((1, "traffic light", 0.5, (5, 10, 15, 30))))

    assert painted(picture) == (5, 10, 15, 30)
    assert picture.getpixel((10, 20)) == (GREY,) * 3


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-30.0, -5.0, 10.0, 20.0), (0, 0, 10, 20)),
        ((10.0, 30.0, 15.0, 99.0), (10, 30, 15, 40)),
        ((25.0, 45.0, 31.0, 47.0), (19, 39, 20, 40)),
        ((5.0, 5.0, 5.0, 5.0), (5, 5, 6, 6)),
    ],
    ids=["past the left and the top", "past the bottom", "wholly outside", "without an area"],
)
def test_a_box_is_cut_to_the_picture(
    box: tuple[float, float, float, float], expected: tuple[int, int, int, int]
) -> None:
    assert painted(draw_detections(grey(40, 20), detections((1, "traffic light", 0.5, box)))) == expected


def test_letters_that_the_font_lacks_are_replaced_not_boxes() -> None:
    def drawn(label: str) -> bytes:
        return draw_detections(grey(480, 640), detections((1, label, 0.5, (100, 200, 400, 400)))).tobytes()

    assert drawn("Äpfel") == drawn("Apfel")
    assert drawn("猫") == drawn("?")
    assert drawn("?") != drawn("!")


def test_text_is_black_on_light_and_white_on_dark() -> None:
    assert text_colour((255, 255, 255)) == text_colour((255, 220, 0)) == text_colour((0, 255, 255)) == (0, 0, 0)
    assert text_colour((0, 0, 0)) == text_colour((40, 0, 160)) == text_colour((150, 0, 0)) == (255, 255, 255)


def test_the_colours_of_91_classes_are_all_different_and_those_of_neighbours_far_apart() -> None:
    colours = [class_colour(category_id) for category_id in range(91)]

    assert len(set(colours)) == 91
    for one, other in pairwise(colours):
        assert sum(abs(mine - its) for mine, its in zip(one, other, strict=True)) > 150


def test_nothing_found_leaves_the_picture_as_it_is() -> None:
    assert set(pixels(draw_detections(grey(30, 40), detections())).ravel().tolist()) == {GREY}
