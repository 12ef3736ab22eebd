"""The items of a listing: images to label, as objects or inside a file, and skipped names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

# Kinds of `Skipped`; the others are those of `skip_reason`.
DUPLICATE: Final = "duplicate"
OWN_TABLE: Final = "the table itself"
ARCHIVED: Final = "archived"  # according to the listing; if it does not tell, reading does, and the image gets a row
WITHOUT_URI: Final = "without a uri"
COMMENT: Final = "comment"
NOT_UTF8: Final = "name is not UTF-8"
NOT_MODIFIED: Final = "not modified since"
IN_MEMBER_FILE: Final = "in a folder named like an archive"  # whose members would have the same addresses


@dataclass(frozen=True, slots=True)
class LakeObject:
    """One image to label: an object of a store, or a member of a file with many images (see `members`).

    Attributes:
        uri: Address of the object; for a member the address of its file, `#/`, and its name in it.
        etag: Version of the object, or of the member's file; None if unknown.
        size: Bytes of the image, approximate for a row of Parquet; None if unknown.
        kept: Values of the columns of `--keep`.
        offset: Position of a member in its file: the first byte of its content, or the number of its row. None for an
            object of its own. With the address of a file: the position of its damage.
        modified: Time of the last write of the object, or of the member's file, in seconds since 1970 (UTC); None if
            unknown.
    """

    uri: str
    etag: str | None = None
    size: int | None = None
    kept: tuple[object, ...] = ()
    offset: int | None = None
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """`count` names at this position of the listing that are not labelled, and why."""

    uri: str
    reason: str
    count: int = 1


Listed: TypeAlias = LakeObject | Skipped
