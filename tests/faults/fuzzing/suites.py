"""What a fuzzing suite is: numbered cases, each made of a seed alone, and what may become of one."""

from __future__ import annotations

from typing import Protocol


class Suite(Protocol):
    """Cases by number. Made anew in every child process from its seed."""

    def data(self, number: int) -> bytes:
        """Return the damaged bytes of a case."""
        ...

    def outcome(self, number: int) -> str:
        """Return in a word what became of a case; whatever this raises is a finding."""
        ...
