"""Options of the commands: add those that a configuration declares, and parse single values."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Container, Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar, get_args

from detr.precision import Precision
from jobs.parser import CommandParser
from pipelines.options import Declared, declared, groups

Config = TypeVar("Config")
Value = TypeVar("Value")

RAY_JOB_FOLDER = "/runtime_resources/working_dir_files/"


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    config: type,
    *,
    prefix: str = "",
    only: Container[str] | None = None,
    use_defaults: bool = True,
) -> None:
    """Add the options of a configuration and of its groups.

    Args:
        parser: of the command, or a group of its options.
        config: a dataclass with fields made by `pipelines.options.option` and `group`.
        prefix: prefix of the options' names.
        only: names of the fields to add; None adds all.
        use_defaults: if False, an omitted option is None, independent of the field's default.
    """
    for one in declared(config, prefix=prefix):
        if only is None or one.name in only:
            _add_option(parser, one, use_defaults=use_defaults)
    for name, nested in groups(config):
        if only is None or name in only:
            add_options(parser, nested.kind, prefix=prefix + nested.prefix, only=nested.only, use_defaults=use_defaults)


def option_values(args: argparse.Namespace, config: type, *, prefix: str = "") -> dict[str, Any]:
    """Return the values of a configuration's fields that have options on the command line."""
    values = {
        one.name: tuple(value) if isinstance(value := getattr(args, _dest(one)), list) else value
        for one in declared(config, prefix=prefix)
        if hasattr(args, _dest(one))
    }
    for name, nested in groups(config):
        inner = option_values(args, nested.kind, prefix=prefix + nested.prefix)
        if inner:
            values[name] = nested.kind(**inner)
    return values


def make_config(parser: CommandParser, config: type[Config], args: argparse.Namespace, **others: Any) -> Config:
    """Return the configuration from the command line, or exit with code 2 and an error message.

    Args:
        parser: of the command.
        config: the dataclass whose options were added by `add_options`.
        args: the parsed command line.
        others: fields that do not correspond to one option.
    """
    try:
        return config(**{**option_values(args, config), **others})
    except ValueError as error:
        parser.error(str(error))


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for device and precision of a network on this machine."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu or cuda; auto uses a GPU if there is one (%(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="number format of the network; auto is fp16 on GPUs and fp32 on CPUs (%(default)s)",
    )


def add_metrics_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for exporting Prometheus metrics."""
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="export Prometheus metrics through Ray's exporter (docs/operations.md lists them)",
    )


def note_on_model(reference: str) -> None:
    """Print a note about the capabilities of the package's model on standard error."""
    if reference == "scenes":
        print(
            "note: the model scenes detects only six drawn shapes (disc, square, triangle, star, ring and cross). "
            "For photographs, give another model, such as --model facebook/detr-resnet-50",
            file=sys.stderr,
        )


def refuse_given(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str], whose: str) -> None:
    """Exit with code 2 if an option of another action of the command is given.

    Args:
        parser: of the command.
        args: the parsed command line.
        names: attributes of `args` that this action does not use.
        whose: the action that uses them, for the message.
    """
    for name in sorted(names):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} applies only to {whose}")


def check_stays(parser: argparse.ArgumentParser, option: str, uri: str | None) -> None:
    """Exit with code 2 if a local path is in the folder that Ray creates for a job and removes afterwards.

    Relative paths of a job that was submitted with `--working-dir` are in this folder.
    """
    if uri is None or ("://" in uri and not uri.startswith("file:")):
        return
    path = local_path(uri).absolute()
    if RAY_JOB_FOLDER in path.as_posix():
        parser.error(
            f"{option} {uri}: the job runs in a temporary folder of Ray ({Path.cwd()}), which Ray removes with "
            "everything in it. Give a path that begins with /, or the address of a store, such as s3://bucket/folder."
        )


def check_no_file(parser: argparse.ArgumentParser, option: str, uri: str) -> None:
    """Exit with code 2 if the folder of an option is a file of this machine."""
    path = path_of(uri)
    if path is not None and os.path.isfile(path):  # noqa: PTH113 - as in check_can_be_written
        parser.error(f"{option} {uri} is a file: give a folder, which is created if it does not exist")


