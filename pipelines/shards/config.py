"""Configuration of sharding: annotations, images, and limits for their problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from pipelines.options import check_options, group, option
from pipelines.store import StoreOptions

MOST_MEGABYTES: Final = 1024  # a shard is in memory and written in one request


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """The options of `ray-detr shard`."""

    annotations: str = option("a COCO json; s3://, gs://, az://, a path", metavar="URI")
    images: str = option("the folder that contains the file names of the json", metavar="URI")
    out: str = option("an empty folder for the shards", metavar="URI")
    shard_megabytes: int = option(
        "size of the images in one shard", default=256, metavar="N", at_least=1, at_most=MOST_MEGABYTES
    )
    ambiguous_exif: Literal["stored", "upright"] = option(
        "for images whose size does not show whether boxes were drawn before or after EXIF rotation: take the boxes as "
        "drawn on the stored or on the upright image",
        default="stored",
    )
    decode_check: bool = option(
        "decode every image once; without it only headers are read, and a broken image stops the training", default=True
    )
    max_missing: float = option(
        "stop if more than this share of the images is missing or unreadable",
        default=0.01, metavar="SHARE", at_least=0, at_most=1,
    )  # fmt: skip
    max_unusable: float = option(
        "stop if training could not use more than this share of the annotations",
        default=0.05, metavar="SHARE", at_least=0, at_most=1,
    )  # fmt: skip
    max_images: int | None = option("only the first N images of the json (all)", default=None, metavar="N", at_least=1)
    shared_folders: bool = option(
        "declare that local paths are shared by all nodes, as with NFS; without it, local paths are refused on a "
        "cluster of several nodes",
        default=False,
    )
    image_options: StoreOptions = group(StoreOptions)
    verbose: bool = option("show Ray's own messages", default=False)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def out_options(self) -> StoreOptions:
        """Access to the shards."""
        return self.image_options.of_table()

    def resume_identity(self) -> dict[str, Any]:
        """Return the options that determine the bytes of the shards, besides the input."""
        return {
            "shard_megabytes": self.shard_megabytes,
            "ambiguous_exif": self.ambiguous_exif,
            "check_decodes": self.decode_check,
            "max_images": self.max_images,
        }
