import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from detr.classes import SCENE_CATEGORIES
from detr.scenes.files import PICTURE_SIZES
from detr.scenes.scene import (
    Scene,
    Shape,
    _photograph,
    coverage,
    draw_background,
    draw_scene,
    draw_shape,
    place_shapes,
)
from tests.detr.crowds import draw_crowd

DISC = 0


def seeded(seed: int) -> Generator:
    return Generator(PCG64(seed))


def digest(scene: Scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.labels.tobytes() + scene.boxes_xyxy.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def placed() -> list[list[Shape]]:
    """400 pictures of 200 x 150: S is 150 pixels."""
    return [place_shapes(seeded(seed), 150, 200) for seed in range(400)]


@pytest.mark.parametrize(
    ("seed", "height", "width", "expected"),
    [
        (0, 48, 64, "654ae36842aae4cd2055c76c1e011d596e615276ac3b8bf4564aa9b364b22142"),
        (7, 96, 60, "e4a339d3f19e6da6bccf217a7a7265bdb767ace1231683ef848cf7cde4954b0f"),
        (3, 360, 360, "547e57226b1e090b0694199ef447b882028e5a6fc2895aefb09c8f2fce76ee20"),
    ],
)
def test_a_seed_and_a_size_give_these_very_bytes(seed: int, height: int, width: int, expected: str) -> None:
    assert digest(draw_scene(seed, height, width)) == expected


def test_a_crowd_is_drawn_anywhere_in_these_very_bytes_with_diameters_in_pixels() -> None:
    scene = draw_crowd(1, 300, 400, shapes=40, diameters=(20, 40))

    assert digest(scene) == "8e1a62a75b1a0ad8afcf541681bd0066ab55d8fda2db66e0f4fe00d38bc794b1"
    sides = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
    assert len(scene.labels) == 40
    assert 12 < sides.min() < sides.max() < 50


def test_what_was_drawn_before_changes_nothing_and_the_global_random_state_is_left_alone() -> None:
    alone = digest(draw_scene(5, 48, 64))
    state = np.random.get_state()[1].tobytes()  # type: ignore[index]  # noqa: NPY002

    draw_scene(4, 48, 64)

    assert digest(draw_scene(5, 48, 64)) == alone
    assert np.random.get_state()[1].tobytes() == state  # type: ignore[index]  # noqa: NPY002


def test_seeds_and_sizes_give_different_scenes() -> None:
    scenes = [draw_scene(seed, *size) for seed in range(5) for size in ((48, 64), (64, 48))]

    assert len({digest(scene) for scene in scenes}) == 10


@pytest.mark.parametrize("size", [*PICTURE_SIZES, (16, 16), (17, 400)])
def test_a_scene_has_the_asked_size_and_its_boxes_lie_inside(size: tuple[int, int]) -> None:
    height, width = size

    scene = draw_scene(11, height, width)

    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.dtype(np.uint8))
    assert (scene.labels.dtype, scene.boxes_xyxy.dtype) == (np.dtype(np.int64), np.dtype(np.float32))
    assert scene.boxes_xyxy.shape == (len(scene.labels), 4)
    assert (scene.boxes_xyxy >= 0).all()
    assert (scene.boxes_xyxy <= [width, height, width, height]).all()
    assert (scene.boxes_xyxy[:, 2:] > scene.boxes_xyxy[:, :2]).all()


@pytest.mark.parametrize(("seed", "height", "width"), [(-1, 48, 64), (0, 15, 64), (0, 64, 15)])
def test_a_negative_seed_and_a_tiny_side_are_refused(seed: int, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"cannot draw scene {seed} of {height} x {width}"):
        draw_scene(seed, height, width)


def test_one_to_eight_objects_are_placed_about_as_often_each(placed: list[list[Shape]]) -> None:
    counts = Counter(len(shapes) for shapes in placed)

    assert set(counts) == {1, 2, 3, 4, 5, 6, 7, 8}
    assert all(25 <= count <= 85 for count in counts.values())  # 50 expected, less for 8: some find no place


def test_the_six_classes_are_equally_frequent(placed: list[list[Shape]]) -> None:
    labels = Counter(shape.class_index for shapes in placed for shape in shapes)

    assert [category.name for category in SCENE_CATEGORIES] == ["disc", "square", "triangle", "star", "ring", "cross"]
    assert [category.id for category in SCENE_CATEGORIES] == [1, 2, 3, 4, 5, 6]
    assert sorted(labels) == [0, 1, 2, 3, 4, 5]
    assert all(0.135 < count / labels.total() < 0.20 for count in labels.values())


def test_no_two_boxes_cover_more_than_two_fifths_of_the_smaller(placed: list[list[Shape]]) -> None:
    overlaps = []
    for shapes in placed:
        for one, other in combinations([shape.box_xyxy for shape in shapes], 2):
            across = min(one[2], other[2]) - max(one[0], other[0])
            down = min(one[3], other[3]) - max(one[1], other[1])
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
            overlaps.append(max(across, 0) * max(down, 0) / min(areas))

    assert 0.35 < max(overlaps) <= 0.40


