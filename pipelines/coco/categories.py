"""The categories of a COCO json that are classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from detr.classes import UNUSED_NAME, Category
from pipelines.coco.values import MOST_INT32, shown, whole
from pipelines.errors import UsageError


def read_categories(entries: object, used: Collection[int], name: str) -> tuple[tuple[Category, ...], list[str]]:
    """Return the categories, and a sentence for each that is left out.

    Categories without annotations whose name is empty, N/A or a duplicate are left out: exporters declare such roots.

    Args:
        entries: the json's field.
        used: ids that annotations have.
        name: name of the json in error messages.

    Raises:
        UsageError: the list is empty, or a category has no usable id, the id of another one, or no name.
    """
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"annotations {name}: there are no categories, so this is not a COCO instances file.")
    categories: list[Category] = []
    for position, entry in enumerate(entries):
        category_id = whole(entry.get("id"), MOST_INT32) if isinstance(entry, dict) else None
        if category_id is None or not isinstance(entry.get("name"), str):
            raise UsageError(
                f"annotations {name}: categories[{position}] needs a whole number below 2**31 as id, and a name."
            )
        categories.append(Category(category_id, entry["name"]))
    ids = [category.id for category in categories]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise UsageError(
            f"annotations {name}: the category id {twice[0]} is declared twice. Give each category a unique id."
        )
    names = Counter(category.name for category in categories)
    kept: list[Category] = []
    left_out: list[str] = []
    for category in categories:
        is_superfluous = not has_name(category) or names[category.name] > 1
        if is_superfluous and category.id not in used and len(categories) > len(left_out) + 1:
            names[category.name] -= 1
            left_out.append(f"category {category.id}: {shown(category.name)}, which no annotation uses")
        else:
            kept.append(category)
    return tuple(kept), left_out


def has_name(category: Category) -> bool:
    """Return whether a name identifies a class: it is not empty, and not the name of unused rows in models."""
    return category.name.strip() not in ("", UNUSED_NAME)
