"""Plans shards: decides before reading which images go into which shard, and records it for resuming."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.coco.names import common_folders, plain_parts
from pipelines.coco.text import CocoText, image_key, name_hash, plain_hash
from pipelines.errors import RayDetrError, UsageError
from pipelines.store import NotFound, Store, StoreEntry, join_uri, put_if_absent
from pipelines.strict_json import parse_json

PLAN_KEY: Final = "_plan.json"
PLAN_VERSION: Final = 1
MOST_IMAGES: Final = 4096  # in a file: with more small pictures, the footer and the list of hashes would be large

_ADDRESS: Final = re.compile(r"[/\\]|[A-Za-z]:|[a-z][a-z0-9+.-]*://")  # of Unix, Windows, URIs
_UNKNOWN_BYTES: Final = 1024**2  # assumed for an image of unknown size
NOT_LISTED: Final = -1
UNKNOWN_SIZE: Final = -2

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """The listing of the images' folder, compared with the json.

    Attributes:
        size_bytes: `(N,)` int64, the size of each image of the json; `NOT_LISTED` for missing objects, `UNKNOWN_SIZE`
            if the listing has no size.
        digest: hash of the names, sizes and etags of the json's images; it changes with them.
        unlisted_count: number of objects that the json does not name.
        unlisted_example: one of these objects.
        respelled: names of objects that the json spells differently, by position of the image.
    """

    size_bytes: NDArray[np.int64]
    digest: str
    unlisted_count: int
    unlisted_example: str | None
    respelled: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The images of each shard.

    Attributes:
        shards: `(positions, size_bytes)` of each shard, int64 arrays of equal length; unknown sizes are 0.
        problems: kind and message of images that are already left out, by position.
        images: number of all images.
        respelled: see `Found`.
    """

    shards: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    problems: Mapping[int, tuple[str, str]]
    images: int
    respelled: Mapping[int, str] = field(default_factory=dict)


def shard_key(number: int) -> str:
    """Return the key of a shard."""
    return f"shard-{number:05d}.parquet"


def find_images(images: Store, coco: CocoText) -> Found:
    """List the folder and find the json's images in it. Memory: 50 bytes for each image.

    If a name is not listed, the image is the only object whose name differs just in case, Unicode normalisation, `%20`,
    backslashes or a beginning that ends in `?d=`, unless several images match that object. If no name is listed at all,
    the common leading folders of all names are removed if they name the folder itself.

    Raises:
        StoreError: listing the folder failed.
    """
    found = _find(images, coco.name_hashes, coco.plain_hashes)
    if found.unlisted_example is None or (found.size_bytes != NOT_LISTED).any():
        return found
    shorter = _without_leading_folders(images, coco)
    return found if shorter is None else _find(images, np.empty(0, np.uint64), shorter)


def _find(images: Store, name_hashes: NDArray[np.uint64], plain_hashes: NDArray[np.uint64]) -> Found:
    order = np.argsort(name_hashes, kind="stable")
    hashes = name_hashes[order]
    sizes = np.full(len(plain_hashes), NOT_LISTED, np.int64)
    digest = hashlib.sha256()
    unlisted, example = 0, None
    plain = np.unique(plain_hashes)
    alike: dict[int, list[StoreEntry]] = {}
    for entry in images.list():
        wanted = np.uint64(name_hash(entry.key))
        first, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        if first == end:
            unlisted, example = unlisted + 1, example or entry.key
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
        wanted_by = Counter(plain_hashes[missing].tolist())
        for position in missing.tolist():
            spelled = int(plain_hashes[position])
            if wanted_by[spelled] == 1 and len(alike.get(spelled, ())) == 1:
                (entry,) = alike[spelled]
                respelled[position] = entry.key
                sizes[position] = UNKNOWN_SIZE if entry.size is None else entry.size
                digest.update(json.dumps([entry.key, entry.size, entry.etag]).encode())
    return Found(sizes, digest.hexdigest(), unlisted - len(respelled), example, respelled)


def _without_leading_folders(images: Store, coco: CocoText) -> NDArray[np.uint64] | None:
    """Return `plain_hash` of the json's names without the folders that all of them begin with; None if none is listed.

    The smallest number of folders is removed with which an image is listed. They must be the end of the address of
    `images`, or, if the names are addresses of another machine, end in the name of that folder: in `train/`,
    `val/1.jpg` is another picture than `1.jpg`. Memory: 8 bytes for each image and object.
    """
    common, is_of_a_machine = _common_folders(coco.file_names())
    folder = plain_parts(images.uri)
    counts = [
        count
        for count in range(1, len(common) + 1)
        if folder[-count:] == common[:count] or (is_of_a_machine and folder[-1] == common[count - 1])
    ]
    listed = np.unique(np.fromiter((plain_hash(entry.key) for entry in images.list()), np.uint64)) if counts else ()
    for count in counts:
        shorter = np.fromiter((name_hash("/".join(plain_parts(name)[count:])) for name in coco.file_names()), np.uint64)
        if np.isin(shorter, listed).any():
            return shorter
    return None


def _common_folders(names: Iterable[str]) -> tuple[list[str], bool]:
    """Return the common leading folders of all names (none if a name leads out), and whether all are addresses."""
    common: list[str] | None = None
    are_addresses = True
    for name in names:
        folders = plain_parts(name)[:-1]
        if ".." in folders:
            return [], False
        are_addresses = are_addresses and _ADDRESS.match(name) is not None
        common = folders if common is None else common[: common_folders([[*common, ""], [*folders, ""]])]
    return common or [], are_addresses


def plan_shards(
    coco: CocoText, found: Found, *, most_bytes: int, most_images: int = MOST_IMAGES, max_images: int | None = None
) -> ShardPlan:
    """Cut the json's images, in its order, into shards of at most `most_bytes`. A single image can have more.

    Args:
        coco: the json.
        found: the listed images.
        most_bytes: largest number of bytes of photographs in a shard.
        most_images: largest number of images in a shard.
        max_images: use only the first images of the json; None uses all.
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
    """Record the plan before shards are written, or check that the recorded plan is the same.

    Raises:
        RayDetrError: the folder has another plan, or other objects.
        StoreError: the store refused or did not answer.
    """
    try:
        found = out.get(PLAN_KEY).data
    except NotFound:
        first = next(iter(out.list()), None)
        if first is not None:
            raise UsageError(
                f"{out.uri} is not empty: it contains {first.key}. Shards need a separate folder: choose an empty one."
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
            f"{out.uri} contains shards of another configuration: {'; '.join(differences)}. Use the configuration that "
            "they were started with, or choose an empty folder."
        )


def _problem(coco: CocoText, position: int, size: int) -> tuple[str, str] | None:
    """Return why an image cannot be in a shard, if that is known without reading it."""
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
