"""A collection of lists and annotations as people have them, where it is at hand; the other tests write theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.lake.listing import LakeObject, list_objects

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "wild"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"no such inputs: put them into {FOLDER}")


@pytest.mark.parametrize(
    "name",
    ["60-csv-headerless/list.csv", "62-csv-spaces/list.csv", "64-tsv/list.tsv", "75-parquet-binary/list.parquet"],
)
def test_a_list_names_its_three_images(name: str) -> None:
    images = [item.uri for item in list_objects([str(FOLDER / name)]) if isinstance(item, LakeObject)]

    folder = (FOLDER / name).parent / "images"
    assert images == [f"file://{folder}/{one}.jpg" for one in "abc"]
    assert all(Path(uri.removeprefix("file://")).exists() for uri in images)
