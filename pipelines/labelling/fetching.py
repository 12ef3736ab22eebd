"""Fetches the images of a shard with retries, and distinguishes bad objects from an unavailable store."""

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TypeAlias

from pipelines.clock import Clock
from pipelines.labelling.adaptive_limit import AdaptiveLimit
from pipelines.labelling.member_reading import BadMember, MemberReader
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.members import file_of, split_member
from pipelines.store import (
    Archived,
    Blob,
    Changed,
    Denied,
    Misconfigured,
    NoBucket,
    NotFound,
    ObjectTooLarge,
    StoreDown,
    StoreError,
    StoreOptions,
    Stores,
    Throttled,
    is_transient,
    scheme_of,
    split_uri,
    transfer_seconds,
    without_secrets,
)
from pipelines.store.retry import retry

FETCH_THREADS = 32  # waiting takes no CPU time; obstore takes 0.6 ms of CPU per GET with 32 (object-store notes)
# Budgets of the retries for one image, counted from the first attempt; the image keeps its turn of the limit meanwhile.
# For a whole object that obstore reads, `Fetcher._try` is the only loop of ours; other stores and members of archives
# have one for `CLIENT_SECONDS` below it.
CLIENT_SECONDS = 2.0  # of retries in the client itself, for occasional errors, which do not change the limit
FETCH_BUDGET_SECONDS = 120.0  # of retries for an object; more for a large one, which a slow link may take minutes for
WEB_SECONDS = 15.0  # of retries on a web server: a list may name thousands, and unreachable ones must not take long
CANARY_SECONDS = 20.0  # of retries for an object that was readable before, until its store counts as unavailable
DENIED_SECONDS = 10.0  # of retries after a refusal, about eight: throttling may look like a refusal
SURELY_DENIED_SECONDS = (
    1.0  # of retries after a refusal, if this many in a row were refused, so that it is not throttling
)
SURELY_DENIED = 20
MOST_BYTES = 1024**3  # larger objects are not photographs, and would not fit into memory together with others
LEAST_DENIED = 4  # if this many objects are denied and none is readable, the credentials are wrong
MOST_KNOWN = 64  # images that were readable before and are tried when a shard is denied; some may be deleted
MOST_REFUSED = 6  # of these: some may be in a refused folder now, or be deleted where the right to list is missing

OBJECT_KINDS: Mapping[type[StoreError], str] = {
    NotFound: "missing",
    Denied: "denied",
    Archived: "archived",
}
"""Failures of one object while others are readable, and the error kind of its row."""


Known: TypeAlias = Callable[[Callable[[str], bool]], Iterable[str]]
"""Returns images that were readable before, of those buckets, disks and servers whose root a function accepts."""


class LakeUnreadable(Exception):
    """The store of the images is unavailable: the run stops without error rows, and can be resumed."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object of a shard with its bytes, or the error; `is_without_bucket`: its bucket does not exist."""

    item: LakeObject
    blob: Blob | None = None
    error_kind: str | None = None
    error: str | None = None
    is_without_bucket: bool = False

    @property
    def is_changed(self) -> bool:
        """Whether the object is known to have changed between listing and reading."""
        if self.blob is None or self.item.offset is not None:  # a member of another version is not read
            return False
        if self.item.etag is not None and self.blob.etag is not None:
            return self.item.etag != self.blob.etag
        return self.item.size not in (None, len(self.blob.data))


def image_options(options: StoreOptions) -> StoreOptions:
    """Return the options for a `Fetcher`'s stores: their clients retry for `CLIENT_SECONDS` only."""
    return replace(options, retry_seconds=CLIENT_SECONDS, reads_once=True)


