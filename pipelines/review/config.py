"""Configuration of a review: the choice of images for correction, and the import of corrections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from pipelines.exports.image_urls import check_image_urls, image_urls_option
from pipelines.options import check_options, group, option
from pipelines.store import S3, StoreOptions, join_uri, split_uri, without_secrets
from pipelines.store.uris import is_utf8

Choice = Literal["least-certain", "random", "per-class", "disagreement"]
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)

_OUT = option("a new or empty folder: for the files to correct, or for the shards", metavar="URI")
_CLASSES_OF = option(
    "take the classes from this model: a hub id, a directory, a URI, or scenes (those that the table's rows have)",
    default=None, metavar="REF",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReviewConfig:
    """The options of `ray-detr review --export`."""

    table: str = option("the detection table", metavar="URI")
    out: str = _OUT
    choice: Choice = "least-certain"
    count: int = option("number of images to choose", default=50, metavar="N", at_least=1)
    to: Literal["labelstudio", "coco-dataset"] = option("format of the files to correct", default="labelstudio")
    threshold: float = option(
        "smallest score of the detections that are drawn in advance, and that count in per-class and disagreement",
        default=0.3, metavar="SCORE", at_least=0, at_most=1,
    )  # fmt: skip
    run: str | None = option(
        "choose among the rows of this run (the current row of each image)", default=None, metavar="ID"
    )
    against: str | None = option("with disagreement: the earlier run to compare with", default=None, metavar="RUN")
    seed: int = option("random seed of random and per-class", default=0, metavar="N", at_least=0)
    classes_of: str | None = _CLASSES_OF
    image_urls: tuple[str, ...] = image_urls_option()
    options: StoreOptions = group(StoreOptions, only=S3)

    def __post_init__(self) -> None:
        check_options(self)
        if self.choice not in CHOICES:
            raise ValueError(f"export: {self.choice!r} is not one of {', '.join(CHOICES)}")
        if (self.choice == "disagreement") != (self.against is not None):
            raise ValueError(
                "against: disagreement needs the earlier run to compare with, and other choices do not use it"
            )
        if self.against is not None and self.against == self.run:
            raise ValueError(f"against: {self.against} is the run that images are chosen from. Name an earlier one.")
        check_image_urls(self.image_urls, self.to)
        if not is_utf8(self.out):
            raise ValueError(f"out: the name {self.out} is not UTF-8, as the files in it are. Give another name.")
        check_beside_table(self.out, self.table)


@dataclass(frozen=True, slots=True)
class CorrectionsConfig:
    """The options of `ray-detr review --import`."""

    table: str = option("the detection table", metavar="URI")
    out: str = _OUT
    files: tuple[str, ...] = ()
    classes_of: str | None = _CLASSES_OF
    add_classes: tuple[str, ...] = option("names of new classes that corrections may have", default=(), metavar="NAME")
    max_missing: float = option(
        "stop if more than this share of the reviewed images is missing, unreadable or has changed",
        default=0.1, metavar="SHARE", at_least=0, at_most=1,
    )  # fmt: skip
    max_unusable: float = option(
        "stop if training could not use more than this share of the boxes",
        default=0.05, metavar="SHARE", at_least=0, at_most=1,
    )  # fmt: skip
    options: StoreOptions = group(StoreOptions, only=S3)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.files:
            raise ValueError("import: name at least one file of corrections")
        check_beside_table(self.out, self.table)


def check_beside_table(out: str, table: str) -> None:
    """Refuse a folder inside the table.

    Raises:
        ValueError: it is inside.
    """
    inner, outer = (join_uri(*split_uri(uri)).rstrip("/") + "/" for uri in (out, table))
    if inner.startswith(outer):
        raise ValueError(f"out: {without_secrets(out)} is inside the table. Name a place beside it.")
