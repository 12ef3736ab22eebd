"""Write panoptic segmentations of images in COCO's format, and measure their quality.

ray-detr panoptic photos/ --model facebook/detr-resnet-50-panoptic --out segmented
ray-detr panoptic val2017/ --model facebook/detr-resnet-50-panoptic --out segmented --truth panoptic_val2017.json
ray-detr panoptic --results segmented/panoptic.json --truth panoptic_val2017.json

--out gets panoptic.json and a PNG of segment ids for each image in panoptic/. PNGs of the truth are in the folder
beside its json that has the same name without .json.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.exits import run_process
from jobs.options import add_device_options, check_stays, local_path, share
from jobs.parser import CommandParser

if TYPE_CHECKING:
    from pipelines.panoptic import Segmented


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, segment, measure, print."""
    parser = CommandParser("panoptic", __doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, and web or store addresses")
    parser.add_argument("--model", metavar="REF", help="a panoptic DETR: a hub id, a directory, or a .pth")
    parser.add_argument("--out", type=local_path, metavar="DIR", help="new or empty folder for json and PNGs")
    parser.add_argument("--truth", type=local_path, metavar="FILE", help="COCO panoptic json to compare with (none)")
    parser.add_argument(
        "--results", type=local_path, metavar="FILE", help="measure this COCO panoptic json instead of images (none)"
    )
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.85,
        metavar="SCORE",
        help="use only queries with a score above this (%(default)s)",
    )
    add_device_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)
    if args.results is not None and (args.images or args.truth is None):
        parser.error("--results needs --truth, and takes no images")
    check_stays(parser, "--out", None if args.out is None else str(args.out))
    if args.out is not None and ":/" in str(args.out):
        parser.error(f"--out {args.out}: give a path on this machine, and copy the folder from there")
    if args.results is None and not (args.images and args.model and args.out):
        parser.error("give images with --model and --out, or --results with --truth")

    from pipelines.panoptic import quality_of_files

    written = None if args.results is not None else _segment(parser, args)
    if written is not None and not args.json:
        print(f"segmented: {written.images:,} images, {written.segments:,} segments: {written.path}", flush=True)
    found = args.results if written is None else written.path
    quality = None if args.truth is None else quality_of_files(args.truth, found)
    if args.json:
        record: dict[str, Any] = {} if written is None else asdict(written)
        record["quality"] = None if quality is None else {name: asdict(one) for name, one in quality.items()}
        print(json.dumps(record, default=str))
        return
    for name, one in (quality or {}).items():
        figures = f"PQ {100 * one.pq:5.1f}  SQ {100 * one.sq:5.1f}  RQ {100 * one.rq:5.1f}"
        print(f"{name:7} {figures}  {one.categories} categories")


def _segment(parser: CommandParser, args: Any) -> "Segmented":
    from jobs.progress import Drawing, shown
    from pipelines.detect import find_images
    from pipelines.errors import RayDetrError, UsageError
    from pipelines.panoptic import image_ids_of, open_mask_detector, write_segmentations

    try:
        images = find_images(args.images)
        detector = open_mask_detector(args.model, device=args.device, precision=args.precision)
    except ValueError as error:
        parser.error(str(error))
    drawing: Drawing[int] = Drawing(
        is_running=lambda _: True,
        line=lambda done: f"  segment  {done:,} of {len(images):,} images",
        done=lambda done: (done, len(images)),
    )
    with shown(sys.stderr, drawing) as on_image:
        written = write_segmentations(
            images,
            detector,
            args.out,
            threshold=args.threshold,
            image_ids=None if args.truth is None else image_ids_of(args.truth),
            on_image=on_image,
        )
    for one in written.unreadable:
        print(f"cannot read {one}", file=sys.stderr)
    if not written.images:
        raise (RayDetrError if written.is_store_down else UsageError)("none of the images could be read.")
    return written


if __name__ == "__main__":
    run_process(main)
