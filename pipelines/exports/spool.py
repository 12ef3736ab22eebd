"""A temporary file for what a format has at the end, but is known from the beginning."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from pipelines.errors import RayDetrError


class SpoolFile:
    """A temporary file that is written, and then read. Its errors name its folder, not that of the export."""

    def __init__(self) -> None:
        """Create the file.

        Raises:
            RayDetrError: the temporary folder cannot be written.
        """
        with _named():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def write(self, data: bytes) -> None:
        """Append to the file.

        Raises:
            RayDetrError: the disk is full.
        """
        with _named():
            self._file.write(data)

    def read_from_start(self) -> IO[bytes]:
        """Return the file, to be read from its start.

        Raises:
            RayDetrError: the disk is full.
        """
        with _named():
            self._file.seek(0)  # which flushes
        return self._file

    def close(self) -> None:
        """Delete the file."""
        with suppress(OSError):  # the rest of an incomplete file cannot be flushed
            self._file.close()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RayDetrError(
            f"cannot write a temporary file to {tempfile.gettempdir()}: {error.strerror or error}. Free some space, or "
            "set TMPDIR to a folder with more of it."
        ) from error
