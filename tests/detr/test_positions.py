import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from detr.positions import LearnedPositions, SinePositions

GOLDEN = Path(__file__).parents[1] / "golden"  # position_*: made by the original's position_encoding.py


def test_the_sine_code_is_that_of_the_original() -> None:
    tensors = load_file(GOLDEN / "position_sine.safetensors")
    with safe_open(GOLDEN / "position_sine.safetensors", "pt") as file:
        cases = json.loads(file.metadata()["info"])["cases"]

    checked = 0
    for index, case in enumerate(cases):
        if f"{index}/mask" not in tensors:  # left out to keep the file small
            continue
        positions = SinePositions(case["num_pos_feats"], normalize=case["normalize"])
        torch.testing.assert_close(
            positions(tensors[f"{index}/mask"]), tensors[f"{index}/pos"], rtol=0, atol=2e-6, msg=f"case {index}"
        )
        checked += 1
    assert checked == 6


def test_the_learned_code_is_that_of_the_original_columns_first() -> None:
    tensors = load_file(GOLDEN / "position_learned.safetensors")
    positions = LearnedPositions(6)
    positions.load_state_dict({name: tensor for name, tensor in tensors.items() if "embed" in name})

    for case in range(3):
        batch, height, width = tensors[f"{case}/shape_bhw"].tolist()
        assert torch.equal(positions(torch.zeros(batch, height, width, dtype=torch.bool)), tensors[f"{case}/pos"]), (
            f"case {case}"
        )


def test_padding_changes_nothing_in_the_real_part_of_the_sine_code() -> None:
    padding = torch.ones(1, 9, 8, dtype=torch.bool)
    padding[:, :5, :3] = False

    padded = SinePositions(16)(padding)

    alone = SinePositions(16)(torch.zeros(1, 5, 3, dtype=torch.bool))
    assert torch.equal(padded[:, :, :5, :3], alone)
    assert torch.isfinite(padded).all()


def test_the_sine_code_is_float32_whatever_the_default_is() -> None:
    assert SinePositions(8)(torch.zeros(1, 2, 3, dtype=torch.bool)).dtype == torch.float32


def test_learned_positions_refuse_a_map_that_their_tables_do_not_cover() -> None:
    positions = LearnedPositions(4)

    with pytest.raises(ValueError, match=r"50 cells per side, but the picture needs 3 x 51"):
        positions(torch.zeros(1, 3, 51, dtype=torch.bool))
