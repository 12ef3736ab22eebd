"""Compare the speed of ray-detr with other libraries, or with another checkout of itself.

ray-detr bench model --peers transformers openvino onnxruntime --shapes 800x1066 --batch 1 4
ray-detr bench model --model run/checkpoint-500 --shapes 480x640
ray-detr bench model --model random:all --shapes 480x640 --count 2
ray-detr bench label --peers pipeline raydata daft --count 4 16
ray-detr bench start --against ../ray-detr-before
ray-detr bench gpu-check --minutes 8 --out report

Every measurement is a fresh process; rounds alternate between the candidates. The Markdown report on standard output
has the CPU seconds of the whole process tree (on a GPU, wall seconds) and how well the results agree.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.exits import run_process
from jobs.options import count, minutes
from jobs.parser import CommandParser

MODES = ("model", "label", "train", "decode", "evaluate", "start")
PEERS = ("transformers", "pipeline", "raydata", "daft", "openvino", "onnxruntime")
COUNTS = {"model": (8,), "label": (4, 16), "train": (8,), "decode": (32,), "evaluate": (1000, 5000), "start": (12,)}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = _parser()
    args = parser.parse_args(argv)
    command = "python -m jobs.bench " + shlex.join(sys.argv[1:] if argv is None else list(argv))
    from pipelines.errors import RayDetrError

    if args.mode == "gpu-check":
        if args.out is None:
            parser.error("gpu-check needs --out DIR: it keeps every figure there as soon as it is measured")
        _gpu_check(args, command)
        return
    from pipelines.benchmarks.benchmark import BenchConfig, SubjectFailed
    from pipelines.benchmarks.report import to_markdown
    from pipelines.benchmarks.suite import run_benchmark

    if args.against is not None and not (args.against / "detr" / "__init__.py").is_file():
        parser.error(f"--against {args.against}: no checkout of ray-detr, it has no detr/__init__.py")
    if args.images is not None and not args.images.is_dir():
        parser.error(f"--images {args.images}: no such folder")
    try:
        config = BenchConfig(
            mode=args.mode,
            peers=tuple(dict.fromkeys(args.peers)),
            against=None if args.against is None else args.against.resolve(),
            out=args.out,
            rounds=args.rounds,
            device=args.device,
            precisions=tuple(args.precision),
            shapes=tuple(args.shapes),
            batches=tuple(args.batch),
            parts=tuple(args.parts),
            compiled=args.compile,
            threads=args.threads,
            images=tuple(args.count or COUNTS[args.mode]),
            folder=args.images,
            model=args.model,
            shorter=args.shorter,
            seconds=args.seconds,
            actors=args.actors,
            detections=args.detections,
            price_per_hour=args.price_per_hour,
            timeout_s=60 * args.timeout_minutes,
            command=command,
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        report = run_benchmark(config, on_progress=lambda line: print(line, file=sys.stderr, flush=True))
    except SubjectFailed as failed:
        raise RayDetrError(str(failed)) from failed
    print(to_markdown(report))
    if report.failures:
        raise RayDetrError("not everything could be measured: " + "; ".join(report.failures))


def _gpu_check(args: argparse.Namespace, command: str) -> None:
    from pipelines.benchmarks.gpu_check import gpu_check
    from pipelines.errors import RayDetrError

    try:
        report = gpu_check(
            args.out,
            minutes=args.minutes,
            smoke=args.smoke,
            command=command,
            on_progress=lambda line: print(line, flush=True),
        )
    except OSError as error:
        raise RayDetrError(f"figures cannot be kept in {args.out}: {error}") from error
    print(f"figures: {report}")


def _parser() -> CommandParser:
    parser = CommandParser("bench", __doc__)
    parser.add_argument("mode", choices=(*MODES, "gpu-check"), help="what to measure")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, default=[], metavar="NAME",
        help=f"also measure these, if they are installed: {', '.join(PEERS)} (none)",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="another checkout of ray-detr to measure as well (none)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep MODE.json and MODE.md there (nothing is kept)")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="rounds of fresh processes (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "bf16", "fp16"),
        default=["fp32"],
        help="number format of the network (fp32)",
    )
    parser.add_argument(
        "--shapes", nargs="+", type=shape, default=[(800, 1066)], metavar="HxW",
        help="model, train: image size at the network's input (800x1066)",
    )  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=count, default=[1], metavar="N", help="images in a batch (1)")
    parser.add_argument(
        "--parts", nargs="+", choices=("detect", "forward"), default=["detect"],
        help="model: detect is from uint8 pixels to detections, forward is the network alone (detect)",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="model: also measure compiled networks (forward)")
    parser.add_argument("--threads", type=count, default=1, metavar="N", help="threads of each candidate (%(default)s)")
    parser.add_argument(
        "--count", nargs="+", type=count, metavar="N",
        help="number of images; label and evaluate take two, to compute the fixed and the marginal cost",
    )  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="DIR", help="label, decode, start: photographs (drawn scenes)")
    parser.add_argument(
        "--model",
        default="random",
        metavar="REF",
        help="model, label, start: a model, as in `ray-detr label` (a random DETR-R50); model: random:NAME is random "
        "weights in the size of a published checkpoint, such as random:rtdetr_r18vd, and random:all one of each family",
    )
    parser.add_argument(
        "--shorter",
        type=count,
        default=800,
        metavar="N",
        help="pixels of the shorter side after resizing (%(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        metavar="N",
        help="shortest time to measure in the steady state (%(default)g)",
    )
    parser.add_argument("--actors", metavar="MIN:MAX", help="label, start: --actors of the command (its default)")
    parser.add_argument(
        "--detections", type=count, default=100, metavar="N", help="evaluate: detections in each image (%(default)s)"
    )
    parser.add_argument(
        "--price-per-hour", type=float, metavar="USD", help="price of this machine; adds the cost of a million images"
    )
    parser.add_argument(
        "--timeout-minutes", type=minutes, default=30.0, metavar="N", help="limit for one process (%(default)g)"
    )
    parser.add_argument(
        "--minutes", type=minutes, default=8.0, metavar="N", help="gpu-check: limit for all of it (%(default)g)"
    )
    parser.add_argument("--smoke", action="store_true", help="gpu-check: run a small version on the CPU")
    return parser


def shape(text: str) -> tuple[int, int]:
    """Return (height, width) of `HEIGHTxWIDTH`."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, such as 800x1066")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    run_process(main)
