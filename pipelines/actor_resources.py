"""Number and resources of actors on the connected Ray cluster, and waiting until they fit."""

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from pipelines.cluster import node_resources
from pipelines.errors import RayDetrError

NODE_POLL_SECONDS = 1.0
MOST_ACTORS_PER_CPU_NODE = 8  # each loads the model; with more cores, each actor gets several


@dataclass(frozen=True, slots=True)
class Pool:
    """The number of actors, and the resources of each."""

    least: int
    most: int
    cpus: float
    gpus: float
    threads: int  # threads for decoding, and for the network without a GPU


@dataclass(frozen=True, slots=True)
class ActorShare:
    """Resources of each actor; None: 1 CPU and 1 GPU, or an eighth of a node's cores."""

    cpus: float | None = None
    gpus: float | None = None


def choose_pool(
    nodes: Sequence[Mapping[str, float]],
    least: int | None,
    most: int | None,
    *,
    device: str,
    own: ActorShare = ActorShare(),
) -> Pool:
    """Return the actors for a cluster: one per GPU if it has GPUs, else one per core up to eight per node.

    Args:
        nodes: the resources of each node, as returned by `node_resources`.
        least: actors that must run; None is 1.
        most: largest number of actors; may exceed the current cluster, which may grow; None is what fits now.
        device: "cpu" does not use GPUs; "cuda" requires GPUs; "auto" uses GPUs if there are any.
        own: resources of each actor, if given.

    Raises:
        RayDetrError: the cluster cannot hold `least` actors, or has no GPU although GPUs are required.
    """
    gpu_count = int(sum(node.get("GPU", 0) for node in nodes))
    if device.startswith("cuda") and not gpu_count:
        raise RayDetrError(f"device {device} was requested, but no node of the cluster has a GPU: {_figures(nodes)}.")
    cpus, gpus = _actor_needs(nodes, device=device, own=own)
    if gpus and own.cpus is None:
        per_gpu = min(node.get("CPU", 1) / node["GPU"] for node in nodes if node.get("GPU"))
        threads = max(1, int(per_gpu * min(1.0, gpus)))
    else:
        threads = int(cpus)
    room = _room(nodes, cpus, gpus)
    wanted = least or 1
    if wanted > room:
        needs = f"{gpus:g} GPU and {cpus:g} CPU" if gpus else f"{cpus:g} CPU"
        raise RayDetrError(
            f"{wanted} actor{'s do' if wanted > 1 else ' does'} not fit: each needs {needs}, and the cluster has room "
            f"for {room} ({_figures(nodes)}). "
            + (f"Ask for {room} at most with --actors, or add nodes." if room else "Add nodes.")
        )
    return Pool(least=wanted, most=max(wanted, most or room), cpus=cpus, gpus=gpus, threads=threads)


def _actor_needs(nodes: Sequence[Mapping[str, float]], *, device: str, own: ActorShare) -> tuple[float, float]:
    """Return the CPUs and GPUs of an actor on a cluster of such nodes."""
    if device.startswith("cuda") or (device != "cpu" and int(sum(node.get("GPU", 0) for node in nodes))):
        return own.cpus or 1.0, own.gpus or 1.0
    if own.cpus is not None:
        return own.cpus, 0.0
    largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    return float(max(1, math.ceil(largest / MOST_ACTORS_PER_CPU_NODE))), 0.0


def wait_for_pool(
    least: int | None,
    most: int | None,
    *,
    device: str,
    minutes: float,
    on_wait: Callable[[], object],
    own: ActorShare = ActorShare(),
    is_given_up: threading.Event | None = None,
) -> Pool:
    """Return the actors for the connected cluster, after requesting nodes from its autoscaler and waiting for them.

    Args:
        least: as in `choose_pool`.
        most: as in `choose_pool`.
        device: as in `choose_pool`.
        own: as in `choose_pool`.
        minutes: how long to wait for nodes; 0 uses the current cluster.
        on_wait: called once, when waiting begins.
        is_given_up: stops waiting when set.

    Raises:
        RayDetrError: the cluster cannot hold `least` actors after that time, or waiting was stopped.
    """
    try:
        return choose_pool(node_resources(), least, most, device=device, own=own)
    except RayDetrError:
        if not minutes:
            raise
    given_up = is_given_up or threading.Event()
    asked = _ask_for_nodes(least, device=device, own=own)
    try:
        on_wait()
        deadline = time.monotonic() + 60 * minutes
        while True:
            try:
                return choose_pool(node_resources(), least, most, device=device, own=own)
            except RayDetrError as too_small:
                if time.monotonic() > deadline:
                    raise RayDetrError(
                        f"{too_small} The cluster did not grow within {minutes:g} minutes (--node-minutes)."
                    ) from too_small
            asked = _ask_for_nodes(least, device=device, own=own, asked=asked)
            if given_up.wait(NODE_POLL_SECONDS):
                raise RayDetrError("the wait for nodes was cancelled.")
    finally:
        request_resources(bundles=[])  # else it keeps the nodes forever; actors hold them now


def _ask_for_nodes(
    least: int | None, *, device: str, own: ActorShare, asked: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Request room for this many actors from the autoscaler, if not yet requested; return an actor's resources.

    The request includes the resources that the cluster already has: a smaller one would not let it grow. A new node may
    be larger, or the first with a GPU; then actors take more.
    """
    cpus, gpus = needs = _actor_needs(node_resources(), device=device, own=own)
    if needs != asked:
        bundle = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
        request_resources(bundles=[dict(bundle) for _ in range(least or 1)])
    return needs


def room_sentence(pool: Pool) -> str:
    """Return a sentence with the number of actors that fit into the connected cluster now, for when none finishes."""
    nodes = node_resources()
    return f"the cluster has room for {_room(nodes, pool.cpus, pool.gpus)} actors ({_figures(nodes)})"


def count_nodes_for(cpus: float, gpus: float, *, most: int) -> int | None:
    """Return how many nodes of the connected cluster can hold an actor with these resources, at most one per actor.

    None if the head does not answer.
    """
    try:
        return min(most, sum(_room([node], cpus, gpus) > 0 for node in node_resources()))
    except (RayError, RuntimeError):
        return None


def count_nodes_while_waiting(most: int | None, *, device: str, own: ActorShare) -> int | None:
    """Return the same before a pool is chosen, for actors with the resources that they would get on the current nodes.

    Args:
        most: as in `choose_pool`.
        device: as in `choose_pool`.
        own: as in `choose_pool`.
    """
    try:
        cpus, gpus = _actor_needs(node_resources(), device=device, own=own)
    except (RayError, RuntimeError):
        return None
    return count_nodes_for(cpus, gpus, most=sys.maxsize if most is None else most)


def _room(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    by_node = (min(node.get("CPU", 0) // cpus, _room_on_gpus(node.get("GPU", 0), gpus)) for node in nodes)
    return int(sum(by_node))


def _room_on_gpus(count: float, gpus: float) -> float:
    """Return how many actors fit on a node's GPUs: Ray gives shares below 1 of one GPU each, else whole GPUs."""
    if not gpus:
        return math.inf
    return int(count) * math.floor(1 / gpus + 1e-9) if gpus < 1 else count // gpus


def _figures(nodes: Sequence[Mapping[str, float]]) -> str:
    cpus, gpus = sum(node.get("CPU", 0) for node in nodes), sum(node.get("GPU", 0) for node in nodes)
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}, {cpus:g} CPU, {gpus:g} GPU"
