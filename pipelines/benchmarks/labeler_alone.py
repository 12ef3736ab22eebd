"""The labelling job's worker without Ray: plans a folder and labels its shards in threads of this process."""

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detr.images.decoding import MAX_PIXELS
from pipelines.labelling.labeler_spec import LabelerSpec, build_labeler
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.plan import write_plan
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from pipelines.store import StoreOptions, open_store

RUN = "bench"
SHARDS_AT_ONCE = 2  # as in an actor of the job
SHARD_IMAGES = 256
THRESHOLD = 0.05


def label_folder(lake: Path, table: Path, settings: Mapping[str, Any]) -> tuple[float, list[ShardReport]]:
    """Label every image of a folder; return the wall seconds after loading the model, and a report for each shard.

    Args:
        lake: folder of images.
        table: folder for plan and parts; existing contents are removed.
        settings: `model`, a folder; `device`, `precision` and `threads`, as for actors of the job.
    """
    shutil.rmtree(table, ignore_errors=True)
    table.mkdir()
    spec = LabelerSpec(
        table=str(table),
        run_id=RUN,
        model=settings["model"],
        model_sha256="",
        threshold=THRESHOLD,
        classes=None,
        device=settings["device"],
        precision=settings["precision"],
        threads=settings["threads"],
        max_pixels=MAX_PIXELS,
        image_options=StoreOptions(),
        table_options=StoreOptions(),
    )
    planned = list(
        write_plan(open_store(str(table)), RUN, list_objects([str(lake)]), _none_labelled, shard_images=SHARD_IMAGES)
    )
    labeler = build_labeler(spec)
    shards = [shard for segment in planned for shard in segment.shards]
    began = time.perf_counter()
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        reports = list(threads.map(labeler.label, shards))
    return time.perf_counter() - began, reports


def _none_labelled(objects: Sequence[LakeObject]) -> list[bool]:
    return [False] * len(objects)
