"""Label what is new in the lake, every night at 02:00, on a Ray cluster: a DAG for Airflow 3.

Copy this file to the folder of DAGs, and set the five names. ray-detr is installed in a virtual environment of its own
on the workers, because Airflow pins other versions of some packages: `pip install WHEEL` (docs/operations.md,
"Install"). If the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the environment of the
workers.

The slot is the id of the DAG run. A task that is tried again, or cleared, follows the job that it has submitted before.
"""

import subprocess
from datetime import datetime, timedelta, timezone

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

RAY_DETR = "/opt/ray-detr/bin/ray-detr"
CLUSTER = "http://YOUR-HEAD:8265"
IMAGES = "s3://YOUR-LAKE/"
TABLE = "s3://YOUR-TABLES/detections"
MODEL = "facebook/detr-resnet-50"

STOPPED_BY_LIMIT = "5"  # counts as success: the next night continues
NOT_TO_BE_TRIED_AGAIN = {2, 3}  # wrong use; finished with too many error rows


@dag(schedule="0 2 * * *", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), catchup=False, max_active_runs=1)
def ray_detr_nightly():
    """Label what is new in the lake."""

    @task(retries=3, retry_delay=timedelta(minutes=10))
    def label(run_id=None):
        submit = [RAY_DETR, "submit", "--address", CLUSTER, "--slot", run_id, "--ok", STOPPED_BY_LIMIT]
        command = ["label", "--images", IMAGES, "--table", TABLE, "--model", MODEL, "--max-minutes", "300"]
        command += ["--metrics"]
        code = subprocess.run([*submit, "--", *command]).returncode
        if code in NOT_TO_BE_TRIED_AGAIN:
            raise AirflowFailException(f"ray-detr label ended with exit code {code}; the log says why")
        if code:
            raise AirflowException(f"ray-detr label ended with exit code {code}; the next attempt resumes it")

    label()


nightly = ray_detr_nightly()
