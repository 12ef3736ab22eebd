"""Plot precision over recall. The only module that imports matplotlib, which is an extra."""

from __future__ import annotations

from pathlib import Path

from detr.evaluation.average_precision import RECALLS, AveragePrecision
from pipelines.errors import RayDetrError, UsageError

DOTS_PER_INCH = 150

# colours that differ with colour blindness and in grey (Okabe and Ito)
_LINES = (("AP50", "IoU .50", "#0072B2"), ("AP75", "IoU .75", "#D55E00"), ("AP", "IoU .50:.95", "#000000"))


def check_can_plot(file: Path) -> None:
    """Raise if `plot_precision_recall` would fail. Call this before evaluating.

    Raises:
        UsageError: matplotlib is not installed.
        ValueError: it does not support this file name extension.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise UsageError(
            "a plot needs matplotlib, which is not installed: pip install 'ray-detr[plot]', or omit --plot."
        ) from error
    known = FigureCanvasAgg.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"plot: {file.name!r} does not end in one of .{', .'.join(sorted(known))}")


def plot_precision_recall(measured: AveragePrecision, file: Path, *, title: str) -> None:
    """Draw the mean curves over all classes at IoU .50, .75 and .50:.95, and write them in the format of the ending.

    Raises:
        RayDetrError: the file cannot be written.
        UsageError: there are no annotations to draw a curve for.
    """
    from matplotlib.figure import Figure  # does not use pyplot: no window, no global state

    if measured.AP < 0:
        raise UsageError("there are no annotations, so there is no curve to draw.")
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, words, colour in _LINES:
        curve, mean = getattr(measured.curves, name), getattr(measured, name)
        axes.plot(RECALLS, curve, color=colour, label=f"{words}: {name} {mean:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision, mean over classes", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=DOTS_PER_INCH)
    except OSError as error:
        raise RayDetrError(f"cannot write the plot to {file}: {error.strerror}.") from error
