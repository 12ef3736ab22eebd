"""What a listing is made of: images to label, loose or inside a file, and names that are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

# Kinds of `Skipped`; the others are those of `skip_reason`.
DUPLICATE: Final = "duplicate"
OWN_TABLE: Final = "the table itself"
ARCHIVED: Final = "archived"  # as the listing says: where it does not, reading tells, and the image gets a row
WITHOUT_URI: Final = "without a uri"
COMMENT: Final = "comment"
NOT_UTF8: Final = "name is not UTF-8"
NOT_MODIFIED: Final = "not modified since"
IN_MEMBER_FILE: Final = "in a folder named like an archive"  # whose members would have the same addresses


@dataclass(frozen=True, slots=True)
class LakeObject:
    """One image to label: an object of a store, or a member of a file that holds many (see `members`).

    Attributes:
        uri: Address of the object; of a member that of its file, then `#/` and its name there.
        etag: Version of the object, or of the member's file; None where the source does not tell.
        size: Bytes of the image, about so many of a row of Parquet; None where the source does not tell.
        kept: Values of the columns of `--keep`.
        offset: Where a member is in its file: the first byte of its content, or the number of its row. None for an
            object of its own. With the address of a file: a place where the file is damaged.
        modified: When the object, or the member's file, was written, in seconds since 1970 (UTC); None where the source
            does not tell.
    """

    uri: str
    etag: str | None = None
    size: int | None = None
    kept: tuple[object, ...] = ()
    offset: int | None = None
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """`count` names at this place of the listing that are not labelled, and why."""

    uri: str
    reason: str
    count: int = 1


Listed: TypeAlias = LakeObject | Skipped
