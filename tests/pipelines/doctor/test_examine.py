"""The doctor on set-ups that are really broken: each is found, with its remedy, and a good one passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import ray

from detr.scenes.files import write_scenes
from jobs.doctor import exit_code, line, outcome
from pipelines.doctor import at_start, store_checks
from pipelines.doctor.clock_skew import check_clock
from pipelines.doctor.cluster_checks import Nodes
from pipelines.doctor.examine import DoctorConfig, examine
from pipelines.doctor.findings import Finding
from pipelines.doctor.machine import MachineFacts, check_machine, check_versions, machine_facts
from pipelines.errors import RayDetrError
from pipelines.store import StoreOptions
from tests.conftest import S3Server
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
FACTS = MachineFacts(
    host="a",
    versions={"Python": "3.11.7", "ray-detr": "0.1.0", "ray": "2.60.0", "torch": "2.14.1", "pillow-heif": "1.8.0"},
    disk_free=10**11,
    disk_total=10**12,
    shared_free=10**10,
    open_files=65_536,
    time=0.0,
)


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DoctorConfig:
    monkeypatch.setattr(store_checks, "MANY", 40)
    monkeypatch.setattr(store_checks, "LARGE_BYTES", 1024**2)
    write_scenes(tmp_path / "lake", 1, 4, sizes={(96, 128): 1})
    (tmp_path / "table").mkdir()
    return DoctorConfig(
        images=(str(tmp_path / "lake"),), table=str(tmp_path / "table"), model="scenes", device="cpu", actors=(None, 2)
    )


def failed(config: DoctorConfig) -> list[Finding]:
    return [finding for finding in examine(config) if finding.level == "fail"]


@pytest.mark.ray
def test_a_good_set_up_passes_and_nothing_is_left(local_ray: str, good: DoctorConfig, tmp_path: Path) -> None:
    findings = list(examine(good))

    assert [finding for finding in findings if finding.level == "fail"] == []
    checks = {finding.check for finding in findings}
    assert {
        "disk",
        "shared memory",
        "open files",
        "clock",
        "images",
        "store: create only",
        "token",
        "versions",
        "object store",
        "room for actors",
        "free resources",
        "local folders",
        "model",
        "model on a node",
    } <= checks
    assert list((tmp_path / "table").rglob("*.parquet")) == []
    assert len(findings) == 41


@pytest.mark.ray
def test_actors_that_do_not_fit_are_reported(local_ray: str, good: DoctorConfig) -> None:
    (finding,) = failed(replace(good, actors=(99, 99), model=None, table=None))

    assert finding.check == "room for actors"
    assert finding.text.startswith("99 actors do not fit: each needs 1 CPU, and the cluster has room for 8")


@pytest.mark.ray
def test_cpus_that_another_job_holds_are_reported(local_ray: str, good: DoctorConfig) -> None:
    class Holder: ...

    # one for each CPU: should an earlier test of this process still hold some, the last ones wait for it
    holders = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(8)]
    try:
        wait_until(lambda: not ray.available_resources().get("CPU"), what="all CPUs in use")
        (finding,) = failed(replace(good, model=None, table=None))
    finally:
        for holder in holders:
            ray.kill(holder)

    assert finding.check == "free resources"
    assert finding.text.startswith("other jobs use all but 0 CPU and 4 GPU, and 1 actors need 1 CPU and 0 GPU")


@pytest.mark.ray
def test_a_gpu_that_ray_counts_and_torch_does_not_have_is_reported(local_ray: str, good: DoctorConfig) -> None:
    (finding,) = [one for one in failed(replace(good, device="cuda", table=None)) if one.check == "model on a node"]

    assert "cuda" in finding.text.lower() or "nvidia" in finding.text.lower()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("model", "said"),
    [("no/such/folder", "no/such/folder"), ("owner/no-such-model", "owner/no-such-model")],
)
def test_a_model_that_is_not_available_is_reported(
    local_ray: str, good: DoctorConfig, model: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    (finding,) = failed(replace(good, model=model, table=None))

    assert finding.check == "model"
    assert said in finding.text


def examined(config: DoctorConfig, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """Return what is wrong beside the cluster, which is not asked."""
    monkeypatch.setattr("pipelines.doctor.examine._cluster", lambda config, model: iter(()))
    return failed(config)


def test_a_table_that_cannot_be_written_is_reported_once(
    good: DoctorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")

    (finding,) = examined(replace(good, table=str(tmp_path / "file" / "table")), monkeypatch)

    assert (finding.check, finding.remedy) == ("store: put", "Give these credentials the rights in docs/security.md.")


def test_a_bucket_that_is_not_there_is_reported(
    good: DoctorConfig, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examined(
        replace(good, table="s3://no-such-bucket/table", images=(), table_options=moto.options()), monkeypatch
    )

    assert [(finding.check, finding.transient) for finding in found][:1] == [("store: put", False)]


@pytest.mark.parametrize("place", ["empty", "missing"])
def test_sources_without_images_are_reported(
    good: DoctorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "empty").mkdir()

    (finding,) = examined(replace(good, images=(str(tmp_path / place),), table=None), monkeypatch)

    assert (finding.check, finding.transient) == ("images", False)


def test_a_store_without_credentials_is_reported(good: DoctorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    options = StoreOptions(endpoint="http://127.0.0.1:1")

    found = examined(replace(good, images=(), table="s3://bucket/table", table_options=options), monkeypatch)

    assert "no AWS credentials found" in found[-1].text


@contextmanager
def server(ahead_seconds: float) -> Iterator[str]:
    """A server whose clock is ahead by some seconds."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            self.send_header("Date", formatdate(time.time() + ahead_seconds, usegmt=True))
            self.end_headers()

    running = HTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (-120, "warn"), (3_600, "fail")])
