"""The price in a report, and the allocator of our own subjects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines import process_memory
from pipelines.benchmarks import benchmark, family_subjects, label_subjects, model_subjects
from pipelines.benchmarks.benchmark import Bench, Case
from pipelines.benchmarks.config import BenchConfig, Device, Mode
from pipelines.benchmarks.machine import machine_facts
from pipelines.benchmarks.process_tree import TreeUse
from pipelines.benchmarks.random_model import copy_model
from pipelines.benchmarks.report import to_markdown
from pipelines.benchmarks.rounds import Runner, Trial, Variant
from pipelines.benchmarks.timing import keep_freed_memory_as_actors


@pytest.mark.parametrize(
    ("mode", "device", "threads", "actors", "usd", "sentence"),
    [
        ("model", "cpu", 1, None, 125.0, "3.6 USD an hour for the machine, of which a process pays for 1 of 16 cores,"),
        ("label", "cpu", 2, "1:4", 1000.0, "pays for 8 of 16 cores"),
        ("label", "cpu", 2, "4:", 2000.0, "3.6 USD an hour for the machine\n"),
        ("model", "cpu", 32, None, 2000.0, "3.6 USD an hour for the machine\n"),
        ("model", "cuda", 1, None, 2000.0, "3.6 USD an hour for the machine\n"),
    ],
)
def test_a_million_images_cost_what_the_cores_of_a_process_cost(
    mode: Mode, device: Device, threads: int, actors: str | None, usd: float, sentence: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = BenchConfig(mode, device=device, threads=threads, actors=actors, price_per_hour=3.6, rounds=1)
    facts = {**machine_facts(), "cores": 16}
    returned = {"phases": {}, "steady": {"images": 1, "cpu_s": 2.0, "wall_s": 2.0, "gpu": None}}
    use = TreeUse(wall_s=2.0, cpu_s=2.0, peak_bytes=1, exit_code=0, timed_out=False, processes=1)
    monkeypatch.setattr(benchmark, "machine_facts", lambda: facts)
    monkeypatch.setattr(Runner, "run", lambda _, variant, **__: Trial(variant.name, 0, 0, use, returned, 0.0))
    bench = Bench(config, tmp_path, print)

    bench.run_case(Case("a case", (Variant("ours", "none:none", {}),), agreement=lambda *_: {"matched": 1.0}))

    assert bench.records[0].usd_per_million == pytest.approx(usd)
    assert sentence in to_markdown(bench.report())


@pytest.mark.parametrize(
    "subject", [model_subjects.detect, model_subjects.forward, family_subjects.detect, label_subjects.network_alone]
)
def test_our_network_on_a_cpu_has_the_allocator_of_an_actor(
    subject: Callable[[dict[str, Any], Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr(process_memory, "keep_freed_memory", lambda: kept.append("kept"))
    copy_model({"model": "scenes"}, tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")

    subject(
        {
            "model": str(tmp_path / "model"), "files": [str(tmp_path / "1.jpg")], "shape": [48, 64], "images": 1,
            "batch": 1, "device": "cpu", "precision": "fp32", "threads": 1, "seconds": 0.0, "found": "found.npz",
        },
        tmp_path,
    )  # fmt: skip

    assert kept == ["kept"]


def test_an_actor_on_a_gpu_leaves_the_allocator_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "keep_freed_memory", lambda: pytest.fail("called"))

    keep_freed_memory_as_actors("cuda")
