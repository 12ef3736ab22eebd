"""The upper limit of DETR-R50's speed on a GPU by FLOPs and memory traffic, and the cost of a million images.

Each part of the network takes at least the larger of its arithmetic time (FLOP / peak) and its memory time (bytes /
bandwidth). Bytes are those of a forward pass at 16 bits in batches, with all possible fusions.
"""

from dataclasses import dataclass, replace

from detr.config import DetrConfig

SHAPE = (800, 1066)  # height and width that the table below holds for
# part: GFLOP (a multiply-add is two), MB read and written
PARTS = {
    "stem": (4.01, 67.0),
    "layer1": (22.75, 342.0),
    "layer2": (35.11, 297.0),
    "layer3": (50.06, 217.0),
    "layer4": (28.02, 91.0),
    "encoder": (18.70, 115.0),
    "decoder": (3.69, 49.0),
}
GFLOP = sum(gflop for gflop, _ in PARTS.values())


@dataclass(frozen=True, slots=True)
class Card:
    """Limits of one GPU model: dense 16-bit TFLOP/s, and TB/s of memory."""

    name: str
    tflops: float
    terabytes_per_s: float


# Datasheets, but H100 and H200: large matrix products and copies as measured (datasheets 989, and 3.35 and 4.8). A name
# is a whole word of the device's name: an L40S is not an L4, an RTX A1000 not an A100.
CARDS = (
    Card("H200", 790, 4.3),
    Card("H100", 790, 3.0),
    Card("A100", 312, 2.04),
    Card("V100", 125, 0.90),
    Card("A10", 125, 0.60),
    Card("A10G", 70, 0.60),
    Card("L4", 121, 0.30),
    Card("T4", 65, 0.32),
)


def known_card(device_name: str) -> Card | None:
    """Return the limits of the card in a device name such as "NVIDIA H100 80GB HBM3", or None."""
    words = device_name.replace("-", " ").replace(",", " ").split()
    return next((card for card in CARDS if card.name in words), None)


def is_covered(config: DetrConfig) -> bool:
    """Return whether the table above holds for a network: ResNet-50 DETR without DC5, whatever its classes are."""
    usual = DetrConfig()
    same = ("backbone", "hidden_dim", "encoder_layers", "decoder_layers", "feedforward_dim", "queries")
    norm = replace(config.backbone, norm=usual.backbone.norm)  # computed alike
    return all(getattr(replace(config, backbone=norm), name) == getattr(usual, name) for name in same)


def most_images_per_s(card: Card, height: int, width: int) -> float:
    """Return the images per second that a card cannot exceed at 16 bits, for images of `height` x `width` pixels.

    Work is assumed proportional to the number of pixels, which is 2 % low at 1333 x 1333 and correct near 800 x 1066.
    """
    scale = height * width / (SHAPE[0] * SHAPE[1])
    seconds = sum(
        max(gflop * 1e9 / (card.tflops * 1e12), megabytes * 1e6 / (card.terabytes_per_s * 1e12))
        for gflop, megabytes in PARTS.values()
    )
    return 1 / (seconds * scale)


def usd_per_million(seconds_per_image: float, price_per_hour: float) -> float:
    """Return what a million images cost on a machine that takes `seconds_per_image` and costs `price_per_hour`."""
    return seconds_per_image * 1e6 / 3600 * price_per_hour
