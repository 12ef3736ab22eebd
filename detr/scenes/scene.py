"""Labelled scenes of plain shapes, with which the embedded model is trained, measured and demonstrated.

A scene is 1 to 8 shapes of six classes on a flat, cloudy, striped or shaded background, with thin lines as clutter and
a camera's gain and noise. Lengths are in units of the picture's shorter side S, so that a seed gives similar scenes at
any size. The nominal diameter (of the circle around the unstretched shape) is at least 0.12 S: below about 12 pixels of
the network's picture a detector of this size finds almost nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from PIL import Image

from detr.classes import SCENE_CATEGORIES

MOST_SHAPES = 8
CROWDED = 5  # with more shapes, the largest are scaled by 0.85
DIAMETER = (0.12, 0.50)  # nominal, of S, log-uniform
STRETCH = 0.22  # the logarithm of the ratio of a shape's axes is uniform within +- this
MOST_OVERLAP = 0.40  # of the smaller of two boxes
PLACE_TRIES = 12
COLOUR_TRIES = 10
LEAST_CONTRAST = 130  # L1 over the three channels, of 765
OUTLINED = 0.25  # the share of shapes that have an outline of another colour
OUTLINE_WIDTH = 0.06  # of the radius
ROUND_VERTICES = 48
STAR_RATIO = 0.43  # inner to outer radius
BACKGROUND_CELLS = 160  # along the shorter side, then enlarged: 1280 x 720 takes 25 ms instead of 32 (one core)
VERTEX_STEPS = 256  # vertices are multiples of 1/256 pixel, so that rounding of a library's sine does not move an edge

# Lookup table for noise bytes: the same on every machine, and several times as fast as the distribution.
_NORMAL = np.array([round(NormalDist().inv_cdf((byte + 0.5) / 256), 4) for byte in range(256)])


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its labels: `image` uint8 `(H, W, 3)` RGB, `labels` int64 `(T,)`, `boxes_xyxy` float32 `(T, 4)`.

    A label is a class index, 0 to 5, into `SCENE_CATEGORIES`. Later objects are on top of earlier ones; a box, in
    pixels, encloses the whole shape, including hidden parts.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A positioned shape: closed outlines `(V, 2)` of (x, y) in pixels, filled by the nonzero winding rule.

    `inside` are the same outlines moved inwards by the width of a drawn outline.
    """

    class_index: int
    outlines: tuple[NDArray[np.float64], ...]
    inside: tuple[NDArray[np.float64], ...]
    box_xyxy: tuple[float, float, float, float]


def draw_scene(seed: int, height: int, width: int) -> Scene:
    """Draw the scene of this seed and size; equal arguments give equal bytes on any machine.

    Args:
        seed: 0 or more; each gives another scene.
        height: in pixels, at least 16.
        width: in pixels, at least 16.

    Raises:
        ValueError: a negative seed, or a side under 16 pixels.
    """
    if seed < 0 or min(height, width) < 16:
        raise ValueError(
            f"cannot draw scene {seed} of {height} x {width}: give a seed of at least 0 and sides of at least 16 "
            "pixels."
        )
    rng = Generator(PCG64([seed, height, width]))
    image = draw_background(rng, height, width)
    for _ in range(rng.integers(5)):
        _draw_line(rng, image)
    return _drawn(rng, image, place_shapes(rng, height, width))


def _drawn(rng: Generator, image: NDArray[np.uint8], shapes: Sequence[Shape]) -> Scene:
    """Draw shapes onto a background and apply the camera's effects."""
    for shape in shapes:
        draw_shape(rng, image, shape)
    return Scene(
        image=_photograph(rng, image),
        labels=np.array([shape.class_index for shape in shapes], dtype=np.int64),
        boxes_xyxy=np.array([shape.box_xyxy for shape in shapes], dtype=np.float32).reshape(-1, 4),
    )


def place_shapes(rng: Generator, height: int, width: int) -> list[Shape]:
    """Choose 1 to 8 shapes, from bottom to top, that are inside the picture and hide little of each other."""
    count = int(rng.integers(1, MOST_SHAPES + 1))
    shorter = min(height, width)
    most = DIAMETER[1] * (0.85 if count > CROWDED else 1.0)
    return _place(rng, height, width, count, (DIAMETER[0], most), scale=shorter)


