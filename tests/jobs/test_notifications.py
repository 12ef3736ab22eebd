"""State changes are posted; a server that fails changes no exit code, and the address is printed nowhere."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from jobs._notifications import VARIABLE, notifying
from jobs.exits import run
from jobs.submit import main
from pipelines.errors import BudgetExceeded, CapReached, RayDetrError


class Receiver(HTTPServer):
    received: list[dict[str, object]]
    paths: list[str]
    logins: list[str | None]
    status = 200


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    class Answer(BaseHTTPRequestHandler):
        server: Receiver

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.received.append(json.loads(body))
            self.server.paths.append(self.path)
            self.server.logins.append(self.headers["Authorization"])
            self.send_response_only(self.server.status)
            self.end_headers()

    server = Receiver(("127.0.0.1", 0), Answer)
    server.received, server.paths, server.logins = [], [], []
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_address[1]}/hook?token=hidden")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def job(error: BaseException | None) -> None:
    with notifying("label", "s3://lake/table") as details:
        assert VARIABLE not in os.environ  # processes that Ray starts do not get it
        details["images"] = 7
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("error", "state", "message", "code"),
    [
        (None, "finished", "", None),
        (CapReached("the limit is reached"), "stopped", "the limit is reached", 5),
        (RayDetrError("the store is away"), "failed", "the store is away", 1),
        (BudgetExceeded("6 % are errors"), "failed", "6 % are errors", 3),
        (KeyboardInterrupt(), "interrupted", "", 130),
        (SystemExit(143), "interrupted", "", 143),
    ],
)
def test_the_start_and_the_end_are_posted(
    receiver: Receiver, error: BaseException | None, state: str, message: str, code: int | None
) -> None:
    if code is None:
        run(lambda _: job(error))
    else:
        with pytest.raises(SystemExit) as left:
            run(lambda _: job(error))
        assert left.value.code == code

    first, last = receiver.received
    assert {name: first[name] for name in ("job", "state", "place")} == {
        "job": "label",
        "state": "started",
        "place": "s3://lake/table",
    }
    assert (last["state"], last["message"], last["images"]) == (state, message, 7)
    assert receiver.paths == ["/hook?token=hidden"] * 2
    assert VARIABLE in os.environ


def test_a_bug_is_posted_by_its_type_only(receiver: Receiver) -> None:
    with pytest.raises(ZeroDivisionError):
        job(ZeroDivisionError("secret"))

    assert (receiver.received[1]["state"], receiver.received[1]["message"]) == ("failed", "ZeroDivisionError")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/token-hidden", "ftp://hidden/", "hidden", "status"])
def test_a_notification_that_fails_is_said_once_without_the_address(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    receiver.status = 500
    if url != "status":
        monkeypatch.setenv(VARIABLE, url)

    run(lambda _: job(None))

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("note: the notification could not be sent (") == 1
    assert "hidden" not in said.err
    assert "127.0.0.1" not in said.err


def test_user_and_password_of_the_address_are_sent(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"http://user:p%40ss@127.0.0.1:{receiver.server_address[1]}/hook")

    run(lambda _: job(None))

    assert receiver.logins == ["Basic dXNlcjpwQHNz"] * 2  # user:p@ss
    assert receiver.paths == ["/hook"] * 2


def test_the_note_has_the_status_of_the_answer(receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    receiver.status = 401

    run(lambda _: job(None))

    assert "could not be sent (the server answered with status 401)" in capsys.readouterr().err


class Cluster:
    """A job server whose jobs end at once, with an exit code and a log."""

    def __init__(self, exit_code: int | None = 0, log: str = "", refusal: Exception | None = None) -> None:
        self.exit_code, self.log, self.refusal = exit_code, log, refusal

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **_words: object) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def tail_job_logs(self, _job_id: str) -> AsyncIterator[str]:
        for letter in self.log:
            yield letter

    def get_job_logs(self, _job_id: str) -> str:
        return self.log

    def get_job_info(self, _job_id: str) -> Any:
        status = JobStatus.SUCCEEDED if self.exit_code == 0 else JobStatus.FAILED
        message = f"Job failed with exit code {self.exit_code}, last available logs (truncated):\nsecret"
        return SimpleNamespace(status=status, message=message, driver_exit_code=self.exit_code)


def submit(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *options: str) -> object:
    monkeypatch.setattr("pipelines.submission.connect", lambda _address: cluster)
    codes: list[object] = [0]
    try:
        run(main, ["--slot", "2026-11-28", *options, "--", "label", "--table", "t"])
    except SystemExit as left:
        codes.append(left.code)
    return codes[-1]


@pytest.mark.parametrize(("driver", "shell"), [(-9, 137), (2, 2), (None, 1)])
def test_submit_posts_the_failure_of_a_driver_that_could_not(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, driver: int | None, shell: int
) -> None:
    assert submit(Cluster(driver, "begun\n"), monkeypatch) == shell

    (posted,) = receiver.received
    assert {name: value for name, value in posted.items() if name != "time"} == {
        "job": "label",
        "state": "failed",
        "place": "label-2026-11-28",
        "message": f"job label-2026-11-28: Job failed with exit code {driver}",
        "exit_code": shell,
    }


def test_a_failure_that_the_driver_has_posted_is_not_posted_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(lambda _: job(RayDetrError("the store is away")))
    log = capsys.readouterr().err

    assert submit(Cluster(1, log), monkeypatch) == 1
    assert [one["state"] for one in receiver.received] == ["started", "failed"]


def test_the_end_of_a_driver_that_was_killed_after_it_had_posted_its_start_is_posted(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with notifying("label", "s3://lake/table"):
        log = capsys.readouterr().err

    assert submit(Cluster(-9, log), monkeypatch) == 137
    assert [one["state"] for one in receiver.received] == ["started", "finished", "failed"]


def test_a_failure_that_the_driver_could_not_send_is_posted_by_submit(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 500
    with pytest.raises(SystemExit):
        run(lambda _: job(RayDetrError("the store is away")))
    log = capsys.readouterr().err
    receiver.status = 200
    receiver.received.clear()

    assert submit(Cluster(1, log), monkeypatch) == 1
    assert [one["exit_code"] for one in receiver.received] == [1]


@pytest.mark.parametrize(("exit_code", "options"), [(0, ()), (5, ("--ok", "3,5")), (-9, ("--no-wait",))])
def test_submit_posts_nothing_of_a_job_that_did_not_fail(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, exit_code: int, options: tuple[str, ...]
) -> None:
    assert submit(Cluster(exit_code), monkeypatch, *options) == 0

    assert receiver.received == []


def test_a_job_that_cannot_be_submitted_is_posted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert submit(Cluster(refusal=RuntimeError("no room")), monkeypatch) == 1

    (posted,) = receiver.received
    assert (posted["state"], posted["exit_code"]) == ("failed", 1)
    assert posted["message"] == "the cluster refuses job label-2026-11-28: no room"


def test_a_cluster_that_does_not_answer_is_posted(receiver: Receiver) -> None:
    with pytest.raises(RayDetrError, match=r"^no Ray job server answers at http://127\.0\.0\.1:9: ") as stop:
        main(["--address", "http://admin:s3cr3t@127.0.0.1:9", "--slot", "1", "--", "label"])

    assert [(one["state"], one["place"]) for one in receiver.received] == [("failed", "label-1")]
    assert "s3cr3t" not in f"{stop.value}{receiver.received}"


def test_without_an_address_nothing_is_posted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)

    with notifying("train", "s3://runs/first"):
        pass
    submit(Cluster(-9), monkeypatch)

    assert receiver.received == []
