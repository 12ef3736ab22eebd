"""Limits on the time and the cost of a command, and a meter that checks them. Independent of Ray."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pipelines.clock import Clock, SystemClock
from pipelines.concurrently import repeating
from pipelines.errors import CapReached
from pipelines.options import check_options, option

Limit = Literal["max_minutes", "max_cost"]

LOOK_SECONDS = 1.0  # between two checks of time and nodes


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of one call of a command; they start again when a call resumes a run."""

    max_minutes: float | None = option(
        "stop after N minutes with exit code 5, when the work in progress is finished; the same command resumes (no "
        "limit)",
        default=None, metavar="N", above=0,
    )  # fmt: skip
    max_cost: float | None = option(
        "stop in the same way when the nodes have cost X; needs --price-per-hour (no limit)",
        default=None,
        metavar="X",
        above=0,
    )
    price_per_hour: float | None = option(
        "price of one node for an hour, in any currency (none)", default=None, metavar="P", above=0
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.max_cost is not None and self.price_per_hour is None:
            raise ValueError("max cost: give --price-per-hour, the price of one node for an hour, too.")

    @property
    def are_set(self) -> bool:
        """Whether any limit is set."""
        return self.max_minutes is not None or self.max_cost is not None


class Meter:
    """Measures the time and the node hours of one call. Thread-safe.

    Attributes:
        reached: set when a limit is reached.
        most_nodes: largest number of nodes counted at one time.
    """

    def __init__(self, caps: Caps | None = None, clock: Clock | None = None) -> None:
        """Start measuring."""
        self.caps = caps or Caps()
        self.reached = threading.Event()
        self._clock = clock or SystemClock()
        self._began = self._looked = self._clock.monotonic()
        self._count: Callable[[], int | None] | None = None
        self._nodes = 0  # at the last check
        self.most_nodes = 0
        self._node_seconds = 0.0
        self._reason = ""
        self._limit: Limit | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def count_nodes(self, count: Callable[[], int | None] | None) -> None:
        """Count nodes with this function from now on; it may return None for "unchanged". None stops counting.

        After this returns, the previous function is not called any more.
        """
        self.look()
        with self._lock:
            self._count, self._nodes = count, 0

    def when_reached(self, callback: Callable[[], object]) -> None:
        """Register a function that the meter's thread calls when a limit is reached."""
        self._callbacks.append(callback)

    def look(self) -> None:
        """Add the time since the last check, and compare with the limits."""
        with self._lock:
            now = self._clock.monotonic()
            if self._count is not None:
                counted = self._count()
                self._nodes = self._nodes if counted is None else counted
                self.most_nodes = max(self.most_nodes, self._nodes)
                self._node_seconds += self._nodes * (now - self._looked)
            self._looked = now
            limit, reason = (None, "") if self.reached.is_set() else self._limit_reached(now)
            if reason:
                self._limit, self._reason = limit, reason
                self.reached.set()
        if reason:
            for callback in self._callbacks:
                callback()

    @property
    def minutes_left(self) -> float:
        """Minutes until `max_minutes`; infinite without that limit."""
        if self.caps.max_minutes is None:
            return math.inf
        return max(0.0, self.caps.max_minutes - (self._clock.monotonic() - self._began) / 60)

    @property
    def node_hours(self) -> float:
        """Total hours of all nodes until the last check."""
        return self._node_seconds / 3600

    @property
    def cost(self) -> float | None:
        """Cost until the last check; None without a price."""
        return None if self.caps.price_per_hour is None else self.node_hours * self.caps.price_per_hour

    @property
    def reason(self) -> str:
        """The limit that was reached, as the beginning of a sentence; "" for none."""
        return self._reason

    @property
    def limit(self) -> Limit | None:
        """The name of the limit that was reached; None for none."""
        return self._limit

    def _limit_reached(self, now: float) -> tuple[Limit | None, str]:
        """Return the limit and the beginning of a sentence that names it; None and "" if none is reached."""
        if self.caps.max_minutes is not None and now - self._began >= 60 * self.caps.max_minutes:
            return "max_minutes", f"the limit of {self.caps.max_minutes:g} minutes (--max-minutes) is reached"
        if self.caps.max_cost is not None and self.cost is not None and self.cost >= self.caps.max_cost:
            return "max_cost", (
                f"the cost limit of {self.caps.max_cost:g} (--max-cost) is reached, after {self.node_hours:.3g} node "
                f"hours at {self.caps.price_per_hour:g}"
            )
        return None, ""


@contextmanager
def metering(caps: Caps) -> Iterator[Meter]:
    """Yield a meter that is updated every second in a background thread."""
    meter = Meter(caps)
    with repeating(meter.look, seconds=LOOK_SECONDS, name="meter"):
        yield meter


@contextmanager
def adding_costs(meter: Meter) -> Iterator[None]:
    """Add nodes and cost to the details of `CapReached`."""
    try:
        yield
    except CapReached as reached:
        meter.count_nodes(None)
        reached.details |= {"nodes": meter.most_nodes, "node_hours": meter.node_hours, "cost": meter.cost}
        raise
