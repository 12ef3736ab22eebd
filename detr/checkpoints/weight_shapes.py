"""The names and shapes of a network's weights, computed from its configuration without torch."""

from collections.abc import Iterator

from detr.config import BackboneConfig, DetrConfig

LEARNED_CELLS = 50  # `detr.positions.LearnedPositions.CELLS`

Shape = tuple[int, ...]


def weight_shapes(config: DetrConfig) -> dict[str, Shape]:
    """Return the shape of each weight of `Detr(config)`, by its name in `detr.checkpoints.layouts.weights_of`."""
    return dict(_network(config))


def _network(config: DetrConfig) -> Iterator[tuple[str, Shape]]:
    dim = config.hidden_dim
    yield from _under("backbone.0.body.", _backbone(config.backbone))
    if config.positions == "learned":
        yield "backbone.1.row_embed.weight", (LEARNED_CELLS, dim // 2)
        yield "backbone.1.col_embed.weight", (LEARNED_CELLS, dim // 2)
    yield "input_proj.weight", (dim, config.backbone.stage_widths[-1], 1, 1)
    yield "input_proj.bias", (dim,)
    for number in range(config.encoder_layers):
        yield from _under(f"transformer.encoder.layers.{number}.", _layer(config, ("self_attn",)))
    if config.pre_norm:
        yield from _under("transformer.encoder.norm.", _affine(dim))
    for number in range(config.decoder_layers):
        yield from _under(f"transformer.decoder.layers.{number}.", _layer(config, ("self_attn", "multihead_attn")))
    yield from _under("transformer.decoder.norm.", _affine(dim))
    yield "query_embed.weight", (config.queries, dim)
    yield from _under("class_embed.", _linear(dim, config.class_count + 1))
    for number, outputs in enumerate((dim, dim, 4)):
        yield from _under(f"bbox_embed.layers.{number}.", _linear(dim, outputs))
    if config.mask_head:
        yield from _mask_head(config)


def _mask_head(config: DetrConfig) -> Iterator[tuple[str, Shape]]:
    dim = config.hidden_dim
    for name in ("q_linear", "k_linear"):
        yield from _under(f"bbox_attention.{name}.", _linear(dim, dim))
    inputs = dim + config.heads
    widths = (inputs, dim // 2, dim // 4, dim // 8, dim // 16)
    for number, outputs in enumerate(widths, start=1):
        yield from _under(f"mask_head.lay{number}.", _convolution(inputs, outputs, 3))
        yield from _under(f"mask_head.gn{number}.", _affine(outputs))
        inputs = outputs
    yield from _under("mask_head.out_lay.", _convolution(inputs, 1, 3))
    for number, (channels, width) in enumerate(
        zip(config.backbone.stage_widths[2::-1], widths[1:4], strict=True), start=1
    ):
        yield from _under(f"mask_head.adapter{number}.", _convolution(channels, width, 1))


def _layer(config: DetrConfig, attentions: tuple[str, ...]) -> Iterator[tuple[str, Shape]]:
    dim = config.hidden_dim
    for attention in attentions:
        yield f"{attention}.in_proj_weight", (3 * dim, dim)
        yield f"{attention}.in_proj_bias", (3 * dim,)
        yield from _under(f"{attention}.out_proj.", _linear(dim, dim))
    yield from _under("linear1.", _linear(dim, config.feedforward_dim))
    yield from _under("linear2.", _linear(config.feedforward_dim, dim))
    for number in range(1, len(attentions) + 2):
        yield from _under(f"norm{number}.", _affine(dim))


def _backbone(config: BackboneConfig) -> Iterator[tuple[str, Shape]]:
    yield "conv1.weight", (config.stem_width, 3, 7, 7)
    yield from _under("bn1.", _norm(config.stem_width))
    inputs = config.stem_width
    for stage, (outputs, depth) in enumerate(zip(config.stage_widths, config.depths, strict=True)):
        is_strided = stage > 0 and not (config.dilation and stage == len(config.depths) - 1)
        for block in range(depth):
            has_shortcut = inputs != outputs or (is_strided and block == 0)
            yield from _under(f"layer{stage + 1}.{block}.", _block(config, inputs, outputs, has_shortcut=has_shortcut))
            inputs = outputs


def _block(config: BackboneConfig, inputs: int, outputs: int, *, has_shortcut: bool) -> Iterator[tuple[str, Shape]]:
    if config.block == "bottleneck":
        width = outputs // 4
        convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
    else:
        convolutions = [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3)]
    for number, shape in enumerate(convolutions, start=1):
        yield f"conv{number}.weight", shape
        yield from _under(f"bn{number}.", _norm(shape[0]))
    if has_shortcut:
        yield "downsample.0.weight", (outputs, inputs, 1, 1)
        yield from _under("downsample.1.", _norm(outputs))


def _linear(inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield "weight", (outputs, inputs)
    yield "bias", (outputs,)


def _convolution(inputs: int, outputs: int, side: int) -> Iterator[tuple[str, Shape]]:
    yield "weight", (outputs, inputs, side, side)
    yield "bias", (outputs,)


def _affine(channels: int) -> Iterator[tuple[str, Shape]]:
    yield "weight", (channels,)
    yield "bias", (channels,)


def _norm(channels: int) -> Iterator[tuple[str, Shape]]:
    yield from _affine(channels)
    yield "running_mean", (channels,)
    yield "running_var", (channels,)


def _under(prefix: str, weights: Iterator[tuple[str, Shape]]) -> Iterator[tuple[str, Shape]]:
    for name, shape in weights:
        yield prefix + name, shape
