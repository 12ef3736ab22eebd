"""A real Label Studio on loopback, driven by its API as documentation tells users to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

TOKEN = "0123456789abcdef0123456789abcdef01234567"
START_SECONDS = 900  # the first start makes a database: a minute on an idle machine
BOUNDARY = "----ray-detr"


class LabelStudio:
    """The API of a running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> bytes:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": kind}
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - as above
            content: bytes = answer.read()
        return content

    def make_project(self, interface: str, served: Path) -> int:
        """Make a project whose pictures may lie in a folder; return its number."""
        project = json.loads(self.ask("POST", "/api/projects", {"title": "batch 1", "label_config": interface}))
        storage = {"project": project["id"], "path": str(served), "use_blob_urls": True}
        self.ask("POST", "/api/storages/localfiles", storage)
        number: int = project["id"]
        return number

    def upload(self, project: int, file: Path) -> None:
        head = f'Content-Disposition: form-data; name="file"; filename="{file.name}"\r\nContent-Type: application/json'
        body = f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + file.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
        self.ask("POST", f"/api/projects/{project}/import", body, f"multipart/form-data; boundary={BOUNDARY}")

    def tasks(self, project: int) -> list[dict[str, Any]]:
        query = urlencode({"project": project, "fields": "all", "page_size": 100})
        found: list[dict[str, Any]] = json.loads(self.ask("GET", f"/api/tasks?{query}"))["tasks"]
        return found

    def submit(self, task: int, result: list[Any], *, skipped: bool = False) -> None:
        self.ask("POST", f"/api/tasks/{task}/annotations", {"result": result, "was_cancelled": skipped})

    def export(self, project: int, kind: str) -> bytes:
        return self.ask("GET", f"/api/projects/{project}/export?exportType={kind}")


@contextmanager
def label_studio(program: str, data: Path, root: Path, log: Path) -> Iterator[LabelStudio]:
    """Start a server whose pictures lie below `root`, and stop it.

    The database of a first start is kept beside the program, and copied.
    """
    fresh = Path(program).absolute().parent.parent / "fresh-data"
    if fresh.exists():
        shutil.copytree(fresh, data)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root),
        "COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "False", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
        "XDG_DATA_HOME": str(data / "home"),
    }  # fmt: skip
    command = [
        program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", str(data),
        "--username", "a@example.org", "--password", "only-on-loopback-1", "--user-token", TOKEN,
        "--enable-legacy-api-token",
    ]  # fmt: skip
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env={**os.environ, **settings},
            start_new_session=True,
        )  # fmt: skip
    try:
        studio = LabelStudio(f"http://127.0.0.1:{port}")
        _wait(studio, server, log)
        if not fresh.exists():
            shutil.copytree(data, fresh)
        yield studio
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(studio: LabelStudio, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            studio.ask("GET", "/api/projects")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"Label Studio did not start in {START_SECONDS} s: {log.read_text()[-3000:]}")
