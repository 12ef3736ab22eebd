"""A detector that `transformers`' own Trainer has fine-tuned labels as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from detr.detectors import load_detector
from detr.scenes.scene import draw_scene
from tests.families import BUILD, differences, own_detections

NAMES = dict(enumerate(("disc", "square", "triangle", "star", "ring", "cross")))


class Scenes(torch.utils.data.Dataset[dict[str, Any]]):
    """Drawn scenes as the image processor of RT-DETR prepares them, with their boxes."""

    def __init__(self, processor: Any, count: int) -> None:
        self._processor, self._count = processor, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene = draw_scene(index, 96, 128)
        annotations = [
            {"image_id": index, "category_id": int(label), "bbox": [x, y, right - x, bottom - y], "iscrowd": 0,
             "area": (right - x) * (bottom - y)}
            for label, (x, y, right, bottom) in zip(scene.labels.tolist(), scene.boxes_xyxy.tolist(), strict=True)
        ]  # fmt: skip
        target = {"image_id": index, "annotations": annotations}
        prepared = self._processor(images=np.ascontiguousarray(scene.image), annotations=target, return_tensors="pt")
        return {"pixel_values": prepared["pixel_values"][0], "labels": prepared["labels"][0]}


def together(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": [dict(item["labels"]) for item in items],
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_checkpoint_of_the_trainer_is_labelled_with_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BUILD["rt_detr"][0]().config
    config.id2label = NAMES
    config.num_denoising = 0
    network, processor = hf.RTDetrForObjectDetection(config), BUILD["rt_detr"][1]()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    settings = hf.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, save_steps=3,
        report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = hf.Trainer(
        model=network, args=settings, train_dataset=Scenes(processor, 6), data_collator=together,
        processing_class=processor,
    )  # fmt: skip

    trainer.train()

    checkpoint = tmp_path / "checkpoint-3"
    images = [draw_scene(100 + number, 96, 128).image for number in range(3)]
    detector = load_detector(checkpoint, threshold=0.0, device="cpu")
    assert any(not torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    assert [category.name for category in detector.categories] == list(NAMES.values())
    pictures = [Image.fromarray(image) for image in images]
    for image, own in zip(images, own_detections(checkpoint, pictures), strict=True):
        score, box = differences(detector(np.ascontiguousarray(image)), own)
        assert score <= 1e-4
        assert box <= 0.05
