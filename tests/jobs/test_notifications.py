"""State changes are posted; a server that fails changes no exit code, and the address is printed nowhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from jobs._notifications import VARIABLE, notifying
from jobs.exits import run
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


def test_without_an_address_nothing_is_posted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)

    with notifying("train", "s3://runs/first"):
        pass

    assert receiver.received == []
