"""On PYTHONPATH of a test's Ray: each beginning of a shard is a line `run shard pid host` of the file $FAULTS_WORK.

Counts what actors really did, also for drivers that died; the product knows nothing of it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_LABELER = "pipelines.labelling.labeler"


class _Counting(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _LABELER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_count(module: ModuleType) -> None:
            execute(module)
            _count(module)

        spec.loader.exec_module = execute_and_count  # type: ignore[method-assign]
        return spec


def _count(module: Any) -> None:
    label = module.Labeler.label

    def counted(self: Any, shard: int, **options: Any) -> Any:
        with Path(os.environ["FAULTS_WORK"]).open("a", encoding="ascii") as file:  # one short write: appended whole
            file.write(f"{self._run_id} {shard} {os.getpid()} {os.uname().nodename}\n")
        return label(self, shard, **options)

    module.Labeler.label = counted


if "FAULTS_WORK" in os.environ:
    sys.meta_path.insert(0, _Counting())
