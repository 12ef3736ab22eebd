"""Which images go into which shard, decided before any is read and written down so that a job can be gone on with."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.coco.text import CocoText, image_key, name_hash, plain_hash
from pipelines.errors import RayDetrError, UsageError
from pipelines.store import NotFound, Store, StoreEntry, join_uri, put_if_absent
from pipelines.strict_json import parse_json

PLAN_KEY: Final = "_plan.json"
PLAN_VERSION: Final = 1
MOST_IMAGES: Final = 4096  # a file: small pictures would make its footer and its list of hashes large

_UNKNOWN_BYTES: Final = 1024**2  # what an image of unknown size is taken for
NOT_LISTED: Final = -1
UNKNOWN_SIZE: Final = -2

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What one listing of the images' folder says.

    Attributes:
        size_bytes: `(N,)` int64 of the json's images; `NOT_LISTED` where there is no such object,
            `UNKNOWN_SIZE` where the listing does not tell.
        digest: of the names, sizes and etags of the json's images: another one means that images have changed.
        strangers: objects that the json does not name.
        stranger: one of them.
        respelled: by position the object's name of images that the json spells otherwise.
    """

    size_bytes: NDArray[np.int64]
    digest: str
    strangers: int
    stranger: str | None
    respelled: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Which images go into which shard.

    Attributes:
        shards: `(positions, size_bytes)` of each, int64 arrays of equal length; a size is 0 where it is unknown.
        problems: of the images that are left out already: by position the kind and a sentence.
        images: how many images are to be accounted for.
        respelled: as `Found` has it.
    """

    shards: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    problems: Mapping[int, tuple[str, str]]
    images: int
    respelled: Mapping[int, str] = field(default_factory=dict)


def shard_key(number: int) -> str:
    """Return the key of a shard: a function of the plan alone."""
    return f"shard-{number:05d}.parquet"


def find_images(images: Store, coco: CocoText) -> Found:
    """List the folder once and return what it has of the json's images. Memory: 50 bytes an image.

    An image whose name is not listed is the only object that is called so but for case, Unicode normalisation, `%20`,
    backslashes and what stands before `?d=`, if it is the only such image.

    Raises:
        StoreError: the folder cannot be listed.
    """
    order = np.argsort(coco.name_hashes, kind="stable")
    hashes = coco.name_hashes[order]
    sizes = np.full(len(order), NOT_LISTED, np.int64)
    digest = hashlib.sha256()
    strangers, stranger = 0, None
    plain = np.unique(coco.plain_hashes)
    alike: dict[int, list[StoreEntry]] = {}
    for entry in images.list():
        wanted = np.uint64(name_hash(entry.key))
        first, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        if first == end:
            strangers, stranger = strangers + 1, stranger or entry.key
            spelled = plain_hash(entry.key)
            place = np.searchsorted(plain, np.uint64(spelled))
            if place < len(plain) and plain[place] == spelled:
                alike.setdefault(spelled, []).append(entry)
            continue
        sizes[order[first:end]] = UNKNOWN_SIZE if entry.size is None else entry.size
        digest.update(json.dumps([entry.key, entry.size, entry.etag]).encode())
    respelled: dict[int, str] = {}
    if alike:
        missing = np.flatnonzero(sizes == NOT_LISTED)
        wanted_by = Counter(coco.plain_hashes[missing].tolist())
        for position in missing.tolist():
            spelled = int(coco.plain_hashes[position])
            if wanted_by[spelled] == 1 and len(alike.get(spelled, ())) == 1:
                (entry,) = alike[spelled]
                respelled[position] = entry.key
                sizes[position] = UNKNOWN_SIZE if entry.size is None else entry.size
                digest.update(json.dumps([entry.key, entry.size, entry.etag]).encode())
    return Found(sizes, digest.hexdigest(), strangers - len(respelled), stranger, respelled)


def plan_shards(
    coco: CocoText, found: Found, *, most_bytes: int, most_images: int = MOST_IMAGES, max_images: int | None = None
) -> ShardPlan:
    """Cut the json's images, in its order, into shards of at most `most_bytes` of photographs, one alone may have more.

    Args:
        coco: the json.
        found: what there is of its images.
        most_bytes: photographs of a shard.
        most_images: a shard.
        max_images: the json's first so many only.
    """
    images = len(coco.image_ids) if max_images is None else min(max_images, len(coco.image_ids))
    problems: dict[int, tuple[str, str]] = {}
    shards: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    positions, sizes, held = array("q"), array("q"), 0
    for position, size in enumerate(found.size_bytes[:images].tolist()):
        problem = _problem(coco, position, size)
        if problem is not None:
            problems[position] = problem
            continue
        weight = _UNKNOWN_BYTES if size == UNKNOWN_SIZE else size
        if positions and (held + weight > most_bytes or len(positions) == most_images):
            shards.append((np.array(positions, np.int64), np.array(sizes, np.int64)))
            positions, sizes, held = array("q"), array("q"), 0
        positions.append(position)
        sizes.append(max(size, 0))
        held += weight
    if positions:
        shards.append((np.array(positions, np.int64), np.array(sizes, np.int64)))
    return ShardPlan(tuple(shards), problems, images, found.respelled)


def hold_plan(out: Store, plan: Json) -> None:
    """Write the plan down before its work starts, or find that it is the one that is there.

    Raises:
        RayDetrError: the place belongs to another plan, or to something else.
        StoreError: the store refused, or gave no answer.
    """
    try:
        found = out.get(PLAN_KEY).data
    except NotFound:
        stranger = next(iter(out.list()), None)
        if stranger is not None:
            raise UsageError(
                f"{out.uri} is not empty, it holds {stranger.key}. Shards need a folder of their own: choose an empty "
                "one."
            ) from None
        found = put_if_absent(out, PLAN_KEY, _encode(plan))
    try:
        there: Json = parse_json(found)
        differences = [
            f"{name.replace('_', ' ')} {there.get(name)!r}, now {plan.get(name)!r}"
            for name in sorted(there.keys() | plan.keys())
            if there.get(name) != plan.get(name)
        ]
    except (ValueError, AttributeError) as error:
        raise RayDetrError(
            f"{join_uri(out.uri, PLAN_KEY)} is damaged: it cannot be read as the plan of shards. Choose an empty "
            "folder."
        ) from error
    if differences:
        raise UsageError(
            f"{out.uri} holds shards of something else: {'; '.join(differences)}. Use the configuration that it was "
            "started with, or choose an empty folder."
        )


def _problem(coco: CocoText, position: int, size: int) -> tuple[str, str] | None:
    """Return why an image cannot be in a shard, as far as it is known without reading it."""
    if coco.is_repeated[position]:
        return "repeated_id", f"an earlier image has the same id, {coco.image_ids[position]}, and gets the annotations"
    if size != NOT_LISTED:
        return None
    file_name = json.loads(coco.image(position))["file_name"]
    if image_key(file_name) is None:
        return "outside_folder", f"the file name {file_name!r} leads outside the folder of images"
    return "missing", f"there is no {file_name!r} in the folder of images"


def _encode(plan: Json) -> bytes:
    return json.dumps(plan, ensure_ascii=False, indent=1).encode()
