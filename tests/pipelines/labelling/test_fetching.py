"""Whose fault it is that an image cannot be read: its own, which is a row, or its store's, which stops the run."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import replace

import obstore
import pytest

from pipelines.labelling.adaptive_limit import AdaptiveLimit
from pipelines.labelling.fetching import Fetcher, LakeUnreadable, image_options
from pipelines.lake.images import ImageStores
from pipelines.lake.lake_object import LakeObject
from pipelines.store import Blob, Denied, Misconfigured, NotFound, StoreDown, StoreError, StoreOptions, Throttled
from tests.memory_store import memory_store
from tests.pipelines.labelling.failing_lake import Clock, Lake


@pytest.fixture
def lake() -> Lake:
    return Lake(memory_store("memory://lake"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fetcher(lake: Lake, clock: Clock) -> Fetcher:
    return Fetcher(lake, clock)


def read_one(lake: Lake, fetcher: Fetcher) -> None:
    """Have an image read, which shows later whether the store is fine."""
    assert fetcher.fetch([lake.put("canary.jpg", b"sings")])[0].blob is not None


# -- refusals


def test_a_throttle_that_looks_like_a_refusal_leaves_no_trace(lake: Lake, fetcher: Fetcher) -> None:
    item = lake.put("a.jpg", b"picture")
    lake.failures = {"a.jpg": [Denied("a.jpg is refused")] * 3}

    assert fetcher.fetch([item])[0].blob is not None


def test_an_image_that_stays_refused_while_others_are_read_is_a_row(lake: Lake, fetcher: Fetcher, clock: Clock) -> None:
    read_one(lake, fetcher)
    item = lake.put("a.jpg", b"picture")
    lake.failures = {"a.jpg": Denied("a.jpg is refused")}

    fetched = fetcher.fetch([item])[0]

    assert (fetched.blob, fetched.error_kind, fetched.error) == (None, "denied", "a.jpg is refused")
    assert clock.seconds == pytest.approx(10)


def test_when_what_was_read_before_is_refused_too_it_is_the_credentials(lake: Lake, fetcher: Fetcher) -> None:
    read_one(lake, fetcher)
    item = lake.put("a.jpg", b"picture")
    lake.failures = {"a.jpg": Denied("a.jpg is refused."), "canary.jpg": Denied("canary.jpg is refused.")}

    with pytest.raises(LakeUnreadable) as stopped:
        fetcher.fetch([item])

    assert str(stopped.value) == (
        "a.jpg is refused. memory://lake/canary.jpg, which was read before, is now refused, too: the credentials have "
        "expired or their rights were revoked."
    )


def test_a_canary_that_was_deleted_accuses_nobody(lake: Lake, fetcher: Fetcher) -> None:
    read_one(lake, fetcher)
    lake.store.delete("canary.jpg")
    lake.failures = {"a.jpg": Denied("a.jpg is refused")}

    assert fetcher.fetch([lake.put("a.jpg", b"picture")])[0].error_kind == "denied"


def test_thousands_of_refused_images_cost_little_time_each(lake: Lake, fetcher: Fetcher, clock: Clock) -> None:
    read_one(lake, fetcher)
    items = [lake.put(f"{number}.jpg", b"picture") for number in range(100)]
    lake.failures = {f"{number}.jpg": Denied("refused") for number in range(100)}

    assert {fetcher.fetch([item])[0].error_kind for item in items} == {"denied"}

    assert clock.seconds == pytest.approx(20 * 10 + 80 * 1)


def test_a_refusal_that_passes_makes_the_next_ones_waited_for_again(lake: Lake, fetcher: Fetcher, clock: Clock) -> None:
    read_one(lake, fetcher)
    items = [lake.put(f"{number}.jpg", b"picture") for number in range(23)]
    lake.failures = {item.uri.rpartition("/")[2]: Denied("it is refused") for item in items}
    lake.failures["21.jpg"] = [Denied("it is refused")]  # once
    for item in items[:22]:
        fetcher.fetch([item])
    before = clock.seconds

    fetcher.fetch([items[22]])

    assert clock.seconds - before == pytest.approx(10)


def test_a_refused_folder_is_rows_where_the_rest_of_the_bucket_was_read(lake: Lake, fetcher: Fetcher) -> None:
    read_one(lake, fetcher)
    items = [lake.put(f"private/{number}.jpg", b"picture") for number in range(5)]
    lake.failures = {f"private/{number}.jpg": Denied("refused") for number in range(5)}

    fetched = [fetcher.fetch([item])[0] for item in items]

    fetcher.refuse_all_denied(fetched)
    assert {one.error_kind for one in fetched} == {"denied"}


# -- failures


@pytest.mark.parametrize("failure", [StoreDown("no answer"), Throttled("slow down")])
def test_a_store_that_is_lost_is_nobodys_row(lake: Lake, fetcher: Fetcher, clock: Clock, failure: StoreError) -> None:
    read_one(lake, fetcher)
    item = lake.put("a.jpg", b"picture")
    lake.failures = {"a.jpg": failure, "canary.jpg": failure}

    with pytest.raises(LakeUnreadable, match=str(failure)):
        fetcher.fetch([item])

    assert clock.seconds == pytest.approx(120 + 20)


def test_an_image_that_keeps_failing_while_others_are_read_is_a_row(lake: Lake, fetcher: Fetcher) -> None:
    read_one(lake, fetcher)
    lake.failures = {"a.jpg": StoreDown("a.jpg: 500"), "canary.jpg": [StoreDown("as any store now and then")]}

    assert fetcher.fetch([lake.put("a.jpg", b"picture")])[0].error_kind == "fetch_failed"


@pytest.mark.parametrize(("size", "is_read"), [(64 << 20, True), (1 << 20, False)])
def test_a_large_image_that_takes_two_minutes_has_a_second_attempt(
    lake: Lake, fetcher: Fetcher, clock: Clock, monkeypatch: pytest.MonkeyPatch, size: int, is_read: bool
) -> None:
    read_one(lake, fetcher)
    lake.put("large.tif", b"picture")
    lake.failures = {"large.tif": [StoreDown("large.tif: the connection was reset")]}
    read = lake.get
    monkeypatch.setattr(lake, "get", lambda *one, **options: (clock.sleep(125), read(*one, **options))[1])

    fetched = fetcher.fetch([LakeObject("memory://lake/large.tif", size=size)])[0]

    assert (fetched.blob is not None) == is_read


def test_a_login_that_ends_stops_at_once(lake: Lake, fetcher: Fetcher, clock: Clock) -> None:
    read_one(lake, fetcher)
    lake.failures = {"a.jpg": Misconfigured("the credentials are rejected (400 ExpiredToken).")}

    with pytest.raises(LakeUnreadable, match="ExpiredToken"):
        fetcher.fetch([lake.put("a.jpg", b"picture")])

    assert clock.seconds == 0


def test_a_missing_bucket_does_not_count_as_a_missing_image(lake: Lake, fetcher: Fetcher) -> None:
    lake.failures = {"a.jpg": Misconfigured("there is no such bucket (404 NoSuchBucket).")}

    with pytest.raises(LakeUnreadable, match="no such bucket"):
        fetcher.fetch([LakeObject("memory://lake/a.jpg")])


def test_a_removed_image_is_missing_immediately(lake: Lake, fetcher: Fetcher, clock: Clock) -> None:
    lake.failures = {"a.jpg": NotFound("a.jpg: no such object")}

    assert fetcher.fetch([LakeObject("memory://lake/a.jpg")])[0].error_kind == "missing"
    assert clock.seconds == 0


# -- retries


def test_nine_functions_and_one_retry_lie_between_an_image_and_its_client(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[str] = []

    def get(*_: object, **__: object) -> None:
        frames.extend(frame.name for frame in traceback.extract_stack()[:-1] if "/pipelines/" in frame.filename)
        raise KeyboardInterrupt

    monkeypatch.setattr(obstore, "get", get)
    options = image_options(StoreOptions(anonymous=True, endpoint="http://127.0.0.1:9", region="us-east-1"))
    with pytest.raises(KeyboardInterrupt):
        Fetcher(ImageStores(options), clock).fetch([LakeObject("s3://lake/a.jpg", "e", 1)])

    ours = frames[frames.index("fetch") :]
    assert len(ours) <= 9, ours
    assert ours.count("retry") == 1


def test_occasional_errors_leave_the_limit_as_it_is_and_lasting_ones_halve_it(lake: Lake, clock: Clock) -> None:
    limit = AdaptiveLimit(32)
    fetcher = Fetcher(lake, clock, limit)
    item = lake.put("a.jpg", b"picture")
    lake.failures = {"a.jpg": [Throttled("slow down")] * 3}  # over within 1.75 s

    assert fetcher.fetch([item])[0].blob is not None
    assert limit.limit == 32

    read_one(lake, fetcher)
    lake.failures = {"a.jpg": Throttled("slow down")}
    assert fetcher.fetch([item])[0].error_kind == "fetch_failed"
    assert limit.limit == 1


def test_refusals_and_other_errors_share_the_time_of_one_image(lake: Lake, fetcher: Fetcher, clock: Clock) -> None:
    read_one(lake, fetcher)
    lake.failures = {"a.jpg": [error for _ in range(500) for error in (StoreDown("no answer"), Denied("refused"))]}

    assert fetcher.fetch([lake.put("a.jpg", b"picture")])[0].error_kind == "denied"
    assert 10 <= clock.seconds < 40


# -- what is read is not what was listed


def shortened(lake: Lake, lengths: Iterator[int]) -> None:
    """Have answers end early, and say that they are whole."""
    get = lake.get

    def get_part(uri: str, **_: object) -> Blob:
        blob = get(uri)
        return replace(blob, data=blob.data[: next(lengths)])

    lake.get = get_part  # type: ignore[method-assign]


def test_bytes_that_are_not_all_are_fetched_again(lake: Lake, fetcher: Fetcher) -> None:
    item = lake.put("a.jpg", b"picture")
    shortened(lake, iter([3, 0, 7]))

    fetched = fetcher.fetch([item])[0]

    assert fetched.blob is not None
    assert fetched.blob.data == b"picture"


def test_bytes_that_are_never_all_are_no_truncated_image(lake: Lake, fetcher: Fetcher) -> None:
    read_one(lake, fetcher)
    item = lake.put("a.jpg", b"picture")
    shortened(lake, iter([3] * 10_000))

    fetched = fetcher.fetch([item])[0]

    assert fetched.error_kind == "fetch_failed"
    assert fetched.error is not None
    assert fetched.error.startswith("memory://lake/a.jpg was cut off: 3 of 7 bytes arrived.")


@pytest.mark.parametrize(
    ("listed_etag", "listed_size", "is_changed"),
    [("now", 7, False), ("then", 7, True), ("then", 5, True), (None, 7, False), (None, 5, True), (None, None, False)],
)
def test_an_image_that_changed_since_it_was_listed_is_read_as_it_is_now_and_known_to_have_changed(
    lake: Lake, fetcher: Fetcher, clock: Clock, listed_etag: str | None, listed_size: int | None, is_changed: bool
) -> None:
    item = lake.put("a.jpg", b"picture")
    now = lake.store.head("a.jpg").etag
    listed = replace(item, etag=now if listed_etag == "now" else listed_etag, size=listed_size)

    fetched = fetcher.fetch([listed])[0]

    assert fetched.blob is not None
    assert fetched.blob.data == b"picture"
    assert fetched.is_changed == is_changed
    assert clock.seconds == 0
