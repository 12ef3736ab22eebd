"""Configurations in the records of runs: conversion to JSON, and comparison with the current one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Characters of a value in a message: a damaged record may contain anything.
_SHOWN_LETTERS = 200
_SHOWN_DEPTH = 3


def as_json(values: Mapping[str, object]) -> dict[str, Any]:
    """Return the values as JSON would return them: tuples become lists."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    return copy


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Return the differences between two configurations as `threshold 0.05, now 0.1`, in the order of the old one."""
    before, after = as_json(old), as_json(new)
    return [
        f"{name.replace('_', ' ')} {_shown(before.get(name))}, now {_shown(after.get(name))}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _shown(value: object, depth: int = 0) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        text = value
    elif isinstance(value, Sequence) and depth < _SHOWN_DEPTH:
        text = " ".join(_shown(one, depth + 1) for one in value) or "none"
    else:
        text = json.dumps(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."
