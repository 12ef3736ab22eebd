"""What tiles are for: small objects of large pictures are found, and those at seams are counted once."""

import pytest

from detr.detector import Detector
from detr.tiled_detector import TiledDetector
from detr.tiles import Tiling
from tests.detr.crowds import SeamCounts, count_at_seams, crowds, pixels_of, precision

pytestmark = pytest.mark.slow

TILING = Tiling(256, 256, 0.25)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tiles_find_small_objects_and_count_each_once(seed: int) -> None:
    scenes = crowds(seed, 1)
    detector = Detector("scenes", device="cpu")
    pictures = [pixels_of(scene) for scene in scenes]

    found = TiledDetector(detector, TILING)(pictures)

    plain, tiled = precision(scenes, detector(pictures)), precision(scenes, found)
    assert tiled.APs - plain.APs >= 0.10  # 0.56 to 0.59 on two pictures each
    assert tiled.AP - plain.AP >= 0.10
    assert tiled.APl >= plain.APl
    seams = count_at_seams(scenes, found, TILING)
    assert seams == SeamCounts(seams.objects, once=seams.objects, more=0)
    assert seams.objects >= 15
