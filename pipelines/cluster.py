"""The Ray cluster that a run uses: an existing one, or a local one that is quiet and private."""

import ctypes
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import ray.data
from ray._private import ray_constants, services
from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, its annotations lack it
from ray.autoscaler.sdk import request_resources
from ray.data import DataContext
from ray.exceptions import AuthenticationError, RayError

from pipelines.errors import RayDetrError
from pipelines.store.uris import LOCAL_ROOT, split_uri

# of Python's C interface: signal.signal works in the main thread only
_get_action = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(("PyOS_getsig", ctypes.pythonapi))
_set_action = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(("PyOS_setsig", ctypes.pythonapi))

OBJECT_STORE_BYTES = 200 * 1024**2  # status rows of a kilobyte are all that travels
LOOPBACK = "127.0.0.1"
ANSWER_SECONDS = 10.0  # for a cluster to accept a connection
START_SECONDS = 300.0  # for a local Ray to start on a busy machine; Ray itself gives up after 30
ASK_SECONDS = 0.2  # between two questions whether it has started
NODE_POLL_SECONDS = 1.0
MOST_ACTORS_PER_CPU_NODE = 8  # each holds the model; above that an actor gets several cores instead


@dataclass(frozen=True, slots=True)
class Pool:
    """How many actors run, and what each of them takes of the cluster."""

    least: int
    most: int
    cpus: float
    gpus: float
    threads: int  # that an actor decodes with, and computes with where it has no GPU


@dataclass(frozen=True, slots=True)
class ActorShare:
    """What each actor takes of its node; None: 1 CPU and 1 GPU, or cores so that eight actors fill a node."""

    cpus: float | None = None
    gpus: float | None = None


@contextmanager
def connected(*, verbose: bool = False) -> Iterator[None]:
    """Hold a connection to Ray: the one that is there, that of `RAY_ADDRESS`, or a local one that ends with this.

    A local Ray listens on loopback only and says nothing unless `verbose`. Other users of the machine reach loopback,
    too, and whoever reaches Ray runs code as this user: where the environment does not say `RAY_AUTH_MODE`, it is
    "token" from then on, with a token of this process that is written into no file. A token left by another cluster is
    not sent.

    Args:
        verbose: whether Ray's own messages and the actors' output come through.

    Raises:
        RayDetrError: no Ray answers at `RAY_ADDRESS`, or the local one does not start.
    """
    _quiet(verbose=verbose)
    if ray.is_initialized():
        yield
        return
    with _own_sigterm():
        _connect(verbose=verbose)
    try:
        yield
    finally:
        with _own_sigterm():
            ray.shutdown()


def _connect(*, verbose: bool) -> None:
    level = logging.INFO if verbose else logging.ERROR
    if not verbose:
        logging.getLogger("ray").setLevel(level)  # it warns of the thread that it is started in before it takes `level`
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
        try:
            ray.init(address=address, logging_level=level, log_to_driver=verbose)
        except AuthenticationError as error:
            raise RayDetrError(_token_sentence(error)) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RayDetrError(
                f"no Ray cluster answers at {address} ({first_line(error)}). "
                "Start it, or unset RAY_ADDRESS for a local one."
            ) from error
    else:
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            Config.initialize("")  # what Ray read of the environment when it was imported, it reads again
        # Ray's own is 15: beside busy processes of others its workers get one part in thirty of what is theirs
        os.environ.setdefault("RAY_worker_niceness", "0")
        try:
            with on_loopback(), _patiently(START_SECONDS):
                ray.init(
                    address="local",
                    logging_level=level,
                    log_to_driver=verbose,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _node_ip_address=LOOPBACK,
                    _temp_dir=_temporary_folder(),
                )
        except AuthenticationError as error:
            raise RayDetrError(_token_sentence(error)) from error
        except Exception as error:
            # Ray 2.60 raises a bare `Exception` where its node does not register in time
            if not isinstance(error, ConnectionError | RuntimeError | OSError) and type(error) is not Exception:
                raise
            raise RayDetrError(
                f"a local Ray could not be started: {first_line(error)} Run the same command again when the machine is "
                "less busy; `--verbose` shows Ray's messages."
            ) from error


def _token_sentence(error: AuthenticationError) -> str:
    """Return what is wrong with the token that processes of a cluster show each other, and what to do."""
    reason = first_line(error).partition(" Ensure that ")[0].removesuffix(".")
    mode = os.environ.get("RAY_AUTH_MODE")
    return (
        f"Ray's token is missing or not that of the cluster ({reason}). RAY_AUTH_MODE is {mode}: "
        "set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token, as docs/security.md says."
    )


