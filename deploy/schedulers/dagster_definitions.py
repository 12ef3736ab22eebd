"""Label what is new in the lake, every night at 02:00, on a Ray cluster: an asset and a schedule for Dagster.

Copy this file to a code location, and set the five names. ray-detr is installed in a virtual environment of its own:
`pip install WHEEL` (docs/operations.md, "Install"). If the cluster asks for a token, set RAY_AUTH_MODE=token and
RAY_AUTH_TOKEN in the environment of the code location.

The slot is the partition, which is a night. A retry, or the same partition again, follows the job of that night.
"""

import subprocess

from dagster import (
    AssetExecutionContext,
    DailyPartitionsDefinition,
    Definitions,
    Failure,
    RetryPolicy,
    asset,
    build_schedule_from_partitioned_job,
    define_asset_job,
)

RAY_DETR = "/opt/ray-detr/bin/ray-detr"
CLUSTER = "http://YOUR-HEAD:8265"
IMAGES = "s3://YOUR-LAKE/"
TABLE = "s3://YOUR-TABLES/detections"
MODEL = "facebook/detr-resnet-50"

STOPPED_BY_LIMIT = "5"  # counts as success: the next night continues
NOT_TO_BE_TRIED_AGAIN = {2, 3}  # wrong use; finished with too many error rows


@asset(
    partitions_def=DailyPartitionsDefinition(start_date="2026-01-01"),
    retry_policy=RetryPolicy(max_retries=3, delay=600),
)
def detections(context: AssetExecutionContext) -> None:
    """Rows of the images that were added since the night before."""
    submit = [RAY_DETR, "submit", "--address", CLUSTER, "--slot", context.partition_key, "--ok", STOPPED_BY_LIMIT]
    command = ["label", "--images", IMAGES, "--table", TABLE, "--model", MODEL, "--max-minutes", "300", "--metrics"]
    code = subprocess.run([*submit, "--", *command]).returncode
    if code:
        raise Failure(
            f"ray-detr label ended with exit code {code}; the log says why",
            allow_retries=code not in NOT_TO_BE_TRIED_AGAIN,
        )


label_job = define_asset_job("label_nightly", [detections])
nightly = build_schedule_from_partitioned_job(label_job, hour_of_day=2)
definitions = Definitions(assets=[detections], jobs=[label_job], schedules=[nightly])
