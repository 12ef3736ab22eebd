"""Files that a command is given by name: annotations, results, figures of an earlier evaluation."""

from __future__ import annotations

from pipelines.errors import RayDetrError, UsageError
from pipelines.store import NotFound, StoreError, StoreOptions, Stores


def read_document(uri: str, *, what: str, options: StoreOptions | None) -> bytes:
    """Return the bytes of a file.

    Args:
        uri: its path or URI.
        what: it is, for messages, such as "the annotations".
        options: how stores are reached.

    Raises:
        UsageError: there is no such file.
        RayDetrError: it cannot be read now.
    """
    try:
        return Stores(options).get(uri).data
    except NotFound as error:
        raise UsageError(f"cannot read {what}: {error}") from error
    except StoreError as error:
        raise RayDetrError(f"cannot read {what}: {error}") from error
