"""The store interface, and the errors of stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pipelines.store.uris import check_no_secret

CLIENT_RETRY_SECONDS = 120.0
REQUEST_SECONDS = 60
CONNECT_SECONDS = 5

KEYS_INSTEAD = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One object of a listing.

    `size` and `etag` are None where the source does not tell. Etags carry no quotes and no `W/`, wherever they come
    from. `is_archived` says that the object must be restored before it can be read, where the listing tells: obstore's
    does not. `unnameable` is not 0 in what stands for so many files or folders in the folder `key` whose names are not
    UTF-8: only `ListsUnnameable` gives such an entry.
    """

    key: str
    size: int | None
    etag: str | None
    is_archived: bool = False
    unnameable: int = 0


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
        via: "fsspec" reads through fsspec where "auto" takes the faster native client.
        anonymous: Send unsigned requests: public buckets.
        endpoint: The server's address, for S3 that is not Amazon's. None: as `AWS_ENDPOINT_URL` says.
        region: The region. None: as `AWS_REGION` or the profile says.
        profile: The AWS profile that credentials are of, also where the environment has keys. None: as the environment
            says.
        request_payer: Say with every request that we pay for it: requester-pays buckets.
        retry_seconds: How long one request is tried again by the client itself before it is an error.
    """

    via: Literal["auto", "fsspec"] = "auto"
    anonymous: bool = False
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    request_payer: bool = False
    retry_seconds: float = CLIENT_RETRY_SECONDS

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            check_no_secret("endpoint", self.endpoint, instead=KEYS_INSTEAD)

    def of_table(
        self, *, endpoint: str | None = None, region: str | None = None, profile: str | None = None
    ) -> StoreOptions:
        """Return how a table of what is read with these is reached: natively, with credentials; None is as here."""
        return StoreOptions(
            endpoint=endpoint or self.endpoint,
            region=region or self.region,
            profile=profile or self.profile,
            retry_seconds=self.retry_seconds,
        )


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
