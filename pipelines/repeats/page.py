"""The page of places that repeat: pictures of each, and accepted places as a file to download."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from pipelines.repeats.config import RepeatsConfig
from pipelines.repeats.finding import Found, Place, Seen
from pipelines.repeats.selection import head_of
from pipelines.report.examples import Example
from pipelines.report.page import render_page, resource
from pipelines.report.pictures import THREADS, PictureReader, encode_picture, to_image
from pipelines.store import Stores, file_name, without_secrets

if TYPE_CHECKING:
    from torch import Tensor

WHOLE_PIXELS: Final = 400  # of the longer side of a whole picture
PART_PIXELS: Final = 200  # of the longer side of a part
VIEW_BYTES: Final = 16_000_000  # of all views as base64: parts of 200 pixels for the default of 200 places
WHOLE_SHARE: Final = 3  # a whole picture may have this many times the bytes of a part
CONTEXT: Final = 0.75  # of the box, on each side of it


@dataclass(frozen=True, slots=True)
class View:
    """A detection on the page: the whole picture, or the part around the box.

    Attributes:
        name: of the image's file.
        source: a `data:` address of a WebP file, or None.
        width: pixels of what is shown, in which `box` is.
        height: pixels of what is shown.
        box: left, top, width and height.
        score: 0..1.
        problem: why the picture is missing; None if it was read.
    """

    name: str
    source: str | None
    width: int
    height: int
    box: tuple[float, float, float, float]
    score: float
    problem: str | None = None


def render_places(
    found: Found,
    config: RepeatsConfig,
    stores: Stores,
    made: datetime,
    *,
    show: Callable[[int, int], None] = lambda _done, _all: None,
) -> str:
    """Return the page as self-contained HTML; pictures are fetched from their addresses now.

    Args:
        found: the result; its first `config.most_places` places are shown.
        config: the criteria.
        stores: stores of the images.
        made: when.
        show: called in any thread with the number of images read so far, and the total.
    """
    places = found.places[: config.most_places]
    views = _views(places, stores, show)
    folders = [
        {
            "name": folder or "(no folder)",
            "images": of_folder[0].folder_images,
            "places": [
                {
                    "mark": place.mark,
                    "share": round(100 * place.mark.images / max(1, place.folder_images)),
                    "scores": place.scores,
                    "views": views[place.mark.id],
                }
                for place in of_folder
            ],
        }
        for folder, of_folder in sorted(_by_folder(places).items())
    ]
    values: dict[str, Any] = {
        "table": found.table,
        "quoted_table": shlex.quote(found.table),
        "totals": [
            ("places", f"{len(found.places):,}"),
            ("their detections", f"{sum(place.boxes for place in found.places):,}"),
            ("folders", f"{len({place.mark.folder for place in found.places}):,}"),
            ("detections looked at", f"{found.boxes:,}"),
            ("images", f"{found.images:,}"),
            *([("marked before", f"{found.covered:,}")] if found.covered else []),
        ],
        "folders": folders,
        "shown": len(places),
        "hidden": len(found.places) - len(places),
        "least": config.least_images,
        "most": max((place.mark.images for place in places), default=config.least_images),
        "least_share": config.least_share,
        "iou": config.iou,
        "marks": found.covered,
        "style": Markup(resource("page.css") + resource("pipelines.repeats:places.css")),  # noqa: S704 - our own files
        "script": Markup(resource("announce.js") + resource("pipelines.repeats:places.js")),  # noqa: S704 - our own files
        "data": {
            "head": head_of(found.table),
            "places": [place.mark.as_json() for place in places],
            "boxes": {place.mark.id: place.boxes for place in places},
        },
    }
    return render_page("pipelines.repeats:places.html.j2", "Detections that repeat at one place", made, values)


def _by_folder(places: Sequence[Place]) -> Mapping[str, list[Place]]:
    by_folder: defaultdict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_folder[without_secrets(place.mark.folder)].append(place)
    return by_folder


def _views(places: Sequence[Place], stores: Stores, show: Callable[[int, int], None]) -> Mapping[str, list[View]]:
    """Return the views of each place, by its id: the first image twice, whole and around the box, the others around it.

    Each image is read once.
    """
    wanted: defaultdict[str, list[tuple[str, int, Seen]]] = defaultdict(list)
    for place in places:
        for number, seen in enumerate(place.seen):
            wanted[seen.uri].append((place.mark.id, number, seen))
    budget = part_budget(len(place.seen) for place in places)
    made: defaultdict[str, dict[tuple[int, bool], View]] = defaultdict(dict)
    done, reader = 0, PictureReader(stores)

    def make(uri: str) -> list[tuple[str, tuple[int, bool], View]]:
        seen = wanted[uri][0][2]
        example = Example(uri, seen.etag, seen.size, seen.width, seen.height, ())
        kinds = [(*one, is_whole) for one in wanted[uri] for is_whole in ((True, False) if one[1] == 0 else (False,))]

        def views(pixels: Tensor | None, problem: str | None = None) -> list[tuple[str, tuple[int, bool], View]]:
            return [
                (place, (number, not is_whole), _view(one, pixels, problem, budget, is_whole=is_whole))
                for place, number, one, is_whole in kinds
            ]

        made_of_it, problem = reader.read(example, views)
        return views(None, problem) if made_of_it is None else made_of_it

    with ThreadPoolExecutor(THREADS) as threads:
        for part in threads.map(make, wanted):
            for place_id, key, view in part:
                made[place_id][key] = view
            done += 1
            show(done, len(wanted))
    return {place.mark.id: [view for _, view in sorted(made[place.mark.id].items())] for place in places}


def part_budget(pictures: Iterable[int]) -> int:
    """Return the largest number of characters of a part, for places with these numbers of pictures."""
    return VIEW_BYTES // max(1, sum(count + WHOLE_SHARE for count in pictures))


def _view(seen: Seen, pixels: Tensor | None, problem: str | None, budget: int, *, is_whole: bool) -> View:
    """Return one view of a detection; `budget` is that of a part."""
    name = file_name(without_secrets(seen.uri))
    xmin, ymin, xmax, ymax = seen.box
    if pixels is None:
        return View(name, None, 0, 0, (0, 0, 0, 0), seen.score, problem)
    left, top, right, bottom = 0, 0, pixels.shape[2], pixels.shape[1]
    if not is_whole:
        across, down = CONTEXT * (xmax - xmin), CONTEXT * (ymax - ymin)
        left, top = max(0, int(xmin - across)), max(0, int(ymin - down))
        right, bottom = min(right, int(xmax + across) + 1), min(bottom, int(ymax + down) + 1)
        pixels = pixels[:, top:bottom, left:right]
    longest = WHOLE_PIXELS if is_whole else PART_PIXELS
    budget *= WHOLE_SHARE if is_whole else 1
    source = encode_picture(to_image(pixels, longest), budget, most_pixels=longest)
    box = (round(xmin - left, 1), round(ymin - top, 1), round(xmax - xmin, 1), round(ymax - ymin, 1))
    return View(name, source, right - left, bottom - top, box, seen.score)
