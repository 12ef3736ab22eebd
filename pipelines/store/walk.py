"""Walk a folder tree in the key order of an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipelines.store.interface import StoreEntry


@dataclass(frozen=True, slots=True)
class Child:
    """An entry of a folder: a file with its properties, or a folder.

    With the name "" it represents the files and folders whose names are not UTF-8; `unnameable` is their number.
    """

    name: str
    is_folder: bool
    size: int | None = None
    etag: str | None = None
    modified: float | None = None
    unnameable: int = 0


def walk(read_folder: Callable[[str], Iterable[Child]], prefix: str, after: str | None) -> Iterator[StoreEntry]:
    """Yield the files of a tree whose path begins with `prefix` and is greater than `after`, in byte order of paths.

    Memory: the names in one folder and its parents. Folders without matching paths are not read.

    Args:
        read_folder: Returns the entries of a folder in any order; folders are "" or have a trailing slash.
        prefix: Any beginning of a path.
        after: The path after which to begin; None for the start.
    """
    after = after or ""
    start = prefix[: prefix.rfind("/") + 1]
    folders = [_sorted_paths(read_folder, start)]
    while folders:
        step = next(folders[-1], None)
        if step is None:
            folders.pop()
            continue
        path, child = step
        if child.is_folder:
            # paths below are greater than the folder's own path, and smaller than `after` unless `after` begins with
            # that path
            if (path > after or after.startswith(path)) and path.startswith(prefix):
                folders.append(_sorted_paths(read_folder, path))
        elif path > after and path.startswith(prefix):
            yield StoreEntry(path, child.size, child.etag, unnameable=child.unnameable, modified=child.modified)


def _sorted_paths(read_folder: Callable[[str], Iterable[Child]], folder: str) -> Iterator[tuple[str, Child]]:
    # A folder's slash is part of the order: "a-b" < "a/c" < "a0". Python compares strings by code points, which is the
    # order of their UTF-8 bytes.
    children = [(f"{folder}{child.name}{'/' if child.is_folder else ''}", child) for child in read_folder(folder)]
    children.sort(key=lambda pair: pair[0], reverse=True)
    while children:
        yield children.pop()
