"""The policies of docs/security.md on a server that enforces them, whole and with single rights left out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detr.scenes.files import write_scenes
from tests.conftest import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
GUEST = {"AWS": ["arn:aws:iam:::user/guest"]}

Statements = list[dict[str, Any]]


class Account:
    """A lake and a table of one user, and another who does there what policies allow."""

    def __init__(self, server: S3Server, drawn: Path) -> None:
        self._server = server
        self.lake, self.table = (server.bucket().removeprefix("s3://") for _ in range(2))
        write_scenes(drawn, 4, 4, sizes={(96, 128): 1})
        for path in drawn.glob("*.jpg"):
            server.client().upload_file(str(path), self.lake, f"2026/{path.name}")
        self.names = sorted(path.name for path in drawn.glob("*.jpg"))
        documentation = (ROOT / "docs" / "security.md").read_text().replace("LAKE", self.lake)
        text = documentation.replace("BUCKET", self.table).replace("TABLE", "table")
        self.reader, self.writer = (
            json.loads(block)["Statement"] for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        )

    def allow(self, bucket: str, statements: Statements) -> None:
        policy = {"Version": "2012-10-17", "Statement": [{**one, "Principal": GUEST} for one in statements]}
        self._server.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))

    def label(self, images: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Label as the guest, who has nothing but his keys."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        environment |= {
            "AWS_ENDPOINT_URL": self._server.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": os.environ["S3_GUEST_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": os.environ["S3_GUEST_SECRET_ACCESS_KEY"],
        }
        command = [sys.executable, "-m", "jobs.label", "--images", images, "--table", f"s3://{self.table}/table"]
        return subprocess.run(
            [*command, "--model", "scenes", "--json", *more],
            cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300, check=False,
        )  # fmt: skip


@pytest.fixture
def account(s3_server: S3Server, tmp_path: Path) -> Account:
    if "S3_GUEST_ACCESS_KEY_ID" not in os.environ:
        pytest.skip("no second user: `make test-s3` makes one, or set S3_GUEST_ACCESS_KEY_ID and its secret")
    return Account(s3_server, tmp_path / "drawn")


def without(action: str, statements: Statements) -> Statements:
    return [one for one in statements if one["Action"] != action]


def test_with_the_rights_of_the_documentation_a_lake_is_labelled_and_labelled_again(account: Account) -> None:
    account.allow(account.lake, account.reader)
    account.allow(account.table, account.writer)

    first = account.label(f"s3://{account.lake}/2026/")
    second = account.label(f"s3://{account.lake}/2026/")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert json.loads(first.stdout)["images"] == 4
    assert json.loads(first.stdout)["errors"] == {}


def test_without_the_right_to_list_a_folder_is_refused_and_of_a_list_what_is_missing_is_denied(
    account: Account, tmp_path: Path
) -> None:
    account.allow(account.lake, without("s3:ListBucket", account.reader))
    account.allow(account.table, account.writer)
    listed = tmp_path / "list.csv"
    listed.write_text(
        "\n".join(["uri", *(f"s3://{account.lake}/2026/{name}" for name in (*account.names, "gone.jpg"))])
    )

    folder = account.label(f"s3://{account.lake}/2026/")
    of_list = account.label(str(listed), "--max-error-rate", "1")

    assert folder.returncode == 1
    assert f"\nerror: cannot list s3://{account.lake}/2026/: " in folder.stderr
    assert of_list.returncode == 0, of_list.stderr
    assert json.loads(of_list.stdout)["errors"] == {"denied": 1}


@pytest.mark.parametrize("right", ["s3:ListBucket", "s3:DeleteObject"])
def test_without_a_right_on_the_table_nothing_is_begun(account: Account, right: str) -> None:
    account.allow(account.lake, account.reader)
    account.allow(account.table, without(right, account.writer))

    ended = account.label(f"s3://{account.lake}/2026/")

    assert ended.returncode == 1
    assert f"Grant {right}" in ended.stderr
    assert account.table in ended.stderr
    left = account._server.client().list_objects_v2(Bucket=account.table).get("Contents", ())
    assert [one["Key"] for one in left if "/_runs/probe-" not in one["Key"]] == []
