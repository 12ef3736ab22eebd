"""Secrets that are planted where users have theirs, and servers that give them away."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

KEY_ID = "AKIAPLANTEDPLANTED77"
SECRET_KEY = "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"
SESSION_TOKEN = "plantedsessiontoken77Zm9vYmFy"
PASSWORD = "plantedpassword77"
SIGNATURE = "plantedsignature77deadbeef"
CREDENTIAL = "PLANTEDCREDENTIAL77"
HUB_TOKEN = "hf_plantedhubtoken77"
SECRETS = (KEY_ID, SECRET_KEY, SESSION_TOKEN, PASSWORD, SIGNATURE, CREDENTIAL, HUB_TOKEN)

SIGNED = f"X-Amz-Credential={CREDENTIAL}%2F20261126&X-Amz-Security-Token={SESSION_TOKEN}&X-Amz-Signature={SIGNATURE}"


def planted(monkeypatch: pytest.MonkeyPatch, **others: str) -> None:
    """Set the environment of a user with temporary credentials; `others` are further variables."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    values = {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "AWS_REGION": "us-east-1",
        "HF_TOKEN": HUB_TOKEN,
    }
    for name, value in (values | others).items():
        monkeypatch.setenv(name, value)


def told(error: BaseException) -> str:
    """Everything that an exception tells: itself, its whole chain of causes and contexts, its traceback."""
    texts, waiting, seen = ["".join(traceback.format_exception(error))], [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        texts += [str(one), repr(one), repr(one.args), *getattr(one, "__notes__", [])]
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(texts)


def leaked(text: str) -> set[str]:
    """The secrets that a text holds, whole or in good part."""
    return {secret for secret in SECRETS if secret in text or secret[:14] in text}


def leaked_in_files(folders: Iterable[Path]) -> dict[str, set[str]]:
    """By file, the secrets that files hold: by their bytes, and by their values where they are Parquet."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        secrets = leaked(path.read_bytes().decode("latin-1")) | leaked(_values(path))
        if secrets:
            found[str(path)] = secrets
    return found


def _values(path: Path) -> str:
    import pyarrow.parquet as pq

    data = path.read_bytes()
    if data[:4] != b"PAR1":
        return ""
    file = pq.ParquetFile(path)
    return f"{file.metadata.metadata} {file.schema_arrow.metadata} {file.read().to_pylist()}"


@dataclass
class Gossip:
    """A server that answers every request with one status, and repeats all that it was told in the answer."""

    endpoint: str
    status: int = 403
    code: str = "AccessDenied"
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that go away: at the end of a test nobody listens any more."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def gossip() -> Iterator[Gossip]:
    """A store on loopback that gives away the credentials it is shown, as S3 does with tokens that are over."""
    server = QuietServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    state = Gossip(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = _handler(state)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def caught(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[[Callable[[], object]], str]:
    """Do something that fails, and return all that a user or a log could have seen of it."""

    def catch(act: Callable[[], object]) -> str:
        said = ""
        with caplog.at_level("INFO"):
            try:
                act()
            except SystemExit as left:
                said = f"exit code {left.code}"  # the process ends: nobody is shown more
            except Exception as error:  # noqa: BLE001 - whatever it is, what it tells is looked at
                said = f"{type(error).__name__}\n{told(error)}"
        out, err = capfd.readouterr()
        return "\n".join([said, out, err, caplog.text, *(str(record.__dict__) for record in caplog.records)])

    return catch


def _handler(state: Gossip) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.requests.append((f"{self.command} {self.path}", headers))
            body = (
                f'<?xml version="1.0"?><Error><Code>{state.code}</Code><Message>you said {headers}</Message>'
                f"<Token-0>{SESSION_TOKEN}</Token-0><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>"
                f"<StringToSign>AWS4 {KEY_ID} {SIGNATURE}</StringToSign><Resource>{self.path}</Resource></Error>"
            ).encode()
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    return Handler
