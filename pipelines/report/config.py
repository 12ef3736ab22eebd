"""Configuration of a report: its contents and the location of the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.options import check_options, group, option
from pipelines.store import S3, StoreOptions

_OUT = option("the page; replaced", default=Path("report.html"), metavar="FILE")
_THRESHOLD = option("smallest score shown when the page opens, a multiple of 0.01", default=0.5, metavar="SCORE")
_PICTURES = option("pictures of each kind", default=12, metavar="N", at_least=1)


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """The options of `ray-detr report --table`.

    `picture_options` are for access to pictures; None is as for the table.
    """

    table: str
    out: Path = _OUT
    run_id: str | None = option(
        "only the rows of this run (the current row of each image)", flag="--run", default=None, metavar="ID"
    )
    settings: str | None = option(
        "only rows with these settings, as in the column `settings` (all)", default=None, metavar="TEXT"
    )
    against: str | None = option(
        "compare with this run: boxes that appeared, vanished or moved (no comparison)", default=None, metavar="RUN"
    )
    annotations: str | None = option(
        "a COCO json: AP, confusion, and the worst mistakes as pictures (none)", default=None, metavar="URI"
    )
    match_classes: Literal["number", "name"] | None = option(
        "with --annotations: compare classes by number or by name (by number; refused where a class has one number in "
        "the table and another in the annotations)",
        default=None,
    )
    threshold: float = _THRESHOLD
    pictures: int = _PICTURES
    seed: int = option("random seed of the random pictures", default=0, metavar="S")
    keep_repeats: bool = option(
        "include detections that a mark of `ray-detr repeats` covers (excluded and counted)", default=False
    )
    price_per_hour: float | None = option(
        "price for an hour of all machines of a run together; adds the cost to the page",
        default=None,
        metavar="USD",
        above=0,
    )
    options: StoreOptions = group(StoreOptions, only=S3)
    picture_options: StoreOptions | None = None

    def __post_init__(self) -> None:
        check_options(self)
        _check_threshold(self.threshold)
        if self.against is not None and self.against == self.run_id:
            raise ValueError(f"against: {self.against} is the run of the report itself. Name an earlier one.")
        if self.match_classes is not None and self.annotations is None:
            raise ValueError("match_classes: needs annotations to compare with.")


@dataclass(frozen=True, slots=True)
class TrainingReportConfig:
    """The options of `ray-detr report --training`.

    `run` is the URI of the run's folder, as printed by `ray-detr train`.
    """

    run: str
    out: Path = _OUT
    threshold: float = _THRESHOLD
    pictures: int = _PICTURES
    options: StoreOptions = group(StoreOptions, only=S3)

    def __post_init__(self) -> None:
        check_options(self)
        _check_threshold(self.threshold)


def _check_threshold(threshold: float) -> None:
    """Refuse a threshold that the page's slider cannot show.

    Raises:
        ValueError: it is not a whole number of hundredths in 0 .. 0.99.
    """
    if abs(threshold * 100 - round(threshold * 100)) > 1e-6 or not 0 <= threshold < 1:
        raise ValueError(f"threshold: {threshold:g} is not one of 0, 0.01, ... 0.99.")
