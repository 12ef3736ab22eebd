"""DETR as a plain PyTorch library: images in, detections out."""

import typing

if typing.TYPE_CHECKING:
    from detr.checkpoints.checkpoint import load, save
    from detr.config import DetrConfig
    from detr.detector import Detector
    from detr.model import Detr
    from detr.postprocess import Detections

__all__ = ["Detections", "Detector", "Detr", "DetrConfig", "load", "save"]

_MODULES = {
    "Detections": "postprocess",
    "Detector": "detector",
    "Detr": "model",
    "DetrConfig": "config",
    "load": "checkpoints.checkpoint",
    "save": "checkpoints.checkpoint",
}


def __getattr__(name: str) -> typing.Any:
    """Import a public name on first use: importing torch takes seconds, and much of this package does not need it."""
    if name in _MODULES:
        import importlib

        value = getattr(importlib.import_module(f"detr.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
