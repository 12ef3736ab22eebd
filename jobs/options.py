"""Options that several commands share, and what their values mean."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")

AS_WRITTEN = argparse.RawDescriptionHelpFormatter

_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*):/+([^\s'\"]+)")


RAY_JOB_FOLDER = "/runtime_resources/working_dir_files/"


class CommandParser(argparse.ArgumentParser):
    """What reads a command's line: `--max_images` is `--max-images`, and an unknown option is told its nearest."""

    def __init__(self, *, prog: str, description: str | None) -> None:
        super().__init__(prog=prog, description=description, formatter_class=AS_WRITTEN)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Read a line as argparse does, underscores in names of options taken for hyphens."""
        return super().parse_known_args(
            [_hyphened(word) for word in (sys.argv[1:] if args is None else args)], namespace
        )

    def error(self, message: str) -> NoReturn:
        """Say how the command is used and what is wrong with the line, and leave with exit code 2.

        argparse repeats words of the line, in which an address may have a password.
        """
        from pipelines.store import without_secrets

        message = _ADDRESS.sub(lambda found: without_secrets(f"{found[1]}://{found[2]}"), message)
        unknown = re.search(r"unrecognized arguments: .*?(--[\w-]+)", message)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[1], known, n=1)
            message += f". Did you mean {near[0]}?" if near else ""
        super().error(message)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides which images are labelled into which table, and how they are reached."""
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="URI",
        help="folders, prefixes, globs, images, lists of URIs (.parquet, .csv, .tsv, .txt, .json, .jsonl), "
        "or the manifest.json of an S3 Inventory; s3://, gs://, az://, local paths, http(s):// in lists",
    )
    parser.add_argument("--table", required=True, metavar="URI", help="the detection table, existing or new")
    parser.add_argument(
        "--shard-images", type=count, metavar="N", help="images a shard (2048 on GPUs, 64 on CPUs, fewer in small runs)"
    )
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--max-images", type=count, metavar="N", help="label the first N images only (all)")
    some.add_argument("--sample", type=count, metavar="N", help="label N images drawn at random (all)")
    parser.add_argument("--seed", type=int, default=0, help="of --sample (%(default)s)")
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="COLUMN", help="columns of the lists that rows shall carry (none)"
    )
    parser.add_argument(
        "--via",
        choices=("auto", "fsspec"),
        default="auto",
        help="fsspec reads images through fsspec instead of the faster native client (%(default)s)",
    )
    parser.add_argument("--anonymous", action="store_true", help="read images without credentials: public buckets")
    parser.add_argument(
        "--request-payer", action="store_true", help="pay for reading images of buckets whose owner does not"
    )
    add_s3_options(parser)
    parser.add_argument("--table-endpoint", metavar="URL", help="the S3 server of table and model (--endpoint)")
    parser.add_argument("--table-region", metavar="NAME", help="the S3 region of table and model (--region)")
    parser.add_argument("--table-profile", metavar="NAME", help="the AWS profile for table and model (--profile)")


def add_s3_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add where S3 is, and who we are there."""
    parser.add_argument("--endpoint", metavar="URL", help="the S3 server's address (AWS_ENDPOINT_URL)")
    parser.add_argument("--region", metavar="NAME", help="the S3 region (AWS_REGION)")
    parser.add_argument("--profile", metavar="NAME", help="the AWS profile (AWS_* keys, then AWS_PROFILE)")


def add_retry_option(parser: argparse.ArgumentParser) -> None:
    """Add what decides which errors of earlier runs are tried again."""
    parser.add_argument(
        "--retry-errors",
        choices=("passing", "all"),
        default="passing",
        help="which error rows are tried again: those that the world was the reason of, or all (%(default)s)",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides what is detected."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="REF",
        help="a hub id with optional @revision, a directory, a .pth or .ckpt, a URI, or scenes (the embedded model)",
    )
    parser.add_argument("--threshold", type=share, default=0.05, help="least score kept; 0 keeps all (%(default)s)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="%(default)s: fp16 on GPUs, fp32 on CPUs; tf32 is fp32 with rounded operands on GPUs",
    )


def add_batch_size_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add how many images go through the network together."""
    parser.add_argument(
        "--batch-size",
        type=count,
        metavar="N",
        help="images in a batch at most (32 on GPUs, 1 on CPUs; halved by itself where a GPU has too little memory)",
    )


def check_stays(parser: argparse.ArgumentParser, option: str, uri: str | None) -> None:
    """Leave with exit code 2 where a local path lies in the folder that Ray makes for a job and removes after it.

    Relative paths of a job that was submitted with `--working-dir` lie there.
    """
    if uri is None or ("://" in uri and not uri.startswith("file:")):
        return
    path = Path(uri.removeprefix("file://")).absolute()
    if RAY_JOB_FOLDER in path.as_posix():
        parser.error(
            f"{option} {uri}: the job runs in a temporary folder of Ray ({Path.cwd()}), which Ray removes with all "
            "that is written there. Give a path that begins with /, or the address of a store, such as s3://bucket/folder."
        )


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return value


def count(text: str) -> int:
    """Return a whole number from 1 on."""
    value = int(_number(text, int))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def minutes(text: str) -> float:
    """Return a time above 0."""
    value = _number(text, float)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes above 0")
    return value


def actor_range(text: str) -> tuple[int | None, int | None]:
    """Return the bounds of `MIN:MAX`, either of which may be left out; `N` is `N:N`."""
    least, colon, most = text.partition(":")
    bounds = (count(least) if least else None, count(most) if most else None)
    if not colon:
        bounds = (bounds[0], bounds[0])
    if bounds[0] is not None and bounds[1] is not None and bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"{text}: MIN is larger than MAX")
    return bounds


def class_threshold(text: str) -> tuple[str, float | None]:
    """Return the name and the threshold of `NAME` or `NAME=THRESHOLD`."""
    name, equals, threshold = text.rpartition("=")
    return (name, share(threshold)) if equals else (text, None)


def _hyphened(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _number(text: str, kind: type[float] | type[int]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
