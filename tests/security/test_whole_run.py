"""A whole labelling run as a user starts it: what it leaves behind, and what it opens while it lasts."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from detr.scenes.files import write_scenes
from tests.conftest import S3Server
from tests.pipelines.store.conftest import Between, _handler
from tests.security.conftest import HUB_TOKEN, KEY_ID, SECRET_KEY, SESSION_TOKEN, SIGNED, leaked, leaked_in_files

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
LISTENS = "0A"  # of /proc/net/tcp


@dataclass(frozen=True)
class Ended:
    """What a run printed, wrote into its bucket, left in its temporary folder, listened on, and asked its store for."""

    code: int
    printed: str
    bucket: Path
    temporary: Path
    listened: frozenset[str]
    tokens: frozenset[str]
    asked: tuple[str, ...]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, moto_server: S3Server) -> Iterator[Ended]:
    """A run over two scenes and a page in a folder, and a missing image of a list at a signed address.

    Before it, a run fails at its start, a doctor looks, and a trial is made: they delete what they wrote.
    """
    lake, bucket = tmp_path_factory.mktemp("lake"), tmp_path_factory.mktemp("bucket")
    write_scenes(lake, 2, 4, sizes={(96, 128): 1})
    (lake / "page.jpg").write_bytes(b"<html>not found</html>")
    uri = moto_server.bucket()
    client, name = moto_server.client(), uri.removeprefix("s3://")
    for path in lake.glob("*.jpg"):
        client.upload_file(str(path), name, f"lake/{path.name}")
    asked = Between("")
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(asked, moto_server.endpoint))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    temporary = Path(tempfile.mkdtemp(prefix="rd", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))} | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "HF_TOKEN": HUB_TOKEN,
        "TMPDIR": str(temporary),
        "HOME": str(temporary),  # where Ray would write a token
    }
    table = ["--table", f"{uri}/table"]
    before = [
        ["label", "--images", f"{uri}/lake/", *table, "--model", "scenes", "--actors", "99"],
        ["doctor", *table],
        ["plan", "--images", f"{uri}/lake/", *table, "--model", "scenes", "--trial", "1"],
    ]
    elsewhere = environment | {"TMPDIR": tempfile.mkdtemp(prefix="rd", dir="/tmp")}
    for command, *options in before:
        subprocess.run(
            [sys.executable, "-m", f"jobs.{command}", *options],
            cwd=ROOT, env=elsewhere, timeout=300, check=False, capture_output=True,
        )  # fmt: skip
    shutil.rmtree(elsewhere["TMPDIR"], ignore_errors=True)
    with _SignedList(f"uri\n{uri}/lake/missing.jpg\n") as endpoint:
        line = ["--images", f"{endpoint}/list.csv?{SIGNED}", f"{uri}/lake/", "--table", f"{uri}/table"]
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.label", *line, "--model", "scenes", "--max-error-rate", "1", "--verbose"],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        listened: set[str] = set()
        tokens: set[str] = set()
        watching = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, listened, tokens, watching))
        watcher.start()
        printed, _ = process.communicate(timeout=300)
        watching.set()
        watcher.join()
    proxy.shutdown()
    proxy.server_close()
    for entry in client.list_objects_v2(Bucket=name).get("Contents", ()):
        target = bucket / entry["Key"]
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(name, entry["Key"], str(target))
    yield Ended(
        process.returncode, printed, bucket, temporary, frozenset(listened), frozenset(tokens), tuple(asked.seen)
    )
    shutil.rmtree(temporary)


def test_the_run_is_well_and_says_so_without_secrets(ended: Ended) -> None:
    assert ended.code == 0, ended.printed
    assert "not_an_image 1" in ended.printed
    assert "missing 1" in ended.printed
    assert leaked(ended.printed) == set()


def test_table_plan_and_records_hold_no_secret(ended: Ended) -> None:
    written = {path.relative_to(ended.bucket).parts[1] for path in ended.bucket.rglob("*") if path.is_file()}

    assert {"data", "_runs"} <= written
    assert leaked_in_files([ended.bucket]) == {}


def test_rays_own_logs_hold_no_secret(ended: Ended) -> None:
    # several if a raylet ended as it started, and Ray was started again
    assert {path.name for path in ended.temporary.rglob("raylet.out")} == {"raylet.out"}

    assert leaked_in_files([ended.temporary]) == {}


def test_all_that_listens_is_on_loopback(ended: Ended) -> None:
    assert len(ended.listened) > 3  # raylet, GCS and workers were seen

    assert {one for one in ended.listened if not _is_loopback(one.rpartition(":")[0])} == set()


def test_whoever_reaches_ray_needs_a_token_that_is_written_nowhere(ended: Ended) -> None:
    [token] = ended.tokens

    assert len(token) == 64
    assert token not in ended.printed
    assert [path for path in ended.temporary.rglob("*") if path.is_file() and token.encode() in path.read_bytes()] == []
    assert not (ended.temporary / ".ray").exists()


def test_the_policies_of_the_documentation_allow_all_that_a_run_does_and_nothing_else(ended: Ended) -> None:
    done = {one for request in ended.asked for one in _actions(request)}
    text = (ROOT / "docs" / "security.md").read_text().replace("LAKE/2026", "B/lake").replace("BUCKET/TABLE", "B/table")
    text = text.replace("2026/*", "lake/*").replace("TABLE/*", "table/*").replace("LAKE", "B").replace("BUCKET", "B")
    reader, writer = (json.loads(block)["Statement"] for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL))

    rules = _rules(reader + writer)

    # each action is allowed, and each line of the policies was needed
    used = [(action, key, rule) for action, key in done for rule in rules if _matches(rule, action, key)]
    assert {(action, key) for action, key, _ in used} == done
    assert {rule for _, _, rule in used} == set(rules)


def _actions(request: str) -> Iterator[tuple[str, str]]:
    """Yield the right that a request needs, and the key or the prefix that it is about."""
    method, _, address = request.partition(" ")
    path, query = urlsplit(address).path, parse_qs(urlsplit(address).query)
    key = unquote(path.lstrip("/").partition("/")[2])
    if not key:
        if method == "HEAD":
            return  # the doctor reads the clock from the answer, which a refusal has as well
        assert (method, query.get("list-type")) == ("GET", ["2"])
        yield "s3:ListBucket", query.get("prefix", [""])[0]
    else:
        yield (
            {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}[method],
            key,
        )


def _rules(statements: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The pairs of an action and a pattern of keys or prefixes."""
    rules = []
    for one in statements:
        actions = one["Action"] if isinstance(one["Action"], list) else [one["Action"]]
        prefixes = one.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        patterns = [prefixes] if prefixes else one["Resource"]
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            rules += [(action, pattern.removeprefix("arn:aws:s3:::B/")) for action in actions]
    return rules


