"""The benchmark as a user calls it: arguments, exit codes, and one small run of every mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detr.families import FAMILIES
from jobs.bench import main
from pipelines.benchmarks import benchmark, random_model
from pipelines.benchmarks.config import NATIVE_SIZES, RANDOM_SIZES, BenchConfig
from pipelines.benchmarks.peers import random_family
from pipelines.errors import RayDetrError
from tests.families import write_family

ROOT = Path(__file__).parents[2]
SMALL = ["--model", "scenes", "--shapes", "96x128", "--rounds", "1", "--seconds", "0"]
BLOCKED = ("ray", "obstore", "boto3", "botocore", "s3fs", "fsspec", "tensorboardX", "rich", "daft")

# accelerate, which transformers imports where it is installed, imports boto3 where it finds it
ABSENT = """
import sys
frame = sys._getframe()
while frame is not None and not frame.f_globals.get("__name__", "").startswith("accelerate."):
    frame = frame.f_back
if frame is None:
    raise ImportError("{name} is not installed here")
"""


def bench(*line: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": f"{ROOT}:{path}".rstrip(":"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "jobs.bench", *line],
        cwd=ROOT, env=given, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip


def measured(tmp_path: Path, *line: str, path: str = "") -> dict[str, Any]:
    """Run, and return the JSON that it keeps, after a look at what it prints."""
    done = bench(*line, "--out", str(tmp_path / "out"), path=path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"## {line[0]}, ")
    assert (tmp_path / "out" / f"{line[0]}.md").read_text().startswith(f"## {line[0]}, ")
    document: dict[str, Any] = json.loads((tmp_path / "out" / f"{line[0]}.json").read_text())
    assert document["command"].startswith(f"python -m jobs.bench {line[0]} ")
    return document


def records(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {record["variant"]: record for record in document["records"]}


@pytest.fixture
def without_ray(tmp_path: Path) -> str:
    """A folder for PYTHONPATH in which Ray and the clients of stores cannot be imported, children included."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    for name in BLOCKED:
        (folder / f"{name}.py").write_text(ABSENT.format(name=name))
    return str(folder)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["speed"], "invalid choice: 'speed'"),
        (["model", "--peers", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["model", "--shapes", "800"], "'800' is not HEIGHTxWIDTH, such as 480x640"),
        (["model", "--rounds", "0"], "argument --rounds: 0 is not at least 1"),
        (["model", "--precison", "fp32"], "Did you mean --precision?"),
        (["start", "--against", "/nowhere"], "--against /nowhere: not a checkout of ray-detr"),
        (["decode", "--images", "/nowhere"], "--images /nowhere: no such folder"),
        (["label", "--peers", "openvino"], "--peers openvino: label is compared with pipeline, raydata, daft"),
        (["model", "--peers", "openvino"], "--peers openvino: only the network alone is measured. Add --parts forward"),
        (
            ["model", "--peers", "openvino", "--parts", "forward", "--device", "cuda"],
            "--peers openvino: measured on the CPU only, not with --device cuda",
        ),
        (
            ["model", "--peers", "onnxruntime", "--parts", "forward", "--precision", "bf16"],
            "--peers onnxruntime: measured in fp32 only. Add --precision fp32",
        ),
        (["model", "--compile"], "--compile: only the network alone is measured compiled. Add --parts forward"),
        (["start", "--peers", "transformers"], "--peers transformers: start is compared with no other library"),
        (["label", "--count", "1"], "two sizes, such as --count 4 12"),
        (["model", "--model", "random:yolo"], "--model random:yolo: 'yolo' is not all or one of detr-resnet-50, "),
        (["label", "--model", "random:yolos-tiny"], "--model random:yolos-tiny: only `model` measures it"),
        (["model", "--device", "cuda:1"], "argument --device: invalid choice: 'cuda:1'"),
        (["gpu-check"], "gpu-check needs --out DIR"),
        (["model", "--price-per-hour", "0"], "argument --price-per-hour: 0 is not above 0"),
    ],
)
def test_a_wrong_line_is_told_what_is_wrong_before_anything_is_measured(
    line: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(line)

    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:1", "CUDA", "gpu"])
def test_a_device_whose_calls_would_not_be_waited_for_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        BenchConfig("model", device=device)  # type: ignore[arg-type]


def test_a_peer_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "installed", lambda package: None if package == "openvino" else "1.0")
    opened = benchmark.Bench(
        BenchConfig("model", peers=("openvino", "transformers"), parts=("forward",)), tmp_path, print
    )

    assert not opened.has("openvino")
    assert not opened.has("openvino")
    assert opened.has("transformers")
    assert opened.missing == ["openvino: openvino not installed (pip install .[bench])"]


def test_figures_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")

    with pytest.raises(RayDetrError, match=r"^figures cannot be written to .*file/new: Not a directory\.$"):
        benchmark.Bench(BenchConfig("model", out=tmp_path / "file" / "new"), tmp_path, print).write()


