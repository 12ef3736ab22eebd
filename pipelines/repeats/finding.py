"""Find places where a class repeats: SQL counts over the current rows, `grouping` chooses the places."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from pipelines.errors import UsageError
from pipelines.exports.views import BOX_COLUMNS, add_folders, add_matcher, opened_views
from pipelines.marks.marks import SHARE_DECIMALS, Mark
from pipelines.marks.matching import Matcher
from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.grouping import Cells, places_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

UNITS: Final = 10**SHARE_DECIMALS  # of a picture's side
SLACK: Final = 0.8  # of the images that a place must have: boxes of a cell differ a little from their mean
MEMORY: Final = "1GB"  # of DuckDB; more is spilled to a temporary folder

TYPING_ERROR: Final = 0.8  # smallest similarity (difflib) of two names for one to count as a typing error

_BATCH: Final = 100_000


@dataclass(frozen=True, slots=True)
class Seen:
    """A detection at a place, in a picture that the page shows.

    Attributes:
        uri: the image's address.
        etag: of the labelled object; None if the source has none.
        size: bytes of the labelled object; None if unknown.
        width: pixels of the upright picture.
        height: pixels of the upright picture.
        box: xmin, ymin, xmax, ymax in pixels.
        score: 0..1.
    """

    uri: str
    etag: str | None
    size: int | None
    width: int
    height: int
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, slots=True)
class Place:
    """A place where a class repeats, and the detections that its mark would cover.

    Attributes:
        mark: the mark to accept; `mark.images` is the number of images with such a detection.
        boxes: number of covered detections with `min_score` or more.
        folder_images: number of images without an error in the folder.
        scores: least, median and highest score of the detections.
        seen: some of the detections, evenly spread over the images by address.
    """

    mark: Mark
    boxes: int
    folder_images: int
    scores: tuple[float, float, float]
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search in a table.

    Attributes:
        table: its address without secrets.
        places: the places, those with most images first.
        images: number of current rows without an error.
        boxes: number of considered detections: with `min_score`, not too large, not covered by a mark.
        covered: number of detections with `min_score` that marks already cover.
    """

    table: str
    places: tuple[Place, ...]
    images: int
    boxes: int
    covered: int


