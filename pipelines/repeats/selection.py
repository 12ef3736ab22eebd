"""The JSON file that the page downloads: the accepted places of a table."""

from __future__ import annotations

from typing import Any, Final

from pipelines.errors import RayDetrError, UsageError
from pipelines.marks.marks import Mark, mark_of
from pipelines.store import NotFound, Store, StoreError, StoreOptions, Stores, without_secrets
from pipelines.strict_json import parse_object

KIND: Final = "ray-detr repeats"
VERSION: Final = 1
MOST_BYTES: Final = 256_000_000


def head_of(table: str) -> dict[str, Any]:
    """Return the identifying fields of a selection; the page adds `accepted`."""
    return {"kind": KIND, "version": VERSION, "table": table}


def read_selection(place: str, table: Store, options: StoreOptions) -> list[Mark]:
    """Return the marks of a file downloaded from a page of this table.

    Args:
        place: a path or URI.
        table: the table that the marks are for.
        options: access to the file.

    Raises:
        UsageError: the file does not exist, is of another kind, was edited, or belongs to another table.
        RayDetrError: the store refused.
    """
    data = _read(place, options)
    try:
        fields = parse_object(data)
        kind, version, made_for = fields.get("kind"), fields.get("version"), fields.get("table")
        if kind != KIND:
            raise ValueError("its field `kind` has another value")  # noqa: TRY301 - one sentence for all damage
        if version != VERSION:
            raise UsageError(
                f"{place} is of version {version}, and this release reads {VERSION}. Write the page again."
            )
        accepted = fields.get("accepted")
        if not isinstance(accepted, list):
            raise ValueError("it has no list `accepted`")  # noqa: TRY004, TRY301 - as above
        marks = [mark_of(one) for one in accepted]
    except ValueError as error:
        raise UsageError(
            f"{place} is not a file of the page that `ray-detr repeats --out` writes: {error}. Download it again."
        ) from error
    if made_for != table.uri:
        raise UsageError(
            f"{place} was made for the table {made_for}, but this is {table.uri}. Name that table, or write a page for "
            "this one."
        )
    return marks


def _read(place: str, options: StoreOptions) -> bytes:
    try:
        return Stores(options).get(place, most_bytes=MOST_BYTES).data
    except NotFound as error:
        raise UsageError(
            f"{without_secrets(place)} does not exist. Download it again from the page that --out writes."
        ) from error
    except StoreError as error:
        raise RayDetrError(f"cannot read {without_secrets(place)}: {error}") from error
