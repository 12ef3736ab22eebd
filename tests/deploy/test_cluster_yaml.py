"""`cluster.yaml` against Ray's own validator, and what that leaves unchecked against the model of EC2's API."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
# what Ray 2.60's AWS provider reads; its schema lets everything through
PROVIDER = {"type", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes", "security_group"}
RUN_INSTANCES = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def findings(cluster: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that is wrong with a cluster's configuration."""
    found = []
    try:
        validate_config(prepare_config(copy.deepcopy(cluster)))
    except Exception as error:  # noqa: BLE001 - jsonschema's and Ray's own errors share no other class
        found.append(str(error).splitlines()[0])
    found += [f"provider.{key} is not read by Ray" for key in sorted(set(cluster["provider"]) - PROVIDER)]
    for name, node in cluster["available_node_types"].items():
        request = {**node["node_config"], "MinCount": 1, "MaxCount": 1}  # Ray adds these two
        report = ParamValidator().validate(request, RUN_INSTANCES)
        found += [f"{name}: {line}" for line in report.generate_report().splitlines()]
        found += _not_allowed(request, RUN_INSTANCES, name)
    return found


def _not_allowed(value: Any, shape: Any, path: str) -> list[str]:
    """Return a sentence for each value that is not one of those that EC2 allows, which botocore does not check."""
    if shape.type_name == "structure":
        return [
            line
            for key, below in value.items()
            if key in shape.members
            for line in _not_allowed(below, shape.members[key], f"{path}.{key}")
        ]
    if shape.type_name == "list":
        return [line for below in value for line in _not_allowed(below, shape.member, f"{path}[]")]
    allowed = getattr(shape, "enum", None)
    return [f"{path} is {value!r}, which EC2 does not know"] if allowed and value not in allowed else []


def test_the_cluster_is_valid() -> None:
    assert findings(CLUSTER) == []


def test_the_head_has_rights_of_its_own_which_the_documents_name() -> None:
    # with a profile on the head, Ray adds no rights; the autoscaler there needs those of EC2, workers do not
    head, worker = (
        CLUSTER["available_node_types"][name]["node_config"]["IamInstanceProfile"]["Name"] for name in ("head", "gpu")
    )
    of_file = set(re.findall(r"(?:ec2|iam):\w+", (ROOT / "cluster.yaml").read_text()))
    of_document = set(re.findall(r"(?:ec2|iam):\w+", (ROOT / "docs/security.md").read_text()))
    actions = {action.removeprefix("ec2:") for action in of_file if action.startswith("ec2:")}

    assert head != worker
    assert of_file == of_document
    assert "iam:PassRole" in of_file
    assert {"RunInstances", "CreateTags", "TerminateInstances", "DescribeInstances"} <= actions
    assert actions <= set(botocore.session.get_session().get_service_model("ec2").operation_names)


GPU = ("available_node_types", "gpu")


@pytest.mark.parametrize(
    ("path", "change", "finding"),
    [
        ((), lambda cluster: cluster.update(max_worker=8), "'max_worker' was unexpected"),
        (("auth",), lambda auth: auth.update(ssh_usr="ubuntu"), "'ssh_usr' was unexpected"),
        (GPU, lambda gpu: gpu.update(min_worker=1), "'min_worker' was unexpected"),
        (GPU, lambda gpu: gpu.update(min_workers=9), "min_workers"),
        (
            ("provider",),
            lambda provider: provider.update(cache_stoped_nodes=False),
            "provider.cache_stoped_nodes is not",
        ),
        (
            (*GPU, "node_config"),
            lambda node: node.update(Instancetype="g5.2xlarge"),
            'Unknown parameter in input: "Instancetype"',
        ),
        ((*GPU, "node_config"), lambda node: node.update(InstanceType="g5.2xl"), "'g5.2xl', which EC2 does not know"),
        ((*GPU, "node_config"), lambda node: node.update(ImageId=7), "Invalid type for parameter ImageId"),
        (
            (*GPU, "node_config", "InstanceMarketOptions"),
            lambda options: options.update(Markettype="spot"),
            'Unknown parameter in InstanceMarketOptions: "Markettype"',
        ),
        (
            (*GPU, "node_config", "IamInstanceProfile"),
            lambda profile: profile.update(Nmae="x"),
            'Unknown parameter in IamInstanceProfile: "Nmae"',
        ),
    ],
)
def test_a_planted_error_is_found(path: tuple[str, ...], change: Callable[[Any], None], finding: str) -> None:
    cluster = copy.deepcopy(CLUSTER)
    place = cluster
    for part in path:
        place = place[part]
    change(place)
    found = findings(cluster)

    assert len(found) == 1
    assert finding in found[0]
