"""Write the report of a table: read its rows once, fetch the pictures to show, render the page."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pipelines.clock import Clock, SystemClock
from pipelines.errors import RayDetrError, UsageError
from pipelines.evaluation.annotations import read_annotations
from pipelines.evaluation.evaluate import Evaluation
from pipelines.evaluation.explanations import explanations
from pipelines.evaluation.table_results import RowChoice
from pipelines.labelling.publish import THREADS
from pipelines.labelling.run import list_runs
from pipelines.lake.images import ImageStores
from pipelines.lake.member_files import MemberIndexes
from pipelines.report.config import ReportConfig
from pipelines.report.drift import Drift, read_earlier
from pipelines.report.examples import Examples
from pipelines.report.figures import Figures
from pipelines.report.fitting import fitted
from pipelines.report.page import Comparison, Item, Page, PictureRow, render
from pipelines.report.pictures import load_pictures
from pipelines.report.rows import Classes, table_files
from pipelines.report.run_times import RunTimes
from pipelines.report.truth import AnnotatedRows, compare_with_truth
from pipelines.store import Store, StoreError, open_store, without_secrets


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """The result of writing a report.

    Attributes:
        out: the file.
        bytes: its size.
        images: number of rows.
        settings: number of rows by settings, the most frequent first.
        pictures: number of images shown.
        unreadable: number of these that are missing, changed or unreadable.
        repeats_left_out: number of detections left out because a mark of the table covers them.
        drift: the share of boxes that appeared, vanished or moved, and
        compared: over how many images; this and the following are None without `against`.
        in_both: number of images that the report and the earlier run have, with or without an error.
        new_errors: number of these with an error in the report only.
        changed_pictures: number of these whose picture is another one; not compared.
        only_here: number of images that the earlier run does not have.
        only_before: number of images that only the earlier run has.
        AP: against the annotations; None without them, -1 if undefined.
        AP_notes: sentences that explain AP, as on the page.
    """

    out: Path
    bytes: int
    images: int
    settings: dict[str, int]
    pictures: int
    unreadable: int
    repeats_left_out: int = 0
    drift: float | None = None
    compared: int | None = None
    in_both: int | None = None
    new_errors: int | None = None
    changed_pictures: int | None = None
    only_here: int | None = None
    only_before: int | None = None
    AP: float | None = None
    AP_notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportProgress:
    """Rows that were read so far, and then pictures that were read, of how many."""

    rows: int
    pictures: int = 0
    pictures_planned: int = 0


def write_report(
    config: ReportConfig, *, clock: Clock | None = None, show: Callable[[ReportProgress], None] = lambda _progress: None
) -> ReportSummary:
    """Write one HTML page about a table and return its summary.

    Reads the table once, and the images that the page shows. Memory: one row group, some 70 bytes for each row of the
    table while the current rows are found, and the pictures of the page.

    Args:
        config: The options.
        clock: For the time on the page.
        show: Called with the progress.

    Raises:
        RayDetrError: the table is empty or damaged, or the file cannot be written.
    """
    try:
        made = _Made(config, open_store(config.table, config.options), show)
        page = made.page(clock or SystemClock())
    except StoreError as error:
        raise RayDetrError(f"cannot report on {without_secrets(config.table)}: {error}") from error
    data = render(page).encode()
    write_page(config.out, data)
    unreadable = sum(picture.source is None for picture in page.pictures.values())
    drift, evaluation = made.drift, made.evaluation
    return ReportSummary(
        out=config.out,
        bytes=len(data),
        images=page.figures.images,
        settings=page.figures.settings(),
        pictures=len(page.pictures),
        unreadable=unreadable,
        repeats_left_out=page.figures.left_out,
        drift=None if drift is None else drift.share,
        compared=None if drift is None else drift.images,
        in_both=None if drift is None else drift.in_both,
        new_errors=None if drift is None else drift.errors_here,
        changed_pictures=None if drift is None else drift.changed_pictures,
        only_here=None if drift is None else drift.only_here,
        only_before=None if drift is None else drift.only_before,
        AP=None if evaluation is None else evaluation.average_precision.AP,
        AP_notes=() if evaluation is None else tuple(explanations(evaluation)),
    )


class _Made:
    """The computation of one page."""

    def __init__(self, config: ReportConfig, table: Store, show: Callable[[ReportProgress], None]) -> None:
        self._config, self._table, self._show = config, table, show
        self.classes, self.figures, self.times = Classes(), Figures(), RunTimes()
        self.drift: Drift | None = None
        self.evaluation: Evaluation | None = None
        self._examples = Examples(threshold=config.threshold, most=config.pictures, seed=config.seed)
        annotated = None
        if config.annotations is not None:
            annotated = AnnotatedRows(read_annotations(config.annotations, options=config.options))
        if config.against is not None:
            files = table_files(table, config.against, keep_repeats=config.keep_repeats)
            earlier = read_earlier(files, self.classes, config.threshold)
            self.drift = Drift(earlier, config.threshold, config.pictures)
        shown = table_files(table, config.run_id, config.settings, keep_repeats=config.keep_repeats)
        for rows in shown.rows(self.classes, self.times):
            for part in (self.figures, self._examples, self.drift, annotated):
                if part is not None:
                    part.add(rows)
            show(ReportProgress(self.figures.images))
        if config.settings is not None and not self.figures.images:
            raise UsageError(
                f"no row of table {table.uri} has the settings {config.settings}. `ray-detr runs --table {table.uri}` "
                "lists the settings of its runs."
            )
        self._comparisons: list[Comparison] = []
        if self.drift is not None:
            self._comparisons.append(self.drift.comparison(self.classes))
        if annotated is not None:
            self.evaluation, comparison = compare_with_truth(
                config.table,
                annotated,
                self.classes,
                choice=RowChoice(run_id=config.run_id, settings=config.settings),
                match_classes=config.match_classes,
                threshold=config.threshold,
                most=config.pictures,
                options=config.options,
            )
            self._comparisons.append(comparison)

    def page(self, clock: Clock) -> Page:
        """Return the page with its pictures."""
        config = self._config
        frequent = self.figures.frequent(self.classes, config.threshold)
        galleries = [
            PictureRow(one.id, one.title, one.note, [Item(example) for example in one.examples])
            for one in self._examples.galleries(self.classes.names, frequent)
        ]
        whole = Page(
            table=without_secrets(config.table),
            run_id=config.run_id,
            figures=self.figures,
            times=self.times,
            classes=self.classes,
            threshold=config.threshold,
            galleries=galleries,
            pictures={},
            made=clock.now(),
            started=_started(self._table),
            price_per_hour=config.price_per_hour,
            comparisons=self._comparisons,
        )
        page, shown, room = fitted(whole)
        stores = ImageStores(config.picture_options or config.options, MemberIndexes(self._table))
        rows_read = self.figures.images
        pictures = load_pictures(
            shown.values(),
            stores,
            lambda done, planned: self._show(ReportProgress(rows_read, done, planned)),
            most_bytes=room,
        )
        return replace(page, pictures=dict(zip(shown, pictures, strict=True)))


def _started(table: Store) -> dict[str, datetime]:
    """Return the start time of each run; exported tables have no records."""
    return {run.run_id: run.started_at for run in list_runs(table, threads=THREADS)}


def write_page(out: Path, data: bytes) -> None:
    """Write a page atomically, replacing an earlier one.

    Raises:
        RayDetrError: it cannot be written.
    """
    unfinished = out.parent / f".ray-detr-unfinished-{secrets.token_hex(8)}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        unfinished.replace(out)
    except OSError as error:
        with suppress(OSError):  # there is nothing to remove where the folder cannot be entered
            unfinished.unlink(missing_ok=True)
        raise RayDetrError(f"cannot write the report to {out}: {error.strerror or error}.") from error
