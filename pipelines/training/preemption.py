"""Reports a preemption notice of the cloud to Ray, so that training writes a checkpoint in time."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from typing import Final

import ray

from pipelines.clock import Clock, SystemClock
from pipelines.errors import RayDetrError
from pipelines.remote_errors import first_line
from pipelines.training.instance_metadata import MetadataService, MetadataUnavailable, Notice

logger = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 20.0  # for one attempt: it takes about 2 s, most of it for imports
DRAIN_TRIES: Final = 3
PAUSE_SECONDS: Final = 1.0


def wait_for_notice(service: MetadataService, *, poll_seconds: float, clock: Clock | None = None) -> Notice:
    """Wait for a preemption notice and return it.

    If the service does not answer, the request is repeated; a message says so once, and once when it answers again.

    Args:
        service: The metadata service.
        poll_seconds: Seconds between two requests; AWS recommends 5.
        clock: The clock.
    """
    clock = clock or SystemClock()
    is_away = False
    while True:
        try:
            notice = service.read_notice()
        except MetadataUnavailable as error:
            if not is_away:
                logger.warning("%s's metadata service does not answer; trying again: %s", service.cloud, error)
            is_away = True
        else:
            if is_away:
                logger.warning("%s's metadata service answers again", service.cloud)
            is_away = False
            if notice is not None:
                return notice
        clock.sleep(poll_seconds)


def own_node(address: str | None = None) -> tuple[str, str]:
    """Return the address of this machine's cluster, and the node id of the machine.

    Connects to Ray temporarily.

    Args:
        address: Address of the cluster; None means `RAY_ADDRESS`, or the Ray on this machine.

    Raises:
        RayDetrError: Ray is not running here.
    """
    try:
        ray.init(address=address or "auto", logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RayDetrError(
            f"this machine is not part of a Ray cluster ({first_line(error)}). Start this after `ray start`."
        ) from error
    try:
        context = ray.get_runtime_context()
        return context.gcs_address, context.get_node_id()
    finally:
        ray.shutdown()


def drain_command(address: str, node_id: str, notice: Notice) -> list[str]:
    """Return the command that drains a node: Ray schedules nothing on it any more, and notifies Ray Train of its end.

    It is `ray drain-node`, a hidden command of Ray 2.60 without guaranteed stability.
    """
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node",
        "--address", address,
        "--node-id", node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", notice.reason,
    ]  # fmt: skip
    if notice.seconds is not None:
        command += ["--deadline-remaining-seconds", str(math.floor(notice.seconds))]
    return command


def drain(address: str, node_id: str, notice: Notice, *, clock: Clock | None = None) -> None:
    """Drain a node.

    Raises:
        RayDetrError: Ray did not accept the request.
    """
    clock = clock or SystemClock()
    command = drain_command(address, node_id, notice)
    said = ""
    for attempt in range(DRAIN_TRIES):
        if attempt:
            clock.sleep(PAUSE_SECONDS)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DRAIN_SECONDS, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            said = f"no answer for {DRAIN_SECONDS:g} s"
            continue
        if done.returncode == 0:
            return
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
    raise RayDetrError(f"Ray did not drain node {node_id} ({said}). Its tasks will be lost with the machine.")
