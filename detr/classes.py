"""Category ids and names: contiguous class indices inside the model, the data set's own ids and names for users."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

UNUSED_NAME = "N/A"


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a data set: its own id (any integer) and its name; its place in the configuration is its index."""

    id: int
    name: str

    @property
    def is_used(self) -> bool:
        """False for the ids that COCO left out, whose rows the official heads have all the same."""
        return self.name != UNUSED_NAME


class UnknownClass(ValueError):
    """A class name that the model does not have."""


def category_named(name: str, categories: Sequence[Category], *, model: str) -> Category:
    """Return the category of that name.

    Args:
        name: as in the model's configuration; upper and lower case matter.
        categories: the model's.
        model: what the message calls the model.

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
COCO_CATEGORIES = _coco()

SCENE_CATEGORIES = tuple(
    Category(index, name) for index, name in enumerate(("disc", "square", "triangle", "star", "ring", "cross"), start=1)
)
"""The shapes of the drawn scenes of the embedded default."""
