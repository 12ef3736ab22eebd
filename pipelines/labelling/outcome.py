"""The outcome of a shard, as its actor reports it to the driver: completed, failed, lost or not started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A completed shard: its rows are committed.

    Attributes:
        shard: Its number.
        images: Rows of the shard.
        detections: Detections of all rows.
        errors: Error rows by kind.
        seconds: Wall time of the shard.
        fetch_seconds: Time spent fetching images, summed over threads.
        decode_seconds: Time spent decoding, summed over threads.
        detect_seconds: Time spent in the network, summed over threads.
        busy_seconds: Time that the actor's device computed since the actor's previous report, for any of its shards.
        actor_seconds: Wall time since the actor's previous report, or since it was ready.
        changed: Images that changed between listing and reading.
        notes: Sentences for the user, such as a batch size that was reduced for lack of memory; one shard reports each.
        size_bytes: Encoded bytes that were read.
        requests: Requests to the images' stores, retries included.
        batched: Images in the network's batches. A picture that is cut into tiles counts here and below as a batch of
            one, without its tiles.
        places: Images that these batches could have held.
        pixels: Pixels of the resized images.
        padded_pixels: Pixels of their batches, with padding.
    """

    shard: int
    images: int
    detections: int
    errors: Mapping[str, int]
    seconds: float
    fetch_seconds: float
    decode_seconds: float
    detect_seconds: float
    busy_seconds: float = 0.0
    actor_seconds: float = 0.0
    changed: int = 0
    notes: tuple[str, ...] = ()
    size_bytes: int = 0
    requests: int = 0
    batched: int = 0
    places: int = 0
    pixels: int = 0
    padded_pixels: int = 0


@dataclass
class Work:
    """Totals of completed shards.

    Attributes:
        fetch_seconds: Time spent fetching images, summed over threads.
        decode_seconds: Time spent decoding, summed over threads.
        network_seconds: Time spent in the network, summed over threads.
        busy_seconds: Time that devices computed, summed over actors.
        actor_seconds: Wall time of the actors, from when they were ready to their last shard.
        requests: Requests to the images' stores, retries included.
        size_bytes: Encoded bytes that were read.
    """

    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    network_seconds: float = 0.0
    busy_seconds: float = 0.0
    actor_seconds: float = 0.0
    requests: int = 0
    size_bytes: int = 0

    def add(self, report: ShardReport) -> None:
        """Add a shard."""
        self.fetch_seconds += report.fetch_seconds
        self.decode_seconds += report.decode_seconds
        self.network_seconds += report.detect_seconds
        self.busy_seconds += report.busy_seconds
        self.actor_seconds += report.actor_seconds
        self.requests += report.requests
        self.size_bytes += report.size_bytes

    @property
    def busy_share(self) -> float | None:
        """Share of the actors' time in which their devices computed, 0..1; None if no measured shard was completed."""
        return min(1.0, self.busy_seconds / self.actor_seconds) if self.actor_seconds else None

    def __add__(self, other: Work) -> Work:
        """Return the sum of both."""
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Work)))


_ADDED: Final = {"busy_seconds": 0.0, "actor_seconds": 0.0}
"""Fields of `Work` that records of earlier releases do not have."""


def work_values(recorded: Any) -> Any:
    """Return the fields of a recorded `Work`: with those that were added since, without those of a later release.

    What is not a mapping is returned unchanged, for the reader of the record to refuse.
    """
    if not isinstance(recorded, Mapping):
        return recorded
    values = {**_ADDED, **recorded}
    return {one.name: values[one.name] for one in fields(Work) if one.name in values}


@dataclass(frozen=True, slots=True)
class Failed:
    """The environment failed (store, credentials, model): the run stops with this message and can be resumed."""

    message: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The shard was given up although store and cluster work. It is run again, like a shard whose process died.

    Attributes:
        reason: The error, as a sentence without a full stop. Does not name the image, so that failures can be compared.
        shard: Its number, if known.
        image: The URI of the image that caused it, if known.
    """

    reason: str
    shard: int | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The run is stopping, and the shard was not started."""


Outcome = ShardReport | Failed | Lost | NotStarted
