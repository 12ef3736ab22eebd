"""Prometheus metrics of running jobs, exported through Ray's own exporter on the node of the driver."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.progress import Progress

COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "detr_images": ("images that have their row", ()),
    "detr_errors": ("error rows", ("kind",)),
    "detr_shards": ("committed shards", ()),
    "detr_image_bytes": ("encoded bytes of images that were read", ()),
    "detr_store_requests": ("requests to the stores of the images; more than images where reading was tried again", ()),
    "detr_fetch_seconds": ("seconds of reading images, summed over threads", ()),
    "detr_decode_seconds": ("seconds of decoding images, summed over threads", ()),
    "detr_network_seconds": ("seconds that networks were computing: the rate is the number of busy devices", ()),
    "detr_batched_images": ("images in batches of the network", ()),
    "detr_batch_places": ("images that these batches could hold", ()),
    "detr_pixels": ("pixels of resized images", ()),
    "detr_padded_pixels": ("pixels of their batches, padding included", ()),
}
"""Counters of labelling: description and labels. Ray exports `ray_` before the name and `_total` after it."""

GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "detr_running": ("1 while a job is running; no value when it has ended", ("command",)),
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


class RunMetrics:
    """Exports the progress of a job. Nothing is created before the first call, when Ray is connected."""

    def __init__(self, command: str) -> None:
        """Set the command: `label` or `train`."""
        self._command = command
        self._made: dict[str, Any] = {}

    def shard(self, report: ShardReport) -> None:
        """Count a shard that is committed."""
        for name, value in (
            ("detr_images", report.images),
            ("detr_shards", 1),
            ("detr_image_bytes", report.size_bytes),
            ("detr_store_requests", report.requests),
            ("detr_fetch_seconds", report.fetch_seconds),
            ("detr_decode_seconds", report.decode_seconds),
            ("detr_network_seconds", report.detect_seconds),
            ("detr_batched_images", report.batched),
            ("detr_batch_places", report.places),
            ("detr_pixels", report.pixels),
            ("detr_padded_pixels", report.padded_pixels),
        ):
            self._count(name, value)
        for kind, count in report.errors.items():
            self._count("detr_errors", count, {"kind": kind})

    def labelling(self, progress: Progress, now: float) -> None:
        """Export the progress of labelling; `now` is `time.monotonic()`."""
        if not self._is_connected():
            return
        self._set("detr_running", 1, {"command": self._command})  # even while it waits for nodes
        if progress.stage != "label":
            return
        self._set("detr_images_planned", progress.images_planned)
        self._set("detr_images_done", progress.images)
        if now > progress.began:
            rate = progress.images_this_start / (now - progress.began)
            self._set("detr_images_per_second", rate, {"command": self._command})

    def training(self, step: int, images_per_second: float, figures: Mapping[str, float], ap: float | None) -> None:
        """Export the progress of training.

        Args:
            step: optimizer steps of the run.
            images_per_second: of all workers.
            figures: the last line of the log, empty before the first.
            ap: of the last evaluation.
        """
        self._set("detr_running", 1, {"command": self._command})
        self._set("detr_train_step", step)
        self._set("detr_images_per_second", images_per_second, {"command": self._command})
        for part in LOSS_PARTS:
            if part in figures:
                self._set("detr_train_loss", figures[part], {"part": part})
        for name in ("data_wait_share", "gradient_norm"):
            if name in figures:
                self._set(f"detr_train_{name}", figures[name])
        if ap is not None:
            self._set("detr_train_ap", ap)

    def _is_connected(self) -> bool:
        ray = sys.modules.get("ray")  # imported where there is something to label
        return ray is not None and bool(ray.is_initialized())

    def _count(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        from ray.util.metrics import Counter  # imported here: Ray is imported only if there is something to label

        if value > 0:  # Ray refuses 0
            if name not in self._made:
                description, labels = COUNTERS[name]
                self._made[name] = Counter(name, description=description, tag_keys=labels)
            self._made[name].inc(value, tags=dict(tags or {}))

    def _set(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        from ray.util.metrics import Gauge

        if name not in self._made:
            description, labels = GAUGES[name]
            self._made[name] = Gauge(name, description=description, tag_keys=labels)
        self._made[name].set(value, tags=dict(tags or {}))
