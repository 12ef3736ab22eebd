"""Render the page of a report: figures and pictures in the HTML template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from pipelines.report.examples import Example
from pipelines.report.figures import GRID, MOST_BOXES, Figures, RunFigures
from pipelines.report.pictures import Picture
from pipelines.report.rows import Classes
from pipelines.report.run_times import PAUSE_SECONDS, USUAL_TIMES, RunTimes

ROLES: Final = ("found", "truth", "appeared", "vanished", "moved", "false", "missed", "before")
"""The roles of a picture's boxes; the page draws each differently. `before` is the former place of a moved one."""

_PICTURE_SIZES = 8


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a gallery.

    Attributes:
        example: the image.
        boxes: class, score (None for truth), four sides and `ROLES` number; None draws those of the example.
        more: of `boxes`, as in an example.
        note: for the caption.
    """

    example: Example
    boxes: Sequence[Sequence[object]] | None = None
    more: Sequence[tuple[int, int]] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class PictureRow:
    """Pictures that are shown together below a heading."""

    id: str
    title: str
    note: str
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A part of the page about another run or about annotations: heading, template, its values and its pictures."""

    title: str
    template: str
    values: Mapping[str, Any]
    galleries: Sequence[PictureRow] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """The contents of a page.

    Attributes:
        most_pictures: of a gallery, and
        most_boxes: of a picture, if the page would be too large with all of them; else None.
    """

    table: str
    run_id: str | None
    figures: Figures
    times: RunTimes
    classes: Classes
    threshold: float
    galleries: Sequence[PictureRow]
    pictures: Mapping[str, Picture]
    made: datetime
    started: Mapping[str, datetime] = field(default_factory=dict)
    price_per_hour: float | None = None
    comparisons: Sequence[Comparison] = ()
    most_pictures: int | None = None
    most_boxes: int | None = None


def render(page: Page) -> str:
    """Return the page as self-contained HTML with styles, script, figures and pictures."""
    places = {uri: number for number, uri in enumerate(page.pictures)}
    shown = [*page.galleries, *(gallery for part in page.comparisons for gallery in part.galleries)]
    order = page.figures.frequent(page.classes, page.threshold)
    names = page.classes.names
    runs = [_run(run_id, page) for run_id in sorted(page.times.seconds)]
    values = {
        "table": page.table,
        "run_id": page.run_id,
        "threshold": page.threshold,
        "classes": names,
        "class_rows": [(number, names[number]) for number in order],
        "totals": _totals(page, runs),
        "errors": [
            (kind, count, page.figures.error_examples[kind]) for kind, count in page.figures.errors.most_common()
        ],
        "runs": runs,
        "has_cost": page.price_per_hour is not None,
        "has_settings": any(settings is not None for _, _, settings in page.figures.origins),
        "origins": [(*origin, count) for origin, count in page.figures.origins.most_common(20)],
        "rates": _rates(page),
        "pause": duration(PAUSE_SECONDS),
        "usual_times": USUAL_TIMES,
        "most_boxes": MOST_BOXES,
        "grid": GRID,
        "picture_sizes": page.figures.pictures.most_common(_PICTURE_SIZES),
        "more_sizes": max(0, len(page.figures.pictures) - _PICTURE_SIZES),
        "galleries": [gallery for gallery in page.galleries if gallery.items],
        "limits": limits(page.most_pictures, page.most_boxes),
        "comparisons": [
            Markup(_template(part.template).render(title=part.title, **part.values, galleries=part.galleries))  # noqa: S704 - escaped
            for part in page.comparisons
        ],
        "sections": [(f"h-{part.template.partition('.')[0]}", part.title) for part in page.comparisons],
        "data": {
            "classes": names,
            "order": order,
            "threshold": page.threshold,
            "figures": page.figures.as_json(),
            "pictures": [asdict(one) for one in page.pictures.values()],
            "galleries": [
                {"id": gallery.id, "items": [_item(item, places) for item in gallery.items]}
                for gallery in shown
                if gallery.items
            ],
        },
    }
    return render_page("table.html.j2", "Detection report", page.made, values)


def render_page(template: str, title: str, made: datetime, values: Mapping[str, Any]) -> str:
    """Return a page of a template that extends `base.html.j2`.

    Args:
        template: of the folder `template`, or `PACKAGE:NAME` of that folder in another package.
        title: of the page.
        made: time of creation.
        values: of the template; `data` is for the script: `classes` (names), `order` (class numbers), `threshold`,
            `figures` (None if the page has no interactive charts), `pictures` and `galleries`.
    """
    return _template(template).render(
        {
            "title": title,
            "made": made.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "style": Markup(resource("page.css")),  # noqa: S704 - our own file
            "script": Markup(resource("announce.js") + resource("page.js")),  # noqa: S704 - our own files
            **values,
        }
    )


