"""Category ids and names: contiguous class indices inside the model, the data set's own ids and names for users."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

UNUSED_NAME = "N/A"


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a data set: the data set's id (any integer) and its name. The index is the position in the list."""

    id: int
    name: str

    @property
    def is_used(self) -> bool:
        """Whether the data set uses the id. COCO leaves out some ids that still have rows in the official heads."""
        return self.name != UNUSED_NAME


class UnknownClass(ValueError):
    """A class name that the model does not have."""


def category_named(name: str, categories: Sequence[Category], *, model: str) -> Category:
    """Return the category of that name.

    Args:
        name: as in the model's configuration; case-sensitive.
        categories: the model's.
        model: name of the model in the error message.

    Raises:
        UnknownClass: no category has the name; the message suggests the nearest.
    """
    by_name = {category.name: category for category in categories if category.is_used}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(list(by_name)[:8])} ..."
    raise UnknownClass(f"classes: {name!r} is not a class of {model}. {hint}")


def _coco() -> tuple[Category, ...]:
    return tuple(Category(index, name) for index, name in enumerate(_COCO_NAMES.split(", ")))


# the raw COCO ids 0..90 are the class indices of the official checkpoints: 91 rows, of which 80 are used
_COCO_NAMES = (
    "N/A, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, N/A, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, N/A, "
    "backpack, umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, fork, knife, spoon, bowl, "
    "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "N/A, dining table, N/A, N/A, toilet, N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, N/A, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
# of COCO's panoptic annotations; the rest of the 250 rows of the official class heads is unused
_STUFF = (
    "92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood, 119 "
    "flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform, 145 "
    "playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, "
    "166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 "
    "window-blind, 181 window-other, 184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, "
    "188 cabinet-merged, 189 table-merged, 190 floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 "
    "grass-merged, 194 dirt-merged, 195 paper-merged, 196 food-other-merged, 197 building-other-merged, 198 rock- "
    "merged, 199 wall-other-merged, 200 rug-merged"
)


def _coco_panoptic() -> tuple[Category, ...]:
    stuff = {int(number): name for number, name in (entry.split(" ", 1) for entry in _STUFF.split(", "))}
    things = dict(enumerate(_COCO_NAMES.split(", ")))
    return tuple(Category(index, (things | stuff).get(index, UNUSED_NAME)) for index in range(250))


COCO_CATEGORIES = _coco()
COCO_PANOPTIC_CATEGORIES = _coco_panoptic()
"""80 things and 53 kinds of stuff; the ids are the class indices of the official panoptic checkpoints."""

SCENE_CATEGORIES = tuple(
    Category(index, name) for index, name in enumerate(("disc", "square", "triangle", "star", "ring", "cross"), start=1)
)
"""The shapes of the drawn scenes of the embedded default."""
