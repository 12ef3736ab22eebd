import json
from dataclasses import replace

import pytest

from pipelines.benchmarks.figures import Spread
from pipelines.benchmarks.records import Record
from pipelines.benchmarks.report import Report, number, ranged, to_json, to_markdown

MACHINE = {
    "cpu": "Test CPU",
    "cpu_flags": ["avx2"],
    "cores": 2,
    "memory_gib": 23.5,
    "gpu": None,
    "system": "Linux",
    "python": "3.11.7",
    "packages": {"torch": "2.14.1"},
    "load_average": 0.1,
}
OURS = Record(
    "model",
    "forward, 800x1066",
    "ours",
    "",
    "",
    3,
    cpu_s_per_image=Spread(0.8, 0.75, 0.9),
    wall_s_per_image=Spread(0.5, 0.4, 1.0),
    ratio=Spread(1.0, 1.0, 1.0),
    baseline="ours",
    agreement={"matched": 1.0, "max px": 0.0123, "AP": None},
)
PEER = replace(
    OURS,
    variant="peer",
    version="5.1",
    cpu_s_per_image=Spread(1.6, 1.5, 1.7),
    ratio=Spread(2.0, 1.9, 2.1),
    note="tuned",
)


def report(*records: Record, **more: object) -> Report:
    return Report("model", "python -m jobs.bench model", "2026-11-28", MACHINE, records, **more)  # type: ignore[arg-type]


def rows(text: str) -> list[dict[str, str]]:
    """The cells of the first table by its column heads."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]


def test_a_speed_stands_beside_its_ratio_and_its_agreement() -> None:
    ours, peer = rows(to_markdown(report(OURS, PEER)))

    assert ours["CPU s/image"] == "0.800 [0.750, 0.900]"
    assert ours["images/s"] == "2.00 [1.00, 2.50]"
    assert ours["agreement"] == "matched 1.00, max px 0.0123, AP not measured"
    assert peer["variant"] == "peer 5.1"
    assert peer["ratio"] == "2.00 [1.90, 2.10]"
    assert peer["notes"] == "tuned"


def test_a_speed_without_its_agreement_is_not_printed() -> None:
    text = to_markdown(report(replace(PEER, agreement=None)))

    assert "1.60" not in text
    assert "2.00" not in text
    assert "not printed: its agreement with the reference is not known" in text


def test_a_ratio_that_spans_one_is_marked() -> None:
    (row,) = rows(to_markdown(report(replace(PEER, ratio=Spread(1.1, 0.9, 1.2)))))

    assert row["ratio"] == "~ 1.10 [0.90, 1.20]"


def test_hardware_versions_command_and_missing_peers_are_said() -> None:
    text = to_markdown(report(OURS, missing=("daft: daft not installed (pip install .[bench])",)))

    assert "- command: `python -m jobs.bench model`" in text
    assert "- processor: Test CPU, 2 cores, avx2; 23.5 GiB of memory" in text
    assert "- GPU: none" in text
    assert "Python 3.11.7, torch 2.14.1" in text
    assert "- not measured: daft: daft not installed (pip install .[bench])" in text


def test_a_variant_that_failed_is_a_row_with_its_reason_and_a_failure_of_the_report() -> None:
    failed = Record("model", "forward, 800x1066", "peer", "5.1", "", 0, errors=("exit code 1: Traceback\nOSError: no",))
    made = report(OURS, failed)

    assert rows(to_markdown(made))[1]["notes"] == "failed 1 times: OSError: no"
    assert made.failures == ["forward, 800x1066, peer: OSError: no"]


def test_the_price_of_a_million_images_is_shown_where_a_price_was_given() -> None:
    assert "USD per million" not in to_markdown(report(OURS))
    assert rows(to_markdown(report(replace(OURS, usd_per_million=0.834))))[0]["USD per million"] == "0.83"


def test_contention_and_load_are_notes() -> None:
    (row,) = rows(to_markdown(report(replace(OURS, contended=True, load_average=(0.5, 12.0)))))

    assert row["notes"] == "contended; load 0.5-12.0"


def test_the_gpu_column_tells_clock_busy_share_memory_and_throttling() -> None:
    gpu = {"sm_clock_mhz": {"median": 1980.0}, "busy_share": 0.97, "peak_mb": 5000.0, "throttle_reasons": ["0x4"]}
    (row,) = rows(to_markdown(report(replace(OURS, gpu=gpu, roofline_share=0.54))))

    assert row["GPU"] == "1980 MHz, busy 0.97, 5,000 MB, throttled 0x4"
    assert row["of the roofline"] == "0.54"


def test_the_json_has_every_figure_and_the_version_of_its_layout() -> None:
    document = json.loads(to_json(report(OURS, PEER)))

    assert document["schema"] == 2
    assert document["machine"]["cpu"] == "Test CPU"
    assert document["records"][1]["ratio"] == {"median": 2.0, "least": 1.9, "most": 2.1}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.001234, "0.00123"), (1.0, "1.00"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_single_value_has_no_range() -> None:
    assert ranged(Spread(2.0, 2.0, 2.0)) == "2.00"
    assert ranged(None) is None
