"""One shard in one actor: every object one row in plan order, whatever is wrong with it; the whole world stops it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from detr.batching import HostBatch
from detr.config import BackboneConfig, DetrConfig
from detr.detector import Detector
from detr.detector_like import DetectorLike
from detr.launcher import PendingDetections
from detr.model import Detr, DetrOutput
from detr.postprocess import Detections
from detr.tiled_detector import TiledDetector
from detr.tiles import Tiling
from pipelines.labelling.decoding import InProcessDecoder
from pipelines.labelling.fetching import Fetcher, LakeUnreadable
from pipelines.labelling.labeler import Labeler, NotDetected, windows
from pipelines.labelling.publish import part_key
from pipelines.labelling.run import run_key
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import list_objects
from pipelines.store import (
    Archived,
    Blob,
    Denied,
    Misconfigured,
    NoBucket,
    NotFound,
    Store,
    StoreDown,
    StoreError,
    Stores,
    Throttled,
    open_store,
)
from pipelines.table.schema import NO_COLUMNS, decode
from tests.memory_store import memory_store
from tests.pipelines.labelling.failing_lake import NOW, Clock, Lake
from tests.pipelines.labelling.plans import plan
from tests.pipelines.lake.archives import parquet_of_images, tar_of

SETTINGS = '{"precision":"fp32","threshold":0.0}'
QUERIES = 5
TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 8, (8, 16), (1, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=16,
    queries=QUERIES,
    shorter=32,
    longest=64,
)


class Careful(Detector):
    """A detector that refuses two threads in the network at once, and calls `before` for every batch."""

    def __init__(self, *, threshold: float = 0.0) -> None:
        torch.manual_seed(0)
        super().__init__(Detr(TINY).eval(), device="cpu", threshold=threshold, batch_size=4)
        self.before: Callable[[], None] = lambda: None
        busy = threading.Lock()
        compute = self._network.detect

        def alone(*arguments: Tensor | None, **options: bool) -> DetrOutput:
            assert busy.acquire(blocking=False), "two threads are in the network"
            try:
                return compute(*arguments, **options)
            finally:
                busy.release()

        self._network.detect = alone  # type: ignore[method-assign]

    def submit(self, batch: HostBatch) -> PendingDetections:
        self.before()
        return super().submit(batch)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are computed many times faster so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Careful()


@pytest.fixture(params=["memory", "local"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(memory_store("memory://lake") if request.param == "memory" else open_store(str(tmp_path / "lake")))


def labeler(
    table: Store,
    lake: Stores,
    detector: DetectorLike,
    shards: Sequence[Sequence[LakeObject]],
    *,
    kept: pa.Schema = NO_COLUMNS,
    max_pixels: int = 10_000,
    clock: Clock | None = None,
    threshold: float = 0.0,
) -> Labeler:
    clock = clock or Clock()
    plan(table, shards, kept)
    return Labeler(
        table=table,
        fetcher=Fetcher(lake, clock),
        decoder=InProcessDecoder(detector, max_pixels=max_pixels),
        detector=detector,
        run_id="run-1",
        model_id="tiny@0123456789ab",
        threshold=threshold,
        settings=SETTINGS,
        decode_threads=2,
        clock=clock,
    )


def rows(table: Store, shard: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = decode(table.get(part_key("run-1", shard)).data).to_pylist()
    return found


def picture(width: int = 40, height: int = 30, *, format: str = "JPEG", exif: Image.Exif | None = None) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.save(buffer, format, **({} if exif is None else {"exif": exif}))
    return buffer.getvalue()


def test_every_object_has_one_row_in_plan_order_with_what_was_read(lake: Lake, detector: Detector) -> None:
    shapes = [(40, 30), (30, 40), (64, 8), (40, 31), (33, 33), (40, 30), (8, 64)]
    objects = [lake.put(f"{n}.jpg", picture(width, height)) for n, (width, height) in enumerate(shapes)]
    table = memory_store()

    report = labeler(table, lake, detector, [objects]).label(0)

    found = rows(table)
    assert [row["uri"] for row in found] == [item.uri for item in objects]
    assert [(row["width"], row["height"]) for row in found] == shapes
    assert [row["size"] for row in found] == [item.size for item in objects]
    assert [row["etag"] for row in found] == [lake.store.head(f"{n}.jpg").etag for n in range(7)]
    assert {(row["status"], row["error_kind"], row["error"]) for row in found} == {("ok", None, None)}
    assert {(row["model"], row["run_id"], row["shard"], row["threshold"]) for row in found} == {
        ("tiny@0123456789ab", "run-1", 0, 0.0)
    }
    assert {row["labelled_at"] for row in found} == {NOW}
    assert (report.shard, report.images, report.detections, report.errors) == (0, 7, 7 * QUERIES, {})


def test_reports_divide_the_time_of_the_actor_and_of_its_device(lake: Lake, detector: Detector) -> None:
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(4)]
    detector.take_busy_seconds()
    began = time.perf_counter()
    actor = labeler(memory_store(), lake, detector, [[item] for item in objects])

    reports = [actor.label(0)]
    time.sleep(0.05)  # an actor that waits for a shard
    reports.append(actor.label(1))
    with ThreadPoolExecutor(2) as threads:
        reports += threads.map(actor.label, [2, 3])

    passed = time.perf_counter() - began
    assert reports[0].actor_seconds >= reports[0].seconds
    assert reports[1].actor_seconds >= reports[1].seconds + 0.05
    assert 0 < sum(report.busy_seconds for report in reports) < sum(report.actor_seconds for report in reports) < passed


def test_each_row_has_the_detections_of_its_own_image(lake: Lake, detector: Detector) -> None:
    data = [picture(40 + n, 30 + 3 * n) for n in range(6)]
    table = memory_store()

    labeler(table, lake, detector, [[lake.put(f"{n}.jpg", one) for n, one in enumerate(data)]]).label(0)

    for row, one in zip(rows(table), data, strict=True):
        alone = detector(one)
        boxes = [list(found["box"].values()) for found in row["detections"]]
        assert [found["category_id"] for found in row["detections"]] == alone.category_ids.tolist()
        # padding is exact but for rounding
        assert [found["score"] for found in row["detections"]] == pytest.approx(alone.scores.tolist(), abs=1e-5)
        assert torch.allclose(torch.tensor(boxes), alone.boxes_xyxy, atol=1e-2)


def test_rows_of_unread_images_in_parquet_have_no_size(detector: Detector) -> None:
    lake, table = Lake(memory_store("s3://lake")), memory_store()
    data = bytearray(parquet_of_images([picture(), None, picture(), b"damaged" * 99], group_rows=3))
    data[data.index(b"damaged" * 9) + 50] ^= 0xFF
    lake.store.put("a.parquet", bytes(data))
    listing = list_objects(["s3://lake/a.parquet"], image_column="image", open_root=lambda _: lake.store)

    labeler(table, lake, detector, [[item for item in listing if isinstance(item, LakeObject)]]).label(0)

    size = len(picture())
    assert [(row["error_kind"], row["size"]) for row in rows(table)] == [
        (None, size),
        ("empty", None),
        (None, size),
        ("unreadable", None),
    ]


def test_images_of_an_archive_have_their_rows_in_plan_order_and_one_request(detector: Detector) -> None:
    lake = Lake(memory_store("s3://lake"))
    data = {f"{n}.jpg": picture(40 + n, 30) for n in range(9)}
    lake.store.put("a.tar", tar_of([*reversed(data.items()), ("bad.jpg", b"no picture")]))
    loose = lake.put("b.jpg", picture())
    listing = list_objects(["s3://lake/a.tar"], open_root=lambda _: lake.store)
    objects = [item for item in listing if isinstance(item, LakeObject)]
    table = memory_store()

    report = labeler(table, lake, detector, [[*objects, loose]]).label(0)

    found = rows(table)
    assert [row["uri"] for row in found] == [*(f"s3://lake/a.tar#/{name}" for name in [*data, "bad.jpg"]), loose.uri]
    assert [row["width"] for row in found] == [*range(40, 49), None, 40]
    assert [row["size"] for row in found[:9]] == [len(one) for one in data.values()]
    assert {row["etag"] for row in found[:10]} == {"1"}
    assert report.errors == {"not_an_image": 1}
    assert (len(lake.ranges), lake.fetched, report.requests) == (1, 1, 2)


def test_images_are_reported_batch_by_batch(lake: Lake, detector: Detector) -> None:
    objects = [lake.put(f"{number}.jpg", picture()) for number in range(9)]
    told: list[int] = []

    labeler(memory_store(), lake, detector, [objects]).label(0, on_images=told.append)

    assert told == [4, 8, 9]  # batches of four


def test_threshold_0_keeps_all_queries_and_a_higher_one_may_keep_none(lake: Lake, detector: Detector) -> None:
    objects, table = [lake.put("a.jpg", picture())], memory_store()
    labeler(table, lake, detector, [objects]).label(0)
    strict = memory_store()

    report = labeler(strict, lake, Careful(threshold=1.0), [objects], threshold=1.0).label(0)

    scores = [found["score"] for found in rows(table)[0]["detections"]]
    assert len(scores) == QUERIES
    assert scores == sorted(scores, reverse=True)
    assert [(row["status"], row["detections"]) for row in rows(strict)] == [("ok", [])]
    assert report.detections == 0


def test_an_image_is_upright_and_knows_when_it_was_taken(lake: Lake, detector: Detector) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif.get_ifd(0x8769)[0x9003] = "2024:02:29 06:30:00"
    table = memory_store()

    labeler(table, lake, detector, [[lake.put("a.jpg", picture(40, 30, exif=exif))]]).label(0)

    (row,) = rows(table)
    assert (row["width"], row["height"], row["taken_at"]) == (30, 40, datetime(2024, 2, 29, 6, 30))  # noqa: DTZ001 - no zone


def test_the_row_says_what_was_read_and_not_what_was_listed(lake: Lake, detector: Detector) -> None:
    lake.put("a.jpg", picture())
    listed = LakeObject(f"{lake.store.uri}/a.jpg", etag="of last week", size=1)
    table = memory_store()

    report = labeler(table, lake, detector, [[listed, lake.put("b.jpg", picture())]]).label(0)

    row, _ = rows(table)
    assert (row["etag"], row["size"]) == (lake.store.head("a.jpg").etag, len(picture()))
    assert report.changed == 1


def test_columns_of_the_source_are_carried(lake: Lake, detector: Detector) -> None:
    lake.put("a.jpg", picture())
    schema = pa.schema([("station", pa.string()), ("metres", pa.float64())])
    uris = [f"{lake.store.uri}/{name}.jpg" for name in ("a", "lost")]
    objects = [LakeObject(uris[0], kept=("north", 1.5)), LakeObject(uris[1], kept=(None, -2.0))]
    table = memory_store()

    labeler(table, lake, detector, [objects], kept=schema).label(0)

    assert [(row["station"], row["metres"]) for row in rows(table)] == [("north", 1.5), (None, -2.0)]


def test_what_is_wrong_with_an_image_is_its_row_and_its_neighbours_are_labelled(lake: Lake, detector: Detector) -> None:
    whole = picture(90, 90)
    broken = {
        "1.jpg": (b"", "empty"),
        "2.jpg": (b"good morning", "not_an_image"),
        "3.jpg": (whole[:600], "truncated"),
        "4.jpg": (picture(200, 60, format="PNG"), "too_large"),
        "5.jpg": (picture(1, 900, format="PNG"), "too_extreme"),
    }
    objects = [lake.put("0.jpg", whole), *(lake.put(k, data) for k, (data, _) in broken.items()), lake.put("6", whole)]
    table = memory_store()

    report = labeler(table, lake, detector, [objects]).label(0)

    found = rows(table)
    assert [row["error_kind"] for row in found] == [None, *(kind for _, kind in broken.values()), None]
    assert [row["status"] for row in found] == ["ok", *["error"] * 5, "ok"]
    assert all(row["error"] and row["detections"] is None for row in found[1:-1])
    assert all(row["size"] == len(data) for row, (data, _) in zip(found[1:-1], broken.values(), strict=True))
    assert (report.images, report.detections) == (7, 2 * QUERIES)
    assert report.errors == dict.fromkeys(("empty", "not_an_image", "truncated", "too_large", "too_extreme"), 1)


def test_what_is_wrong_with_one_object_of_the_store_is_its_row(lake: Lake, detector: Detector) -> None:
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(5)]
    lake.store.delete("1.jpg")
    lake.failures = {"2.jpg": Denied("2.jpg is refused"), "3.jpg": Archived("3.jpg is archived")}
    table = memory_store()

    labeler(table, lake, detector, [objects]).label(0)

    found = rows(table)
    assert [row["error_kind"] for row in found] == [None, "missing", "denied", "archived", None]
    assert [row["error"] for row in found[2:4]] == ["2.jpg is refused", "3.jpg is archived"]
    assert [row["size"] for row in found] == [item.size for item in objects]  # as listed where nothing was read


def test_an_object_that_keeps_failing_in_a_store_that_answers_is_a_row(lake: Lake, detector: Detector) -> None:
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(3)]
    lake.failures = {"1.jpg": StoreDown("1.jpg: 500 Internal Server Error")}
    table, clock = memory_store(), Clock()

    labeler(table, lake, detector, [objects], clock=clock).label(0)

    assert [row["error_kind"] for row in rows(table)] == [None, "fetch_failed", None]
    assert clock.seconds == pytest.approx(120)


def test_one_bad_object_alone_in_a_shard_does_not_stop_the_runs_of_every_night(lake: Lake, detector: Detector) -> None:
    objects = [lake.put("only.jpg", picture())]
    lake.failures = {"only.jpg": Throttled("only.jpg: 503")}
    table = memory_store()

    labeler(table, lake, detector, [objects]).label(0)

    assert [row["error_kind"] for row in rows(table)] == ["fetch_failed"]


def test_a_transient_failure_leaves_no_trace(lake: Lake, detector: Detector) -> None:
    objects = [lake.put("a.jpg", picture())]
    lake.failures = {"a.jpg": [Throttled("slow down"), StoreDown("reset"), StoreDown("cut")]}
    table = memory_store()

    labeler(table, lake, detector, [objects]).label(0)

    assert [row["status"] for row in rows(table)] == ["ok"]


def test_a_lake_that_does_not_answer_stops_the_shard_and_nothing_is_committed(lake: Lake, detector: Detector) -> None:
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(3)]
    lake.is_down = True
    table = memory_store()

    with pytest.raises(LakeUnreadable, match="the lake does not answer"):
        labeler(table, lake, detector, [objects]).label(0)

    assert list(table.list(run_key("run-1", "parts/"))) == []


def test_a_lake_that_is_lost_in_the_middle_of_a_shard_stops_it(lake: Lake) -> None:
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(2)]
    first, second = (LakeObject(item.uri, size=300 * 1024**2) for item in objects)  # a window each
    detector, table = Careful(), memory_store()
    detector.before = lambda: setattr(lake, "is_down", True)

    with pytest.raises(LakeUnreadable):
        labeler(table, lake, detector, [[first, second]]).label(0)

    assert list(table.list(run_key("run-1", "parts/"))) == []


@pytest.mark.parametrize("failure", [FloatingPointError("NaN in fp16"), torch.OutOfMemoryError("too little memory")])
def test_an_image_that_the_network_cannot_process_is_named(lake: Lake, failure: Exception) -> None:
    class Refusing(Careful):
        """Fails for batches with the image of 31 rows, when they are submitted or when their result is read."""

        sizes: list[int]

        def submit(self, batch: HostBatch) -> PendingDetections:
            if 31 not in batch.sizes[:, 2]:
                return super().submit(batch)
            self.sizes.append(len(batch))

            def fail() -> list[Detections]:
                raise failure

            if isinstance(failure, torch.OutOfMemoryError):
                fail()
            return PendingDetections([fail], 0.0)

    objects = [lake.put(f"{n}.jpg", picture(40, 31 if n == 5 else 30)) for n in range(7)]
    table, detector = memory_store(), Refusing()
    detector.sizes = []

    with pytest.raises(NotDetected, match=str(failure)) as stopped:
        labeler(table, lake, detector, [objects]).label(0)

    assert (detector.sizes[0] > 1, detector.sizes[-1]) == (True, 1)
    assert stopped.value.image == objects[5].uri
    assert list(table.list(run_key("run-1", "parts/"))) == []


@pytest.mark.parametrize("failure", [FloatingPointError("produced NaN"), torch.OutOfMemoryError("too little memory")])
def test_a_large_picture_that_the_network_cannot_process_is_named(lake: Lake, failure: Exception) -> None:
    class Refusing(Careful):
        def submit(self, batch: HostBatch) -> PendingDetections:
            assert 0 < int(batch.sizes.min()) <= int(batch.sizes.max()) < 1_000, "a batch that was not written"
            raise failure

    objects = [lake.put("large.jpg", picture(80, 90))]
    tiled = TiledDetector(Refusing(), Tiling(64, 64, 0.25))

    with pytest.raises(NotDetected, match=str(failure)) as stopped:
        labeler(memory_store(), lake, tiled, [objects]).label(0)

    assert stopped.value.image == objects[0].uri


def test_wrong_credentials_stop_the_shard_at_once(lake: Lake, detector: Detector) -> None:
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(3)]
    lake.failures = {"1.jpg": Misconfigured("the token has expired")}
    table, clock = memory_store(), Clock()

    with pytest.raises(LakeUnreadable, match="the token has expired"):
        labeler(table, lake, detector, [objects], clock=clock).label(0)

    assert list(table.list(run_key("run-1", "parts/"))) == []
    assert clock.seconds == 0


@pytest.mark.parametrize(("images", "is_stopped"), [(3, False), (4, True)])
def test_when_all_of_a_shard_is_refused_it_is_not_the_images(
    lake: Lake, detector: Detector, images: int, is_stopped: bool
) -> None:
    listed = [lake.put(f"{n}.jpg", picture()) for n in range(images)]
    objects = [LakeObject(item.uri, size=200 * 1024**2) for item in listed]  # a window each
    lake.failures = {f"{n}.jpg": Denied(f"{n}.jpg is refused") for n in range(images)}
    table = memory_store()
    label = labeler(table, lake, detector, [objects]).label

    if is_stopped:
        with pytest.raises(
            LakeUnreadable, match=r"access to all 4 images of a shard is denied; the first error: 0.jpg is refused"
        ):
            label(0)
        assert list(table.list(run_key("run-1", "parts/"))) == []
    else:
        assert label(0).errors == {"denied": 3}


REFUSED = [f"private/{n}.jpg" for n in range(4)]


def two_shards(lake: Lake) -> list[list[LakeObject]]:
    """Return a shard of four images that will be refused, and one of two readable images."""
    private = [lake.put(key, picture()) for key in REFUSED]
    return [private, [lake.put(f"{n}.jpg", picture()) for n in range(2)]]


def test_a_refused_shard_that_an_actor_gets_first_is_rows_where_another_actor_has_read_the_bucket(
    lake: Lake, detector: Detector
) -> None:
    table, shards = memory_store(), two_shards(lake)
    lake.failures = {key: Denied(f"{key} is refused") for key in REFUSED}
    labeler(table, lake, detector, shards).label(1)

    assert labeler(table, lake, detector, shards).label(0).errors == {"denied": 4}


def published_by_an_earlier_run(lake: Lake, detector: Detector) -> Store:
    """Return a table in which an earlier run has read the images of the second shard of `two_shards`."""
    before, table = memory_store(), memory_store()
    labeler(before, lake, detector, two_shards(lake)).label(1)
    table.put("data/20261101T020000Z-aaaa-00000.parquet", before.get(part_key("run-1", 1)).data)
    return table


def test_a_folder_that_stays_refused_is_rows_of_every_night(lake: Lake, detector: Detector) -> None:
    table, (private, _) = published_by_an_earlier_run(lake, detector), two_shards(lake)
    lake.failures = {key: Denied(f"{key} is refused") for key in REFUSED}
    refused = memory_store()
    labeler(refused, lake, detector, [private[:3]]).label(0)  # too few to stop
    table.put("data/20261102T020000Z-aaaa-00000.parquet", refused.get(part_key("run-1", 0)).data)
    lake.store.delete("0.jpg")  # since then

    assert labeler(table, lake, detector, [private]).label(0).errors == {"denied": 4}


def test_rights_that_were_revoked_between_two_nights_stop_the_shard(lake: Lake, detector: Detector) -> None:
    table, (private, _) = published_by_an_earlier_run(lake, detector), two_shards(lake)
    lake.failures = {key: Denied(f"{key} is refused.") for key in [*REFUSED, "0.jpg", "1.jpg"]}

    with pytest.raises(
        LakeUnreadable,
        match=r"access to all 4 images of a shard is denied; the first error: private/0.jpg is refused. Images that "
        r"were read before are now refused, too: 0.jpg is refused. The credentials have expired or their rights were",
    ):
        labeler(table, lake, detector, [private]).label(0)

    assert list(table.list(run_key("run-1", "parts/"))) == []


def test_a_store_that_is_lost_while_a_refused_shard_is_judged_stops_it(lake: Lake, detector: Detector) -> None:
    table, (private, _) = published_by_an_earlier_run(lake, detector), two_shards(lake)
    lake.failures = {key: Denied(f"{key} is refused.") for key in REFUSED} | {"0.jpg": StoreDown("0.jpg: 500")}

    with pytest.raises(LakeUnreadable, match=r"0\.jpg: 500"):
        labeler(table, lake, detector, [private]).label(0)


GONE = LakeObject("memory://gone/0.jpg")
NO_BUCKET = {GONE.uri: NoBucket("memory://gone/0.jpg cannot be read: there is no such bucket (404 NoSuchBucket).")}


@pytest.fixture
def buckets() -> Lake:
    """A lake of two buckets, of which one no longer exists."""
    lake = Lake(memory_store("memory://lake"))
    lake.failures = {**NO_BUCKET}
    return lake


def test_an_image_of_a_list_in_a_bucket_that_is_gone_is_missing_where_others_are_read(
    buckets: Lake, detector: Detector
) -> None:
    table, item = memory_store(), buckets.put("0.jpg", picture())

    assert labeler(table, buckets, detector, [[GONE, item]]).label(0).errors == {"missing": 1}

    assert [row["status"] for row in rows(table)] == ["error", "ok"]


def test_a_shard_of_a_bucket_that_is_gone_is_rows_where_the_table_has_readable_images(
    buckets: Lake, detector: Detector
) -> None:
    table = published_by_an_earlier_run(buckets, detector)

    assert labeler(table, buckets, detector, [[GONE]]).label(0).errors == {"missing": 1}


@pytest.mark.parametrize("others", [{}, {"0.jpg": Denied("0.jpg is refused."), "1.jpg": Denied("1.jpg is refused.")}])
def test_a_bucket_that_is_not_there_stops_the_shard_where_nothing_can_be_read(
    buckets: Lake, detector: Detector, others: dict[str, StoreError]
) -> None:
    table = published_by_an_earlier_run(buckets, detector) if others else memory_store()
    buckets.failures |= others

    with pytest.raises(LakeUnreadable, match=r"no such bucket \(404 NoSuchBucket\)\. (If a list|0\.jpg is refused)"):
        labeler(table, buckets, detector, [[GONE]]).label(0)

    assert list(table.list(run_key("run-1", "parts/"))) == []


def test_a_shard_holds_one_window_of_encoded_images_at_a_time(lake: Lake) -> None:
    objects = [lake.put(f"{n}.jpg", picture()) for n in range(4)]
    listed = [LakeObject(item.uri, size=100 * 1024**2) for item in objects]  # 256 MiB hold two
    detector, fetched = Careful(), []
    detector.before = lambda: fetched.append(lake.fetched)

    labeler(memory_store(), lake, detector, [listed]).label(0)

    assert fetched == [2, 4]


def test_windows_of_a_list_without_sizes_follow_from_the_sizes_that_were_read() -> None:
    lake, table = Lake(memory_store("memory://lake")), memory_store()
    large = picture() + bytes(36 * 1024**2)  # as a TIFF of a scanner; what follows the end of a JPEG is not decoded
    objects = [LakeObject(lake.put(f"{n:02d}.jpg", large).uri) for n in range(15)]
    careful, fetched = Careful(), []
    careful.before = lambda: fetched.append(lake.fetched)

    assert labeler(table, lake, careful, [objects]).label(0).errors == {}

    assert sorted(set(fetched)) == [8, 15]  # seven are 252 MiB


def test_dead_links_without_sizes_are_tried_in_larger_and_larger_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    lake, table = Lake(memory_store("memory://lake")), memory_store()
    dead = [LakeObject(f"memory://lake/dead {n:03d}.jpg") for n in range(120)]
    large = picture() + bytes(36 * 1024**2)
    objects = [*dead, *(LakeObject(lake.put(f"{n:02d}.jpg", large).uri) for n in range(3))]
    sizes: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Iterator[list[LakeObject]]:
        for window in windows(*arguments, **options):
            sizes.append(len(window))
            yield window

    monkeypatch.setattr("pipelines.labelling.labeler.windows", counted)

    assert labeler(table, lake, Careful(), [objects]).label(0).errors == {"missing": 120}
    assert sizes == [8, 16, 32, 64, 3]


def test_small_images_without_sizes_share_windows_after_the_first() -> None:
    lake, table = Lake(memory_store("memory://lake")), memory_store()
    objects = [LakeObject(lake.put(f"{n:03d}.jpg", picture(8, 8)).uri) for n in range(30)]
    careful, fetched = Careful(), []
    careful.before = lambda: fetched.append(lake.fetched)
    label = labeler(table, lake, careful, [objects[:12], objects[12:]]).label

    label(0)
    label(1)

    assert sorted(set(fetched)) == [8, 12, 30]


def test_windows_are_cut_by_the_listed_sizes_in_order() -> None:
    sizes = [3, 3, 4, 11, 1, None, 9]
    objects = [LakeObject(str(number), size=size) for number, size in enumerate(sizes)]

    cut = [[item.size for item in window] for window in windows(objects, most_bytes=10)]

    assert cut == [[3, 3, 4], [11], [1], [None], [9]]
    assert list(windows([])) == []


def test_windows_are_cut_between_row_groups_where_one_can_hold_a_row_group() -> None:
    groups = [0, 0, 0, 3, 3, 3, 6, 6, 6, 6, 6, 11]
    objects = [LakeObject(f"a.parquet#/image/{row:09d}", "1", 2, (), first) for row, first in enumerate(groups)]

    cut = [[item.offset for item in window] for window in windows(objects, most_bytes=8)]

    assert cut == [[0, 0, 0], [3, 3, 3], [6, 6, 6, 6], [6, 11]]


def test_two_shards_at_once_give_the_rows_that_each_gives_alone(lake: Lake) -> None:
    shards = [[lake.put(f"{s}/{n}.jpg", picture(30 + n, 40 + s)) for n in range(6)] for s in range(2)]
    detector, alone, together = Careful(), memory_store(), memory_store()
    one_by_one = labeler(alone, lake, detector, shards)
    for shard in range(2):
        one_by_one.label(shard)
    both = labeler(together, lake, detector, shards)

    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(both.label, range(2)))

    assert [report.shard for report in reports] == [0, 1]
    for shard in range(2):
        assert rows(together, shard) == rows(alone, shard)


def test_on_a_device_with_memory_for_seven_images_every_row_is_as_with_batches_of_one(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [lake.put(f"{n:02}.jpg", picture(40 + n % 3, 30)) for n in range(30)]
    alone, small = memory_store(), memory_store()
    one_by_one, detector = Careful(), Careful()
    one_by_one.batch_size, detector.batch_size = 1, 32
    compute = detector._network.detect

    def at_most_seven(pixels: Tensor, *others: Tensor | None, **options: bool) -> DetrOutput:
        if len(pixels) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(pixels, *others, **options)

    monkeypatch.setattr(detector._network, "detect", at_most_seven)
    labeler(alone, lake, one_by_one, [objects]).label(0)

    report = labeler(small, lake, detector, [objects]).label(0)

    assert (report.images, report.errors) == (30, {})
    assert detector.batch_size <= 7
    assert report.notes[-1].startswith("cpu has too little memory for 15 images of 32 x 44 pixels")
    assert labeler(memory_store(), lake, detector, [objects]).label(0).notes == ()
    for row, expected in zip(rows(small), rows(alone), strict=True):
        assert row["uri"] == expected["uri"]
        for found, other in zip(row["detections"], expected["detections"], strict=True):
            assert found["label"] == other["label"]
            assert list(found["box"].values()) == pytest.approx(list(other["box"].values()), abs=0.01)


def test_the_second_attempt_at_a_shard_leaves_the_rows_of_the_first(lake: Lake, detector: Detector) -> None:
    objects = [lake.put("a.jpg", picture())]
    table = memory_store()
    labeler(table, lake, detector, [objects]).label(0)
    first = table.get(part_key("run-1", 0))

    report = labeler(table, lake, Careful(threshold=1.0), [objects], threshold=1.0).label(0)

    assert table.get(part_key("run-1", 0)) == first
    assert report.images == 1


def test_a_table_that_refuses_is_not_an_error_of_the_lake(lake: Lake, detector: Detector) -> None:
    class Full(type(memory_store())):  # type: ignore[misc]
        def put(self, key: str, data: bytes, **options: Any) -> str:
            if key == part_key("run-1", 0):
                raise StoreDown("no space left")
            return super().put(key, data, **options)

    with pytest.raises(StoreDown, match="no space left"):
        labeler(Full("memory://full"), lake, detector, [[lake.put("a.jpg", picture())]]).label(0)


def test_a_missing_object_is_not_tried_twice(lake: Lake, detector: Detector) -> None:
    lake.failures = {"a.jpg": [NotFound("a.jpg: no such object"), StoreDown("tried again")]}
    table, clock = memory_store(), Clock()

    labeler(table, lake, detector, [[LakeObject(f"{lake.store.uri}/a.jpg")]], clock=clock).label(0)

    assert [row["error"] for row in rows(table)] == ["a.jpg: no such object"]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Denied("the server refuses"), "denied"),
        (StoreDown("nobody has that name"), "fetch_failed"),
        (Misconfigured("no such port"), "fetch_failed"),
    ],
)
def test_a_web_server_that_gives_nothing_costs_its_own_images_and_not_the_run(
    detector: Detector, failure: StoreError, kind: str
) -> None:
    lake = Lake(memory_store())
    objects = [LakeObject(f"https://dead.example/{number}.jpg") for number in range(6)]
    lake.failures = {item.uri: failure for item in objects}

    report = labeler(memory_store(), lake, detector, [objects]).label(0)

    assert report.errors == {kind: 6}


def test_an_object_too_large_for_a_photograph_is_not_fetched(lake: Lake, detector: Detector) -> None:
    disk_image = LakeObject(lake.put("disk", b"x").uri, size=200 * 1024**3)

    report = labeler(memory_store(), lake, detector, [[disk_image]]).label(0)

    assert report.errors == {"too_large": 1}
    assert lake.fetched == 0


def test_an_object_whose_size_no_list_tells_is_not_fetched_when_it_is_too_large(
    lake: Lake, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, large = lake.put("a.jpg", picture()), lake.put("disk", b"x" * 1_000_001)
    monkeypatch.setattr("pipelines.labelling.fetching.MOST_BYTES", 1_000_000)
    unsized = [replace(one, size=None) for one in (good, large)]
    grown = replace(large, uri=lake.put("grown", b"x" * 1_000_002).uri, size=5)  # since it was listed: tried again
    table = memory_store()

    report = labeler(table, lake, detector, [[*unsized, grown]]).label(0)

    assert (report.images, report.errors) == (3, {"too_large": 1, "fetch_failed": 1})
    errors = decode(table.get(part_key("run-1", 0)).data)["error"].to_pylist()
    assert [error and error.partition(" has ")[2] for error in errors] == [
        None,
        "1,000,001 bytes, more than 1,000,000; it was not read.",
        "1,000,002 bytes, more than 1,000,000; it was not read.",
    ]


def test_the_listed_etag_stands_where_the_answer_has_none(lake: Lake, detector: Detector) -> None:
    listed = replace(lake.put("a.jpg", picture()), etag="as-listed")
    lake.get = lambda uri, **_: Blob(picture(), None)  # type: ignore[method-assign]  # as s3fs and many web servers answer
    table = memory_store()

    labeler(table, lake, detector, [[listed]]).label(0)

    assert decode(table.get(part_key("run-1", 0)).data)["etag"].to_pylist() == ["as-listed"]
