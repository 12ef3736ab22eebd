"""JSON that was damaged: whatever is wrong with it is one kind of error, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Literal

import pytest

from pipelines.strict_json import Count, Time, parse_json, parse_object, read_record, record_of


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    size: Count | None = None


@dataclass(frozen=True, slots=True)
class Report:
    state: Literal["open", "closed"]
    at: Time
    parts: tuple[Part, ...]
    share: float
    counts: Mapping[str, Count] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    is_whole: bool = False


STORED: dict[str, Any] = {
    "state": "open",
    "at": "2026-11-26T10:00:00.000001+00:00",
    "parts": [{"name": "a", "size": 3}, {"name": "b", "size": None}],
    "share": 0.5,
    "counts": {"truncated": 1},
    "settings": {"classes": [["cat", 0.25], None], "max_images": 10**30},
    "is_whole": True,
}


def stored(**changed: object) -> bytes:
    return json.dumps({**STORED, **changed}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b"1", b"[" * 200_000 + b"]" * 200_000, b'{"x": NaN}',
        b'{"x": -Infinity}', b'{"x": 1e999}', b'{"x": "\\ud800"}', b'{"\\ud800": 1}', b'{"x": ' + b"1" * 5_000 + b"}",
    ],
)  # fmt: skip
def test_an_invalid_record_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_object(data)


def test_a_document_of_somebody_else_may_say_nan_but_not_be_nested_without_end() -> None:
    assert parse_json('[NaN, "\\ud83d\\ude00"]')[1] == "\U0001f600"
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000 + "]" * 200_000)


def test_a_record_is_read_into_its_dataclass_and_would_be_written_with_the_same_bytes() -> None:
    record = read_record(Report, stored())

    assert record == Report(
        state="open",
        at=datetime(2026, 11, 26, 10, 0, 0, 1, tzinfo=UTC),
        parts=(Part("a", 3), Part("b", None)),
        share=0.5,
        counts={"truncated": 1},
        settings={"classes": [["cat", 0.25], None], "max_images": 10**30},
        is_whole=True,
    )
    assert type(record.at.tzinfo) is type(UTC)  # of the standard library: records travel to actors by pickle
    assert json.dumps({**asdict(record), "at": record.at.isoformat()}).encode() == stored()


def test_numbers_without_a_type_come_back_bit_by_bit() -> None:
    random = Random(5)  # noqa: S311 - no secret
    numbers = [random.choice((-1, 1)) * random.random() * 10.0 ** random.randint(-300, 300) for _ in range(20_000)]

    assert read_record(Report, stored(settings={"x": [*numbers, -0.0, 0, -1]})).settings == {
        "x": [*numbers, -0.0, 0, -1]
    }


@pytest.mark.parametrize("value", [None, True, -1, 0.5, 3.0, "1", 2**63, [1], {}])
def test_only_whole_numbers_from_zero_to_what_parquet_holds_are_counts(value: object) -> None:
    with pytest.raises(ValueError, match=r"'counts\.truncated': Input should be"):
        read_record(Report, stored(counts={"truncated": value}))
    assert read_record(Report, stored(counts={"truncated": 2**63 - 1})).counts == {"truncated": 2**63 - 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "Open"), ("state", None), ("state", 1), ("at", 0), ("at", "1764151200"), ("at", "yesterday"),
        ("at", None), ("parts", {"name": "a"}), ("parts", ["a"]), ("parts", None), ("share", "0.5"), ("share", None),
        ("share", True), ("counts", []), ("counts", None), ("settings", [["a", 1]]), ("is_whole", 1),
        ("is_whole", "true"), ("is_whole", None),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_and_never_converted(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^'{name}(\.0)?': .+"):
        read_record(Report, stored(**{name: value}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["share", "settings"])
def test_numbers_that_are_not_finite_are_refused_also_where_any_value_may_stand(place: str, number: str) -> None:
    data = stored(**{place: "@" if place == "share" else {"x": ["@"]}}).replace(b'"@"', number.encode())

    with pytest.raises(ValueError, match="not JSON compliant"):
        read_record(Report, data)
    with pytest.raises(ValueError, match="not JSON compliant"):
        record_of(Report, {**STORED, place: float("inf") if place == "share" else {"x": [float("nan")]}})


@pytest.mark.parametrize("changed", [{"stat": "open"}, {"parts": [{"name": "a", "size": 1, "etag": "e"}]}])
def test_unknown_fields_are_refused_at_every_depth(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^'(stat|parts\.0\.etag)': Unexpected keyword argument$"):
        read_record(Report, stored(**changed))


def test_missing_fields_are_refused_at_every_depth_although_the_dataclass_has_defaults() -> None:
    for name in STORED:
        with pytest.raises(ValueError, match=rf"'{name}'"):
            record_of(Report, {key: value for key, value in STORED.items() if key != name})
    with pytest.raises(ValueError, match="'size' is missing"):
        read_record(Report, stored(parts=[{"name": "a", "size": 1}, {"name": "b"}]))


def test_of_a_field_that_is_doubled_the_last_one_counts() -> None:
    assert read_record(Part, b'{"name": "a", "size": "x", "name": "b", "size": 2}') == Part("b", 2)
    with pytest.raises(ValueError, match="'size'"):
        read_record(Part, b'{"name": "a", "size": 2, "size": "x"}')


def test_a_record_is_nested_two_hundred_deep_at_most() -> None:
    def deep(levels: int) -> bytes:
        return stored(settings={"x": "@"}).replace(b'"@"', b"[" * levels + b"]" * levels)

    assert read_record(Report, deep(190)).state == "open"
    for levels in (200, 900, 990, 200_000):
        with pytest.raises(ValueError, match=r"recursion limit|nested too deeply"):
            read_record(Report, deep(levels))
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        record_of(Report, {**STORED, "settings": {"x": value}})
    while value:  # for ever deep: taken apart level by level
        value = value.pop()  # type: ignore[assignment]


def test_a_sentence_about_damage_is_short_and_on_one_line() -> None:
    for changed in ({"x\n" * 90_000: 1}, {"counts": {"y\n" * 90_000: "\n"}}):
        with pytest.raises(ValueError, match=r"^'.*$") as caught:
            read_record(Report, stored(**changed))
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)
