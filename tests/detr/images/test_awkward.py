"""A collection of awkward image files, where it is at hand; the other tests write such files themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detr.images.decoding import ImageError, decode, read_header, resize_shape

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "awkward"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())["files"] if FOLDER.exists() else {}
# Its header claims 3 x 62,728 pixels: that is refused before the damage in its third scan could show.
ALSO_RIGHT = {"fuzz_oss_36829.jpg": "too_extreme"}

pytestmark = pytest.mark.skipif(not EXPECTED, reason=f"no awkward files: put expected.json and its files into {FOLDER}")


def labelled(data: bytes) -> tuple[str, tuple[int, int], Tensor | None]:
    """Return the error kind or `ok`, the size to resize to, and the picture: in the order in which a run asks."""
    try:
        header = read_header(data)
        shape = resize_shape(header.height, header.width)
        image = decode(data)
    except ImageError as error:
        return error.kind, (0, 0), None
    return "ok", shape, image


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("large_") else name for name in EXPECTED]
)
def test_an_awkward_file_gives_what_is_expected(name: str) -> None:
    expected, data = EXPECTED[name], (FOLDER / name).read_bytes()
    right = {expected.get("error_kind", "ok"), ALSO_RIGHT.get(name), *expected.get("also_accepted", [])}

    answer, shape, image = labelled(data)

    assert answer in right
    if image is None:
        return
    if "upright_size" in expected:
        assert [image.shape[2], image.shape[1]] == expected["upright_size"]
        assert list(shape) == expected["size_rule_height_width"]
    if "mean_grey_true" in expected:
        assert image.float().mean().item() == pytest.approx(expected["mean_grey_true"], abs=0.5)
    if "same_picture_as" in expected:
        reference = decode((FOLDER / expected["same_picture_as"]).read_bytes())
        difference = (image.to(torch.int16) - reference).abs().float().mean().item()
        assert difference <= expected["max_mean_abs_difference"]