def test_discs_are_0_12_to_0_50_of_the_shorter_side_and_smaller_where_it_is_crowded(placed: list[list[Shape]]) -> None:
    # an ellipse of axes d and d * s, turned anyhow, has a box with w^2 + h^2 = d^2 (1 + s^2); here s is 0.80 to 1.25
    diagonals = {True: list[float](), False: list[float]()}
    for shapes in placed:
        for xmin, ymin, xmax, ymax in (shape.box_xyxy for shape in shapes if shape.class_index == DISC):
            diagonals[len(shapes) > 5].append(((xmax - xmin) ** 2 + (ymax - ymin) ** 2) ** 0.5 / 150)

    assert min(*diagonals[True], *diagonals[False]) > 0.12 * 1.27  # sqrt(1 + 0.80^2), a little less for 48 corners
    assert 0.50 * 1.30 < max(diagonals[False]) < 0.50 * 1.61  # sqrt(1 + 1.25^2)
    assert max(diagonals[True]) < 0.425 * 1.61


def test_a_box_holds_its_drawn_shape_and_touches_it_on_all_sides() -> None:
    gaps = []
    for seed in range(60):
        for shape in place_shapes(seeded(seed), 240, 320):
            picture = np.full((240, 320, 3), 128, dtype=np.uint8)
            draw_shape(seeded(seed), picture, shape)
            rows, columns = np.nonzero((picture != 128).any(axis=2))
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            gaps.append((drawn - shape.box_xyxy) * [1, 1, -1, -1])  # positive: the drawing ends inside the box

    assert np.min(gaps) > -1.0  # a pixel that an edge passes through is partly coloured
    assert np.max(gaps) < 1.5  # the tip of a star covers no centre of a half pixel for its last pixel
    assert abs(np.mean(gaps)) < 0.15


def covered_slowly(shape: Shape, height: int, width: int) -> NDArray[np.uint8]:
    """The plain way: for the centre of each quarter pixel, count the edges to its left; odd is inside."""
    quarters = np.zeros((height, width), dtype=np.uint8)
    for row in range(2 * height):
        for column in range(2 * width):
            x, y = column / 2 + 0.25, row / 2 + 0.25
            crossings = 0
            for outline in shape.outlines:
                for (x0, y0), (x1, y1) in zip(outline.tolist(), np.roll(outline, -1, axis=0).tolist(), strict=True):
                    crossings += (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
            quarters[row // 2, column // 2] += crossings % 2
    return quarters


@pytest.mark.parametrize("class_index", range(6), ids=[category.name for category in SCENE_CATEGORIES])
def test_coverage_is_that_of_a_plain_drawing_at_twice_the_size(class_index: int) -> None:
    drawn = (place_shapes(seeded(seed), 26, 30) for seed in range(100))
    shape = next(item for shapes in drawn for item in shapes if item.class_index == class_index)
    expected = covered_slowly(shape, 26, 30)

    quarters, left, top = coverage(shape.outlines)

    found = np.zeros_like(expected)
    found[top : top + quarters.shape[0], left : left + quarters.shape[1]] = quarters
    np.testing.assert_array_equal(found, expected)


def test_coverage_of_a_square_with_a_hole_is_its_area_in_quarters() -> None:
    square = np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 4.0], [1.0, 4.0]])
    hole = np.array([[2.0, 2.0], [2.0, 3.5], [3.0, 3.5], [3.0, 2.0]])

    quarters, left, top = coverage([square, hole])

    assert (left, top) == (1, 1)
    assert quarters.tolist() == [[4, 4, 4], [4, 0, 4], [4, 2, 4]]


def test_a_shape_stands_out_from_what_is_under_its_centre_and_a_quarter_have_an_outline() -> None:
    disc = next(item for seed in range(50) for item in place_shapes(seeded(seed), 64, 64) if item.class_index == DISC)
    xmin, ymin, xmax, ymax = disc.box_xyxy
    contrasts, outlined = [], 0
    for seed in range(400):
        picture = np.full((64, 64, 3), 128, dtype=np.uint8)
        draw_shape(seeded(seed), picture, disc)
        centre = picture[int((ymin + ymax) / 2), int((xmin + xmax) / 2)]
        contrasts.append(int(np.abs(centre.astype(int) - 128).sum()))
        whole = coverage(disc.outlines)
        inside = picture[whole[2] :, whole[1] :][: whole[0].shape[0], : whole[0].shape[1]][whole[0] == 4]
        outlined += bool((inside != centre).any())

    assert min(contrasts) > 130
    assert 70 < outlined < 130


def test_backgrounds_are_flat_cloudy_striped_or_shaded_at_a_quarter_each() -> None:
    pictures = [draw_background(seeded(seed), 48, 64) for seed in range(200)]

    flat = sum(bool((picture == picture[0, 0]).all()) for picture in pictures)

    assert 30 < flat < 70
    assert all((picture.shape, picture.dtype) == ((48, 64, 3), np.dtype(np.uint8)) for picture in pictures)


def test_the_camera_changes_the_light_and_adds_noise_to_seven_of_ten_scenes() -> None:
    grey = np.full((24, 24, 3), 128, dtype=np.uint8)

    photographs = [_photograph(seeded(seed), grey) for seed in range(400)]

    means = [float(picture.mean()) for picture in photographs]
    sigmas = [float(picture.std()) for picture in photographs if picture.std() > 0]
    assert 128 * 0.8 - 1.5 < min(means) < 105
    assert 138 < max(means) < 128 * 1.1 + 1.5
    assert 240 < len(sigmas) < 300  # 280, less those whose noise is below half a grey level everywhere
    assert 8 < max(sigmas) < 9.5
    assert 4 < np.mean(sigmas) < 5.4
