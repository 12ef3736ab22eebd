"""Measure a detection table against COCO annotations of its images: COCO's twelve numbers.

python -m jobs.evaluate --table s3://lake/detections --annotations instances_val2017.json --output metrics.json

Images are matched by file name. For the model's own figure label with --threshold 0.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.exits import run
from jobs.options import CommandParser

if TYPE_CHECKING:
    from pipelines.evaluate import Evaluation

SHOWN_NAMES = 3


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, evaluate, print."""
    parser = CommandParser(prog="jobs.evaluate", description=__doc__)
    parser.add_argument("--table", required=True, metavar="URI", help="the detection table")
    parser.add_argument("--annotations", required=True, metavar="URI", help="a COCO json with the images' boxes")
    parser.add_argument("--run-id", metavar="ID", help="only the rows of this run (the latest row of every image)")
    parser.add_argument("--picture-size", type=picture_size, metavar="HEIGHTxWIDTH",
                        help="only annotated images of this size in pixels (all)")  # fmt: skip
    parser.add_argument(
        "--allow-thresholded",
        action="store_true",
        help="measure a table that left out low scores, too: its AP is lower than the model's",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures to this file, as JSON")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--via", choices=("auto", "fsspec"), default="auto", help="how stores are read (%(default)s)")
    parser.add_argument("--anonymous", action="store_true", help="read without credentials: public buckets")
    parser.add_argument("--endpoint", metavar="URL", help="the S3 server's address (AWS_ENDPOINT_URL)")
    parser.add_argument("--region", metavar="NAME", help="the S3 region (AWS_REGION)")
    args = parser.parse_args(argv)
    from pipelines.evaluate import evaluate_table
    from pipelines.run import RunStopped
    from pipelines.store import StoreOptions

    try:
        evaluation = evaluate_table(
            args.table,
            args.annotations,
            options=StoreOptions(args.via, args.anonymous, args.endpoint, args.region),
            run_id=args.run_id,
            picture_size=args.picture_size,
            allow_thresholded=args.allow_thresholded,
        )
    except ValueError as error:
        parser.error(str(error))

    figures = json.dumps(evaluation.as_json(), indent=2)
    if args.output is not None:
        try:
            args.output.write_text(figures + "\n")
        except OSError as error:
            raise RunStopped(f"cannot write the figures to {args.output}: {error.strerror}.") from error
    print(figures if args.json else report(evaluation))


def report(evaluation: "Evaluation") -> str:
    """Return the figures, and what has to be known to read them."""
    precision = evaluation.average_precision
    numbers = [f"{name} {_shown(value)}" for name, value in precision.numbers().items()]
    labelled, found = evaluation.evaluated, evaluation.detections
    lines = [
        "  ".join(numbers[:6]),
        "  ".join(numbers[6:]),
        f"class-agnostic AP {_shown(precision.class_agnostic)}",
        f"images: {evaluation.images:,}, of which {_counted(labelled, 'is', 'are')} labelled, with "
        f"{_counted(found, 'detection', 'detections')} of {' and '.join(evaluation.models) or 'no model'}",
    ]
    for names, one, several in (
        (evaluation.missing, "image is not in the table", "images are not in the table"),
        (evaluation.errors, "image is an error in the table", "images are errors in the table"),
    ):
        if names:
            lines.append(f"{_counted(len(names), one, several)}: nothing counts as found there ({_some(names)})")
    if evaluation.other_size:
        sizes = _counted(len(evaluation.other_size), "image has", "images have")
        lines.append(f"{sizes} another size than the annotations say ({_some(evaluation.other_size)})")
    if evaluation.unannotated:
        rows = _counted(evaluation.unannotated, "row of the table is of an image", "rows of the table are of images")
        lines.append(f"{rows} without annotations: left out")
    if evaluation.threshold > 0:
        lines.append(f"below score {evaluation.threshold:.3g} nothing was kept: AP is lower than the model's")
    return "\n".join(lines)


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN_NAMES], *(["..."] if len(names) > SHOWN_NAMES else [])])


def picture_size(text: str) -> tuple[int, int]:
    """Return (height, width) of `HEIGHTxWIDTH`."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 480x640")
    return int(found[1]), int(found[2])


def _shown(value: float) -> str:
    return "none" if value < 0 else f"{value:.3f}"


if __name__ == "__main__":
    run(main)
