"""The picture of the curves, drawn without a window."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from detr.evaluation.average_precision import average_precision
from pipelines.errors import RayDetrError
from pipelines.evaluation.precision_recall_plot import check_can_plot, plot_precision_recall

TRUTH = {
    "images": [{"id": 1}],
    "annotations": [{"image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]}],
    "categories": [{"id": 3, "name": "cat"}],
}
ROW = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 28.8], "score": 0.9}  # IoU 0.72: AP75 is 0


def test_a_png_with_three_curves_is_written(tmp_path: Path) -> None:
    file = tmp_path / "curves.png"
    check_can_plot(file)

    plot_precision_recall(average_precision(TRUTH, [ROW]), file, title="cats")

    picture = Image.open(file).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(1 << 20) or ()}
    assert picture.size == (900, 750)
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0, 0, 0)} <= colours


def test_the_curves_and_their_figures_are_in_the_drawing(tmp_path: Path) -> None:
    file = tmp_path / "curves.svg"
    plot_precision_recall(average_precision(TRUTH, [ROW]), file, title="cats")

    drawn = file.read_text()
    for text in ("IoU .50: AP50 1.000", "IoU .75: AP75 0.000", "IoU .50:.95: AP 0.500", "cats", "recall"):
        assert f"<!-- {text} -->" in drawn


def test_an_extension_that_is_not_a_pictures_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plot: 'curves\.txt' does not end in one of .*\.png"):
        check_can_plot(tmp_path / "curves.txt")


def test_without_matplotlib_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)

    with pytest.raises(RayDetrError, match=r"not installed: pip install 'ray-detr\[plot\]'"):
        check_can_plot(tmp_path / "curves.png")


def test_what_cannot_be_drawn_or_written_stops_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RayDetrError, match=r"cannot write the plot to .*folder\.png: Is a directory"):
        plot_precision_recall(average_precision(TRUTH, [ROW]), tmp_path / "folder.png", title="cats")
    nothing = average_precision({**TRUTH, "annotations": []}, [])
    with pytest.raises(RayDetrError, match="there is no curve to draw"):
        plot_precision_recall(nothing, tmp_path / "curves.png", title="cats")
