"""Published weights of other families, where the hub's cache has them: they find what their own pipeline finds."""

import pytest
from PIL import Image

from detr.checkpoints.model_directory import CheckpointError
from detr.checkpoints.references import locate
from detr.detectors import load_detector
from detr.scenes.scene import draw_scene
from tests.families import differences, own_detections

pytestmark = pytest.mark.slow

PUBLISHED = (
    "AnnaZhang/lwdetr_small_60e_coco",
    "IDEA-Research/dab-detr-resnet-50",
    "PekingU/rtdetr_r50vd",
    "PekingU/rtdetr_v2_r18vd",
    "Roboflow/rf-detr-base",
    "SenseTime/deformable-detr",
    "hustvl/yolos-tiny",
    "microsoft/conditional-detr-resnet-50",
    "ustc-community/dfine-small-coco",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_find_what_their_own_pipeline_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    try:
        folder = locate(name)
    except CheckpointError as error:
        pytest.skip(f"the weights are not in the hub's cache: {error}")
    images = [Image.fromarray(draw_scene(number, 480, 640).image) for number in range(2)]
    detector = load_detector(folder, threshold=0.0, device="cpu", batch_size=2)

    for one, own in zip(detector(images), own_detections(folder, images), strict=True):
        score, box = differences(one, own)
        assert score <= 1e-4
        assert box <= 0.05
