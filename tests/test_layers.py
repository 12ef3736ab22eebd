"""Imports go downwards only: jobs, pipelines, detr; and some libraries are known in one place only."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT) for layer in ("detr", "pipelines", "jobs") for path in (ROOT / layer).rglob("*.py")
)

STORE_CLIENTS = {"obstore", "fsspec", "s3fs", "boto3", "botocore", "aiohttp"}
TERMINALS = {"argparse", "rich"}
FORBIDDEN = {
    "detr": {"pipelines", "jobs", "ray", "pyarrow", *STORE_CLIENTS, *TERMINALS},
    "pipelines": {"jobs", *STORE_CLIENTS, *TERMINALS},
    "jobs": {"torch", "torchvision", "ray", "pyarrow", *STORE_CLIENTS},
}
ALLOWED = {
    "detr/checkpoints/tensor_files.py": {"argparse"},  # the class of the options that original checkpoints hold
    "pipelines/submission.py": {"aiohttp"},  # Ray's client of the job server raises its errors
}
# the model as a library: what it needs, and not more
OF_DETR = {
    "detr", "torch", "torchvision", "PIL", "numpy", "scipy", "pycocotools", "ultrafast_pycocotools", "safetensors",
    "huggingface_hub", "httpx",
}  # fmt: skip
# judges and tools of tests
NEVER = {"transformers", "timm", "pandas", "pytest", "hypothesis", "moto"}
# libraries that jobs.bench measures beside ours, and the engine of SQL over tables: each in these files only
PEERS = {"transformers", "openvino", "onnxruntime", "daft", "duckdb"}
PEER_FILES = {
    "detr/transformers_model.py": {"transformers"},  # other detectors, behind an extra
    "pipelines/benchmarks/peers/random_family.py": {"transformers"},
    "pipelines/benchmarks/peers/transformers_family.py": {"transformers"},
    "pipelines/benchmarks/peers/transformers_model.py": {"transformers"},
    "pipelines/benchmarks/peers/transformers_decode.py": {"transformers"},
    "pipelines/benchmarks/peers/transformers_pipeline.py": {"transformers"},
    "pipelines/benchmarks/peers/plain_detector.py": {"transformers"},
    "pipelines/benchmarks/peers/openvino_model.py": {"openvino"},
    "pipelines/benchmarks/peers/onnxruntime_model.py": {"onnxruntime"},
    "pipelines/benchmarks/peers/daft_script.py": {"daft"},
    "pipelines/exports/query.py": {"duckdb"},
    "pipelines/exports/views.py": {"duckdb"},
    "pipelines/model_export.py": {"onnxruntime"},
    "pipelines/repeats/finding.py": {"duckdb"},  # the type of a connection
}
# libraries that take seconds and hundreds of MB to import: each in these files and folders of pipelines only
HEAVY = {
    "ray": {
        "pipelines/actor_resources.py",
        "pipelines/benchmarks/peers/",
        "pipelines/cluster.py",
        "pipelines/doctor/",
        "pipelines/labelling/actor_pool.py",
        "pipelines/labelling/pool_records.py",
        "pipelines/local_ray.py",
        "pipelines/run_metrics.py",
        "pipelines/shards/tasks.py",
        "pipelines/submission.py",
        "pipelines/training/",
    },
    "torch": {
        "pipelines/benchmarks/",
        "pipelines/detect.py",
        "pipelines/doctor/",
        "pipelines/evaluation/table_results.py",
        "pipelines/labelling/actor_pool.py",
        "pipelines/labelling/isolated_decoding.py",
        "pipelines/labelling/labeler.py",
        "pipelines/labelling/labeler_spec.py",
        "pipelines/model_export.py",
        "pipelines/panoptic.py",
        "pipelines/repeats/page.py",
        "pipelines/report/pictures.py",
        "pipelines/shards/reader.py",
        "pipelines/table/preview.py",
        "pipelines/training/",
    },
}


def imported(source: str) -> set[str]:
    """The top-level names of everything that a source imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or "").partition(".")[0])
    return names


def test_there_are_files_of_every_layer() -> None:
    assert {path.parts[0] for path in FILES} == {"detr", "pipelines", "jobs"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_nothing_from_above_its_layer(path: Path) -> None:
    forbidden = FORBIDDEN[path.parts[0]] - ALLOWED.get(path.as_posix(), set())
    if path.parts[:2] == ("pipelines", "store"):
        forbidden = forbidden - STORE_CLIENTS

    assert imported((ROOT / path).read_text()) & forbidden == set()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_absolutely_and_nothing_that_only_developers_have(path: Path) -> None:
    found = imported((ROOT / path).read_text())

    assert not {name for name in found if name.startswith(".")}
    assert found & (NEVER | PEERS) == PEER_FILES.get(path.as_posix(), set())


@pytest.mark.parametrize("library", HEAVY)
def test_ray_and_torch_are_imported_in_these_places_of_pipelines_and_nowhere_else(library: str) -> None:
    files = [path for path in FILES if path.parts[0] == "pipelines" and library in imported((ROOT / path).read_text())]
    places = {
        next((place for place in HEAVY[library] if path.as_posix().startswith(place)), path.as_posix())
        for path in files
    }

    assert places == HEAVY[library]


@pytest.mark.parametrize("place", sorted(HEAVY["ray"]))
def test_the_guide_for_contributors_names_every_place_that_imports_ray(place: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()

    assert f"`{place}`" in text or (place == "pipelines/benchmarks/peers/" and "the peers of the benchmark" in text)


def test_no_imports_form_a_circle() -> None:
    trees = {".".join(path.with_suffix("").parts): ast.parse((ROOT / path).read_text()) for path in FILES}
    uses: dict[str, set[str]] = {}
    for module, tree in trees.items():
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        uses[module] = {f"{node.module}.{alias.name}" for node in froms for alias in node.names} & trees.keys()
        uses[module] |= {node.module for node in froms} & trees.keys()

    TopologicalSorter(uses).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", [path for path in FILES if "peers" not in path.parts], ids=str)
def test_files_of_peers_are_imported_when_a_peer_is_measured_and_not_before(path: Path) -> None:
    top_level = [node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.ImportFrom)]

    assert not [node.module for node in top_level if (node.module or "").startswith("pipelines.benchmarks.peers")]


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "detr"], ids=str)
def test_the_model_library_needs_these_packages_only(path: Path) -> None:
    extra = PEER_FILES.get(path.as_posix(), set())
    assert imported((ROOT / path).read_text()) - sys.stdlib_module_names - OF_DETR == extra


def test_transformers_is_imported_when_one_of_its_models_is_loaded_and_not_before() -> None:
    tree = ast.parse((ROOT / "detr" / "transformers_model.py").read_text())

    assert "transformers" not in {name for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
                                  for name in imported(ast.unparse(node))}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] != "jobs"], ids=str)
def test_only_commands_end_the_process_or_print(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
    called = {ast.unparse(func) for func in calls}

    assert called & {"sys.exit", "exit", "quit", "print"} == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch.nn", {"torch"}),
        ("from ray.data import Dataset", {"ray"}),
        ("def f():\n    import argparse as a, rich.console", {"argparse", "rich"}),
        ("from .store import open_store", {".store"}),
        ("from detr import load", {"detr"}),
    ],
)
def test_imports_are_found_wherever_they_are(source: str, names: set[str]) -> None:
    assert imported(source) == names


def test_tests_lie_in_the_folders_of_the_packages_that_they_test() -> None:
    packages = {path.parent for path in FILES}
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    folders = {path.parent for path in tests if path.parts[0] in ("detr", "pipelines", "jobs")}

    assert folders - packages == set()
