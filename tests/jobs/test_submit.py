"""`jobs.submit` against the job server of a real Ray head."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from jobs.submit import main
from pipelines.submission import SlotTaken, Submission, follow, submission_id, submit_once
from tests.faults.own_ray import own_ray

ROOT = Path(__file__).parents[2]
on_ray = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    # the driver of a job is `python` of the path
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    notify = {"RAY_DETR_NOTIFY_URL": "http://127.0.0.1:1/hook"}
    with own_ray({"num_cpus": 1, "include_dashboard": True}, environment={**path, **notify}) as cluster:
        yield f"http://{cluster.dashboard}"


@pytest.fixture
def client(address: str, monkeypatch: pytest.MonkeyPatch) -> JobSubmissionClient:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return JobSubmissionClient(address)


def submitted(address: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", "--address", address, *words],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has it ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def exits_with(code: int) -> list[str]:
    return [sys.executable, "-c", f"import sys; print('about to leave'); sys.exit({code})"]


class TestOnACluster:
    pytestmark = on_ray

    def test_a_second_call_for_a_slot_reports_the_job_of_the_first(self, address: str, tmp_path: Path) -> None:
        words = ("--slot", "2026-11-28T02:00+00:00", "--", "scenes", "--out", str(tmp_path / "scenes"), "--count", "2")

        first = submitted(address, *words)
        log, notes = first.communicate(timeout=300)
        assert first.returncode == 0, notes + log
        written = (tmp_path / "scenes" / "instances.json").stat().st_mtime_ns
        second = submitted(address, *words)
        log_again, notes_again = second.communicate(timeout=300)

        assert second.returncode == 0, notes_again
        assert notes == "submitted job scenes-2026-11-28T02.00.00.00\n"
        assert notes_again == "found job scenes-2026-11-28T02.00.00.00\n"
        assert str(tmp_path / "scenes") in log
        assert log_again == log
        assert (tmp_path / "scenes" / "instances.json").stat().st_mtime_ns == written

    def test_the_exit_code_is_the_drivers_and_a_failed_slot_is_attempted_again(
        self, client: JobSubmissionClient
    ) -> None:
        log: list[str] = []
        for attempt in ("codes-1", "codes-1-r1"):
            submission = submit_once(client, exits_with(3), job="codes", slot="1")
            end = follow(client, submission.id, log.append)

            assert submission == Submission(attempt, is_new=True)
            assert end.exit_code == 3
        assert "".join(log).splitlines().count("about to leave") == 2

    def test_a_job_has_the_environment_of_the_head(self, client: JobSubmissionClient) -> None:
        log: list[str] = []
        prints = [sys.executable, "-c", "import os; print(os.environ['RAY_DETR_NOTIFY_URL'])"]
        follow(client, submit_once(client, prints, job="environment", slot="1").id, log.append)

        # the address of notifications, a secret: it is set on the head, not with --env, which the dashboard shows
        assert "http://127.0.0.1:1/hook" in "".join(log).splitlines()

    def test_an_exit_code_that_finishes_a_slot_is_not_attempted_again(self, client: JobSubmissionClient) -> None:
        for is_new in (True, False):
            submission = submit_once(client, exits_with(3), job="ok", slot="1", finished_codes=frozenset({3, 4}))
            end = follow(client, submission.id, lambda _piece: None)

            assert submission == Submission("ok-1", is_new=is_new)
            assert end.exit_code == 3

    def test_two_callers_at_once_submit_one_job(self, client: JobSubmissionClient) -> None:
        found: list[Submission] = []
        callers = [
            threading.Thread(target=lambda: found.append(submit_once(client, exits_with(0), job="both", slot="1")))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

        assert {one.id for one in found} == {"both-1"}
        assert sorted(one.is_new for one in found) == [False, False, False, True]

    def test_another_command_for_the_same_slot_is_refused(self, client: JobSubmissionClient) -> None:
        submit_once(client, exits_with(0), job="taken", slot="1")

        with pytest.raises(SlotTaken, match=r"slot 1 of job taken has been submitted with another command: .*--job"):
            submit_once(client, exits_with(1), job="taken", slot="1")

    def test_a_stopped_job_is_not_a_success_and_is_attempted_again(self, client: JobSubmissionClient) -> None:
        sleeps = [sys.executable, "-c", "import time; time.sleep(300)"]
        submission = submit_once(client, sleeps, job="stopped", slot="1")
        while client.get_job_status(submission.id) != "RUNNING":
            time.sleep(0.2)
        client.stop_job(submission.id)
        end = follow(client, submission.id, lambda _piece: None)
        again = submit_once(client, sleeps, job="stopped", slot="1")
        client.stop_job(again.id)

        assert end.exit_code == 143
        assert again == Submission("stopped-1-r1", is_new=True)

    def test_a_job_goes_on_without_its_follower_and_the_next_one_gets_the_whole_log(
        self, address: str, client: JobSubmissionClient, tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        code = f"print('begun', flush=True); open({str(gate)!r}).read(); print('ended')"
        held = submit_once(client, [sys.executable, "-c", code], job="held", slot="1")
        log: list[str] = []
        follower = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from pipelines.submission import connect, follow;"
                f"follow(connect({address!r}), {held.id!r}, lambda text: print(text, end='', flush=True))",
            ],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert follower.stdout is not None
        assert "begun\n" in follower.stdout  # reads to that line; Ray's own come first
        follower.kill()
        follower.communicate()
        gate.write_text("go on")
        end = follow(client, held.id, log.append)

        assert end.exit_code == 0
        lines = "".join(log).splitlines()
        # Ray 2.60 may write its own line between them: it begins the command before it flushes the file
        assert [line for line in lines if line in ("begun", "ended")] == ["begun", "ended"]

    def test_an_interrupted_command_says_that_the_job_goes_on(self, address: str, tmp_path: Path) -> None:
        words = ("--slot", "long", "--", "scenes", "--out", str(tmp_path / "many"), "--count", "5000")
        command = submitted(address, *words)
        assert command.stderr is not None
        assert command.stderr.readline() == "submitted job scenes-long\n"
        time.sleep(1)  # it follows now
        command.send_signal(signal.SIGINT)
        _, notes = command.communicate(timeout=300)
        JobSubmissionClient(address).stop_job("scenes-long")

        assert command.returncode == 130
        assert notes.splitlines() == [
            "stopping, this may take some seconds",
            "job scenes-long continues without this command. `ray job stop scenes-long` stops it.",
            "interrupted: run the same command again to resume.",
        ]


def test_a_slot_that_cannot_be_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the slot '28\.11\. 02:00' cannot be part of a submission id"):
        submission_id("label", "28.11. 02:00")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slot", "1", "--", "lable"], "'lable' is not a command. Did you mean 'label'?"),
        (["--slot", "1", "--", "submit"], "'submit' is not a command."),
        (["--slot", "a/b", "--", "label"], "the slot 'a/b' cannot be part of a submission id"),
        (["--slot", "1", "--ok", "3;4", "--", "label"], "'3;4' is not a list of exit codes such as 3,4"),
        (["--slot", "1", "--env", "KEY", "--", "label"], "'KEY' is not NAME=VALUE"),
        (["--slot", "1"], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_use_is_refused_before_a_cluster_is_asked(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)

    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_named() -> None:
    from pipelines.errors import RayDetrError

    with pytest.raises(
        RayDetrError,
        match=r"no Ray job server answers at http://127\.0\.0\.1:9: .*[^.]\. Give .*--address http://HEAD:8265",
    ):
        main(["--address", "http://127.0.0.1:9", "--slot", "1", "--", "runs", "--table", "t"])
