"""Writes a shard: fetches and checks its images, and writes the file. Independent of Ray."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pipelines.coco.text import CocoText, image_key
from pipelines.coco.values import picture_size
from pipelines.errors import RayDetrError
from pipelines.parquet_files import open_bytes
from pipelines.shards.checks import Problem, check_annotations, check_picture
from pipelines.shards.plan import ShardPlan, shard_key
from pipelines.shards.reader import METADATA_PREFIX, SHARD_SCHEMA, ShardFile
from pipelines.shards.rows import RowsFile, image_row
from pipelines.store import (
    Archived,
    Blob,
    Denied,
    NotFound,
    Store,
    StoreOptions,
    is_transient,
    join_uri,
    open_store,
    put_if_absent,
)
from pipelines.store.retry import retry

GROUP_IMAGES: Final = 32
GROUP_BYTES: Final = 8 * 1024**2
FETCH_THREADS: Final = 16  # a task has one core, which decodes; threads that wait for a store need little CPU
AHEAD_BYTES: Final = 64 * 1024**2  # encoded bytes that are prefetched
FETCH_BUDGET_SECONDS: Final = 120.0  # of retries for an object
PICTURE_HASH_BYTES: Final = 16
MOST_EXAMPLES: Final = 5  # of each kind in a shard

_OBJECT_PROBLEMS: Final = {NotFound: "missing", Denied: "denied", Archived: "archived"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """The common settings of all shards of a job. Contains no secrets, because it is sent to other processes.

    Args:
        out: URI of the shards' folder.
        images: URI of the images' folder.
        out_options: how to reach `out`.
        image_options: how to reach the images.
        source: a hash of the input; files of another source are rejected.
        category_ids: ids of the json's categories.
        ambiguous_upright: whether to turn pictures whose size does not change by turning.
        check_decodes: whether to decode every picture.
        is_numbered: whether images are numbered 1, 2, ... by position, because their ids are not numbers.
    """

    out: str
    images: str
    out_options: StoreOptions
    image_options: StoreOptions
    source: str
    category_ids: frozenset[int]
    ambiguous_upright: bool
    check_decodes: bool
    is_numbered: bool = False


@dataclass(frozen=True, slots=True)
class ShardWork:
    """The work for one shard: the JSON texts of its images and annotations.

    Args:
        number: number of the shard.
        positions: positions of the images in the json's list.
        size_bytes: listed sizes of the images; 0 if unknown.
        images: the JSON text of each image.
        annotations: for each image, the positions and JSON texts of its annotations.
        keys: for each image, its object's name if the json spells it differently; empty if there is no such image.
    """

    number: int
    positions: tuple[int, ...]
    size_bytes: tuple[int, ...]
    images: tuple[str, ...]
    annotations: tuple[tuple[tuple[int, str], ...], ...]
    keys: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardFindings:
    """The findings in the images of a shard. They are in the file's metadata, so that a resumed job can read them.

    Attributes:
        counts: numbers by finding.
        examples: a few messages for each finding.
        left_out: position, kind and message of each image without a row.
        pictures: the concatenated hashes, `PICTURE_HASH_BYTES` each, of the images of all rows.
        positions: positions of the rows' images in the json's list.
    """

    counts: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]
    left_out: tuple[tuple[int, str, str], ...]
    pictures: bytes
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A written shard and its findings."""

    number: int
    file: ShardFile
    report: ShardFindings


