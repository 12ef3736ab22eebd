from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.benchmarks import library_cases
from pipelines.benchmarks.agreement import save_found
from pipelines.benchmarks.benchmark import Bench, Case, SubjectFailed, found_file
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


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"compiled": True, "parts": ("forward",)}, "--compile"),
        ({"peers": ("openvino",), "parts": ("forward",)}, "--peers openvino"),
    ],
)
def test_a_candidate_that_is_not_measured_beside_a_pipeline_is_refused(
    options: dict[str, Any], option: str, tmp_path: Path
) -> None:
    bench = Bench(BenchConfig("model", model="random:yolos-tiny", **options), tmp_path, print)

    with pytest.raises(SubjectFailed) as raised:
        list(library_cases.model_cases(bench))

    assert str(raised.value) == f"{option}: random:yolos-tiny is compared with `transformers` and --against only"


def test_a_model_of_another_family_is_compared_with_another_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "setup", lambda *_, **__: None)
    config = BenchConfig("model", model="random:yolos-tiny", against=Path(__file__).parents[3])

    (case,) = library_cases.model_cases(Bench(config, tmp_path, print))

    assert [variant.name for variant in case.variants] == [
        *("ours", "before", "transformers, pipeline", "transformers, network alone")
    ]


def test_the_precision_in_which_a_peer_is_not_measured_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.benchmarks.benchmark.installed", lambda _: "1.0")
    monkeypatch.setattr(library_cases, "write_model", lambda _: None)
    monkeypatch.setattr(library_cases, "_reference", lambda *_: tmp_path / "reference.npz")
    config = BenchConfig("model", peers=("onnxruntime",), precisions=("fp32", "bf16"), parts=("forward",))
    bench = Bench(config, tmp_path, print)

    fp32, bf16 = library_cases.model_cases(bench)

    assert [variant.name for variant in fp32.variants] == ["ours", "ONNX Runtime"]
    assert [variant.name for variant in bf16.variants] == ["ours"]
    assert bench.missing == ["onnxruntime in bf16: it is measured in fp32 only"]
