"""Execute the scheduled job of a file for one night; runs in Dagster's environment (`make test-schedulers`).

    python run_dagster_asset.py FILE NIGHT

NIGHT is the partition, such as 2026-11-28. Prints as the last line, as JSON, whether the job succeeded and how many
retries the step asked for.
"""

import importlib.util
import json
import sys

from dagster import DagsterEventType, DagsterInstance

path, night = sys.argv[1:]
spec = importlib.util.spec_from_file_location("dagster_definitions", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
job = module.definitions.resolve_job_def("label_nightly")
with DagsterInstance.ephemeral() as instance:
    result = job.execute_in_process(partition_key=night, instance=instance, raise_on_error=False)
retries = [event for event in result.all_events if event.event_type == DagsterEventType.STEP_UP_FOR_RETRY]
print(json.dumps({"success": result.success, "retries": len(retries)}))
