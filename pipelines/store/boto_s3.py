"""S3 through botocore: correct for every possible key, with five times the CPU time of obstore."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Literal, TypeVar

import botocore.exceptions

from pipelines.store.aws import S3Access, s3_client
from pipelines.store.interface import (
    Blob,
    Changed,
    Denied,
    Misconfigured,
    NotFound,
    StoreDown,
    StoreEntry,
    StoreError,
    is_transient,
    refuse_changed,
    refuse_larger,
)
from pipelines.store.responses import Action, Answer, credentials_expired, store_error
from pipelines.store.retry import retry
from pipelines.store.uris import join_uri, split_uri

_Result = TypeVar("_Result")

PAGE_KEYS = 1000
ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})  # GLACIER_IR is read like any other

_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")

_NO_LOGIN = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.SSOError,
    botocore.exceptions.TokenRetrievalError,
)

EtagForm = Literal["quoted", "bare"]


class BotoS3:
    """A bucket. Keys can have slashes and dots anywhere, control characters, and can be folder markers."""

    def __init__(self, bucket: str, access: S3Access, retry_seconds: float) -> None:
        self._bucket = bucket
        self._access = access
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._made: Any = None
        self._payer = {"RequestPayer": "requester"} if access.request_payer else {}

    @property
    def _client(self) -> Any:
        with self._lock:  # clients are thread-safe, but creating them is not
            if self._made is None:
                self._made = s3_client(self._access)
            return self._made

    def has_keys(self, prefix: str) -> bool:
        """Return whether a key begins with `prefix`, from one request."""
        answer = self._call("list", prefix, lambda: self._list(prefix, "", 1))
        return bool(answer.get("Contents"))

    def page(self, prefix: str, after: str) -> tuple[list[StoreEntry], str | None]:
        """Return up to a thousand objects and the last key of the page, or None at the end of the listing.

        Folder markers (empty objects whose name ends in a slash) are skipped.
        """
        start = _NOT_XML.split(after, maxsplit=1)[
            0
        ]  # Ceph 16 repeats it unencoded in its response, which then cannot be parsed
        answer = self._call("list", prefix, lambda: self._list(prefix, start, PAGE_KEYS))
        if any(_is_archived(item) for item in answer.get("Contents", ())):
            # a restored object keeps its archive class; requested only here, because not every server accepts this
            restores = {"OptionalObjectAttributes": ["RestoreStatus"]}
            answer = self._call("list", prefix, lambda: self._list(prefix, start, PAGE_KEYS, **restores))
        found = [
            StoreEntry(
                item["Key"],
                item["Size"],
                plain_etag(item.get("ETag")),
                _is_archived(item),
                modified=_timestamp(item.get("LastModified")),
            )
            for item in answer.get("Contents", ())
        ]
        found = found if start == after else [entry for entry in found if entry.key > after]
        last = after
        for entry in found:
            if entry.key <= last:
                raise Misconfigured(unsorted_sentence(f"s3://{self._bucket}"))
            last = entry.key
        if answer.get("IsTruncated") and not found:
            raise Misconfigured(
                f"s3://{self._bucket} cannot be listed after {after!r}: too many such names. Rename them."
            )
        entries = [entry for entry in found if entry.size or not entry.key.endswith("/")]
        return entries, last if answer.get("IsTruncated") else None

    def list(self, prefix: str, after: str) -> Iterator[StoreEntry]:
        """Yield the objects whose key begins with `prefix` and is greater than `after`, in order."""
        last: str | None = after
        while last is not None:
            entries, last = self.page(prefix, last)
            yield from entries

    def folders(self, folder: str, after: str) -> tuple[Sequence[str], bool]:
        """Return folders in a folder that are greater than a key and do not contain it, and whether these are all."""
        answer = self._call("list", folder, lambda: self._list(folder, after, PAGE_KEYS, Delimiter="/"))
        found = [one["Prefix"] for one in answer.get("CommonPrefixes", ())]
        return [name for name in found if name > after and not after.startswith(name)], not answer.get("IsTruncated")

    def head(self, key: str) -> StoreEntry:
        """Return the entry of a key, as in a listing."""
        answer = self._reading(key, lambda: self._get_object(key))
        answer["Body"].close()  # a HEAD would hide the reason of a failure
        return StoreEntry(
            key,
            answer["ContentLength"],
            plain_etag(answer.get("ETag")),
            modified=_timestamp(answer.get("LastModified")),
        )

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole object."""
        return self._reading(key, lambda: self._read(key, most_bytes))

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, or fewer at the end of the object."""
        if length == 0:
            return b""
        wanted = f"bytes={start}-{start + length - 1}"
        try:
            read = self._reading(key, lambda: self._read(key, None, Range=wanted))
        except PastTheEnd:
            return b""
        refuse_changed(join_uri(f"s3://{self._bucket}", key), read.etag, if_match)
        return read.data

    def not_found_or_denied(self, key: str, read: Callable[[], _Result]) -> _Result:
        """Read a key; if that is denied, use a listing to decide whether the object is missing.

        Raises:
            NotFound: the listing does not have the key.
            Denied: the listing has the key and reading is denied again, or the listing is denied, too.
            StoreError: the listing failed with a transient error.
        """
        try:
            return read()
        except Denied as error:
            refusal = error
        self.refuse_missing(key, refusal)
        return read()  # the object may have been created meanwhile

    def refuse_missing(self, key: str, refusal: Denied) -> None:
        """Look for a key in a listing, after reading it was denied.

        For a missing object, S3 responds with "denied" unless the credentials may list the bucket without conditions.
        A right to list some prefixes does not count for S3, but it is enough for the listing here.

        Raises:
            NotFound: the listing does not have the key.
            Denied: the listing is denied, too; this is `refusal`.
            StoreError: the listing failed with a transient error.
        """
        try:
            found = self._call("list", key, lambda: self._list(key, "", 1)).get("Contents", ())
        except StoreError as error:
            raise (error if is_transient(error) else refusal) from None
        if not any(item["Key"] == key for item in found):
            raise NotFound(
                f"{join_uri(f's3://{self._bucket}', key)} cannot be read: no such object (it is not listed)."
            )

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write the whole object in one request."""
        if if_match is not None:
            return replace_either_way(
                lambda etag: self._call("replace", key, lambda: self._put(key, data, IfMatch=etag)), if_match
            )[0]
        if create:
            return self._call("create", key, lambda: self._put(key, data, IfNoneMatch="*"))
        return self._call("write", key, lambda: self._put(key, data))

    def delete(self, key: str) -> None:
        """Delete the object. Succeeds if it does not exist."""
        self._call("delete", key, lambda: self._client.delete_object(Bucket=self._bucket, Key=key, **self._payer))

    def _list(self, prefix: str, after: str, count: int, **how: Any) -> Any:
        start = {"StartAfter": after} if after else {}
        return self._client.list_objects_v2(
            Bucket=self._bucket, Prefix=prefix, MaxKeys=count, **start, **how, **self._payer
        )

    def _reading(self, key: str, request: Callable[[], _Result]) -> _Result:
        return self.not_found_or_denied(key, lambda: self._call("read", key, request))

    def _get_object(self, key: str, **how: str) -> Any:
        return self._client.get_object(Bucket=self._bucket, Key=key, **how, **self._payer)

    def _read(self, key: str, most_bytes: int | None, **how: str) -> Blob:
        answer = self._get_object(key, **how)
        with closing(answer["Body"]):  # an unread body would keep its connection
            refuse_larger(join_uri(f"s3://{self._bucket}", key), answer.get("ContentLength"), most_bytes)
            data = answer["Body"].read()
        return Blob(data, plain_etag(answer.get("ETag")))  # botocore compares lengths

    def _put(self, key: str, data: bytes, **condition: str) -> str | None:
        answer = self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **condition, **self._payer)
        return plain_etag(answer.get("ETag"))

    def _call(self, action: Action, key: str, request: Callable[[], _Result]) -> _Result:
        uri = join_uri(f"s3://{self._bucket}", key)

        def explained() -> _Result:
            try:
                return request()
            except botocore.exceptions.ClientError as error:
                answer = botocore_answer(error.response)
                failure = PastTheEnd(uri) if answer.status == 416 else store_error(answer, action, uri)
            except _NO_LOGIN:
                failure = credentials_expired(uri)
            except botocore.exceptions.ParamValidationError:
                failure = refused_request(action, uri)
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.HTTPClientError, OSError) as error:
                failure = store_error(Answer(words=type(error).__name__), action, uri)
            raise failure  # outside the `except`: the server's message may repeat the request

        return retry(explained, budget_seconds=self._retry_seconds, is_retryable=is_transient)


