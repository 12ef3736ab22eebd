"""After a fine-tune: promote its model if it is not worse than the model in use.

python promote.py --slot 2026-11                                      # the model of finetune.py
python promote.py --slot 2026-10 --model facebook/detr-resnet-50     # any model; the first one is compared with nothing

Both models are measured on the frozen set. Exits with 3, and changes nothing, if the AP is lower by more than MAX_DROP.
"""

import argparse

import settings
from promotions import Promotion, all_promotions, record

from jobs.exits import run_process
from jobs.runs import main as runs
from jobs.submit import main as submit


def main(argv=None):
    """Submit the evaluation of a candidate, follow it, and record the promotion if the gate lets it pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slot", required=True, help="the month, such as 2026-11; later than that of other promotions")
    parser.add_argument("--model", help="the candidate (the model of the fine-tune with this slot)")
    args = parser.parse_args(argv)
    candidate = args.model or f"{settings.RUNS}/finetune-{args.slot}/model"
    promotions = all_promotions()
    if args.slot in promotions and promotions[args.slot].model == candidate:
        print(f"{candidate} has been promoted already")
        return
    if promotions and args.slot <= max(promotions):
        parser.error(f"--slot {args.slot} is not later than the last promotion, {max(promotions)}")

    figures = f"{settings.FIGURES}/promotion-{args.slot}.json"
    command = ["evaluate", "--model", candidate, "--images", settings.FROZEN_IMAGES]
    command += ["--annotations", settings.FROZEN_ANNOTATIONS, "--output", figures]
    command += ["--keep-table", f"{settings.EVALUATIONS}/promotion-{args.slot}"]
    if promotions:
        command += ["--baseline", promotions[max(promotions)].figures, "--max-drop", settings.MAX_DROP]
    # exits with code 3 if the gate refuses the candidate
    to_cluster = ["--address", settings.CLUSTER, "--job", "promote", "--slot", args.slot, "--"]
    submit([*to_cluster, *command, *settings.JOB_OPTIONS])

    # an unfinished labelling run of the previous model could not be resumed with this one
    runs(["--table", settings.TABLE, "--abandon"])
    record(args.slot, Promotion(candidate, figures))
    print(f"promoted: {candidate}")


if __name__ == "__main__":
    run_process(main)
