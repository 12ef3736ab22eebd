"""Writes shards in Ray tasks. No other module of sharding depends on Ray's scheduling."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Final

import ray
from ray.exceptions import RayError, RaySystemError, RayTaskError

from pipelines.cluster import node_resources
from pipelines.coco.text import CocoText
from pipelines.errors import RayDetrError
from pipelines.remote_errors import first_line
from pipelines.shards.plan import ShardPlan, shard_key
from pipelines.shards.writer import ShardSpec, WrittenShard, keep_shard, shard_work, write_shard
from pipelines.store import StoreError

ATTEMPTS: Final = 3  # for a shard whose process dies
NOT_IMPORTED: Final = "The remote function failed to import on the worker."  # Ray 2.60's message of a RuntimeError


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a shard was not written. After the loss of its process, it may succeed in another one."""

    sentence: str
    is_loss: bool


def write_by_tasks(
    spec: ShardSpec, coco: CocoText, plan: ShardPlan, there: Set[str], *, memory: int
) -> Iterator[WrittenShard]:
    """Yield shards as they are written, in any order. A few more tasks than run at once are submitted.

    Args:
        spec: what all shards have in common.
        coco: the json.
        plan: the images of each shard.
        there: keys of shards that earlier attempts have written.
        memory: bytes that each task reserves.

    Raises:
        RayDetrError: writing a shard failed, or no node has enough memory for a task.
    """
    # without Ray's retries: they would repeat a task without end that exceeds the node's memory
    answer = ray.remote(num_cpus=1, memory=memory, max_retries=0)(_answer)
    window = _tasks_at_once(memory) + 2
    to_do = deque((number, 1) for number in range(len(plan.shards)))
    under_way: dict[ray.ObjectRef[WrittenShard | _Failure], tuple[int, int]] = {}
    try:
        while to_do or under_way:
            while to_do and len(under_way) < window:
                number, attempt = to_do.popleft()
                task = (
                    answer.remote(keep_shard, spec, number)
                    if shard_key(number) in there
                    else answer.remote(write_shard, spec, shard_work(coco, plan, number))
                )
                under_way[task] = (number, attempt)
            done, _ = ray.wait(list(under_way))
            number, attempt = under_way.pop(done[0])
            outcome = _outcome(done[0])
            if isinstance(outcome, WrittenShard):
                yield outcome
            elif not outcome.is_loss:
                raise RayDetrError(outcome.sentence)
            elif attempt == ATTEMPTS:
                raise RayDetrError(
                    f"the process that wrote {shard_key(number)} was lost {ATTEMPTS} times ({outcome.sentence}). Its "
                    f"images are {_names(coco, plan, number)}. Smaller shards need less memory: --shard-megabytes, "
                    "with an empty folder for them."
                )
            else:
                to_do.append((number, attempt + 1))
    finally:
        for task in under_way:
            ray.cancel(task)


def _answer(write: Callable[..., WrittenShard], *arguments: object) -> WrittenShard | _Failure:
    """Write or read a shard; errors of the environment are returned, because Ray prints exceptions."""
    try:
        return write(*arguments)
    except (RayDetrError, StoreError) as error:
        return _Failure(str(error), is_loss=False)
    except MemoryError:
        return _Failure("not enough memory", is_loss=True)


def _outcome(task: ray.ObjectRef[WrittenShard | _Failure]) -> WrittenShard | _Failure:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if not _is_of_packages(error):
            raise  # a bug, with its traceback
        reason = str(error).strip().splitlines()[-1].strip()  # the error itself, below the remote traceback
        return _Failure(
            f"the cluster's nodes cannot run this version of ray-detr ({reason}). Install the same package on every "
            "node, or submit with --working-dir.",
            is_loss=False,
        )
    except RayError as error:
        return _Failure(first_line(error), is_loss=True)


def _is_of_packages(error: RayTaskError) -> bool:
    """Return whether a node lacks a module or name that this machine has."""
    cause = error.cause
    if isinstance(cause, RaySystemError):  # an argument could not be deserialised
        return isinstance(cause.client_exc, ImportError | AttributeError)
    return isinstance(cause, ImportError) or (isinstance(cause, RuntimeError) and str(cause).startswith(NOT_IMPORTED))


def _tasks_at_once(memory: int) -> int:
    nodes = node_resources()
    room = sum(int(min(node.get("CPU", 0), node.get("memory", 0) // memory)) for node in nodes)
    if not room:
        largest = max((node.get("memory", 0) for node in nodes if node.get("CPU", 0) >= 1), default=0)
        raise RayDetrError(
            f"writing a shard needs a CPU and {memory / 1e9:.1f} GB of memory, but no node of the cluster has that "
            f"much: the largest has {largest / 1e9:.1f} GB for tasks. Use a smaller --shard-megabytes, or larger nodes."
        )
    return room


def _names(coco: CocoText, plan: ShardPlan, number: int) -> str:
    positions = plan.shards[number][0]
    first, last = (json.loads(coco.image(int(positions[index])))["file_name"] for index in (0, -1))
    return f"{first} to {last}"
