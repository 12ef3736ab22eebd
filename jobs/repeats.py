"""Find detections that repeat at one place of a folder's pictures, and mark those that people accept.

ray-detr repeats --table s3://lake/detections --out repeats.html
ray-detr repeats --table s3://lake/detections --accept repeats.json
ray-detr repeats --table s3://lake/detections

For fixed cameras, such as camera traps: branches and stones that are found in picture after picture. The page shows
each place; what is accepted on it is left out by exports and reports, in later runs, too. No row is changed, and a mark
can be withdrawn. Without an action, the marks of the table are listed. Finding needs DuckDB (ray-detr[query]).
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.exits import run_process
from jobs.options import add_options, check_can_be_written, check_stays, local_path, make_config, refuse_given
from jobs.parser import CommandParser
from pipelines.repeats.config import RepeatsConfig

if TYPE_CHECKING:
    from pipelines.marks.marks import Accepted, Mark
    from pipelines.repeats.finding import Found
    from pipelines.repeats.repeats import PageSummary


OF_PAGE = frozenset({"most_places", "pictures"})
OF_FINDING = frozenset(
    {
        "least_images", "least_share", "iou", "min_score", "max_area", "folder_levels", "classes", "model", "settings",
    }
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, find or record, print."""
    parser = CommandParser("repeats", __doc__)
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--out",
        type=local_path,
        metavar="FILE",
        help="find places that repeat, and write the page to accept them; replaced",
    )
    action.add_argument(
        "--accept", metavar="FILE", help="mark the places in a file downloaded from the page; a path or URI"
    )
    action.add_argument("--accept-all", action="store_true", help="find places that repeat, and mark all of them")
    action.add_argument(
        "--withdraw", nargs="+", metavar="ID", help="withdraw marks: ids, or files downloaded from the page"
    )
    add_options(parser, RepeatsConfig)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)
    check_stays(parser, "--out", None if args.out is None else str(args.out))
    check_can_be_written(parser, "--out", args.out)
    _check_action(parser, args)
    config = make_config(parser, RepeatsConfig, args)
    if args.out is not None:
        _write_page(config, args)
    elif args.accept is not None:
        from pipelines.repeats.repeats import accept_file

        _print(args, accept_file(config, args.accept), "accepted")
    elif args.accept_all:
        _accept_all(config, args)
    elif args.withdraw is not None:
        from pipelines.repeats.repeats import withdraw

        _print(args, withdraw(config, args.withdraw), "withdrew")
    else:
        _list(config, args)


def _check_action(parser: CommandParser, args: argparse.Namespace) -> None:
    """Exit with code 2 if an option is given that the action does not use."""
    finds = args.out is not None or args.accept_all
    unused = {*(() if args.out is not None else OF_PAGE), *(() if finds else OF_FINDING)}
    refuse_given(parser, args, unused & OF_PAGE, "--out")
    refuse_given(parser, args, unused & OF_FINDING, "--out and --accept-all")


def _write_page(config: RepeatsConfig, args: argparse.Namespace) -> None:
    from pipelines.repeats.repeats import write_places_page

    with _shown() as on_progress:
        summary = write_places_page(config, args.out, show=on_progress)
    if args.json:
        print(json.dumps({**asdict(summary), "out": str(summary.out)}, indent=2))
    else:
        print(page_report(summary, config))


def _accept_all(config: RepeatsConfig, args: argparse.Namespace) -> None:
    from pipelines.repeats.repeats import accept_all

    with _shown() as on_progress:
        found, accepted = accept_all(config, show=on_progress)
    if not args.json:
        print(found_sentence(found))
    _print(args, accepted, "accepted")


def _shown() -> AbstractContextManager[Callable[[str], None]]:
    from jobs.progress import Drawing, shown

    drawing: Drawing[str] = Drawing(
        is_running=lambda _: True, line=lambda what: f"  repeats  {what}", done=lambda _: (0, 0)
    )
    return shown(sys.stderr, drawing)


def _list(config: RepeatsConfig, args: argparse.Namespace) -> None:
    from pipelines.repeats.repeats import marks_of

    marks = marks_of(config)
    if args.json:
        print(json.dumps([mark.as_json() for mark in marks], indent=2))
    else:
        print(marks_report(marks))


def page_report(summary: "PageSummary", config: RepeatsConfig) -> str:
    """Return the result, the location of the page, and the next step."""
    before = f"; {summary.marked_before:,} detections are marked already" if summary.marked_before else ""
    if not summary.places:
        share = f" and in {100 * config.least_share:g} % of them" if config.least_share else ""
        return (
            f"no place repeats: no place has the same class in {config.least_images:,} images of a folder{share} "
            f"(--least-images, --least-share), of {summary.images:,} images{before}\npage: {summary.out}"
        )
    part = "" if summary.shown == summary.places else f", the {summary.shown:,} with most images on the page"
    places = f"{summary.places:,} place" + ("" if summary.places == 1 else "s")
    return (
        f"found: {places} with {summary.boxes:,} detections{part}, of {summary.images:,} images{before}\n"
        f"page: {summary.out}, {summary.bytes / 1e6:.1f} MB\n"
        f"then: ray-detr repeats --table {shlex.quote(config.table)} --accept repeats.json"
    )


def found_sentence(found: "Found") -> str:
    """Return the result for a command without a page."""
    boxes = sum(place.boxes for place in found.places)
    places = f"{len(found.places):,} place" + ("" if len(found.places) == 1 else "s")
    return f"found: {places} with {boxes:,} detections, of {found.images:,} images"


def accepted_report(accepted: "Accepted", verb: str) -> str:
    """Return the number of changed marks, and of the table's marks."""
    marks = "1 mark" if accepted.changed == 1 else f"{accepted.changed:,} marks"
    if verb == "accepted":
        unchanged = f", {accepted.unchanged:,} accepted before" if accepted.unchanged else ""
    else:
        unchanged = f", {accepted.unchanged:,} withdrawn before" if accepted.unchanged else ""
    record = "" if accepted.number is None else f", in _marks/{accepted.number:04}.json"
    return f"{verb}: {marks}{unchanged}{record}; the table has {accepted.in_force:,}"


def marks_report(marks: "Sequence[Mark]") -> str:
    """Return the marks as lines of text: id, images, class, sides as shares of the picture, folder."""
    if not marks:
        return "the table has no marks. --out FILE writes a page to accept some."
    lines = [
        (mark.id, f"{mark.images:,}", mark.label, " ".join(f"{side:.3f}" for side in mark.box), mark.folder)
        for mark in marks
    ]
    head = ("id", "images", "class", "xmin, ymin, xmax, ymax", "folder")
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    rows = [head, tuple("-" * width for width in widths), *lines]
    return "\n".join(
        "  ".join(text.rjust(width) if place == 1 else text.ljust(width)
                  for place, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )  # fmt: skip


def _print(args: argparse.Namespace, accepted: "Accepted", verb: str) -> None:
    print(json.dumps(asdict(accepted), indent=2) if args.json else accepted_report(accepted, verb))


if __name__ == "__main__":
    run_process(main)
