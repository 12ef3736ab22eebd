"""Listing trees as object stores list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.store.walk import Child, walk

NAMES = st.text(alphabet="ab-.0é\uffee😀", min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def tree_of(paths: set[str]) -> set[str]:
    """Return the paths that a file system can hold: none of them the folder of another."""
    return {path for path in paths if not any(other.startswith(f"{path}/") for other in paths)}


def children(paths: set[str], folder: str, visited: list[str]) -> list[Child]:
    visited.append(folder)
    names = {path[len(folder) :] for path in paths if path.startswith(folder)}
    files = [Child(name, is_folder=False, size=len(name)) for name in names if "/" not in name]
    return files + [Child(name, is_folder=True) for name in {name.split("/")[0] for name in names if "/" in name}]


@given(paths=st.sets(PATHS).map(tree_of), prefix=st.one_of(st.just(""), PATHS), after=st.one_of(st.none(), PATHS))
def test_a_walk_is_the_sorted_paths_between_prefix_and_after(paths: set[str], prefix: str, after: str | None) -> None:
    found = [entry.key for entry in walk(lambda folder: children(paths, folder, []), prefix, after)]

    expected = {path for path in paths if path.startswith(prefix) and path > (after or "")}
    assert found == sorted(expected, key=str.encode)


def test_folders_without_interest_are_not_read() -> None:
    paths = {"a/1", "b/1", "b/c/1", "b/d/1", "bb/1", "c/1"}
    visited: list[str] = []

    found = [entry.key for entry in walk(lambda folder: children(paths, folder, visited), "b", "b/c/2")]

    assert found == ["b/d/1", "bb/1"]
    assert visited == ["", "b/", "b/c/", "b/d/", "bb/"]


def test_a_walk_reads_folders_when_it_comes_to_them() -> None:
    visited: list[str] = []

    next(walk(lambda folder: children({"a/1", "b/1"}, folder, visited), "", None))

    assert visited == ["", "a/"]
