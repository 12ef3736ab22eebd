"""Labels a shard: fetches, decodes and detects its images, and commits the rows. Independent of Ray."""

import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import NoReturn

import torch

from detr.batching import Batch, HostBatch, ahead
from detr.detector_like import DetectorLike
from detr.image_stream import BATCHES_AHEAD
from detr.images.decoding import Header, ImageError
from detr.launcher import PendingDetections
from detr.postprocess import Detections
from detr.segmentation.masked_detections import MaskedDetections
from pipelines.clock import Clock, SystemClock
from pipelines.labelling.decoding import ImageDecoder
from pipelines.labelling.fetching import FETCH_THREADS, Fetched, Fetcher
from pipelines.labelling.manifest import read_kept_schema, read_shard
from pipelines.labelling.member_reading import member_spans, reading_order, row_group_of
from pipelines.labelling.outcome import ShardReport
from pipelines.labelling.publish import commit_part
from pipelines.labelling.readable_images import readable_images
from pipelines.lake.lake_object import LakeObject
from pipelines.store import Store
from pipelines.table.schema import Detected, Origin, Row, rows_to_table

WINDOW_BYTES = 256 * 1024**2  # encoded bytes in memory for one shard
COUNTED = ("size_bytes", "batched", "places", "pixels", "padded_pixels")  # fields of a shard's report
# Assumed for an object of unknown size: first for 8 in a window, then the mean of those that were read, or the least if
# that is larger, because larger ones may follow
FIRST_UNKNOWN_BYTES, LEAST_UNKNOWN_BYTES = 32 * 1024**2, 1024**2


class NotDetected(Exception):
    """The network cannot process an image: its output is not finite, or the device has too little memory for it.

    Attributes:
        image: The image's URI.
    """

    def __init__(self, reason: str, image: str) -> None:
        super().__init__(reason)
        self.image = image


@dataclass(frozen=True, slots=True)
class _Opened:
    """An object of a shard with its bytes, its header and its (height, width) for the network, or the error."""

    fetched: Fetched
    header: Header | None = None
    shape: tuple[int, int] | None = None
    failed: ImageError | None = None


