"""Start a local Ray for this process on loopback, and retry if a busy machine prevents the start."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.node import Node

LOOPBACK = "127.0.0.1"
START_SECONDS = 300.0  # for a local Ray to start on a busy machine; Ray itself gives up after 30
ASK_SECONDS = 0.2  # between two checks whether it has started
MOST_STARTS = 5


class RayletEnded(ConnectionError):
    """The raylet ended while Ray was starting."""


def start_local_ray(*, log_to_driver: bool = True, **options: Any) -> None:
    """Start a Ray on loopback and connect to it; it ends with `ray.shutdown`.

    The autoscaler's monitor and the API server, which a Ray without a dashboard starts too, are left out, and so is the
    log monitor unless it is needed: on one machine they are not used, and they took a third of the CPU time of a start
    (docs/measurements/labelling.md).

    On a busy machine it may take `START_SECONDS`. Ray 2.60 waits 30 s for its node to register, and its raylet aborts
    if the agents that it starts are not there after 15 s (ray-project/ray issue 65983); neither can be configured. This
    function waits for the node as long as its raylet runs, and starts Ray again if the raylet has ended, `MOST_STARTS`
    times in total.

    Args:
        log_to_driver: print what workers print.
        options: further arguments of `ray.init`.

    Raises:
        RayletEnded: the raylet of the last start has ended.
        Exception: the error of `ray.init`; a bare `Exception` if the node does not register in time.
    """
    deadline = time.monotonic() + START_SECONDS
    for start in range(1, MOST_STARTS + 1):
        try:
            with on_loopback(), _without_services(log_monitor=log_to_driver), _waited_for(deadline):
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=log_to_driver,
                    _node_ip_address=LOOPBACK,
                    **options,
                )
        except RayletEnded:
            if start == MOST_STARTS or time.monotonic() >= deadline:
                raise
        else:
            return


@contextmanager
def _waited_for(deadline: float) -> Iterator[None]:
    """Let a node of `ray.init` register until a deadline, and end its processes if its raylet ends."""
    get_node, start = services.get_node, Node.start_ray_processes
    nodes: list[Node] = []

    def start_and_remember(node: Node) -> None:
        nodes.append(node)
        start(node)  # type: ignore[no-untyped-call]

    def get_node_in_time(*arguments: object) -> object:
        while True:
            try:
                return get_node(*arguments)  # type: ignore[no-untyped-call]
            except RuntimeError:  # not registered yet
                _check_raylet(nodes)
                time.sleep(ASK_SECONDS)
                if time.monotonic() >= deadline:
                    raise

    try:
        with (
            _replaced(services, get_node=get_node_in_time),
            _replaced(Node, start_ray_processes=start_and_remember),
        ):
            yield
    except RayletEnded:
        nodes[-1].kill_all_processes(check_alive=False, wait=True)  # otherwise they run as long as this process
        raise


def _without_services(*, log_monitor: bool) -> AbstractContextManager[None]:
    """Make `ray.init` start a node without the autoscaler's monitor, the API server and the log monitor."""
    names = ("start_monitor", "start_api_server") + (() if log_monitor else ("start_log_monitor",))
    return _replaced(Node, **dict.fromkeys(names, lambda _node, **_options: None))


@contextmanager
def _replaced(owner: object, **replacements: object) -> Iterator[None]:
    originals = {name: getattr(owner, name) for name in replacements}
    try:
        for name, replacement in replacements.items():
            setattr(owner, name, replacement)
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def _check_raylet(nodes: list[Node]) -> None:
    """Raise `RayletEnded` if the raylet of the newest node has ended."""
    for info in nodes[-1].all_processes.get(ray_constants.PROCESS_TYPE_RAYLET, []) if nodes else []:
        code = info.process.poll()
        if code is not None:
            log = f"{nodes[-1].get_logs_dir_path()}/raylet.err"  # type: ignore[no-untyped-call]
            raise RayletEnded(f"its raylet ended with code {code}, see {log}.")


@contextmanager
def on_loopback() -> Iterator[None]:
    """Make Ray accept loopback as the given address.

    Ray 2.60 replaces a node's address 127.0.0.1 by the machine's external one, and then raylet, GCS, agents and workers
    listen on all interfaces (measured). It does not on systems on which it does not support clusters.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    enabled, said = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"  # the latter for the processes that Ray starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if said is None:
            del os.environ[name]
        else:
            os.environ[name] = said
