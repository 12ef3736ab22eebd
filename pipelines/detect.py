"""Detect objects in a few images, one after the other on this machine; `label` is for image lakes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from PIL import Image

from detr.detector_like import DetectorLike
from detr.images.decoding import ImageError, decode
from detr.images.drawing import draw_detections
from detr.postprocess import Detections
from detr.precision import Precision
from detr.tiles import Tiling
from pipelines.errors import RayDetrError
from pipelines.labelling.fetching import OBJECT_KINDS
from pipelines.lake.images import ImageStores
from pipelines.lake.members import split_member
from pipelines.lake.skipping import skip_reason
from pipelines.models import load_detector
from pipelines.store import StoreError, StoreOptions, without_secrets
from pipelines.store.uris import LOCAL_ROOT, file_name, scheme_of, split_uri, with_home

JPEG_QUALITY = 92
_MARK = b"drawn by ray-detr detect"  # the comment of the JPEG files that this module writes, and may replace


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: its class, how sure the model is (0..1), and its box (xmin, ymin, xmax, ymax) in upright pixels."""

    label: str
    category_id: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The upright size of an image, its detections, best first, and the file of its drawing."""

    image: str
    height: int
    width: int
    detections: tuple[Detection, ...]
    drawn: Path | None = None


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """An image that could not be read, with an error kind of the detection table."""

    image: str
    error_kind: str
    error: str


def find_images(names: Sequence[str]) -> list[str]:
    """Return the images of some paths, in order: files and addresses unchanged, and all images of local folders.

    Raises:
        ValueError: there is no such file, or no image in a folder, or a folder above it cannot be read.
    """
    images: list[str] = []
    for name in names:
        path = _local(name)
        try:
            is_image = path is None or path.is_file() or _is_inside_file(name)
            is_folder = path is not None and not is_image and path.is_dir()
        except OSError as error:
            raise ValueError(f"cannot read {name}: {error.strerror or error}") from error
        if is_image:
            images.append(name)
        elif path is not None and is_folder:
            inside = sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())
            folder = path if scheme_of(name) == "file" else Path(with_home(name))  # as given, for the results
            found = [str(folder / one) for one in inside if skip_reason(one) is None and not _is_drawn(path / one)]
            if not found:
                raise ValueError(f"there is no image in the folder {name}")
            images += found
        else:
            raise ValueError(f"there is no file {name}")
    return list(dict.fromkeys(images))


def _is_inside_file(name: str) -> bool:
    """Return whether a path is the address of an image inside an existing archive or Parquet file."""
    found = split_member(name)
    path = None if found is None else _local(found[0])
    return path is not None and path.is_file()


def open_detector(
    model: str,
    *,
    threshold: float,
    device: str = "auto",
    precision: Precision = "auto",
    tiling: Tiling | None = None,
) -> DetectorLike:
    """Return the detector for a model reference, as for `label`.

    Raises:
        RayDetrError: the model is not available.
        ValueError: the threshold is outside 0..1, or there is no such device.
    """
    return load_detector(model, StoreOptions(), threshold=threshold, device=device, precision=precision, tiling=tiling)[
        0
    ]


def detect(
    images: Sequence[str], detector: DetectorLike, *, draw: Path | None = None
) -> Iterator[ImageResult | ImageFailure]:
    """Yield the result of each image, in order, with one image in memory at a time.

    Args:
        images: paths or URIs, of `find_images`.
        detector: of `open_detector`.
        draw: a folder, created if missing, for a JPEG of every image with its boxes. Pictures of an earlier call are
            replaced, other files never.

    Raises:
        RayDetrError: a picture cannot be written, the device has too little memory for one image, or the network
            returned NaN or infinity.
    """
    stores = ImageStores()
    taken = {path.resolve() for path in map(_local, images) if path is not None}
    for image in images:
        name = without_secrets(image)
        try:
            picture = decode(stores.get(image).data)
            found = detector(picture)
        except (FloatingPointError, torch.OutOfMemoryError) as error:
            raise RayDetrError(f"{name}: {error}") from error
        except ImageError as error:
            yield ImageFailure(name, error.kind, str(error))
            continue
        except StoreError as error:
            yield ImageFailure(name, OBJECT_KINDS.get(type(error), "fetch_failed"), str(error))
            continue
        drawn = None
        if draw is not None:
            drawn = _write(draw_detections(picture, found), draw, PurePosixPath(file_name(image)).stem, taken)
            taken.add(drawn.resolve())
        yield ImageResult(name, picture.shape[1], picture.shape[2], _plain(found), drawn)


def _write(picture: Image.Image, folder: Path, stem: str, taken: Collection[Path]) -> Path:
    """Write a picture of this name to a free path of the folder, and return the path."""
    path = folder / f"{stem}.jpg"
    try:
        path = _free_path(folder, stem, taken)
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(path, "JPEG", quality=JPEG_QUALITY, comment=_MARK)
    except OSError as error:
        raise RayDetrError(f"cannot write the picture {path}: {error.strerror or error}.") from error
    return path


def _free_path(folder: Path, stem: str, taken: Collection[Path]) -> Path:
    """Return `stem.jpg` in the folder, or `stem-2.jpg` etc. if that is another file or a picture of this call."""
    path, number = folder / f"{stem}.jpg", 1
    while path.resolve() in taken or (path.exists() and not _is_drawn(path)):
        number += 1
        path = folder / f"{stem}-{number}.jpg"
    return path


def _is_drawn(path: Path) -> bool:
    """Return whether a file is a picture that `detect` has drawn."""
    try:
        with path.open("rb") as file:
            beginning = file.read(256)
    except OSError:
        return False
    return beginning.startswith(b"\xff\xd8") and _MARK in beginning


def _local(image: str) -> Path | None:
    """Return the path of an image in a file of this machine; None for others."""
    root, key = split_uri(image)
    return Path("/", key) if root == LOCAL_ROOT else None


def _plain(found: Detections) -> tuple[Detection, ...]:
    values = zip(
        found.labels, found.category_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
    )
    return tuple(Detection(label, category_id, score, tuple(box)) for label, category_id, score, box in values)
