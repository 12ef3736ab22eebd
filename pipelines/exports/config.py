"""Configuration of exports and queries: rows, format and destination."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipelines.exports.image_urls import check_image_urls, image_urls_option
from pipelines.options import check_options, group, option
from pipelines.store import S3, StoreOptions, check_no_secret, join_uri, split_uri, without_secrets
from pipelines.store.uris import LOCAL_ROOT, is_utf8

Format = Literal[
    "parquet", "jsonl", "csv", "coco", "coco-dataset", "yolo", "voc", "labelstudio", "megadetector", "iceberg"
]
SUFFIXES: Final[Mapping[Format, str]] = {
    "parquet": "parquet", "jsonl": "jsonl", "csv": "csv", "coco-dataset": "json", "labelstudio": "json",
    "megadetector": "json",
}  # fmt: skip
"""The formats with a single file, and its file name extension; the others are folders, or a table elsewhere."""

RESULT_SUFFIXES: Final = (".csv", ".jsonl", ".parquet")
"""File name extensions of a query's result."""

_FOLDERS: Final[tuple[Format, ...]] = ("coco", "yolo", "voc")
_OF_ROWS: Final[tuple[Format, ...]] = ("parquet", "jsonl", "csv", "iceberg")
TASKS_PER_FILE: Final = 1000  # users report that larger imports of Label Studio time out
_FILE_IMAGES: Final[Mapping[str, int]] = {"labelstudio": TASKS_PER_FILE}
_FILE_SUFFIX: Final = re.compile(r"\.[a-zA-Z][a-zA-Z0-9]{0,7}$")  # not a version, such as v1.2

_TABLE = option("the detection table", metavar="URI")
_MODEL = option("only rows of this model, named as in the column `model` (all)", default=None, metavar="NAME")
_SETTINGS = option("only rows with these settings, as in the column `settings` (all)", default=None, metavar="TEXT")


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The options of `ray-detr export`."""

    table: str = _TABLE
    out: str = option(
        "a local file ending in .parquet, .jsonl, .csv or .json, or a new or empty folder at any URI; yolo, voc and "
        "coco are always folders; NAMESPACE.TABLE for iceberg",
        metavar="URI",
    )
    latest: bool = option("only the current row of each image (all rows)", default=False)
    model: str | None = _MODEL
    settings: str | None = _SETTINGS
    format: Format | None = option(
        "output format (by the suffix of --out; parquet for a folder): csv has one line for each box, coco is results "
        "files and their images.json, coco-dataset is for CVAT and FiftyOne",
        flag="--to", aliases=("--format",), default=None,
    )  # fmt: skip
    file_images: int | None = option(
        "most images in each file of a folder (labelstudio: 1000; otherwise files of about 64 MB)",
        default=None, metavar="N", at_least=1,
    )  # fmt: skip
    image_urls: tuple[str, ...] = image_urls_option()
    keep_repeats: bool = option(
        "include detections that a mark of `ray-detr repeats` covers (excluded and counted)", default=False
    )
    catalog: str = option(
        "with --to iceberg: name of the catalog in pyiceberg's configuration", default="default", metavar="NAME"
    )
    options: StoreOptions = group(StoreOptions, only=S3)

    def __post_init__(self) -> None:
        check_options(self)
        check_image_urls(self.image_urls, self.kind)
        if self.format == "iceberg":
            if not re.fullmatch(r"[^./]+(\.[^./]+)+", self.out):
                raise ValueError(f"out: {self.out} does not name an Iceberg table: write NAMESPACE.TABLE.")
            if self.latest or (self.model, self.settings) != (None, None):
                raise ValueError(
                    "latest, model, settings: these cannot be used with Iceberg, where whole files are registered. "
                    "Choose rows in the query."
                )
            return
        out, table = (join_uri(*split_uri(uri)).rstrip("/") + "/" for uri in (self.out, self.table))
        if out.startswith(table):
            raise ValueError(f"out: {without_secrets(self.out)} is inside the table. Name a place beside it.")
        suffix = _FILE_SUFFIX.search(self.out)
        if self.format in _FOLDERS:
            if suffix is not None:
                raise ValueError(
                    f"out: {self.format} is a folder of files, but {without_secrets(self.out)} is the name of a file. "
                    "Name a folder."
                )
            return
        if not self.is_file:
            if suffix is not None:
                raise ValueError(
                    f"out: {without_secrets(self.out)} would be a folder, but has the suffix of a file, and the "
                    f"suffixes of files are {' or '.join(sorted({f'.{one}' for one in SUFFIXES.values()}))}. Change "
                    f"{suffix[0]}, or end a folder's name with a slash."
                )
            return
        if split_uri(self.out)[0] != LOCAL_ROOT:
            raise ValueError(
                f"out: {without_secrets(self.out)} is one file in an object store, which cannot be written piece by "
                "piece. Name a folder there, or a file on this machine."
            )
        if self.format is None and suffix is not None and suffix[0] == ".json":
            kinds = ", ".join(kind for kind, one in SUFFIXES.items() if one == "json")
            raise ValueError(f"out: {self.out} may be one of several formats. Choose one with --to: {kinds}.")
        if self.format is not None and not self.out.endswith(f".{SUFFIXES[self.format]}"):
            raise ValueError(
                f"out: {self.out} does not end in .{SUFFIXES[self.format]}. Change the suffix, or omit the format."
            )
        if self.file_images is not None:
            raise ValueError("file images: one file holds all images. Name a folder, whose files are numbered.")

    @property
    def is_file(self) -> bool:
        """Whether the export is one file, not a folder."""
        return self.format not in _FOLDERS and any(self.out.endswith(f".{suffix}") for suffix in SUFFIXES.values())

    @property
    def kind(self) -> Format:
        """The output format."""
        if self.format is not None:
            return self.format
        return next((kind for kind, suffix in SUFFIXES.items() if self.out.endswith(f".{suffix}")), "parquet")

    @property
    def most_images(self) -> int | None:
        """Largest number of images in a file of a folder."""
        return _FILE_IMAGES.get(self.kind) if self.file_images is None else self.file_images

    @property
    def is_of_images(self) -> bool:
        """Whether the format is image-based, so that each image must appear once."""
        return self.kind not in _OF_ROWS


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """The options of `ray-detr query`.

    `sql` is one query of DuckDB's SQL. It may name `detections` (one row for each detected object of a current row;
    `repeat` is the id of the mark that covers it, or NULL), `images` (the current row of each image, as
    `exports.current` chooses it), `rows` (all published rows) and `repeats` (the marks in force).
    """

    table: str = _TABLE
    sql: str = ""
    model: str | None = _MODEL
    settings: str | None = _SETTINGS
    out: Path | None = option(
        "write the whole result to a new file ending in .csv, .jsonl or .parquet (print it)",
        default=None, metavar="FILE",
    )  # fmt: skip
    most_rows: int = option(
        "largest number of rows to print", flag="--max-rows", default=1_000, metavar="N", at_least=1
    )
    options: StoreOptions = group(StoreOptions, only=S3)

    def __post_init__(self) -> None:
        check_options(self)
        check_no_secret("table", self.table, instead="Omit it: credentials are found as docs/security.md says.")
        if self.out is not None and not is_utf8(str(self.out)):
            raise ValueError(f"out: the name {self.out} is not UTF-8, in which DuckDB writes. Give another name.")
        if self.out is not None and self.out.suffix not in RESULT_SUFFIXES:
            raise ValueError(f"out: {self.out} does not end in one of {', '.join(RESULT_SUFFIXES)}.")
