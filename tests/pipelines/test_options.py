"""Ranges of numbers, and the limits that a configuration checks itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from pipelines.options import check_options, number_range, option


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration."""

    max_error_rate: float = option("largest share", default=0.5, at_least=0, at_most=1)
    actors: int | None = option("number of actors (1)", default=None, at_least=1)
    minutes: float = option("time", default=1.0, above=0)
    device: Literal["cpu", "cuda"] = option("device", default="cpu")
    trackers: tuple[Literal["mlflow", "wandb"], ...] = option("trackers (none)", default=())
    wait_minutes: float = option("time to wait", default=0.0, at_least=0, takes_infinity=True)
    queries: int = option("queries", default=1, flag="--num-queries", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"max_error_rate": 1.5}, "max error rate: 1.5 is not in 0..1"),
        ({"max_error_rate": float("nan")}, "max error rate: nan is not in 0..1"),
        ({"actors": 0}, "actors: 0 is not at least 1"),
        ({"minutes": 0}, "minutes: 0 is not above 0"),
        ({"minutes": float("inf")}, "minutes: inf is not above 0"),
        ({"device": "tpu"}, "device: 'tpu' is not one of cpu, cuda"),
        ({"trackers": ("mlflow", "excel")}, "trackers: 'excel' is not one of mlflow, wandb"),
        ({"wait_minutes": float("nan")}, "wait minutes: nan is not at least 0"),
        ({"queries": 0}, "num queries: 0 is not at least 1"),
    ],
)
def test_a_configuration_names_the_option_and_its_limits(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Settings(**values)


def test_values_at_the_limits_are_allowed() -> None:
    Settings(0.0, None, 1e-9, "cuda", ("wandb",), 0.0, 1)
    Settings(1.0, 1)
    Settings(wait_minutes=float("inf"))


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("2:8", (2, 8)), ("4", (4, 4)), ("2:", (2, None)), (":8", (None, 8)), ("3:3", (3, 3)), (":", (None, None))],
)
def test_a_range(text: str, bounds: tuple[int | None, int | None]) -> None:
    assert number_range(text) == bounds


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("8:2", "8:2: MIN is larger than MAX"),
        ("0:2", "0 is less than 1"),
        ("a:b", "'a' is not a number"),
        ("1:2:3", "'2:3' is not"),
    ],
)
def test_an_invalid_range_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        number_range(text)


CONFIGURATIONS = (
    "jobs.options", "pipelines.labelling.config", "pipelines.shards.config", "pipelines.training.config",
    "pipelines.training.recipe",
)  # fmt: skip
HEAVY = {"numpy", "torch", "pyarrow", "ray", "PIL", "obstore", "fsspec", "boto3", "scipy", "pydantic"}


def test_configurations_need_the_standard_library_only() -> None:
    """The command line follows from them: `--help` must not load torch."""
    code = f"import sys, {', '.join(CONFIGURATIONS)}; print(*sorted({HEAVY} & sys.modules.keys()))"

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
