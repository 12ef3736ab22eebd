"""The model card of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipelines.training.checkpoint_index import SavedCheckpoint

FIGURES: Final = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
"""The twelve COCO figures that a card shows, by pycocotools' names."""


def checkpoint_card(
    run: str, configuration: Mapping[str, Any], saved: SavedCheckpoint, class_names: Sequence[str]
) -> str:
    """Return the Markdown text of a card.

    Args:
        run: The run's name.
        configuration: What the run was begun with.
        saved: The checkpoint, with its metrics where it was evaluated.
        class_names: In the order of the model's classes.
    """
    where = f"{saved.step:,} steps, {saved.epoch} whole epochs" + (
        f" and {saved.step_in_epoch:,} steps" if saved.step_in_epoch else ""
    )
    return "\n".join(
        [
            f"# {run}, step {saved.step:,}",
            "",
            f"A DETR after {where}, written by ray-detr. `ray-detr label --model` and `transformers` load this "
            "directory directly.",
            "",
            *_metrics(saved.metrics),
            f"Classes, {len(class_names):,}: {', '.join(class_names)}.",
            "",
            "| trained with | |",
            "| --- | --- |",
            *(f"| {name} | {_cell(value)} |" for name, value in configuration.items()),
            "",
        ]
    )


def _metrics(metrics: Mapping[str, Any] | None) -> list[str]:
    if metrics is None:
        return []
    # -1 is pycocotools' word for nothing to measure
    known = [name for name in FIGURES if isinstance(metrics.get(name), int | float) and metrics[name] >= 0]
    if not known:
        return []
    return [
        f"| {' | '.join(known)} |",
        f"|{' --- |' * len(known)}",
        f"| {' | '.join(f'{metrics[name]:.3f}' for name in known)} |",
        "",
    ]


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
