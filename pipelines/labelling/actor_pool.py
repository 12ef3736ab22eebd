"""Shards through a Ray Data actor pool: the only place where labelling meets Ray's scheduling.

What Ray 2.60 does when actors die, and why these settings, is in docs/decisions.md.
"""

import logging
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any, cast

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_initialized,
    _internal_kv_list,
    _internal_kv_put,
)

from pipelines.actor_resources import Pool, room_sentence
from pipelines.cluster import silenced
from pipelines.concurrently import repeating
from pipelines.errors import RayDetrError
from pipelines.labelling.fetching import LakeUnreadable
from pipelines.labelling.labeler_spec import LabelerSpec, build_detector, build_labeler
from pipelines.labelling.outcome import Failed, Lost, NotStarted, Outcome, ShardReport
from pipelines.models import ModelInfo
from pipelines.remote_errors import first_line, remote_sentence
from pipelines.store import StoreError, without_secrets

SHARDS_AT_ONCE = 2  # per actor: one is fetched while the other is in the network
SHARDS_IN_FLIGHT = 4  # per actor: with fewer than 1.75 times what runs at once the pool never grows
LEAST_RESTARTS = 50  # per actor; an endless number would hide a node on which the model kills its process
ACTORS_WAIT_SECONDS = 600  # for the first actors to start, model loading included
STALL_SECONDS = 3600.0  # without any shard, nodes that are waited for included, before the pool is given up
STOP_POLL_SECONDS = 0.5
TELL_SECONDS = 2.0  # between two looks at how much of a shard is done
PROBE_SECONDS = 900  # for one actor to load the model, a download from the hub included


class ShardActor:
    """The class that Ray Data keeps one object of in each actor; what it does is `Labeler`'s."""

    def __init__(self, spec: LabelerSpec) -> None:
        self._failure = ""
        loading = _Loading(spec.pool)
        if loading.has_killed():
            self._failure = killed_sentence(spec)
            return
        try:
            self._labeler = build_labeler(spec)
        except (StoreError, RayDetrError, ValueError, RuntimeError, OSError) as error:  # RuntimeError: CUDA's
            self._failure = first_line(error)  # raised here, it would reach the driver as an actor's death
            return
        self._done = _ImagesDone(spec.pool)
        self._begun = _ShardsInProgress(spec.pool) if spec.may_stop else None
        loading.has_loaded()

    def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
        """Label the shard whose number the row has; return its outcome as a row."""
        if self._failure:
            return _to_row(Failed(self._failure))
        shard = int(row["shard"])
        if self._begun is not None and not self._begun.begin(shard):
            return _to_row(NotStarted())
        try:
            report = self._labeler.label(shard, on_images=self._done.teller(shard))
        except (LakeUnreadable, StoreError, RayDetrError) as error:
            # an exception would be dropped with its block (max_errored_blocks); as a row it stops the driver
            return _to_row(Failed(str(error)))
        except Exception as error:  # the driver runs the shard again, and stops with this when that does not help
            logging.getLogger(__name__).exception("shard %s is lost", row["shard"])  # into this actor's log file
            return _to_row(Lost(f"{type(error).__name__}: {first_line(error)}"))
        return _to_row(report)


class _Loading:
    """What the actors of a pool know of each other's loading: whether one of them died of it, kept by Ray's head.

    Ray Data restarts an actor that died in its constructor, with the same id, and without telling anybody: a model
    that kills its process would be loaded again and again.
    """

    def __init__(self, pool: str) -> None:
        self._prefix = f"ray-detr/{pool}/"
        self._is_shared = bool(pool) and bool(_internal_kv_initialized())  # type: ignore[no-untyped-call]

    def has_killed(self) -> bool:
        """Say that this actor loads the model. Return whether it did so before, and no actor has ever finished."""
        if not self._is_shared:
            return False  # not an actor of a pool
        has_begun = _internal_kv_put(f"{self._prefix}{ray.get_runtime_context().get_actor_id()}", b"", overwrite=False)
        return has_begun and not _internal_kv_exists(f"{self._prefix}loaded")

    def has_loaded(self) -> None:
        """Say that the model is loaded: from now on a death has another reason."""
        if self._is_shared:
            _internal_kv_put(f"{self._prefix}loaded", b"")

    def forget(self) -> None:
        """Remove what the actors said, in the driver."""
        if self._is_shared and ray.is_initialized():
            _internal_kv_del(self._prefix, del_by_prefix=True)


