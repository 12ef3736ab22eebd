"""Format the figures of an evaluation as text, with notes that are needed to interpret them."""

from typing import TYPE_CHECKING

from pipelines.evaluation.explanations import counted, explanations, shown_figure

if TYPE_CHECKING:
    from pipelines.evaluation.evaluate import Evaluation


def report(evaluation: "Evaluation") -> str:
    """Return the figures and the notes as text."""
    precision = evaluation.average_precision
    numbers = [f"{name} {shown_figure(value)}" for name, value in precision.numbers().items()]
    found = counted(evaluation.detections, "detection", "detections")
    if evaluation.threshold is None:
        rows = f"{counted(evaluation.evaluated, 'has', 'have')} results: {found}"
    else:
        whose = " and ".join(evaluation.models) or "no model"
        rows = f"{counted(evaluation.evaluated, 'is', 'are')} labelled, with {found} of {whose}"
    lines = [
        "  ".join(numbers[:6]),
        "  ".join(numbers[6:]),
        f"class-agnostic AP {shown_figure(precision.class_agnostic)}",
        f"images: {evaluation.images:,}, of which {rows}",
        *explanations(evaluation),
    ]
    return "\n".join(lines)
