"""What the answers of stores mean."""

from __future__ import annotations

import pytest

from pipelines.store import (
    AlreadyExists,
    Archived,
    Changed,
    Denied,
    Misconfigured,
    NoBucket,
    NotFound,
    StoreDown,
    Throttled,
)
from pipelines.store.responses import Action, Answer, store_error


@pytest.mark.parametrize(
    ("action", "status", "code", "expected", "words"),
    [
        ("read", 404, "NoSuchKey", NotFound, "no such object"),
        ("read", 404, None, StoreDown, "did not come from the store"),
        ("read", 410, None, NotFound, "no such object"),
        ("read", 404, "NoSuchBucket", NoBucket, "no such bucket"),
        ("read", 404, "ContainerNotFound", NoBucket, "no such bucket"),
        ("list", 404, None, NoBucket, "no such bucket"),
        ("read", 403, "AccessDenied", Denied, "Grant s3:GetObject"),
        ("read", 401, None, Misconfigured, "Check AWS_ACCESS_KEY_ID"),
        ("write", 403, "AccessDenied", Denied, "Grant s3:PutObject"),
        ("delete", 403, "AccessDenied", Denied, "Grant s3:DeleteObject"),
        ("list", 403, "AccessDenied", Misconfigured, "Grant s3:ListBucket"),
        ("read", 403, "SignatureDoesNotMatch", Misconfigured, "Check AWS_ACCESS_KEY_ID"),
        ("create", 403, "InvalidAccessKeyId", Misconfigured, "Check AWS_ACCESS_KEY_ID"),
        ("read", 403, "RequestTimeTooSkewed", Misconfigured, "Correct this machine's clock"),
        ("read", 400, "ExpiredToken", Misconfigured, "log in again"),
        ("read", 403, "InvalidObjectState", Archived, "Restore"),
        ("read", 409, "BlobArchived", Archived, "Restore"),
        ("read", 301, "PermanentRedirect", Misconfigured, "Set AWS_REGION"),
        ("read", 503, "SlowDown", Throttled, "throttles requests"),
        ("read", 503, None, Throttled, "throttles requests"),
        ("read", 429, None, Throttled, "throttles requests"),
        ("read", 500, "InternalError", StoreDown, "busy"),
        ("read", 504, None, StoreDown, "failed or did not answer \\(504\\)"),
        ("read", None, None, StoreDown, "connection refused"),
        ("create", 412, "PreconditionFailed", AlreadyExists, "exists already"),
        ("create", 409, "BlobAlreadyExists", AlreadyExists, "exists already"),
        ("create", 409, "ConditionalRequestConflict", StoreDown, "busy"),
        ("replace", 412, "PreconditionFailed", Changed, "has changed since it was read"),
        ("replace", 404, "NoSuchKey", Changed, "has changed since it was read"),
        ("replace", 404, "NoSuchBucket", NoBucket, "no such bucket"),
    ],
)
def test_an_answer_is_one_error_with_one_advice(
    action: Action, status: int | None, code: str | None, expected: type[Exception], words: str
) -> None:
    error = store_error(Answer(status, code, "connection refused"), action, "s3://bucket/k.jpg")

    assert type(error) is expected
    with pytest.raises(expected, match=words):
        raise error
    assert str(error).startswith("s3://bucket/k.jpg cannot be ")


@pytest.mark.parametrize(
    ("uri", "status", "expected"),
    [
        ("gs://bucket/k.jpg", 404, NotFound),
        ("gs://bucket/k.jpg", 401, Misconfigured),
        ("https://host/k.jpg", 404, NotFound),
        ("https://host/k.jpg", 401, Denied),
    ],
)
def test_other_stores_have_no_codes_and_a_web_server_no_login_of_ours(
    uri: str, status: int, expected: type[Exception]
) -> None:
    assert type(store_error(Answer(status), "read", uri)) is expected


def test_only_what_may_pass_is_tried_again() -> None:
    answers = [None, 400, 403, 410, 429, 500, 503]
    transient = [store_error(Answer(status), "read", "s3://b/k").is_transient for status in answers]

    assert transient == [True, False, False, False, True, True, True]
