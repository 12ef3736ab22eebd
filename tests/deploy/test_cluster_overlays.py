"""The clusters on Google Cloud and on machines of one's own, against Ray's validator and against `cluster.yaml`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())
GCP = yaml.safe_load((ROOT / "deploy/clusters/gcp.yaml").read_text())
ON_PREMISES = yaml.safe_load((ROOT / "deploy/clusters/on-premises.yaml").read_text())
# what Ray 2.60's providers read; its schema lets everything through
PROVIDER = {
    "gcp": {"type", "project_id", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"},
    "local": {"type", "head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}
# the fields of an instance of Google's Compute API (v1, instances.insert) that are used
INSTANCE = {
    "machineType": str,
    "disks": {
        "boot": bool,
        "autoDelete": bool,
        "type": {"PERSISTENT", "SCRATCH"},
        "initializeParams": {"diskSizeGb": int, "sourceImage": str},
    },
    "serviceAccounts": {"email": str, "scopes": str},
    "scheduling": {
        "provisioningModel": {"SPOT", "STANDARD"},
        "instanceTerminationAction": {"DELETE", "STOP"},
        "onHostMaintenance": {"TERMINATE", "MIGRATE"},
    },
}


def findings(cluster: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that is wrong with a cluster's configuration."""
    found = []
    try:
        validate_config(prepare_config(copy.deepcopy(cluster)))
    except Exception as error:  # noqa: BLE001 - jsonschema's and Ray's own errors share no other class
        found.append(str(error).splitlines()[0])
    provider = cluster["provider"]
    found += [f"provider.{key} is not read by Ray" for key in sorted(set(provider) - PROVIDER[provider["type"]])]
    for name, node in cluster.get("available_node_types", {}).items():
        found += _unknown(node["node_config"], INSTANCE, name)
    return found


def _unknown(value: Any, fields: Any, path: str) -> list[str]:
    if isinstance(value, list):
        return [line for item in value for line in _unknown(item, fields, f"{path}[]")]
    if isinstance(fields, set):
        return [] if value in fields else [f"{path} is {value!r}, not one of {sorted(fields)}"]
    if isinstance(fields, type):
        return [] if isinstance(value, fields) else [f"{path} is {value!r}, not of type {fields.__name__}"]
    return [
        line
        for key, below in value.items()
        for line in (_unknown(below, fields[key], f"{path}.{key}") if key in fields else [f"{path}.{key} is unknown"])
    ]


@pytest.mark.parametrize("cluster", [GCP, ON_PREMISES], ids=["gcp", "on-premises"])
def test_the_cluster_is_valid(cluster: dict[str, Any]) -> None:
    assert findings(cluster) == []


def test_machines_that_label_have_credentials() -> None:
    # Ray 2.60 gives an account to the head only
    (account,) = GCP["available_node_types"]["gpu"]["node_config"]["serviceAccounts"]

    assert account["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]
    assert "IamInstanceProfile" in AWS["available_node_types"]["gpu"]["node_config"]


@pytest.mark.parametrize(
    ("cluster", "path", "change", "finding"),
    [
        (GCP, (), lambda cluster: cluster.update(max_worker=8), "'max_worker' was unexpected"),
        (GCP, ("provider",), lambda provider: provider.update(project="x"), "provider.project is not read by Ray"),
        (
            GCP,
            ("available_node_types", "gpu", "node_config"),
            lambda node: node.update(machine_type="g2-standard-8"),
            "gpu.machine_type is unknown",
        ),
        (
            GCP,
            ("available_node_types", "gpu", "node_config", "scheduling"),
            lambda scheduling: scheduling.update(provisioningModel="spot"),
            "gpu.scheduling.provisioningModel is 'spot', not one of",
        ),
        (
            ON_PREMISES,
            ("provider",),
            lambda provider: provider.update(workers_ips=["10.0.0.2"]),
            "provider.workers_ips is not read by Ray",
        ),
        (ON_PREMISES, ("provider",), lambda provider: provider.pop("head_ip"), "Please supply a `head_ip`"),
        (ON_PREMISES, ("auth",), lambda auth: auth.update(ssh_key="~/.ssh/id"), "'ssh_key' was unexpected"),
    ],
)
def test_a_planted_error_is_found(
    cluster: dict[str, Any], path: tuple[str, ...], change: Callable[[Any], None], finding: str
) -> None:
    cluster = copy.deepcopy(cluster)
    place = cluster
    for part in path:
        place = place[part]
    change(place)
    found = findings(cluster)

    assert len(found) == 1
    assert finding in found[0]


@pytest.mark.parametrize("cluster", [AWS, GCP, ON_PREMISES], ids=["aws", "gcp", "on-premises"])
def test_every_node_gets_the_locked_versions_and_one_revision(cluster: dict[str, Any]) -> None:
    lock = "/home/ubuntu/requirements.lock"
    installs = [line for line in cluster["setup_commands"] if "pip install" in line]

    assert (ROOT / cluster["file_mounts"][lock]).is_file()
    assert installs[0].endswith("--no-deps --requirement ~/requirements.lock")
    assert re.search(r"--no-deps 'ray-detr @ git\+https://\S+/ray-detr@\S+'$", installs[1])
    of_head = prepare_config(copy.deepcopy(cluster))["head_setup_commands"]  # with Ray's own where the file has none
    assert not [line for line in of_head if line.startswith("pip ")]


def test_the_head_on_google_cloud_has_the_client_of_rays_provider() -> None:
    provider = Path(ray.__file__).parent / "autoscaler" / "_private" / "gcp" / "node_provider.py"
    lock = (ROOT / "requirements.lock").read_text()

    assert "import googleapiclient" in provider.read_text()
    assert "google-api-python-client==" in lock + "\n".join(GCP["head_setup_commands"])


def test_nodes_are_set_up_and_started_as_those_of_cluster_yaml() -> None:
    for key in ("setup_commands", "head_start_ray_commands", "file_mounts"):
        assert GCP[key] == ON_PREMISES[key] == AWS[key]
    assert GCP["worker_start_ray_commands"] == AWS["worker_start_ray_commands"]
    # machines of one's own get no notice of their end
    assert ON_PREMISES["worker_start_ray_commands"] == AWS["worker_start_ray_commands"][:2]
