"""The store interface, and the errors of stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, ClassVar, Literal, Protocol, runtime_checkable

from pipelines.options import check_options, option
from pipelines.store.uris import check_no_secret

CLIENT_RETRY_SECONDS = 120.0
REQUEST_SECONDS = 60
SLOWEST_BYTES = 10**6  # a second, the slowest supported transfer
QUICK_BYTES = REQUEST_SECONDS * SLOWEST_BYTES  # size of a transfer for which the usual time-out is sufficient
CONNECT_SECONDS = 5

KEYS_INSTEAD = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One object of a listing.

    Attributes:
        key: the key, relative to the store's URI.
        size: bytes; None if unknown.
        etag: version of the object, without quotes and `W/`; None if unknown.
        is_archived: whether the object must be restored before it can be read, if the listing says so; obstore's
            listings do not.
        unnameable: if not 0, the entry represents this many names in the folder `key` that are not UTF-8
            (`ListsUnnameable` only).
        modified: time of the last write in seconds since 1970 (UTC); None if unknown.
    """

    key: str
    size: int | None
    etag: str | None
    is_archived: bool = False
    unnameable: int = 0
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of an object, and its etag when they were read."""

    data: bytes
    etag: str | None


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options for access to stores. Contains no secrets, so it can be sent to other processes and recorded.

    Args:
        retry_seconds: how long the client itself retries a request before it raises an error.
        reads_once: whether the caller retries when reading a whole object fails, as `labelling.fetching` does. obstore
            still repeats a request that the server did not answer, for `retry_seconds`.
    """

    via: Literal["auto", "fsspec"] = option(
        "fsspec: read through fsspec instead of the faster native client", default="auto"
    )
    anonymous: bool = option("read without credentials, for public buckets", default=False)
    endpoint: str | None = option("address of the S3 server (AWS_ENDPOINT_URL)", default=None, metavar="URL")
    region: str | None = option("S3 region (AWS_REGION)", default=None, metavar="NAME")
    profile: str | None = option("AWS profile (keys in AWS_*, then AWS_PROFILE)", default=None, metavar="NAME")
    request_payer: bool = option("send requester-pays headers when reading", default=False)
    retry_seconds: float = CLIENT_RETRY_SECONDS
    reads_once: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.endpoint is not None:
            check_no_secret("endpoint", self.endpoint, instead=KEYS_INSTEAD)

    def of_table(self, table: TableOptions | None = None) -> StoreOptions:
        """Return the options for the table of images read with these options: natively and with credentials."""
        table = table or TableOptions()
        return StoreOptions(
            endpoint=table.endpoint or self.endpoint,
            region=table.region or self.region,
            profile=table.profile or self.profile,
            retry_seconds=self.retry_seconds,
        )


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Options for access to the table and the model, if they are in another store than the images."""

    endpoint: str | None = option("S3 server of the table and the model (--endpoint)", default=None, metavar="URL")
    region: str | None = option("S3 region of the table and the model (--region)", default=None, metavar="NAME")
    profile: str | None = option("AWS profile for the table and the model (--profile)", default=None, metavar="NAME")

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            check_no_secret("endpoint", self.endpoint, instead=KEYS_INSTEAD)


S3 = ("endpoint", "region", "profile")
"""The options of commands that read and write one store, with credentials."""


class StoreError(Exception):
    """A request to a store failed. The message is for the user and contains no secret."""

    is_transient: ClassVar[bool] = False


class NotFound(StoreError):
    """There is no such object."""


class Denied(StoreError):
    """These credentials may not access the object; the store itself is available."""


class AlreadyExists(StoreError):
    """A create-only put found an object: another writer's, or its own after a lost response. Compare the contents."""


class Changed(StoreError):
    """A conditional put or read found another etag than the expected one, or a conditional put found no object."""


class ObjectTooLarge(StoreError):
    """The object has more bytes than the reader accepts."""


class Archived(StoreError):
    """The object is in an archive storage class and must be restored before it can be read."""


class Throttled(StoreError):
    """The store throttled the request until the client gave up."""

    is_transient = True


