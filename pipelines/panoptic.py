"""Write panoptic segmentations of images in COCO's format, and measure their quality."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from detr.segmentation.panoptic_quality import PanopticQuality, Quality, TrueSegment
from pipelines.errors import RayDetrError, UsageError, note_incomplete
from pipelines.labelling.fetching import OBJECT_KINDS
from pipelines.models import load_detector
from pipelines.store import StoreError, StoreOptions, Stores, without_secrets
from pipelines.store.uris import file_name

if TYPE_CHECKING:
    from detr.precision import Precision
    from detr.segmentation.detector import MaskDetector

JSON_NAME: Final = "panoptic.json"
PNG_FOLDER: Final = "panoptic"
_OTHER_JSON: Final = "COCO's instances_*.json is not a panoptic json: name panoptic_*.json."


@dataclass(frozen=True, slots=True)
class Segmented:
    """The result: the written file, and images that could not be read.

    Attributes:
        path: the json file; it is not written if no image could be read.
        images: in the json.
        segments: in the json.
        unreadable: a line for each image that could not be read.
        is_store_down: whether an image could not be read because of its store: the same command may work later.
    """

    path: Path
    images: int
    segments: int
    unreadable: tuple[str, ...]
    is_store_down: bool = False


def open_mask_detector(model: str, *, device: str = "auto", precision: Precision = "auto") -> MaskDetector:
    """Return the detector of a panoptic model.

    Raises:
        UsageError: there is no such model, or it is not panoptic.
        ValueError: there is no such device.
    """
    from detr.segmentation.detector import MaskDetector

    detector, _ = load_detector(model, StoreOptions(), device=device, precision=precision, masks=True)
    assert isinstance(detector, MaskDetector)
    return detector


def write_segmentations(
    images: Sequence[str],
    detector: MaskDetector,
    out: Path,
    *,
    threshold: float,
    image_ids: Mapping[str, int] | None = None,
    on_image: Callable[[int], None] = lambda _: None,
) -> Segmented:
    """Write `panoptic.json` and a PNG for each image, with one image in memory at a time.

    The json is written last. Images that cannot be read are left out.

    Args:
        images: paths or URIs.
        detector: of `open_mask_detector`.
        out: a new or empty folder.
        threshold: only queries with a score above it are used.
        image_ids: ids by file name; None numbers the images from 1.
        on_image: called with the number of finished images.

    Raises:
        UsageError: the folder is not empty, or `image_ids` does not have an image.
        RayDetrError: a file cannot be written, the device has too little memory for one image, or the network returned
            NaN or infinity.
    """
    import torch

    from detr.images.decoding import ImageError, decode
    from detr.segmentation.coco_panoptic import annotation, categories, to_png

    names = [PurePosixPath(file_name(image)).name for image in images]
    ids = dict(zip(names, range(1, len(names) + 1), strict=True)) if image_ids is None else image_ids
    if missing := sorted(set(names) - ids.keys()):
        raise UsageError(f"the --truth file has no image {missing[0]}. Give only images that it contains.")
    if doubles := len(names) - len({Path(name).stem for name in names}):
        raise UsageError(f"{doubles} images have the same name as another one. Segment them into separate folders.")
    entries, annotations, unreadable = [], [], []
    is_store_down = False
    try:
        (out / PNG_FOLDER).mkdir(parents=True, exist_ok=True)
        _require_unused(out)
        stores = Stores()
        for done, (image, name) in enumerate(zip(images, names, strict=True), start=1):
            try:
                picture = decode(stores.get(image).data)
                found = detector.segmentation(picture, threshold=threshold)
            except (FloatingPointError, torch.OutOfMemoryError) as error:
                raise RayDetrError(f"{without_secrets(image)}: {error}") from error
            except (ImageError, StoreError) as error:
                is_store_down |= isinstance(error, StoreError) and type(error) not in OBJECT_KINDS
                unreadable.append(f"{without_secrets(image)}: {error}")
                continue
            png = f"{Path(name).stem}.png"
            (out / PNG_FOLDER / png).write_bytes(to_png(found.ids))
            height, width = found.ids.shape
            entries.append({"id": ids[name], "file_name": name, "height": height, "width": width})
            annotations.append(annotation(found, image_id=ids[name], file_name=png))
            on_image(done)
        if entries:
            document = {"images": entries, "annotations": annotations, "categories": categories()}
            (out / JSON_NAME).write_text(json.dumps(document))
    except BaseException as error:
        if annotations:
            note_incomplete(error, str(out))
        if isinstance(error, OSError):
            raise RayDetrError(f"cannot write to {out}: {error.strerror or error}.") from error
        raise
    segments = sum(len(one["segments_info"]) for one in annotations)
    return Segmented(out / JSON_NAME, len(entries), segments, tuple(unreadable), is_store_down)


def _require_unused(out: Path) -> None:
    if (out / JSON_NAME).exists():
        raise UsageError(
            f"{out} already contains segmentations. --results {out / JSON_NAME} measures them; name another folder "
            "to segment again."
        )
    if any((out / PNG_FOLDER).iterdir()):
        raise UsageError(
            f"{out} contains PNGs, but no {JSON_NAME}. If a stopped command has left them, delete the folder and "
            "run the command again; else name another folder."
        )


def image_ids_of(truth: Path) -> dict[str, int]:
    """Return the id of each image of a panoptic json by file name.

    Raises:
        UsageError: it is another json, or the folder of its PNGs does not exist: nothing could be compared with it.
    """
    document = _truth(truth)
    if not truth.with_suffix("").is_dir():
        raise UsageError(f"the PNGs of {truth} are missing: there is no folder {truth.with_suffix('')}.")
    return {str(image["file_name"]): int(image["id"]) for image in document["images"]}


def quality_of_files(truth: Path, found: Path) -> dict[str, Quality]:
    """Return the panoptic quality of segmentations, over "All", "Things" and "Stuff".

    The PNGs of a json are in the folder next to it with the same name without `.json`, as in `panopticapi`.

    Raises:
        UsageError: a file is missing or damaged, or an image of the truth was not segmented.
    """
    from detr.segmentation.coco_panoptic import from_png

    true, other = _truth(truth), _document(found)
    by_image = {entry["image_id"]: entry for entry in other["annotations"]}
    things = {int(category["id"]) for category in true["categories"] if category["isthing"]}
    stuff = {int(category["id"]) for category in true["categories"]} - things
    quality = PanopticQuality()
    for entry in true["annotations"]:
        mine = by_image.get(entry["image_id"])
        if mine is None:
            raise UsageError(f"{found} has no segmentation of image {entry['image_id']} of the truth.")
        try:
            quality.add(
                from_png((truth.with_suffix("") / entry["file_name"]).read_bytes()),
                [
                    TrueSegment(int(one["id"]), int(one["category_id"]), bool(one.get("iscrowd", 0)))
                    for one in entry["segments_info"]
                ],
                from_png((found.with_suffix("") / mine["file_name"]).read_bytes()),
                {int(one["id"]): int(one["category_id"]) for one in mine["segments_info"]},
            )
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"image {entry['image_id']} cannot be compared: {error}") from error
    return {name: quality.of(ids) for name, ids in (("All", things | stuff), ("Things", things), ("Stuff", stuff))}


def _truth(path: Path) -> dict[str, Any]:
    document = _document(path)
    if any("isthing" not in category for category in document["categories"]):
        raise UsageError(f"{path}: a category does not have isthing. {_OTHER_JSON}")
    return document


def _document(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict) or not all(
        isinstance(value.get(name), list) for name in ("images", "annotations", "categories")
    ):
        raise UsageError(f"{path} is not in COCO's panoptic format: images, annotations and categories are expected.")
    if any("segments_info" not in annotation for annotation in value["annotations"]):
        raise UsageError(f"{path}: an annotation does not have segments_info. {_OTHER_JSON}")
    return value
