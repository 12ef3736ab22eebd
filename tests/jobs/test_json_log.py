"""One line of JSON for each shard."""

import io
import json

from jobs._json_log import write_shard
from pipelines.labelling.outcome import ShardReport


def test_a_shard_is_one_line_with_its_figures() -> None:
    stream = io.StringIO()
    report = ShardReport(7, 64, 320, {"truncated": 2}, 1.23456, 0.5, 0.25, 0.125, size_bytes=9_000, requests=65)

    write_shard("night", report, stream)

    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "event": "shard",
        "run_id": "night",
        "shard": 7,
        "images": 64,
        "detections": 320,
        "errors": {"truncated": 2},
        "seconds": 1.235,
        "fetch_seconds": 0.5,
        "decode_seconds": 0.25,
        "detect_seconds": 0.125,
        "changed": 0,
        "notes": [],
        "size_bytes": 9_000,
        "requests": 65,
        "batched": 0,
        "places": 0,
        "pixels": 0,
        "padded_pixels": 0,
    }
