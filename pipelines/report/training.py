"""Write the report of a training run: its logged figures, and validation pictures with detections of its model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipelines.clock import Clock, SystemClock
from pipelines.errors import RayDetrError, UsageError
from pipelines.report.config import TrainingReportConfig
from pipelines.report.curves import MOST_POINTS, Chart, Points, drawing
from pipelines.report.page import duration, render_page
from pipelines.report.report import write_page
from pipelines.report.validation_pictures import ValidationPictures, predict_pictures
from pipelines.store import StoreError, join_uri, open_store, split_uri, without_secrets
from pipelines.training.checkpoint_index import Manifest, SavedCheckpoint, read_manifest
from pipelines.training.logged_figures import LoggedFigures, WorkerStart, read_logged
from pipelines.training.run_record import RunRecord, read_record

FIGURES: Final = ("AP", "AP50", "AP75")
_PLACES: Final = ("train", "val", "finetune", "network", "backbone_weights", "train_index", "val_index")


@dataclass(frozen=True, slots=True)
class TrainingReportSummary:
    """The result of writing a report.

    Attributes:
        out: the file.
        bytes: its size.
        epochs: that are done.
        steps: that are done.
        pictures: validation pictures that it shows.
        problem: why it shows none, or None.
        AP: of the best evaluation; None without one.
    """

    out: Path
    bytes: int
    epochs: int
    steps: int
    pictures: int
    problem: str | None
    AP: float | None


def write_training_report(
    config: TrainingReportConfig, *, clock: Clock | None = None, say: Callable[[str], None] = lambda _stage: None
) -> TrainingReportSummary:
    """Write one HTML page about a training run, finished or not, from its stored files, without evaluating again.

    The model of the best checkpoint, or of the newest if none was evaluated, detects objects in a few images of the
    validation shards, on the CPU. If that is not possible, the page says why.

    Args:
        config: What to write.
        clock: Tells when the page was made.
        say: Called with each stage.

    Raises:
        RayDetrError: there is no such run, it is damaged, or the file cannot be written.
    """
    uri = join_uri(*split_uri(config.run))
    try:
        store = open_store(uri, config.options)
        say("reading the log")
        record, manifest = read_record(store), read_manifest(store)
        if record is None or manifest is None or manifest.latest is None:
            raise UsageError(
                f"there is no training run at {without_secrets(uri)}. Give the folder of one run: --storage and --name "
                "of `ray-detr train`, joined by a slash."
            )
        logged = read_logged(store)
    except StoreError as error:
        raise RayDetrError(f"cannot report on {without_secrets(uri)}: {error}") from error
    chosen = manifest.best or manifest.latest
    say("detecting in validation images")
    shown, problem = _validation_pictures(config, uri, record, chosen)
    values = page_values(without_secrets(uri), record, manifest, logged, config.threshold, shown, problem)
    html = render_page("training.html.j2", "Training report", (clock or SystemClock()).now(), values)
    data = html.encode()
    write_page(config.out, data)
    return TrainingReportSummary(
        out=config.out,
        bytes=len(data),
        epochs=manifest.latest.epoch,
        steps=manifest.latest.step,
        pictures=0 if shown is None else len(shown.pictures),
        problem=problem,
        AP=_measured(chosen).get("AP"),
    )


def page_values(
    run: str,
    record: RunRecord,
    manifest: Manifest,
    logged: LoggedFigures,
    threshold: float,
    shown: ValidationPictures | None,
    problem: str | None,
) -> dict[str, Any]:
    """Return the values for the template; see `write_training_report`."""
    assert manifest.latest is not None
    chosen = manifest.best or manifest.latest
    restarts = [float(start.first_step) for start in logged.starts[1:]]
    losses = [one for chart in _losses(logged, restarts) if (one := drawing(chart)) is not None]
    speed = [one for chart in _speed(logged, restarts) if (one := drawing(chart)) is not None]
    classes = [] if shown is None else list(shown.classes)
    galleries = []
    if shown is not None:
        items = [
            {"picture": number, "boxes": boxes, "note": "", **({"more": more} if more else {})}
            for number, (boxes, more) in enumerate(zip(shown.boxes, shown.more, strict=True))
        ]
        galleries = [{"id": "validation", "items": items}]
    return {
        "run": run,
        "threshold": threshold,
        "classes": classes,
        "totals": _totals(record, manifest, logged),
        "has_val": record.configuration.get("val") is not None,
        "precision": drawing(_precision(logged)),
        "result": f"The result is checkpoint {chosen.name}, after {_times(chosen.epoch, 'epoch')}.",
        "classes_ap": _classes(chosen),
        "losses": losses,
        "most_lines": math.ceil(len(logged.lines) / MOST_POINTS),
        "is_restarted": bool(restarts),
        "speed": speed,
        "starts": [_start(one) for one in logged.starts],
        "pictures": 0 if shown is None else len(shown.pictures),
        "images": 0 if shown is None else shown.images,
        "limits": "" if shown is None else shown.limits,
        "val": record.configuration.get("val"),
        "checkpoint": chosen.name,
        "problem": problem,
        "created": record.created.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "settings": _settings(record),
        "data": {
            "classes": classes,
            "order": [],
            "threshold": threshold,
            "figures": None,
            "pictures": [] if shown is None else [asdict(one) for one in shown.pictures],
            "galleries": galleries,
        },
    }


def _validation_pictures(
    config: TrainingReportConfig, run: str, record: RunRecord, chosen: SavedCheckpoint
) -> tuple[ValidationPictures | None, str | None]:
    """Return the pictures, or the reason for their absence."""
    val = record.configuration.get("val")
    if val is None:
        return None, "The run was started without --val, so there are no validation images to show."
    try:
        shown = predict_pictures(
            f"{run}/checkpoints/{chosen.name}",
            val,
            index_sha256=record.configuration.get("val_index"),
            most=config.pictures,
            options=config.options,
        )
    except (RayDetrError, StoreError, FloatingPointError) as error:
        return None, f"Validation images cannot be shown: {without_secrets(str(error))}"
    return (shown, None) if shown.pictures else (None, f"{val} has no images.")


def _totals(record: RunRecord, manifest: Manifest, logged: LoggedFigures) -> list[tuple[str, str]]:
    latest = manifest.latest
    assert latest is not None
    best = None if manifest.best is None else _measured(manifest.best).get("AP")
    epochs = max(latest.epoch, int(record.configuration.get("epochs", 0)))
    rate, waiting = logged.mean_rates
    totals = [
        ("state", "finished" if manifest.finished else "not finished"),
        ("best AP", "none" if best is None else f"{best:.3f}"),
        ("epochs", f"{latest.epoch:,}" if manifest.finished else f"{latest.epoch:,} of {epochs:,}"),
        ("steps", f"{latest.step:,}"),
        ("waiting for data", "none" if waiting is None else f"{100 * waiting:.3g} %"),
        ("worker restarts", f"{_restarts(logged.starts):,}"),
    ]
    if rate is not None:
        images = sum(logged.steps) * int(record.configuration.get("effective_batch", 1))
        totals[4:4] = [("time in steps", duration(images / rate)), ("images/s", f"{rate:,.3g}")]
    memory = [line["gpu_memory_gib"] for line in logged.lines if "gpu_memory_gib" in line]
    return [*totals, ("GPU memory", f"{max(memory):.1f} GiB")] if memory else totals


def _restarts(starts: Sequence[WorkerStart]) -> int:
    """Return the number of restarts of workers within one execution of the command."""
    return len(starts) - len({start.command for start in starts})


def _precision(logged: LoggedFigures) -> Chart:
    def points(name: str) -> Points:
        return [(float(one.epoch), one.figures.get(name, math.nan)) for one in logged.evaluations]

    return Chart("precision", "AP over epochs", "epoch", [(name, points(name)) for name in FIGURES])


def _losses(logged: LoggedFigures, restarts: Sequence[float]) -> Iterable[Chart]:
    parts = [
        ("class (cross-entropy)", _points(logged, "loss_ce")),
        ("box (L1)", _points(logged, "loss_bbox")),
        ("box (GIoU)", _points(logged, "loss_giou")),
    ]
    rates = sorted({name for line in logged.lines for name in line if name.startswith("lr_")}, key=_rate_order)[:3]
    named = [(name.removeprefix("lr_"), _points(logged, name)) for name in rates]
    norm = [("gradient norm", _points(logged, "gradient_norm"))]
    yield Chart("loss", "Loss", "step", [("total", _points(logged, "loss"))], marks=restarts)
    yield Chart("parts", "Parts of the loss", "step", parts, marks=restarts)
    yield Chart("rates", "Learning rates (logarithmic)", "step", named, is_log=True, marks=restarts)
    yield Chart("norm", "Norm of the gradients, before clipping", "step", norm, marks=restarts)


def _rate_order(name: str) -> tuple[bool, str]:
    return name != "lr_other", name


def _speed(logged: LoggedFigures, restarts: Sequence[float]) -> Iterable[Chart]:
    rate = [("all workers", _points(logged, "images_per_second"))]
    waits = [("waiting for data", _points(logged, "data_wait_share"))]
    yield Chart("speed", "Images per second", "step", rate, marks=restarts)
    yield Chart("waits", "Share of the time that workers wait for data", "step", waits, is_share=True, marks=restarts)


def _points(logged: LoggedFigures, name: str) -> Points:
    return [(line["step"], line.get(name, math.nan)) for line in logged.lines]


def _measured(saved: SavedCheckpoint) -> Mapping[str, Any]:
    return saved.metrics or {}


def _classes(saved: SavedCheckpoint) -> list[dict[str, str]]:
    """Return AP of each class, the most annotated first."""
    rows = sorted(_measured(saved).get("classes", ()), key=lambda one: (-one["annotations"], one["name"]))
    return [
        {
            "name": one["name"],
            "AP": "none" if one["AP"] is None or one["AP"] < 0 else f"{one['AP']:.3f}",
            "annotations": f"{one['annotations']:,}",
        }
        for one in rows
    ]


def _start(start: WorkerStart) -> dict[str, Any]:
    if start.first_time is None or start.last_time is None:
        times = "none"
    else:
        first, last = (datetime.fromisoformat(time) for time in (start.first_time, start.last_time))
        times = f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S}"
    return {
        "command": start.command,
        "first_step": start.first_step,
        "last_step": start.last_step,
        "times": times,
    }


def _settings(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    def shown(value: object) -> str:
        return value if isinstance(value, str) else "none" if value is None else json.dumps(value)

    values = record.configuration
    places = [(name, shown(values[name])) for name in _PLACES if values.get(name) is not None]
    recipe = [(name, shown(value)) for name, value in sorted(values.items()) if name not in _PLACES]
    return [("recipe", recipe), ("data and model", places), ("versions", sorted(record.versions.items()))]


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
