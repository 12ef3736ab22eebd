"""Cheap checks at the start of every job."""

from __future__ import annotations

import logging

import ray

from pipelines.cluster import is_given
from pipelines.doctor.cluster_checks import ask_nodes
from pipelines.doctor.machine import check_machine, check_versions, machine_facts
from pipelines.errors import RayDetrError

START_SECONDS = 30.0  # seconds to wait for the answers of nodes; slower nodes are reported

_logger = logging.getLogger(__name__)


def check_at_start() -> None:
    """Warn of trouble on this machine, and compare the versions of all nodes of a cluster of several.

    Takes no time on a cluster of one node, otherwise the start of a worker on each node, concurrently.

    Raises:
        RayDetrError: a node has another version of ray-detr, Python or Ray, or lacks one of them.
    """
    own = machine_facts()
    findings = check_machine(own)
    if is_given() and sum(node["Alive"] for node in ray.nodes()) > 1:  # type: ignore[no-untyped-call]
        nodes = ask_nodes(START_SECONDS)
        findings += [*nodes.findings, check_versions(own, nodes.facts)]
    for finding in findings:
        if finding.check in ("versions", "nodes") and finding.level == "fail":
            raise RayDetrError(f"{finding.text}. {finding.remedy}".removesuffix(". "))
        if finding.level != "ok":
            _logger.warning("%s: %s. %s", finding.check, finding.text, finding.remedy)