@contextmanager
def _patiently(seconds: float) -> Iterator[None]:
    """Let a node that `ray.init` starts take so long to register with its head: Ray 2.60 has 30 s written down.

    It asks again and again whether the node is there, so an answer may wait.
    """
    get_node = services.get_node

    def get_node_in_time(*arguments: object) -> object:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return get_node(*arguments)  # type: ignore[no-untyped-call]
            except RuntimeError:  # not registered yet
                if time.monotonic() >= deadline:
                    raise
            time.sleep(ASK_SECONDS)

    services.get_node = get_node_in_time
    try:
        yield
    finally:
        services.get_node = get_node


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Have SIGTERM mean afterwards what it meant before, whatever Ray does inside (2.60, its C++ parts).

    `ray.init` has it print a stack and abort the process after three seconds, in which nobody gets rid of a pool of
    actors on a busy machine; after `ray.shutdown` it ends the process at once, and nothing is given up any more.
    """
    is_ours = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handler
    before, action = signal.getsignal(signal.SIGTERM), _get_action(signal.SIGTERM)
    try:
        yield
    finally:
        # what the C++ parts have put in place of Python's own function, from any thread
        _set_action(signal.SIGTERM, action)
        if is_ours and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what Ray itself writes to this process's standard output and error off the terminal; its log files have it.

    Python's logging settings reach neither the lines of its C++ parts, such as the one that every pool with restarts
    begins with (ray-project/ray issue 53727), nor the raylet's warnings, which go to standard output, where a result is
    expected. Whoever shows progress meanwhile needs a descriptor of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with Path(os.devnull).open("w") as nowhere:
        for number in kept:
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, old in kept.items():
            os.dup2(old, number)
            os.close(old)


def node_resources() -> list[dict[str, float]]:
    """Return what each living node of the connected cluster has, by Ray's names: `CPU`, `GPU` ..."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def is_given() -> bool:
    """Return whether `connected` takes a cluster that is there, which may have several machines."""
    return ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))


def hosts() -> set[str]:
    """Return the addresses of the machines of the connected cluster: several nodes on one have the same."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def refuse_local(uris: Sequence[str], *, are_shared: bool) -> None:
    """Refuse folders of one machine's disk on a cluster of several: each would read and write its own.

    Args:
        uris: paths and URIs of what all machines read or write.
        are_shared: whether the user says that a local path is the same folder everywhere, as with NFS.

    Raises:
        RayDetrError: one of them is local, and there is more than one machine now.
    """
    local = [uri for uri in uris if split_uri(uri)[0] == LOCAL_ROOT]
    if are_shared or not local:
        return
    count = len(hosts())
    if count > 1:
        raise RayDetrError(
            f"{local[0]} is a local folder, and the cluster has {count} machines: each would use its own disk. Use an "
            "address of an object store, such as s3://bucket/folder, or --shared-folders if this path is the same "
            "folder on every machine."
        )


def choose_pool(
    nodes: Sequence[Mapping[str, float]],
    least: int | None,
    most: int | None,
    *,
    device: str,
    own: ActorShare = ActorShare(),
) -> Pool:
    """Return the actors for a cluster: one a GPU where there are GPUs, else one a core up to eight a node.

    Args:
        nodes: what each node has, as `node_resources` returns it.
        least: actors that must run; None is 1.
        most: actors that may run, though more than the cluster holds now: it may grow; None is what it holds.
        device: "cpu" keeps to CPUs though there are GPUs; "cuda" wants GPUs; "auto" takes what is there.
        own: what each actor takes, where that is said.

    Raises:
        RayDetrError: the cluster cannot hold `least` actors, or has no GPU where GPUs are wanted.
    """
    gpu_count = int(sum(node.get("GPU", 0) for node in nodes))
    if device.startswith("cuda") and not gpu_count:
        raise RayDetrError(f"device {device} was asked for, but no node of the cluster has a GPU: {_figures(nodes)}.")
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
    """Return the CPUs and the GPUs that an actor takes on a cluster of such nodes."""
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
    """Return the actors for the connected cluster, asking its autoscaler for nodes and waiting for them.

    Args:
        least: as in `choose_pool`.
        most: as in `choose_pool`.
        device: as in `choose_pool`.
        own: as in `choose_pool`.
        minutes: how long nodes are waited for; 0 takes the cluster as it is.
        on_wait: called once, when waiting begins.
        is_given_up: ends waiting when it is set.

    Raises:
        RayDetrError: the cluster cannot hold `least` actors after that time, or waiting was given up.
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
                        f"{too_small} It did not grow within {minutes:g} minutes (--node-minutes)."
                    ) from too_small
            asked = _ask_for_nodes(least, device=device, own=own, asked=asked)
            if given_up.wait(NODE_POLL_SECONDS):
                raise RayDetrError("waiting for nodes was given up.")
    finally:
        request_resources(bundles=[])  # the autoscaler would keep the nodes for ever; actors hold them from now on


