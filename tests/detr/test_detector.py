import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detr.batching import Prepared
from detr.classes import Category, UnknownClass
from detr.config import BackboneConfig, DetrConfig
from detr.detector import Detector, choose_device, choose_precision
from detr.image_stream import WINDOW_IMAGES
from detr.images.decoding import EmptyImage, NotAnImage, TooExtreme, resize
from detr.images.inputs import AnyImage
from detr.model import Detr, DetrOutput
from detr.postprocess import Detections

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 8, (8, 16, 16), (1, 1, 1), norm="batch"),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=16,
    queries=6,
    categories=(Category(9, "horse"), Category(3, "cat"), Category(7, "dog"), Category(0, "N/A")),
    shorter=64,
    longest=107,
)


def tiny_network() -> Detr:
    """Random weights that tell pictures apart, and norms whose zero is not zero: padding would be seen."""
    torch.manual_seed(0)
    model = Detr(TINY).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" in name:
            parameter.data *= 3
    return model


NETWORK = tiny_network()


def detector(**options: object) -> Detector:
    return Detector(NETWORK, **{"device": "cpu", "threshold": 0.0, **options})  # type: ignore[arg-type]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Soft blobs of colour, so that decoders of lossy formats agree about them."""
    small = torch.randint(0, 256, (3, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    large = nn.functional.interpolate(small[None].float(), (height, width), mode="bicubic")
    return large[0].clamp(0, 255).to(torch.uint8)


def png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def assert_same(found: Detections, expected: Detections) -> None:
    """The same detections in the same order, to rounding: 1e-5 of score, 0.01 pixels."""
    assert found.labels == expected.labels
    assert torch.equal(found.category_ids, expected.category_ids)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=0.01)


MIXED = [(48, 64), (64, 48), (90, 160), (100, 101), (300, 60), (48, 65), (64, 64), (200, 333), (49, 64), (70, 90)]


def test_the_network_of_these_tests_tells_pictures_apart() -> None:
    one, other = detector()([picture(48, 64, seed=1), picture(48, 64, seed=2)])

    assert (one.boxes_xyxy - other.boxes_xyxy).abs().max() > 0.5
    assert (one.scores - other.scores).abs().max() > 0.01


def test_an_image_goes_the_way_of_the_original_step_by_step() -> None:
    image = picture(60, 90)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    pixels = (resize(image, 64, 96) / 255 - mean) / std
    output = NETWORK(pixels[None], None)
    scores, classes = output.logits[0].softmax(-1)[:, :-1].max(-1)
    centre_x, centre_y, width, height = output.boxes_cxcywh[0].unbind(-1)
    xmin, ymax = (centre_x - width / 2) * 90, (centre_y + height / 2) * 60
    best = scores.argmax()

    found = detector()(image)

    assert found.category_ids[0] == TINY.categories[int(classes[best])].id
    assert found.scores[0] == pytest.approx(scores[best].item(), abs=1e-5)
    assert found.boxes_xyxy[0, 0] == pytest.approx(xmin[best].item(), abs=0.01)
    assert found.boxes_xyxy[0, 3] == pytest.approx(ymax[best].item(), abs=0.01)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_batch_gives_what_its_images_give_alone_in_their_order(batch_size: int) -> None:
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(MIXED)]
    alone = [detector()(image) for image in images]

    found = detector(batch_size=batch_size)(images)

    assert len(found) == len(images)
    for one, expected in zip(found, alone, strict=True):
        assert_same(one, expected)


def test_an_image_padded_to_any_larger_shape_gives_what_it_gives_alone() -> None:
    tiny = detector()
    prepared = [tiny.prepare(picture(48, 64, 1)), tiny.prepare(picture(90, 70, 2)), tiny.prepare(picture(64, 160, 3))]
    alone = [tiny.detect([image])[0] for image in prepared]

    for shape in [None, (96, 128), (83, 131), (200, 117)]:
        for one, expected in zip(tiny.detect(prepared, shape=shape), alone, strict=True):
            assert_same(one, expected)


