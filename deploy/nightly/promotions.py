"""Promotions: which model is in use, and since which slot.

Each promotion is one record, `PROMOTIONS/<slot>.json`, which is never changed. The record whose name sorts last names
the model in use, so slots of promotions are dates such as 2026-11. To go back to the model before, delete the last one.
"""

import json
from dataclasses import asdict, dataclass

import settings

from pipelines.errors import UsageError
from pipelines.store import open_store


@dataclass(frozen=True)
class Promotion:
    """A promoted model, and its figures on the frozen set, with which the next candidate is compared."""

    model: str
    figures: str


def all_promotions() -> dict[str, Promotion]:
    """Return all promotions by slot, in their order."""
    store = open_store(settings.PROMOTIONS)
    keys = [entry.key for entry in store.list() if entry.key.endswith(".json")]
    return {key.removesuffix(".json"): Promotion(**json.loads(store.get(key).data)) for key in keys}


def in_use() -> Promotion:
    """Return the newest promotion.

    Raises:
        UsageError: no model has been promoted.
    """
    promotions = all_promotions()
    if not promotions:
        raise UsageError("no model is in use. Promote the first one: python promote.py --slot 2026-11 --model MODEL")
    return promotions[max(promotions)]


def record(slot: str, promotion: Promotion) -> None:
    """Write the record of a promotion; the store refuses it if the slot has one."""
    data = json.dumps(asdict(promotion), indent=2).encode()
    open_store(settings.PROMOTIONS).put(f"{slot}.json", data, create=True)
