"""The pairs of one layer, image by image, for tests that compare with other matchers."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from detr.model import DetrOutput
from detr.training.matcher import MatchWeights, Target, match_layers, pad_targets


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of one image: `query[i]` is matched to `target[i]`."""

    query: Tensor
    target: Tensor


def match(output: DetrOutput, targets: Sequence[Target], *, weights: MatchWeights | None = None) -> list[Match]:
    """Match the last layer's output to the targets of each image."""
    padded = pad_targets(targets, images=len(output.logits), device=output.logits.device)
    log_probabilities = output.logits[None].float().log_softmax(-1)
    pairs = match_layers(log_probabilities, output.boxes_cxcywh[None], padded, weights=weights)
    return [Match(pairs[2, here], pairs[3, here]) for here in (pairs[1] == image for image in range(len(targets)))]
