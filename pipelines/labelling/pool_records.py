"""Records of an actor pool in Ray's head: loads of the model, images that are done, shards in progress."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import ray
from ray.exceptions import RayError
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_initialized,
    _internal_kv_list,
    _internal_kv_put,
)

TELL_SECONDS = 2.0  # between two reports of the images that are done


class Loading:
    """Records in Ray's head which actors of a pool load the model, to detect that loading kills the process.

    Ray Data restarts an actor that died in its constructor, with the same id and without an error. A model that kills
    its process would be loaded without end.
    """

    def __init__(self, pool: str) -> None:
        self._prefix = f"ray-detr/{pool}/"
        self._is_shared = bool(pool) and bool(_internal_kv_initialized())  # type: ignore[no-untyped-call]

    def has_killed(self) -> bool:
        """Record that this actor loads the model here. Return whether loading it has killed the actor's process before.

        A process that died on another node may have been lost with it: that counts from the second time on.
        """
        if not self._is_shared:
            return False  # not in a pool
        context = ray.get_runtime_context()
        key, node = f"{self._prefix}{context.get_actor_id()}", context.get_node_id()
        earlier = (_internal_kv_get(key) or b"").decode().split()
        _internal_kv_put(key, " ".join([*earlier, node]).encode())
        return (node in earlier or len(earlier) > 1) and not _internal_kv_exists(f"{self._prefix}loaded")

    def has_loaded(self) -> None:
        """Record that the model is loaded: from now on, deaths have other reasons."""
        if self._is_shared:
            _internal_kv_put(f"{self._prefix}loaded", b"")

    def forget(self) -> None:
        """Remove the records, in the driver."""
        if self._is_shared and ray.is_initialized():
            _internal_kv_del(self._prefix, del_by_prefix=True)


class ImagesDone:
    """Images of unfinished shards that are done. Actors report them to Ray's head; the driver reads them there."""

    def __init__(self, pool: str) -> None:
        self._prefix = f"ray-detr/{pool}/images/"
        self._is_shared = bool(pool) and bool(_internal_kv_initialized())  # type: ignore[no-untyped-call]
        self._read: dict[int, int] = {}
        self._reported: set[int] = set()
        self._lock = threading.Lock()

    def teller(self, shard: int) -> Callable[[int], None]:
        """Return a function that an actor calls with the number of images that are done; it reports now and then."""
        told_at = time.monotonic()

        def tell(images: int) -> None:
            nonlocal told_at
            if self._is_shared and time.monotonic() >= told_at + TELL_SECONDS:
                told_at = time.monotonic()
                with suppress(RayError, RuntimeError, ValueError, OSError):  # only progress: ignore errors
                    _internal_kv_put(f"{self._prefix}{shard}", str(images).encode())

        return tell

    def report(self, shard: int) -> int:
        """Remove a committed shard; return how many images of the other shards are done."""
        with self._lock:
            self._reported.add(shard)
            return self._unfinished()

    def read(self) -> int:
        """Read the reports; return how many images of uncommitted shards are done."""
        keys = _internal_kv_list(self._prefix) if self._is_shared else []
        read = {int(key.removeprefix(self._prefix.encode())): int(_internal_kv_get(key) or b"0") for key in keys}
        with self._lock:
            self._read = read
            return self._unfinished()

    def _unfinished(self) -> int:
        return sum(images for shard, images in self._read.items() if shard not in self._reported)


class ShardsInProgress:
    """The shards that are begun, for a run that stops early. Actors record them in Ray's head; the driver reads them.

    An actor records a shard before it checks whether the run stops; the driver records that the run stops before it
    reads the shards. So the driver sees every shard in progress.
    """

    def __init__(self, pool: str) -> None:
        self._prefix = f"ray-detr/{pool}/begun/"
        self._stop = (
            f"ray-detr-stopped/{pool}"  # not removed with the other keys: actors live a little longer than the pool
        )
        self._reported: set[int] = set()
        self._in_progress: set[int] | None = None
        self._lock = threading.Lock()

    def begin(self, shard: int) -> bool:
        """Return whether an actor may begin a shard."""
        try:
            _internal_kv_put(f"{self._prefix}{shard}", b"")
            return not _internal_kv_exists(self._stop)
        except (
            RayError,
            RuntimeError,
            ValueError,
            OSError,
        ):  # the head does not answer, so the run is not known to stop
            return True

    def stop(self) -> None:
        """Prevent further shards from beginning, and read which are in progress; in the driver."""
        _internal_kv_put(self._stop, b"")
        begun = {int(key.removeprefix(self._prefix.encode())) for key in _internal_kv_list(self._prefix)}
        with self._lock:
            self._in_progress = begun - self._reported

    def report(self, shard: int) -> None:
        """Record that a shard is committed; in the driver."""
        with self._lock:
            self._reported.add(shard)
            if self._in_progress is not None:
                self._in_progress.discard(shard)

    @property
    def is_over(self) -> bool:
        """Whether the run stops and no shard is in progress."""
        with self._lock:
            return self._in_progress is not None and not self._in_progress
