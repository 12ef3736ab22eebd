"""One shard from its images: rows, a report that later starts read again, and what stops it."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines.errors import RayDetrError
from pipelines.shards import writer as shard_writer
from pipelines.shards.reader import ShardIndex, ShardReader, decode_training_image
from pipelines.shards.writer import ShardSpec, ShardWork, keep_shard, write_shard
from pipelines.store import Blob, StoreOptions, open_store
from tests.memory_store import MemoryStore

QUARTER_TURN = 6
ANNOTATION = {"id": 1, "category_id": 1, "bbox": [1, 1, 10, 6], "area": 100.0, "iscrowd": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve by eight pixels, all different; `turned.jpg` is stored so, to be seen as eight by twelve."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(3):
        Image.new("RGB", (12, 8), (80 * number, 10, 10)).save(path / f"{number}.jpg")
    exif = Image.Exif()
    exif[274] = QUARTER_TURN
    picture = Image.new("RGB", (12, 8))
    picture.paste((255, 255, 255), (0, 0, 6, 8))  # left half as stored: the top half upright
    picture.save(path / "turned.jpg", exif=exif, quality=95)
    (path / "cut.jpg").write_bytes((path / "0.jpg").read_bytes()[:-40])
    return path


@pytest.fixture
def spec(folder: Path, tmp_path: Path) -> ShardSpec:
    return ShardSpec(
        out=str(tmp_path / "out"),
        images=str(folder),
        out_options=StoreOptions(),
        image_options=StoreOptions(),
        source="source",
        category_ids=frozenset({1}),
        ambiguous_upright=False,
        check_decodes=True,
    )


def work_of(folder: Path, images: list[dict[str, Any]], annotations: dict[int, list[dict[str, Any]]]) -> ShardWork:
    """Images as the json has them, and annotations by the image's place in the list."""
    paths = [folder / image["file_name"] for image in images]
    return ShardWork(
        number=3,
        positions=tuple(range(10, 10 + len(images))),
        size_bytes=tuple(path.stat().st_size if path.exists() else 0 for path in paths),
        images=tuple(map(json.dumps, images)),
        annotations=tuple(
            tuple((place, json.dumps(one)) for place, one in enumerate(annotations.get(index, [])))
            for index in range(len(images))
        ),
    )


def image(image_id: int, file_name: str, height: int = 8, width: int = 12) -> dict[str, Any]:
    return {"id": image_id, "file_name": file_name, "height": height, "width": width}


def index_of(spec: ShardSpec, work: ShardWork) -> ShardIndex:
    written = write_shard(spec, work)
    return ShardIndex((written.file,), (), written.file.rows, 0, {})


def test_images_become_rows_with_their_annotations(spec: ShardSpec, folder: Path) -> None:
    work = work_of(folder, [image(7, "0.jpg"), image(5, "1.jpg")], {1: [{**ANNOTATION, "image_id": 5}]})

    written = write_shard(spec, work)

    data = (Path(spec.out) / "shard-00003.parquet").read_bytes()
    assert written.file.key == "shard-00003.parquet"
    assert written.file.sha256 == hashlib.sha256(data).hexdigest()
    assert (written.file.rows, written.file.size_bytes, written.file.row_groups) == (2, len(data), (2,))
    rows = pq.read_table(Path(spec.out) / "shard-00003.parquet").to_pylist()
    assert [(row["position"], row["image_id"], len(row["annotations"])) for row in rows] == [(10, 7, 0), (11, 5, 1)]
    assert [row["image"] for row in rows] == [(folder / name).read_bytes() for name in ("0.jpg", "1.jpg")]
    assert written.report.counts == {
        "annotations": 1,
        "images": 2,
        "images_without_annotations": 1,
        "usable_annotations": 1,
    }


def test_images_that_cannot_be_trained_on_are_left_out_with_the_reason(spec: ShardSpec, folder: Path) -> None:
    images = [image(1, "gone.jpg"), image(2, "cut.jpg"), image(3, "0.jpg", height=9), image(4, "../0.jpg"),
              image(5, "1.jpg")]  # fmt: skip

    written = write_shard(spec, work_of(folder, images, {0: [{**ANNOTATION, "image_id": 1}]}))

    assert [(position, kind) for position, kind, _ in written.report.left_out] == [
        (10, "missing"),
        (11, "unreadable"),
        (12, "other_size"),
        (13, "outside_folder"),
    ]
    assert written.report.positions == (14,)
    assert written.file.rows == 1
    assert written.report.counts == {"images": 1, "images_without_annotations": 1}


def test_readers_get_pictures_as_the_boxes_were_drawn(spec: ShardSpec, folder: Path) -> None:
    """One file twice: once annotated upright, once as stored."""
    images = [image(1, "turned.jpg", height=12, width=8), image(2, "turned.jpg", height=8, width=12)]
    index = index_of(spec, work_of(folder, images, {}))

    upright, stored = ShardReader(open_store(spec.out), index).read_group(0, 0)

    assert (upright.upright, stored.upright) == (True, False)
    pixels = decode_training_image(upright)
    assert pixels.shape == (3, 12, 8)
    assert pixels[:, :5].min() > 200
    assert pixels[:, 7:].max() < 50
    pixels = decode_training_image(stored)
    assert pixels.shape == (3, 8, 12)
    assert pixels[:, :, :5].min() > 200
    assert pixels[:, :, 7:].max() < 50
    assert torch.equal(decode_training_image(upright), torch.rot90(pixels, -1, (1, 2)))


