"""Whether stores answer, asked before anything is begun."""

from collections.abc import Iterable
from dataclasses import replace

from pipelines.errors import RayDetrError
from pipelines.lake.globs import literal_start
from pipelines.store import StoreError, StoreOptions, open_store, split_uri, without_secrets

REACH_SECONDS = 10.0  # that a store may fail for at the start, when nothing is lost yet


def check_answers(sources: Iterable[tuple[str, StoreOptions]]) -> None:
    """Refuse stores that give no answer, with little patience: later ones are waited for much longer.

    Args:
        sources: what is to be read or written, and how it is reached.

    Raises:
        RayDetrError: with the reason.
    """
    for uri, options in sources:
        root, key = split_uri(uri)
        if root.startswith(("http://", "https://")):
            continue  # has no listing; what a server fails to give becomes rows, or stops the run
        try:
            store = open_store(root, replace(options, retry_seconds=REACH_SECONDS))
            next(iter(store.list(literal_start(key))), None)
        except StoreError as error:
            raise RayDetrError(f"cannot list {without_secrets(uri)}: {error}") from error
