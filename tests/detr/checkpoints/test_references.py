"""References of models as paths."""

from pathlib import Path

import pytest

from detr.checkpoints.references import absolute_reference


def test_a_reference_to_a_folder_means_the_same_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()

    assert absolute_reference("model") == str(tmp_path / "model")
    assert [absolute_reference(name) for name in ("facebook/detr-resnet-50", "scenes", "s3://b/model")] == [
        "facebook/detr-resnet-50", "scenes", "s3://b/model",
    ]  # fmt: skip
