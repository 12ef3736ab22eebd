"""What became of one shard, as an actor tells the driver."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What became of one shard, for the driver: counts, and where the time went (seconds summed over threads).

    `changed`: images that were another version than was listed when they were read. `notes`: sentences that the user
    should read, such as that the device has too little memory for the batch size; each is told by one shard.
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
