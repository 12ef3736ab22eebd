"""Typed access to the fields of a json object that another program wrote."""

from collections.abc import Mapping
from typing import Any

from detr.checkpoints.model_directory import CheckpointError

Json = Mapping[str, Any]


class Fields:
    """The fields of a json object, read with their type; null counts as absent.

    Methods raise `CheckpointError` for a wrong value; `where` is the object's name in the message.
    """

    def __init__(self, fields: Json, where: str) -> None:
        self._fields = fields
        self.where = where

    def get(self, name: str) -> Any:
        """Return the value, None when it is null or absent."""
        return self._fields.get(name)

    def integer(self, name: str, default: int, *, most: int = 100_000) -> int:
        """Return an integer from 1 to `most`."""
        value = default if self.get(name) is None else self.get(name)
        if not is_integer(value) or not 0 < value <= most:
            raise self.unusable(name, f"expected an integer from 1 to {most:,}")
        return int(value)

    def integers(self, name: str, default: tuple[int, ...], *, most: int) -> tuple[int, ...]:
        """Return a list of integers from 1 to `most`."""
        value = list(default) if self.get(name) is None else self.get(name)
        if not isinstance(value, list) or not all(is_integer(one) and 0 < one <= most for one in value):
            raise self.unusable(name, f"expected a list of integers from 1 to {most:,}")
        return tuple(value)

    def number(self, name: str, default: float) -> float:
        """Return a number from 0 to below 1."""
        value = default if self.get(name) is None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise self.unusable(name, "expected a number of at least 0 and below 1")
        return float(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        """Return true or false."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, bool):
            raise self.unusable(name, "expected true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """Return a string."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, str):
            raise self.unusable(name, "expected a string")
        return value

    def within(self, name: str) -> "Fields":
        """Return the fields of the object in this field."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.unusable(name, "expected an object")
        return Fields(value, f"{self.where}: {name}")

    def shared(self, one: str, other: str, default: int) -> int:
        """Return the integer that two fields agree on."""
        value = self.integer(one, default)
        if self.integer(other, default) != value:
            raise CheckpointError(f"{self.where}: {one} and {other} differ, but a DETR has one value for both.")
        return value

    def require(self, name: str, *values: object, default: object) -> None:
        """Raise unless the value is one of these."""
        value = default if self.get(name) is None else self.get(name)
        # Python treats json's true and 1 as equal
        if not any(type(value) is type(wanted) and value == wanted for wanted in values):
            raise self.unusable(name, f"only {' or '.join(map(repr, values))} is supported")

    def unusable(self, name: str, why: str) -> CheckpointError:
        """Return the error for an unusable field, with the reason."""
        return CheckpointError(f"{self.where}: {name} is {_shown(self.get(name))}; {why}.")


def is_integer(value: object) -> bool:
    """Return whether a json value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
