"""Additional losses for training a small DETR from scratch, which otherwise keeps predicting average boxes.

The values in a DETR's attention have no positions: these are added to queries and keys only, and the decoder starts
from zeros, yet the box head must predict absolute coordinates. A pretrained backbone and hundreds of epochs compensate
for this; training from scratch on two cores does not. Two additional terms on the encoder's output do, in training
only: the checkpoint is a plain DETR. They are not in the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detr.boxes import cxcywh_to_xyxy, generalized_iou
from detr.training.matcher import PaddedTargets

CENTRE_SHARE = 0.42  # share of a box's width and height: tokens nearer to its centre learn the box
LEAST_BOX_TOKENS = 1.2  # minimum width in tokens, so that every box has a token (0.42 * 1.2 > 1/2)
NO_OBJECT_WEIGHT = 0.25


def token_centres(height: int, width: int, *, stride: int = 16, device: torch.device | None = None) -> Tensor:
    """Return the receptive field centres of tokens in an unpadded image: `(D, 2)` normalised (x, y), row by row.

    With the usual paddings of a residual network the receptive field of token i is centred on pixel `stride` * i (its
    continuous coordinate is half a pixel more), not on the middle of the i-th grid cell, half a token away.
    """
    y = (torch.arange(-(-height // stride), device=device) * stride + 0.5) / height
    x = (torch.arange(-(-width // stride), device=device) * stride + 0.5) / width
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid_x.flatten(), grid_y.flatten()), dim=1)


def assign_tokens(centres: Tensor, targets: PaddedTargets, cell: tuple[float, float]) -> Tensor:
    """Return the index of the target in its image that each token learns, or -1: `(B, D)` int64.

    A token learns a box if its distance from the centre is within `CENTRE_SHARE` of the box's width and height; with
    several boxes the nearest one, in units of the boxes' own sizes.

    Args:
        centres: `(D, 2)` normalised (x, y) of the tokens.
        targets: the objects of the images, on the same device.
        cell: width and height of one token, normalised.
    """
    centre, size = targets.boxes_cxcywh[..., :2], targets.boxes_cxcywh[..., 2:]
    # the sides separately, as Python numbers: a tensor of both would have to be copied to the device
    sides = [side.clamp(min=LEAST_BOX_TOKENS * least) for side, least in zip(size.unbind(-1), cell, strict=True)]
    offset = ((centres[:, None] - centre[:, None]) / torch.stack(sides, dim=-1)[:, None]).abs()  # (B, D, M, 2)
    is_none = torch.arange(size.shape[1], device=size.device) >= targets.numbers[:, None]
    is_far = (offset > CENTRE_SHARE).any(-1) | is_none[:, None]
    nearest = offset.square().sum(-1).masked_fill(is_far, torch.inf).min(-1)
    return torch.where(nearest.values.isfinite(), nearest.indices, -1)


def dense_loss(
    logits: Tensor, boxes_cxcywh: Tensor, targets: PaddedTargets, height: int, width: int, *, stride: int = 16
) -> dict[str, Tensor]:
    """Return the unweighted losses of the model's heads on every encoder token, as if each token were a query.

    No tensor leaves the device, and no shape depends on values, so the host never waits.

    Args:
        logits: `(B, D, K + 1)`, the class head on the normalised memory.
        boxes_cxcywh: `(B, D, 4)`, the box head on it, after the sigmoid.
        targets: of the B images, on the same device.
        height: height of the unpadded batch in pixels.
        width: width of the unpadded batch in pixels.
        stride: pixels from token to token.

    Returns:
        `dense_ce`, a weighted mean over all tokens; `dense_bbox` (L1) and `dense_giou`, means over tokens of objects.
    """
    centres = token_centres(height, width, stride=stride, device=logits.device)
    owners = assign_tokens(centres, targets, (stride / width, stride / height))
    is_owned = owners >= 0
    index = owners.clamp(min=0)

    no_object_class = logits.shape[-1] - 1
    classes = torch.where(is_owned, targets.labels.gather(1, index), no_object_class)
    class_weights = logits.new_ones(no_object_class + 1)
    class_weights[no_object_class].fill_(NO_OBJECT_WEIGHT)  # assigning the number would copy it to the device

    # for a token without an object a box is compared with itself, which gives exactly 0
    boxes = torch.where(is_owned[..., None], targets.boxes_cxcywh.gather(1, index[..., None].expand(-1, -1, 4)), 0.5)
    predicted = torch.where(is_owned[..., None], boxes_cxcywh, 0.5)
    overlap = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(boxes))
    positives = is_owned.sum().clamp(min=1)
    return {
        "dense_ce": F.cross_entropy(logits.transpose(1, 2), classes, weight=class_weights),
        "dense_bbox": (predicted - boxes).abs().sum() / positives,
        "dense_giou": (1 - overlap).sum() / positives,
    }


def position_loss(guesses: Tensor, height: int, width: int, *, stride: int = 16) -> Tensor:
    """Return the mean absolute error of predicted `(B, D, 2)` normalised (x, y) per token against the token centres."""
    return (guesses - token_centres(height, width, stride=stride, device=guesses.device)).abs().mean()
