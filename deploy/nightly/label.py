"""Every night: label what is new in the lake with the model in use.

python label.py --slot 2026-11-28

Images that an earlier model has labelled are not labelled again. Exits with the code of `ray-detr label`, with 0 where
the limit stopped it (5).
"""

import argparse

import settings
from promotions import in_use

from jobs.exits import run_process
from jobs.submit import main as submit


def main(argv=None):
    """Submit the job of a night and follow it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slot", required=True, help="the night, such as 2026-11-28")
    args = parser.parse_args(argv)
    command = ["label", "--images", settings.IMAGES, "--table", settings.TABLE, "--model", in_use().model]
    command += ["--skip-labelled", "any", *settings.LABEL_OPTIONS, *settings.JOB_OPTIONS]
    submit(["--address", settings.CLUSTER, "--slot", args.slot, "--ok", "5", "--", *command])


if __name__ == "__main__":
    run_process(main)
