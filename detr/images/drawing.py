"""Draw detections on their picture."""

import colorsys
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detr.postprocess import Detections

FONT_SHARE = 0.026  # of the picture's shorter side: the largest letters
LEAST_FONT_SHARE = 0.008  # for labels of objects that are narrower than their label
LEAST_FONT_PIXELS = 11
SMALLEST_FONT_PIXELS = 6  # in a picture too narrow for the usual size; if this does not fit, the label is left out
LINE_SHARE = 0.005
LINE_SHARE_OF_BOX = 0.125  # at most: the outline lies inside the box and must not hide a small object
SMALL_BOX_LABELS = 4  # a box with less than this many times the area of a label counts as hidden by it
HIDDEN_SHARE = 0.25  # of such a box or of a label of a higher score; a label that would hide more is left out

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax, the maxima excluded


@dataclass(frozen=True, slots=True)
class _Label:
    text: str
    font: Font
    place: Rectangle
    colour: tuple[int, int, int]


def draw_detections(image: Tensor | Image.Image, detections: Detections) -> Image.Image:
    """Return an RGB copy of the picture with an outline per detection and its label and score, the best on top.

    Every detection is outlined: filter by score beforehand. A class has the same colour in every picture. Lines and
    letters scale with the picture and are smaller for small objects. A label is inside the picture, at the first
    position around its box where it hides no small object and no other label; without such a position it is left out.

    Args:
        image: uint8 `(3, H, W)` RGB, or a PIL image; upright, as the boxes are.
        detections: boxes in pixels of this image.

    Raises:
        ValueError: the tensor is not uint8 `(3, H, W)`.
    """
    picture = _to_picture(image)
    canvas = ImageDraw.Draw(picture)
    line = max(1, round(LINE_SHARE * min(picture.size)))
    order = detections.scores.argsort(descending=True, stable=True).tolist()
    colours = [class_colour(category_id) for category_id in detections.category_ids.tolist()]
    boxes = [_inside(box, *picture.size) for box in detections.boxes_xyxy.tolist()]
    for index in reversed(order):
        xmin, ymin, xmax, ymax = boxes[index]
        side = min(xmax - xmin, ymax - ymin)
        width = max(1, min(line, int(LINE_SHARE_OF_BOX * side)))
        # Pillow 13 would draw the outline of a box thinner than two lines outside the box
        fill = colours[index] if side <= 2 * width else None
        canvas.rectangle((xmin, ymin, xmax - 1, ymax - 1), fill, colours[index] if fill is None else None, width)

    labels: list[_Label] = []
    all_boxes, taken = np.array(boxes).reshape(-1, 4), np.empty((len(boxes), 4), np.int64)
    for index in order:
        text = f"{_printable(detections.labels[index])} {detections.scores[index].item():.2f}"
        font = _font_that_fits(text, boxes[index], picture.size)
        if font is None:
            continue
        place = _place_label(text, font, boxes[index], picture.size, all_boxes, taken[: len(labels)])
        if place is not None:
            taken[len(labels)] = place
            labels.append(_Label(text, font, place, colours[index]))
    for label in reversed(labels):
        _draw_label(canvas, label)
    return picture


