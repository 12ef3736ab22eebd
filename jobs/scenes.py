"""Draw labelled scenes of plain shapes, with COCO annotations.

ray-detr scenes --out scenes --count 200 --seed 1

The model `scenes`, which is part of the package, detects these shapes.
"""

from collections.abc import Sequence

from jobs.exits import run_process
from jobs.options import local_path
from jobs.parser import CommandParser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, draw and write, print."""
    parser = CommandParser("scenes", __doc__)
    parser.add_argument(
        "--out",
        required=True,
        type=local_path,
        metavar="DIR",
        help="a new or empty folder, or one with some of these scenes; the missing ones are added",
    )
    parser.add_argument("--count", type=int, default=200, metavar="N", help="number of scenes (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the same seed gives the same scenes (%(default)s)"
    )
    parser.add_argument(
        "--training",
        action="store_true",
        help="small landscape pictures with eleven aspect ratios, for `ray-detr train --recipe scenes`",
    )
    args = parser.parse_args(argv)
    # imported after parsing, so that --help needs no numpy
    from detr.scenes.files import PICTURE_SIZES, TRAINING_SIZES, write_scenes
    from pipelines.errors import RayDetrError

    try:
        truth = write_scenes(args.out, args.count, args.seed, sizes=TRAINING_SIZES if args.training else PICTURE_SIZES)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    except OSError as error:
        raise RayDetrError(
            f"cannot write scenes to {args.out}: {error.strerror or error}. Run the same command again to add what is "
            "missing."
        ) from error

    print(f"{args.count:,} scenes of seed {args.seed} are in {args.out}, their annotations in {truth}")


if __name__ == "__main__":
    run_process(main)
