"""A reader of a table, in a process of its own: globs and reads all of it again and again, and writes what it saw.

python reader.py TABLE HISTORY

One line of JSON a reading, until the file HISTORY.stop is there and was followed by one more reading.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PAUSE_SECONDS = 0.1


def read_once(data: Path) -> dict[str, Any]:
    """Return the files with their checksums, how many rows they have, and the keys that came more than once."""
    files: dict[str, str] = {}
    keys: Counter[tuple[str, str | None, str]] = Counter()
    for path in sorted(data.glob("**/*.parquet")):
        blob = path.read_bytes()
        files[str(path.relative_to(data))] = hashlib.sha256(blob).hexdigest()
        # read_table's threads let go of Python's bytes late: where Python ends just then, the process is aborted (3 of
        # 300 processes on busy cores; none of 300 without threads)
        table = pq.read_table(
            pa.BufferReader(blob), page_checksum_verification=True, use_threads=False, pre_buffer=False
        )
        columns = (table[name].to_pylist() for name in ("uri", "etag", "model"))
        keys.update(zip(*columns, strict=True))
    return {"files": files, "rows": keys.total(), "twice": sorted(map(str, (k for k, n in keys.items() if n > 1)))}


def main(table: Path, history: Path) -> None:
    """Read until told to stop. A file that cannot be read ends it with a traceback, which fails the test."""
    stop = history.with_name(history.name + ".stop")
    with history.open("w") as out:
        while True:
            is_last = stop.exists()
            out.write(json.dumps(read_once(table / "data")) + "\n")
            out.flush()
            if is_last:
                return
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
