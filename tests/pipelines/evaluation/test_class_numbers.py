"""Classes of a table and of annotations: which numbers mean the same, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate import main
from pipelines.errors import UsageError
from pipelines.evaluation.evaluate import Evaluation, evaluate_table
from tests.pipelines.evaluation.test_table_results import (
    CAT,
    CAT_BOX,
    DOG,
    DOG_BOX,
    labelled,
    publish,
    write_annotations,
)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A cat, number 3, in a.jpg, and a dog, number 7, in b.jpg."""
    publish(tmp_path / "table", [labelled("a.jpg", CAT), labelled("b.jpg", DOG)])
    return str(tmp_path / "table")


def numbered(tmp_path: Path, categories: dict[int, str], *, cat: int, dog: int) -> str:
    """Annotations of the same two boxes with other class numbers or names."""
    path = write_annotations(tmp_path / "instances.json", {"a.jpg": (cat, CAT_BOX), "b.jpg": (dog, DOG_BOX)})
    truth = json.loads(Path(path).read_text())
    truth["categories"] = [{"id": number, "name": name} for number, name in categories.items()]
    Path(path).write_text(json.dumps(truth))
    return path


def evaluated(table: str, annotations: str, **options: Any) -> tuple[float, Evaluation]:
    evaluation = evaluate_table(table, annotations, **options)
    return round(evaluation.average_precision.AP, 9), evaluation


def test_a_class_with_another_number_in_the_annotations_is_refused_or_matched_by_name(
    table: str, tmp_path: Path
) -> None:
    annotations = numbered(tmp_path, {0: "cat", 3: "dog", 7: "bird"}, cat=0, dog=3)

    with pytest.raises(
        UsageError,
        match=r"the class 'cat' has the number 3 in the table and 0 in the annotations \(and 1 more\), so .*"
        r"--match-classes name, or --match-classes number",
    ):
        evaluated(table, annotations)
    assert evaluated(table, annotations, match_classes="name")[0] == 1.0
    assert evaluated(table, annotations, match_classes="number")[0] == 0.0


def test_names_are_the_same_in_another_spelling(table: str, tmp_path: Path) -> None:
    annotations = numbered(tmp_path, {3: "Cat", 7: " dog"}, cat=3, dog=7)

    ap, evaluation = evaluated(table, annotations)

    assert (ap, evaluation.renamed_classes) == (1.0, ())


def test_a_number_with_another_name_is_compared_and_reported(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = numbered(tmp_path, {3: "katze", 7: "dog"}, cat=3, dog=7)

    main(["--table", table, "--annotations", annotations])

    printed = capsys.readouterr().out
    assert printed.startswith("AP 1.000")
    assert (
        "1 class has another name in the annotations; matched by number (3 is 'cat' in the table and 'katze' in the "
        "annotations)\n"
    ) in printed


def test_by_name_a_class_that_the_annotations_do_not_have_is_left_out(table: str, tmp_path: Path) -> None:
    annotations = numbered(tmp_path, {3: "dog"}, cat=3, dog=3)  # number 3 is a cat in the table

    ap, evaluation = evaluated(table, annotations, match_classes="name")

    assert (evaluation.undeclared, evaluation.renamed_classes) == (1, ())
    assert ap == pytest.approx(51 / 101)  # one dog of two is found


def test_by_name_two_classes_of_one_name_are_refused(table: str, tmp_path: Path) -> None:
    annotations = numbered(tmp_path, {3: "cat", 4: "Cat", 7: "dog"}, cat=3, dog=7)

    assert evaluated(table, annotations)[0] == 1.0
    with pytest.raises(UsageError, match=r"2 classes with the name 'cat', with the numbers 3, 4: classes cannot be"):
        evaluated(table, annotations, match_classes="name")


def test_a_results_json_has_no_names_to_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--results", "r.json", "--annotations", "a.json", "--match-classes", "name"])
    assert "--match-classes needs --table or --model" in capsys.readouterr().err
