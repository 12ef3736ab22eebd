"""Train the embedded default on drawn scenes, from scratch, on one CPU: `python -m jobs.train_scenes --out DIR`.

The same command goes on where an interrupted run was. At the end, and with --export at any time, the moving average
of the weights is written as a model directory.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.exits import run
from jobs.options import CommandParser

if TYPE_CHECKING:
    from detr.scenes_training import Progress

NICENESS = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, draw the scenes that are missing, train, export."""
    parser = CommandParser(prog="jobs.train_scenes", description=__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="checkpoint, scenes and model are kept here"
    )
    parser.add_argument("--minutes", type=float, default=125.0, metavar="N", help="time to train (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and draws (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (%(default)s)")
    parser.add_argument("--scenes", type=int, default=1300, metavar="N", help="scenes per picture ratio (%(default)s)")
    parser.add_argument("--export", action="store_true", help="only write the model directory of the last checkpoint")
    args = parser.parse_args(argv)
    # after the arguments, so that --help needs no torch
    from detr.average_precision import average_precision
    from detr.config import SCENES_CONFIG
    from detr.scenes_check import detect_unseen, draw_unseen, truth
    from detr.scenes_pool import draw_pool, open_pool
    from detr.scenes_training import ScenesTraining, Trainer, export, phase, train, use_threads

    try:
        config = ScenesTraining(budget_seconds=args.minutes * 60, seed=args.seed)
    except ValueError as error:
        parser.error(str(error))

    use_threads(args.threads)
    os.nice(NICENESS)
    checkpoint = args.out / "checkpoint.safetensors"
    trainer = Trainer(SCENES_CONFIG, config)
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"resuming at step {trainer.step:,}, {trainer.share:.1%} of {args.minutes:g} minutes", flush=True)
    elif args.export:
        parser.error(f"{checkpoint} does not exist: nothing to export")

    if not args.export:
        draw_pool(args.out / "pool", args.scenes, report=lambda sentence: print(sentence, flush=True))
        unseen = draw_unseen(8)
        annotations = truth(unseen)

        def evaluate(trainer: Trainer) -> None:
            _, side = phase(trainer.share)
            begun = time.monotonic()
            score = average_precision(annotations, detect_unseen(trainer.ema, unseen, side))
            print(
                f"  step {trainer.step:,}, side {side}, {len(annotations['images'])} unseen scenes: AP {score.AP:.3f} "
                f"AP50 {score.AP50:.3f} AP75 {score.AP75:.3f}, class-agnostic AP {score.class_agnostic:.3f} "
                f"({time.monotonic() - begun:.0f} s)",
                flush=True,
            )

        train(trainer, open_pool(args.out / "pool"), checkpoint, report=_print_progress, evaluate=evaluate)
    print(f"wrote {export(trainer, args.out / 'model')}", flush=True)


def _print_progress(progress: "Progress") -> None:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in sorted(progress.losses.items()))
    print(
        f"{time.strftime('%H:%M:%S', time.gmtime())}  {progress.share:6.1%}  step {progress.step:,}  "
        f"images {progress.images:,}  rate {progress.rate_factor:.3f}  {progress.cpu_ms_per_image:.1f} ms CPU/image  "
        f"{losses}",
        flush=True,
    )


if __name__ == "__main__":
    run(main)
