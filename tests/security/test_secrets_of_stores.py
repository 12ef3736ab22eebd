"""No secret leaves a store: not in its errors, their causes, or what is logged on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from pipelines.labelling.fetching import Fetcher
from pipelines.lake.lake_object import LakeObject
from pipelines.store import Store, StoreOptions, Stores, open_store, probe
from tests.security.conftest import (
    KEY_ID,
    PASSWORD,
    SECRET_KEY,
    SESSION_TOKEN,
    SIGNED,
    Gossip,
    leaked,
    planted,
)
from tests.simulation.world import Clock

Catch = Callable[[Callable[[], object]], str]

ANSWERS = [
    (403, "AccessDenied"),
    (403, "SignatureDoesNotMatch"),
    (403, "InvalidAccessKeyId"),
    (400, "ExpiredToken"),
    (400, "InvalidToken"),
    (404, "NoSuchBucket"),
    (404, "NoSuchKey"),
    (403, "InvalidObjectState"),
    (412, "PreconditionFailed"),
    (400, "AuthorizationHeaderMalformed"),
    (503, "SlowDown"),
    (500, "InternalError"),
]
CALLS: dict[str, Callable[[Store], object]] = {
    "list": lambda store: list(store.list()),
    "head": lambda store: store.head("a.jpg"),
    "get": lambda store: store.get("a.jpg"),
    "range": lambda store: store.get_range("a.jpg", 0, 4),
    "odd": lambda store: store.get("a//b.jpg"),
    "put": lambda store: store.put("a", b"1"),
    "create": lambda store: store.put("a", b"1", create=True),
    "replace": lambda store: store.put("a", b"1", if_match="e"),
    "delete": lambda store: store.delete("a"),
    "probe": probe,
}


@pytest.mark.parametrize("via", ["auto", "fsspec"])
@pytest.mark.parametrize(("status", "code"), ANSWERS)
def test_s3_that_repeats_what_it_was_shown(
    gossip: Gossip,
    caught: Catch,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    via: Literal["auto", "fsspec"],
) -> None:
    planted(monkeypatch)
    gossip.status, gossip.code = status, code
    store = open_store("s3://lake", StoreOptions(via=via, endpoint=gossip.endpoint, retry_seconds=0.0))

    told = {name: caught(lambda call=call: call(store)) for name, call in CALLS.items()}  # type: ignore[misc]

    assert any(KEY_ID in headers.get("authorization", "") for _, headers in gossip.requests)  # it had them to tell
    assert {name: leaked(text) for name, text in told.items() if leaked(text)} == {}
    assert {name for name, text in told.items() if "cannot" not in text} <= {"delete"}


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_s3_that_nobody_answers_for(
    caught: Catch, monkeypatch: pytest.MonkeyPatch, via: Literal["auto", "fsspec"]
) -> None:
    planted(
        monkeypatch, HTTPS_PROXY=f"http://user:{PASSWORD}@127.0.0.1:9", HTTP_PROXY=f"http://user:{PASSWORD}@127.0.0.1:9"
    )
    for endpoint in ("http://127.0.0.1:9", "https://nowhere.invalid"):
        store = open_store("s3://lake", StoreOptions(via=via, endpoint=endpoint, retry_seconds=0.0))

        text = caught(lambda store=store: store.get("a.jpg"))  # type: ignore[misc]

        assert "StoreDown" in text
        assert leaked(text) == set()


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
@pytest.mark.parametrize("user", ["", f"user:{PASSWORD}@"])
def test_a_signed_web_address(gossip: Gossip, caught: Catch, status: int, user: str) -> None:
    gossip.status = status
    uri = f"{gossip.endpoint.replace('//', f'//{user}')}/a.jpg?{SIGNED}"

    text = caught(lambda: Stores(StoreOptions(retry_seconds=0.0)).get(uri))

    assert SIGNED in gossip.requests[0][0]
    assert "a.jpg?X-Amz-Credential=..." in text
    assert leaked(text) == set()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "http://[broken", "http://nowhere.invalid"])
def test_a_web_address_that_leads_nowhere(caught: Catch, uri: str) -> None:
    whole = f"{uri.replace('//', f'//user:{PASSWORD}@')}/a.jpg?{SIGNED}"

    text = caught(lambda: Stores(StoreOptions(retry_seconds=0.0)).get(whole))

    assert "Error" in text or "Misconfigured" in text or "StoreDown" in text
    assert leaked(text) == set()


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{KEY_ID}:{SECRET_KEY}@lake/x",
        f"s3a://user:{PASSWORD}@lake",
        f"gs://user:{PASSWORD}@lake/x",
        f"az://user:{PASSWORD}@container/x",
        f"ftp://user:{PASSWORD}@127.0.0.1:9/x",
        f"sftp://user:{PASSWORD}@127.0.0.1:9/x",
        f"webhdfs://user:{PASSWORD}@127.0.0.1:9/x",
        f"nosuch://user:{PASSWORD}@host/x",
        f"https://user:{PASSWORD}@127.0.0.1:9/x",
    ],
)
def test_passwords_in_addresses_of_any_kind(caught: Catch, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    planted(monkeypatch)
    options = StoreOptions(retry_seconds=0.0)

    for act in (lambda: list(open_store(uri, options).list()), lambda: Stores(options).get(f"{uri}/a.jpg")):
        text = caught(act)

        assert "Misconfigured" in text or "StoreDown" in text
        assert leaked(text) == set()


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ENDPOINT_URL": f"http://user:{PASSWORD}@127.0.0.1:9"},
        {"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "process"},
        {"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "no-json"},
        {"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "nobody"},
    ],
)
def test_credentials_that_cannot_be_loaded(
    caught: Catch, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, variables: dict[str, str]
) -> None:
    (tmp_path / "config").write_text(
        f"[profile process]\ncredential_process = sh -c 'echo {SECRET_KEY} >&2; exit 1'\n"
        f"[profile no-json]\ncredential_process = echo {SECRET_KEY}\n"
    )
    planted(monkeypatch, AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_EC2_METADATA_DISABLED="true", **variables)

    text = caught(lambda: open_store("s3://lake"))

    assert "Misconfigured" in text
    assert leaked(text) == set()


def test_an_endpoint_with_a_password_is_refused(caught: Catch) -> None:
    text = caught(lambda: StoreOptions(endpoint=f"http://user:{PASSWORD}@127.0.0.1:9"))

    assert "ValueError" in text
    assert leaked(text) == set()


@pytest.mark.parametrize(
    ("uri", "variables"),
    [
        ("az://container/x", {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": PASSWORD + "!"}),
        ("az://container/x", {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_SAS_TOKEN": PASSWORD}),
        ("gs://lake/x", {"GOOGLE_SERVICE_ACCOUNT_KEY": f'"{PASSWORD}"'}),
        ("gs://lake/x", {"GOOGLE_SERVICE_ACCOUNT_KEY": f'{{"private_key": "{PASSWORD}"}}'}),
    ],
)
def test_credentials_of_other_clouds_that_cannot_be_used(
    caught: Catch, monkeypatch: pytest.MonkeyPatch, uri: str, variables: dict[str, str]
) -> None:
    planted(monkeypatch, **variables)

    text = caught(lambda: open_store(uri, StoreOptions(retry_seconds=0.0)).get("a.jpg"))

    assert "Misconfigured" in text or "StoreDown" in text
    assert leaked(text) == set()


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_what_is_written_into_the_row_of_an_image(
    gossip: Gossip, monkeypatch: pytest.MonkeyPatch, via: Literal["auto", "fsspec"]
) -> None:
    planted(monkeypatch)
    fetcher = Fetcher(Stores(StoreOptions(via=via, endpoint=gossip.endpoint, retry_seconds=0.0)), Clock())

    fetched = [
        fetcher.fetch([LakeObject(uri)])[0] for uri in ("s3://lake/a.jpg", f"{gossip.endpoint}/a.jpg?w=600&id=7")
    ]

    assert [one.error_kind for one in fetched] == ["denied", "denied"]
    assert leaked(repr(fetched)) == set()
    assert SESSION_TOKEN not in repr(fetched)