def limits(pictures: int | None, boxes: int | None) -> str:
    """Return sentences about the pictures and boxes that a page of 5 MB leaves out; empty if it has all of them."""
    kept = [
        *([f"at most {pictures:,} pictures of each kind"] if pictures is not None else []),
        *([f"at most {boxes:,} boxes of each picture"] if boxes is not None else []),
    ]
    uncounted = " Annotations and former places of moved boxes that it leaves out are in no count of boxes."
    about_boxes = "" if boxes is None else uncounted
    return f"The page is kept under 5 MB: it has {' and '.join(kept)}.{about_boxes}" if kept else ""


def duration(seconds: float) -> str:
    """Return a time in its two largest units: `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _percent(count: int, total: int) -> str:
    """Return a share in percent with three digits; a smaller one than 0.001 is not written as a power of ten."""
    share = 100 * count / max(1, total)
    return "below 0.001" if 0 < share < 0.001 else f"{share:.3g}"


def _totals(page: Page, runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    figures = page.figures
    failed = figures.images - figures.ok
    totals = [
        ("images", f"{figures.images:,}"),
        ("without error", f"{figures.ok:,}"),
        ("errors", f"{failed:,} ({_percent(failed, figures.images)} %)"),
        ("detections", f"{figures.detections:,}"),
        *([("repeats left out", f"{figures.left_out:,}")] if figures.left_out else []),
        ("classes", f"{len(figures.scores):,}"),
        ("runs", f"{len(runs):,}"),
    ]
    if page.price_per_hour is not None:
        totals.append(("cost", f"{sum(run['cost'] for run in runs):,.2f} USD"))
    return totals


def _run(run_id: str, page: Page) -> dict[str, Any]:
    """Return a line of the table of runs: counts of the shown rows; times and cost of all rows."""
    shown = page.figures.runs.get(run_id, RunFigures())
    first, last = (datetime.fromtimestamp(second, UTC) for second in page.times.span(run_id))
    working = page.times.working(run_id, page.started.get(run_id))
    seconds, rows = max(1, working.seconds), page.times.rows(run_id)
    price = page.price_per_hour
    pauses = f"{working.pauses} pause{'' if working.pauses == 1 else 's'} of {duration(working.paused)}"
    return {
        "run_id": run_id,
        "images": shown.images,
        "errors": shown.errors,
        "detections": shown.detections,
        "rows": rows,
        "first": first.strftime("%Y-%m-%d %H:%M:%S"),
        "last": last.strftime("%Y-%m-%d %H:%M:%S"),
        "duration": duration(seconds) + (f", without {pauses}" if working.pauses else ""),
        "rate": f"{rows / seconds:,.1f}",
        "cost": None if price is None else round(seconds / 3600 * price, 2),
    }


def _rates(page: Page) -> dict[str, Any] | None:
    """Return the chart of the newest run."""
    if not page.times.seconds:
        return None
    run_id = max(page.times.seconds, key=lambda one: page.times.span(one)[1])
    rates = page.times.working(run_id, page.started.get(run_id)).rates()
    most = max(images for _, images in rates)
    width = rates[0][0]
    return {
        "run_id": run_id,
        "end": duration(rates[-1][0]),
        "sentence": f"Images that were labelled in each {duration(width)}, {most:,} at most, without pauses. All rows "
        "of a shard have the same time.",
        "bars": [
            (round(100 * images / most, 2), f"{duration(end - width)} to {duration(end)}: {images:,} images")
            for end, images in rates
        ],
    }


def _item(item: Item, places: Mapping[str, int]) -> dict[str, object]:
    boxes = item.example.boxes if item.boxes is None else item.boxes
    more = item.example.more if item.boxes is None else item.more
    return {"picture": places[item.example.uri], "boxes": boxes, "note": item.note, **({"more": more} if more else {})}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(resource), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    # JSON.parse refuses NaN, and the page would have no pictures and no controls
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False, "separators": (",", ":")}
    return environment


def _template(name: str) -> Template:
    return _environment().get_template(name)


@cache
def resource(name: str) -> str:
    """Return a file of the folder `template`, or, as `PACKAGE:NAME`, of that folder in another package."""
    package, _, file = name.rpartition(":")
    return (files(package or "pipelines.report") / "template" / file).read_text(encoding="utf-8")
