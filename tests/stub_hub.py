"""A Hugging Face hub of one model on this machine, for its real client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class Hub:
    """A hub of one model, `owner/detr`: as much of the real one's protocol as its client needs."""

    revisions: dict[str, Path] = field(default_factory=dict)
    gated: bool = False
    limited: bool = False
    commits: dict[str, str] = field(default_factory=dict)
    downloaded: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def commit(self, revision: str) -> str:
        return hashlib.sha1(revision.encode(), usedforsecurity=False).hexdigest()

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(f"{method} {path}")
        if self.limited:
            limits = {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
            return 429, limits, b""
        if not path.startswith(("/api/models/owner/detr", "/owner/detr/resolve/")):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if path.startswith("/api/"):
            revision = path.partition("/revision/")[2] or "main"
            revision = self.commits.get(revision, revision)
            if revision not in self.revisions:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            files = [{"rfilename": file.name} for file in self.revisions[revision].iterdir()]
            return 200, {}, json.dumps({"id": "owner/detr", "sha": self.commit(revision), "siblings": files}).encode()
        wanted, name = path.removeprefix("/owner/detr/resolve/").split("/")
        wanted = self.commits.get(wanted, wanted)
        revision = next(known for known in self.revisions if wanted in (known, self.commit(known)))
        directory, commit = self.revisions[revision], self.commit(revision)
        content = (directory / name).read_bytes()
        if method == "GET":
            self.downloaded.append(name)
        return 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}, content


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Do what HF_ENDPOINT does when the client is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve a hub on the loopback, and have the client use it and this cache."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = hub.answer(self.command, self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield hub
    server.shutdown()
    server.server_close()
