"""Open a detection table with one engine; runs in an environment of its own (`make test-readers`).

    python opening.py ENGINE TABLE

Prints JSON: of each row `[uri, status, settings, [[label, score, xmin], ...] or null]`, in the order of URIs.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path


def datafusion(table):
    from datafusion import SessionContext

    context = SessionContext()
    context.register_parquet("t", f"{table}/data/")
    return context.sql("SELECT uri, status, settings, detections FROM t").to_pylist()


def chdb(table):
    import chdb as engine

    sql = f"SELECT uri, status, settings, detections FROM file('{table}/data', Parquet)"  # noqa: S608
    return [json.loads(line) for line in str(engine.query(sql, "JSONEachRow")).splitlines()]


def datasets(table):
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        return [dict(row) for row in load_dataset(f"{table}/data", split="train", cache_dir=cache)]


def delta(table):
    """Delta writes its log into the folder that it converts, so a copy is converted."""
    from deltalake import DeltaTable, convert_to_deltalake

    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(f"{table}/data", f"{folder}/copy")
        convert_to_deltalake(copy)
        return DeltaTable(copy).to_pyarrow_table().to_pylist()


def daft(table):
    import daft as engine

    return engine.read_parquet(f"{table}/data").to_pylist()


def ray(table):
    import ray as engine

    engine.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1", num_cpus=1)
    return engine.data.read_parquet(f"{table}/data").take_all()


def spark(table):
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = session.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
    rows = session.getOrCreate().read.parquet(f"{table}/data").select("uri", "status", "settings", "detections")
    return [row.asDict(recursive=True) for row in rows.collect()]


def plain(row):
    found = row["detections"]
    if row["status"] != "error":
        found = [[one["label"], float(one["score"]), float(one["box"]["xmin"])] for one in found]
    elif found is None or not len(found):  # ClickHouse has no lists that are null
        found = None
    return [row["uri"], row["status"], row["settings"], found]


if __name__ == "__main__":
    engine, table = sys.argv[1:]
    rows = sorted(plain(row) for row in globals()[engine](str(Path(table))))
    print("\n" + json.dumps(rows))  # noqa: T201 - its result
