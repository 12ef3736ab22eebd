"""A plain Ray Data script around `transformers`: read files, map batches over an actor pool, write what was found."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from pipelines.local_ray import on_loopback


class _Detect:
    """The actor class for Ray Data."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from pipelines.benchmarks.peers.plain_detector import PlainDetector

        self._detector = PlainDetector(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = self._detector([bytes(data) for data in batch["bytes"]])
        return {"path": batch["path"], "found": np.array([json.dumps(one) for one in found], dtype=object)}


def label(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Detect on every file, and write what was found as one JSON line a file to `settings["output"]`."""
    on_gpu = settings["device"].startswith("cuda")
    with on_loopback():
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    rows = (
        ray.data.read_binary_files(settings["files"], include_paths=True)
        .map_batches(
            _Detect,
            fn_constructor_args=(settings,),
            batch_size=settings["batch"],
            compute=ray.data.ActorPoolStrategy(size=1),
            num_gpus=1 if on_gpu else 0,
        )
        .take_all()
    )
    with Path(settings["output"]).open("w") as output:
        output.writelines(json.dumps({"file": row["path"], "found": json.loads(row["found"])}) + "\n" for row in rows)
    ray.shutdown()
    return {"exit_code": 0}
