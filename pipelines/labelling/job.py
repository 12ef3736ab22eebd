"""The inputs of the labelling driver: the job, the runner of its shards, and the process's environment."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from pipelines.caps import Meter
from pipelines.clock import Clock
from pipelines.labelling.config import Selection
from pipelines.labelling.manifest import PlannedSegment
from pipelines.labelling.outcome import Outcome, ShardReport
from pipelines.labelling.progress import Progress
from pipelines.labelling.publish import THREADS
from pipelines.labelling.run import Run, RunRequest
from pipelines.lake.listing import Listing
from pipelines.store import Store
from pipelines.watchdog import Watchdog


class Plan(Protocol):
    """A plan that is being written: `planning.Planner`, or a test's own."""

    images_planned: int
    is_complete: bool

    def waves(self) -> Iterator[list[PlannedSegment]]:
        """Yield waves: lists of durable segments that are labelled together."""
        ...


@dataclass(frozen=True, slots=True)
class Workforce:
    """The actors' properties that a new run needs.

    Attributes:
        shard_images: Images in each shard of a new run.
        spread: Least number of shards, about, into which the end of the plan is cut.
        precision: The requested precision, with "auto" resolved for all nodes.
    """

    shard_images: int
    spread: int
    precision: str


class ShardRunner(Protocol):
    """Labels and commits shards of a run. Does nothing before the first call."""

    def prepare(self) -> None:
        """Begin to connect to the cluster in the background, because there will be shards to label."""
        ...

    def workforce(self) -> Workforce:
        """Wait until the cluster is connected and return the actors' workforce. Can be called from any thread.

        Raises:
            RayDetrError: there is no cluster, or it cannot hold the actors.
        """
        ...

    def try_model(self) -> object:
        """Load the model once on a node of the cluster, before a step that cannot be undone.

        Raises:
            RayDetrError: the model does not load there.
        """
        ...

    def label(self, run: Run, shards: Sequence[int], *, isolated: bool) -> Generator[Outcome, None, None]:
        """Yield the outcomes of shards in any order. A shard whose process died has no outcome.

        `isolated` shards were lost before: their images are decoded in child processes.
        """
        ...

    def why_no_shard(self) -> str:
        """Return a possible reason why no shard finishes, or an empty text."""
        ...


@dataclass(frozen=True, slots=True)
class LabellingJob:
    """A labelling job: the images, the model and the table.

    Attributes:
        table: The table, in a store that supports create-only puts.
        request: What to run.
        listing: The images.
        selection: Which images of the listing to label.
        runner: Labels and commits shards.
        new_run: Seal the unfinished run instead of resuming it. A run whose seal is begun is sealed in any case.
        relabel: Label again the images that the model has labelled with other settings, instead of refusing to start.
    """

    table: Store
    request: RunRequest
    listing: Listing
    selection: Selection
    runner: ShardRunner
    new_run: bool = False
    relabel: bool = False

    @property
    def mixes_settings(self) -> bool:
        """Whether rows of this model with other settings may be added to the table."""
        return self.relabel or self.selection.skip_labelled == "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Services and callbacks of the process that runs the driver.

    Attributes:
        clock: The clock.
        tail: Four random hexadecimal digits for the name of a new run.
        publisher: Publishes table files while shards are labelled.
        plan_ahead: Writes the plan while its durable segments are labelled.
        threads: Objects of the table to read concurrently.
        quick: The same table through a store that gives up soon, for records that a failing process leaves; None means
            the job's table.
        check_lease: Called from time to time; raises `RayDetrError` if this process has lost the table's lease.
        meter: Measures time and cost against their limits. The default has no limits.
        watchdog: Reports stages that make no progress; by default nothing.
        show: Called with the progress, in the driver's thread.
        on_shard: Called with the run's name and the report of each shard that is committed.
    """

    clock: Clock
    tail: str
    publisher: Executor
    plan_ahead: Callable[[Iterator[PlannedSegment]], Plan]
    threads: int = THREADS
    quick: Store | None = None
    check_lease: Callable[[], None] = lambda: None
    meter: Meter = field(default_factory=Meter)
    watchdog: Watchdog = field(default_factory=Watchdog)
    show: Callable[[Progress], None] = lambda _: None
    on_shard: Callable[[str, ShardReport], None] = lambda _run_id, _report: None
