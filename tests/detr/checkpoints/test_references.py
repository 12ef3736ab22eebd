"""References of models as paths."""

from pathlib import Path

import pytest

from detr.checkpoints.model_directory import CheckpointError
from detr.checkpoints.references import absolute_reference, locate


def test_a_reference_to_a_folder_means_the_same_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()

    assert absolute_reference("model") == str(tmp_path / "model")
    assert [absolute_reference(name) for name in ("facebook/detr-resnet-50", "scenes", "s3://b/model")] == [
        "facebook/detr-resnet-50", "scenes", "s3://b/model",
    ]  # fmt: skip


def test_a_model_in_a_folder_that_may_not_be_entered_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)  # root may enter every folder

    with pytest.raises(CheckpointError, match=r"^model root/model cannot be read: permission denied\.$"):
        locate("root/model")
    assert absolute_reference("root/model") == "root/model"
