from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from detr.detector_like import DetectorLike
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling import labeler_spec
from pipelines.labelling.labeler_spec import LabelerSpec, build_decoder, build_detector, build_labeler
from pipelines.lake.images import ImageStores
from pipelines.lake.listing import list_objects
from pipelines.lake.member_files import MemberIndexes
from pipelines.store import StoreError, StoreOptions
from tests.memory_store import memory_store
from tests.pipelines.lake.archives import CountingStore, tar_of


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


@pytest.mark.parametrize("error", [None, RayDetrError("the hub cannot be reached"), UsageError("no such model")])
def test_the_pinned_commit_is_loaded_or_where_it_cannot_be_had_what_the_node_has(
    error: RayDetrError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(reference: str, **_: object) -> tuple[None, SimpleNamespace]:
        loaded.append(reference)
        if error is not None and "@" in reference:
            raise error
        return None, SimpleNamespace(sha256="b" * 64)

    monkeypatch.setattr(labeler_spec, "load_detector", load)
    spec = LabelerSpec(
        "table", "run", "owner/herd", "a" * 64, 0.05, None, "cpu", "fp32", 1, 1, StoreOptions(), StoreOptions(),
        pinned="owner/herd@1",
    )  # fmt: skip

    with pytest.raises(
        RayDetrError,
        match="no such model" if isinstance(error, UsageError) else "differs from the one that the run began with",
    ):
        build_detector(spec)  # other weights than those of the run are refused, wherever they come from
    assert loaded == (["owner/herd@1", "owner/herd"] if type(error) is RayDetrError else ["owner/herd@1"])


def test_an_actor_on_a_node_that_joined_without_the_decoder_of_the_driver_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = LabelerSpec(
        "table", "run", "scenes", "", 0.05, None, "cpu", "fp32", 1, 1, StoreOptions(), StoreOptions(), heic=True
    )
    detector = cast("DetectorLike", SimpleNamespace(size_rule=None))
    monkeypatch.setattr(labeler_spec, "has_decoder", lambda: False)

    with pytest.raises(RayDetrError, match=r"^node \S+ lacks the package pillow-heif, .* 'ray-detr\[heif\]' on every"):
        build_decoder(spec, detector)
    assert build_decoder(replace(spec, heic=False), detector) is not None


def test_a_node_without_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LabelerSpec("table", "run", "scenes", "", 0.05, None, "cpu", "fp32", 1, 1, StoreOptions(), StoreOptions())
    detector = cast("DetectorLike", SimpleNamespace(size_rule=None))
    monkeypatch.setattr("sys.platform", "darwin")

    with pytest.raises(RayDetrError, match=r"^node \S+ runs darwin: labelling needs Linux"):
        build_decoder(spec, detector)


def test_an_actor_finds_members_of_archives_by_the_indexes_that_the_table_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, lake = memory_store("s3://table"), CountingStore(memory_store("s3://lake"))
    lake.put("a.tar", tar_of({f"{number}.jpg": b"one" for number in range(9)}))
    indexes = MemberIndexes(table, keep=True)
    assert len(list(list_objects(["s3://lake/a.tar"], open_root=lambda _: lake, indexes=indexes))) == 9
    lake.ranges.clear()
    built: list[ImageStores] = []

    class Images(ImageStores):
        def __init__(self, options: StoreOptions, indexes: MemberIndexes | None = None) -> None:
            super().__init__(options, indexes)
            built.append(self)
            self.find = lambda uri: (lake, uri.removeprefix("s3://lake/"))  # type: ignore[method-assign]

    values = {"table": "s3://table", "table_options": None, "image_options": StoreOptions(), "threads": 1}
    names = ("run_id", "model_id", "threshold", "settings")
    spec = cast("LabelerSpec", SimpleNamespace(**values, **dict.fromkeys(names)))
    detector, info = SimpleNamespace(device=torch.device("cuda:0")), SimpleNamespace(id="tiny")
    monkeypatch.setattr(labeler_spec, "build_detector", lambda _: (detector, info))
    monkeypatch.setattr(labeler_spec, "build_decoder", lambda *_: None)
    monkeypatch.setattr(labeler_spec, "open_store", lambda *_: table)
    monkeypatch.setattr("pipelines.labelling.labeler.read_kept_schema", lambda *_: None)
    monkeypatch.setattr(labeler_spec, "ImageStores", Images)
    build_labeler(spec)

    assert built[0].get("s3://lake/a.tar#/7.jpg").data == b"one"
    assert len(lake.ranges) == 1
