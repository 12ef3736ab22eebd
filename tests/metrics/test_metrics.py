"""Metrics, dashboard and alert rules: every name that they use is scraped from a live run by a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from detr.scenes.files import write_scenes
from pipelines.labelling.progress import Progress
from pipelines.run_metrics import COUNTERS, GAUGES, RunMetrics
from pipelines.table.schema import ERROR_KINDS, TRANSIENT_KINDS
from pipelines.training.run_status import TrainProgress

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES_TEST = RULES.with_name("alerts_test.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "ray-detr.json"
EXPORTED = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}
LABELS = {label for _, labels in [*COUNTERS.values(), *GAUGES.values()] for label in labels}


def rules() -> list[str]:
    return [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[str]:
    return [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", [*rules(), *panels()])
def test_rules_and_panels_use_names_that_are_exported(expression: str) -> None:
    names = set(re.findall(r"ray_\w+", expression))

    assert names
    assert names <= EXPORTED
    grouped = {label for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in labels.split(", ")}
    assert grouped <= LABELS | {"instance", "WorkerId"}  # Prometheus' and Ray's own


def test_the_errors_that_are_left_out_of_an_alert_are_the_transient_ones() -> None:
    kinds = [set(found.split("|")) for rule in rules() for found in re.findall(r'kind[!=]~"([^"]*)"', rule)]

    assert kinds == [TRANSIENT_KINDS] * 2


def test_every_metric_has_a_panel() -> None:
    assert {name for expression in panels() for name in re.findall(r"ray_\w+", expression)} == EXPORTED


def test_labels_have_few_values() -> None:
    assert {"kind", "command", "part"} == LABELS


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None or shutil.which("prometheus") is None:
        pytest.skip("no Prometheus: run `make test-metrics`, or install Debian's package prometheus")
    return found


def test_the_rules_are_valid_and_fire_when_they_should(promtool: str) -> None:
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(RULES_TEST)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(folder: Path, exporter: str) -> Iterator[Callable[..., Any]]:
    """A Prometheus that scrapes an exporter every second, with the rules at a pace for tests; gives its API."""
    quick = re.sub(r"\bfor: \w+", "for: 0s", RULES.read_text())
    quick = re.sub(r"\boffset \d+m", "offset 20s", quick)
    (folder / "rules.yml").write_text(re.sub(r"\[\d+m\]", "[20s]", quick))
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{folder / 'rules.yml'}]\n"
        f"scrape_configs: [{{job_name: ray, static_configs: [{{targets: ['{exporter}']}}]}}]\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                str(shutil.which("prometheus")),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )

        def ask(path: str, query: str = "") -> Any:
            url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode({'query': query})}"
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return json.load(answer)["data"]
            except OSError:
                return {"result": [], "alerts": []}

        try:
            yield ask
        finally:
            process.terminate()
            process.wait(30)


def wait_for(what: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_every_name_is_scraped_from_a_live_run_and_three_alerts_fire(
    local_ray: str, promtool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from jobs.label import main

    write_scenes(tmp_path / "lake", 12, 4, sizes={(96, 128): 1})
    for number in range(3):
        (tmp_path / "lake" / f"z{number}.jpg").write_bytes(b"<html>")
    (node,) = (node for node in ray.nodes() if node["Alive"])
    exporter = f"127.0.0.1:{node['MetricsExportPort']}"
    with prometheus(tmp_path, exporter) as ask:
        line = f"--images {tmp_path / 'lake'} --table {tmp_path / 'table'} --model scenes --shard-images 1 --actors 1"
        with (tmp_path / "stderr").open("w") as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            main([*line.split(), "--device", "cpu", "--metrics", "--max-error-rate", "1"])
        # what the driver of a training run passes on; the figures are those of a line of its log
        figures = {"loss": 4.5, "loss_ce": 1.5, "loss_bbox": 1.0, "loss_giou": 2.0}
        figures |= {"data_wait_share": 0.9, "gradient_norm": 3.25}
        labelling, training = RunMetrics("label"), RunMetrics("train")
        training.training(TrainProgress("train", step=120, images_per_second=33.0, figures=figures, AP=0.4206))

        missing = set(EXPORTED)

        def is_complete() -> bool:
            missing.difference_update({name for name in missing if ask("query", name)["result"]})
            return not missing

        assert wait_for(is_complete), missing
        done = ask("query", "sum(ray_detr_images_total)")["result"]
        assert [sample["value"][1] for sample in done] == ["15"]
        errors = ask("query", "sum(ray_detr_errors_total) by (kind)")["result"]
        assert {one["metric"]["kind"]: one["value"][1] for one in errors} == {
            kind: "3" if kind == "not_an_image" else "0" for kind in ERROR_KINDS
        }
        # two runs that are alive and make no progress; each has reported for the last time
        labelling.labelling(Progress("waiting for nodes"))
        fired: set[str] = set()

        def have_fired() -> bool:
            fired.update(one["labels"]["alertname"] for one in ask("alerts")["alerts"] if one["state"] == "firing")
            return {"DetrLabellingStalled", "DetrTrainingStalled", "DetrTrainingWaitsForImages"} <= fired

        with labelling.exporting(), training.exporting():
            assert wait_for(have_fired), fired
            # Ray removes a gauge that is not set again after two of its report intervals
            time.sleep(2 * 20)
            # not at the first query: on a busy machine a scrape may take longer than the second that it has here
            assert wait_for(lambda: len(ask("query", "ray_detr_running == 1")["result"]) == 2)


def test_nothing_is_made_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.label import _on_shard
    from pipelines.labelling.outcome import ShardReport

    monkeypatch.setitem(sys.modules, "ray.util.metrics", None)  # its import would fail

    _on_shard(None, log_json=False)("run", ShardReport(0, 1, 2, {}, 1.0, 1.0, 1.0, 1.0))
