"""Measure memory and time of a training step with and without gradient checkpointing, on a CPU.

python scripts/gradient_checkpointing.py [HEIGHT WIDTH [IMAGES]]

Each case runs in a process of its own: its peak memory less that before the step, and the CPU time of the step.
"""

import resource
import subprocess
import sys
import time

CASES = ("detr-resnet-50-dc5", "detr-resnet-101")


def measure(variant: str, height: int, width: int, images: int, *, enabled: bool) -> None:
    """Print peak memory and CPU time of forward and backward of a batch, one thread, and a sum of the gradients."""
    import torch

    from detr.config import VARIANTS
    from detr.model import Detr
    from detr.training.optimizer import freeze_backbone

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Detr(VARIANTS[variant]).train().to(memory_format=torch.channels_last)
    freeze_backbone(model, stages="stem_and_first")
    model.checkpoint_gradients(enabled=enabled)
    pixels = torch.randn(images, 3, height, width).contiguous(memory_format=torch.channels_last)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    output = model(pixels)
    (output.logits.square().mean() + output.boxes_cxcywh.mean()).backward()
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    gradients = sum(float(p.grad.double().abs().sum()) for p in model.parameters() if p.grad is not None)
    print(f"| {variant} | {'on' if enabled else 'off'} | {peak / 1e6:.2f} GB | {seconds:.1f} s | {gradients!r} |")


def main() -> None:
    """Run every case in a child, or one case as a child."""
    if sys.argv[1:2] == ["--case"]:
        measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), enabled=sys.argv[6] == "on")
        return
    height, width, images = [*sys.argv[1:4], *("640", "853", "1")[len(sys.argv[1:4]) :]]
    print(
        "| model | checkpointing | memory of the step | CPU time | sum of gradients |\n|---|---|---|---|---|",
        flush=True,
    )
    for variant in CASES:
        for state in ("off", "on"):
            subprocess.run([sys.executable, __file__, "--case", variant, height, width, images, state], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
