"""Detectors of `transformers` find what that library's own pipeline finds, alone and among other images."""

import importlib.util
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers as hf
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from detr.checkpoints.model_directory import CheckpointError
from detr.classes import UnknownClass
from detr.detector import Detector
from detr.detector_like import DetectorLike
from detr.detectors import load_detector
from detr.families import FAMILIES
from detr.images.results import TooExtreme
from detr.transformers_detector import TransformersDetector
from tests.families import (
    BUILD,
    EDGES,
    LABELS,
    copied,
    differences,
    matches,
    own_detections,
    random_images,
    settings_of_processor,
    write_family,
)

EXACT = r"(bbox\w*|class\w*|score\w*|integral|decoder_input_proj)(\.\d+)?$"  # parts for scores, boxes and anchors
SIZES = ((50, 70), (70, 50), (50, 70), (33, 90), (50, 70), (64, 64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A model directory of every family, each written when it is first asked for."""

    class Folders(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            self[family] = write_family(family, tmp_path_factory.mktemp(family))
            return self[family]

    return Folders()


def test_every_family_has_a_model_here() -> None:
    assert sorted(BUILD) == sorted(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_finds_what_its_own_pipeline_finds_alone_and_in_a_batch(family: str, folders: dict[str, Path]) -> None:
    images = random_images(*SIZES)
    expected = own_detections(folders[family], images)
    detector = load_detector(folders[family], threshold=0.0, batch_size=4, device="cpu")

    alone, together = [detector(image) for image in images], detector(images)

    for found in (alone, together):
        for one, own in zip(found, expected, strict=True):
            score, box = differences(one, own)
            assert score <= 1e-4
            assert box <= 0.05
    assert len({tuple(one.scores.tolist()) for one in alone}) > 1, "the model does not tell pictures apart"
    assert all(one.scores.tolist() == sorted(one.scores.tolist(), reverse=True) for one in alone)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_computes_linear_layers_and_convolutions_with_onednn_on_a_cpu(
    family: str, folders: dict[str, Path]
) -> None:
    detector = load_detector(folders[family], device="cpu")

    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        detector(random_images((50, 70)))

    called = {event.name for event in recorded.events()}
    assert {"mkldnn::_convolution_pointwise", "mkldnn::_linear_pointwise"} <= called
    assert "aten::_slow_conv2d_forward" not in called


def test_pictures_of_one_size_share_a_batch_and_others_do_not(folders: dict[str, Path]) -> None:
    detector = load_detector(folders["deformable_detr"], batch_size=2, device="cpu")

    shapes = [detector.target_shape(height, width) for height, width in SIZES]
    batches = detector.batches(shapes)

    assert sorted(batch.indices for batch in batches) == [(0, 2), (1,), (3,), (4,), (5,)]
    assert all((batch.height, batch.width) == shapes[index] for batch in batches for index in batch.indices)


@pytest.mark.parametrize(
    ("family", "processor"),
    [("conditional_detr", hf.ConditionalDetrImageProcessor), ("rt_detr", hf.RTDetrImageProcessor)],
)
def test_an_image_processor_that_pads_to_one_size_is_followed_with_its_mask(
    family: str, processor: Any, tmp_path: Path
) -> None:
    size = {"height": 96, "width": 96}
    longest = {"max_height": 96, "max_width": 96}
    folder = write_family(family, tmp_path, processor=processor(size=longest, do_pad=True, pad_size=size))
    images = random_images(*SIZES)
    expected = own_detections(folder, images)
    detector = load_detector(folder, threshold=0.0, batch_size=8, device="cpu")

    alone, together = [detector(image) for image in images], detector(images)

    assert detector.target_shape(50, 70) == (96, 96)
    for found in (alone, together):
        for one, own in zip(found, expected, strict=True):
            score, box = differences(one, own)
            assert score <= 1e-4
            assert box <= 0.05


def test_weights_in_shards_are_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["rt_detr"]
    network = hf.AutoModelForObjectDetection.from_pretrained(folder)
    network.save_pretrained(tmp_path, max_shard_size="100KB")
    hf.AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    whole, shards = load_detector(folder, threshold=0.0), load_detector(tmp_path, threshold=0.0)

    (image,) = random_images((50, 70))
    assert torch.equal(whole(image).scores, shards(image).scores)
    assert shards.identity == whole.identity


def test_the_fingerprint_is_of_weights_configuration_and_image_processor(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["yolos"]
    same = copied(folder, tmp_path / "same", transformers_version="0.1", _name_or_path="elsewhere")
    labels = copied(folder, tmp_path / "labels", id2label={"0": "cat", "1": "dog", "2": "cow"})
    sizes = settings_of_processor(copied(folder, tmp_path / "sizes"), size={"shortest_edge": 32, "longest_edge": 64})
    weights = copied(folder, tmp_path / "weights")
    tensors = safetensors.torch.load_file(weights / "model.safetensors")
    tensors["vit.embeddings.cls_token"][0, 0, 0] += 1
    safetensors.torch.save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})

    identities = [load_detector(one).identity for one in (folder, same, labels, sizes, weights)]

    assert identities[0] == identities[1]
    assert len(set(identities[1:])) == 4


COCO80 = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee "
    "skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass "
    "cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink "
    "refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
)
DARKNET = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant",
           "dining table": "diningtable", "tv": "tvmonitor"}  # fmt: skip


def of_coco(*, darknet: bool) -> dict[int, str]:
    names = [name.replace("_", " ") for name in COCO80.split()]
    return dict(enumerate([DARKNET.get(name, name) for name in names] if darknet else names))


@pytest.mark.parametrize("darknet", [False, True])
def test_the_80_classes_of_coco_have_coco_s_ids_and_keep_the_model_s_names(darknet: bool, tmp_path: Path) -> None:
    network = BUILD["yolos"][0]()
    config = network.config
    config.id2label = of_coco(darknet=darknet)
    hf.YolosForObjectDetection(config).save_pretrained(tmp_path)
    BUILD["yolos"][1]().save_pretrained(tmp_path)

    categories = {category.name: category.id for category in load_detector(tmp_path).categories}

    assert categories["person"] == 1
    assert categories["tvmonitor" if darknet else "tv"] == 72
    assert categories["toothbrush"] == 90
    assert len(categories) == 80


def test_other_classes_have_their_index_or_the_id_that_the_configuration_gives(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    given = copied(folders["yolos"], tmp_path / "given", category_ids=[3, 7, 11])
    wrong = copied(folders["yolos"], tmp_path / "wrong", category_ids=[3, 7])

    assert [(one.id, one.name) for one in load_detector(folders["yolos"]).categories] == list(LABELS.items())
    assert [one.id for one in load_detector(given).categories] == [3, 7, 11]
    with pytest.raises(CheckpointError, match="category_ids must be a list of 3 integers"):
        load_detector(wrong)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "owlvit"}, r"'owlvit' cannot be used: it detects what a text describes"),
        ({"model_type": "grounding-dino"}, r"it detects what a text describes, and has no fixed classes"),
        ({"model_type": "pp_ocrv5_server_det"}, r"it finds outlines of text lines, not boxes of classes"),
        ({"model_type": "pp_doclayout_v3"}, r"it finds the order of the parts of a document"),
        ({"model_type": "bert"}, r"it is not a supported object detector\. The supported model types are .*rt_detr"),
        ({"model_type": "mask2former"}, r"'mask2former' cannot be used: it is not a supported object detector"),
        ({"model_type": ["yolos"]}, r"model_type must be a string, not \['yolos'\]"),
        ({"architectures": "YolosModel"}, r"YolosModel does not detect boxes"),
        (
            {"architectures": ["RfDetrForInstanceSegmentation"], "model_type": "rf_detr"},
            r"RfDetrForInstanceSegmentation does not detect boxes\. Only RF-DETR models for object detection",
        ),
    ],
)
def test_what_does_not_detect_boxes_is_refused_by_name(
    config: dict[str, Any], sentence: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        load_detector(copied(folders["yolos"], tmp_path / "other", **config))


def test_a_missing_library_is_named_with_what_installs_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.util.find_spec
    missing = {"transformers"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else installed(name))

    with pytest.raises(CheckpointError, match=r"RT-DETR models need transformers, which is not installed\. Install it "
                                              r"with: pip install 'ray-detr\[transformers\]'"):  # fmt: skip
        load_detector(folders["rt_detr"])

    missing.clear()
    missing.add("timm")
    load_detector(folders["rt_detr"])
    backbone = {"model_type": "timm_backbone", "backbone": "resnet18"}
    with pytest.raises(CheckpointError, match="Deformable DETR models need timm, which is not installed"):
        load_detector(copied(folders["deformable_detr"], tmp_path / "timm", backbone_config=backbone))


def test_weights_in_a_pickle_are_refused_unread(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["rt_detr"], tmp_path / "pickle")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not read")

    with pytest.raises(CheckpointError, match=r"its weights are in pytorch_model\.bin\. Models that run through trans"):
        load_detector(folder)


def test_a_missing_weight_is_refused_and_not_drawn_at_random(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["yolos"], tmp_path / "incomplete")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["class_labels_classifier.layers.0.bias"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(
        CheckpointError, match=r"'class_labels_classifier\.layers\.0\.bias' is missing\. It is not a YOLOS"
    ):
        load_detector(folder)


def test_damaged_weights_and_a_wrong_configuration_are_refused_in_a_sentence(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    damaged = copied(folders["yolos"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-100])
    wider = copied(folders["yolos"], tmp_path / "wider", hidden_size=32)

    with pytest.raises(CheckpointError, match="its weights cannot be read"):
        load_detector(damaged)
    with pytest.raises(
        CheckpointError, match=r"'bbox_predictor\.layers\.0\.bias' has shape 16, but config\.json requires 32\.$"
    ):
        load_detector(wider)


def test_code_of_a_model_repository_is_never_run(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from pathlib import Path\nPath('exploded').touch()\nclass Own: ...\n"
    classes = {"AutoConfig": "own.Own", "AutoModelForObjectDetection": "own.Own"}
    known = copied(folders["yolos"], tmp_path / "known", auto_map=classes)
    settings_of_processor(known, auto_map={"AutoImageProcessor": "own.Own"})
    unknown = copied(folders["yolos"], tmp_path / "unknown", auto_map=classes, model_type="own")
    for folder in (known, unknown):
        (folder / "own.py").write_text(code)

    load_detector(known)
    with pytest.raises(CheckpointError, match="'own' cannot be used"):
        load_detector(unknown)

    assert not (tmp_path / "exploded").exists()


def test_an_image_processor_that_the_network_cannot_follow_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    none = settings_of_processor(copied(folders["yolos"], tmp_path / "none"), do_resize=False)
    many = settings_of_processor(copied(folders["rt_detr"], tmp_path / "many"), size=EDGES)
    bare = copied(folders["rt_detr"], tmp_path / "bare")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (bare / name).unlink(missing_ok=True)

    with pytest.raises(CheckpointError, match=r"its image processor does not resize \(do_resize is false\)"):
        load_detector(none)
    with pytest.raises(CheckpointError, match="gives pictures different sizes, but a RT-DETR network takes one fixed"):
        load_detector(many)
    with pytest.raises(CheckpointError, match="so it is unknown how images are resized"):
        load_detector(bare)


def test_a_picture_too_narrow_for_the_image_processor_is_refused_and_a_square_one_takes_it(
    folders: dict[str, Path],
) -> None:
    narrow = torch.zeros((3, 1, 500), dtype=torch.uint8)

    with pytest.raises(TooExtreme, match=r"500 x 1 pixels \(width x height\) cannot be resized by the image processor"):
        load_detector(folders["deformable_detr"]).target_shape(1, 500)
    with pytest.raises(TooExtreme):
        load_detector(folders["yolos"])(narrow)
    assert len(load_detector(folders["rt_detr"], threshold=0.0)(narrow)) == 12


def test_pictures_three_pixels_high_are_taken_for_pixels_and_not_for_channels(folders: dict[str, Path]) -> None:
    (image,) = random_images((3, 40))

    (own,) = own_detections(folders["rt_detr"], [image])

    assert max(differences(load_detector(folders["rt_detr"], threshold=0.0)(image), own)) <= 1e-4


@pytest.mark.parametrize(
    ("family", "precision"),
    # with random weights, activations of the other families are smaller than what float16 can hold
    [*((family, "bf16") for family in sorted(FAMILIES)), ("yolos", "fp16"), ("lw_detr", "fp16"), ("dab-detr", "fp16")],
)
def test_half_precision_finds_about_the_same_with_heads_in_float32(
    family: str, precision: Any, folders: dict[str, Path]
) -> None:
    images = random_images(*SIZES[:3])
    exact = load_detector(folders[family], threshold=0.0, device="cpu")(images)
    detector = load_detector(folders[family], threshold=0.0, batch_size=2, device="cpu", precision=precision)
    assert isinstance(detector, TransformersDetector)
    outputs: list[Any] = []
    detector._network.register_forward_hook(lambda *values: outputs.append(values[-1]))
    exact_parts = [part for name, part in detector._network.named_modules() if re.search(EXACT, name)]
    computed: list[Any] = []
    for part in exact_parts:
        part.register_forward_hook(lambda *values: computed.append(values[-1].dtype))

    found = detector(images)

    assert detector.precision == precision
    assert set(computed) == {torch.float32}
    assert [(output.logits.dtype, output.pred_boxes.dtype) for output in outputs] == [(torch.float32,) * 2] * 2
    assert any(not torch.equal(one.scores, other.scores) for one, other in zip(found, exact, strict=True))
    # a rounding can make a decoder begin at other places, so that a few boxes have no counterpart
    near = [matches(one, other, score=0.02, pixels=1.0) for one, other in zip(found, exact, strict=True)]
    assert sum(near) >= 0.5 * sum(len(one) for one in exact), near


def test_tf32_on_a_cpu_is_refused_in_a_sentence(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="tf32 needs a GPU"):
        load_detector(folders["yolos"], precision="tf32", device="cpu")


def test_auto_is_fp32(folders: dict[str, Path]) -> None:
    assert load_detector(folders["yolos"], device="cpu").precision == "fp32"


def test_thresholds_and_wanted_classes_are_as_with_detr(folders: dict[str, Path]) -> None:
    (image,) = random_images((50, 70))
    everything = load_detector(folders["conditional_detr"], threshold=0.0)(image)
    scores = [score for label, score in zip(everything.labels, everything.scores.tolist(), strict=True)
              if label == "cat"]  # fmt: skip

    found = load_detector(folders["conditional_detr"], threshold=1.0, classes={"cat": scores[2]})(image)

    assert found.labels == ("cat",) * 3
    assert found.category_ids.tolist() == [0] * 3
    assert found.scores.tolist() == scores[:3]
    with pytest.raises(UnknownClass, match="'hrose' is not a class of pets"):
        load_detector(folders["conditional_detr"], classes={"hrose": None}, name="pets")


def test_a_batch_too_large_for_the_device_s_memory_is_halved(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(*[(50, 70)] * 10)
    detector = load_detector(folders["rt_detr_v2"], threshold=0.0, batch_size=8)
    assert isinstance(detector, TransformersDetector)
    expected = [detector(image) for image in images]
    given, compute = [], detector._network.forward

    def limited(pixel_values: torch.Tensor, **others: Any) -> Any:
        given.append(len(pixel_values))
        if len(pixel_values) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return compute(pixel_values=pixel_values, **others)

    monkeypatch.setattr(detector._network, "forward", limited)
    detector.take_busy_seconds()
    began = time.perf_counter()
    found = detector(images)

    assert 0 < detector.take_busy_seconds() < time.perf_counter() - began
    assert given == [8, 4, 2, 2, 2, 2, 2]
    assert detector.batch_size == 2
    assert "cpu has too little memory for 8 images of 64 x 96 pixels at once" in detector.take_notes()[0]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-5)


def test_nan_is_not_taken_for_nothing_found(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["yolos"], tmp_path / "nan")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["vit.layernorm.bias"][:] = np.nan
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(FloatingPointError, match="pets produced NaN or infinite values in fp32"):
        load_detector(folder, name="pets")(random_images((50, 70))[0])


def test_detr_itself_runs_in_its_own_network() -> None:
    detector: DetectorLike = load_detector("scenes")

    assert isinstance(detector, Detector)
    assert (detector.family, detector.name) == ("detr", "scenes")
    assert detector.categories[0].name == "disc"
    assert detector.size_rule == replace(detector.config.size_rule)


def test_encoded_images_are_turned_upright_as_with_detr(folders: dict[str, Path], tmp_path: Path) -> None:
    (image,) = random_images((40, 80))
    exif = Image.Exif()
    exif[274] = 6  # the picture is to be turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)

    found = load_detector(folders["rt_detr"], threshold=0.0)(tmp_path / "turned.png")

    (own,) = own_detections(folders["rt_detr"], [image.transpose(Image.Transpose.ROTATE_270)])
    assert max(differences(found, own)) <= 1e-3
