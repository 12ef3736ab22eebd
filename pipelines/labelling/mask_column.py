"""The column `masks` of tables that were labelled with `--masks`: at the end, like a column kept from the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import pyarrow as pa

from pipelines.lake.lake_object import LakeObject, Listed
from pipelines.lake.listing import Listing

MASKS: Final = pa.field("masks", pa.list_(pa.field("element", pa.string(), nullable=False)))
"""`counts` of COCO's compressed run-length code for each detection, in their order; null in error rows.

The `size` of the code is the row's [height, width].
"""


def with_mask_column(listing: Listing) -> Listing:
    """Return a listing whose images have an additional kept value, which is null until they are labelled."""
    return replace(
        listing,
        streams=tuple(partial(_with_null, stream) for stream in listing.streams),
        kept_schema=pa.schema([*listing.kept_schema, MASKS]),
    )


def _with_null(stream: Callable[[str | None], Iterator[Listed]], uri: str | None) -> Iterator[Listed]:
    for item in stream(uri):
        yield replace(item, kept=(*item.kept, None)) if isinstance(item, LakeObject) else item
