"""The Ray cluster of a run: an existing one, or a local one without log output and with access control."""

import ctypes
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import ray.data
from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, its annotations lack it
from ray.data import DataContext
from ray.exceptions import AuthenticationError

from pipelines.errors import RayDetrError, UsageError
from pipelines.local_ray import start_local_ray
from pipelines.remote_errors import first_line
from pipelines.store.uris import LOCAL_ROOT, split_uri

# Python's C interface, because signal.signal works in the main thread only
_get_action = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(("PyOS_getsig", ctypes.pythonapi))
_set_action = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(("PyOS_setsig", ctypes.pythonapi))

OBJECT_STORE_BYTES = 200 * 1024**2  # small: only status rows of a kilobyte are transferred
ANSWER_SECONDS = 10.0  # for a cluster to accept a connection


@contextmanager
def connected(*, verbose: bool = False) -> Iterator[None]:
    """Keep a connection to Ray: the current one, that of `RAY_ADDRESS`, or a local one that ends with the context.

    A local Ray listens on loopback only and logs nothing unless `verbose`. Other users of the machine can reach
    loopback, too, and every client of Ray can run code as this user: unless the environment sets `RAY_AUTH_MODE`, it
    becomes "token", with a token of this process that is not written to a file. A token of another cluster is not sent.

    Args:
        verbose: whether to show Ray's messages and the actors' output.

    Raises:
        UsageError: `RAY_ADDRESS` is that of a dashboard, or the cluster has another Ray or Python.
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
        logging.getLogger("ray").setLevel(level)  # it warns about its thread before it applies `level`
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
        try:
            ray.init(address=address, logging_level=level, log_to_driver=verbose)
        except AuthenticationError as error:
            raise RayDetrError(_token_sentence(error)) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            if str(error).startswith("Version mismatch"):  # in several lines
                text = " ".join(str(error).split())
                raise UsageError(f"the Ray cluster at {address} cannot be used: {text}.") from error
            raise RayDetrError(
                f"no Ray cluster answers at {address} ({first_line(error)}). "
                "Start it, or unset RAY_ADDRESS for a local one."
            ) from error
    else:
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            Config.initialize("")  # makes Ray read the environment again, which it read when it was imported
        # Ray's default is 15: beside other busy processes its workers would get a thirtieth of their share
        os.environ.setdefault("RAY_worker_niceness", "0")
        try:
            start_local_ray(
                logging_level=level,
                log_to_driver=verbose,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=_temporary_folder(),
            )
        except AuthenticationError as error:
            raise RayDetrError(_token_sentence(error)) from error
        except Exception as error:
            # Ray 2.60 raises a bare `Exception` if its node does not register in time
            if not isinstance(error, ConnectionError | RuntimeError | OSError) and type(error) is not Exception:
                raise
            raise RayDetrError(
                f"a local Ray could not be started: {first_line(error)} Run the same command again when the machine is "
                "less busy; `--verbose` shows Ray's messages."
            ) from error


def _token_sentence(error: AuthenticationError) -> str:
    """Return the message about a wrong token of the cluster's processes, and what to do."""
    reason = first_line(error).partition(" Ensure that ")[0].removesuffix(".")
    mode = os.environ.get("RAY_AUTH_MODE")
    return (
        f"Ray's token is missing or differs from the cluster's token ({reason}). RAY_AUTH_MODE is {mode}: "
        "set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token, as docs/security.md says."
    )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore SIGTERM's handler at the end, whatever Ray's C++ code (2.60) does inside the context.

    After `ray.init`, SIGTERM prints a stack and aborts the process after three seconds, too little to end a pool of
    actors on a busy machine; after `ray.shutdown` it ends the process immediately, without clean-up.
    """
    is_ours = threading.current_thread() is threading.main_thread()  # in other threads Python does not allow handlers
    before, action = signal.getsignal(signal.SIGTERM), _get_action(signal.SIGTERM)
    try:
        yield
    finally:
        # replaces the handler of the C++ code with Python's, from any thread
        _set_action(signal.SIGTERM, action)
        if is_ours and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress Ray's own lines on this process's standard output and error; its log files have them.

    Python's logging settings affect neither the lines of its C++ code, such as the first line of every pool with
    restarts (ray-project/ray issue 53727), nor the raylet's warnings, which go to standard output, where a result is
    expected. Code that shows progress meanwhile needs its own descriptor.
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
    """Return the resources of each live node of the connected cluster, by Ray's names: `CPU`, `GPU` ..."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def is_given() -> bool:
    """Return whether `connected` uses an existing cluster, which may have several machines."""
    return ray.is_initialized() or bool(os.environ.get("RAY_ADDRESS"))


def hosts() -> set[str]:
    """Return the addresses of the connected cluster's machines; several nodes on one machine have the same."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def refuse_local(uris: Sequence[str], *, are_shared: bool) -> None:
    """Refuse local folders on a cluster of several machines: each would read and write its own.

    Args:
        uris: paths and URIs that all machines read or write.
        are_shared: whether the user declares that a local path is the same folder on all machines, as with NFS.

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


def _check_answers(address: str) -> None:
    """Try to connect first: without a listener, Ray itself tries for minutes (more than 3, measured, 2.60).

    Raises:
        UsageError: the address is that of a dashboard.
        RayDetrError: nothing listens there.
    """
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"{address} is the address of Ray's dashboard, which accepts only jobs: set RAY_ADDRESS to host:6379 or "
            "ray://host:10001."
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and similar values of Ray
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise RayDetrError(
            f"no Ray cluster answers at {address} ({first_line(error)}). "
            "Start it, or unset RAY_ADDRESS for a local one."
        ) from error


def _quiet(*, verbose: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if verbose:
        return
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # not ERROR: at that level Ray logs the block of a dead actor, with its own stack; the driver runs it again
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _temporary_folder() -> str:
    """Return a short path: Ray's sockets are below it, and a socket's path has at most 107 characters."""
    return str(Path(tempfile.gettempdir()) / "ray") if len(tempfile.gettempdir()) < 40 else "/tmp/ray"  # noqa: S108
