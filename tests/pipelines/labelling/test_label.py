"""What `label` does before a run is begun; runs themselves are in tests/pipelines/ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import UsageError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.ray_runner import RayRunner
from pipelines.models import ModelInfo
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


def test_every_node_loads_the_commit_that_a_hub_id_had_when_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        """Ends the run where actors would be told of the model."""

    loaded: list[str | None] = []

    def stop(_: RayRunner, pinned: str | None, precision: str) -> None:
        loaded.append(pinned)
        raise Stop

    herd = ModelInfo("herd@1", "1", (), pinned="owner/herd@" + "a1" * 20)
    monkeypatch.setattr("pipelines.labelling.label.identify_model", lambda *_: herd)
    monkeypatch.setattr(RayRunner, "use_model", stop)
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "a.jpg").write_bytes(b"not opened")

    with pytest.raises(Stop):
        label(LabelConfig(images=(str(tmp_path / "lake"),), table=str(tmp_path / "table"), model="owner/herd"))

    assert loaded == ["owner/herd@" + "a1" * 20]
