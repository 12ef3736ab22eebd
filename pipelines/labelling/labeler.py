"""What one actor does with one shard: fetch, decode, detect, make rows, commit the part. Knows no Ray."""

import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa

from detr.batching import Batch, order_batches
from detr.detector import Detector, Prepared
from detr.images import Header, ImageError, decode, read_header
from detr.postprocess import Detections
from pipelines.clock import Clock, SystemClock
from pipelines.labelling.publish import commit_part
from pipelines.lake.listing import LakeObject
from pipelines.retry import retry
from pipelines.store import (
    Archived,
    Blob,
    Denied,
    Misconfigured,
    NotFound,
    Store,
    StoreDown,
    StoreError,
    Stores,
    Throttled,
)
from pipelines.table import Detected, Origin, Row, rows_to_table

FETCH_THREADS = 32  # waiting for a store costs no core; obstore is 0.6 ms of CPU a GET at 32 (object-store notes)
WINDOW_BYTES = 256 * 1024**2  # encoded bytes held at once by one shard
UNKNOWN_BYTES = 1024**2  # what an object of unknown size is taken for
BATCHES_AHEAD = 2  # batches that are decoded while one is in the network
FETCH_BUDGET_SECONDS = 120.0  # what an object may keep failing for
SILENT_SECONDS = 60.0  # without any image from a store that may be down as a whole
MOST_BYTES = 1024**3  # a larger object is no photograph, and would not fit beside its neighbours
LEAST_DENIED = 4  # when all of at least so many objects are denied, it is the credentials and not the objects

OBJECT_KINDS: Mapping[type[StoreError], str] = {NotFound: "missing", Denied: "denied", Archived: "archived"}
"""Failures of one object among healthy ones, and the error kind that its row gets."""


class LakeUnreadable(Exception):
    """The source of the images fails as a whole: no row can be blamed, the run stops and can be resumed."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of one shard, for the driver: counts, and where the time went (seconds summed over threads)."""

    shard: int
    images: int
    detections: int
    errors: Mapping[str, int]
    seconds: float
    fetch_seconds: float
    decode_seconds: float
    detect_seconds: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """One object of a shard with its bytes, its header, or the reason why it has none."""

    item: LakeObject
    blob: Blob | None = None
    header: Header | None = None
    error_kind: str | None = None
    error: str | None = None


