"""The outcome of a check: ok, a warning or a failure, with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detr.checkpoints.model_directory import ModelUnreachable
from pipelines.store import StoreError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: short name of what was checked, such as `open files`.
        level: "ok"; "warn": a run works, but may be slow or fail under load; "fail": a run would not work.
        text: the result, with figures.
        remedy: what to do; "" if nothing.
        transient: whether a failure may pass by itself, such as a store that does not answer, so that the same command
            may succeed later; False: something must be changed first.
    """

    check: str
    level: Level
    text: str
    remedy: str = ""
    transient: bool = False


def may_pass(error: BaseException | None) -> bool:
    """Return whether the cause of an error may pass by itself: a store or a hub that does not answer or throttles."""
    while error is not None:
        if isinstance(error, ModelUnreachable) or (isinstance(error, StoreError) and error.is_transient):
            return True
        error = error.__cause__
    return False