@dataclass
class _Findings:
    """A report that is being built."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[tuple[int, str, str]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def add_example(self, kind: str, sentence: str) -> None:
        some = self.examples.setdefault(kind, [])
        if len(some) < MOST_EXAMPLES:
            some.append(sentence)

    def report(self) -> ShardFindings:
        return ShardFindings(
            {kind: count for kind, count in sorted(self.counts.items()) if count},
            {kind: tuple(some) for kind, some in sorted(self.examples.items())},
            tuple(self.left_out),
            b"".join(self.pictures),
            tuple(self.positions),
        )


class ImageSource(Protocol):
    """The source of the images of a shard; called from several threads."""

    def fetch(self, file_name: str, key: str | None, size: int) -> bytes | Problem:
        """Return the bytes of an image, or why it is left out.

        Args:
            file_name: name in the json.
            key: key of the object in the folder of images; None if the name leads outside the folder.
            size: listed size; 0 if unknown.

        Raises:
            RayDetrError: the image has changed since it was listed.
            StoreError: the store refused or did not answer.
        """
        ...


def shard_work(coco: CocoText, plan: ShardPlan, number: int) -> ShardWork:
    """Return the work for a shard of a plan."""
    positions, sizes = (tuple(column.tolist()) for column in plan.shards[number])
    return ShardWork(
        number=number,
        positions=positions,
        size_bytes=sizes,
        keys=tuple(plan.respelled.get(position) for position in positions),
        images=tuple(coco.image(position) for position in positions),
        annotations=tuple(tuple(coco.annotations_of(position)) for position in positions),
    )


def write_shard(spec: ShardSpec, work: ShardWork, source: ImageSource | None = None) -> WrittenShard:
    """Fetch and check the images of a shard, write its file unless another process has written it, and report.

    Memory: the file, `AHEAD_BYTES` of images, one decoded picture.

    Args:
        spec: what all shards have in common.
        work: the shard.
        source: the source of the images; None means the folder in `spec`.

    Raises:
        RayDetrError: an image has changed since it was listed, or the existing file is of another job.
        StoreError: a store refused, or did not answer for `FETCH_BUDGET_SECONDS`.
    """
    out = open_store(spec.out, spec.out_options)
    images = source or _Folder(open_store(spec.images, spec.image_options))
    findings, file = _Findings(), RowsFile(SHARD_SCHEMA)
    rows: list[Json] = []
    held = 0
    for index, data in _fetched(images, work):
        row = _checked_row(spec, work, index, data, findings)
        if row is None:
            continue
        weight = len(row["image"]) + sum(len(text) for _, text in work.annotations[index])
        if rows and (held + weight > GROUP_BYTES or len(rows) == GROUP_IMAGES):
            file.add(rows)
            rows, held = [], 0
        rows.append(row)
        held += weight
    if rows:
        file.add(rows)
    report = findings.report()
    metadata = {"source": spec.source, "sizes": json.dumps(findings.sizes), "report": _to_json(report)}
    data, groups = file.finish(metadata)
    key = shard_key(work.number)
    there = put_if_absent(out, key, data)
    if there != data:  # written by another release of pyarrow, or by another job
        return _read_shard(spec, work.number, there, join_uri(out.uri, key))
    return WrittenShard(work.number, _shard_file(key, data, groups), report)


def keep_shard(spec: ShardSpec, number: int) -> WrittenShard:
    """Read the report of a shard that an earlier attempt has written. Memory: the file.

    Raises:
        RayDetrError: the file is damaged, or of another job.
        StoreError: the store refused or did not answer.
    """
    out, key = open_store(spec.out, spec.out_options), shard_key(number)
    return _read_shard(spec, number, out.get(key).data, join_uri(out.uri, key))


def _fetched(images: ImageSource, work: ShardWork) -> Iterator[tuple[int, bytes | Problem]]:
    """Yield the index and the bytes of every image in order, with prefetching."""
    waiting: deque[tuple[int, Future[bytes | Problem]]] = deque()
    held = 0
    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch") as pool:
        try:
            for index, size in enumerate(work.size_bytes):
                while waiting and (held + size > AHEAD_BYTES or len(waiting) == 2 * FETCH_THREADS):
                    first, future = waiting.popleft()
                    held -= work.size_bytes[first]
                    yield first, future.result()
                file_name = json.loads(work.images[index])["file_name"]
                key = work.keys[index] if work.keys else None
                waiting.append((index, pool.submit(images.fetch, file_name, key or image_key(file_name), size)))
                held += size
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error the other images are not needed


class _Folder:
    """The images of a folder by their names."""

    def __init__(self, images: Store) -> None:
        self._images = images

    def fetch(self, file_name: str, key: str | None, size: int) -> bytes | Problem:
        if key is None:
            return Problem("outside_folder", f"the file name {file_name!r} leads outside the folder of images")
        data = fetch_image(lambda: self._images.get(key))
        if isinstance(data, Problem):
            return data
        if size and len(data.data) != size:
            raise RayDetrError(
                f"{join_uri(self._images.uri, key)} had {size:,} bytes when it was listed and has {len(data.data):,} "
                "now. Start again with an empty folder for the shards once the images no longer change."
            )
        return data.data


def fetch_image(get: Callable[[], Blob]) -> Blob | Problem:
    """Return an image, or why it cannot be read; transient errors are retried for `FETCH_BUDGET_SECONDS`.

    Raises:
        StoreError: the store refused or did not answer.
    """
    try:
        return retry(get, budget_seconds=FETCH_BUDGET_SECONDS, is_retryable=is_transient)
    except (NotFound, Denied, Archived) as error:
        return Problem(_OBJECT_PROBLEMS[type(error)], str(error))


def _checked_row(
    spec: ShardSpec, work: ShardWork, index: int, data: bytes | Problem, findings: _Findings
) -> Json | None:
    position, image = work.positions[index], json.loads(work.images[index])
    size = picture_size(image)
    picture = (
        data
        if isinstance(data, Problem)
        else check_picture(data, size, ambiguous_upright=spec.ambiguous_upright, check_decodes=spec.check_decodes)
    )
    if isinstance(picture, Problem) or isinstance(data, Problem):
        assert isinstance(picture, Problem)
        findings.left_out.append((position, picture.kind, picture.sentence))
        return None
    annotations = [(place, json.loads(text)) for place, text in work.annotations[index]]
    counts, examples = check_annotations(
        (annotation for _, annotation in annotations), picture.height, picture.width, category_ids=spec.category_ids
    )
    findings.counts.update(counts)
    findings.counts["images"] += 1
    findings.counts["images_without_annotations"] += not annotations
    findings.counts["images_turned_upright"] += picture.upright
    findings.counts["images_without_size"] += size is None
    findings.counts["images_of_ambiguous_turn"] += picture.is_ambiguous
    for kind, example in examples.items():
        findings.add_example(kind, f"{image['file_name']}, {example}")
    if picture.is_ambiguous:
        findings.add_example("images_of_ambiguous_turn", str(image["file_name"]))
    findings.pictures.append(hashlib.blake2b(data, digest_size=PICTURE_HASH_BYTES).digest())
    findings.positions.append(position)
    findings.sizes.append((picture.height, picture.width))
    return image_row(
        position,
        image,
        annotations,
        data=data,
        image_id=position + 1 if spec.is_numbered else None,
        size=(picture.height, picture.width),
        upright=picture.upright,
    )


def _read_shard(spec: ShardSpec, number: int, data: bytes, name: str) -> WrittenShard:
    file = open_bytes(data, name)
    try:
        metadata = {
            key.decode().removeprefix(METADATA_PREFIX): word.decode() for key, word in file.metadata.metadata.items()
        }
        is_ours, report = metadata["source"] == spec.source, _from_json(metadata["report"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RayDetrError(f"{name} already exists, but is not a shard. Move it away.") from error
    if not is_ours:
        raise RayDetrError(
            f"{name} already exists: it is a shard of other annotations or another configuration. Choose an empty "
            "folder."
        )
    footer = file.metadata
    groups = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    return WrittenShard(number, _shard_file(shard_key(number), data, groups), report)


def _shard_file(key: str, data: bytes, groups: Sequence[int]) -> ShardFile:
    return ShardFile(key, sum(groups), hashlib.sha256(data).hexdigest(), len(data), tuple(groups))


def _to_json(report: ShardFindings) -> str:
    return json.dumps(
        {
            "counts": report.counts,
            "examples": report.examples,
            "left_out": report.left_out,
            "pictures": base64.b64encode(report.pictures).decode(),
            "positions": report.positions,
        },
        separators=(",", ":"),
    )


def _from_json(text: str) -> ShardFindings:
    fields = json.loads(text)
    return ShardFindings(
        fields["counts"],
        {kind: tuple(some) for kind, some in fields["examples"].items()},
        tuple((position, kind, sentence) for position, kind, sentence in fields["left_out"]),
        base64.b64decode(fields["pictures"]),
        tuple(fields["positions"]),
    )
