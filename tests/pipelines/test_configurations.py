"""Configurations in records are compared with those of today, and every difference is shown."""

from __future__ import annotations

import pytest

from pipelines.configurations import as_json, differences


def test_differences_are_in_the_order_of_the_old_configuration() -> None:
    old: dict[str, object] = {"b": 1, "max_images": None, "a": True, "keep": [], "same": ("x",), "gone": "was"}
    new = {"a": False, "b": 2, "max_images": 5, "keep": ["x"], "same": ["x"], "new": 0.5}

    assert differences(old, new) == [
        "b 1, now 2",
        "max images none, now 5",
        "a true, now false",
        "keep none, now x",
        "gone was, now none",
        "new none, now 0.5",
    ]


def test_tuples_of_today_equal_the_lists_of_a_record() -> None:
    assert as_json({"images": ("a", "b"), "classes": (("cat", 0.5),)}) == {
        "images": ["a", "b"],
        "classes": [["cat", 0.5]],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "..."),
        ([["a", "b"], [["c"]]], "a b c"),
        ([[[["a"]]]], '["a"]'),
        ([[[[["a"]]]]], '[["a"]]'),
        ([[]], "none"),
        ({"a": 1}, '{"a": 1}'),
    ],
    ids=["200 letters", "201", "nested", "four deep", "five deep", "of nothing", "an object"],
)
def test_a_value_is_shown_in_a_message_as_far_as_a_person_reads(value: object, shown: str) -> None:
    assert differences({"name": value}, {"name": 1}) == [f"name {shown}, now 1"]
