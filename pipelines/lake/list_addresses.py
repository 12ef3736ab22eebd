"""Addresses and sizes of images in lists: made complete, and checked before a run begins."""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RayDetrError
from pipelines.lake.members import MARK, split_member
from pipelines.store import (
    GIVES_ACCESS,
    LOCAL_ROOT,
    StoreError,
    check_root,
    has_secret,
    is_utf8,
    join_uri,
    other_machine,
    scheme_of,
    split_uri,
    without_secrets,
)

WITHOUT_SECRETS_INSTEAD: Final = (
    "Give the store's own address (s3://, gs://, az://) and the credentials as docs/security.md says, or fetch the "
    "images first."
)

# `file:` addresses with a host, or with a part that is empty, "." or ".."
_UNUSUAL_FILE: Final = r"(?s)^file://([^/]|/(.*/)?(/|\.\.?(/|$)))"
_LARGEST_OBJECT = 1 << 48  # bytes: several times the limit of any store, and small enough to add thousands


def explain_other_machine(uri: str) -> str:
    """Return a message about a `file:` address with a host."""
    key = split_uri(uri)[1]
    return (
        f"file://{other_machine(uri)}/{key} cannot be read: it is a file of another machine. If it is "
        f"also a file of this one, for example in a mounted folder, write {join_uri(LOCAL_ROOT, key)}"
    )


def whole_uris(uris: pa.ChunkedArray, folder: str, name: str) -> pa.ChunkedArray:
    """Return absolute URIs: relative ones get the folder of the file, local paths `file://`, schemes lower case.

    Local paths and `file:` addresses lose `.`, `..` and repeated slashes, so that each file has one address.

    Raises:
        RayDetrError: there are relative ones, and the folder's name is not UTF-8; or one is a file of another machine.
    """
    return pa.chunked_array([_whole_chunk(chunk, folder, name) for chunk in uris.chunks], uris.type)


def _whole_chunk(uris: pa.Array, folder: str, name: str) -> pa.Array:
    is_whole = pc.match_substring_regex(uris, "^[a-z][a-z0-9+.-]+://")
    is_other = pc.invert(pc.and_not(is_whole, pc.match_substring_regex(uris, _UNUSUAL_FILE)))
    written = uris.filter(is_other).to_pylist()
    other = next(filter(other_machine, written), None)
    if other is not None:
        raise RayDetrError(f"{name}: the image {explain_other_machine(other)}")
    whole = [_whole_uri(uri, folder) for uri in written]
    if not is_utf8(folder) and not all(map(is_utf8, whole)):
        raise RayDetrError(f"{name!a}: the name of its folder is not UTF-8, so a table cannot store it. Rename it.")
    return pc.replace_with_mask(uris, is_other, pa.array(whole, uris.type)) if whole else uris


def is_unusual_file(uri: str) -> bool:
    """Return whether an address is one of a local file that `whole_uris` writes in another way."""
    member = split_member(uri)
    return re.match(_UNUSUAL_FILE, uri if member is None else member[0]) is not None


def _whole_uri(uri: str, folder: str) -> str:
    scheme = scheme_of(uri)
    if scheme == "file":
        return _file_uri(uri)
    if scheme and uri.startswith("://", len(scheme)):
        return scheme + uri[len(scheme) :]
    if uri.startswith("/"):
        return join_uri(*split_uri(uri))
    root, key = split_uri(folder)
    if root == LOCAL_ROOT or root.startswith(("http://", "https://")):
        return join_uri(*split_uri(f"{folder}/{uri.removeprefix('./')}"))  # as written by `find .`
    parts = key.split("/") if key else []
    file = (split_member(uri) or (uri,))[0]
    for part in file.split("/"):
        if part == "..":
            del parts[-1:]  # not above the bucket
        elif part != ".":
            parts.append(part)  # also empty ones: "//" is a part of names
    return join_uri(root, "/".join(parts)) + uri[len(file) :]


def _file_uri(uri: str) -> str:
    member = split_member(uri)
    if member is None:
        return join_uri(*split_uri(uri))
    file, name = member
    return join_uri(*split_uri(file)) + MARK + name  # names of members stay as they are


def check_no_secrets(uris: pa.ChunkedArray, name: str) -> None:
    """Refuse addresses with a secret, because plan and table would contain it.

    Raises:
        RayDetrError: with the first one.
    """
    suspects = uris.filter(pc.match_substring_regex(uris, "[@?;&]"))
    for batch in suspects.chunks:
        found = next((uri for uri in batch.to_pylist() if has_secret(uri)), None)
        if found is not None:
            raise RayDetrError(f"{name}: the address {without_secrets(found)} {GIVES_ACCESS} {WITHOUT_SECRETS_INSTEAD}")


def check_stores(uris: pa.ChunkedArray, name: str) -> None:
    """Refuse addresses of stores that cannot be opened: they would stop the run that reads them.

    Raises:
        RayDetrError: with the first one.
    """
    roots = pc.unique(pc.replace_substring_regex(uris, r"(?s)^([a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]*).*$", r"\1"))
    for root in {split_uri(uri)[0]: None for uri in roots.to_pylist()}:
        try:
            check_root(root)
        except StoreError as error:
            uri = next(uri for uri in uris.to_pylist() if split_uri(uri)[0] == root)
            raise RayDetrError(f"{name}: the image {without_secrets(uri)} cannot be read. {error}") from error


def sizes(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return sizes as signed integers.

    Raises:
        RayDetrError: one is too large for that.
    """
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise RayDetrError(
            f"{name} says that an image has {pc.max(column).as_py():,} bytes, which no object can have. "
            "Leave the column empty where sizes are not known."
        ) from error


def check_sizes(rows: pa.Table, name: str) -> None:
    """Refuse impossible sizes, because a plan adds them up.

    Raises:
        RayDetrError: with the first one.
    """
    wrong = rows.filter(pc.or_(pc.less(rows["size"], 0), pc.greater(rows["size"], _LARGEST_OBJECT)))
    if len(wrong):
        size, uri = wrong["size"][0].as_py(), wrong["uri"][0].as_py()
        raise RayDetrError(
            f"{name} says that {uri} has {size:,} bytes, which no object can have. "
            "Leave the column empty where sizes are not known."
        )
