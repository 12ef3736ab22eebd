"""Options that several commands share, and what their values mean."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from jobs.exits import WRONG_USE

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")

AS_WRITTEN = argparse.RawDescriptionHelpFormatter

_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*):/+([^\s'\"]+)")


RAY_JOB_FOLDER = "/runtime_resources/working_dir_files/"


class CommandParser(argparse.ArgumentParser):
    """Parser of one command: `--max_images` means `--max-images`, and an error is one line.

    Args:
        command: the name behind `ray-detr`, such as `label`.
        description: the docstring of the command's module, printed as it is written.
        usage: what follows the program's name in the usage; by default what is required and `[OPTION ...]`.
    """

    def __init__(self, command: str, description: str | None, *, usage: str | None = None) -> None:
        super().__init__(prog=typed_program(command), description=description, formatter_class=AS_WRITTEN)
        self._usage = usage
        self._words: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Parse as argparse does, with underscores in option names read as hyphens."""
        self._words = [_hyphened(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self._words, namespace)

    def format_usage(self) -> str:
        """Return the usage in one line: what is required, and that there are options."""
        return f"usage: {self._short_usage()}\n"

    def format_help(self) -> str:
        """Return the help; its usage has what is required only, because every option has a line of its own below."""
        self.usage = self._short_usage().replace("%", "%%")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line, with the nearest option if one is unknown, and exit with code 2.

        argparse quotes the command line, in which an address may contain a password.
        """
        from pipelines.store import without_secrets

        names = [name for action in self._actions for name in action.option_strings]
        own = takewhile(lambda word: word != "--", self._words)  # behind it are values, such as another command's line
        given = [word.partition("=")[0] for word in own if word.startswith("--")]
        unknown = next((word for word in given if not any(name.startswith(word) for name in names)), None)
        if unknown is not None:  # argparse would first demand the required options
            near = difflib.get_close_matches(unknown, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"{self.prog} --help lists the options."
            message = f"{unknown} is not an option. {hint}"
        message = _ADDRESS.sub(lambda found: without_secrets(f"{found[1]}://{found[2]}"), message)
        self.exit(WRONG_USE, f"{self.prog}: error: {message}\n")

    def _short_usage(self) -> str:
        if self._usage is not None:
            return f"{self.prog} {self._usage}"
        exclusive = [group for group in self._mutually_exclusive_groups if group.required]
        grouped = {action for group in exclusive for action in group._group_actions}  # noqa: SLF001 - argparse has no accessor
        parts = [_usage(action) for action in self._actions if action.required and action not in grouped]
        parts += [f"({' | '.join(map(_usage, group._group_actions))})" for group in exclusive]  # noqa: SLF001
        return " ".join([self.prog, *parts, "[OPTION ...]"])


def typed_program(command: str) -> str:
    """Return how the user started a command: `python -m jobs.label` or `ray-detr label`."""
    module = command.replace("-", "_")
    if Path(sys.argv[0]).name == f"{module}.py":
        return f"python -m jobs.{module}"
    return f"ray-detr {command}"


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides which images are labelled into which table, and how they are reached."""
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="URI",
        help="folders, prefixes, globs, images, .tar archives, lists of URIs (.parquet, .csv, .tsv, .txt, .json, "
        ".jsonl), or the manifest.json of an S3 Inventory; s3://, gs://, az://, local paths, http(s):// in lists",
    )
    parser.add_argument("--table", required=True, metavar="URI", help="the detection table, existing or new")
    parser.add_argument(
        "--shard-images",
        type=count,
        metavar="N",
        help="images in each shard (2048 on GPUs, 64 on CPUs, fewer in small runs)",
    )
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--max-images", type=count, metavar="N", help="label only the first N images (all)")
    some.add_argument("--sample", type=count, metavar="N", help="label N images drawn at random (all)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of --sample (%(default)s)")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of the lists of URIs to copy into the table (none)",
    )
    add_image_column_option(parser)
    parser.add_argument(
        "--via",
        choices=("auto", "fsspec"),
        default="auto",
        help="fsspec: read images through fsspec instead of the faster native client (%(default)s)",
    )
    parser.add_argument("--anonymous", action="store_true", help="read images without credentials, for public buckets")
    parser.add_argument("--request-payer", action="store_true", help="send requester-pays headers when reading images")
    add_s3_options(parser)
    add_table_s3_options(parser)


def add_image_column_option(parser: argparse.ArgumentParser) -> None:
    """Add which column of Parquet files holds images."""
    parser.add_argument(
        "--image-column",
        metavar="COLUMN",
        help="read the images themselves from this column of the Parquet files: bytes, or a struct of bytes and path "
        "(Parquet files are lists of URIs)",
    )


