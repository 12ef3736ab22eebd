"""The manifests of `deploy/kubernetes` against the schemas of Kubernetes and KubeRay. No cluster is asked."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from jobs.parser import CommandParser
from tests.deploy.kuberay import findings, pod_templates

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
WORKER = ("spec", "workerGroupSpecs", 0)
NIGHTLY = ("spec", "jobTemplate", "spec", "template", "spec")


def test_the_manifests_are_those_that_the_documents_name() -> None:
    assert sorted(MANIFESTS) == ["cluster", "nightly-label", "train"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_known_fields_of_the_right_types(name: str) -> None:
    assert findings(MANIFESTS[name]) == []


def changed(name: str, path: tuple[str | int, ...], change: Callable[[Any], None]) -> dict[str, Any]:
    manifest = copy.deepcopy(MANIFESTS[name])
    place = manifest
    for part in path:
        place = place[part]
    change(place)
    return manifest


@pytest.mark.parametrize(
    ("name", "path", "change", "finding"),
    [
        (
            "cluster",
            ("spec",),
            lambda spec: spec.update(enableInTreeAutoscalling=True),
            "enableInTreeAutoscalling is not",
        ),
        ("cluster", ("spec", "authOptions"), lambda auth: auth.update(mode="tokens"), "'tokens', not one of"),
        ("cluster", WORKER, lambda group: group.update(maxReplicas="8"), "maxReplicas is '8', not of type integer"),
        ("cluster", WORKER, lambda group: group.pop("groupName"), "groupName is missing"),
        ("cluster", (*WORKER, "template", "spec"), lambda pod: pod.update(container=[]), "'container' was unexpected"),
        (
            "cluster",
            (*WORKER, "template", "spec", "containers", 0, "resources"),
            lambda resources: resources.update(limit={}),
            "'limit' was unexpected",
        ),
        ("nightly-label", ("spec",), lambda spec: spec.update(concurencyPolicy="Forbid"), "'concurencyPolicy'"),
        ("nightly-label", ("spec",), lambda spec: spec.pop("schedule"), "'schedule' is a required property"),
        ("nightly-label", (*NIGHTLY, "containers", 0), lambda one: one.update(args="submit"), "is not of type"),
        ("train", ("spec",), lambda spec: spec.update(backoffLimit=True), "backoffLimit is True, not of type integer"),
        ("train", ("spec", "rayClusterSpec"), lambda spec: spec.pop("headGroupSpec"), "headGroupSpec is missing"),
        ("train", (), lambda manifest: manifest.update(apiVersion="ray.io/v1alpha1"), "not ray.io/v1"),
    ],
)
def test_a_planted_error_is_found(
    name: str, path: tuple[str | int, ...], change: Callable[[Any], None], finding: str
) -> None:
    (found,) = findings(changed(name, path, change))

    assert finding in found


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_run_without_root_and_without_secrets_in_plain_text(name: str) -> None:
    templates = [template["spec"] for _, template in pod_templates(MANIFESTS[name]["spec"])]
    assert templates
    for pod in templates:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "limits" in container["resources"]
            for variable in container.get("env", []):
                is_secret = any(word in variable["name"] for word in ("TOKEN", "KEY_ID", "SECRET", "NOTIFY"))
                assert not (is_secret and "value" in variable)


def test_nightly_labelling_does_not_overlap() -> None:
    spec = MANIFESTS["nightly-label"]["spec"]

    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] > 0


def test_nightly_labelling_is_retried_where_a_retry_may_help() -> None:
    job = MANIFESTS["nightly-label"]["spec"]["jobTemplate"]["spec"]
    evicted, failed = job["podFailurePolicy"]["rules"]

    assert job["backoffLimit"] == 3
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a condition of a podFailurePolicy
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert failed["action"] == "FailJob"
    assert failed["onExitCodes"]["values"] == [2, 3, 4]
    assert failed["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]


def test_the_nightly_run_stops_itself_before_its_pod_is_stopped() -> None:
    job = MANIFESTS["nightly-label"]["spec"]["jobTemplate"]["spec"]
    submit, label = _submitted_commands()
    (minutes,) = [word.partition("=")[2] for word in label if word.startswith("--max-minutes=")]

    assert 60 * int(minutes) + 1800 <= job["activeDeadlineSeconds"]  # work in progress is still written
    assert "--ok=5" in submit


def _submitted_commands() -> tuple[list[str], list[str]]:
    (container,) = MANIFESTS["nightly-label"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    dashes = container["args"].index("--")
    return container["args"][:dashes], container["args"][dashes + 1 :]


def test_training_begins_with_the_least_workers_and_grows() -> None:
    words = MANIFESTS["train"]["spec"]["entrypoint"].split()
    least, most = (int(count) for count in words[words.index("--num-workers") + 1].split(":"))
    cluster = MANIFESTS["train"]["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]

    # KubeRay submits the job when all replicas run
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (least, least, most)
    assert most > least
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"


def test_training_outlives_the_loss_of_its_submitter() -> None:
    # KubeRay's own default, 2, follows the job again; 0 would end the training
    assert MANIFESTS["train"]["spec"].get("submitterConfig", {}).get("backoffLimit", 2) > 0


def test_a_training_worker_is_drained_within_its_grace_period() -> None:
    (group,) = MANIFESTS["train"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    values = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    seconds = float(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])

    assert 30 < seconds <= pod["terminationGracePeriodSeconds"] - 15


@pytest.mark.parametrize("name", ["cluster", "train"])
def test_the_object_store_fits_into_the_shared_memory(name: str) -> None:
    spec = MANIFESTS[name]["spec"]
    spec = spec.get("rayClusterSpec", spec)
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        (volume,) = group["template"]["spec"]["volumes"]
        gibibytes = volume["emptyDir"]["sizeLimit"].removesuffix("Gi")

        # Ray uses /tmp if it is larger
        assert int(group["rayStartParams"]["object-store-memory"]) < int(gibibytes) * 2**30


@pytest.mark.parametrize("name", ["cluster", "train"])
def test_the_ray_version_is_the_locked_one(name: str) -> None:
    spec = MANIFESTS[name]["spec"]

    assert spec.get("rayClusterSpec", spec)["rayVersion"] == ray.__version__


class _Parsed(Exception):
    """The command line is right; what follows would need a cluster."""


@pytest.mark.parametrize("name", ["nightly-label", "train"])
def test_the_commands_of_the_manifests_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "train":
        python, minus_m, module, *words = MANIFESTS[name]["spec"]["entrypoint"].split()
        assert (python, minus_m) == ("python", "-m")
        lines = {module.removeprefix("jobs."): words}
    else:
        (submit, *words), (label, *own) = _submitted_commands()
        lines = {submit: [*words, "--", label, *own], label: own}
    parse = CommandParser.parse_args

    def parsed(self: CommandParser, args: Any = None, namespace: Any = None) -> Any:
        parse(self, args, namespace)
        raise _Parsed

    monkeypatch.setattr(CommandParser, "parse_args", parsed)
    for command, words in lines.items():
        with pytest.raises(_Parsed):
            importlib.import_module(f"jobs.{command}").main(words)
