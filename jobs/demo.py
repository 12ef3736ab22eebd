"""Label drawn scenes, measure the result and draw it; needs no network and no GPU.

ray-detr demo --out demo
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.exits import run_process
from jobs.options import count, local_path
from jobs.parser import CommandParser

DRAWN_PICTURES = 5
SHOWN_SCORE = 0.5
MARK = ".ray-detr-demo"  # marks a folder that this command created and may empty


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, draw, label, query, measure, print."""
    parser = CommandParser("demo", __doc__)
    parser.add_argument(
        "--out",
        type=local_path,
        default=Path("demo"),
        metavar="DIR",
        help="output folder; an earlier demo in it is replaced (%(default)s)",
    )
    parser.add_argument("--count", type=count, default=120, metavar="N", help="number of scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=20, metavar="S", help="random seed of the scenes (%(default)s)")
    args = parser.parse_args(argv)
    images, table, pictures = args.out / "images", args.out / "table", args.out / "pictures"
    from pipelines.errors import RayDetrError

    try:
        if args.out.exists() and not _is_ours(args.out):
            parser.error(f"--out {args.out} exists and was not made by this command: give a new folder")
    except OSError as error:
        raise RayDetrError(f"cannot write to --out {args.out}: {error.strerror}.") from error

    from detr.scenes.files import PICTURE_SIZES, write_scenes
    from jobs.label import report
    from jobs.progress import shown_progress
    from pipelines.evaluation.evaluate import evaluate_table
    from pipelines.labelling.config import LabelConfig
    from pipelines.labelling.label import label
    from pipelines.report.config import ReportConfig
    from pipelines.report.report import write_report
    from pipelines.table.preview import count_labels, draw_found

    began = time.monotonic()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / MARK).touch()
        for folder in (images, table, pictures):
            shutil.rmtree(folder, ignore_errors=True)
        truth = write_scenes(images, args.count, args.seed)
    except OSError as error:
        raise RayDetrError(f"cannot write to --out {args.out}: {error.strerror or error}.") from error
    print(f"drew {args.count} scenes of plain shapes into {images}")

    # threshold 0 keeps every query, as required for AP
    with shown_progress(sys.stderr) as on_progress:
        summary = label(
            LabelConfig((str(images),), table=str(table), model="scenes", threshold=0.0), on_progress=on_progress
        )
    print(report(summary))
    print("note:   all detections are kept, whatever their score, because AP is computed from all of them")

    counted = count_labels(str(table), least_score=SHOWN_SCORE)
    print(f"\nfound with a score of {SHOWN_SCORE} and more:")
    print("\n".join(f"  {label:10} {number:5,}" for label, number in counted.most_common()))

    print("\nCOCO metrics                      AP     AP50   AP75")
    whole = evaluate_table(str(table), str(truth)).average_precision
    print(f"  all {args.count:4} scenes                {whole.AP:.3f}  {whole.AP50:.3f}  {whole.AP75:.3f}")
    sizes = {(image["height"], image["width"]) for image in json.loads(truth.read_text())["images"]}
    for height, width in (size for size in PICTURE_SIZES if size in sizes):  # a few scenes do not have all of them
        one = evaluate_table(str(table), str(truth), picture_size=(height, width)).average_precision
        print(f"  {width:4} x {height:<4}                    {one.AP:.3f}  {one.AP50:.3f}  {one.AP75:.3f}")

    drawn = draw_found(str(table), pictures, count=DRAWN_PICTURES, least_score=SHOWN_SCORE)
    print(f"\npictures with boxes: {', '.join(map(str, drawn))}")
    page = write_report(ReportConfig(str(table), args.out / "report.html", annotations=str(truth)))
    print(f"report: {page.out}")
    print(f"total time: {time.monotonic() - began:.0f} s\n")
    print("To label your own photographs with the official model from the Hugging Face hub:")
    print("  .venv/bin/ray-detr label --images FOLDER --table TABLE --model facebook/detr-resnet-50")


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MARK).exists() or not any(folder.iterdir()))


if __name__ == "__main__":
    run_process(main)