def test_more_images_than_a_window_holds_keep_their_order() -> None:
    tiny = detector(batch_size=32)
    kinds = [picture(16, 16 + 8 * number, number) for number in range(3)]
    images = [kinds[index % 3] for index in range(WINDOW_IMAGES + 4)]
    expected = [tiny(image) for image in kinds]

    found = tiny(images)

    assert len(found) == len(images)
    for index in (0, 1, 2, WINDOW_IMAGES - 1, WINDOW_IMAGES, WINDOW_IMAGES + 1, WINDOW_IMAGES + 3):
        assert_same(found[index], expected[index % 3])


def test_bytes_paths_pil_images_and_tensors_give_the_same(tmp_path: Path) -> None:
    image = picture(60, 90)
    data = png(image)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    pil = Image.open(path)
    kinds: list[AnyImage] = [data, str(path), path, pil, pil.convert("RGBA"), image]
    expected = detector()(image)

    for found in detector()(kinds):
        assert_same(found, expected)
    for kind in kinds:
        assert_same(detector()(kind), expected)


def test_arrays_buffers_and_open_files_give_the_same(tmp_path: Path) -> None:
    image = picture(60, 90)
    data = png(image)
    (tmp_path / "picture.png").write_bytes(data)
    array = image.permute(1, 2, 0).numpy()
    frozen = array.copy()
    frozen.flags.writeable = False
    mirrored_twice = np.ascontiguousarray(array[:, ::-1])[:, ::-1]  # negative strides, as OpenCV's BGR turned to RGB
    expected = detector()(image)

    with (tmp_path / "picture.png").open("rb") as file:
        assert_same(detector()(file), expected)
        assert not file.closed
    kinds = [array, frozen, mirrored_twice, bytearray(data), memoryview(data), io.BytesIO(data)]
    for kind in kinds[:-1]:
        assert_same(detector()(kind), expected)
    for found in detector()(kinds):
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 5), np.uint8), ValueError, r"an image array must be uint8 \(H, W, 3\) RGB, not uint8 \(4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, r"not uint8 \(3, 4, 5\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), ValueError, r"not uint8 \(2, 4, 5, 3\)"),
        (np.zeros((4, 5, 3), np.float32), ValueError, r"not float32 \(4, 5, 3\)"),
        (7, TypeError, "int is not an image; give encoded bytes, a path, an open binary file"),
        ([None], TypeError, "NoneType is not an image"),
        (io.StringIO("x"), TypeError, r"must be opened in binary mode \('rb'\); read\(\) gave str"),
    ],
)
def test_what_is_not_an_image_is_refused_with_what_is(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detector()(image)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_images_that_exif_turns_are_seen_upright_however_they_come(
    tmp_path: Path, orientation: int, undo: Image.Transpose
) -> None:
    image = picture(60, 90)
    stored = Image.fromarray(image.permute(1, 2, 0).numpy()).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    expected = detector()(image)

    for found in detector()([path.read_bytes(), path, Image.open(path)]):
        assert_same(found, expected)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "1", "CMYK", "I;16", "F", "YCbCr", "HSV", "PA", "RGBX", "RGBa", "La"])
def test_pil_images_of_other_modes_are_taken_as_their_colours(mode: str) -> None:
    image = Image.fromarray(picture(40, 60).permute(1, 2, 0).numpy())
    if mode == "I;16":
        grey = np.asarray(image.convert("L"))
        other, expected = Image.fromarray(grey.astype(np.uint16) * 257), image.convert("L").convert("RGB")
    elif mode == "F":
        grey = np.asarray(image.convert("L"))
        other, expected = Image.fromarray(grey.astype(np.float32) / 255), image.convert("L").convert("RGB")
    else:
        way = {"PA": "P", "RGBa": "RGBA", "La": "LA"}.get(mode)
        other = (image if way is None else image.convert(way)).convert(mode)
        expected = (other if way is None or way == "P" else other.convert(way)).convert("RGB")

    assert_same(detector()(other), detector()(expected))


@pytest.mark.parametrize(("mode", "compression"), [("1", "group4"), ("L", "jpeg")])
def test_pil_images_of_packed_tiffs_are_taken_as_their_colours(mode: str, compression: str) -> None:
    packed = io.BytesIO()
    Image.fromarray(picture(40, 60).permute(1, 2, 0).numpy()).convert(mode).save(
        packed, "TIFF", compression=compression
    )
    grey = Image.open(packed).convert("L")

    assert_same(detector()(grey), detector()(grey.convert("RGB")))


