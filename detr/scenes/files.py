"""Write scenes to a folder: JPEGs and a COCO `instances.json`."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.random import PCG64, Generator
from PIL import Image

from detr.classes import SCENE_CATEGORIES
from detr.scenes.scene import Scene, draw_scene

# (height, width) -> weight: how often write_scenes draws it
PICTURE_SIZES: Mapping[tuple[int, int], int] = MappingProxyType(
    {(480, 640): 2, (640, 480): 2, (720, 1280): 2, (360, 360): 2, (667, 1000): 1, (900, 400): 1}
)
# (224, long side) in eleven ratios from 1 to 2.5: more shapes than are measured, and no larger than training needs
TRAINING_SIZES: Mapping[tuple[int, int], int] = MappingProxyType(
    {
        (224, round(224 * ratio)): weight
        for ratio, weight in zip(
            (1.0, 1.1, 1.2, 4 / 3, 1.4, 1.5, 5 / 3, 16 / 9, 2.0, 2.25, 2.5),
            (1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1),
            strict=True,
        )
    }
)
JPEG_QUALITY = 92
SET_SCENES = 1_000_000  # maximum size of a set, and the number of sets


def write_scenes(folder: Path, count: int, seed: int, *, sizes: Mapping[tuple[int, int], int] = PICTURE_SIZES) -> Path:
    """Write `count` scenes as `scene_<seed>_<number>.jpg` and a COCO `instances.json`; return the path of the json.

    JPEG of quality 92, so that the JPEG decoder is used as for photographs (and because PNG took 462 kB per scene at
    640 x 480, JPEG 61: MEASURED). Scene `number` of a seed does not depend on the count. Existing files with the same
    content are kept, so an interrupted call can be repeated.

    Args:
        folder: created if missing.
        count: up to a million.
        seed: of the whole set, 0 to 999,999; sets of different seeds share no scene. Scene `number` is
            `draw_scene(seed * 1,000,000 + number)`, so scenes of seeds from 10^12 on are in no set.
        sizes: `(height, width)` -> weight.

    Raises:
        ValueError: the seed or the count is outside its range.
        FileExistsError: the folder has another file (checked before anything is written), or a file of the same name
            with another content.
    """
    if not (1 <= count <= SET_SCENES and 0 <= seed < SET_SCENES):
        raise ValueError(
            f"cannot write {count} scenes of seed {seed}: give 1 to 1,000,000 scenes and a seed of 0 to 999,999."
        )
    names = [f"scene_{seed}_{number:06d}.jpg" for number in range(count)]
    _refuse_strangers(folder, {*names, "instances.json"})
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        height, width = _choose_size(seed, number, sizes)
        scene = draw_scene(seed * SET_SCENES + number, height, width)
        encoded = io.BytesIO()
        Image.fromarray(scene.image).save(encoded, "JPEG", quality=JPEG_QUALITY)
        _write(folder / name, encoded.getvalue())
        images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
        annotations += scene_annotations(scene, number + 1, len(annotations) + 1)
    truth = {
        "info": {"description": f"ray-detr scenes, seed {seed}", "version": "1"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": item.id, "name": item.name, "supercategory": "shape"} for item in SCENE_CATEGORIES],
    }
    _write(folder / "instances.json", json.dumps(truth, separators=(",", ":")).encode())
    return folder / "instances.json"


def scene_annotations(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """Yield a scene's objects as annotations of a COCO json, numbered from `first_id`."""
    rows = zip(scene.labels.tolist(), scene.boxes_xyxy.tolist(), strict=True)
    for annotation_id, (label, (xmin, ymin, xmax, ymax)) in enumerate(rows, first_id):
        yield {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": SCENE_CATEGORIES[label].id,
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "area": (xmax - xmin) * (ymax - ymin),
            "iscrowd": 0,
            "segmentation": [],
        }


def _choose_size(seed: int, number: int, sizes: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    ticket = int(Generator(PCG64([seed, number])).integers(sum(sizes.values())))
    return [size for size, weight in sizes.items() for _ in range(weight)][ticket]


def _refuse_strangers(folder: Path, expected: set[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Give an empty or a new folder.")
    partial = {f"{name}.part" for name in expected}
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in expected | partial)
    if strangers:
        raise FileExistsError(
            f"{folder} contains {strangers[0]}, which does not belong to these scenes ({len(strangers)} such files). "
            "Give an empty or a new folder."
        )


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically; keep a file with the same bytes, and never replace one with others."""
    if path.exists():
        if path.read_bytes() != data:
            raise FileExistsError(
                f"{path} exists already with other contents. Give an empty or a new folder, or remove it."
            )
        return
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(data)
    partial.replace(path)