def test_clocks_are_compared_without_credentials(ahead: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with server(ahead) as endpoint:
        finding = check_clock("s3://bucket/x", StoreOptions(endpoint=endpoint))

    assert (finding.level, finding.transient) == (level, level == "fail")
    if ahead:
        assert f"{abs(ahead)} s {'behind' if ahead > 0 else 'ahead of'} the store" in finding.text.replace(",", "")


def test_a_store_that_does_not_answer_has_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert check_clock("s3://bucket/x", StoreOptions(endpoint="http://127.0.0.1:1")).level == "warn"


@pytest.mark.parametrize(
    ("facts", "check", "level"),
    [
        (replace(FACTS, disk_free=4 * 10**10), "disk", "fail"),
        (replace(FACTS, disk_free=10**9, disk_total=10**10), "disk", "warn"),
        (replace(FACTS, shared_free=64 * 1024**2), "shared memory", "warn"),  # Docker's default
        (replace(FACTS, open_files=1_024), "open files", "warn"),
        (replace(FACTS, open_files=256), "open files", "fail"),
    ],
)
def test_a_machine_with_too_little_is_reported(facts: MachineFacts, check: str, level: str) -> None:
    assert [(one.check, one.level) for one in check_machine(facts) if one.level != "ok"] == [(check, level)]
    assert check_machine(FACTS) == [one for one in check_machine(FACTS) if one.level == "ok"]


def test_few_open_files_of_a_real_process_are_reported() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512));"
        "from pipelines.doctor.machine import check_machine, machine_facts;"
        "print([f.level for f in check_machine(machine_facts()) if f.check == 'open files'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "['fail']\n"


def test_nodes_with_other_versions_are_reported() -> None:
    other = replace(FACTS, versions={**FACTS.versions, "ray-detr": "0.0.9"})
    torch = replace(FACTS, versions={**FACTS.versions, "torch": "2.11.0"})
    bare = replace(FACTS, versions={**FACTS.versions, "torch": "none"})

    assert check_versions(FACTS, {"n1": FACTS}).level == "ok"
    assert check_versions(FACTS, {"n1": FACTS, "n2": torch}).level == "warn"
    assert check_versions(FACTS, {"n2": bare}).level == "fail"
    found = check_versions(FACTS, {"n1": FACTS, "n2": other})
    assert (found.level, found.text) == ("fail", "node n2 has ray-detr 0.0.9, this process 0.1.0")


