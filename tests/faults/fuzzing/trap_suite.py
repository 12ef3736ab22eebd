"""Cases that end as none may: what shows that the harness sees them."""

from __future__ import annotations

import ctypes
import time

import numpy as np

CRASHES, SPINS, SLEEPS, GROWS, RAISES = 3, 5, 6, 8, 11


class TrapSuite:
    """Case 3 crashes, 5 computes and 6 waits without end, 8 takes memory, 11 raises; the others are good."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def data(self, number: int) -> bytes:
        """Return what names the case."""
        return f"case {number} of seed {self._seed}".encode()

    def outcome(self, number: int) -> str:
        """Do what the number says."""
        if number == CRASHES:
            ctypes.string_at(0)
        while number == SPINS:
            sum(range(10**6))
        if number == SLEEPS:
            time.sleep(10**6)
        if number == GROWS:
            np.ones(2**30, np.uint8)
        if number == RAISES:
            raise LookupError("a bug")
        return "good"


SUITE = TrapSuite
