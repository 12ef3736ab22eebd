"""Checks of the connected Ray cluster: versions and machines of all nodes, room for the actors, token, object store."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.actor_resources import ActorShare, Pool, choose_pool
from pipelines.cluster import node_resources, refuse_local
from pipelines.doctor.findings import Finding
from pipelines.doctor.machine import MachineFacts, check_machine, check_versions, machine_facts
from pipelines.errors import RayDetrError
from pipelines.remote_errors import remote_sentence
from pipelines.store.uris import LOCAL_ROOT, split_uri

FACTS_SECONDS = 90.0  # for a worker to start on each node
LEAST_OBJECT_STORE = 75 * 1024**2  # Ray's own smallest size
FEW_OBJECT_STORE = 150 * 1024**2
NODE_SKEW_SECONDS = 30.0  # between nodes: leases compare their clocks
_NODE_LOST = (TaskUnschedulableError, NodeDiedError, WorkerCrashedError, OutOfMemoryError, LocalRayletDiedError)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The answers of a cluster's nodes: facts by address, and a finding for each node without facts."""

    facts: dict[str, MachineFacts]
    findings: list[Finding]


def ask_nodes(seconds: float = FACTS_SECONDS) -> Nodes:
    """Ask all live nodes of the connected cluster for their facts, and wait for the answers up to a time limit."""
    remote = ray.remote(num_cpus=0, max_retries=0)(machine_facts)
    pending = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
            pending[name] = remote.options(scheduling_strategy=there).remote()
    ray.wait(list(pending.values()), num_returns=len(pending), timeout=seconds)
    facts, findings = dict[str, MachineFacts](), list[Finding]()
    for name, answer in pending.items():
        try:
            facts[name] = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            text = f"node {name} started no worker within {seconds:g} s"
            findings.append(Finding("nodes", "warn", text, "Look at its Ray logs."))
        except _NODE_LOST as error:  # such as a spot instance that has ended: the cluster continues without it
            findings.append(Finding("nodes", "warn", f"node {name} left the cluster: {remote_sentence(error)}"))
        except (RayError, ImportError) as error:
            findings.append(Finding("nodes", "fail", remote_sentence(error)))
    return Nodes(facts, findings)


def check_nodes(nodes: Nodes) -> list[Finding]:
    """Return findings about the versions, clocks and machines of all nodes."""
    own = machine_facts()
    findings = [*nodes.findings, check_versions(own, nodes.facts)]
    for name, facts in nodes.facts.items():
        skew = facts.time - own.time
        if abs(skew) > NODE_SKEW_SECONDS + FACTS_SECONDS:  # its answer may be that old
            findings.append(
                Finding("clocks of nodes", "warn", f"the clock of node {name} differs by {skew:.0f} s", "Use NTP.")
            )
        if facts.host != own.host:  # this machine is already checked
            findings += check_machine(facts, where=f"node {name}: ")
    return findings


def check_room(
    least: int | None, most: int | None, *, device: str, own: ActorShare, has_cluster: bool, node_minutes: float
) -> tuple[list[Finding], Pool | None]:
    """Return findings on whether the actors fit into the cluster and into its free part; and the actors.

    Args:
        least: as in `choose_pool`.
        most: as in `choose_pool`.
        device: as in `choose_pool`.
        own: as in `choose_pool`.
        has_cluster: whether an existing cluster is used, to which nodes that left may return.
        node_minutes: how long `label` waits for nodes of the cluster; above 0, too little room is a warning.
    """
    try:
        pool = choose_pool(node_resources(), least, most, device=device, own=own)
    except RayDetrError as too_small:
        if node_minutes:
            remedy = f"`ray-detr label --node-minutes {node_minutes:g}` waits for nodes; no actor was tried here."
            return [Finding("room for actors", "warn", str(too_small), remedy)], None
        remedy = "See --actors, --device and --node-minutes."
        return [Finding("room for actors", "fail", str(too_small), remedy, transient=has_cluster)], None
    needs = f"each needs {pool.cpus:g} CPU" + (f" and {pool.gpus:g} GPU" if pool.gpus else "")
    findings = [Finding("room for actors", "ok", f"{pool.least} to {pool.most} actors; {needs}")]
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
    if cpus < pool.least * pool.cpus or gpus < pool.least * pool.gpus:
        findings.append(
            Finding(
                "free resources",
                "fail",
                f"other jobs use all but {cpus:g} CPU and {gpus:g} GPU, and {pool.least} actors need "
                f"{pool.least * pool.cpus:g} CPU and {pool.least * pool.gpus:g} GPU: Ray would wait without an error",
                "Wait for those jobs, or end them: `ray status` and `ray job list` show them.",
                transient=True,
            )
        )
    else:
        findings.append(Finding("free resources", "ok", f"{cpus:g} CPU and {gpus:g} GPU are free"))
    return findings, pool


