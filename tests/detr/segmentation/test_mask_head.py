"""The mask head is the original's (golden values) and that of transformers, and an image's masks know no neighbours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DetrConfig as TheirConfig
from transformers import DetrForSegmentation, ResNetConfig

from detr.checkpoints.checkpoint import CheckpointError, fingerprint, load, save
from detr.checkpoints.identity import identify_directory
from detr.checkpoints.layouts import from_file, to_file
from detr.checkpoints.weight_names import Layout, bare_names, layout_of
from detr.classes import COCO_CATEGORIES, COCO_PANOPTIC_CATEGORIES, Category
from detr.detector import Detector
from detr.model import Detr
from detr.segmentation.mask_head import AttentionMap, MaskHead, PanopticDetr
from detr.training.finetune import with_categories
from tests.detr.test_model import padded

GOLDEN = Path(__file__).parents[2] / "golden"


def test_the_mask_head_is_the_originals() -> None:
    golden = load_file(GOLDEN / "mask_head.safetensors")
    weights = {key[2:]: value for key, value in golden.items() if key.startswith("w/")}
    attention, head = AttentionMap(128, 8), MaskHead(128, 8, (24, 20, 16))
    attention.load_state_dict(_within(weights, "bbox_attention."))
    head.load_state_dict(_within(weights, "mask_head."))

    with torch.no_grad():
        maps = attention(golden["query"], golden["memory"], golden["mask"])
        masks = [
            head(golden["src_proj"][image], maps[image], [golden[f"fpn{level}"][image] for level in range(3)])
            for image in range(2)
        ]

    torch.testing.assert_close(maps, golden["bbox_mask"], rtol=0, atol=1e-6)
    expected = golden["seg_masks"][:, 0]
    torch.testing.assert_close(torch.cat(masks), expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def theirs() -> DetrForSegmentation:
    """A small panoptic DETR of transformers with random weights, whose norms are not those of a fresh network."""
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], out_features=stages)
    config = TheirConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=128, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=6, num_labels=250,
    )  # fmt: skip
    model = DetrForSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query_position" in name:
                parameter.normal_()  # else all queries find the same
            elif parameter.dim() == 2:
                torch.nn.init.xavier_uniform_(parameter, gain=3.0 if ".q_proj." in name or ".k_proj." in name else 1.0)
            elif parameter.dim() == 1 and "backbone" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def folder(theirs: DetrForSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("panoptic")
    theirs.save_pretrained(path)
    return path


def test_logits_boxes_and_masks_are_those_of_transformers(theirs: DetrForSegmentation, folder: Path) -> None:
    model = load(folder)
    assert isinstance(model, PanopticDetr)
    pixels = torch.randn(1, 3, 97, 130)

    with torch.no_grad():
        expected = theirs(pixels)
        output, features = model.segment(pixels, None)
        masks = model.mask_logits(features, 0, torch.arange(6))

    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.boxes_cxcywh, expected.pred_boxes, rtol=0, atol=1e-6)
    assert masks.shape == (6, 25, 33)
    torch.testing.assert_close(masks, expected.pred_masks[0], rtol=0, atol=1e-5)
    assert output.logits.std(1).mean() > 0.01
    assert masks.std() > 0.1


def test_masks_are_those_of_the_image_alone(folder: Path) -> None:
    model = load(folder)
    assert isinstance(model, PanopticDetr)
    images = [torch.randn(3, 97, 130), torch.randn(3, 65, 99)]
    pixels, _ = padded(images, 101, 139)

    with torch.no_grad():
        _, together = model.segment(pixels, torch.tensor([[97, 130], [65, 99]]))
        for index, image in enumerate(images):
            _, alone = model.segment(image[None], None)
            expected = model.mask_logits(alone, 0, torch.arange(6))
            masks = model.mask_logits(together, index, torch.arange(6))
            torch.testing.assert_close(masks, expected, rtol=0, atol=1e-5)
            # some of them, in another order
            some = model.mask_logits(together, index, torch.tensor([4, 1]))
            torch.testing.assert_close(some, expected[[4, 1]], rtol=0, atol=1e-5)
        assert model.mask_logits(together, 1, torch.tensor([], dtype=torch.int64)).shape == (0, 17, 25)


def in_file(model: Detr, layout: Layout) -> dict[str, Tensor]:
    """The weights as files of panoptic models name them: all but the mask head within `detr`."""
    heads = ("mask_head.", "bbox_attention.")
    return {
        key if key.startswith(heads) else f"detr.{key}": value.clone() for key, value in to_file(model, layout).items()
    }


@pytest.mark.parametrize("layout", ["original", "timm", "resnet"])
def test_every_layout_is_read(folder: Path, layout: Layout) -> None:
    model = load(folder)
    names = in_file(model, layout)
    with torch.device("meta"):
        network = PanopticDetr(model.config)

    assert layout_of(bare_names(names).values()) == layout
    state = from_file(names, network, layout, source="m")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_the_fingerprint_needs_no_torch_and_the_classes_are_cocos(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(folder)
    identified = identify_directory(folder)

    assert identified is not None
    assert identified[1] == fingerprint(model)
    assert model.config.categories == COCO_PANOPTIC_CATEGORIES
    assert [(c.id, c.name) for c in COCO_PANOPTIC_CATEGORIES if c.is_used][79:82] == [
        (90, "toothbrush"), (92, "banner"), (93, "blanket"),
    ]  # fmt: skip
    assert sum(category.is_used for category in COCO_PANOPTIC_CATEGORIES) == 133
    assert caplog.text == ""  # the prefix `detr.` is usual


def test_the_originals_file_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder)
    small = replace(model.config, categories=COCO_CATEGORIES, mask_head=False)
    monkeypatch.setattr("detr.checkpoints.weights_file.VARIANTS", {"detr-resnet-50-dc5": small})
    torch.save({"model": in_file(model, "original")}, tmp_path / "detr-r50-dc5-panoptic.pth")

    read = load(tmp_path / "detr-r50-dc5-panoptic.pth")

    assert isinstance(read, PanopticDetr)
    assert fingerprint(read) == fingerprint(model)


def test_boxes_of_a_panoptic_model_need_no_masks(folder: Path) -> None:
    model = load(folder)
    boxes_only = Detr(replace(model.config, mask_head=False)).eval()
    boxes_only.load_state_dict(
        {key: value for key, value in model.state_dict().items() if not key.startswith(("mask_head", "bbox_attention"))}
    )
    image = torch.randint(256, (3, 90, 120), dtype=torch.uint8)

    found, expected = (Detector(one, device="cpu", threshold=0)(image) for one in (model, boxes_only))

    assert found.labels == expected.labels
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy)
    # but it is another model: the same boxes with another mask head have other masks
    assert fingerprint(model) != fingerprint(boxes_only)


def test_a_panoptic_model_is_fine_tuned_for_boxes(folder: Path, tmp_path: Path) -> None:
    tuned, _ = with_categories(load(folder), [Category(1, "cat")])

    save(tuned, tmp_path / "tuned")

    assert type(load(tmp_path / "tuned")) is Detr


def test_a_panoptic_model_is_not_saved(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a panoptic model cannot be saved"):
        save(load(folder), tmp_path / "saved")


def test_a_file_without_a_part_of_the_mask_head_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["mask_head.gn3.bias"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"'mask_head\.gn3\.bias' .* is missing"):
        load(tmp_path)