def test_boxes_are_pixels_of_the_upright_image_before_resizing() -> None:
    small = picture(48, 64)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    few, many = detector()(small), detector()(large)

    # not exactly 4 times: the two are resized to one size from different pixels
    torch.testing.assert_close(many.boxes_xyxy / 4, few.boxes_xyxy, rtol=0, atol=1.0)


def test_one_image_gives_detections_and_a_list_a_list() -> None:
    tiny = detector()

    assert isinstance(tiny(picture(48, 64)), Detections)
    assert isinstance(tiny([picture(48, 64)]), list)
    assert tiny([]) == []


def test_threshold_0_keeps_all_queries_best_first_with_the_unused_ids() -> None:
    found = detector()([picture(48, 64, seed) for seed in range(9)])

    assert all(len(one) == TINY.queries for one in found)
    assert all((one.scores.diff() <= 0).all() for one in found)
    assert "N/A" in {label for one in found for label in one.labels}


def test_above_threshold_0_unused_ids_are_never_seen_and_all_scores_reach_it() -> None:
    images = [picture(48, 64, seed) for seed in range(9)]
    everything = detector()(images)

    for one, every in zip(detector(threshold=0.35)(images), everything, strict=True):
        wanted = [label for label, score in zip(every.labels, every.scores.tolist(), strict=True) if score >= 0.35]
        assert list(one.labels) == [label for label in wanted if label != "N/A"]
    assert detector(threshold=1.0)(images[0]).labels == ()


def test_wanted_classes_have_their_own_thresholds() -> None:
    images = [picture(48, 64, seed) for seed in range(9)]
    everything = [pair for one in detector()(images) for pair in zip(one.labels, one.scores.tolist(), strict=True)]
    middle = sorted(score for label, score in everything if label == "cat")[2]
    wanted = [(label, score) for label, score in everything if label == "dog" or (label == "cat" and score >= middle)]

    found = detector(classes={"cat": middle, "dog": None})(images)

    assert [pair for one in found for pair in zip(one.labels, one.scores.tolist(), strict=True)] == wanted


def test_an_unknown_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownClass, match=r"'hrose' is not a class of pets\. Did you mean 'horse'"):
        detector(classes={"hrose": None}, name="pets")


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"is not in 0\.\.1"):
        detector(threshold=threshold)


