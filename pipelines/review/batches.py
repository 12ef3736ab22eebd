"""Records of review batches: the images of a table that were exported for correction, one object for each batch.

They are stored in the table as `_reviews/<number>.json`, created once and never changed. An image version in one of
them is not chosen again; deleting a record makes its images available.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from detr.classes import Category
from pipelines.errors import RayDetrError
from pipelines.review.config import Choice
from pipelines.store import Store, join_uri, put_if_absent, without_known_secrets, without_secrets
from pipelines.strict_json import Count, Time, parse_object, record_of

REVIEWS: Final = "_reviews/"
RECORD_VERSION: Final = 1

_KEY: Final = re.compile(rf"{REVIEWS}(\d{{4,9}})\.json")


@dataclass(frozen=True, slots=True)
class ReviewImage:
    """An image that was exported for correction, with values of its row.

    Attributes:
        uri: its address.
        etag: version of the labelled object; None if the source has none.
        size: bytes of the labelled object; None if unknown.
        width: pixels of the upright picture.
        height: pixels of the upright picture.
        name: relative path without the common leading folders of all images of the batch.
        model: `name@sha256[:12]`.
        run_id: the run that wrote the row.
    """

    uri: str
    etag: str | None
    size: Count | None
    width: Count
    height: Count
    name: str
    model: str
    run_id: str

    @property
    def shown_uri(self) -> str:
        """The address without known secrets, as in files for correction."""
        return without_known_secrets(self.uri)

    @property
    def shown_uris(self) -> tuple[str, ...]:
        """The addresses that files for correction may have: earlier releases left out all values of a web query."""
        return tuple(dict.fromkeys((self.shown_uri, without_secrets(self.uri))))


@dataclass(frozen=True, slots=True)
class Batch:
    """The record of a batch.

    Attributes:
        number: 1, 2, ... in the order of the table's batches.
        created: when, UTC.
        choice: how its images were chosen.
        count: requested number of images.
        seed: for random choices.
        threshold: minimum score of the pre-drawn detections.
        run: the run that images were chosen from; None: the current row of each image.
        against: the earlier run of a disagreement.
        to: format of the files.
        out: the folder of the files.
        categories: the available classes.
        images: in the order of choice.
    """

    number: Count
    created: Time
    choice: Choice
    count: Count
    seed: int
    threshold: float
    run: str | None
    against: str | None
    to: str
    out: str
    categories: tuple[Category, ...]
    images: tuple[ReviewImage, ...]


def batch_key(number: int) -> str:
    """Return the key of a batch's record in its table."""
    return f"{REVIEWS}{number:04}.json"


def read_batches(table: Store) -> list[Batch]:
    """Return the batches of a table, oldest first. Memory: about 500 bytes per exported image.

    Raises:
        RayDetrError: a record is damaged, or of another release.
        StoreError: the store refused.
    """
    keys = [entry.key for entry in table.list(REVIEWS) if _KEY.fullmatch(entry.key)]
    return sorted((_read(table, key) for key in keys), key=lambda batch: batch.number)


def record_batch(table: Store, batch: Batch) -> None:
    """Write the record of a new batch.

    Raises:
        RayDetrError: another command took the number meanwhile.
        StoreError: the store refused.
    """
    fields = {"record_version": RECORD_VERSION, **asdict(batch), "created": batch.created.isoformat()}
    data = (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()
    if put_if_absent(table, batch_key(batch.number), data) != data:
        raise RayDetrError(
            f"another command wrote batch {batch.number} of {table.uri} at the same time, maybe of the same images. "
            f"Delete {batch.out} and run this command again."
        )


def distinct_names(images: Sequence[ReviewImage]) -> list[ReviewImage]:
    """Return the images with unique names: duplicate names get a number as prefix."""
    taken: set[str] = set()
    named = []
    for number, image in enumerate(images):
        name = image.name if image.name not in taken else f"{number}/{image.name}"
        taken.add(name)
        named.append(replace(image, name=name))
    return named


def _read(table: Store, key: str) -> Batch:
    uri = join_uri(table.uri, key)
    try:
        fields = parse_object(table.get(key).data)
        version = fields.pop("record_version")
        if version != RECORD_VERSION:
            raise RayDetrError(
                f"{uri} is a record of version {version}, and this release reads {RECORD_VERSION}. Use the release "
                "that wrote it."
            )
        batch = record_of(Batch, fields)
        if batch_key(batch.number) != key:
            raise ValueError("its number is not that of its name")  # noqa: TRY301 - one sentence for all damage
    except (KeyError, ValueError) as error:
        raise RayDetrError(
            f"{uri} is damaged: it cannot be read as the record of a review batch. Restore it, or delete it to make "
            "its images available again."
        ) from error
    return batch
