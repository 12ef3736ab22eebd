"""A reader of a table, in a process of its own: globs and reads all of it again and again, and writes what it saw.

python reader.py TABLE HISTORY

TABLE is a folder, or an `s3://` address on the server that the environment names. One line of JSON a reading, until
the file HISTORY.stop is there and was followed by one more reading.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PAUSE_SECONDS = 0.1


def table_files(table: str) -> Iterator[tuple[str, bytes]]:
    """Yield name below `data/` and bytes of each file that a glob for Parquet finds."""
    if not table.startswith("s3://"):
        data = Path(table) / "data"
        for path in sorted(data.glob("**/*.parquet")):
            yield str(path.relative_to(data)), path.read_bytes()
        return
    import boto3  # half a second, and another client than the product's

    bucket, _, folder = table.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/data/"):
        for entry in page.get("Contents", ()):
            if entry["Key"].endswith(".parquet"):
                name = entry["Key"].removeprefix(f"{folder}/data/")
                yield name, client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()


def read_once(table: str) -> dict[str, Any]:
    """Return the files with their checksums, how many rows they have, and the keys that came more than once."""
    files: dict[str, str] = {}
    keys: Counter[tuple[str, str | None, str]] = Counter()
    for name, blob in table_files(table):
        files[name] = hashlib.sha256(blob).hexdigest()
        # not read_table: threads of its data sets let go of Python's bytes late, and where Python ends just then, the
        # process is aborted
        rows = pq.ParquetFile(pa.BufferReader(blob), page_checksum_verification=True).read()
        columns = (rows[column].to_pylist() for column in ("uri", "etag", "model"))
        keys.update(zip(*columns, strict=True))
    return {"files": files, "rows": keys.total(), "twice": sorted(map(str, (k for k, n in keys.items() if n > 1)))}


def main(table: str, history: Path) -> None:
    """Read until told to stop. A file that cannot be read ends it with a traceback, which fails the test."""
    stop = history.with_name(history.name + ".stop")
    with history.open("w") as out:
        while True:
            is_last = stop.exists()
            out.write(json.dumps(read_once(table)) + "\n")
            out.flush()
            if is_last:
                return
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    os._exit(0)  # as `jobs.exits.run_process`: a thread of pyarrow's that meets the end of Python aborts the process
