"""Time calls in a subject's process: phases of its start, warm-up, steady state. Imports torch for CUDA only."""

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

WARM_UP_CALLS = 8  # at most; the compiler may run again in the second call
Batch = TypeVar("Batch", bound=Sized)
Result = TypeVar("Result")
FREED_MEMORY_NOTE = "freed memory is kept, as in actors of label"
ALIKE = 1.2  # two consecutive calls that differ by less than this are warm; on a busy machine they often differ by 1.1


@dataclass(slots=True)
class Phases:
    """CPU seconds of this process by the phases of its start: "import", "load", "first" ..."""

    cpu_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the CPU time of the context to a phase."""
        began = time.process_time()
        yield
        self.cpu_s[name] = self.cpu_s.get(name, 0.0) + time.process_time() - began


@dataclass(frozen=True, slots=True)
class Steady:
    """Cost of calls after warm-up.

    Attributes:
        images: number of images.
        cpu_s: user and system CPU seconds of this process.
        wall_s: wall seconds, on CUDA between two synchronisations.
        gpu: clocks, power, temperature and busy share of the GPU while the calls ran; None without a GPU.
    """

    images: int
    cpu_s: float
    wall_s: float
    gpu: dict[str, Any] | None = None


def steady(
    call: Callable[[Batch], Result],
    batches: Sequence[Batch],
    *,
    device: str,
    seconds: float,
    phases: Phases,
    kept: list[Result] | None = None,
) -> Steady:
    """Warm up on one batch of each length, then call with all batches repeatedly for at least `seconds`.

    The first call is the phase "first", the other calls of the warm-up "warm up". A network that is compiled for fixed
    shapes compiles again for a last batch that is shorter.

    Args:
        call: takes a batch; the length of a batch is its number of images.
        batches: at least one.
        device: "cuda" synchronises and samples the GPU.
        seconds: wall time of the steady state at least; every batch is used at least once.
        phases: receives the CPU time of the warm-up.
        kept: receives the result of each batch once, for comparison without computing it again.
    """
    on_gpu = device == "cuda"
    with phases.phase("first"):
        call(batches[0])
        _synchronize(on_gpu)
    with phases.phase("warm up"):
        for batch in _one_of_each_length(batches):
            _warm_up(partial(call, batch), on_gpu)
    sampling: AbstractContextManager[list[list[str]] | None] = nullcontext()
    if on_gpu:
        from pipelines.benchmarks.gpu import gpu_samples  # imported here: it imports torch

        sampling = gpu_samples()
    images = 0
    with sampling as samples:
        cpu, wall = time.process_time(), time.perf_counter()
        while images == 0 or time.perf_counter() - wall < seconds:
            is_first = images == 0
            for batch in batches:
                computed = call(batch)
                images += len(batch)
                if is_first and kept is not None:
                    kept.append(computed)
            _synchronize(on_gpu)
        spent = Steady(images, time.process_time() - cpu, time.perf_counter() - wall)
    if samples is None:
        return spent
    from pipelines.benchmarks.gpu import busy_share, peak_mb, summary

    gpu = {**summary(samples), "peak_mb": peak_mb(), **busy_share(lambda: call(batches[0]))}
    return Steady(spent.images, spent.cpu_s, spent.wall_s, gpu)


def can_keep_freed_memory(code: Path) -> bool:
    """Return whether the code of a checkout has what `keep_freed_memory_as_actors` calls."""
    return (code / "pipelines" / "process_memory.py").is_file()


def keep_freed_memory_as_actors(device: str) -> None:
    """Set the allocator of this process as an actor of `label` does before its network runs on a CPU.

    Earlier checkouts did not; see `can_keep_freed_memory`.
    """
    if device == "cpu" and importlib.util.find_spec("pipelines.process_memory") is not None:
        importlib.import_module("pipelines.process_memory").keep_freed_memory()


def result(phases: Phases, spent: Steady, **more: Any) -> dict[str, Any]:
    """Return the result of a subject: the phases, the steady state, and any other JSON values."""
    return {"phases": phases.cpu_s, "steady": asdict(spent), **more}


def _one_of_each_length(batches: Sequence[Batch]) -> list[Batch]:
    """Return the first batch of each length."""
    first = dict[int, Batch]()
    for batch in batches:
        first.setdefault(len(batch), batch)
    return list(first.values())


def _warm_up(call: Callable[[], object], on_gpu: bool) -> None:
    before = None
    for _ in range(WARM_UP_CALLS):
        began = time.process_time() if not on_gpu else time.perf_counter()
        call()
        _synchronize(on_gpu)
        took = (time.process_time() if not on_gpu else time.perf_counter()) - began
        if before is not None and before / ALIKE <= took <= before * ALIKE:
            return
        before = took


def _synchronize(on_gpu: bool) -> None:
    if on_gpu:
        import torch

        torch.cuda.synchronize()
