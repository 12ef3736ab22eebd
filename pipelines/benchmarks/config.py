"""The options of `ray-detr bench`.

Needs the standard library only, so that `--help` loads nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipelines.options import check_options, height_and_width, number_range, option

Mode = Literal["model", "label", "train", "decode", "evaluate", "start"]
Peer = Literal["transformers", "pipeline", "raydata", "daft", "openvino", "onnxruntime"]
Part = Literal["detect", "forward"]
Precision = Literal["fp32", "bf16", "fp16"]
Primary = Literal["cpu", "wall"]
Device = Literal["cpu", "cuda"]

MODES: tuple[Mode, ...] = get_args(Mode)
PEERS: Mapping[Peer, tuple[str, ...]] = {
    "transformers": ("transformers",),
    "pipeline": ("transformers",),
    "raydata": ("ray", "transformers"),
    "daft": ("daft", "transformers"),
    "openvino": ("openvino", "transformers"),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript", "transformers"),
}
"""Peers by name, with their required packages."""

GRAPH_PEERS: tuple[Peer, ...] = ("openvino", "onnxruntime")
"""Peers that run an exported graph: the network alone, on the CPU."""

PEERS_OF: Mapping[Mode, tuple[Peer, ...]] = {
    "model": ("transformers", "pipeline", "openvino", "onnxruntime"),
    "label": ("pipeline", "raydata", "daft"),
    "train": ("transformers",),
    "decode": ("transformers",),
    "evaluate": (),
    "start": (),
}
"""The peers that each mode can be compared with."""

COUNTS: Mapping[Mode, tuple[int, ...]] = {
    "model": (8,),
    "label": (4, 16),
    "train": (8,),
    "decode": (32,),
    "evaluate": (1000, 5000),
    "start": (12,),
}
"""Default number of images of a mode (`--count`)."""

HOW_TO_GET = "pip install .[bench]"

NATIVE_SIZES = ("detr-resnet-50", "table-transformer-structure-recognition")
RANDOM_SIZES = (
    *NATIVE_SIZES,
    "conditional-detr-resnet-50",
    "dfine-small-coco",
    "dab-detr-resnet-50",
    "deformable-detr",
    "deimv2_hgnetv2_n_coco",
    "lwdetr_tiny_60e_coco",
    "rf-detr-nano",
    "rtdetr_r18vd",
    "rtdetr_r50vd",
    "rtdetr_v2_r18vd",
    "yolos-tiny",
    "yolos-small",
)
"""Published checkpoints of every family whose sizes `model` can give to random weights: `--model random:NAME`."""


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """The options of `ray-detr bench`, with the mode and, for the report, the command.

    Raises:
        ValueError: the mode does not support a peer or a model, needs two sizes instead of one, or a value is out of
            range.
    """

    mode: Mode
    peers: tuple[Peer, ...] = option(
        f"also measure these, if they are installed: {', '.join(PEERS)} (none)", default=(), metavar="NAME"
    )
    against: Path | None = option("another checkout of ray-detr to measure as well (none)", default=None, metavar="DIR")
    out: Path | None = option(
        "write MODE.json and MODE.md to this folder (nothing is written)", default=None, metavar="DIR"
    )
    rounds: int = option("rounds of fresh processes", default=3, metavar="N", at_least=1)
    device: Device = option("cuda is the first GPU of CUDA_VISIBLE_DEVICES", default="cpu")
    precisions: tuple[Precision, ...] = option("number format of the network", default=("fp32",), flag="--precision")
    shapes: tuple[tuple[int, int], ...] = option(
        "model, train: image size at the network's input (800x1066)",
        default=((800, 1066),), metavar="HxW", parse=height_and_width, is_list=True,
    )  # fmt: skip
    batches: tuple[int, ...] = option("images in a batch", default=(1,), metavar="N", flag="--batch", at_least=1)
    parts: tuple[Part, ...] = option(
        "model: detect is from uint8 pixels to detections, forward is the network alone", default=("detect",)
    )
    compiled: bool = option("model: also measure compiled networks (forward)", default=False, flag="--compile")
    threads: int = option(
        "threads of each candidate; label: ours gets them as --cpus-per-actor", default=1, metavar="N", at_least=1
    )
    count: tuple[int, ...] | None = option(
        "number of images; label and evaluate take two, to compute the fixed and the marginal cost",
        default=None, metavar="N", at_least=1,
    )  # fmt: skip
    folder: Path | None = option(
        "label, decode, start: photographs (drawn scenes)", default=None, metavar="DIR", flag="--images"
    )
    model: str = option(
        "model, label, start: a model, as in `ray-detr label` (random is a DETR-R50 with random weights); model: "
        "random:NAME is random weights in the size of a published checkpoint, such as random:rtdetr_r18vd, and "
        "random:all one of each family",
        default="random", metavar="REF",
    )  # fmt: skip
    shorter: int = option("pixels of the shorter side after resizing", default=800, metavar="N", at_least=1)
    seconds: float = option("shortest time to measure in the steady state", default=1.0, metavar="N", at_least=0)
    actors: str | None = option(
        "label, start: --actors of the command (label: 1, as a peer has one; start: its default)",
        default=None, metavar="MIN:MAX",
    )  # fmt: skip
    detections: int = option("evaluate: detections in each image", default=100, metavar="N", at_least=1)
    price_per_hour: float | None = option(
        "price of this machine; adds the cost of a million images, on a CPU if every core does the same",
        default=None,
        metavar="USD",
        above=0,
    )
    timeout_minutes: float = option("limit for one process", default=30.0, metavar="N", above=0)
    command: str = ""

    def __post_init__(self) -> None:
        check_options(self)
        strange = [peer for peer in self.peers if peer not in PEERS_OF[self.mode]]
        if strange:
            beside = ", ".join(PEERS_OF[self.mode]) or "no other library"
            raise ValueError(f"--peers {' '.join(strange)}: {self.mode} is compared with {beside}")
        if self.against is not None and not (self.against / "detr" / "__init__.py").is_file():
            raise ValueError(f"--against {self.against}: not a checkout of ray-detr: it has no detr/__init__.py")
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(f"--images {self.folder}: no such folder")
        if self.mode in ("label", "evaluate"):
            two_sizes(self.images)
        if self.random_sizes and self.mode != "model":
            raise ValueError(f"--model {self.model}: only `model` measures it; {self.mode} takes `random` or a model")
        unknown = sorted(set(self.random_sizes) - set(RANDOM_SIZES))
        if unknown:
            raise ValueError(f"--model {self.model}: {unknown[0]!r} is not all or one of {', '.join(RANDOM_SIZES)}")
        if self.mode == "model":
            self._check_forward()

    def _check_forward(self) -> None:
        """Refuse candidates of `model` that would not be measured.

        Raises:
            ValueError: a graph or a compiled network is requested, but not the part, device or precision to measure it.
        """
        graphs = [peer for peer in self.peers if peer in GRAPH_PEERS]
        if graphs and "forward" not in self.parts:
            raise ValueError(f"--peers {' '.join(graphs)}: only the network alone is measured. Add --parts forward")
        if graphs and self.device != "cpu":
            raise ValueError(f"--peers {' '.join(graphs)}: measured on the CPU only, not with --device {self.device}")
        if "onnxruntime" in graphs and "fp32" not in self.precisions:
            raise ValueError("--peers onnxruntime: measured in fp32 only. Add --precision fp32")
        if self.compiled and "forward" not in self.parts:
            raise ValueError("--compile: only the network alone is measured compiled. Add --parts forward")

    @property
    def images(self) -> tuple[int, ...]:
        """Numbers of images: `--count`, or the mode's default."""
        return self.count or COUNTS[self.mode]

    @property
    def random_sizes(self) -> tuple[str, ...]:
        """Names requested in `model` as `random:NAME`; all for `random:all`."""
        if not self.model.startswith("random:"):
            return ()
        name = self.model.removeprefix("random:")
        return RANDOM_SIZES if name == "all" else (name,)

    @property
    def primary(self) -> Primary:
        """The compared kind of cost: CPU seconds, or wall seconds on a GPU."""
        return "wall" if self.device == "cuda" else "cpu"

    @property
    def most_actors(self) -> int | None:
        """The largest number of actors of the command in `label`; None for as many as the machine has cores for."""
        return 1 if self.actors is None else number_range(self.actors)[1]

    @property
    def longest(self) -> int:
        """The longer side of the size rule in pixels, in the proportion of the paper's."""
        return round(self.shorter * 1333 / 800)


def two_sizes(images: Sequence[int]) -> tuple[int, int]:
    """Return two different numbers of images; if one is given, the smaller is a third of it.

    Raises:
        ValueError: only one image, from which fixed and marginal cost cannot be separated.
    """
    if len(images) >= 2 and images[0] != images[1]:
        return min(images[:2]), max(images[:2])
    if images[0] < 2:
        raise ValueError("--count: fixed cost and cost per image need two sizes, such as --count 4 12")
    return max(1, images[0] // 3), images[0]