@pytest.mark.slow
def test_the_network_is_measured_beside_transformers_without_ray(tmp_path: Path, without_ray: str) -> None:
    line = ["model", *SMALL, "--count", "2", "--parts", "forward", "detect", "--peers", "transformers"]
    document = measured(tmp_path, *line, "--price-per-hour", "3.6", path=without_ray)

    forward = {one["variant"]: one for one in document["records"] if one["case"].startswith("forward, 96x128")}
    assert set(forward) == {"ours", "transformers", "transformers, tuned"}
    assert {one["case"] for one in document["records"]} == {
        "forward, 96x128, batch 1, fp32, cpu",
        "detect, 96x128, batch 1, fp32, cpu",
    }
    for record in document["records"]:
        assert record["rounds"] == 1
        assert record["agreement"]["matched"] == 1.0
        assert record["agreement"]["back"] == 1.0
        assert record["agreement"]["max px"] < 0.01
        assert record["cpu_s_per_image"]["median"] > 0
        core = 1 / document["machine"]["cores"]
        assert record["usd_per_million"] == pytest.approx(core * 1000 * record["wall_s_per_image"]["median"])
        assert record["peak_mb"]["median"] > 100
        assert set(record["phases"]) >= {"load", "first", "warm up"}


@pytest.mark.slow
@pytest.mark.long
def test_a_model_of_another_family_is_measured_beside_its_pipeline_and_its_network_alone(
    tmp_path: Path, without_ray: str
) -> None:
    model = str(write_family("deformable_detr", tmp_path / "model"))
    line = ["model", "--model", model, "--shapes", "96x128", "--rounds", "1", "--seconds", "0", "--count", "2"]
    found = records(measured(tmp_path, *line, path=without_ray))

    assert set(found) == {"ours", "transformers, pipeline", "transformers, network alone"}
    for record in found.values():
        assert record["agreement"]["matched"] == record["agreement"]["back"] == 1.0
        assert record["agreement"]["max px"] < 0.05
        assert record["agreement"]["boxes"] > 0
        assert record["cpu_s_per_image"]["median"] > 0
    refused = bench(*line, "--precision", "bf16", path=without_ray)
    assert refused.returncode == 1
    assert "is measured in fp32 only" in refused.stderr


def test_there_is_a_random_model_of_every_family_in_a_published_size() -> None:
    types = {configuration().model_type for configuration, _ in random_family.SIZES.values()}

    assert types == set(FAMILIES)
    assert sorted(random_family.SIZES) == sorted(set(RANDOM_SIZES) - set(NATIVE_SIZES))
    assert set(NATIVE_SIZES) <= set(random_model.SIZES)


@pytest.mark.slow
@pytest.mark.long
def test_random_weights_in_a_published_size_find_enough_to_compare(tmp_path: Path) -> None:
    line = ["--model", "random:deimv2_hgnetv2_n_coco", "--shapes", "96x128", "--rounds", "1", "--seconds", "0"]
    document = measured(tmp_path, "model", *line, "--count", "2")

    assert {one["case"] for one in document["records"]} == {
        "random deimv2_hgnetv2_n_coco, pictures of 96x128, batch 1, fp32, cpu"
    }
    for record in document["records"]:
        assert record["agreement"]["matched"] == record["agreement"]["back"] == 1.0
        assert record["agreement"]["max px"] < 0.05
        assert record["agreement"]["boxes"] > 10


@pytest.mark.slow
@pytest.mark.long
def test_a_detr_is_measured_beside_the_pipeline_too(tmp_path: Path, without_ray: str) -> None:
    document = measured(tmp_path, "model", *SMALL, "--count", "1", "--peers", "pipeline", path=without_ray)

    cases = {one["case"]: one for one in document["records"]}
    assert set(cases) == {"scenes, pictures of 96x128, batch 1, fp32, cpu", "detect, 96x128, batch 1, fp32, cpu"}
    ours, pipeline, alone = document["records"][:3]
    assert (pipeline["variant"], alone["variant"]) == ("transformers, pipeline", "transformers, network alone")
    assert ours["agreement"]["matched"] > 0.9
    assert ours["agreement"]["boxes"] > 0


@pytest.mark.slow
def test_the_training_step_is_measured_beside_transformers_without_ray(tmp_path: Path, without_ray: str) -> None:
    found = records(measured(tmp_path, "train", *SMALL, "--batch", "2", "--peers", "transformers", path=without_ray))

    assert found["ours"]["agreement"]["of transformers's"] == pytest.approx(1.0, abs=1e-3)
    assert found["transformers"]["ratio"]["median"] > 0


