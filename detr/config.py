"""The configuration of a DETR, and those of the official variants."""

from dataclasses import dataclass, field, replace
from typing import Literal

from detr.classes import COCO_CATEGORIES, SCENE_CATEGORIES, Category
from detr.size_rule import Resizing, SizeRule

Block = Literal["bottleneck", "basic"]
Norm = Literal["frozen", "batch"]
Positions = Literal["sine", "learned"]

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, RGB in 0..1, which DETR was trained with
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """A residual network: a 7x7 stem of stride 2, a max-pool of stride 2, then stages that halve the resolution each.

    The first stage keeps the stem's resolution, so `n` stages have stride `2 ** (n + 1)`. `dilation` takes the stride
    out of the last stage and dilates it instead (DC5). `norm` is "batch" only for training from scratch; both
    give the same result from the same statistics in evaluation.
    """

    name: str = "resnet50"
    block: Block = "bottleneck"
    stem_width: int = 64
    stage_widths: tuple[int, ...] = (256, 512, 1024, 2048)  # output channels of a stage
    depths: tuple[int, ...] = (3, 4, 6, 3)
    dilation: bool = False
    norm: Norm = "frozen"

    def __post_init__(self) -> None:
        if len(self.stage_widths) != len(self.depths) or not self.depths:
            raise ValueError(
                f"backbone {self.name}: {len(self.stage_widths)} stage widths but {len(self.depths)} depths"
            )
        if self.dilation and self.block == "basic":
            raise ValueError(f"backbone {self.name}: a basic block cannot be dilated; use bottlenecks for DC5")

    @property
    def stride(self) -> int:
        """Pixels of the picture per cell of the last feature map, in both directions."""
        return 2 ** (len(self.depths) + 1) // (2 if self.dilation else 1)


@dataclass(frozen=True, slots=True)
class DetrConfig:
    """The network of a DETR, its classes, and how pictures are resized and normalised.

    If `resizing` uses `box` instead, `shorter` and `longest` are still the sizes for fine-tuning.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    hidden_dim: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward_dim: int = 2048
    dropout: float = 0.1
    queries: int = 100
    positions: Positions = "sine"
    pre_norm: bool = False
    categories: tuple[Category, ...] = COCO_CATEGORIES
    shorter: int = 800  # pictures are resized to this shorter side, in pixels,
    longest: int = 1333  # unless the longer side would exceed this
    resizing: Resizing = "original"  # see `detr.size_rule.SizeRule`
    box: tuple[int, int] = (0, 0)  # height and width in pixels, where `resizing` is "fit" or "stretch"
    image_mean: tuple[float, float, float] = IMAGE_MEAN  # subtracted from RGB in 0..1,
    image_std: tuple[float, float, float] = IMAGE_STD  # which is then divided by this
    mask_head: bool = False  # whether it has the mask head of `detr.segmentation`, which boxes do not need

    def __post_init__(self) -> None:
        if self.hidden_dim % (2 * self.heads):
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of twice the {self.heads} heads")
        if self.mask_head and len(self.backbone.depths) != 4:
            raise ValueError(f"backbone {self.backbone.name}: a mask head needs four stages")
        ids = [category.id for category in self.categories if category.is_used]
        if len(set(ids)) != len(ids) or not ids:
            raise ValueError("categories: ids must be unique, and there must be at least one")

    @property
    def class_count(self) -> int:
        """Number of classes without no-object; the class head has one more row."""
        return len(self.categories)

    @property
    def size_rule(self) -> SizeRule:
        """The size that pictures are resized to."""
        return SizeRule(self.resizing, self.shorter, self.longest, *self.box)


LEARNED_CELLS = 50  # rows and columns of a feature map that learned positions have vectors for

_RESNET101 = BackboneConfig(name="resnet101", depths=(3, 4, 23, 3))

VARIANTS = {
    "detr-resnet-50": DetrConfig(),
    "detr-resnet-50-dc5": DetrConfig(backbone=BackboneConfig(dilation=True)),
    "detr-resnet-101": DetrConfig(backbone=_RESNET101),
    "detr-resnet-101-dc5": DetrConfig(backbone=replace(_RESNET101, dilation=True)),
}
"""The official detection models by the last part of their hub id (paper, table 1)."""

SCENES_BACKBONE = BackboneConfig(
    name="scenes", block="basic", stem_width=24, stage_widths=(24, 48, 128), depths=(1, 2, 2), norm="batch"
)
SCENES_CONFIG = DetrConfig(
    backbone=SCENES_BACKBONE,
    hidden_dim=128,
    heads=8,
    encoder_layers=2,
    decoder_layers=3,
    feedforward_dim=256,
    dropout=0.0,
    queries=24,
    categories=SCENE_CATEGORIES,
    shorter=192,
    longest=320,
)
"""The embedded default: a small DETR of stride 16 for the drawn scenes, trained from scratch (`detr/scenes`)."""
