"""A plain Daft script around `transformers`: read files, apply a class to batches, collect what was found."""

import json
from pathlib import Path
from typing import Any

import daft

from pipelines.benchmarks.peers.plain_detector import PlainDetector


def label(settings: dict[str, Any], _folder: Path) -> dict[str, Any]:
    """Detect on every file, and write what was found as one JSON line a file to `settings["output"]`."""
    on_gpu = settings["device"].startswith("cuda")

    @daft.cls(gpus=1 if on_gpu else 0, max_concurrency=1, use_process=False)
    class Detect:
        def __init__(self) -> None:
            self._detector = PlainDetector(settings)

        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=settings["batch"])  # type: ignore[untyped-decorator]
        def found(self, data: daft.Series) -> list[str]:
            return [json.dumps(one) for one in self._detector(data.to_pylist())]

    files = daft.from_pydict({"path": settings["files"]})
    encoded = files.with_column("data", daft.col("path").download())
    rows = encoded.select("path", Detect().found(daft.col("data")).alias("found")).to_pydict()
    with Path(settings["output"]).open("w") as output:
        output.writelines(
            json.dumps({"file": path, "found": json.loads(found)}) + "\n"
            for path, found in zip(rows["path"], rows["found"], strict=True)
        )
    return {"exit_code": 0}