def add_table_s3_options(parser: argparse.ArgumentParser) -> None:
    """Add where S3 is for table and model, where they are not with the images."""
    parser.add_argument("--table-endpoint", metavar="URL", help="S3 server of the table and the model (--endpoint)")
    parser.add_argument("--table-region", metavar="NAME", help="S3 region of the table and the model (--region)")
    parser.add_argument("--table-profile", metavar="NAME", help="AWS profile for the table and the model (--profile)")


def add_s3_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add where S3 is, and who we are there."""
    parser.add_argument("--endpoint", metavar="URL", help="address of the S3 server (AWS_ENDPOINT_URL)")
    parser.add_argument("--region", metavar="NAME", help="S3 region (AWS_REGION)")
    parser.add_argument("--profile", metavar="NAME", help="AWS profile (keys in AWS_*, then AWS_PROFILE)")


def add_retry_option(parser: argparse.ArgumentParser) -> None:
    """Add what decides which errors of earlier runs are tried again."""
    parser.add_argument(
        "--retry-errors",
        type=lambda text: "transient" if text == "passing" else text,  # its former name
        choices=("transient", "all"),
        default="transient",
        help="which images with error rows to label again: those with transient errors, or all (%(default)s)",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides what is detected."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="REF",
        help="DETR or another detector (docs/models.md): a hub id with optional @revision, a directory, a .pth or "
        ".ckpt, a URI, or scenes (the embedded model)",
    )
    add_settings_options(parser)


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides which detections of a model are kept, and how they are computed."""
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.05,
        metavar="SCORE",
        help="lowest score to keep; 0 keeps all queries (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="number format of the network; auto is fp16 on GPUs and fp32 on CPUs; tf32 is fp32 with "
        "operands rounded to 10 bits on GPUs (%(default)s)",
    )


def add_classes_option(parser: argparse.ArgumentParser) -> None:
    """Add which classes are kept."""
    parser.add_argument(
        "--classes",
        nargs="+",
        type=class_threshold,
        metavar="NAME[=THRESHOLD]",
        help="keep only these classes; a class may have its own threshold (all classes)",
    )


def add_relabel_option(parser: argparse.ArgumentParser) -> None:
    """Add whether a table may get rows with other settings."""
    parser.add_argument(
        "--relabel",
        action="store_true",
        help="label again images that the table has with another threshold, classes or precision; both rows are kept, "
        "told apart by the column settings (refuse)",
    )


def note_on_model(reference: str) -> None:
    """Say on standard error what the model of the package can and cannot do."""
    if reference == "scenes":
        print(
            "note: the model scenes knows six drawn shapes only (disc, square, triangle, star, ring and cross). For "
            "photographs give another, such as --model facebook/detr-resnet-50",
            file=sys.stderr,
        )


def add_cap_options(parser: argparse.ArgumentParser, *, on_stop: str) -> None:
    """Add the limits on the time and the cost of one call; `on_stop` says what is finished before it stops."""
    parser.add_argument(
        "--max-minutes",
        type=minutes,
        metavar="N",
        help=f"stop after N minutes, resumable, with exit code 5; {on_stop} first (no limit)",
    )
    parser.add_argument(
        "--max-cost",
        type=above_zero,
        metavar="X",
        help="the same when the nodes have cost X; needs --price-per-hour (no limit)",
    )
    parser.add_argument(
        "--price-per-hour",
        type=above_zero,
        metavar="P",
        help="price of one node for an hour, in any currency (none)",
    )


def add_metrics_option(parser: argparse.ArgumentParser) -> None:
    """Add whether Prometheus metrics are exported."""
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="export Prometheus metrics through Ray's exporter (docs/operations.md lists them)",
    )


def add_batch_size_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add how many images go through the network together."""
    parser.add_argument(
        "--batch-size",
        type=count,
        metavar="N",
        help="largest batch (32 on GPUs, 1 on CPUs; halved automatically if a GPU runs out of memory)",
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
            "that is written there. Give a path that begins with /, or the address of a store, such as "
            "s3://bucket/folder."
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
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes above 0")
    return value


def above_zero(text: str) -> float:
    """Return a number above 0."""
    value = _number(text, float)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
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


def _usage(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest.upper())
    if action.choices is not None and action.metavar is None:
        value = f"{{{','.join(map(str, action.choices))}}}"
    if action.nargs == "+":
        value = f"{value} [{value} ...]"
    return " ".join([*action.option_strings[:1], value])


def _hyphened(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _number(text: str, kind: type[float] | type[int]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
