"""Compare the speed of ray-detr with other libraries, or with another checkout of itself.

ray-detr bench model --peers transformers openvino onnxruntime --parts detect forward --batch 1 4
ray-detr bench model --model run/checkpoint-500 --shapes 480x640
ray-detr bench model --model random:all --shapes 480x640 --count 2
ray-detr bench label --peers pipeline raydata daft --count 4 16
ray-detr bench start --against ../ray-detr-before
ray-detr bench gpu-check --minutes 8 --out report

Every measurement is a fresh process; rounds alternate between the candidates. The Markdown report on standard output
has the CPU seconds of the whole process tree (on a GPU, wall seconds) and how well the results agree.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from jobs.exits import run_process
from jobs.options import add_options, make_config, minutes
from jobs.parser import CommandParser
from pipelines.benchmarks.config import MODES, BenchConfig
from pipelines.errors import RayDetrError


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = _parser()
    args = parser.parse_args(argv)
    command = "python -m jobs.bench " + shlex.join(sys.argv[1:] if argv is None else list(argv))
    if args.mode == "gpu-check":
        if args.out is None:
            parser.error("gpu-check needs --out DIR: it writes every figure to this folder as soon as it is measured")
        _gpu_check(args, command)
        return
    config = make_config(parser, BenchConfig, args, mode=args.mode, command=command)
    from pipelines.benchmarks.benchmark import SubjectFailed
    from pipelines.benchmarks.report import to_markdown
    from pipelines.benchmarks.suite import run_benchmark

    try:
        report = run_benchmark(config, on_progress=lambda line: print(line, file=sys.stderr, flush=True))
    except SubjectFailed as failed:
        raise RayDetrError(str(failed)) from failed
    print(to_markdown(report))
    if report.failures:
        raise RayDetrError("not everything could be measured: " + "; ".join(report.failures))


def _gpu_check(args: argparse.Namespace, command: str) -> None:
    from pipelines.benchmarks.gpu_check import gpu_check

    try:
        report = gpu_check(
            args.out,
            minutes=args.minutes,
            smoke=args.smoke,
            command=command,
            on_progress=lambda line: print(line, flush=True),
        )
    except OSError as error:
        raise RayDetrError(f"figures cannot be written to {args.out}: {error}") from error
    print(f"figures: {report}")


def _parser() -> CommandParser:
    parser = CommandParser("bench", __doc__)
    parser.add_argument("mode", choices=(*MODES, "gpu-check"), help="what to measure")
    add_options(parser, BenchConfig)
    parser.add_argument(
        "--minutes", type=minutes, default=8.0, metavar="N", help="gpu-check: limit for all of it (%(default)g)"
    )
    parser.add_argument("--smoke", action="store_true", help="gpu-check: run a small version on the CPU")
    return parser


if __name__ == "__main__":
    run_process(main)
