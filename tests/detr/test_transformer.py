from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detr.classes import Category
from detr.config import DetrConfig
from detr.transformer import Transformer

GOLDEN = Path(__file__).parents[1] / "golden"  # transformer_*: made by the original's transformer.py


def small_config(*, pre_norm: bool) -> DetrConfig:
    return DetrConfig(
        hidden_dim=32,
        heads=4,
        encoder_layers=2,
        decoder_layers=2,
        feedforward_dim=48,
        queries=11,
        pre_norm=pre_norm,
        categories=(Category(1, "cat"),),
    )


@pytest.mark.parametrize(("name", "pre_norm"), [("transformer_post", False), ("transformer_pre", True)])
def test_every_layer_and_the_memory_are_those_of_the_original(name: str, pre_norm: bool) -> None:
    golden = load_file(GOLDEN / f"{name}.safetensors")
    transformer = Transformer(small_config(pre_norm=pre_norm)).eval()
    transformer.load_state_dict({key[2:]: value for key, value in golden.items() if key.startswith("w/")})

    with torch.no_grad():
        hidden, memory = transformer(golden["src"], golden["mask"], golden["query_embed"], golden["pos"])

    height, width = golden["src"].shape[-2:]
    torch.testing.assert_close(hidden, golden["hs"], rtol=0, atol=1e-5 * golden["hs"].abs().max().item())
    assert golden["mask"].any()  # otherwise the mask would be tested by nothing
    real = ~golden["mask"]  # what padded cells hold is never read: torch's fast paths may fill them otherwise
    ours = memory.unflatten(1, (height, width))[real]
    theirs = golden["memory"].permute(0, 2, 3, 1)[real]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_what_padded_cells_hold_changes_no_answer() -> None:
    torch.manual_seed(0)
    transformer = Transformer(small_config(pre_norm=False)).eval()
    cells, positions, queries = torch.randn(1, 32, 3, 4), torch.randn(1, 32, 3, 4), torch.randn(11, 32)
    padding = torch.zeros(1, 3, 4, dtype=torch.bool)
    padding[:, :, 2:] = True
    other = torch.where(padding[:, None], 100 * torch.randn_like(cells), cells)

    with torch.no_grad():
        hidden, _ = transformer(cells, padding, queries, positions)
        changed, _ = transformer(other, padding, queries, positions)

    torch.testing.assert_close(hidden, changed, rtol=0, atol=1e-6)


def test_no_padding_and_a_mask_that_hides_nothing_are_the_same() -> None:
    torch.manual_seed(0)
    transformer = Transformer(small_config(pre_norm=False)).eval()
    cells, positions, queries = torch.randn(2, 32, 3, 4), torch.randn(2, 32, 3, 4), torch.randn(11, 32)

    with torch.no_grad():
        hidden, _ = transformer(cells, None, queries, positions)
        masked, _ = transformer(cells, torch.zeros(2, 3, 4, dtype=torch.bool), queries, positions)

    torch.testing.assert_close(hidden, masked, rtol=0, atol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    transformer = Transformer(small_config(pre_norm=False))
    arguments = (torch.randn(1, 32, 3, 4), None, torch.randn(11, 32), torch.randn(1, 32, 3, 4))

    with torch.no_grad():
        assert not torch.equal(transformer(*arguments)[0], transformer(*arguments)[0])
        transformer.eval()
        assert torch.equal(transformer(*arguments)[0], transformer(*arguments)[0])
