"""JSON that was damaged: whatever is wrong with it is one kind of error."""

import pytest

from pipelines.strict_json import count_field, counts_field, parse_json, parse_object, text_field


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b"1", b"[" * 200_000 + b"]" * 200_000, b'{"x": NaN}',
        b'{"x": -Infinity}',        b'{"x": "\\ud800"}', b'{"\\ud800": 1}', b'{"x": ' + b"1" * 5_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_record_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_object(data)


def test_a_document_of_somebody_else_may_say_nan_but_not_be_nested_without_end() -> None:
    assert parse_json('[NaN, "\\ud83d\\ude00"]')[1] == "\U0001f600"
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000 + "]" * 200_000)


@pytest.mark.parametrize("value", [None, True, -1, 0.5, "1", 2**63, [1], {}])
def test_only_whole_numbers_from_zero_on_are_counts(value: object) -> None:
    with pytest.raises(ValueError, match="images is not a count"):
        count_field({"images": value}, "images")
    with pytest.raises(ValueError, match="is not"):
        counts_field({"errors": {"truncated": value}}, "errors")


def test_fields_are_returned_as_they_are() -> None:
    record = parse_object(b'{"images": 3, "errors": {"truncated": 1}, "model": "a@1"}')

    assert count_field(record, "images") == 3
    assert counts_field(record, "errors") == {"truncated": 1}
    assert text_field(record, "model") == "a@1"
    with pytest.raises(ValueError, match="images is not a text"):
        text_field(record, "images")
