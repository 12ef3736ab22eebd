"""Plans whose shards are given, for tests of what happens to one shard."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipelines.labelling.manifest import ListingPosition, Segment, write_segment
from pipelines.lake.lake_object import LakeObject
from pipelines.store import Store
from pipelines.table.schema import NO_COLUMNS


def plan(table: Store, shards: Sequence[Sequence[LakeObject]], kept: pa.Schema = NO_COLUMNS) -> None:
    """Write the shards as the first segment of the plan of run-1, unless there is one."""
    write_segment(table, "run-1", Segment(0, tuple(map(tuple, shards)), ListingPosition()), kept)