@pytest.mark.parametrize(
    ("own", "node", "level"), [("1.8.0", "none", "fail"), ("1.8.0", "1.7.0", "warn"), ("none", "1.8.0", "warn")]
)
def test_a_node_that_cannot_decode_what_this_machine_can_is_refused(own: str, node: str, level: str) -> None:
    here, there = (replace(FACTS, versions={**FACTS.versions, "pillow-heif": version}) for version in (own, node))

    found = check_versions(here, {"n1": there})

    assert (found.level, found.text) == (level, f"node n1 has pillow-heif {node}, this process {own}")
    assert "pillow-heif" in machine_facts().versions


@pytest.mark.parametrize(("name", "level"), [("ray-detr", "fail"), ("torch", "warn")])
def test_a_job_refuses_nodes_of_another_release_and_warns_of_another_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, level: str
) -> None:
    own = machine_facts()
    other = replace(own, versions={**own.versions, name: "0.0.1"})
    monkeypatch.setattr(at_start, "is_given", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}] * 2)
    monkeypatch.setattr(at_start, "ask_nodes", lambda seconds: Nodes({"n1": own, "n2": other}, []))

    if level == "fail":
        with pytest.raises(RayDetrError, match=r"^node n2 has ray-detr 0\.0\.1, this process .* Install the same"):
            at_start.check_at_start()
    else:
        at_start.check_at_start()
        assert "node n2 has torch 0.0.1" in caplog.text


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_check_and_exits_with_1_where_only_the_cluster_does_not_answer(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("left over")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": "127.0.0.1:1", "HOME": str(home), "PYTHONPATH": str(ROOT)}

    def doctor(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs.doctor", *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    shown, record, lost = doctor(), doctor("--json"), doctor("--images", str(tmp_path / "missing"))

    assert (shown.returncode, record.returncode) == (1, 1)
    assert lost.returncode == 2  # the images must be changed, even if the cluster answers later
    findings = [Finding(**one) for one in json.loads(record.stdout)["findings"]]
    assert [one.check for one in findings] == ["disk", "shared memory", "open files", "token", "cluster"]
    assert [(one.level, one.transient) for one in findings][-2:] == [("warn", False), ("fail", True)]
    assert "~/.ray/auth_token is left over" in findings[-2].text
    assert "no Ray cluster answers at 127.0.0.1:1" in findings[-1].text
    assert len(shown.stdout.splitlines()) == len(findings) + 1
    assert shown.stdout.splitlines()[-1] == outcome(findings)


def test_a_finding_is_one_line_with_its_remedy() -> None:
    assert line(Finding("disk", "ok", "9 GB free")) == "ok    disk: 9 GB free"
    assert line(Finding("disk", "fail", "0 GB free", "Free some.")) == "fail  disk: 0 GB free. Free some."
    assert outcome([Finding("a", "ok", ""), Finding("b", "fail", "")]) == "2 checks: 1 ok, 0 warnings, 1 failed"
    assert outcome([Finding("a", "fail", "", transient=True)]) == (
        "1 checks: 0 ok, 0 warnings, 1 failed; this may pass by itself: run it again later"
    )


PASSES, STAYS = (Finding("a", "fail", "", transient=transient) for transient in (True, False))
GOOD, CAUTION = Finding("a", "ok", ""), Finding("a", "warn", "")


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([GOOD, CAUTION], 0),
        ([GOOD, PASSES, CAUTION, PASSES], 1),
        ([PASSES, STAYS], 2),
        ([STAYS], 2),
    ],
)
def test_a_retry_is_left_to_failures_that_may_all_pass_by_themselves(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code


def test_a_store_that_does_not_answer_may_pass_by_itself(good: DoctorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for module in ("pipelines.labelling.reach", "pipelines.doctor.examine"):
        monkeypatch.setattr(f"{module}.REACH_SECONDS", 0.2)
    options = StoreOptions(endpoint="http://127.0.0.1:1", region="us-east-1")
    config = replace(
        good, model=None, images=("s3://lake/",), table="s3://lake/t", image_options=options, table_options=options
    )

    found = examined(config, monkeypatch)

    assert [(one.check, one.transient) for one in found] == [("images", True), ("store: put", True)]
