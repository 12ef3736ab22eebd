"""Every week: measure the model in use on the frozen set.

python evaluate.py --slot 2026-11-29

The model and the set are the same every week, so a lower AP means that something else has changed: packages, drivers,
nodes or the images themselves. Exits with 3 if the AP is lower by more than 0.002 than at the promotion.
"""

import argparse

import settings
from promotions import in_use

from jobs.exits import run_process
from jobs.submit import main as submit


def main(argv=None):
    """Submit the evaluation of a week and follow it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slot", required=True, help="the day, such as 2026-11-29")
    args = parser.parse_args(argv)
    now = in_use()
    command = ["evaluate", "--model", now.model, "--images", settings.FROZEN_IMAGES]
    command += ["--annotations", settings.FROZEN_ANNOTATIONS, "--baseline", now.figures]
    command += ["--output", f"{settings.FIGURES}/week-{args.slot}.json"]
    command += ["--keep-table", f"{settings.EVALUATIONS}/week-{args.slot}"]  # a new one: rows are not made twice
    submit(["--address", settings.CLUSTER, "--slot", args.slot, "--", *command, *settings.JOB_OPTIONS])


if __name__ == "__main__":
    run_process(main)
