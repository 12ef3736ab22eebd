from pathlib import Path

import numpy as np
import pytest

from pipelines.benchmarks import library_cases
from pipelines.benchmarks.agreement import save_found
from pipelines.benchmarks.benchmark import Bench, Case, found_file
from pipelines.benchmarks.config import BenchConfig


def cases(folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, device: str = "cuda") -> list[Case]:
    """The cases of `bench model`; each subject that prepares something is only noted."""
    config = BenchConfig("model", model=model, precisions=("bf16",), shapes=((96, 128),), device=device, count=(1,))
    bench = Bench(config, folder, print)

    def setup(_: Bench, subject: str, settings: dict[str, object], **_more: object) -> None:
        if subject == "random_model:copy_model":
            from pipelines.benchmarks.random_model import copy_model

            copy_model(dict(settings), folder)
        else:
            save_found(folder / "reference_96x128.npz", [([], [], [])] * 2, [(96, 128)] * 2)

    monkeypatch.setattr(Bench, "setup", setup)
    return list(library_cases.model_cases(bench))


def test_a_network_of_another_size_has_no_roofline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = cases(tmp_path, monkeypatch, "scenes")

    assert case.shape is None


def test_a_batch_of_fewer_images_than_the_reference_has_agrees_with_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = cases(tmp_path, monkeypatch, "scenes")
    (ours,) = case.variants
    save_found(tmp_path / found_file(ours.name), [(np.array([]), [], [])], [(96, 128)])

    assert case.agreement(ours, []) == {"matched": 1.0, "back": 1.0, "max px": 0.0, "AP": None, "boxes": 0}
