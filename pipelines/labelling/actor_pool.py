"""Labels shards in a Ray Data actor pool. No other module of labelling depends on Ray's scheduling.

How Ray 2.60 handles the death of actors, and the reasons for these settings, are in docs/decisions.md.
"""

import gc
import logging
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any, cast

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from pipelines.actor_resources import Pool, room_sentence
from pipelines.cluster import node_resources, silenced
from pipelines.concurrently import repeating
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.fetching import LakeUnreadable
from pipelines.labelling.labeler_spec import LabelerSpec, build_detector, build_labeler
from pipelines.labelling.outcome import Failed, Lost, NotStarted, Outcome, ShardReport
from pipelines.labelling.pool_records import TELL_SECONDS, ImagesDone, Loading, ShardsInProgress
from pipelines.models import ModelInfo
from pipelines.remote_errors import first_line, remote_sentence
from pipelines.store import StoreError, without_secrets

SHARDS_AT_ONCE = 2  # per actor: one is fetched while the network computes the other
# The pool grows while its actors have at least this share of the shards that they can label at once: to about one shard
# for each actor. No actor holds more shards than it labels, which others could label meanwhile.
GROW_AT = 0.55
LEAST_RESTARTS = 50  # per actor; an unlimited number would hide a node on which the model kills its process
ACTORS_WAIT_SECONDS = 600  # for the first actors to start and load the model
STALL_SECONDS = 3600.0  # without a finished shard, including waiting for nodes, before the pool is given up
STOP_POLL_SECONDS = 0.5
REPLY_SECONDS = 1.0  # for the driver to receive outcomes before the process ends
PROBE_SECONDS = 900  # for one actor to load the model, including a download from the hub


class ShardActor:
    """The actor class for Ray Data; the work is done by `Labeler`."""

    def __init__(self, spec: LabelerSpec) -> None:
        self._failure, self._broken, self._device = "", "", spec.device
        loading = Loading(spec.pool)
        if loading.has_killed():
            self._failure = on_this_node(killed_sentence(spec))
            return
        try:
            self._labeler = build_labeler(spec)
        except (StoreError, RayDetrError, ValueError, RuntimeError, OSError) as error:  # RuntimeError: CUDA's
            self._failure = on_this_node(first_line(error))  # raised, the driver would see only that the actor died
            return
        self._done = ImagesDone(spec.pool)
        self._begun = ShardsInProgress(spec.pool) if spec.may_stop else None
        loading.has_loaded()

    def __call__(self, row: Mapping[str, int]) -> dict[str, Any]:
        """Label the shard with the row's number; return its outcome as a row."""
        if self._failure:
            return _to_row(Failed(self._failure))
        if self._broken:
            _end_process(self._broken)
        shard = int(row["shard"])
        if self._begun is not None and not self._begun.begin(shard):
            return _to_row(NotStarted())
        try:
            report = self._labeler.label(shard, on_images=self._done.teller(shard))
        except (LakeUnreadable, StoreError, RayDetrError) as error:
            # Ray would drop an exception with its block (max_errored_blocks); a row stops the driver
            return _to_row(Failed(str(error)))
        except Exception as error:  # the driver runs the shard again, and stops with this error if that does not help
            logging.getLogger(__name__).exception("shard %s is lost", row["shard"])  # into this actor's log file
            self._check_device()
            # the error of an image that the network cannot process is a sentence, without the name of its class
            image = getattr(error, "image", None)
            reason = first_line(error) if image else f"{type(error).__name__}: {first_line(error)}"
            return _to_row(Lost(reason.rstrip("."), shard, image and without_secrets(image)))
        return _to_row(report)

    def _check_device(self) -> None:
        """After an error, check whether CUDA still works in this process; if not, the next shard ends it.

        After some errors, such as an illegal memory access, every later call of CUDA in the process fails. Ray starts
        another process.
        """
        if self._device != "cuda":
            return
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            self._broken = f"CUDA does not work in this process any more: {first_line(error)}."


def _end_process(reason: str) -> None:
    from pipelines.labelling.watched_decoding import end_process

    time.sleep(REPLY_SECONDS)
    end_process(reason)


@contextmanager
def _stopping(begun: ShardsInProgress, stop: threading.Event | None) -> Iterator[None]:
    """Notify the actors when `stop` is set."""

    def look() -> bool:
        assert stop is not None
        if stop.is_set():
            try:
                begun.stop()
            except (RayError, RuntimeError, ValueError):
                return True  # try again. The pool itself notices if Ray's head has ended
            return False
        return True

    with nullcontext() if stop is None else repeating(look, seconds=STOP_POLL_SECONDS, name="stop"):
        yield


@contextmanager
def _told(done: ImagesDone, show: Callable[[int], None]) -> Iterator[None]:
    """Show how many images of unfinished shards are done; 0 at the end."""

    def tell() -> bool:
        try:
            show(done.read())
        except (RayError, RuntimeError, ValueError):  # Ray's head has ended, which the pool notices itself
            return False
        return True

    try:
        with repeating(tell, seconds=TELL_SECONDS, name="images done"):
            yield
    finally:
        show(0)


def on_this_node(sentence: str) -> str:
    """Return a message of an actor with its node's address, if the cluster has several nodes."""
    if not ray.is_initialized() or len(node_resources()) == 1:
        return sentence
    return f"node {ray.util.get_node_ip_address()}: {sentence}"  # type: ignore[no-untyped-call]


