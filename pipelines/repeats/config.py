"""Configuration of `ray-detr repeats`: the criteria for repeats, and the contents of the page."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.marks.marks import MOST_LEVELS
from pipelines.options import check_options, group, option
from pipelines.store import S3, StoreOptions


@dataclass(frozen=True, slots=True)
class RepeatsConfig:
    """The criteria for repeats, and the rows of a table to search."""

    table: str = option("the detection table", metavar="URI")
    least_images: int = option(
        "smallest number of images of a folder that have the class at one place", default=15, metavar="N", at_least=2
    )
    least_share: float = option(
        "smallest share of the images of the folder, which excludes places by chance in large folders", default=0.005,
        metavar="SHARE", at_least=0, at_most=1,
    )  # fmt: skip
    iou: float = option(
        "smallest overlap (intersection over union) of boxes at one place", default=0.85, metavar="SHARE", at_least=0.3,
        at_most=1,
    )  # fmt: skip
    min_score: float = option(
        "smallest score of the detections that are counted; a mark also covers lower scores", default=0.3,
        metavar="SCORE", at_least=0, at_most=1,
    )  # fmt: skip
    max_area: float = option(
        "largest share of the picture that a box may cover; larger boxes overlap in any case", default=0.2,
        metavar="SHARE", above=0, at_most=1,
    )  # fmt: skip
    folder_levels: int = option(
        "0: the images of a camera are in one folder; 1: they are in the subfolders of one folder, such as one for "
        "each day; and so on", default=0, metavar="N", at_least=0, at_most=MOST_LEVELS,
    )  # fmt: skip
    classes: tuple[str, ...] = option("names of the classes to look for (all)", default=(), metavar="NAME")
    model: str | None = option(
        "only rows of this model, named as in the column `model` (all)", default=None, metavar="NAME"
    )
    settings: str | None = option(
        "only rows with these settings, as in the column `settings` (all)", default=None, metavar="TEXT"
    )
    most_places: int = option(
        "how many places the page shows, those with most images; the next page has the others", default=200,
        metavar="N", at_least=1,
    )  # fmt: skip
    pictures: int = option("how many pictures of each place the page shows", default=6, metavar="N", at_least=1)
    options: StoreOptions = group(StoreOptions, only=S3)

    def __post_init__(self) -> None:
        check_options(self)
