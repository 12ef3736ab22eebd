"""Training batches from shards, read, decoded and augmented by Ray tasks on whatever CPUs the cluster has free.

Each worker has a dataset of its own whose rows are stretches of steps; a task makes a stretch's micro-batches with the
same code as the direct ingest, in order. Ray's `streaming_split` is not used: it drops rows and keeps no order.

Memory and CPUs are dealt out so that no worker can stop another one. Half of Ray's object store is for batches, in
equal parts, one a worker (`worker_limit`). A task that finds its worker's part full keeps its CPU and waits until that
worker has used batches; but workers go in step, so that one waits for the others, whose tasks may be waiting for that
CPU: nothing would continue, without a message. Hence two bounds:

- A task makes at most half of its worker's part, so the stretch that is used and the next one fit together. It is
  reckoned from above, before any image is read: images of the largest steps x 3 bytes x the longest side squared, since
  a batch of an upright and a lying image is padded to both. (The longer side may pass the longest by rounding, to less
  than twice of it where an image is hundreds of times as long as wide; the other half has room for such a batch.)
- A worker's tasks take at most its share of the CPUs that workers leave over (`cpu_share`): at least one where as many
  are left over as there are workers, whatever the tasks of the others wait for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ExecutionResources
from ray.exceptions import RayError

from detr.training.matcher import Target
from pipelines.errors import RayDetrError
from pipelines.remote_errors import first_line
from pipelines.shards.reader import read_index
from pipelines.store import StoreError, StoreOptions, open_store
from pipelines.training.batch import SCENE_LONGEST_SHARE, Preparation, TrainBatch
from pipelines.training.ingest import train_batches
from pipelines.training.order import EpochOrder
from pipelines.training.row_groups import RowGroups

# Images of one task. More of them read fewer row groups twice and hold more decoded images in Ray's object store, since
# tasks that run ahead of their turn must wait there: about 500 MB a task at the paper's sizes.
TASK_IMAGES: Final = 256
STORE_SHARE: Final = 0.5  # of Ray's object store, for the batches of all workers together
TASK_SHARE: Final = 0.5  # of a worker's part of that, for what one task makes

_SCHEMA: Final = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("reader", pa.int64()),
        pa.field("pixels", pa.large_binary()),  # (B, height, width, 3)
        pa.field("height", pa.int64()),
        pa.field("width", pa.int64()),
        pa.field("extents", pa.list_(pa.int64())),  # (B, 2)
        pa.field("image_ids", pa.list_(pa.int64())),
        pa.field("targets", pa.list_(pa.int64())),  # how many each image has
        pa.field("labels", pa.list_(pa.int64())),
        pa.field("boxes_cxcywh", pa.list_(pa.float32())),  # (targets, 4)
        pa.field("failure", pa.string()),  # why the run must stop; null in a micro-batch
    ]
)


@dataclass(frozen=True, slots=True)
class ShardSource:
    """Where shards lie: what a task opens for itself, since stores do not travel."""

    uri: str
    options: StoreOptions

    def open(self) -> RowGroups:
        """Read the index.

        Raises:
            RayDetrError: the file does not exist, or it is damaged.
            StoreError: the store refused, or gave no answer.
        """
        store = open_store(self.uri, self.options)
        return RowGroups(store, read_index(store))


def train_batches_by_ray_data(
    source: ShardSource,
    order: EpochOrder,
    preparation: Preparation,
    *,
    epoch: int,
    readers: Sequence[int],
    workers: int = 1,
    first_step: int = 0,
    prefetch_steps: int = 2,
    task_images: int = TASK_IMAGES,
) -> Generator[list[TrainBatch], None, None]:
    """Yield what `train_batches` of the direct ingest yields, made by tasks of one CPU each anywhere in the cluster.

    A task reads every row group that one of its images is in, so row groups are read more than once: with windows of
    W row groups of n images, k images of a reader in a task cost about min(W, k) * n / k times their bytes.

    Args:
        source: Of the shards that the order was planned for.
        order: Of this epoch.
        preparation: What is done to images.
        epoch: Its number.
        readers: The virtual readers that the worker serves.
        workers: How many workers do this at the same time: they share Ray's object store.
        first_step: Where to begin; nothing before it is read.
        prefetch_steps: Steps that are fetched before they are needed.
        task_images: Images of one task, of all readers together; fewer where Ray's object store is small.

    Raises:
        RayDetrError: the store cannot be read, a shard is damaged, an image cannot be used, tasks keep dying, or Ray's
            object store is too small for one step.
    """
    cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]
    limits = ExecutionResources.for_limits(
        cpu=cpu_share(cluster.get("CPU", 0.0), _own_cpus(), workers),
        object_store_memory=worker_limit(cluster.get("object_store_memory", 0.0), workers),
    )
    most_steps = most_task_steps(order, readers, longest_side(preparation), limits.object_store_memory)
    stretches = cut_stretches(order, readers, first_step, task_images, most_steps=most_steps)
    if not stretches:
        yield from ([] for _ in range(first_step, order.steps))
        return
    rows = _rows(stretches, source, order, preparation, epoch, readers, limits, prefetch_steps)
    try:
        for step in range(first_step, order.steps):
            batches = [_to_batch(next(rows, None)) for reader in readers if step < order.steps_of(reader)]
            assert all(batch.step == step for batch in batches), "tasks came out of order"
            yield batches
    except RayError as error:
        raise RayDetrError(f"images cannot be prepared by Ray's tasks: {first_line(error)}") from error
    finally:
        rows.close()


def cut_stretches(
    order: EpochOrder, readers: Sequence[int], first_step: int, task_images: int, *, most_steps: int | None = None
) -> list[tuple[int, int]]:
    """Return (first step, end) of stretches of about `task_images` images of these readers, up to their last step.

    None has more than `most_steps` steps.
    """
    end = max((order.steps_of(reader) for reader in readers), default=0)
    images = sum(int(order.bounds[reader][-1] - order.bounds[reader][0]) for reader in readers)
    steps = max(1, math.ceil(task_images * end / max(images, 1)))  # that have so many images on average
    steps = steps if most_steps is None else min(steps, most_steps)
    return [(first, min(first + steps, end)) for first in range(first_step, end, steps)]


def worker_limit(object_store_memory: float, workers: int) -> float:
    """Return the bytes of Ray's object store that the batches of one worker may take."""
    return STORE_SHARE * object_store_memory / workers