def find_places(
    config: RepeatsConfig, *, with_pictures: bool = True, show: Callable[[str], None] = lambda _what: None
) -> Found:
    """Find the places of a table where a class repeats. Covered detections are ignored.

    Memory: 1 GB for DuckDB, which spills more to a temporary folder, and the cells and neighbours of one folder and
    class.

    Args:
        config: the criteria.
        with_pictures: whether to fill `seen` of the first `config.most_places` places.
        show: called with a text about the next step.

    Raises:
        UsageError: DuckDB is not installed, the table has no rows that count, or none of them has a class of
            `config.classes`.
        RayDetrError: the table is damaged or cannot be read.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ray-detr-repeats-") as folder,
        opened_views(
            config.table,
            config.options,
            model=config.model,
            settings=config.settings,
            place=str(Path(folder) / "boxes.duckdb"),
            what="repeats",
        ) as views,
    ):
        engine = views.engine
        engine.execute(f"SET memory_limit = '{MEMORY}'")
        engine.execute(f"SET temp_directory = '{_quoted(folder)}'")
        show("rows")
        _create_boxes(engine, config)
        images, boxes, covered = _counts(engine)
        if not images:
            whose = "" if (config.model, config.settings) == (None, None) else " of this model and these settings"
            raise UsageError(
                f"table {views.table.uri} has no image without an error{whose}. `ray-detr runs` lists its runs."
            )
        _check_classes(engine, config.classes)
        show("places")
        matcher = Matcher(list(_likely(engine, config)))
        places = _places(engine, matcher)
        show("pictures")
        shown = [place.mark.id for place in places[: config.most_places]] if with_pictures else []
        seen = _seen(engine, shown, config.pictures)
        return Found(views.table.uri, tuple(_with(place, seen) for place in places), images, boxes, covered)


def _create_boxes(engine: DuckDBPyConnection, config: RepeatsConfig) -> None:
    """Create `pictures`, a row for each image without an error, and `boxes`, a row for each detection that counts."""
    add_folders(engine, "folder_of", config.folder_levels)
    engine.execute(
        "CREATE TABLE pictures AS SELECT uri, folder_of(uri) AS folder, etag, size FROM images WHERE status = 'ok'"
    )
    engine.execute(
        "CREATE TABLE folders AS SELECT folder, count(*) AS images, greatest(?, ceil(? * count(*)))::BIGINT AS least "
        "FROM pictures WHERE folder IS NOT NULL GROUP BY folder",
        [config.least_images, config.least_share],
    )
    engine.execute(
        "CREATE TABLE counted AS SELECT uri, label, score, width, height, xmin, ymin, xmax, ymax, repeat "
        "FROM detections WHERE score >= ? AND width > 0 AND height > 0 AND (len(?) = 0 OR list_contains(?, label))",
        [np.float32(config.min_score).item(), list(config.classes), list(config.classes)],
    )
    sides = ", ".join(
        f"round({side} / {size} * {UNITS})::INTEGER AS {name}"
        for side, size, name in (("xmin", "width", "x1"), ("ymin", "height", "y1"), ("xmax", "width", "x2"),
                                 ("ymax", "height", "y2"))
    )  # fmt: skip
    engine.execute(
        f"CREATE TABLE boxes AS SELECT c.*, p.folder, {sides} FROM counted c JOIN pictures p USING (uri) "  # noqa: S608
        "WHERE c.repeat IS NULL AND p.folder IS NOT NULL AND (xmax - xmin) * (ymax - ymin) > 0 "
        "AND (xmax - xmin) / width * ((ymax - ymin) / height) <= ?",
        [config.max_area],
    )


def _check_classes(engine: DuckDBPyConnection, classes: Sequence[str]) -> None:
    """Refuse a class without detections at any score if it resembles an existing class, or if no class occurs.

    Classes without detections are allowed beside others, so that a schedule can name all classes of interest.

    Raises:
        UsageError: names the class and the most similar one.
    """

    def missing(source: str) -> list[str]:
        rows = engine.execute(
            f"SELECT DISTINCT name FROM (SELECT unnest(?::VARCHAR[]) AS name) ANTI JOIN {source} ON label = name",  # noqa: S608
            [list(classes)],
        ).fetchall()
        return sorted(name for (name,) in rows)

    if not classes or not missing("counted") or not (unknown := missing("detections")):
        return
    known = [label for (label,) in engine.sql("SELECT DISTINCT label FROM detections ORDER BY label").fetchall()]
    others = [label for label in known if label not in classes]
    for name in unknown:
        near = difflib.get_close_matches(name, others, n=1, cutoff=TYPING_ERROR)
        if near:
            raise UsageError(f"--classes: no row has a detection of the class {name!r}. Did you mean {near[0]!r}?")
    if len(unknown) == len(set(classes)):
        raise UsageError(
            f"--classes: no row has a detection of the class {unknown[0]!r}. The rows have: "
            f"{', '.join(known[:8]) or 'no detection'}."
        )


def _counts(engine: DuckDBPyConnection) -> tuple[int, int, int]:
    numbers: list[tuple[int, int, int]] = engine.sql(
        "SELECT (SELECT count(*) FROM pictures), (SELECT count(*) FROM boxes), "
        "(SELECT count(*) FROM counted WHERE repeat IS NOT NULL)"
    ).fetchall()
    return numbers[0]


def _likely(engine: DuckDBPyConnection, config: RepeatsConfig) -> Iterator[Mark]:
    """Yield places that are likely to have enough images, from cells of near-equal boxes."""
    # a cell is a quarter of what two boxes may differ by, to a power of two, for each side of the picture
    cell = "(1 << floor(log2(greatest(1, {share} * ({high} - {low}))))::INTEGER)".format
    share = f"{(1 - config.iou) / 4:.6e}"  # with an exponent SQL reads a double, otherwise a decimal
    wide, tall = cell(share=share, high="x2", low="x1"), cell(share=share, high="y2", low="y1")
    means = ", ".join(f"(sum(b.{side}) // count(*))::BIGINT AS {side}" for side in ("x1", "y1", "x2", "y2"))
    rows = engine.sql(
        f"SELECT folder, label, least, {means}, count(*) AS boxes "  # noqa: S608
        f"FROM (SELECT boxes.*, least, {wide} AS wide, {tall} AS tall FROM boxes JOIN folders USING (folder) "
        "SEMI JOIN (SELECT folder, label FROM boxes JOIN folders USING (folder) GROUP BY folder, label, least "
        "HAVING count(*) >= least) USING (folder, label)) b "
        "GROUP BY folder, label, least, wide, tall, b.x1 // wide, b.x2 // wide, b.y1 // tall, b.y2 // tall "
        "ORDER BY folder, label"
    )
    for folder, label, least, cells in _groups(rows.to_arrow_reader(_BATCH)):
        for sides in places_of(cells, iou=config.iou, least=max(1, int(least * SLACK))).tolist():
            xmin, ymin, xmax, ymax = (round(side / UNITS, SHARE_DECIMALS) for side in sides)
            yield Mark(folder, config.folder_levels, label, (xmin, ymin, xmax, ymax), config.iou, 0)


def _groups(batches: pa.RecordBatchReader) -> Iterator[tuple[str, str, int, Cells]]:
    """Yield each folder and class, the images that a place needs, and the cells, from rows sorted by both."""
    held: list[pa.Table] = []
    key: tuple[str, str] | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        folders, labels = table["folder"].combine_chunks(), table["label"].combine_chunks()
        changed = np.ones(len(table), np.bool_)
        changed[1:] = [
            one != other for one, other in zip(zip(folders[1:].to_pylist(), labels[1:].to_pylist(), strict=True),
                                               zip(folders[:-1].to_pylist(), labels[:-1].to_pylist(), strict=True),
                                               strict=True)
        ]  # fmt: skip
        starts = np.flatnonzero(changed).tolist()
        for start, stop in zip(starts, [*starts[1:], len(table)], strict=True):
            of_part = (folders[start].as_py(), labels[start].as_py())
            if key is not None and of_part != key:
                yield *key, held[0]["least"][0].as_py(), _cells(held)
                held = []
            key = of_part
            held.append(table.slice(start, stop - start))
    if key is not None:
        yield *key, held[0]["least"][0].as_py(), _cells(held)


def _cells(parts: list[pa.Table]) -> Cells:
    table = pa.concat_tables(parts)
    boxes = np.stack([table[side].cast(pa.int64()).to_numpy() for side in ("x1", "y1", "x2", "y2")], axis=1)
    return Cells(boxes, table["boxes"].cast(pa.int64()).to_numpy())


def _places(engine: DuckDBPyConnection, matcher: Matcher) -> list[Place]:
    """Count the detections that each likely place covers, by the exact rule, and keep those with enough images."""
    if not matcher:
        return []
    add_matcher(engine, "place_of", matcher)
    engine.execute(f"CREATE TABLE members AS SELECT *, place_of({BOX_COLUMNS}) AS place FROM boxes")  # noqa: S608
    rows = engine.sql(
        "SELECT place, f.images, count(*), count(DISTINCT uri) AS found, min(score), quantile_disc(score, 0.5), "
        "max(score) FROM members JOIN folders f USING (folder) WHERE place IS NOT NULL "
        "GROUP BY place, f.images, least HAVING found >= least"
    ).fetchall()
    marks = {mark.id: mark for mark in matcher.marks}
    places = []
    for place, folder_images, boxes, images, *scores in rows:
        mark = marks[place]
        counted = Mark(mark.folder, mark.levels, mark.label, mark.box, mark.iou, images)
        places.append(Place(counted, boxes, folder_images, tuple(round(score, 4) for score in scores)))
    return sorted(places, key=lambda place: (-place.mark.images, place.mark.folder, place.mark.label, place.mark.id))


def _seen(engine: DuckDBPyConnection, places: list[str], most: int) -> dict[str, list[Seen]]:
    """Return up to `most` detections of each place, from images at even distances by address."""
    if not places:
        return {}
    wanted = pa.table({"place": pa.array(places, pa.string())})
    engine.register("wanted", wanted)
    rows = engine.execute(
        "WITH ranked AS (SELECT *, row_number() OVER (PARTITION BY place ORDER BY uri) - 1 AS rank, "
        "count(*) OVER (PARTITION BY place) AS images FROM (SELECT * FROM members SEMI JOIN wanted USING (place) "
        "QUALIFY row_number() OVER (PARTITION BY place, uri ORDER BY score DESC, x1, y1, x2, y2) = 1)), "
        "chosen AS (FROM ranked WHERE rank = 0 OR rank * ($most - 1) // (images - 1) > (rank - 1) * ($most - 1) // "
        "(images - 1)) "
        "SELECT place, uri, etag, size, width, height, xmin, ymin, xmax, ymax, score FROM chosen "
        "JOIN pictures USING (uri) ORDER BY place, rank",
        {"most": most},
    ).fetchall()
    seen: dict[str, list[Seen]] = {}
    for place, uri, etag, size, width, height, *box, score in rows:
        seen.setdefault(place, []).append(Seen(uri, etag, size, width, height, tuple(box), round(score, 4)))
    return seen


def _with(place: Place, seen: dict[str, list[Seen]]) -> Place:
    of_place: Any = seen.get(place.mark.id, ())
    return Place(place.mark, place.boxes, place.folder_images, place.scores, tuple(of_place))


def _quoted(text: str) -> str:
    return text.replace("'", "''")
