from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from detr.checkpoints.references import EMBEDDED
from jobs.models import main
from pipelines.errors import RayDetrError, UsageError
from pipelines.models import identify_model
from pipelines.store import StoreOptions
from tests.conftest import S3Server


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, instead of this user's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub_cache: Path, repo: str, *files: str) -> None:
    folder = hub_cache / f"models--{repo.replace('/', '--')}" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")


def test_the_list_says_what_loads_without_the_network(hub_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached(hub_cache, "facebook/detr-resnet-50", "config.json", "model.safetensors")
    cached(hub_cache, "facebook/detr-resnet-101", "config.json")  # its download was interrupted
    main(["--json"])
    available = {model["name"]: model["available"] for model in json.loads(capsys.readouterr().out)}

    assert available == {
        "facebook/detr-resnet-50": True,
        "facebook/detr-resnet-50-dc5": False,
        "facebook/detr-resnet-101": False,
        "facebook/detr-resnet-101-dc5": False,
        "facebook/detr-resnet-50-panoptic": False,
        "facebook/detr-resnet-50-dc5-panoptic": False,
        "facebook/detr-resnet-101-panoptic": False,
        "PekingU/rtdetr_r18vd": False,
        "PekingU/rtdetr_r50vd": False,
        "microsoft/table-transformer-detection": False,
        "microsoft/table-transformer-structure-recognition": False,
        "scenes": True,
    }


def test_the_list_has_a_line_for_each_model(hub_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.splitlines()

    assert lines[0].split() == ["model", "detects", "classes", "AP", "license", "here"]
    assert lines[1].split() == ["facebook/detr-resnet-50", "objects", "80", "42.0", "Apache-2.0", "no"]
    assert lines[9].split() == ["PekingU/rtdetr_r50vd", "objects", "80", "53.1", "Apache-2.0", "no"]
    assert lines[12].split() == ["scenes", "drawn", "shapes", "6", "Apache-2.0", "yes"]
    assert lines[-1].startswith("Other checkpoints of Conditional DETR, D-FINE, DAB-DETR, Deformable DETR, DEIMv2, LW-")


def test_detectors_in_the_cache_that_the_catalogue_does_not_have_are_listed(
    hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(hub_cache, "farm/herd", "config.json", "preprocessor_config.json", "model.safetensors")
    cached(hub_cache, "farm/words", "config.json", "model.safetensors")
    for repo, config in (
        ("herd", {"model_type": "rt_detr", "id2label": {"0": "cow", "1": "calf"}}),
        ("words", {"model_type": "bert"}),
    ):
        (next(hub_cache.glob(f"models--farm--{repo}/snapshots/*")) / "config.json").write_text(json.dumps(config))

    main([])
    text = capsys.readouterr().out
    main(["--json"])

    assert [line.split() for line in text.splitlines() if "farm/" in line] == [["farm/herd", "2", "yes"]]
    assert json.loads(capsys.readouterr().out)[-1] == {
        "name": "farm/herd", "task": None, "classes": 2, "ap": None, "license": None, "available": True,
    }  # fmt: skip


def test_a_copy_in_a_bucket_is_the_same_model(moto: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{moto.bucket()}/models/scenes"
    place = ["--out", out, "--endpoint", moto.endpoint, "--region", "us-east-1"]
    main(["--download", "scenes", *place])
    main(["--download", "scenes", *place])  # again: nothing changes
    first, second = capsys.readouterr().out.split("copied: ")[1:]

    assert first == second
    assert first.startswith("scenes@")
    copied, original = (identify_model(ref, moto.options()) for ref in (out, "scenes"))
    assert copied == original
    assert len(copied.categories) == 6


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(RayDetrError, match=r"contains notes\.txt, which is not part of the model. Give a new folder\."):
        main(["--download", "scenes", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_model_is_not_overwritten(tmp_path: Path) -> None:
    main(["--download", "scenes", "--out", str(tmp_path / "other")])
    config = (tmp_path / "other" / "config.json").read_text().replace('"detr"', '"table-transformer"')
    (tmp_path / "other" / "config.json").write_text(config)

    with pytest.raises(UsageError, match=r"contains a config\.json that differs from the model's. Give a new folder\."):
        main(["--download", "scenes", "--out", str(tmp_path / "other")])
    assert (tmp_path / "other" / "config.json").read_text() == config


def test_a_copy_that_something_else_changed_is_not_reported_as_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(EMBEDDED / "scenes", other)
    config = json.loads((other / "config.json").read_text())
    config["id2label"]["0"] = "another"
    (other / "config.json").write_text(json.dumps(config))
    found = identify_model(str(other), StoreOptions())
    answers = iter([identify_model("scenes", StoreOptions()), found])
    monkeypatch.setattr("pipelines.model_catalog.identify_model", lambda *_: next(answers))

    with pytest.raises(RayDetrError, match=r"is not the model scenes@\w{12}: its fingerprint is"):
        main(["--download", "scenes", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("words", [["--download", "scenes"], ["--out", "folder"]])
def test_download_and_out_belong_together(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)

    assert left.value.code == 2
    assert "--download and --out belong together" in capsys.readouterr().err


def test_a_single_file_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "detr.pth").write_bytes(b"weights")
    monkeypatch.setattr("pipelines.model_catalog.identify_model", lambda *_: identify_model("scenes", StoreOptions()))

    with pytest.raises(UsageError, match=r"detr\.pth is a single file, which is not copied"):
        main(["--download", str(tmp_path / "detr.pth"), "--out", str(tmp_path / "copy")])


def test_a_folder_given_as_a_file_address_is_copied(tmp_path: Path) -> None:
    main(["--download", f"file://{EMBEDDED / 'scenes'}", "--out", str(tmp_path / "copy")])

    assert identify_model(str(tmp_path / "copy"), StoreOptions()).sha256
