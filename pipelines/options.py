"""Options of commands, declared once: dataclass fields with their help text and their limits.

The command line (`jobs.options`), the reference docs/cli.md and the checks of a configuration are built from these.
Needs the standard library only, so that `--help` loads nothing else.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Option:
    """The command-line option of a field, and its allowed values.

    Args:
        help: what the option does; for a default of None it ends with the meaning of None, in parentheses.
        metavar: name of the value in the help.
        flag: the option's name; None is the field's, with hyphens.
        aliases: its other names.
        at_least: the smallest number.
        above: exclusive lower bound.
        at_most: the largest number.
        parse: returns the value of one word and raises ValueError; None follows from the field's type.
        is_list: whether `parse` is called for each of several words; without `parse` the field's type decides.
        takes_infinity: whether `inf` is allowed, such as for a time without a limit.
    """

    help: str
    metavar: str | None = None
    flag: str | None = None
    aliases: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    parse: Callable[[str], Any] | None = None
    is_list: bool = False
    takes_infinity: bool = False

    @property
    def limits(self) -> str:
        """The allowed numbers, such as `in 0..1`; empty if there are no limits."""
        if self.above is not None:
            return f"above {self.above:g}" + ("" if self.at_most is None else f" and at most {self.at_most:g}")
        if self.at_least is not None and self.at_most is not None:
            return f"in {_number(self.at_least)}..{_number(self.at_most)}"
        return "" if self.at_least is None else f"at least {_number(self.at_least)}"

    def allows(self, value: float) -> bool:
        """Return whether a number is within the limits, and finite unless infinity is allowed."""
        return (
            not math.isnan(value)
            and (self.takes_infinity or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Declared:
    """A field that is an option.

    Attributes:
        name: the field's name.
        flag: the option's, such as `--max-error-rate`.
        kind: the type of one value: str, int, float, bool, Path, or another for `option.parse`.
        choices: the allowed values, or none.
        is_list: whether the field is a tuple of such values.
        default: the field's default; `dataclasses.MISSING` if it must be given.
        option: help and limits.
    """

    name: str
    flag: str
    kind: type
    choices: tuple[Any, ...]
    is_list: bool
    default: Any
    option: Option


def option(help: str, *, default: Any = MISSING, **how: Any) -> Any:  # noqa: A002 - the word of argparse
    """Declare a dataclass field as an option; `how` has further fields of `Option`."""
    return field(default=default, metadata={"option": Option(help, **how)})


@dataclass(frozen=True, slots=True)
class Group:
    """A dataclass of options that is a field of another.

    Attributes:
        kind: the dataclass.
        prefix: begins the names of its options, such as `table_`.
        only: names of the fields that the command has options for; None: all.
    """

    kind: type
    prefix: str = ""
    only: tuple[str, ...] | None = None


def group(kind: type, *, prefix: str = "", only: tuple[str, ...] | None = None) -> Any:
    """Declare a field whose value is another dataclass of options."""
    return field(default_factory=kind, metadata={"group": Group(kind, prefix, only)})


def groups(config: type) -> Iterator[tuple[str, Group]]:
    """Yield the nested groups of options, each with its field's name."""
    for one in fields(config):
        if "group" in one.metadata:
            yield one.name, one.metadata["group"]


def number_range(text: str) -> tuple[int | None, int | None]:
    """Return the bounds of `MIN:MAX`, either of which may be omitted; `N` is `N:N`."""
    least, colon, most = text.partition(":")
    low, high = (_count(least) if least else None), (_count(most) if most else None)
    if not colon:
        high = low
    if low is not None and high is not None and low > high:
        raise ValueError(f"{text}: MIN is larger than MAX")
    return low, high


def height_and_width(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels of `HEIGHTxWIDTH`."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH, such as 480x640")
    return int(found[1]), int(found[2])


def declared(config: type, *, prefix: str = "") -> Iterator[Declared]:
    """Yield the options that a dataclass itself declares, in order, without nested groups; see `groups`."""
    hints = get_type_hints(config)
    for one in fields(config):
        how: Option | None = one.metadata.get("option")
        if how is None:
            continue
        kind, choices, is_list = _kind(hints[one.name]) if how.parse is None else (object, (), how.is_list)
        flag = how.flag or f"--{prefix}{one.name}".replace("_", "-")
        yield Declared(one.name, flag, kind, choices, is_list, one.default, how)


def check_options(config: Any) -> None:
    """Check the values of a configuration's own options against their choices and limits.

    Raises:
        ValueError: names the option, its value and what is allowed.
    """
    for one in declared(type(config)):
        value = getattr(config, one.name)
        if value is None or one.option.parse is not None:
            continue
        name = one.flag.removeprefix("--").replace("-", " ")
        for single in value if one.is_list else (value,):
            if one.choices and single not in one.choices:
                raise ValueError(f"{name}: {single!r} is not one of {', '.join(map(str, one.choices))}")
            if one.kind in (int, float) and not one.option.allows(single):
                raise ValueError(f"{name}: {_number(single)} is not {one.option.limits or 'a finite number'}")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if value < 1:
        raise ValueError(f"{text} is less than 1")
    return value


def _kind(hint: Any) -> tuple[type, tuple[Any, ...], bool]:
    """Return the type of one value, the choices, and whether the field is a list."""
    hint = _without_none(hint)
    if get_origin(hint) is tuple:
        kind, choices, _ = _kind(get_args(hint)[0])
        return kind, choices, True
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return type(choices[0]), choices, False
    return hint, (), False


def _without_none(hint: Any) -> Any:
    """Return `X` for `X | None`."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return next(kind for kind in get_args(hint) if kind is not type(None))
