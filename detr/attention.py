"""Attention maps of the encoder and of the object queries."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detr.model import Detr, DetrOutput, PaddingMode


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """Attention weights of B images whose feature map has h x w cells; each row adds up to 1, padded cells have 0.

    Attributes:
        decoder: `(layers, B, heads, Q, h, w)` float, from each query to the cells.
        encoder: `(layers, B, heads, h, w, h, w)` float, from each cell (the first h, w) to the others; None if it was
            not requested.
    """

    decoder: Tensor
    encoder: Tensor | None = None


def find_with_attention(
    model: Detr,
    pixels: Tensor,
    mask: Tensor | None = None,
    *,
    padding: PaddingMode = "plain",
    encoder: bool = False,
) -> tuple[DetrOutput, AttentionMaps]:
    """Return what `model(pixels, mask, padding=padding)` returns, and the attention weights it used.

    Figure 6 of the paper shows the decoder's weights, figure 3 the encoder's.

    Args:
        model: not compiled or exported.
        pixels: as for `Detr.forward`.
        mask: as for `Detr.forward`.
        padding: as for `Detr.forward`.
        encoder: whether to return the encoder's maps as well: `heads * (h * w)**2` numbers for each layer and image.
    """
    transformer = model.transformer
    looks = [layer.get_submodule("multihead_attn") for layer in transformer.decoder.layers]
    mixes = [layer.get_submodule("self_attn") for layer in transformer.encoder.layers] if encoder else []
    with ExitStack() as hooks:
        decoder_weights = _recorded(looks, hooks)
        encoder_weights = _recorded(mixes, hooks)
        output = model(pixels, mask, padding=padding)
    stride = model.config.backbone.stride
    cells = tuple(-(-side // stride) for side in pixels.shape[-2:])
    found = torch.stack(decoder_weights)
    found = found.view(*found.shape[:-1], *cells)
    if not encoder:
        return output, AttentionMaps(found)
    mixed = torch.stack(encoder_weights)
    return output, AttentionMaps(found, mixed.view(*mixed.shape[:-2], *cells, *cells))


def _recorded(attentions: Iterable[nn.Module], hooks: ExitStack) -> list[Tensor]:
    """Return a list to which each module appends its weights `(B, heads, queries, keys)` until `hooks` exits."""
    weights: list[Tensor] = []

    def ask(_module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, "need_weights": True, "average_attn_weights": False}

    def keep(_module: nn.Module, _args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weights.append(output[1])

    for attention in attentions:
        for handle in (
            attention.register_forward_pre_hook(ask, with_kwargs=True),
            attention.register_forward_hook(keep),
        ):
            hooks.callback(handle.remove)
    return weights