class _ImagesDone:
    """How many images of unfinished shards are done: actors tell Ray's head, the driver asks it."""

    def __init__(self, pool: str) -> None:
        self._prefix = f"ray-detr/{pool}/images/"
        self._is_shared = bool(pool) and bool(_internal_kv_initialized())  # type: ignore[no-untyped-call]
        self._read: dict[int, int] = {}
        self._reported: set[int] = set()
        self._lock = threading.Lock()

    def teller(self, shard: int) -> Callable[[int], None]:
        """Return what an actor calls with the number of images that are done; the head is told now and then."""
        told_at = time.monotonic()

        def tell(images: int) -> None:
            nonlocal told_at
            if self._is_shared and time.monotonic() >= told_at + TELL_SECONDS:
                told_at = time.monotonic()
                with suppress(RayError, RuntimeError, ValueError, OSError):  # only shown: no shard is lost for it
                    _internal_kv_put(f"{self._prefix}{shard}", str(images).encode())

        return tell

    def report(self, shard: int) -> int:
        """Take a shard out that is committed; return how many images are done of the others."""
        with self._lock:
            self._reported.add(shard)
            return self._unfinished()

    def read(self) -> int:
        """Ask the head; return how many images are done of shards that are not committed."""
        keys = _internal_kv_list(self._prefix) if self._is_shared else []
        read = {int(key.removeprefix(self._prefix.encode())): int(_internal_kv_get(key) or b"0") for key in keys}
        with self._lock:
            self._read = read
            return self._unfinished()

    def _unfinished(self) -> int:
        return sum(images for shard, images in self._read.items() if shard not in self._reported)


class _ShardsInProgress:
    """Which shards have been begun, for a run that stops early: actors tell Ray's head, the driver asks it.

    An actor says that it begins a shard before it asks whether the run stops; the driver says that the run stops before
    it asks what has begun. So the driver knows of every shard that is in progress.
    """

    def __init__(self, pool: str) -> None:
        self._prefix = f"ray-detr/{pool}/begun/"
        self._stop = (
            f"ray-detr-stopped/{pool}"  # not removed with the others: actors live a little longer than the pool
        )
        self._reported: set[int] = set()
        self._in_progress: set[int] | None = None
        self._lock = threading.Lock()

    def begin(self, shard: int) -> bool:
        """Return whether an actor may begin a shard."""
        try:
            _internal_kv_put(f"{self._prefix}{shard}", b"")
            return not _internal_kv_exists(self._stop)
        except (RayError, RuntimeError, ValueError, OSError):  # the head is away, so nothing says that the run stops
            return True

    def stop(self) -> None:
        """Let no further shard begin, and find out which are in progress; in the driver."""
        _internal_kv_put(self._stop, b"")
        begun = {int(key.removeprefix(self._prefix.encode())) for key in _internal_kv_list(self._prefix)}
        with self._lock:
            self._in_progress = begun - self._reported

    def report(self, shard: int) -> None:
        """Note that a shard is committed; in the driver."""
        with self._lock:
            self._reported.add(shard)
            if self._in_progress is not None:
                self._in_progress.discard(shard)

    @property
    def is_over(self) -> bool:
        """Whether the run stops and no shard is in progress."""
        with self._lock:
            return self._in_progress is not None and not self._in_progress


@contextmanager
def _stopping(begun: _ShardsInProgress, stop: threading.Event | None) -> Iterator[None]:
    """Tell the actors when the run is to stop."""

    def look() -> bool:
        assert stop is not None
        if stop.is_set():
            with suppress(RayError, RuntimeError, ValueError):  # the head is gone, which the pool notices by itself
                begun.stop()
        return not stop.is_set()

    with nullcontext() if stop is None else repeating(look, seconds=STOP_POLL_SECONDS, name="stop"):
        yield


@contextmanager
def _told(done: _ImagesDone, show: Callable[[int], None]) -> Iterator[None]:
    """Show how many images of unfinished shards are done; 0 at the end."""

    def tell() -> bool:
        try:
            show(done.read())
        except (RayError, RuntimeError, ValueError):  # the head is gone, which the pool notices by itself
            return False
        return True

    try:
        with repeating(tell, seconds=TELL_SECONDS, name="images done"):
            yield
    finally:
        show(0)


def killed_sentence(spec: LabelerSpec) -> str:
    """Return what is said when loading the model has killed a process."""
    model = without_secrets(spec.model)
    return f"the process that loaded {model} was killed: not enough memory, or a broken library on the node."


