"""Post state changes of a job to the address in `RAY_DETR_NOTIFY_URL`. A failure only causes one note."""

import json
import os
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

VARIABLE = "RAY_DETR_NOTIFY_URL"
ANSWER_SECONDS = 10.0
POSTED = f"note: posted to {VARIABLE}: "
"""Begin of the line that a job writes when it has posted an end without success; `ray-detr submit` looks for it."""


@contextmanager
def notifying(job: str, place: str) -> Iterator[dict[str, object]]:
    """Post the start and the end of a job.

    Args:
        job: `label` or `train`.
        place: address of the table or the run, without secrets.

    Yields:
        A dictionary; its contents, such as the number of images, are posted with the end.
    """
    # the address is a secret: it is read here, never printed, and not passed to processes that Ray starts
    url = os.environ.pop(VARIABLE, None)
    details: dict[str, object] = {}
    if not url:
        yield details
        return
    from pipelines.errors import CapReached, RayDetrError

    notifier = Notifier(url, job, place)

    def post(state: str, message: str = "") -> None:
        if notifier.post(state, message, details) and state not in ("started", "finished"):
            print(f"{POSTED}{state}", file=sys.stderr, flush=True)

    post("started")
    try:
        yield details
    except CapReached as reached:
        post("stopped", str(reached))
        raise
    except RayDetrError as error:
        post("failed", str(error))
        raise
    except (KeyboardInterrupt, SystemExit):
        post("interrupted")
        raise
    except BaseException as error:
        post("failed", type(error).__name__)
        raise
    else:
        post("finished")
    finally:
        os.environ[VARIABLE] = url


class Notifier:
    """Posts state changes of a job. A failure is printed once."""

    def __init__(self, url: str, job: str, place: str) -> None:
        """Set the address, and what the job is and works on."""
        self._url, self._job, self._place = url, job, place
        self._has_failed = False

    def post(self, state: str, message: str, details: Mapping[str, object]) -> bool:
        """Post a state; return whether the server has accepted it."""
        import http.client  # imported here: it would take a fifth of the time of `--help`

        record = {
            "job": self._job,
            "state": state,
            "place": self._place,
            "message": message,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **details,
        }
        try:
            _post(self._url, json.dumps(record).encode())
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not self._has_failed:
                # without another error's text, which may contain the address
                reason = error if isinstance(error, _Refused) else type(error).__name__
                print(f"note: the notification could not be sent ({reason})", file=sys.stderr)
            self._has_failed = True
            return False
        return True


class SubmittedJob:
    """Posts that a submitted job failed, unless the job has posted that itself.

    A driver that is killed, or lost with its node, posts nothing, and neither does a job that cannot be submitted.
    """

    def __init__(self, job: str, submission_id: str) -> None:
        """Set the name of the job and the submission id of its first attempt."""
        self._job, self._place = job, submission_id
        self._has_posted = False
        self._end_of_log = ""

    def read(self, log: str) -> None:
        """Look for the job's own post in the next piece of its log."""
        log = self._end_of_log + log
        self._has_posted = self._has_posted or POSTED in log
        self._end_of_log = log[-len(POSTED) :]

    def failed(self, exit_code: int, message: str) -> None:
        """Post that the job failed, or that it could not be submitted or followed."""
        url = os.environ.get(VARIABLE)
        if url and not self._has_posted:
            Notifier(url, self._job, self._place).post("failed", message, {"exit_code": exit_code})


class _Refused(OSError):
    """The server's answer is an error; the message has only its status."""


def _post(url: str, body: bytes) -> None:
    """Send a request body.

    Raises:
        OSError: there is no response, or it is an error.
        ValueError: this is not the address of a web server.
    """
    import http.client

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http address")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=ANSWER_SECONDS)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
        connection.request("POST", path, body, headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    if status >= 300:
        raise _Refused(f"the server answered with status {status}")
