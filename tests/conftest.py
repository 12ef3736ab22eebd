"""What must be opened and closed around tests: stores of every kind, and the servers behind them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import hypothesis
import pytest
from obstore.store import MemoryStore

from pipelines.store import Store, StoreOptions, open_store
from pipelines.store.obstore_store import ObstoreStore
from tests.memory_store import memory_store
from tests.stub_hub import Hub, serving

# before torch is imported: on busy cores its threads wait for each other, 20 times as long with these small networks
os.environ.setdefault("OMP_NUM_THREADS", "1")

# an example may take as long as a busy machine lets it
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

HOW_TO_GET_S3 = (
    "no S3 server: run `make test-s3`, or set AWS_ENDPOINT_URL and the AWS_* keys of one that may be written to"
)
STORES = [
    "memory",
    "local",
    "native",  # obstore's own store in memory: the way to Google and Azure, as far as it goes without them
    "moto",
    *(pytest.param(kind, marks=pytest.mark.s3) for kind in ("s3", "s3-fsspec")),
]


class S3Server(NamedTuple):
    """A server and who we are there; what it is asked for it forgets at the end of the tests."""

    endpoint: str
    access_key: str
    secret_key: str
    is_real: bool = False

    def options(self, **others: object) -> StoreOptions:
        return StoreOptions(endpoint=self.endpoint, region="us-east-1", retry_seconds=2.0, **others)  # type: ignore[arg-type]

    def bucket(self) -> str:
        """Make a bucket, and return its URI."""
        name = f"tests-{uuid4().hex[:16]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def client(self) -> Any:
        return _client(self)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run quick tests first in `make mutate`: a mutant ends with the first test that fails."""
    if "mutmut.state" in sys.modules:
        from mutmut.state import state

        seconds = state().duration_by_test
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """A quick S3 in this process: it knows no credentials, no permissions, no faults."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(f"http://{host}:{port}", "testing", "testing-secret")
    server.stop()


@pytest.fixture
def moto(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The quick S3, with its keys in the environment."""
    return _known_to(monkeypatch, moto_server)


@pytest.fixture(scope="session")
def s3_server() -> S3Server:
    """The real S3 server that `make test-s3` starts."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        pytest.skip(HOW_TO_GET_S3)
    return S3Server(endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], is_real=True)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The real S3 server, with its keys in the environment."""
    return _known_to(monkeypatch, s3_server)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of every kind that a table can lie in."""
    kind: str = request.param
    if kind == "memory":
        return memory_store()
    if kind == "local":
        return open_store(str(tmp_path / "store"))
    if kind == "native":
        return ObstoreStore(MemoryStore(), "az://container", "a folder/", slow=None, retry_seconds=0.0)
    server: S3Server = request.getfixturevalue(kind.partition("-")[0])
    via = "fsspec" if kind.endswith("fsspec") else "auto"
    return open_store(f"{server.bucket()}/a folder", server.options(via=via))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """One Ray for all tests, on loopback, with eight logical cores and four logical GPUs; gives its address."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_worker_niceness", "0")  # as the package's own local Ray: other jobs may keep the cores busy
        # for the drivers that tests start: they find this Ray only if they, too, take loopback for their address, see
        # pipelines.local_ray.on_loopback
        patched.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patched.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray will do by itself; else it warns
        import ray  # here: seconds that most tests need not wait for
        import ray.data

        from pipelines.local_ray import start_local_ray

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray 2.60 warns of defaults of its own when this is made
            ray.data.DataContext.get_current()
        start_local_ray(
            num_cpus=8,
            num_gpus=4,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=200 * 1024**2,
            _temp_dir="/tmp/ray",  # noqa: S108 - sockets lie below it, whose paths must be short
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@lru_cache
def _client(server: S3Server) -> Any:
    import boto3  # here, as moto above: most tests need neither, and both take half a second

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


def _known_to(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> S3Server:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    return server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on the loopback, which the hub's client uses with an empty cache."""
    with serving(monkeypatch, tmp_path / "cache") as served:
        yield served
