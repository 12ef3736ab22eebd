"""One JSON line on standard error for each shard of a run (`--log-json`)."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pipelines.labelling.outcome import ShardReport


def write_shard(run_id: str, report: "ShardReport", stream: TextIO | None = None) -> None:
    """Write the outcome of a shard.

    Args:
        run_id: of the run.
        report: of the shard.
        stream: None is standard error.
    """
    figures = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(report).items()}
    record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "shard", "run_id": run_id}
    print(json.dumps({**record, **figures, "errors": dict(report.errors)}), file=stream or sys.stderr, flush=True)
