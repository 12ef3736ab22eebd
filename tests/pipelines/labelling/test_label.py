"""What `label` does before a run is begun; runs themselves are in tests/pipelines/ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from tests.pipelines.lake.archives import tar_of


def test_a_run_whose_model_is_refused_writes_nothing_not_even_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.labelling.label.cluster_is_given", lambda: False)  # another test may have begun Ray
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "a.tar").write_bytes(tar_of({"1.jpg": b"one"}))
    config = LabelConfig(
        images=(str(tmp_path / "lake" / "a.tar"),), table=str(tmp_path / "table"), model=str(tmp_path / "model")
    )

    with pytest.raises(UsageError, match="model"):
        label(config)

    assert not (tmp_path / "table").exists()
