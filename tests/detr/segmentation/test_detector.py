"""Detections with masks: the boxes of the detector without, and the same alone and in a batch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors import safe_open
from safetensors.torch import load_file

from detr.checkpoints.checkpoint import CheckpointError
from detr.detector import Detector
from detr.segmentation.detector import MaskDetector
from detr.segmentation.instance_masks import binary_masks, encoded_masks, run_lengths
from detr.segmentation.masked_detections import MaskedDetections
from tests.detr.segmentation.panoptic_network import small_panoptic

GOLDEN = Path(__file__).parents[2] / "golden"
IMAGES = [
    torch.randint(256, (3, height, width), dtype=torch.uint8) for height, width in ((90, 120), (61, 200), (120, 90))
]


def decoded(found: MaskedDetections, height: int, width: int) -> torch.Tensor:
    codes = [{"size": [height, width], "counts": counts.encode()} for counts in found.masks]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with numpy 2.4
        return torch.from_numpy(coco_mask.decode(codes)).permute(2, 0, 1).bool()


def test_masks_are_made_as_the_original_makes_them() -> None:
    path = GOLDEN / "panoptic_postprocess.safetensors"
    golden = load_file(path)
    with safe_open(path, "pt") as file:
        assert "PostProcess" not in json.loads(file.metadata()["info"])["versions"]
    sizes = golden["segm/processed_sizes"].tolist()
    padded = (max(height for height, _ in sizes), max(width for _, width in sizes))

    for image, (resized, upright) in enumerate(zip(sizes, golden["segm/orig_sizes"].tolist(), strict=True)):
        found = binary_masks(
            golden["segm/pred_masks"][image], resized=tuple(resized), image=tuple(upright), padded=padded
        )
        assert torch.equal(found.to(torch.uint8), golden[f"segm/masks{image}"][:, 0])


def test_run_lengths_are_cocos() -> None:
    mask = torch.zeros(1, 3, 4, dtype=torch.bool)
    mask[0, 1:, 1] = True  # columns first: 4 off, 2 on, 6 off

    assert run_lengths(mask) == ("426",)
    assert run_lengths(torch.zeros(0, 3, 4, dtype=torch.bool)) == ()


def test_large_masks_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, 8, 9)
    together = encoded_masks(logits, resized=(32, 36), image=(60, 70))
    monkeypatch.setattr("detr.segmentation.instance_masks.PIXELS_AT_ONCE", 2 * 60 * 70)

    assert encoded_masks(logits, resized=(32, 36), image=(60, 70)) == together
    assert encoded_masks(logits[:0], resized=(32, 36), image=(60, 70)) == ()


def test_an_image_has_the_masks_alone_that_it_has_in_a_batch() -> None:
    model = small_panoptic()
    detector = MaskDetector(model, device="cpu", threshold=0.0, batch_size=3)
    boxes = Detector(model, device="cpu", threshold=0.0)(IMAGES)

    together = detector.detect([detector.prepare(image) for image in IMAGES])
    for image, found, without in zip(IMAGES, together, boxes, strict=True):
        alone = detector(image)
        assert isinstance(found, MaskedDetections)
        assert isinstance(alone, MaskedDetections)
        assert found.labels == without.labels
        torch.testing.assert_close(found.boxes_xyxy, without.boxes_xyxy, rtol=0, atol=1e-3)
        height, width = image.shape[1:]
        masks, expected = decoded(found, height, width), decoded(alone, height, width)
        assert masks.shape == (6, height, width)
        assert (masks != expected).float().mean() < 1e-4  # a logit beside 0 may round to either side
        assert 0.02 < masks.float().mean() < 0.98


def test_masks_of_what_is_not_kept_are_not_computed() -> None:
    model = small_panoptic()
    every = MaskDetector(model, device="cpu", threshold=0.0)(IMAGES[0])
    threshold = float(every.scores[2])
    some = MaskDetector(model, device="cpu", threshold=threshold)(IMAGES[0])

    assert isinstance(every, MaskedDetections)
    assert isinstance(some, MaskedDetections)
    assert len(some) == 3
    assert some.masks == every.masks[:3]


@pytest.mark.parametrize("part", ["class_embed.bias", "bbox_embed.layers.2.bias", "mask_head.out_lay.bias"])
def test_values_that_are_not_finite_are_neither_an_empty_segmentation_nor_empty_masks(part: str) -> None:
    model = small_panoptic()
    torch.nn.init.constant_(model.get_parameter(part), float("nan"))
    detector = MaskDetector(model, device="cpu", threshold=0.0)

    with pytest.raises(FloatingPointError, match="the model produced NaN or infinite values in fp32"):
        detector.segmentation(IMAGES[0], threshold=0.0)
    with pytest.raises(FloatingPointError, match="the model produced NaN or infinite values in fp32"):
        detector(IMAGES[0])


def test_a_segmentation_that_does_not_fit_into_memory_names_the_device_and_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = MaskDetector(small_panoptic(), device="cpu")

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(detector, "_segment", no_memory)

    with pytest.raises(torch.OutOfMemoryError, match="cpu has too little memory for one image of 96 x 128 pixels"):
        detector.segmentation(IMAGES[0])


def test_a_model_without_a_mask_head_is_refused() -> None:
    with pytest.raises(CheckpointError, match="scenes has no mask head, so it gives boxes only"):
        MaskDetector("scenes", device="cpu")
