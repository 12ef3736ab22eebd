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
                is_secret = any(word in variable["name"] for word in ("TOKEN", "KEY_ID", "SECRET"))
                assert not (is_secret and "value" in variable)


def test_nightly_labelling_does_not_overlap_and_is_not_started_twice() -> None:
    spec = MANIFESTS["nightly-label"]["spec"]

    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert spec["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] > 0


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
        (container,) = MANIFESTS[name]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        submit, *words = container["args"]
        dashes = words.index("--")
        lines = {submit: words, words[dashes + 1]: words[dashes + 2 :]}
    parse = CommandParser.parse_args

    def parsed(self: CommandParser, args: Any = None, namespace: Any = None) -> Any:
        parse(self, args, namespace)
        raise _Parsed

    monkeypatch.setattr(CommandParser, "parse_args", parsed)
    for command, words in lines.items():
        with pytest.raises(_Parsed):
            importlib.import_module(f"jobs.{command}").main(words)
