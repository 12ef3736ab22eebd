from types import SimpleNamespace
from typing import cast

import pytest
import torch

from pipelines.labelling import labeler_spec
from pipelines.labelling.labeler_spec import LabelerSpec, build_labeler
from pipelines.store import StoreError


@pytest.mark.parametrize(("device", "kept"), [("cpu", 1), ("cuda:0", 0)])
def test_an_actor_keeps_freed_memory_where_the_network_runs_on_the_cpu(
    device: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    spec = cast("LabelerSpec", SimpleNamespace(table="memory", table_options=None))
    detector = SimpleNamespace(device=torch.device(device))

    def refuse(*_: object) -> None:
        raise StoreError("the store refuses")

    monkeypatch.setattr(labeler_spec, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(labeler_spec, "build_detector", lambda _: (detector, None))
    monkeypatch.setattr(labeler_spec, "open_store", refuse)

    with pytest.raises(StoreError):
        build_labeler(spec)

    assert len(calls) == kept
