"""Files that a command reads or writes by name: annotations, results, figures of an evaluation."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.errors import RayDetrError, UsageError
from pipelines.store import NotFound, StoreError, StoreOptions, Stores, without_secrets
from pipelines.store.uris import LOCAL_ROOT, scheme_of, split_uri


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
    root, key = split_uri(uri)
    if root == LOCAL_ROOT and os.path.isdir(f"/{key}"):  # noqa: PTH112 - Path.is_dir() can raise PermissionError
        raise UsageError(f"cannot read {what}: {uri} is a folder. Name a file.")
    try:
        return Stores(options).get(uri).data
    except NotFound as error:
        raise UsageError(f"cannot read {what}: {error}") from error
    except StoreError as error:
        raise RayDetrError(f"cannot read {what}: {error}") from error


def write_document(uri: str, data: bytes, *, what: str, options: StoreOptions | None) -> None:
    """Write a file or an object, replacing an existing one.

    Args:
        uri: its path or URI; folders are created.
        data: its bytes.
        what: description for messages, such as "the figures".
        options: access to stores.

    Raises:
        RayDetrError: it cannot be written.
    """
    try:
        if scheme_of(uri) == "":
            path = Path("/", split_uri(uri)[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        else:
            store, key = Stores(options).find(uri)
            store.put(key, data)
    except OSError as error:
        raise RayDetrError(f"cannot write {what} to {uri}: {error.strerror}.") from error
    except StoreError as error:
        raise RayDetrError(f"cannot write {what} to {without_secrets(uri)}: {error}") from error
