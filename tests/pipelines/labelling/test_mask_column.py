"""The column of masks: for each detection of a row, and in tables that were labelled with --masks only."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from detr.segmentation.detector import MaskDetector
from detr.segmentation.masked_detections import MaskedDetections
from pipelines.errors import UsageError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.decoding import InProcessDecoder
from pipelines.labelling.fetching import Fetcher
from pipelines.labelling.labeler import Labeler
from pipelines.labelling.mask_column import MASKS, with_mask_column
from pipelines.labelling.publish import part_key
from pipelines.labelling.settings import settings_differences, settings_text
from pipelines.lake.lake_object import LakeObject, Skipped
from pipelines.lake.listing import Listing
from pipelines.models import ModelInfo, check_masks
from pipelines.table.schema import SCHEMA, decode
from tests.detr.segmentation.panoptic_network import small_panoptic
from tests.memory_store import memory_store
from tests.pipelines.labelling.failing_lake import Clock, Lake
from tests.pipelines.labelling.plans import plan

CONFIG = LabelConfig(images=("s3://lake/",), table="s3://lake/table", model="panoptic")


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def test_each_row_has_the_masks_of_its_own_detections() -> None:
    lake, table = Lake(memory_store("memory://lake")), memory_store()
    data = {"a.jpg": picture(120, 90), "b.jpg": b"nothing", "c.jpg": picture(80, 100)}
    objects = [
        LakeObject(item.uri, item.etag, item.size, ("red", None))
        for item in (lake.put(name, one) for name, one in data.items())
    ]
    detector = MaskDetector(small_panoptic(), device="cpu", threshold=0.001, batch_size=2)
    plan(table, [objects], pa.schema([pa.field("colour", pa.string()), MASKS]))

    Labeler(
        table=table,
        fetcher=Fetcher(lake, Clock()),
        decoder=InProcessDecoder(detector, max_pixels=100_000),
        detector=detector,
        run_id="run-1",
        model_id="panoptic@0123456789ab",
        threshold=0.001,
        settings="{}",
        decode_threads=2,
        clock=Clock(),
    ).label(0)

    found = decode(table.get(part_key("run-1", 0)).data)
    assert found.schema.names == [*SCHEMA.names, "colour", "masks"]
    first, broken, last = found.to_pylist()
    for row, name in ((first, "a.jpg"), (last, "c.jpg")):
        alone = detector(data[name])
        assert isinstance(alone, MaskedDetections)
        assert len(alone) == 6
        assert row["masks"] == list(alone.masks)
        assert len(row["detections"]) == 6
        assert row["colour"] == "red"
    assert (broken["masks"], broken["error_kind"], broken["colour"]) == (None, "not_an_image", "red")


def test_a_listing_gets_one_more_value_an_image() -> None:
    listed: list[Any] = [LakeObject("s3://l/a.jpg", "1", 5, ("red",)), Skipped("s3://l/b.txt", "no image")]
    listing = Listing((lambda _: iter(listed),), pa.schema([pa.field("colour", pa.string())]))

    wider = with_mask_column(listing)

    assert list(wider) == [LakeObject("s3://l/a.jpg", "1", 5, ("red", None)), listed[1]]
    assert wider.kept_schema.names == ["colour", "masks"]


def test_runs_without_masks_have_the_records_and_settings_of_earlier_releases() -> None:
    with_masks = LabelConfig(images=CONFIG.images, table=CONFIG.table, model=CONFIG.model, masks=True)

    assert "masks" not in CONFIG.resume_identity()
    assert settings_text(CONFIG.resume_identity(), "fp32") == '{"precision":"fp32","threshold":0.05}'
    assert with_masks.resume_identity() == {**CONFIG.resume_identity(), "masks": True}
    settings = settings_text(with_masks.resume_identity(), "fp32")
    assert settings == '{"masks":true,"precision":"fp32","threshold":0.05}'
    assert settings_differences(settings_text(CONFIG.resume_identity(), "fp32"), settings) == ["masks off, now on"]
    assert settings_differences(settings, settings) == []


def test_a_kept_column_of_that_name_and_a_model_without_masks_are_refused() -> None:
    LabelConfig(images=CONFIG.images, table=CONFIG.table, model=CONFIG.model, keep=("masks",))  # as before
    with pytest.raises(ValueError, match="'masks' is named twice"):
        LabelConfig(images=CONFIG.images, table=CONFIG.table, model=CONFIG.model, keep=("masks",), masks=True)
    with pytest.raises(UsageError, match="masks: owner/boxes gives boxes only"):
        check_masks(ModelInfo("boxes@1", "1", ()), reference="owner/boxes")
