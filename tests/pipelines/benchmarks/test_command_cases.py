from pathlib import Path

import pytest

from pipelines.benchmarks import command_cases
from pipelines.benchmarks.benchmark import Bench
from pipelines.benchmarks.config import BenchConfig


@pytest.mark.parametrize(
    ("actors", "more"),
    [(None, ["--cpus-per-actor", "2", "--actors", "1"]), ("1:4", ["--actors", "1:4", "--cpus-per-actor", "2"])],
)
def test_the_labelling_command_has_as_many_threads_as_each_peer(
    actors: str | None, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        (pictures / f"{number}.jpg").touch()
    config = BenchConfig("label", peers=("pipeline",), threads=2, count=(1, 2), folder=pictures, actors=actors)
    bench = Bench(config, tmp_path, print)
    monkeypatch.setattr(command_cases, "_model", lambda _: "model")
    monkeypatch.setattr(command_cases, "read_names", lambda _: {})
    monkeypatch.setattr(Bench, "has", lambda _, peer: peer == "pipeline")

    case = next(command_cases.label_cases(bench))
    ours, peer = case.variants

    assert case.prepare is not None
    assert case.prepare(ours, 0, 2)["arguments"][-len(more) :] == more
    assert peer.settings["threads"] == 2