def _place(
    rng: Generator, height: int, width: int, count: int, diameters: tuple[float, float], *, scale: float
) -> list[Shape]:
    """Choose up to `count` shapes whose nominal diameters, in units of `scale` pixels, are log-uniform."""
    least, most = diameters
    shapes: list[Shape] = []
    for _ in range(count):
        class_index = int(rng.integers(len(SCENE_CATEGORIES)))
        diameter = scale * math.exp(rng.uniform(math.log(least), math.log(most)))
        stretch, angle = math.exp(rng.uniform(-STRETCH, STRETCH)), rng.uniform(0, 2 * math.pi)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = diameter / 2 * np.array([[stretch * cos, stretch * sin], [-sin, cos]])
        unit = _unit_outlines(class_index, hole=rng.uniform(0.50, 0.68))
        outlines = [outline @ turn for outline in unit]
        inside = [_inset(outline, OUTLINE_WIDTH) @ turn for outline in unit]
        low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
        for _ in range(PLACE_TRIES):
            centre = -low + rng.random(2) * (np.array([width, height]) - (high - low))
            placed = tuple(_settle(outline + centre, height, width) for outline in outlines)
            box = (*placed[0].min(axis=0).tolist(), *placed[0].max(axis=0).tolist())
            if all(_overlap(box, other.box_xyxy) <= MOST_OVERLAP for other in shapes):
                settled = tuple(_settle(outline + centre, height, width) for outline in inside)
                shapes.append(Shape(class_index, placed, settled, box))
                break
    return shapes


def draw_shape(rng: Generator, image: NDArray[np.uint8], shape: Shape) -> None:
    """Fill the shape, in place, in a colour unlike the pixel under its centre; outline a quarter of the shapes."""
    xmin, ymin, xmax, ymax = shape.box_xyxy
    beneath = image[int((ymin + ymax) / 2), int((xmin + xmax) / 2)].astype(int)
    colour = _contrasting(rng, [beneath])
    if rng.random() < OUTLINED:
        _blend(image, shape.outlines, _contrasting(rng, [beneath, colour]))
        _blend(image, shape.inside, colour)
    else:
        _blend(image, shape.outlines, colour)


def coverage(outlines: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.uint8], int, int]:
    """Return how much of each pixel the outlines enclose, 0 to 4 quarters, with the `(left, top)` pixel of the array.

    Equivalent to drawing at twice the size (a small pixel is filled if its centre is inside) and summing blocks of 2 x
    2, but without the large drawing: each crossing of a half row is a step, of one or two columns, in a cumulative sum.
    """
    points = np.concatenate(outlines)
    left, top = np.floor(points.min(axis=0)).astype(int)
    right, bottom = np.ceil(points.max(axis=0)).astype(int)
    columns, rows = right - left, bottom - top
    begin = (points - (left, top)) * 2
    end = (np.concatenate([np.roll(outline, -1, axis=0) for outline in outlines]) - (left, top)) * 2
    middles = np.arange(2 * rows)[:, None] + 0.5
    starts_above = begin[:, 1] <= middles
    row, edge = np.nonzero(starts_above != (end[:, 1] <= middles))
    direction = np.where(starts_above[row, edge], -1, 1)
    slope = (end[edge, 0] - begin[edge, 0]) / (end[edge, 1] - begin[edge, 1])
    first = np.ceil(begin[edge, 0] + (row + 0.5 - begin[edge, 1]) * slope - 0.5).astype(int)
    stride = columns + 2
    cell, odd = row // 2 * stride + first // 2, first % 2
    steps = np.bincount(cell, direction * (2 - odd), rows * stride)
    steps += np.bincount(cell + 1, direction * odd, rows * stride)
    quarters = np.cumsum(steps.reshape(rows, stride)[:, :columns], axis=1)
    return np.abs(quarters).astype(np.uint8), int(left), int(top)


def draw_background(rng: Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a flat, cloudy, striped or shaded picture `(height, width, 3)`."""
    base = rng.integers(0, 256, 3)
    kind = int(rng.integers(4))
    if kind == 0:
        return np.tile(base.astype(np.uint8), (height, width, 1))
    scale = min(1.0, BACKGROUND_CELLS / min(height, width))
    rows, columns = round(height * scale), round(width * scale)
    cells = rng.integers(2, 25) / min(height, width)
    clouds = _noise(rng, (math.ceil(height * cells), math.ceil(width * cells), 3)) * rng.uniform(5, 30)
    picture = _enlarge(_to_bytes(base + clouds), rows, columns)
    if kind > 1:
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.arange(rows)[:, None] / min(rows, columns), np.arange(columns) / min(rows, columns)
        along = math.cos(angle) * x + math.sin(angle) * y  # 1 = S, in the direction of the stripes or the shade
        if kind == 2:
            wave = np.sin(2 * math.pi * (rng.uniform(3, 14) * along + rng.random()))
            change = rng.uniform(4, 22) * (np.sign(wave) if rng.random() < 0.5 else wave)
        else:
            change = rng.uniform(0, 40) * (along - along.min()) / (along.max() - along.min())
        picture = _to_bytes(picture + change[:, :, None])
    return _enlarge(picture, height, width)


def _unit_outlines(class_index: int, hole: float) -> list[NDArray[np.float64]]:
    """Return the class's outlines in a circle of radius 1, the outer counter-clockwise, a hole clockwise."""
    match SCENE_CATEGORIES[class_index].name:
        case "disc":
            return [_regular(ROUND_VERTICES)]
        case "square":
            return [_regular(4, start=0.125)]
        case "triangle":
            return [_regular(3)]
        case "star":
            return [_regular(10) * np.tile([1.0, STAR_RATIO], 5)[:, None]]
        case "ring":
            return [_regular(ROUND_VERTICES), hole * _regular(ROUND_VERTICES)[::-1]]
        case _:  # the cross: a corner of each arm lies on the circle, arms are a third as wide as the whole
            quarter = np.array([[3.0, -1.0], [3.0, 1.0], [1.0, 1.0]]) / math.sqrt(10)
            turns = [np.array([[1, 0], [0, 1]]), np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]])]
            return [np.concatenate([quarter @ turn for turn in [*turns, np.array([[0, -1], [1, 0]])]])]


