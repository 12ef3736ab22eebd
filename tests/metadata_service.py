"""The metadata service of a cloud, played: what a machine hears of its own preemption.

python -m tests.metadata_service NOTICE PORT is AWS's: it announces an interruption in two minutes once the file NOTICE
exists.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


class PlayedServer(ThreadingHTTPServer):
    """A metadata service: `cloud` decides its manners, `paths` what it knows."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answer)
        self.cloud = "aws"
        self.paths: dict[str, str] = {}
        self.token = "token-1"
        self.status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: PlayedServer

    def do_PUT(self) -> None:
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        if self.server.cloud == "aws" and self.path == "/latest/api/token" and lifetime == "21600":
            self._answer(200, self.server.token)
        else:
            self._answer(405, "")

    def do_GET(self) -> None:
        if self.server.status is not None:
            self._answer(self.server.status, "")
        elif self.server.cloud == "aws" and self.headers.get("X-aws-ec2-metadata-token") != self.server.token:
            self._answer(401, "")
        elif self.server.cloud == "google" and self.headers.get("Metadata-Flavor") != "Google":
            self._answer(403, "")
        elif self.path in self.server.paths:
            self._answer(200, self.server.paths[self.path])
        else:
            self._answer(404, "<html>not found</html>")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Noticed(PlayedServer):
    """AWS's service, which announces an interruption once a file exists."""

    def __init__(self, notice: Path, port: int) -> None:
        super().__init__(port)
        self.notice = notice

    def process_request(self, request: object, client_address: object) -> None:
        if self.notice.exists() and ACTION not in self.paths:
            ends = f"{datetime.now(UTC) + timedelta(minutes=2):%Y-%m-%dT%H:%M:%SZ}"
            self.paths[ACTION] = json.dumps({"action": "terminate", "time": ends})
        super().process_request(request, client_address)  # type: ignore[arg-type]


if __name__ == "__main__":
    Noticed(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
