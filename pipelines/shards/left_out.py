"""The file of images and annotations that cannot be trained on, from which the json can be restored."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pipelines.coco.text import NOWHERE, CocoText
from pipelines.coco.values import id_key
from pipelines.errors import RayDetrError
from pipelines.shards.reader import ShardFile
from pipelines.shards.rows import LEFT_OUT_KEY, LEFT_OUT_SCHEMA, RowsFile, image_row
from pipelines.store import Store, join_uri, put_if_absent

GROUP_ROWS: Final = 256

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The file of left-out images (None if all images are in shards), and the number of their annotations."""

    file: ShardFile | None
    annotations: int
    annotations_of_no_image: int


def write_left_out(out: Store, coco: CocoText, problems: Mapping[int, tuple[str, str]]) -> LeftOut:
    """Write the images with problems, and the annotations of images that the json does not declare.

    Memory: the file, and the text of the annotations without images.

    Args:
        out: the store of the shards.
        coco: the json.
        problems: kind and message by the image's position in the json.

    Raises:
        RayDetrError: another such file exists.
        StoreError: the store refused or did not answer.
    """
    rows = _rows(coco, problems)
    file = RowsFile(LEFT_OUT_SCHEMA)
    count = annotations = homeless = 0
    while group := list(islice(rows, GROUP_ROWS)):
        file.add(group)
        count += len(group)
        homeless += sum(len(row["annotations"]) for row in group if row["position"] is None)
        annotations += sum(len(row["annotations"]) for row in group if row["position"] is not None)
    if not count:
        return LeftOut(None, 0, 0)
    data, groups = file.finish({})
    if put_if_absent(out, LEFT_OUT_KEY, data) != data:
        raise RayDetrError(
            f"{join_uri(out.uri, LEFT_OUT_KEY)} already exists and differs from what this job found. Was an image "
            "repaired in the meantime, or is another release of pyarrow in use? Choose an empty folder."
        )
    listed = ShardFile(LEFT_OUT_KEY, count, hashlib.sha256(data).hexdigest(), len(data), groups)
    return LeftOut(listed, annotations, homeless)


def _rows(coco: CocoText, problems: Mapping[int, tuple[str, str]]) -> Iterator[Json]:
    for position in sorted(problems):
        kind, sentence = problems[position]
        # the first of several images with the same id has the annotations, even if it was left out
        annotations = [(place, json.loads(text)) for place, text in coco.annotations_of(position)]
        image = json.loads(coco.image(position))
        image_id = int(coco.image_ids[position])
        yield image_row(position, image, annotations, data=None, image_id=image_id, problem=f"{kind}: {sentence}")
    by_id: dict[int | str | None, list[tuple[int, str]]] = defaultdict(list)
    for place, text in coco.annotations_of(NOWHERE):
        by_id[id_key(json.loads(text).get("image_id"))].append((place, text))
    for key, texts in by_id.items():
        image = {} if key is None else {"id": key}
        problem = "no_image: the json declares no such image, only annotations of it"
        yield image_row(None, image, [(place, json.loads(text)) for place, text in texts], data=None, problem=problem)