class StoreDown(StoreError):
    """No response, incomplete responses or server errors, until the client gave up."""

    is_transient = True


class Misconfigured(StoreError):
    """The store cannot be used: no such bucket, missing or invalid credentials, wrong region, or no right to list."""


class NoBucket(Misconfigured):
    """There is no such bucket or container."""


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later, so that `retry` should repeat it."""
    return isinstance(error, StoreError) and error.is_transient


def transfer_seconds(size: int) -> int:
    """Return the time-out of a transfer of this size at `SLOWEST_BYTES` a second, rounded up to one of a few values."""
    seconds = REQUEST_SECONDS
    while seconds * SLOWEST_BYTES < size:
        seconds *= 2
    return seconds


def refuse_larger(uri: str, size: int | None, most_bytes: int | None) -> None:
    """Check the size of an object, if it is known, against a limit.

    Raises:
        ObjectTooLarge: the object has more than `most_bytes`.
    """
    if size is not None and most_bytes is not None and size > most_bytes:
        raise ObjectTooLarge(f"{uri} has {size:,} bytes, more than {most_bytes:,}; it was not read.")


def refuse_changed(uri: str, etag: str | None, if_match: str | None) -> None:
    """Check that an object has the expected etag, if both etags are known.

    Raises:
        Changed: the etag is not `if_match`.
    """
    if None not in (etag, if_match) and etag != if_match:
        raise Changed(f"{uri} has changed: its etag is {etag}, not {if_match}.")


class Store(Protocol):
    """The objects below one URI. Keys are relative to it. Methods can be called from several threads.

    Use `open_store` in the process that needs the store: stores are not pickled and not used after a fork.
    """

    @property
    def uri(self) -> str:
        """The URI of the store, without a trailing slash."""
        ...

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the objects whose key begins with `prefix` and is greater than `after`, in byte order of UTF-8 keys.

        Includes all depths and hidden names, but no folders and folder markers. Memory does not grow with the listing
        (for local folders: with the names of one folder). `prefix` can be any string, not only a folder. If there is
        no object, the listing is empty.

        Raises:
            StoreError: the listing failed. It can be continued with `after` = the last key.
        """
        ...

    def head(self, key: str) -> StoreEntry:
        """Return the entry of a key, as in a listing."""
        ...

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole object. Its length equals the announced one.

        Raises:
            ObjectTooLarge: the object has more than `most_bytes`; if the store announces the size, nothing is read.
        """
        ...

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, or fewer at the end of the object.

        Raises:
            Changed: the object has another etag than `if_match`, if that is known. Only fsspec needs another request
                for this.
        """
        ...

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write the whole object in one request, so that readers never see a part; return the new etag if known.

        With `create`, write only if the object does not exist; with `if_match`, only if it has that etag. Both are
        repeated a few times if a response is lost, and may then find their own write: after `AlreadyExists` or
        `Changed`, compare the object with what was written.

        Raises:
            AlreadyExists: with `create`, the object exists.
            Changed: with `if_match`, the object has another etag.
            StoreDown: the object may be written or not.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete the object. Succeeds if it does not exist."""
        ...


@runtime_checkable
class PutsFiles(Protocol):
    """A store that can write an object without holding its bytes in memory: local folders."""

    def put_file(self, key: str, file: IO[bytes]) -> None:
        """Write the whole object from an open file, from its position on, as `Store.put` does."""
        ...


@runtime_checkable
class ListsUnnameable(Protocol):
    """A store that can count files which it does not list because their names are not UTF-8: local folders."""

    def list_all(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the entries of `Store.list`, with an entry for each folder that has such names before its files."""
        ...


@runtime_checkable
class ListsAnywhere(Protocol):
    """A store that can begin a listing after any key without reading earlier entries, such as S3."""

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """See `Store.list`."""
        ...

    def folders(self, folder: str, after: str) -> tuple[Sequence[str], bool]:
        """Return folders in a folder ("" or with a trailing slash) greater than a key, and whether these are all.

        One request. The folders are whole keys in order, with a trailing slash, without the folder of the key.
        """
        ...
