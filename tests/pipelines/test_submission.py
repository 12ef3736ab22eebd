"""Following and submitting where things go wrong that a real cluster seldom does; `jobs/test_submit.py` has one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from pipelines import submission
from pipelines.errors import RayDetrError


class Cluster:
    """A job server with one job, which has ended."""

    def __init__(self, refusal: Exception | None = None, exit_code: int = 0) -> None:
        self.refusal, self.exit_code = refusal, exit_code

    async def tail_job_logs(self, _job_id: str) -> AsyncIterator[str]:
        yield "begun\n"
        yield "ended\n"

    def get_job_info(self, _job_id: str) -> Any:
        status = JobStatus.FAILED if self.exit_code else JobStatus.SUCCEEDED
        return SimpleNamespace(status=status, message="", driver_exit_code=self.exit_code)

    def get_job_logs(self, _job_id: str) -> str:
        return "begun\nended\nlast\n"

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **_words: object) -> str:
        assert self.refusal is not None
        raise self.refusal


def client(refusal: Exception | None = None, exit_code: int = 0) -> JobSubmissionClient:
    return cast("JobSubmissionClient", Cluster(refusal, exit_code))


def test_the_log_is_passed_on_once() -> None:
    pieces: list[str] = []
    end = submission.follow(client(), "job", pieces.append)

    assert (end.exit_code, "".join(pieces)) == (0, "begun\nended\nlast\n")


def test_a_connection_that_says_nothing_more_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Cluster):
        async def tail_job_logs(self, _job_id: str) -> AsyncIterator[str]:
            yield "begun\n"
            await asyncio.sleep(3600)

    monkeypatch.setattr(submission, "SILENT_SECONDS", 0.05)
    pieces: list[str] = []
    end = submission.follow(cast("JobSubmissionClient", Lost()), "job", pieces.append)

    assert (end.exit_code, "".join(pieces)) == (0, "begun\nended\nlast\n")


def test_a_job_that_has_ended_is_not_followed_for_ever_where_its_log_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutLog(Cluster):
        async def tail_job_logs(self, _job_id: str) -> AsyncIterator[str]:
            raise RuntimeError("status code 500: no agent")
            yield

        def get_job_logs(self, _job_id: str) -> str:
            raise RuntimeError("status code 500: no agent")

    clock = itertools.count(step=60)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    pieces: list[str] = []

    end = submission.follow(cast("JobSubmissionClient", WithoutLog(exit_code=3)), "job", pieces.append)

    assert (end.exit_code, pieces) == (3, ["note: the rest of the log cannot be read: status code 500: no agent\n"])


@pytest.mark.parametrize("fails", ["get_job_info", "get_job_logs"])
def test_one_failure_after_hours_of_log_is_retried(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Busy(Cluster):
        async def tail_job_logs(self, _job_id: str) -> AsyncIterator[str]:
            clock[0] += 7200
            yield "begun\n"

    cluster = Busy(exit_code=3)
    answer = getattr(cluster, fails)
    answers = iter([RuntimeError("status code 500"), *[answer("job")] * 9])
    monkeypatch.setattr(cluster, fails, Mock(side_effect=answers))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    pieces: list[str] = []

    end = submission.follow(cast("JobSubmissionClient", cluster), "job", pieces.append)

    assert (end.exit_code, "".join(pieces)) == (3, "begun\nended\nlast\n")


@pytest.mark.parametrize(("driver", "shell"), [(3, 3), (-9, 137)])
def test_the_exit_code_is_that_of_a_shell(driver: int, shell: int) -> None:
    assert submission.follow(client(exit_code=driver), "job", lambda _: None).exit_code == shell


@pytest.mark.parametrize("fails_at", ["begun", "last"])
@pytest.mark.parametrize("failure", [BrokenPipeError(), OSError("No space left on device")])
def test_an_output_that_cannot_be_written_ends_following(
    fails_at: str, failure: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_seconds: float) -> None:
        pytest.fail("the output is tried again")

    def write(text: str) -> None:
        if fails_at in text:
            raise failure

    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the very one
        submission.follow(client(), "job", write)

    assert raised.value is failure


@pytest.mark.parametrize(
    "refusal", [requests.ConnectionError("gone"), ValueError("directory nowhere must be an existing directory")]
)
def test_whatever_keeps_a_job_from_being_submitted_is_a_sentence(refusal: Exception) -> None:
    with pytest.raises(RayDetrError, match=f"the cluster refuses job label-1: {refusal}"):
        submission.submit_once(client(refusal), ["true"], job="label", slot="1")
