"""The annotations of shards as an evaluation counts them."""

from __future__ import annotations

from pipelines.coco.truth import normal_truth
from pipelines.coco.values import whole
from pipelines.shards.reader import Json, read_index
from pipelines.shards.rows import restore_json
from pipelines.store import Store


def shard_truth(store: Store) -> Json:
    """Return the usable annotations of the shards in `store`, for `average_precision`, as `read_annotations` does.

    Images have the numbers of their rows, and the categories are those of the index. Memory: the whole json.

    Raises:
        RayDetrError: the index is missing, or a file is damaged.
        StoreError: the store refused or did not answer.
    """
    index = read_index(store)
    document, numbers = restore_json(store, index)
    kept = {category.id for category in index.categories}
    categories = [one for one in document["categories"] if whole(one["id"]) in kept]
    return normal_truth({**document, "categories": categories}, numbers=numbers)