def path_of(uri: str) -> Path | None:
    """Return the path of a local file or folder that is given as a path or an address; None for others."""
    from pipelines.store.uris import LOCAL_ROOT, split_uri

    root, key = split_uri(uri)
    return Path("/", key) if root == LOCAL_ROOT else None


def check_can_be_written(
    parser: argparse.ArgumentParser, option: str, file: Path | None, *, in_place: bool = False
) -> None:
    """Exit with code 2 if a file that the command writes at its end cannot be written: its work would be wasted.

    Folders that do not exist are created when the file is written.

    Args:
        parser: of the command.
        option: the option that names the file.
        file: the file, or None if the option is not given.
        in_place: whether an existing file is overwritten; otherwise a new file in its folder takes its name.
    """
    if file is None:
        return
    if os.path.isdir(file):  # noqa: PTH112 - Path.is_dir() raises PermissionError in a folder that cannot be entered
        parser.error(f"{option} {file} is a folder: name a file")
    if os.path.exists(file) and not os.path.isfile(file):  # noqa: PTH110, PTH113
        return  # such as /dev/stdout, unless it is redirected to a file
    if in_place and os.path.isfile(file):  # noqa: PTH113
        if not os.access(file, os.W_OK):
            parser.error(f"{option} {file} cannot be written: permission denied")
        return
    folder = next(folder for folder in file.absolute().parents if os.path.lexists(folder))
    if not os.path.isdir(folder):  # noqa: PTH112
        parser.error(f"{option} {file} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        parser.error(f"{option} {file} cannot be written: permission denied in the folder {folder}")


def with_its_error(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return a function for `type=` of an argument whose ValueError is printed unchanged; argparse would replace it."""

    def read(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def local_path(text: str) -> Path:
    """Return the path of a file or folder of this machine."""
    if "://" in text and not text.startswith("file://"):
        raise argparse.ArgumentTypeError(
            f"{text} is not a path on this machine. Give one, and copy the result from there"
        )
    from pipelines.store.uris import with_home  # imported here, as below: it would double the time of `demo --help`

    return Path(with_home(text.removeprefix("file://")))


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    value = _number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return value


def count(text: str) -> int:
    """Return an integer of 1 or more."""
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


def _add_option(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, one: Declared, *, use_defaults: bool
) -> None:
    text = one.option.help.replace("%", "%%")
    default = None
    if use_defaults and one.default is not MISSING:
        default = list(one.default) if isinstance(one.default, tuple) and one.is_list else one.default
        if default is not None and default is not False and default != [] and one.option.parse is None:
            text += f" ({', '.join(map(_as_text, default if isinstance(default, list) else [default]))})"
    if one.kind is bool:
        switch: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if default is not False else {"action": "store_true"}
        )
        parser.add_argument(one.flag, *one.option.aliases, dest=_dest(one), default=default, help=text, **switch)
        return
    how: dict[str, Any] = {"nargs": "+"} if one.is_list else {}
    if one.choices:
        how["choices"] = one.choices
    parser.add_argument(
        one.flag,
        *one.option.aliases,
        dest=_dest(one),
        default=default,
        type=_reader(one),
        metavar=one.option.metavar,
        required=one.default is MISSING and use_defaults,
        help=text,
        **how,
    )


def _dest(one: Declared) -> str:
    return one.flag.removeprefix("--").replace("-", "_")


def _as_text(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _reader(one: Declared) -> Callable[[str], Any]:
    if one.option.parse is not None:
        return with_its_error(one.option.parse)
    if one.kind is Path:
        return local_path

    def read(text: str) -> Any:
        if one.kind not in (int, float):
            return one.kind(text)
        value = _number(text, one.kind)
        if not one.option.allows(value):
            raise argparse.ArgumentTypeError(f"{text} is not {one.option.limits or 'a finite number'}")
        return value

    return read


def _number(text: str, kind: type[float] | type[int]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
