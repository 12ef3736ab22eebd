"""Which objects of a folder are not taken for images."""

from __future__ import annotations

from typing import Final

# Taken for images even behind an underscore, as cameras write (_MG_0412.JPG).
_CAMERAS = "avif bmp dib gif heic heif jfif jpe jpeg jpg png tif tiff webp"
_OTHER_PICTURES = "ico j2k jp2 jpx jxl pbm pgm pnm ppm psd tga"
IMAGE_SUFFIXES: Final = frozenset(f"{_CAMERAS} {_OTHER_PICTURES}".split())
# What lies beside photographs and is certainly none. Anything else is read, and gets a row that says what it was.
_DATA = "csv db html ini json jsonl log md ndjson npy npz parquet pickle pkl pt pth rst safetensors sqlite toml tsv txt"
_MORE = "xlsx xml xmp yaml yml cfg py sh thm"
_VIDEOS_AND_ARCHIVES = "3gp avi m4v mkv mov mp3 mp4 wav webm 7z bz2 gz rar tar tgz zip zst"
OTHER_SUFFIXES: Final = frozenset(f"{_DATA} {_MORE} {_VIDEOS_AND_ARCHIVES}".split())
OTHER_NAMES: Final = frozenset({"license", "licence", "md5sums", "notice", "readme", "sha1sums", "sha256sums"})

HIDDEN: Final = "hidden"
INTERNAL: Final = "internal"  # `_SUCCESS`, `_runs/...`


def skip_reason(path: str) -> str | None:
    """Return why an object of a folder is not taken for an image, None if it is. `path` is relative to the folder.

    Not taken are names that begin with a dot and all below them, names that begin with an underscore unless they end
    like an image, and endings that certainly mean something else. Objects that were named one by one are not asked.
    """
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
