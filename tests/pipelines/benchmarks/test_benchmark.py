"""The price in a report, and the allocator of our own subjects."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines import process_memory
from pipelines.benchmarks import (
    benchmark,
    command_cases,
    family_subjects,
    label_subjects,
    library_cases,
    model_subjects,
)
from pipelines.benchmarks.benchmark import Bench, Case
from pipelines.benchmarks.config import BenchConfig, Device, Mode
from pipelines.benchmarks.machine import machine_facts
from pipelines.benchmarks.process_tree import TreeUse
from pipelines.benchmarks.random_model import copy_model
from pipelines.benchmarks.report import to_markdown
from pipelines.benchmarks.rounds import Runner, Trial, Variant
from pipelines.benchmarks.timing import keep_freed_memory_as_actors

PRICE = "3.6 USD an hour for the machine"
SHARED = PRICE + "; a row pays for its share of the 16 cores, as if the others did the same work\n"


@pytest.fixture
def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """Return a benchmark on a machine with 16 cores for 3.6 USD an hour, whose subjects take two seconds an image."""
    facts = {**machine_facts(), "cores": 16}
    returned = {"phases": {}, "steady": {"images": 1, "cpu_s": 2.0, "wall_s": 2.0, "gpu": None}}
    use = TreeUse(wall_s=2.0, cpu_s=2.0, peak_bytes=1, exit_code=0, timed_out=False, processes=1)
    monkeypatch.setattr(benchmark, "machine_facts", lambda: facts)
    monkeypatch.setattr(
        Runner, "run", lambda _, variant, *, size=0, **__: Trial(variant.name, 0, size, use, returned, 0.0)
    )
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        (pictures / f"{number}.jpg").touch()

    def made(mode: Mode, **options: Any) -> Bench:
        return Bench(BenchConfig(mode, folder=pictures, price_per_hour=3.6, rounds=1, **options), tmp_path, print)

    return made


def run_all(bench: Bench, cases: Iterable[Case]) -> None:
    for case in cases:
        bench.run_case(replace(case, prepare=None, after=None, agreement=lambda *_: {"matched": 1.0}))


@pytest.mark.parametrize(
    ("device", "threads", "usd", "cores", "sentence"),
    [
        ("cpu", 1, 125.0, 1, SHARED),
        ("cpu", 32, 2000.0, 16, PRICE + "\n"),
        ("cuda", 1, 2000.0, 16, PRICE + "\n"),
    ],
)
def test_a_million_images_cost_what_the_cores_of_a_process_cost(
    device: Device, threads: int, usd: float, cores: int, sentence: str, priced: Callable[..., Bench]
) -> None:
    bench = priced("model", device=device)

    run_all(bench, [Case("a case", (Variant("ours", "none:none", {"threads": threads}),), agreement=lambda *_: None)])

    assert (bench.records[0].usd_per_million, bench.records[0].cores) == (pytest.approx(usd), cores)
    assert sentence in to_markdown(bench.report())
    assert "| cores paid for |" in to_markdown(bench.report())


@pytest.mark.parametrize(("actors", "cores"), [(None, 2), ("4:4", 8), ("1:4", 8), ("4:", 16)])
def test_only_the_labelling_command_pays_for_its_actors(
    actors: str | None, cores: int, priced: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_cases, "_model", lambda _: "model")
    monkeypatch.setattr(command_cases, "read_names", lambda _: {})
    monkeypatch.setattr(Bench, "has", lambda _, peer: peer == "pipeline")
    bench = priced("label", peers=("pipeline",), threads=2, actors=actors, count=(1, 2))

    run_all(bench, command_cases.label_cases(bench))

    paid = {one.variant: one.cores for one in bench.records}
    assert paid == {"ours": cores, "transformers pipeline": 2, "ours, network alone": 2}
    assert [one.usd_per_million for one in bench.records] == [125 * one for one in paid.values()]


def test_decoding_pays_for_its_one_thread(priced: Callable[..., Bench]) -> None:
    bench = priced("decode", threads=4, count=(2,))

    run_all(bench, library_cases.decode_cases(bench))

    assert {one.cores for one in bench.records} == {1}


def test_a_report_without_a_cost_of_images_has_no_sentence_about_prices(
    priced: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = priced("start", count=(2,))
    whole = replace(bench.runner.run(Variant("ours", "none:none", {})), returned={"exit_code": 0})
    monkeypatch.setattr(Runner, "run", lambda *_, **__: whole)

    run_all(bench, [Case("a case", (Variant("ours", "none:none", {}),), agreement=lambda *_: None, of="total")])

    assert bench.records[0].total_wall_s is not None
    assert "USD" not in to_markdown(bench.report())


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


@pytest.mark.parametrize("can_keep", [True, False])
def test_a_row_of_another_checkout_says_that_freed_memory_is_kept_only_if_its_code_can(
    can_keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_cases, "write_model", lambda _: None)
    monkeypatch.setattr(library_cases, "_reference", lambda *_: tmp_path / "reference.npz")
    for file in ("detr/__init__.py", *(["pipelines/process_memory.py"] if can_keep else [])):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    bench = Bench(BenchConfig("model", against=tmp_path), tmp_path, print)

    ours, before = next(library_cases.model_cases(bench)).variants

    assert ours.note == "freed memory is kept, as in actors of label"
    assert before.note == (ours.note if can_keep else "")
    assert bench.with_before(replace(ours, note="another"))[1].note == "another"
