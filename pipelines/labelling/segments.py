"""Labels and publishes segments of a plan, even if processes die meanwhile. Independent of Ray."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field

from pipelines.errors import RayDetrError
from pipelines.labelling.job import ShardRunner
from pipelines.labelling.manifest import SEGMENT_SHARDS, PlannedSegment
from pipelines.labelling.outcome import Failed, Lost, ShardReport
from pipelines.labelling.publish import THREADS, Done, publish_group, read_done
from pipelines.labelling.run import Run
from pipelines.store import Store

MOST_PASSES = 3  # attempts for a shard that is lost each time
MOST_ALIKE = 8  # shards that a start loses in the same way before it labels one: then no shard can be labelled

_DIED = "its process died; Ray's logs may show why, such as an image that kills it or too little memory"


class ShardsLost(RayDetrError):
    """Shards were lost every time. All other shards of these segments are labelled."""

    def __init__(self, run_id: str, shard: int, reason: str, *, shards: int, images: int, waiting: int) -> None:
        """Create the message.

        Args:
            run_id: The run.
            shard: The first of the shards.
            reason: Why it was lost.
            shards: Number of all of them.
            images: Their images.
            waiting: Labelled images that are not published, because they share a table file with these images.
        """
        others = (
            "" if shards == 1 else ", and so was 1 other" if shards == 2 else f", and so were {shards - 1:,} others"
        )
        neighbours = f" {waiting:,} labelled images of the same table files are not published yet." if waiting else ""
        self.what = f"shard {shard} of run {run_id} was lost {MOST_PASSES} times{others} ({reason})."
        super().__init__(
            f"{self.what} {images:,} image{' is' if images == 1 else 's are'} not labelled.{neighbours} All other "
            "images are published; run the same command again to retry."
        )
        self.run_id, self.shard, self.reason = run_id, shard, reason
        self.shards, self.images, self.waiting = shards, images, waiting

    def __add__(self, later: "ShardsLost") -> "ShardsLost":
        """Return one error for the losses of both."""
        return ShardsLost(
            self.run_id,
            self.shard,
            self.reason,
            shards=self.shards + later.shards,
            images=self.images + later.images,
            waiting=self.waiting + later.waiting,
        )


def label_segments(
    table: Store,
    run: Run,
    segments: Sequence[PlannedSegment],
    runner: ShardRunner,
    *,
    on_report: Callable[[ShardReport], None],
    publisher: Executor,
    threads: int = THREADS,
    is_to_stop: Callable[[], bool] = lambda: False,
    has_labelled: bool = False,
) -> bool:
    """Label the missing shards of some segments, and publish each segment when its last part is committed.

    Shards that were lost with their process are labelled again, `MOST_PASSES` times in all. The store decides which
    shards are missing, not memory. Returns whether all segments are published; False only after `is_to_stop`.

    Args:
        table: The table with its parts.
        run: The run.
        segments: The planned segments.
        runner: Labels and commits shards.
        on_report: Called for every shard that this call labelled.
        publisher: Publishes files; it is not shut down.
        threads: Parts to read concurrently.
        is_to_stop: Whether to stop; `runner` then ends after the shards in progress.
        has_labelled: Whether this start has labelled a shard before, so that a loss does not concern every shard.

    Raises:
        ShardsLost: some shards were lost every time; the others are labelled.
        RayDetrError: the environment failed, or the first shards were all lost in the same way.
        StoreError: the table's store refused.
    """
    by_index = {segment.index: segment for segment in segments}
    missing: list[int] = []
    left: dict[int, set[int]] = {}
    losses = _Losses(has_labelled=has_labelled)
    for turn in range(MOST_PASSES + 1):
        # a process may have died after its commit and before its report: ask the store
        done = read_done(table, run.run_id, run.layout)
        missing = missing_shards(segments, done)
        losses.committed = sum(len(segment.shards) for segment in segments) - len(missing)
        left = {segment.index: set(done.missing_shards(segment)) for segment in segments}
        ready = [by_index[index] for index, shards in left.items() if not shards and index not in done.published]
        published = [publisher.submit(publish_group, table, run, segment, threads=threads) for segment in ready]
        # the last pass labels nothing and only looks for parts without a report
        labels = missing and turn < MOST_PASSES and not is_to_stop()
        # close the generator even after an error: the traceback would keep the actors alive
        with closing(runner.label(run, missing, isolated=turn > 0)) if labels else nullcontext(()) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    raise RayDetrError(f"{_ended(outcome.message)} Run the same command again to resume.")
                if isinstance(outcome, Lost):
                    losses.add(outcome)
                if not isinstance(outcome, ShardReport):
                    continue
                losses.has_labelled = True
                index = outcome.shard // SEGMENT_SHARDS
                left[index].discard(outcome.shard)
                if not left[index]:
                    published.append(publisher.submit(publish_group, table, run, by_index[index], threads=threads))
                on_report(outcome)
                for future in published:
                    if future.done():
                        future.result()  # raises if publishing failed: do not label a sealed run to its end
        for future in published:
            future.result()
        if not any(left.values()):
            return True
        if is_to_stop():
            return False
    unlabelled = dict(_images_of(segments, missing))
    raise ShardsLost(
        run.run_id,
        missing[0],
        losses.reasons.get(missing[0], _DIED),
        shards=len(missing),
        images=sum(unlabelled.values()),
        waiting=sum(segment.images for segment in segments if left[segment.index]) - sum(unlabelled.values()),
    )


@contextmanager
def publishing() -> Iterator[ThreadPoolExecutor]:
    """Provide a thread that publishes files; when the run stops, only the file in progress is finished."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="publish")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


@dataclass
class _Losses:
    """Why shards were lost, and whether that concerns every shard.

    Attributes:
        has_labelled: Whether this start has labelled a shard.
        committed: Shards of the segments with a part.
        reasons: The last reason by shard.
    """

    has_labelled: bool
    committed: int = 0
    reasons: dict[int, str] = field(default_factory=dict)
    _alike: dict[str, set[int | None]] = field(default_factory=lambda: defaultdict(set))

    def add(self, lost: Lost) -> None:
        """Add a loss.

        Raises:
            RayDetrError: this start has only lost shards, in the same way, and more than are committed.
        """
        if lost.shard is not None:
            self.reasons[lost.shard] = lost.reason if lost.image is None else f"{lost.reason}; image {lost.image}"
        alike = self._alike[re.sub(r"\d+", "0", lost.reason)]  # sizes and addresses differ
        if not alike:
            logging.getLogger(__name__).warning("a shard was lost: %s", lost.reason)  # once for each failure
        alike.add(lost.shard)
        if not self.has_labelled and len(alike) >= max(MOST_ALIKE, self.committed + 1):
            raise RayDetrError(
                f"{_ended(lost.reason)} {len(alike):,} shards were lost in this way, and none was labelled. Run the "
                "same command again to resume."
            )


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _images_of(segments: Sequence[PlannedSegment], shards: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield each of these shards with its number of images."""
    wanted = set(shards)
    for segment in segments:
        for shard, images in zip(segment.shards, segment.shard_images, strict=True):
            if shard in wanted:
                yield shard, images


def missing_shards(segments: Sequence[PlannedSegment], done: Done) -> list[int]:
    """Return the shards without a part, in order."""
    return [shard for segment in segments for shard in done.missing_shards(segment)]
