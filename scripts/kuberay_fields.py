"""Write the table of KubeRay's fields that `tests/deploy` checks our manifests against.

    git clone --branch v1.7.0 https://github.com/ray-project/kuberay
    python scripts/kuberay_fields.py v1.7.0 kuberay/ray-operator/config/crd/bases/ray.io_ray{cluster,job}s.yaml

Each field is a path with its type, whether it is required where its parent is given, and its allowed values. Pod
templates and other objects of Kubernetes itself are one field each: the tests check them with Kubernetes' own schemas.
Parts of KubeRay that our manifests do not use are left out: a manifest that begins to use them needs a new table.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).parent.parent / "tests" / "deploy" / "kuberay_fields.json"
OF_KUBERNETES = {"template", "submitterPodTemplate", "headService", "env", "envFrom", "resources", "volumeMounts"}
OF_KUBERNETES |= {"securityContext"}
UNUSED = {"networkPolicy", "gcsFaultToleranceOptions", "historyServerOptions", "ingressOptions", "deletionStrategy"}
UNUSED |= {"scaleStrategy", "upgradeStrategy", "tlsOptions", "status"}


def fields(schema: dict[str, Any], path: str, *, is_required: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and facts of a schema and of all that is below it."""
    kind = schema.get("type", "integer or string" if schema.get("x-kubernetes-int-or-string") else "object")
    facts: dict[str, Any] = {"type": kind}
    if is_required:
        facts["required"] = True
    if "enum" in schema:
        facts["values"] = schema["enum"]
    name = path.rpartition(".")[2].removesuffix("[]")
    if name in OF_KUBERNETES or (kind == "object" and "properties" not in schema):
        facts["open"] = True
        yield path, facts
        return
    yield path, facts
    for key, below in sorted(schema.get("properties", {}).items()):
        if key not in UNUSED:
            yield from fields(below, f"{path}.{key}", is_required=key in schema.get("required", []))
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]", is_required=False)


def main() -> None:
    """Read the definitions that the command line names, and write the table."""
    version, *files = sys.argv[1:]
    kinds = {}
    for file in files:
        definition = yaml.safe_load(Path(file).read_text())["spec"]
        (schema,) = (one["schema"]["openAPIV3Schema"] for one in definition["versions"] if one["name"] == "v1")
        kinds[definition["names"]["kind"]] = dict(fields(schema["properties"]["spec"], "spec", is_required=True))
    lines = []
    for kind, found in kinds.items():
        rows = ",\n".join(f"   {json.dumps(path)}: {json.dumps(facts)}" for path, facts in found.items())
        lines.append(f"  {json.dumps(kind)}: {{\n{rows}\n  }}")
    TABLE.write_text(f'{{"version": {json.dumps(version)}, "kinds": {{\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
