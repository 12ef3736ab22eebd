"""Makes poison images act in a process that imports `detr.images.decoding`: see `tests/faults/poison.py`."""

import ctypes
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from pathlib import Path

MAGIC = b"ray-detr poison "
CHILD = "pipelines.labelling.decoding_child"


class _Wrap(importlib.abc.Loader):
    """Loads a module as it always was, then puts wrapped functions in the place of its own."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        for name, when in (("decode", "decode"), ("read_header", "header")):
            setattr(module, name, _poisoned(getattr(module, name), when))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "detr.images.decoding":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = _Wrap(spec.loader)
        return spec


def _poisoned(function, when):
    def wrapped(data, **options):
        order = _order(data)
        if order is not None and order["when"] == when and _is_due(order):
            _strike(order["harm"])
        return function(data, **options)

    return wrapped


def _order(data):
    if data[6 : 6 + len(MAGIC)] == MAGIC:  # a JPEG's comment
        return json.loads(data[6 + len(MAGIC) : 4 + int.from_bytes(data[4:6])])
    _, magic, order = bytes(data[-512:]).rpartition(b"free" + MAGIC)  # the last box of a HEIC
    return json.loads(order) if magic else None


def _is_due(order):
    if order["log"] is None:
        return True
    try:
        with Path(order["log"]).open() as log:
            before = sum(line.startswith(order["harm"] + " ") for line in log)
    except FileNotFoundError:
        before = 0
    if order["times"] and before >= order["times"]:
        return False
    kind = "child" if "torch" in sys.modules and "ray" not in sys.modules else "actor"
    with Path(order["log"]).open("a") as log:
        log.write(f"{order['harm']} {os.getpid()} {kind}\n")
    return True


def _strike(harm):
    if harm == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif harm == "abort":
        os.abort()
    elif harm == "exit":
        os._exit(3)
    elif harm == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif harm == "loop":
        while True:
            pass
    elif harm == "sleep":
        while True:
            time.sleep(3600)
    elif harm == "grip":
        while True:
            ctypes.PyDLL(None).sleep(3600)
    elif harm == "allocate":
        # touched, so that it is really taken; never as much as would starve the tests' own machine
        taken = []
        while len(taken) < 192:
            taken.append(bytearray(os.urandom(1) * (64 * 1024**2)))
        raise MemoryError("twelve gigabytes, and still no limit")
    elif harm == "raise":
        raise ZeroDivisionError("poison")


sys.meta_path.insert(0, _Finder())