def _regular(vertices: int, start: float = 0.0) -> NDArray[np.float64]:
    angles = [2 * math.pi * (start + index / vertices) for index in range(vertices)]
    return np.array([(math.cos(angle), math.sin(angle)) for angle in angles])


def _inset(outline: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
    """Move each edge by `distance` to its left (inwards of a counter-clockwise outline), corners included."""
    edges = np.roll(outline, -1, axis=0) - outline
    normals = np.stack([-edges[:, 1], edges[:, 0]], axis=1) / np.hypot(edges[:, 0], edges[:, 1])[:, None]
    before = np.roll(normals, 1, axis=0)
    return outline + distance * (normals + before) / (1 + (normals * before).sum(axis=1, keepdims=True))


def _settle(outline: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    return np.clip(np.round(outline * VERTEX_STEPS) / VERTEX_STEPS, 0, [width, height])


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection of two xyxy boxes as a share of the smaller one."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((item[2] - item[0]) * (item[3] - item[1]) for item in (box, other))
    return max(across, 0.0) * max(down, 0.0) / smaller


def _contrasting(rng: Generator, others: Sequence[NDArray[np.int_]]) -> NDArray[np.int_]:
    colour = rng.integers(0, 256, 3)
    for _ in range(COLOUR_TRIES - 1):
        if all(int(np.abs(colour - other).sum()) > LEAST_CONTRAST for other in others):
            break
        colour = rng.integers(0, 256, 3)
    return colour


def _blend(image: NDArray[np.uint8], outlines: Sequence[NDArray[np.float64]], colour: NDArray[np.int_]) -> None:
    quarters, left, top = coverage(outlines)
    region = image[top : top + quarters.shape[0], left : left + quarters.shape[1]]
    share = quarters[:, :, None].astype(np.int16)
    region[:] = (region * (4 - share) + colour.astype(np.int16) * share + 2) >> 2


def _draw_line(rng: Generator, image: NDArray[np.uint8]) -> None:
    """Draw a thin straight line of any colour between two points of the picture, in place."""
    height, width = image.shape[:2]
    start, end = np.round(rng.random((2, 2)) * [width, height] * VERTEX_STEPS) / VERTEX_STEPS
    thickness = rng.uniform(0.004, 0.012) * min(height, width)
    colour = rng.integers(0, 256, 3)
    if abs(end - start)[0] > abs(end - start)[1]:  # a flat line is drawn as a steep line in the transposed picture
        image, start, end = image.transpose(1, 0, 2), start[::-1], end[::-1]
    if start[1] > end[1]:
        start, end = end, start
    rows = np.arange(int(start[1]), min(int(end[1]) + 1, image.shape[0]))
    slope = (end[0] - start[0]) / max(end[1] - start[1], 1.0)
    half = thickness / 2 * math.sqrt(1 + slope * slope)
    middle = (start[0] + (rows + 0.5 - start[1]) * slope)[:, None]
    columns = np.floor(middle - half).astype(int) + np.arange(int(2 * half) + 2)
    share = np.minimum(columns + 1, middle + half) - np.maximum(columns, middle - half)
    share = np.round(256 * np.clip(share, 0, 1)).astype(int)[:, :, None]
    inside = (columns >= 0) & (columns < image.shape[1])
    at = (np.broadcast_to(rows[:, None], columns.shape)[inside], columns[inside])
    image[at] = (image[at] * (256 - share[inside]) + colour * share[inside] + 128) >> 8


def _photograph(rng: Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Apply a camera's gain and, in 7 of 10 scenes, its noise."""
    gain = np.round(np.arange(256) * rng.uniform(0.8, 1.1))
    if rng.random() >= 0.7:
        return _to_bytes(gain)[image]
    noise = np.round(_NORMAL * rng.uniform(0, 9)).astype(np.int16)
    exposed: NDArray[np.int16] = gain.astype(np.int16)[image]
    exposed += noise[_random_bytes(rng, image.shape)]
    return _to_bytes(exposed)


def _noise(rng: Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return _NORMAL[_random_bytes(rng, shape)]


def _random_bytes(rng: Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = math.prod(shape)
    words = rng.bit_generator.random_raw(-(-size // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:size].reshape(shape)


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values) if values.dtype.kind == "f" else values, 0, 255).astype(np.uint8)


def _enlarge(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    # Pillow computes bytes in integers, which is the same on every machine; floats are not
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
