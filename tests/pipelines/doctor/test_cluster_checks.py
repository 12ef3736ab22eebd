"""What the doctor says of a cluster and of a model there, without a cluster."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import AuthenticationError

from detr.checkpoints.references import EMBEDDED, locate
from jobs import doctor
from pipelines.actor_resources import ActorShare, Pool
from pipelines.doctor import cluster_checks, examine, model_check
from pipelines.doctor.cluster_checks import (
    check_local_folders,
    check_object_store,
    check_open_cluster,
    check_room,
    check_token,
)
from pipelines.doctor.findings import Finding
from pipelines.doctor.model_check import Failure, Forward, check_here, check_on_node, identify, try_forward
from pipelines.errors import RayDetrError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.label import own_disks
from pipelines.options import declared, groups
from pipelines.store import StoreOptions, TableOptions
from tests.stub_hub import Hub, use_endpoint

POOL = Pool(1, 1, 1.0, 0.0, 1)
FOUND = Forward(images=1, seconds=0.5, device="the CPU", gpu_bytes=None, notes=())


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


def room(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], **given: Any) -> tuple[dict[str, str], Any]:
    free = {key: sum(node.get(key, 0.0) for node in nodes) for key in ("CPU", "GPU")}
    monkeypatch.setattr(cluster_checks, "node_resources", lambda: nodes)
    monkeypatch.setattr("ray.available_resources", lambda: free)
    usual = {"device": "cuda", "own": ActorShare(), "has_cluster": True, "node_minutes": 0.0}
    findings, pool = check_room(1, 8, **{**usual, **given})
    return levels(findings), pool


def test_a_cluster_without_nodes_fails_unless_label_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    head = [{"CPU": 0.0}]

    assert room(monkeypatch, head) == ({"room for actors": "fail"}, None)
    assert room(monkeypatch, head, node_minutes=20.0) == ({"room for actors": "warn"}, None)


@pytest.mark.parametrize(("megabytes", "level"), [(70, "fail"), (100, "warn"), (200, "ok")])
def test_the_smallest_object_store_decides(megabytes: int, level: str) -> None:
    finding = check_object_store([{"object_store_memory": 4e9}, {"object_store_memory": megabytes * 1e6}])

    assert (finding.level, finding.text) == (level, f"{megabytes} MB on the node with the least")
    assert ("--object-store-memory 200000000" in finding.remedy) == (level != "ok")


def test_actors_that_share_a_gpu_or_take_cores_are_placed_as_label_places_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found, pool = room(monkeypatch, [{"CPU": 4.0, "GPU": 1.0}], own=ActorShare(cpus=2, gpus=0.5))

    assert found == {"room for actors": "ok", "free resources": "ok"}
    assert (pool.cpus, pool.gpus) == (2, 0.5)


@pytest.mark.parametrize(
    ("nodes", "free", "given", "check", "transient"),
    [
        ([{"CPU": 4.0}], {"CPU": 0.0}, {"device": "cpu"}, "free resources", True),
        ([{"CPU": 0.0}], {}, {"device": "cpu"}, "room for actors", True),  # its nodes have left
        ([{"CPU": 0.0}], {}, {"device": "cpu", "has_cluster": False}, "room for actors", False),
    ],
)
def test_resources_of_a_cluster_may_come_back_those_of_this_machine_do_not_grow(
    nodes: list[dict[str, float]],
    free: dict[str, float],
    given: dict[str, Any],
    check: str,
    transient: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_checks, "node_resources", lambda: nodes)
    monkeypatch.setattr("ray.available_resources", lambda: free)
    findings, _ = check_room(1, 1, **{"own": ActorShare(), "has_cluster": True, "node_minutes": 0.0, **given})

    assert [(one.check, one.transient) for one in findings if one.level == "fail"] == [(check, transient)]


def refused_token(_: object) -> None:
    raise RayDetrError("Ray's token differs") from AuthenticationError("wrong")


@pytest.mark.parametrize(
    ("address", "connect", "transient"),
    [
        ("127.0.0.1:1", None, True),
        ("http://127.0.0.1:8265", None, False),  # of the dashboard
        ("127.0.0.1:6379", refused_token, False),
    ],
)
def test_a_cluster_that_does_not_answer_may_pass_and_a_wrong_address_or_token_does_not(
    address: str, connect: Any, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("pipelines.cluster.ray.is_initialized", lambda: False)
    if connect is not None:
        monkeypatch.setattr("pipelines.cluster._check_answers", connect)

    findings = list(examine.examine(examine.DoctorConfig()))

    assert [(one.check, one.transient) for one in findings if one.level == "fail"] == [("cluster", transient)]


@pytest.mark.parametrize(("model", "transient"), [("owner/detr@v2", True), ("owner/nothing", False), ("a/b/c", False)])
def test_a_model_whose_hub_does_not_answer_may_pass_and_one_that_does_not_exist_does_not(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, model: str, transient: bool
) -> None:
    if transient:
        use_endpoint(monkeypatch, "http://127.0.0.1:9")
    (finding,) = check_here(identify(model, StoreOptions()), has_cluster=False)
    on_node = try_forward(examine._labeler_spec(examine.DoctorConfig(model=model), None))

    assert (finding.level, finding.transient) == ("fail", transient)
    assert isinstance(on_node, Failure)
    assert on_node.transient == transient


def test_the_options_of_label_that_decide_about_room_are_those_of_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[examine.DoctorConfig] = []
    monkeypatch.setattr(examine, "examine", lambda config: given.append(config) or [])

    doctor.main(["--node-minutes", "20", "--cpus-per-actor", "2", "--gpus-per-actor", "0.5", "--actors", "1:8"])

    (config,) = given
    assert (config.node_minutes, config.cpus_per_actor, config.gpus_per_actor) == (20.0, 2, 0.5)
    assert config.actors == (1, 8)


def test_doctor_reaches_images_and_table_in_every_way_that_label_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[examine.DoctorConfig] = []
    monkeypatch.setattr(examine, "examine", lambda config: given.append(config) or [])

    doctor.main(["--images", "s3://lake/", "--request-payer", "--via", "fsspec", "--shared-folders"])
    with pytest.raises(SystemExit):
        doctor.main(["--help"])

    (config,) = given
    assert (config.image_options.request_payer, config.image_options.via) == (True, "fsspec")
    assert config.shared_folders
    shown = capsys.readouterr().out
    for _, access in groups(LabelConfig):
        if access.kind in (StoreOptions, TableOptions):
            assert [one.flag for one in declared(access.kind, prefix=access.prefix) if one.flag not in shown] == []


@pytest.mark.parametrize(
    ("given", "machines", "grows", "levels_"),
    [
        ({"images": ("photos/",)}, 2, False, {"local folders": "fail"}),
        ({"table": "table"}, 2, False, {"local folders": "fail"}),
        ({"images": ("photos/",), "table": "table", "shared_folders": True}, 2, False, {}),
        ({"images": ("s3://lake/", "list.csv"), "table": "s3://lake/table"}, 2, False, {}),
        ({"images": ("photos/",)}, 1, False, {"local folders": "ok"}),
        ({"images": ("photos/",)}, 1, True, {"local folders": "warn"}),
    ],
)
def test_local_folders_that_label_refuses_are_reported(
    given: dict[str, Any], machines: int, grows: bool, levels_: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.cluster.hosts", lambda: {f"10.0.0.{number}" for number in range(machines)})

    findings = list(check_local_folders(own_disks(examine.DoctorConfig(**given)), may_grow=grows))

    assert levels(findings) == levels_


@pytest.mark.parametrize(("model", "level", "said"), [("scenes", "ok", "6 classes"), ("no/such/it", "warn", "no/such")])
def test_the_model_is_checked_where_no_cluster_answers(
    model: str, level: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("pipelines.cluster.ray.is_initialized", lambda: False)

    findings = list(examine.examine(examine.DoctorConfig(model=model)))

    (found,) = [finding for finding in findings if finding.check == "model"]
    assert (found.level, said in found.text) == (level, True)
    assert levels(findings)["cluster"] == "fail"


def test_gpus_that_no_actor_can_have_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main(["--gpus-per-actor", "1.5"])

    assert "1.5 is neither a share below 1 nor a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hosts", "level"),
    [({"127.0.0.1"}, "ok"), ({"10.0.0.5"}, "warn"), ({"127.0.0.1", "10.0.0.5"}, "warn")],
)
def test_a_cluster_without_a_token_is_judged_by_where_it_listens(
    hosts: set[str], level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)

    # Ray replaces 127.0.0.1 of RAY_ADDRESS by the outward address
    assert check_token("127.0.0.1:6379") is None
    assert check_open_cluster("127.0.0.1:6379", hosts).level == level


@pytest.mark.parametrize(
    ("has_cluster", "pool", "found", "expected"),
    [
        (True, POOL, FOUND, {"model": "warn", "model on a node": "ok"}),
        (True, POOL, replace(FOUND, notes=("too small",)), {"model": "warn", "model on a node": "warn"}),
        (True, POOL, Failure("no such file", transient=False), {"model": "fail"}),
        (True, None, FOUND, {"model": "warn"}),
        (False, POOL, FOUND, {"model": "fail"}),
    ],
)
def test_a_model_that_this_machine_cannot_read_is_tried_on_a_node_as_label_does(
    has_cluster: bool, pool: Pool | None, found: Any, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: Any) -> None:
        raise RayDetrError("s3://models/detr is denied.")

    monkeypatch.setattr(model_check, "identify_model", unreadable)
    monkeypatch.setattr(model_check, "_forward", lambda *_: found)
    spec = examine._labeler_spec(examine.DoctorConfig(model="s3://models/detr"), pool)
    here = identify("s3://models/detr", StoreOptions())
    findings = [
        *check_here(here, has_cluster=has_cluster), *check_on_node(spec, here, pool, has_cluster=has_cluster)
    ]  # fmt: skip

    assert levels(findings) == expected
    assert "s3://models/detr is denied." in findings[0].text


@pytest.mark.parametrize(("address", "level"), [(None, "fail"), ("127.0.0.1:6379", "warn")])
def test_only_a_cluster_can_grow_and_it_is_judged_after_the_connection(
    address: str | None, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("pipelines.cluster.connected", lambda: nullcontext())
    monkeypatch.setattr("pipelines.cluster.hosts", lambda: {"10.0.0.5"})
    monkeypatch.setattr("pipelines.cluster.ray.is_initialized", lambda: False)
    monkeypatch.setattr(cluster_checks, "ask_nodes", lambda: None)
    monkeypatch.setattr(cluster_checks, "check_nodes", lambda _: [])
    monkeypatch.setattr(cluster_checks, "check_object_store", lambda: Finding("object store", "ok", ""))
    monkeypatch.setattr(cluster_checks, "node_resources", lambda: [{"CPU": 0.0}])
    findings = list(examine._cluster(examine.DoctorConfig(node_minutes=20.0, cpus_per_actor=3), None))

    assert levels(findings) == {
        "token": "ok" if address is None else "warn", "object store": "ok", "room for actors": level,
    }  # fmt: skip
    assert "each needs 3 CPU" in findings[-1].text


@pytest.mark.parametrize(
    ("change", "level", "text", "remedy"),
    [
        ("", "ok", r"from the hub$", ""),
        ("pinned", "ok", r"from the cache, which has all files of the commit$", ""),
        ("offline", "ok", r"from the cache: HF_HUB_OFFLINE is set$", ""),
        (
            "limited",
            "warn",
            r"from the cache: the hub refuses further requests for now \(429 .*Retry after 55",
            "HF_TOKEN",
        ),
        ("unreachable", "warn", r"from the cache: the hub does not answer \(.*Connection refused\)$", "--download"),
    ],
)
def test_where_the_model_comes_from_is_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, change: str, level: str, text: str, remedy: str
) -> None:
    hub.revisions["main"] = EMBEDDED / "scenes"
    model = f"owner/detr@{hub.commit('main')}" if change == "pinned" else "owner/detr"
    locate("owner/detr")
    if change == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif change == "unreachable":
        use_endpoint(monkeypatch, "http://127.0.0.1:9")
    hub.limited = change in ("limited", "pinned")

    (finding,) = check_here(identify(model, StoreOptions()), has_cluster=True)

    assert finding.level == level
    assert re.search(text, finding.text)
    assert remedy in finding.remedy
