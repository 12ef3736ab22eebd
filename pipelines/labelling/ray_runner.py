"""Run labelling on Ray, which is connected in a separate thread as soon as there is something to label."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from detr.precision import Precision, auto_precision
from pipelines.caps import Meter
from pipelines.errors import CapReached, RayDetrError
from pipelines.labelling.job import Workforce
from pipelines.labelling.outcome import Outcome
from pipelines.labelling.plan import usual_shard_images
from pipelines.labelling.progress import Progress
from pipelines.labelling.run import Run
from pipelines.models import ModelInfo
from pipelines.store import without_secrets
from pipelines.watchdog import Watchdog

if TYPE_CHECKING:
    from pipelines.actor_resources import Pool
    from pipelines.labelling.labeler_spec import LabelerSpec

SHARDS_AN_ACTOR = 4  # least number of shards for each actor at the end of a plan, so that none is idle


@dataclass(frozen=True, slots=True)
class Actors:
    """The actors of a run.

    Args:
        least: Smallest number of actors; None is 1.
        most: Largest number of actors; None is what fits into the cluster.
        device: "auto", "cpu" or "cuda".
        node_minutes: How long to wait for an autoscaling cluster that cannot hold `least` actors yet.
        stall_minutes: Give up if no shard finishes for this time.
        verbose: Show Ray's messages.
        cpus: CPUs of each actor; None is the default of `pipelines.actor_resources.choose_pool`.
        gpus: GPUs of each actor if GPUs are used; None is 1.
    """

    least: int | None
    most: int | None
    device: str
    node_minutes: float
    stall_minutes: float
    verbose: bool
    cpus: float | None = None
    gpus: float | None = None


class RayRunner:
    """A `job.ShardRunner` on Ray. Neither Ray nor torch is imported before the first call of a method."""

    def __init__(
        self,
        spec: LabelerSpec,
        actors: Actors,
        *,
        show: Callable[[Progress], None],
        watchdog: Watchdog,
        show_unfinished: Callable[[int], None] = lambda _: None,
        meter: Meter | None = None,
        own_disks: Sequence[str] = (),
    ) -> None:
        """Store the arguments of the actors.

        Args:
            spec: for the actors; the run, the device, its threads and the precision are set later.
            actors: number and resources of actors.
            show: called with the stage that the run waits for.
            watchdog: reports stages that make no progress.
            show_unfinished: called with the number of finished images in shards that are not committed.
            meter: counts the cluster's nodes, and stops the run at a limit.
            own_disks: paths and URIs that are refused on a cluster of several machines if they are local.
        """
        self._own_disks = own_disks
        self._spec, self._actors, self._show, self._watchdog = spec, actors, show, watchdog
        self._show_unfinished = show_unfinished
        self._session = ExitStack()
        self._lock = threading.Lock()
        self._connecting: Future[Pool] | None = None
        self._meter = meter or Meter()
        self._is_given_up = threading.Event()
        self._meter.when_reached(self._is_given_up.set)
        self._is_closed = threading.Event()

    def prepare(self) -> None:
        """Begin to connect in a separate thread; do nothing if already called."""
        with self._lock:
            if self._connecting is None:
                self._connecting = Future()
                threading.Thread(target=self._connect, args=(self._connecting,), name="connect", daemon=True).start()

    def use_model(self, pinned: str | None, precision: Precision) -> None:
        """Load this commit of the model on every node that can get it, with this precision. Call before `prepare`."""
        self._spec = replace(self._spec, pinned=pinned, precision=precision)

    def workforce(self) -> Workforce:
        """Wait for the connection to Ray and return the actors' workforce.

        Raises:
            RayDetrError: Ray does not answer, or the cluster cannot hold the actors.
        """
        pool = self._wait()
        return Workforce(
            shard_images=usual_shard_images(gpus=pool.gpus > 0, tiled=self._spec.tiling is not None),
            spread=pool.most * SHARDS_AN_ACTOR,
            precision=self._precision(pool),
        )

    def try_model(self) -> ModelInfo:
        """Load the model once on a node for actors, and return its identity there.

        Raises:
            RayDetrError: it does not load there, or differs from the model on this machine.
        """
        from pipelines.actor_resources import room_sentence
        from pipelines.labelling.actor_pool import probe

        pool = self._wait()
        loading = f"loading {without_secrets(self._spec.model)}"
        self._show(Progress(loading))
        with self._watchdog.stage(loading, detail=lambda: room_sentence(pool)):
            # as requested: the meaning of "auto" also depends on the model
            return probe(self._placed(pool, self._spec.precision), pool)

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        """Yield the outcome of each shard; see `actor_pool.label_shards`.

        Raises:
            CapReached: a limit was reached while the pool made no progress.
            RayDetrError: the pool cannot continue.
        """
        from pipelines.labelling.actor_pool import label_shards

        pool = self._wait()
        spec = replace(
            self._placed(pool, run.precision),  # type: ignore[arg-type]  # `run` has checked it
            run_id=run.run_id,
            model_sha256=run.model_sha256,
            model_id=run.model,
            settings=run.settings,
            isolated=isolated,
        )
        # shards may have been lost with their host: the former number of actors may not fit any more
        if isolated:
            pool = replace(pool, least=1)
        try:
            yield from label_shards(
                shards,
                spec,
                pool,
                stall_seconds=60 * self._actors.stall_minutes,
                verbose=self._actors.verbose,
                show_unfinished=self._show_unfinished,
                stop=self._meter.reached if self._meter.caps.are_set else None,
            )
        except RayDetrError as stopped:
            if self._meter.reached.is_set():
                raise CapReached(f"{self._meter.reason}; {stopped}") from stopped
            raise

    def why_no_shard(self) -> str:
        """Return a sentence with the number of actors that fit into the cluster."""
        with self._lock:
            connecting = self._connecting
        if connecting is None or not connecting.done() or connecting.exception() is not None:
            return ""
        from pipelines.actor_resources import room_sentence

        return room_sentence(connecting.result())

    def close(self) -> None:
        """Disconnect, and end a local Ray and all actors; wait for a connection in progress, but not for nodes."""
        self._is_given_up.set()
        with self._lock:
            connecting = self._connecting
        if connecting is not None:
            connecting.exception()  # waits
        self._meter.count_nodes(None)  # Ray would start again if its nodes were queried after its end
        try:
            self._session.close()
        finally:
            self._is_closed.set()

    def _placed(self, pool: Pool, precision: Precision) -> LabelerSpec:
        device = "cuda" if pool.gpus else "cpu"
        return replace(self._spec, device=device, threads=pool.threads, precision=precision)

    def _precision(self, pool: Pool) -> Precision:
        asked = self._spec.precision
        return auto_precision("cuda" if pool.gpus else "cpu") if asked == "auto" else asked

    def _wait(self) -> Pool:
        self.prepare()
        connecting = self._connecting
        assert connecting is not None, "prepare() has made it"
        if not connecting.done():
            self._show(Progress("connecting to Ray"))
        with self._watchdog.stage("connecting to Ray"):
            return connecting.result()

    def _connect(self, connecting: Future[Pool]) -> None:
        try:
            connecting.set_result(self._connected_pool())
        except BaseException as error:  # noqa: BLE001 - raised again by `_wait`, in the thread that needs Ray
            connecting.set_exception(error)
        # the kernel kills Ray's processes when the thread that started them ends (PR_SET_PDEATHSIG)
        self._is_closed.wait()

    def _connected_pool(self) -> Pool:
        from pipelines.actor_resources import ActorShare, count_nodes_for, count_nodes_while_waiting, wait_for_pool
        from pipelines.cluster import connected, refuse_local
        from pipelines.doctor.at_start import check_at_start

        actors, own = self._actors, ActorShare(self._actors.cpus, self._actors.gpus)
        self._session.enter_context(connected(verbose=actors.verbose))
        self._meter.count_nodes(lambda: count_nodes_while_waiting(actors.most, device=actors.device, own=own))
        check_at_start()
        refuse_local(self._own_disks, are_shared=False)
        try:
            pool = wait_for_pool(
                actors.least,
                actors.most,
                device=actors.device,
                minutes=actors.node_minutes,
                on_wait=lambda: self._show(Progress("waiting for nodes")),
                is_given_up=self._is_given_up,
                own=own,
            )
        except RayDetrError as stopped:
            if self._meter.reached.is_set():
                raise CapReached(f"{self._meter.reason}; {stopped}") from stopped
            raise
        refuse_local(self._own_disks, are_shared=False)  # again: machines may have been added for the pool
        self._meter.count_nodes(lambda: count_nodes_for(pool.cpus, pool.gpus, most=pool.most))
        return pool


def cluster_is_given() -> bool:
    """Return what `pipelines.cluster.is_given` returns, without importing Ray if it is not imported yet."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    if "ray" not in sys.modules:
        return False
    from pipelines.cluster import is_given

    return is_given()