def probe(spec: LabelerSpec, pool: Pool) -> ModelInfo:
    """Load the model once where actors will, in a process that is never restarted; no actor becomes of it.

    For what must be known before a run is begun or sealed, and only a node can tell. Takes as long as an actor's start.

    Raises:
        RayDetrError: the model does not load, the process died, or no actor started in time.
    """
    model = without_secrets(spec.model)
    remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=0)(_probe)
    try:
        found: ModelInfo | str = ray.get(remote.remote(spec), timeout=PROBE_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise RayDetrError(
            f"no actor could load {model} within {PROBE_SECONDS} s. Is the cluster busy with another job?"
        ) from error
    except (ray.exceptions.RaySystemError, ImportError) as error:
        raise RayDetrError(f"the model {model} could not be tried: {remote_sentence(error)}") from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        raise RayDetrError(killed_sentence(spec)) from error
    if isinstance(found, str):
        raise RayDetrError(found)
    return found


def label_shards(
    shards: Sequence[int],
    spec: LabelerSpec,
    pool: Pool,
    *,
    stall_seconds: float = STALL_SECONDS,
    verbose: bool = False,
    show_unfinished: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Generator[Outcome, None, None]:
    """Yield the outcome of each shard as it is done, in no order.

    A shard whose actor died yields nothing: who calls compares with what it asked for. Leaving the loop kills the
    actors. What Ray's C++ says while the pool starts is shown only if `verbose`. When no shard has come back for
    `stall_seconds`, for want of nodes as for any other reason, the pool is given up. When `stop` is set, no further
    shard is begun; those in progress are finished.

    Raises:
        RayDetrError: the pool cannot go on.
    """
    name = uuid.uuid4().hex
    loading, done, begun = _Loading(name), _ImagesDone(name), _ShardsInProgress(name)
    try:
        with warnings.catch_warnings():
            # 2.60 announces the end of max_restarts and max_task_retries for 2.64 and has no other name for them yet
            warnings.simplefilter("ignore")
            dataset = _dataset(shards, replace(spec, pool=name, may_stop=stop is not None), pool)
        context = dataset.context  # its own copy: other pipelines of this process keep their settings
        context.max_errored_blocks = -1  # a dead actor costs the shards in flight on it, not the run
        context.wait_for_min_actors_s = ACTORS_WAIT_SECONDS
        context.execution_no_progress_timeout_s = stall_seconds
        context.memory_usage_poll_interval_s = None
        # iter_rows holds every row back until the next one arrives; this does not (measured: 20 ms)
        batches = iter(dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"))
        with _told(done, show_unfinished), _stopping(begun, stop):
            with nullcontext() if verbose else silenced():
                batch = cast("Any", next(batches, None))
            while batch is not None:
                for outcome in map(_from_row, batch.to_pylist()):
                    if isinstance(outcome, ShardReport):
                        begun.report(outcome.shard)
                        show_unfinished(done.report(outcome.shard))
                    if not isinstance(outcome, NotStarted):
                        yield outcome
                if begun.is_over:
                    return
                batch = cast("Any", next(batches, None))
    except ray.exceptions.GetTimeoutError as error:
        raise RayDetrError(
            f"no actor was ready within {ACTORS_WAIT_SECONDS} s: {room_sentence(pool)}. Ask for fewer with --actors, "
            "add nodes, or look at the nodes' Ray logs."
        ) from error
    except ExecutionTimeoutError as error:
        raise RayDetrError(
            f"no shard has come back for {stall_seconds / 60:.0f} min: {room_sentence(pool)}. Ray's logs may show why. "
            "Run the same command again to resume; --stall-minutes sets a longer limit."
        ) from error
    except ray.exceptions.ObjectStoreFullError as error:
        raise RayDetrError(
            "Ray's object store is full: other jobs of the cluster use it, and it does not spill to disk. "
            "Wait for them, or start Ray with a larger --object-store-memory."
        ) from error
    except ray.exceptions.OutOfDiskError as error:
        raise RayDetrError(
            "the disk of Ray's temporary folder is full. Free some space, or start Ray with another --temp-dir."
        ) from error
    except RayError as error:
        raise RayDetrError(f"the actor pool cannot go on: {remote_sentence(error)}") from error
    finally:
        batches = dataset = None  # type: ignore[assignment]  # an error that is kept has this frame: it must not keep the actors
        loading.forget()


def _dataset(shards: Sequence[int], spec: LabelerSpec, pool: Pool) -> ray.data.Dataset:
    return ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map(
        ShardActor,  # type: ignore[arg-type]  # Ray 2.60's annotation forgets classes of callables
        fn_constructor_args=(spec,),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        compute=ActorPoolStrategy(
            min_size=min(pool.least, len(shards)),
            max_size=max(pool.least, min(pool.most, len(shards))),
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT,
        ),
        # an actor without restarts left is not replaced, and the last such one is waited for without end (measured,
        # Ray 2.60). Each death costs a shard at least, so there are more restarts than an actor can use up
        max_restarts=max(LEAST_RESTARTS, len(shards)),
        max_task_retries=0,  # a death charges all tasks of the actor: the driver runs missing shards again
    )


def _probe(spec: LabelerSpec) -> ModelInfo | str:
    try:
        return build_detector(spec)[1]
    except (RayDetrError, ValueError, RuntimeError, OSError) as error:  # RuntimeError: CUDA's
        return first_line(error)


def _to_row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"failure": None, "loss": None, "report": None}
    match outcome:
        case Failed(message):
            row["failure"] = message
        case Lost(reason):
            row["loss"] = reason
        case ShardReport():
            errors = [{"kind": kind, "count": count} for kind, count in outcome.errors.items()]
            row["report"] = {**asdict(outcome), "errors": errors}
    return row


def _from_row(row: Mapping[str, Any]) -> Outcome:
    if row["failure"] is not None:
        return Failed(row["failure"])
    if row["loss"] is not None:
        return Lost(row["loss"])
    if row["report"] is None:
        return NotStarted()
    fields = row["report"]
    errors = {error["kind"]: error["count"] for error in fields["errors"] or []}
    return ShardReport(**{**fields, "errors": errors, "notes": tuple(fields["notes"] or ())})
