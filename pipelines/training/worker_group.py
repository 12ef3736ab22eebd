"""The number of workers, and the resources of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.errors import RayDetrError


@dataclass(frozen=True, slots=True)
class Group:
    """The number of workers, and the resources of each."""

    least: int
    most: int
    resources: Mapping[str, float]
    threads: int
    idle: int = 0  # workers that fit or were requested, beyond those that have work

    @property
    def uses_gpu(self) -> bool:
        """Whether each worker has a GPU."""
        return self.resources.get("GPU", 0) > 0


def choose_group(
    nodes: Sequence[Mapping[str, float]],
    least: int | None,
    most: int | None,
    *,
    device: str,
    micro_batches: int,
    threads: int | None,
) -> Group:
    """Return the workers for a cluster: one for each GPU, or one for each core without GPUs.

    Args:
        nodes: resources of each node, from `node_resources`.
        least: smallest number of workers; None means 1.
        most: largest number of workers, which may be more than fit now; None means as many as fit.
        device: "cpu" does not use GPUs; "cuda" requires GPUs; "auto" uses GPUs if there are any.
        micro_batches: micro-batches of a step, which limit the number of workers.
        threads: threads of each worker that decode and augment; None means the worker's CPUs.

    Raises:
        RayDetrError: the cluster cannot hold `least` workers, or a step has fewer micro-batches.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and not gpus:
        raise RayDetrError("device cuda was requested, but no node of the cluster has a GPU.")
    if gpus and device != "cpu":
        cpus = max(1, int(min(node.get("CPU", 1) // node["GPU"] for node in nodes if node.get("GPU"))))
        resources = {"CPU": float(cpus), "GPU": 1.0}
        room = sum(int(min(node.get("GPU", 0), node.get("CPU", 0) // cpus)) for node in nodes)
    else:
        cpus = 1
        resources = {"CPU": 1.0}
        room = sum(int(node.get("CPU", 0)) for node in nodes)
    wanted = least or 1
    if wanted > micro_batches:
        raise RayDetrError(
            f"{wanted} workers are too many for a step of {micro_batches} micro-batches: "
            "raise --effective-batch, or lower --batch-size or --num-workers."
        )
    if wanted > room:
        raise RayDetrError(
            f"{wanted} workers do not fit: each needs {'1 GPU' if 'GPU' in resources else '1 CPU'}, and the cluster "
            f"has room for {room}. Ask for {room} at most with --num-workers, or add nodes."
        )
    possible = max(wanted, most or room)
    of_use = min(possible, micro_batches)
    return Group(wanted, of_use, resources, threads or cpus, idle=possible - of_use)
