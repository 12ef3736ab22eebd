"""Labelling and publishing segments of a plan, whatever dies meanwhile. Knows no Ray: what labels shards is given."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext

from pipelines.errors import RayDetrError
from pipelines.labelling.manifest import SEGMENT_SHARDS, PlannedSegment
from pipelines.labelling.outcome import Failed, Lost, Outcome, ShardReport
from pipelines.labelling.publish import THREADS, Done, publish_group, read_done
from pipelines.labelling.run import Run
from pipelines.store import Store

MOST_PASSES = 3  # times that a shard is run that is lost each time


ShardLabeler = Callable[[Sequence[int], bool], Generator[Outcome, None, None]]
"""Labels shards by number, isolated or not, and yields their outcomes in any order, none of one whose process died."""


def label_segments(
    table: Store,
    run: Run,
    segments: Sequence[PlannedSegment],
    *,
    label_shards: ShardLabeler,
    on_report: Callable[[ShardReport], None],
    publisher: Executor,
    threads: int = THREADS,
    is_to_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Label what is missing of some segments, and publish each when its last part is there.

    Shards that were lost with their process are run again, a few times; the store decides what is missing, not memory.
    Returns whether all segments are published; False only if `is_to_stop`.

    Args:
        table: Where parts and table files are.
        run: The run.
        segments: As planned.
        label_shards: Labels and commits.
        on_report: Called for every shard that this call labelled.
        publisher: What files are published in; it is not shut down.
        threads: How many parts are read at once.
        is_to_stop: Whether nothing more is to be labelled; `label_shards` then ends after the shards in progress.

    Raises:
        RayDetrError: a system failure, or a shard that is lost every time.
        StoreError: the table's store refused.
    """
    by_index = {segment.index: segment for segment in segments}
    missing: list[int] = []
    loss = "its process died; Ray's logs may show why, such as an image that kills it or too little memory"
    for turn in range(MOST_PASSES + 1):
        # a process may have died between its commit and its report: the store decides what is there
        done = read_done(table, run.run_id, run.layout)
        missing = missing_shards(segments, done)
        left = {segment.index: set(done.missing_shards(segment)) for segment in segments}
        ready = [by_index[index] for index, shards in left.items() if not shards and index not in done.published]
        published = [publisher.submit(publish_group, table, run, segment, threads=threads) for segment in ready]
        # the last look runs nothing: a process may have died between its commit and its report
        labels = missing and turn < MOST_PASSES and not is_to_stop()
        # closed at once, whatever is raised: an error that is kept would keep the actors
        with closing(label_shards(missing, turn > 0)) if labels else nullcontext(()) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    raise RayDetrError(f"{outcome.message} Run the same command again to resume.")
                if isinstance(outcome, Lost):
                    loss = outcome.reason
                if not isinstance(outcome, ShardReport):
                    continue
                index = outcome.shard // SEGMENT_SHARDS
                left[index].discard(outcome.shard)
                if not left[index]:
                    published.append(publisher.submit(publish_group, table, run, by_index[index], threads=threads))
                on_report(outcome)
                for future in published:
                    if future.done():
                        future.result()  # raises what stopped it: a sealed run is not labelled to its end
        for future in published:
            future.result()
        if not any(left.values()):
            return True
        if is_to_stop():
            return False
    others = f", and so were {len(missing) - 1:,} others" if len(missing) > 1 else ""
    raise RayDetrError(
        f"shard {missing[0]} of run {run.run_id} was lost {MOST_PASSES} times{others} ({loss}). "
        "All other images are labelled; run the same command again to retry."
    )


@contextmanager
def publishing() -> Iterator[ThreadPoolExecutor]:
    """Give a thread to publish with; whatever stops the run, Ctrl-C too, waits for the file in progress only."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="publish")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def missing_shards(segments: Sequence[PlannedSegment], done: Done) -> list[int]:
    """Return the shards that are still to be labelled, in order."""
    return [shard for segment in segments for shard in done.missing_shards(segment)]
