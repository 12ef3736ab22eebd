"""The record of a training run: written once at the start, compared whenever the run is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pipelines.configurations import differences
from pipelines.errors import RayDetrError
from pipelines.store import NotFound, Store, join_uri, put_if_absent
from pipelines.strict_json import parse_object
from pipelines.training.recipe import Recipe

RECORD_VERSION: Final = 1
RECORD_KEY: Final = "run.json"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run was begun with.

    `configuration` is what decides how the weights come out, as values of JSON: every start must be given the same.
    `versions` are those of the first start, `created` is its time.
    """

    configuration: Mapping[str, Any]
    versions: Mapping[str, str]
    created: datetime


def start_record(
    store: Store, configuration: Mapping[str, object], *, versions: Mapping[str, str], now: datetime
) -> RunRecord:
    """Return the run's record: the one that is there, else a new one. Of several first starters one writes it.

    Args:
        store: The run's directory.
        configuration: What decides how the weights come out; leave out what may change from start to start, such as
            the number of workers.
        versions: Of the code and its packages; not compared.
        now: The time, UTC.

    Raises:
        RayDetrError: the run was begun with another configuration; every difference is named.
        StoreError: the store refused; nothing is begun, or the same start resumes it.
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
    """Return the run's record, None where no run was begun.

    Raises:
        RayDetrError: it is damaged, or another release's.
    """
    try:
        return _decode(store.get(RECORD_KEY).data, store)
    except NotFound:
        return None


def check_same(record: RunRecord, configuration: Mapping[str, object], store: Store) -> None:
    """Refuse another configuration than the one that a run was begun with.

    Raises:
        RayDetrError: every difference is named.
    """
    found = differences(dict(_flat(record.configuration)), dict(_flat(configuration)))
    if found:
        values = "value" if len(found) == 1 else "values"
        raise RayDetrError(
            f"run {run_name(store)} exists with another configuration ({'; '.join(found)}). Use the old {values} to "
            "resume it, or another --name."
        )


def extended_epochs(record: RunRecord, recipe: Recipe, *, run: str) -> dict[str, object]:
    """Return the epochs that a run was begun with, as part of a configuration, where the recipe extends it.

    The longer run takes the same steps as one of so many epochs from the beginning. Empty where nothing is extended.

    Args:
        record: of the run.
        recipe: that it is to go on with.
        run: its name, for the message.

    Raises:
        RayDetrError: with more epochs the steps that were taken already would have been others.
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
            "Train anew under another --name, or go on from its model with --finetune."
        )
    return {"epochs": begun}


def run_name(store: Store) -> str:
    """Return the name of the run whose directory a store is: the last part of its URI."""
    return store.uri.rstrip("/").rsplit("/", 1)[-1]


def to_json(value: Mapping[str, object]) -> bytes:
    """Return JSON that people can read. NaN and infinities, which JSON does not have, are errors."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def damaged(store: Store, key: str) -> RayDetrError:
    """Return what is raised for an object of the run that is not what was written."""
    return RayDetrError(
        f"{join_uri(store.uri, key)} is damaged: its contents have changed since it was written. Restore it, or give "
        "another --name."
    )


def _decode(data: bytes, store: Store) -> RunRecord:
    try:
        record = parse_object(data)
        version = record["record_version"]
        if version != RECORD_VERSION:
            raise RayDetrError(
                f"{join_uri(store.uri, RECORD_KEY)} is a record of version {version}, this is version "
                f"{RECORD_VERSION}. Use the release that began the run."
            )
        return RunRecord(
            dict(record["configuration"]), dict(record["versions"]), datetime.fromisoformat(record["created"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(store, RECORD_KEY) from error


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested mappings under names such as `augment.flip`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