def cpu_share(cpus: float, assigned: float, workers: int) -> int:
    """Return how many tasks of a worker may run: its share of the cluster's CPUs, less what workers are assigned."""
    return max(1, int((cpus - workers * assigned) // workers))


def _own_cpus() -> float:
    """Return how many CPUs Ray has assigned to this process; a driver has none."""
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return 0.0
    return float(context.get_assigned_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def longest_side(preparation: Preparation) -> int:
    """Return the longest side in pixels of a prepared image, rounding aside."""
    match preparation.augmentation:
        case "coco":
            return preparation.augment.longest
        case "scenes":
            return int(SCENE_LONGEST_SHARE * max(preparation.scene_sides))
        case "none":
            return preparation.size_rule.longest


def most_task_steps(order: EpochOrder, readers: Sequence[int], side: int, limit: float) -> int:
    """Return of how many steps a task's batches stay within half of `limit`, the bytes of its worker, but at least 1.

    Args:
        order: Of the epoch.
        readers: Of the worker.
        side: The longest of a prepared image, in pixels.
        limit: See `worker_limit`.

    Raises:
        RayDetrError: the batches of one step may take more than all of it.
    """
    images = sum(int(np.diff(order.bounds[reader]).max(initial=0)) for reader in readers)
    step_bytes = images * 3 * side**2
    if step_bytes > limit:
        raise RayDetrError(
            f"Ray's object store is too small for --ingest ray-data: the {images:,} images of a worker's step may take "
            f"{step_bytes / 1e6:,.1f} MB, and {limit / 1e6:,.1f} MB are a worker's part. Give Ray more (`ray start "
            "--object-store-memory`), lower --effective-batch, or use --ingest direct."
        )
    return max(1, int(TASK_SHARE * limit // max(step_bytes, 1)))


def _rows(
    stretches: Sequence[tuple[int, int]],
    source: ShardSource,
    order: EpochOrder,
    preparation: Preparation,
    epoch: int,
    readers: Sequence[int],
    limits: ExecutionResources,
    prefetch_steps: int,
) -> Generator[pa.Table, None, None]:
    """Yield tables of one row, a micro-batch each, in the order of steps and readers."""
    work = {
        "source": source, "order": order, "preparation": preparation, "epoch": epoch, "readers": tuple(readers),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.60 warns of defaults of its own
        dataset = ray.data.from_items(
            [{"first": first, "end": end} for first, end in stretches], override_num_blocks=len(stretches)
        ).map_batches(
            _make_batches,  # type: ignore[arg-type]  # Ray 2.60's annotation forgets what fn_kwargs gives
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs=work,
            num_cpus=1,
        )
    context = dataset.context  # its own copy: other pipelines of this process keep their settings
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = limits
    context.target_max_block_size = 1  # every micro-batch travels as soon as it is made
    context.enable_progress_bars = False  # of preparing: the run has its own
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # training may stop for an evaluation as long as it likes
    context.memory_usage_poll_interval_s = None
    blocks = dataset.iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_steps * len(readers)
    )
    for block in blocks:
        table = cast("pa.Table", block)
        for index in range(table.num_rows):
            yield table.slice(index, 1)


def _make_batches(
    items: pa.Table,
    source: ShardSource,
    order: EpochOrder,
    preparation: Preparation,
    epoch: int,
    readers: Sequence[int],
) -> Iterator[pa.Table]:
    """Make the micro-batches of some stretches, in a task."""
    for item in items.to_pylist():
        try:
            steps = train_batches(
                _opened(source), order, preparation, epoch=epoch, readers=readers,
                first_step=item["first"], end_step=item["end"], prefetch_steps=0,
            )  # fmt: skip
            for batches in steps:
                yield from map(_to_row, batches)
        except (RayDetrError, StoreError) as error:
            # raised here it would come back as Ray's error with a traceback in it, after several more tries
            yield pa.Table.from_pylist([{"failure": str(error)}], schema=_SCHEMA)
            return


@lru_cache(maxsize=2)
def _opened(source: ShardSource) -> RowGroups:
    """Keep the index and the footers of the shards for the tasks that come after."""
    return source.open()


def _to_row(batch: TrainBatch) -> pa.Table:
    pixels = batch.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    buffers = [None, pa.py_buffer(np.array([0, pixels.nbytes], dtype=np.int64)), pa.py_buffer(pixels)]
    row: Mapping[str, Any] = {
        "step": batch.step,
        "reader": batch.reader,
        "pixels": None,
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "extents": batch.extents.flatten().tolist(),
        "image_ids": batch.image_ids,
        "targets": [len(target.labels) for target in batch.targets],
        "labels": torch.cat([target.labels for target in batch.targets]).numpy(),
        "boxes_cxcywh": torch.cat([target.boxes_cxcywh for target in batch.targets]).flatten().numpy(),
        "failure": None,
    }
    table = pa.Table.from_pylist([row], schema=_SCHEMA)
    without_copy = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)
    return table.set_column(_SCHEMA.get_field_index("pixels"), "pixels", without_copy)


def _to_batch(table: pa.Table | None) -> TrainBatch:
    assert table is not None, "Ray Data lost rows"
    column = {name: table.column(name)[0] for name in table.column_names}
    if column["failure"].is_valid:
        raise RayDetrError(column["failure"].as_py())
    ids = tuple(column["image_ids"].as_py())
    counts = column["targets"].as_py()
    shape = (len(ids), column["height"].as_py(), column["width"].as_py(), 3)
    # copied, because Ray's object store is read-only and its place is wanted for the next batch
    pixels = np.frombuffer(column["pixels"].as_buffer(), dtype=np.uint8).reshape(shape).copy()
    labels = torch.split(torch.tensor(column["labels"].as_py(), dtype=torch.int64), counts)
    boxes = torch.split(torch.tensor(column["boxes_cxcywh"].as_py(), dtype=torch.float32).reshape(-1, 4), counts)
    return TrainBatch(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.tensor(column["extents"].as_py(), dtype=torch.int64).reshape(-1, 2),
        tuple(Target(*target) for target in zip(labels, boxes, strict=True)),
        ids,
        reader=column["reader"].as_py(),
        step=column["step"].as_py(),
    )
