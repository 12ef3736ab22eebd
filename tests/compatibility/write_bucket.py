"""Write `bucket.zip`: what an earlier version of ray-detr left in an object store, for later versions to read.

    git worktree add ../earlier 0e6b9e8
    python tests/compatibility/write_bucket.py --checkout ../earlier

The commands of that checkout run against a quick S3 server in this process. Runs that must be unfinished are stopped by
SIGKILL as soon as the bucket holds what the test needs, so a second call writes other run ids and other part counts;
`test_earlier_versions.py` depends on neither.

The bucket holds:
    lake/                  72 photographs of drawn scenes and one that crashes its decoder, lake/instances.json
    tables/finished/       one finished run; one shard an image, so two table files
    tables/unfinished/     the same run killed: one published file, parts of the second without five, a dead lease
    tables/sealed/         the same, then sealed by `jobs.runs --abandon`
    tables/quarantined/    a run with one `crashed` row
    models/tiny/           a DETR of random weights
    shards/                training shards of the first 12 photographs
    runs/straight/         a training run of 40 epochs
    runs/stopped/          the same run killed inside an epoch
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "ray-detr-earlier"
IMAGES = 72
LEFT_SHARDS = 5
TRAINING_IMAGES = 12
NOT_KEPT = ("runs/straight/checkpoints/", "events.out.tfevents")
HERE = Path(__file__).parent
LABEL = ("jobs.label", "--model", "scenes", "--device", "cpu", "--actors", "1:1", "--shard-images", "1")
TRAIN = (
    "jobs.train", "--train", f"s3://{BUCKET}/shards", "--storage", f"s3://{BUCKET}/runs", "--recipe", "finetune",
    "--finetune", f"s3://{BUCKET}/models/tiny", "--epochs", "40", "--lr-drop", "30", "--effective-batch", "2",
    "--batch-size", "1", "--augmentation", "none", "--freeze-backbone", "none", "--num-workers", "1:1", "--device",
    "cpu", "--log-steps", "1", "--keep", "1",
)  # fmt: skip
MAKE_TINY_MODEL = """
import sys, torch
from detr import Detr, DetrConfig, save
from detr.classes import SCENE_CATEGORIES
from detr.config import BackboneConfig
torch.manual_seed(20261128)
backbone = BackboneConfig("tiny", "basic", 4, (8, 8, 16), (1, 1, 1))
config = DetrConfig(backbone, 16, 2, 1, 2, 16, 0.1, 6, categories=SCENE_CATEGORIES, shorter=96, longest=160)
save(Detr(config), sys.argv[1])
"""
DRAW_SCENES = """
import sys, pathlib
from detr.scenes.files import write_scenes
write_scenes(pathlib.Path(sys.argv[1]), int(sys.argv[2]), 11, sizes={(96, 128): 1, (128, 96): 1})
"""


def main() -> None:
    """Run the commands and write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="a checkout of the earlier version")
    parser.add_argument("--out", type=Path, default=HERE / "bucket.zip")
    args = parser.parse_args()
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        writer = Writer(args.checkout.resolve(), "http://{}:{}".format(*server.get_host_and_port()))
        writer.write_lake_and_models()
        writer.write_tables()
        writer.write_training()
        args.out.write_bytes(writer.archive())
    finally:
        server.stop()
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


