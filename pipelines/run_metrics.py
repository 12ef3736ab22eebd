"""Prometheus metrics of running jobs, exported through Ray's own exporter on the node of the driver."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from pipelines.concurrently import repeating
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.progress import Progress
from pipelines.table.schema import ERROR_KINDS
from pipelines.training.run_status import TrainProgress

EXPORT_SECONDS: Final = 5.0  # Ray removes a gauge that was not set for two of its report intervals: 20 s

COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "detr_images": ("images that have their row", ()),
    "detr_errors": ("error rows", ("kind",)),
    "detr_shards": ("committed shards", ()),
    "detr_image_bytes": ("encoded bytes of images that were read", ()),
    "detr_store_requests": ("requests to the stores of the images; more than images where reading was tried again", ()),
    "detr_fetch_seconds": ("seconds of reading images, summed over threads", ()),
    "detr_decode_seconds": ("seconds of decoding images, summed over threads", ()),
    "detr_network_seconds": ("seconds that devices were computing: the rate is the number of busy devices", ()),
    "detr_actor_seconds": (
        "seconds in which actors were ready; network seconds divided by these are the busy share",
        (),
    ),
    "detr_batched_images": ("images in batches of the network", ()),
    "detr_batch_places": ("images that these batches could hold", ()),
    "detr_pixels": ("pixels of resized images", ()),
    "detr_padded_pixels": ("pixels of their batches, padding included", ()),
}
"""Counters of labelling: description and labels. Ray exports `ray_` before the name and `_total` after it."""

GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "detr_running": ("1 while a job is running and connected to Ray; no value when it has ended", ("command",)),
    "detr_images_planned": ("images of the plan so far", ()),
    "detr_images_done": ("images of the run that have a row, including those of earlier attempts", ()),
    "detr_images_per_second": ("images/s of the job", ("command",)),
    "detr_train_step": ("optimizer steps of the run", ()),
    "detr_train_loss": ("mean over the last log interval", ("part",)),
    "detr_train_data_wait_share": ("share of the time in which workers waited for images", ()),
    "detr_train_gradient_norm": ("mean over the last log interval", ()),
    "detr_train_ap": ("AP of the last evaluation", ()),
}
"""Gauges: description and labels. Ray exports `ray_` before the name."""

LOSS_PARTS: Final = ("loss", "loss_ce", "loss_bbox", "loss_giou")

Figure = tuple[str, float, Mapping[str, str]]
"""Name, value and labels of a gauge."""


class RunMetrics:
    """Exports the progress of a job. Nothing is created before Ray is connected. Can be used by several threads."""

    def __init__(self, command: str) -> None:
        """Set the command: `label` or `train`."""
        self._command = command
        self._made: dict[str, Any] = {}
        self._figures: Callable[[], Iterable[Figure]] = tuple
        self._lock = threading.RLock()
        self._has_begun = False

    @contextmanager
    def exporting(self) -> Iterator[None]:
        """Set all gauges again every few seconds while the context lasts.

        Ray removes a gauge that is not set again, and a job that waits for nodes or workers reports no progress for
        hours. An exception is reported by `threading.excepthook` and does not stop the job.
        """
        with repeating(self._export, seconds=EXPORT_SECONDS, name="metrics"):
            yield

    def shard(self, report: ShardReport) -> None:
        """Count a shard that is committed."""
        for name, value in (
            ("detr_images", report.images),
            ("detr_shards", 1),
            ("detr_image_bytes", report.size_bytes),
            ("detr_store_requests", report.requests),
            ("detr_fetch_seconds", report.fetch_seconds),
            ("detr_decode_seconds", report.decode_seconds),
            ("detr_network_seconds", report.busy_seconds),
            ("detr_actor_seconds", report.actor_seconds),
            ("detr_batched_images", report.batched),
            ("detr_batch_places", report.places),
            ("detr_pixels", report.pixels),
            ("detr_padded_pixels", report.padded_pixels),
        ):
            self._count(name, value)
        for kind, count in report.errors.items():
            self._count("detr_errors", count, {"kind": kind})

    def labelling(self, progress: Progress) -> None:
        """Export the progress of labelling."""
        self._show(partial(_labelling_figures, progress, self._command))

    def training(self, progress: TrainProgress) -> None:
        """Export the progress of training."""
        self._show(partial(_training_figures, progress, self._command))

    def _show(self, figures: Callable[[], Iterable[Figure]]) -> None:
        with self._lock:
            self._figures = figures
            self._export()

    def _export(self) -> None:
        if not self._is_connected():
            return
        with self._lock:
            if not self._has_begun and self._command == "label":
                self._begin_counters()
            self._has_begun = True
            self._set("detr_running", 1, {"command": self._command})
            for name, value, tags in self._figures():
                self._set(name, value, tags)

    def _begin_counters(self) -> None:
        """Export 0 for each counter: the first value that Prometheus sees is no increase for it."""
        for name in COUNTERS:
            for tags in [{"kind": kind} for kind in ERROR_KINDS] if name == "detr_errors" else [{}]:
                self._counter(name)._record(0, tags=tags)  # noqa: SLF001 - `inc` refuses 0

    def _is_connected(self) -> bool:
        ray = sys.modules.get("ray")  # imported where there is something to label
        is_initialized = getattr(ray, "is_initialized", None)  # absent while another thread imports it
        return is_initialized is not None and bool(is_initialized())

    def _count(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        if value > 0:  # Ray refuses 0
            with self._lock:
                self._counter(name).inc(value, tags=dict(tags or {}))

    def _counter(self, name: str) -> Any:
        from ray.util.metrics import Counter  # imported here: Ray is imported only if there is something to label

        if name not in self._made:
            description, labels = COUNTERS[name]
            self._made[name] = Counter(name, description=description, tag_keys=labels)
        return self._made[name]

    def _set(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        from ray.util.metrics import Gauge

        if name not in self._made:
            description, labels = GAUGES[name]
            self._made[name] = Gauge(name, description=description, tag_keys=labels)
        self._made[name].set(value, tags=dict(tags or {}))


def _labelling_figures(progress: Progress, command: str) -> Iterator[Figure]:
    if progress.stage != "label":
        return
    yield "detr_images_planned", progress.images_planned, {}
    yield "detr_images_done", progress.images, {}
    seconds = time.monotonic() - progress.began
    if seconds > 0:
        yield "detr_images_per_second", progress.images_this_start / seconds, {"command": command}


def _training_figures(progress: TrainProgress, command: str) -> Iterator[Figure]:
    if progress.stage not in ("train", "evaluate"):  # no worker takes steps
        return
    yield "detr_train_step", progress.step, {}
    yield "detr_images_per_second", progress.images_per_second, {"command": command}
    for part in LOSS_PARTS:
        if part in progress.figures:
            yield "detr_train_loss", progress.figures[part], {"part": part}
    for name in ("data_wait_share", "gradient_norm"):
        if name in progress.figures:
            yield f"detr_train_{name}", progress.figures[name], {}
    if progress.AP is not None:
        yield "detr_train_ap", progress.AP, {}
