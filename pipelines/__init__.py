"""Data pipelines on Ray: label, shard, train, evaluate, export. The only package that uses Ray and object stores."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.labelling.config import LabelConfig
    from pipelines.labelling.label import LabelSummary, label
    from pipelines.labelling.progress import Progress

__all__ = ["LabelConfig", "LabelSummary", "Progress", "label"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: Ray and torch take seconds to import, and `pipelines.errors` needs neither."""
    if name in __all__:
        import importlib

        module = "progress" if name == "Progress" else "label"
        return getattr(importlib.import_module(f"pipelines.labelling.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
