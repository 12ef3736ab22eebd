"""A detector that looks at tiles too: what fits is as without it, what does not is found at its own resolution."""

from __future__ import annotations

import io
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from detr.batching import HostBatch, Prepared
from detr.config import BackboneConfig, DetrConfig
from detr.detector import Detector
from detr.detector_like import DetectorLike
from detr.detectors import load_detector
from detr.image_stream import BATCHES_AHEAD
from detr.images.results import TooExtreme
from detr.launcher import PendingDetections
from detr.model import Detr
from detr.postprocess import Detections
from detr.seams import join_views
from detr.tiled_detector import LargePicture, TiledDetector
from detr.tiles import Tile, Tiling
from tests.families import write_family

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 8, (8, 16), (1, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=16,
    queries=5,
    shorter=64,
    longest=107,
)
TILING = Tiling(128, 96, 0.25)


class Counting(Detector):
    """A detector that knows how many prepared images at once were not in the network yet."""

    def __init__(self, batch_size: int) -> None:
        torch.manual_seed(0)
        super().__init__(Detr(TINY).eval(), device="cpu", threshold=0.0, batch_size=batch_size)
        self.waiting, self.most_waiting, self.shapes = 0, 0, list[tuple[int, int]]()

    def prepare(self, image: Tensor) -> Prepared:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        self.shapes.append((image.shape[1], image.shape[2]))
        return super().prepare(image)

    def submit(self, batch: HostBatch) -> PendingDetections:
        self.waiting -= len(batch)
        return super().submit(batch)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Random pixels in the memory that decoding gives."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).permute(2, 0, 1)


def assert_equal(found: Detections, expected: Detections) -> None:
    """Bit for bit."""
    assert found.labels == expected.labels
    assert torch.equal(found.category_ids, expected.category_ids)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_pictures_that_fit_in_a_tile_have_exactly_the_detections_without_tiles_and_cost_no_more(
    batch_size: int,
) -> None:
    images = [picture(*shape, seed=n) for n, shape in enumerate([(96, 128), (40, 30), (95, 128), (40, 30), (64, 64)])]
    plain, inner = Counting(batch_size), Counting(batch_size)

    for found, expected in zip(TiledDetector(inner, TILING)(images), plain(images), strict=True):
        assert_equal(found, expected)

    assert sorted(inner.shapes) == sorted(plain.shapes)


def test_a_larger_picture_has_the_joined_detections_of_the_whole_and_of_its_tiles() -> None:
    image, inner = picture(180, 200), Counting(1)
    tiles = [Tile(0, 0, 128, 96), Tile(72, 0, 200, 96), Tile(0, 42, 128, 138), Tile(72, 42, 200, 138),
             Tile(0, 84, 128, 180), Tile(72, 84, 200, 180)]  # fmt: skip
    views = [Tile(0, 0, 200, 180), *tiles]

    found = TiledDetector(inner, TILING)(image)

    assert sorted(inner.shapes) == [*[(96, 128)] * 6, (180, 200)]
    assert_equal(found, join_views(views, [inner(view.cut(image)) for view in views]))


def test_large_and_small_pictures_of_one_call_come_back_in_their_order() -> None:
    images = [picture(200, 300, 1), picture(50, 60, 2), picture(97, 128, 3), picture(96, 128, 4)]
    tiled = TiledDetector(Counting(4), TILING)

    together = tiled(images)

    for found, image in zip(together, images, strict=True):
        alone = tiled(image)
        torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy, rtol=0, atol=0.01)
    mixed = tiled.detect([tiled.prepare(image) for image in images])
    assert [len(one) for one in mixed] == [len(one) for one in together]


def test_a_large_picture_is_a_batch_of_its_own() -> None:
    tiled = TiledDetector(Counting(8), TILING)
    sizes = [(200, 300), (50, 60), (97, 128), (50, 60)]

    batches = tiled.batches([tiled.target_shape(*size) for size in sizes])

    assert [batch.indices for batch in batches] == [(1, 3), (0,), (2,)]
    assert (batches[1].height, batches[1].width) == (64, 96)
    assert isinstance(tiled.prepare(picture(97, 128)), LargePicture)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_tiles_are_prepared_a_few_batches_ahead_of_the_network_however_many_there_are(batch_size: int) -> None:
    inner = Counting(batch_size)

    TiledDetector(inner, Tiling(64, 64, 0.5))(picture(500, 500))

    assert len(inner.shapes) == 1 + 15 * 15
    assert inner.most_waiting <= (BATCHES_AHEAD + 1) * batch_size


def test_a_few_large_pictures_are_in_memory_however_many_are_given() -> None:
    decoded: list[weakref.ref[Tensor]] = []
    most = 0

    class Watching(TiledDetector):
        def prepare(self, image: Tensor) -> Prepared:
            nonlocal most
            decoded.append(weakref.ref(image))
            most = max(most, sum(one() is not None for one in decoded))
            return super().prepare(image)

    sink = io.BytesIO()
    Image.fromarray(picture(200, 300).permute(1, 2, 0).numpy()).save(sink, "PNG")

    Watching(Counting(4), TILING)([sink.getvalue()] * 12)

    assert len(decoded) == 12
    assert most <= BATCHES_AHEAD + 2  # one in the network, two decoded, and one that takes the place of the first


def test_a_large_picture_keeps_its_place_among_those_that_could_not_be_decoded() -> None:
    tiled, image = TiledDetector(Counting(4), TILING), picture(200, 300)
    host = tiled.host_batch(1, *tiled.target_shape(200, 300))
    host.write(0, tiled.prepare(image))

    tiled.take_busy_seconds()
    (found,) = tiled.submit(host.only([0])).result()

    assert tiled.take_busy_seconds() > 0
    assert_equal(found, tiled(image))


def test_it_says_of_itself_what_the_detector_says() -> None:
    inner = Counting(4)
    tiled: DetectorLike = TiledDetector(inner, TILING)

    assert (tiled.name, tiled.device, tiled.precision) == (inner.name, inner.device, inner.precision)
    assert (tiled.categories, tiled.family, tiled.identity) == (inner.categories, inner.family, inner.identity)
    assert (tiled.batch_size, tiled.size_rule, tiled.take_notes()) == (4, None, ())


def test_a_picture_whose_whole_or_whose_tiles_cannot_be_resized_is_refused_by_its_size() -> None:
    class Refuses(Counting):
        def target_shape(self, height: int, width: int) -> tuple[int, int]:
            if (height, width) == (3, 128):
                raise TooExtreme("the tile")
            return super().target_shape(height, width)

    tiled = TiledDetector(Refuses(1), TILING)

    with pytest.raises(TooExtreme, match="the tile"):
        tiled.target_shape(3, 200)
    with pytest.raises(TooExtreme, match="1000 x 1 pixels"):
        tiled.target_shape(1, 1000)


def test_a_detector_of_transformers_looks_at_tiles_as_well(tmp_path: Path) -> None:
    inner = load_detector(write_family("rt_detr", tmp_path / "model"), device="cpu", threshold=0.0)
    image = picture(180, 200)
    views = [Tile(0, 0, 200, 180), *TILING.tiles(180, 200)]

    found: Sequence[Detections] = TiledDetector(inner, TILING)([image, picture(96, 128)])

    assert_equal(found[0], join_views(views, [inner(view.cut(image)) for view in views]))
    assert_equal(found[1], inner(picture(96, 128)))