def check_local_folders(uris: Sequence[str], *, may_grow: bool) -> Iterator[Finding]:
    """Yield a finding on local folders that `label` refuses because each machine would use its own disk.

    Args:
        uris: paths and URIs that actors read or write, without those that all machines share.
        may_grow: whether `label` waits for further machines.
    """
    local = [uri for uri in uris if split_uri(uri)[0] == LOCAL_ROOT]
    if not local:
        return
    try:
        refuse_local(local, are_shared=False)
    except RayDetrError as error:
        yield Finding("local folders", "fail", str(error))
        return
    if may_grow:
        remedy = "Use an address of an object store, or --shared-folders if all machines have this folder."
        text = f"{local[0]} is a local folder: `ray-detr label` refuses it as soon as the cluster has another machine"
        yield Finding("local folders", "warn", text, remedy)
    else:
        yield Finding("local folders", "ok", "the cluster has one machine")


def check_object_store(nodes: Sequence[dict[str, float]] | None = None) -> Finding:
    """Return a finding on whether Ray's object store is large enough on every node."""
    least = min(node.get("object_store_memory", 0.0) for node in nodes or node_resources())
    text = f"{least / 1e6:.0f} MB on the node with the least"
    remedy = "Start Ray with --object-store-memory 200000000 or more."
    if least < LEAST_OBJECT_STORE:
        return Finding("object store", "fail", text, remedy)
    return (
        Finding("object store", "warn", text, remedy)
        if least < FEW_OBJECT_STORE
        else Finding("object store", "ok", text)
    )


def check_token(address: str | None) -> Finding | None:
    """Return a finding on whether the cluster requires a token, as far as the environment decides it; else None.

    Args:
        address: of the cluster, as in `RAY_ADDRESS`; None: Ray runs on this machine for this command only.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if address is None:
        return Finding("token", "ok", "Ray runs for this command only, on loopback")
    if mode == "token":
        return Finding("token", "ok", "RAY_AUTH_MODE=token")
    if mode is None and (Path.home() / ".ray" / "auth_token").exists():
        return Finding(
            "token",
            "warn",
            "RAY_AUTH_MODE is not set, and ~/.ray/auth_token is left over: `ray start --head` would ask for that "
            "token, and nodes that join would not send it",
            "Set RAY_AUTH_MODE=token (or disabled) on every node, in every driver and submitter.",
        )
    return None


def check_open_cluster(address: str, hosts: Collection[str]) -> Finding:
    """Return a finding on who can reach a connected cluster without a token; every client can run code on it.

    Args:
        address: of the cluster, as in `RAY_ADDRESS`. Ray replaces 127.0.0.1 in it by the outward address.
        hosts: the addresses on which its nodes listen.
    """
    if all(host in ("localhost", "::1") or host.startswith("127.") for host in hosts):
        return Finding(
            "token",
            "ok",
            "the cluster requires no token and listens on loopback; users of this machine can connect to it",
        )
    return Finding(
        "token",
        "warn",
        f"the cluster at {address} requires no token: anyone who can connect to it can run code on it",
        "Set RAY_AUTH_MODE=token everywhere (docs/security.md), or close its ports to others.",
    )
