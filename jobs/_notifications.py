"""Post state changes of a job to the address in `RAY_DETR_NOTIFY_URL`. A failure only causes one note."""

import json
import os
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

VARIABLE = "RAY_DETR_NOTIFY_URL"
ANSWER_SECONDS = 10.0


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
    import http.client  # imported here: it would take a fifth of the time of `--help`

    from pipelines.errors import CapReached, RayDetrError

    told: list[str] = []

    def post(state: str, message: str = "") -> None:
        record = {
            "job": job,
            "state": state,
            "place": place,
            "message": message,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **details,
        }
        try:
            _post(url, json.dumps(record).encode())
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not told:
                # without another error's text, which may contain the address
                reason = error if isinstance(error, _Refused) else type(error).__name__
                print(f"note: the notification could not be sent ({reason})", file=sys.stderr)
            told.append(state)

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
