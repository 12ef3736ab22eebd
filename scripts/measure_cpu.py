"""Measure the network on one CPU thread: CPU seconds and page faults of an image, plain modules against fused ones.

    python -m scripts.measure_cpu --size 800 1066 --batches 1 4 --rounds 6 [--keep-memory] [--in-thread]

Random weights of ResNet-50 with norms that keep activations of the same size. Variants alternate inside one process, so
that other load on the machine meets all of them; the speed of a matrix product beside them tells how fast the processor
was meanwhile.
"""

import argparse
import copy
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from detr.config import VARIANTS
from detr.folding import folded
from detr.model import Detr
from detr.onednn import use_onednn
from pipelines.process_memory import keep_freed_memory

PRODUCT = 1024  # rows and columns of the matrix product, which is measured 20 times


def drawn_network() -> Detr:
    """Return a ResNet-50 DETR of random weights whose activations neither die nor explode."""
    torch.manual_seed(0)
    network = Detr(VARIANTS["detr-resnet-50"]).eval()
    for name, values in network.named_buffers():
        if name.endswith("bn3.weight"):
            values.fill_(0.25)
        elif name.endswith("running_mean"):
            values.normal_(0, 0.05)
        elif name.endswith("running_var"):
            values.uniform_(0.8, 1.2)
    return network


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="scripts.measure_cpu", description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--keep-memory", action="store_true", help="as labelling actors do")
    parser.add_argument("--in-thread", action="store_true", help="compute in another thread than the main one")
    args = parser.parse_args()
    if args.keep_memory:
        print("freed memory is kept:", keep_freed_memory())
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit if args.in_thread else None
        work = lambda: measure(args.size, args.batches, args.rounds)  # noqa: E731
        run(work).result() if run else work()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


@torch.no_grad()
def measure(size: tuple[int, int], batches: list[int], rounds: int) -> None:
    """Print one row for each variant."""
    plain = folded(drawn_network()).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    if not use_onednn(fused):
        raise SystemExit("oneDNN cannot be used here; the log says why")
    square = torch.randn(PRODUCT, PRODUCT)
    variants: dict[tuple[str, int], Callable[[], object]] = {
        ("matrix product", 1): lambda: [square @ square for _ in range(20)]
    }
    for batch in batches:
        pixels = torch.randn(batch, 3, *size).contiguous(memory_format=torch.channels_last)
        difference = (fused.detect(pixels, None).logits - plain.detect(pixels, None).logits).abs().max().item()
        print(f"batch {batch}: largest difference of a logit {difference:.1e}")
        variants["plain", batch] = lambda pixels=pixels: plain.detect(pixels, None)  # type: ignore[misc]
        variants["fused", batch] = lambda pixels=pixels: fused.detect(pixels, None)  # type: ignore[misc]
    seconds, faults = defaultdict(list), defaultdict(list)
    for number in range(rounds):
        for key in list(variants)[:: 1 if number % 2 else -1]:
            before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
            variants[key]()
            seconds[key].append((time.process_time() - started) / key[1])
            faults[key].append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / key[1])
    print("variant         batch  CPU s an image: least  median  most   page faults an image, median")
    for key, values in seconds.items():
        print(
            f"{key[0]:15} {key[1]:5}  {min(values):21.3f}  {statistics.median(values):6.3f}  {max(values):5.3f}"
            f"  {statistics.median(faults[key]):9,.0f}"
        )
    rate = 20 * 2 * PRODUCT**3 / min(seconds["matrix product", 1]) / 1e9
    print(f"matrix product: {rate:.0f} GFLOP/s at best")


if __name__ == "__main__":
    main()
