"""Measure detections against COCO annotations: the twelve figures of pycocotools.

ray-detr evaluate --table s3://lake/detections --annotations instances_val2017.json --output metrics.json
ray-detr evaluate --results detections.json --annotations instances_val2017.json --plot curves.png
ray-detr evaluate --model facebook/detr-resnet-50 --images val2017/ --annotations instances_val2017.json

Table rows are matched to annotated images by the end of their path. To measure a model, label its table with
--threshold 0; --model does so, and labels only the annotated images.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO, get_args

from detr.precision import Precision
from jobs._evaluation_report import report
from jobs.exits import run_process
from jobs.options import (
    add_options,
    check_can_be_written,
    check_stays,
    local_path,
    make_config,
    path_of,
    share,
    with_its_error,
)
from jobs.parser import CommandParser
from pipelines.errors import BudgetExceeded
from pipelines.labelling.config import LabelConfig
from pipelines.options import height_and_width
from pipelines.store import StoreOptions

if TYPE_CHECKING:
    from pipelines.evaluation.annotations import Annotations
    from pipelines.evaluation.evaluate import Evaluation
    from pipelines.evaluation.gate import Baseline, Verdict

TOLERANCE_POINTS = 0.2
MAX_DROP = 0.002

# options for one source only
BELONGS: dict[str, tuple[str, ...]] = {
    "table": ("run_id", "settings", "allow_thresholded"),
    "model": ("images", "keep_table", "precision", "device", "batch_size", "actors", "shared_folders", "verbose"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, evaluate, print, apply the gates."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check_fit(parser, args)
    from pipelines.coco.documents import write_document
    from pipelines.evaluation.annotations import read_annotations
    from pipelines.evaluation.evaluate import check_has_images
    from pipelines.evaluation.gate import check_comparable, read_baseline
    from pipelines.evaluation.precision_recall_plot import check_can_plot, plot_precision_recall
    from pipelines.store.uris import file_name

    options = make_config(parser, StoreOptions, args)
    try:
        if args.plot is not None:
            check_can_plot(args.plot)
        baseline = None if args.baseline is None else read_baseline(args.baseline, options=options)
        annotations = read_annotations(args.annotations, options=options, picture_size=args.picture_size)
        if baseline is not None:
            check_comparable(baseline, annotations)
    except ValueError as error:
        parser.error(str(error))
    evaluation = _evaluate(parser, args, annotations, options)
    if args.table is not None:
        check_has_images(evaluation)

    figures = json.dumps(evaluation.as_json(), indent=2)
    print(figures if args.json else report(evaluation), flush=True)  # first: writing can fail
    if args.output is not None:
        write_document(args.output, f"{figures}\n".encode(), what="the figures", options=options.of_table())
    if args.plot is not None:
        whose = " and ".join(evaluation.models) or file_name(args.results or args.table or args.model)
        title = f"{whose}, {evaluation.images:,} images"
        plot_precision_recall(evaluation.average_precision, args.plot, title=title)
    _judge(_verdicts(args, evaluation, baseline), stream=sys.stderr if args.json else sys.stdout)


def _parser() -> CommandParser:
    parser = CommandParser("evaluate", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", metavar="URI", help="measure the published rows of a detection table")
    what.add_argument(
        "--results", metavar="URI", help="measure a COCO results json: image_id, category_id, bbox, score"
    )
    what.add_argument(
        "--model",
        metavar="REF",
        help="label --images with this model (docs/models.md), and measure its rows: a hub id with optional @revision, "
        "a directory, a .pth or .ckpt, a URI, or scenes",
    )
    parser.add_argument("--annotations", required=True, metavar="URI", help="a COCO json with the images' boxes")
    parser.add_argument("--picture-size", type=with_its_error(height_and_width), metavar="HEIGHTxWIDTH",
                        help="evaluate only images of this size in pixels (all)")  # fmt: skip
    parser.add_argument("--match-classes", choices=("number", "name"),
                        help="compare classes by number or by name, of --table or --model (by number; refused where a "
                        "class has one number in the table and another in the annotations)")  # fmt: skip
    parser.add_argument("--output", metavar="URI", help="write the figures to this file or object, as JSON")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--plot", type=local_path, metavar="FILE", help="draw precision over recall: .png, .pdf, .svg "
                        "(needs the extra `plot`)")  # fmt: skip
    parser.add_argument("--evaluator", choices=("ultrafast", "pycocotools"), default="ultrafast",
                        help="the package that computes the figures; both give the same, pycocotools takes more than "
                        "20 times the CPU time and 4 times the memory (%(default)s)")  # fmt: skip
    _add_table_options(parser.add_argument_group("with --table"))
    _add_model_options(parser.add_argument_group("with --model"))
    _add_gate_options(parser.add_argument_group("exit code 3 unless the figures are good enough"))
    add_options(parser.add_argument_group("stores"), StoreOptions)
    return parser


def _add_table_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--run-id", metavar="ID", help="only the rows of this run (the current row of every image)")
    group.add_argument("--settings", metavar="TEXT", help="only rows with these settings, as in the column `settings` "
                       "(all, if they have the same)")  # fmt: skip
    group.add_argument("--allow-thresholded", action="store_true", default=None,
                       help="also measure a table labelled with a threshold or with some classes only; its AP is "
                       "lower than the model's, and the output says what is missing")  # fmt: skip


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--images", nargs="+", metavar="URI", help="folders, prefixes, globs, images, lists of URIs, or "
                       "folders of web servers; only annotated images are labelled")  # fmt: skip
    group.add_argument("--keep-table", metavar="URI", help="label into this table, existing or new, and "
                       "keep it, so that the same command can be resumed (a temporary table)")  # fmt: skip
    group.add_argument("--precision", choices=get_args(Precision),
                       help="number format of the network (fp32, so that results of different machines can be "
                       "compared; `ray-detr label` uses auto by default)")  # fmt: skip
    add_options(group, LabelConfig, only=("device", "batch_size", "actors"), use_defaults=False)
    group.add_argument("--shared-folders", action="store_true", default=None,
                       help="declare that local paths are shared by all nodes, as with NFS; without it, local paths "
                       "are refused on a cluster of several nodes")  # fmt: skip
    group.add_argument("--verbose", action="store_true", default=None, help="show Ray's own messages")


def _add_gate_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--expect-ap", type=points, metavar="POINTS", help="expected AP in points, such as 42.0")
    group.add_argument("--tolerance", type=points, metavar="POINTS",
                       help=f"allowed difference from --expect-ap, in points ({TOLERANCE_POINTS})")  # fmt: skip
    group.add_argument("--baseline", metavar="URI", help="an earlier --output, for the model in use and the same "
                       "annotations: the AP must not be lower")  # fmt: skip
    group.add_argument("--max-drop", type=share, metavar="AP",
                       help=f"allowed drop of the AP (0..1) below the baseline ({MAX_DROP})")  # fmt: skip


def _check_fit(parser: CommandParser, args: argparse.Namespace) -> None:
    """Exit with a message if an option does not fit the evaluated source."""
    for source, names in BELONGS.items():
        given = next((name for name in names if getattr(args, name) is not None), None)
        if getattr(args, source) is None and given is not None:
            parser.error(f"--{given.replace('_', '-')} needs --{source}")
    if args.results is not None and args.match_classes is not None:
        parser.error("--match-classes needs --table or --model: a results json has no class names")
    if args.model is not None and args.images is None:
        parser.error("--model needs --images, the images to label")
    if args.tolerance is not None and args.expect_ap is None:
        parser.error("--tolerance needs --expect-ap")
    if args.max_drop is not None and args.baseline is None:
        parser.error("--max-drop needs --baseline")
    if args.output is not None and args.baseline is not None and _is_one(args.output, args.baseline):
        parser.error(f"--output {args.output} would replace the baseline: give another file")
    check_stays(parser, "--output", args.output)
    check_stays(parser, "--keep-table", args.keep_table)
    check_stays(parser, "--plot", None if args.plot is None else str(args.plot))
    output = None if args.output is None else path_of(args.output)
    check_can_be_written(parser, "--output", output, in_place="://" not in (args.output or ""))
    check_can_be_written(parser, "--plot", args.plot, in_place=True)
    if args.expect_ap is not None and args.expect_ap <= 1:
        parser.error(f"--expect-ap {args.expect_ap:g}: give points, as published: 42.0 is an AP of 0.420")


def _is_one(uri: str, other: str) -> bool:
    from pipelines.store import join_uri, split_uri

    return join_uri(*split_uri(uri)) == join_uri(*split_uri(other))


def _evaluate(
    parser: CommandParser, args: argparse.Namespace, annotations: "Annotations", options: "StoreOptions"
) -> "Evaluation":
    from pipelines.evaluation.evaluate import evaluate_results, evaluate_table

    if args.model is not None:
        return _evaluate_model(parser, args, annotations, options)
    try:
        if args.results is not None:
            return evaluate_results(args.results, annotations, options=options, evaluator=args.evaluator)
        from pipelines.evaluation.table_results import RowChoice

        return evaluate_table(
            args.table,
            annotations,
            options=options,
            choice=RowChoice(run_id=args.run_id, settings=args.settings),
            allow_thresholded=bool(args.allow_thresholded),
            match_classes=args.match_classes,
            evaluator=args.evaluator,
        )
    except ValueError as error:
        parser.error(str(error))


def _evaluate_model(
    parser: CommandParser, args: argparse.Namespace, annotations: "Annotations", options: "StoreOptions"
) -> "Evaluation":
    from jobs.progress import shown_progress
    from pipelines.evaluation.evaluate_model import ModelEvaluationConfig, evaluate_model

    try:
        config = ModelEvaluationConfig(
            model=args.model,
            images=tuple(args.images),
            keep_table=args.keep_table,
            precision=args.precision or "fp32",
            device=args.device or "auto",
            batch_size=args.batch_size,
            actors=args.actors or (None, None),
            options=options,
            shared_folders=bool(args.shared_folders),
            verbose=bool(args.verbose),
            match_classes=args.match_classes,
            evaluator=args.evaluator,
        )
    except ValueError as error:
        parser.error(str(error))
    with shown_progress(sys.stderr) as on_progress:
        return evaluate_model(config, annotations, on_progress=on_progress)


def _verdicts(args: argparse.Namespace, evaluation: "Evaluation", baseline: "Baseline | None") -> list["Verdict"]:
    from pipelines.evaluation.gate import compare_with_baseline, compare_with_expected

    verdicts = []
    if args.expect_ap is not None:
        tolerance = TOLERANCE_POINTS if args.tolerance is None else args.tolerance
        verdicts.append(compare_with_expected(evaluation, args.expect_ap, tolerance=tolerance))
    if baseline is not None:
        max_drop = MAX_DROP if args.max_drop is None else args.max_drop
        verdicts.append(compare_with_baseline(evaluation, baseline, max_drop=max_drop))
    return verdicts


def _judge(verdicts: Sequence["Verdict"], *, stream: TextIO) -> None:
    for verdict in verdicts:
        if verdict.passed:
            print(verdict.sentence, file=stream)
    failed = [verdict.sentence for verdict in verdicts if not verdict.passed]
    if failed:
        raise BudgetExceeded(f"{'; '.join(failed)}.")


def points(text: str) -> float:
    """Return a number from 0 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not in 0..100")
    return value


if __name__ == "__main__":
    run_process(main)
