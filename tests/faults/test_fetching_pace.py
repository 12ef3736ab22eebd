"""What the adaptive limit of fetching is worth, in figures: `make test-faults-s3`. It is never to cost an image."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.clock import SystemClock
from pipelines.labelling.adaptive_limit import AdaptiveLimit
from pipelines.labelling.fetching import FETCH_THREADS, Fetcher, image_options
from pipelines.lake.lake_object import LakeObject
from pipelines.store import StoreOptions, Stores
from tests.conftest import S3Server
from tests.faults.fault_proxy import Faults, fault_proxy

pytestmark = [pytest.mark.long, pytest.mark.faults, pytest.mark.s3, pytest.mark.slow]

IMAGES = 3_000
STORES = {
    "fine": Faults(latency_seconds=0.02),
    "20 % 503": Faults(latency_seconds=0.02, slow_down=0.2),
    "200 requests/s": Faults(latency_seconds=0.02, most_per_second=200),
    "50 requests/s": Faults(latency_seconds=0.02, most_per_second=50),
}


@pytest.fixture(scope="module")
def objects(s3_server: S3Server) -> list[LakeObject]:
    bucket = s3_server.bucket()
    names = [f"{number:04d}.jpg" for number in range(200)]
    for name in names:
        s3_server.client().put_object(Bucket=bucket.removeprefix("s3://"), Key=name, Body=b"x" * 10_000)
    return [LakeObject(f"{bucket}/{names[number % 200]}", size=10_000) for number in range(IMAGES)]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("store", STORES)
def test_every_image_is_fetched_however_fast_the_store(
    s3: S3Server, objects: list[LakeObject], report: Callable[..., None], store: str, adaptive: bool
) -> None:
    wanted = objects[: IMAGES // 3] if store == "50 requests/s" else objects
    limit = AdaptiveLimit(FETCH_THREADS, least=1 if adaptive else FETCH_THREADS)
    with fault_proxy(s3.endpoint, STORES[store]) as proxy:
        options = StoreOptions(endpoint=proxy.endpoint, region="us-east-1")
        fetcher = Fetcher(Stores(image_options(options)), SystemClock(), limit)
        started = time.monotonic()
        with ThreadPoolExecutor(FETCH_THREADS) as threads:
            fetched = [one for (one,) in threads.map(fetcher.fetch, ([item] for item in wanted))]
        seconds = time.monotonic() - started
    report(
        line=f"fetching: {store}",
        adaptive=adaptive,
        images=len(wanted),
        images_per_second=round(len(wanted) / seconds, 1),
        requests=proxy.requests.total(),
        refused=proxy.injected.total(),
        limit_in_the_end=limit.limit,
    )
    assert [one.error for one in fetched if one.error_kind] == []
