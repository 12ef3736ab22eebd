"""Execute the DAG `nightly` of a file for one date; runs in Airflow's environment (`make test-schedulers`).

    python run_airflow_dag.py FILE DATE

Prints as the last line, as JSON, the state of its only task and how often it was tried.
"""

import importlib.util
import json
import sys
from datetime import UTC, datetime

from airflow.utils import db

path, date = sys.argv[1:]
db.initdb()
spec = importlib.util.spec_from_file_location("airflow_dag", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
night = datetime.fromisoformat(date).replace(tzinfo=UTC)
run = module.nightly.test(logical_date=night, run_after=night)  # the id of the run is made of the second one
(label,) = run.get_task_instances()
print(json.dumps({"state": label.state, "tries": label.try_number}))