class PastTheEnd(StoreDown):
    """The range begins after the end of the object."""

    is_transient = False


def refused_request(action: Action, uri: str) -> StoreError:
    """Return the error for a request that botocore does not send, because of an empty key or the name of the bucket."""
    if action != "list" and not split_uri(uri)[1]:
        return NotFound(f"{uri} is not an object: the name of one is missing.")
    return Misconfigured(f"{uri}: S3 has no buckets with such a name. Check it.")


def plain_etag(etag: str | None) -> str | None:
    """Return an etag in the form of tables: without quotes and `W/`; None for an empty one."""
    return (etag or "").removeprefix("W/").strip('"') or None


def _timestamp(time: datetime | None) -> float | None:
    """Return seconds since 1970; None if the server did not send the time."""
    return None if time is None else time.timestamp()


def _is_archived(item: Mapping[str, Any]) -> bool:
    """Return whether an object cannot be read: archived, and not restored according to the listing."""
    is_restored = "RestoreExpiryDate" in item.get("RestoreStatus", {})
    return item.get("StorageClass") in ARCHIVE_CLASSES and not is_restored


def replace_either_way(put: Callable[[str], _Result], etag: str) -> tuple[_Result, EtagForm]:
    """Try a conditional put with the etag in quotes, as in HTTP, then bare; return its result and the accepted form.

    Ceph 16 compares with the bare one and always refuses the other. Both attempts have the condition, so the second
    only writes if the first should have.
    """
    try:
        return put(f'"{etag}"'), "quoted"
    except Changed:
        return put(etag), "bare"


def unsorted_sentence(uri: str) -> str:
    """Return the error message for a store that does not list in key order, such as directory buckets."""
    return (
        f"{uri} does not list its objects in the order of their names, so a run over it could not be resumed. "
        "Give a list of URIs instead."
    )


def botocore_answer(response: Mapping[str, Any]) -> Answer:
    """Convert a parsed response of botocore. For a HEAD, its code is the status, which is not an error code."""
    said = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    code = said.get("Code")
    region = said.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return Answer(metadata.get("HTTPStatusCode"), code if code and not code.isdigit() else None, region=region)
