"""Maps status codes and error codes of object stores to store errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.store.interface import (
    AlreadyExists,
    Archived,
    Changed,
    Denied,
    Misconfigured,
    NoBucket,
    NotFound,
    StoreDown,
    StoreError,
    Throttled,
)

Action = Literal["list", "read", "create", "replace", "write", "delete"]

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
_BAD_CREDENTIALS = {
    "AccountProblem",
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UserSuspended",
}
_ARCHIVED = {"InvalidObjectState", "BlobArchived"}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_THROTTLED = {"SlowDown", "RequestLimitExceeded", "ThrottlingException", "TooManyRequests", "ServerBusy"}
_TRY_AGAIN = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "InternalError"}
_PAST_PARTICIPLE = {
    "list": "listed",
    "read": "read",
    "create": "created",
    "replace": "replaced",
    "write": "written",
    "delete": "deleted",
}
_S3_RIGHT = {"read": "s3:GetObject", "delete": "s3:DeleteObject"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: the HTTP status, the store's own code, and a short text if there is neither."""

    status: int | None = None
    code: str | None = None
    words: str = ""
    region: str | None = None


def store_error(answer: Answer, action: Action, uri: str) -> StoreError:
    """Return the error for a response, with a message that says what to do.

    Args:
        answer: The response, preferably of a GET: a HEAD has no code, and 404 may refer to the bucket.
        action: The requested action.
        uri: The URI, without secrets.
    """
    status, code = answer.status, answer.code or ""
    said = " ".join(str(part) for part in (status, code) if part) or answer.words or "no answer"
    failed = f"{uri} cannot be {_PAST_PARTICIPLE[action]}"
    if code in _NO_BUCKET or (status == 404 and action == "list"):
        return NoBucket(f"{failed}: there is no such bucket ({said}). Check its name, the endpoint and the account.")
    if code in _BAD_CREDENTIALS or (status == 401 and not uri.startswith("http")):
        return Misconfigured(f"{failed}: the credentials are rejected ({said}). {_advice(code, uri)}")
    if code in _ARCHIVED:
        return Archived(f"{failed}: it is archived ({said}). Restore it first.")
    if code in _OTHER_REGION or status in (301, 307, 308):
        where = f" '{answer.region}'" if answer.region else ""
        return Misconfigured(f"{failed}: the bucket is in another region{where} ({said}). Set AWS_REGION to it.")
    if code in _TRY_AGAIN or status in (408, 425):
        return StoreDown(f"{failed}: the store was busy ({said}). Run again later.")
    if code in _THROTTLED or status in (429, 503):
        return Throttled(f"{failed}: the store throttles requests ({said}). Run again later, or with fewer actors.")
    if status is None or status >= 500:
        return StoreDown(
            f"{failed}: the store failed or did not answer ({said}). Check it and the network, then run again."
        )
    if (status, code, action) == (404, "", "read") and uri.startswith("s3"):
        # S3 returns NoSuchKey; an unrelated error page must not count as a missing image
        return StoreDown(
            f"{failed}: the answer did not come from the store ({said} without a code). "
            "Check the endpoint and any proxy before it, then run again."
        )
    return _about_the_object(status, action, failed, said)


def credentials_expired(uri: str) -> StoreError:
    """Return the error for credentials that cannot be renewed."""
    return Misconfigured(f"{uri} cannot be reached: the credentials cannot be renewed. Log in again.")


def _about_the_object(status: int, action: Action, failed: str, said: str) -> StoreError:
    if action == "create" and status in (409, 412):
        return AlreadyExists(f"{failed}: it exists already ({said}).")
    if action == "replace" and status in (404, 409, 412):
        return Changed(f"{failed}: it has changed since it was read ({said}).")
    if status in (404, 410):
        return NotFound(f"{failed}: no such object ({said}).")
    if action == "list":
        return Misconfigured(
            f"{failed}: access is denied ({said}). "
            "Grant s3:ListBucket or its equivalent, or give a list of URIs instead."
        )
    return Denied(f"{failed}: access is denied ({said}). {_permission(status, action, failed)}")


def _permission(status: int, action: Action, failed: str) -> str:
    if failed.startswith("http"):
        return "Check that the address is public and that its signature has not expired."
    if not failed.startswith("s3"):
        return "Check the credentials and their permissions."
    grant = f"Grant {_S3_RIGHT.get(action, 's3:PutObject')}."
    return f"{grant} A missing object looks the same without s3:ListBucket." if status == 403 else grant


def _advice(code: str, uri: str) -> str:
    if code == "RequestTimeTooSkewed":
        return "Correct this machine's clock."
    if code in ("ExpiredToken", "TokenRefreshRequired", "InvalidToken"):
        return "The session has expired: log in again."
    if not uri.startswith("s3"):
        return "Log in again, or check which account the credentials belong to."
    return "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile, and that the endpoint belongs to them."
