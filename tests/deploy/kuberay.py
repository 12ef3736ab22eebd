"""What is wrong with a manifest: unknown fields, wrong types, missing fields, values that are not allowed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate

KUBERNETES = "1.34"
TABLE = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())["kinds"]
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "integer or string": (int, str),
}


def findings(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that is wrong with a manifest of KubeRay's or of Kubernetes'."""
    if manifest["kind"] not in TABLE:
        return list(_core(dict(manifest)))
    found = list(_outer(manifest))
    found += _ray(manifest["spec"], "spec", TABLE[manifest["kind"]])
    for name, template in pod_templates(manifest["spec"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template.get("spec")}
        found += [f"{name}: {line}" for line in _core(pod)]
    return found


def pod_templates(value: Any, path: str = "spec") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every pod template of a value, with its path."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key in ("template", "submitterPodTemplate"):
                yield f"{path}.{key}", below
            else:
                yield from pod_templates(below, f"{path}.{key}")
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from pod_templates(below, f"{path}[{number}]")


def _outer(manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion is {manifest.get('apiVersion')}, not ray.io/v1"
    if unknown := set(manifest) - {"apiVersion", "kind", "metadata", "spec"}:
        yield f"unknown fields {sorted(unknown)}"
    if not {"name", "generateName"} & set(manifest.get("metadata", {})):
        yield "metadata has no name"


def _core(manifest: dict[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(copy.deepcopy(manifest), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(str(part) for part in error.path)}: {error.message}"


def _ray(value: Any, path: str, table: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    facts = table.get(path)
    if facts is None:
        yield f"{path} is not a field of KubeRay that the table knows"
        return
    kinds = TYPES[facts["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        yield f"{path} is {value!r}, not of type {facts['type']}"
        return
    if value not in facts.get("values", [value]):
        yield f"{path} is {value!r}, not one of {facts['values']}"
    if facts.get("open"):
        return
    if isinstance(value, dict):
        required = (key for key, fact in table.items() if fact.get("required") and key.rpartition(".")[0] == path)
        yield from (f"{key} is missing" for key in required if key.rpartition(".")[2] not in value)
        for key, below in value.items():
            yield from _ray(below, f"{path}.{key}", table)
    elif isinstance(value, list):
        for below in value:
            yield from _ray(below, f"{path}[]", table)
