"""Lists a bucket in key order at obstore's speed, for all possible keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import obstore
from obstore.exceptions import InvalidPathError

from pipelines.store.boto_s3 import PAGE_KEYS, BotoS3, plain_etag, unsorted_sentence
from pipelines.store.interface import Denied, Misconfigured, StoreEntry, StoreError, is_transient
from pipelines.store.obstore_errors import NATIVE_ERRORS, native_error

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# obstore 0.12 normalises paths: it refuses empty, "." and ".." segments and control characters, and drops outer slashes
_REFUSED = re.compile(r"^/|/$|//|(?:^|/)\.\.?(?:/|$)|[\x00-\x1f\x7f]")
_HIGHEST = "\U0010fffd"
_TRIES_WITHOUT_PROGRESS = 4
_HEADS_AT_ONCE = 16


class _MisreadError(Exception):
    """obstore met a key that it does not support, or returned one under another name."""


class _ManyEmptyError(_MisreadError):
    """A page has several empty entries, each of which obstore may have returned under another name."""


def is_refused(key: str) -> bool:
    """Return whether obstore refuses a key, or changes it."""
    return _REFUSED.search(key) is not None


def list_bucket(
    bucket: ObjectStore, slow: BotoS3 | None, uri: str, prefix: str, after: str, *, patient: bool = True
) -> Iterator[StoreEntry]:
    """Yield the objects whose key begins with `prefix` and is greater than `after`, in the byte order of keys.

    Pages come from obstore; if a page has a key that obstore does not support, or several empty entries, it comes from
    `slow`, if given. Objects whose name ends in a slash are left out if they are empty; obstore shows others, which are
    unusual, under the name without the slash.

    Args:
        bucket: obstore's store of the whole bucket.
        slow: The client for any key.
        uri: The bucket's URI, for messages.
        prefix: Any beginning of a key.
        after: The key after which to begin; "" for the start.
        patient: Whether to continue an interrupted listing.
    """
    position = max(after, _just_before(prefix))
    folder = prefix[: prefix.rfind("/") + 1]
    if slow is not None and (folder.startswith("/") or is_refused(folder.removesuffix("/"))):
        yield from slow.list(prefix, position)
        return
    # "/x" is returned as "x", so keys with a leading slash must be detected, and listed by the slow client
    slow_until = "0" if slow is not None and not prefix and position < "0" and slow.has_keys("/") else ""
    misread, tries = cast("_MisreadError | None", None), 0
    while True:
        reached = position
        try:
            if slow is not None and (misread or position < slow_until or is_refused(position)):
                entries, last = slow.page(prefix, position)
                yield from map(_as_listed_natively, entries) if isinstance(misread, _ManyEmptyError) else entries
                misread = None
                if last is None:
                    return
                position = last
            else:
                for entry in _list_native(bucket, uri, prefix, position, has_slow=slow is not None):
                    position = entry.key
                    yield entry
                return
        except _MisreadError as error:
            if slow is None:
                raise Misconfigured(
                    f"{uri}: after {position!r} comes an object that cannot be listed: {error}"
                ) from error
            misread = error
        except StoreError as error:
            # obstore does not retry if the body of a page is interrupted
            tries = tries + 1 if position == reached else 1
            if not (patient and is_transient(error) and tries < _TRIES_WITHOUT_PROGRESS):
                raise


def _as_listed_natively(entry: StoreEntry) -> StoreEntry:
    """Return an entry as obstore lists it, so that the listing is the same wherever its pages begin."""
    return replace(entry, is_archived=False) if entry.is_archived else entry


def _list_native(bucket: ObjectStore, uri: str, prefix: str, after: str, *, has_slow: bool) -> Iterator[StoreEntry]:
    # obstore's prefix is a folder: the rest of ours is a filter, between its first and its last key
    folder = prefix[: prefix.rfind("/") + 1]
    try:
        pages = obstore.list(bucket, prefix=folder or None, offset=after or None, chunk_size=PAGE_KEYS)
        last = after
        for page in pages:
            keys = [meta["path"] for meta in page if meta["size"] == 0 and meta["path"].startswith(prefix)]
            empty = _EmptyEntries(bucket, uri, keys, has_slow=has_slow)
            for meta in page:
                key, size = meta["path"], meta["size"]
                if not key.startswith(prefix):
                    if key > prefix:
                        return
                    continue
                if size == 0 and (key <= last or empty.is_folder_marker(key)):
                    continue  # the object itself would come before "key-"; the marker comes after it
                if key <= last:
                    raise _MisreadError(unsorted_sentence(uri))
                last = key
                yield StoreEntry(key, size, plain_etag(meta["e_tag"]), modified=meta["last_modified"].timestamp())
    except InvalidPathError as error:
        raise _MisreadError("its name has empty or dotted segments, or control characters. Rename it.") from error
    except NATIVE_ERRORS as error:
        failure = native_error(error, "list", uri)
    else:
        return
    raise failure


class _EmptyEntries:
    """Tells folder markers and empty objects of a page apart."""

    def __init__(self, bucket: ObjectStore, uri: str, keys: Sequence[str], *, has_slow: bool) -> None:
        """Set the keys of all empty entries, and whether a client is there that distinguishes them without requests."""
        self._bucket, self._uri, self._keys, self._has_slow = bucket, uri, keys, has_slow
        self._found: dict[str, bool | StoreError] = {}

    def is_folder_marker(self, key: str) -> bool:
        """Return whether an entry is the marker `key/`, whose slash obstore drops, and not the object `key`.

        Raises:
            _ManyEmptyError: this is the second one, and the other client should list the page.
            StoreError: the store refused.
        """
        if self._has_slow:
            if self._found:
                raise _ManyEmptyError
            self._found[key] = _is_folder_marker(self._bucket, self._uri, key)
        elif not self._found:
            keys = list(dict.fromkeys(self._keys))
            with ThreadPoolExecutor(min(_HEADS_AT_ONCE, len(keys)), thread_name_prefix="markers") as pool:
                self._found = dict(zip(keys, pool.map(self._ask, keys), strict=True))
        answer = self._found[key]
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def _ask(self, key: str) -> bool | StoreError:
        try:
            return _is_folder_marker(self._bucket, self._uri, key)
        except StoreError as error:  # raised when the listing has come to it
            return error


def _is_folder_marker(bucket: ObjectStore, uri: str, key: str) -> bool:
    try:
        return obstore.head(bucket, key)["size"] > 0
    except FileNotFoundError:  # the response to a HEAD has no code, so its error is not explained like others
        return True
    except NATIVE_ERRORS as error:
        failure = native_error(error, "read", f"{uri}/{key}")
    if isinstance(failure, Denied):
        return False
    raise failure


def _just_before(prefix: str) -> str:
    """Return a key slightly smaller than all that begin with `prefix`; "" if obstore supports none."""
    if not prefix or prefix.endswith("/"):
        return ""
    code = ord(prefix[-1]) - 1
    if 0xD800 <= code <= 0xDFFF:
        code = 0xD7FF
    before = prefix[:-1] + chr(code) + _HIGHEST if code >= 0 else ""
    return "" if is_refused(before) else before
