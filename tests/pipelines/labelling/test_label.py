"""What `label` does before a run is begun; runs themselves are in test_label_through_ray.py."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UsageError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import label
from pipelines.labelling.manifest import ListingPosition, Segment, write_segment
from pipelines.labelling.ray_runner import RayRunner
from pipelines.labelling.run import RunRequest
from pipelines.lake.lake_object import LakeObject
from pipelines.models import ModelInfo
from pipelines.store import open_store
from tests.pipelines.labelling.runs import start_run
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


@pytest.mark.parametrize(("new_run", "kind"), [(False, pa.int64()), (True, pa.float64())])
def test_a_kept_column_has_the_type_of_an_unfinished_plan_else_of_the_newest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_run: bool, kind: pa.DataType
) -> None:
    class Stop(Exception):
        """Ends the run where images would be listed."""

    given: list[pa.Schema] = []

    def stop(*_: object, stored: pa.Schema, **__: object) -> None:
        given.append(stored)
        raise Stop

    folder = str(tmp_path / "table")
    table = open_store(folder)
    run, _ = start_run(table, RunRequest("detr@1", "1", {}, 1, {}), now=datetime.now(UTC), tail="0001")
    planned = Segment(0, ((LakeObject("s3://lake/1.jpg", kept=(1,)),),), ListingPosition())
    write_segment(table, run.run_id, planned, pa.schema([("score", pa.int64())]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"score": [0.5]}), sink)
    table.put("data/earlier-00000.parquet", sink.getvalue().to_pybytes())
    (tmp_path / "list.csv").write_text("uri,score\ns3://lake/1.jpg,1\n")
    monkeypatch.setattr("pipelines.labelling.label.list_objects", stop)

    with pytest.raises(Stop):
        label(LabelConfig((str(tmp_path / "list.csv"),), folder, "scenes", keep=("score",), new_run=new_run))

    assert given[0].field("score").type == kind