@dataclass
class _Clocked:
    """Seconds spent by kind of work, added up by several threads."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, work: str, started: float) -> None:
        with self.lock:
            self.seconds[work] += time.perf_counter() - started


class Labeler:
    """Labels shards of one run. Several threads may label different shards at once; the network is one lock."""

    def __init__(
        self,
        *,
        table: Store,
        images: Stores,
        detector: Detector,
        run_id: str,
        model_id: str,
        threshold: float,
        read_shard: Callable[[int], Sequence[LakeObject]],
        kept_schema: pa.Schema,
        decode_threads: int,
        max_pixels: int,
        clock: Clock | None = None,
    ) -> None:
        """Hold what labelling needs.

        Args:
            table: where parts are committed.
            images: where images are fetched.
            detector: the model on its device.
            run_id: of the run that the shards belong to.
            model_id: `name@sha256[:12]`, for the rows.
            threshold: for the rows; the detector applies it.
            read_shard: gives the objects of a shard by its number.
            kept_schema: columns that are carried from the source.
            decode_threads: images decoded at once.
            max_pixels: larger pictures are not decoded.
            clock: what rows are stamped with and retries are measured by.
        """
        self._table, self._images, self._detector = table, images, detector
        self._run_id, self._model_id, self._threshold = run_id, model_id, threshold
        self._read_shard, self._kept_schema, self._max_pixels = read_shard, kept_schema, max_pixels
        self._clock = clock or SystemClock()
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._network = threading.Lock()
        self._last_success = self._clock.monotonic()

    def label(self, shard: int) -> ShardReport:
        """Label every object of a shard and commit its part, once, whoever else tries.

        Raises:
            LakeUnreadable: the images' store fails as a whole; nothing was committed.
            StoreError: the table cannot be read or written.
        """
        started, clocked = time.perf_counter(), _Clocked()
        objects = self._read_shard(shard)
        rows: list[Row] = []
        refused: list[Fetched] = []
        for window in windows(objects):
            fetched = list(self._fetchers.map(lambda item: self._fetch(item, clocked), window))
            refused += [one for one in fetched if one.error_kind == "denied" and not _is_web(one.item)]
            rows += self._detect(fetched, clocked)
            del fetched  # before the next window is fetched
        if len(refused) == len(objects) >= LEAST_DENIED:
            raise LakeUnreadable(f"all {len(objects)} images of a shard are refused; the first: {refused[0].error}")
        origin = Origin(self._model_id, self._threshold, self._run_id, shard, labelled_at=self._clock.now())
        table = rows_to_table(rows, self._kept_schema, origin=origin)
        commit_part(self._table, self._run_id, shard, table, token=uuid.uuid4().hex)
        return ShardReport(
            shard=shard,
            images=len(rows),
            detections=sum(len(row.detections.labels) for row in rows if row.detections is not None),
            errors=Counter(row.error_kind for row in rows if row.error_kind is not None),
            seconds=time.perf_counter() - started,
            fetch_seconds=clocked.seconds["fetch"],
            decode_seconds=clocked.seconds["decode"],
            detect_seconds=clocked.seconds["detect"],
        )

    def _fetch(self, item: LakeObject, clocked: _Clocked) -> Fetched:
        if item.size is not None and item.size > MOST_BYTES:
            return Fetched(
                item, error_kind="too_large", error=f"{item.size:,} bytes, more than {MOST_BYTES:,}; not read"
            )
        started = time.perf_counter()
        try:
            blob = retry(
                lambda: self._images.get(item.uri),
                # a web server has had its own few tries: a list names thousands of them, and dead ones among them
                budget_seconds=0.0 if _is_web(item) else FETCH_BUDGET_SECONDS,
                is_retryable=lambda error: isinstance(error, StoreError) and error.is_passing,
                clock=self._clock,
            )
        except (NotFound, Denied, Archived) as error:
            return Fetched(item, error_kind=OBJECT_KINDS[type(error)], error=str(error))
        except (Misconfigured, StoreDown, Throttled) as error:
            if _is_web(item):  # one of many hosts, whose failure must not stop the others, now and at every resume
                return Fetched(item, error_kind="fetch_failed", error=str(error))
            if isinstance(error, Misconfigured):
                raise LakeUnreadable(str(error)) from error
            if self._clock.monotonic() - self._last_success > SILENT_SECONDS and not self._answers(item.uri):
                raise LakeUnreadable(str(error)) from error
            return Fetched(item, error_kind="fetch_failed", error=str(error))
        finally:
            clocked.add("fetch", started)
        self._last_success = self._clock.monotonic()
        try:
            header = read_header(blob.data, max_pixels=self._max_pixels)
            self._detector.target_shape(header.height, header.width)
        except ImageError as error:
            return Fetched(item, blob, error_kind=error.kind, error=str(error))
        return Fetched(item, blob, header)

    def _answers(self, uri: str) -> bool:
        """Whether the store of an image answers at all, be it that it has no such object."""
        store, key = self._images.find(uri)
        try:
            store.head(f"{key}.{uuid.uuid4().hex}")
        except StoreError as error:
            return not error.is_passing
        return True

    def _detect(self, fetched: Sequence[Fetched], clocked: _Clocked) -> list[Row]:
        """Return the rows of one window, in its order; decoding runs a few batches ahead of the network."""
        readable = [index for index, one in enumerate(fetched) if one.header is not None]
        shapes = [self._detector.target_shape(*_size(fetched[index])) for index in readable]
        batches = order_batches(shapes, batch_size=self._detector.batch_size, grid=self._detector.grid)
        found: dict[int, Detections] = {}
        failed: dict[int, ImageError] = {}
        waiting: list[tuple[Batch, list[Future[Prepared | ImageError]]]] = []
        remaining = iter(batches)
        while True:
            for batch in islice(remaining, BATCHES_AHEAD + 1 - len(waiting)):
                futures = [
                    self._decoders.submit(self._prepare, fetched[readable[index]], clocked) for index in batch.indices
                ]
                waiting.append((batch, futures))
            if not waiting:
                break
            batch, futures = waiting.pop(0)
            outcomes = {readable[index]: future.result() for index, future in zip(batch.indices, futures, strict=True)}
            failed.update({index: one for index, one in outcomes.items() if isinstance(one, ImageError)})
            good = {index: one for index, one in outcomes.items() if isinstance(one, Prepared)}
            if good:
                with self._network:
                    started = time.perf_counter()
                    detections = self._detector.detect(list(good.values()), shape=(batch.height, batch.width))
                    clocked.add("detect", started)
                found.update(zip(good, detections, strict=True))
        return [_row(one, found.get(index), failed.get(index)) for index, one in enumerate(fetched)]

    def _prepare(self, one: Fetched, clocked: _Clocked) -> Prepared | ImageError:
        assert one.blob is not None
        started = time.perf_counter()
        try:
            return self._detector.prepare(decode(one.blob.data, max_pixels=self._max_pixels))
        except ImageError as error:
            return error  # it becomes this image's row
        finally:
            clocked.add("decode", started)


def windows(objects: Sequence[LakeObject], *, most_bytes: int = WINDOW_BYTES) -> Iterator[list[LakeObject]]:
    """Cut a shard into runs of at most `most_bytes` by the listed sizes, in order; one object alone may be larger."""
    window: list[LakeObject] = []
    held = 0
    for item in objects:
        size = UNKNOWN_BYTES if item.size is None else item.size
        if window and held + size > most_bytes:
            yield window
            window, held = [], 0
        window.append(item)
        held += size
    if window:
        yield window


def _is_web(item: LakeObject) -> bool:
    return item.uri.startswith(("http://", "https://"))


def _size(one: Fetched) -> tuple[int, int]:
    assert one.header is not None
    return one.header.height, one.header.width


def _row(one: Fetched, found: Detections | None, failed: ImageError | None) -> Row:
    blob, header = one.blob, one.header
    return Row(
        uri=one.item.uri,
        # what was listed where the answer does not tell: else the next run would not know the image again
        etag=blob.etag if blob and blob.etag is not None else one.item.etag,
        size=len(blob.data) if blob else one.item.size,
        width=header.width if header else None,
        height=header.height if header else None,
        taken_at=header.taken_at if header else None,
        detections=None if found is None else _detected(found),
        error_kind=failed.kind if failed else one.error_kind,
        error=str(failed) if failed else one.error,
        kept=one.item.kept,
    )


def _detected(found: Detections) -> Detected:
    return Detected(found.category_ids.numpy(), found.labels, found.scores.numpy(), found.boxes_xyxy.numpy())
