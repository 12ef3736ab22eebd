"""Check that stores answer before a run begins."""

from collections.abc import Iterable
from dataclasses import replace

from pipelines.errors import RayDetrError
from pipelines.lake.globs import literal_start
from pipelines.store import StoreError, StoreOptions, open_store, split_written, without_secrets

REACH_SECONDS = 10.0  # how long a store may fail at the start, when no work can be lost


def check_answers(sources: Iterable[tuple[str, StoreOptions]]) -> None:
    """Raise if a store does not answer within a short time; during a run, stores get much more time.

    Args:
        sources: what to read or write, with the options of its store.

    Raises:
        RayDetrError: with the reason.
    """
    for uri, options in sources:
        root, folder, written = split_written(uri)
        if root.startswith(("http://", "https://")):
            continue  # web servers have no listing; their failures become error rows or stop the run
        try:
            store = open_store(root, replace(options, retry_seconds=REACH_SECONDS))
            next(iter(store.list(folder + literal_start(written))), None)
        except StoreError as error:
            raise RayDetrError(f"cannot list {without_secrets(uri)}: {error}") from error