@dataclass
class _Clocked:
    """Seconds by kind of work, and counts, added by several threads."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, work: str, seconds: float) -> None:
        with self.lock:
            self.seconds[work] += seconds


class _UnknownSizes:
    """The size to assume for objects of unknown size, by those that were read. Thread-safe."""

    def __init__(self) -> None:
        self._read, self._count, self._latest = 0, 0, FIRST_UNKNOWN_BYTES
        self._lock = threading.Lock()

    def add(self, seen: Sequence[_Opened]) -> None:
        """Add the objects of a window."""
        fetched = [one.fetched for one in seen if one.fetched.item.size is None]
        sizes = [len(one.blob.data) for one in fetched if one.blob is not None]
        with self._lock:
            self._read += sum(sizes)
            self._count += len(sizes)
            if sizes:
                self._latest = sum(sizes) // len(sizes)
            elif fetched:  # dead links: larger windows try more of them at once
                self._latest //= 2

    def expected(self) -> int:
        """Return the mean of all objects or of those of the latest window, whichever is larger."""
        with self._lock:
            return max(self._read // max(self._count, 1), self._latest, LEAST_UNKNOWN_BYTES)


@dataclass(frozen=True, slots=True)
class _Decoding:
    """A batch whose images are being decoded into `host`; `indices` are their indices in the window."""

    indices: Sequence[int]
    host: HostBatch
    written: Sequence[Future[ImageError | None]]


class Labeler:
    """Labels shards of one run. Several threads can label different shards concurrently; they share the detector."""

    def __init__(
        self,
        *,
        table: Store,
        fetcher: Fetcher,
        decoder: ImageDecoder,
        detector: DetectorLike,
        run_id: str,
        model_id: str,
        threshold: float,
        settings: str,
        decode_threads: int,
        clock: Clock | None = None,
    ) -> None:
        """Create a labeler, and read which columns of the source the run keeps.

        Args:
            table: the table with the plan of the run, for the parts.
            fetcher: reads images.
            decoder: decodes and resizes images.
            detector: the model on its device.
            run_id: name of the run.
            model_id: `name@sha256[:12]`, for the rows.
            threshold: for the rows; the detector applies it.
            settings: the settings of the run, for the rows.
            decode_threads: images to decode concurrently.
            clock: the clock, for the rows.

        Raises:
            RayDetrError: the plan is damaged.
            StoreError: the table's store refused.
        """
        self._table, self._fetcher, self._decoder, self._detector = table, fetcher, decoder, detector
        self._run_id, self._model_id, self._threshold, self._settings = run_id, model_id, threshold, settings
        self._kept_schema = read_kept_schema(table, run_id)
        self._clock = clock or SystemClock()
        self._unknown_sizes = _UnknownSizes()
        self._reported_at, self._reporting = time.perf_counter(), threading.Lock()
        self._fetchers = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")

    def label(self, shard: int, *, on_images: Callable[[int], None] = lambda _: None) -> ShardReport:
        """Label every object of a shard and commit its part, unless another process has committed it.

        Args:
            shard: Number of the shard.
            on_images: Called after every batch with the number of images of the shard that are done.

        Raises:
            LakeUnreadable: a store of the images is unavailable; nothing was committed.
            NotDetected: the network cannot process an image; nothing was committed.
            RayDetrError: the plan is damaged.
            StoreError: the table's store refused.
        """
        started, clocked = time.perf_counter(), _Clocked()
        objects = read_shard(self._table, self._run_id, shard)
        order = reading_order(objects)
        rows: list[Row] = []
        without: list[Fetched] = []
        changed = 0
        for window in windows([objects[index] for index in order], unknown_bytes=self._unknown_sizes.expected):
            spans = self._fetchers.map(lambda span: self._see(span, clocked), member_spans(window))
            seen = list(chain.from_iterable(spans))
            self._unknown_sizes.add(seen)
            without += [one.fetched for one in seen if one.fetched.blob is None]
            changed += sum(one.fetched.is_changed for one in seen)
            rows += self._detect(seen, clocked, on_images=partial(_add, len(rows), on_images))
            del seen  # free the memory before the next window is fetched
        known = partial(readable_images, self._table, self._run_id, shard)
        if len(without) == len(objects):
            self._fetcher.refuse_all_denied(without, known)
        self._fetcher.refuse_missing_buckets(without, known)
        origin = Origin(self._model_id, self._threshold, self._run_id, shard, self._clock.now(), self._settings)
        rows = [row for _, row in sorted(zip(order, rows, strict=True), key=itemgetter(0))]  # in the order of the plan
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
            busy_seconds=self._detector.take_busy_seconds(),
            actor_seconds=self._seconds_since_report(),
            changed=changed,
            notes=self._detector.take_notes(),
            requests=self._fetcher.take_requests(),
            **{name: int(clocked.seconds[name]) for name in COUNTED},
        )

    def _seconds_since_report(self) -> float:
        with self._reporting:
            before, self._reported_at = self._reported_at, time.perf_counter()
            return self._reported_at - before

    def _see(self, span: Sequence[LakeObject], clocked: _Clocked) -> list[_Opened]:
        started = time.perf_counter()
        fetched = self._fetcher.fetch(span)
        clocked.add("fetch", time.perf_counter() - started)
        return [self._open(one, clocked) for one in fetched]

    def _open(self, fetched: Fetched, clocked: _Clocked) -> _Opened:
        if fetched.blob is None:
            return _Opened(fetched)
        clocked.add("size_bytes", len(fetched.blob.data))
        try:
            header = self._decoder.read_header(fetched.blob.data)
            return _Opened(fetched, header, self._detector.target_shape(header.height, header.width))
        except ImageError as error:
            return _Opened(fetched, failed=error)

    def _detect(self, seen: Sequence[_Opened], clocked: _Clocked, *, on_images: Callable[[int], None]) -> list[Row]:
        """Return the rows of a window, in its order.

        Decoding is a few batches ahead of the network, and the network gets the next batch before the host waits for
        the detections of the current one.
        """
        readable = [index for index, one in enumerate(seen) if one.shape is not None]
        shapes = [one.shape for one in seen if one.shape is not None]
        batches = self._detector.batches(shapes)
        failed: dict[int, ImageError] = {}

        def begin_decoding(batch: Batch) -> _Decoding:
            host = self._detector.host_batch(len(batch.indices), batch.height, batch.width)
            indices = [readable[index] for index in batch.indices]
            clocked.add("batched", len(indices))
            clocked.add("places", self._detector.batch_size)
            clocked.add("pixels", sum(shapes[index][0] * shapes[index][1] for index in batch.indices))
            clocked.add("padded_pixels", len(indices) * batch.height * batch.width)
            written = [
                self._decoders.submit(self._write, seen[index], host, place, clocked)
                for place, index in enumerate(indices)
            ]
            return _Decoding(indices, host, written)

        def begin_detecting(decoding: _Decoding) -> tuple[list[int], HostBatch, PendingDetections | None]:
            outcomes = [future.result() for future in decoding.written]
            failed.update({i: one for i, one in zip(decoding.indices, outcomes, strict=True) if one is not None})
            good = [place for place, one in enumerate(outcomes) if one is None]
            host, indices = decoding.host.only(good), [decoding.indices[place] for place in good]
            try:
                pending = self._detector.submit(host) if good else None
            except (FloatingPointError, torch.OutOfMemoryError) as error:  # the first only of pictures with tiles
                self._blame(host, [seen[index] for index in indices], error)
            return indices, host, pending

        found: dict[int, Detections] = {}
        for indices, host, pending in ahead(ahead(batches, begin_decoding, BATCHES_AHEAD), begin_detecting, 1):
            if pending is not None:
                try:
                    found.update(zip(indices, pending.result(), strict=True))
                except FloatingPointError as error:
                    self._blame(host, [seen[index] for index in indices], error)
                clocked.add("detect", pending.seconds)
            on_images(len(found) + len(failed))
        return [_row(one, found.get(index), one.failed or failed.get(index)) for index, one in enumerate(seen)]

    def _blame(self, batch: HostBatch, seen: Sequence[_Opened], error: Exception) -> NoReturn:
        """Raise an error that names the first image of a batch that fails alone.

        Raises:
            NotDetected: such an image was found.
            FloatingPointError: none was, and the batch gave this error; or `torch.OutOfMemoryError`.
        """
        for place, one in enumerate(seen):
            try:
                self._detector.submit(batch.part(place, place + 1)).result()
            except (FloatingPointError, torch.OutOfMemoryError) as alone:
                raise NotDetected(str(alone), one.fetched.item.uri) from alone
        raise error

    def _write(self, one: _Opened, host: HostBatch, place: int, clocked: _Clocked) -> ImageError | None:
        """Decode an image into its slot in a batch; return the error, or None."""
        assert one.fetched.blob is not None
        started = time.perf_counter()
        try:
            host.write(place, self._decoder.prepare(one.fetched.blob.data))
        except ImageError as error:
            return error  # it becomes the row of this image
        finally:
            clocked.add("decode", time.perf_counter() - started)
        return None


def windows(
    objects: Sequence[LakeObject],
    *,
    most_bytes: int = WINDOW_BYTES,
    unknown_bytes: Callable[[], int] = lambda: FIRST_UNKNOWN_BYTES,
) -> Iterator[list[LakeObject]]:
    """Cut a shard into windows of at most `most_bytes` by listed sizes, in order. A single object can be larger.

    Images of one row group of Parquet are in one window if they fit, because each window reads the row group again.

    Args:
        objects: Of a shard, in reading order.
        most_bytes: Of a window.
        unknown_bytes: Returns the size to assume for objects of unknown size; called at the beginning of each window.
    """
    window: list[LakeObject] = []
    held, unknown = 0, unknown_bytes()

    def size_of(item: LakeObject) -> int:
        return unknown if item.size is None else item.size

    for unit in _units(objects):
        if window and held + sum(map(size_of, unit)) > most_bytes:
            yield window
            window, held, unknown = [], 0, unknown_bytes()
        for item in unit:
            if window and held + size_of(item) > most_bytes:
                yield window
                window, held, unknown = [], 0, unknown_bytes()
            window.append(item)
            held += size_of(item)
    if window:
        yield window


def _units(objects: Sequence[LakeObject]) -> Iterator[Sequence[LakeObject]]:
    """Yield the units of reading: the images of one row group of Parquet, or one object."""
    for group, run in groupby(objects, row_group_of):
        items = list(run)
        yield from ([item] for item in items) if group is None else [items]


def _add(before: int, on_images: Callable[[int], None], images: int) -> None:
    on_images(before + images)


def _row(one: _Opened, found: Detections | None, failed: ImageError | None) -> Row:
    fetched, header = one.fetched, one.header
    blob, item = fetched.blob, fetched.item
    kept = item.kept
    if isinstance(found, MaskedDetections):
        kept = (*kept[:-1], found.masks)  # `pipelines.labelling.mask_column`
    return Row(
        uri=item.uri,
        # the listed etag if the response has none: otherwise the next run would label the image again
        etag=blob.etag if blob and blob.etag is not None else item.etag,
        size=len(blob.data) if blob else None if row_group_of(item) else item.size,  # listed is the mean of a row group
        width=header.width if header else None,
        height=header.height if header else None,
        taken_at=header.taken_at if header else None,
        detections=None if found is None else _detected(found),
        error_kind=failed.kind if failed else fetched.error_kind,
        error=str(failed) if failed else fetched.error,
        kept=kept,
    )


def _detected(found: Detections) -> Detected:
    return Detected(found.category_ids.numpy(), found.labels, found.scores.numpy(), found.boxes_xyxy.numpy())
