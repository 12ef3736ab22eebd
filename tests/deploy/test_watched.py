"""What is shipped for unattended runs exports metrics, and no secret is in a command or a manifest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HEADS = ["cluster.yaml", "deploy/clusters/gcp.yaml", "deploy/clusters/on-premises.yaml"]


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    return loaded


def submitting() -> dict[str, Any]:
    """The container of the nightly CronJob."""
    container: dict[str, Any]
    (container,) = manifest("nightly-label")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return container


def head(name: str) -> dict[str, Any]:
    """The container in which the drivers of jobs run."""
    spec = manifest(name)["spec"]
    container: dict[str, Any]
    (container,) = spec.get("rayClusterSpec", spec)["headGroupSpec"]["template"]["spec"]["containers"]
    return container


def test_nightly_labelling_on_kubernetes_exports_metrics_and_logs_each_shard() -> None:
    args = submitting()["args"]

    assert {"--metrics", "--log-json"} <= set(args[args.index("--") :])


def test_training_on_kubernetes_exports_metrics() -> None:
    assert "--metrics" in manifest("train")["spec"]["entrypoint"].split()


@pytest.mark.parametrize("name", ["cluster", "train"])
def test_the_port_of_the_metrics_is_named(name: str) -> None:
    assert {"name": "metrics", "containerPort": 8080} in head(name)["ports"]


@pytest.mark.parametrize("example", ["airflow_dag.py", "dagster_definitions.py", "crontab"])
def test_the_examples_for_schedulers_export_metrics(example: str) -> None:
    text = (DEPLOY / "schedulers" / example).read_text()
    command = text[text.index("--model") :]

    assert re.search(r"--max-minutes\W+300\b.*?--metrics\b", command, re.DOTALL)


def test_the_nightly_set_exports_metrics() -> None:
    settings: dict[str, Any] = {}
    exec((DEPLOY / "nightly" / "settings.py").read_text(), settings)  # noqa: S102 - a file of ours

    assert "--metrics" in settings["LABEL_OPTIONS"]
    assert "--metrics" in settings["TRAIN_OPTIONS"]


@pytest.mark.parametrize(
    "container", [head("cluster"), head("train"), submitting()], ids=["cluster", "train", "submit"]
)
def test_notifications_have_an_optional_secret_where_jobs_run_and_where_they_are_followed(
    container: dict[str, Any],
) -> None:
    (variable,) = (one for one in container["env"] if one["name"] == "RAY_DETR_NOTIFY_URL")

    assert variable["valueFrom"] == {"secretKeyRef": {"name": "ray-detr-notify", "key": "url", "optional": True}}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_ray_up_reads_the_address_from_a_file(name: str) -> None:
    cluster = yaml.safe_load((ROOT / name).read_text())
    (start,) = (line for line in cluster["head_start_ray_commands"] if "ray start" in line)

    assert "RAY_DETR_NOTIFY_URL=$(cat ~/ray-detr-notify-url 2>/dev/null)" in start
    assert "NOTIFY" not in " ".join(cluster["worker_start_ray_commands"])
    assert "# /home/ubuntu/ray-detr-notify-url: ~/.ray/ray-detr-notify-url" in (ROOT / name).read_text()
