"""Prepare a trained DETR for other classes: keep all weights except class-head rows of removed classes."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detr.classes import Category
from detr.model import Detr


@dataclass(frozen=True, slots=True)
class ClassTransfer:
    """The changes to the class head, by category name; the row of no-object is always kept.

    `kept` and `new` together are the new categories, in their order, without unused ids.
    """

    kept: tuple[str, ...]  # have the row of the old category of this name
    new: tuple[str, ...]  # start with random rows
    dropped: tuple[str, ...]  # old names whose rows were removed
    respelled: tuple[tuple[str, str], ...]  # (old, new) of those kept whose spelling differs


def with_categories(
    model: Detr, categories: Sequence[Category], *, seed: int = 0, dropout: float | None = None
) -> tuple[Detr, ClassTransfer]:
    """Return a copy of the network for other categories, and the changes to its class head.

    A category keeps the row of the old one of its name. If no old name is equal, it keeps the row of the only one that
    differs just in case, spaces, hyphens and underscores. All other rows are initialised as in a new DETR. Everything
    else is unchanged, including the object queries and the kind of norm.

    Args:
        model: not changed; the copy is on the same device and in the same mode.
        categories: of the new data set, in the order of the class indices; ids are any integers.
        seed: seed of the new rows, which depend on it only, on every device.
        dropout: replaces the model's; only training uses it.

    Raises:
        ValueError: there are no categories, an id or a name is duplicated, or the model has no weights (meta device).
    """
    categories = tuple(categories)
    _refuse_doubles(categories)
    config = replace(model.config, categories=categories, mask_head=False)
    if dropout is not None:
        config = replace(config, dropout=dropout)
    weight, bias = model.class_embed.weight, model.class_embed.bias
    if weight.is_meta:
        raise ValueError("the model has no weights yet (meta device); load some before its classes are changed")

    origins = match_categories(model.config.categories, categories)
    generator = torch.Generator().manual_seed(seed)
    rows, biases = _fresh_head(len(categories) + 1, weight.shape[1], generator)
    rows, biases = rows.to(weight), biases.to(bias)
    with torch.no_grad():
        for index, origin in enumerate((*origins, -1)):  # the last row is no-object's, in both
            if origin is not None:
                rows[index], biases[index] = weight[origin], bias[origin]

    with torch.device("meta"):
        network = Detr(config)
    state = {name: model.state_dict()[name].clone() for name in network.state_dict()}  # without a mask head
    state |= {"class_embed.weight": rows, "class_embed.bias": biases}
    network.load_state_dict(state, assign=True)
    return network.train(model.training), _transfer(model.config.categories, categories, origins)


def match_categories(old: Sequence[Category], new: Sequence[Category]) -> tuple[int | None, ...]:
    """Return the index of the old category whose row each new one keeps, or None; see `with_categories`.

    An unused id continues from the same id and stays unused.
    """
    by_name = {category.name: index for index, category in enumerate(old) if category.is_used}
    unused = {category.id: index for index, category in enumerate(old) if not category.is_used}
    found = [by_name.get(item.name) if item.is_used else unused.get(item.id) for item in new]
    free = [index for index in by_name.values() if index not in found]
    old_loosely = Counter(_loosely(old[index].name) for index in free)
    by_loose_name = {_loosely(old[index].name): index for index in free}
    new_loosely = Counter(
        _loosely(item.name) for item, origin in zip(new, found, strict=True) if origin is None and item.is_used
    )
    for index, item in enumerate(new):
        loose = _loosely(item.name)
        if found[index] is None and item.is_used and old_loosely[loose] == new_loosely[loose] == 1:
            found[index] = by_loose_name[loose]
    return tuple(found)


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _refuse_doubles(categories: Sequence[Category]) -> None:
    names = Counter(category.name for category in categories if category.is_used)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise ValueError(
            f"categories: {twice[0]!r} appears {names[twice[0]]} times with different ids, so detections would be "
            "ambiguous. Rename or merge them."
        )


def _fresh_head(rows: int, inputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return weight `(rows, inputs)` and bias `(rows,)` initialised as in nn.Linear, on the CPU."""
    weight, bias = torch.empty(rows, inputs), torch.empty(rows)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(inputs)
    return weight, nn.init.uniform_(bias, -bound, bound, generator=generator)


def _transfer(old: Sequence[Category], new: Sequence[Category], origins: Sequence[int | None]) -> ClassTransfer:
    pairs = [(item, origin) for item, origin in zip(new, origins, strict=True) if item.is_used]
    kept = [(old[origin].name, item.name) for item, origin in pairs if origin is not None]
    return ClassTransfer(
        kept=tuple(name for _, name in kept),
        new=tuple(item.name for item, origin in pairs if origin is None),
        dropped=tuple(item.name for index, item in enumerate(old) if item.is_used and index not in origins),
        respelled=tuple((before, after) for before, after in kept if before != after),
    )