class Fetcher:
    """Reads images from all stores. Thread-safe."""

    def __init__(self, images: Stores, clock: Clock, limit: AdaptiveLimit | None = None) -> None:
        """Use stores opened with `image_options`, and a limit of concurrent reads."""
        self._images, self._clock = images, clock
        self._limit = limit or AdaptiveLimit(FETCH_THREADS)
        self._members = MemberReader()
        self._canaries: dict[str, str] = {}  # for each bucket, disk or server, an image that was readable
        self._denied_in_a_row = 0
        self._requests = 0
        self._counting = threading.Lock()

    def fetch(self, items: Sequence[LakeObject]) -> list[Fetched]:
        """Return the bytes, or the error, of each object of a span of `member_spans`.

        Raises:
            LakeUnreadable: the store of the span is unavailable.
        """
        wanted = [item for item in items if not _is_too_large(item)]
        whole, read = items[0], partial(self._read, items[0])
        if whole.offset is not None:  # neighbouring members of a file
            whole = LakeObject(file_of(whole), whole.etag)
            read = partial(self._read_members, whole.uri, wanted)
        found = self._try(whole, read, sum(item.size or 0 for item in wanted)) if wanted else []
        if isinstance(found, Fetched):
            return [replace(found, item=item) for item in items]
        each = iter(found)
        return [_too_large(item) if _is_too_large(item) else _fetched(item, next(each)) for item in items]

    def _try(
        self, item: LakeObject, read: Callable[[], list[Blob | BadMember]], size: int
    ) -> list[Blob | BadMember] | Fetched:
        """Return what `read` returns for an object, or its error if others are readable.

        Args:
            item: The object.
            read: Reads it, or some members of it, once.
            size: Listed bytes of what is read; 0 if unknown.

        Raises:
            LakeUnreadable: the whole store fails.
        """
        try:
            with nullcontext() if is_web(item) else self._limit.turn():  # before the budgets begin
                patience = _Patience(is_web(item), self._limit, self._clock, self._denied_in_a_row, size)
                found = retry(
                    read,
                    budget_seconds=patience.budget_seconds,
                    is_retryable=patience.is_retryable,
                    clock=self._clock,
                )
        except ObjectTooLarge as error:
            # if a list has a size or etag, another version was read, which is not a permanent error of the listed one
            is_condemned = (item.etag, item.size) == (None, None)
            return Fetched(item, error_kind="too_large" if is_condemned else "fetch_failed", error=str(error))
        except Changed as error:
            # offsets of members are valid in the listed version only; the next run lists the newer one
            return Fetched(item, error_kind="fetch_failed", error=f"{error} Its images were listed before; run again.")
        except (NotFound, Denied, Archived) as error:
            if isinstance(error, Denied) and not is_web(item):
                self._denied_in_a_row += 1
                self._refuse_if_all_is_denied(item, error)
            return Fetched(item, error_kind=OBJECT_KINDS[type(error)], error=str(error))
        except (Misconfigured, StoreDown, Throttled) as error:
            if is_web(item):  # one of many hosts, whose failure must not stop the run, now and after every resume
                return Fetched(item, error_kind="fetch_failed", error=str(error))
            if isinstance(error, NoBucket):  # judged when the other images of the shard have been read
                return Fetched(item, error_kind="missing", error=str(error), is_without_bucket=True)
            if isinstance(error, Misconfigured) or not self._others_answer(item):
                raise LakeUnreadable(str(error)) from error
            return Fetched(item, error_kind="fetch_failed", error=str(error))
        if not is_web(item):
            self._limit.succeed()
        if patience.refusals:
            self._denied_in_a_row = 0
        self._remember_canary(item)
        return found

    def take_requests(self) -> int:
        """Return the number of requests since the last call."""
        with self._counting:
            requests, self._requests = self._requests, 0
        return requests + self._members.take_requests()

    def refuse_all_denied(self, fetched: Sequence[Fetched], known: Known = lambda _: ()) -> None:
        """Refuse a shard if all of its objects are denied and no other is readable: then the credentials are wrong.

        Args:
            fetched: The objects of the shard.
            known: Called only if all objects are denied and this fetcher has read no other of their stores.

        Raises:
            LakeUnreadable: with the first refusal.
        """
        refused = [one for one in fetched if one.error_kind == "denied" and not is_web(one.item)]
        roots = sorted({split_uri(one.item.uri)[0] for one in refused})
        if not len(refused) == len(fetched) >= LEAST_DENIED or any(root in self._canaries for root in roots):
            return
        now_refused: str | None = None
        for root in roots:
            try:
                if self._find_canary(known(root.__eq__)):
                    return
            except Denied as error:
                now_refused = now_refused or str(error)
        also = (
            ""
            if now_refused is None
            else f" Images that were read before are now refused, too: {now_refused} The credentials have expired or "
            "their rights were revoked."
        )
        raise LakeUnreadable(
            f"access to all {len(fetched)} images of a shard is denied; the first error: {refused[0].error}{also}"
        )

    def refuse_missing_buckets(self, fetched: Sequence[Fetched], known: Known = lambda _: ()) -> None:
        """Refuse a shard with objects in buckets that do not exist, unless other buckets of the same kind are readable.

        If they are, the endpoint and the account are right, and these buckets are gone or misspelt in a list.

        Args:
            fetched: Objects of the shard.
            known: Called only if this fetcher has read nothing of other buckets.

        Raises:
            LakeUnreadable: with the first such error.
        """
        for root, one in {split_uri(one.item.uri)[0]: one for one in fetched if one.is_without_bucket}.items():
            is_other = partial(_is_other_bucket, root)
            canaries = [uri for other, uri in list(self._canaries.items()) if is_other(other)]
            try:
                if self._find_canary(chain(canaries, known(is_other))):
                    continue
            except Denied as error:
                raise LakeUnreadable(f"{one.error} {error}") from error
            raise LakeUnreadable(
                f"{one.error} If a list of images names a bucket that no longer exists, remove it from the list and "
                "use --new-run."
            )

    def _find_canary(self, known: Iterable[str]) -> bool:
        """Return whether one of some images is readable now; it is the canary of its store from now on.

        Raises:
            Denied: `MOST_REFUSED` of them are refused, or all that exist.
            LakeUnreadable: the store is unavailable.
        """
        refusals: list[Denied] = []
        for uri in islice(known, MOST_KNOWN):
            item = LakeObject(uri)
            try:
                holding = self._file_holding(item) or uri
                self._touch(holding, is_retryable=_may_pass)
            except Denied as error:
                refusals.append(error)
                if len(refusals) == MOST_REFUSED:
                    break
            except (NotFound, Archived, NoBucket):
                continue
            except StoreError as error:
                raise LakeUnreadable(str(error)) from error
            else:
                self._canaries[split_uri(uri)[0]] = holding
                return True
        if refusals:
            raise refusals[0]
        return False

    def _read(self, item: LakeObject) -> list[Blob | BadMember]:
        """Read an object once.

        Raises:
            StoreDown: the response is complete, but shorter than the object.
        """
        with self._counting:
            self._requests += 1
        blob = self._images.get(item.uri, most_bytes=MOST_BYTES)  # the listed size may be unknown or outdated
        if item.size in (None, len(blob.data)):
            return [blob]
        if self._file_holding(item) is not None:  # members are complete, or an error
            return [blob]
        store, key = self._images.find(item.uri)
        size = store.head(key).size  # not the listed size: the object has changed, or the response was short
        if size in (None, len(blob.data)):
            return [blob]
        raise StoreDown(
            f"{without_secrets(item.uri)} was cut off: {len(blob.data):,} of {size:,} bytes arrived. "
            "Check proxies and the network, then run again."
        )

    def _remember_canary(self, item: LakeObject) -> None:
        bucket = split_uri(item.uri)[0]
        if split_member(item.uri) is None:
            self._canaries[bucket] = item.uri
        elif bucket not in self._canaries:
            with suppress(StoreError):
                self._canaries[bucket] = self._file_holding(item) or item.uri

    def _file_holding(self, item: LakeObject) -> str | None:
        """Return the file that contains an image, or None for an object of its own."""
        found = split_member(item.uri)
        if found is None:
            return None
        store, key = self._images.find(found[0])
        try:
            store.head(key)
        except (NotFound, Denied):  # an object in a folder whose name looks like an archive
            return None
        return found[0]

    def _read_members(self, uri: str, items: Sequence[LakeObject]) -> list[Blob | BadMember]:
        """Read members of a file once."""
        store, key = self._images.find(uri)
        return self._members.read(store, key, items)

    def _refuse_if_all_is_denied(self, item: LakeObject, refusal: Denied) -> None:
        """Check whether an image of the same store that was readable before is denied now, too.

        Raises:
            LakeUnreadable: it is, or the store is unavailable.
        """
        canary = self._canaries.get(split_uri(item.uri)[0])
        if canary is None:
            return
        try:
            self._touch(canary, is_retryable=_may_pass)
        except Denied as error:
            raise LakeUnreadable(
                f"{refusal} {without_secrets(canary)}, which was read before, is now refused, too: the credentials "
                "have expired or their rights were revoked."
            ) from error
        except (NotFound, Archived):
            return
        except StoreError as error:
            raise LakeUnreadable(str(error)) from error

    def _others_answer(self, item: LakeObject) -> bool:
        """Return whether the store of a repeatedly failing image responds to requests for other objects."""
        uri = self._canaries.get(split_uri(item.uri)[0], f"{item.uri}.{uuid.uuid4().hex}")
        try:
            self._touch(uri, is_retryable=is_transient)
        except StoreError as error:
            return not (is_transient(error) or isinstance(error, Misconfigured))
        return True

    def _touch(self, uri: str, *, is_retryable: Callable[[Exception], bool]) -> None:
        store, key = self._images.find(uri)
        retry(
            lambda: store.get_range(key, 0, 1),
            budget_seconds=CANARY_SECONDS,
            is_retryable=is_retryable,
            clock=self._clock,
        )


