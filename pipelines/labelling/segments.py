"""Labels and publishes segments of a plan, even if processes die meanwhile. Independent of Ray."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext

from pipelines.errors import RayDetrError
from pipelines.labelling.job import ShardRunner
from pipelines.labelling.manifest import SEGMENT_SHARDS, PlannedSegment
from pipelines.labelling.outcome import Failed, Lost, ShardReport
from pipelines.labelling.publish import THREADS, Done, publish_group, read_done
from pipelines.labelling.run import Run
from pipelines.store import Store

MOST_PASSES = 3  # attempts for a shard that is lost each time


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

    Raises:
        RayDetrError: the environment failed, or a shard was lost every time.
        StoreError: the table's store refused.
    """
    by_index = {segment.index: segment for segment in segments}
    missing: list[int] = []
    loss = "its process died; Ray's logs may show why, such as an image that kills it or too little memory"
    for turn in range(MOST_PASSES + 1):
        # a process may have died after its commit and before its report: ask the store
        done = read_done(table, run.run_id, run.layout)
        missing = missing_shards(segments, done)
        left = {segment.index: set(done.missing_shards(segment)) for segment in segments}
        ready = [by_index[index] for index, shards in left.items() if not shards and index not in done.published]
        published = [publisher.submit(publish_group, table, run, segment, threads=threads) for segment in ready]
        # the last pass labels nothing and only looks for parts without a report
        labels = missing and turn < MOST_PASSES and not is_to_stop()
        # close the generator even after an error: the traceback would keep the actors alive
        with closing(runner.label(run, missing, isolated=turn > 0)) if labels else nullcontext(()) as outcomes:
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
                        future.result()  # raises if publishing failed: do not label a sealed run to its end
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
    """Provide a thread that publishes files; when the run stops, only the file in progress is finished."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="publish")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def missing_shards(segments: Sequence[PlannedSegment], done: Done) -> list[int]:
    """Return the shards without a part, in order."""
    return [shard for segment in segments for shard in done.missing_shards(segment)]
