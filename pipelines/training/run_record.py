"""The record of a training run: written once when it begins, compared when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pipelines.configurations import differences
from pipelines.errors import RayDetrError
from pipelines.store import NotFound, Store, join_uri, put_if_absent
from pipelines.strict_json import Time, parse_object, record_of
from pipelines.training.recipe import Recipe

RECORD_VERSION: Final = 1
RECORD_KEY: Final = "run.json"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of a run.

    `configuration` has the options that determine the weights, as JSON values; resuming needs the same. `versions` and
    `created` are the versions and the time of the first attempt.
    """

    configuration: Mapping[str, Any]
    versions: Mapping[str, str]
    created: Time


def start_record(
    store: Store, configuration: Mapping[str, object], *, versions: Mapping[str, str], now: datetime
) -> RunRecord:
    """Return the existing record of the run, or write a new one. If several processes begin the run, one writes it.

    Args:
        store: The run's directory.
        configuration: The options that determine the weights, without those that may change when the run is resumed,
            such as the number of workers.
        versions: Versions of this package and its dependencies; not compared.
        now: The time, UTC.

    Raises:
        RayDetrError: the run has another configuration; the message names every difference.
        StoreError: the store refused. Either no run is begun, or the same command resumes it.
    """
    written = put_if_absent(
        store,
        RECORD_KEY,
        to_json(
            {
                "record_version": RECORD_VERSION,
                "created": now.isoformat(),
                "configuration": dict(configuration),
                "versions": dict(versions),
            }
        ),
    )
    record = _decode(written, store)
    check_same(record, configuration, store)
    return record


def read_record(store: Store) -> RunRecord | None:
    """Return the record of the run, or None if no run was begun.

    Raises:
        RayDetrError: the record is damaged, or of another release.
    """
    try:
        return _decode(store.get(RECORD_KEY).data, store)
    except NotFound:
        return None


def check_same(record: RunRecord, configuration: Mapping[str, object], store: Store) -> None:
    """Check that a configuration is that of the run's record.

    Raises:
        RayDetrError: it is not; the message names every difference.
    """
    found = differences(dict(_flat(record.configuration)), dict(_flat(configuration)))
    if found:
        values = "value" if len(found) == 1 else "values"
        raise RayDetrError(
            f"run {run_name(store)} exists with another configuration ({'; '.join(found)}). Use the old {values} to "
            "resume it, or another --name."
        )


def extended_epochs(record: RunRecord, recipe: Recipe, *, run: str) -> dict[str, object]:
    """Return the epochs of the run's record, as part of a configuration, if the recipe has more epochs; else nothing.

    The extended run takes the same steps as a run with so many epochs from the beginning.

    Args:
        record: the record of the run.
        recipe: the recipe to continue with.
        run: name of the run, for the message.

    Raises:
        RayDetrError: with more epochs, the steps so far would have been different.
    """
    begun = record.configuration.get("epochs")
    if not isinstance(begun, int) or recipe.epochs <= begun:
        return {}
    reason = None
    if recipe.schedule != "step":
        reason = f"with --schedule {recipe.schedule} the learning rates of all epochs depend on how many there are"
    elif len(recipe.scale_phases) > 1:
        reason = "its picture sizes (--scales) change at shares of the run"
    if reason is not None:
        raise RayDetrError(
            f"run {run} was begun with --epochs {begun} and cannot be extended to {recipe.epochs}: {reason}. "
            "Train again under another --name, or continue from its model with --finetune."
        )
    return {"epochs": begun}


def run_name(store: Store) -> str:
    """Return the name of the run in a directory: the last part of its URI."""
    return store.uri.rstrip("/").rsplit("/", 1)[-1]


def to_json(value: Mapping[str, object]) -> bytes:
    """Return indented JSON. Raises ValueError for NaN and infinities."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def damaged(store: Store, key: str) -> RayDetrError:
    """Return the error for an object of the run that has changed since it was written."""
    return RayDetrError(
        f"{join_uri(store.uri, key)} is damaged: its contents have changed since it was written. Restore it, or give "
        "another --name."
    )


def _decode(data: bytes, store: Store) -> RunRecord:
    try:
        record = parse_object(data)
        version = record.pop("record_version")
        if version != RECORD_VERSION:
            raise RayDetrError(
                f"{join_uri(store.uri, RECORD_KEY)} is a record of version {version}, and this release reads version "
                f"{RECORD_VERSION}. Use the release that began the run."
            )
        return record_of(RunRecord, record)
    except (KeyError, ValueError) as error:
        raise damaged(store, RECORD_KEY) from error


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested mappings under names such as `augment.flip`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