def _ask_for_nodes(
    least: int | None, *, device: str, own: ActorShare, asked: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Ask the autoscaler for room for so many actors, unless it was asked for that; return what an actor needs.

    The request is for the whole cluster, what it holds already included: asked for less than actors take, it would
    not grow. A node that comes may be larger, or the first with a GPU, and then they take more.
    """
    cpus, gpus = needs = _actor_needs(node_resources(), device=device, own=own)
    if needs != asked:
        bundle = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
        request_resources(bundles=[dict(bundle) for _ in range(least or 1)])
    return needs


def room_sentence(pool: Pool) -> str:
    """Return for how many actors the connected cluster has room now: what to look at when none comes back."""
    nodes = node_resources()
    return f"the cluster has room for {_room(nodes, pool.cpus, pool.gpus)} actors ({_figures(nodes)})"


def count_nodes_for(cpus: float, gpus: float, *, most: int) -> int | None:
    """Return how many nodes of the connected cluster could hold an actor of such needs, at most one for each actor.

    None: the head does not answer.
    """
    try:
        return min(most, sum(_room([node], cpus, gpus) > 0 for node in node_resources()))
    except (RayError, RuntimeError):
        return None


def _room(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    by_node = (min(node.get("CPU", 0) // cpus, _room_on_gpus(node.get("GPU", 0), gpus)) for node in nodes)
    return int(sum(by_node))


def _room_on_gpus(count: float, gpus: float) -> float:
    """Return how many actors fit on a node's GPUs: Ray gives shares below 1 of one GPU each, else whole GPUs."""
    if not gpus:
        return math.inf
    return int(count) * math.floor(1 / gpus + 1e-9) if gpus < 1 else count // gpus


def _check_answers(address: str) -> None:
    """Try a connection first: Ray itself tries for minutes where nobody listens (more than 3, measured, 2.60).

    Raises:
        RayDetrError: nobody listens there.
    """
    if address.startswith(("http://", "https://")):
        raise RayDetrError(
            f"{address} is Ray's dashboard, which takes jobs: give RAY_ADDRESS as host:6379 or ray://host:10001."
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and the like, which Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise RayDetrError(
            f"no Ray cluster answers at {address} ({first_line(error)}). "
            "Start it, or unset RAY_ADDRESS for a local one."
        ) from error


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let Ray take loopback for its address when it is told so.

    Ray 2.60 replaces a node's address of 127.0.0.1 by the machine's outward one, and listens on all interfaces then:
    raylet, GCS, agents and workers alike (measured). It does not where it takes the system for one without clusters.
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


def _quiet(*, verbose: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if verbose:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # not ERROR: the block that a dead actor drops is logged so, with Ray's own stack; the driver runs it again
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _temporary_folder() -> str:
    """Return a short path: Ray's sockets lie below it, and a socket's path has 107 characters at most."""
    return str(Path(tempfile.gettempdir()) / "ray") if len(tempfile.gettempdir()) < 40 else "/tmp/ray"  # noqa: S108


def _figures(nodes: Sequence[Mapping[str, float]]) -> str:
    cpus, gpus = sum(node.get("CPU", 0) for node in nodes), sum(node.get("GPU", 0) for node in nodes)
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}, {cpus:g} CPU, {gpus:g} GPU"


def first_line(error: BaseException) -> str:
    """Return what an error of Ray's says, without the remote traceback below it, and without colours."""
    lines = _plain(error).splitlines()
    return lines[0] if lines else type(error).__name__


def remote_sentence(error: BaseException) -> str:
    """Return what an error that was raised on a node says: which node, the reason from its traceback's end, a remedy.

    An error that tells of no node is given by its first line.
    """
    text = _plain(error)
    node = re.search(r"\bip=([^\s,)]+)", text)
    if node is None:
        return first_line(error)
    reason = text.splitlines()[-1].strip()
    missing = re.search(r"ModuleNotFoundError: No module named '([^']+)'", reason)
    if missing is None:
        return f"on node {node[1]}: {reason}"
    return (
        f"node {node[1]} has no Python package {missing[1]}. Install ray-detr with all it needs on every node, in the "
        "same versions, or submit the command with `ray job submit --working-dir .`"
    )


def _plain(error: BaseException) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
