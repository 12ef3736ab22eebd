"""Print the objects found in a few images, and draw them.

ray-detr detect photos/ --model facebook/detr-resnet-50 --draw drawn --open
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from detr.tiles import make_tiling
from jobs._viewer import MOST_PICTURES, has_viewer, open_pictures
from jobs.exits import run_process
from jobs.options import add_device_options, add_options, check_stays, local_path, note_on_model, share
from jobs.parser import CommandParser
from pipelines.labelling.config import PlanConfig

if TYPE_CHECKING:
    from pipelines.detect import ImageResult


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, detect, print each image."""
    parser = CommandParser("detect", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, and web or store addresses")
    parser.add_argument(
        "--model",
        required=True,
        metavar="REF",
        help="DETR or another detector (docs/models.md): a hub id with optional @revision, a directory, a .pth or "
        ".ckpt, a URI, or scenes (the embedded model)",
    )
    parser.add_argument(
        "--threshold", type=share, default=0.9, metavar="SCORE", help="lowest score to show (%(default)s)"
    )
    parser.add_argument(
        "--draw", type=local_path, metavar="DIR", help="write each image with its boxes into this folder"
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help=f"open the pictures of --draw, the first {MOST_PICTURES} at most, in this machine's viewer",
    )
    add_options(parser, PlanConfig, only=("tiles", "overlap"))
    add_device_options(parser)
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each image")
    args = parser.parse_args(argv)
    from jobs.progress import Drawing, shown
    from pipelines.detect import ImageFailure, detect, find_images, open_detector
    from pipelines.errors import RayDetrError, UsageError
    from pipelines.table.schema import TRANSIENT_KINDS

    try:
        if args.draw is not None and args.draw.exists() and not args.draw.is_dir():
            parser.error(f"--draw {args.draw} is a file: give a folder, which is created if it does not exist")
    except OSError as error:
        raise RayDetrError(f"cannot write to --draw {args.draw}: {error.strerror or error}.") from error
    check_stays(parser, "--draw", None if args.draw is None else str(args.draw))
    if args.open and args.draw is None:
        parser.error("--open opens the pictures of --draw: give --draw DIR as well")
    if args.open and not has_viewer():
        parser.error(
            "--open: this machine has no display (DISPLAY, WAYLAND_DISPLAY and BROWSER are not set). Omit --open, and "
            "view the pictures of --draw on a machine with a display"
        )
    try:
        tiling = make_tiling(args.tiles, args.overlap)
        images = find_images(args.images)
    except ValueError as error:
        parser.error(str(error))
    drawing: Drawing[int] = Drawing(
        is_running=lambda done: done >= 0,
        line=lambda done: "  loading the model" if done < 0 else f"  detect  {done:,} of {len(images):,} images",
        done=lambda done: (done, len(images)),
    )
    output, errors = sys.stdout, sys.stderr  # their names are moved to the bar
    note_on_model(args.model)
    seen, drawn, failures = 0, list[Path](), set[str]()
    # on a terminal the results show the progress
    with nullcontext(_ignore) if output.isatty() else shown(errors, drawing) as on_progress:
        on_progress(-1)
        try:
            detector = open_detector(
                args.model, threshold=args.threshold, device=args.device, precision=args.precision, tiling=tiling
            )
        except ValueError as error:
            parser.error(str(error))
        on_progress(0)
        for done, result in enumerate(detect(images, detector, draw=args.draw), 1):
            on_progress(done)
            if args.json:
                print(json.dumps(asdict(result), default=str), file=output, flush=True)
            if isinstance(result, ImageFailure):
                print(f"cannot read {result.image}: {result.error_kind}: {result.error}", file=sys.stderr)
                failures.add(result.error_kind)
                continue
            seen += 1
            drawn += [] if result.drawn is None else [result.drawn]
            if not args.json:
                print(report(result), file=output, flush=True)
    if not seen:
        which = "the image could not" if len(images) == 1 else f"none of the {len(images):,} images could"
        # a failure of a store may be temporary; a missing file, or one that is not an image, is wrong use
        kind = RayDetrError if failures & (TRANSIENT_KINDS - {"missing"}) else UsageError
        raise kind(f"{which} be read.")
    if args.open and open_pictures(drawn) < len(drawn):
        print(f"note: {MOST_PICTURES} of {len(drawn):,} pictures were opened; all are in {args.draw}", file=errors)


def _ignore(_: int) -> None:
    """Ignore the progress."""


def report(seen: "ImageResult") -> str:
    """Return the image's name and a line per detection, in the format of DETR's model card."""
    drawn = "" if seen.drawn is None else f", drawn in {seen.drawn}"
    count = len(seen.detections)
    lines = [f"{seen.image}: {count} detection{'' if count == 1 else 's'}{drawn}"]
    for one in seen.detections:
        box = [round(side, 2) for side in one.box]
        lines.append(f"Detected {one.label} with confidence {round(one.score, 3)} at location {box}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_process(main)
