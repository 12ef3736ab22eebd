"""State changes of a job, posted to the address in `RAY_DETR_NOTIFY_URL`; a failure changes nothing but one note."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

VARIABLE = "RAY_DETR_NOTIFY_URL"
ANSWER_SECONDS = 10.0


@contextmanager
def notifying(job: str, place: str) -> Iterator[dict[str, object]]:
    """Post that a job has started, and how it ended.

    Args:
        job: `label` or `train`.
        place: of the table or the run, without secrets.

    Yields:
        A dictionary; what is put there is posted with the end, such as the number of images.
    """
    # the address is a secret: it is read here, printed nowhere, and not left to processes that Ray starts
    url = os.environ.pop(VARIABLE, None)
    details: dict[str, object] = {}
    if not url:
        yield details
        return
    import http.client  # here: it would take a fifth of the time of `--help`

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
                # without the error's text, in which the address may be
                print(f"note: the notification could not be sent ({type(error).__name__})", file=sys.stderr)
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


def _post(url: str, body: bytes) -> None:
    """Send a body.

    Raises:
        OSError: there is no answer, or the answer is an error.
        ValueError: this is no address of a web server.
    """
    import http.client

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http address")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=ANSWER_SECONDS)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
    finally:
        connection.close()
    if status >= 300:
        raise OSError(f"status {status}")
