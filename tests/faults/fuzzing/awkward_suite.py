"""The collection of awkward images, where it is at hand, damaged further."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.faults.fuzzing.image_suite import ImageSuite
from tests.faults.fuzzing.mutations import mutate, random_of

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "awkward"
MOST_BYTES = 300_000  # of a file: larger ones take their time without showing more


@cache
def awkward_files() -> tuple[bytes, ...]:
    """Return the collection's images, in the order of their names; nothing where it is not at hand."""
    paths = sorted(FOLDER.glob("*.*"))
    return tuple(path.read_bytes() for path in paths if path.suffix != ".json" and 0 < path.stat().st_size < MOST_BYTES)


class AwkwardSuite(ImageSuite):
    """Each case is one of the collection's files, damaged."""

    def data(self, number: int) -> bytes:
        """Return a damaged image; -1 is a whole one."""
        if number < 0:
            return super().data(number)
        random = random_of(self._seed, number)
        return mutate(random, awkward_files()[number % len(awkward_files())], awkward_files())


SUITE = AwkwardSuite
