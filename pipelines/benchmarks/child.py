"""Run one subject in this process: `python child.py CODE SPEC RESULT`. Started by path, by `rounds.py`.

CODE is the folder whose `detr`, `pipelines` and `jobs` are measured. It may be another checkout than the one that this
file belongs to, and need not have this package: `pipelines.benchmarks` is always the one around this file.
"""

import ctypes
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def main(code: str, spec: str, result: str) -> None:
    """Import the subject that the JSON file `spec` names, call it, and write what it returns to `result`."""
    # orphans of this process's children become its children, so that they remain in the measured tree
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    sys.path[0] = code  # instead of the folder of this file
    _use_this_package()
    task = json.loads(Path(spec).read_text())
    module, function = task["subject"].split(":")
    subject = getattr(importlib.import_module(f"pipelines.benchmarks.{module}"), function)
    returned: dict[str, Any] = subject(task["settings"], Path(task["folder"]))
    Path(result).write_text(json.dumps(returned))


def _use_this_package() -> None:
    """Import `pipelines.benchmarks` from the folder of this file, whichever `pipelines` is measured."""
    importlib.import_module("pipelines")
    here = Path(__file__).parent
    found = importlib.util.spec_from_file_location(
        "pipelines.benchmarks", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert found is not None
    assert found.loader is not None
    package = importlib.util.module_from_spec(found)
    sys.modules["pipelines.benchmarks"] = package
    found.loader.exec_module(package)


if __name__ == "__main__":
    main(*sys.argv[1:])