def killed_sentence(spec: LabelerSpec) -> str:
    """Return the error message for a model whose loading killed a process."""
    model = without_secrets(spec.model)
    return f"the process that loaded {model} was killed: not enough memory, or a broken library on the node."


def probe(spec: LabelerSpec, pool: Pool) -> ModelInfo:
    """Load the model once on a node of the cluster, in a process that is not restarted and then ends.

    Checks, before a run is begun or sealed, what only a node can check. Takes as long as the start of an actor.

    Raises:
        UsageError: there is no such model, or it cannot be used.
        RayDetrError: the model does not load, the process died, or no actor started in time.
    """
    model = without_secrets(spec.model)
    remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=0)(_probe)
    try:
        found: ModelInfo | RayDetrError = ray.get(remote.remote(spec), timeout=PROBE_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise RayDetrError(
            f"no actor could load {model} within {PROBE_SECONDS} s. Is the cluster busy with another job?"
        ) from error
    except (ray.exceptions.RaySystemError, ImportError) as error:
        raise RayDetrError(f"the model {model} could not be loaded on a node: {remote_sentence(error)}") from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        raise RayDetrError(killed_sentence(spec)) from error
    if isinstance(found, RayDetrError):
        raise found
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
    """Yield the outcomes of shards as they finish, in any order.

    A shard whose actor died has no outcome; the caller compares with the shards that it passed. Leaving the loop kills
    the actors. Messages of Ray's C++ code during the start are shown only if `verbose`. If no shard finishes for
    `stall_seconds`, for example because nodes are missing, the pool is given up. When `stop` is set, no further shard
    is begun; those in progress are finished.

    Raises:
        RayDetrError: the pool cannot continue.
    """
    name = uuid.uuid4().hex
    loading, done, begun = Loading(name), ImagesDone(name), ShardsInProgress(name)
    try:
        with warnings.catch_warnings():
            # 2.60 announces the end of max_restarts and max_task_retries for 2.64 and has no other name for them yet
            warnings.simplefilter("ignore")
            dataset = _dataset(shards, replace(spec, pool=name, may_stop=stop is not None), pool)
        context = dataset.context  # a copy: settings of other pipelines in this process do not change
        context.max_errored_blocks = -1  # a dead actor costs the shards in flight on it, not the run
        context.wait_for_min_actors_s = ACTORS_WAIT_SECONDS
        context.execution_no_progress_timeout_s = stall_seconds
        context.memory_usage_poll_interval_s = None
        context.autoscaling_config = replace(context.autoscaling_config, actor_pool_util_upscaling_threshold=GROW_AT)
        # iter_rows delays every row until the next one arrives; this does not (measured: 20 ms)
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
            f"no shard was finished for {stall_seconds / 60:.0f} min: {room_sentence(pool)}. Ray's logs may show why. "
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
        raise RayDetrError(f"the actor pool failed: {remote_sentence(error)}") from error
    finally:
        batches = dataset = None  # type: ignore[assignment]  # a kept error refers to this frame, which must not keep the actors alive
        loading.forget()
        # after the death of an actor, Ray Data's executor is part of a reference cycle, and its actors keep their GPUs
        # until Python's collector happens to run: a second run of the same process would wait for them
        gc.collect()


def _dataset(shards: Sequence[int], spec: LabelerSpec, pool: Pool) -> ray.data.Dataset:
    return ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map(
        ShardActor,  # type: ignore[arg-type]  # Ray 2.60's annotation lacks classes of callables
        fn_constructor_args=(spec,),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        compute=ActorPoolStrategy(
            min_size=min(pool.least, len(shards)),
            max_size=max(pool.least, min(pool.most, len(shards))),
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=SHARDS_AT_ONCE,
        ),
        # an actor without restarts left is not replaced, and the last such one is waited for without end (measured,
        # Ray 2.60). Each death costs a shard at least, so there are more restarts than an actor can use up
        max_restarts=max(LEAST_RESTARTS, len(shards)),
        max_task_retries=0,  # a death counts against all tasks of the actor: the driver runs missing shards again
    )


def _probe(spec: LabelerSpec) -> ModelInfo | RayDetrError:
    try:
        return build_detector(spec)[1]
    except UsageError as error:
        return error
    except (RayDetrError, ValueError, RuntimeError, OSError) as error:  # RuntimeError: CUDA's
        return RayDetrError(first_line(error))


def _to_row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"failure": None, "loss": None, "shard": None, "image": None, "report": None}
    match outcome:
        case Failed(message):
            row["failure"] = message
        case Lost(reason, shard, image):
            row |= {"loss": reason, "shard": shard, "image": image}
        case ShardReport():
            errors = [{"kind": kind, "count": count} for kind, count in outcome.errors.items()]
            row["report"] = {**asdict(outcome), "errors": errors}
    return row


def _from_row(row: Mapping[str, Any]) -> Outcome:
    if row["failure"] is not None:
        return Failed(row["failure"])
    if row["loss"] is not None:
        return Lost(row["loss"], row.get("shard"), row.get("image"))
    if row["report"] is None:
        return NotStarted()
    fields = row["report"]
    errors = {error["kind"]: error["count"] for error in fields["errors"] or []}
    return ShardReport(**{**fields, "errors": errors, "notes": tuple(fields["notes"] or ())})
