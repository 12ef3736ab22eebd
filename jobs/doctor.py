"""Check cluster, machines, stores and model before a run.

ray-detr doctor --images s3://lake/2026/ --table s3://lake/detections --model facebook/detr-resnet-50

The exit code is 2 if a run would fail until something is changed, and 1 if all that fails may pass by itself, such as a
cluster that does not answer: run it again later.

What is written at the table is written below TABLE/_doctor/ and deleted again.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.exits import DONE, SYSTEM_FAILURE, WRONG_USE, run_process
from jobs.options import add_options, make_config, option_values
from jobs.parser import CommandParser
from pipelines.labelling.config import LabelConfig
from pipelines.store import StoreOptions, TableOptions

if TYPE_CHECKING:
    from pipelines.doctor.findings import Finding


OF_LABEL = ("actors", "device", "batch_size", "cpus_per_actor", "gpus_per_actor", "node_minutes", "shared_folders")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, check, print each finding immediately."""
    parser = CommandParser("doctor", __doc__)
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="URI", help="sources of images, as for `ray-detr label` (none)"
    )
    parser.add_argument("--table", metavar="URI", help="the detection table, existing or new (none)")
    parser.add_argument(
        "--model", metavar="REF", help="model to load, and to run once on a worker, as for `ray-detr label` (none)"
    )
    add_options(parser, LabelConfig, only=(*OF_LABEL, "image_column"))
    add_options(parser, StoreOptions)
    add_options(parser, TableOptions, prefix="table_")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    args = parser.parse_args(argv)

    from pipelines.doctor.examine import DoctorConfig, examine

    options = make_config(parser, StoreOptions, args)
    try:
        config = DoctorConfig(
            images=tuple(args.images),
            image_column=args.image_column,
            table=args.table,
            model=args.model,
            **{name: getattr(args, name) for name in OF_LABEL},
            image_options=options,
            table_options=options.of_table(TableOptions(**option_values(args, TableOptions, prefix="table_"))),
        )
    except ValueError as error:
        parser.error(str(error))

    findings: list[Finding] = []
    result = sys.stdout
    with redirect_stdout(sys.stderr):  # Ray would write between the lines
        for finding in examine(config):
            findings.append(finding)
            if not args.json:
                print(line(finding), file=result, flush=True)
    if args.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print(outcome(findings))
    code = exit_code(findings)
    if code:
        sys.exit(code)


def exit_code(findings: "Sequence[Finding]") -> int:
    """Return 0 if nothing failed, 1 if all that failed may pass by itself, and 2 if something must be changed."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if not failed:
        return DONE
    return SYSTEM_FAILURE if all(finding.transient for finding in failed) else WRONG_USE


def line(finding: "Finding") -> str:
    """Return a finding as one line."""
    remedy = f" {finding.remedy}" if finding.remedy and finding.level != "ok" else ""
    end = "" if finding.text.endswith((".", "!")) or not remedy else "."
    return f"{finding.level:4}  {finding.check}: {finding.text}{end}{remedy}"


def outcome(findings: "Sequence[Finding]") -> str:
    """Return the last line: the number of checks by level, and whether what failed may pass by itself."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warn", "fail")}
    later = "; this may pass by itself: run it again later" if exit_code(findings) == SYSTEM_FAILURE else ""
    return f"{len(findings)} checks: {counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed{later}"


if __name__ == "__main__":
    run_process(main)
