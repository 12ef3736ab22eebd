"""Watches a run that another process works on, through its table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from pipelines.labelling.manifest import PlannedSegment, read_manifest
from pipelines.labelling.progress import Progress
from pipelines.labelling.publish import read_done
from pipelines.labelling.run import find_unfinished, read_end
from pipelines.store import Store

POLL_SECONDS: Final = 5.0  # each poll lists the run twice, and reads its plan while that is being written


def watch_run(table: Store, *, sleep: Callable[[float], object]) -> Iterator[Progress]:
    """Yield the progress of the table's unfinished run every few seconds, until the run has ended.

    Images count when their shard is committed. `images_this_start` counts from the first poll.

    Args:
        table: The table of the run.
        sleep: Waits between two polls.

    Raises:
        RayDetrError: a record is damaged.
        StoreError: the store refused.
    """
    run = find_unfinished(table)
    if run is None:
        return
    began = time.monotonic()
    first: int | None = None
    planned: list[PlannedSegment] = []
    while read_end(table, run.run_id) is None:
        if not planned or planned[-1].ending is None:  # the plan still grows
            planned = list(read_manifest(table, run.run_id))
        segments = [segment for segment in planned if segment.ending is None]
        images = read_done(table, run.run_id, run.layout).count_images(segments)
        first = images if first is None else first
        yield Progress(
            "label",
            images=images,
            images_this_start=images - first,
            images_planned=sum(segment.images for segment in segments),
            is_planned=len(planned) > len(segments),
            began=began,
        )
        sleep(POLL_SECONDS)
