"""Every month: fine-tune the model in use on the reviewed labels.

python finetune.py --slot 2026-11

The result is a candidate at RUNS/finetune-<slot>/model; promote.py decides about it.
"""

import argparse

import settings
from promotions import in_use

from jobs.exits import run_process
from jobs.submit import main as submit


def main(argv=None):
    """Submit the two jobs of a month, one after the other: training shards of the reviewed labels, and training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slot", required=True, help="the month, such as 2026-11")
    args = parser.parse_args(argv)
    name, shards = f"finetune-{args.slot}", f"{settings.SHARDS}/{args.slot}"
    to_cluster = ["--address", settings.CLUSTER, "--slot", args.slot, "--"]

    images = ["--images", settings.REVIEWED_IMAGES, "--annotations", settings.REVIEWED_ANNOTATIONS]
    submit([*to_cluster, "shard", *images, "--out", shards, *settings.JOB_OPTIONS])

    train = ["train", "--train", shards, "--storage", settings.RUNS, "--name", name, "--finetune", in_use().model]
    submit([*to_cluster, *train, *settings.TRAIN_OPTIONS, *settings.JOB_OPTIONS])
    print(f"candidate: {settings.RUNS}/{name}/model")


if __name__ == "__main__":
    run_process(main)
