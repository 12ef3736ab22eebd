"""Measure what half precision does to detections, on a machine that has none: every result is rounded as it would be.

python scripts/half_precision.py --images val2017/ --shorter 800 --longest 1333 --model scenes

Convolutions and matrix products add up in float32 here, as on GPUs. Prints, for each variant, the largest difference
of a score and of a box (pixels) from unpadded float32, and the AP with float32's detections as the truth.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import detr
from detr.config import VARIANTS
from detr.detector import Detector
from detr.evaluation.average_precision import average_precision
from detr.evaluation.coco_results import result_rows
from detr.images.decoding import decode
from detr.model import Detr
from detr.postprocess import Detections

PRODUCTS = ("aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")
TRUTH_AN_IMAGE = 10  # mean number of true detections per image


class Rounding(TorchDispatchMode):
    """Rounds every float32 result to a dtype while it is active; with `products`, only around matrix products."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.is_on, self.products = dtype, True, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_product = func.name().startswith(PRODUCTS)
        if not self.is_on or (self.products and not is_product):
            return func(*args, **(kwargs or {}))
        if self.products:
            args = tree_map(self.rounded, args)
        return tree_map(self.round_, func(*args, **(kwargs or {})))

    def rounded(self, value: Any) -> Any:
        """Return a float32 tensor rounded, and other values unchanged."""
        is_float = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(self.dtype).float() if is_float else value

    def round_(self, value: Any) -> Any:
        """Round a float32 tensor in place."""
        is_float = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.copy_(value.to(self.dtype)) if is_float else value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--shorter", type=int, default=800)
    parser.add_argument("--longest", type=int, default=1333)
    parser.add_argument("--model", default="scenes", help="what detr.load takes, or random-r50")
    args = parser.parse_args()
    network = random_r50() if args.model == "random-r50" else detr.load(args.model)
    network.config = replace(network.config, shorter=args.shorter, longest=args.longest)
    pictures = [decode(file.read_bytes()) for file in sorted(args.images.glob("*.jpg"))[: args.count]]
    exact = detect(network, pictures)
    scores = torch.cat([one.scores for one in exact])
    least = scores.sort(descending=True).values[TRUTH_AN_IMAGE * len(pictures)].item()
    print(
        f"{args.model}: {len(pictures)} images, truth: scores from {least:.3f}, "
        f"AP of fp32 {ap(exact, exact, least):.4f}"
    )
    for dtype in (torch.bfloat16, torch.float16):
        for name, products in (("everything but heads and positions", False), ("transformer: products only", True)):
            found = detect(network, pictures, Rounding(dtype), products=products)
            print(f"{dtype}, {name}: {compare(exact, found)}, AP {ap(exact, found, least):.4f}", flush=True)


def random_r50() -> Detr:
    """Return a DETR-R50 with random weights whose activations neither vanish nor explode."""
    torch.manual_seed(0)
    network = Detr(VARIANTS["detr-resnet-50"]).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.25)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.05)
        elif name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    return network


def detect(
    network: Detr, pictures: Sequence[Tensor], rounding: Rounding | None = None, *, products: bool = False
) -> list[Detections]:
    """Return the detections of each picture alone, at threshold 0."""
    with patch("detr.detector.use_onednn"):  # fused, the results between convolution, sum and ReLU are not seen
        detector = Detector(network, device="cpu", precision="fp32", threshold=0.0, batch_size=1)
    if rounding is not None:
        _round_inside(detector._network, rounding, products=products)  # noqa: SLF001
    return [detector(picture) for picture in pictures]


def _round_inside(network: Detr, rounding: Rounding, *, products: bool) -> None:
    heads = (network.class_embed, network.bbox_embed)
    for part in (network.backbone[0], network.input_proj, network.transformer, network.query_embed):
        for parameter in part.parameters():
            is_norm = products and parameter.dim() == 1 and part is network.transformer
            parameter.data = parameter.data if is_norm else rounding.rounded(parameter.data)

    def switch(part: nn.Module, *, is_on: bool) -> None:
        def before(*_: Any) -> None:
            rounding.is_on = is_on

        def after(*_: Any) -> None:
            rounding.is_on = True

        part.register_forward_pre_hook(before)
        part.register_forward_hook(after)

    for part in (network.backbone[1], *heads):
        switch(part, is_on=False)

    def begin_products(*_: Any) -> None:
        rounding.products = products

    def end_products(*_: Any) -> None:
        rounding.products = False

    network.transformer.register_forward_pre_hook(begin_products)
    network.transformer.register_forward_hook(end_products)
    compute = network.detect

    def rounded(*arguments: Any) -> Any:
        with rounding:
            return compute(rounding.rounded(arguments[0]), *arguments[1:])

    network.detect = rounded  # type: ignore[method-assign]


def compare(exact: Sequence[Detections], found: Sequence[Detections]) -> str:
    """Return the largest differences of detections that are the same query's: those of the nearest score and class."""
    scores, boxes = [], []
    for one, other in zip(exact, found, strict=True):
        for score, box in zip(one.scores[:10], one.boxes_xyxy[:10], strict=True):
            distance = (other.boxes_xyxy - box).abs().max(1).values
            nearest = int(distance.argmin())
            boxes.append(float(distance[nearest]))
            scores.append(float((other.scores[nearest] - score).abs()))
    mean = sum(boxes) / len(boxes)
    return f"largest difference of a score {max(scores):.4f}, of a box {max(boxes):.2f} px (mean {mean:.3f})"


def ap(exact: Sequence[Detections], found: Sequence[Detections], least: float) -> float:
    """Return the AP of detections when those of `exact` from a score on are the truth."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    categories = sorted({int(number) for one in exact for number in one.category_ids})
    truth["categories"] = [{"id": number, "name": str(number)} for number in categories]
    rows: list[Any] = []
    for image_id, (one, other) in enumerate(zip(exact, found, strict=True), start=1):
        truth["images"].append({"id": image_id, "height": 640, "width": 640, "file_name": str(image_id)})
        for category, score, (xmin, ymin, xmax, ymax) in zip(
            one.category_ids.tolist(), one.scores.tolist(), one.boxes_xyxy.tolist(), strict=True
        ):
            if score >= least:
                width, height = xmax - xmin, ymax - ymin
                truth["annotations"].append({
                    "id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0,
                    "bbox": [xmin, ymin, width, height], "area": width * height,
                })  # fmt: skip
        rows += result_rows(image_id, other.category_ids.tolist(), other.scores.tolist(), other.boxes_xyxy.tolist())
    image_ids = {image["id"] for image in truth["images"]}
    return average_precision(truth, rows, image_ids=image_ids).AP or 0.0


if __name__ == "__main__":
    main()