@pytest.mark.slow
def test_decoding_is_measured_beside_pillow_and_the_processors_without_ray(tmp_path: Path, without_ray: str) -> None:
    line = ["decode", "--model", "scenes", "--rounds", "1", "--seconds", "0", "--count", "3", "--peers", "transformers"]
    found = records(measured(tmp_path, *line, path=without_ray))

    assert set(found) == {"ours", "Pillow", "transformers, torchvision", "transformers, Pillow"}
    assert found["Pillow"]["agreement"] == {"max": 0, "mean": 0.0, "share above 1": 0.0}
    assert found["ours"]["agreement"]["max"] <= 1


@pytest.mark.slow
def test_evaluation_is_measured_beside_pycocotools_at_two_sizes(tmp_path: Path) -> None:
    line = ["evaluate", "--rounds", "1", "--count", "20", "60", "--detections", "10"]
    found = records(measured(tmp_path, *line))

    assert set(found) == {"ours", "pycocotools"}
    assert found["ours"]["agreement"]["largest difference"] == 0.0
    assert 0 < found["ours"]["agreement"]["AP"] < 1
    assert found["ours"]["fixed_cpu_s"]["median"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_another_checkout_is_measured_beside_this_one(tmp_path: Path) -> None:
    line = ["model", *SMALL, "--count", "1", "--against", str(ROOT)]
    found = records(measured(tmp_path, *line))

    assert found["before"]["baseline"] == "ours"
    assert found["before"]["agreement"]["matched"] == 1.0
    assert found["before"]["ratio"]["median"] == pytest.approx(1.0, abs=0.9)


@pytest.mark.slow
def test_a_peer_that_fails_has_a_row_with_its_reason_and_the_exit_code_is_1(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "transformers.py").write_text("raise ImportError('out of paper')")

    done = bench("train", *SMALL, "--peers", "transformers", path=str(broken))

    assert done.returncode == 1
    assert "out of paper" in done.stdout
    assert "error: not everything could be measured" in done.stderr
    assert "| ours | 1 |" in done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_whole_labelling_commands_are_measured_beside_the_pipeline_of_transformers(tmp_path: Path) -> None:
    line = ["label", "--model", "scenes", "--rounds", "1", "--seconds", "0", "--count", "2", "4", "--actors", "1"]
    found = records(measured(tmp_path, *line, "--peers", "pipeline", "raydata"))

    assert set(found) == {"ours", "transformers pipeline", "Ray Data script", "ours, network alone"}
    assert found["ours"]["agreement"]["matched"] > 0.9
    assert found["ours"]["total_cpu_s"]["median"] > found["ours"]["phases"].get("import", 0)
    assert found["Ray Data script"]["agreement"]["boxes"] == found["ours"]["agreement"]["boxes"] > 0


@pytest.mark.ray
@pytest.mark.slow
def test_starts_are_measured_imports_nothing_to_do_and_the_first_shard(tmp_path: Path) -> None:
    document = measured(tmp_path, "start", "--rounds", "1", "--count", "3", "--actors", "1")

    cases = {record["case"]: record for record in document["records"]}
    assert cases["nothing to do: 3 photographs are labelled"]["agreement"] == {"rows": 3, "of": 3}
    fresh = cases["a new table of 3 photographs"]
    assert fresh["agreement"] == {"rows": 3, "of": 3}
    assert 0 < fresh["seen"]["first shard"]["median"] < fresh["total_wall_s"]["median"]
    assert cases["import jobs.label"]["agreement"] == {"imported": "yes"}


@pytest.mark.slow
@pytest.mark.long
def test_the_gpu_check_is_rehearsed_on_the_cpu_without_ray_and_keeps_every_figure(
    tmp_path: Path, without_ray: str
) -> None:
    done = bench("gpu-check", "--smoke", "--out", str(tmp_path / "out"), path=without_ray)
    document = json.loads((tmp_path / "out" / "gpu-check.json").read_text())

    assert done.returncode == 0, done.stderr[-3000:]
    states = {name: stage["state"] for name, stage in document["stages"].items()}
    tests = {"core tests", "rest of the tests"}  # on a busy machine they may not end within their time
    assert {name: state for name, state in states.items() if state != "done" and name not in tests} == {}
    assert [document["stages"][name]["failed"] for name in sorted(tests)] == [[], []]
    assert set(document["stages"]["core tests"]["counts"]) == {"passed"}
    failed = [
        (stage, name, value["error"])
        for stage, figures in document["figures"].items()
        for name, value in figures.items()
        if isinstance(value, dict) and "error" in value
    ]
    assert failed == []
    assert document["figures"]["label"]["labeler, second run"]["images"] == 12
    assert document["figures"]["parity"]["ours fp32 detector"]["matched"] == 1.0
    assert document["figures"]["parity"]["trained model, fp32"]["matched"] == 1.0
    assert document["figures"]["network"]["ours, detector, fp16, batch 2"]["images_per_s"] > 0
    assert "ours, network, fp16, batch 1, compiled" in document["figures"]["compiled"]