def _matches(rule: tuple[str, str], action: str, key: str) -> bool:
    return rule[0] == action and fnmatchcase(key, rule[1])


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _watch(pid: int, listened: set[str], tokens: set[str], is_over: threading.Event) -> None:
    """Collect what the processes of a run listen on, and the tokens that Ray's own were started with."""
    while not is_over.wait(0.3):
        family = _family(pid)
        inodes = {inode for process in family for inode in _sockets(process)}
        listened |= {address for inode, address in _listening().items() if inode in inodes}
        for process in family:
            with suppress(OSError):
                variables = Path(f"/proc/{process}/environ").read_text().split("\0")
                tokens |= {one.partition("=")[2] for one in variables if one.startswith("RAY_AUTH_TOKEN=")}


def _family(pid: int) -> set[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    family, before = {pid}, 0
    while len(family) > before:
        before = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return family


def _sockets(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(link.readlink())
                if target.startswith("socket:["):
                    yield target[8:-1]


def _listening() -> dict[str, str]:
    """By inode, address and port of every listening socket of this machine."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS:
                address, _, port = fields[1].partition(":")
                # words of 32 bits, each in this machine's order
                packed = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
                found[fields[9]] = f"{ipaddress.ip_address(packed)}:{int(port, 16)}"
    return found


class _SignedList:
    """A web server that gives one text to whoever shows the signature."""

    def __init__(self, text: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path.endswith(SIGNED) else 403)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
