"""Who we are to which server: what requests for images and for the table are signed with, as the server sees it."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from jobs.plan import main as plan
from pipelines.errors import RayDetrError
from pipelines.labelling.config import LabelConfig
from pipelines.store import Store, StoreError, StoreOptions, TableOptions, open_store
from tests.security.conftest import KEY_ID, Gossip, planted

Via = Literal["auto", "fsspec"]
VIAS: list[Via] = ["auto", "fsspec"]
SCOPE = re.compile(r"Credential=([^/]+)/\d{8}/([^/]+)/s3/aws4_request")
CALLS = {
    "list": lambda store: next(store.list(), None),
    "head": lambda store: store.head("a.jpg"),
    "get": lambda store: store.get("a.jpg"),
    "range": lambda store: store.get_range("a.jpg", 0, 4),
    "odd": lambda store: store.get("a//b.jpg"),
    "put": lambda store: store.put("a", b"1", create=True),
    "delete": lambda store: store.delete("a"),
}


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two profiles with keys and regions of their own, and other keys in the environment."""
    (tmp_path / "config").write_text("[profile lake]\nregion = eu-west-1\n[profile us]\nregion = eu-west-2\n")
    (tmp_path / "credentials").write_text(
        "[lake]\naws_access_key_id = AKIALAKE\naws_secret_access_key = x\n"
        "[us]\naws_access_key_id = AKIAUS\naws_secret_access_key = y\n"
    )
    planted(
        monkeypatch,
        AWS_CONFIG_FILE=str(tmp_path / "config"),
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
    )


def ask(store: Store, gossip: Gossip) -> dict[str, dict[str, str]]:
    """The headers of the last request of every kind of call, all of which are refused."""
    asked = {}
    for name, call in CALLS.items():
        gossip.requests.clear()
        with pytest.raises(StoreError):
            call(store)
        asked[name] = gossip.requests[-1][1]
    return asked


def scopes(asked: dict[str, dict[str, str]]) -> set[tuple[str, str] | None]:
    """By whose key and for which region requests were signed; None for unsigned ones."""
    found = set()
    for headers in asked.values():
        scope = SCOPE.search(headers.get("authorization", ""))
        found.add((scope[1], scope[2]) if scope else None)
    return found


@pytest.mark.parametrize("via", VIAS)
def test_the_environment_signs_when_nothing_is_said(profiles: None, gossip: Gossip, via: Via) -> None:
    store = open_store("s3://lake", StoreOptions(via=via, endpoint=gossip.endpoint, retry_seconds=0.0))

    asked = ask(store, gossip)

    assert scopes(asked) == {(KEY_ID, "us-east-1")}
    assert all("x-amz-security-token" in headers for headers in asked.values())
    assert all("x-amz-request-payer" not in headers for headers in asked.values())


@pytest.mark.parametrize("via", VIAS)
def test_a_profile_that_is_asked_for_signs_though_the_environment_has_keys(
    profiles: None, gossip: Gossip, monkeypatch: pytest.MonkeyPatch, via: Via
) -> None:
    monkeypatch.delenv("AWS_REGION")
    options = StoreOptions(via=via, endpoint=gossip.endpoint, profile="lake", retry_seconds=0.0)

    asked = ask(open_store("s3://lake", options), gossip)

    assert scopes(asked) == {("AKIALAKE", "eu-west-1")}
    assert all("x-amz-security-token" not in headers for headers in asked.values())


@pytest.mark.parametrize("via", VIAS)
def test_a_region_that_is_asked_for_is_signed_for(profiles: None, gossip: Gossip, via: Via) -> None:
    options = StoreOptions(via=via, endpoint=gossip.endpoint, profile="lake", region="ap-south-1", retry_seconds=0.0)

    assert scopes(ask(open_store("s3://lake", options), gossip)) == {("AKIALAKE", "ap-south-1")}


@pytest.mark.parametrize("via", VIAS)
def test_anonymous_requests_are_not_signed_though_there_are_keys(profiles: None, gossip: Gossip, via: Via) -> None:
    options = StoreOptions(via=via, endpoint=gossip.endpoint, anonymous=True, retry_seconds=0.0)

    asked = ask(open_store("s3://lake", options), gossip)

    assert all("authorization" not in headers for headers in asked.values())
    assert all("x-amz-security-token" not in headers for headers in asked.values())


