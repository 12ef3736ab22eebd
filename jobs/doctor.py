"""Check cluster, machines, stores and model before a run; exit code 2 if a run would fail.

ray-detr doctor --images s3://lake/2026/ --table s3://lake/detections --model facebook/detr-resnet-50

What is written at the table is written below TABLE/_doctor/ and deleted again.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.exits import WRONG_USE, run_process
from jobs.options import (
    CommandParser,
    actor_range,
    add_batch_size_option,
    add_image_column_option,
    add_s3_options,
    add_table_s3_options,
)

if TYPE_CHECKING:
    from pipelines.doctor.findings import Finding


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, check, print each finding as it comes."""
    parser = CommandParser("doctor", __doc__)
    parser.add_argument("--images", nargs="+", default=[], metavar="URI", help="sources of images, as of label (none)")
    add_image_column_option(parser)
    parser.add_argument("--table", metavar="URI", help="the detection table, existing or new (none)")
    parser.add_argument("--model", metavar="REF", help="model to load and to try on a worker, as of label (none)")
    parser.add_argument(
        "--actors",
        type=actor_range,
        default=(None, None),
        metavar="MIN:MAX",
        help="number of detector processes that must fit (1 to as many as fit)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="as of label (%(default)s)")
    add_batch_size_option(parser)
    parser.add_argument("--anonymous", action="store_true", help="read images without credentials, for public buckets")
    add_s3_options(parser)
    add_table_s3_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    args = parser.parse_args(argv)

    from pipelines.doctor.examine import DoctorConfig, examine
    from pipelines.store import StoreOptions

    try:
        options = StoreOptions(
            anonymous=args.anonymous, endpoint=args.endpoint, region=args.region, profile=args.profile
        )
        config = DoctorConfig(
            images=tuple(args.images),
            image_column=args.image_column,
            table=args.table,
            model=args.model,
            least_actors=args.actors[0],
            most_actors=args.actors[1],
            device=args.device,
            batch_size=args.batch_size,
            image_options=options,
            table_options=options.of_table(
                endpoint=args.table_endpoint, region=args.table_region, profile=args.table_profile
            ),
        )
    except ValueError as error:
        parser.error(str(error))

    findings: list[Finding] = []
    result = sys.stdout
    with redirect_stdout(sys.stderr):  # where Ray would write between the lines
        for finding in examine(config):
            findings.append(finding)
            if not args.json:
                print(line(finding), file=result, flush=True)
    if args.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(outcome(findings))
    if any(finding.level == "fail" for finding in findings):
        sys.exit(WRONG_USE)


def line(finding: "Finding") -> str:
    """Return a finding as one line."""
    remedy = f" {finding.remedy}" if finding.remedy and finding.level != "ok" else ""
    end = "" if finding.text.endswith((".", "!")) or not remedy else "."
    return f"{finding.level:4}  {finding.check}: {finding.text}{end}{remedy}"


def outcome(findings: "Sequence[Finding]") -> str:
    """Return the last line: how many checks there were, and of which level."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warn", "fail")}
    return f"{len(findings)} checks: {counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed"


if __name__ == "__main__":
    run_process(main)