def class_colour(category_id: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class: neighbouring ids are far apart in hue."""
    hue = category_id * 0.61803398875 % 1.0  # multiples of the golden ratio never repeat a hue
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.95, 0.65)[category_id % 2], (1.0, 0.85)[category_id // 2 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever has the higher contrast on the background (WCAG 2.2, relative luminance)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in _unit(background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)


def _unit(colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(value / 255 for value in colour)


def _printable(label: str) -> str:
    # the font inside Pillow 13 has ASCII letters only: accents are dropped, all else becomes a question mark
    bare = [letter for letter in unicodedata.normalize("NFKD", label) if not unicodedata.combining(letter)]
    return "".join(bare).encode("ascii", "replace").decode()


def _to_picture(image: Tensor | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8":
        raise ValueError(f"cannot draw on a {image.dtype} tensor of shape {tuple(image.shape)}: give uint8 (3, H, W).")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _inside(box: list[float], width: int, height: int) -> Rectangle:
    """Return the pixels of a box inside the picture; for a box outside, at least one pixel at the border."""
    xmin, ymin = (min(max(round(low), 0), side - 1) for low, side in zip(box[:2], (width, height), strict=True))
    xmax, ymax = (min(max(round(high), 0), side) for high, side in zip(box[2:], (width, height), strict=True))
    return xmin, ymin, max(xmax, xmin + 1), max(ymax, ymin + 1)


def _font_that_fits(text: str, box: Rectangle, picture_size: tuple[int, int]) -> Font | None:
    """Return the largest font in which the label fits the width of its box, within the limits of the picture."""
    width, height = picture_size
    usual, least = (
        max(LEAST_FONT_PIXELS, round(share * min(width, height))) for share in (FONT_SHARE, LEAST_FONT_SHARE)
    )
    for size in range(usual, SMALLEST_FONT_PIXELS - 1, -1):
        needed_width, needed_height = _label_size(text, _font(size))
        if needed_width > width or needed_height > height:
            continue
        if size <= least or needed_width <= box[2] - box[0]:
            return _font(size)
    return None


@lru_cache(maxsize=64)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _label_size(text: str, font: Font) -> tuple[int, int]:
    """Return width and height of a label with its margin; the height depends on the font only."""
    top, bottom, margin = _lines(font)
    return math.ceil(font.getlength(text)) + 2 * margin, bottom - top + 2 * margin


def _lines(font: Font) -> tuple[int, int, int]:
    """Return top and bottom of the font's letters, below the drawing point of a text, and the margin."""
    _, top, _, bottom = font.getbbox("Ag")
    return math.floor(top), math.ceil(bottom), max(1, round((bottom - top) / 6))


def _place_label(
    text: str,
    font: Font,
    box: Rectangle,
    picture_size: tuple[int, int],
    boxes: NDArray[np.int64],
    placed: NDArray[np.int64],
) -> Rectangle | None:
    """Return the first position that hides least of earlier labels and small boxes; None if it hides too much."""
    width, height = _label_size(text, font)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    small = boxes[areas < SMALL_BOX_LABELS * width * height]
    small_areas = areas[areas < SMALL_BOX_LABELS * width * height]
    best, least = None, math.inf
    for xmin, ymin in _corners(box, width, height):
        place = _shifted_inside(xmin, ymin, width, height, picture_size)
        of_boxes = _shared_pixels(place, small) / small_areas
        of_labels = _shared_pixels(place, placed) / (width * height)
        if max(of_boxes.max(initial=0), of_labels.max(initial=0)) > HIDDEN_SHARE:
            continue
        hidden = float(of_boxes.sum() + of_labels.sum())
        if hidden < least:
            best, least = place, hidden
    return best


def _corners(box: Rectangle, width: int, height: int) -> Iterator[tuple[int, int]]:
    xmin, ymin, xmax, ymax = box
    if ymin >= height:
        yield xmin, ymin - height
    yield xmin, ymin
    yield xmin, ymax
    yield xmax - width, ymin - height
    yield xmax - width, ymax
    yield xmin, ymax - height
    yield xmax, ymin
    yield xmin - width, ymin


def _shifted_inside(xmin: int, ymin: int, width: int, height: int, picture_size: tuple[int, int]) -> Rectangle:
    xmin = max(0, min(xmin, picture_size[0] - width))
    ymin = max(0, min(ymin, picture_size[1] - height))
    return xmin, ymin, xmin + width, ymin + height


def _shared_pixels(one: Rectangle, others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of pixels that a rectangle shares with each of the others, `(N, 4)`."""
    across = np.minimum(one[2], others[:, 2]) - np.maximum(one[0], others[:, 0])
    down = np.minimum(one[3], others[:, 3]) - np.maximum(one[1], others[:, 1])
    return np.maximum(across, 0) * np.maximum(down, 0)


def _draw_label(canvas: ImageDraw.ImageDraw, label: _Label) -> None:
    xmin, ymin, xmax, ymax = label.place
    top, _, margin = _lines(label.font)
    canvas.rectangle((xmin, ymin, xmax - 1, ymax - 1), fill=label.colour)
    canvas.text((xmin + margin, ymin + margin - top), label.text, fill=text_colour(label.colour), font=label.font)
