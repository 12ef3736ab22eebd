"""The outcome of a check: ok, a warning or a failure, with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: short name of what was checked, such as `open files`.
        level: "ok"; "warn": a run works, but may be slow or fail under load; "fail": a run would not work.
        text: the result, with figures.
        remedy: what to do; "" if nothing.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""
