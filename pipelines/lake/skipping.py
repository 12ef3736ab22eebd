"""Rules for objects of folders that are skipped because they are not images."""

from __future__ import annotations

import re
from typing import Final

# Images even if their names begin with an underscore, as cameras write them (_MG_0412.JPG).
_CAMERAS = "avif bmp dib gif heic heif jfif jpe jpeg jpg png tif tiff webp"
_OTHER_PICTURES = "ico j2k jp2 jpx jxl pbm pgm pnm ppm psd tga"
IMAGE_SUFFIXES: Final = frozenset(f"{_CAMERAS} {_OTHER_PICTURES}".split())
# Certainly not images. All other objects are read, and get a row with an error kind if they are not images.
_LISTS = "csv json jsonl ndjson parquet tsv txt"
_TABLES = (
    "arrow avro db feather geojson ipc lst npy npz ods orc parq pickle pkl pq sql sqlite toml xls xlsx xml yaml yml"
)
_MORE = "cfg html ini log md pt pth py rst safetensors sh thm xmp"
_PACKED = "bz2 gz lz4 lzma snappy xz zst"
_VIDEOS_AND_ARCHIVES = "3gp avi m4v mkv mov mp3 mp4 wav webm 7z rar tar tbz2 tgz txz zip"
PACKED_SUFFIXES: Final = frozenset(_PACKED.split())
TABLE_SUFFIXES: Final = frozenset(_TABLES.split())  # may be lists, of unsupported kinds
OTHER_SUFFIXES: Final = frozenset(f"{_LISTS} {_TABLES} {_MORE} {_PACKED} {_VIDEOS_AND_ARCHIVES}".split())
OTHER_NAMES: Final = frozenset({"license", "licence", "md5sums", "notice", "readme", "sha1sums", "sha256sums"})

HIDDEN: Final = "hidden"
INTERNAL: Final = "internal"  # `_SUCCESS`, `_runs/...`

# Folders that storage devices, trash cans and packing programs make: thumbnails, deleted files, resource forks.
_SYSTEM_FOLDER: Final = re.compile(
    r"(?:^|/)(@eaDir|@Recycle|#recycle|#snapshot|\$RECYCLE\.BIN|RECYCLER|__MACOSX|\.Trash(?:es|-\d+)?|\.@__thumb|"
    r"lost\+found|System Volume Information)/",
    re.IGNORECASE,
)


def is_image_name(name: str) -> bool:
    """Return whether a name has the ending of an image."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def skip_reason(path: str) -> str | None:
    """Return why an object of a folder is skipped, or None for an image. `path` is relative to the folder.

    Skipped are: folders of storage devices and trash cans; names that begin with a dot, and all below them; names that
    begin with an underscore, unless they have the ending of an image; and endings of other kinds of files. The rules
    do not apply to objects that were named one by one.
    """
    if (found := _SYSTEM_FOLDER.search(path)) is not None:
        return found[1]
    if path.startswith(".") or "/." in path:
        return HIDDEN
    name = path[path.rfind("/") + 1 :].lower()
    dot = name.rfind(".")
    suffix = name[dot + 1 :] if dot > 0 else ""
    if suffix in IMAGE_SUFFIXES:
        return None
    if path.startswith("_") or "/_" in path:
        return INTERNAL
    if suffix in OTHER_SUFFIXES:
        return f".{suffix}"
    return name if name in OTHER_NAMES else None