class Writer:
    """A bucket, and the commands of a checkout that write into it."""

    def __init__(self, checkout: Path, endpoint: str) -> None:
        self.checkout, self.endpoint = checkout, endpoint
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))},
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "PYTHONPATH": str(checkout),
        }
        self.s3: Any = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="testing",
            aws_secret_access_key="testing-secret",
        )  # fmt: skip
        self.s3.create_bucket(Bucket=BUCKET)

    def write_lake_and_models(self) -> None:
        """Draw photographs and make a small model."""
        with tempfile.TemporaryDirectory() as folder:
            self._python(DRAW_SCENES, f"{folder}/lake", str(IMAGES))
            self._python(MAKE_TINY_MODEL, f"{folder}/tiny")
            for path in sorted(Path(folder, "lake").iterdir()):
                self._put(f"lake/{path.name}", path.read_bytes())
            for path in sorted(Path(folder, "tiny").iterdir()):
                self._put(f"models/tiny/{path.name}", path.read_bytes())
            truth = json.loads(Path(folder, "lake", "instances.json").read_text())
        truth["images"] = truth["images"][:TRAINING_IMAGES]
        kept = {image["id"] for image in truth["images"]}
        truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] in kept]
        self._put("few.json", json.dumps(truth).encode())

    def write_tables(self) -> None:
        """Write the four tables."""
        self._run(*LABEL, "--images", f"s3://{BUCKET}/lake/", "--table", self._table("finished"))
        for name in ("unfinished", "sealed"):
            self._kill_when(
                lambda name=name: self._count(f"tables/{name}/data/") == 1
                and self._count(f"tables/{name}/_runs/", suffix=".part") > 65,
                *LABEL, "--images", f"s3://{BUCKET}/lake/", "--table", self._table(name),
            )  # fmt: skip
        # polling is too slow to meet the moment at which some shards of the second file are done and some are not
        for key in [key for key in self._keys("tables/unfinished/_runs/") if key.endswith(".part")][-LEFT_SHARDS:]:
            self.s3.delete_object(Bucket=BUCKET, Key=key)
        self._run("jobs.runs", "--table", self._table("sealed"), "--abandon")
        poisoned = self._python(
            "import sys; from tests.faults.poison import poison;"
            "sys.stdout.buffer.write(poison(sys.stdin.buffer.read(), 'segfault'))",
            data=self._get("lake/scene_11_000000.jpg"),
        )
        self._put("poisoned/bad.jpg", poisoned)
        for number in range(3):
            self._put(f"poisoned/good_{number}.jpg", self._get(f"lake/scene_11_{number:06d}.jpg"))
        site = str(self.checkout / "tests" / "faults" / "poison_site")
        self._run(
            *LABEL, "--images", f"s3://{BUCKET}/poisoned/", "--table", self._table("quarantined"), "--max-error-rate",
            "1", path=site,
        )  # fmt: skip

    def write_training(self) -> None:
        """Write shards and two training runs."""
        self._run(
            "jobs.shard", "--annotations", f"s3://{BUCKET}/few.json", "--images", f"s3://{BUCKET}/lake/", "--out",
            f"s3://{BUCKET}/shards",
        )  # fmt: skip
        self._run(*TRAIN, "--name", "straight")
        self._kill_when(self._is_inside_an_epoch, *TRAIN, "--name", "stopped", "--checkpoint-minutes", "0.001")

    def archive(self) -> bytes:
        """Return all objects of the bucket as a zip archive."""
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for key in self._keys(""):
                if any(part in key for part in NOT_KEPT):
                    continue
                archive.writestr(zipfile.ZipInfo(key), self._get(key), zipfile.ZIP_DEFLATED, 9)
        return sink.getvalue()

    def _is_inside_an_epoch(self) -> bool:
        """Return whether the newest checkpoint lies between two steps of an epoch after the first."""
        manifests = self._keys("runs/stopped/manifests/")
        saved = json.loads(self._get(manifests[-1]))["checkpoints"] if manifests else []
        return bool(saved) and saved[-1]["epoch"] > 0 and saved[-1]["step_in_epoch"] > 1

    def _table(self, name: str) -> str:
        return f"s3://{BUCKET}/tables/{name}"

    def _command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments, "--endpoint", self.endpoint, "--region", "us-east-1"]

    def _run(self, module: str, *arguments: str, path: str = "") -> None:
        environment = self.environment | ({"PYTHONPATH": f"{path}:{self.checkout}"} if path else {})
        print("$ python -m", module, *arguments, flush=True)
        subprocess.run(self._command(module, *arguments), cwd=self.checkout, env=environment, check=True)

    def _kill_when(self, is_far_enough: Callable[[], bool], module: str, *arguments: str) -> None:
        """Run a command and kill it, with all its processes, when the bucket is as wanted."""
        print("$ python -m", module, *arguments, "# killed", flush=True)
        process = subprocess.Popen(
            self._command(module, *arguments), cwd=self.checkout, env=self.environment, start_new_session=True
        )
        while not is_far_enough():
            if process.poll() is not None:
                raise SystemExit(f"{module} ended with {process.returncode} before it could be stopped")
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(10)  # Ray's own processes end a few seconds after their driver

    def _python(self, code: str, *arguments: str, data: bytes | None = None) -> bytes:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=self.checkout, env=self.environment, input=data, check=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        return done.stdout

    def _put(self, key: str, data: bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=data)

    def _get(self, key: str) -> bytes:
        data: bytes = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data

    def _keys(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def _count(self, prefix: str, *, suffix: str = "") -> int:
        return sum(key.endswith(suffix) for key in self._keys(prefix))


if __name__ == "__main__":
    main()