@pytest.mark.parametrize("via", VIAS)
def test_the_requester_says_that_he_pays_and_signs_it(profiles: None, gossip: Gossip, via: Via) -> None:
    options = StoreOptions(via=via, endpoint=gossip.endpoint, request_payer=True, retry_seconds=0.0)

    asked = ask(open_store("s3://lake", options), gossip)

    assert {name: headers.get("x-amz-request-payer") for name, headers in asked.items()} == dict.fromkeys(
        CALLS, "requester"
    )
    assert all("x-amz-request-payer" in headers["authorization"] for headers in asked.values())


@pytest.mark.parametrize("call", ["get", "odd"])
def test_keys_of_a_file_that_is_written_again_are_read_again(
    profiles: None, gossip: Gossip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr("pipelines.store.aws_files.READ_AGAIN_AFTER", timedelta(seconds=-1))
    monkeypatch.setattr("pipelines.store.buckets.CREDENTIALS_GOOD_FOR", timedelta(0))
    store = open_store("s3://lake", StoreOptions(endpoint=gossip.endpoint, profile="lake", retry_seconds=0.0))
    with pytest.raises(StoreError):
        CALLS[call](store)
    before = gossip.requests[-1][1]

    renewed = "[lake]\naws_access_key_id = AKIANEW\naws_secret_access_key = z\naws_session_token = renewed\n"
    (tmp_path / "credentials").write_text("[lake]\naws_access_key_id = AKIANEW\n")  # half of it: there are no keys
    with pytest.raises(StoreError):
        CALLS[call](store)
    between = gossip.requests[-1][1]
    (tmp_path / "credentials").write_text(renewed)
    with pytest.raises(StoreError):
        CALLS[call](store)
    after = gossip.requests[-1][1]

    assert scopes({"before": before, "between": between}) == {("AKIALAKE", "us-east-1")}
    assert scopes({"after": after}) == {("AKIANEW", "us-east-1")}
    assert after["x-amz-security-token"] == "renewed"


def test_no_such_profile_is_a_sentence(profiles: None) -> None:
    with pytest.raises(StoreError, match=r"profile \(nobody\) could not be found\. Log in again, or choose"):
        open_store("s3://lake", StoreOptions(profile="nobody"))


def test_images_and_table_have_options_of_their_own() -> None:
    config = LabelConfig(
        ("s3://lake/",), "s3://table", "scenes",
        image_options=StoreOptions("fsspec", True, "http://a", "r", "lake", True),
        table_access=TableOptions("http://b", "s", "us"),
    )  # fmt: skip

    assert config.table_options == StoreOptions(endpoint="http://b", region="s", profile="us")


def test_a_table_is_reached_as_the_images_are_where_nothing_else_is_said() -> None:
    config = LabelConfig(
        ("s3://lake/",), "s3://t", "scenes", image_options=StoreOptions(endpoint="http://a", region="r", profile="lake")
    )

    assert config.table_options == StoreOptions(endpoint="http://a", region="r", profile="lake")


@pytest.mark.parametrize(
    ("images", "endpoint", "table_endpoint", "who"),
    [
        ("s3://lake/2026/", "{gossip}", "http://127.0.0.1:9", ("AKIALAKE", "us-east-1")),
        ("{folder}", "http://127.0.0.1:9", "{gossip}", ("AKIAUS", "eu-west-2")),
    ],
)
def test_a_command_asks_the_server_of_images_and_that_of_the_table_as_two_users(
    profiles: None,
    gossip: Gossip,
    tmp_path: Path,
    images: str,
    endpoint: str,
    table_endpoint: str,
    who: tuple[str, str],
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    line = (
        f"--images {images} --table s3://table/t --endpoint {endpoint} --profile lake "
        f"--table-endpoint {table_endpoint} --table-profile us --table-region eu-west-2"
    )

    with pytest.raises(RayDetrError):
        plan(line.format(gossip=gossip.endpoint, folder=tmp_path).split())

    assert scopes(dict(gossip.requests)) == {who}