def device_with_memory_for(tiny: Detector, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the network fail above `most` images; return the sizes of the batches that it is given, as they come."""
    given = []
    compute = tiny._network.detect

    def limited(pixels: Tensor, *others: Tensor | None, **options: bool) -> DetrOutput:
        given.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
        return compute(pixels, *others, **options)

    monkeypatch.setattr(tiny._network, "detect", limited)
    return given


def test_a_batch_too_large_for_the_device_s_memory_is_halved_for_good_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = [picture(48, 64, seed) for seed in range(20)]
    alone = [detector()(image) for image in images]
    tiny = detector(batch_size=16)
    given = device_with_memory_for(tiny, 7, monkeypatch)

    found = tiny(images) + tiny(images[:9])

    for one, expected in zip(found, alone + alone[:9], strict=True):
        assert_same(one, expected)
    assert given == [16, 8, 4, 4, 4, 4, 4, 4, 4, 1]
    assert tiny.batch_size == 4
    assert [record.message for record in caplog.records] == [
        f"cpu has too little memory for {tried} images of 64 x 85 pixels at once: CUDA out of memory. The batch "
        f"size is now {left}; a smaller --batch-size avoids the failed attempts."
        for tried, left in ((16, 8), (8, 4))
    ]


def test_an_image_too_large_for_the_device_s_memory_alone_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = detector(batch_size=4)
    device_with_memory_for(tiny, 0, monkeypatch)

    with pytest.raises(
        torch.OutOfMemoryError, match=r"^cpu has too little memory for one image of 64 x 85 pixels in fp32: CUDA out"
    ):
        tiny([picture(48, 64)] * 4)


def test_a_batch_size_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size: 0 is less than 1"):
        detector(batch_size=0)


def test_the_path_of_an_unreadable_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(b"<!doctype html><html></html>")

    with pytest.raises(NotAnImage, match=r"page\.jpg: "):
        detector()([png(picture(48, 64)), path])
    with pytest.raises(EmptyImage):
        detector()(b"")


def test_an_image_too_narrow_for_the_size_rule_is_refused() -> None:
    with pytest.raises(TooExtreme):
        detector()(torch.zeros(3, 1, 4000, dtype=torch.uint8))


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
    ids=["float", "channels last", "batched"],
)
def test_a_tensor_of_another_kind_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"an image tensor must be uint8 \(3, H, W\), not torch\."):
        detector()(image)


def test_the_network_given_is_not_changed() -> None:
    model = Detr(TINY).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    Detector(model, device="cpu")(picture(48, 64))

    assert model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_learned_positions_are_found_in_batches_too() -> None:
    torch.manual_seed(1)
    tiny = Detector(Detr(replace(TINY, positions="learned")), device="cpu", threshold=0, batch_size=8)
    images = [picture(height, width, seed) for seed, (height, width) in enumerate(MIXED[:4])]

    for one, image in zip(tiny(images), images, strict=True):
        assert_same(one, tiny(image))


def test_bf16_finds_about_the_same() -> None:
    images = [picture(48, 64, seed) for seed in range(3)]

    for half, full in zip(detector(precision="bf16")(images), detector()(images), strict=True):
        assert half.scores.dtype == torch.float32
        torch.testing.assert_close(half.scores, full.scores, rtol=0, atol=0.05)


def test_float32_is_exact_in_the_network_and_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn: Any = torch.backends.cudnn
    convolutions, products = cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    seen = []
    tiny = detector()
    compute = tiny._network.detect

    def noting(*arguments: Tensor | None, **options: bool) -> DetrOutput:
        seen.append((convolutions.fp32_precision, products.fp32_precision))
        return compute(*arguments, **options)

    monkeypatch.setattr(tiny._network, "detect", noting)
    tiny(picture(48, 64))

    assert before[0] == "tf32"  # cuDNN's default, which rounds to 10 bits
    assert seen == [("ieee", "ieee")]
    assert (convolutions.fp32_precision, products.fp32_precision) == before


@pytest.mark.parametrize(("sizes", "conversions"), [([(64, 85)] * 2, 7), ([(64, 85), (60, 80)], 11)])
def test_half_precision_converts_no_weights(sizes: list[tuple[int, int]], conversions: int) -> None:
    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten._to_copy.default
            return func(*args, **(kwargs or {}))

    tiny = detector(precision="bf16")
    batch = [Prepared(picture(height, width), height, width) for height, width in sizes]

    with Counting() as counting:
        tiny.detect(batch)

    assert counting.count == conversions  # of pixels, positions, sizes, masks and what the heads read


def test_precision_and_device_are_chosen_by_what_there_is() -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(ValueError, match="precision: 'fp8' is not one of auto, fp32, tf32, bf16, fp16"):
        choose_precision("fp8", torch.device("cpu"))
    with pytest.raises(ValueError, match="precision: tf32 needs a GPU, but the device is cpu; use fp32"):
        choose_precision("tf32", torch.device("cpu"))
    for other in ("gpu", "mps", "meta", "xpu", "privateuseone"):
        with pytest.raises(ValueError, match=f"device: '{other}' is not one of auto, cpu, cuda, cuda:N"):
            choose_device(other)


def test_a_gpu_is_chosen_with_its_number_and_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)

    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda:2", "cuda:2", "cuda:1"]
    assert choose_device(torch.device("cuda")) == torch.device("cuda:2")
    assert choose_device(torch.device("cuda:1")) == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"device: 'cuda:5' was requested, but the last GPU of this machine is cuda:2"):
        choose_device("cuda:5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match=r"device: 'cuda' was requested, but torch .* finds no GPU"):
        choose_device("cuda")


def test_a_network_that_gives_no_numbers_is_not_taken_for_one_that_finds_nothing() -> None:
    torch.manual_seed(0)
    network = Detr(TINY)
    torch.nn.init.constant_(network.class_embed.bias, float("nan"))

    with pytest.raises(FloatingPointError, match="the model produced NaN or infinite values in fp32"):
        Detector(network, device="cpu")(torch.zeros((3, 40, 50), dtype=torch.uint8))


def test_on_a_cpu_one_image_at_a_time_is_the_default() -> None:
    assert detector().batch_size == 1
