from collections.abc import Iterator

import torch
from torch import Tensor, nn

from detr.boxes import xyxy_to_cxcywh
from detr.classes import SCENE_CATEGORIES
from detr.model import DetrOutput
from detr.scene_files import PICTURE_SIZES
from detr.scenes_check import Unseen, detect_unseen, draw_unseen, truth


class Oracle(nn.Module):
    """Knows the truth of the next group: one query per object, and queries that say no-object."""

    def __init__(self, unseen: tuple[Unseen, ...]) -> None:
        super().__init__()
        self.groups: Iterator[Unseen] = iter(unseen)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, pixels: Tensor, mask: Tensor | None) -> DetrOutput:
        group = next(self.groups)
        self.shapes.append(tuple(pixels.shape))
        height, width = group.images.shape[-2:]
        logits = torch.zeros(len(group.scenes), 10, 7)
        logits[:, :, 6] = 20.0
        boxes = torch.full((len(group.scenes), 10, 4), 0.5)
        for image, scene in enumerate(group.scenes):
            count = len(scene.labels)
            logits[image, torch.arange(count), torch.from_numpy(scene.labels)] = 40.0
            corners = torch.from_numpy(scene.boxes_xyxy) / torch.tensor([width, height, width, height])
            boxes[image, :count] = xyxy_to_cxcywh(corners)
        return DetrOutput(logits, boxes)


def test_unseen_scenes_are_the_same_ones_in_every_picture_size() -> None:
    first, second = draw_unseen(1), draw_unseen(1)

    assert [tuple(group.images.shape) for group in first] == [(1, 3, *size) for size in PICTURE_SIZES]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))


def test_the_truth_counts_images_and_objects_from_one() -> None:
    unseen = draw_unseen(2)[:2]

    coco = truth(unseen)

    scenes = [scene for group in unseen for scene in group.scenes]
    assert [(image["id"], image["height"], image["width"]) for image in coco["images"]] == [
        (1, 480, 640),
        (2, 480, 640),
        (3, 640, 480),
        (4, 640, 480),
    ]
    assert [item["id"] for item in coco["annotations"]] == list(range(1, sum(len(s.labels) for s in scenes) + 1))
    first = coco["annotations"][0]
    xmin, ymin, xmax, ymax = scenes[0].boxes_xyxy[0].tolist()
    assert first["bbox"] == [xmin, ymin, xmax - xmin, ymax - ymin]
    assert first["category_id"] == SCENE_CATEGORIES[int(scenes[0].labels[0])].id
    assert coco["categories"][0] == {"id": 1, "name": "disc"}


def test_a_detector_that_knows_the_truth_gives_the_truth_back() -> None:
    unseen = draw_unseen(1)[:3]
    oracle = Oracle(unseen)

    rows = detect_unseen(oracle, unseen, 48)  # type: ignore[arg-type]

    sure = [row for row in rows if row["score"] > 0.5]
    expected = truth(unseen)["annotations"]
    assert len(rows) == 30  # every query of every image, whatever its score
    assert [(row["image_id"], row["category_id"]) for row in sure] == [
        (item["image_id"], item["category_id"]) for item in expected
    ]
    for row, item in zip(sure, expected, strict=True):
        torch.testing.assert_close(torch.tensor(row["bbox"]), torch.tensor(item["bbox"]), rtol=1e-4, atol=1e-2)
    assert oracle.shapes == [(1, 3, 48, 64), (1, 3, 64, 48), (1, 3, 45, 80)]  # the cap of 5/3 makes 16:9 smaller
