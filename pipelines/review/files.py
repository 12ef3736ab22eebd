"""Read files of corrections: JSON, or a ZIP with JSON files, the form of COCO exports of tools."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipelines.coco.documents import read_document
from pipelines.errors import UsageError
from pipelines.store import StoreOptions, without_secrets

MOST_BYTES: Final = 2_000_000_000  # of the JSON files of an archive, unpacked

_ZIP: Final = b"PK\x03\x04"
# errors of zipfile for damage; RuntimeError: a password, ValueError: offsets and names, OSError: bzip2
_DAMAGE: Final = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError, zlib.error, lzma.LZMAError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CorrectionsFile:
    """A file from the command line.

    Attributes:
        name: its address without secrets.
        data: its bytes, as downloaded.
        documents: name and bytes of each JSON file in an archive, by name; of another file, its own.
    """

    name: str
    data: bytes
    documents: tuple[tuple[str, bytes], ...]


def read_files(uris: Sequence[str], options: StoreOptions) -> list[CorrectionsFile]:
    """Read files of corrections and unpack archives.

    Args:
        uris: paths or URIs.
        options: access to stores.

    Raises:
        UsageError: a file does not exist, or is an archive that is damaged, too large, or without JSON.
        RayDetrError: a store refused.
    """
    files = []
    for uri in uris:
        name, data = without_secrets(uri), read_document(uri, what="the corrections", options=options)
        documents = tuple(_unpacked(name, data)) if data.startswith(_ZIP) else ((name, data),)
        files.append(CorrectionsFile(name, data, documents))
    return files


def _unpacked(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = sorted(
                (one for one in archive.infolist() if _is_json(one.filename)), key=lambda one: one.filename
            )
            if not members:
                raise UsageError(
                    f"corrections {name}: this archive has no JSON file. Export JSON, JSON-MIN or COCO from the tool."
                )
            if sum(one.file_size for one in members) > MOST_BYTES:
                raise UsageError(
                    f"corrections {name}: the JSON files in this archive have more than {MOST_BYTES:,} bytes. Unpack "
                    "it, and give the files."
                )
            for one in members:
                yield f"{name}#{one.filename}", archive.read(one)
    except _DAMAGE as error:
        raise UsageError(
            f"corrections {name}: this ZIP archive cannot be read ({error}). Export and download it again."
        ) from error


def _is_json(member: str) -> bool:
    """Return whether a member is a JSON file of a tool; macOS adds its own files to archives."""
    parts = member.split("/")
    return parts[-1].casefold().endswith(".json") and not any(part.startswith((".", "__MACOSX")) for part in parts)
