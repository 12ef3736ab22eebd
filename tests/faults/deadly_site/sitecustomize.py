"""On PYTHONPATH of a node: a machine on which loading a model kills the process, as for want of memory."""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType


class _Deadly(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "detr.checkpoints.checkpoint":
            os.kill(os.getpid(), signal.SIGKILL)
        return None


sys.meta_path.insert(0, _Deadly())