def test_row_groups_have_at_most_so_many_images_and_bytes(
    spec: ShardSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image(number, "0.jpg") for number in range(7)]
    monkeypatch.setattr(shard_writer, "GROUP_IMAGES", 3)

    assert write_shard(spec, work_of(folder, images, {})).file.row_groups == (3, 3, 1)

    monkeypatch.setattr(shard_writer, "GROUP_BYTES", 2 * (folder / "0.jpg").stat().st_size)
    (Path(spec.out) / "shard-00003.parquet").unlink()
    assert write_shard(spec, work_of(folder, images, {})).file.row_groups == (2, 2, 2, 1)


def test_few_images_are_held_ahead_and_come_in_order(
    spec: ShardSpec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "AHEAD_BYTES", 1)
    images = [image(number, f"{number % 3}.jpg") for number in range(9)]

    assert write_shard(spec, work_of(folder, images, {})).report.positions == tuple(range(10, 19))


class _PairsStore(MemoryStore):
    """Answers a request when there is another one beside it, or after two seconds; counts those that had one."""

    def __init__(self) -> None:
        super().__init__("memory://pairs")
        self.accompanied = 0
        self._changed = threading.Condition()
        self._inside = self._meetings = 0

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        with self._changed:
            self._inside += 1
            before = self._meetings
            if self._inside > 1:
                self._meetings += 1
                self._changed.notify_all()
            has_met = self._changed.wait_for(lambda: self._meetings > before, timeout=2)
            self.accompanied += has_met
            self._inside -= 1
        return super().get(key, most_bytes=most_bytes)


def test_several_images_are_on_their_way_from_the_first_to_the_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _PairsStore()
    work = work_of(folder, [image(number, f"{number % 2}.jpg") for number in range(12)], {})
    for name in ("0.jpg", "1.jpg"):
        store.put(name, (folder / name).read_bytes())
    monkeypatch.setattr(shard_writer, "AHEAD_BYTES", 4 * max(work.size_bytes))

    fetched = list(shard_writer._fetched(shard_writer._Folder(store), work))

    assert fetched == [(index, (folder / f"{index % 2}.jpg").read_bytes()) for index in range(12)]
    assert store.accompanied >= 8  # not all: a thread that a busy machine begins late may find the others gone


def test_the_same_input_gives_the_same_bytes_wherever_it_is_written(
    spec: ShardSpec, folder: Path, tmp_path: Path
) -> None:
    work = work_of(folder, [image(7, "0.jpg"), image(5, "gone.jpg")], {0: [{**ANNOTATION, "image_id": 7}]})

    first, second = write_shard(spec, work), write_shard(replace(spec, out=str(tmp_path / "other")), work)

    assert first == second


def test_a_later_start_reads_what_was_found_from_the_file(spec: ShardSpec, folder: Path) -> None:
    bad = {**ANNOTATION, "image_id": 7, "bbox": [1, 1, 0, 0]}
    written = write_shard(spec, work_of(folder, [image(7, "0.jpg"), image(5, "gone.jpg")], {0: [bad]}))

    assert keep_shard(spec, 3) == written
    assert written.report.examples == {"boxes_without_area": ("0.jpg, annotation 1: [1, 1, 0, 0]",)}
    assert len(written.report.pictures) == 16


def test_who_comes_second_takes_the_file_that_is_there(spec: ShardSpec, folder: Path) -> None:
    first = write_shard(spec, work_of(folder, [image(7, "0.jpg")], {}))

    second = write_shard(spec, work_of(folder, [image(7, "1.jpg")], {}))

    assert second == first


def test_a_file_of_something_else_is_not_taken(spec: ShardSpec, folder: Path) -> None:
    work = work_of(folder, [image(7, "0.jpg")], {})
    write_shard(spec, work)

    with pytest.raises(RayDetrError, match="is a shard of other annotations or another configuration"):
        write_shard(replace(spec, source="other"), work)
    with pytest.raises(RayDetrError, match="is a shard of other annotations or another configuration"):
        keep_shard(replace(spec, source="other"), 3)

    (Path(spec.out) / "shard-00003.parquet").write_bytes(b"x")
    with pytest.raises(RayDetrError, match="is damaged"):
        keep_shard(spec, 3)


def test_a_parquet_file_without_a_report_is_in_the_way(spec: ShardSpec, tmp_path: Path) -> None:
    Path(spec.out).mkdir()
    pq.write_table(pa.table({"a": [1]}), Path(spec.out) / "shard-00003.parquet")

    with pytest.raises(RayDetrError, match="already exists"):
        keep_shard(spec, 3)


def test_an_image_that_changes_meanwhile_stops_the_shard(spec: ShardSpec, folder: Path) -> None:
    work = work_of(folder, [image(7, "0.jpg")], {})
    (folder / "0.jpg").write_bytes(b"shorter")

    with pytest.raises(RayDetrError, match=r"0\.jpg had \d+ bytes when it was listed and has 7 now"):
        write_shard(spec, work)
    assert not Path(spec.out).exists()


def test_a_shard_whose_images_are_all_left_out_is_written_all_the_same(spec: ShardSpec, folder: Path) -> None:
    written = write_shard(spec, work_of(folder, [image(5, "gone.jpg")], {}))

    assert (written.file.rows, written.file.row_groups) == (0, ())
    assert keep_shard(spec, 3) == written
