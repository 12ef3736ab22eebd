"""The store interface, and the errors of stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pipelines.options import check_options, option
from pipelines.store.uris import check_no_secret

CLIENT_RETRY_SECONDS = 120.0
REQUEST_SECONDS = 60
CONNECT_SECONDS = 5

KEYS_INSTEAD = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One object of a listing.

    `size`, `etag` and `modified`, in seconds since 1970 (UTC), are None where the source does not tell. Etags carry no
    quotes and no `W/`, wherever they come from. `is_archived` says that the object must be restored before it can be
    read, where the listing tells: obstore's does not. `unnameable` is not 0 in what stands for so many files or folders
    in the folder `key` whose names are not UTF-8: only `ListsUnnameable` gives such an entry.
    """

    key: str
    size: int | None
    etag: str | None
    is_archived: bool = False
    unnameable: int = 0
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of one object, and the etag that it had when they were read."""

    data: bytes
    etag: str | None


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach stores.

    Holds no secret: it may travel and be written down, and stores are made from it where they are used.

    Args:
        retry_seconds: how long the client itself repeats a request before it raises an error.
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

    def __post_init__(self) -> None:
        check_options(self)
        if self.endpoint is not None:
            check_no_secret("endpoint", self.endpoint, instead=KEYS_INSTEAD)

    def of_table(self, table: TableOptions | None = None) -> StoreOptions:
        """Return how to reach a table of what is read with these options: natively and with credentials."""
        table = table or TableOptions()
        return StoreOptions(
            endpoint=table.endpoint or self.endpoint,
            region=table.region or self.region,
            profile=table.profile or self.profile,
            retry_seconds=self.retry_seconds,
        )


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Where the table and the model are, if not in the store of the images."""

    endpoint: str | None = option("S3 server of the table and the model (--endpoint)", default=None, metavar="URL")
    region: str | None = option("S3 region of the table and the model (--region)", default=None, metavar="NAME")
    profile: str | None = option("AWS profile for the table and the model (--profile)", default=None, metavar="NAME")

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            check_no_secret("endpoint", self.endpoint, instead=KEYS_INSTEAD)


S3 = ("endpoint", "region", "profile")
"""The options of commands that read and write one store, with credentials."""


class StoreError(Exception):
    """A store did not do what it was asked. The message is a sentence for the user and holds no secret."""

    is_transient: ClassVar[bool] = False


class NotFound(StoreError):
    """No such object."""


class Denied(StoreError):
    """This object is refused to these credentials, while the store is fine."""


class AlreadyExists(StoreError):
    """A create-only put met an object: somebody else's, or our own after a lost answer. Compare what is inside."""


class Changed(StoreError):
    """A conditional put, or a read, met another etag than the expected one; or a put met no object."""


class ObjectTooLarge(StoreError):
    """The object has more bytes than its reader takes; what there is of it was not kept."""


class Archived(StoreError):
    """The object lies in an archive class, which must be restored before it can be read."""


class Throttled(StoreError):
    """The store asks for fewer requests, and did so until the client gave up."""

    is_transient = True


class StoreDown(StoreError):
    """No answer, broken answers or server errors, until the client gave up."""

    is_transient = True


class Misconfigured(StoreError):
    """Nothing in this store can work: no bucket, credentials missing or refused, another region, no right to list."""


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later without anybody's doing: what `retry` should try again."""
    return isinstance(error, StoreError) and error.is_transient


def refuse_larger(uri: str, size: int | None, most_bytes: int | None) -> None:
    """Refuse an object of a size, where it is known, that its reader does not take.

    Raises:
        ObjectTooLarge: it has more than `most_bytes`.
    """
    if size is not None and most_bytes is not None and size > most_bytes:
        raise ObjectTooLarge(f"{uri} has {size:,} bytes, more than {most_bytes:,}; it was not read.")


def refuse_changed(uri: str, etag: str | None, if_match: str | None) -> None:
    """Refuse an object that is another version than the expected one, where both are known.

    Raises:
        Changed: its etag is not `if_match`.
    """
    if None not in (etag, if_match) and etag != if_match:
        raise Changed(f"{uri} has changed: its etag is {etag}, not {if_match}.")


class Store(Protocol):
    """The objects below one URI. Keys are relative to it; methods may be called from many threads at once.

    Made by `open_store` in the process that uses it: a store is never pickled, never used after a fork.
    """

    @property
    def uri(self) -> str:
        """The URI below which the keys lie, without a slash at its end."""
        ...

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the objects whose key begins with `prefix` and is greater than `after`, in byte order of UTF-8 keys.

        Every depth, hidden names too; folders and folder markers are left out. It streams: memory does not grow with
        the listing (of local folders one folder's names are held). `prefix` is a string like any other, it need not
        end with a folder's name. Nothing there is an empty listing, not an error.

        Raises:
            StoreError: the listing cannot go on. It can be taken up with `after` the last key.
        """
        ...

    def head(self, key: str) -> StoreEntry:
        """Return what a listing would say of this key."""
        ...

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole object; its length agrees with what the store announced.

        Raises:
            ObjectTooLarge: it has more than `most_bytes`; nothing is read where the store announces the size.
        """
        ...

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, fewer only where the object ends before.

        Raises:
            Changed: with `if_match`, where the object is known to have another etag. Costs no further request, but
                through fsspec.
        """
        ...

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write the whole object in one request, so that nobody sees half of it; return its new etag where known.

        `create` writes only where nothing is, `if_match` only over the object with that etag. Both are sent again,
        within bounds, when an answer is lost, and then may meet their own work: whoever gets `AlreadyExists` or
        `Changed` compares what is there with what it wrote.

        Raises:
            AlreadyExists: with `create`.
            Changed: with `if_match`.
            StoreDown: nothing is known about what was written, if anything.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; that there was none is success."""
        ...


@runtime_checkable
class ListsUnnameable(Protocol):
    """A store that also tells how many files it does not list because their names are not UTF-8, as folders do."""

    def list_all(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """As `Store.list`, with an entry before the files of each folder that has such names."""
        ...


@runtime_checkable
class ListsAnywhere(Protocol):
    """A store that begins a listing behind any key at no cost, as S3 does; others look at all that lies before."""

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """As `Store.list`."""
        ...

    def folders(self, folder: str, after: str) -> tuple[Sequence[str], bool]:
        """Return folders within a folder ("" or with a slash at its end) that are greater than a key, and if it is all.

        In order, whole keys with a slash at their end, from one request; what holds the key itself is left out.
        """
        ...
