"""What became of one shard, as an actor tells the driver."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of one shard, for the driver: counts, and where the time went (seconds summed over threads).

    `changed`: images that were another version than was listed when they were read. `notes`: sentences that the user
    should read, such as that the device has too little memory for the batch size; each is told by one shard.
    `size_bytes`: of encoded images that were read. `requests`: to the images' stores; they are more than images where
    reading was tried again. `batched` of `places`: images in the network's batches, and what those could hold. `pixels`
    of `padded_pixels`: of resized images, and of their batches with padding.
    """

    shard: int
    images: int
    detections: int
    errors: Mapping[str, int]
    seconds: float
    fetch_seconds: float
    decode_seconds: float
    detect_seconds: float
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
    """What shards took together: seconds summed over threads, requests and bytes of the images' stores."""

    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    network_seconds: float = 0.0
    requests: int = 0
    size_bytes: int = 0

    def add(self, report: ShardReport) -> None:
        """Add a shard."""
        self.fetch_seconds += report.fetch_seconds
        self.decode_seconds += report.decode_seconds
        self.network_seconds += report.detect_seconds
        self.requests += report.requests
        self.size_bytes += report.size_bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one shard: one of the three is there, none of them if the run stops and it was not begun.

    Attributes:
        report: it is labelled.
        failure: the sentence of a system failure, which stops the run.
        loss: why it was given up, though the store and the cluster work; it is run again like one whose process died.
    """

    report: ShardReport | None = None
    failure: str | None = None
    loss: str | None = None
