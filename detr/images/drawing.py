"""Detections drawn on their picture, to be looked at."""

import colorsys
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detr.postprocess import Detections

LEAST_FONT_PIXELS = 11
SMALLEST_FONT_PIXELS = 6  # in a picture too narrow for the usual size; narrower still, and the label is left out
FONT_SHARE = 0.026  # of the picture's shorter side
LINE_SHARE = 0.005

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

    Every detection is drawn: choose by score beforehand. A class has the same colour in every picture. Lines and
    letters grow with the picture, and labels stay inside it, off each other where there is room.

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
        # of a box thinner than two lines Pillow 13 would draw the outline past its sides
        fill = colours[index] if min(xmax - xmin, ymax - ymin) <= 2 * line else None
        canvas.rectangle((xmin, ymin, xmax - 1, ymax - 1), fill, colours[index] if fill is None else None, line)

    labels: list[_Label] = []
    for index in order:
        text = f"{_printable(detections.labels[index])} {detections.scores[index].item():.2f}"
        font = _font_that_fits(text, *picture.size)
        if font is not None:
            place = _place_label(text, font, boxes[index], picture.size, [label.place for label in labels])
            labels.append(_Label(text, font, place, colours[index]))
    for label in reversed(labels):
        _draw_label(canvas, label)
    return picture


def class_colour(category_id: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class: neighbouring ids are far apart in hue."""
    hue = category_id * 0.61803398875 % 1.0  # the golden ratio never comes back to a hue
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
    """The pixels of a box, cut to the picture; at least one, at the border, of a box that lies outside."""
    xmin, ymin = (min(max(round(low), 0), side - 1) for low, side in zip(box[:2], (width, height), strict=True))
    xmax, ymax = (min(max(round(high), 0), side) for high, side in zip(box[2:], (width, height), strict=True))
    return xmin, ymin, max(xmax, xmin + 1), max(ymax, ymin + 1)


def _font_that_fits(text: str, width: int, height: int) -> Font | None:
    usual = max(LEAST_FONT_PIXELS, round(FONT_SHARE * min(width, height)))
    for size in range(usual, SMALLEST_FONT_PIXELS - 1, -1):
        needed_width, needed_height = _label_size(text, _font(size))
        if needed_width <= width and needed_height <= height:
            return _font(size)
    return None


@lru_cache(maxsize=64)
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _label_size(text: str, font: Font) -> tuple[int, int]:
    """Width and height of a label: the text with its margin; the height is the font's, whatever the letters."""
    top, bottom, margin = _lines(font)
    return math.ceil(font.getlength(text)) + 2 * margin, bottom - top + 2 * margin


def _lines(font: Font) -> tuple[int, int, int]:
    """Where the tallest letter begins and the lowest ends, below the point that a text is drawn at, and the margin."""
    _, top, _, bottom = font.getbbox("Ag")
    return math.floor(top), math.ceil(bottom), max(1, round((bottom - top) / 6))


def _place_label(
    text: str,
    font: Font,
    box: Rectangle,
    picture_size: tuple[int, int],
    placed: list[Rectangle],
) -> Rectangle:
    """Above the box, else inside, below or at its right end: the first place that hides least of the labels so far."""
    width, height = _label_size(text, font)
    corners = _corners(box, width, height)
    places = [_shifted_inside(xmin, ymin, width, height, picture_size) for xmin, ymin in corners]
    return min(places, key=lambda place: sum(_shared_pixels(place, other) for other in placed))


def _corners(box: Rectangle, width: int, height: int) -> Iterator[tuple[int, int]]:
    xmin, ymin, xmax, ymax = box
    if ymin >= height:
        yield xmin, ymin - height
    yield xmin, ymin
    yield xmin, ymax
    yield xmax - width, ymin - height
    yield xmax - width, ymax
    yield xmin, ymax - height


def _shifted_inside(xmin: int, ymin: int, width: int, height: int, picture_size: tuple[int, int]) -> Rectangle:
    xmin = max(0, min(xmin, picture_size[0] - width))
    ymin = max(0, min(ymin, picture_size[1] - height))
    return xmin, ymin, xmin + width, ymin + height


def _shared_pixels(one: Rectangle, other: Rectangle) -> int:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def _draw_label(canvas: ImageDraw.ImageDraw, label: _Label) -> None:
    xmin, ymin, xmax, ymax = label.place
    top, _, margin = _lines(label.font)
    canvas.rectangle((xmin, ymin, xmax - 1, ymax - 1), fill=label.colour)
    canvas.text((xmin + margin, ymin + margin - top), label.text, fill=text_colour(label.colour), font=label.font)
