"""S3, GCS and Azure through obstore: a fifth of botocore's CPU per object, a twentieth per listed key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError

from pipelines.store.boto_s3 import BotoS3, EtagForm, plain_etag, replace_either_way
from pipelines.store.interface import (
    QUICK_BYTES,
    Blob,
    Changed,
    Denied,
    NotFound,
    StoreDown,
    StoreEntry,
    is_transient,
    refuse_changed,
    refuse_larger,
    transfer_seconds,
)
from pipelines.store.obstore_errors import NATIVE_ERRORS, native_answer, native_error
from pipelines.store.obstore_listing import is_refused, list_bucket
from pipelines.store.responses import Action
from pipelines.store.retry import retry
from pipelines.store.uris import join_uri, scheme_of

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

_Result = TypeVar("_Result")


class ObstoreStore:
    """The objects of a bucket below a folder: obstore's store of the bucket, and for S3 a slow client for odd keys."""

    def __init__(
        self,
        bucket: ObjectStore,
        root: str,
        folder: str,
        *,
        slow: BotoS3 | None,
        retry_seconds: float,
        reads_once: bool = False,
        patient: Callable[[int], ObjectStore] | None = None,
    ) -> None:
        """Set the bucket, its URI, and the folder ("" or with a trailing slash) to which keys are relative.

        `patient` opens the bucket with a time-out in seconds, for large transfers; None if requests do not time out.
        `reads_once`: as in `StoreOptions`.
        """
        self._bucket = bucket
        self._patient = patient
        self._patient_buckets: dict[int, ObjectStore] = {}
        self._root = root
        self._folder = folder
        self._slow = slow
        self._retry_seconds = retry_seconds
        self._reads_once = reads_once
        self.uri = join_uri(root, folder).rstrip("/")
        self.etag_form: EtagForm = "quoted"

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the objects whose key begins with `prefix` and is greater than `after`, in order, page by page."""
        folder = self._folder
        entries = list_bucket(
            self._bucket,
            self._slow,
            self._root,
            folder + prefix,
            f"{folder}{after}" if after else "",
            patient=self._retry_seconds > 0,
        )
        for entry in entries:
            if not folder:
                yield entry
                continue
            yield StoreEntry(  # not `replace`, which takes twice as long
                entry.key[len(folder) :], entry.size, entry.etag, entry.is_archived, modified=entry.modified
            )

    def folders(self, folder: str, after: str) -> tuple[Sequence[str], bool]:
        """Return folders in a folder that are greater than a key, for S3 only; see `ListsAnywhere`."""
        assert self._slow is not None, "other stores are not asked"
        found, is_all = self._slow.folders(self._folder + folder, self._folder + after)
        return [name[len(self._folder) :] for name in found], is_all

    def head(self, key: str) -> StoreEntry:
        """Return the entry of a key, as in a listing."""
        path = self._folder + key
        if slow := self._slow_for(path):
            return replace(slow.head(path), key=key)
        with suppress(*NATIVE_ERRORS):
            return self._entry(key, obstore.head(self._bucket, path))
        # the response to a HEAD has no code: a GET distinguishes a missing object from a missing bucket
        return self._entry(key, self._reading(path, lambda: obstore.get(self._bucket, path).meta))

    @staticmethod
    def _entry(key: str, meta: ObjectMeta) -> StoreEntry:
        return StoreEntry(key, meta["size"], plain_etag(meta["e_tag"]), modified=meta["last_modified"].timestamp())

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole object."""
        path = self._folder + key
        if slow := self._slow_for(path):
            return slow.get(path, most_bytes=most_bytes)
        return self._reading(path, partial(self._get, path, most_bytes), once=self._reads_once)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, or fewer at the end of the object."""
        path = self._folder + key
        if slow := self._slow_for(path):
            return slow.get_range(path, start, length, if_match=if_match)
        return self._reading(path, lambda: self._get_range(path, start, length, if_match)) if length else b""

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write the whole object in one request."""
        assert not (create and if_match is not None), "nothing can be both absent and of a known etag"
        path = self._folder + key
        if slow := self._slow_for(path):
            return slow.put(path, data, create=create, if_match=if_match)
        if if_match is not None:
            return self._replace(path, data, if_match)
        if create:
            return self._call("create", path, lambda: self._put(path, data, "create"))
        return self._call("write", path, lambda: self._put(path, data, "overwrite"))

    def delete(self, key: str) -> None:
        """Delete the object. Succeeds if it does not exist."""
        path = self._folder + key
        if slow := self._slow_for(path):
            slow.delete(path)
            return
        try:
            self._call("delete", path, lambda: obstore.delete(self._bucket, path))
        except NotFound:
            return

    def _slow_for(self, path: str) -> BotoS3 | None:
        return self._slow if self._slow is not None and is_refused(path) else None

    def _get(self, path: str, most_bytes: int | None) -> Blob:
        answer = obstore.get(self._bucket, path)
        meta = answer.meta
        refuse_larger(self._shown(path), meta["size"], most_bytes)
        if (patient := self._bucket_for(meta["size"])) is not self._bucket:  # its body has not been read
            answer = obstore.get(patient, path)
            meta = answer.meta
            refuse_larger(self._shown(path), meta["size"], most_bytes)
        data = bytes(answer.bytes())
        if len(data) != meta["size"]:
            raise StoreDown(
                f"{self._shown(path)} was cut off: {len(data)} of {meta['size']} bytes arrived. "
                "Check the network, then run again."
            )
        return Blob(data, plain_etag(meta["e_tag"]))

    def _get_range(self, path: str, start: int, length: int, if_match: str | None) -> bytes:
        bucket = self._bucket_for(length)
        try:
            if if_match is None:
                return bytes(obstore.get_range(bucket, path, start=start, length=length))
            # compared here: servers disagree on whether the etag of a condition has quotes
            answer = obstore.get(bucket, path, options={"range": (start, start + length)})
            refuse_changed(self._shown(path), plain_etag(answer.meta["e_tag"]), if_match)
            return bytes(answer.bytes())
        except BaseError as error:
            if native_answer(error).status == 416:  # begins after the end
                return b""
            raise

    def _put(self, path: str, data: bytes, mode: Any) -> str | None:
        # multipart uploads lose the etag, and on Ceph 16 the condition
        bucket = self._bucket_for(len(data))
        return plain_etag(obstore.put(bucket, path, data, mode=mode, use_multipart=False)["e_tag"])

    def _bucket_for(self, size: int) -> ObjectStore:
        """Return a client with a sufficient time-out, which covers a whole request on a possibly slow link."""
        if size <= QUICK_BYTES or self._patient is None:
            return self._bucket
        seconds = transfer_seconds(size)
        bucket = self._patient_buckets.get(seconds)
        if bucket is None:  # two threads may both create one; either is valid
            bucket = self._patient_buckets[seconds] = self._patient(seconds)
        return bucket

    def _replace(self, path: str, data: bytes, etag: str) -> str | None:
        if scheme_of(self._root) in ("gs", "gcs"):
            return self._replace_generation(path, data, etag)

        def put(condition: str) -> str | None:
            return self._call("replace", path, lambda: self._put(path, data, {"e_tag": condition}))

        written, self.etag_form = replace_either_way(put, etag)
        return written

    def _replace_generation(self, path: str, data: bytes, etag: str) -> str | None:
        """Replace an object in Google's store, whose condition is a generation number, not an etag."""
        meta = self._call("replace", path, lambda: obstore.head(self._bucket, path))
        if plain_etag(meta["e_tag"]) != etag:
            raise Changed(f"{self._shown(path)} cannot be replaced: it has changed since it was read.")
        condition = {"version": meta["version"]}
        return self._call("replace", path, lambda: self._put(path, data, condition))

    def _reading(self, path: str, request: Callable[[], _Result], *, once: bool = False) -> _Result:
        """Make a request for an object; if S3 does not distinguish missing from denied, use a listing."""
        call = self._once if once else self._call
        try:
            return call("read", path, request)
        except Denied as error:
            if self._slow is None:
                raise
            refusal = error
        self._slow.refuse_missing(path, refusal)
        return call("read", path, request)  # the object may have been created meanwhile

    def _call(self, action: Action, path: str, request: Callable[[], _Result]) -> _Result:
        """Make a request and retry transient failures; all requests are safe to repeat.

        obstore itself retries most, but neither a conditional put nor a delete whose connection was reset.
        """
        attempt = partial(self._once, action, path, request)
        return retry(attempt, budget_seconds=self._retry_seconds, is_retryable=is_transient)

    def _once(self, action: Action, path: str, request: Callable[[], _Result]) -> _Result:
        try:
            return request()
        except NATIVE_ERRORS as error:
            failure = native_error(error, action, self._shown(path))
        except ValueError as error:
            if not is_refused(path):
                raise
            raise NotFound(
                f"{self._shown(path)!r}: this client does not support such a name. Read it with --via fsspec."
            ) from error
        raise failure  # outside the `except`, without its cause: see native_error

    def _shown(self, path: str) -> str:
        return join_uri(self._root, path)
