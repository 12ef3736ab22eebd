"""Files that a command is given by name: annotations, results, figures of an earlier evaluation."""

from __future__ import annotations

from pipelines.stopped import RunStopped, WrongUse
from pipelines.store import NotFound, StoreError, StoreOptions, Stores


def read_document(uri: str, *, what: str, options: StoreOptions | None) -> bytes:
    """Return the bytes of a file.

    Args:
        uri: its path or URI.
        what: it is, for messages, such as "the annotations".
        options: how stores are reached.

    Raises:
        WrongUse: there is no such file.
        RunStopped: it cannot be read now.
    """
    try:
        return Stores(options).get(uri).data
    except NotFound as error:
        raise WrongUse(f"cannot read {what}: {error}") from error
    except StoreError as error:
        raise RunStopped(f"cannot read {what}: {error}") from error
