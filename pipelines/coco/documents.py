"""Files that a command reads or writes by name: annotations, results, figures of an evaluation."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import RayDetrError, UsageError
from pipelines.store import NotFound, StoreError, StoreOptions, Stores, without_secrets
from pipelines.store.uris import scheme_of


def read_document(uri: str, *, what: str, options: StoreOptions | None) -> bytes:
    """Return the bytes of a file.

    Args:
        uri: its path or URI.
        what: description for messages, such as "the annotations".
        options: access to stores.

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


def write_document(uri: str, data: bytes, *, what: str, options: StoreOptions | None) -> None:
    """Write a file or an object, replacing an existing one.

    Args:
        uri: its path, in a folder that exists, or its URI.
        data: its bytes.
        what: description for messages, such as "the figures".
        options: access to stores.

    Raises:
        RayDetrError: it cannot be written.
    """
    try:
        if scheme_of(uri) == "":
            Path(uri).write_bytes(data)
        else:
            store, key = Stores(options).find(uri)
            store.put(key, data)
    except OSError as error:
        raise RayDetrError(f"cannot write {what} to {uri}: {error.strerror}.") from error
    except StoreError as error:
        raise RayDetrError(f"cannot write {what} to {without_secrets(uri)}: {error}") from error
