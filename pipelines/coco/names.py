"""Match files to annotated images by path: exporters, memory cards and file systems spell names differently."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from pipelines.store import split_uri


@dataclass(frozen=True, slots=True)
class NameMatch:
    """The annotated image that a file matches.

    Attributes:
        name: the image's file name, as annotated.
        is_spelled_alike: whether the names are equal; otherwise they differ only in case, `%20` and similar.
        is_placed_alike: whether the folders of both agree; otherwise only the last part of the names is the same.
    """

    name: str
    is_spelled_alike: bool = True
    is_placed_alike: bool = True


class ImageNames:
    """The file names of annotated images, and a search for the one that matches a path.

    A file matches an annotated image if its path ends in the image's whole file name, or in that name without the
    folders that all annotated names begin with: `cam1/1.jpg` and `cam2/1.jpg` are two images, and `elsewhere/1.jpg`
    is neither. The query of a web address counts only if it is in the image's name, such as `img?id=2`. Names are
    compared exactly; if none is equal, they are compared without case, Unicode normalisation, `%20`, backslashes
    and the part before `?d=`, and the match counts if it is unique.

    Memory: about 200 bytes per image.
    """

    def __init__(self, file_names: Iterable[str]) -> None:
        """Index the file names of the annotations, which must be unique."""
        names = list(file_names)
        self._common = common_folders([_parts(name) for name in names])
        self._exact, self._plain = _Endings(), _Endings()
        self._same_last_part: dict[str, list[str]] = defaultdict(list)
        for name in names:
            parts = _parts(name)[self._common :]
            self._exact.add(parts, name)
            self._plain.add(plain_parts(name)[-len(parts) :], name)
            self._same_last_part[parts[-1]].append(name)

    def find(self, uri: str) -> NameMatch | None:
        """Return the annotated image that a file matches; None without a match or with several.

        The match says whether only the last part of the names is the same, so that the file may be another picture.
        """
        root, key = split_uri(uri)
        if root.startswith(("http://", "https://")):
            path, mark, query = key.partition("#")[0].partition("?")
            name = self._exact.longest(_parts(key)) if mark else None
            if name is not None and name.endswith(mark + query):  # as our exports name it
                return NameMatch(name)
            key = unquote(path)
        parts = _parts(key)
        name = self._exact.longest(parts)
        if name is not None:
            return NameMatch(name)
        name = self._plain.longest(plain_parts(key))
        if name is not None:
            return NameMatch(name, is_spelled_alike=False)
        same_name = self._same_last_part.get(parts[-1], ())
        return NameMatch(same_name[0], is_placed_alike=False) if len(same_name) == 1 else None

    def of_the_same_last_part(self, uri: str) -> list[str]:
        """Return the annotated file names whose last part is that of a file, whatever their folders."""
        return list(self._same_last_part.get(_parts(split_uri(uri)[1])[-1], ()))

    def without_common_folders(self, name: str) -> str:
        """Return an annotated file name without the folders that all of them begin with."""
        return "/".join(_parts(name)[self._common :])


def plain_parts(name: str) -> list[str]:
    """Return the folders and the name of a file in a normalised spelling."""
    before, _, named = name.partition("?d=")  # Label Studio's names for files of a folder that it serves
    text = unquote(named if named and before.rpartition("/")[2] == "" else name)
    text = unicodedata.normalize("NFC", text.replace("\\", "/")).casefold()
    return _parts(unicodedata.normalize("NFC", text))


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")] or [""]


def common_folders(names: Sequence[list[str]]) -> int:
    """Return the number of leading folders that all names share."""
    if not names:
        return 0
    first, last = min(names), max(names)
    count = 0
    for one, other in zip(first[:-1], last[:-1], strict=False):
        if one != other:
            break
        count += 1
    return min(count, *(len(name) - 1 for name in names))


class _Endings:
    """An index of names by their last parts; a lookup takes constant time."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self._lengths: list[int] = []  # of the parts, longest first

    def add(self, parts: Sequence[str], name: str) -> None:
        self._names[tuple(parts)].append(name)
        if len(parts) not in self._lengths:
            self._lengths = sorted([*self._lengths, len(parts)], reverse=True)

    def longest(self, parts: Sequence[str]) -> str | None:
        """Return the name with the most parts that a path ends in; None if none does, or two are equally long."""
        for length in self._lengths:
            found = self._names.get(tuple(parts[-length:])) if length <= len(parts) else None
            if found:
                return found[0] if len(found) == 1 else None
        return None