class _Patience:
    """The retry budgets of one object by error, and the reports of its errors to the limit."""

    def __init__(self, is_web: bool, limit: AdaptiveLimit, clock: Clock, denied_in_a_row: int, size: int) -> None:
        self._is_web, self._limit, self._clock = is_web, limit, clock
        self._denied_seconds = DENIED_SECONDS if denied_in_a_row < SURELY_DENIED else SURELY_DENIED_SECONDS
        self._since, self._cuts = clock.monotonic(), limit.cuts
        self._budget_seconds = FETCH_BUDGET_SECONDS + transfer_seconds(size) - transfer_seconds(0)
        self.refusals = 0

    def is_retryable(self, error: Exception) -> bool:
        """Return whether the object may be readable later."""
        return is_transient(error) or (isinstance(error, Denied) and not self._is_web)

    def budget_seconds(self, error: Exception) -> float:
        """Return how long to retry the object after an error, counted from the first attempt."""
        if self._is_web:
            return WEB_SECONDS
        if isinstance(error, Denied):
            self.refusals += 1
            return self._denied_seconds
        now = self._clock.monotonic()
        if now - self._since >= CLIENT_SECONDS:
            self._limit.fail(error, self._cuts)
            self._since, self._cuts = now, self._limit.cuts
        return self._budget_seconds


def _is_other_bucket(root: str, other: str) -> bool:
    return other != root and scheme_of(other) == scheme_of(root)


def _may_pass(error: Exception) -> bool:
    return isinstance(error, Denied) or is_transient(error)


def _is_too_large(item: LakeObject) -> bool:
    return item.size is not None and item.size > MOST_BYTES


def _too_large(item: LakeObject) -> Fetched:
    return Fetched(
        item,
        error_kind="too_large",
        error=f"the object has {item.size:,} bytes, more than the limit of {MOST_BYTES:,}; it was not read",
    )


def _fetched(item: LakeObject, found: Blob | BadMember) -> Fetched:
    if isinstance(found, BadMember):
        return Fetched(item, error_kind=found.kind, error=found.error)
    return Fetched(item, found)


def is_web(item: LakeObject) -> bool:
    """Return whether an object is on a web server; a list may name thousands of these."""
    return item.uri.startswith(("http://", "https://"))
